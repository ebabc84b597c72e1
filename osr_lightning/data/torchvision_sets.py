"""The data sets that torchvision downloads, checks and keeps: one entry each in ``TORCHVISION_SETS``."""

from __future__ import annotations

import os
import string
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from osr_lightning.data.folder import read_images
from osr_lightning.data.image_set import Split
from osr_lightning.errors import UserError

Images = Tensor | list[Path]  # (N, C, H, W) uint8, or N files
Unpacked = tuple[Images, Tensor, tuple[str, ...]]  # and (N,) int64, names


def _idx(dataset: Any) -> Unpacked:  # noqa: ANN401 (torchvision is untyped)
    return dataset.data.unsqueeze(1), dataset.targets, tuple(dataset.classes)


def _emnist_letters(dataset: Any) -> Unpacked:  # noqa: ANN401
    # the files hold the images transposed, and the letters as 1 .. 26
    return dataset.data.mT.unsqueeze(1), dataset.targets - 1, tuple(string.ascii_lowercase)


def _qmnist(dataset: Any) -> Unpacked:  # noqa: ANN401
    return (
        dataset.data.unsqueeze(1),
        dataset.targets[:, 0].long(),
        tuple(dataset.classes),
    )  # column 0: the digit


def _cifar(dataset: Any) -> Unpacked:  # noqa: ANN401
    images = torch.from_numpy(dataset.data).permute(0, 3, 1, 2)
    return images, torch.tensor(dataset.targets), tuple(dataset.classes)


def _svhn(dataset: Any) -> Unpacked:  # noqa: ANN401
    return torch.from_numpy(dataset.data), torch.from_numpy(dataset.labels), tuple(string.digits)


def _omniglot(dataset: Any) -> Unpacked:  # noqa: ANN401
    # torchvision numbers the characters in the order of the file system, which differs between machines
    folder = Path(dataset.target_folder)
    if not (files := sorted(folder.glob("*/*/*.png"))):
        raise ValueError("no images")
    names = [file.parent.relative_to(folder).as_posix() for file in files]
    classes = sorted(set(names))
    index = {name: label for label, name in enumerate(classes)}
    labels = torch.tensor([index[name] for name in names])
    return read_images(files, size=105, channels=1), labels, tuple(classes)  # all are 105 x 105


def _image_files(dataset: Any) -> Unpacked:  # noqa: ANN401
    files = dataset._images if hasattr(dataset, "_images") else dataset._image_files
    return [Path(file) for file in files], torch.tensor(dataset._labels), tuple(dataset.classes)


def _cars(dataset: Any) -> Unpacked:  # noqa: ANN401
    files, labels = zip(*dataset._samples, strict=True)
    return [Path(file) for file in files], torch.tensor(list(map(int, labels))), tuple(dataset.classes)


def _places365(dataset: Any) -> Unpacked:  # noqa: ANN401
    classes = tuple(sorted(dataset.class_to_idx, key=dataset.class_to_idx.__getitem__))
    return [Path(file) for file, _ in dataset.imgs], torch.tensor(dataset.targets), classes


class TorchvisionSet(NamedTuple):
    """How torchvision keeps a set.

    Attributes:
        dataset: The name of the class in torchvision.datasets, which is loaded only to read a set.
        folder: Where in the root the downloaded files belong.
        files: The downloaded files, ``{split}`` and the like filled in by ``open_torchvision_set``.
        arguments: Whether the training split is wanted -> arguments of the class, once for each part of it.
        unpack: An instance -> images or their files, labels and names of the classes.
        unpacked: The set's own folder, where its archive lies in the root beside others.
    """

    dataset: str
    folder: str
    files: tuple[str, ...]
    arguments: Callable[[bool], Sequence[dict[str, object]]] = lambda train: [{"train": train}]
    unpack: Callable[[Any], Unpacked] = _idx
    unpacked: str = ""

    @property
    def photographs(self) -> bool:
        """Whether its images stay in their files."""
        return self.unpack in (_image_files, _cars, _places365)


_MNIST_FILES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)


def _splits(*trained: str) -> Callable[[bool], Sequence[dict[str, object]]]:
    """Arguments of a set whose test split is called test, and its training images so."""
    return lambda train: [{"split": part} for part in (trained if train else ("test",))]


TORCHVISION_SETS = {
    "mnist": TorchvisionSet("MNIST", "MNIST/raw", _MNIST_FILES),
    "fashion_mnist": TorchvisionSet("FashionMNIST", "FashionMNIST/raw", _MNIST_FILES),
    "kmnist": TorchvisionSet("KMNIST", "KMNIST/raw", _MNIST_FILES),
    "emnist_letters": TorchvisionSet(
        "EMNIST",
        "EMNIST/raw",
        ("gzip.zip",),
        lambda train: [{"split": "letters", "train": train}],
        _emnist_letters,
    ),
    "qmnist": TorchvisionSet(
        "QMNIST",
        "QMNIST/raw",
        ("qmnist-{split}-images-idx3-ubyte.gz", "qmnist-{split}-labels-idx2-int.gz"),
        unpack=_qmnist,
    ),
    "cifar10": TorchvisionSet("CIFAR10", ".", ("cifar-10-python.tar.gz",), unpack=_cifar),
    "cifar100": TorchvisionSet("CIFAR100", ".", ("cifar-100-python.tar.gz",), unpack=_cifar),
    "svhn": TorchvisionSet("SVHN", ".", ("{split}_32x32.mat",), _splits("train"), _svhn),
    "omniglot": TorchvisionSet(
        "Omniglot", "omniglot-py", ("images_{part}.zip",), lambda train: [{"background": train}], _omniglot
    ),
    # photographs, which stay in their files
    "textures": TorchvisionSet("DTD", "dtd", ("dtd-r1.0.1.tar.gz",), _splits("train", "val"), _image_files),
    "flowers": TorchvisionSet(
        "Flowers102",
        "flowers-102",
        ("102flowers.tgz", "imagelabels.mat", "setid.mat"),
        _splits("train", "val"),
        _image_files,
    ),
    "pets": TorchvisionSet(
        "OxfordIIITPet",
        "oxford-iiit-pet",
        ("images.tar.gz", "annotations.tar.gz"),
        _splits("trainval"),
        _image_files,
    ),
    "aircraft": TorchvisionSet(
        "FGVCAircraft",
        ".",
        ("fgvc-aircraft-2013b.tar.gz",),
        _splits("trainval"),
        _image_files,
        "fgvc-aircraft-2013b",
    ),
    "food": TorchvisionSet("Food101", ".", ("food-101.tar.gz",), _splits("train"), _image_files, "food-101"),
    "cars": TorchvisionSet(
        "StanfordCars",
        "stanford_cars",
        ("devkit", "cars_train", "cars_test", "cars_test_annos_withlabels.mat"),
        _splits("train"),
        _cars,
    ),
    "places365": TorchvisionSet(  # the labels of its test images are not public
        "Places365",
        ".",
        ("filelist_places365-standard.tar", "{places}.tar"),
        lambda train: [{"split": "train-standard" if train else "val", "small": True}],
        _places365,
    ),
}


def open_torchvision_set(name: str, split: Split, root: Path, *, download: bool = True) -> Unpacked:
    """Open a set in torchvision's own layout under ``root``, downloading it only if it is missing.

    Args:
        name: A key of ``TORCHVISION_SETS``.
        split: ``test`` is the published test split, anything else the training split: what is
            calibrated on a set's ``validation`` images shares nothing with its test images.
        root: The folder of all torchvision sets.
        download: Whether a set that is missing may be written there.

    Returns:
        The images as published, ``(N, C, H, W)`` uint8, or of photographs the files; their labels, and the
        names of the classes.

    Raises:
        UserError: The set is missing and cannot be downloaded, or its files are damaged.
    """
    kept, train = TORCHVISION_SETS[name], split != "test"
    root = Path(os.path.expanduser(root)).absolute()
    folder = root / kept.folder
    words = {
        "split": "train" if train else "test",
        "part": "background" if train else "evaluation",
        "places": "train_256_places365standard" if train else "val_256",
    }
    files = [file.format(**words) for file in kept.files]

    def damaged(error: Exception) -> UserError:
        # other sets live in the root too
        culprit = folder if folder != root else root / (kept.unpacked or files[0])
        return UserError(
            f"{name} is damaged ({_reason(error)}): delete {culprit} so that it is fetched again."
        )

    try:
        parts = _open(kept, root, train)
    except Exception as error:  # a truncated file can fail anywhere in its parser
        if not (isinstance(error, RuntimeError) and any(words in str(error) for words in _NOT_THERE)):
            raise damaged(error) from error
        if not download:
            raise UserError(
                f"{name} is missing in {root}, which the checkpoint names: name the folder yourself with "
                "--data.root, and what is missing is downloaded into it"
            ) from error
        parts = _download(name, kept, train, root, files)

    try:
        found = _joined([kept.unpack(part) for part in parts])
        _check(*found)
    except UserError:
        raise
    except Exception as error:  # arrays of another shape can fail anywhere as well
        raise damaged(error) from error
    return found


_NOT_THERE = "not found", "does not exist"  # what torchvision's classes say of missing files


def _joined(parts: Sequence[Unpacked]) -> Unpacked:
    """The parts of a split as one."""
    if len(parts) == 1:
        return parts[0]
    files = [file for images, _, _ in parts for file in images]
    if len({classes for _, _, classes in parts}) > 1:
        raise ValueError("its parts have different classes")
    return files, torch.cat([labels for _, labels, _ in parts]), parts[0][2]


def _open(kept: TorchvisionSet, root: Path, train: bool, **options: bool) -> list[Any]:
    from torchvision import datasets

    parts = [getattr(datasets, kept.dataset)(root, **options, **one) for one in kept.arguments(train)]
    for part in parts:
        if not os.path.isdir(getattr(part, "images_dir", root)):  # which Places365 does not look for
            raise RuntimeError(f"{part.images_dir} not found")
    return parts


def _check(images: Images, labels: Tensor, classes: tuple[str, ...]) -> None:
    last = len(classes) - 1
    if isinstance(images, Tensor) and (images.ndim != 4 or images.dtype != torch.uint8 or not images.numel()):
        raise ValueError(f"its images have the shape {tuple(images.shape)}")
    if not len(images):
        raise ValueError("it has no images")
    if labels.shape != (len(images),):
        raise ValueError(f"{len(images)} images and {len(labels)} labels")
    for label in (int(labels.min()), int(labels.max())):
        if not 0 <= label <= last:
            raise ValueError(f"one of its labels is {label}, and its classes are 0 to {last}")


def _download(name: str, kept: TorchvisionSet, train: bool, root: Path, files: list[str]) -> list[Any]:
    try:
        return _open(kept, root, train, download=True)
    except Exception as error:  # no network, no space, no permission, a bad answer: each has its own kind
        folder = root / kept.folder
        # a file may be there unpacked; if all are there, one is damaged, and only torchvision knows which
        missing = [file for file in files if not any(folder.glob(file.removesuffix(".gz") + "*"))] or files
        raise UserError(
            f"{name} is missing or incomplete in {folder} and cannot be downloaded ({_reason(error)}): put "
            f"{', '.join(missing)} there, or start with configs/quickstart.yaml, which runs without network."
        ) from error


def _reason(error: Exception) -> str:
    """The last line of an error's message, where torchvision puts the cause, or its kind."""
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__
