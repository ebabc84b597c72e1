"""The table that ``predict`` writes."""

import csv
from types import SimpleNamespace

import pytest
import torch

from osr_lightning.answers import COLUMNS
from osr_lightning.checkpoint import build
from osr_lightning.evaluation.predictions import write_predictions
from osr_lightning.facts import Facts

NAMES = ("a,b", '=cmd|"x"', "two\nlines")


@pytest.fixture
def recogniser():
    facts = Facts(NAMES, 1, 28, (0.5,), (0.25,))
    return build({"sampler": "single", "score": "energy", "fixed": 0.1 + 0.2}, facts)


def rows(**changes):
    return {
        "row": torch.tensor([0, 1, 2]),
        "source": torch.tensor([0, 0, 1]),
        "label": torch.tensor([0, 3, -1]),
        "prediction": torch.tensor([2, 3, 1]),
        "confidence": torch.tensor([1 / 3, 0.5, 1.0], dtype=torch.float64),
        "score/msp": torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64),
        "score/energy": torch.tensor([-1.5, 1e300, float("inf")], dtype=torch.float64),
        "score/entropy": torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64),
    } | changes


def read(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def test_the_schema_is_that_of_a_test(recogniser, tmp_path):
    files = ("x,1.png", 'y"2".png', "sub/three.png")
    datamodule = SimpleNamespace(
        predict_set=SimpleNamespace(files=files),
        tables=SimpleNamespace(
            selection=SimpleNamespace(predict=None, source_names=("known", "noise, white"))
        ),
    )
    header, *found = read(write_predictions(tmp_path / "new", rows(), recogniser, datamodule))
    assert header == [*COLUMNS, "msp", "entropy"]
    threshold = "0.30000000000000004"
    assert found == [
        [
            "0",
            "x,1.png",
            "known",
            "a,b",
            "two\nlines",
            "0.3333333333333333",
            "-1.5",
            threshold,
            "",
            "0.1",
            "1.0",
        ],
        ["1", 'y"2".png', "known", "unknown", "unknown", "0.5", "1e+300", threshold, "", "0.2", "2.0"],
        # no label is known
        ["2", "sub/three.png", "noise, white", "", '=cmd|"x"', "1.0", "inf", threshold, "", "0.3", "3.0"],
    ]


def test_images_of_no_file_or_set_leave_their_columns_empty(recogniser, tmp_path):
    _, *found = read(write_predictions(tmp_path, rows(), recogniser, SimpleNamespace()))
    assert [row[1:3] for row in found] == [["", ""]] * 3
    assert [row[3] for row in found] == ["a,b", "unknown", ""]


def test_one_source_of_predictions_names_every_row(recogniser, tmp_path):
    tables = SimpleNamespace(selection=SimpleNamespace(predict="folder:x", source_names=("known",)))
    only = rows(source=torch.zeros(3, dtype=torch.int64))
    _, *found = read(write_predictions(tmp_path, only, recogniser, SimpleNamespace(tables=tables)))
    assert [row[2] for row in found] == ["folder:x"] * 3
