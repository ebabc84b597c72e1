"""The prediction table, and the files it is saved to."""

import csv
import dataclasses
import zipfile

import numpy as np
import pytest

from osr_lightning.errors import UserError
from osr_lightning.evaluation.table import PredictionTable


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


def test_an_empty_table_survives(table, tmp_path):
    fields = ("source", "label", "predicted_class", "confidence", "nll", "logits")
    empty = dataclasses.replace(
        table,
        **{name: getattr(table, name)[:0] for name in fields},
        scores={name: score[:0] for name, score in table.scores.items()},
    )
    empty.save(tmp_path)
    assert_equal(PredictionTable.load(tmp_path), empty)


def test_the_columns_of_predictions_csv(table, tmp_path):
    table.save(tmp_path)
    with open(tmp_path / "predictions.csv", newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header == ["index", "source", "label", "prediction", "confidence", "score", "threshold", "msp"]
    assert rows[2] == [
        "2",
        "noise, white",
        "2",
        "2",
        "0.9999999999999999",
        "0.31",
        "0.30000000000000004",
        "0.2",
    ]
    assert len(rows) == 5


@pytest.mark.parametrize("name", ["predictions.csv", "evaluation.npz"])
def test_a_missing_file_is_named(table, tmp_path, name):
    table.save(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(UserError, match=f"{name} is missing: write it with 'osr test'"):
        PredictionTable.load(tmp_path)


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


DAMAGE = {
    "empty csv": ("predictions.csv", lambda data: b""),
    "cut csv": ("predictions.csv", lambda data: data[:-30]),
    "csv that is no text": ("predictions.csv", lambda data: b"\xff\xfe\x00"),
    "other columns": ("predictions.csv", lambda data: data.replace(b"label", b"class", 1)),
    "no number": ("predictions.csv", lambda data: data.replace(b"0.9,", b"high,", 1)),
    "a row too few": ("predictions.csv", lambda data: b"\r\n".join(data.split(b"\r\n")[:-2])),
    "unheard-of set": ("predictions.csv", lambda data: data.replace(b"pets", b"bats", 1)),
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
