"""`osr review`: groups by features, the images that are looked at again, and the page in a browser."""

import base64
import csv
import io
import json
import os
import re
import shutil

import numpy as np
import photos
import pytest
import recognisers
from PIL import Image
from quick import FAST
from sklearn.metrics import adjusted_rand_score

from osr_lightning import load, save
from osr_lightning.__main__ import main
from osr_lightning.deploy.review.groups import NONE, group
from osr_lightning.deploy.review.images import Answered, Seen, choose, look
from osr_lightning.deploy.review.page import render
from osr_lightning.errors import UserError
from osr_lightning.recogniser.labels import read_labels
from osr_lightning.recogniser.rows import file_of_cell, name_cell, path_cell

# groups -----------------------------------------------------------------------------------------------


def directions(sizes, spread, seed=0, width=64):
    """Unit vectors about some centres, and which centre each is of."""
    rng = np.random.default_rng(seed)
    truth = np.repeat(np.arange(len(sizes)), sizes)
    centres = rng.normal(size=(len(sizes), width))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    noise = rng.normal(size=(len(truth), width)) / width**0.5
    found = centres[truth] + np.asarray(spread)[truth, None] * noise
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32), truth


@pytest.mark.parametrize("sizes", [(20, 20), (60, 25, 10), (30, 30, 30, 30, 12)])
def test_images_about_a_direction_are_a_group_whatever_their_order(sizes):
    vectors, truth = directions(sizes, [0.7] * len(sizes))
    found = group(vectors)
    assert adjusted_rand_score(truth, found.labels) > 0.95
    order = np.random.default_rng(1).permutation(len(truth))
    again = group(vectors[order] * 5)  # of any length
    assert adjusted_rand_score(found.labels[order], again.labels) == 1


def test_coherence_is_the_mean_cosine_and_orders_the_groups_with_their_size():
    vectors, truth = directions((30, 40, 12), (0.4, 1.2, 0.4))
    found = group(vectors)
    assert adjusted_rand_score(truth, found.labels) > 0.9
    for number, coherence in enumerate(found.coherence):
        own = vectors[found.labels == number].astype(np.float64)
        pairs = (own @ own.T)[np.triu_indices(len(own), 1)]
        assert coherence == pytest.approx(pairs.mean(), abs=1e-6)
        mean = own.mean(0) / np.linalg.norm(own.mean(0))
        assert found.typical[found.labels == number] == pytest.approx(own @ mean, abs=1e-6)
    sizes = np.bincount(found.labels[found.labels >= 0])
    assert list(found.coherence * sizes) == sorted(found.coherence * sizes, reverse=True)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
def test_few_images_are_one_group_or_none(count):
    vectors, _ = directions((count,), (0.5,))
    found = group(vectors)
    assert found.labels.shape == (count,)
    assert len(found.coherence) == (1 if count >= 3 else 0) or count > 5
    if count < 3:
        assert (found.labels == NONE).all()


def test_images_that_are_all_the_same_are_one_group():
    found = group(np.tile([[0.6, 0.8]], (12, 1)))
    assert set(found.labels) == {0}
    assert found.coherence == pytest.approx([1])


# which images -----------------------------------------------------------------------------------------


NASTY = [
    "a;=b, 'c'.png",
    'quo"te\\n.png',
    "=1+1.png",
    "new\nline.png",
    "</script><script>alert(1)</script>.png",
]


@pytest.fixture(scope="module")
def recogniser():
    return recognisers.make(recognisers.SINGLE)


@pytest.fixture(scope="module")
def answered(recogniser, tmp_path_factory):
    """A folder with a checkpoint, pictures of all kinds of names, and what predict says of them."""
    here = tmp_path_factory.mktemp("answered")
    save(recogniser, here / "any.ckpt")
    names = [*NASTY, *(f"{number:02}.png" for number in range(40))]
    for name, pixels in zip(names, recognisers.pictures(len(names), seed=3), strict=True):
        (here / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(here / "in" / name)
    (here / "in" / "damaged.png").write_bytes(b"no picture")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        assert main(["predict", "--ckpt_path", "any.ckpt", "in", "--output", "answers.csv"]) == 0
    return here


@pytest.fixture
def here(answered, tmp_path, monkeypatch):
    """A copy of it as the working folder."""
    shutil.copytree(answered, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def rows(path="answers.csv"):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def content(page="review.html"):
    """What the page's script is given."""
    with open(page, encoding="utf-8") as file:
        return json.loads(data_of(file.read()))


def data_of(page):
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    return found


REVIEW = ["review", "--ckpt_path", "any.ckpt"]


def test_the_page_has_the_unknown_images_and_known_ones_that_nearly_were(here, recogniser, capsys):
    assert main([*REVIEW, "answers.csv"]) == 0
    found = content()
    answers = {file_of_cell(row["file"]): row for row in rows() if not row["error"]}
    unknown = {name for name, row in answers.items() if row["prediction"] == "unknown"}
    shown = {file_of_cell(image["cell"]): image for image in found["images"]}
    assert unknown == {name for name, image in shown.items() if image["known"] < 0}
    known = sorted(
        (float(row["score"]) for name, row in answers.items() if name not in unknown), reverse=True
    )
    assert [image["score"] for image in found["images"] if image["known"] >= 0] == known[:24]
    assert all(image["score"] == float(answers[name]["score"]) for name, image in shown.items())
    accepted = [found["images"][at]["score"] for at in found["accepted"]]
    assert accepted == sorted(float(answers[name]["score"]) for name in unknown)[:24]
    assert found["classes"] == list(recogniser.spec.classes)
    assert float(found["threshold_cell"]) == recogniser.threshold.value
    for image in found["images"]:
        with Image.open(io.BytesIO(base64.b64decode(image["thumbnail"]))) as picture:
            assert (picture.format, picture.size) == ("JPEG", (20, 20))
    said = capsys.readouterr().out
    assert f"{len(unknown)} of {len(answers)} images are called unknown" in said
    assert f"review.html: {len(found['groups'])} group" in said


def test_what_a_group_is_like_is_counted_from_its_images(here):
    assert main([*REVIEW, "answers.csv"]) == 0
    found = content()
    assert found["groups"]
    for number, facts in enumerate(found["groups"]):
        own = [image for image in found["images"] if image["group"] == number]
        scores = [image["score"] for image in own]
        assert (facts["low"], facts["high"]) == (min(scores), max(scores))
        for like in facts["like"]:
            assert like["share"] == pytest.approx(np.mean([image["like"] == like["class"] for image in own]))
    assert sorted({image["group"] for image in found["images"]} - {-1}) == list(range(len(found["groups"])))


def test_a_spreadsheet_s_table_and_folders_give_the_page_that_predict_s_own_gives(here):
    assert main([*REVIEW, "answers.csv"]) == 0
    expected = content()
    with open("answers.csv", newline="") as file:
        table = list(csv.reader(file))
    for row in table[1:]:
        row[5:8] = [cell.replace(".", ",") for cell in row[5:8]]
    with open("excel.csv", "w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file, delimiter=";").writerows(table)
    assert main([*REVIEW, "excel.csv", "--output", "excel.html"]) == 0
    assert main([*REVIEW, "in", "--output", "folder.html"]) == 0
    assert main([*REVIEW, "answers.csv", "in", "excel.csv", "--output", "both.html"]) == 0
    for page in ("excel.html", "folder.html", "both.html"):
        found = content(page)
        assert {image["cell"]: image["group"] for image in found["images"]} == {
            image["cell"]: image["group"] for image in expected["images"]
        }


def test_files_are_found_from_the_table_too_and_those_that_are_gone_are_named(here, monkeypatch, capsys):
    elsewhere = here.parent / "elsewhere"
    elsewhere.mkdir()
    unknown = [row["file"] for row in rows() if row["prediction"] == "unknown" and row["file"][3:5].isdigit()]
    for name in unknown[:2]:
        (here / name).unlink()
    monkeypatch.chdir(elsewhere)
    words = ["review", "--ckpt_path", str(here / "any.ckpt"), str(here / "answers.csv")]
    assert main(words) == 0
    assert re.search(rf"2 of \d+ images are gone \(.*{unknown[0]}, .*{unknown[1]}\)", capsys.readouterr().out)
    found = content()
    assert "2 of" in found["notes"]
    assert all((here / "in").samefile(image["file"].rpartition("/")[0]) for image in found["images"][:3])
    assert not {
        name for name in unknown[:2] if any(image["file"].endswith(name) for image in found["images"])
    }
    shutil.rmtree(here / "in")
    before = (elsewhere / "review.html").read_bytes()
    assert main(words) == 2
    assert re.search(
        r"osr: (\d+) of \1 images are gone \(in/", capsys.readouterr().err.replace("error: ", "osr: ")
    )
    assert (elsewhere / "review.html").read_bytes() == before


def test_a_file_is_found_again_whatever_its_name_is(here, capsys):
    unknown = next(row["file"] for row in rows() if row["prediction"] == "unknown")
    odd = [here / "odd" / os.fsdecode(name) for name in (b"bad\xff.png", b"a;'=b.png", b"c\\xffd.png")]
    odd[0].parent.mkdir()
    for path in odd:
        shutil.copy(unknown, path)
    assert main(["predict", "--ckpt_path", "any.ckpt", "odd", "--output", "odd.csv"]) == 0
    for given in ("odd.csv", "odd"):
        assert main([*REVIEW, given]) == 0
        assert "gone" not in capsys.readouterr().out
        cells = [image["cell"] for image in content()["images"]]
        with open("labels.csv", "w", newline="") as file:
            csv.writer(file).writerows([("file", "label"), *((cell, "hat") for cell in cells)])
        assert {path.resolve() for path in read_labels("labels.csv").files["hat"]} == {*odd}


def test_images_that_could_not_be_read_are_counted(here, capsys):
    for given in ("answers.csv", "in"):
        assert main([*REVIEW, given]) == 0
        assert "1 further image could not be read." in capsys.readouterr().out
        assert "1 further image could not be read." in content()["notes"]


def test_of_too_many_images_so_many_are_drawn(here, capsys):
    assert main([*REVIEW, "answers.csv", "--most", "7"]) == 0
    assert sum(image["known"] < 0 for image in content()["images"]) == 7
    assert "Shown are 7 of them, drawn at random (--most)." in capsys.readouterr().out


def test_nothing_unknown_gives_no_page(here, capsys):
    known = [row for row in rows() if row["prediction"] != "unknown"]
    with open("known.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, known[0].keys())
        writer.writeheader()
        writer.writerows(known)
    assert main([*REVIEW, "known.csv"]) == 0
    assert "is called unknown: there is nothing to review, and no page" in capsys.readouterr().out
    assert not (here / "review.html").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["gone.csv"], "there is no file gone.csv; write it with osr predict"),
        (["in", "--output", "review.txt"], "--output review.txt: its name must end in .html"),
        (["in", "--output", "gone/review.html"], "there is no folder"),
        (["in", "--most", "0"], "--most must be at least 1, got 0"),
        (["in", "--workers", "0"], "--workers must be at least 1, got 0"),
        (["answers.jsonl"], "answers.jsonl is no CSV: predict again with --output answers.csv"),
        (["in/damaged.png"], "no image in what was given that could be read"),
        (["answers.csv", "--score", "knn"], "not calibrated with the score knn"),
    ],
)
def test_mistakes_are_told_in_a_sentence(words, said, here, capsys):
    assert main([*REVIEW, *words]) == 2
    assert said in capsys.readouterr().err
    assert not list(here.glob("*.html"))


def test_a_table_of_another_checkpoint_or_of_a_source_is_refused(here, recogniser, capsys):
    text = (here / "answers.csv").read_text()
    (here / "other.csv").write_text(text.replace(repr(recogniser.threshold.value), "0.25"))
    assert main([*REVIEW, "other.csv"]) == 2
    assert re.search(
        r"other\.csv, line 2: the threshold was 0\.25, that of the checkpoint", capsys.readouterr().err
    )
    (here / "source.csv").write_text(re.sub(r"^(\d+),in/\d+\.png", r"\1,", text, flags=re.MULTILINE))
    assert main([*REVIEW, "source.csv"]) == 2
    assert "its images have no files, as they are of a source" in capsys.readouterr().err
    (here / "classes.csv").write_text(text.replace(",unknown,", ",strange,"))
    assert main([*REVIEW, "classes.csv"]) == 2
    assert "'strange' is no class of the checkpoint" in capsys.readouterr().err


def test_an_exported_graph_is_refused(here, capsys):
    (here / "any.onnx").write_bytes(b"")
    assert main(["review", "--ckpt_path", "any.onnx", "in"]) == 2
    assert "any.onnx gives no features" in capsys.readouterr().err


def test_a_file_named_twice_is_one_image(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    image = Answered(tmp_path / "a.png", 2.0, -1)
    assert choose([image, image], 5).images == [image]
    with pytest.raises(UserError, match=r"1 of 1 images are gone \(.*b\.png\); run from the folder"):
        choose([Answered(tmp_path / "b.png", 2.0, -1)], 5)


# a backbone ---------------------------------------------------------------------------------------------


def test_a_backbone_s_centred_directions_group_what_it_has_not_learned(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    photos.write_photos(tmp_path / "pictures")
    photos.write_photos(tmp_path / "new", {"night": (20, 20, 40), "snow": (250, 250, 250)}, count=12, seed=1)
    words = [*photos.backbone_options(photos.write_weights(tmp_path / "small.pth")), *FAST]
    words += ["--data.known=folder:pictures", "--model.alpha=0.2", "--trainer.max_epochs=2"]
    assert main(["run", *words, "--trainer.default_root_dir=."]) == 0
    (ckpt,) = (tmp_path / "lightning_logs").glob("*/*/checkpoints/best.ckpt")
    assert main(["review", "--ckpt_path", str(ckpt), "new", "pictures"]) == 0
    images = [
        image for image in content()["images"] if image["known"] < 0 and image["file"].startswith("new")
    ]
    assert len(images) >= 20
    truth = [image["file"].split("/")[1] for image in images]
    assert adjusted_rand_score(truth, [image["group"] for image in images]) > 0.8

    recogniser = load(ckpt)
    (seen,) = look(recogniser, [Answered(tmp_path / "new" / "snow" / "000.png", 1.0, -1)])
    import torch

    with torch.no_grad():
        pixels = torch.from_numpy(recogniser.prepare(tmp_path / "new" / "snow" / "000.png"))[None]
        network = recogniser.sampler.network
        whole = network.body(recogniser.standardise(pixels))
        raw = whole[:, : len(network.direction.mean)] - network.direction.mean
    assert seen.features == pytest.approx((raw / raw.norm()).numpy()[0], abs=1e-5)


# the page -----------------------------------------------------------------------------------------------


def reviewed(recogniser, names, groups=(0, 0, 0, 1, 1, 1, 1, -1), known=2, classes=None):
    """A page of small pictures: unknown ones in groups, and known ones."""
    from pathlib import Path

    from osr_lightning.deploy.review.groups import Groups

    rng = np.random.default_rng(0)
    file = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(file, "JPEG")
    seen = []
    threshold = recogniser.threshold.value
    for place in range(len(groups) + known):
        unknown = place < len(groups)
        score = threshold + (1 + place if unknown else -0.01 * place)
        image = Answered(Path(names[place]), score, -1 if unknown else place % 3)
        seen.append(Seen(image, rng.normal(size=4), np.array([0.5, 0.3, 0.2]), file.getvalue()))
    labels = np.array(groups)
    found = Groups(labels, np.full(max(groups) + 1, 0.5), np.linspace(1, 0, len(groups)))
    spec = recogniser.spec if classes is None else recogniser.spec._replace(classes=classes)
    return render(seen, found, spec, recogniser.threshold, "8 of 10 images are called unknown.")


EVIL = (
    "</script><script>document.title='hit'</script>",
    '"><img src=x onerror="document.title=\'hit\'">',
    "a\\b'c`${1}",
)


def test_names_cannot_leave_the_data(recogniser):
    names = [*NASTY, *EVIL, "a.png", "b.png"]
    page = reviewed(recogniser, names, classes=EVIL)
    assert page.count("<script") == 2
    assert page.count("</script") == 2
    found = data_of(page)
    assert "<" not in found
    assert json.loads(found)["classes"] == list(EVIL)
    assert {image["file"] for image in json.loads(found)["images"]} == set(names)
    assert "default-src 'none'" in page
    assert not re.search(r"""(?:src|href)\s*=\s*["']?(?:https?:)?//""", page)


CODES = {"Tab": 9, "Enter": 13, "Escape": 27, " ": 32, "End": 35, "Home": 36}
CODES |= {f"Arrow{way}": code for code, way in enumerate(("Left", "Up", "Right", "Down"), 37)}
# what would be downloaded is kept instead
CATCH = """window.written = []; HTMLAnchorElement.prototype.click = () => {};
URL.createObjectURL = (blob) => { written.push(blob); return "blob:none"; }"""


class Page:
    """The page in a tab; keys go to what has the focus."""

    def __init__(self, tab, path, width=1280, scheme="light"):
        self.tab, self.js = tab, tab.js
        self.tab("Page.bringToFront")
        self.url = path.as_uri()
        self.tab.open(self.url, width, scheme)
        self.js(CATCH)

    def key(self, *keys, shift=False):
        for key in keys:
            code = CODES.get(key, ord(key[0].upper()))
            text = {"Enter": "\r"}.get(key, key if len(key) == 1 else "")
            common = {"key": key, "windowsVirtualKeyCode": code, "modifiers": 8 if shift else 0}
            self.tab("Input.dispatchKeyEvent", type="keyDown", **common, **({"text": text} if text else {}))
            self.tab("Input.dispatchKeyEvent", type="keyUp", **common)

    def type(self, text):
        self.tab("Input.insertText", text=text)

    def focus(self, selector):
        self.js(f"document.querySelector({json.dumps(selector)}).focus()")

    def table(self):
        """labels.csv, as the browser would download it."""
        self.js("document.querySelector('#download').click()")
        return self.js("written.at(-1).text()")

    def labels(self):
        """Its rows."""
        header, *found = csv.reader(io.StringIO(self.table(), newline=""), strict=True)
        assert header == ["file", "label", "threshold"]
        return found

    def places(self):
        return self.js("images.map((_, at) => placeOf(at))")

    def text(self, selector):
        return self.js(f"document.querySelector({json.dumps(selector)}).textContent")


FILES = [*NASTY, "5.png", "6.png", "7.png", "8.png", "9.png"]


@pytest.fixture
def shown(tab, recogniser, tmp_path):
    """Opens the page of eight unknown and two known images."""
    path = tmp_path / "review.html"
    path.write_text(reviewed(recogniser, FILES), encoding="utf-8")
    Page(tab, path).js("localStorage.clear()")  # of other tests, as files share it
    return lambda width=1280, scheme="light": Page(tab, path, width, scheme)


def rows_of(labels, recogniser):
    """What labels.csv has to hold of these images, by their place."""
    threshold = repr(recogniser.threshold.value)
    return [[name_cell(path_cell(FILES[at])), name_cell(label), threshold] for at, label in labels.items()]


def test_a_person_names_groups_and_sorts_images_with_the_mouse(shown, recogniser, tmp_path):
    page = shown()
    assert page.text("#labels") == "No image has a label yet: name a group"
    assert page.js("download.disabled")
    page.focus("#section-g0 input")
    page.type(" na,me \u00e9 ")
    assert page.text("#heading-g0") == "na,me \u00e9"
    page.js("sections.get('g0').grid.children[1].click()")
    assert page.text("#selected") == "1 image selected"
    page.js("known.click()")
    page.type("A,B")
    page.key("Enter")
    page.js("sections.get('g0').grid.children[1].click()")
    page.js("ignore.click()")
    page.js("[0, 1].forEach((at) => sections.get('g1').grid.children[at].click())")
    page.js("document.getElementById('new').click()")  # new is a word of the language
    page.type("=SUM(1;-2)")
    # a known image that was nearly rejected was right, and an image in no group joins one
    page.js("sections.get('near').grid.children[0].click()")
    page.js("known.click()")
    page.type("dog")
    page.key("Enter")
    page.js("sections.get('rest').grid.children[0].click()")
    page.js("move.click()")
    page.type("na,me")
    page.key("Enter")
    found = {0: "na,me \u00e9", 1: "a,b\n=c", 3: "=SUM(1;-2)", 4: "=SUM(1;-2)", 7: "na,me \u00e9", 8: "dog"}
    assert page.labels() == rows_of(found, recogniser)
    assert page.text("#labels") == "6 images with a label, 4 classes"
    # and osr extend reads what was meant
    (tmp_path / "labels.csv").write_text(page.table(), encoding="utf-8", newline="")
    for at in found:
        (tmp_path / FILES[at]).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / FILES[at]).write_bytes(b"")
    read = read_labels(tmp_path / "labels.csv", recogniser.threshold.value).files
    assert {label: [str(file.relative_to(tmp_path)) for file in files] for label, files in read.items()} == {
        label: [FILES[at] for at in found if found[at] == label] for label in found.values()
    }
    assert page.places()[5:7] == ["g1", "g1"]
    assert page.places()[2] == "ignored"


def test_everything_goes_by_keys(shown, recogniser):
    page = shown()
    assert page.tab.unspoken() == []
    page.focus("#section-g1 .image")
    page.key(" ", "ArrowRight", "ArrowRight")
    page.key("Enter", shift=True)
    assert page.text("#selected") == "3 images selected"
    page.key("Escape", "End", "i")  # of the last one, which has the focus
    assert page.places() == ["g0", "g0", "g0", "g1", "g1", "g1", "ignored", "rest", "near", "near"]
    assert page.js("document.activeElement.dataset.at") == "5"  # the next is at hand
    page.key("Home", "m")
    page.type("hat")
    page.key("ArrowDown")
    assert page.js("document.activeElement.textContent") == "New group \u201chat\u201d"
    page.key("Enter")
    assert page.places()[3] == "n0"
    page.focus("#section-g1 .image")
    page.key("a", "n")
    page.type("shoe")
    page.key("Enter")  # from the name to its images
    assert page.js("document.activeElement.dataset.at") == "4"
    page.key("k")
    page.type("cat")
    page.key("Enter")
    found = {3: "hat", 4: "cat", 5: "shoe"}
    assert page.labels() == rows_of(found, recogniser)
    page.focus("#section-known .image")
    page.key("b")
    assert page.places()[4] == "g1"
    page.focus("#section-g1 .image")
    page.key("u", "u")
    assert page.places()[4] == "n1"
    page.key("m", "Escape")
    assert not page.js("dialog.open")
    assert page.places()[4] == "n1"


def test_a_reload_loses_nothing_and_another_page_has_a_state_of_its_own(shown, tab, recogniser, tmp_path):
    page = shown()
    page.focus("#section-g0 input")
    page.type("hat")
    page.js("sections.get('g1').grid.children[0].click()")
    page.js("ignore.click()")
    expected = page.labels(), page.places()
    page = shown(390, "dark")
    assert (page.labels(), page.places()) == expected
    other = tmp_path / "other.html"
    other.write_text(reviewed(recogniser, FILES, (0, 0, 1, 1, 1, 1, 1, -1)), encoding="utf-8")
    assert set(Page(tab, other).places()) == {"g0", "g1", "rest", "near"}
    for kept in ("{", "[]", '{"places": {"0": "g7"}, "names": {}, "made": 0}', '{"places": {"99": "g0"}}'):
        page = shown()
        page.js(f"localStorage.setItem(KEY, {json.dumps(kept)})")
        assert set(shown().places()) == {"g0", "g1", "rest", "near"}, kept
    page = shown()
    page.focus("#section-g0 input")
    page.type("hat")
    page.js("restart.click()")
    assert page.text("#heading-g0") == "Group 1"
    page.js("undo()")
    assert page.text("#heading-g0") == "hat"


@pytest.mark.parametrize("name", ["unknown", " ignore "])
def test_a_name_that_says_that_nothing_is_learned_gives_no_label(name, shown):
    page = shown()
    page.focus("#section-g0 input")
    page.type(name)
    assert f"No class can be called {name.strip()}" in page.text("#hint-g0")
    assert page.js("download.disabled")


def test_names_run_nothing_and_are_shown_as_they_are(tab, recogniser, tmp_path):
    names = [*NASTY, *EVIL, "a.png", "b.png"]
    path = tmp_path / "evil.html"
    path.write_text(reviewed(recogniser, names, classes=EVIL), encoding="utf-8")
    page = Page(tab, path)
    page.focus("#section-g0 input")
    page.type(EVIL[0])
    page.js("sections.get('g1').grid.children[0].click()")
    page.js("known.click()")
    assert page.js("[...document.querySelectorAll('#options button')].map((b) => b.textContent)") == list(
        EVIL
    )
    page.key("Enter")
    assert page.js("document.title") == "Review of unknown images"
    assert page.js("document.querySelectorAll('img:not([src^=\"data:image/jpeg\"]), script').length") == 2
    assert page.text("#heading-g0") == EVIL[0]
    assert page.js("images.map((image) => image.file)") == names
    assert all(
        name in label
        for name, label in zip(
            names, page.js("images.map((_, at) => cards[at][0].getAttribute('aria-label'))"), strict=True
        )
    )
    assert [row[1] for row in page.labels()] == [name_cell(EVIL[0])] * 4


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_it_fits_and_everything_has_a_name(width, scheme, shown):
    page = shown(width, scheme)
    page.js("help.open = true; document.querySelector('.image').click()")
    assert page.tab.overflow() <= 0
    nameless = """[...document.querySelectorAll("button, input, [role=option], [role=listbox]")]
        .filter((one) => !one.getAttribute("aria-label") && !one.textContent.trim() && !one.labels?.length &&
        !document.getElementById(one.getAttribute("aria-labelledby"))?.textContent).length"""
    assert page.js(nameless) == 0
    assert page.js(
        "[...document.querySelectorAll('.grid')].every((grid) => !grid.children.length || "
        "grid.querySelectorAll('[tabindex=\"0\"]').length === 1)"
    )
