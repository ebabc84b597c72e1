"""Published sets in their own layouts, with a few small pictures of noise for each class."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from torchvision import datasets

NUMBERS = {"n01443537": "goldfish, Carassius auratus", "n02226429": "grasshopper", "n02012849": "crane",
           "n03126707": "crane, lifting machine"}  # fmt: skip


def pictures(count: int, seed: int, size: int = 32) -> Iterator[Image.Image]:
    """Colour pictures that differ."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        yield Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8))


def save(files: Sequence[Path], seed: int, size: int = 32) -> None:
    """A picture in each file."""
    for file, picture in zip(files, pictures(len(files), seed, size), strict=True):
        file.parent.mkdir(parents=True, exist_ok=True)
        picture.save(file, "PNG" if file.suffix == ".png" else "JPEG")


def lines(file: Path, rows: Sequence[str]) -> None:
    """A text file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{row}\n" for row in rows))


def md5(file: Path) -> str:
    """As torchvision checks it."""
    return hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest()


def write_tiny_imagenet(
    root: Path, numbers: Mapping[str, str] = NUMBERS, count: int = 3, tested: int = 1
) -> Path:
    """``count`` training and ``tested`` validation images of each class."""
    folder = root / "tiny-imagenet-200"
    lines(folder / "wnids.txt", [*reversed(numbers)])  # which are not in order
    lines(folder / "words.txt", [f"{number}\t{words}" for number, words in numbers.items()])
    for place, number in enumerate(numbers):
        images = folder / "train" / number / "images"
        save([images / f"{number}_{row}.JPEG" for row in range(count)], place, 64)
    held_out = [(f"val_{row}.JPEG", number) for row, number in enumerate([*numbers] * tested)]
    save([folder / "val" / "images" / name for name, _ in held_out], 999, 64)
    lines(
        folder / "val" / "val_annotations.txt",
        [f"{name}\t{number}\t0\t0\t62\t62" for name, number in held_out],
    )
    return folder


def write_cub(root: Path, classes: int = 3, count: int = 3, tested: int = 1, size: int = 48) -> Path:
    """``count`` training and ``tested`` test images of each class."""
    folder = root / "CUB_200_2011"
    names = [f"{number:03}.Bird_{number}" for number in range(1, classes + 1)]
    rows = [(name, row) for name in names for row in range(count + tested)]
    files = [f"{name}/{name[4:]}_{row}.jpg" for name, row in rows]
    save([folder / "images" / file for file in files], 5, size)
    numbered = [*enumerate(rows, start=1)]
    lines(folder / "classes.txt", [f"{number} {name}" for number, name in enumerate(names, start=1)])
    lines(folder / "images.txt", [f"{number} {file}" for number, file in enumerate(files, start=1)])
    lines(folder / "image_class_labels.txt", [f"{n} {names.index(name) + 1}" for n, (name, _) in numbered])
    lines(folder / "train_test_split.txt", [f"{n} {int(row < count)}" for n, (_, row) in numbered])
    return folder


def write_aircraft(root: Path, classes: int = 3, count: int = 3, tested: int = 1, size: int = 48) -> Path:
    """FGVC-Aircraft as torchvision unpacks it."""
    data = root / "fgvc-aircraft-2013b" / "data"
    variants = [f"7{place:02}-{place}00 B" for place in range(classes)]
    lines(data / "variants.txt", variants)
    for part, rows, first in (("trainval", count, 0), ("test", tested, 500_000)):
        named = [
            (f"{first + row * classes + place:07}", name)
            for row in range(rows)
            for place, name in enumerate(variants)
        ]
        lines(data / f"images_variant_{part}.txt", [f"{number} {name}" for number, name in named])
        save([data / "images" / f"{number}.jpg" for number, _ in named], first + 6, size)
    return root / "fgvc-aircraft-2013b"


def write_cars(root: Path, classes: int = 3, count: int = 3, tested: int = 1, size: int = 48) -> Path:
    """Stanford Cars as torchvision wants them."""
    folder = root / "stanford_cars"
    (folder / "devkit").mkdir(parents=True)
    names = np.array([f"Make {place} Sedan 2012" for place in range(classes)], dtype=object)
    savemat(folder / "devkit" / "cars_meta.mat", {"class_names": names})
    kind = [("fname", object), ("class", object)]
    for part, rows, file in (
        ("train", count, folder / "devkit" / "cars_train_annos.mat"),
        ("test", tested, folder / "cars_test_annos_withlabels.mat"),
    ):
        named = [(f"{row:05}.jpg", 1 + row % classes) for row in range(rows * classes)]
        annotations = np.array([tuple(one) for one in named], dtype=kind)
        savemat(file, {"annotations": annotations})
        save([folder / f"cars_{part}" / name for name, _ in named], 7 + tested * (part == "test"), size)
    return folder


def write_textures(root: Path, names: Sequence[str] = ("banded", "dotted"), count: int = 2) -> Path:
    """DTD as torchvision unpacks it: ``count`` images of each class in each of three parts."""
    folder = root / "dtd" / "dtd"
    for place, part in enumerate(("train", "val", "test")):
        rows = [f"{name}/{name}_{place}{row}.jpg" for name in names for row in range(count)]
        save([folder / "images" / row for row in rows], 20 + place, 48)
        lines(folder / "labels" / f"{part}1.txt", rows)
    return folder


def write_flowers(root: Path, patch: pytest.MonkeyPatch) -> Path:
    """Oxford's flowers: six of them, of the classes 1, 2, 102, 1, 2, 102; two for each part."""
    folder = root / "flowers-102"
    save([folder / "jpg" / f"image_{number:05}.jpg" for number in range(1, 7)], 30, 48)
    savemat(folder / "imagelabels.mat", {"labels": np.array([1, 2, 102, 1, 2, 102])})
    savemat(folder / "setid.mat", {"trnid": [1, 2], "valid": [3, 4], "tstid": [5, 6]})
    named = {
        key: (name, md5(folder / name) if (folder / name).is_file() else "")
        for key, name in (("image", "102flowers.tgz"), ("label", "imagelabels.mat"), ("setid", "setid.mat"))
    }
    patch.setattr(datasets.Flowers102, "_file_dict", named)
    return folder


def write_pets(root: Path) -> Path:
    """Oxford's pets, two breeds."""
    folder = root / "oxford-iiit-pet"
    for part, rows in (("trainval", 2), ("test", 1)):
        names = [
            f"{breed}_{part}{row}" for breed in ("Abyssinian", "yorkshire_terrier") for row in range(rows)
        ]
        lines(
            folder / "annotations" / f"{part}.txt",
            [f"{name} {1 + ('terrier' in name)} {1 + ('terrier' in name)} 1" for name in names],
        )
        save([folder / "images" / f"{name}.jpg" for name in names], 40 + rows, 48)
    return folder


def write_food(root: Path) -> Path:
    """Food-101, two dishes."""
    folder = root / "food-101"
    for part, rows in (("train", 2), ("test", 1)):
        named = {dish: [f"{dish}/{part}{row}" for row in range(rows)] for dish in ("pho", "apple_pie")}
        (folder / "meta").mkdir(parents=True, exist_ok=True)
        (folder / "meta" / f"{part}.json").write_text(json.dumps(named))
        files = [name for names in named.values() for name in names]
        save([folder / "images" / f"{name}.jpg" for name in files], 50 + rows, 48)
    return folder


def write_places365(root: Path, patch: pytest.MonkeyPatch) -> Path:
    """The small validation images of Places365, three classes whose names are not in order."""
    lines(root / "categories_places365.txt", ["/b/bar 0", "/b/bank_vault 1", "/a/abbey 2"])
    lines(root / "places365_val.txt", [f"Places365_val_{row:08}.jpg {row % 3}" for row in range(6)])
    save([root / "val_256" / f"Places365_val_{row:08}.jpg" for row in range(6)], 60, 48)
    kind = datasets.Places365
    categories = ("categories_places365.txt", md5(root / "categories_places365.txt"))
    patch.setattr(kind, "_CATEGORIES_META", categories)
    listed = {**kind._FILE_LIST_META, "val": ("places365_val.txt", md5(root / "places365_val.txt"))}
    patch.setattr(kind, "_FILE_LIST_META", listed)
    return root / "val_256"


def write_svhn(root: Path, patch: pytest.MonkeyPatch, count: int = 60, tested: int = 20) -> None:
    """SVHN, ten digits of noise; their digit 0 is the label 10."""
    root.mkdir(parents=True, exist_ok=True)
    kinds = dict(datasets.SVHN.split_list)
    for part, rows in (("train", count), ("test", tested)):
        images = np.stack([np.asarray(one) for one in pictures(rows, 70 + rows)], axis=-1)
        labels = np.arange(rows)[:, None] % 10
        file = root / f"{part}_32x32.mat"
        savemat(file, {"X": images, "y": np.where(labels == 0, 10, labels).astype(np.uint8)})
        kinds[part] = [kinds[part][0], file.name, md5(file)]
    patch.setattr(datasets.SVHN, "split_list", kinds)


def write_cifar(
    root: Path, patch: pytest.MonkeyPatch, *, hundred: bool = False, count: int = 60, tested: int = 20
) -> None:
    """CIFAR-10 or CIFAR-100, of noise; class ``i`` is named ``class i``."""
    kind = datasets.CIFAR100 if hundred else datasets.CIFAR10
    folder, classes = root / kind.base_folder, 100 if hundred else 10
    folder.mkdir(parents=True, exist_ok=True)

    def dump(name: str, content: dict[str, object]) -> str:
        (folder / name).write_bytes(pickle.dumps(content))
        return md5(folder / name)

    for part, rows in (("train", count), ("test", tested)):
        images = np.stack([np.asarray(one) for one in pictures(rows, rows + classes)])
        content = {
            "data": images.transpose(0, 3, 1, 2).reshape(rows, -1),
            ("fine_labels" if hundred else "labels"): [row % classes for row in range(rows)],
        }
        patch.setattr(kind, f"{part}_list", [[part, dump(part, content)]])
    meta = dict(kind.meta)
    meta["md5"] = dump(meta["filename"], {meta["key"]: [f"class {label}" for label in range(classes)]})
    patch.setattr(kind, "meta", meta)


def write_openood(
    root: Path, known: str = "cifar10", classes: int = 10, counts: tuple[int, int, int] = (8, 2, 3)
) -> Path:
    """A benchmark of OpenOOD, lists and pictures, with ``counts`` of each class in train, val and test."""
    lists, images = root / "benchmark_imglist" / known, root / "images_classic"
    for place, (part, rows) in enumerate(zip(("train", "val", "test"), counts, strict=True)):
        named = [
            (f"{known}/{part}/kind{label}/{row:04}.png", label)
            for row in range(rows)
            for label in range(classes)
        ]
        save([images / name for name, _ in named], 80 + place)
        lines(lists / f"{part}_{known}.txt", [f"{name} {label}" for name, label in named])
    others = {"cifar10": "cifar100", "cifar100": "cifar10"}[known]
    for place, name in enumerate((others, "tin", "mnist", "svhn", "texture", "places365")):
        named = [
            f"{name}/test/a b/{row}.jpg" if name == "texture" else f"{name}/{row}.png" for row in range(4)
        ]
        save([images / one for one in named], 90 + place)
        lines(lists / f"test_{name}.txt", [f"{one} -1" for one in named])
    held_out = [f"tin/val/val_{row}.JPEG" for row in range(2)]
    save([images / one for one in held_out], 99)
    lines(lists / "val_tin.txt", [f"{one} -1" for one in held_out])
    return root
