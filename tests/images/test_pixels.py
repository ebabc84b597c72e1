"""Every kind of image becomes the same pixels, and bulk work gives the numbers of PIL and torchvision."""

import io
import struct
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import EpsImagePlugin, ExifTags, Image, features
from sklearn.datasets import load_sample_image
from torchvision.transforms import Compose, Grayscale, InterpolationMode, Resize
from torchvision.transforms.v2 import functional as tv
from torchvision.transforms.v2.functional._geometry import _do_native_uint8_resize_on_cpu

from osr_lightning.errors import UserError
from osr_lightning.images import decode, pixels, tensors
from osr_lightning.images.decode import pil_to_array, read_image
from osr_lightning.images.find import find
from osr_lightning.images.pixels import to_pixels
from osr_lightning.images.tensors import standardise, to_uint8_images


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


# torchvision resizes uint8 as such on processors that it knows, and as rounded floats elsewhere
LEVELS = 0 if _do_native_uint8_resize_on_cpu(InterpolationMode.BILINEAR) else 1


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (3, 100, 37), (1, 5, 9)])
@pytest.mark.parametrize("size", [2, 20, 28, 64])
def test_resizing_is_torchvisions(shape, size):
    images = torch.randint(256, (4, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    ours = to_uint8_images(images, size=size, channels=shape[0])
    expected = tv.resize(images, [size, size], antialias=True)
    assert (ours.int() - expected.int()).abs().max() <= LEVELS


def test_images_of_one_pixel_are_the_mean():
    images = torch.full((4, 3, 9, 9), 40, dtype=torch.uint8)
    assert to_uint8_images(images, size=1, channels=3).unique().tolist() == [40]


def test_grey_is_torchvisions_weighing_rounded():
    ramp = torch.arange(0, 256, 5, dtype=torch.uint8)
    colours = torch.cartesian_prod(ramp, ramp, ramp).T[None, :, :, None]  # (1, 3, 140608, 1)
    side = int(colours.shape[2] ** 0.5)
    images = colours[:, :, : side * side].reshape(1, 3, side, side)
    expected = tv.rgb_to_grayscale(images.float()).round().to(torch.uint8)
    assert torch.equal(to_uint8_images(images, size=side, channels=1), expected)


def test_colour_becomes_grey_before_it_is_resized():
    crops = photo_crops()[:20]
    grey = tv.rgb_to_grayscale(crops.float()).round().to(torch.uint8)
    expected = tv.resize(grey, [20, 20], antialias=True)
    ours = to_uint8_images(crops, size=20, channels=1)
    assert (ours.int() - expected.int()).abs().max() <= LEVELS


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
    monkeypatch.setattr(tensors, "_CHUNK_VALUES", 3 * 3 * 32 * 32)
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
        (depth16("I", 0, 257, 65535, -128, 65663), [[0, 1, 255, 0, 255]]),
        (depth16("I", 0, 7, 255), [[0, 7, 255]]),  # the same numbers as in eight bits
        (Image.new("L", (1, 1), 200).convert("I"), [[200]]),
        (depth16("F", 0, 0.5, 1, float("nan")), [[0, 128, 255, 0]]),
        (depth16("F", -0.001, 1.001, float("nan")), [[0, 255, 0]]),  # as rounding leaves them
        (depth16("F", -0.4, 1, 254.6, 255.5), [[0, 1, 255, 255]]),
    ],
    ids=lambda value: getattr(value, "mode", ""),
)
def test_pil_modes(image, expected):
    pixels = pil_to_array(image)
    assert pixels.dtype == np.uint8
    assert pixels.shape == (len(expected), image.height, image.width)
    assert pixels.reshape(len(expected), -1).tolist() == expected


@pytest.mark.parametrize(
    ("image", "least", "most"),
    [
        (depth16("F", 0, 65535), 0, 65535),
        (depth16("F", 0, 300), 0, 300),
        (depth16("F", -1, 1), -1, 1),
        (depth16("F", 0, float("inf")), 0, "inf"),
        (depth16("I", 0, 66000), 0, 66000),
        (depth16("I", -1024, 3071), -1024, 3071),
    ],
)
def test_values_of_no_known_range_are_refused(tmp_path, image, least, most):
    image.save(tmp_path / "a.tif")
    with pytest.raises(UserError) as caught:
        read_image(tmp_path / "a.tif")
    assert f"a.tif (its values reach from {least} to {most}, where" in str(caught.value)
    assert "scale them, or save them as uint16, whose white is 65535" in str(caught.value)


def test_exif_orientation_is_honoured(tmp_path):
    image = Image.fromarray(np.array([[10, 20, 30]], dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    image.save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as stored:
        assert pil_to_array(stored).tolist() == [[[10], [20], [30]]]


# to_pixels --------------------------------------------------------------------------------------------

GREY = np.arange(35, dtype=np.uint8).reshape(5, 7)
COLOUR = np.arange(105, dtype=np.uint8).reshape(5, 7, 3)
FIRST = np.ascontiguousarray(COLOUR.transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (GREY, GREY[None]),
        (GREY[..., None], GREY[None]),
        (GREY[None], GREY[None]),
        (COLOUR, FIRST),
        (FIRST, FIRST),
        (COLOUR[:, ::-1], FIRST[:, :, ::-1]),
        (torch.tensor(GREY), GREY[None]),
        (torch.tensor(GREY)[None], GREY[None]),
        (torch.tensor(GREY)[..., None], GREY[None]),
        (torch.tensor(FIRST), FIRST),
        (torch.tensor(COLOUR), FIRST),
        (torch.tensor(FIRST).flip(2), FIRST[:, :, ::-1]),
        # where both ends could be the channels, an array has them last and a tensor first
        (COLOUR[:3], FIRST[:, :3]),
        (torch.tensor(FIRST)[:, :, :3], FIRST[:, :, :3]),
        (torch.tensor(FIRST, dtype=torch.float64).div(255).requires_grad_(), FIRST),
        (Image.fromarray(COLOUR), FIRST),
        (Image.fromarray(GREY), GREY[None]),
    ],
)
def test_arrays_tensors_and_pil_images_of_any_layout(image, expected):
    found = to_pixels(image)
    assert found.dtype == np.uint8
    assert np.array_equal(found, expected)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[False, True]]), [0, 255]),
        (np.array([[0, 257, 32896, 65535]], dtype=np.uint16), [0, 1, 128, 255]),
        # 0.5 is 127.5, and goes to the even neighbour as numpy's rounding does
        (np.array([[0, 0.2, 0.5, 1]], dtype=np.float64), [0, 51, 128, 255]),
        (np.array([[0, 0.2, 0.5, 1]], dtype=np.float32), [0, 51, 128, 255]),
        (np.array([[0, 0.25, 1]], dtype=np.float16), [0, 64, 255]),
        (torch.tensor([[False, True]]), [0, 255]),
        (torch.tensor([[0, 257, 65535]], dtype=torch.uint16), [0, 1, 255]),
        (torch.tensor([[0, 0.2, 1]]), [0, 51, 255]),
        (torch.tensor([[0, 0.25, 1]], dtype=torch.float16), [0, 64, 255]),
        (np.array([[0, 0]], dtype=np.float32), [0, 0]),
        # whole numbers of other types are taken as they are
        (np.array([[0, 7, 255]], dtype=np.int64), [0, 7, 255]),
        (np.array([[0, 7, 255]], dtype=">i4"), [0, 7, 255]),
        (np.array([[0, 7, 127]], dtype=np.int8), [0, 7, 127]),
        (np.array([[0, 7, 255]], dtype=np.uint64), [0, 7, 255]),
        (torch.tensor([[0, 7, 255]]), [0, 7, 255]),
        # but uint16 has a range of its own
        (np.array([[0, 255]], dtype=np.uint16), [0, 1]),
    ],
)
def test_values_of_other_types_are_scaled(values, expected):
    found = to_pixels(values)
    assert found.dtype == np.uint8
    assert found.flatten().tolist() == expected


@pytest.mark.parametrize("kind", [np.array, torch.tensor])
def test_a_float_that_is_half_a_level_outside_lies_in_the_range_as_in_a_file(kind, tmp_path):
    values = np.array([[-0.0019, 0.5, 1.0000001, 1.0019]], dtype=np.float32)
    Image.fromarray(values).save(tmp_path / "floats.tif")
    found = to_pixels(kind(values))
    assert found.tolist() == read_image(tmp_path / "floats.tif").tolist() == [[[0, 128, 255, 255]]]
    with pytest.raises(UserError, match=r"not from 0 to 1\.01"):
        to_pixels(kind(np.array([[0, 1.01]])))


def test_every_level_survives_the_way_through_floats():
    levels = np.arange(256, dtype=np.uint8)[None]
    for kind in (np.float32, np.float64):
        assert np.array_equal(to_pixels(levels.astype(kind) / 255)[0], levels)
    assert np.array_equal(to_pixels(levels.astype(np.uint16) * 257)[0], levels)


@pytest.mark.parametrize(
    "kind", [np.asarray, lambda array: torch.tensor(array).permute(2, 0, 1)], ids=["array", "tensor"]
)
def test_alpha_is_composited_on_white(kind):
    # black: opaque, one fifth there, not there
    grey = np.array([[[0, 255], [0, 51], [0, 0]]], dtype=np.uint8)
    assert to_pixels(kind(grey)).tolist() == [[[0, 204, 255]]]
    colour = np.array([[[10, 20, 30, 255], [0, 0, 0, 51], [9, 9, 9, 0]]], dtype=np.uint8)
    expected = [[[10, 204, 255]], [[20, 204, 255]], [[30, 204, 255]]]
    assert to_pixels(kind(colour)).tolist() == expected
    assert to_pixels(kind(colour / 255)).tolist() == expected


def test_what_is_returned_is_a_copy():
    for image in (GREY.copy(), torch.tensor(GREY), FIRST.copy(), torch.tensor(FIRST)):
        before = np.asarray(image).copy()
        to_pixels(image).fill(0)
        assert np.array_equal(image, before)


def test_paths_bytes_and_open_files_are_read(tmp_path):
    Image.fromarray(COLOUR).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    with open(tmp_path / "a.png", "rb") as file:
        for given in (tmp_path / "a.png", str(tmp_path / "a.png"), content, io.BytesIO(content), file):
            assert np.array_equal(to_pixels(given), FIRST)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (None, "not NoneType"),
        ([[0, 1]], "not list"),
        ({"a": GREY}, "not dict"),
        (b"png", r"Cannot read the image in the bytes \(it is no image"),
        (io.BytesIO(b"png"), r"Cannot read the image in the open file \(it is no image"),
        (np.zeros(4, np.uint8), r"not \(4,\)"),
        (np.zeros((2, 3, 4, 4), np.uint8), r"not \(2, 3, 4, 4\)"),
        (np.zeros((5, 7, 5), np.uint8), r"not \(5, 7, 5\)"),
        (torch.zeros(5, 7, 6, dtype=torch.uint8), r"not \(5, 7, 6\)"),
        (np.zeros((0, 4), np.uint8), r"not \(0, 4\)"),
        (np.zeros((4, 0, 3), np.uint8), r"not \(4, 0, 3\)"),
        (np.zeros((), np.uint8), r"not \(\)"),
        (np.array([[0.0, 255.0]]), r"in \[0, 1\], not from 0 to 255: give uint8, or divide"),
        (np.array([[-0.5, 1.0]]), "from -0.5 to 1"),
        (np.array([[0.5, np.nan]]), "has NaN; put values in its place"),
        (np.array([[0.0, np.inf]]), "to inf"),
        (torch.tensor([[-1.0, 1.0]]), "from -1 to 1"),
        (
            np.array([[0, 256]]),
            r"int64 .* in \[0, 255\], not from 0 to 256; convert them to uint8, or",
        ),
        (torch.tensor([[-1, 255]], dtype=torch.int16), r"int16 .* not from -1 to 255"),
        (np.array([[2**64 - 1]], np.uint64), "not from 18446744073709551615"),
        (np.zeros((4, 4), np.complex64), "not complex64"),
        (np.array([[object()]]), "not object"),
    ],
)
def test_what_is_no_image_is_refused(image, message):
    with pytest.raises(UserError, match=message):
        to_pixels(image)


def test_bfloat16_is_a_float_too():
    assert to_pixels(torch.tensor([[0.0, 1.0]], dtype=torch.bfloat16)).tolist() == [[[0, 255]]]


def test_uint16_of_the_other_byte_order_is_uint16_too():
    assert to_pixels(np.array([[0, 65535]], dtype=">u2")).tolist() == [[[0, 255]]]


def damaged_png(folder):
    Image.fromarray(COLOUR).resize((200, 200)).save(folder / "whole.png")
    (folder / "cut.png").write_bytes((folder / "whole.png").read_bytes()[:200])
    return folder / "cut.png"


def test_a_damaged_file_that_pil_has_opened_is_refused(tmp_path):
    with Image.open(damaged_png(tmp_path)) as image, pytest.raises(UserError):
        to_pixels(image)


# files ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "there is no such file"),
        (b"", "it is no image of a known format: JPEG, PNG, .* AVIF"),
        (b"text", "it is no image"),
    ],
)
def test_unreadable_files_are_named_with_the_reason(tmp_path, content, reason):
    file = tmp_path / "a.png"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match=rf"Cannot read the image {file} \({reason}.*remove or replace it"):
        read_image(file)


def test_damaged_files_and_folders_are_named(tmp_path):
    for path in (damaged_png(tmp_path), tmp_path):
        with pytest.raises(UserError, match=f"Cannot read the image {path} "):
            read_image(path)


def test_too_many_pixels_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    Image.new("L", (11, 10)).save(tmp_path / "a.png")
    monkeypatch.setattr(decode, "MAX_PIXELS", 110)
    assert read_image(tmp_path / "a.png").shape == (1, 10, 11)
    monkeypatch.setattr(decode, "MAX_PIXELS", 109)
    monkeypatch.setattr(decode, "pil_to_array", lambda image: pytest.fail("decoded"))
    with pytest.raises(UserError, match="11 x 10 pixels, more than 109"):
        read_image(tmp_path / "a.png")


def test_sides_are_bounded_as_well_as_their_product(tmp_path):
    Image.new("L", (1, decode.MAX_SIDE + 1)).save(tmp_path / "a.png")
    Image.new("L", (1, decode.MAX_SIDE)).save(tmp_path / "b.png")
    with pytest.raises(UserError, match="1 x 65536 pixels, more than 65,535 on one side"):
        read_image(tmp_path / "a.png")
    assert read_image(tmp_path / "b.png", 8).shape == (1, decode.MAX_SIDE, 1)
    for image in (np.zeros((1, decode.MAX_SIDE + 1), np.uint8), Image.new("L", (1, decode.MAX_SIDE + 1))):
        with pytest.raises(UserError, match="more than 65,535 on one side"):
            to_pixels(image)


def test_what_pil_warns_of_is_refused_and_nobodys_warnings_are_filtered(tmp_path):
    assert decode.MAX_PIXELS <= Image.MAX_IMAGE_PIXELS
    # one pixel more than the bound in the header of a file that has no pixels
    Image.new("1", (5, 5)).save(tmp_path / "a.bmp")
    header = bytearray((tmp_path / "a.bmp").read_bytes())
    header[18:26] = struct.pack("<II", decode.MAX_PIXELS // 5 + 1, 5)
    (tmp_path / "a.bmp").write_bytes(header)
    code = (
        "import sys, warnings, numpy; from PIL import Image; before = [*warnings.filters]\n"
        "import osr_lightning; from osr_lightning.images.decode import read_image\n"
        "print([one for one in warnings.filters if one not in before])\n"
        "try: read_image(sys.argv[1])\n"
        "except Exception as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a.bmp")], check=True, capture_output=True, text=True
    )
    first, second = done.stdout.splitlines()
    assert first == "[]"
    assert "pixels, more than 89,478,485" in second
    assert "DecompressionBombWarning" in done.stderr  # as from any other program that uses PIL


def jpeg_of_scans(count: int) -> bytes:
    """A progressive JPEG whose last scan comes again and again; the ones of its colours are ten."""
    Image.new("RGB", (64, 64), "red").save(file := io.BytesIO(), "JPEG", progressive=True)
    content = file.getvalue()
    last = content[content.rindex(b"\xff\xda") : -2]
    return content[:-2] + last * (count - content.count(b"\xff\xda")) + b"\xff\xd9"


def test_scans_of_a_jpeg_are_counted_before_they_are_decoded(monkeypatch):
    most = jpeg_of_scans(decode.MAX_SCANS)
    assert read_image(io.BytesIO(most)).shape == (3, 64, 64)
    # what follows the end is no scan, nor is what stands in a comment
    assert read_image(io.BytesIO(most + b"\xff\xda" * 1000)).shape == (3, 64, 64)
    comment = b"\xff\xfe" + struct.pack(">H", 2 + 2000) + b"\xff\xda" * 1000
    assert read_image(io.BytesIO(most[:2] + comment + most[2:])).shape == (3, 64, 64)
    monkeypatch.setattr(decode, "pil_to_array", lambda *_: pytest.fail("decoded"))
    more = jpeg_of_scans(decode.MAX_SCANS + 1)
    # a marker may be filled up, and follow bytes that mean nothing
    for content in (
        more,
        more.replace(b"\xff\xda", b"\xff\xff\xff\xda"),
        more.replace(b"\xff\xda", b"\0\xff\xda"),
    ):
        with pytest.raises(UserError, match=r"a\.jpg \(it is a JPEG of more than 50 scans"):
            read_image(io.BytesIO(content), name="a.jpg")


def test_as_many_scans_as_are_read_take_little_time():
    Image.new("L", (3000, 3000)).save(file := io.BytesIO(), "JPEG", progressive=True)
    content = file.getvalue()
    last = content[content.rindex(b"\xff\xda") : -2]
    content = content[:-2] + last * (decode.MAX_SCANS - content.count(b"\xff\xda")) + b"\xff\xd9"
    begin = time.process_time()
    read_image(io.BytesIO(content), 32)
    assert time.process_time() - begin < 4  # 0.4 on one core; ten times that at the bound of pixels


@pytest.mark.parametrize(
    "header", [b"P6 1183 1182 254\n", b"P5 2049 2048 4095\n", b"P3 1183 1182 255\n", b"P1 2049 2048\n"]
)
def test_large_images_that_pil_decodes_in_python_are_refused(header, monkeypatch):
    monkeypatch.setattr(decode, "pil_to_array", lambda *_: pytest.fail("decoded"))
    with pytest.raises(UserError, match=r"a PPM that is no bytes of 0 to 255, of more than 4,194,304 values"):
        read_image(io.BytesIO(header))


@pytest.mark.parametrize(
    ("format_", "ending"), [(name, ending) for name, endings in decode.FORMATS.items() for ending in endings]
)
def test_every_ending_that_is_found_is_of_a_format_that_is_read(tmp_path, format_, ending):
    if format_ == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    Image.fromarray(COLOUR).resize((20, 20)).convert("RGB").save(tmp_path / f"a{ending}", format_)
    assert [file.image for file in find(tmp_path)] == [True]
    assert read_image(tmp_path / f"a{ending}").shape == (3, 20, 20)


@pytest.mark.parametrize("format_", ["TGA", "PCX", "ICO", "EPS", "SGI", "MSP"])
def test_no_other_format_is_decoded(format_):
    Image.new("1" if format_ == "MSP" else "L", (16, 16)).save(file := io.BytesIO(), format_)
    file.seek(0)
    with pytest.raises(UserError, match=r"a\.x \(it is no image of a known format: JPEG"):
        read_image(file, name="a.x")


def test_a_format_that_this_pillow_lacks_is_named_with_the_way_out(tmp_path, monkeypatch):
    (tmp_path / "a.avif").write_bytes(b"text")
    monkeypatch.setattr(decode.features, "check", lambda feature: feature != "avif")
    with pytest.raises(UserError, match=r"a\.avif \(this Pillow reads no AVIF files\): convert it"):
        read_image(tmp_path / "a.avif")


def tiff(bits: int, values: bytes, width: int, *, photometric: int = 1, signed: bool = False) -> bytes:
    """A grey TIFF of one row, written out by hand as PIL writes no 12 bits."""
    tags = {256: width, 257: 1, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: 1}
    tags |= {279: len(values), 339: 1 + signed}
    values += bytes(len(values) % 2)
    entries = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in tags.items())
    return (
        b"II*\0"
        + struct.pack("<I", 8 + len(values))
        + values
        + struct.pack("<H", len(tags))
        + entries
        + bytes(4)
    )


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        # 0, 4095, 2048 (0x800), 16 (0x010): of 4095, not of 65535
        (tiff(12, bytes.fromhex("000fff800010"), 4), [0, 255, 128, 1]),
        (tiff(16, struct.pack("<3H", 0, 257, 65535), 3), [0, 1, 255]),
        (tiff(16, struct.pack("<3H", 0, 257, 65535), 3, photometric=0), [255, 254, 0]),
        (tiff(16, struct.pack("<3h", -9, 16384, 32767), 3, signed=True), [0, 128, 255]),
        (tiff(32, struct.pack("<3I", 0, 7, 255), 3), [0, 7, 255]),
        (tiff(32, struct.pack("<3I", 0, 257, 65535), 3), [0, 1, 255]),
        # dark, but of 16 bits: the file says so
        (b"P5 3 1 65535\n" + struct.pack(">3H", 0, 128, 255), [0, 0, 1]),
        (b"P5 3 1 4095\n" + struct.pack(">3H", 0, 2048, 4095), [0, 128, 255]),
        (b"P5 3 1 100\n" + bytes([0, 50, 100]), [0, 128, 255]),
    ],
    ids=[
        "12 bits",
        "16",
        "white is zero",
        "signed",
        "32 narrow",
        "32 wide",
        "dark",
        "pgm of 12",
        "pgm of 100",
    ],
)
def test_deep_grey_has_the_range_of_the_files_own_bits(content, expected):
    assert read_image(io.BytesIO(content)).tolist() == [[expected]]


def test_dark_png_of_16_bits_stays_dark(tmp_path):
    depth16("I;16", 0, 128, 255).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").tolist() == [[[0, 0, 1]]]


@cache
def photo(mode: str) -> Image.Image:
    return Image.fromarray(load_sample_image("china.jpg")).resize((1500, 1100)).convert(mode)


@pytest.mark.parametrize("size", [8, 28, 300])
@pytest.mark.parametrize(("mode", "kind"), [("RGB", "JPEG"), ("L", "JPEG"), ("RGBA", "PNG"), ("RGB", "WEBP")])
def test_a_picture_is_the_same_as_file_bytes_picture_array_and_tensor(tmp_path, mode, kind, size):
    photo(mode).save(tmp_path / "a", kind, quality=90)
    with Image.open(tmp_path / "a") as stored:
        array = np.array(stored)
        picture = stored.copy()
    tensor = torch.tensor(array[None] if array.ndim == 2 else array.transpose(2, 0, 1))
    upload = read_image(io.BytesIO((tmp_path / "a").read_bytes()), size).transpose(1, 2, 0)  # as served
    first, *others = [
        to_uint8_images(torch.from_numpy(to_pixels(one, size))[None], size=size, channels=3)
        for one in (tmp_path / "a", upload, picture, array, tensor, array / 255)
    ]
    for other in others:
        assert torch.equal(first, other)
    # what was averaged down on the way looks as what was not; blocks at the edges are cut off
    whole = to_uint8_images(torch.from_numpy(to_pixels(tmp_path / "a"))[None], size=size, channels=3)
    assert (first.int() - whole.int()).abs().float().mean() < 1
    assert (first.int() - whole.int()).abs().max() <= 8


# KiB of a process at its worst; getrusage knows only the larger of this and of pytest's own. Each file has a
# process of its own, which begins at what the one that it is a fork of holds.
EACH = """
import os, sys, traceback
from PIL import Image
from osr_lightning.images import pixels

def peak():
    return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])

Image.init()
for path in sys.argv[1:]:
    if os.fork() == 0:
        try:
            before = peak()
            pixels.fit(pixels.to_pixels(path, 64), size=64, channels=3)
            print(peak() - before, flush=True)
        except BaseException:
            traceback.print_exc()
            print("none", flush=True)
        os._exit(0)
    os.wait()
"""
needs_avif = pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
LARGE = 3300  # pixels a side, enough to be averaged down
KINDS = [
    ("PNG", "RGB", {"compress_level": 1}, 5),
    ("PNG", "RGBA", {"compress_level": 1}, 9),  # PIL averages it premultiplied
    ("PNG", "I;16", {"compress_level": 1}, 5),
    ("PNG", "P", {"compress_level": 1}, 6),
    ("JPEG", "RGB", {}, 5),
    ("JPEG", "RGB", {"progressive": True}, 12),
    ("JPEG", "CMYK", {}, 10),
    ("TIFF", "F", {"compression": "tiff_lzw"}, 7),
    ("GIF", "L", {}, 6),
    ("WEBP", "RGB", {"lossless": True, "method": 0}, 16),
    ("JPEG", "CMYK", {"progressive": True}, 13),
    ("WEBP", "RGBA", {"method": 0}, 18),
    ("JPEG2000", "RGB", {}, 20),
    ("JPEG2000", "RGBA", {}, 25),
    *([("AVIF", "RGBA", {"speed": 10, "subsampling": "4:4:4"}, 14)] if features.check("avif") else []),
]


@pytest.fixture(scope="module")
def decoded(tmp_path_factory) -> list[str]:
    """By how many KiB a decode raised the peak, for each of the kinds."""
    folder = tmp_path_factory.mktemp("large")
    for number, (kind, mode, options, _) in enumerate(KINDS):
        Image.new(mode, (LARGE, LARGE)).save(folder / str(number), kind, **options)
    run = [sys.executable, "-c", EACH, *(str(folder / str(number)) for number in range(len(KINDS)))]
    return subprocess.run(run, check=True, stdout=subprocess.PIPE, text=True).stdout.split()


@needs_proc
@pytest.mark.parametrize("number", range(len(KINDS)), ids=[f"{kind[0]}-{kind[1]}" for kind in KINDS])
def test_the_memory_of_one_decode_is_bounded(number, decoded):
    kind, _, _, bytes_a_pixel = KINDS[number]
    assert int(decoded[number]) * 1024 < LARGE * LARGE * bytes_a_pixel + 2**25
    assert bytes_a_pixel * (decode.MAX_WHOLE if kind in decode._WHOLE else decode.MAX_PIXELS) < 1.2e9


@pytest.mark.parametrize("kind", ["JPEG2000", "WEBP", pytest.param("AVIF", marks=needs_avif), "PNG"])
def test_formats_that_are_decoded_as_a_whole_have_a_lower_bound(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(decode, "MAX_WHOLE", 400)
    Image.new("RGB", (20, 20)).save(tmp_path / "a", kind)
    assert read_image(tmp_path / "a").shape == (3, 20, 20)
    Image.new("RGB", (20, 21)).save(tmp_path / "a", kind)
    if kind == "PNG":
        assert read_image(tmp_path / "a").shape == (3, 21, 20)
    else:
        with pytest.raises(UserError, match=f"it is {kind} of 20 x 21 pixels, more than 400"):
            read_image(tmp_path / "a")


def test_deep_grey_is_scaled_alike_by_strips_and_at_once(monkeypatch):
    values = np.random.default_rng(0).random((37, 11))
    images = [
        Image.fromarray((values * 65535).astype(np.uint16)),
        Image.fromarray((values * 65535).astype(np.int32)),
        Image.fromarray(values.astype(np.float32)),
        Image.fromarray((values * (np.arange(37) == 36)[:, None] * 255).astype(np.float32)),  # white is last
    ]
    at_once = [pil_to_array(image) for image in images]
    monkeypatch.setattr(decode, "_STRIP", 30)
    for image, expected in zip(images, at_once, strict=True):
        assert np.array_equal(pil_to_array(image), expected)


def test_postscript_under_another_name_is_not_run(tmp_path, monkeypatch):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.png")
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("a program was run"))
    with pytest.raises(UserError, match=r"a\.png \(it is no image of a known format"):
        read_image(tmp_path / "a.png")


def test_reading_leaves_a_pil_image_as_it_was():
    image = Image.fromarray(COLOUR)
    image.getexif()[ExifTags.Base.Orientation] = 6
    turned = pil_to_array(image)
    assert np.array_equal(turned, pil_to_array(image))
    assert turned.shape[1:] == image.size


def test_of_several_frames_the_first_is_read(tmp_path):
    frames = [Image.new("L", (4, 4), grey) for grey in (10, 200)]
    frames[0].save(tmp_path / "a.tif", save_all=True, append_images=frames[1:])
    assert np.unique(read_image(tmp_path / "a.tif")).tolist() == [10]


def test_an_image_is_averaged_down_to_no_less_than_sixteen_times_its_size():
    ramp = np.tile(np.arange(64, dtype=np.uint8), (64, 1))
    assert np.array_equal(to_pixels(ramp, 3)[0], ramp)  # 64 is less than twice 16 * 3
    halved = to_pixels(ramp, 2)  # means of two: 0.5, 2.5, 4.5 ..., rounded up as PIL does
    assert halved.shape == (1, 32, 32)
    assert halved[0, 0, :4].tolist() == [1, 3, 5, 7]
    assert np.array_equal(to_pixels(halved[0], 2), halved)  # once is enough


def test_huge_images_are_averaged_down_on_the_way(monkeypatch):
    monkeypatch.setattr(decode, "_LARGE", 100)
    photo = Image.fromarray(load_sample_image("china.jpg")[:400, :400])
    found = pil_to_array(photo)
    # isqrt(160000 / 100) = 40: means of 40 x 40 pixels
    expected = torch.tensor(np.asarray(photo)).double().unfold(0, 40, 40).unfold(1, 40, 40).mean((3, 4))
    assert found.shape == (3, 10, 10)
    assert (torch.from_numpy(found).permute(1, 2, 0).double() - expected).abs().max() <= 1


# any image to a size ----------------------------------------------------------------------------------


def prepare(images, *, size, channels):
    """As `Recogniser.prepare` brings each of them to its size."""
    found = [torch.from_numpy(to_pixels(image, size))[None] for image in images]
    return torch.cat([to_uint8_images(image, size=size, channels=channels) for image in found])


def test_images_of_all_kinds_become_one_batch(tmp_path):
    Image.fromarray(COLOUR).save(tmp_path / "a.png")
    images = [tmp_path / "a.png", Image.fromarray(COLOUR), COLOUR, torch.tensor(FIRST), FIRST / 255, GREY]
    for channels in (1, 3):
        batch = prepare(images, size=6, channels=channels)
        assert batch.shape == (6, channels, 6, 6)
        assert batch.dtype == torch.uint8
        expected = to_uint8_images(torch.tensor(FIRST)[None], size=6, channels=channels)
        assert torch.equal(batch[:5], expected.expand(5, -1, -1, -1))
        grey = to_uint8_images(torch.tensor(GREY)[None, None], size=6, channels=channels)
        assert torch.equal(batch[5:], grey)


def test_preparing_names_the_first_that_is_no_image(tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path / 'absent.png'} .*no such file"):
        prepare([GREY, tmp_path / "absent.png", None], size=4, channels=1)


# without torch ----------------------------------------------------------------------------------------


@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    size=st.integers(1, 70),
    depths=st.tuples(*[st.sampled_from([1, 3])] * 2),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=200, deadline=None)
def test_without_torch_every_pixel_is_the_same(height, width, size, depths, seed):
    values = np.random.default_rng(seed).integers(0, 256, (depths[0], height, width), dtype=np.uint8)
    expected = to_uint8_images(torch.from_numpy(values)[None], size=size, channels=depths[1])[0]
    found = pixels.fit(values, size=size, channels=depths[1])
    assert found.dtype == np.uint8
    assert found.shape == (depths[1], size, size)
    assert np.abs(found.astype(int) - expected.numpy()).max() <= LEVELS


def test_without_torch_every_colour_has_the_same_grey():
    channel = np.arange(0, 256, dtype=np.uint8)
    for red in range(0, 256, 3):
        colours = np.stack(np.broadcast_arrays(np.uint8(red), channel[:, None], channel[None]))
        expected = to_uint8_images(torch.from_numpy(colours.copy())[None], size=256, channels=1)[0]
        assert np.array_equal(pixels.fit(colours, size=256, channels=1), expected)


def test_a_photograph_is_prepared_alike_without_torch():
    photo = load_sample_image("china.jpg")
    for size, channels in ((28, 1), (64, 3)):
        expected = prepare([photo, GREY], size=size, channels=channels)
        each = [pixels.fit(to_pixels(image, size), size=size, channels=channels) for image in (photo, GREY)]
        found = np.stack(each)
        assert np.abs(found.astype(int) - expected.numpy()).max() <= LEVELS


# standardise ------------------------------------------------------------------------------------------


def test_standardise_each_channel_by_its_own():
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    result = standardise(images, [0.0, 0.2, 0.5], (1.0, 0.5, 0.25))
    assert result.dtype == torch.float32
    torch.testing.assert_close(result.flatten(), torch.tensor([0.0, 0.0, 2.0]))
    assert images.flatten().tolist() == [0, 51, 255]


def test_standardise_grey():
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).view(3, 1, 1, 1)
    result = standardise(images, (0.5,), (0.5,))
    assert result.dtype == torch.float32
    torch.testing.assert_close(result.flatten(), torch.tensor([-1.0, -0.6, 1.0]))
    assert images.flatten().tolist() == [0, 51, 255]


@pytest.mark.parametrize("channels", [1, 3])
def test_standardised_images_have_mean_0_and_deviation_1(channels):
    images = photo_crops()[:, :channels]
    values = images.numpy() / 255
    result = standardise(images, values.mean((0, 2, 3)).tolist(), values.std((0, 2, 3)).tolist())
    np.testing.assert_allclose(result.double().mean((0, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(result.double().numpy().std((0, 2, 3)), 1, atol=1e-5)


def test_standardise_refuses_images_standardised_before():
    with pytest.raises(ValueError, match="uint8"):
        standardise(torch.zeros(1, 1, 2, 2), [0.5], [0.5])


def test_standardise_refuses_another_number_of_channels():
    with pytest.raises((RuntimeError, ValueError)):
        standardise(torch.zeros(1, 3, 2, 2, dtype=torch.uint8), [0.5] * 2, [0.5] * 2)
