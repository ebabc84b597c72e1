"""The rows of a test and of ``predict``."""

import csv
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import osr_lightning
from osr_lightning.recogniser.rows import (
    COLUMNS,
    file_of_cell,
    name_cell,
    open_rows,
    places_of_cells,
    write_rows,
)

NAMES = ("a,b", '=cmd|"x"', "two\nlines")


def written(path, **options):
    """What is in the file of three images: an accepted one, a rejected one, and one of no label."""
    rows = {
        "row": torch.tensor([0, 1, 2]),
        "source": options.pop("source", torch.tensor([0, 0, 1])),
        "label": torch.tensor([0, 3, -1]),
        "prediction": torch.tensor([2, 3, 1]),
        "confidence": torch.tensor([1 / 3, 0.5, 1.0], dtype=torch.float64),
        "p_value": np.array([0.75, 1 / 3, np.nan]),
    }
    scores = {
        "msp": torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64),
        "energy": torch.tensor([-1.5, 1e300, float("inf")], dtype=torch.float64),
        "entropy": torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64),
    }
    write_rows(path, rows, scores, classes=NAMES, deciding="energy", threshold=0.1 + 0.2, **options)
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def test_the_schema_is_that_of_a_test(tmp_path):
    files = ("x,1.png", 'y"2".png', "sub/three.png")
    header, *found = written(tmp_path / "new" / "p.csv", files=files, sources=("known", "noise, white"))
    assert header == [*COLUMNS, "msp", "entropy", "p_value"]
    threshold = "0.30000000000000004"
    assert found == [
        [
            "0",
            "x,1.png",
            "known",
            "a,b",
            "two\\nlines",
            "0.3333333333333333",
            "-1.5",
            threshold,
            "",
            "0.1",
            "1.0",
            "0.75",
        ],
        [
            *("1", 'y"2".png', "known", "unknown", "unknown", "0.5", "1e+300", threshold, "", "0.2", "2.0"),
            "0.3333333333333333",
        ],
        # no label is known
        [
            "2",
            "sub/three.png",
            "noise, white",
            "",
            '\'=cmd|"x"',
            "1.0",
            "inf",
            threshold,
            "",
            "0.3",
            "3.0",
            "",
        ],
    ]


def test_images_of_no_file_or_set_leave_their_columns_empty(tmp_path):
    _, *found = written(tmp_path / "p.csv")
    assert [row[1:3] for row in found] == [["", ""]] * 3
    assert [row[3] for row in found] == ["a,b", "unknown", ""]


def test_one_source_of_predictions_names_every_row(tmp_path):
    _, *found = written(tmp_path / "p.csv", source=torch.zeros(3, dtype=torch.int64), sources=("folder:x",))
    assert [row[2] for row in found] == ["folder:x"] * 3


@pytest.mark.parametrize(
    ("name", "cell"),
    [
        ("=1+1", "'=1+1"),
        ("@x", "'@x"),
        ("-x", "'-x"),
        ("+SUM(A1)", "'+SUM(A1)"),
        ("\t=1", "'\t'=1"),
        ("\uff1d1+1", "'\uff1d1+1"),
        ("'=1+1", "''=1+1"),  # no two names become one
        ("a;=1+1", "a;'=1+1"),  # a cell of its own where ; is between the cells
        ("a;'=1+1", "a;''=1+1"),
        ("a\n@b\t+c", "a\n'@b\t'+c"),
        ("=a;b;=c", "'=a;b;'=c"),
        ("a; =b", "a; =b"),
        ("'tis", "'tis"),
        ("a=1", "a=1"),
        ("-1", "-1"),  # a number is no formula
        ("-1.5", "-1.5"),
        ("-1-1", "'-1-1"),
        ("", ""),
    ],
)
def test_no_name_is_a_formula_and_every_name_is_found_again(name, cell):
    assert name_cell(name) == cell
    names = ("a", name, f"'{name}")
    places = places_of_cells(names)
    assert [places[name_cell(one)] for one in names] == [0, 1, 2]
    assert places_of_cells((name,))[name] == 0  # as an earlier version wrote it


@pytest.mark.parametrize(
    ("cell", "file"),
    [
        ("./=1.png", "=1.png"),
        ("=1.png", "=1.png"),
        ("./a", "./a"),
        ("a;'=1.png", "a;=1.png"),
        ("./=a;''=1.png", "=a;'=1.png"),
    ],
)
def test_a_file_is_found_again_by_its_cell(cell, file):
    assert file_of_cell(cell) == file


def test_only_csv_guards_against_formulas(tmp_path):
    for ending, expected in ((".csv", "'=1+1"), (".jsonl", '"=1+1"')):
        with open_rows(tmp_path / f"p{ending}", ["file", "label", "score"]) as write:
            write([("=a.png", "=1+1", -0.5)])
        text = (tmp_path / f"p{ending}").read_text()
        assert expected in text
        assert "-0.5" in text
        assert "'-0.5" not in text


@pytest.mark.parametrize("name", ["a;=1+1", "a;'=1+1", '"b";@x', "two\n=1", "tab\t+1", "=a;-b", "a;b"])
@pytest.mark.parametrize("between", [",", ";", "\t"])
def test_whatever_is_between_cells_none_begins_a_formula(tmp_path, name, between):
    path = tmp_path / "p.csv"
    with open_rows(path, ["index", "file", "label"]) as write:
        write([(0, f"photos/{name}.png", name)])
    with path.open(newline="") as file:
        for row in csv.reader(file, delimiter=between):
            assert not any(cell.startswith(("=", "+", "-", "@")) for cell in row)
    with path.open(newline="") as file:
        ((_, kept, label),) = list(csv.reader(file))[1:]
    assert file_of_cell(kept) == f"photos/{name}.png"
    assert places_of_cells(("other", name))[label] == 1


def test_tables_are_written_by_one_function():
    """It guards against formulas; the metrics have names of this package's own, and numbers."""
    package = Path(osr_lightning.__file__).parent
    writers = {
        path.name
        for path in package.rglob("*.py")
        if re.search(r"csv\.(writer|DictWriter)|to_csv", path.read_text(encoding="utf-8"))
    }
    assert writers == {"rows.py", "loggers.py"}


def test_a_carriage_return_in_a_name_ends_no_row(tmp_path):
    found = written(tmp_path / "p.csv", files=("a\rb.png", "\r", "c\r\nd"), sources=("k", "\r"))
    assert [row[1:3] for row in found[1:]] == [["a\rb.png", "k"], ["./\r", "k"], ["c\r\nd", "'\r"]]
    assert (tmp_path / "p.csv").read_bytes().count(b"\n") == 5
