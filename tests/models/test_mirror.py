"""``model.mirror``: answers of an image and its mirror image together."""

import copy

import numpy as np
import pytest
import torch
from recognisers import ENSEMBLE, SHARED, SINGLE, SPEC, DeepDropout, make, pictures

from osr_lightning import load, save
from osr_lightning.deploy.export import export
from osr_lightning.errors import UserError
from osr_lightning.recogniser import checkpoint

IMAGES = pictures(12, seed=8)
INDEPENDENT = {**SHARED, "masks": "independent"}
LAYERS = ("penultimate", "logits")


def mirrored(recipe, score="fisher", **options):
    """Two recognisers of the same weights: one that looks at the images alone, and one that looks at mirror
    images too."""
    plain = make(recipe, score, **options)
    other = copy.deepcopy(plain)
    other.sampler.mirror = True
    return plain, other


@pytest.mark.parametrize(
    "recipe", [SINGLE, SHARED, INDEPENDENT, ENSEMBLE], ids=["single", "shared", "independent", "ensemble"]
)
def test_logits_and_features_are_the_mean_of_both(recipe):
    plain, both = (one.sampler for one in mirrored(recipe, "msp"))
    images = torch.rand(5, *SPEC.input_shape)
    for sampler in (plain, both):
        sampler.restart()
    with torch.inference_mode():
        as_it_is, turned = plain(images, LAYERS), plain(torch.flip(images, [3]), LAYERS)
        found = both(images, LAYERS)
        assert found.logits.shape == as_it_is.logits.shape
        torch.testing.assert_close(found.logits, (as_it_is.logits + turned.logits) / 2)
        for name in LAYERS:
            torch.testing.assert_close(
                found.features[name], (as_it_is.features[name] + turned.features[name]) / 2
            )
        # what detectors take for granted still holds
        torch.testing.assert_close(both.last_layer(found.features["penultimate"]), found.features["logits"])
    assert not torch.allclose(found.logits, as_it_is.logits)


def test_an_image_and_its_mirror_image_get_one_answer():
    plain, both = mirrored(SHARED)
    turned = IMAGES.flip(-1)
    with torch.inference_mode():
        here, there = both.describe(IMAGES), both.describe(turned)
        assert not torch.allclose(
            plain.describe(IMAGES)["score/fisher"], plain.describe(turned)["score/fisher"]
        )
    for name, values in here.items():
        torch.testing.assert_close(values, there[name], msg=name)


def test_dropouts_deep_inside_of_a_network():
    plain, both = mirrored({**SHARED, "network": None}, "msp", network=DeepDropout(3, 3))
    with torch.inference_mode():
        mean = (
            plain.sampler(plain.standardise(IMAGES)).logits
            + plain.sampler(plain.standardise(IMAGES.flip(-1))).logits
        ) / 2
        torch.testing.assert_close(both.sampler(both.standardise(IMAGES)).logits, mean)


def test_a_checkpoint_keeps_it(tmp_path):
    made = make({**SHARED, "mirror": True}, "fisher")
    assert made.sampler.mirror
    save(made, tmp_path / "a.ckpt")
    again = load(tmp_path / "a.ckpt")
    assert again.sampler.mirror
    assert again.predict(IMAGES.numpy()) == made.predict(IMAGES.numpy())
    old = checkpoint.read(tmp_path / "a.ckpt")
    del old["recogniser"]["recipe"]["mirror"]  # as earlier versions wrote it
    checkpoint.write(old, tmp_path / "old.ckpt")
    assert not load(tmp_path / "old.ckpt").sampler.mirror


@pytest.mark.parametrize("recipe", [SINGLE, SHARED, ENSEMBLE], ids=["single", "shared", "ensemble"])
def test_an_exported_graph_looks_at_both(recipe, tmp_path):
    made = make({**recipe, "mirror": True}, "fisher")
    check = export(made, tmp_path / "a.onnx", IMAGES.numpy())
    assert check.difference < 2e-5
    answers = load(tmp_path / "a.onnx").answer(IMAGES.flip(-1).numpy())
    np.testing.assert_allclose(answers.score, made.answer(IMAGES.numpy()).score, rtol=1e-4)


def test_an_explanation_has_a_map_of_the_image_alone():
    plain, both = mirrored(SINGLE, "msp")
    here, there = (one.explain(IMAGES[0].numpy()) for one in (plain, both))
    assert here.prediction.score != there.prediction.score
    np.testing.assert_array_equal(here.map.values, there.map.values)


def test_a_frozen_backbone_sees_each_image_once():
    network = {"class_path": "Backbone", "init_args": {"name": "resnet18", "weights": None, "style": False}}
    recipe = {"sampler": "single", "network": network, "score": "msp", "mirror": True}
    with pytest.raises(UserError, match="frozen backbone sees each image once: leave"):
        checkpoint.build(recipe, SPEC._replace(channels=3))
    tuned = {**recipe, "network": {**network, "init_args": {**network["init_args"], "finetune": True}}}
    assert checkpoint.build(tuned, SPEC._replace(channels=3)).sampler.mirror
