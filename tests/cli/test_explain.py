"""The command `osr explain`: a page and JSON, and a sentence for what it cannot take."""

import json

import pytest
from PIL import Image
from recognisers import SHARED, make, pictures

from osr_lightning import load, save
from osr_lightning.__main__ import main
from osr_lightning.cli import explain as command

HOSTILE = "<img src=x onerror=document.title='run'>.png"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A checkpoint and three pictures, of which one has a name that would be markup."""
    folder = tmp_path_factory.mktemp("explain")
    recogniser = make(SHARED, "fisher")
    recogniser.spec = recogniser.spec._replace(classes=("cat", "<script>", "a,b\n=c"))
    save(recogniser, folder / "any.ckpt")
    (folder / "in").mkdir()
    for name, image in zip(("a.png", "b.png", HOSTILE), pictures(3).numpy(), strict=True):
        Image.fromarray(image.transpose(1, 2, 0)).save(folder / "in" / name)
    return folder


@pytest.fixture
def words(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return ["explain", "--ckpt_path", str(place / "any.ckpt"), "--device", "cpu"]


def error(capsys, words) -> str:
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_a_page_and_json_say_what_python_says(words, place, tmp_path, capsys):
    files = ["--output", "page.html", "--json", "told.json"]
    assert main([*words, str(place / "in"), *files]) == 0
    told = json.loads((tmp_path / "told.json").read_text())
    expected = load(place / "any.ckpt").explain(place / "in" / "a.png").to_json()
    first = next(one for one in told["images"] if one["file"].endswith("a.png"))
    assert {name: first[name] for name in expected if name != "file"} == {
        name: value for name, value in expected.items() if name != "file"
    }
    assert sum(part["contribution"] for part in first["parts"]) == pytest.approx(first["score"], rel=1e-6)
    assert "3 explained (" in capsys.readouterr().err
    page = (tmp_path / "page.html").read_text()
    assert "uncertainty of the logits" in page
    assert "No nearest images: the checkpoint keeps no known images" in page


def test_names_of_files_and_classes_are_text(words, place, tmp_path):
    assert main([*words, str(place / "in")]) == 0
    page = (tmp_path / "explain.html").read_text()
    assert "<img src=x" not in page
    assert page.count("<script>") == 2  # the page's own
    assert "&lt;img src=x" in page


def test_the_page_fits_and_shows_its_maps(words, place, tmp_path, tab):
    assert main([*words, str(place / "in")]) == 0
    for width in (390, 1280):
        for scheme in ("light", "dark"):
            tab.open((tmp_path / "explain.html").as_uri(), width, scheme)
            assert tab.overflow() <= 0
            assert tab.js("document.title").startswith("Why")
    assert tab.unspoken() == []
    assert tab.js("[...document.images].every((one) => one.complete && one.naturalWidth > 0)")
    shown = "getComputedStyle(document.querySelector('.over')).display"
    assert tab.js(shown) != "none"
    tab.js("document.getElementById('maps').click()")
    assert tab.js(shown) == "none"


def test_json_alone_goes_to_standard_output(words, place, tmp_path, capsys):
    assert main([*words, str(place / "in" / "a.png"), "--json", "-"]) == 0
    assert len(json.loads(capsys.readouterr().out)["images"]) == 1
    assert not list(tmp_path.iterdir())


def test_an_unreadable_image_is_told_beside_the_others(words, place, tmp_path, capsys):
    (tmp_path / "broken.png").write_text("no image")
    images = [str(place / "in" / "a.png"), "broken.png"]
    assert main([*words, *images, "--json", "told.json", "--output", "page.html"]) == 0
    told = json.loads((tmp_path / "told.json").read_text())["images"]
    assert [bool(one["error"]) for one in told] == [False, True]
    assert "Cannot read the image broken.png" in (tmp_path / "page.html").read_text()
    assert "1 unreadable" in capsys.readouterr().err
    assert "Cannot read the image broken.png" in error(capsys, [*words, "broken.png"])


def test_mistakes_are_one_sentence_and_write_nothing(words, place, tmp_path, capsys, monkeypatch):
    image = str(place / "in" / "a.png")
    graph = ["explain", "--ckpt_path", "model.onnx", image]
    assert "model.onnx is an exported graph" in error(capsys, graph)
    assert "the checkpoint (.ckpt)" in error(capsys, graph)
    assert "must end in .html" in error(capsys, [*words, image, "--output", "page.txt"])
    assert "must end in .json" in error(capsys, [*words, image, "--json", "page.html"])
    assert "a page goes to a file" in error(capsys, [*words, image, "--output", "-"])
    assert "there is no folder" in error(capsys, [*words, image, "--output", "no/page.html"])
    assert "Cannot read the image none.png" in error(capsys, [*words, "none.png"])
    assert "there is no option --jsn" in error(capsys, [*words, image, "--jsn", "x"])
    assert "was not calibrated with the score knn" in error(capsys, [*words, image, "--score", "knn"])
    (tmp_path / "empty").mkdir()
    assert "there are no images in empty" in error(capsys, [*words, "empty"])
    (tmp_path / "empty").rmdir()
    monkeypatch.setattr(command, "MOST", 2)
    assert "a page has 2 at most" in error(capsys, [*words, str(place / "in")])
    assert not list(tmp_path.iterdir())


def test_another_threshold_decides(words, place, capsys):
    image = str(place / "in" / "a.png")
    found = []
    for threshold in ("1e9", "-1"):
        assert main([*words, image, "--json", "-", "--threshold", threshold]) == 0
        found.append(json.loads(capsys.readouterr().out)["images"][0]["unknown"])
    assert found == [False, True]
