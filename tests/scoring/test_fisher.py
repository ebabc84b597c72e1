"""Fisher's combination: its Gaussians, p-values and sum against numpy and scipy, and what it promises."""

import math

import numpy as np
import pytest
import scipy.stats
import torch

from osr_lightning.errors import UserError
from osr_lightning.models.ensemble import Ensemble
from osr_lightning.models.mc_dropout import MCDropout
from osr_lightning.models.networks import BaselineCNN, ConvNet, MCDropoutCNN
from osr_lightning.models.sampling import LOGITS, PENULTIMATE, Single
from osr_lightning.models.split import split
from osr_lightning.scoring.detectors import LOG_PROBABILITY
from osr_lightning.scoring.detectors import fisher as module
from osr_lightning.scoring.detectors.fisher import (
    Fisher,
    direction_and_length,
    gaussians,
)
from osr_lightning.scoring.detectors.surprise import surprise, tail_slopes
from osr_lightning.scoring.scores import generalized_entropy


def double(rows):
    return torch.as_tensor(rows, dtype=torch.float64)


def images(count=240, widths=(5, 3), classes=4, seed=0):
    """Layers "0", "1", … of different widths, and the log probabilities of four classes; with labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    seen = {LOG_PROBABILITY: torch.randn(count, classes, generator=generator).double()}
    seen[LOG_PROBABILITY][torch.arange(count), labels] += 4
    seen[LOG_PROBABILITY] = seen[LOG_PROBABILITY].log_softmax(1)
    for layer, width in enumerate(widths):
        places = torch.randn(classes, width, generator=torch.Generator().manual_seed(layer)) * 2
        seen[str(layer)] = places[labels] + torch.randn(count, width, generator=generator)
    return seen, labels


def fitted(layers=("0", "1"), weights=None, **options):
    seen, labels = images(**options)
    detector = Fisher(layers, weights)
    detector.fit(seen, labels, None, images(100, seed=1)[0])
    return detector


# the Gaussians --------------------------------------------------------------------------------------


def test_direction_and_length_by_hand():
    found = direction_and_length(double([[3, 4], [0, 2], [0, 0]]))
    expected = [[0.6, 0.8, math.log(5)], [0, 1, math.log(2)], [0, 0, math.log(1e-12)]]
    torch.testing.assert_close(found, double(expected))


def numpy_covariances(x, labels, classes):
    """Shared and own covariances with D images' worth of what they are pulled to."""
    count, width = x.shape
    centered = x - np.stack([x[labels == k].mean(0) for k in range(classes)])[labels]
    scatter = centered.T @ centered
    common = (scatter + width * np.trace(scatter) / width / count * np.eye(width)) / (count + width)
    own = []
    for k in range(classes):
        part = centered[labels == k]
        own.append((part.T @ part + width * common) / (len(part) + width))
    return common, own


@pytest.mark.parametrize(("count", "width"), [(60, 4), (60, 20), (60, 70), (60, 200)])
def test_gaussians_are_those_of_numpy(count, width):
    """Of many images, of few of a class, and of few altogether, beside the width."""
    seen, labels = images(count, widths=(width,), seed=3)
    x = seen["0"].double()
    common, own = numpy_covariances(x.numpy(), labels.numpy(), 4)
    means, whitening = gaussians(x, labels, 4, shared=False)
    for k in range(4):
        np.testing.assert_allclose(means[k], x[labels == k].mean(0), rtol=1e-12)
        np.testing.assert_allclose(whitening[k] @ whitening[k].mT, np.linalg.inv(own[k]), rtol=1e-9)
    _, whitening = gaussians(x, labels, 4, shared=True)
    assert whitening.shape == (1, x.shape[1], x.shape[1])
    np.testing.assert_allclose(whitening[0] @ whitening[0].mT, np.linalg.inv(common), rtol=1e-9)


@pytest.mark.parametrize("case", ["six images", "one image", "no image", "constant", "all one image"])
def test_covariances_stay_well_conditioned(case):
    seen, labels = images(400, widths=(20,), seed=3)
    x = seen["0"].double()
    few = {"six images": 6, "one image": 1, "no image": 0}
    keep = labels >= 0
    if case in few:
        keep = (labels != 2) | ((labels == 2).cumsum(0) <= few[case])
    elif case == "constant":
        x = torch.ones_like(x)
    else:
        keep = torch.arange(len(labels)) < 4
    means, whitening = gaussians(x[keep], labels[keep], 4, shared=False)
    assert means.isfinite().all()
    assert max(np.linalg.cond(one.numpy()) for one in whitening) < 1e3
    if case == "no image":  # what all images have in common
        torch.testing.assert_close(means[2], x[keep].mean(0))


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("count", [1, 16, 37])
def test_distances_are_to_the_predicted_class(own, count, monkeypatch):
    if not own:
        monkeypatch.setattr(module, "_OWN", 1)
    detector = fitted()
    assert detector.whitening.shape == (2, 4 if own else 1, 6, 6)
    seen, _ = images(count, seed=5)
    training, labels = images()
    found = detector._statistics({n: v.double() for n, v in seen.items()}, detector.means, detector.whitening)
    torch.testing.assert_close(found[0], generalized_entropy(seen[LOG_PROBABILITY].unsqueeze(0)))
    for layer in (0, 1):
        x = direction_and_length(training[str(layer)].double()).numpy()
        common, each = numpy_covariances(x, labels.numpy(), 4)
        queries = direction_and_length(seen[str(layer)].double()).numpy()
        for i, k in enumerate(seen[LOG_PROBABILITY].argmax(1).tolist()):
            offset = queries[i] - x[labels == k].mean(0)
            inverse = np.linalg.inv(each[k] if own else common)
            assert found[1 + layer, i].item() == pytest.approx(offset @ inverse @ offset, rel=1e-9)


def test_a_distance_does_not_depend_on_the_batch():
    detector, (seen, _) = fitted(), images(90, seed=2)
    whole = detector(seen)
    for rows in (torch.arange(90).flip(0), torch.tensor([3]), torch.arange(0, 90, 7)):
        found = detector({name: value[rows] for name, value in seen.items()})
        torch.testing.assert_close(found, whole[rows], rtol=1e-12, atol=0)


# p-values -------------------------------------------------------------------------------------------


def test_surprise_by_hand():
    references = double([[1, 2, 4]])
    slopes = double([0.5])
    at = double([[1, 1.5, 2, 3, 4, 6, 0]])
    heights = [-math.log(n / 4) for n in (3, 2, 1)]
    expected = [
        heights[0],
        (heights[0] + heights[1]) / 2,
        heights[1],
        (heights[1] + heights[2]) / 2,
        heights[2],
        heights[2] + 1,
        heights[0] * math.exp(-0.5),
    ]
    torch.testing.assert_close(surprise(at, references, slopes), double([expected]))


def test_surprise_of_an_exponential_is_its_own_log_tail():
    draws = scipy.stats.expon.rvs(scale=3, size=20_000, random_state=0)
    references = torch.from_numpy(np.sort(draws)).unsqueeze(0)
    at = np.array([0.5, 3, 9, 20, 100])
    found = surprise(torch.from_numpy(at).unsqueeze(0), references, tail_slopes(references))[0]
    np.testing.assert_allclose(found, -scipy.stats.expon.logsf(at, scale=3), rtol=0.06, atol=0.02)


def test_surprise_rises_strictly_and_without_a_jump():
    generator = torch.Generator().manual_seed(0)
    references = torch.randn(2, 50, generator=generator).double().sort(1).values
    at = torch.linspace(-6, 12, 40_001).double().expand(2, -1)
    found = surprise(at, references, tail_slopes(references))
    assert (found.diff() > 0).all()
    assert (found > 0).all()
    assert found.diff().max() < 0.2  # steps of 0.00045 between references that may lie close


def test_tail_slopes_by_hand():
    rows = double([[*range(18), 20, 30], [0] * 19 + [7], [5] * 20])
    # the largest two exceed the smaller of them by 0 and 10; by 0 and 7; no scale at all
    torch.testing.assert_close(tail_slopes(rows), double([1 / 5, 2 / 7, 1]))


@pytest.mark.parametrize("references", [[2.0], [2.0, 2.0], [1.0, 2.0, 2.0]])
def test_few_or_equal_references(references):
    rows = double([references])
    found = surprise(double([[-1e9, 1.0, 2.0, 3.0]]), rows, tail_slopes(rows))[0]
    assert found.isfinite().all()
    assert (found.diff() > 0).all()
    assert found[2].item() == pytest.approx(math.log(len(references) + 1))


def test_nan_stays_nan_and_infinity_is_beyond_all():
    rows = double([[1, 2, 3]])
    found = surprise(double([[math.nan, math.inf]]), rows, tail_slopes(rows))[0]
    assert found[0].isnan()
    assert found[1] == math.inf
    detector, (seen, _) = fitted(), images(4)
    seen["0"][1] = math.nan
    assert detector(seen).isnan().tolist() == [False, True, False, False]


# the combination ------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [None, (2, 1, 0)])
def test_the_score_is_the_weighted_sum(weights):
    detector, (seen, _) = fitted(weights=weights), images(30, seed=4)
    doubled = {name: value.double() for name, value in seen.items()}
    statistics = detector._statistics(doubled, detector.means, detector.whitening)
    p = [
        np.interp(values, sorted_, -np.log(1 - np.arange(1, 101) / 101))
        for values, sorted_ in zip(statistics.numpy(), detector.references.numpy(), strict=True)
    ]
    inside = (statistics >= detector.references[:, :1]) & (statistics <= detector.references[:, -1:])
    rows = inside.all(0)
    assert rows.sum() > 10
    expected = np.average(p, axis=0, weights=weights or (1, 1, 1)) * (3 if weights is None else sum(weights))
    np.testing.assert_allclose(detector(seen)[rows], expected[rows.numpy()], rtol=1e-9)


def test_known_images_score_as_fisher_says():
    """Twice the sum of independent -log p is chi-squared: p-values of new known images are uniform."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(6000, 4, generator=generator).double()
    detector = Fisher(())
    detector.fit(
        {LOG_PROBABILITY: logits[:10]}, logits[:10].argmax(1), None, {LOG_PROBABILITY: logits[:3000]}
    )
    p = (-detector({LOG_PROBABILITY: logits[3000:].log_softmax(1)})).exp()
    assert scipy.stats.kstest(p.numpy(), "uniform").pvalue > 0.01


def test_a_layer_that_is_short_or_turned_raises_the_score():
    detector, (seen, _) = fitted(), images(40, seed=6)
    for change in (lambda f: f / 50, lambda f: f * 50, lambda f: -f):
        assert (detector({**seen, "0": change(seen["0"])}) > detector(seen)).all()


def test_style_counts_in_units_of_a_direction():
    """The distance by numpy, of direction, length, and style divided by sqrt(D) of its deviations."""
    width, style = 5, 3
    (seen, labels), (held_out, _) = (
        images(widths=(width + style,)),
        images(100, widths=(width + style,), seed=1),
    )
    for one in (seen, held_out):
        one["0"][:, width:] = one["0"][:, width:] * torch.tensor([0.01, 1.0, 100.0]) + 7
    detector = Fisher(("0",), styles=(style,))
    detector.fit(seen, labels, None, held_out)

    def inputs(one):
        features = one["0"].double()
        x = direction_and_length(features[:, :width]).numpy()
        return np.concatenate([x, features[:, width:].numpy()], axis=1)

    x, truth = inputs(seen), labels.numpy()
    scale = np.ones(x.shape[1])
    scale[-style:] = 1 / (x[:, -style:].std(0) * np.sqrt(width + 1))
    _, own = numpy_covariances(x * scale, truth, 4)
    predicted = held_out[LOG_PROBABILITY].argmax(1).numpy()
    expected = []
    for row, label in zip(inputs(held_out), predicted, strict=True):
        away = (row - x[truth == label].mean(0)) * scale
        expected.append(away @ np.linalg.solve(own[label], away))
    np.testing.assert_allclose(detector.statistics(held_out)[1], expected, rtol=1e-9)


def test_a_style_that_no_known_image_has_raises_the_score():
    (seen, labels), (held_out, _) = images(widths=(7,)), images(100, widths=(7,), seed=1)
    seen["0"][:, -1] = 0  # a channel that training images leave alone
    detector = Fisher(("0",), styles=(2,))
    detector.fit(seen, labels, None, held_out)
    before = detector(held_out)
    held_out["0"][:, -2] += 40
    assert (detector(held_out) > before).all()
    assert detector(held_out).isfinite().all()


def test_features_that_a_gradient_flows_through():
    detector, (seen, _) = fitted(), images(40, seed=6)
    expected = detector(seen)
    assert torch.equal(detector({**seen, "0": seen["0"].requires_grad_()}).detach(), expected)


def test_without_layers_it_ranks_as_generalized_entropy():
    seen, labels = images()
    detector = Fisher(())
    detector.fit(seen, labels, None, seen)
    expected = generalized_entropy(seen[LOG_PROBABILITY].unsqueeze(0)).argsort()
    assert torch.equal(detector(seen).argsort(), expected)


def test_it_needs_held_out_images():
    seen, labels = images()
    for nothing in (None, images(0)[0]):
        with pytest.raises(UserError, match="fisher needs held-out known images"):
            Fisher(("0",)).fit(seen, labels, None, nothing)


@pytest.mark.parametrize("weights", [(1,), (1, -1), (1, math.inf)])
def test_weights_out_of_range(weights):
    with pytest.raises(UserError, match="weights must be 2 numbers"):
        Fisher(("0",), weights)


# its layers -----------------------------------------------------------------------------------------


def plain():
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 12), torch.nn.Linear(12, 4))
    return Single(split(network, (1, 28, 28), 4))


def without_linear_layer():
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 28), torch.nn.Flatten())
    return Single(split(network, (1, 28, 28), 4))


SAMPLERS = {
    "baseline": (lambda: Single(BaselineCNN(4)), [144, 120]),
    "colour": (lambda: Single(BaselineCNN(4, in_channels=3, image_size=32)), [144, 120]),
    "mc_dropout": (lambda: MCDropout(MCDropoutCNN(4), (1, 28, 28), 3), [144, 120]),
    "convnet": (lambda: Single(ConvNet(4, in_channels=1, image_size=28)), [128, 128]),
    "many channels": (lambda: Single(BaselineCNN(4, image_size=9, channels=(200,))), [200, 120]),
    "no blocks": (plain, [12]),
    "no linear layer": (without_linear_layer, []),
    "ensemble": (lambda: Ensemble([Single(BaselineCNN(4)), Single(BaselineCNN(4))]), [144, 120] * 2),
    "unlike members": (lambda: Ensemble([Single(BaselineCNN(4)), plain()]), [144, 120, 12]),
}


@pytest.mark.parametrize("kind", SAMPLERS)
@torch.no_grad()
def test_layers_of_every_kind_of_network(kind):
    make, widths = SAMPLERS[kind]
    sampler = make().eval()
    shape = {"colour": (3, 32, 32), "many channels": (1, 9, 9)}.get(kind, (1, 28, 28))
    detector = Fisher.of(sampler)
    networks = 2 if isinstance(sampler, Ensemble) else 1
    assert detector.weights == (1, *[1 / networks] * len(widths))

    def look(seed):
        pictures = torch.randn(40, *shape, generator=torch.Generator().manual_seed(seed))
        sampled = sampler(pictures, detector.layers)
        return {**sampled.features, LOG_PROBABILITY: sampled.logits.mean(0).double().log_softmax(-1)}

    seen = look(0)
    assert [seen[name].shape[1] for name in detector.layers] == widths
    detector.fit(seen, torch.arange(40) % 4, sampler.last_layer if widths else None, seen)
    found = detector(look(1))
    assert found.isfinite().all()
    assert len(found.unique()) == 40


@torch.no_grad()
def test_a_pooled_layer_is_the_mean_over_its_cells():
    network = BaselineCNN().eval()
    pictures = torch.randn(300, 1, 28, 28)  # more than go through the trunk at once
    features = Single(network)(pictures, ("2/pooled", "5/pooled", "2", PENULTIMATE, LOGITS)).features
    maps = network.trunk[:3](pictures)
    torch.testing.assert_close(features["2"], maps)
    cells = maps.unflatten(3, (3, 4)).unflatten(2, (3, 4)).mean((3, 5))
    torch.testing.assert_close(features["2/pooled"], cells.flatten(1))
    cells = network.trunk(pictures).unflatten(3, (2, 2)).unflatten(2, (2, 2)).mean((3, 5))
    torch.testing.assert_close(features["5/pooled"], cells.flatten(1))
    with pytest.raises(UserError, match="no layer '9/pooled'"):
        Single(network)(pictures, ("9/pooled",))
