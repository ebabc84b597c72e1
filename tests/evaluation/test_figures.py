"""What the figures say: titles, labels, legends, cell texts and the drawn numbers."""

import dataclasses

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from osr_lightning.evaluation.caption import read_caption
from osr_lightning.evaluation.embedding import drawn_rows, tsne_embedding
from osr_lightning.evaluation.figures import Material, each_figure, matrices, save_figures, training
from osr_lightning.evaluation.figures import closed as closed_figures
from osr_lightning.evaluation.figures import images as image_figures
from osr_lightning.evaluation.figures.images import bin_edges
from osr_lightning.evaluation.figures.registry import FIGURES
from osr_lightning.evaluation.measures import MEASURES
from osr_lightning.evaluation.measures.closed_set import ece
from osr_lightning.evaluation.outcomes import Outcomes
from osr_lightning.evaluation.prediction_table import PredictionTable

OPEN = {"score_histograms", "roc", "precision_recall", "oscr", "binary_confusion", "confusion"}
CLOSED = {"closed_confusion", "reliability", "risk_coverage"}
OTHERS = {"tsne", "gallery", "learning_curves", "optimization_history"}


def make_table(known=60, unknown=(20, 10), classes=3, seed=0) -> PredictionTable:
    rng = np.random.default_rng(seed)
    sizes = [known, *unknown]
    source = np.repeat(np.arange(len(sizes)), sizes)
    size = len(source)
    true = rng.integers(0, classes, size)
    score = rng.normal(size=size) + 2 * (source > 0)
    return PredictionTable(
        class_names=tuple(f"class {index}" for index in range(classes)),
        source_names=("digits", "clothes", "noise")[: len(sizes)],
        groups={},
        score_name="energy",
        threshold=1.0,
        source=source,
        label=np.where(source == 0, true, classes),
        predicted_class=np.where(rng.random(size) < 0.8, true, (true + 1) % classes),
        confidence=rng.uniform(0.4, 1, size),
        nll=np.where(source == 0, 1.0, np.nan),
        scores={"energy": score},
        logits=rng.normal(size=(size, classes)).astype(np.float32),
    )


def legend(axes) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


def grey_images(rows):
    return np.zeros((len(rows), 1, 8, 8), np.uint8)


def drawn_names(table: PredictionTable, **material) -> set[str]:
    # a figure yet to come has conditions of its own
    return set(dict(each_figure(Material(table, **material)))) & (OPEN | CLOSED | OTHERS)


def embedding(table: PredictionTable, most: int):
    return lambda: tsne_embedding(table.logits, 0, most, table.source)


def draw(name: str, table: PredictionTable, **material):
    return FIGURES[name].draw(Material(table, **material))


def paint(figure) -> None:
    """Lay it out and draw it, as `save_figures` does; savefig would do both twice."""
    figure.set_dpi(20)
    FigureCanvasAgg(figure).draw()


def measured(name: str, table: PredictionTable, mask=None) -> float:
    return MEASURES[name].take(Outcomes.of(table, mask))


def test_all_figures_are_those_that_apply(tmp_path):
    table = make_table()
    assert drawn_names(table) == OPEN | CLOSED
    everything = {"images": grey_images, "metrics": tmp_path / "none.csv", "trials": [(0.5, 0.9)]}
    everything["embedding"] = embedding(table, 30)
    assert drawn_names(table, **everything) == OPEN | CLOSED | OTHERS - {"learning_curves"}
    for unknown in ((), (0, 0)):
        assert drawn_names(make_table(unknown=unknown)) == CLOSED | {"score_histograms"}
    for unknown in ((9, 9), ()):
        table = make_table(0, unknown)
        assert drawn_names(table, images=grey_images, embedding=embedding(table, 30)) == set()
        assert drawn_names(make_table(0, unknown), trials=[(0.5, 0.9)]) == {"optimization_history"}


def test_figures_come_in_the_order_of_their_captions():
    orders = [FIGURES[name].caption.order for name in dict(each_figure(Material(make_table())))]
    assert orders == sorted(orders)


def test_every_figure_is_titled_labelled_and_drawn(tmp_path):
    table = make_table()
    drawn = dict(each_figure(Material(table, grey_images, None, [(0.5, 0.9)], embedding(table, 30))))
    paths = save_figures(drawn.items(), tmp_path / "figures")
    for path, (name, figure) in zip(paths, drawn.items(), strict=True):
        note = getattr(figure, "note", "")
        expected = FIGURES[name].caption
        assert read_caption(path) == expected._replace(text=f"{expected.text} {note}".rstrip())
        assert expected.text
        if name != "gallery":
            axes = figure.axes[0]
            assert axes.get_title(), name
            assert axes.get_ylabel(), name
            assert axes.get_xlabel() or name == "reliability"


@pytest.mark.parametrize("score", [np.inf, -np.inf, 0.0, 1e-300])
def test_extreme_scores_and_thresholds_can_be_drawn(score):
    table = make_table()
    table.scores["energy"][::7] = score
    for threshold in (1.0, np.finfo(float).max, -np.inf):
        extreme = dataclasses.replace(table, threshold=threshold)
        for name in ("score_histograms", "roc", "precision_recall", "risk_coverage"):
            paint(draw(name, extreme))


AWKWARD = ("a,b", "two\nlines", '"quoted"', "=cmd|' /C calc'!A0", "<b>bold</b>", "ünï", "")
FORMULA = pytest.param(
    ("$x^$", "b", "c"),
)


@pytest.mark.parametrize("names", [AWKWARD, FORMULA], ids=["awkward", "formula"])
def test_any_class_name_can_be_drawn(names):
    table = dataclasses.replace(make_table(40, (8, 8), classes=len(names)), class_names=names)
    for name in ("confusion", "gallery"):
        paint(draw(name, table, images=grey_images))


@pytest.mark.parametrize("names", [AWKWARD, FORMULA], ids=["awkward", "formula"])
def test_any_set_name_can_be_drawn(names):
    sources = np.concatenate([np.zeros(20, np.int64), np.arange(1, len(names)).repeat(5)])
    table = make_table(20, (5 * (len(names) - 1),))
    table = dataclasses.replace(table, source_names=names, source=sources)
    for name in ("score_histograms", "roc"):
        paint(draw(name, table))


def test_a_set_whose_name_begins_with_an_underscore_is_in_the_legend():
    table = dataclasses.replace(make_table(), source_names=("digits", "_clothes", "noise"))
    assert "_clothes (unknown, 20)" in [
        text.strip() for text in legend(draw("score_histograms", table).axes[0])
    ]


def test_confusion_cells_hold_counts_and_shares_of_the_row():
    label, prediction = np.array([0, 0, 0, 1, 2, 2]), np.array([0, 0, 2, 1, 2, 0])
    names = ("cat", "dog", "unknown")
    figure = matrices.confusion_matrix(label, prediction, names, names, "Pets")
    axes = figure.axes[0]
    cells = {text.get_position(): text.get_text() for text in axes.texts}
    assert cells == {
        (0, 0): "2\n66.7%", (2, 0): "1\n33.3%", (1, 1): "1\n100.0%", (2, 2): "1\n50.0%", (0, 2): "1\n50.0%",
    }  # fmt: skip
    assert [text.get_text() for text in axes.get_yticklabels()] == ["cat", "dog", "unknown"]
    assert axes.get_title() == "Pets (6 images)"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted", "true")


def test_many_classes_leave_the_cells_without_text():
    table = make_table(500, classes=100)
    axes = draw("confusion", table).axes[0]
    assert not axes.texts
    names = [text.get_text() for text in axes.get_xticklabels()]
    assert names == [*table.class_names, "unknown"]


def test_long_class_names_are_cut():
    names = ("a" * 60, "b")
    axes = matrices.confusion_matrix(np.array([0, 1]), np.array([0, 1]), names, names, "").axes[0]
    for labels, length in ((axes.get_xticklabels(), 18), (axes.get_yticklabels(), 26)):
        assert labels[0].get_text() == "a" * (length - 1) + "…"


def test_the_confusions_of_a_table():
    table = make_table()
    closed = draw("closed_confusion", table).axes[0]
    assert closed.get_title() == "Known images, none rejected (60 images)"
    assert closed.images[0].get_array().shape == (3, 3)
    cells = counts_of(draw("binary_confusion", table).axes[0])
    assert cells[0, 0] == np.sum(table.known & ~table.rejected)
    assert cells[1, 1] == np.sum((table.source == 1) & table.rejected)
    assert cells[1, 2] == np.sum((table.source == 2) & table.rejected)
    assert sum(cells.values()) == 90


def counts_of(axes) -> dict[tuple[int, int], int]:
    """(column, row) -> the images in that cell."""
    return {text.get_position(): int(text.get_text().split("\n")[0]) for text in axes.texts}


def test_every_unknown_set_has_its_row():
    table = make_table()
    axes = draw("confusion", table).axes[0]
    rows = ["class 0", "class 1", "class 2", "unknown: clothes", "unknown: noise"]
    assert [text.get_text() for text in axes.get_yticklabels()] == rows
    assert [text.get_text() for text in axes.get_xticklabels()] == [*rows[:3], "unknown"]
    cells = counts_of(axes)
    for row, mask in enumerate([*(table.label == k for k in range(3)), table.source == 1, table.source == 2]):
        for column in range(4):
            assert cells.get((column, row), 0) == np.sum(mask & (table.prediction == column))
    one = draw("confusion", make_table(unknown=(20, 0))).axes[0]
    assert [text.get_text() for text in one.get_yticklabels()] == [*rows[:3], "unknown"]


def test_a_confusion_matrix_is_as_large_as_its_classes():
    """So that the page neither blows it up nor shrinks it: a cell is as large as its texts, in inches."""
    cells = []
    for classes in (4, 10, 20):
        figure = draw("closed_confusion", make_table(200, classes=classes))
        figure.canvas.draw()
        cells.append(figure.axes[0].get_window_extent().width / figure.dpi / classes)
    assert all(0.5 < cell < 0.9 for cell in cells), cells


def test_confusion_matrices_of_more_classes_than_can_be_read_are_left_out():
    both = {"confusion", "closed_confusion"}
    for classes, expected in ((200, both), (201, set())):
        assert drawn_names(make_table(60, classes=classes)) & both == expected


def test_roc_names_every_set_its_count_and_its_auroc():
    table = make_table()
    axes = draw("roc", table).axes[0]
    unknown = ~table.known
    clothes, noise = (measured("auroc", table, mask) for mask in table.unknown_masks.values())
    assert legend(axes) == [
        f"clothes (20): AUROC {clothes:.4f}",
        f"noise (10): AUROC {noise:.4f}",
        f"all unknown (30): AUROC {measured('auroc', table):.4f}",
        f"0/1 decisions, all: AUROC {measured('binary_auroc', table):.4f}",
        "at the threshold in use",
    ]
    decisions = next(line for line in axes.lines if line.get_label().startswith("0/1"))
    x, y = table.rejected[table.known].mean(), table.rejected[unknown].mean()
    assert np.isclose(decisions.get_xydata(), [x, y]).all(1).any()
    # straight from the corner to the decisions
    below = decisions.get_xydata()[decisions.get_xdata() < x]
    np.testing.assert_allclose(below[:, 1], below[:, 0] * y / x)


def test_roc_of_one_set_has_no_sum():
    assert legend(draw("roc", make_table(unknown=(20,))).axes[0])[0].startswith("clothes (20)")
    assert not any("all unknown" in text for text in legend(draw("roc", make_table(unknown=(20, 0))).axes[0]))


def test_rates_near_the_corner_lie_apart():
    table = make_table(2000, (2000,))
    apart = dataclasses.replace(table, scores={"energy": table.score + 4.0 * ~table.known})
    for name, x in (("roc", (0.001, 0.01)), ("oscr", (0.001, 0.01)), ("precision_recall", (0.99, 0.999))):
        axes = draw(name, apart).axes[0]
        places = axes.transAxes.inverted().transform(axes.transData.transform([(at, 0) for at in (0, *x, 1)]))
        assert (np.diff(places[:, 0]) > 0.15).all(), name
        np.testing.assert_allclose(
            axes.transData.inverted().transform(axes.transData.transform((x[0], 1)))[0], x[0]
        )
        weak, good = draw(name, table).axes[0].get_ylim()[0], axes.get_ylim()[0]
        assert good > max(weak, 0.3) or name == "oscr", name
        assert axes.get_ylim()[1] >= 1


def test_the_axis_is_chosen_by_where_the_curves_are(tmp_path):
    """Log steps bend chance into a curve: they are for curves that all reach 90% within a tenth."""
    table = make_table(1000, (500, 500))
    rng = np.random.default_rng(1)
    for far, near, log in ((6.0, 6.0, True), (6.0, 0.0, False), (0.0, 0.0, False), (2.8, 2.8, True)):
        score = rng.normal(size=2000) + np.array([0.0, far, near])[table.source]
        scored = dataclasses.replace(table, scores={"energy": score})
        for name, measure in (("roc", "AUROC"), ("oscr", "OSCR"), ("precision_recall", "AUPR")):
            figure = draw(name, scored)
            axes = figure.axes[0]
            assert (axes.get_xscale() == "function") == log, (name, far, near)
            assert ("log steps" in axes.get_xlabel()) == log
            (path,) = save_figures([(name, figure)], tmp_path)
            said = "in log steps towards" if log else "in equal steps"
            assert said in read_caption(path).text
            assert measure in legend(axes)[0]
            if not log:  # a straight line stays one
                places = axes.transData.transform([(at, 0.5) for at in (0.2, 0.4, 0.6)])[:, 0]
                assert np.diff(places)[0] == pytest.approx(np.diff(places)[1])


@pytest.mark.parametrize("name", ["roc", "oscr", "precision_recall"])
def test_no_operating_point_lies_under_the_legend_or_outside(name):
    for shift in (0.0, 6.0):
        table = make_table(300, (200, 100))
        figure = draw(name, dataclasses.replace(table, scores={"energy": table.score + shift * ~table.known}))
        figure.canvas.draw()
        axes = figure.axes[0]
        box, frame = axes.get_legend().get_window_extent(), axes.get_window_extent()
        for line in axes.lines:
            if line.get_marker() == "o" and len(line.get_xdata()):
                x, y = axes.transData.transform(line.get_xydata()[0])
                assert not box.contains(x, y)
                assert frame.x0 - 1 <= x <= frame.x1 + 1
                assert frame.y0 - 1 <= y <= frame.y1 + 1


@pytest.mark.parametrize(("name", "measure"), [("roc", "auroc"), ("oscr", "oscr")])
def test_the_area_under_the_drawn_curve_is_the_measure(name, measure):
    table = make_table()
    axes = draw(name, table).axes[0]
    line = next(line for line in axes.lines if line.get_label().startswith("all unknown"))
    x, y = line.get_xydata().T
    area = abs(np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2))
    assert area == pytest.approx(measured(measure, table))


def test_precision_recall_says_the_share_and_marks_the_threshold():
    table = make_table()
    axes = draw("precision_recall", table).axes[0]
    assert legend(axes)[1].startswith("noise (10, a share of 14%): AUPR 0.")
    marks = [line for line in axes.lines if line.get_marker() == "o" and len(line.get_xdata())]
    rejected, unknown = table.rejected, ~table.known
    recall, precision = marks[-1].get_xydata()[0]
    assert recall == pytest.approx(rejected[unknown].mean())
    assert precision == pytest.approx(unknown[rejected].mean())


def test_risk_coverage_marks_the_threshold():
    table = make_table()
    axes = draw("risk_coverage", table).axes[0]
    assert legend(axes)[0].startswith("known images (60): AURC ")
    accepted = (~table.rejected)[table.known]
    coverage, risk = axes.lines[1].get_xydata()[0]
    wrong = (table.predicted_class != table.label)[table.known]
    assert (coverage, risk) == (pytest.approx(accepted.mean()), pytest.approx(wrong[accepted].mean()))


def test_reliability_bars_are_accuracies():
    table = make_table()
    top, bottom = closed_figures.reliability(Material(table), bins=5).axes
    confidence, right = table.confidence[table.known], (table.predicted_class == table.label)[table.known]
    assert top.get_title() == f"Reliability of 60 known images: ECE {ece(confidence, right, 5):.3f}"
    assert sum(bar.get_height() for bar in bottom.patches) == 60
    last = (confidence > 0.8) & (confidence <= 1)
    assert top.patches[-1].get_height() == pytest.approx(right[last].mean())


def test_score_histograms_name_sets_counts_and_threshold():
    axes = draw("score_histograms", make_table()).axes[0]
    assert legend(axes) == [
        "digits (known, 60)",
        "clothes (unknown, 20)",
        "noise (unknown, 10)",
        "threshold 1",
    ]
    assert axes.get_xlabel() == "score 'energy' (higher = more unknown)"
    assert axes.get_xscale() == "linear"
    for patch in axes.patches:
        assert patch.get_data().values.sum() == pytest.approx(1)
    far_off = dataclasses.replace(make_table(), threshold=np.finfo(float).max)
    assert legend(draw("score_histograms", far_off).axes[0])[-1] == "threshold 1.798e+308 (off this axis)"


def test_scores_crowded_at_zero_get_a_log_axis():
    score = 10.0 ** np.random.default_rng(0).uniform(-9, 0, 500)
    edges, log = bin_edges(score, 0.5, 60)
    assert log
    assert edges[0] < 1e-8
    assert (np.diff(edges) > 0).all()
    assert not bin_edges(score - 1, 0.5, 60)[1]
    score[:300] = 0
    assert bin_edges(score, 0.5, 60)[1]


def test_tsne_draws_known_images_by_class_and_unknown_ones_black():
    table = make_table()
    indices = np.arange(90)
    axes = image_figures.embedded(
        table, indices, np.random.default_rng(0).normal(size=(90, 2)).astype(np.float32)
    ).axes[0]
    *classes, unknown = axes.collections
    assert unknown.get_label() == "unknown (30)"
    assert unknown.get_edgecolor()[0].tolist() == [0, 0, 0, 1]
    assert len(unknown.get_offsets()) == 30
    colors = {tuple(dots.get_facecolor()[0]) for dots in classes}
    assert len(colors) == 3
    assert (0, 0, 0, 1) not in colors
    assert axes.figure.legends[0].get_texts()[0].get_text() == f"class 0 ({np.sum(table.label == 0)})"
    assert axes.get_title() == "t-SNE of the logits of 90 images"


def test_tsne_of_many_classes_has_a_colour_scale():
    table = make_table(300, classes=50)
    figure = image_figures.embedded(table, np.arange(330), np.zeros((330, 2), np.float32))
    assert figure.axes[1].get_ylabel() == "known class, 0 to 49 (300 images)"


def test_the_embedding_is_seeded_and_subsampled():
    logits = np.random.default_rng(0).normal(size=(80, 3)).astype(np.float32)
    indices, points = tsne_embedding(logits, seed=1, max_points=40)
    assert points.shape == (40, 2)
    assert len(set(indices.tolist())) == 40
    again = tsne_embedding(logits, seed=1, max_points=40)
    np.testing.assert_array_equal(indices, again[0])
    np.testing.assert_array_equal(points, again[1])
    assert len(tsne_embedding(logits[:, :1], max_points=10)[0]) == 10


@pytest.mark.parametrize(
    ("sizes", "most", "expected"),
    [
        ((128, 872), 1000, [128, 128]),  # no more unknown than known
        ((2000, 900, 30), 1000, [500, 470, 30]),  # every set as much as it has
        ((2000, 900, 900), 1000, [500, 250, 250]),
        ((2000, 30), 1000, [970, 30]),
        ((10, 5), 1000, [10, 5]),
        ((0, 50, 50), 40, [0, 20, 20]),
        ((100, 100), 0, [0, 0]),
        ((100,), 7, [7]),
    ],
)
def test_as_many_unknown_images_are_drawn_as_known(sizes, most, expected):
    source = np.random.default_rng(5).permutation(np.repeat(np.arange(len(sizes)), sizes))
    rows = drawn_rows(source, most, seed=3)
    assert np.bincount(source[rows], minlength=len(sizes)).tolist() == expected
    assert (np.diff(rows) > 0).all()
    np.testing.assert_array_equal(rows, drawn_rows(source, most, seed=3))
    if sum(expected) == 1000:
        assert not np.array_equal(rows, drawn_rows(source, most, seed=4))


def test_the_tsne_of_a_table_has_as_many_unknown_images_as_known():
    table = make_table(20, (60, 40))
    figure = draw("tsne", table, embedding=embedding(table, 100))
    assert figure.legends[0].get_texts()[-1].get_text() == "unknown (20)"
    assert figure.axes[0].get_title() == "t-SNE of the logits of 40 images"


@pytest.mark.parametrize(
    "logits", [np.zeros((0, 3)), np.eye(4), np.ones((50, 3))], ids=["none", "few", "equal"]
)
def test_nothing_to_embed(logits):
    indices, points = tsne_embedding(logits.astype(np.float32))
    assert len(indices) == len(points) == 0


def test_the_worst_mistakes_come_first():
    table = make_table()
    mistakes = image_figures.confident_mistakes(table, per_kind=4)
    accepted, rejected, wrong = mistakes.values()
    assert next(iter(mistakes)).startswith("unknown, yet accepted")
    assert table.score[accepted].tolist() == sorted(table.score[~table.known & ~table.rejected])[:4]
    assert (
        table.score[rejected].tolist() == sorted(table.score[table.known & table.rejected], reverse=True)[:4]
    )
    assert (table.predicted_class[wrong] != table.label[wrong]).all()
    assert not table.rejected[wrong].any()


@pytest.mark.parametrize("channels", [1, 3])
def test_the_gallery_captions_truth_answer_and_score(channels):
    table = make_table()
    mistakes = image_figures.confident_mistakes(table)
    rows = np.concatenate([*mistakes.values()])
    images = np.random.default_rng(0).integers(0, 256, (len(rows), channels, 6, 5), dtype=np.uint8)
    figure = draw("gallery", table, images=lambda asked: images[[*map([*rows].index, asked)]])
    pictures = [axes for axes in figure.axes if axes.images]
    assert len(pictures) == len(rows)
    row = rows[0]
    name = table.source_names[table.source[row]]
    expected = f"{name}\nas class {table.predicted_class[row]}\nscore {table.score[row]:.3g}"
    assert pictures[0].get_xlabel() == expected
    first_rejected = len(next(iter(mistakes.values())))
    assert pictures[first_rejected].get_xlabel().split("\n")[1] == "as unknown"
    shown = pictures[4].images[0].get_array()
    np.testing.assert_array_equal(shown if channels == 3 else shown[..., None], np.moveaxis(images[4], 0, -1))


def test_learning_curves_take_the_last_value_of_each_epoch(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text(
        "epoch,step,train/loss,val/accuracy,val/loss,test/loss\n"
        "0,5,9.0,,,\n0,9,2.0,,,\n0,9,,0.5,1.5,\n1,19,1.0,,,\n1,19,,0.75,nan,\n2,19,,,,0.1\n"
    )
    curves = training.read_metrics(path)
    assert {name: (x.tolist(), y.tolist()) for name, (x, y) in curves.items() if name != "val/loss"} == {
        "train/loss": ([1, 2], [2, 1]),  # as the console counts
        "val/accuracy": ([1, 2], [0.5, 0.75]),
    }
    figure = draw("learning_curves", make_table(), metrics=path)
    loss, accuracy = figure.axes
    assert loss.get_ylabel() == "loss (nats per image)"
    assert legend(loss) == ["training", "validation"]
    assert legend(accuracy) == ["validation"]
    assert accuracy.get_xlabel() == "epoch"
    chosen = draw("learning_curves", make_table(), metrics=path, epoch=2).axes[1]
    assert legend(chosen) == ["validation", "tested: epoch 2"]
    assert chosen.lines[-1].get_xdata() == [2, 2]
    assert drawn_names(make_table(0, ()), metrics=path) == {"learning_curves"}
    path.write_text("epoch,step,test/loss\n0,1,0.5\n")
    assert drawn_names(make_table(0, ()), metrics=path) == set()


@pytest.mark.parametrize(
    "content",
    [
        b"epoch,train/loss\n0,high\n",
        b"epoch,train/loss\nnan,1\n",
        b"epoch,train/loss\ninf,1\n",
        b"epoch,train/loss\n0,\xff\xfe\n",
        b"epoch,train/loss\n0,\0\n",
        b"epoch,train/loss\n0," + b"1" * 200_000,
        "epoch,train/loss\n0,1\n".encode("utf-16"),
        bytes(range(256)),
    ],
)
def test_damaged_metrics_leave_the_learning_curves_out_with_a_word(tmp_path, content):
    path = tmp_path / "metrics.csv"
    path.write_bytes(content)
    with pytest.warns(UserWarning, match=r"metrics\.csv is damaged .* there are no learning curves"):
        assert drawn_names(make_table(0, ()), metrics=path) == set()


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"epoch\n0\n", b"train/loss\n1\n", b"epoch,train/loss\n0\n1,\n"]
)
def test_metrics_of_other_columns_have_no_learning_curves(tmp_path, content):
    path = tmp_path / "metrics.csv"
    path.write_bytes(content)
    assert drawn_names(make_table(0, ()), metrics=path) == set()


def test_names_of_any_characters_are_drawn(tmp_path):
    names = ("a\n\tb", "\x1b[31m$x^$\0", "_\udcff{")
    table = dataclasses.replace(make_table(), class_names=names, source_names=names)
    images = np.zeros((90, 1, 4, 4), np.uint8)
    drawn = Material(table, images=lambda rows: images[rows], embedding=embedding(table, 20))
    figures = dict(each_figure(drawn))
    assert {"confusion", "gallery", "roc"} <= {path.stem for path in save_figures(figures.items(), tmp_path)}


def test_optimization_history_shows_the_best_so_far():
    axes = draw("optimization_history", make_table(), trials=[(0.1, 0.5), (0.7, 0.9), (0.3, 0.6)]).axes[0]
    assert legend(axes) == ["trials (3)", "best so far", "best: 0.9000 at threshold 0.7"]
    best = next(line for line in axes.lines if line.get_label() == "best so far")
    assert best.get_ydata().tolist() == [0.5, 0.9, 0.9]
    assert axes.get_xlabel() == "trial"
