"""One decision: a score equal to the threshold is known, one of NaN unknown, whoever decides."""

import math

import numpy as np
import pytest
import torch
from recognisers import SHARED, make, pictures

from osr_lightning import load
from osr_lightning.deploy.drift import drift
from osr_lightning.deploy.export import export
from osr_lightning.evaluation.prediction_table import PredictionTable
from osr_lightning.scoring.calibration import Calibration, fixed_calibration
from osr_lightning.scoring.decision import is_unknown
from osr_lightning.scoring.threshold import Threshold

THIRD = 1 / 3  # no float32
SCORES = [-math.inf, np.nextafter(THIRD, 0), THIRD, np.nextafter(THIRD, 1), math.inf, math.nan]
UNKNOWN = [False, False, False, True, True, True]


def by_array(scores):
    return is_unknown(np.array(scores), THIRD)


def by_tensor(scores):
    return is_unknown(torch.tensor(scores, dtype=torch.float64), THIRD)


def by_threshold_module(scores):
    threshold = Threshold("msp", None)
    threshold.records = {"msp": fixed_calibration(THIRD)}
    return threshold(torch.tensor(scores, dtype=torch.float64))


def by_test_table(scores):
    count = len(scores)
    zeros = np.zeros(count, np.int64)
    return PredictionTable(
        class_names=("cat", "dog"),
        source_names=("known",),
        groups={},
        score_name="msp",
        threshold=THIRD,
        source=zeros,
        label=zeros,
        predicted_class=zeros,
        confidence=np.ones(count),
        nll=np.zeros(count),
        scores={"msp": np.array(scores)},
        logits=np.zeros((count, 2), np.float32),
    ).rejected


def by_drift(scores):
    calibration = Calibration(
        THIRD, "max_known_error", {}, "validation images: known", False, 4, "none", 0, 0.25, None,
        known_scores=(0.1, 0.2, THIRD, 0.4),
    )  # fmt: skip
    return [drift(calibration, np.array([score])).share.rejected == 1 for score in scores]


@pytest.mark.parametrize("decide", [by_array, by_tensor, by_threshold_module, by_test_table, by_drift])
def test_ties_are_known_and_nan_is_unknown(decide):
    assert list(decide(SCORES)) == UNKNOWN


@pytest.fixture(scope="module")
def recogniser():
    return make(SHARED, "entropy")


@pytest.fixture(scope="module")
def asked(recogniser, tmp_path_factory):
    """The recogniser, its `.pt2` and its `.onnx`, each a function of one image's pixels and a threshold."""
    folder = tmp_path_factory.mktemp("graphs")
    images = pictures(8, seed=4).numpy()
    export(recogniser, folder / "a.pt2", images)
    export(recogniser, folder / "a.onnx", images)
    program, graph = torch.export.load(folder / "a.pt2").module(), load(folder / "a.onnx")

    def eager(pixels, threshold):
        with torch.no_grad():
            answers = recogniser(torch.from_numpy(pixels), torch.tensor(threshold, dtype=torch.float64))
        return answers.unknown[0].item(), answers.score[0].item()

    def exported(pixels, threshold):
        answers = program(torch.from_numpy(pixels), torch.tensor(threshold, dtype=torch.float64))
        named = dict(zip(("prediction", "unknown", "score"), answers, strict=False))
        return named["unknown"][0].item(), named["score"][0].item()

    def onnx(pixels, threshold):
        graph.threshold.value = threshold  # NaN too, which decide_by refuses
        answers = graph.answer(pixels)
        return bool(answers.unknown[0]), float(answers.score[0])

    return {"eager": eager, "pt2": exported, "onnx": onnx}


@pytest.mark.parametrize("kind", ["eager", "pt2", "onnx"])
def test_a_recogniser_and_its_graphs_decide_alike(asked, kind):
    ask, pixels = asked[kind], pictures(1, seed=5).numpy()
    _, score = ask(pixels, 0.0)
    below = float(np.nextafter(score, -math.inf))
    assert [ask(pixels, t)[0] for t in (score, below, math.inf, math.nan)] == [False, True, False, True]
