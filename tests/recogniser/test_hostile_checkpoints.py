"""A stranger's checkpoint is data: nothing that stands in it runs, and nothing is written elsewhere."""

import copy
import io
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from osr_lightning import load
from osr_lightning.__main__ import main
from osr_lightning.data_spec import DataSpec
from osr_lightning.errors import UserError, one_line
from osr_lightning.models.factory import build_network
from osr_lightning.recogniser import checkpoint, claims
from osr_lightning.training.module import MCDropoutClassifier

QUICK = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
QUICK += ["--evaluation.figures=false", "--evaluation.projector_points=0", "--evaluation.bootstrap=2"]
CANARY = "planted_canary"
quick = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
# libraries warn of what they refuse or mend
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def saved(small_run):
    return torch.load(small_run / "checkpoints" / "last.ckpt", weights_only=True)


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """The working folder, with a module that tells when it is imported, an image, and something to lose."""
    (tmp_path / f"{CANARY}.py").write_text(f"open({str(tmp_path / 'sang')!r}, 'w').close()\nNet = print\n")
    (tmp_path / "photos").mkdir()
    Image.new("L", (28, 28), 90).save(tmp_path / "photos" / "a.png")
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def payloads(place: Path) -> list[object]:
    touch = f"touch {place / 'sang'}"
    names = [f"{CANARY}.Net", "torchvision.transforms.v2.Compose", "unittest.mock.Mock", "os.system"]
    return [
        *names,
        *({"class_path": name, "init_args": {}} for name in names),
        {"class_path": "os.system", "init_args": {"command": touch}},
        {"_target_": "os.system", "command": touch},
        f"!!python/object/apply:os.system [{touch!r}]",
        f"$({touch})",
        f"folder:{place}/../../..",
        [f"{CANARY}.Net"],
        {CANARY: f"npz:{place / 'none.npz'}"},
    ]


def parts(value: object, path: tuple[object, ...] = ()) -> Iterator[tuple[object, ...]]:
    """The paths of all parts of nested dicts and lists."""
    if path:
        yield path
    if isinstance(value, (dict, list)):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from parts(value[key], (*path, key))


def with_part(value, path, new):
    """A copy with another part, or without it if that is Ellipsis."""
    copied = copy.copy(value)
    if len(path) > 1:
        copied[path[0]] = with_part(value[path[0]], path[1:], new)
    elif new is ...:
        del copied[path[0]]
    else:
        copied[path[0]] = new
    return copied


def write(content, path: Path) -> Path:
    torch.save(content, path)
    return path


def harmless(place: Path, files, call) -> object:
    """What the call gives, or None where it refuses in a line; fails the test where anything was run."""
    files.watch(place / "out")
    try:
        return call()
    except UserError as error:
        said = str(error)
    finally:
        outside, started = files.outside, files.started
        files.stop()
        assert outside == []
        assert started == []
        assert not (place / "sang").exists()
        assert CANARY not in sys.modules
    assert said == one_line(said)
    return None


def command(words, place: Path, files, capsys) -> int:
    """The status of a command that is harmless and says in one line what is wrong."""

    def call():
        try:
            return main(words)
        except SystemExit as end:  # the parser's own way
            return f"parser {end.code}"

    status = harmless(place, files, call)
    status = None if status == "parser 2" else status
    out, err = capsys.readouterr()
    assert status in (None, 0, 1, 2)
    said = [line for line in err.splitlines() if line.startswith("osr: error: ")]
    assert len(said) == (status in (1, 2)), err
    assert "Traceback" not in out + err
    return 2 if status is None else status


def words_of(name: str, ckpt: Path, place: Path, small: list[str]) -> list[str]:
    here = f"--trainer.default_root_dir={place / 'out'}"
    match name:
        case "predict":
            return [
                "predict",
                f"--ckpt_path={ckpt}",
                str(place / "photos"),
                f"--output={place / 'out' / 'a.csv'}",
            ]
        case "fit":
            return ["fit", f"--ckpt_path={ckpt}", *small, here, "--trainer.max_epochs=2"]
        case "calibrate":
            return [
                "calibrate",
                f"--ckpt_path={ckpt}",
                here,
                *QUICK[:2],
                f"--output={place / 'out' / 'new.ckpt'}",
            ]
    return [name, f"--ckpt_path={ckpt}", here, *QUICK]


# whole files ------------------------------------------------------------------------------------------


class Payload:
    def __init__(self, call, *arguments):
        self.reduced = call, arguments

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize("name", ["predict", "test", "calibrate", "fit"])
@pytest.mark.parametrize("kind", ["pickle", "zip", "part"])
def test_pickles_that_run_code_are_refused(name, kind, saved, place, small, files, capsys):
    payload = Payload(os.system, f"touch {place / 'sang'}")
    path = place / "evil.ckpt"
    if kind == "pickle":
        path.write_bytes(pickle.dumps(payload))
    else:
        write(payload if kind == "zip" else {**saved, "experiment": payload}, path)
    assert command(words_of(name, path, place, small), place, files, capsys) == 2


@quick
@given(data=st.data())
def test_bytes_that_are_changed_or_cut_off(data, saved, place, files):
    torch.save(saved, file := io.BytesIO())
    content = bytearray(file.getvalue())
    for _ in range(data.draw(st.integers(1, 5))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.one_of(st.none(), st.integers(0, len(content))))
    (place / "a.ckpt").write_bytes(content[:cut])
    harmless(place, files, lambda: load(place / "a.ckpt"))


# parts ------------------------------------------------------------------------------------------------

odd = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-3, 70),
        st.floats(),
        st.sampled_from(["", "x", "best", "\ud800", "a\nb", b"x", 10**30, complex(1, 1), (), torch.zeros(0)]),
        st.sampled_from(
            [torch.ones(2, dtype=torch.int64), torch.full((3, 2), torch.nan), torch.tensor(True)]
        ),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.one_of(st.text(max_size=3), inner.filter(lambda k: isinstance(k, int))), inner, max_size=3
        ),
    ),
    max_leaves=4,
)


def changed(data, saved, place, tops=None):
    """The checkpoint with one to three parts left out or in another way."""
    content = saved
    for _ in range(data.draw(st.integers(1, 3))):
        paths = [path for path in parts(content) if tops is None or path[0] in tops]
        if not paths:
            break
        path = data.draw(st.sampled_from(paths))
        content = with_part(
            content, path, data.draw(st.one_of(st.just(...), odd, st.sampled_from(payloads(place))))
        )
    return content


@quick
@given(data=st.data())
def test_parts_of_any_kind_are_loaded_or_refused(data, saved, place, files):
    path = write(changed(data, saved, place, ("state_dict", "recogniser")), place / "a.ckpt")
    found = harmless(place, files, lambda: load(path))
    if found is not None:
        image = np.zeros((28, 28), dtype=np.uint8)
        harmless(place, files, lambda: found.predict([image]))


# what a training alone goes on with
TRAINING = ("loops", "optimizer_states", "lr_schedulers", "callbacks")


def test_no_part_names_code_to_load(saved, place, files):
    for number, path in enumerate(path for path in parts(saved) if path[0] not in TRAINING):
        payload = payloads(place)[number % len(payloads(place))]
        write(with_part(saved, path, payload), place / "a.ckpt")
        harmless(place, files, lambda: load(place / "a.ckpt"))


def test_no_part_of_a_training_names_code_to_load(saved, place, files):
    """All at once, as none is looked at: were one refused, it would hide the others."""
    inside = [path for path in parts(saved) if path[0] in TRAINING]
    leaves = [path for path in inside if not any(other[: len(path)] == path != other for other in inside)]
    for paths in ([(top,) for top in TRAINING], leaves):
        for first in range(len(payloads(place))):
            content = saved
            for number, path in enumerate(paths, first):
                content = with_part(content, path, payloads(place)[number % len(payloads(place))])
            write(content, place / "a.ckpt")
            assert harmless(place, files, lambda: load(place / "a.ckpt")) is not None


@pytest.mark.parametrize(
    ("name", "part", "value", "status"),
    [
        ("validate", ("pytorch-lightning_version",), "x", 2),
        ("validate", ("pytorch-lightning_version",), "1.9.0", 2),
        ("validate", ("pytorch-lightning_version",), ..., 0),
        ("validate", ("state_dict", "recogniser.detectors.fisher.whitening"), "x", 2),
        ("test", ("state_dict", "recogniser.detectors.fisher.means"), torch.zeros(3), 2),
        ("calibrate", ("datamodule_hyper_parameters",), "x", 2),
        ("fit", ("hyper_parameters",), [1], 2),
        ("fit", ("lr_schedulers", 0, "_step_count"), (), 2),
        ("fit", ("optimizer_states", 0, "state", 0, "exp_avg"), "x", 2),
        ("fit", ("optimizer_states", 0, "param_groups", 0, "params", 6), 1, 2),
        ("fit", ("training", "rows", 0), "x", 2),
        ("fit", ("callbacks", "best"), {}, 2),
    ],
)
def test_parts_that_a_command_goes_on_with_are_looked_at(
    name, part, value, status, saved, place, small, files, capsys
):
    part = tuple(best_of(saved)[0] if key == "best" else key for key in part)
    path = write(with_part(saved, part, value), place / "a.ckpt")
    assert command(words_of(name, path, place, small), place, files, capsys) == status


# where a checkpoint would write, or read ----------------------------------------------------------------


def best_of(saved) -> tuple[str, dict]:
    return next((key, state) for key, state in saved["callbacks"].items() if "val/accuracy" in key)


def claiming(saved, path: str, score: float):
    """A checkpoint whose best one is said to lie at any path."""
    key, state = best_of(saved)
    number = torch.tensor(score)
    state = {**state, "best_model_path": path, "kth_best_model_path": path, "best_k_models": {path: number}}
    state |= {"best_model_score": number, "kth_value": number}
    state.pop("dirpath")
    return {**saved, "callbacks": {**saved["callbacks"], key: state}}


def test_a_resumed_training_removes_nothing_that_a_checkpoint_names(saved, place, small):
    (place / "mine").mkdir()
    (place / "mine" / "thesis.txt").write_text("years")
    path = write(claiming(saved, f"local://{place / 'mine'}", -1.0), place / "a.ckpt")
    assert main(words_of("fit", path, place, small)) in (0, 2)
    assert (place / "mine" / "thesis.txt").is_file()


def test_a_resumed_run_writes_over_nothing_that_a_checkpoint_names(saved, small_run, place, small):
    mine = Path(shutil.copy(small_run / "checkpoints" / "best.ckpt", place / "mine.ckpt"))
    before = mine.stat().st_ino
    path = write(claiming(saved, str(mine), 2.0), place / "a.ckpt")
    words = ["run", *words_of("fit", path, place, small)[1:]]
    assert main(words) in (0, 2)
    assert mine.stat().st_ino == before  # a file that is written again is another one


@pytest.mark.parametrize("option", ["known", "unknown", "calibration_unknown", "predict"])
def test_folders_elsewhere_may_be_read(option, saved, place, files, capsys, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    value: object = f"folder:{elsewhere}"
    if "unknown" in option:
        value = {"near": {"a": value}} if option == "unknown" else {"a": value}
    data = {**saved["datamodule_hyper_parameters"], option: value}
    path = write({**saved, "datamodule_hyper_parameters": data}, place / "a.ckpt")
    assert command(words_of("test", path, place, []), place, files, capsys) in (0, 2)


def test_nothing_is_downloaded_into_a_folder_that_the_checkpoint_alone_names(
    saved, place, files, capsys, tmp_path_factory
):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    data = {**saved["datamodule_hyper_parameters"], "root": str(elsewhere)}
    path = write({**saved, "datamodule_hyper_parameters": data}, place / "a.ckpt")
    words = words_of("calibrate", path, place, [])
    files.watch(place / "out")
    assert main(words) == 2
    files.stop()
    assert files.outside == []
    assert list(elsewhere.iterdir()) == []
    assert f"mnist is missing in {elsewhere}, which the checkpoint names" in capsys.readouterr().err
    assert main([*words, f"--data.root={elsewhere}"]) == 2
    assert "cannot be downloaded" in capsys.readouterr().err


# what it claims ---------------------------------------------------------------------------------------


def of_recipe(**changes):
    """A change of a checkpoint: of its recipe's parts."""

    def change(saved):
        recipe = saved["recogniser"]["recipe"]
        found = {name: value(recipe) if callable(value) else value for name, value in changes.items()}
        return with_part(saved, ("recogniser", "recipe"), recipe | found)

    return change


def of_network(name: str, size: int = 28, **arguments):
    """The same of its network, and of the images' size."""
    change = of_recipe(network={"class_path": name, "init_args": arguments})
    return lambda saved: with_part(change(saved), ("recogniser", "facts", "image_size"), size)


def of_part(*path: str, value: object):
    return lambda saved: with_part(saved, path, value)


def ensemble_of(count: int, **member):
    return of_recipe(sampler="ensemble", members=lambda recipe: [recipe | member] * count)


def own_weights(saved):
    more = dict.fromkeys(map(str, range(100)), torch.zeros(10**5))
    return with_part(saved, ("state_dict",), saved["state_dict"] | more)


def laughs(levels: int) -> object:
    value: object = ["ha"]
    for _ in range(levels):
        value = [value] * 10
    return value


ENDLESS: list[object] = []
ENDLESS.append(ENDLESS)
SMALL = {"channels": [2, 3], "hidden": 5}
WEIGHT = ("state_dict", "recogniser.sampler.network.trunk.0.weight")
LARGER = "larger network than it has weights"
CLAIMS = {
    "wide": (of_network("MCDropoutCNN", **SMALL | {"hidden": 10**6}), LARGER),
    "deep": (of_network("ConvNet", channels=[1] * 10**4), LARGER),
    "torchvision's": (of_network("vgg19"), LARGER),
    "one that meta tensors cannot build": (of_network("regnet_y_128gf"), LARGER),
    "a large picture": (of_network("ConvNet", 4096, channels=[130]), "GiB for two images of 4096 pixels"),
    "samples": (of_recipe(num_samples=100_000), "at most 10,000"),
    "members": (ensemble_of(10_000), "has 10,000 members"),
    "members of members": (
        ensemble_of(900, sampler="ensemble", members=[{"sampler": "single"}] * 900),
        "parts, of which it holds",
    ),
    "large members": (
        ensemble_of(100, network={"class_path": "ConvNet", "init_args": {"channels": [32, 64]}}),
        "its networks have at least",
    ),
    "itself in the recipe": (of_recipe(members=ENDLESS), "contains itself"),
    "itself in the settings": (of_part("hyper_parameters", "detectors", value=ENDLESS), "contains itself"),
    "itself in the data": (
        of_part("datamodule_hyper_parameters", "unknown", value=ENDLESS),
        "contains itself",
    ),
    "laughs": (of_part("hyper_parameters", "detectors", value=laughs(12)), "parts, of which it holds"),
    "one number": (of_part(*WEIGHT, value=torch.zeros(1).expand(10**6, 10**3)), "its weights have 4,000"),
    "one number in all": (own_weights, "its weights have 40,"),
    "no numbers": (of_part(*WEIGHT, value=torch.zeros(2, 1, 5, 5, device="meta")), "of another kind"),
}


@pytest.mark.parametrize("kind", CLAIMS)
def test_a_checkpoint_takes_no_more_than_it_holds(kind, saved, tmp_path, monkeypatch):
    change, said = CLAIMS[kind]
    path = write(change(saved), tmp_path / "a.ckpt")
    assert path.stat().st_size < 2**20

    def build(*args, **kwargs):
        raise AssertionError("a network was built")

    if kind != "samples":
        monkeypatch.setattr("osr_lightning.recogniser.checkpoint.build_network", build)
    with pytest.raises(UserError, match=said):
        load(path)
    if "members" not in kind and kind != "samples":  # these are taken from the settings
        with pytest.raises(UserError, match=said):
            MCDropoutClassifier.load_from_checkpoint(path)


@pytest.mark.parametrize("name", ["MCDropoutCNN", "ConvNet", "squeezenet1_0", "vit_b_32"])
def test_no_layer_is_too_wide_to_be_seen(name, monkeypatch):
    """What is let pass without being run has no layer that would be refused."""
    spec = DataSpec(("a", "b"), 3, 224, (0.5,) * 3, (0.5,) * 3)
    recipe = {"network": {"class_path": name, "init_args": {}}}
    network = build_network(recipe["network"], spec)
    weights, given = network.state_dict(), []
    for module in network.modules():
        module.register_forward_hook(lambda module, images, result: given.append(result))
    with torch.device("meta"):
        network.to("meta").eval()(torch.empty(2, *spec.input_shape))
    most = max(result.numel() for result in given if isinstance(result, torch.Tensor))
    monkeypatch.setattr(claims, "_MOST_ACTIVATIONS", most)
    claims.refuse_larger(recipe, spec, weights)
    monkeypatch.setattr(claims, "_MOST_ACTIVATIONS", most - 1)
    with pytest.raises(UserError, match="GiB for two images of 224 pixels"):
        claims.refuse_larger(recipe, spec, weights)


def test_what_a_checkpoint_takes_is_little(saved, tmp_path):
    """Of whole processes, as neither Python nor torch tells of memory that torch asks for: forks of one."""
    for name, hidden in (("small", 5), ("large", 10**6)):
        write(of_network("MCDropoutCNN", **SMALL | {"hidden": hidden})(saved), tmp_path / f"{name}.ckpt")
    script = (
        "import os, resource, sys; from osr_lightning.recogniser.checkpoint import load\n"
        "for path in sys.argv[1:]:\n"
        "    if os.fork() == 0:\n"
        "        try: load(path)\n"
        "        except ValueError: pass\n"
        "        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, flush=True)\n"
        "        os._exit(0)\n"
        "    assert os.wait()[1] == 0\n"
    )
    command = [sys.executable, "-c", script, tmp_path / "small.ckpt", tmp_path / "large.ckpt"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    peaks = [int(line) / 2**10 for line in done.stdout.split()]
    assert peaks[1] < peaks[0] + 100


def test_what_is_no_file_or_unpacks_to_more_is_refused(saved, tmp_path):
    os.mkfifo(tmp_path / "pipe.ckpt")
    write(saved, tmp_path / "a.ckpt")
    with (
        zipfile.ZipFile(tmp_path / "a.ckpt") as kept,
        zipfile.ZipFile(tmp_path / "packed.ckpt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for info in kept.infolist():
            packed.writestr(info.filename, kept.read(info) + bytes(2**20 if info.filename[-1] == "0" else 0))
    for name, said in {"pipe.ckpt": "is no file", "packed.ckpt": "would unpack to"}.items():
        with pytest.raises(UserError, match=said):
            load(tmp_path / name)
        with pytest.raises(UserError, match=said):
            checkpoint.read(tmp_path / name)
