"""Checkpoints: what is saved is what is loaded, 0.1 still loads, and a stranger's file runs nothing."""

import copy
import csv
import functools
import io
import json
import os
import pickle
import random
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from torch import nn

import osr_lightning
from osr_lightning.data.batch import Batch
from osr_lightning.data.sources import load_source
from osr_lightning.data_spec import DataSpec
from osr_lightning.errors import Failure, UserError
from osr_lightning.models.networks import BaselineCNN, MCDropoutCNN
from osr_lightning.recogniser import checkpoint
from osr_lightning.recogniser.checkpoint import build, load, save
from osr_lightning.scoring.calibration import Calibration, fixed_calibration
from osr_lightning.scoring.detectors import DETECTORS
from osr_lightning.scoring.scores import SCORES
from osr_lightning.training.calibration import fit_detectors

OLD = Path(__file__).parent / "migration" / "mc_dropout_0_1.ckpt"
OLD_ROWS = OLD.with_name("predictions_0_1.csv")
SIZE = 20
SPEC = DataSpec(("cat", "a,b\n<c>", "猫"), 1, SIZE, (0.1 + 0.2,), (0.25,))
SMALL = {"channels": [2, 3], "hidden": 8}
SINGLE = {"sampler": "single", "network": {"class_path": "BaselineCNN", "init_args": SMALL}}
SHARED = {
    "sampler": "mc_dropout",
    "network": {"class_path": "MCDropoutCNN", "init_args": SMALL},
    "num_samples": 4,
    "masks": "shared",
    "mask_seed": 5,
}
INDEPENDENT = SHARED | {"masks": "independent"}
ENSEMBLE = {"sampler": "ensemble", "members": [SHARED, SINGLE, {**SHARED, "mask_seed": 6}]}
RECIPES = {"single": SINGLE, "shared": SHARED, "independent": INDEPENDENT, "ensemble": ENSEMBLE}


class Net(nn.Module):
    """A network of the user's, with a dropout that takes the plain loop."""

    def __init__(self, num_classes: int, in_channels: int = 1, width: int = 6) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, width, 7, stride=4)
        self.norm = nn.BatchNorm2d(width)
        self.drop = nn.Dropout(0.5)
        self.last = nn.Linear(width * 16, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.last(self.drop(self.norm(self.conv(images)).relu().flatten(1)))


def pictures(count: int, seed: int = 0, channels: int = 1, size: int = SIZE) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, channels, size, size), dtype=torch.uint8, generator=generator)


def make(recipe, score="entropy", network=None, spec=SPEC, **options):
    """A recogniser with random weights, fitted detectors and a threshold for every score."""
    torch.manual_seed(0)
    recogniser = build({**recipe, "score": score, **options}, spec, network=network, trust=True).eval()
    if recogniser.detectors:
        labels, nothing = torch.arange(60) % spec.num_classes, torch.zeros(60, dtype=torch.int64)
        batches = [Batch(pictures(60, 9, spec.channels), labels, nothing, nothing)]
        fit_detectors(recogniser, batches, batches)
    with torch.no_grad():
        rows = recogniser.describe(pictures(20, 8, spec.channels, spec.image_size))
    for name in (*SCORES, *recogniser.detectors):
        middle = float(rows[f"score/{name}"].median())
        recogniser.threshold.records[name] = Calibration(
            middle, "known_quantile", 0.05, "validation images: x", False, 20, "none", 0, 0.5, None
        )
    return recogniser


def assert_same(found, expected):
    """Equal in every row to the last bit, and in all that is kept beside the weights."""
    spec = expected.spec
    images = pictures(12, 3, spec.channels, spec.image_size)
    for recogniser in (found, expected):
        recogniser.sampler.restart()  # independent masks begin again
    with torch.no_grad():
        rows, other = found.describe(images), expected.describe(images)
    assert list(rows) == list(other)
    for name in rows:
        assert torch.equal(rows[name], other[name]), name
    for recogniser in (found, expected):
        recogniser.sampler.restart()
    assert found.predict(list(images)) == expected.predict(list(images))
    assert found.spec == spec
    assert found.threshold.records == expected.threshold.records
    assert (found.threshold.score, found.threshold.value) == (
        expected.threshold.score,
        expected.threshold.value,
    )
    assert found.sampler.recipe == expected.sampler.recipe
    assert not any(module.training for module in found.modules())


# there and back ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", RECIPES)
def test_what_is_saved_is_what_is_loaded(kind, tmp_path):
    recogniser = make(RECIPES[kind])
    save(recogniser, tmp_path / "new" / "x.ckpt")
    assert_same(load(tmp_path / "new" / "x.ckpt"), recogniser)
    assert_same(load(str(tmp_path / "new" / "x.ckpt")), recogniser)


@pytest.mark.parametrize("kind", ["single", "shared", "ensemble"])
def test_fitted_detectors_are_kept(kind, tmp_path):
    recogniser = make(RECIPES[kind], "vim", detectors=list(DETECTORS))
    save(recogniser, tmp_path / "x.ckpt")
    found = load(tmp_path / "x.ckpt")
    assert list(found.detectors) == list(DETECTORS)
    assert all(detector.fitted for detector in found.detectors.values())
    assert_same(found, recogniser)


def test_a_detector_that_was_not_fitted_stays_so(tmp_path):
    recogniser = build({**SINGLE, "score": "msp", "detectors": ["knn"], "fixed": 0.5}, SPEC).eval()
    save(recogniser, tmp_path / "x.ckpt")
    found = load(tmp_path / "x.ckpt")
    assert not found.detectors["knn"].fitted
    assert_same(found, recogniser)


def test_a_fixed_threshold_is_kept_to_the_last_bit_and_goes_first(tmp_path):
    fixed = 0.1 + 0.7
    recogniser = make(SHARED, fixed=fixed)
    save(recogniser, tmp_path / "x.ckpt")
    found = load(tmp_path / "x.ckpt")
    assert found.threshold.value == fixed
    assert found.threshold.record.method == "fixed"
    assert_same(found, recogniser)


@pytest.mark.parametrize("thing", [None, "best.ckpt", torch.nn.Linear(2, 2)], ids=["None", "text", "module"])
def test_only_a_recogniser_is_saved(thing, tmp_path):
    with pytest.raises(
        UserError, match=rf"save writes a recogniser, .*, not {type(thing).__name__}; an exported"
    ):
        save(thing, tmp_path / "x.ckpt")


def test_a_folder_is_no_place_to_save_to(tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path} is a folder: name a file in it"):
        save(make(SINGLE), tmp_path)


@pytest.mark.parametrize("path", [None, 3, b"best.ckpt"])
def test_what_is_no_path_is_neither_loaded_nor_written(path):
    with pytest.raises(
        UserError, match=rf"load takes the path of a checkpoint .*, not {type(path).__name__}"
    ):
        osr_lightning.load(path)
    with pytest.raises(UserError, match=f"save takes the path of a file, not {type(path).__name__}"):
        save(make(SINGLE), path)


def test_a_loaded_recogniser_saves_the_same_again(tmp_path):
    save(make(ENSEMBLE, "knn"), tmp_path / "a.ckpt")
    save(load(tmp_path / "a.ckpt"), tmp_path / "b.ckpt")
    one, two = (torch.load(tmp_path / name, weights_only=True) for name in ("a.ckpt", "b.ckpt"))
    assert one["recogniser"] == two["recogniser"]
    assert list(one["state_dict"]) == list(two["state_dict"])
    assert_same(load(tmp_path / "b.ckpt"), load(tmp_path / "a.ckpt"))


def test_half_precision_keeps_thresholds_and_detectors(tmp_path):
    recogniser = make(SHARED, "knn").half()
    save(recogniser, tmp_path / "x.ckpt")
    found = load(tmp_path / "x.ckpt")
    assert found.threshold.records == recogniser.threshold.records
    assert torch.equal(found.detectors["knn"].neighbours, recogniser.detectors["knn"].neighbours)


def test_a_checkpoint_is_plain_data(tmp_path):
    save(make(ENSEMBLE, "knn"), tmp_path / "x.ckpt")
    kept = torch.load(tmp_path / "x.ckpt", weights_only=True)
    assert set(kept) == {"state_dict", "recogniser"}
    assert kept["recogniser"]["version"] == 3
    assert json.loads(json.dumps(kept["recogniser"])) == kept["recogniser"]
    assert kept["recogniser"]["facts"]["classes"] == list(SPEC.classes)
    assert all(name.startswith("recogniser.") for name in kept["state_dict"])


NETWORKS = {
    "class": lambda: MCDropoutCNN,
    "name": lambda: "MCDropoutCNN",
    "class path of ours": lambda: "osr_lightning.models.networks.MCDropoutCNN",
    "partial": lambda: functools.partial(MCDropoutCNN, channels=(2, 3), hidden=5, dropout=0.25),
    "recipe": lambda: {"class_path": "MCDropoutCNN", "init_args": {"kernel_size": 3}},
    "partial of partial": lambda: functools.partial(functools.partial(MCDropoutCNN, hidden=5), hidden=6),
}


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_network_of_ours_is_kept_however_it_was_given(kind, tmp_path):
    recogniser = make({**SHARED, "network": None}, network=NETWORKS[kind]())
    save(recogniser, tmp_path / "x.ckpt")
    assert_same(load(tmp_path / "x.ckpt"), recogniser)


def test_the_arguments_of_a_partial_are_kept(tmp_path):
    recogniser = make({**SHARED, "network": None}, network=NETWORKS["partial"]())
    save(recogniser, tmp_path / "x.ckpt")
    network = load(tmp_path / "x.ckpt").sampler.network
    assert [tuple(p.shape) for p in network.head.parameters()] == [(5, 12), (5,), (3, 5), (3,)]
    assert network.dropout.p == 0.25


USERS = """
import torch
from torch import nn
from functools import partial

class Net(nn.Module):
    def __init__(self, labels, width=4):
        super().__init__()
        self.conv, self.drop = nn.Conv2d(1, width, 7, stride=4), nn.Dropout(0.5)
        self.last = nn.Linear(width * 16, labels)
    def forward(self, images):
        return self.last(self.drop(self.conv(images).relu().flatten(1)))

def make_net(num_classes, width=4):
    return Net(num_classes, width)

class Nets:
    Inner = type("Inner", (Net,), {"__qualname__": "Nets.Inner"})
"""


@pytest.fixture
def users(tmp_path, monkeypatch):
    """A module of the user's, which can be imported."""
    name = f"users_nets_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(USERS)
    monkeypatch.syspath_prepend(tmp_path)
    yield name
    sys.modules.pop(name, None)


@pytest.mark.parametrize(
    "kind",
    [
        *("Net", "make_net", "partial", "path"),
        pytest.param("nested"),
    ],
)
def test_code_of_the_users_is_named_and_needs_trust(kind, users, tmp_path):
    module = __import__(users)
    network = {
        "Net": module.Net,
        "make_net": module.make_net,
        "partial": functools.partial(module.Net, width=3),
        "path": f"{users}.Net",
        "nested": module.Nets.Inner,
    }[kind]
    recogniser = make({**SHARED, "network": None}, network=network)
    save(recogniser, tmp_path / "x.ckpt")
    del sys.modules[users]
    with pytest.raises(UserError, match=rf"{users}.*--trust_checkpoint.*trust=True"):
        load(tmp_path / "x.ckpt")
    assert users not in sys.modules
    assert_same(load(tmp_path / "x.ckpt", trust=True), recogniser)


@pytest.mark.parametrize("masks", ["shared", "independent"])
@pytest.mark.parametrize("kind", ["module", "lambda"])
def test_a_network_without_a_name_has_to_be_given_again(kind, masks, tmp_path):
    def network():
        return Net(3) if kind == "module" else lambda num_classes: Net(num_classes)

    recogniser = make({**SHARED, "masks": masks, "network": None}, network=network())
    save(recogniser, tmp_path / "x.ckpt")
    with pytest.raises(UserError, match=r"x\.ckpt.*load\(path, network=MyNet\)"):
        load(tmp_path / "x.ckpt")
    torch.manual_seed(1)  # the new one's own weights must not matter
    assert_same(load(tmp_path / "x.ckpt", network=network()), recogniser)
    with pytest.raises(UserError, match="leave its number of classes to the data"):
        load(tmp_path / "x.ckpt", network=Net(4))
    with pytest.raises(UserError, match=r"x\.ckpt.*has shape|x\.ckpt.*is missing"):
        load(tmp_path / "x.ckpt", network=Net(3, width=5))


def test_a_class_of_torchvisions_needs_trust(tmp_path):
    spec = DataSpec(("x", "y"), 3, 32, (0.5,) * 3, (0.25,) * 3)
    network = {"class_path": "torchvision.models.SqueezeNet", "init_args": {"version": "1_1"}}
    recogniser = make({**SINGLE, "network": network}, spec=spec)
    save(recogniser, tmp_path / "x.ckpt")
    with pytest.raises(UserError, match="--trust_checkpoint"):
        load(tmp_path / "x.ckpt")
    assert_same(load(tmp_path / "x.ckpt", trust=True), recogniser)


@pytest.mark.parametrize("path", ["torchvision.models.shufflenet_v2_x0_5", "shufflenet_v2_x0_5"])
def test_a_classifier_of_torchvisions_by_name_or_path_needs_none(path, tmp_path):
    spec = DataSpec(("x", "y"), 3, 32, (0.5,) * 3, (0.25,) * 3)
    recogniser = make({**SINGLE, "network": {"class_path": path, "init_args": {}}}, spec=spec)
    save(recogniser, tmp_path / "x.ckpt")
    assert_same(load(tmp_path / "x.ckpt"), recogniser)


def test_a_function_of_torchvision_builds_a_network_for_the_classes():
    torchvision = pytest.importorskip("torchvision")
    spec = DataSpec(("x", "y", "z"), 3, 32, (0.5,) * 3, (0.25,) * 3)
    network = functools.partial(torchvision.models.shufflenet_v2_x0_5, weights=None)
    recogniser = build({**SINGLE, "score": "msp", "fixed": 0.5}, spec, network=network).eval()
    assert recogniser(pictures(2, channels=3, size=32)).prediction.shape == (2,)


def test_a_fresh_process_loads_a_moved_file_and_no_trainer(tmp_path):
    recogniser = make(ENSEMBLE, "knn")
    save(recogniser, tmp_path / "x.ckpt")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "x.ckpt").rename(tmp_path / "elsewhere" / "moved.bin")
    np.save(tmp_path / "elsewhere" / "images.npy", pictures(6).permute(0, 2, 3, 1).numpy())
    script = """
import json, sys
import numpy as np, torch
torch.set_num_threads(1)
import osr_lightning
recogniser = osr_lightning.load("moved.bin")
rows = [[p.label, p.unknown, p.confidence, p.score, p.threshold]
        for p in recogniser.predict(np.load("images.npy"))]
loaded = {"lightning", "pytorch_lightning", "torchvision", "torchmetrics"} & set(sys.modules)
ours = sorted(name for name in sys.modules if name.startswith("osr_lightning."))
print(json.dumps([rows, sorted(loaded), ours]))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path / "elsewhere", capture_output=True, text=True, check=True
    )
    rows, loaded, ours = json.loads(done.stdout)
    assert loaded == []
    assert not [name for name in ours if name.startswith(("osr_lightning.data.", "osr_lightning.training"))]
    expected = recogniser.predict(list(pictures(6)))
    assert [row[:2] for row in rows] == [[p.label, p.unknown] for p in expected]
    values = [[p.confidence, p.score, p.threshold] for p in expected]
    np.testing.assert_allclose([row[2:] for row in rows], values, rtol=1e-6)


# masks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", [None, Net], ids=["split", "deep"])
def test_missing_masks_are_drawn_from_their_seed(network, tmp_path):
    recogniser = make(SHARED if network is None else {**SHARED, "network": None}, network=network)
    save(recogniser, tmp_path / "x.ckpt")
    kept = torch.load(tmp_path / "x.ckpt", weights_only=True)
    gone = [name for name in kept["state_dict"] if "masks" in name]
    assert gone
    for name in gone:
        del kept["state_dict"][name]
    torch.save(kept, tmp_path / "y.ckpt")
    assert_same(load(tmp_path / "y.ckpt", network=network), recogniser)


def test_saved_masks_go_before_the_seed(tmp_path):
    recogniser = make(SHARED)
    with torch.no_grad():
        recogniser.sampler.masks.copy_(1 - recogniser.sampler.masks.bool().float())
    save(recogniser, tmp_path / "x.ckpt")
    assert torch.equal(load(tmp_path / "x.ckpt").sampler.masks, recogniser.sampler.masks)


def test_another_number_of_samples_keeps_the_first_masks(tmp_path):
    recogniser = make(SHARED)
    save(recogniser, tmp_path / "x.ckpt")
    kept = torch.load(tmp_path / "x.ckpt", weights_only=True)
    for count in (2, 9):
        kept["recogniser"]["recipe"]["num_samples"] = count
        torch.save(kept, tmp_path / "y.ckpt")
        masks = load(tmp_path / "y.ckpt").sampler.masks
        shared = min(count, 4)
        assert len(masks) == count
        assert torch.equal(masks[:shared], recogniser.sampler.masks[:shared])


# 0.1 --------------------------------------------------------------------------------------------------


def test_a_checkpoint_of_0_1_gives_the_rows_it_gave_then(tmp_path):
    with open(OLD_ROWS, newline="") as file:
        expected = list(csv.DictReader(file))
    options = {"root": tmp_path, "size": 28, "channels": 1, "seed": 0}
    known = load_source("mnist_sample", "test", as_known=True, **options)
    unknown = load_source("photo_patches", "test", as_known=False, **options)
    images = torch.cat([known.images[:25], unknown.images[:10]])
    labels = [*known.labels[:25].tolist(), *[10] * 10]
    assert [int(row["label"]) for row in expected] == labels

    recogniser = load(OLD)
    names = [*"0123456789", "unknown"]
    assert recogniser.spec == DataSpec(tuple("0123456789"), 1, 28, (0.1307,), (0.3081,))
    found = recogniser.predict(list(images))
    assert [p.label for p in found] == [names[int(row["prediction"])] for row in expected]
    assert {p.label for p in found} > {"unknown"}  # both happen among these rows
    assert {p.threshold for p in found} == {float(row["threshold"]) for row in expected}
    with torch.no_grad():
        rows, answer = recogniser.describe(images), recogniser(images)
    assert answer.prediction.tolist() == [int(row["prediction"]) for row in expected]
    assert recogniser.threshold.score == "generalized_entropy"
    columns = {"score/generalized_entropy": "score", "confidence": "confidence"}
    columns |= {f"score/{name}": name for name in [*SCORES, "mahalanobis"] if name != "generalized_entropy"}
    for name, column in columns.items():
        # float32 logits, which other kernels round in another order
        then = [float(row[column]) for row in expected]
        np.testing.assert_allclose(rows[name], then, rtol=2e-5, atol=2e-6, err_msg=name)


def test_the_thresholds_of_0_1_are_kept_exactly():
    old = torch.load(OLD, weights_only=True)["calibrations"]
    records = load(OLD).threshold.records
    assert {name: record.value for name, record in records.items()} == {
        name: record["value"] for name, record in old.items()
    }
    assert records["msp"].method == "known_quantile"
    assert records["msp"].count_known == 800


def test_a_checkpoint_of_0_1_saves_as_one_of_today(tmp_path):
    recogniser = load(OLD)
    save(recogniser, tmp_path / "new.ckpt")
    assert torch.load(tmp_path / "new.ckpt", weights_only=True)["recogniser"]["version"] == 3
    assert_same(load(tmp_path / "new.ckpt"), recogniser)


def test_a_later_version_says_to_install_it(tmp_path):
    save(make(SINGLE), tmp_path / "x.ckpt")
    kept = torch.load(tmp_path / "x.ckpt", weights_only=True)
    kept["recogniser"]["version"] = 4
    torch.save(kept, tmp_path / "x.ckpt")
    with pytest.raises(UserError, match=r"x\.ckpt.*version 4, this package reads 3; install a newer"):
        load(tmp_path / "x.ckpt")


@pytest.mark.parametrize("members", [0, 2])
def test_backbones_of_version_2_give_no_style(members, tmp_path):
    pytest.importorskip("timm")
    import photos

    network = {"class_path": "Backbone", "init_args": {"name": photos.PUBLISHED, "weights": None}}
    without = {**network, "init_args": {**network["init_args"], "style": False}}
    recipe = {"sampler": "single", "network": without}
    if members:
        recipe = {"sampler": "ensemble", "members": [recipe] * members, "shared_body": True}
    spec = DataSpec(("a", "b"), 3, 64, (0.5,) * 3, (0.5,) * 3)
    made = build({**recipe, "score": "msp"}, spec).eval()
    save(made, tmp_path / "x.ckpt")
    kept = torch.load(tmp_path / "x.ckpt", weights_only=True)
    kept["recogniser"]["version"] = 2
    written = kept["recogniser"]["recipe"]
    for one in written.get("members", [written]):
        assert one["network"]["init_args"].pop("style") is False
    torch.save(kept, tmp_path / "x.ckpt")
    images = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        found = load(tmp_path / "x.ckpt").describe(images)
        torch.testing.assert_close(found["score/msp"], made.describe(images)["score/msp"])


# writing at once or not at all ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error", [OSError("no space left"), KeyboardInterrupt()], ids=["disk full", "Ctrl+C"]
)
def test_an_interrupted_save_leaves_the_old_file_and_nothing_else(error, tmp_path, monkeypatch):
    path = tmp_path / "x.ckpt"
    save(make(SINGLE), path)
    before = path.read_bytes()

    def interrupt(handle):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", interrupt)
        expected = Failure if isinstance(error, OSError) else type(error)
        with pytest.raises(expected):
            save(make(SHARED), path)
        with pytest.raises(expected):
            save(make(SHARED), tmp_path / "never.ckpt")
    assert [file.name for file in tmp_path.iterdir()] == ["x.ckpt"]
    assert path.read_bytes() == before


def test_saving_replaces_the_old_file_and_leaves_nothing_else(tmp_path):
    save(make(SINGLE), tmp_path / "x.ckpt")
    recogniser = make(SHARED)
    save(recogniser, tmp_path / "x.ckpt")
    assert [file.name for file in tmp_path.iterdir()] == ["x.ckpt"]
    assert_same(load(tmp_path / "x.ckpt"), recogniser)


# what a stranger may send -----------------------------------------------------------------------------


class Evil:
    """Unpickled, it leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self.command = f"{sys.executable} -c \"open(r'{mark}', 'w')\""

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("where", ["pickle", "torch", "recipe", "facts", "weights", "beside", "old pickle"])
def test_a_pickle_that_runs_code_runs_nothing(where, tmp_path):
    mark, path = tmp_path / "mark", tmp_path / "evil.ckpt"
    evil = Evil(mark)
    save(make(SINGLE), path)
    kept = torch.load(path, weights_only=True)
    if where == "pickle":
        path.write_bytes(pickle.dumps(evil, protocol=2))  # of others torch warns
    elif where == "old pickle":
        torch.save(evil, path, _use_new_zipfile_serialization=False)
    elif where == "torch":
        torch.save(evil, path)
    else:
        place = {
            "recipe": kept["recogniser"]["recipe"],
            "facts": kept["recogniser"]["facts"],
            "weights": kept["state_dict"],
            "beside": kept,
        }[where]
        place["evil"] = evil
        torch.save(kept, path)
    for trust in (False, True):
        with pytest.raises(UserError, match=r"evil\.ckpt is no readable checkpoint"):
            load(path, trust=trust)
    assert not mark.exists()
    # or the test would prove nothing
    if where == "pickle":
        pickle.loads(path.read_bytes())  # noqa: S301 - what the package must not do
        assert mark.exists()


HOSTILE_PATHS = (
    *("os.system", "antigravity.x", "subprocess.Popen", "builtins.exec", "torch.hub.load"),
    *(
        "osr_lightning.models.networks.torch.load",
        "osr_lightning.recogniser.checkpoint.os.system",
        "x.BaselineCNN",
    ),
)


@pytest.mark.parametrize("path", HOSTILE_PATHS)
@pytest.mark.parametrize("kind", ["single", "shared", "ensemble"])
def test_a_class_path_of_a_strangers_is_not_imported(kind, path, tmp_path):
    save(make(RECIPES[kind]), tmp_path / "x.ckpt")
    kept = torch.load(tmp_path / "x.ckpt", weights_only=True)
    recipe = kept["recogniser"]["recipe"]
    for part in (recipe, *recipe.get("members", ())):
        if "network" in part:
            part["network"] = {"class_path": path, "init_args": {"num_classes": 3}}
    torch.save(kept, tmp_path / "x.ckpt")
    before = set(sys.modules)
    with pytest.raises(UserError, match=rf"{path}.*--trust_checkpoint"):
        load(tmp_path / "x.ckpt")
    assert not {"antigravity", "x"} & set(sys.modules)
    assert not [name for name in set(sys.modules) - before if path.startswith(name)]


def test_a_network_name_of_a_strangers_is_none_of_ours(tmp_path):
    save(make(SINGLE), tmp_path / "x.ckpt")
    kept = torch.load(tmp_path / "x.ckpt", weights_only=True)
    kept["recogniser"]["recipe"]["network"] = {"class_path": "BaselineCNM"}
    torch.save(kept, tmp_path / "x.ckpt")
    for trust in (False, True):
        with pytest.raises(UserError, match=r"no network 'BaselineCNM'; did you mean BaselineCNN"):
            load(tmp_path / "x.ckpt", trust=trust)


def test_a_class_path_in_a_checkpoint_of_0_1_is_not_imported(tmp_path):
    old = torch.load(OLD, weights_only=True)
    for path in ("antigravity.x", "antigravity.MCDropoutCNN"):
        old["hyper_parameters"]["network"]["class_path"] = path
        torch.save(old, tmp_path / "x.ckpt")
        if path.endswith("x"):
            with pytest.raises(UserError, match="a network of one's own"):
                load(tmp_path / "x.ckpt", trust=True)
        else:  # the name is ours, and so is the network
            assert type(load(tmp_path / "x.ckpt").sampler.network) is MCDropoutCNN
        assert "antigravity" not in sys.modules


NO_CHECKPOINTS = {
    "empty": lambda data: b"",
    "truncated": lambda data: data[: len(data) // 2],
    "last byte gone": lambda data: data[:-1],
    "random bytes": lambda data: random.Random(0).randbytes(1000),
    "text": lambda data: b"hello\n" * 50,
    "an empty zip": lambda data: b"PK\x05\x06" + bytes(18),
    "a picture": lambda data: b"\x89PNG\r\n\x1a\n" + bytes(100),
}


@pytest.mark.parametrize("kind", NO_CHECKPOINTS)
def test_a_file_that_is_no_checkpoint_is_named(kind, tmp_path):
    save(make(SINGLE), tmp_path / "x.ckpt")
    (tmp_path / "x.ckpt").write_bytes(NO_CHECKPOINTS[kind]((tmp_path / "x.ckpt").read_bytes()))
    with pytest.raises(UserError, match=r"x\.ckpt is no readable checkpoint"):
        load(tmp_path / "x.ckpt")


def test_the_home_folder_is_understood(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    save(make(SHARED), tmp_path / "x.ckpt")
    for path in ("~/x.ckpt", Path("~/x.ckpt")):
        assert load(path).spec == osr_lightning.load(path).spec == load(tmp_path / "x.ckpt").spec
    with pytest.raises(UserError, match=rf"there is no file {tmp_path}/x\.onnx"):
        osr_lightning.load("~/x.onnx")


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(UserError, match=r"there is no checkpoint .*nowhere\.ckpt"):
        load(tmp_path / "nowhere.ckpt")
    with pytest.raises(UserError, match="is no readable checkpoint"):
        load(tmp_path)


PLAIN = {
    "a dict": {"epoch": 1},
    "a list": [1, 2],
    "a tensor": torch.zeros(3),
    "None": None,
    "weights alone": {"weight": torch.zeros(2)},
    "a checkpoint of Lightning's": {"state_dict": {"w": torch.zeros(2)}, "hyper_parameters": {}},
    "no recipe": {"state_dict": {}, "recogniser": {"version": 3, "facts": {}}},
    "no facts": {"state_dict": {}, "recogniser": {"version": 3, "recipe": {**SINGLE, "score": "msp"}}},
    "no state dict": {"recogniser": {"version": 3, "recipe": {}, "facts": {}}},
    "no version": {"state_dict": {}, "recogniser": {"recipe": {}, "facts": {}}},
}


@pytest.mark.parametrize("kind", PLAIN)
def test_a_checkpoint_of_something_else_is_named(kind, tmp_path):
    torch.save(PLAIN[kind], tmp_path / "x.ckpt")
    with pytest.raises(UserError, match=r"x\.ckpt(: | is damaged)"):
        load(tmp_path / "x.ckpt")


def record(value):
    return {
        "value": value, "method": "known_quantile", "target": 0.05, "calibrated_on": "x",
        "optimistic": False, "count_known": 20, "guarantee": "none",
    }  # fmt: skip


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "0.5", None, [1.0]])
def test_a_threshold_that_is_no_finite_number_is_refused(value, tmp_path):
    save(make(SINGLE), tmp_path / "x.ckpt")
    kept = torch.load(tmp_path / "x.ckpt", weights_only=True)
    kept["state_dict"]["recogniser.threshold._extra_state"]["records"]["entropy"] = record(value)
    torch.save(kept, tmp_path / "x.ckpt")
    with pytest.raises(UserError, match=r"x\.ckpt: .*osr calibrate"):
        load(tmp_path / "x.ckpt")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "0.5", [1.0], 10**400])
def test_a_fixed_threshold_that_is_no_finite_number_is_refused(value, tmp_path):
    save(make(SINGLE), tmp_path / "x.ckpt")
    kept = torch.load(tmp_path / "x.ckpt", weights_only=True)
    kept["recogniser"]["recipe"]["fixed"] = value
    torch.save(kept, tmp_path / "x.ckpt")
    with pytest.raises(UserError):
        load(tmp_path / "x.ckpt")


def test_weights_of_another_shape_or_missing_are_named(tmp_path):
    save(make(SINGLE), tmp_path / "x.ckpt")
    kept = torch.load(tmp_path / "x.ckpt", weights_only=True)
    name = "recogniser.sampler.network.head.1.weight"
    for change, message in (
        ({name: torch.zeros(2, 2)}, r"head\.1\.weight has shape \(2, 2\)"),
        ({name: "text"}, r"head\.1\.weight is missing"),
        ({"recogniser.sampler.network.more": torch.zeros(1)}, r"has sampler\.network\.more"),
    ):
        torch.save({**kept, "state_dict": {**kept["state_dict"], **change}}, tmp_path / "y.ckpt")
        with pytest.raises(UserError, match=rf"y\.ckpt: .*{message}"):
            load(tmp_path / "y.ckpt")


class Masked(nn.Module):
    """A network whose own weights have a name that begins like that of dropout masks."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.masks_weight = nn.Parameter(torch.randn(SIZE * SIZE, 4))
        self.last = nn.Linear(4, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.last(images.flatten(1) @ self.masks_weight)


def test_a_missing_weight_is_missed_whatever_its_name(tmp_path):
    save(make({**SINGLE, "network": None}, network=Masked), tmp_path / "x.ckpt")
    kept = torch.load(tmp_path / "x.ckpt", weights_only=True)
    del kept["state_dict"]["recogniser.sampler.network.trunk.masks_weight"]
    torch.save(kept, tmp_path / "x.ckpt")
    with pytest.raises(UserError, match="masks_weight is missing"):
        load(tmp_path / "x.ckpt", network=Masked)


WRONG = (
    None, 5, -1, 0, 2**70, 10**400, "x", "", b"x", 2.5, float("nan"), float("inf"), True,
    [], ["a"], [[1]], [5], {}, {"a": 1}, {1: 2}, torch.zeros(2),
)  # fmt: skip
FIELDS = (
    *("recogniser", "version", "facts", "recipe", "state_dict"),
    *("facts.classes", "facts.channels", "facts.image_size", "facts.mean", "facts.std"),
    *("recipe.sampler", "recipe.network", "recipe.num_samples", "recipe.masks", "recipe.mask_seed"),
    *("recipe.score", "recipe.fixed", "recipe.detectors", "recipe.members"),
    *("network.class_path", "network.init_args", "init_args.channels", "init_args.hidden"),
    *("init_args.kernel_size", "init_args.dropout", "init_args.num_classes"),
    *("init_args.in_channels", "init_args.image_size"),
    *("weights.recogniser.sampler.masks", "weights.recogniser.sampler.network.head.1.bias"),
    *("weights.recogniser.detectors.knn.neighbours", "weights.recogniser.detectors.knn.stranger"),
    *("weights.recogniser.threshold._extra_state", "extra.records", "records.entropy"),
    *("entropy.value", "entropy.target"),
)


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """The content of a checkpoint with a detector, to be damaged."""
    path = tmp_path_factory.mktemp("sound") / "x.ckpt"
    save(make(SHARED, detectors=["knn"]), path)
    return torch.load(path, weights_only=True)


def damaged(sound, field, value):
    kept = copy.deepcopy(sound)
    recogniser = kept["recogniser"]
    extra = kept["state_dict"]["recogniser.threshold._extra_state"]
    places = {
        "": kept if field in ("recogniser", "state_dict") else recogniser,
        "facts": recogniser["facts"],
        "recipe": recogniser["recipe"],
        "network": recogniser["recipe"]["network"],
        "init_args": recogniser["recipe"]["network"]["init_args"],
        "weights": kept["state_dict"],
        "extra": extra,
        "records": extra["records"],
        "entropy": extra["records"]["entropy"],
    }
    place, _, name = field.rpartition(".") if not field.startswith("weights.") else field.partition(".")
    places[place][name] = value
    if field == "recipe.members":
        recogniser["recipe"]["sampler"] = "ensemble"
    return kept


def outcome(kept, path):
    """None where it loads and answers or is a user's mistake; else the error."""
    torch.save(kept, path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of what it is then refused for
        try:
            found = load(path)
            found.predict(pictures(2, 0, found.spec.channels, found.spec.image_size))
        except UserError:
            return None
        except Exception as error:
            return f"{type(error).__name__}: {error}"[:120]
    return None


@pytest.mark.parametrize("field", FIELDS)
def test_a_wrong_value_in_any_field_is_a_users_mistake_or_none(field, sound, tmp_path):
    found = {repr(value): outcome(damaged(sound, field, value), tmp_path / "x.ckpt") for value in WRONG}
    assert {value: error for value, error in found.items() if error} == {}


@pytest.mark.parametrize(
    "name",
    [
        "recogniser.sampler.masks",
        "recogniser.detectors.knn.neighbours",
        "recogniser.sampler.network.trunk.0.weight",
        pytest.param(
            "recogniser.threshold._extra_state",
        ),
    ],
)
def test_a_missing_entry_is_a_users_mistake_or_none(name, sound, tmp_path):
    kept = copy.deepcopy(sound)
    del kept["state_dict"][name]
    assert outcome(kept, tmp_path / "x.ckpt") is None


@pytest.mark.parametrize("name", [5, None, b"x", (1, 2)])
def test_a_name_that_is_no_text_is_a_users_mistake(name, sound, tmp_path):
    kept = copy.deepcopy(sound)
    kept["state_dict"][name] = torch.zeros(1)
    assert outcome(kept, tmp_path / "x.ckpt") is None


@pytest.mark.parametrize(
    ("place", "name"),
    [
        (None, "classifier"),
        (None, "hyper_parameters"),
        (None, "datamodule_hyper_parameters"),
        *(
            ("hyper_parameters", name)
            for name in ("network", "num_samples", "mask_seed", "score", "detectors")
        ),
        *(("datamodule_hyper_parameters", name) for name in ("mean", "std")),
    ],
)
def test_a_wrong_value_in_a_checkpoint_of_0_1_is_a_users_mistake_or_none(place, name, tmp_path):
    old = torch.load(OLD, weights_only=True)
    found = {}
    for value in WRONG[:-1]:
        kept = copy.deepcopy(old)
        (kept if place is None else kept[place])[name] = value
        found[repr(value)] = outcome(kept, tmp_path / "x.ckpt")
    assert {value: error for value, error in found.items() if error} == {}


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_damaged_byte_is_a_users_mistake_or_none(tmp_path):
    generator, data = random.Random(0), OLD.read_bytes()
    with zipfile.ZipFile(OLD) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    (pickled,) = (name for name in parts if name.endswith("data.pkl"))
    files = [generator.randbytes(generator.randint(1, 100)) for _ in range(100)]
    for _ in range(60):
        changed = bytearray(data)
        changed[generator.randrange(len(data))] = generator.randrange(256)
        files.append(bytes(changed))
        changed = bytearray(parts[pickled])
        changed[generator.randrange(len(changed))] = generator.randrange(256)
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:
            for name, content in parts.items():
                archive.writestr(name, bytes(changed) if name == pickled else content)
        files.append(stream.getvalue())
    found = set()
    for content in files:
        (tmp_path / "x.ckpt").write_bytes(content)
        try:
            load(tmp_path / "x.ckpt")
        except UserError:
            pass
        except Exception as error:
            found.add(f"{type(error).__name__}: {error}")
    assert found == set()


# no number here lets a machine run out of memory before it is refused
numbers = st.one_of(st.integers(-3, 12), st.just(2**70), st.floats(), st.booleans())
leaves = st.one_of(st.none(), numbers, st.sampled_from(["x", "", "knn", "single", "shared", "msp", *SMALL]))
values = st.recursive(
    leaves, lambda v: st.one_of(st.lists(v, max_size=3), st.dictionaries(leaves, v, max_size=3)), max_leaves=5
)


@hypothesis.settings(
    max_examples=80, deadline=None, derandomize=True, database=None, phases=[hypothesis.Phase.generate]
)
@hypothesis.given(changes=st.dictionaries(st.sampled_from(sorted(FIELDS)[::-1]), values, max_size=3))
def test_any_recipe_loads_or_is_a_users_mistake(sound, tmp_path_factory, changes):
    kept = copy.deepcopy(sound)
    for field, value in changes.items():
        try:
            kept = damaged(kept, field, value)
        except (TypeError, KeyError, AttributeError):
            continue  # an earlier change took the place away
    assert outcome(kept, tmp_path_factory.getbasetemp() / "any.ckpt") is None


# building ---------------------------------------------------------------------------------------------


def test_without_a_network_each_sampler_has_its_own():
    spec = DataSpec(("x", "y"), 1, 28, (0.5,), (0.25,))
    single = build({"sampler": "single", "score": "msp"}, spec)
    sampled = build({"sampler": "mc_dropout", "score": "msp"}, spec)
    assert type(single.sampler.network) is BaselineCNN
    assert type(sampled.sampler.network) is MCDropoutCNN
    assert (sampled.sampler.num_samples, sampled.sampler.shared) == (10, True)


def test_the_network_gets_what_the_known_images_say():
    spec = DataSpec(tuple("abcdefg"), 3, 24, (0.5,) * 3, (0.25,) * 3)
    network = build({"sampler": "single", "score": "msp"}, spec).sampler.network
    assert network.trunk[0].in_channels == 3
    assert network.head[-1].out_features == 7


MISTAKES = {
    "no such score": ({"score": "mps"}, "there is no score 'mps'"),
    "no score": ({"score": None}, "there is no score None"),
    "no such detector": ({"detectors": ["nkk"]}, "there is no score 'nkk'"),
    "no such sampler": ({"sampler": "many"}, "there is no sampler 'many'"),
    "an empty ensemble": ({"sampler": "ensemble", "members": []}, "at least one member"),
    "no samples": ({"sampler": "mc_dropout", "network": SHARED["network"], "num_samples": 0}, "at least 1"),
    "no rate of dropout": ({"sampler": "mc_dropout", "dropout": 1.5}, "dropout must lie between 0 and 1"),
    "another number of classes": (
        {"network": {"class_path": "BaselineCNN", "init_args": {"num_classes": 4, **SMALL}}},
        "there are 3 known classes",
    ),
    "another number of channels": (
        {"network": {"class_path": "BaselineCNN", "init_args": {"in_channels": 3, **SMALL}}},
        "does not take images of 1 channels and 20 pixels",
    ),
    "no such argument": (
        {"network": {"class_path": "BaselineCNN", "init_args": {"colour": 4}}},
        "the network BaselineCNN cannot be built for 3 classes",
    ),
}


@pytest.mark.parametrize("kind", MISTAKES)
def test_a_recipe_that_cannot_be_built_says_why(kind):
    changes, message = MISTAKES[kind]
    with pytest.raises(UserError, match=message):
        build({**SINGLE, "score": "msp", **changes}, SPEC)


def test_content_keeps_what_was_decided_since(tmp_path):
    recogniser = make(SINGLE)
    recogniser.threshold.score = "msp"
    recogniser.threshold.records["msp"] = fixed_calibration(0.25)
    assert checkpoint.content(recogniser)["recipe"]["score"] == "msp"
    save(recogniser, tmp_path / "x.ckpt")
    assert load(tmp_path / "x.ckpt").threshold.value == 0.25
