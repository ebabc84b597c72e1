"""Sets that are lists of image files: where each lies, and its class."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from osr_lightning.data.image_set import Request
from osr_lightning.errors import UserError

UNLABELLED = -1  # the class of OpenOOD's unknown images

_TINY_IMAGENET = "tiny-imagenet-200.zip of http://cs231n.stanford.edu"
_CUB = "CUB_200_2011.tgz of https://data.caltech.edu/records/65de6-vp158"
_OPENOOD = "what scripts/download/download.py of https://github.com/Jingkang50/OpenOOD brings"


@dataclass(frozen=True)
class FileList:
    """``N`` image files and their classes.

    Attributes:
        files: where they lie.
        labels: ``N`` places in ``classes``.
        classes: names.
        root: the folder that the files are named from.
        own_test: whether the source keeps test images apart from those of other splits.
        own_validation: whether it keeps validation images apart as well.
        left_out: see `ImageSet`.
    """

    files: Sequence[Path]
    labels: Sequence[int]
    classes: tuple[str, ...]
    root: Path
    own_test: bool = True
    own_validation: bool = False
    left_out: tuple[str, ...] = ()

    def only(self, classes: Sequence[str]) -> FileList:
        """The files of some classes, which are then all there are."""
        place = {self.classes.index(name): label for label, name in enumerate(classes)}
        rows = [row for row, label in enumerate(self.labels) if label in place]
        return replace(
            self,
            files=[self.files[row] for row in rows],
            labels=[place[self.labels[row]] for row in rows],
            classes=tuple(classes),
        )


def tiny_imagenet(request: Request) -> FileList:
    """TinyImageNet as its zip unpacks: 200 classes in the order of their WordNet numbers.

    The test images are those of its folder ``val``, as in all published numbers: the labels of ``test`` are
    not public.

    Args:
        request: of which split, ``test`` for these, anything else for the folder ``train``; its root holds
            ``tiny-imagenet-200``.

    Raises:
        UserError: where a file is missing or is not as expected.
    """
    folder = _unpacked(request, "tiny-imagenet-200", _TINY_IMAGENET)
    numbers = sorted(line for line in _lines(folder / "wnids.txt", _TINY_IMAGENET) if line)
    words = dict(_pairs(folder / "words.txt", _TINY_IMAGENET, "\t"))
    names = [words.get(number, number).partition(",")[0] for number in numbers]
    classes = [
        name if names.count(name) == 1 else f"{name} {number}"
        for name, number in zip(names, numbers, strict=True)
    ]
    place = {number: label for label, number in enumerate(numbers)}
    if request.split == "test":
        images = folder / "val" / "images"
        rows = [
            (images / name, rest.partition("\t")[0])
            for name, rest in _pairs(folder / "val" / "val_annotations.txt", _TINY_IMAGENET, "\t")
        ]
    else:
        rows = [
            (file, number)
            for number in numbers
            for file in sorted((folder / "train" / number / "images").glob("*.JPEG"))
        ]
    if not rows or not {number for _, number in rows} <= {*numbers}:
        raise _damaged(request, folder, _TINY_IMAGENET)
    return FileList([file for file, _ in rows], [place[number] for _, number in rows], tuple(classes), folder)


def cub(request: Request) -> FileList:
    """CUB-200-2011 as its archive unpacks: 200 birds in the order of their numbers.

    Args:
        request: of which split, ``test`` for the published test images, anything else for the training
            images; its root holds ``CUB_200_2011``.

    Raises:
        UserError: where a file is missing or is not as expected.
    """
    folder = _unpacked(request, "CUB_200_2011", _CUB)
    images, labels, trained, named = (
        dict(_pairs(folder / name, _CUB, " "))
        for name in ("images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt")
    )
    numbers = [*named]
    place = {number: label for label, number in enumerate(numbers)}
    wanted = "0" if request.split == "test" else "1"
    rows = [number for number in images if trained.get(number) == wanted]
    if not rows or any(labels.get(number) not in place for number in rows):
        raise _damaged(request, folder, _CUB)
    return FileList(
        files=[folder / "images" / images[number] for number in rows],
        labels=[place[labels[number]] for number in rows],
        classes=tuple(name.partition(".")[2].replace("_", " ") or name for name in named.values()),
        root=folder,
    )


def listed(request: Request) -> FileList:
    """The files that a text file names, one ``PATH LABEL`` a line, as OpenOOD's image lists do.

    A class is named after the folder of its images where every class has one of its own, else by its label.
    Rows with the label -1 are one class named after the list.

    Args:
        request: whose argument is the text file, as ``FILE``, or as ``FILE@FOLDER`` where its paths start in
            another folder. Where its classes are learned, every image needs one.

    Raises:
        UserError: where a file is missing, or a line is not as above.
    """
    file, found, folder = request.argument.rpartition("@")
    path, root = request.path, request.path.parent
    if found and not path.is_file():
        path, root = Path(os.path.expanduser(file)), Path(os.path.expanduser(folder))
    rows = _rows(path, root)
    if request.as_known:
        _refuse_unlabelled(path, rows)
    return replace(_of_rows(rows, rows, path.stem, root), own_test=False)


def openood(request: Request) -> FileList:
    """A set of OpenOOD's benchmarks as its lists divide and correct it (Zhang et al., OpenOOD v1.5, 2023).

    Args:
        request: whose argument is ``KNOWN`` for a benchmark's known images (``train_KNOWN.txt``,
            ``val_KNOWN.txt`` and ``test_KNOWN.txt``), or ``KNOWN/SET`` for one of its unknown sets
            (``test_SET.txt``, and ``val_SET.txt`` where it has such); its root holds ``benchmark_imglist``
            and ``images_classic``.

    Raises:
        UserError: where a file is missing, or a line is not as expected.
    """
    benchmark, _, other = request.argument.partition("/")
    if not benchmark or Path(benchmark).name != benchmark or (other and Path(other).name != other):
        raise UserError(
            f"{request.name} is no set of OpenOOD: write openood:cifar10 for known images, or "
            "openood:cifar10/tin for an unknown set"
        )
    lists, images = request.root / "benchmark_imglist" / benchmark, request.root / "images_classic"
    of = other or benchmark
    part = {"train": "val" if other else "train", "validation": "val", "test": "test"}[request.split]
    path = lists / f"{part}_{of}.txt"
    if not path.is_file():
        raise UserError(
            f"{request.name} needs {path} and its pictures in {images}: put {_OPENOOD} into {request.root}, "
            "or name that folder with --data.root"
        )
    rows = _rows(path, images)
    if other:
        return _of_rows(rows, rows, other, images)
    _refuse_unlabelled(path, rows)
    trained = rows if request.split == "train" else _rows(lists / f"train_{of}.txt", images)
    if strangers := {label for _, label in rows} - {label for _, label in trained}:
        raise UserError(f"{path} has the class {min(strangers)}, which {lists}/train_{of}.txt lacks")
    return replace(_of_rows(rows, trained, of, images), own_validation=True)


def _of_rows(
    rows: Sequence[tuple[Path, int]], trained: Sequence[tuple[Path, int]], name: str, root: Path
) -> FileList:
    """Rows of a list, whose classes are those of the training images."""
    numbers = sorted({label for _, label in trained})
    place = {number: label for label, number in enumerate(numbers)}
    labels = [place[label] for _, label in rows]
    return FileList([file for file, _ in rows], labels, _class_names(trained, numbers, name), root)


def _refuse_unlabelled(path: Path, rows: Sequence[tuple[Path, int]]) -> None:
    if (least := min(label for _, label in rows)) < 0:
        raise UserError(
            f"{path} has images without a class (label {least}): give each a class from 0 up, or use it as "
            "an unknown set"
        )


def _rows(path: Path, root: Path) -> list[tuple[Path, int]]:
    rows = []
    for number, line in enumerate(_lines(path, None), start=1):
        if not line:
            continue
        name, _, label = line.rpartition(" ")
        if not name or not label.removeprefix("-").isdecimal():
            raise UserError(
                f"{path}, line {number}: {line[:60]!r} is no row PATH LABEL; write an image's path and its "
                f"class as a whole number, {UNLABELLED} where it has none"
            )
        rows.append((root / name.rstrip(), int(label)))
    if not rows:
        raise UserError(f"{path} names no images: write one PATH LABEL a line")
    for file, _ in rows:
        if not file.is_file():
            raise UserError(
                f"{path} names {file}, which is not there: put the image there, or name the folder where the "
                f"paths start, as in list:{path.name}@FOLDER"
            )
    return rows


def _class_names(rows: Sequence[tuple[Path, int]], numbers: Sequence[int], name: str) -> tuple[str, ...]:
    if [*numbers] == [UNLABELLED]:
        return (name,)
    folders: dict[int, set[str]] = {number: set() for number in numbers}
    for file, label in rows:
        folders[label].add(file.parent.name)
    found = [next(iter(names)) for names in folders.values() if len(names) == 1]
    one_each = len(found) == len(numbers) == len({*found})
    return tuple(found) if one_each else tuple(map(str, numbers))


def _pairs(path: Path, archive: str, separator: str) -> Iterator[tuple[str, str]]:
    """The first word of each line, and the rest of it."""
    for line in _lines(path, archive):
        first, found, rest = line.partition(separator)
        if found:
            yield first, rest


def _lines(path: Path, archive: str | None) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        way_out = f"unpack {archive} again" if archive else "name another file"
        raise UserError(f"Cannot read {path} ({error}): {way_out}.") from error


def _unpacked(request: Request, name: str, archive: str) -> Path:
    """The folder that an archive unpacks to."""
    folder = request.root / name
    if not folder.is_dir():
        raise UserError(
            f"{request.kind} is missing: fetch {archive} and unpack it into {request.root}, so that there is "
            f"{folder}, or name another folder with --data.root"
        )
    return folder


def _damaged(request: Request, folder: Path, archive: str) -> UserError:
    return UserError(f"{request.kind} is incomplete in {folder}: unpack {archive} again")
