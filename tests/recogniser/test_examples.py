"""Pictures of classes in a checkpoint: what is kept is what is read, and a stranger's bytes are bounded."""

import base64
import io
import re
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from osr_lightning.data_spec import DataSpec
from osr_lightning.errors import UserError
from osr_lightning.recogniser.checkpoint import build, load, save
from osr_lightning.recogniser.examples import MOST, SIDE, from_plain, small, to_plain, to_png

GREY = DataSpec(tuple(f"class {k}" for k in range(20)), 1, 28, (0.1,), (0.3,))
COLOUR = GREY._replace(channels=3, mean=(0.1,) * 3, std=(0.3,) * 3)
RECIPE = {
    "sampler": "single",
    "network": {"class_path": "BaselineCNN", "init_args": {"channels": [2, 3], "hidden": 8}},
    "score": "entropy",
}


def noise(channels: int, side: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (channels, side, side), dtype=np.uint8)


def text_of(image: Image.Image, kind: str = "PNG", **options: object) -> str:
    image.save(file := io.BytesIO(), kind, **options)
    return base64.b64encode(file.getvalue()).decode()


@pytest.mark.parametrize("spec", [GREY, COLOUR], ids=["grey", "colour"])
def test_the_largest_pictures_of_noise_are_read_as_they_were(spec):
    examples = {name: noise(spec.channels, SIDE, k) for k, name in enumerate(spec.classes[:MOST])}
    kept = to_plain(examples)
    assert to_plain(examples) == kept
    found = from_plain(kept, spec)
    assert list(found) == list(examples)
    for name, pixels in found.items():
        assert pixels.dtype == np.uint8
        assert np.array_equal(pixels, examples[name])


@pytest.mark.parametrize(
    ("channels", "side", "expected"), [(1, 28, 28), (3, 64, 64), (3, 224, 64), (1, 65, 64)]
)
def test_only_large_images_are_made_smaller(channels, side, expected):
    pixels = noise(channels, side)
    found = small(pixels)
    assert found.shape == (channels, expected, expected)
    assert found.dtype == np.uint8
    if side == expected:
        assert np.array_equal(found, pixels)
    else:
        assert found.mean() == pytest.approx(pixels.mean(), abs=2)


def test_a_file_of_before_has_none():
    assert from_plain(None, GREY) == {}


def _bomb(side: int) -> str:
    def chunk(kind, data):
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = side.to_bytes(4, "big") * 2 + bytes([8, 0, 0, 0, 0])
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + parts).decode()


def _commented(count: int) -> str:
    comment = PngImagePlugin.PngInfo()
    comment.add_text("Comment", "x" * count)
    return text_of(Image.new("L", (28, 28)), pnginfo=comment)


PNG = to_png(noise(1, 28))
ODD = {
    "no text": 3,
    "bytes": PNG,
    "no base64": "<svg onload=alert(1)>",
    "no image": base64.b64encode(b"x" * 100).decode(),
    "nothing": "",
    "cut off": base64.b64encode(PNG[:400]).decode(),
    "changed": base64.b64encode(PNG[:60] + b"\0\0\0\0" + PNG[64:]).decode(),
    "a JPEG": text_of(Image.new("L", (28, 28)), "JPEG"),
    "a GIF": text_of(Image.new("L", (28, 28)), "GIF"),
    "colour": text_of(Image.new("RGB", (28, 28))),
    "transparent": text_of(Image.new("LA", (28, 28))),
    "a palette": text_of(Image.new("P", (28, 28))),
    "deep": text_of(Image.new("I;16", (28, 28))),
    "wide": text_of(Image.new("L", (65, 1))),
    "high": text_of(Image.new("L", (1, 65))),
    "huge": _bomb(100_000),
    "with a long comment": _commented(20_000),
}


@pytest.mark.parametrize("kind", ODD)
def test_what_is_no_small_picture_is_refused(kind):
    said = (
        r"its example picture of the class class 3 is no grey PNG of at most 64 x 64 pixels .*; it is damaged"
    )
    with pytest.raises(UserError, match=said):
        from_plain({"class 3": ODD[kind]}, GREY)


@pytest.mark.parametrize(
    ("kept", "said"),
    [
        ([], "no mapping of at most 12 classes"),
        ("x", "no mapping of at most 12 classes"),
        (to_plain({name: noise(1, 4) for name in GREY.classes[:13]}), "no mapping of at most 12 classes"),
        ({"other\n" * 50: to_plain({"": noise(1, 4)})[""]}, r"of 'other\\nother\\n.*, which is no class"),
        ({4: to_plain({"": noise(1, 4)})[""]}, "of 4, which is no class"),
    ],
    ids=["a list", "a text", "thirteen", "another name", "a number"],
)
def test_other_content_is_refused(kept, said):
    with pytest.raises(UserError, match=said) as caught:
        from_plain(kept, GREY)
    assert len(str(caught.value)) < 200


def test_a_checkpoint_keeps_them_and_one_of_before_loads(tmp_path):
    recogniser = build(RECIPE, GREY)
    recogniser.threshold.fixed = 1.0
    recogniser.examples = {"class 7": noise(1, 28)}
    save(recogniser, tmp_path / "a.ckpt")
    assert np.array_equal(load(tmp_path / "a.ckpt").examples["class 7"], noise(1, 28))
    kept = torch.load(tmp_path / "a.ckpt", weights_only=True)
    kept["recogniser"]["examples"]["class 7"] = "x"
    torch.save(kept, tmp_path / "odd.ckpt")
    with pytest.raises(UserError, match=re.escape(f"{tmp_path}/odd.ckpt: its example picture")):
        load(tmp_path / "odd.ckpt")
    del kept["recogniser"]["examples"]
    torch.save(kept, tmp_path / "before.ckpt")
    assert load(tmp_path / "before.ckpt").examples == {}
