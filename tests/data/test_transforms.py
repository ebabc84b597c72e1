import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from torchvision.transforms import Compose, Grayscale, Resize

from osr_lightning.data import transforms
from osr_lightning.data.transforms import pil_to_tensor, standardise, to_uint8_images


def photo_crops():
    photo = torch.tensor(load_sample_image("china.jpg"))
    return photo.unfold(0, 32, 32).unfold(1, 32, 32).reshape(-1, 3, 32, 32)


def test_bulk_agrees_with_the_pil_way_of_the_notebook():
    crops = photo_crops()
    pil_way = Compose([Grayscale(), Resize((28, 28), antialias=True)])
    expected = torch.stack(
        [
            torch.from_numpy(np.array(pil_way(Image.fromarray(crop.permute(1, 2, 0).numpy()))))
            for crop in crops
        ]
    )
    ours = to_uint8_images(crops, size=28, channels=1)[:, 0]
    assert (ours.int() - expected.int()).abs().max() <= 2
    assert (ours.float() - expected.float()).mean().abs() < 0.1


def test_grey_is_itu_601_rounded_and_keeps_white():
    colours = torch.tensor([[255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255], [0, 0, 0]])
    images = colours.to(torch.uint8)[:, :, None, None].expand(-1, -1, 4, 4)
    grey = to_uint8_images(images, size=4, channels=1)
    assert grey[:, 0, 0, 0].tolist() == [255, 76, 150, 29, 0]


def test_grey_becomes_three_equal_channels():
    images = torch.arange(16, dtype=torch.uint8).view(1, 1, 4, 4)
    assert torch.equal(to_uint8_images(images, size=4, channels=3), images.repeat(1, 3, 1, 1))


def test_images_of_the_right_kind_are_given_back_as_they_are():
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    assert to_uint8_images(images, size=8, channels=3) is images


def test_chunks_do_not_change_the_result(monkeypatch):
    crops = photo_crops()[:10]
    whole = to_uint8_images(crops, size=20, channels=1)
    monkeypatch.setattr(transforms, "_CHUNK_VALUES", 3 * 3 * 32 * 32)
    assert torch.equal(to_uint8_images(crops, size=20, channels=1), whole)


@pytest.mark.parametrize("shape", [(0, 3, 32, 32), (2, 1, 9, 40), (1, 3, 1, 1)])
def test_any_number_and_shape_of_images(shape):
    result = to_uint8_images(torch.full(shape, 7, dtype=torch.uint8), size=28, channels=1)
    assert result.shape == (shape[0], 1, 28, 28)
    assert (result == 7).all()


@pytest.mark.parametrize(
    ("images", "size", "channels"),
    [
        (torch.zeros(1, 1, 4, 4), 4, 1),
        (torch.zeros(1, 4, 4, dtype=torch.uint8), 4, 1),
        (torch.zeros(1, 2, 4, 4, dtype=torch.uint8), 4, 1),
        (torch.zeros(1, 1, 4, 4, dtype=torch.uint8), 0, 1),
        (torch.zeros(1, 1, 4, 4, dtype=torch.uint8), 4, 2),
    ],
)
def test_to_uint8_images_rejects(images, size, channels):
    with pytest.raises(ValueError, match="must be"):
        to_uint8_images(images, size=size, channels=channels)


def palette(transparency=None):
    image = Image.new("P", (1, 2))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putdata([0, 1])
    if transparency is not None:
        image.info["transparency"] = transparency
    return image


def premultiplied(mode):
    return Image.new({"La": "LA", "RGBa": "RGBA"}[mode], (1, 1), "black").convert(mode)


def depth16(mode, *values):
    kind = {"I": np.int32, "I;16": np.uint16, "F": np.float32}[mode]
    return Image.fromarray(np.array([values], dtype=kind))


@pytest.mark.parametrize(
    ("image", "expected"),  # the expected pixels, channel by channel
    [
        (Image.new("1", (1, 1), 1), [[255]]),
        (Image.new("L", (1, 1), 7), [[7]]),
        (Image.new("LA", (1, 1), (100, 255)), [[100]]),
        (Image.new("LA", (1, 1), (100, 0)), [[255]]),
        (premultiplied("La"), [[0]]),
        (palette(), [[10, 200], [20, 100], [30, 50]]),
        (palette(transparency=1), [[10, 255], [20, 255], [30, 255]]),
        (palette(transparency=b"\x00\xff"), [[255, 200], [255, 100], [255, 50]]),
        (Image.new("RGB", (1, 1), (1, 2, 3)), [[1], [2], [3]]),
        (Image.new("RGBA", (1, 1), (1, 2, 3, 255)), [[1], [2], [3]]),
        (Image.new("RGBA", (1, 1), (1, 2, 3, 0)), [[255], [255], [255]]),
        (Image.new("RGBA", (1, 1), (0, 0, 0, 51)), [[204], [204], [204]]),
        (premultiplied("RGBa"), [[0], [0], [0]]),
        (Image.new("CMYK", (1, 1), (0, 255, 255, 0)), [[255], [0], [0]]),
        (Image.new("HSV", (1, 1), (0, 255, 255)), [[255], [0], [0]]),
        (depth16("I;16", 0, 257, 32896, 65535), [[0, 1, 128, 255]]),
        (depth16("I", 0, 257, 65535, -5, 70000), [[0, 1, 255, 0, 255]]),
        (depth16("F", 0, 0.5, 1, float("nan")), [[0, 128, 255, 0]]),
        (depth16("F", -3, 1, 254.6, 300), [[0, 1, 255, 255]]),
    ],
    ids=lambda value: getattr(value, "mode", ""),
)
def test_pil_modes(image, expected):
    pixels = pil_to_tensor(image)
    assert pixels.dtype == torch.uint8
    assert pixels.shape == (len(expected), image.height, image.width)
    assert pixels.flatten(1).tolist() == expected


def test_exif_orientation_is_honoured(tmp_path):
    image = Image.fromarray(np.array([[10, 20, 30]], dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    image.save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as stored:
        assert pil_to_tensor(stored).tolist() == [[[10], [20], [30]]]


def test_standardise():
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    result = standardise(images, [0.0, 0.2, 0.5], [1.0, 0.5, 0.25])
    assert result.dtype == torch.float32
    torch.testing.assert_close(result.flatten(), torch.tensor([0.0, 0.0, 2.0]))
    torch.testing.assert_close(standardise(images, 0.5, 0.5).flatten(), torch.tensor([-1.0, -0.6, 1.0]))
    assert images.flatten().tolist() == [0, 51, 255]


def test_standardise_refuses_images_standardised_before():
    with pytest.raises(ValueError, match="uint8"):
        standardise(torch.zeros(1, 1, 2, 2), 0.5, 0.5)
