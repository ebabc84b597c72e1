"""Why an image is known or unknown: the parts of its score, its nearest known images, and the map."""

import copy
import json
import threading
from dataclasses import replace

import numpy as np
import photos
import pytest
import torch
from recognisers import ENSEMBLE, RECIPES, SHARED, SINGLE, make, pictures
from torch import nn

from osr_lightning import load, save
from osr_lightning.data.batch import Batch
from osr_lightning.data_spec import DataSpec
from osr_lightning.models.backbones import Backbone
from osr_lightning.models.places import find_places, windows
from osr_lightning.models.sampling import PENULTIMATE, Single
from osr_lightning.recogniser import explain
from osr_lightning.recogniser.checkpoint import build
from osr_lightning.recogniser.explain import WORDS
from osr_lightning.recogniser.known_images import KnownImages, kept_features
from osr_lightning.scoring.calibration import fixed_calibration, known_quantile
from osr_lightning.scoring.detectors import DETECTORS
from osr_lightning.scoring.scores import SCORES
from osr_lightning.training.calibration import fit_detectors

SIZE, CELL = 28, 4  # pixels of an image, and of one of its 7 x 7 places
SPEC = DataSpec(("red", "green"), 3, SIZE, (0.5,) * 3, (0.25,) * 3)
COLOURS = ((200, 60, 60), (60, 200, 60))


class Colours(nn.Module):
    """A network whose features are an image's mean colour, of the means of its places."""

    def __init__(self) -> None:
        super().__init__()
        self.places = nn.AvgPool2d(CELL)
        self.last = nn.Linear(3, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.last(self.places(images).mean((2, 3)))


def coloured(label: int, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, 20, (3, SIZE, SIZE))
    tint = np.random.default_rng(seed).normal(0, 6, (3, 1, 1))
    return (np.array(COLOURS[label])[:, None, None] + tint + noise).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module", params=[1, 2], ids=["one view", "two views"])
def known(request):
    """A recogniser of two colours with its known images."""
    torch.manual_seed(0)
    recogniser = build(
        {"sampler": "single", "score": "fisher", "network": None},
        SPEC,
        network=lambda num_classes: Backbone(
            num_classes, "tests.Colours", "own", factory=Colours, views=request.param
        ),
    ).eval()
    images = torch.from_numpy(np.stack([coloured(row % 2, row) for row in range(60)]))
    labels = torch.arange(60) % 2
    network = recogniser.sampler.network
    with torch.no_grad():
        raw = network.body(recogniser.standardise(images))
        network.direction.mean.copy_(raw.mean(0))
        recogniser.sampler.last_layer.weight.copy_(torch.tensor([[1.0, -1, 0], [-1, 1, 0]]))
    nothing = torch.zeros(60, dtype=torch.int64)
    batch = [Batch(images, labels, nothing, nothing)]
    fit_detectors(recogniser, batch, batch)
    scores = recogniser.describe(images)["score/fisher"].numpy()
    value = known_quantile(scores, 0.05)
    record = fixed_calibration(value)
    kept = tuple(np.sort(scores).tolist())
    recogniser.threshold.records["fisher"] = record.__class__(
        **{**vars(record), "method": "known_quantile", "count_known": 60, "known_scores": kept}
    )
    recogniser.known_images = KnownImages(
        kept_features(raw),
        labels,
        labels == 9,
        torch.zeros(60, 16, dtype=torch.uint8),
        images[:, :, ::4, ::4].contiguous(),
        [f"{row}.png" for row in range(60)],
    )
    return recogniser


# parts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", RECIPES)
def test_the_parts_of_fisher_add_up_to_the_score(kind):
    recogniser = make(RECIPES[kind], "fisher")
    image = pictures(3)[2].numpy()
    why = recogniser.explain_pixels(image)
    detector = recogniser.detectors["fisher"]
    assert len(why.parts) == 1 + len(detector.layers)
    assert sum(part.contribution for part in why.parts) == pytest.approx(why.prediction.score, rel=1e-6)
    for part in why.parts:
        assert part.contribution == pytest.approx(-part.weight * np.log(part.p))
    assert why.prediction.score == recogniser.answer(image[None]).score[0]
    assert why.prediction.p_value is None  # the threshold is a number


@pytest.mark.parametrize("score", ["entropy", "knn", "mahalanobis"])
def test_another_score_is_its_own_one_part(score):
    why = make(SINGLE, score).explain_pixels(pictures(1)[0].numpy())
    (part,) = why.parts
    assert part.statistic == part.contribution == why.prediction.score
    assert part.p is None
    assert part.says == WORDS[score]


@pytest.mark.parametrize("score", ["fisher", "entropy"])
def test_the_parts_add_up_to_a_score_that_is_shifted_by_its_class(score):
    recogniser = make(SINGLE, score)
    plain = [recogniser.explain_pixels(one) for one in pictures(4).numpy()]
    classes = recogniser.spec.num_classes
    shifts = tuple(0.25 * label for label in range(classes))
    record = fixed_calibration(1.0)
    recogniser.threshold.records[score] = replace(record, method="class_quantile", class_shifts=shifts)
    recogniser.threshold.fixed = None
    added = set()
    for image, before in zip(pictures(4).numpy(), plain, strict=True):
        why = recogniser.explain_pixels(image)
        shift = shifts[recogniser.spec.classes.index(why.resembles)]
        assert why.prediction.score == pytest.approx(before.prediction.score + shift)
        assert sum(part.contribution for part in why.parts) == pytest.approx(why.prediction.score, rel=1e-6)
        count = len(before.parts)
        for one, other in zip(why.parts[:count], before.parts, strict=True):
            assert one.contribution == pytest.approx(other.contribution)
        further = why.parts[count:]
        assert [(part.name, part.contribution, part.p) for part in further] == (
            [("class_threshold", shift, None)] if shift else []
        )
        added.add(shift)
    assert max(added) > 0


def test_every_score_has_words():
    assert {*WORDS} == {*SCORES, *DETECTORS} - {"fisher"}


def test_each_statistic_has_its_own_share_of_known_images(known):
    why = known.explain_pixels(coloured(0, 3))
    entropy, distance = why.parts
    assert (entropy.says, entropy.weight) == ("uncertainty of the logits", 2)
    assert distance.says == "distance of the features from the class's"
    references = known.detectors["fisher"].references[1]
    rank = int((references >= distance.statistic - 1e-9).sum())
    assert rank / 61 <= distance.p + 1e-9 <= (rank + 1) / 61 + 1e-6
    odd = known.explain_pixels(np.full((3, SIZE, SIZE), 90, np.uint8))
    assert odd.prediction.unknown
    assert odd.prediction.p_value == pytest.approx(1 / 61)


# near -------------------------------------------------------------------------------------------------


def test_the_nearest_of_a_known_image_is_itself(known):
    for row in (0, 7, 33):
        why = known.explain_pixels(coloured(row % 2, row))
        first = why.nearest[0]
        assert (first.file, first.label) == (f"{row}.png", SPEC.classes[row % 2])
        assert first.distance < 1e-4
        assert why.resembles == SPEC.classes[row % 2]
        distances = [one.distance for one in why.nearest]
        assert len(distances) == 5
        assert distances == sorted(distances)


def test_distances_are_those_of_a_loop(known):
    why = known.explain_pixels(coloured(1, 101))
    image = known.standardise(torch.from_numpy(coloured(1, 101)[None]))
    with torch.no_grad():
        own = known.sampler(image, (PENULTIMATE,)).features[PENULTIMATE][0].double()
        others = known.sampler.network.last_input(known.known_images.features.float()).double()
    expected = [1 - float(own @ other / (own.norm() * other.norm())) for other in others]
    assert [one.distance for one in why.nearest] == pytest.approx(sorted(expected)[:5], abs=1e-6)


def test_where_no_known_images_are_kept_a_sentence_says_so():
    why = make(SHARED, "fisher").explain_pixels(pictures(1)[0].numpy())
    assert why.nearest == ()
    assert why.no_nearest.startswith("the checkpoint keeps no known images")


# map --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("row", "column"), [(1, 1), (1, 4), (3, 2), (4, 4)])
def test_the_maximum_lies_on_what_was_pasted(known, row, column):
    image = coloured(0, 200).copy()
    place = slice(row * CELL, (row + 2) * CELL), slice(column * CELL, (column + 2) * CELL)
    image[(slice(None), *place)] = np.array((60, 60, 220))[:, None, None]
    found = known.explain_pixels(image).map
    x, y = (share * SIZE for share in found.maximum)
    assert place[0].start <= y < place[0].stop
    assert place[1].start <= x < place[1].stop
    assert found.places == 7


def with_squares(*squares):
    """A red image; each square is of two places a side: row, column, colour."""
    image = coloured(0, 200).copy()
    for row, column, colour in squares:
        place = slice(row * CELL, (row + 2) * CELL), slice(column * CELL, (column + 2) * CELL)
        image[(slice(None), *place)] = np.array(colour)[:, None, None]
    return image


def test_what_known_images_have_at_their_places_is_nothing_unusual(known):
    recogniser = copy.deepcopy(known)
    usual, foreign = (1, 1, (60, 60, 230)), (4, 4, (60, 60, 210))

    def place(thumbnail):
        thumbnails = torch.from_numpy(thumbnail).expand(60, -1, -1, -1).contiguous()
        recogniser.known_images = replace(recogniser.known_images, thumbnails=thumbnails)
        recogniser._usual.clear()
        return recogniser.explain_pixels(with_squares(usual, foreign)).map.maximum

    assert all(share * 7 < 3.5 for share in place(with_squares()))  # the odder one of the two
    assert all(share * 7 > 3.5 for share in place(with_squares(usual)))


def test_what_is_usual_is_worked_out_once_for_a_score_until_detectors_are_fitted_anew(known, monkeypatch):
    recogniser = copy.deepcopy(known)
    asked = []
    recogniser._usual.clear()
    place = "osr_lightning.recogniser.recogniser.some_of"
    monkeypatch.setattr(place, lambda known: asked.append(1) or explain.some_of(known))
    for row in range(2):
        recogniser.explain_pixels(coloured(0, row), with_map=False)
        assert asked == []
    for row in range(3):
        recogniser.explain_pixels(coloured(0, row))
    assert len(asked) == 1
    recogniser.look(torch.from_numpy(coloured(0, 0)[None]))
    recogniser.explain_pixels(coloured(0, 1))
    assert len(asked) == 2


@pytest.mark.parametrize(("count", "held_out", "expected"), [(60, 40, 14), (60, 0, 15), (9, 3, 3), (1, 0, 1)])
def test_a_few_known_images_are_held_out_ones_where_there_are_any(count, held_out, expected):
    nothing = torch.zeros(count, dtype=torch.int64)
    digests, thumbnails = torch.zeros(count, 16, dtype=torch.uint8), torch.zeros(count, 3, 8, 8).byte()
    rows = torch.arange(count) < held_out
    kept = KnownImages(kept_features(torch.ones(count, 2)), nothing, rows, digests, thumbnails, [""] * count)
    found = explain.some_of(kept)
    assert len(found) == expected
    assert (found.held_out == bool(held_out)).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_small_pictures_are_enlarged_to_what_the_network_takes(channels):
    thumbnails = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    thumbnails[1, :, :, 4:] = 255
    found = explain.enlarged(thumbnails, SPEC._replace(channels=channels))
    assert found.shape == (2, channels, SIZE, SIZE)
    assert found.dtype == torch.uint8
    assert not found[0].any()
    assert (found[1, :, :, :10] < 20).all()
    assert (found[1, :, :, -10:] > 235).all()


def test_what_is_usual_is_the_mean_of_the_differences():
    alone = np.arange(8.0).reshape(2, 2, 2)
    found = [
        [
            explain.Windows(1, 2, np.zeros(2), one, np.ones((2, 2))),
            explain.Windows(2, 2, np.zeros(1), *[one] * 2),
        ]
        for one in alone
    ]
    first, second = explain.usual_differences(found)
    assert np.array_equal(first, [[1, 2], [3, 4]])
    assert np.array_equal(second, np.zeros((2, 2)))


def test_features_of_some_places_are_their_mean(known):
    if known.sampler.network.body.views == 2:
        pytest.skip("of two views it is the mean of two means")
    image = known.standardise(torch.from_numpy(coloured(0, 5)[None]))
    places = find_places(known.sampler, image, (PENULTIMATE,))
    grid = known.sampler.network.body.module.places(image)[0].flatten(1)
    masks = torch.cat([windows(7, 3, 7)[0], ~windows(7, 2, 7)[0]])
    found = places.sample(image, (PENULTIMATE,), masks).features[PENULTIMATE]
    for mask, own in zip(masks, found, strict=True):
        expected = known.sampler.network.last_input(grid[:, mask].mean(1)[None])[0]
        assert torch.allclose(own, expected, atol=1e-5)


def test_windows_are_squares_that_cover_the_grid():
    masks, begins = windows(16, 5, 7)
    assert begins[0] == 0
    assert begins[-1] == 11
    assert len(masks) == len(begins) ** 2 == 49
    assert (masks.sum(1) == 25).all()
    assert masks.any(0).all()


@pytest.mark.parametrize("recipe", [SINGLE, SHARED, ENSEMBLE], ids=["single", "mc_dropout", "ensemble"])
@pytest.mark.parametrize("score", ["fisher", "entropy"])
def test_networks_of_digits_have_a_map_too(recipe, score):
    recogniser = make(recipe, score)
    why = recogniser.explain_pixels(pictures(1)[0].numpy())
    assert why.no_map == ""
    assert np.isfinite(why.map.values).all()
    assert not any(module._forward_hooks for module in recogniser.modules())


@pytest.mark.parametrize("name", ["test_vit", "test_convnext", "test_resnet", "torchvision:resnet18"])
def test_backbones_of_other_kinds_have_places(name):
    torch.manual_seed(0)
    network = Backbone(3, name if ":" in name else f"timm:{name}", None)
    nn.init.normal_(network.head[-1].weight)
    sampler = Single(network.eval())
    places = find_places(sampler, torch.rand(1, 3, 160, 160), (PENULTIMATE,))
    assert places.side >= 5
    masks, _ = windows(places.side, 2, 3)
    found = places.sample(torch.rand(1, 3, 160, 160), (PENULTIMATE,), masks)
    assert found.logits.shape == (1, 9, 3)
    assert len(torch.unique(found.features[PENULTIMATE], dim=0)) == 9


class Flat(nn.Module):
    """A network that sees no places."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.last = nn.Linear(3 * 20 * 20, num_classes)

    def forward(self, images):
        return self.last(images.flatten(1))


def test_a_network_without_places_has_a_sentence_for_a_map():
    why = make({"sampler": "single", "network": None}, "entropy", network=Flat).explain_pixels(
        pictures(1)[0].numpy()
    )
    assert why.map is None
    assert "no layer of the network" in why.no_map


def test_other_threads_answer_as_ever_meanwhile(known):
    images = np.stack([coloured(row % 2, row) for row in range(4)])
    expected = known.answer(images).score
    found, stop = [], threading.Event()

    def ask():
        while not stop.is_set():
            found.append(known.answer(images).score)

    thread = threading.Thread(target=ask)
    thread.start()
    for row in range(5):
        known.explain_pixels(coloured(0, row))
    stop.set()
    thread.join()
    assert len(found) > 0
    assert all(np.array_equal(one, expected) for one in found)


# as a whole -------------------------------------------------------------------------------------------


def test_it_is_plain_json_and_the_same_twice(known):
    first, again = (known.explain(coloured(0, 3).transpose(1, 2, 0)) for _ in range(2))
    told = json.dumps(first.to_json(), allow_nan=False)
    assert told == json.dumps(again.to_json())
    assert json.loads(told)["nearest"][0]["file"] is not None


def test_a_checkpoint_of_the_small_backbone_explains_as_it_did(tmp_path):
    torch.manual_seed(0)
    weights = photos.write_weights(tmp_path / "small.pth", photos.PUBLISHED)
    recipe = {"class_path": "Backbone", "init_args": {"name": photos.PUBLISHED, "weights": str(weights)}}
    recogniser = build(
        {"sampler": "single", "score": "entropy", "network": recipe, "fixed": 0.5},
        SPEC._replace(image_size=160),
    ).eval()
    nn.init.normal_(recogniser.sampler.last_layer.weight)
    save(recogniser, tmp_path / "a.ckpt")
    image = np.random.default_rng(0).integers(0, 255, (160, 160, 3), dtype=np.uint8)
    before, after = recogniser.explain(image), load(tmp_path / "a.ckpt").explain(image)
    assert before.to_json() == after.to_json()
    assert after.map.places == 5
