"""`osr drift --sequential`: fair bets by simulation, and what the command reads, says and writes."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from osr_lightning import save
from osr_lightning.__main__ import main
from osr_lightning.data_spec import DataSpec
from osr_lightning.deploy.sequential import log_wealth, sequential, uniform_ranks
from osr_lightning.recogniser.checkpoint import build
from osr_lightning.recogniser.rows import COLUMNS
from osr_lightning.scoring.calibration import Calibration, order_statistics

DEPLOYMENTS, DAYS = 1000, 1000


def calibration_of(known):
    record = Calibration(1.5, "known_quantile", 0.05, "noise", False, len(known), "none", rejected_known=0.05)
    return replace(record, known_scores=order_statistics(known))


@pytest.mark.parametrize(
    ("n", "digits"),
    [(20, 15), (20, 0), (1500, 15)],  # few known images; with ties; of which some are not kept
)
def test_of_a_thousand_deployments_looked_at_for_a_thousand_days_few_are_alarmed(n, digits):
    ranks = np.empty((DEPLOYMENTS, DAYS))
    rng = np.random.default_rng(0)
    for deployment in range(DEPLOYMENTS):
        known, new = rng.normal(size=n).round(digits), rng.normal(size=DAYS).round(digits)
        ranks[deployment] = uniform_ranks(calibration_of(known), new, deployment)
    assert kstest(ranks[:, -1], "uniform").pvalue > 1e-4
    assert kstest(ranks.ravel(), "uniform").pvalue > 1e-4
    assert np.abs(np.corrcoef(ranks[:, :9].T) - np.eye(9)).max() < 5 / DEPLOYMENTS**0.5
    greatest = log_wealth(ranks).max(axis=1)
    for alpha in (0.01, 0.1):
        alarms = np.mean(greatest >= -np.log(alpha))
        assert 0 < alarms <= alpha + 2.33 * (alpha / DEPLOYMENTS) ** 0.5


@pytest.mark.parametrize("before", [0, 1, 40])
def test_bets_pay_one_on_average_whatever_came_before(before):
    past = np.random.default_rng(before).random(before) ** 3
    # the next number is uniform: in the middle of 20,000 equal parts in the fourth power, most near 0
    edges = np.linspace(0, 1, 20_001) ** 4
    numbers, parts = (edges[1:] + edges[:-1]) / 2, np.diff(edges)
    wealth = np.exp(log_wealth(np.column_stack([np.tile(past, (len(numbers), 1)), numbers])))
    assert (wealth[:, -1] * parts).sum() == pytest.approx(wealth[0, -2] if before else 1, rel=1e-3)
    assert wealth[:, -1].std() > 0.01


@pytest.mark.parametrize("digits", [15, 1])
def test_ranks_are_those_of_the_urn_and_further_images_change_none(digits):
    rng = np.random.default_rng(2)
    known, new = rng.normal(size=30).round(digits), rng.normal(size=700).round(digits)
    found = uniform_ranks(calibration_of(known), new, 3)
    for count in (1, 256, 300):
        np.testing.assert_array_equal(uniform_ranks(calibration_of(known), new[:count], 3), found[:count])
    if digits == 15:  # without ties, by the definition
        weight, part = np.ones(31), (known < new[:, None]).sum(axis=1)
        for number, k in zip(found, part, strict=True):
            low = weight[k + 1 :].sum() / weight.sum()
            assert low < number <= low + weight[k] / weight.sum() + 1e-12
            weight[k] += 1


@pytest.mark.parametrize(
    ("change", "within"),
    [
        (lambda s, r: np.where(r.random(len(s)) < 0.2, 5, s), 300),
        (lambda s, r: s + 1, 300),
        (lambda s, r: s - 1, 300),
    ],
    ids=["unknown", "higher", "lower"],
)
def test_a_change_is_found_after_long_without_one(change, within):
    rng = np.random.default_rng(0)
    before = rng.normal(size=5000)
    scores = np.append(before, change(rng.normal(size=1000), rng))
    found = sequential(calibration_of(rng.normal(size=500)), scores, [("old.csv", 5000), ("new.csv", 1000)])
    assert found.alarm_in == "new.csv"
    assert 5000 < found.alarm_at < 5000 + within
    assert found.files[0].log10_greatest < 2 <= found.files[1].log10_greatest
    assert found.files[1].log10_greatest == found.course.max()


# the command ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ckpt(tmp_path_factory):
    torch.manual_seed(0)
    recogniser = build({"sampler": "single", "score": "energy"}, DataSpec(("a", "b"), 1, 20, (0.5,), (0.2,)))
    recogniser.threshold.records = {"energy": calibration_of(np.random.default_rng(0).normal(size=200))}
    path = tmp_path_factory.mktemp("ckpt") / "any.ckpt"
    save(recogniser, path)
    return str(path)


def day(path, seed, shift=0.0, count=100, errors=0):
    scores = np.random.default_rng(seed).normal(shift, 1, count).tolist()
    rows = [f"0,a.png,a,,cat,0.9,{score!r},1.5," for score in scores] + ["0,a.png,a,,,,,,no image"] * errors
    path.write_text("\n".join([",".join(COLUMNS), *rows]) + "\n")
    return str(path)


def test_files_are_read_in_order_and_the_first_alarm_is_named(ckpt, tmp_path, capsys):
    days = [day(tmp_path / f"day{seed}.csv", seed, errors=1) for seed in range(1, 4)]
    days.append(day(tmp_path / "empty.csv", 0, count=0))
    command = ["drift", "--sequential", "--ckpt_path", ckpt]
    assert main([*command, *days]) == 0
    said = capsys.readouterr().out
    assert "no alarm: the wealth never reached 100" in said
    assert "left out: 3 rows with an error" in said
    days += [day(tmp_path / "changed.csv", 9, shift=1), day(tmp_path / "after.csv", 10)]
    assert main([*command, *days, "--output", str(tmp_path / "out")]) == 3
    said = capsys.readouterr().out
    assert "ALARM" in said
    kept = json.loads((tmp_path / "out" / "drift.json").read_text(), parse_constant=pytest.fail)["sequential"]
    assert kept["alarm"] is True
    assert kept["alarm_in"] == days[4]
    assert 300 < kept["alarm_at"] <= 400
    assert f"alarm at image {kept['alarm_at']} of 500, in {days[4]}" in said
    assert [one["images"] for one in kept["files"]] == [100, 100, 100, 0, 100, 100]
    assert kept["files"][3]["log10_wealth"] == kept["files"][2]["log10_wealth"]
    assert kept["wealth"] == pytest.approx(10 ** kept["files"][-1]["log10_wealth"])
    assert (tmp_path / "out" / "drift.png").read_bytes().startswith(b"\x89PNG")
    # an alarm stays one, whatever alpha the others have
    assert main([*command, *days, "--alpha", "1e-300"]) == 0


def test_a_wealth_without_bounds_is_a_number(ckpt, tmp_path):
    days = [day(tmp_path / "a.csv", 1, count=5000), day(tmp_path / "b.csv", 2, shift=60, count=5000)]
    out = tmp_path / "out"
    assert main(["drift", "--sequential", "--ckpt_path", ckpt, *days, "--output", str(out)]) == 3
    kept = json.loads((out / "drift.json").read_text(), parse_constant=pytest.fail)["sequential"]
    assert kept["files"][1]["log10_greatest"] > 300
    assert kept["wealth"] == 1e300
