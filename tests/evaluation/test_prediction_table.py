"""The prediction table, and the files it is saved to."""

import csv
import dataclasses
import io
import tracemalloc
import zipfile

import numpy as np
import pytest

from osr_lightning.errors import UserError
from osr_lightning.evaluation import prediction_table
from osr_lightning.evaluation.prediction_table import PredictionTable
from osr_lightning.recogniser.rows import class_cells, name_cell

THRESHOLD = "0.30000000000000004"  # 0.1 + 0.2 with every digit


@pytest.fixture
def table() -> PredictionTable:
    """Two known and three unknown images, with awkward names and floats."""
    return PredictionTable(
        class_names=("cat", 'a "dog", big'),
        source_names=("pets", "noise, white", "ünknown"),
        groups={"far": ("noise, white",), "none": ()},
        score_name="energy",
        threshold=0.1 + 0.2,
        source=np.array([0, 0, 1, 2, 2]),
        label=np.array([0, 1, 2, 2, 2]),
        predicted_class=np.array([0, 0, 1, 1, 0]),
        confidence=np.array([1 / 3, 0.9, np.nextafter(1, 0), 0.5, 1.0]),
        nll=np.array([0.1, np.pi, np.nan, np.nan, np.nan]),
        scores={
            "msp": np.array([5e-324, 0.1, 0.2, 0.3, 0.4]),
            "energy": np.array([-np.inf, 0.1 + 0.2, 0.31, 1e300, np.inf]),
        },
        logits=np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32),
        files=("pets/cat/1.png", "", 'a,b\n"c".png', "=1+1.png", "ü.png"),
        p_value=np.array([1.0, 1 / 3, 0.25, np.nan, 5e-324]),
    )


def assert_equal(one: PredictionTable, two: PredictionTable) -> None:
    for field in dataclasses.fields(PredictionTable):
        a, b = getattr(one, field.name), getattr(two, field.name)
        if field.name == "scores":
            assert set(a) == set(b)
            for name in a:
                np.testing.assert_array_equal(a[name], b[name])
        elif isinstance(a, np.ndarray):
            assert a.dtype == b.dtype, field.name
            np.testing.assert_array_equal(a, b)
        else:
            assert a == b, field.name


def test_what_is_decided(table):
    assert table.known.tolist() == [True, True, False, False, False]
    # a score equal to the threshold does not exceed it
    assert table.rejected.tolist() == [False, False, True, True, True]
    assert table.prediction.tolist() == [0, 0, 2, 2, 2]
    assert {name: mask.tolist() for name, mask in table.unknown_masks.items()} == {
        "noise, white": [True, True, True, False, False],
        "ünknown": [True, True, False, True, True],
    }


def test_saved_and_loaded_tables_are_equal_to_the_last_bit(table, tmp_path):
    table.save(tmp_path / "new" / "run")
    assert_equal(PredictionTable.load(tmp_path / "new" / "run"), table)


def test_many_logits_are_not_packed(table, tmp_path, monkeypatch):
    for most, kind in ((table.logits.nbytes, zipfile.ZIP_DEFLATED), (0, zipfile.ZIP_STORED)):
        monkeypatch.setattr(prediction_table, "_PACKED", most)
        table.save(tmp_path)
        with zipfile.ZipFile(tmp_path / "evaluation.npz") as archive:
            assert {info.compress_type for info in archive.infolist()} == {kind}
        assert np.array_equal(PredictionTable.load(tmp_path).logits, table.logits)


def test_images_without_files_have_empty_names(table, tmp_path):
    dataclasses.replace(table, files=()).save(tmp_path)
    assert PredictionTable.load(tmp_path).files == ()


AWKWARD = (
    "a,b", "two\nlines", "carriage\r\nreturn", 'say "hi"', "'single'", "=cmd|' /C calc'!A0", "@SUM(1)",
    "-1", "<script>alert(1)</script>", "ünï 猫 🐈", " padded ", "", "0", "nan", "a\\b", "\ttab", ";",
    "Unknown",
)  # fmt: skip


def test_awkward_class_and_set_names_survive(tmp_path):
    count = len(AWKWARD)
    rng = np.random.default_rng(0)
    label = np.concatenate([np.arange(count), np.full(count, count)])
    table = PredictionTable(
        class_names=AWKWARD,
        source_names=("known", *AWKWARD),
        groups={name: (name,) for name in AWKWARD},
        score_name="energy",
        threshold=0.0,
        source=np.concatenate([np.zeros(count, np.int64), 1 + np.arange(count)]),
        label=label,
        predicted_class=rng.permutation(2 * count) % count,
        confidence=rng.random(2 * count),
        nll=np.where(label < count, 1.0, np.nan),
        scores={"energy": rng.normal(size=2 * count)},
        logits=rng.normal(size=(2 * count, count)).astype(np.float32),
        files=(*AWKWARD, *AWKWARD),
    )
    table.save(tmp_path)
    assert_equal(PredictionTable.load(tmp_path), table)
    with open(tmp_path / "predictions.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    # another reader than ours sees the names too, but for what is a formula or a command
    names = [*map(name_cell, class_cells(AWKWARD)), "unknown"]
    assert len(set(names)) == count + 1
    assert [row["label"] for row in rows] == [*names[:-1], *["unknown"] * count]
    assert [row["prediction"] for row in rows] == [names[index] for index in table.prediction]


def test_no_cell_of_a_spreadsheet_is_a_formula_and_files_of_before_load(table, tmp_path):
    formulas = dataclasses.replace(
        table, class_names=("=1+1", "'=1+1"), source_names=("+a", "@b", "-c"), groups={"=g": ("@b",)}
    )
    formulas.save(tmp_path)
    path = tmp_path / "predictions.csv"
    with open(path, newline="", encoding="utf-8") as file:
        rows = [dict(row) for row in csv.DictReader(file)]
    for name in ("file", "source", "label", "prediction", "error"):
        assert not any(row[name].startswith(tuple("=+-@\t\r")) for row in rows), name
    assert_equal(PredictionTable.load(tmp_path), formulas)
    # 0.2 and before wrote names and files as they are
    plain = dataclasses.replace(formulas, class_names=("=1+1", "dog"))
    plain.save(tmp_path)
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("'", "").replace("./=", "="), encoding="utf-8")
    assert "=1+1.png,-c,unknown" in path.read_text(encoding="utf-8")
    assert_equal(PredictionTable.load(tmp_path), plain)


@pytest.mark.parametrize("where", ["class_names", "source_names"])
def test_names_that_are_no_utf8_survive(table, tmp_path, where):
    names = list(getattr(table, where))
    names[0] = "caf\udce9"  # what Python makes of the Latin-1 folder name b"caf\xe9"
    dataclasses.replace(table, **{where: tuple(names)}).save(tmp_path)
    assert len(PredictionTable.load(tmp_path).label) == 5


def test_an_empty_table_survives(table, tmp_path):
    fields = ("source", "label", "predicted_class", "confidence", "nll", "logits")
    empty = dataclasses.replace(
        table,
        **{name: getattr(table, name)[:0] for name in fields},
        scores={name: score[:0] for name, score in table.scores.items()},
        files=(),
        p_value=None,
    )
    empty.save(tmp_path)
    assert_equal(PredictionTable.load(tmp_path), empty)


def test_the_columns_of_predictions_csv(table, tmp_path):
    table.save(tmp_path)
    with open(tmp_path / "predictions.csv", newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header == [
        "index", "file", "source", "label", "prediction", "confidence", "score", "threshold", "error", "msp",
        "p_value",
    ]  # fmt: skip
    assert rows == [
        [
            "0",
            "pets/cat/1.png",
            "pets",
            "cat",
            "cat",
            "0.3333333333333333",
            "-inf",
            THRESHOLD,
            "",
            "5e-324",
            "1.0",
        ],
        [
            "1",
            "",
            "pets",
            'a "dog", big',
            "cat",
            "0.9",
            THRESHOLD,
            THRESHOLD,
            "",
            "0.1",
            "0.3333333333333333",
        ],
        [
            *("2", 'a,b\n"c".png', "noise, white", "unknown", "unknown", "0.9999999999999999"),
            *("0.31", THRESHOLD, "", "0.2", "0.25"),
        ],
        ["3", "./=1+1.png", "ünknown", "unknown", "unknown", "0.5", "1e+300", THRESHOLD, "", "0.3", ""],
        ["4", "ü.png", "ünknown", "unknown", "unknown", "1.0", "inf", THRESHOLD, "", "0.4", "5e-324"],
    ]


@pytest.mark.parametrize("name", ["predictions.csv", "evaluation.npz"])
def test_a_missing_file_is_named(table, tmp_path, name):
    table.save(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(UserError, match=f"{name} is missing: write it with 'osr test'"):
        PredictionTable.load(tmp_path)


def npy(array) -> bytes:
    np.save(file := io.BytesIO(), array)
    return file.getvalue()


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


DAMAGE = {
    "empty csv": ("predictions.csv", lambda data: b""),
    "cut csv": ("predictions.csv", lambda data: data[:-30]),
    "csv that is no text": ("predictions.csv", lambda data: b"\xff\xfe\x00"),
    "other columns": ("predictions.csv", lambda data: data.replace(b"label", b"class", 1)),
    "no number": ("predictions.csv", lambda data: data.replace(b"0.9,", b"high,", 1)),
    "a row too few": ("predictions.csv", lambda data: b"\r\n".join(data.split(b"\r\n")[:-2])),
    "the columns before 0.2": ("predictions.csv", lambda data: data.replace(b"index,file,", b"index,", 1)),
    "numbers for labels, as before 0.2": (
        "predictions.csv",
        lambda data: data.replace(b"pets,cat,", b"pets,0,", 1),
    ),
    "unheard-of class": ("predictions.csv", lambda data: data.replace(b",cat,cat,", b",rat,cat,", 1)),
    "unheard-of set": ("predictions.csv", lambda data: data.replace(b",pets,", b",bats,", 1)),
    "sorted rows": (
        "predictions.csv",
        lambda data: b"\r\n".join([*data.split(b"\r\n")[:1], *data.split(b"\r\n")[2:0:-1], b""]),
    ),
    "a score that is no number": ("predictions.csv", lambda data: data.replace(b",0.31,", b",nan,", 1)),
    "a NUL": ("predictions.csv", lambda data: data.replace(b"0.9,", b"0.9\0,", 1)),
    "a plain array": ("evaluation.npz", lambda data: npy(np.zeros(3))),
    "cut npz": ("evaluation.npz", cut),
    "npz that is none": ("evaluation.npz", lambda data: b"no zip at all"),
    "empty npz": ("evaluation.npz", lambda data: b""),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_file_is_a_users_mistake(table, tmp_path, kind):
    table.save(tmp_path)
    name, damage = DAMAGE[kind]
    path = tmp_path / name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=r"(predictions\.csv|evaluation\.npz) is damaged .*'osr test'"):
        PredictionTable.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("logits", np.zeros((5, 3), np.float32)),
        ("logits", np.zeros(5, np.float32)),
        ("logits", np.full((5, 2), "a")),
        ("predicted_class", np.zeros(5)),
        ("predicted_class", np.array([0, 0, 1, 2, 0])),
        ("predicted_class", np.array([0, 0, -1, 1, 0])),
        ("predicted_class", np.zeros((5, 1), int)),
        ("nll", np.array(["a"] * 5)),
        ("nll", np.zeros(4)),
        ("class_names", np.array("cat")),
        ("class_names", np.array(["cat", "cat"])),
        ("class_names", np.array([["cat", 'a "dog", big']])),
        ("source_names", np.array([1, 2, 3])),
        ("groups", np.array("[]")),
        ("groups", np.array('{"far": 3}')),
        ("groups", np.array('{"far": ["nothing"]}')),
        ("groups", np.array('{"far": [["noise, white"]]}')),
        ("groups", np.array("[" * 9999)),
        ("score_name", np.array(["energy", "msp"])),
        ("threshold", np.zeros(2)),
        ("threshold", np.array(np.nan)),
        ("threshold", np.array("high")),
        ("threshold", np.array(1j)),
    ],
)
def test_arrays_that_do_not_fit_are_a_users_mistake(table, tmp_path, name, value):
    table.save(tmp_path)
    path = tmp_path / "evaluation.npz"
    with np.load(path) as file:
        arrays = {key: file[key] for key in file.files}
    np.savez(path, **(arrays | {name: value}))
    with pytest.raises(UserError, match=r"(predictions\.csv|evaluation\.npz) is damaged .*'osr test'"):
        PredictionTable.load(tmp_path)


def test_a_missing_array_is_named(table, tmp_path):
    table.save(tmp_path)
    path = tmp_path / "evaluation.npz"
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files if name != "nll"}
    np.savez(path, **arrays)
    with pytest.raises(UserError, match="nll"):
        PredictionTable.load(tmp_path)


def test_pickles_are_not_opened(table, tmp_path):
    table.save(tmp_path)
    np.savez(
        tmp_path / "evaluation.npz", class_names=np.array([{}], dtype=object), source_names=np.array(["pets"])
    )
    assert zipfile.is_zipfile(tmp_path / "evaluation.npz")
    with pytest.raises(UserError, match="allow_pickle=False"):
        PredictionTable.load(tmp_path)


@pytest.mark.parametrize("name", ["logits", "predicted_class", "nll", "class_names", "groups", "threshold"])
def test_an_array_larger_than_any_run_s_is_not_unpacked(table, tmp_path, name):
    table.save(tmp_path)
    path = tmp_path / "evaluation.npz"
    with np.load(path) as arrays:
        kept = dict(arrays)
    kept[name] = np.zeros(2**27, np.uint8)
    np.savez_compressed(path, **kept)
    assert path.stat().st_size < 2**18
    tracemalloc.start()
    with pytest.raises(UserError, match=rf"is damaged \({name} would unpack to 134,217,856 bytes"):
        PredictionTable.load(tmp_path)
    assert tracemalloc.get_traced_memory()[1] < 2**24  # numpy tells tracemalloc of its arrays
    tracemalloc.stop()
