"""A disk that fails at any operation: what was there stays whole, and one sentence says what happened."""

import csv
import errno
import json
import logging
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from quick import QUIET

from osr_lightning.__main__ import main
from osr_lightning.data import cache
from osr_lightning.errors import Failure
from osr_lightning.recogniser import checkpoint
from osr_lightning.recogniser.recogniser import Recogniser

NUMBERS = [errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO, errno.EACCES, errno.EINTR]
FULL = [errno.ENOSPC, errno.EDQUOT, errno.EROFS]
pytestmark = pytest.mark.filterwarnings("ignore")
FAST = [*QUIET, "--evaluation.figures=false", "--evaluation.projector_points=0", "--evaluation.bootstrap=2"]


WHOLE: set[tuple[str, bytes]] = set()  # endings and contents that were read


@pytest.fixture(scope="module")
def finished(small, tmp_path_factory) -> Path:
    """A folder with one run, and images to name."""
    folder = tmp_path_factory.mktemp("finished")
    assert main(["run", *small, f"--trainer.default_root_dir={folder}"]) == 0
    (folder / "photos").mkdir()
    for grey in range(3):
        Image.new("L", (28, 28), 60 * grey).save(folder / "photos" / f"{grey}.png")
    return folder


@pytest.fixture
def folder(finished, tmp_path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "f"))


def run_of(folder: Path) -> Path:
    return folder / "lightning_logs" / "default" / "version_0"


def read(path: Path) -> object:
    """Something that can only be read of a whole file."""
    match path.suffix:
        case ".ckpt":
            return checkpoint.load(path)
        case ".json":
            return json.loads(path.read_text())
        case ".npz":
            with np.load(path, allow_pickle=False) as archive:
                return {name: archive[name] for name in archive.files}
        case ".csv":
            with path.open(newline="") as file:
                rows = list(csv.DictReader(file, strict=True))
            assert not any(None in row or None in row.values() for row in rows)
        case ".html":
            assert path.read_text().rstrip().endswith("</html>")
        case ".parquet":
            import pyarrow.parquet

            return pyarrow.parquet.read_table(path)
    return path.read_bytes()


def ends_well(command, folder, files, capsys, **fault) -> int:
    """Run a command on a disk with a fault, and see that every promise is kept; returns its status."""
    before = [path for path in folder.rglob("*") if path.is_file()]
    capsys.readouterr()
    files.watch(folder, **fault)
    try:
        status = main(command)
    finally:
        outside, count = files.outside, files.count
        files.stop()
    out, err = capsys.readouterr()
    assert status in (0, 1, 2)
    said = [line for line in err.splitlines() if line.startswith("osr: error: ")]
    assert len(said) == (status != 0), err
    assert "Traceback" not in out + err
    assert "Exception in thread" not in err
    assert outside == []
    assert all(path.is_file() for path in before)
    after = [path for path in folder.rglob("*") if path.is_file()]
    assert not [path.name for path in after if ".partial" in path.name]
    for path in after:
        content = path.suffix, path.read_bytes()
        if content not in WHOLE:
            read(path)
            WHOLE.add(content)
    files.total = count
    return status


def predict(folder: Path, ending: str) -> list[str]:
    ckpt = run_of(folder) / "checkpoints" / "best.ckpt"
    return ["predict", f"--ckpt_path={ckpt}", str(folder / "photos"), f"--output={folder / 'rows'}.{ending}"]


def calibrate(folder: Path) -> list[str]:
    ckpt = run_of(folder) / "checkpoints" / "best.ckpt"
    here = f"--trainer.default_root_dir={folder}"
    return ["calibrate", f"--ckpt_path={ckpt}", "--in_place=true", "--model.alpha=0.5", here, *FAST]


@pytest.mark.parametrize("fail_at", range(2, 166, 16))
def test_runs(fail_at, folder, small, files, capsys):
    number, lasting = [*FULL, errno.EACCES][fail_at // 16 % 4], fail_at // 16 % 2 == 0
    command = ["run", *small, f"--trainer.default_root_dir={folder}"]
    before = {path: path.read_bytes() for path in run_of(folder).rglob("*") if path.is_file()}
    status = ends_well(command, folder, files, capsys, fail_at=fail_at, number=number, lasting=lasting)
    # a folder's names need not be synced where it may not be read
    assert status or number == errno.EACCES or files.total < fail_at
    assert all(path.read_bytes() == content for path, content in before.items())


@pytest.mark.parametrize("fail_at", [1, 14])  # one of the first, and hparams.yaml
def test_runs_on_a_broken_device(fail_at, folder, small, files, capsys):
    command = ["run", *small, f"--trainer.default_root_dir={folder}"]
    assert ends_well(command, folder, files, capsys, fail_at=fail_at, number=errno.EIO) == 1


@pytest.mark.parametrize("fail_at", range(2, 60, 9))
def test_calibration_in_place(fail_at, folder, files, capsys):
    status = ends_well(calibrate(folder), folder, files, capsys, fail_at=fail_at, lasting=True)
    assert status == int(files.total >= fail_at)


@pytest.mark.parametrize("number", NUMBERS, ids=errno.errorcode.get)
@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_predictions(ending, number, folder, files, capsys):
    command, whole = predict(folder, ending), folder / f"rows.{ending}"
    assert main(command) == 0
    before = whole.read_bytes()
    for fail_at in range(1, 8):
        status = ends_well(command, folder, files, capsys, fail_at=fail_at, number=number)
        assert status or number == errno.EACCES or files.total < fail_at
        assert whole.read_bytes() == before or ending == "parquet"


@pytest.mark.parametrize("number", NUMBERS, ids=errno.errorcode.get)
@pytest.mark.parametrize("name", ["report", "compare"])
def test_reports_and_comparisons(name, number, folder, files, capsys):
    run = str(run_of(folder))
    command = [name, run] if name == "report" else [name, run, run, f"--output={folder / 'compared'}"]
    for fail_at in range(1, 14):
        status = ends_well(command, folder, files, capsys, fail_at=fail_at, number=number)
        assert status or number == errno.EACCES or files.total < fail_at


@pytest.mark.parametrize("number", NUMBERS, ids=errno.errorcode.get)
def test_checkpoints(number, folder, files):
    path = run_of(folder) / "checkpoints" / "best.ckpt"
    before, recogniser = path.read_bytes(), checkpoint.load(path)
    for fail_at in (1, 2, 3, 4):  # made, opened again, synced, renamed
        files.watch(folder, fail_at=fail_at, number=number)
        if number == errno.EACCES and fail_at == 2:  # what may not be read is not synced
            checkpoint.save(recogniser, path)
            before = path.read_bytes()
        else:
            with pytest.raises(Failure, match="cannot write"):
                checkpoint.save(recogniser, path)
            assert path.read_bytes() == before
        files.stop()
        assert not list(folder.rglob("*.partial*"))
        assert isinstance(checkpoint.load(path), Recogniser)


@pytest.mark.parametrize("fail_at", [1, 2, 3, 4, 5])
def test_a_run_does_without_its_cache(fail_at, monkeypatch, tmp_path, files):
    monkeypatch.setenv("OSR_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "WORTH_KEEPING", -1.0)
    files.watch(tmp_path, fail_at=fail_at, lasting=True)
    made = cache.cached([b"x"], (fail_at,), (3,), lambda: torch.arange(3, dtype=torch.uint8))
    rows = cache.mapped([b"y"], (fail_at,), (3, 1, 1, 1), lambda a, b: torch.zeros(b - a, 1, 1, 1).byte())
    files.stop()
    assert made.tolist() == [0, 1, 2]
    assert rows is None or cache.read_rows(rows, [0, 2]).shape == (2, 1, 1, 1)
    assert not list(tmp_path.rglob("*.partial*"))


@pytest.mark.parametrize("limit", [0, 1, 100, 5000])
def test_a_file_that_may_not_grow(limit, folder, files, capsys, monkeypatch):
    """What the kernel says of a full disk in the middle of a write."""
    monkeypatch.setattr(logging, "raiseExceptions", False)  # pytest keeps the log in a file
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    run = str(run_of(folder))
    try:
        for command in (
            predict(folder, "csv"),
            predict(folder, "parquet"),
            ["report", run],
            calibrate(folder),
        ):
            before = (run_of(folder) / "report.html").read_bytes()
            status = ends_well(command, folder, files, capsys)
            assert status == 1 or (limit and command[0] == "predict")
            assert (run_of(folder) / "report.html").read_bytes() == before
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
