"""Losses: their formulas, class weights, mixed targets and precisions, and the one that trains."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from osr_lightning.data.batch import Batch
from osr_lightning.data_spec import DataSpec
from osr_lightning.errors import UserError
from osr_lightning.training.losses import LOSSES, cross_entropy, logit_norm
from osr_lightning.training.module import BaselineClassifier

LABELS = torch.tensor([2, 0, 1, 2])


def logits(dtype=torch.float32) -> torch.Tensor:
    return torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).to(dtype)


def test_the_documented_losses_are_there_by_name():
    assert {"cross_entropy": cross_entropy, "logit_norm": logit_norm} == LOSSES


@pytest.mark.parametrize("weights", [None, torch.tensor([0.5, 2.0, 1.0])])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_torchs_to_the_bit(weights, smoothing):
    found = cross_entropy(logits(), LABELS, weights, smoothing, 0.04)
    assert torch.equal(found, F.cross_entropy(logits(), LABELS, weights, label_smoothing=smoothing))


@pytest.mark.parametrize("temperature", [0.04, 0.5, 1.0])
def test_logit_norm_is_the_papers_formula(temperature):
    z = logits().double().numpy()
    scaled = z / np.linalg.norm(z, axis=1, keepdims=True) / temperature
    terms = [math.log(sum(math.exp(v) for v in row)) - row[y] for row, y in zip(scaled, LABELS, strict=True)]
    found = logit_norm(logits(), LABELS, None, 0.0, temperature)
    assert found.item() == pytest.approx(sum(terms) / 4, rel=1e-5)


def test_logit_norm_does_not_change_with_the_length_of_logits():
    once, more = (logit_norm(scale * logits(), LABELS, None, 0.1, 0.04) for scale in (1, 50))
    assert more.item() == pytest.approx(once.item(), rel=1e-5)


def test_class_weights_weigh_images_of_logit_norm():
    weights = torch.tensor([0.5, 2.0, 1.0])
    each = torch.stack([logit_norm(logits()[i : i + 1], LABELS[i : i + 1], None, 0.0, 0.2) for i in range(4)])
    expected = (weights[LABELS] * each).sum() / weights[LABELS].sum()
    torch.testing.assert_close(logit_norm(logits(), LABELS, weights, 0.0, 0.2), expected)


@pytest.mark.parametrize("name", LOSSES)
def test_a_mixed_target_is_the_mean_of_its_labels(name):
    loss, other = LOSSES[name], torch.tensor([1, 0, 0, 1])
    shares = 0.3 * F.one_hot(LABELS, 3) + 0.7 * F.one_hot(other, 3)
    parts = [loss(logits(), labels, None, 0.1, 0.2) for labels in (LABELS, other)]
    torch.testing.assert_close(loss(logits(), shares, None, 0.1, 0.2), 0.3 * parts[0] + 0.7 * parts[1])


def test_logits_of_no_length_have_a_finite_loss_and_gradient():
    zero = torch.zeros(4, 3, requires_grad=True)
    loss = logit_norm(zero, LABELS, None, 0.0, 0.04)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(3))
    assert zero.grad.isfinite().all()


def test_logits_in_bfloat16_are_divided_in_float32():
    with torch.autocast("cpu", torch.bfloat16):
        found = logit_norm(logits(torch.bfloat16), LABELS, None, 0.0, 0.04)
    exact = logit_norm(logits(torch.bfloat16).double(), LABELS, None, 0.0, 0.04)
    assert found.item() == pytest.approx(exact.item(), rel=1e-5)


def stepping(**options) -> tuple[BaselineClassifier, Batch]:
    torch.manual_seed(0)
    known = DataSpec(("a", "b"), 1, 4, (0.5,), (0.25,))
    model = BaselineClassifier(
        nn.Sequential(nn.Flatten(), nn.Linear(16, 2)), augment="none", label_smoothing=0.1, **options
    )
    model.build(known)
    model.decide(known, 12)
    images = torch.randint(256, (12, 1, 4, 4), dtype=torch.uint8)
    return model, Batch(images, torch.tensor([0] * 9 + [1] * 3), torch.zeros(12), torch.arange(12))


def test_a_step_minimises_the_loss_that_is_named():
    model, batch = stepping()
    expected = F.cross_entropy(model(batch.image), batch.label, label_smoothing=0.1)
    assert torch.equal(model.training_step(batch, 0), expected)  # as it was before there were others
    model, batch = stepping(loss="logit_norm", loss_temperature=0.3)
    expected = logit_norm(model(batch.image), batch.label, None, 0.1, 0.3)
    assert torch.equal(model.training_step(batch, 0), expected)


def test_a_mixed_step_has_mixed_targets():
    model, batch = stepping(mix="mixup")
    torch.manual_seed(5)
    found = model.training_step(batch, 0)
    torch.manual_seed(5)
    share = torch.distributions.Beta(torch.ones(1), torch.ones(1)).sample().item()
    images = model.trained.standardise(batch.image)
    mixed = share * images + (1 - share) * images.roll(1, 0)
    logs = model.trained.sampler.training_logits(mixed)
    parts = [F.cross_entropy(logs, y, label_smoothing=0.1) for y in (batch.label, batch.label.roll(1))]
    assert found.item() == pytest.approx((share * parts[0] + (1 - share) * parts[1]).item(), rel=1e-5)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"loss": "logitnorm"}, r"model\.loss: there is no 'logitnorm'; did you mean logit_norm\?"),
        ({"loss_temperature": 0}, "loss_temperature must be above 0"),
        ({"loss_temperature": math.inf}, "loss_temperature must be above 0"),
        ({"mix": "cutmx"}, r"model\.mix: there is no 'cutmx'; did you mean cutmix\?"),
        ({"augment": "rand_augmnt"}, r"model\.augment: .*did you mean rand_augment\?"),
    ],
)
def test_what_is_out_of_range_is_refused(given, sentence):
    with pytest.raises(UserError, match=sentence):
        BaselineClassifier(**given)
