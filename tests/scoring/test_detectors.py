"""The fitted scores against values worked out by hand, scipy and pytorch-ood, and through a checkpoint."""

import copy
import io
import math

import numpy as np
import pytest
import scipy.spatial.distance
import scipy.stats
import torch
import torch.nn.functional as F
from sklearn.covariance import EmpiricalCovariance
from torch import nn

from osr_lightning.errors import UserError
from osr_lightning.models.sampling import LOGITS, PENULTIMATE
from osr_lightning.scoring.detectors import DETECTORS, LOG_PROBABILITY
from osr_lightning.scoring.detectors.mahalanobis import Mahalanobis
from osr_lightning.scoring.detectors.openmax import _SHIFT, OpenMax, fit_weibull
from osr_lightning.scoring.detectors.vim import ViM

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")),
]
NAMES = sorted(DETECTORS)


def data(count=300, width=12, classes=4, seed=0):
    """Features around one direction per class, float32, the layer and the logits it makes of them."""
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Linear(width, classes)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(classes, width) * 2)
        layer.bias.copy_(torch.linspace(-1, 1, classes))
        labels = torch.arange(count) % classes
        spread = torch.linspace(0.2, 1, width)
        features = 2 * F.one_hot(labels, width) + spread * torch.randn(count, width, generator=generator)
        return features, layer(features), labels, layer


def seen(features, logits):
    """What a detector sees of a network of one sample without named blocks."""
    return {PENULTIMATE: features, LOGITS: logits, LOG_PROBABILITY: logits.double().log_softmax(-1)}


def fit(detector, features, logits, labels, layer=None):
    """Fit, the known training images serving as held-out ones too."""
    known = (labels >= 0) & (labels < logits.shape[1])
    detector.fit(seen(features, logits), labels, layer, seen(features[known], logits[known]))
    return detector


def fitted(name, *arguments, **options):
    return fit(DETECTORS[name](**options), *(arguments or data()))


def double(rows):
    return torch.as_tensor(rows, dtype=torch.float64)


def close(actual, expected, rtol=1e-9, atol=1e-9):
    torch.testing.assert_close(actual, double(expected), rtol=rtol, atol=atol)


# what holds for all of them -------------------------------------------------------------------------


def test_the_names_are_the_registry():
    gaussian = {"fisher", "mahalanobis", "relative_mahalanobis"}
    assert set(DETECTORS) == {*gaussian, "fdbd", "knn", "nci", "openmax", "residual", "vim"}
    assert all(detector.name == name for name, detector in DETECTORS.items())


@pytest.mark.parametrize("name", NAMES)
def test_training_images_need_no_probabilities(name):
    """Of ten thousand classes they would take gigabytes."""
    features, logits, labels, layer = data()
    whole = seen(features, logits)
    both = [DETECTORS[name](), DETECTORS[name]()]
    assert not both[0].fits_probability
    both[0].fit(whole, labels, layer, whole)
    layers = {name: values for name, values in whole.items() if name != "log_probability"}
    both[1].fit(layers, labels, layer, whole, classes=logits.shape[1])
    assert all(torch.equal(a, b) for a, b in zip(*(one.buffers() for one in both), strict=True))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", NAMES)
def test_scores_are_finite_float64_and_higher_for_unknown_images(name, device):
    features, logits, labels, layer = data()
    on_device = (features.to(device), logits.to(device), labels.to(device), layer.to(device))
    detector = DETECTORS[name]().to(device)
    assert not detector.fitted
    fit(detector, *on_device)
    assert detector.fitted
    assert {buffer.device for buffer in detector.buffers()} == {on_device[0].device}
    known = detector(seen(*on_device[:2]))
    unknown_features = 4 * torch.randn(100, 12, generator=torch.Generator().manual_seed(1)).abs().to(device)
    unknown_features[:, :4] = 0
    unknown = detector(seen(unknown_features, layer(unknown_features)))
    assert known.shape == (300,)
    assert known.dtype == torch.float64
    assert known.isfinite().all()
    assert unknown.isfinite().all()
    assert unknown.mean() > known.mean()
    close(known.cpu(), fitted(name)(seen(features, logits)), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_fitting_is_deterministic_and_a_second_fit_forgets_the_first(name):
    features, logits, *_ = data()
    detector = fitted(name, *data(seed=3, count=80))
    fit(detector, *data())
    close(detector(seen(features, logits)), fitted(name)(seen(features, logits)), rtol=0, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_an_image_scores_the_same_in_every_batch(name):
    features, logits, *_ = data()
    detector = fitted(name)
    one_by_one = torch.cat([detector(seen(f[None], z[None])) for f, z in zip(features, logits, strict=True)])
    close(one_by_one, detector(seen(features, logits)))
    assert detector(seen(features[:0], logits[:0])).shape == (0,)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_loads_into_a_fresh_module(name, device):
    features, logits, *_ = data()
    holder = nn.ModuleDict({"weights": nn.Linear(2, 2), "detector": fitted(name)})
    file = io.BytesIO()
    torch.save(holder.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)

    fresh = nn.ModuleDict({"weights": nn.Linear(2, 2), "detector": DETECTORS[name]()}).to(device)
    fresh.load_state_dict(state)
    assert {tensor.device.type for tensor in fresh.state_dict().values()} == {torch.device(device).type}
    fresh.cpu()
    expected = holder["detector"](seen(features, logits))
    close(fresh["detector"](seen(features, logits)), expected, rtol=0, atol=0)
    close(copy.deepcopy(fresh)["detector"](seen(features, logits)), expected, rtol=0, atol=0)

    # a fit of other sizes gives way, and so does any fit where the checkpoint holds none
    other = fitted(name, *data(width=9, classes=3))
    other.load_state_dict(holder["detector"].state_dict())
    close(other(seen(features, logits)), expected, rtol=0, atol=0)
    other.load_state_dict(DETECTORS[name]().state_dict())
    assert not other.fitted


@pytest.mark.parametrize("name", NAMES)
def test_a_score_that_is_not_fitted(name):
    features, logits, *_ = data()
    detector = DETECTORS[name]()
    assert not detector.state_dict()
    with pytest.raises(UserError, match=f"{name} is not fitted .* run calibrate or run"):
        detector(seen(features, logits))


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_leaves_a_fit_alone(name):
    features, logits, *_ = data()
    detector = fitted(name)
    expected = detector(seen(features, logits))
    close(nn.Sequential(detector).to(torch.bfloat16)[0](seen(features, logits)), expected, rtol=0, atol=0)
    assert detector(seen(features.bfloat16(), logits.half())).dtype == torch.float64


@pytest.mark.parametrize("name", NAMES)
def test_a_fit_in_inference_mode_can_be_used_outside(name):
    detector = DETECTORS[name]()
    with torch.inference_mode():
        fit(detector, *data())
    assert not any(buffer.is_inference() for buffer in detector.buffers())
    detector.load_state_dict(fitted(name).state_dict())


@pytest.mark.parametrize("name", NAMES)
def test_unknown_training_images_are_left_out(name):
    features, logits, labels, layer = data()
    odd = torch.full((300, 12), 9.0)
    mixed = (torch.cat([features, odd]), torch.cat([logits, odd[:, :4]]), torch.cat([labels, labels * 0 + 4]))
    close(
        fitted(name, *mixed, layer)(seen(features, logits)),
        fitted(name)(seen(features, logits)),
        rtol=0,
        atol=0,
    )
    with pytest.raises(UserError, match="known classes, got none"):
        fitted(name, odd, odd[:, :4], labels * 0 - 1, layer)


@pytest.mark.parametrize("name", NAMES)
def test_values_that_are_not_finite(name):
    features, logits, labels, layer = data()
    features[3, 3] = math.nan
    with pytest.raises(UserError, match="finite"):
        fitted(name, features, logits, labels, layer)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "case", ["dead unit", "fewer images than features", "one image per class", "class missing", "one image"]
)
def test_degenerate_training_images(name, case):
    features, logits, labels, layer = data()
    if case == "dead unit":
        features[:, 5] = 0
    keep = {
        "fewer images than features": labels.new_ones(300).cumsum(0) <= 8,
        "one image per class": labels.new_ones(300).cumsum(0) <= 4,
        "class missing": labels != 2,
        "one image": labels.new_ones(300).cumsum(0) <= 1,
    }.get(case, labels >= 0)
    options = {"ridge": 1e-30} if "mahalanobis" in name and case == "fewer images than features" else {}
    detector = fitted(name, features[keep], logits[keep], labels[keep], layer, **options)
    scores = detector(seen(*data(seed=1)[:2]))
    assert scores.isfinite().all()
    # relative to what all images share, one image has no class of its own
    assert len(scores.unique()) > 1 or (case, name) == ("one image", "relative_mahalanobis")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mahalanobis", {"ridge": 0}),
        ("relative_mahalanobis", {"ridge": -1}),
        ("knn", {"k": 0}),
        ("knn", {"max_points": 0}),
        ("vim", {"dimension": -1}),
        ("residual", {"dimension": -1}),
        ("nci", {"alpha": -0.1}),
        ("nci", {"alpha": math.inf}),
        ("openmax", {"tail": 1}),
        ("openmax", {"top": 0}),
    ],
)
def test_options_out_of_range(name, options):
    with pytest.raises(UserError, match=next(iter(options))):
        DETECTORS[name](**options)


# each by hand ---------------------------------------------------------------------------------------

# two classes, means (0, 0) and (10, 0), with the shared covariance diag(1, 4)
SQUARE = double([[1, 2], [1, -2], [-1, 2], [-1, -2], [11, 2], [11, -2], [9, 2], [9, -2]])
SQUARE_LABELS = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
QUERIES = double([[0, 0], [3, 0], [10, 4], [5, 2]])


def test_mahalanobis_by_hand():
    detector = fitted("mahalanobis", SQUARE, SQUARE[:, :2], SQUARE_LABELS, ridge=1e-12)
    # (x - m)^2 / 1 + y^2 / 4
    close(detector(seen(QUERIES, QUERIES)), [0, 9, 4, 26])


def test_relative_mahalanobis_by_hand():
    detector = fitted("relative_mahalanobis", SQUARE, SQUARE[:, :2], SQUARE_LABELS, ridge=1e-12)
    # all images: mean (5, 0), covariance diag(26, 4)
    background = [25 / 26, 4 / 26, 25 / 26 + 4, 1]
    close(detector(seen(QUERIES, QUERIES)), double([0, 9, 4, 26]) - double(background))


def test_mahalanobis_does_not_depend_on_scale_or_offset():
    features, logits, labels, _ = data()
    moved = Mahalanobis()
    fit(moved, 1000 * features.double() + 7, logits, labels)
    expected = fitted("mahalanobis")(seen(features, logits))
    close(moved(seen(1000 * features.double() + 7, logits)), expected, rtol=1e-6)


def test_a_unit_that_no_training_image_activates_counts_most():
    features, logits, labels, layer = data()
    features[:, 5] = 0
    woken = features.clone()
    woken[:, 5] = 0.1
    for name in ("mahalanobis", "vim"):
        detector = fitted(name, features, logits, labels, layer)
        assert (detector(seen(woken, logits)) > detector(seen(features, logits))).all()
    detector = fitted("mahalanobis", features, logits, labels)
    assert (detector(seen(woken, logits)) > detector(seen(features, logits)) + 1e3).all()


def test_relative_mahalanobis_is_the_difference_of_two_distances_with_one_ridge():
    features, logits, labels, _ = data()
    features = features.double()
    features[:, 5] = 0
    asked = data(seed=1)[0].double()  # whose images differ there
    means = torch.stack([features[labels == k].mean(0) for k in range(4)])
    within, total = features - means[labels], features - features.mean(0)
    ridge = 1e-3 * within.square().mean() * torch.eye(features.shape[1])

    def distance(centered, center):
        inverse = torch.linalg.inv(centered.T @ centered / len(centered) + ridge)
        return torch.einsum("bi,ij,bj->b", asked - center, inverse, asked - center)

    nearest = torch.stack([distance(within, mean) for mean in means]).amin(0)
    expected = nearest - distance(total, features.mean(0))
    detector = fitted("relative_mahalanobis", features, logits, labels, ridge=1e-3)
    close(detector(seen(asked, logits)), expected, rtol=1e-9)
    # which are as far in a unit that no training image activates, and there numbers would be left to cancel
    woken = asked.clone()
    woken[:, 5] = 100
    close(detector(seen(woken, logits)), expected, atol=1e-6)


def test_knn_by_hand():
    # unit vectors at these angles; their length does not matter
    angles = torch.tensor([0.0, 10, 30, 90]).deg2rad().double()
    circle = torch.stack([angles.cos(), angles.sin()], 1)
    training = circle * double([[1], [5], [0.1], [2]])
    logits, labels = torch.zeros(4, 2), torch.zeros(4, dtype=torch.long)
    for k, degrees in {1: 0, 2: 10, 3: 30, 4: 90, 50: 90}.items():
        detector = fitted("knn", training, logits, labels, k=k)
        chord = 2 * math.sin(math.radians(degrees) / 2)
        close(detector(seen(double([[7, 0]]), logits[:1])), [chord], atol=1e-6)
    # of no length at all: distance 1 to everything
    close(fitted("knn", training, logits, labels)(seen(double([[0, 0]]), logits[:1])), [1], atol=1e-6)


def test_knn_in_chunks_is_the_sorted_distance(monkeypatch):
    features, logits, *_ = data()
    monkeypatch.setattr("osr_lightning.scoring.detectors.knn._CHUNK", 1000)
    unit = F.normalize(features.double())
    expected = scipy.spatial.distance.cdist(unit, unit)
    expected.sort(axis=1)
    close(fitted("knn", k=7)(seen(features, logits)), expected[:, 6], atol=1e-6)


def test_knn_keeps_a_seeded_share_of_the_training_images():
    features, logits, labels, _ = data()
    arguments = (features, logits, labels)
    drawn = [fitted("knn", *arguments, max_points=50, seed=seed).neighbours for seed in (0, 0, 1)]
    assert drawn[0].shape == (50, 12)
    assert len(drawn[0].unique(dim=0)) == 50
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert len(fitted("knn", *arguments, max_points=1000).neighbours) == 300


def test_vim_by_hand():
    layer = nn.Linear(2, 2).double()
    with torch.no_grad():
        layer.weight.copy_(2 * torch.eye(2))
        layer.bias.copy_(double([-2, 0]))
    # about the origin (1, 0), where the logits vanish, x varies most and y is the residual
    features = double([[11, 1], [11, -3], [-9, 1], [-9, 1]])
    logits = layer(features).detach()
    detector = fitted("vim", features, logits, torch.tensor([0, 0, 1, 1]), layer)
    close(detector.origin, [1, 0])
    # largest logits 20, 20, 2, 2; lengths of the residuals, nearly y, 1, 3, 1, 1
    axis = torch.linalg.eigh((features - double([1, 0])).T @ (features - double([1, 0]))).eigenvectors[:, 0]
    lengths = ((features - double([1, 0])) @ axis).abs()
    alpha = 11 / lengths.mean()
    close(detector.alpha, alpha)
    close(detector(seen(features, logits)), alpha * lengths - logits.logsumexp(1))
    # the virtual logit is as large, on average, as the largest real one
    close((detector(seen(features, logits)) + logits.logsumexp(1)).mean(), 11)
    # the length alone
    alone = fitted("residual", features, logits, torch.tensor([0, 0, 1, 1]), layer)
    close(alone(seen(features, logits)), lengths)


@pytest.mark.parametrize(("width", "dimension"), [(1, 0), (12, 6), (767, 383), (768, 512), (2048, 1000)])
def test_the_principal_space_of_vim(width, dimension, monkeypatch):
    # large decompositions take long, and only the sizes matter
    monkeypatch.setattr(
        torch.linalg, "eigh", lambda m: torch.return_types.linalg_eigh((m[0], torch.eye(len(m)).to(m)))
    )
    layer = nn.Linear(width, 2)
    features = torch.ones(2, width)
    detector = fitted("vim", features, layer(features), torch.tensor([0, 1]), layer)
    assert detector.residual.shape == (width, width - dimension)


def test_vim_where_training_images_leave_no_residual():
    layer = nn.Linear(4, 2, bias=False)
    features = double([[1, 0, 0, 0], [0, 2, 0, 0], [3, 0, 0, 0]])
    logits = layer.double()(features).detach()
    detector = fitted("vim", features, logits, torch.tensor([0, 1, 0]), layer)
    close(detector.alpha, logits.amax(1).mean() / 2e-6)  # 1e-6 of the mean length
    assert detector(seen(double([[0, 0, 1, 0]]), logits[:1])).isfinite()


def test_scores_without_a_bias_a_layer_or_room():
    features, logits, labels, layer = data()
    without = nn.Linear(12, 4, bias=False)
    assert not fitted("vim", features, logits, labels, without).origin.any()
    for name in ("vim", "residual", "fdbd", "nci"):
        with pytest.raises(UserError, match=f"{name} needs a linear last layer"):
            fitted(name, features, logits, labels)
    with pytest.raises(UserError, match="below the 12 features"):
        fitted("vim", features, logits, labels, layer, dimension=12)


def three_classes():
    """Weights (3, 0), (0, 4) and (0, 0), no bias, features about (1, 1) and the logits."""
    layer = nn.Linear(2, 3).double()
    with torch.no_grad():
        layer.weight.copy_(double([[3, 0], [0, 4], [0, 0]]))
        layer.bias.zero_()
    features = double([[2, 1], [0, 1], [1, 2], [1, 0]])
    return features, layer(features).detach(), torch.tensor([0, 1, 1, 0]), layer


def test_fdbd_by_hand():
    training = three_classes()
    queries = double([[5, 4], [1, 3], [1, 1]])
    logits = training[-1](queries).detach()  # 15, 16, 0; 3, 12, 0; 3, 4, 0
    # class 1 each time: 5 from the weights of class 0, 4 from those of class 2
    lengths = double([5, 2, 1e-12])  # from (1, 1)
    distances = double([1 / 5 + 16 / 4, 9 / 5 + 12 / 4, 1 / 5 + 4 / 4]) / 2
    close(fitted("fdbd", *training)(seen(queries, logits)), -distances / lengths)


def test_fdbd_of_classes_of_the_same_weights():
    features, logits, labels, layer = three_classes()
    with torch.no_grad():
        layer.weight.fill_(1)
    logits = layer(features).detach()
    assert fitted("fdbd", features, logits, labels, layer)(seen(features, logits)).isfinite().all()


def test_nci_by_hand():
    training = three_classes()
    queries = double([[5, 4], [4, -3], [1, 1]])
    logits = training[-1](queries).detach()  # of the classes 1, 0 and 1
    # (0, 4) (4, 3) / 5, (3, 0) (3, -4) / 5, and of no length at all
    nearness = double([12 / 5, 9 / 5, 0])
    close(fitted("nci", *training, alpha=0.5)(seen(queries, logits)), -nearness - 0.5 * double([9, 7, 2]))
    close(fitted("nci", *training, alpha=0)(seen(queries, logits)), -nearness)


def test_openmax_by_hand():
    # class 0 at (4, 0) with distances 1, 1, 2, 2; the last two images are not classified correctly
    logits = double([[5, 0], [3, 0], [4, 2], [4, -2], [3, 1], [0, 9]])
    labels = torch.tensor([0, 0, 0, 0, 1, 0])
    detector = fitted("openmax", logits, logits, labels, tail=2)
    close(detector.means[0], [4, 0])
    # a tail of two equal distances is a step at that distance: w_0 is 0 below 2, 1 above
    near, far = double([[4, 1]]), double([[9, 1]])
    # a = 1, 1/2; w_1 = 1: (4, 1) keeps 4, moves half of the 1
    close(detector(seen(near, near)), [0.5 - math.log(math.exp(4) + math.exp(0.5))])
    # (9, 1) moves the 9, too
    close(detector(seen(far, far)), [9.5 - math.log(1 + math.exp(0.5))])
    # at the step itself the Weibull share is 1 - 1/e
    share = 1 - math.exp(-1)
    edge = double([[6, 0]])
    close(detector(seen(edge, edge)), [6 * share - math.log(math.exp(6 - 6 * share) + 1)])


@pytest.mark.parametrize("top", [1, 3])
def test_openmax_revises_only_the_largest_logits(top):
    features, logits, labels, _ = data()
    detector = fitted("openmax", features, logits, labels, top=top)
    distances = (logits.double()[:, None] - detector.means).norm(dim=2)
    shares = scipy.stats.weibull_min.cdf(
        (distances - detector.smallest + _SHIFT).numpy(),
        detector.shape.numpy(),
        scale=detector.scale.numpy(),
    )
    rank = 4 - torch.from_numpy(scipy.stats.rankdata(logits.double().numpy(), axis=1))  # 0 is the largest
    moved = logits.double() * (1 - rank / top).clamp(min=0) * double(shares)
    close(detector(seen(features, logits)), moved.sum(1) - (logits - moved).logsumexp(1))


@pytest.mark.parametrize(("shape", "scale"), [(0.5, 1.0), (2.0, 3.0), (40.0, 0.1)])
def test_weibull_is_that_of_scipy(shape, scale):
    values = scipy.stats.weibull_min.rvs(shape, scale=scale, size=20, random_state=0)
    expected = scipy.stats.weibull_min.fit(values, floc=0)
    assert fit_weibull(torch.from_numpy(values)) == pytest.approx((expected[0], expected[2]), rel=1e-3)
    # no other distribution makes them likelier
    best = scipy.stats.weibull_min.logpdf(values, expected[0], scale=expected[2]).sum()
    found, at = fit_weibull(torch.from_numpy(values))
    assert scipy.stats.weibull_min.logpdf(values, found, scale=at).sum() >= best - 1e-9


def test_log_odds_do_not_tie_where_the_probability_does():
    features, logits, labels, layer = data()
    far = torch.linspace(100, 200, 50)[:, None] * torch.ones(50, 12)
    for detector in (OpenMax(), ViM()):
        fit(detector, features, logits, labels, layer)
        scores = detector(seen(far, layer(far).detach()))
        assert len(scores.sigmoid().unique()) == 1
        assert len(scores.unique()) == 50


# pytorch-ood ----------------------------------------------------------------------------------------


@pytest.fixture
def ood():
    return pytest.importorskip("pytorch_ood.detector", exc_type=ImportError)


def test_mahalanobis_is_that_of_pytorch_ood(ood):
    features, logits, labels, _ = data()
    reference = ood.Mahalanobis(None).fit_features(features, labels).predict_features(features)
    # half the distance, and a covariance that is not divided by N
    expected = reference.double() * 2 * len(features)
    close(fitted("mahalanobis", ridge=1e-12)(seen(features, logits)), expected, rtol=1e-4)


def test_relative_mahalanobis_is_that_of_pytorch_ood(ood):
    features, logits, labels, _ = data()
    reference = ood.RMD(None).fit_features(features, labels).predict_features(features)
    expected = reference.double() * len(features)
    close(fitted("relative_mahalanobis", ridge=1e-12)(seen(features, logits)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("k", [1, 7, 50])
def test_knn_is_that_of_pytorch_ood(ood, k):
    features, logits, labels, _ = data()
    queries = data(seed=1)[0]
    expected = ood.KNN(None, k=k).fit_features(features, labels).predict_features(queries)
    close(fitted("knn", k=k)(seen(queries, logits)), expected, atol=1e-6)


@pytest.mark.parametrize("dimension", [3, 6])
def test_vim_is_that_of_pytorch_ood(ood, dimension):
    features, logits, labels, layer = data()
    reference = ood.ViM(None, dimension, layer.weight, layer.bias).fit_features(features, labels)
    expected = reference.predict_features(features)
    close(fitted("vim", dimension=dimension)(seen(features, logits)), expected, rtol=1e-4, atol=1e-4)


def test_fdbd_is_that_of_pytorch_ood(ood):
    features, logits, _, layer = data()
    expected = ood.fDBD(None, layer).fit_features(features).predict_features(features)
    close(fitted("fdbd")(seen(features, logits)), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("alpha", [0.0, 0.001, 0.5])
def test_nci_is_that_of_pytorch_ood(ood, alpha):
    features, logits, _, layer = data()
    expected = ood.NCI(None, layer, alpha).fit_features(features).predict_features(features)
    close(fitted("nci", alpha=alpha)(seen(features, logits)), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dimension", [3, 6])
def test_the_residual_is_that_of_scikit_learn(dimension):
    """As the authors and OpenOOD have it: the least directions of the covariance about the origin."""
    features, logits, _, layer = data()
    weight, bias = (part.detach().double().numpy() for part in (layer.weight, layer.bias))
    origin = -np.linalg.pinv(weight) @ bias
    centered = features.double().numpy() - origin
    covariance = EmpiricalCovariance(assume_centered=True).fit(centered).covariance_
    values, axes = np.linalg.eig(covariance)
    least = axes[:, np.argsort(-values)[dimension:]]
    expected = np.linalg.norm(centered @ least, axis=1)
    close(fitted("residual", dimension=dimension)(seen(features, logits)), expected, rtol=1e-6)


@pytest.mark.parametrize("top", [1, 3, 4])
def test_openmax_is_that_of_pytorch_ood(ood, top):
    features, logits, labels, _ = data()
    correct = logits.argmax(1) == labels  # which pytorch-ood leaves to its caller
    reference = ood.OpenMax(None, tailsize=20, alpha=top)
    reference.fit_logits(logits[correct].double(), labels[correct])
    expected = reference.predict_logits(logits.double())
    close(fitted("openmax", top=top)(seen(features, logits)).sigmoid(), expected, atol=1e-4)
