"""The report: what the page says, and that it needs nothing but itself."""

import base64
import dataclasses
import io
import json
import os
import re
import shlex
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from osr_lightning.__main__ import main
from osr_lightning.errors import UserError
from osr_lightning.evaluation.caption import Caption, read_caption
from osr_lightning.evaluation.compare import compare
from osr_lightning.evaluation.figures import Material, each_figure, save_figures
from osr_lightning.evaluation.figures.images import score_histograms
from osr_lightning.evaluation.measures import MEASURES
from osr_lightning.evaluation.mistakes import examples, save_pictures
from osr_lightning.evaluation.prediction_table import PredictionTable
from osr_lightning.evaluation.report import write as report
from osr_lightning.evaluation.report.effects import _known_verdict, _unknown_verdict, effects
from osr_lightning.evaluation.report.places import without_folders
from osr_lightning.evaluation.results import evaluate

PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
)


class Page(HTMLParser):
    """Rows of every table by its id, attributes of every tag, and the text outside of scripts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.attributes: list[tuple[str, str, str | None]] = []
        self.text, self.scripts = "", {}
        self.captions: list[str] = []
        self._caption = False
        self._id, self._script, self._cell = "", None, False
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, *pair) for pair in attrs]
        found = dict(attrs)
        if tag == "table":
            self._id = found["id"]
            self.tables[self._id] = []
        elif tag == "tr":
            self.tables[self._id].append([])
        elif tag in ("td", "th"):
            self.tables[self._id][-1].append("")
            self._cell = True
        elif tag in ("script", "style"):
            self._script = found.get("id", tag)
        elif tag == "figcaption":
            self.captions.append("")
            self._caption = True

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self._cell = False
        elif tag in ("script", "style"):
            self._script = None
        elif tag == "figcaption":
            self._caption = False

    def handle_data(self, data):
        if self._script:
            self.scripts[self._script] = self.scripts.get(self._script, "") + data
            return
        self.text += data
        if self._cell:
            self.tables[self._id][-1][-1] += data
        if self._caption:
            self.captions[-1] += data


def make_table(unknown=(20, 10), groups=None) -> PredictionTable:
    rng = np.random.default_rng(0)
    sizes = [60, *unknown]
    source = np.repeat(np.arange(len(sizes)), sizes)
    size = len(source)
    true = rng.integers(0, 3, size)
    return PredictionTable(
        class_names=("x", "y", "z"),
        source_names=("digits", "clothes", "<noise>")[: len(sizes)],
        groups=groups or {},
        score_name="energy",
        threshold=1.0,
        source=source,
        label=np.where(source == 0, true, 3),
        predicted_class=np.where(rng.random(size) < 0.8, true, (true + 1) % 3),
        confidence=rng.uniform(0.4, 1, size),
        nll=np.where(source == 0, 1.0, np.nan),
        scores={"energy": np.round(rng.normal(size=size) + 2 * (source > 0), 1), "msp": rng.random(size)},
        logits=rng.normal(size=(size, 3)).astype(np.float32),
    )


def make_run(folder, table, **changes):
    """Write a run folder and return its results."""
    results = {
        "schema_version": 2,
        "experiment": "mc_dropout",
        "checkpoint": "checkpoints/best.ckpt",
        "seed": 7,
        "classes": list(table.class_names),
        "model": {
            "class": "MCDropoutClassifier",
            "parameters": 1199882,
            "num_samples": 50,
            "masks": "shared",
        },
        "score": {"name": "energy"},
        "threshold": {
            "value": table.threshold,
            "method": "known_quantile",
            "target": 0.05,
            "calibrated_on": "validation split",
            "optimistic": False,
        },
        **evaluate(table, resamples=50),
        "timing": {"fit_s": 12.5, "calibrate_s": None, "test_s": 3.25, "images_per_s": 4000.0},
        "versions": {"python": "3.12.1", "torch": "2.6.0"},
    } | changes
    table.save(folder)
    (folder / "results.json").write_text(json.dumps(results, allow_nan=False))
    return results


def save_png(path, caption) -> None:
    info = PngInfo()
    for key, value in caption.metadata().items():
        info.add_text(key, value)
    Image.new("L", (700, 1)).save(path, pnginfo=info)


def read(folder) -> Page:
    return Page(report.write_report(folder).read_text(encoding="utf-8"))


def test_the_page_shows_the_numbers(tmp_path):
    results = make_run(tmp_path, make_table(groups={"far": ("clothes", "<noise>")}))
    page = read(tmp_path)
    open_set, low_high = results["open_set"], results["intervals"]["auroc"]
    # a measure's name is followed by what it says
    headline = {row[0].split(" ", 1)[0]: row[1:] for row in page.tables["headline"]}
    assert headline["AUROC"] == [f"{open_set['auroc']:.4f}", f"{low_high[0]:.4f} to {low_high[1]:.4f}"]
    assert headline["known"][0] == f"{open_set['known_accuracy']:.2%}"
    assert headline["closed-set"] == [f"{results['closed_set']['accuracy']:.2%}", "-"]
    # each value once: a measure that always equals another is named on that one's line
    named = [row[0] for row in page.tables["headline"]][2:]
    assert named[0] == "known accuracy known images accepted with the right class"
    assert named[1] == "unknown accuracy unknown images rejected; also called recall"
    assert [name.split(";")[0] for name in named] == [
        f"{measure.label} {measure.says}" for measure in MEASURES.values() if not measure.same_as
    ]
    for name, measure in MEASURES.items():
        if measure.same_as:
            assert any(line.endswith(f"; also called {measure.label}") for line in named), name
            assert open_set[name] == pytest.approx(open_set[measure.same_as])  # and results.json has both
    sets = {row[0]: row[1:] for row in page.tables["sets"]}
    noise = results["unknown"]["<noise>"]
    assert sets["<noise>"][:3] == ["10", f"{noise['unknown_accuracy']:.2%}", f"{noise['total_accuracy']:.2%}"]
    assert sets["<noise>"][-1] == f"{noise['fpr95_unknown']:.2%}"
    group = page.tables["groups"][1]
    assert group[:3] == ["far", "clothes, <noise>", f"{results['groups']['far']['unknown_accuracy']:.2%}"]
    scores = {row[0]: row[1:] for row in page.tables["scores"]}
    assert set(scores) == {"score", "energy (decides)", "msp"}
    assert scores["msp"][0] == f"{results['scores']['msp']['pooled']['auroc']:.4f}"
    assert scores["msp"][3] == f"{results['scores']['msp']['unknown']['<noise>']['auroc']:.4f}"


def test_the_page_says_what_was_run(tmp_path):
    make_run(tmp_path, make_table())
    (tmp_path / "config.yaml").write_text("model: <script>alert('&')</script>\n")
    page = read(tmp_path)
    for text in (
        "mc_dropout",
        "checkpoints/best.ckpt",
        "MCDropoutClassifier",
        "1,199,882",
        "seed 7",
        "torch 2.6.0",
    ):
        assert text in page.text
    assert "model: <script>alert('&')</script>" in page.text  # as text, not as a tag
    assert page.attributes.count(("script", "id", "sweep")) == 1


def test_the_verdict_is_one_sentence(tmp_path):
    results = make_run(tmp_path, make_table())
    sentence = report.verdict(results)
    assert sentence in read(tmp_path).text
    assert sentence.startswith(
        f"{results['open_set']['known_accuracy']:.2%} of the 60 known images are accepted"
    )
    assert f"{results['open_set']['unknown_accuracy']:.2%} of the 30 unknown images are rejected" in sentence


@pytest.mark.parametrize(
    ("rejected", "known", "unknown"),
    [
        (
            0.999,
            "nearly all are rejected: at this threshold the classifier knows nothing",
            "nearly all are rejected",
        ),
        (0.001, "nearly all are accepted", "nearly none are rejected: they pass for known images"),
    ],
)
def test_all_and_none_are_said_of_every_image_alone(rejected, known, unknown):
    assert (_known_verdict(rejected, 0.0), _unknown_verdict(rejected, 0.05)) == (known, unknown)


def test_a_page_and_its_histogram_tell_no_folder_that_the_images_are_in(tmp_path):
    table = make_table()
    table = dataclasses.replace(table, source_names=("folder:/home/me/shapes", *table.source_names[1:]))
    threshold = {"value": 1.0, "calibrated_on": "validation images: folder:/home/me/shapes"}
    make_run(tmp_path, table, threshold=threshold)
    assert "validation images: folder:…/shapes" in read(tmp_path).text
    assert "/home/me" not in (tmp_path / "report.html").read_text(encoding="utf-8")
    legend = score_histograms(Material(table=table)).axes[0].get_legend().get_texts()
    assert legend[0].get_text() == "folder:…/shapes (known, 60)"


@pytest.mark.parametrize("optimistic", [True, False])
def test_a_threshold_from_test_images_is_warned_of(tmp_path, optimistic):
    threshold = {
        "value": 1.0,
        "method": "optuna",
        "target": None,
        "calibrated_on": "test",
        "optimistic": optimistic,
    }
    make_run(tmp_path, make_table(), threshold=threshold)
    text = read(tmp_path).text
    assert ("Optimistic:" in text) == ("Test images chose this threshold." in text) == optimistic


def test_the_guarantee_and_what_was_achieved_are_shown(tmp_path):
    threshold = {"value": 1.0, "target": {"false_alarm": 2.0}, "guarantee": "At most 5% of knowns."}
    make_run(tmp_path, make_table(), threshold=threshold, achieved={"known_rejected": 0.0417, "bound": 0.06})
    text = read(tmp_path).text
    for part in ("At most 5% of knowns.", "false_alarm 2", "4.17% of the known images", "6.00%"):
        assert part in text


def test_the_figures_are_embedded_in_reading_order(tmp_path):
    make_run(tmp_path, make_table())
    folder = tmp_path / "figures"
    folder.mkdir()
    save_png(folder / "a_b.png", Caption(120, "Far <right>", wide=True))
    save_png(folder / "z.png", Caption(20, "Ünï → ok"))
    save_png(folder / "c.png", Caption(120))
    (folder / "old.png").write_bytes(PIXEL)
    (folder / "damaged.png").write_bytes(PIXEL[:20])
    page = read(tmp_path)
    alt, source = (
        [value for tag, attribute, value in page.attributes if (tag, attribute) == ("img", name)]
        for name in ("alt", "src")
    )
    assert alt == ["z", "a b", "c", "damaged", "old"]
    assert base64.b64decode(source[-1].removeprefix("data:image/png;base64,")) == PIXEL
    assert page.captions == ["Ünï → ok", "Far <right>", "", "", ""]
    assert page.attributes.count(("figure", "class", "wide")) == 1


@pytest.mark.parametrize(
    "text",
    [{"Description": "of a camera"}, {"Description": "x", "osr_order": "nan", "osr_wide": "yes"}],
    ids=["foreign", "damaged"],
)
def test_a_picture_of_other_origin_has_no_caption(tmp_path, text):
    path = tmp_path / "a.png"
    info = PngInfo()
    for key, value in text.items():
        info.add_text(key, value)
    Image.new("L", (1, 1)).save(path, pnginfo=info)
    assert read_caption(path) == Caption()


def test_nothing_is_fetched(tmp_path):
    make_run(tmp_path, make_table())
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "roc.png").write_bytes(PIXEL)
    html = report.write_report(tmp_path).read_text(encoding="utf-8")
    page = Page(html)
    links = [
        value for _, name, value in page.attributes if name in ("src", "href", "srcset", "action", "data")
    ]
    assert links
    assert all(link.startswith("data:") for link in links)
    assert not re.search(r"https?:|//[a-z]+\.|@import|url\(|fetch\(|XMLHttp", html)


def test_the_slider_holds_exact_accuracies(tmp_path):
    table = make_table()
    make_run(tmp_path, table)
    page = read(tmp_path)
    sweep = json.loads(page.scripts["sweep"])
    assert sweep["threshold"] == sorted(sweep["threshold"])
    assert sweep["threshold"][sweep["start"]] == table.threshold
    right = table.predicted_class == table.label
    for index, threshold in enumerate(sweep["threshold"]):
        accepted = table.score <= threshold
        answer = np.where(table.known, accepted & right, ~accepted)
        assert sweep["known"][index] == answer[table.known].mean()
        assert sweep["unknown"][index] == answer[~table.known].mean()
        assert sweep["total"][index] == answer.mean()
    assert (sweep["known"][0], sweep["unknown"][0], sweep["unknown"][-1]) == (0, 1, 0)
    limits = {name: value for tag, name, value in page.attributes if tag == "input"}
    assert (limits["min"], limits["max"]) == ("0", str(len(sweep["threshold"]) - 1))
    assert limits["value"] == str(sweep["start"])


def test_the_slider_has_about_as_many_positions_as_asked_for():
    sweep = report.threshold_sweep(make_table((3000, 3000)), positions=20)
    assert 20 <= len(sweep["threshold"]) <= 22
    assert {len(sweep[name]) for name in ("known", "unknown", "total")} == {len(sweep["threshold"])}


@pytest.mark.parametrize("threshold", [np.inf, -np.inf, np.finfo(float).max])
def test_a_threshold_beyond_all_scores(tmp_path, threshold):
    table = dataclasses.replace(make_table(), threshold=threshold)
    table.scores["energy"][0] = np.inf
    json.dumps(report.threshold_sweep(table), allow_nan=False)


@pytest.mark.parametrize("unknown", [(), (0, 0)])
def test_a_run_without_unknown_images(tmp_path, unknown):
    make_run(tmp_path, make_table(unknown))
    page = read(tmp_path)
    assert "no unknown images" in page.text
    assert [row[0].split(" ", 2)[:2] for row in page.tables["headline"][1:]] == [
        ["closed-set", "accuracy"],
        ["known", "accuracy"],
    ]
    assert len(page.tables["classes"]) == 1 + 3
    assert set(json.loads(page.scripts["sweep"])["unknown"]) == {None}
    assert "nan" not in page.text.lower()


def test_an_empty_test_set_and_nulls_everywhere(tmp_path):
    table = make_table()
    arrays = ("source", "label", "predicted_class", "confidence", "nll", "logits")
    empty = {name: getattr(table, name)[:0] for name in arrays}
    table = dataclasses.replace(table, **empty, scores={"energy": np.zeros(0)})
    results = make_run(tmp_path, table)
    for nulls in ({name: None for name in results if name != "schema_version"}, {}):
        (tmp_path / "results.json").write_text(json.dumps({"schema_version": 2} | nulls))
        text = read(tmp_path).text
        assert "None" not in text
        assert "Undefined" not in text


@pytest.mark.parametrize("name", ["results.json", "predictions.csv", "evaluation.npz"])
def test_a_missing_file_is_named(tmp_path, name):
    make_run(tmp_path, make_table())
    (tmp_path / name).unlink()
    with pytest.raises(UserError, match=re.escape(name)):
        report.write_report(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '{"schema_version": 1}', '{"schema_version": 3}', "null"])
def test_damaged_results_are_named(tmp_path, text):
    make_run(tmp_path, make_table())
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(UserError, match=r"results\.json is .*'osr test'"):
        report.write_report(tmp_path)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"open_set": [1, 2]}, "open_set"),
        ({"closed_set": "text"}, "closed_set"),
        ({"closed_set": {"per_class": [1]}}, "per_class"),
        ({"threshold": 0.5}, "threshold"),
        ({"unknown": {"noise": 3}}, "unknown"),
        ({"groups": {"far": None}}, "groups"),
        ({"groups": {"far": {"sets": 4}}}, "sets"),
        ({"scores": {"energy": [1]}}, "scores"),
        ({"intervals": []}, "intervals"),
        ({"warnings": 5}, "warnings"),
        ({"classes": [1, "x"]}, "classes"),
        ({"model": json.loads("[" * 900 + "]" * 900)}, "nested"),
        ({"model": {"x": json.loads('{"a":' * 50 + "1" + "}" * 50)}}, "nested"),
    ],
)
def test_results_of_another_kind_are_named(tmp_path, changes, word):
    results = make_run(tmp_path, make_table())
    (tmp_path / "results.json").write_text(json.dumps(results | changes))
    with pytest.raises(UserError, match=rf"results\.json is damaged .*{word}.*'osr test'"):
        report.write_report(tmp_path)


@pytest.mark.parametrize(
    "content", [b"[" * 100_000, b'{"a": "\xff"}', "{}".encode("utf-16"), b"\0", b"1" * 5000]
)
def test_results_that_cannot_be_parsed_are_named(tmp_path, content):
    make_run(tmp_path, make_table())
    (tmp_path / "results.json").write_bytes(content)
    with pytest.raises(UserError, match=r"results\.json is damaged .*'osr test'"):
        report.write_report(tmp_path)


@pytest.mark.parametrize("value", ["0.5", [1], True, float("nan"), float("inf"), 10**400, -(10**400)])
def test_what_is_no_number_shows_as_a_dash(tmp_path, value):
    results = make_run(tmp_path, make_table())
    changes = {
        "open_set": results["open_set"] | {"auroc": value, "count_known": value, "count_unknown": value},
        "intervals": {"auroc": value, "oscr": [value, value], "known_accuracy": [1]},
        "timing": {"test_s": value},
    }
    (tmp_path / "results.json").write_text(json.dumps(results | changes))
    page = read(tmp_path)
    assert "of the - known images" in page.text
    assert "test - s" in " ".join(page.text.split())


@pytest.mark.parametrize("kept", ["schema_version", "threshold", "open_set", "experiment"])
def test_results_that_lack_almost_everything_make_a_page(tmp_path, kept):
    results = make_run(tmp_path, make_table())
    (tmp_path / "results.json").write_text(json.dumps({"schema_version": 2, kept: results[kept]}))
    assert "threshold" in read(tmp_path).text


def test_text_that_is_no_utf8_is_shown_with_backslashes(tmp_path):
    make_run(tmp_path, make_table(), experiment="a\ud800b\udcff")
    (tmp_path / "config.yaml").write_bytes(b"name: \xff\xfe")
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / os.fsdecode(b"\xff.png")).write_bytes(b"no picture")
    (tmp_path / "figures" / "folder.png").mkdir()
    text = read(tmp_path).text
    assert r"a\ud800b\udcff" in text
    assert r"name: \xff\xfe" in text


HOSTILE = ("</script><script>alert(1)</script>", '<img src=x onerror="alert(2)">', "'><svg/onload=alert(3)>")


def test_names_are_text_whatever_they_hold(tmp_path):
    table = dataclasses.replace(
        make_table(groups={HOSTILE[2]: HOSTILE[:2]}),
        class_names=HOSTILE,
        source_names=("digits", *HOSTILE[:2]),
    )
    changes = {"warnings": [f"3.0% of the test images of {HOSTILE[1]} are rejected"]}
    changes |= {"experiment": HOSTILE[0], "checkpoint": HOSTILE[2]}
    make_run(tmp_path, table, **changes)
    (tmp_path / "config.yaml").write_text("\n".join(HOSTILE))
    html = report.write_report(tmp_path).read_text(encoding="utf-8")
    hostile, harmless = Page(html), tmp_path / "harmless"
    make_run(harmless, make_table(groups={"far": ("clothes", "<noise>")}), warnings=["one"])
    (harmless / "config.yaml").write_text("model: 1")
    # the names added no tag and no attribute
    assert [pair[:2] for pair in hostile.attributes] == [pair[:2] for pair in read(harmless).attributes]
    for name in HOSTILE:
        assert name not in html
        assert name in hostile.text
    assert hostile.tables["sets"][2][0] == HOSTILE[1]
    assert [row[0] for row in hostile.tables["classes"]][1:] == list(HOSTILE)


def test_every_class_has_a_row(tmp_path):
    table = make_table()
    make_run(tmp_path, table)
    header, *rows = read(tmp_path).tables["classes"]
    assert header[:4] == ["class", "images", "accuracy, none rejected", "rejected"]
    assert header[4:] == ["accepted and right", "mistaken most often for"]
    assert [row[0] for row in rows] == ["x", "y", "z"]
    mine = table.label == 1
    right, rejected = (table.predicted_class[mine] == 1).mean(), table.rejected[mine].mean()
    accepted, wrong = (table.prediction[mine] == 1).mean(), (table.predicted_class[mine] == 2).sum()
    assert wrong > 1
    assert rows[1][1:] == [
        str(mine.sum()),
        f"{right:.2%}",
        f"{rejected:.2%}",
        f"{accepted:.2%}",
        f"z: 100% of {wrong} errors",
    ]


ALL = "all are rejected"


@pytest.mark.parametrize(
    ("threshold", "known", "noise"),
    [
        (-99, "all are rejected: at this threshold the classifier knows nothing", ALL),
        (-0.3, "most are rejected: the threshold is too low", "most are rejected"),
        (1, "most are accepted, {wrong} with a wrong class", "most are rejected"),
        (
            99,
            "all are accepted, {wrong} with a wrong class",
            "none are rejected: they pass for known images",
        ),
    ],
)
def test_what_the_threshold_did_to_each_set_is_said_in_words(tmp_path, threshold, known, noise):
    table = dataclasses.replace(make_table(), threshold=threshold)
    table.scores["energy"][:20] += 1
    make_run(tmp_path, table)
    _, digits, clothes, found = read(tmp_path).tables["effects"]
    right = (table.prediction == table.label)[table.known].sum()
    assert digits[:3] == ["digits (known)", "60", f"{right} ({right / 60:.2%})"]
    wrong = table.known & ~table.rejected & (table.predicted_class != table.label)
    assert (digits[4], found[4]) == (known.format(wrong=f"{wrong.sum() / 60:.0%}"), noise)
    mask = table.source == 1
    rejected = table.rejected[mask]
    assert clothes[1:4] == ["20", f"{rejected.sum()} ({rejected.mean():.2%})", f"{rejected.mean():.2%}"]
    taken = np.bincount(table.predicted_class[mask & ~table.rejected], minlength=3)
    if taken.any():
        assert clothes[5].startswith(f"{'xyz'[taken.argmax()]}: {taken.max() / taken.sum():.0%}")
        assert clothes[5].endswith(f" of {taken.sum()} accepted")
    else:
        assert clothes[5] == "-"


def test_unknown_images_rejected_no_more_often_than_known_ones_are_said_to_be():
    table = make_table()
    table.scores["energy"][table.source == 2] = np.where(np.arange(10) < 2, 9, -9)
    table.scores["energy"][table.known] = np.where(np.arange(60) < 20, 9, -9)
    assert effects(table)[2].verdict == (
        "rejected no more often than known images: they pass for known images"
    )
    empty = dataclasses.replace(make_table((0,)))
    assert effects(empty)[1] == ("clothes", "unknown", 0, 0, None, "", "")


def test_what_a_person_asks_comes_first(tmp_path):
    """How many were right, how many of each unknown set were caught, an example of each mistake."""
    table = make_table()
    make_run(tmp_path, table)
    pixels = np.arange(200, dtype=np.uint8).repeat(12).reshape(-1, 1, 4, 3)
    paths = save_pictures(table, lambda rows: pixels[rows], tmp_path)
    html = report.write_report(tmp_path).read_text(encoding="utf-8")
    places = [html.index(f'id="{name}"') for name in ("verdict", "effects", "mistakes", "slider", "sets")]
    assert [*places, html.index('id="measures"')] == sorted([*places, html.index('id="measures"')])
    assert '<details id="measures">' in html  # folded
    accepted = ~table.known & ~table.rejected
    worst = int(np.flatnonzero(accepted)[table.score[accepted].argmin()])
    first, *_ = examples(table)
    assert (first.kind, first.mistakes, first.images) == ("unknown, yet accepted", accepted.sum(), 30)
    assert (first.row, first.truth) == (worst, table.source_names[table.source[worst]])
    assert first.answer == table.class_names[table.predicted_class[worst]]
    assert first.score == table.score[worst]
    page = Page(html)
    assert f"unknown, yet accepted: {accepted.sum()} of 30" in " ".join(page.text.split())
    pictures = [value for tag, name, value in page.attributes if (tag, name) == ("img", "src")]
    assert len(pictures) == len(paths) == 3
    shown = Image.open(io.BytesIO(base64.b64decode(pictures[0].partition(",")[2])))
    np.testing.assert_array_equal(np.asarray(shown), pixels[worst, 0])


def test_a_picture_of_another_test_is_not_shown(tmp_path):
    """A folder that is tested once more keeps those of before, which may be of other images."""
    table = make_table()
    make_run(tmp_path, table)
    rows = {example.row for example in examples(table)}
    other = next(row for row in range(90) if row not in rows)
    (tmp_path / "figures" / "mistakes").mkdir(parents=True)
    (tmp_path / "figures" / "mistakes" / f"{other}.png").write_bytes(PIXEL)
    page = read(tmp_path)
    assert "An example of each mistake" in page.text
    assert not [value for tag, name, value in page.attributes if (tag, name) == ("img", "src")]


def test_without_a_mistake_there_is_no_example(tmp_path):
    table = make_table()
    right = np.where(table.known, table.label, 0)
    table = dataclasses.replace(
        table, predicted_class=right, scores={"energy": np.where(table.known, 0.0, 2.0)}
    )
    make_run(tmp_path, table)
    assert examples(table) == []
    assert "An example of each mistake" not in read(tmp_path).text


def test_figures_are_shown_at_their_own_size(tmp_path):
    make_run(tmp_path, make_table())
    folder = tmp_path / "figures"
    folder.mkdir()
    for name, dpi in (("a", 120), ("b", None)):
        Image.new("L", (1200, 10)).save(folder / f"{name}.png", **({"dpi": (dpi, dpi)} if dpi else {}))
    (folder / "c.png").write_bytes(PIXEL[:20])
    widths = [value for tag, name, value in read(tmp_path).attributes if (tag, name) == ("img", "width")]
    assert widths == ["960", "1200"]  # in CSS pixels, 96 an inch


def test_absolute_paths_are_cut_to_their_last_part():
    text = "root: /home/me/my data/\nnpz: 'npz:/a/b/c.npz'\nlist: [/a/b, lightning_logs/x/y, noise:1/2]\n/top"
    cut = "root: …/\nnpz: 'npz:…/c.npz'\nlist: […/b, lightning_logs/x/y, noise:1/2]\n/top"
    assert without_folders(text) == cut
    assert without_folders("C:\\me\\x.npz and s3://bucket/a/b") == "…/x.npz and s3://bucket/a/b"


def test_the_checkpoint_is_shown_without_the_folders_above_its_run(tmp_path, monkeypatch):
    run = tmp_path / "lightning_logs" / "a" / "version_1"
    make_run(run, make_table(), checkpoint=str(run / "checkpoints" / "best.ckpt"))
    monkeypatch.chdir(tmp_path)
    assert "checkpointcheckpoints/best.ckpt" in "".join(read(run).text.split())
    other = tmp_path / "lightning_logs" / "a" / "version_2"
    make_run(other, make_table(), checkpoint=str(run / "checkpoints" / "best.ckpt"))
    page = read(other)
    assert "checkpointa/version_1/checkpoints/best.ckpt" in "".join(page.text.split())
    assert str(tmp_path) not in page.text
    command = "osr test --ckpt_path lightning_logs/a/version_1/checkpoints/best.ckpt --model.score energy"
    assert f"{command} --model.calibration fixed --model.threshold=1.0" in page.text
    # trainer.default_root_dir may name the working folder by a link to it
    linked = tmp_path.with_name(f"{tmp_path.name}-linked")
    linked.symlink_to(tmp_path)
    moved = linked / "lightning_logs" / "a" / "version_3"
    make_run(
        moved, make_table(), checkpoint=str(linked / run.relative_to(tmp_path) / "checkpoints/best.ckpt")
    )
    assert f"{command} --model.calibration fixed --model.threshold=1.0" in read(moved).text


def test_a_run_of_a_study_links_to_it(tmp_path):
    make_run(tmp_path / "run", make_table())
    assert "the study" not in read(tmp_path / "run").text
    (tmp_path / "study.html").touch()
    assert ("a", "href", "../study.html") in read(tmp_path / "run").attributes


@pytest.mark.parametrize("count", [50, 51])
def test_too_many_classes_are_counted_instead_of_listed(tmp_path, count):
    table = make_table()
    names = tuple(f"class {index}" for index in range(count))
    label = np.where(table.known, table.label, count)
    logits = np.zeros((len(label), count), np.float32)
    table = dataclasses.replace(table, class_names=names, label=label, logits=logits)
    make_run(tmp_path, table)
    page = read(tmp_path)
    assert ("classes" in page.tables) == (count == 50)
    assert ("51 classes are too many to list" in page.text) == (count == 51)


def test_ten_thousand_classes_make_a_small_page_that_says_what_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "class_effects", None)  # ten thousand times a pass over all images
    table, count = make_table(), 10_000
    table = dataclasses.replace(
        table,
        class_names=tuple(f"class {index}" for index in range(count)),
        label=np.where(table.known, table.label, count),
        logits=np.zeros((len(table.label), count), np.float32),
    )
    make_run(tmp_path, table)
    said = "too many for the confusion matrices as well: predictions.csv"
    assert said not in " ".join(read(tmp_path).text.split())  # no figures at all
    save_figures(each_figure(Material(table)), tmp_path / "figures")
    text = " ".join(read(tmp_path).text.split())
    assert "10,000 classes are too many to list here" in text
    assert said in text
    assert (tmp_path / "report.html").stat().st_size < 2**20


def test_warnings_are_shown_as_sentences(tmp_path):
    make_run(tmp_path, make_table(), warnings=["3.0% of the test images of noise are rejected"])
    assert "Warning: 3.0% of the test images of noise are rejected." in read(tmp_path).text
    make_run(tmp_path, make_table(), warnings=[])
    assert "Warning" not in read(tmp_path).text


def test_the_command(tmp_path, capsys):
    make_run(tmp_path, make_table())
    main(["report", str(tmp_path)])
    assert capsys.readouterr().out.strip() == str(tmp_path / "report.html")
    assert main(["report", str(tmp_path / "nowhere")]) == 2
    assert "does not exist" in capsys.readouterr().err


# a stranger's run folder ------------------------------------------------------------------------------

KEY = "-----BEGIN PRIVATE KEY-----"


@pytest.mark.parametrize(
    "name",
    [
        *("report.html", "figures", "figures/roc.png", "config.yaml", "metrics.csv", "checkpoints/best.ckpt"),
        *("results.json", "predictions.csv", "evaluation.npz"),
    ],
)
def test_no_link_out_of_a_run_folder_is_read_or_written_through(name, tmp_path):
    make_run(tmp_path / "run", make_table())
    for folder in ("figures", "checkpoints"):
        (tmp_path / "run" / folder).mkdir()
    place, kept = tmp_path / "run" / name, tmp_path / "kept"
    if name == "figures":
        place.rmdir()
        kept.mkdir()
        (kept / "id.png").write_text(KEY)
    elif place.exists():
        place.replace(kept)  # so that only the link is wrong
    else:
        kept.write_text(KEY)
    before = {path.name: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    place.symlink_to(kept)
    for ask in (
        lambda: report.write_report(tmp_path / "run"),
        lambda: compare([tmp_path / "run"], tmp_path),
    ):
        with pytest.raises(UserError, match=rf"run/{name} is a link that leads out of its run folder"):
            ask()
    place.unlink()
    assert {path.name: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_pages_take_the_place_of_links(tmp_path):
    make_run(tmp_path / "run", make_table())
    (tmp_path / "run" / "config.yaml").write_text("seed: 1")
    (tmp_path / "run" / "report.html").symlink_to("config.yaml")
    (tmp_path / "key").write_text(KEY)
    (tmp_path / "out").mkdir()
    for name in ("comparison.html", "comparison.csv"):
        (tmp_path / "out" / name).symlink_to(tmp_path / "key")
    report.write_report(tmp_path / "run")
    compare([tmp_path / "run"], tmp_path / "out")
    assert (tmp_path / "run" / "config.yaml").read_text() == "seed: 1"
    assert (tmp_path / "key").read_text() == KEY
    assert not any(path.is_symlink() for path in tmp_path.rglob("*"))


def test_a_run_that_was_stopped_before_its_threshold_is_told_how_to_go_on(small, tmp_path, capsys):
    assert main(["run", *small, f"--trainer.default_root_dir={tmp_path}"]) == 0
    run = tmp_path / "lightning_logs" / "default" / "version_0"
    capsys.readouterr()
    for name in ("results.json", "calibration.json"):
        (run / name).unlink()
    assert main(["report", str(run)]) == 2
    command = capsys.readouterr().err.strip().rpartition("write it with ")[2]
    assert shlex.split(command)[:2] == ["osr", "run"]
    assert main(shlex.split(command)[1:]) == 0
    written = [path.parent for path in tmp_path.glob("lightning_logs/*/*/results.json")]
    assert written == [run]
