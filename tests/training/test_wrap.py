"""Which output of a classifier is which class: what the user says, and what the images show."""

import json

import pytest

from osr_lightning.errors import UserError
from osr_lightning.training.wrap import choose_outputs, read_names


@pytest.mark.parametrize(
    "content",
    [
        "cat\ndog\n\nowl\n",
        "\ufeffcat\r\n dog \r\nowl",
        '["cat", "dog", "owl"]',
        '{"0": "cat", "2": "owl", "1": "dog"}',
        '{"owl": 2, "cat": 0, "dog": 1}',
    ],
)
def test_names_are_read(content, tmp_path):
    (tmp_path / "names").write_text(content, encoding="utf-8")
    assert read_names(tmp_path / "names") == ("cat", "dog", "owl")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ('{"cat": 0, "dog": 2}', "no JSON list of names"),
        ('{"cat": "dog"}', "no JSON list of names"),
        ("[1, 2]", "no JSON list of names"),
        ('["cat"', "no JSON list of names"),
        ("cat\ncat\n", "names 'cat' twice"),
    ],
)
def test_names_that_are_none_are_refused(content, sentence, tmp_path):
    (tmp_path / "names").write_text(content)
    with pytest.raises(UserError, match=sentence):
        read_names(tmp_path / "names")
    with pytest.raises(UserError, match=r"cannot be read \(No such file or directory\); name another file"):
        read_names(tmp_path / "nowhere")
    (tmp_path / "binary").write_bytes(b"\x80\x02")
    with pytest.raises(UserError, match="is no text: write a name a line, in UTF-8"):
        read_names(tmp_path / "binary")


def test_outputs_are_found_by_name():
    names = ("owl", "cat", "e\u0301lan", "dog")
    assert choose_outputs(["cat", "\u00e9lan"], ("owl", "cat", "\u00e9lan", "dog"), 4) == [1, 2]
    assert choose_outputs(["cat", "dog", "owl"], None, 3) is None
    with pytest.raises(UserError, match=r"4 outputs, and there are 3 known classes: .* --classes FILE"):
        choose_outputs(["cat", "dog", "owl"], None, 4)
    with pytest.raises(UserError, match="4 names, and the classifier 5 outputs"):
        choose_outputs(["cat", "dog"], names, 5)
    with pytest.raises(UserError, match="no 'cats', which is a known class; did you mean 'cat'"):
        choose_outputs(["cats", "dog"], names, 4)


def test_names_of_a_json_file_are_those_that_json_says(tmp_path):
    (tmp_path / "names.json").write_text(json.dumps([f"class {n}" for n in range(12)]))
    assert choose_outputs(["class 11", "class 2"], read_names(tmp_path / "names.json"), 12) == [11, 2]
