"""`osr predict PATH…`: a row for every file, whatever it holds, in every format and number of processes."""

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from quick import refusal

from osr_lightning import load, save
from osr_lightning.__main__ import main
from osr_lightning.cli import predict as osr_predict
from osr_lightning.data_spec import DataSpec
from osr_lightning.deploy import predict as prediction_of_files
from osr_lightning.deploy.predict import Counts, classify, images
from osr_lightning.errors import Failure, UserError
from osr_lightning.recogniser.checkpoint import build
from osr_lightning.recogniser.rows import COLUMNS, cells, open_rows, path_cell
from osr_lightning.scoring.calibration import calibrate
from osr_lightning.scoring.sweep import Costs

HOSTILE_NAMES = [
    "new\nline.png",
    'comma,quote".png',
    "=cmd|' !A0.png",
    "<b>bold&amp;.png",
    "żółć 🐸.png",
    "-option.png",
]


@pytest.fixture(scope="module")
def ckpt(tmp_path_factory):
    """An untrained recogniser of three classes, whose threshold splits random images."""
    torch.manual_seed(0)
    spec = DataSpec(("cat", "dog", "frog"), 3, 20, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
    recogniser = build({"sampler": "mc_dropout", "score": "energy"}, spec).eval()
    pixels = torch.from_numpy(np.stack([noise(seed, (20, 20)) for seed in range(40)])).permute(0, 3, 1, 2)
    scores = recogniser.describe(pixels)["score/energy"]
    recogniser.threshold.fixed = scores.median().item()
    path = tmp_path_factory.mktemp("ckpt") / "any.ckpt"
    save(recogniser, path)
    return path


def noise(seed, size=(31, 24), depth=(3,)):
    return np.random.default_rng(seed).integers(0, 256, (*size, *depth), dtype=np.uint8)


def photos(folder, count=5):
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        Image.fromarray(noise(index)).save(folder / f"{index:03}.png")
    return folder


def predict(*arguments):
    return main(["predict", *map(str, arguments)])


@pytest.mark.parametrize("paths", [[""], ["", "d.png"]])
def test_an_empty_path_is_refused_before_the_checkpoint_is_loaded(paths, capsys):
    assert main(["predict", "--ckpt_path", "nowhere.ckpt", *paths]) == 2
    assert "an empty path names no image; name a file, a folder (. is this one)" in capsys.readouterr().err


def rows_of(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def hostile_folder(folder):
    """Images of every kind that people have, and files that only look like images."""
    photos(folder, 1)
    rgb = Image.fromarray(noise(1))
    for name, image in {
        "palette.png": rgb.convert("P"),
        "cmyk.jpg": rgb.convert("CMYK"),
        "alpha.png": rgb.convert("RGBA"),
        "grey_alpha.png": rgb.convert("LA"),
        "one_bit.png": rgb.convert("1"),
        "deep.png": Image.fromarray(noise(2, depth=()).astype(np.uint16) * 257),
        "float.tiff": Image.fromarray(noise(3, depth=()).astype(np.float32) / 255),
        "image.webp": rgb,
        "image.tif": rgb,
        "image.bmp": rgb,
        "UPPER.JPG": rgb,
        "tiny.png": Image.fromarray(noise(4, (1, 1))),
        "thin.png": Image.fromarray(noise(4, (1, 900))),
    }.items():
        image.save(folder / name)
    rgb.save(folder / "moving.gif", save_all=True, append_images=[rgb.rotate(90)])
    exif = Image.Exif()
    exif[0x0112] = 6
    rgb.save(folder / "rotated.jpg", exif=exif)
    for name in HOSTILE_NAMES:
        rgb.save(folder / name)
    good = len(list(folder.iterdir()))
    whole = io.BytesIO()
    rgb.save(whole, "PNG")
    (folder / "truncated.png").write_bytes(whole.getvalue()[:200])
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.png").write_text("not an image")
    (folder / "drawing.svg").write_text("<svg/>")
    (folder / "notes.txt").write_text("not asked for")
    (folder / ".hidden.png").write_bytes(whole.getvalue())
    return good


def test_the_first_files_that_are_skipped_are_named(ckpt, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(photos(tmp_path / "in", 1))
    for name in ("a.txt", "b\n.md", "c", "d.zip"):
        Path(name).touch()
    assert predict("--ckpt_path", ckpt, ".") == 0
    assert "4 skipped (not images: a.txt, b\\n.md, c, …)\n" in capsys.readouterr().err
    Path("000.png").unlink()
    assert predict("--ckpt_path", ckpt, ".") == 2
    assert "there are no images in ., but 4 other files: a.txt, b\\n.md, c, …\n" in capsys.readouterr().err


def test_a_row_for_every_picture_whatever_it_holds(ckpt, tmp_path, capsys):
    good = hostile_folder(tmp_path / "all")
    assert predict("--ckpt_path", ckpt, tmp_path / "all", "--output", tmp_path / "rows.csv") == 0
    rows = rows_of(tmp_path / "rows.csv")
    assert [int(row["index"]) for row in rows] == list(range(good + 4))
    failed = {os.path.basename(row["file"]): row["error"] for row in rows if row["error"]}
    assert set(failed) == {"truncated.png", "empty.png", "text.png", "drawing.svg"}
    assert all(name in error for name, error in failed.items())
    assert all("\n" not in error for error in failed.values())
    for row in rows:
        assert (row["prediction"] == "") == bool(row["error"])
        if not row["error"]:
            assert (row["prediction"] == "unknown") == (float(row["score"]) > float(row["threshold"]))
            assert row["prediction"] in ("cat", "dog", "frog", "unknown")
    unknown = sum(row["prediction"] == "unknown" for row in rows)
    skipped = f"1 skipped (not images: {tmp_path}/all/notes.txt)"
    summary = f"{good} predicted ({unknown} unknown), 4 unreadable, {skipped}"
    assert summary in capsys.readouterr().err
    assert {os.path.basename(row["file"]) for row in rows} >= set(HOSTILE_NAMES)


def test_strict_exits_with_1_where_a_file_failed(ckpt, tmp_path):
    folder = photos(tmp_path / "photos", 2)
    arguments = ["--ckpt_path", ckpt, folder, "--strict", "--output", tmp_path / "rows.csv"]
    assert predict(*arguments) == 0
    (folder / "bad.png").write_bytes(b"")
    assert predict(*arguments) == 1
    assert len(rows_of(tmp_path / "rows.csv")) == 3


def test_no_run_folder_is_made(ckpt, tmp_path, monkeypatch):
    folder = photos(tmp_path / "photos", 1)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert predict("--ckpt_path", ckpt, folder, "--output", "rows.csv") == 0
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["rows.csv"]


def test_all_formats_hold_the_same_rows(ckpt, tmp_path, capsys):
    import pyarrow.parquet as pq

    folder = photos(tmp_path / "photos", 3)
    (folder / "bad.png").write_bytes(b"")
    for ending in ("csv", "jsonl", "parquet"):
        assert predict("--ckpt_path", ckpt, folder, "--output", tmp_path / f"rows.{ending}") == 0
    capsys.readouterr()
    assert predict("--ckpt_path", ckpt, folder) == 0
    assert capsys.readouterr().out == (tmp_path / "rows.csv").read_text()
    table = rows_of(tmp_path / "rows.csv")
    lines = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    parquet = pq.read_table(tmp_path / "rows.parquet").to_pylist()
    assert len(table) == len(lines) == len(parquet) == 4
    for row, line, record in zip(table, lines, parquet, strict=True):
        assert list(row) == list(line) == list(record)
        assert row["file"] == line["file"] == record["file"]
        if not row["error"]:
            assert float(row["score"]) == line["score"] == record["score"]
            assert row["prediction"] == line["prediction"] == record["prediction"]
        else:
            assert line["score"] is None
            assert record["score"] is None


def test_rows_do_not_depend_on_neighbours_order_or_workers(ckpt, tmp_path):
    folder = photos(tmp_path / "photos", 150)
    recogniser = load(ckpt)

    def scores(paths, workers):
        kept = []
        with torch.inference_mode():
            classify(recogniser, images(paths), kept.extend, Counts(), workers=workers)
        return {row[COLUMNS.index("file")]: list(row[5:8]) for row in kept}

    whole = scores([str(folder)], 2)
    files = sorted(map(str, folder.iterdir()))
    assert scores(files[::-1], 1) == whole
    assert {**scores(files[:1], 1), **scores(files[100:], 1)}.items() <= whole.items()
    in_python = {p.file: [p.confidence, p.score, p.threshold] for p in recogniser.predict(str(folder))}
    assert in_python == whole


def test_two_processes_write_what_one_writes(ckpt, tmp_path):
    folder = photos(tmp_path / "photos", 150)
    (folder / "077b.png").write_bytes(b"")
    assert predict("--ckpt_path", ckpt, folder, "--output", tmp_path / "one.csv") == 0
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "-m", "osr_lightning"]
    command += ["predict", f"--ckpt_path={ckpt}", str(folder), f"--output={tmp_path}/two.csv"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "two.csv").read_text() == (tmp_path / "one.csv").read_text()
    assert done.stderr.count("150 predicted") == 1


def test_a_failing_write_leaves_the_file_that_was_there(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("earlier")

    def fail():
        with open_rows(str(path), ["a"]) as sink:
            sink([[1]])
            raise OSError("no space left")

    with pytest.raises(Failure, match="no space"):
        fail()
    assert path.read_text() == "earlier"
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_is_written_through(ckpt, tmp_path):
    folder = photos(tmp_path / "photos", 1)
    (tmp_path / "real.csv").write_text("")
    (tmp_path / "link.csv").symlink_to(tmp_path / "real.csv")
    assert predict("--ckpt_path", ckpt, folder, "--output", tmp_path / "link.csv") == 0
    assert (tmp_path / "link.csv").is_symlink()
    assert len(rows_of(tmp_path / "real.csv")) == 1


@pytest.mark.parametrize("name", ["=cmd.png", "+1.png", "-x.png", "@a.png"])
def test_a_name_is_no_formula_and_still_the_file(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(b"x")
    from pathlib import Path

    text = path_cell(Path(name))
    assert text[0] not in "=+-@"
    assert Path(text).read_bytes() == b"x"


def test_a_name_that_is_no_text_is_path_cell(ckpt, tmp_path):
    folder = photos(tmp_path / "photos", 1)
    raw = os.fsencode(folder) + b"/caf\xe9.png"
    with open(raw, "wb") as file:
        Image.fromarray(noise(0)).save(file, "PNG")
    assert predict("--ckpt_path", ckpt, folder, "--output", tmp_path / "rows.csv") == 0
    assert any(row["file"].endswith("caf\\xe9.png") for row in rows_of(tmp_path / "rows.csv"))


MISTAKES = {
    "no checkpoint": ([], "--ckpt_path"),
    "missing checkpoint": (["--ckpt_path=/no/such.ckpt"], "/no/such.ckpt"),
    "output format": (["--ckpt_path={ckpt}", "--output=rows.xlsx"], "rows.xlsx"),
    "output folder": (["--ckpt_path={ckpt}", "--output=/no/such/folder/rows.csv"], "/no/such/folder"),
    "score": (["--ckpt_path={ckpt}", "--score=enrgy"], "enrgy"),
    "uncalibrated score": (["--ckpt_path={ckpt}", "--score=entropy"], "entropy"),
    "threshold": (["--ckpt_path={ckpt}", "--threshold=nan"], "nan"),
    "workers": (["--ckpt_path={ckpt}", "--workers=0"], "--workers"),
    "unknown option": (["--ckpt_path={ckpt}", "--ouput=x.csv"], "--ouput"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_get_one_sentence(mistake, ckpt, tmp_path, capsys):
    options, named = MISTAKES[mistake]
    folder = photos(tmp_path / "photos", 1)
    words = ["predict", str(folder), *(option.format(ckpt=ckpt) for option in options)]
    assert named in refusal(words, capsys)


@pytest.mark.parametrize("device", ["foo", "cuda:99", "mps:7", "meta", "", "cpu:x"])
def test_a_device_that_is_not_there_is_told_with_those_that_are(device, ckpt, tmp_path, capsys):
    folder, said = photos(tmp_path / "photos", 1), f"there is no device {device!r} here; there is cpu"
    assert predict(folder, "--ckpt_path", ckpt, "--device", device) == 2
    assert main(["serve", "--ckpt_path", str(ckpt), "--port", "0", "--device", device]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2
    empty = "--device is empty"  # which no option may be
    assert all(error.startswith(f"osr: error: {said if device else empty}") for error in errors)
    with pytest.raises(UserError, match=said):
        load(ckpt, device=device)


PROCESSES = [
    (
        {"WORLD_SIZE": "2"},
        "WORLD_SIZE is 2 without RANK and MASTER_ADDR and MASTER_PORT: start it with torchrun",
    ),
    ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "x"}, "WORLD_SIZE is 2 without MASTER_PORT"),
    ({"WORLD_SIZE": "two"}, "the environment variable WORLD_SIZE is 'two'"),
    ({"WORLD_SIZE": "-1"}, "the environment variable WORLD_SIZE is '-1'"),
    ({"WORLD_SIZE": "2", "RANK": "x"}, "the environment variable RANK is 'x'"),
    ({"WORLD_SIZE": "1", "RANK": "1"}, "this is process 1 of 1 by the variables RANK and WORLD_SIZE"),
    ({"RANK": "3"}, "this is process 3 of 1"),
]


@pytest.mark.parametrize(("given", "said"), PROCESSES, ids=str)
def test_processes_that_cannot_be_are_told(given, said, ckpt, tmp_path, capsys, monkeypatch):
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert predict(photos(tmp_path / "photos", 1), "--ckpt_path", ckpt) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"osr: error: {said}")
    assert error.count("\n") == 1


def test_empty_variables_are_none(ckpt, tmp_path, monkeypatch):
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "")
    output = tmp_path / "rows.csv"
    assert predict(photos(tmp_path / "photos", 1), "--ckpt_path", ckpt, "--output", output) == 0
    assert len(rows_of(output)) == 1


@pytest.fixture(scope="module")
def calibrated(ckpt, tmp_path_factory):
    """The recogniser of ``ckpt``, calibrated on 200 pictures of noise."""
    recogniser = load(ckpt)
    pixels = np.stack([recogniser.prepare(noise(seed)) for seed in range(200)])
    recogniser.threshold.fixed = None
    with torch.no_grad():
        score = recogniser.describe(torch.from_numpy(pixels))["score/energy"].numpy()
    everything = np.ones(len(score), bool)
    options = {"costs": Costs(), "unknown_prior": 0.5, "calibrated_on": "noise", "optimistic": False}
    recogniser.threshold.records, _ = calibrate(
        {"energy": score}, everything, everything, method="known_quantile", alpha=0.05, **options
    )
    path = tmp_path_factory.mktemp("calibrated") / "any.ckpt"
    save(recogniser, path)
    return path


def strange(folder, count):
    """Pictures that the recogniser of ``ckpt`` finds stranger than noise."""
    folder.mkdir()
    for index in range(count):
        Image.fromarray(np.full((20, 20, 3), index % 9, np.uint8)).save(folder / f"dark{index}.png")
    return folder


def test_a_p_value_for_every_picture(calibrated, ckpt, tmp_path):
    folder = photos(tmp_path / "in", 30)
    (folder / "bad.png").write_bytes(b"no image")
    assert predict("--ckpt_path", calibrated, folder, "--output", tmp_path / "a.csv") == 0
    *rows, bad = sorted(rows_of(tmp_path / "a.csv"), key=lambda row: bool(row["error"]))
    assert list(bad)[-1] == "p_value"
    assert bad["p_value"] == ""
    record = load(calibrated).threshold.record
    for row in rows:
        as_great = sum(score >= float(row["score"]) for score in record.known_scores)
        assert float(row["p_value"]) == (1 + as_great) / 201
        assert (float(row["p_value"]) <= 0.05) == (row["prediction"] == "unknown")
    assert [one.p_value for one in load(calibrated).predict(folder / "00*.png")] == [
        float(row["p_value"]) for row in rows[:10]
    ]
    # a threshold that was given as a number says nothing of known images
    assert predict("--ckpt_path", ckpt, folder, "--output", tmp_path / "b.jsonl") == 0
    assert {json.loads(line)["p_value"] for line in (tmp_path / "b.jsonl").read_text().splitlines()} == {None}
    assert load(ckpt).predict(folder / "000.png")[0].p_value is None


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_all_pictures_are_decided_together(calibrated, ending, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(prediction_of_files, "_AT_ONCE", 7)
    folder = photos(tmp_path / "in", 40)
    strange(folder / "strange", 40)
    (folder / "bad.png").write_bytes(b"no image")
    plain, output = tmp_path / "plain.csv", tmp_path / f"a.{ending}"
    predict("--ckpt_path", calibrated, folder, "--threshold", 1e300, "--output", plain)
    capsys.readouterr()
    assert predict("--ckpt_path", calibrated, folder, "--fdr", 0.1, "--output", output) == 0
    said = capsys.readouterr().err
    if ending == "csv":
        rows = [{**row, "p_value": row["p_value"] and float(row["p_value"])} for row in rows_of(output)]
    elif ending == "jsonl":
        rows = [json.loads(line) for line in output.read_text().splitlines()]
    else:
        import pyarrow.parquet as pq

        rows = pq.read_table(output).to_pylist()
    expected = rows_of(plain)
    assert [row["file"] for row in rows] == [row["file"] for row in expected]
    good = [(row, before) for row, before in zip(rows, expected, strict=True) if not row["error"]]
    assert len(good) == 80
    ordered = np.sort([row["p_value"] for row, _ in good])
    below = np.flatnonzero(ordered <= 0.1 * np.arange(1, 81) / 80)
    for row, before in good:
        unknown = row["p_value"] <= ordered[below[-1]]
        assert row["prediction"] == ("unknown" if unknown else before["prediction"])
        assert (float(row["score"]) > float(row["threshold"])) == unknown
        assert float(row["score"]) == float(before["score"])
    count = sum(row["prediction"] == "unknown" for row, _ in good)
    assert 35 <= count <= 45
    assert f"80 predicted ({count} unknown), 1 unreadable; of the unknown ones at most 0.1 are known" in said


def test_where_no_picture_is_strange_enough_none_is_unknown(calibrated, tmp_path, capsys):
    folder, output = photos(tmp_path / "in", 20), tmp_path / "a.csv"
    assert predict("--ckpt_path", calibrated, folder, "--fdr", 0.001, "--output", output) == 0
    assert "20 predicted (0 unknown); none is unknown at a false" in capsys.readouterr().err
    rows = rows_of(output)
    assert "unknown" not in {row["prediction"] for row in rows}
    assert all(float(row["score"]) <= float(row["threshold"]) < 1e300 for row in rows)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--fdr", 1], "--fdr must lie between 0 and 1, got 1"),
        (["--fdr", 0.1, "--threshold", 1], "leave --threshold out"),
        (
            ["--fdr", 0.1, "--ckpt_path", "fixed"],
            "its threshold is a number that was given; run osr calibrate",
        ),
    ],
)
def test_a_rate_that_cannot_be_had_is_told(options, said, calibrated, ckpt, tmp_path, capsys):
    given = [ckpt if word == "fixed" else word for word in options]
    assert predict("--ckpt_path", calibrated, photos(tmp_path / "in", 1), *given) == 2
    assert said in capsys.readouterr().err


def test_a_class_is_no_formula_and_commands_no_terminal(tmp_path):
    names = ("=1+1", "@x", "\x1b[2Jred", "a\nb", "-1", "+2.5", "cat", "żółć")
    rows = {"prediction": np.arange(9), "confidence": np.zeros(9), "p_value": np.ones(9)}
    answers = cells(rows, {"s": np.zeros(9)}, names, "s", 0.0)
    with open_rows(tmp_path / "rows.csv", ("prediction", *"abcde")) as write:
        write(answers)
    with open(tmp_path / "rows.csv", newline="", encoding="utf-8") as file:
        found = [row[0] for row in csv.reader(file)][1:]
    assert found == ["'=1+1", "'@x", "\\x1b[2Jred", "a\\nb", "-1", "+2.5", "cat", "żółć", "unknown"]


@pytest.mark.parametrize("paths", [["/no/such.png"], ["/no/such/*.png"], ["{tmp}/empty"]])
def test_nothing_to_classify_is_a_mistake(paths, ckpt, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    paths = [path.format(tmp=tmp_path) for path in paths]
    assert predict("--ckpt_path", ckpt, *paths, "--output", tmp_path / "rows.csv") == 2
    assert paths[0] in capsys.readouterr().err
    assert not (tmp_path / "rows.csv").exists()


def test_one_missing_file_among_others_gets_its_row(ckpt, tmp_path):
    folder = photos(tmp_path / "photos", 1)
    arguments = [folder / "000.png", tmp_path / "gone.png", "--output", tmp_path / "rows.csv"]
    assert predict("--ckpt_path", ckpt, *arguments) == 0
    assert [bool(row["error"]) for row in rows_of(tmp_path / "rows.csv")] == [False, True]


@pytest.mark.parametrize(
    ("arguments", "files"),
    [
        (["--ckpt_path", "x", "photos"], True),
        (["photos", "--ckpt_path=x", "--strict"], True),
        (["--ckpt_path", "x"], False),
        (["--ckpt_path", "x", "--data.predict", "folder:photos"], False),
        (["--config", "c.yaml", "--ckpt_path=x"], False),
    ],
)
def test_paths_are_told_from_options_of_the_datamodule(arguments, files, monkeypatch):
    monkeypatch.setattr(osr_predict, "_files", lambda options: 10)
    monkeypatch.setattr(osr_predict, "_sources", lambda arguments: 20)
    assert osr_predict.main(arguments) == (10 if files else 20)
