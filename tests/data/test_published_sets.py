"""Published sets in their own layouts: which images, of which classes, and what is said where one is not."""

import contextlib
import hashlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import published
import pytest
import torch
from PIL import Image

from osr_lightning.data import class_splits as lists
from osr_lightning.data.class_splits import NAMES, class_splits
from osr_lightning.data.datamodule import OpenSetDataModule
from osr_lightning.data.folder import read_images
from osr_lightning.data.image_set import ImageSet
from osr_lightning.data.sources import class_names, is_photographs, is_small, is_source, load_source
from osr_lightning.data.stream import StreamedImages
from osr_lightning.errors import UserError


def load(source, split, root, **more) -> ImageSet:
    return load_source(source, split, root=root, **{"size": 32, "channels": 3, **more})


def check(found: ImageSet, files: list[Path], classes: list[str], labels: list[int]) -> None:
    """That these are the pictures of these files, each under its class."""
    assert found.classes == tuple(classes)
    assert found.labels.tolist() == labels
    assert torch.equal(found.images, read_images(files, size=32, channels=3))


# ---------------------------------------------------------------- files


def test_tiny_imagenet_is_in_the_order_of_its_numbers(tmp_path):
    folder = published.write_tiny_imagenet(tmp_path)
    numbers = ["n01443537", "n02012849", "n02226429", "n03126707"]
    # two of its classes are called crane
    names = ["goldfish", "crane n02012849", "grasshopper", "crane n03126707"]
    files = [file for number in numbers for file in sorted((folder / "train" / number / "images").iterdir())]
    check(load("tiny_imagenet", "train", tmp_path), files, names, [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3])
    tested = load("tiny_imagenet", "test", tmp_path)
    # as it was written: one each of the numbers above, in the fixture's order
    order = [numbers.index(number) for number in published.NUMBERS]
    check(tested, [folder / "val" / "images" / f"val_{row}.JPEG" for row in range(4)], names, order)
    assert tested.files[0] == "val/images/val_0.JPEG"
    assert (
        load("tiny_imagenet", "validation", tmp_path).files == load("tiny_imagenet", "train", tmp_path).files
    )


def test_cub_has_its_published_test_images(tmp_path):
    folder = published.write_cub(tmp_path)
    names = ["Bird 1", "Bird 2", "Bird 3"]
    files = [
        folder / f"images/{number:03}.Bird_{number}/Bird_{number}_{row}.jpg"
        for number in (1, 2, 3)
        for row in range(4)
    ]
    held_out = [3, 7, 11]
    check(load("cub", "test", tmp_path), [files[row] for row in held_out], names, [0, 1, 2])
    trained = [file for row, file in enumerate(files) if row not in held_out]
    check(load("cub", "train", tmp_path), trained, names, [0, 0, 0, 1, 1, 1, 2, 2, 2])


def test_aircraft_and_cars_are_read_as_torchvision_has_them(tmp_path):
    folder = published.write_aircraft(tmp_path) / "data"
    names = ["700-000 B", "701-100 B", "702-200 B"]
    files = [folder / "images" / f"{500_000 + place:07}.jpg" for place in range(3)]
    check(load("aircraft", "test", tmp_path), files, names, [0, 1, 2])
    assert len(load("aircraft", "train", tmp_path)) == 9

    folder = published.write_cars(tmp_path)
    names = [f"Make {place} Sedan 2012" for place in range(3)]
    check(
        load("cars", "test", tmp_path),
        [folder / f"cars_test/{row:05}.jpg" for row in range(3)],
        names,
        [0, 1, 2],
    )
    assert load("cars", "train", tmp_path).labels.tolist() == [0, 1, 2] * 3


def test_textures_and_flowers_train_on_both_of_their_parts(tmp_path, monkeypatch):
    folder = published.write_textures(tmp_path) / "images"
    rows = [
        f"{name}/{name}_{part}{row}.jpg" for part in (0, 1) for name in ("banded", "dotted") for row in (0, 1)
    ]
    check(
        load("textures", "train", tmp_path),
        [folder / row for row in rows],
        ["banded", "dotted"],
        [0, 0, 1, 1] * 2,
    )
    assert load("textures", "test", tmp_path).files[0] == "banded/banded_20.jpg"

    folder = published.write_flowers(tmp_path, monkeypatch) / "jpg"
    found = load("flowers", "train", tmp_path)
    assert len(found.classes) == 102
    assert (found.classes[0], found.classes[101]) == ("pink primrose", "blackberry lily")
    numbers = [1, 2, 3, 4]
    files = [folder / f"image_{number:05}.jpg" for number in numbers]
    check(found, files, [*found.classes], [0, 1, 101, 0])
    assert load("flowers", "test", tmp_path).labels.tolist() == [1, 101]


def test_pets_food_and_places365(tmp_path, monkeypatch):
    folder = published.write_pets(tmp_path) / "images"
    files = [folder / "Abyssinian_test0.jpg", folder / "yorkshire_terrier_test0.jpg"]
    check(load("pets", "test", tmp_path), files, ["Abyssinian", "Yorkshire Terrier"], [0, 1])
    assert load("pets", "train", tmp_path).labels.tolist() == [0, 0, 1, 1]

    folder = published.write_food(tmp_path) / "images"
    files = [folder / "pho/test0.jpg", folder / "apple_pie/test0.jpg"]
    check(load("food", "test", tmp_path), files, ["apple_pie", "pho"], [1, 0])
    assert load("food", "train", tmp_path).labels.tolist() == [1, 1, 0, 0]

    folder = published.write_places365(tmp_path, monkeypatch)
    files = [folder / f"Places365_val_{row:08}.jpg" for row in range(6)]
    # named by their numbers, though torchvision sorts the names
    check(load("places365", "test", tmp_path), files, ["/b/bar", "/b/bank_vault", "/a/abbey"], [0, 1, 2] * 2)


def test_large_sets_are_resized_once_into_the_cache(tmp_path, monkeypatch):
    """As a folder of the user's, and not into memory."""
    published.write_food(tmp_path)
    whole = load("food", "train", tmp_path)
    found = load("food", "train", tmp_path, memory_limit=1)
    assert isinstance(found.images, StreamedImages)
    assert found.images.quick
    assert torch.equal(found.images[torch.arange(4)], whole.images)
    # they are there
    monkeypatch.setattr(
        "osr_lightning.data.folder.read_images", lambda *_, **__: pytest.fail("decoded again")
    )
    again = load("food", "train", tmp_path, memory_limit=1)
    assert torch.equal(again.images[torch.tensor([2])], whole.images[2:3])


@pytest.mark.parametrize("source", ["cub", "tiny_imagenet", "aircraft", "openood:cifar10"])
def test_what_they_are_is_known_without_reading_every_file(source, tmp_path, monkeypatch):
    kind = source.partition(":")[0]
    getattr(published, f"write_{kind}")(tmp_path)
    monkeypatch.setattr("osr_lightning.data.folder.read_images", None)
    assert len(class_names(source, root=tmp_path)) in (3, 4, 10)
    size = {"cub": 48, "tiny_imagenet": 64, "aircraft": 48, "openood": 32}[kind]
    assert is_photographs(source, tmp_path) == (size >= 64)
    assert is_small(source, tmp_path) == (size < 64)


# ---------------------------------------------------------------- some classes


def test_some_classes_of_a_source_by_place_or_name(tmp_path, monkeypatch):
    published.write_cub(tmp_path)
    published.write_cifar(tmp_path, monkeypatch)
    for source, names, count in (
        ("cub:2, 0", ("Bird 3", "Bird 1"), 2),
        ("cub:Bird 2", ("Bird 2",), 1),
        ("cifar10:9,0,4", ("class 9", "class 0", "class 4"), 6),
    ):
        whole, found = (load(one, "test", tmp_path) for one in (source.partition(":")[0], source))
        assert found.classes == names == class_names(source, root=tmp_path)
        assert len(found) == count
        rows = [row for row, label in enumerate(whole.labels) if whole.classes[label] in names]
        assert torch.equal(found.images, whole.images[rows])
        assert [names[label] for label in found.labels] == [whole.classes[whole.labels[row]] for row in rows]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("cub:3", r"the source cub:3: cub has no class '3'; it has Bird 1, Bird 2, Bird 3"),
        ("cub:Bird 4", r"cub has no class 'Bird 4'; did you mean 'Bird"),
        ("cub:0,0", r"the source cub:0,0 names 'Bird 1' twice"),
        ("cub:", r"no source 'cub:'; did you mean 'cub'"),
    ],
)
def test_other_classes_are_refused(source, said, tmp_path):
    published.write_cub(tmp_path)
    with pytest.raises(UserError, match=said):
        load(source, "test", tmp_path)


def test_names_of_sources():
    for name in (
        "cub",
        "cub:1",
        "cifar100:3,4",
        "list:a.txt",
        "openood:cifar10/tin",
        "folder:x",
        "noise:uniform",
    ):
        assert is_source(name)
    for name in ("birds", "noise", "birds:1", "./cub"):
        assert not is_source(name)


# ---------------------------------------------------------------- lists of files


def write_list(folder, *rows) -> Path:
    published.lines(folder / "list.txt", rows)
    names = [row.rpartition(" ")[0] for row in rows]
    published.save([folder / name for name in names if name.endswith(".png")], 1)
    return folder / "list.txt"


def test_a_list_names_its_images_and_classes(tmp_path):
    rows = ["b/x.png 1", "a b/y.png 0", "b/z.png 1"]
    file = write_list(tmp_path, *rows)
    found = load(f"list:{file}", "test", tmp_path)
    files = [tmp_path / row.rpartition(" ")[0] for row in rows]
    check(found, files, ["a b", "b"], [1, 0, 1])  # named after folders, of which each class has one
    assert found.files == ("b/x.png", "a b/y.png", "b/z.png")
    moved = shutil.copy(file, tmp_path.parent / "elsewhere.txt")
    again = load(f"list:{moved}@{tmp_path}", "test", tmp_path)
    assert torch.equal(again.images, found.images)
    file.rename(tmp_path / "what@home.txt")
    assert len(load(f"list:{tmp_path}/what@home.txt", "test", tmp_path)) == 3


def test_classes_without_a_folder_each_are_named_by_their_labels(tmp_path):
    file = write_list(tmp_path, "a/x.png 7", "a/y.png 3", "b/z.png 7")
    assert load(f"list:{file}", "test", tmp_path).classes == ("3", "7")
    file = write_list(tmp_path / "unknown", "a/x.png -1", "b/y.png -1")
    assert load(f"list:{file}", "test", tmp_path).classes == ("list",)


def test_a_list_that_is_learned_has_its_test_images_held_out(tmp_path):
    file = write_list(tmp_path, *(f"{kind}/{row}.png {kind}" for kind in (0, 1) for row in range(10)))
    parts = [load(f"list:{file}", split, tmp_path, as_known=True) for split in ("train", "test")]
    assert sorted([*parts[0].files, *parts[1].files]) == sorted(load(f"list:{file}", "test", tmp_path).files)
    assert len(parts[1]) < len(parts[0]) < 20


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (["x.png"], r"list\.txt, line 1: 'x\.png' is no row PATH LABEL"),
        (["x.png 0", "y.png one"], r"line 2: 'y\.png one' is no row PATH LABEL"),
        (["x.png 0", "y.jpg 0"], r"names .*y\.jpg, which is not there.*list:list\.txt@FOLDER"),
        ([], "names no images"),
    ],
)
def test_lists_that_are_none(rows, said, tmp_path):
    file = write_list(tmp_path, *rows)
    with pytest.raises(UserError, match=said):
        load(f"list:{file}", "test", tmp_path)


def test_a_missing_list_and_images_without_a_class(tmp_path):
    with pytest.raises(UserError, match=r"Cannot read .*nowhere\.txt"):
        load("list:nowhere.txt", "test", tmp_path)
    with pytest.raises(UserError, match=r"list: names no path; write list:PATH"):
        load("list:", "test", tmp_path)
    file = write_list(tmp_path, "a/x.png 0", "b/y.png -1")
    with pytest.raises(UserError, match=r"images without a class \(label -1\)"):
        load(f"list:{file}", "train", tmp_path, as_known=True)


def test_openood_divides_a_set_by_its_lists(tmp_path):
    published.write_openood(tmp_path)
    data = OpenSetDataModule(
        known="openood:cifar10",
        unknown={"near": {"tin": "openood:cifar10/tin"}, "far": {"texture": "openood:cifar10/texture"}},
        root=str(tmp_path),
    )
    data.setup("fit")
    data.setup("test")
    tables = data.tables
    assert [len(table) for table in (tables.train, tables.val, tables.test)] == [80, 20, 30 + 4 + 4]
    assert data.spec.classes == tuple(f"kind{label}" for label in range(10))
    assert data.spec.image_size == 32
    for table, part in ((tables.train, "train"), (tables.val, "val"), (tables.test, "test")):
        rows = [row for row, source in enumerate(table.sources) if source == 0]
        assert all(table.files[row].startswith(f"cifar10/{part}/kind{table.labels[row]}/") for row in rows)
    assert [tables.test.files[row] for row in (-8, -4)] == ["tin/0.png", "texture/test/a b/0.jpg"]
    assert tables.test.labels[-8:].tolist() == [10] * 8
    held_out = load("openood:cifar10/tin", "validation", tmp_path)
    assert held_out.files == ("tin/val/val_0.JPEG", "tin/val/val_1.JPEG")


def test_openood_keeps_the_classes_of_its_training_list(tmp_path):
    published.write_openood(tmp_path)
    file = tmp_path / "benchmark_imglist" / "cifar10" / "test_cifar10.txt"
    published.lines(file, [row for row in file.read_text().splitlines() if row.endswith(" 7")])
    found = load("openood:cifar10", "test", tmp_path, as_known=True)
    assert len(found.classes) == 10
    assert found.labels.tolist() == [7] * 3
    published.lines(file, [f"{file.read_text().splitlines()[0][:-1]}12"])
    with pytest.raises(
        UserError, match=r"test_cifar10\.txt has the class 12, which .*train_cifar10\.txt lacks"
    ):
        load("openood:cifar10", "test", tmp_path, as_known=True)


@pytest.mark.parametrize("name", ["cifar10/places", "cifar100", "cifar10/tin"])
def test_a_missing_list_of_openood_says_what_to_fetch(name, tmp_path):
    published.write_openood(tmp_path)
    (tmp_path / "benchmark_imglist" / "cifar10" / "test_tin.txt").unlink()
    with pytest.raises(UserError) as caught:
        load(f"openood:{name}", "test", tmp_path)
    last = name.partition("/")[2] or name
    assert f"{tmp_path / 'benchmark_imglist' / name.partition('/')[0]}/test_{last}.txt" in str(caught.value)
    assert "scripts/download/download.py" in str(caught.value)
    assert str(tmp_path / "images_classic") in str(caught.value)


@pytest.mark.parametrize("name", ["../x", "cifar10/../x", "/etc", "."])
def test_no_list_of_openood_lies_elsewhere(name, tmp_path):
    with pytest.raises(UserError, match=r"is no set of OpenOOD|needs"):
        load(f"openood:{name}", "test", tmp_path)


# ---------------------------------------------------------------- what is missing


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    ("source", "folder", "file"),
    [
        ("textures", "dtd", "dtd-r1.0.1.tar.gz"),
        ("flowers", "flowers-102", "102flowers.tgz"),
        ("pets", "oxford-iiit-pet", "images.tar.gz, annotations.tar.gz"),
        ("aircraft", ".", "fgvc-aircraft-2013b.tar.gz"),
        ("food", ".", "food-101.tar.gz"),
        ("cars", "stanford_cars", "devkit, cars_train, cars_test, cars_test_annos_withlabels.mat"),
        ("places365", ".", "filelist_places365-standard.tar, val_256.tar"),
        ("cub", ".", "CUB_200_2011.tgz"),
        ("tiny_imagenet", ".", "tiny-imagenet-200.zip"),
    ],
)
def test_one_sentence_says_what_to_fetch_and_where_to_put_it(source, folder, file, tmp_path, capsys):
    with pytest.raises(UserError) as caught:
        load(source, "test", tmp_path)
    message = str(caught.value)
    assert file in message
    assert str(tmp_path / folder) in message
    assert "\n" not in message
    assert capsys.readouterr() == ("", "")


@pytest.mark.usefixtures("offline")
def test_places365_without_its_images(tmp_path, monkeypatch):
    shutil.rmtree(published.write_places365(tmp_path, monkeypatch))
    with pytest.raises(UserError, match=r"places365 is missing .* put .*val_256\.tar there"):
        load("places365", "test", tmp_path)


def test_a_checkpoints_root_is_not_filled_without_being_asked(tmp_path):
    with pytest.raises(UserError, match=r"textures is missing in .*name the folder yourself"):
        load("textures", "test", tmp_path, download=False)
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize(
    ("source", "file", "culprit"),
    [
        ("textures", "dtd/dtd/labels/test1.txt", "dtd"),
        ("aircraft", "fgvc-aircraft-2013b/data/variants.txt", "fgvc-aircraft-2013b"),
        ("food", "food-101/meta/test.json", "food-101"),
        ("pets", "oxford-iiit-pet/annotations/test.txt", "oxford-iiit-pet"),
    ],
)
def test_what_is_damaged_is_to_be_deleted(source, file, culprit, tmp_path):
    getattr(published, f"write_{source}")(tmp_path)
    (tmp_path / file).unlink()
    with pytest.raises(
        UserError, match=rf"{source} is damaged .* delete {re.escape(str(tmp_path / culprit))} so"
    ):
        load(source, "test", tmp_path)


@pytest.mark.parametrize(
    ("source", "file", "said"),
    [
        ("cub", "CUB_200_2011/images.txt", r"Cannot read .*images\.txt.*unpack CUB_200_2011\.tgz"),
        ("cub", "CUB_200_2011/images/001.Bird_1/Bird_1_3.jpg", r"Cannot read the image .*Bird_1_3\.jpg"),
        ("tiny_imagenet", "tiny-imagenet-200/val/val_annotations.txt", r"unpack tiny-imagenet-200\.zip"),
        ("tiny_imagenet", "tiny-imagenet-200/words.txt", r"Cannot read .*words\.txt"),
    ],
)
def test_a_part_that_is_missing_is_named(source, file, said, tmp_path):
    getattr(published, f"write_{source}")(tmp_path)
    (tmp_path / file).unlink()
    with pytest.raises(UserError, match=said):
        load(source, "test", tmp_path)


def test_an_empty_cub_and_foreign_classes(tmp_path):
    folder = published.write_cub(tmp_path)
    published.lines(folder / "image_class_labels.txt", [f"{row} 9" for row in range(1, 13)])
    with pytest.raises(UserError, match=r"cub is incomplete in .*unpack CUB_200_2011"):
        load("cub", "test", tmp_path)
    folder = published.write_tiny_imagenet(tmp_path)
    published.lines(folder / "val" / "val_annotations.txt", ["val_0.JPEG\tn9\t0\t0\t1\t1"])
    with pytest.raises(UserError, match=r"tiny_imagenet is incomplete in .*unpack tiny-imagenet"):
        load("tiny_imagenet", "test", tmp_path)


def test_a_few_published_copies_do_not_stop_a_run(tmp_path):
    """Of 1,000 test images one may be a training image; two are a leak."""
    names = {f"n{number:08}": f"word{number}" for number in range(2)}
    folder = published.write_tiny_imagenet(tmp_path, names, count=20, tested=500)
    trained = sorted((folder / "train" / "n00000000" / "images").iterdir())
    options = {"known": "tiny_imagenet", "root": str(tmp_path), "image_size": 8, "val_fraction": 0.5}
    data = OpenSetDataModule(**options)
    data.setup("fit")
    held_out = {Path(name).name for name in data.tables.val.files}
    first, second = [file for file in trained if file.name in held_out][:2]
    shutil.copy(first, folder / "val" / "images" / "val_0.JPEG")
    data.setup("test")
    assert data.tables.leaks == []
    shutil.copy(second, folder / "val" / "images" / "val_2.JPEG")
    data = OpenSetDataModule(**options)
    data.setup("fit")
    with pytest.raises(UserError, match="2 of tiny_imagenet's validation images are in the test set"):
        data.setup("test")


# ---------------------------------------------------------------- split sets


def digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


@pytest.mark.parametrize(
    ("found", "published_digest"),
    [
        # of the lists of splits_2020 in iCGY96/ARPL, split.py, commit 3ede8b38
        (lists.ARPL["mnist"], "d90b231de1a12928"),
        (lists.ARPL["svhn"], "a7ece39fe505d8f7"),
        (lists.ARPL["cifar10"], "f0fe4b8ec627794d"),
        (lists.ARPL["tiny_imagenet"], "1b20f19879989139"),
        (lists.FOUR, "5f65fe7bea51ecf3"),
        (lists.PLUS[10], "8d59321ceb68e756"),
        (lists.PLUS[50], "30b23b31d131266e"),
        # of known_classes, and of unknown_classes Easy, Medium and Hard, in sgvaze/SSB, commit 615320be
        ((lists.SSB["cub"][0], lists.SSB["cub"][1:]), "2d22a80bab3c0e13"),
        ((lists.SSB["aircraft"][0], lists.SSB["aircraft"][1:]), "8977f3ba3326371f"),
        ((lists.SSB["cars"][0], lists.SSB["cars"][1:]), "0e79a709bfaa9181"),
    ],
)
def test_the_lists_are_those_of_their_authors(found, published_digest):
    assert digest(found) == published_digest


@pytest.mark.parametrize(("source", "count"), [("cub", 200), ("aircraft", 100), ("cars", 196)])
def test_the_semantic_shift_benchmark_divides_every_class_once(source, count):
    parts = lists.SSB[source]
    assert sorted(label for part in parts for label in part) == [*range(count)]
    assert len(parts[0]) == count // 2


def test_hard_and_medium_cars_differ_from_a_known_one_in_little():
    """Names of the places in the order of torchvision's ``cars_meta.mat``, which the lists are in."""
    alike = {
        (22, 23): ("Audi S4 Sedan 2012", "Audi S4 Sedan 2007"),
        (41, 42): ("Bentley Continental GT Coupe 2012", "Bentley Continental GT Coupe 2007"),
        (2, 3): ("Acura TL Sedan 2012", "Acura TL Type-S 2008"),
    }
    known, _, medium, hard = lists.SSB["cars"]
    assert {place for place, _ in alike} <= {*known}
    assert {23, 42} <= {*hard}
    assert 3 in medium


def test_four_of_cifar10_meet_classes_of_cifar100():
    for count in (10, 50):
        found = class_splits(f"arpl_plus_{count}", "cifar10")
        assert [split.known for split in found] == [*lists.FOUR]
        for split, expected in zip(found, lists.PLUS[count], strict=True):
            assert split.unknown == {"cifar100": "cifar100:" + ",".join(map(str, expected))}
            assert len({*expected}) == count


def test_openoods_near_and_far_sets():
    (split,) = class_splits("openood", "openood:cifar100")
    assert split.known is None
    assert split.unknown == {
        "near": {"cifar10": "openood:cifar100/cifar10", "tin": "openood:cifar100/tin"},
        "far": {name: f"openood:cifar100/{name}" for name in ("mnist", "svhn", "texture", "places365")},
    }


def test_every_split_set_has_a_source():
    sources = ("mnist", "svhn", "cifar10", "tiny_imagenet", "cub", "aircraft", "cars", "openood:cifar10")
    found = {}
    for name in NAMES:
        for source in sources:
            with contextlib.suppress(UserError):
                found.setdefault(name, {})[source] = len(class_splits(name, source))
    assert found == {
        "arpl": {"mnist": 5, "svhn": 5, "cifar10": 5, "tiny_imagenet": 5},
        "neal": {"mnist": 5, "svhn": 5, "cifar10": 5},
        "arpl_plus_10": {"cifar10": 5},
        "arpl_plus_50": {"cifar10": 5},
        "ssb": {"cub": 1, "aircraft": 1, "cars": 1},
        "openood": {"openood:cifar10": 1},
    }


def test_a_copy_of_a_set_in_a_folder_has_that_sets_lists():
    assert class_splits("arpl", "folder:DATA/cifar10", "cifar10") == class_splits("arpl", "cifar10")
    assert class_splits("arpl", "svhn", "cifar10") == class_splits("arpl", "svhn")
    assert class_splits("arpl", "fashion_mnist", "cifar10") == class_splits("arpl", "mnist")


@pytest.mark.parametrize(
    ("splits", "source", "said"),
    [
        ("arpl", "cub", "there are no splits arpl of cub: it has ssb"),
        ("neal", "tiny_imagenet", "no splits neal of tiny_imagenet: it has arpl"),
        ("ssb", "fashion_mnist", "no splits ssb of fashion_mnist: ssb is of cub, aircraft, cars"),
        ("openood", "cifar10", "no splits openood of cifar10: it has arpl and arpl_plus_10"),
        ("other", "mnist", "there are no splits 'other'; there are arpl, neal"),
    ],
)
def test_splits_that_are_none(splits, source, said):
    with pytest.raises(UserError, match=said):
        class_splits(splits, source)


def test_pictures_of_a_grey_jpeg_and_of_colour_meet_in_one_shape(tmp_path):
    """As MNIST's and TinyImageNet's do in OpenOOD's far and near sets."""
    Image.fromarray(np.full((28, 28), 200, np.uint8)).save(tmp_path / "grey.jpg")
    published.save([tmp_path / "colour.png"], 0, 64)
    published.lines(tmp_path / "list.txt", ["grey.jpg -1", "colour.png -1"])
    found = load(f"list:{tmp_path}/list.txt", "test", tmp_path)
    assert found.images.shape == (2, 3, 32, 32)
    assert (found.images[0] == 200).all()
