"""`osr drift`: exact tests against scipy and simulation, what it reads, and how it ends."""

import csv
import json
import subprocess
import sys
from dataclasses import asdict, replace
from math import comb
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from quick import refusal
from scipy.stats import betabinom, binom, kstwobign

from osr_lightning import save
from osr_lightning.__main__ import main
from osr_lightning.cli.drift import reference
from osr_lightning.data_spec import DataSpec
from osr_lightning.deploy import onnx_runtime
from osr_lightning.deploy.drift import distribution_test, drift, read, share_test
from osr_lightning.errors import UserError
from osr_lightning.recogniser.checkpoint import build
from osr_lightning.recogniser.rows import COLUMNS
from osr_lightning.scoring.calibration import calibrate, fixed_calibration, order_statistics, read_record
from osr_lightning.scoring.sweep import Costs

# the tests ------------------------------------------------------------------------------------------


def calibration_of(known, alpha=0.05):
    everything = np.ones(len(known), dtype=bool)
    options = {"costs": Costs(), "unknown_prior": 0.5, "calibrated_on": "some images", "optimistic": False}
    chosen, _ = calibrate(
        {"energy": known}, everything, everything, method="known_quantile", alpha=alpha, **options
    )
    return chosen["energy"]


@pytest.mark.parametrize(("m", "r", "n"), [(1, 0, 19), (40, 3, 99), (200, 60, 70), (30, 12, 12)])
def test_the_share_s_p_value_and_bounds_are_those_of_the_beta_binomial(m, r, n):
    reference = betabinom(m, r + 1, max(n - r, 1))
    for rejected in range(m + 1):
        found = share_test(rejected, m, r, n, 0.05)
        tails = (reference.cdf(rejected), reference.sf(rejected - 1))
        assert found.p_value == pytest.approx(min(1, 2 * min(tails)), rel=1e-6)
        assert found.alarm == (found.p_value <= 0.05)
        assert found.alarm == (not found.low <= rejected / m <= found.high)


def test_with_many_calibration_images_it_is_the_binomial_test():
    for rejected in (30, 50, 80):
        tails = (binom.cdf(rejected, 1000, 0.05), binom.sf(rejected - 1, 1000, 0.05))
        found = share_test(rejected, 1000, 5 * 10**7, 10**9, 0.01)
        assert found.p_value == pytest.approx(min(1, 2 * min(tails)), rel=1e-3)


def test_tiny_tails_keep_their_digits():
    m, r, n = 1000, 50, 1000
    # in whole numbers: of the (m + n choose n) orders of both sets' scores, how many are as extreme
    orders = sum(comb(k + r, k) * comb(m - k + n - r - 1, m - k) for k in range(500, m + 1))
    found = share_test(500, m, r, n, 0.01)
    assert found.p_value == pytest.approx(2 * orders / comb(m + n, n), rel=1e-6)
    assert 0 < found.p_value < 1e-100


def test_false_alarms_are_as_rare_as_promised_and_a_change_is_found():
    rng = np.random.default_rng(0)
    alarms = {"none": [0, 0], "unknown": [0, 0], "lower": [0, 0]}
    for _ in range(200):
        calibration, new = calibration_of(rng.normal(size=250)), rng.normal(size=1000)
        changed = {"none": new, "unknown": np.append(new[:900], rng.normal(4, 1, 100)), "lower": new * 0.5}
        for name, scores in changed.items():
            found = drift(calibration, scores, alpha=0.05)
            alarms[name][0] += found.share.alarm
            alarms[name][1] += found.distribution.alarm
            assert found.alarm == (found.share.alarm or found.distribution.alarm)
    # 10 are expected; more than 18 have a probability below 1%
    assert max(alarms["none"]) <= binom.ppf(0.99, 200, 0.05)
    assert alarms["unknown"][0] > 150
    assert min(alarms["lower"]) > 190


def test_the_distance_is_the_greatest_between_the_empirical_distributions():
    rng = np.random.default_rng(1)
    known, new = rng.normal(size=5000).round(1), rng.normal(0.1, 1, 30_000).round(1)
    kept = order_statistics(known)
    found = distribution_test(kept, new, 0.01)
    distance = max(abs(np.mean(np.array(kept) <= x) - np.mean(new <= x)) for x in np.union1d(kept, new))
    assert found.statistic == pytest.approx(distance, abs=1e-12)
    assert found.p_value == pytest.approx(kstwobign.sf(distance * (1000 * 30 / 31) ** 0.5), rel=0.1)
    assert (found.compared, found.median) == (1000, np.median(new))


def test_it_loads_no_torch():
    command = "import sys, osr_lightning.cli.drift, osr_lightning.deploy.drift; "
    command += "assert not {'torch', 'lightning', 'matplotlib'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", command], timeout=60).returncode == 0


# reading ----------------------------------------------------------------------------------------------


def table(path, scores, threshold=0.5, errors=0, further=("msp",), header=COLUMNS):
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*header, *further])
        rows = [("cat", 0.9, score, threshold, "", 0) for score in scores]
        rows += [("", "", "", "", "no\nimage", "")] * errors
        writer.writerows((index, "a.png", "a", "", *row) for index, row in enumerate(rows))
    return str(path)


def test_all_files_are_read_and_rows_with_an_error_counted(tmp_path):
    paths = [table(tmp_path / "a.csv", [0.1, 0.7], errors=2), table(tmp_path / "b.csv", [0.25], errors=1)]
    found = read(paths, "energy", 0.5)
    assert found.values.tolist() == [0.1, 0.7, 0.25]
    assert found.errors == 3


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"threshold": 0.25},
            r"x\.csv, line 2: the threshold was 0\.25, that .* for energy is 0\.5; predict",
        ),
        ({"further": ("energy", "msp")}, r"x\.csv: another score than energy .*--score"),
        ({"header": ("a", "b")}, r"x\.csv: its first line has no column index, file, source, label, pred"),
        ({"header": COLUMNS[:-1]}, r"x\.csv: its first line has no column error; give a CSV of"),
        ({"threshold": 0.50001}, r"the threshold was 0\.50001, that of .* is 0\.5; predict"),
        ({"scores": []}, r"no predictions in .*x\.csv: predict"),
        ({"scores": [], "errors": 3}, r"only 3 rows with an error"),
        ({"scores": ["much"]}, r"x\.csv, line 2: its score, 'much', is no finite number"),
        ({"scores": [0.25, "nan"]}, r"x\.csv, line 3: its score, 'nan', is no finite number"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(options, said, tmp_path):
    path = table(tmp_path / "x.csv", **{"scores": [0.25], **options})
    with pytest.raises(UserError, match=said):
        read([path], "energy", 0.5)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize(("between", "comma"), [(",", "."), (";", ","), (";", "."), ("\t", ",")])
def test_what_a_spreadsheet_saved_is_read(between, comma, encoding, tmp_path):
    threshold, scores = 9.692713741234567, [0.123456789, 12.5]
    lines = [["index", "file", "source", "label", *COLUMNS[4:], "msp"]]
    for index, score in enumerate(scores):
        cells = (f"{score:.9g}".replace(".", comma), f"{threshold:.5g}".replace(".", comma))
        lines.append([str(index), "ü;a.png", "a", "", "cat", f"0{comma}9", *cells, "", f"0{comma}1"])
    lines += [["2", "b.png", "", "", "", "", "", "", "no image", ""], [""] * 10]
    with open(tmp_path / "x.csv", "w", newline="", encoding=encoding) as file:
        file.write("sep=;\r\n" if between == ";" else "")
        csv.writer(file, delimiter=between).writerows(lines)
    found = read([str(tmp_path / "x.csv")], "energy", threshold)
    assert found.values.tolist() == scores
    assert found.errors == 1
    with pytest.raises(UserError, match=r"the threshold was 9\.6927, that of the .* is 9\.692843741234567;"):
        read([str(tmp_path / "x.csv")], "energy", 9.692843741234567)


@pytest.mark.parametrize(
    ("written", "threshold", "same"),
    [
        ("9.69", 9.6949, True),
        ("9.69", 9.6951, False),
        ("9.7", 9.7001, False),  # of two digits any would do
        ("1E+01", 10.0, True),
        ("1.23E-05", 1.2345e-5, True),
        ("1200", 1200.4, True),
        ("-3.25", -3.2549, True),
        ("-3.25", 3.25, False),
    ],
)
def test_a_threshold_may_be_rounded_to_its_digits(written, threshold, same, tmp_path):
    path = table(tmp_path / "x.csv", [0.25], written)
    if same:
        assert read([path], "energy", threshold).values.tolist() == [0.25]
    else:
        with pytest.raises(UserError, match="the threshold was"):
            read([path], "energy", threshold)


@pytest.mark.parametrize("content", [b"", b"\x00\x89PNG\r\n", b'index,file\n"'])
def test_files_of_other_kinds_are_refused(content, tmp_path):
    (tmp_path / "x.csv").write_bytes(content)
    with pytest.raises(UserError, match=r"x\.csv"):
        read([str(tmp_path / "x.csv")], "energy", 0.5)
    with pytest.raises(UserError, match=r"there is no file .*gone\.csv; write it with osr predict"):
        read([str(tmp_path / "gone.csv")], "energy", 0.5)
    with pytest.raises(UserError, match="an empty path names no predictions"):
        read([""], "energy", 0.5)
    with pytest.raises(UserError, match="cannot be read"):
        read([str(tmp_path)], "energy", 0.5)


# the command ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recogniser():
    """An untrained one, calibrated on images of noise."""
    torch.manual_seed(0)
    recogniser = build(
        {"sampler": "single", "score": "energy"}, DataSpec(("cat", "dog"), 1, 20, (0.5,), (0.2,))
    )
    with torch.no_grad():
        score = recogniser.eval().describe(noise(0, 400))["score/energy"].numpy()
    recogniser.threshold.records = {"energy": calibration_of(score)}
    return recogniser


@pytest.fixture(scope="module")
def ckpt(recogniser, tmp_path_factory):
    path = tmp_path_factory.mktemp("ckpt") / "any.ckpt"
    save(recogniser, path)
    return str(path)


def noise(seed, count, high=256):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(high, (count, 1, 20, 20), dtype=torch.uint8, generator=generator)


def photos(folder, images):
    from PIL import Image

    folder.mkdir()
    for index, image in enumerate(images):
        Image.fromarray(image[0].numpy()).save(folder / f"{index}.png")
    return str(folder)


def test_what_was_predicted_is_compared_with_what_calibrated(ckpt, tmp_path, capsys):
    """0 where the images are of one kind, 3 where darker ones come among them, and the files of both."""
    same, dark = photos(tmp_path / "same", noise(1, 150)), photos(tmp_path / "dark", noise(2, 80, 20))
    for name in (same, dark):
        assert main(["predict", "--ckpt_path", ckpt, name, "--output", f"{name}.csv"]) == 0
    command = ["drift", "--ckpt_path", ckpt, f"{same}.csv"]
    assert main(command) == 0
    assert "no alarm at alpha 0.01" in capsys.readouterr().out
    assert not list(tmp_path.glob("**/drift.*"))
    assert main([*command, f"{dark}.csv", "--output", str(tmp_path / "out")]) == 3
    shown = capsys.readouterr().out
    assert "ALARM" in shown
    assert "alarm at alpha 0.01 per test: " in shown
    kept = json.loads((tmp_path / "out" / "drift.json").read_text(), parse_constant=pytest.fail)
    assert kept["alarm"] is True
    assert kept["share"]["images"] == 230
    assert kept["predictions"] == [f"{same}.csv", f"{dark}.csv"]
    assert "known_scores" not in kept["calibration"]
    assert (tmp_path / "out" / "drift.png").read_bytes().startswith(b"\x89PNG")


def changed(recogniser, path, records=None, fixed=None):
    """Its checkpoint with other records or a fixed threshold."""
    before = recogniser.threshold.records
    recogniser.threshold.records, recogniser.threshold.fixed = records or before, fixed
    save(recogniser, path)
    recogniser.threshold.records, recogniser.threshold.fixed = before, None
    return str(path)


def test_a_checkpoint_that_keeps_no_scores_says_to_calibrate(recogniser, tmp_path):
    old = {"energy": replace(recogniser.threshold.record, known_scores=())}
    with pytest.raises(UserError, match=r"x\.ckpt does not keep the scores .* run osr calibrate --ckpt_path"):
        reference(changed(recogniser, tmp_path / "x.ckpt", old))
    for given in ({"fixed": 0.5}, {"records": {"energy": fixed_calibration(0.5)}}):
        with pytest.raises(UserError, match=r"is a number that was given.*osr calibrate --ckpt_path"):
            reference(changed(recogniser, tmp_path / "x.ckpt", **given))


def test_another_score_has_its_own_calibration(recogniser, tmp_path):
    other = calibration_of(np.random.default_rng(0).normal(size=50))
    path = changed(recogniser, tmp_path / "x.ckpt", recogniser.threshold.records | {"msp": other})
    assert reference(path).score == "energy"
    assert reference(path, "msp") == ("msp", other)


def test_an_exported_graph_keeps_its_calibration(recogniser, monkeypatch):
    record = recogniser.threshold.record

    def graph(path):
        # as its JSON comes back
        decision = SimpleNamespace(score="energy", record=read_record(json.loads(json.dumps(asdict(record)))))
        return SimpleNamespace(threshold=decision, decide_by=lambda score: None)

    monkeypatch.setattr(onnx_runtime, "ExportedRecogniser", graph)
    assert reference("x.onnx") == ("energy", record)


MISTAKES = {
    "alpha": (["--alpha=1"], "--alpha"),
    "output": (["--output={csv}"], "name a folder"),
    "score": (["--score=enrgy"], "enrgy"),
    "checkpoint": (["--ckpt_path=/no/such.ckpt"], "/no/such.ckpt"),
    "option": (["--alhpa=1"], "--alhpa"),
    "file": (["/no/such.csv"], "/no/such.csv"),
    "twice": (["{csv}"], "x.csv is named twice, and its images would count twice"),
    "two ways": (["{csv}/../x.csv", "--sequential"], "name it once"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_get_one_sentence(mistake, recogniser, ckpt, tmp_path, capsys):
    options, named = MISTAKES[mistake]
    path = table(tmp_path / "x.csv", [0.25], recogniser.threshold.record.value)
    words = ["drift", "--ckpt_path", ckpt, path, *(option.format(csv=path) for option in options)]
    assert named in refusal(words, capsys)
