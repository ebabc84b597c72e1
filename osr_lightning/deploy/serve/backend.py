"""A recogniser as the server sees it, a checkpoint's or an exported one; arrays are numpy's."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from osr_lightning.errors import UserError
from osr_lightning.images.decode import read_image
from osr_lightning.recogniser.explanation import Explanation as Why
from osr_lightning.recogniser.prediction import Answering
from osr_lightning.recogniser.rows import Row, answer_cells, columns

Pixels: TypeAlias = NDArray[np.uint8]


class Explanation(NamedTuple):
    """What stands behind the answer to one image.

    Attributes:
        probabilities: ``(K,)`` float64, the mean over the samples.
        samples: ``(S, K)`` float64, the probabilities by each; None where they are not to be had.
        why: the score's parts and known images that are near; None of an exported graph.
    """

    probabilities: NDArray[np.float64]
    samples: NDArray[np.float64] | None
    why: Why | None


class Backend:
    """A recogniser as the server sees it.

    Args:
        recogniser: what answers.
        explain: more about prepared images ``(1, C, H, W)``, with a map if the second is true.
        num_samples: ``S``; None where single samples cannot be asked.
    """

    def __init__(
        self,
        recogniser: Answering,
        explain: Callable[[Pixels, bool], Explanation],
        num_samples: int | None,
    ) -> None:
        self.recogniser = recogniser
        self.spec = recogniser.spec
        self.columns = columns(recogniser.score_names, recogniser.threshold.score)
        self.explain = explain
        self.num_samples = num_samples
        self.rejected_known = recogniser.threshold.record.rejected_known

    def read(self, data: bytes, name: str) -> Pixels | str:
        """Decode one image file: ``(C, H, W)``, or what is wrong with it. Threads may call this."""
        try:
            image = read_image(io.BytesIO(data), self.spec.image_size, name)
            return self.recogniser.prepare(image.transpose(1, 2, 0))  # as an array has them
        except UserError as error:
            if mistaken := _mistaken(data):
                return f"Cannot read the image {name} ({mistaken})."
            return str(error)

    def rows(self, pixels: Pixels) -> list[Row]:
        """What follows ``label`` in each row, for ``(B, C, H, W)``; one thread calls this."""
        return list(answer_cells(self.recogniser, self.recogniser.answer(pixels)))


_BASE64 = re.compile(rb"(?:[A-Za-z0-9+/_-]{4})+")
# how files of images begin
_IMAGES = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"RIFF", b"II*\0", b"MM\0*")


def _mistaken(data: bytes) -> str | None:
    """What was sent in an image's place, and the way out, where that can be told."""
    head = data[:1000].lstrip()
    if data.startswith(b"\x1f\x8b"):
        return "it is compressed with gzip: send the image file's own bytes, which are compressed already"
    if data.startswith(b"PK\x03\x04"):
        return "it is a zip archive: send each image in it as a file of a form"
    if head.startswith(b"data:"):
        return "it is a data: URL: send the bytes that its base64 stands for"
    if found := _BASE64.match(head[:40]):
        begin = base64.b64decode(found[0].replace(b"-", b"+").replace(b"_", b"/"))
        if begin.startswith(_IMAGES):
            return "it is base64: send the bytes that it stands for"
    if head.startswith((b"{", b"[")):
        return "it is JSON: send the image file's bytes as the body, or files as multipart/form-data"
    if head[:14].lower().startswith((b"<!doctype html", b"<html")):
        return "it is a web page: send the image that it shows"
    return None
