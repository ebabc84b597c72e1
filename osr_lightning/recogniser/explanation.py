"""Why an image is answered as it is: what is told of it, for people and programs. Nothing needs torch."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from osr_lightning.images.pixels import picture_file
from osr_lightning.recogniser.prediction import Prediction

MAP_SIDE = 28  # points along an edge of a map
_HEAT = (235, 40, 0)  # the colour of a map's maximum
_OPAQUE = 190  # of 255, there


class Part(NamedTuple):
    """One statistic of the score, or what is added to it for the image's class.

    Attributes:
        name: of the statistic or layer.
        says: what it is, in words.
        statistic: its value; larger is more unusual.
        p: share of known images whose statistic is as large, in (0, 1]; None where none are kept, or of
            a class.
        references: known images that it is compared with.
        weight: that it has in the score.
        contribution: to the score; those of all parts add up to it.
    """

    name: str
    says: str
    statistic: float
    p: float | None
    references: int
    weight: float
    contribution: float


class Neighbour(NamedTuple):
    """A known image that is near.

    Attributes:
        label: its class.
        file: its name; empty where none is kept.
        distance: by cosine, in [0, 2], of what the last layer sees of the two.
        thumbnail: ``(3, s, s)`` uint8.
    """

    label: str
    file: str
    distance: float
    thumbnail: NDArray[np.uint8]


class UnusualMap(NamedTuple):
    """Where in an image the unusual is.

    Attributes:
        values: ``(MAP_SIDE, MAP_SIDE)`` float64; 0 is the image's average, 1 a standard deviation above it.
        places: along an edge of the grid on which the network last sees the image.
    """

    values: NDArray[np.float64]
    places: int

    @property
    def maximum(self) -> tuple[float, float]:
        """Where it is greatest, ``x`` from the left and ``y`` from above, in shares of the sides."""
        row, column = divmod(int(self.values.argmax()), self.values.shape[1])
        height, width = self.values.shape
        return (column + 0.5) / width, (row + 0.5) / height

    def to_png(self) -> bytes:
        """A small picture to be drawn over the image: clear where nothing is above the average."""
        above = (self.values / max(float(self.values.max()), 1e-12)).clip(0, 1)
        pixels = np.empty((*above.shape, 4), np.uint8)
        pixels[..., :3] = _HEAT
        pixels[..., 3] = (_OPAQUE * above**2).round()
        return picture_file(Image.fromarray(pixels))


@dataclass(frozen=True)
class Explanation:
    """Why an image is answered as it is.

    Attributes:
        prediction: the answer.
        score: name of the score that decides.
        parts: its statistics, which add up to it.
        resembles: the class that it resembles most, whether it is rejected or not.
        probabilities: ``(K,)`` float64, the mean over samples.
        nearest: known images, the nearest first.
        no_nearest: why there are none; empty where there are.
        map: where the unusual is; None where that cannot be told.
        no_map: why it cannot; empty where it can.
        pixels: ``(C, size, size)`` uint8, what the network saw.
    """

    prediction: Prediction
    score: str
    parts: tuple[Part, ...]
    resembles: str
    probabilities: NDArray[np.float64]
    nearest: tuple[Neighbour, ...]
    no_nearest: str
    map: UnusualMap | None
    no_map: str
    pixels: NDArray[np.uint8]

    @property
    def oddest(self) -> Part:
        """The part that known images have as rarely as no other; of equal ones the one that adds most."""
        return min(self.parts, key=lambda part: (1.0 if part.p is None else part.p, -part.contribution))

    def to_json(self) -> dict[str, Any]:
        """Plain values, without pictures; what is not finite is None, as JSON has no word for it."""
        place = None if self.map is None else self.map.maximum
        values = None if self.map is None else self.map.values.round(3).tolist()
        return {
            **{name: finite_value(value) for name, value in asdict(self.prediction).items()},
            "score_name": self.score,
            "resembles": self.resembles,
            "parts": [{name: finite_value(v) for name, v in part._asdict().items()} for part in self.parts],
            "nearest": [
                {"label": one.label, "file": one.file or None, "distance": one.distance}
                for one in self.nearest
            ],
            "no_nearest": self.no_nearest or None,
            "map": None
            if place is None or self.map is None
            else {"x": place[0], "y": place[1], "places": self.map.places, "values": values},
            "no_map": self.no_map or None,
        }


def share_in_words(p: float) -> str:
    """A share of known images: ``3 in 1,000 known images``."""
    count, of = (1000 * p, "1,000") if p < 0.1 else (100 * p, "100")
    return f"{'fewer than 1' if count < 1 else round(count)} in {of} known images"


def finite_value(value: object) -> object:
    """The value, or None for NaN and infinity, for which JSON has no other word."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
