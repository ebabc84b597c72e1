"""The scores against values worked out by hand and by scipy, and the relations between them."""

import math

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch

from osr_lightning.errors import UserError
from osr_lightning.scoring.scores import (
    SCORES,
    Samples,
    all_scores,
    energy,
    entropy,
    expected_entropy,
    generalized_entropy,
    max_logit,
    mean_log_probability,
    msp,
    mutual_information,
    register,
    summarise,
    variation_ratio,
)

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")),
]


def logits_of(samples=7, images=50, classes=10, scale=3.0):
    generator = torch.Generator().manual_seed(0)
    return scale * torch.randn(samples, images, classes, generator=generator)


def reference(logits):
    """Each score straight from its formula, in numpy and scipy."""
    z = logits.double().numpy()
    p = scipy.special.softmax(z, axis=-1)
    mean_p, mean_z = p.mean(0), z.mean(0)
    total, expected = scipy.stats.entropy(mean_p, axis=-1), scipy.stats.entropy(p, axis=-1).mean(0)
    top = np.sort(mean_p, axis=-1)[:, ::-1][:, :100]
    return {
        "msp": 1 - mean_p.max(-1),
        "entropy": total,
        "expected_entropy": expected,
        "mutual_information": total - expected,
        "variation_ratio": 1 - scipy.stats.mode(z.argmax(-1), axis=0).count / len(z),
        "max_logit": -mean_z.max(-1),
        "energy": -scipy.special.logsumexp(mean_z, axis=-1),
        "generalized_entropy": (top**0.1 * (1 - top) ** 0.1).sum(-1),
    }


@pytest.mark.parametrize("classes", [2, 10, 150])
def test_all_scores_are_those_of_scipy(classes):
    logits = logits_of(classes=classes)
    scores, expected = all_scores(logits), reference(logits)
    assert scores.keys() == expected.keys()
    for name, score in scores.items():
        assert score.dtype == torch.float64
        np.testing.assert_allclose(score, expected[name], rtol=1e-9, atol=1e-12, err_msg=name)
        assert torch.equal(score, SCORES[name](logits))


def test_a_score_is_known_under_its_functions_name():
    def largest_logit(logits):
        return logits.logits.mean(0).amax(-1)

    try:
        register(largest_logit)
        assert all_scores(logits_of())["largest_logit"].shape == (logits_of().shape[1],)
        assert "score/largest_logit" in summarise(logits_of())
    finally:
        del SCORES["largest_logit"]


def test_values_worked_out_by_hand():
    # two samples of one image: p = (3/4, 1/4) and (1/4, 3/4), whose mean is (1/2, 1/2)
    logits = torch.tensor([[[3.0, 1.0]], [[1.0, 3.0]]]).log()
    each = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    expected = {
        "msp": 0.5,
        "entropy": math.log(2),
        "expected_entropy": each,
        "mutual_information": math.log(2) - each,
        "variation_ratio": 0.5,
        "max_logit": -math.log(3) / 2,
        "energy": -math.log(2 * math.sqrt(3)),
        "generalized_entropy": 2 * 0.25**0.1,
    }
    assert {name: score.item() for name, score in all_scores(logits).items()} == pytest.approx(expected)
    assert mean_log_probability(logits).exp().flatten().tolist() == pytest.approx([0.5, 0.5])


def test_mean_log_probability_is_finite_where_the_probability_is_not():
    logits = torch.tensor([[[0.0, 2000.0]], [[0.0, 1000.0]]])
    assert mean_log_probability(logits)[0].tolist() == pytest.approx([-1000 - math.log(2), 0])


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_energy_with_a_temperature(temperature):
    logits = logits_of()
    expected = -temperature * scipy.special.logsumexp(logits.double().numpy().mean(0) / temperature, axis=-1)
    np.testing.assert_allclose(energy(logits, temperature), expected)


def test_generalized_entropy_of_the_likeliest_classes():
    p = torch.tensor([0.5, 0.3, 0.2])
    expected = (0.5 * 0.5) ** 0.3 + (0.3 * 0.7) ** 0.3
    assert generalized_entropy(p.log()[None, None], gamma=0.3, top=2).item() == pytest.approx(expected)


@pytest.mark.parametrize("name", ["msp", "entropy", "expected_entropy", "generalized_entropy"])
@pytest.mark.parametrize("samples", [1, 5])
def test_confident_images_do_not_tie(name, samples):
    # float32 softmax calls all of these 1.0; the last ones are so confident that 1 - p is 0 in float64 too
    margins = torch.tensor([10.0, 20.0, 30.0, 36.0, 40.0, 60.0, 80.0, 100.0, 200.0, 600.0])
    logits = torch.zeros(samples, len(margins), 10)
    logits[..., 3] = margins
    score = SCORES[name](logits)
    assert (score[:-1] > score[1:]).all()
    assert (score > 0).all()


def test_small_values_are_exact():
    logits = torch.tensor([[[0.0, -50.0, -60.0]]])
    rest = math.exp(-50) + math.exp(-60)
    assert msp(logits).item() == pytest.approx(rest, rel=1e-12)
    expected = rest + 50 * math.exp(-50) + 60 * math.exp(-60)  # to first order in rest
    assert entropy(logits).item() == pytest.approx(expected, rel=1e-12)


def test_relations():
    logits = logits_of()
    total, expected = entropy(logits), expected_entropy(logits)
    information = mutual_information(logits)
    torch.testing.assert_close(total, expected + information)
    assert (information > 0).all()
    assert (expected <= total).all()
    assert (total <= math.log(10)).all()
    for score in (msp(logits), variation_ratio(logits)):
        assert ((score >= 0) & (score <= 0.9)).all()
    assert (energy(logits) < max_logit(logits)).all()
    probability = mean_log_probability(logits).exp()
    torch.testing.assert_close(probability.sum(-1), torch.ones(50, dtype=torch.float64))
    torch.testing.assert_close(msp(logits), 1 - probability.amax(-1))


def test_samples_that_agree_have_no_disagreement():
    logits = logits_of(samples=1)
    assert not mutual_information(logits).any()
    repeated = logits.expand(6, -1, -1)
    assert not variation_ratio(repeated).any()
    assert (mutual_information(repeated) >= 0).all()
    assert mutual_information(repeated).max() < 1e-14
    for name in SCORES:
        torch.testing.assert_close(SCORES[name](repeated), SCORES[name](logits), msg=name)


def test_uniform_logits_are_the_maximum():
    scores = all_scores(torch.zeros(3, 2, 4))
    assert scores["msp"].tolist() == pytest.approx([0.75] * 2)
    assert scores["entropy"].tolist() == pytest.approx([math.log(4)] * 2)
    assert scores["generalized_entropy"].tolist() == pytest.approx([4 * (3 / 16) ** 0.1] * 2)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_precision_device_and_mode_do_not_matter(device, dtype):
    logits = logits_of().to(dtype)
    expected = reference(logits)
    with torch.inference_mode(), torch.autocast(device, torch.bfloat16):
        scores = all_scores(logits.to(device))
    for name, score in scores.items():
        assert score.dtype == torch.float64
        np.testing.assert_allclose(score.cpu(), expected[name], rtol=1e-9, atol=1e-12, err_msg=name)


def test_an_empty_batch_has_empty_scores():
    assert {score.shape for score in all_scores(torch.zeros(3, 0, 10)).values()} == {(0,)}


def test_the_order_of_samples_and_classes_does_not_matter():
    logits = logits_of()
    for name, score in SCORES.items():
        torch.testing.assert_close(score(logits.flip(0).flip(-1)), score(logits), msg=name)


@pytest.mark.parametrize("shape", [(4, 10), (0, 4, 10), (2, 4, 0)])
def test_bad_shapes_are_named(shape):
    with pytest.raises(ValueError, match=r"\(S, B, K\)"):
        Samples(torch.zeros(shape))


@pytest.mark.parametrize(
    ("score", "option"),
    [
        (energy, {"temperature": 0.0}),
        (generalized_entropy, {"gamma": 1.0}),
        (generalized_entropy, {"top": 0}),
    ],
)
def test_bad_options_are_named(score, option):
    with pytest.raises(UserError, match=next(iter(option))):
        score(logits_of(), **option)
