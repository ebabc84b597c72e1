"""Pictures of known classes, small and few, that a recogniser keeps to be tried with; without torch.

In a checkpoint and in an exported graph they are ``{class: PNG in base64}``.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from osr_lightning.data_spec import DataSpec
from osr_lightning.errors import UserError
from osr_lightning.images.pixels import of_picture, picture_file, to_picture

MOST = 12  # classes that have one
SIDE = 64  # pixels, at most
_MOST_TEXT = 20_000  # characters of a PNG in base64; noise of three channels takes 16,700
_MODES = {1: "L", 3: "RGB"}  # channels -> what PIL calls them

Examples: TypeAlias = Mapping[str, NDArray[np.uint8]]
"""Class name -> ``(C, H, W)``, of the classes that have one."""


def small(pixels: NDArray[np.uint8], side: int = SIDE) -> NDArray[np.uint8]:
    """A prepared image ``(C, H, W)``, at most ``side`` pixels a side."""
    image = to_picture(pixels)
    image.thumbnail((side, side), Image.Resampling.BILINEAR)
    return of_picture(image)


def to_png(pixels: NDArray[np.uint8]) -> bytes:
    """``(C, H, W)`` as a PNG."""
    return picture_file(to_picture(pixels))


def data_url(content: bytes, kind: str = "png") -> str:
    """A picture's file as a page holds it."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def to_plain(examples: Examples) -> dict[str, str]:
    """Plain values, for a checkpoint or JSON."""
    return {name: base64.b64encode(to_png(pixels)).decode() for name, pixels in examples.items()}


def from_plain(kept: object, spec: DataSpec) -> Examples:
    """The inverse of `to_plain`; of a file that keeps none, none.

    Args:
        kept: whatever a stranger's file holds in their place.
        spec: of the known images.

    Raises:
        UserError: where they are more, larger or something else than what `to_plain` gives.
    """
    if kept is None:
        return {}
    if not isinstance(kept, Mapping) or len(kept) > MOST:
        raise UserError(f"its example pictures are no mapping of at most {MOST} classes; it is damaged")
    if strangers := [name for name in kept if name not in spec.classes]:
        raise UserError(
            f"it has an example picture of {repr(strangers[0])[:80]}, which is no class; it is damaged"
        )
    return {name: _read(name, text, spec) for name, text in kept.items()}


def _read(name: str, text: object, spec: DataSpec) -> NDArray[np.uint8]:
    try:
        if not isinstance(text, str) or len(text) > _MOST_TEXT:
            raise ValueError("no base64, or too much of it")
        data = base64.b64decode(text, validate=True)
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            if max(image.size) > SIDE or image.mode != _MODES[spec.channels]:
                raise ValueError("another size or mode")
            return of_picture(image)
    except Exception as error:  # PIL's decoders raise a dozen kinds on damaged files
        colour = "colour" if spec.channels == 3 else "grey"
        raise UserError(
            f"its example picture of the class {name} is no {colour} PNG of at most {SIDE} x {SIDE} "
            f"pixels and {_MOST_TEXT:,} characters of base64; it is damaged"
        ) from error
