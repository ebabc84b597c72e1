"""The one owner of the decision: strict, exact, and as it was saved."""

import io
import math
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from torch import nn

from osr_lightning.errors import UserError
from osr_lightning.scoring.calibration import Calibration, fixed_calibration
from osr_lightning.scoring.threshold import Threshold, read_records

THIRD = 1 / 3  # no float32 and no bfloat16
RECORD = Calibration(
    THIRD,
    "min_cost",
    {"wrong_label": 1.0},
    "validation images: mnist",
    False,
    80,
    "none",
    20,
    0.05,
    0.5,
    (0.1, THIRD),
)


def threshold_of(score="msp", fixed=None, **records):
    threshold = Threshold(score, fixed)
    threshold.records = records or {"msp": RECORD, "energy": replace(RECORD, value=-12.5)}
    return threshold


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("fixed", [math.nan, math.inf, "0.5", True, 10**400])
def test_a_given_threshold_that_is_no_finite_number_is_refused(fixed):
    with pytest.raises(UserError, match="a threshold is a finite number"):
        Threshold("msp", fixed)


@pytest.mark.parametrize("move", [nn.Module.half, nn.Module.bfloat16, nn.Module.float, nn.Module.double])
def test_precision_of_the_weights_does_not_move_the_threshold(move):
    module = move(nn.ModuleDict({"weights": nn.Linear(2, 2), "threshold": threshold_of()}))
    assert module["weights"].weight.dtype != torch.float32 or move is nn.Module.float
    assert module["threshold"].value == THIRD
    near = torch.tensor([THIRD, np.nextafter(THIRD, 1)], dtype=torch.float64)
    assert module["threshold"](near).tolist() == [False, True]


def test_every_score_has_its_own_threshold():
    threshold = threshold_of()
    assert threshold.value == THIRD
    threshold.score = "energy"
    assert threshold.value == -12.5
    assert threshold(torch.tensor([-13.0, -12.0], dtype=torch.float64)).tolist() == [False, True]


def test_a_given_number_goes_before_any_record():
    threshold = threshold_of(fixed=0.125)
    assert threshold.value == 0.125
    assert threshold.record == fixed_calibration(0.125)
    assert threshold(torch.tensor([0.125, 0.2], dtype=torch.float64)).tolist() == [False, True]
    # zero is a number, too
    assert threshold_of(fixed=0.0).value == 0.0
    assert Threshold("energy", -3.0).value == -3.0
    threshold.fixed = None
    assert threshold.value == THIRD


@pytest.mark.parametrize(
    ("records", "known"), [({}, "none yet"), ({"msp": RECORD, "entropy": RECORD}, "msp, entropy")]
)
def test_a_missing_threshold_names_the_way_out(records, known):
    threshold = Threshold("knn")
    threshold.records = records
    way_out = "osr calibrate --ckpt_path CKPT --model.score knn"
    message = f"no threshold for the score knn, only for: {known}; .*{way_out}"
    with pytest.raises(UserError, match=message):
        _ = threshold.value
    with pytest.raises(UserError, match=message):
        threshold(torch.zeros(1, dtype=torch.float64))


# saving -----------------------------------------------------------------------------------------------


def test_records_are_saved_with_the_weights_as_plain_values():
    holder = nn.ModuleDict({"weights": nn.Linear(2, 2), "threshold": threshold_of()}).half()
    state = through_a_file(holder.state_dict())
    fresh = nn.ModuleDict({"weights": nn.Linear(2, 2), "threshold": Threshold("energy")})
    fresh.load_state_dict(state)
    assert fresh["threshold"].records == holder["threshold"].records
    assert fresh["threshold"].value == -12.5  # the score in use is that of the module
    assert type(fresh["threshold"].records["msp"].value) is float


def test_what_was_there_before_gives_way_to_what_is_loaded():
    threshold = threshold_of(knn=RECORD)
    threshold.load_state_dict(through_a_file(threshold_of(entropy=RECORD).state_dict()))
    assert list(threshold.records) == ["entropy"]
    threshold.load_state_dict(Threshold("msp").state_dict())
    assert not threshold.records


def test_what_is_saved_does_not_change_with_the_module():
    threshold = threshold_of()
    state = threshold.state_dict()
    threshold.records.clear()
    other = Threshold("msp")
    other.load_state_dict(state)
    assert other.value == THIRD


def test_fields_of_a_newer_version_are_left_out_and_those_of_an_older_one_filled_in():
    newer = {"records": {"msp": asdict(RECORD) | {"colour": "red"}}}
    assert read_records(newer) == {"msp": RECORD}
    missing = ("_unknown", "known_scores")
    older = {"records": {"msp": {n: v for n, v in asdict(RECORD).items() if not n.endswith(missing)}}}
    assert read_records(older)["msp"].rejected_unknown is None
    assert read_records(older)["msp"].count_unknown == 0
    assert read_records(older)["msp"].known_scores == ()


# damage -----------------------------------------------------------------------------------------------


def damaged(**changes):
    return {"records": {"msp": asdict(RECORD) | changes}}


def without(field):
    return {"records": {"msp": {n: v for n, v in asdict(RECORD).items() if n != field}}}


@pytest.mark.parametrize(
    "state",
    [
        None,
        3,
        [],
        {},
        {"records": None},
        {"records": [asdict(RECORD)]},
        {"records": {"msp": None}},
        {"records": {"msp": THIRD}},
        {"records": {"msp": [THIRD]}},
        {"records": {"msp": {}}},
        without("value"),
        without("method"),
        without("guarantee"),
        damaged(value=None),
        damaged(value="0.5"),
        damaged(value=[0.5]),
    ],
    ids=str,
)
def test_damaged_records_are_refused(state):
    with pytest.raises(UserError, match="calibration records are damaged; run osr calibrate"):
        read_records(state)
    threshold = threshold_of()
    with pytest.raises(UserError, match="damaged"):
        threshold.set_extra_state(state)
    assert threshold.value == THIRD


@pytest.mark.parametrize(
    "state",
    [
        damaged(value=10**400),
        damaged(value=torch.tensor([0.5, 0.6])),
        damaged(value=torch.tensor(0.5)),
        damaged(value=True),
        damaged(method=3),
        damaged(method="magic"),
        damaged(calibrated_on=3),
        damaged(count_known="many"),
        damaged(rejected_known="half"),
        damaged(optimistic="no"),
        damaged(known_scores=0.5),
        damaged(known_scores=[0.5, math.nan]),
        damaged(known_scores="0.5"),
    ],
    ids=[
        *("huge", "two", "tensor", "bool", "number", "no method", "place", "count", "share", "word"),
        *("one score", "no number", "text"),
    ],
)
def test_values_of_wrong_types_are_refused(state):
    with pytest.raises(UserError, match="run osr calibrate"):
        read_records(state)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_threshold_that_is_no_finite_number_is_refused(value):
    state = through_a_file(threshold_of(msp=RECORD, energy=replace(RECORD, value=value)).state_dict())
    with pytest.raises(UserError, match="no finite number; run osr calibrate"):
        Threshold("msp").load_state_dict(state)
