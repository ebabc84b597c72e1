"""labels.csv: what a person says of images, read as written, by hand or from a spreadsheet."""

import pytest

from osr_lightning.errors import UserError
from osr_lightning.recogniser.labels import read_labels
from osr_lightning.recogniser.rows import name_cell, name_of_cell


@pytest.fixture
def table(tmp_path):
    for name in ("a.png", "b.png", "c.png"):
        (tmp_path / name).touch()

    def write(text, encoding="utf-8"):
        path = tmp_path / "labels.csv"
        path.write_bytes(text.encode(encoding))
        return path

    return write


def names(labels):
    return {label: [file.name for file in files] for label, files in labels.files.items()}


def test_classes_and_what_is_ignored(table):
    found = read_labels(table("file,label\na.png,hat\nb.png,ignore\nc.png,unknown\na.png,hat\nb.png,\n\n"))
    assert names(found) == {"hat": ["a.png"]}
    assert found.ignored == 3


@pytest.mark.parametrize("label", ["Unknown", " UNKNOWN ", "Ignore", "ignore"])
def test_what_is_ignored_is_written_in_any_case(table, label):
    found = read_labels(table(f"file,label\na.png,hat\nb.png,{label}\n"))
    assert names(found) == {"hat": ["a.png"]}
    assert found.ignored == 1


def test_a_spreadsheets_table_is_read(table):
    text = "\ufefffile;label;threshold\r\na.png;hat;9,6927\r\nb.png;'=1+1;9,6927\r\n;;\r\n"
    assert names(read_labels(table(text), 9.69271)) == {"hat": ["a.png"], "=1+1": ["b.png"]}


def test_names_are_composed(table):
    assert names(read_labels(table("file,label\na.png,cafe\u0301\n"))) == {"caf\u00e9": ["a.png"]}


def test_files_are_found_from_the_working_folder_first(table, tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "a.png").touch()
    path = table("file,label\na.png,hat\n")
    monkeypatch.chdir(elsewhere)
    assert read_labels(path).files["hat"][0].resolve() == elsewhere / "a.png"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("file,class\na.png,hat\n", "no column label"),
        ("", "no column file, label"),
        ("file,label\nx.png,hat\ny.png,hat\na.png,hat\n", r"2 of the files .* are gone \(x.png, y.png\)"),
        ("file,label\na.png,hat\na.png,shoe\n", "line 3: .*a.png is called 'shoe' here and 'hat' before"),
        ("file,label\n,hat\n", "line 2: the row names no file"),
        ("file,label,threshold\na.png,hat,3.25\n", "line 2: the threshold was 3.25, .* another checkpoint"),
        ("file,label,threshold\na.png,hat,abc\n", "line 2: the threshold 'abc' is no number"),
    ],
)
def test_a_mistake_is_one_sentence(table, text, sentence):
    with pytest.raises(UserError, match=sentence):
        read_labels(table(text), 9.5)


def test_a_table_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="there is no file"):
        read_labels(tmp_path / "none.csv")
    with pytest.raises(UserError, match="an empty path names no labels"):
        read_labels("")


@pytest.mark.parametrize("name", ["hat", "=1+1", "'=1", "''=1", "-5", "a;=b", "@x", "'quoted'", "+1"])
def test_a_cell_gives_its_name_back(name):
    assert name_of_cell(name_cell(name)) == name


def test_a_label_that_is_not_in_utf_8_is_refused(table):
    with pytest.raises(
        UserError, match=r"labels\.csv, line 3: the label is not in UTF-8; save the table as CSV"
    ):
        read_labels(table("file;label\na.png;hat\nb.png;Größe\n", "cp1252"))
    assert names(read_labels(table("file;label\nb.png;Größe\n"))) == {"Größe": ["b.png"]}
