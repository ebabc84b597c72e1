"""The table on the console at the end of a test."""

from pathlib import Path

import pytest

from osr_lightning.evaluation.console import print_summary

RATES = (
    *("known_accuracy", "unknown_accuracy", "total_accuracy", "auroc"),
    *("fpr95_known", "binary_accuracy", "binary_auroc"),
)


def results(**changes):
    pooled = {name: 0.01 * index for index, name in enumerate(RATES, start=11)}
    return {
        "experiment": "mc_dropout",
        "checkpoint": "best.ckpt",
        "closed_set": {"count": 1000, "accuracy": 0.9},
        "open_set": pooled | {"count_known": 1000, "count_unknown": 70},
        "unknown": {"noise": dict.fromkeys(RATES) | {"count_unknown": 70, "auroc": 0.5}},
        "groups": {"near": pooled},
        "score": {"name": "energy"},
        "threshold": {"value": 1 / 3, "method": "optuna", "calibrated_on": "test", "optimistic": True},
        "warnings": ["3.0% of the test images of [noise] are rejected"],
    } | changes


def printed(capsys, **changes) -> str:
    print_summary(results(**changes), Path("lightning_logs") / "run")
    return capsys.readouterr().out


def test_it_says_the_numbers_and_where_everything_is(capsys):
    text = printed(capsys)
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if "│" in line]
    assert cells == [
        ["known, none rejected", "1,000", "90.00%", "", ""],
        ["known", "1,000", "11.00%", "", ""],
        ["unknown: noise", "70", "-", "0.5000", "-"],
        ["mean of near", "", "12.00%", "0.1400", "0.1500"],
        ["total", "1,070", "13.00%", "0.1400", "0.1500"],
        ["known or unknown?", "1,070", "16.00%", "0.1700", ""],
    ]
    assert "threshold 0.333333 on the score energy by optuna, from test\n" in text
    assert "optimistic: test images chose this threshold" in text
    assert "warning: 3.0% of the test images of [noise] are rejected\n" in text
    assert "best.ckpt" in text
    assert str(Path("lightning_logs", "run", "report.html")) in text
    assert "tensorboard --logdir lightning_logs\n" in text
    print_summary(results(), Path("my logs") / "run")
    assert "tensorboard --logdir 'my logs'\n" in capsys.readouterr().out


def test_it_says_what_a_class_never_met_would_be(capsys):
    found = {"cat": {"rejected": 0.34}, "dog": {"rejected": 0.1}}
    text = printed(capsys, left_out={"rejected": 0.22, "auroc": 0.871, "classes": found})
    assert "of a class never met 22% would be rejected, AUROC 0.87" in text
    assert "leaving out each known one: cat 34%, dog 10%\n" in text
    assert "never met" not in printed(capsys)


def test_without_its_logger_tensorboard_is_not_named(capsys):
    print_summary(results(), Path("lightning_logs") / "run", tensorboard=False)
    text = capsys.readouterr().out
    assert "ensor" not in text
    assert str(Path("lightning_logs", "run", "report.html")) in text


@pytest.mark.parametrize("columns", [40, 80])
def test_every_number_is_whole_in_any_terminal(capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    table = printed(capsys).partition("threshold")[0]
    assert {"1,000", "90.00%", "11.00%", "70", "0.5000", "12.00%", "0.1500"} <= set(
        table.replace("│", " ").split()
    )
    assert max(map(len, table.splitlines())) <= columns
    assert "…" not in table


def test_without_warnings_there_are_none(capsys):
    threshold = {"value": 1.0, "method": "fixed", "calibrated_on": "nothing", "optimistic": False}
    text = printed(capsys, threshold=threshold, warnings=[])
    assert "warning" not in text
    assert "optimistic" not in text


def test_without_unknown_images_there_is_no_empty_cell(capsys):
    text = printed(capsys, unknown={}, groups={})
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if "│" in line]
    assert cells == [["known, none rejected", "1,000", "90.00%"], ["known", "1,000", "11.00%"]]


@pytest.mark.parametrize("name", ["[red]", "[/x]"])
def test_names_are_no_markup(capsys, name):
    unknown = {name: dict.fromkeys(RATES) | {"count_unknown": 70}}
    assert name in printed(capsys, unknown=unknown)


def test_each_class_has_its_accuracy_where_they_are_few(capsys):
    def closed_set(count):
        one = {"count": 5, "accuracy": 0.8, "rejected": 0.2}
        return {"count": 1000, "accuracy": 0.9, "per_class": {f"class {n}": one for n in range(count)}}

    assert "by class, none rejected: class 0 80.00%, class 1 80.00%\n" in printed(
        capsys, closed_set=closed_set(2)
    )
    assert "by class" not in printed(capsys, closed_set=closed_set(21))
