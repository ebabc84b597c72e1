"""Options, configs and names of any kind: a command works, or says in one line what is wrong."""

import fcntl
import multiprocessing
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from osr_lightning.__main__ import main
from osr_lightning.training.loggers import claim_version

pytestmark = pytest.mark.filterwarnings("ignore")
slow = settings(deadline=None, max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])


def ends(words, capsys) -> tuple[int, str]:
    """The status of a command, and what it said; the parser ends in its own way."""
    capsys.readouterr()
    try:
        status, parsed = main(words), True
    except SystemExit as end:
        status, parsed = end.code, False
    out, err = capsys.readouterr()
    assert status in (0, 1, 2)
    assert "Traceback" not in out + err
    if parsed:
        said = [line for line in err.splitlines() if line.startswith("osr: error: ")]
        assert len(said) == (status != 0), err
    return status, err


options = st.sampled_from(
    [
        *(
            "trainer.max_epochs",
            "trainer.max_steps",
            "trainer.precision",
            "trainer.devices",
            "trainer.version",
        ),
        *("model.alpha", "model.score", "model.num_samples", "model.masks", "model.learning_rate"),
        *("data.val_fraction", "data.batch_size", "data.mean", "data.channels", "data.known", "data.unknown"),
        *("evaluation.bootstrap", "evaluation.seed", "seed_everything"),
    ]
)
values = st.one_of(
    st.integers(-(2**70), 2**70).map(str),
    st.floats().map(str),
    st.text(st.characters(exclude_characters="\0"), max_size=6),
    st.sampled_from(
        ["null", "true", "[]", "{}", "{a: {b: {c: d}}}", "auto", "entropy", "1e400", "os.system"]
    ),
)


@slow
@given(option=options, value=values)
def test_options_of_any_value_are_parsed_or_refused(option, value, capsys):
    ends(["fit", f"--{option}={value}", "--print_config"], capsys)


@pytest.mark.parametrize(
    ("option", "named"),
    [
        ("--seed_everything=-1", "seed_everything"),
        (f"--seed_everything={2**32}", "seed_everything"),
        ("--trainer.max_steps=0", "max_steps"),
        ("--trainer.limit_train_batches=0", "limit_train_batches"),
        ("--trainer.limit_val_batches=0", "limit_val_batches"),
    ],
)
def test_options_that_leave_nothing_to_do_are_refused(option, named, small, tmp_path, capsys):
    status, err = ends(["run", *small, f"--trainer.default_root_dir={tmp_path}", option], capsys)
    assert status == 2
    assert named in err


LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)
)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"trainer:\n  max_epochs: 1\n  max_epochs: 2\n", "line 2 and again in line 3"),
        (b"a: &a [*a]\n", "repeats itself"),
        (LAUGHS.encode(), "repeats itself"),
        ("# gr\xfcn\n".encode("latin-1"), "UTF-8"),
        (b"[" * 5000, "nested too deeply"),
    ],
)
def test_configs_that_are_no_configs_are_refused(content, named, tmp_path, capsys):
    (tmp_path / "a.yaml").write_bytes(content)
    status, err = ends(["fit", "--config", str(tmp_path / "a.yaml")], capsys)
    assert status == 2
    assert named in err


def test_without_a_logger_nothing_is_written(small, tmp_path, monkeypatch, capsys):
    own = {name: name.encode() for name in ("config.yaml", "report.html", "results.json")}
    for name, content in own.items():
        (tmp_path / name).write_bytes(content)
    monkeypatch.chdir(tmp_path)
    status, _ = ends(["fit", *small, "--trainer.logger=false"], capsys)
    assert status == 0
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == own


def claim(experiment: Path, claimed) -> None:
    claimed.put([claim_version(experiment) for _ in range(5)])


def test_runs_that_start_at_once_get_a_folder_each(tmp_path):
    context = multiprocessing.get_context("fork")
    claimed = context.Queue()
    runs = [context.Process(target=claim, args=(tmp_path / "x", claimed)) for _ in range(6)]
    for run in runs:
        run.start()
    numbers = sorted(number for _ in runs for number in claimed.get(timeout=30))
    for run in runs:
        run.join()
    assert numbers == list(range(30))


@pytest.mark.parametrize(
    ("command", "name"),
    [
        *(("resume", name) for name in ("hparams.yaml", "metrics.csv", "figures")),
        *(("named", name) for name in ("config.yaml", "results.json", "checkpoints")),
        ("in place", "report.html"),
    ],
)
def test_a_run_goes_on_in_no_folder_with_links_out_of_it(command, name, small, small_run, tmp_path, capsys):
    run = tmp_path / "lightning_logs" / "default" / "version_0"
    shutil.copytree(small_run, run)
    if (run / name).exists():
        (run / name).rename(tmp_path / "kept")
    (run / name).symlink_to(tmp_path / "kept")  # which the run would write, or make
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    more = {
        "resume": ["run", *small, "--ckpt_path=last", "--trainer.max_epochs=2"],
        "named": ["test", f"--ckpt_path={small_run}/checkpoints/best.ckpt", "--trainer.version=0"],
        "in place": ["calibrate", f"--ckpt_path={run}/checkpoints/last.ckpt", "--in_place=true"],
    }[command]
    status, err = ends([*more, f"--trainer.default_root_dir={tmp_path}"], capsys)
    assert status == 2
    assert f"{name} is a link that leads out of its run folder" in err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_run_is_gone_on_with_by_one_process(small, small_run, tmp_path, capsys):
    run = tmp_path / "lightning_logs" / "default" / "version_0"
    shutil.copytree(small_run, run)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    more = ["--ckpt_path=last", "--trainer.max_epochs=2", f"--trainer.default_root_dir={tmp_path}"]
    other = os.open(run, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    status, err = ends(["run", *small, *more], capsys)
    os.close(other)
    assert status == 2
    assert f"another process trains in {run}" in err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("report|", "an empty path names no run folder"),
        ("compare|", "an empty path names no run folder"),
        ("report|a.csv", "a.csv is no run folder: it is a file"),
        ("compare|x|--output=a.csv", "--output a.csv is a file: name a folder"),
        ("predict|--ckpt_path=a.ckpt|a.png|--output=", "--output is empty: give it a value, or leave it out"),
        ("predict|--ckpt_path=a.ckpt|a.png|--device|", "--device is empty"),
        ("export|--ckpt_path=a.ckpt|--output=", "--output is empty"),
        ("export|--ckpt_path=a.onnx", "a.onnx is an exported graph: give the checkpoint"),
        ("drift|a.csv|--ckpt_path=a.ckpt|--score=enrgy", "no score 'enrgy'; did you mean energy?"),
        ("drift|a.csv|--ckpt_path=a.ckpt|--output|", "--output is empty"),
        ("serve|--ckpt_path=a.ckpt|--host=", "--host is empty"),
    ],
)
def test_clumsy_words_are_told_of(command, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("a.csv", "a.ckpt", "a.onnx", "a.png"):
        Path(name).write_text("x")
    status, err = ends(command.split("|"), capsys)
    assert status == 2
    assert said in err
    assert {path.name for path in tmp_path.iterdir()} == {"a.csv", "a.ckpt", "a.onnx", "a.png"}
