"""RandAugment on batches: torchvision's operations, each image with its own draw."""

import pytest
import torch
from torchvision.transforms import InterpolationMode, v2

from osr_lightning.data import pixel_ops
from osr_lightning.data.augment import _OPERATIONS, ON_PIXELS, augment, names, photos, rand_augment
from osr_lightning.data.pixel_ops import change, change_each

pytestmark = pytest.mark.usefixtures("seeded")

THEIRS = {
    "identity": "Identity",
    "shear_x": "ShearX",
    "shear_y": "ShearY",
    "translate_x": "TranslateX",
    "translate_y": "TranslateY",
    "rotate": "Rotate",
    "brightness": "Brightness",
    "colour": "Color",
    "contrast": "Contrast",
    "sharpness": "Sharpness",
    "posterize": "Posterize",
    "solarize": "Solarize",
    "autocontrast": "AutoContrast",
    "equalize": "Equalize",
}


def pictures(batch=6, channels=3, side=32) -> torch.Tensor:
    """Smooth pictures of differing brightness, on which every operation shows."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(batch, channels, 5, 5, generator=generator) * 200
    fine = torch.nn.functional.interpolate(coarse, (side, side), mode="bilinear")
    return (fine + 20 * torch.rand(batch, channels, side, side, generator=generator)).to(torch.uint8)


@pytest.mark.parametrize("index", range(14))
@pytest.mark.parametrize("channels", [1, 3])
def test_operations_and_magnitudes_are_torchvisions(index, channels):
    operation, least, most, signed = _OPERATIONS[index]
    name, images = THEIRS[operation], pictures(channels=channels)
    reference = v2.RandAugment()
    space, theirs_signed = reference._AUGMENTATION_SPACE[name]
    magnitudes = space(31, 32, 32)
    assert signed == theirs_signed
    for sign in (1, -1) if signed else (1,):
        theirs = 0.0 if magnitudes is None else sign * float(magnitudes[9])
        expected = reference._apply_image_or_video_transform(
            images, name, theirs, interpolation=InterpolationMode.NEAREST, fill={}
        )
        found = change(images, operation, sign * (least + 0.3 * (most - least)))
        # their magnitudes are float32, so that a colour may round otherwise
        assert (found.int() - expected.int()).abs().max() <= (name == "Color")
        if name == "Identity" or (name == "Color" and channels == 1):
            assert torch.equal(found, images)
        else:
            assert not torch.equal(found, images)


def test_all_of_torchvisions_operations_are_there():
    assert sorted(THEIRS[operation] for operation, *_ in _OPERATIONS) == sorted(
        v2.RandAugment._AUGMENTATION_SPACE
    )


def test_each_image_gets_its_own_operation():
    images = pictures(4)
    given = images.clone()
    operations = ["posterize", "solarize", "posterize", "posterize"]
    magnitudes = [2, 100, 2, 5]
    found = change_each(images, operations, magnitudes)
    for one, operation, magnitude, expected in zip(images, operations, magnitudes, found, strict=True):
        assert torch.equal(change(one[None], operation, magnitude)[0], expected)
    assert torch.equal(images, given)
    assert (found[2] % 64 == 0).all()  # of eight bits the two highest


def test_two_operations_follow_photos(monkeypatch):
    drawn = []

    def note(images, operations, magnitudes):
        drawn.append(operations)
        assert not [value for value in magnitudes if abs(value) > 255]
        return images

    monkeypatch.setattr(pixel_ops, "change_each", note)
    images = pictures(1).repeat(4000, 1, 1, 1)[:, :, :8, :8]
    torch.manual_seed(3)
    found = rand_augment(images)
    torch.manual_seed(3)
    assert torch.equal(found, photos(images.float()).to(torch.uint8))
    assert len(drawn) == 2
    for names_of_round in drawn:  # a share of 1/14 each, whose deviation is 0.0041
        for name in THEIRS:
            assert abs(names_of_round.count(name) / 4000 - 1 / 14) < 5 * 0.0041


@pytest.mark.parametrize("name", ON_PIXELS)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [1, 2, 5, 17, 32])
def test_shape_and_type_are_kept_and_the_given_images_too(name, channels, side):
    images = pictures(20, channels, side)
    given = images.clone()
    found = ON_PIXELS[name](images)
    assert found.shape == images.shape
    assert found.dtype == torch.uint8
    assert torch.equal(images, given)


@pytest.mark.parametrize("name", ON_PIXELS)
def test_an_image_is_not_mixed_with_its_neighbours_and_autocast_changes_nothing(name):
    images = pictures(30)
    other = torch.cat([images[:1], 255 - images[1:]])
    found = []
    for one in (images, other):
        torch.manual_seed(2)
        with torch.autocast("cpu", torch.bfloat16, enabled=one is other):
            found.append(ON_PIXELS[name](one))
    assert torch.equal(found[0][0], found[1][0])
    torch.manual_seed(2)
    assert torch.equal(ON_PIXELS[name](images), found[0])  # the global generator draws


def test_pixels_are_augmented_before_they_are_standardised_or_after():
    images = pictures()
    assert {"photos", "rand_augment"} <= set(names())
    for name, expected in (
        ("rand_augment", lambda: rand_augment(images) / 255),
        ("photos", lambda: photos(images / 255)),
    ):
        torch.manual_seed(4)
        found = augment(name, images, lambda pixels: pixels / 255)
        torch.manual_seed(4)
        assert torch.equal(found, expected())
