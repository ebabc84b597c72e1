"""Splits, mixing, labels and the leak audit."""

import re

import numpy as np
import pytest
import torch
from PIL import Image

from osr_lightning.data.counts import image_lines
from osr_lightning.data.datamodule import OpenSetDataModule
from osr_lightning.data.leaks import overlaps
from osr_lightning.data.sources import load_source
from osr_lightning.errors import UserError


def module(root, **options) -> OpenSetDataModule:
    options.setdefault("unknown", {"noise": f"npz:{root}/unknown.npz"})
    return OpenSetDataModule(root=str(root), **options)


def test_train_and_validation_partition_the_pool(tiny_root):
    data = module(tiny_root, val_fraction=0.25)
    data.setup("fit")
    train, val = data.tables.train, data.tables.val
    assert len(train) == 300
    assert len(val) == 100
    assert not overlaps({"val": val}, {"train": train})
    pool = load_source("mnist", "train", root=tiny_root)
    assert sorted(image.tobytes() for image in torch.cat([train.images, val.images]).numpy()) == sorted(
        image.tobytes() for image in pool.images.numpy()
    )
    assert torch.bincount(val.labels).tolist() == [10] * 10  # stratified
    assert data.spec.classes[3].startswith("3")


def write_pictures(folder, counts, seed=0):
    """Random pictures of 8 x 8 of two classes, as many of each as is said per folder."""
    rng = np.random.default_rng(seed)
    for part, count in counts.items():
        for name in "ab":
            (folder / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (8, 8), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / part / name / f"{i}.png")


def test_a_folder_of_validation_images_is_the_validation_set(tmp_path):
    write_pictures(tmp_path, {"Train": 20, "val": 6, "Test": 5})
    data = OpenSetDataModule(known=f"folder:{tmp_path}", val_fraction=0.5, seed=3)
    train, val = data.tables.load_training()
    assert (len(train), len(val), len(data.tables.load_test())) == (40, 12, 10)
    assert {name.split("/")[0] for name in val.files} == {"val"}
    assert val.labels.tolist() == [0] * 6 + [1] * 6
    assert data.tables.load_calibration() is val
    assert image_lines(data.tables) == [
        "known: 2 classes (a, b), 40/12/10 train/val/test, grey 8x8",
        f"note: the 12 validation images are those that folder:{tmp_path} keeps apart, so that "
        "data.val_fraction does not apply",
    ]
    # mean and deviation are those of the training images alone
    pixels = train.images.double() / 255
    assert data.spec.mean[0] == pytest.approx(float(pixels.mean()), abs=1e-5)
    other = OpenSetDataModule(known=f"folder:{tmp_path}", known_classes=["b", "a"], memory_limit=1e-9)
    assert other.tables.load_training()[1].labels.tolist() == [1] * 6 + [0] * 6
    assert other.tables.load_training()[1].files == val.files


def test_copies_of_validation_images_are_not_trained_on(tmp_path):
    write_pictures(tmp_path, {"train": 20, "val": 6, "test": 5})
    with Image.open(tmp_path / "val/a/3.png") as image:
        image.save(tmp_path / "train/a/7.bmp")  # other bytes, the same pixels
    data = OpenSetDataModule(known=f"folder:{tmp_path}")
    train, val = data.tables.load_training()
    assert (len(train), len(val)) == (40, 12)
    assert not overlaps({"val": val}, {"train": train})
    assert "train/a/7.bmp" not in train.files
    assert image_lines(data.tables)[2] == (
        "note: 1 training image is a validation image too and not trained on (train/a/7.bmp = val/a/3.png)"
    )


def test_own_validation_images_that_are_tested_are_a_leak(tmp_path):
    write_pictures(tmp_path, {"train": 20, "val": 6, "test": 5})
    (tmp_path / "test/a/9.png").write_bytes((tmp_path / "val/a/3.png").read_bytes())
    data = OpenSetDataModule(known=f"folder:{tmp_path}")
    with pytest.raises(UserError, match=r"1 of .*'s validation images are in the test set .*val/a/3\.png"):
        data.tables.load_test()
    allowed = OpenSetDataModule(known=f"folder:{tmp_path}", allow_overlap=True)
    allowed.tables.load_test()
    assert allowed.tables.optimistic


def test_without_a_test_folder_the_test_comes_from_the_training_images(tmp_path):
    write_pictures(tmp_path, {"train": 40, "val": 6})
    data = OpenSetDataModule(known=f"folder:{tmp_path}")
    train, val = data.tables.load_training()
    test = data.tables.load_test()
    assert (len(val), len(train) + len(test)) == (12, 80)
    assert len(test) >= 2
    assert not {*train.files} & {*test.files}
    assert {name.split("/")[0] for name in test.files} == {"train"}


def test_only_copies_to_train_on_is_a_users_mistake(tmp_path):
    write_pictures(tmp_path, {"train": 3})
    write_pictures(tmp_path, {"val": 3})
    with pytest.raises(UserError, match=r"every training image of folder:.* is one of its validation images"):
        OpenSetDataModule(known=f"folder:{tmp_path}").tables.load_training()


def test_the_first_lines_command_no_terminal(tmp_path):
    write_pictures(tmp_path / "known", {"": 20})
    (tmp_path / "known" / "a").rename(tmp_path / "known" / "\x1b[31mred")
    tables = OpenSetDataModule(known=f"folder:{tmp_path / 'known'}").tables
    tables.load_test()
    assert image_lines(tables)[0].startswith(r"known: 2 classes (\x1b[31mred, b), ")


def test_the_first_lines_say_what_is_left_out(tmp_path):
    write_pictures(tmp_path / "known", {"": 20})
    write_pictures(tmp_path / "others", {"": 2}, seed=1)
    for name in ("known/stray.bmp", "others/stray.bmp"):
        Image.new("L", (8, 8)).save(tmp_path / name)
    for name in ("known/a/1.heic", "others/2.heic"):
        (tmp_path / name).touch()
    known, others = (f"folder:{tmp_path / name}" for name in ("known", "others"))
    tables = OpenSetDataModule(known=known, unknown={"others": others}).tables
    tables.load_test()
    assert image_lines(tables)[1:4] == [
        "unknown: others 5",
        f"left out of {known}: 1 file of no format that is read (a/1.heic); "
        "1 file beside the folders of the classes (stray.bmp)",
        f"left out of {others}: 1 file of no format that is read (2.heic)",
    ]


def test_splits_follow_the_seed(tiny_root):
    first, again, other = (module(tiny_root, seed=seed) for seed in (0, 0, 1))
    for data in (first, again, other):
        data.setup("fit")
    assert torch.equal(first.tables.val.images, again.tables.val.images)
    assert not torch.equal(first.tables.val.images, other.tables.val.images)


def test_test_set_is_known_images_then_each_unknown_set(tiny_root):
    unknown = {"near": {"a": f"npz:{tiny_root}/unknown.npz"}, "far": {"b": "noise:uniform"}}
    data = module(tiny_root, unknown=unknown, unknown_fraction=0.1)
    data.setup("test")
    tables = data.tables
    assert tables.source_names == ("mnist", "a", "b")
    assert tables.groups == {"near": ("a",), "far": ("b",)}
    assert torch.bincount(tables.test.sources).tolist() == [101, 5, 200]
    assert tables.test.labels.tolist() == [*(i % 10 for i in range(101)), *[10] * 205]
    batches = list(data.test_dataloader())
    assert torch.cat([batch.row for batch in batches]).tolist() == list(range(306))
    assert torch.equal(torch.cat([batch.image for batch in batches]), tables.test.images)


def test_batches_are_raw_pixels_in_whole_batches(tiny_root):
    data = module(tiny_root, eval_batch_size=40, batch_size=64)
    loaders = {
        "train": (data.train_dataloader(), 320, 64),
        "fitting": (data.fitting_dataloader(), 320, 40),
        "val": (data.val_dataloader(), 80, 40),
        "test": (data.test_dataloader(), 151, 40),
        "predict": (data.predict_dataloader(), 151, 40),
        "calibration": (data.calibration_dataloader(), 80, 40),
    }
    for name, (loader, count, size) in loaders.items():
        batches = list(loader)
        assert {batch.image.dtype for batch in batches} == {torch.uint8}, name
        assert [len(batch.image) for batch in batches[:-1]] == [size] * ((count - 1) // size), name
        rows = torch.cat([batch.row for batch in batches])
        assert rows.sort().values.tolist() == list(range(count)), name
        assert (rows.tolist() == list(range(count))) == (name != "train"), name  # shuffled
        if name == "train":
            assert torch.equal(torch.cat([b.image for b in batches]), data.tables.train.images[rows])
            assert torch.equal(torch.cat([b.label for b in batches]), data.tables.train.labels[rows])


def test_images_to_predict_have_no_label(tiny_root, tmp_path):
    for grey in (1, 2, 3):
        Image.new("L", (28, 28), grey).save(tmp_path / f"{grey}.png")
    data = module(tiny_root, predict=f"folder:{tmp_path}")
    (batch,) = data.predict_dataloader()
    assert batch.image[:, 0, 0, 0].tolist() == [1, 2, 3]
    assert batch.label.tolist() == [-1] * 3
    assert data.predict_set.files == ("1.png", "2.png", "3.png")


def test_calibration_images_are_validation_images_and_calibration_unknowns(tiny_root):
    data = module(tiny_root, calibration_unknown={"n": "noise:uniform"}, unknown_fraction=0.01)
    table = data.tables.load_calibration()
    _, val = data.tables.load_training()
    assert torch.equal(table.images[:80], val.images)
    assert torch.equal(table.labels[:80], val.labels)
    assert table.labels[80:].tolist() == [10] * 20
    noise = load_source("noise:uniform", "validation", root=tiny_root, size=28, channels=1).images
    seen = {image.tobytes() for image in table.images[80:].numpy()}
    assert len(seen) == 20
    assert seen <= {image.tobytes() for image in noise.numpy()}
    assert data.tables.calibrated_on(unknowns=True) == "validation images: mnist + n"
    assert data.tables.calibrated_on(unknowns=False) == "validation images: mnist"
    assert not data.tables.optimistic


def test_the_notebooks_protocol_calibrates_on_the_test_and_says_so(tiny_root):
    data = module(tiny_root, calibrate_on="test")
    assert data.tables.load_calibration() is data.tables.load_test()
    assert data.tables.optimistic
    assert data.tables.leaks == []
    assert data.tables.calibrated_on(unknowns=True) == "test images: mnist + noise"


def test_audit_finds_planted_images(tiny_root, tmp_path):
    data = module(tiny_root)
    data.setup("fit")
    planted = np.concatenate([data.tables.val.images[:3, 0].numpy(), np.zeros((2, 28, 28), np.uint8)])
    np.savez(tmp_path / "planted.npz", images=planted)
    leaky = {"planted": f"npz:{tmp_path}/planted.npz"}
    with pytest.raises(UserError, match="3 of mnist's validation images are in the test set planted"):
        module(tiny_root, unknown=leaky).setup("test")
    data = module(tiny_root, unknown=leaky, allow_overlap=True)
    data.setup("test")
    assert data.tables.optimistic
    assert data.tables.leaks == ["3 of mnist's validation images are in the test set planted"]
    clean = module(tiny_root)
    clean.setup("test")
    assert clean.tables.leaks == []
    assert not clean.tables.optimistic


def test_audit_finds_a_set_that_both_calibrates_and_tests(tiny_root):
    source = {"noise": f"npz:{tiny_root}/unknown.npz"}
    with pytest.raises(UserError, match="50 of the calibration set noise are in the test set noise"):
        module(tiny_root, unknown=source, calibration_unknown=source).setup("test")
    # another split of the same source shares no image, but it is the same set
    with pytest.raises(UserError, match="noise:uniform serves both"):
        module(tiny_root, unknown={"n": "noise:uniform"}, calibration_unknown={"m": "noise:uniform"}).setup(
            "test"
        )
    data = module(tiny_root, unknown={"n": "noise:uniform"}, calibration_unknown={"m": "noise:gaussian"})
    data.setup("test")
    assert not data.tables.optimistic


def test_an_unknown_name_given_twice_is_refused():
    with pytest.raises(UserError, match="twice"):
        OpenSetDataModule(unknown={"near": {"a": "mnist"}, "a": "cifar10"})


def test_an_unknown_set_must_not_be_named_like_the_known_source():
    with pytest.raises(UserError, match="mnist"):
        OpenSetDataModule(known="mnist", unknown={"mnist": "cifar10"})


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"image_size": 0}, "data.image_size"),
        ({"batch_size": 0}, "data.batch_size"),
        ({"eval_batch_size": 0}, "data.eval_batch_size"),
        ({"val_fraction": 0.0}, "data.val_fraction"),
        ({"val_fraction": 1.0}, "data.val_fraction"),
        ({"unknown_fraction": 0.0}, "data.unknown_fraction"),
        ({"unknown_fraction": 1.1}, "data.unknown_fraction"),
        ({"num_workers": -1}, "data.num_workers"),
    ],
)
def test_bad_values_are_named(options, named):
    with pytest.raises(UserError, match=named):
        OpenSetDataModule(**options)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"known": None}, "data.known must be a text, as 'folder:MINE', got None"),
        (
            {"known_classes": "cat"},
            "data.known_classes must be a list of texts or whole numbers or None, as ['cat', 'dog'], got",
        ),
        ({"known_classes": 1}, "as ['cat', 'dog'], got 1"),
        (
            {"unknown": "folder:OTHERS"},
            "data.unknown must be a mapping of texts to texts or mappings or None, as "
            "{'others': 'folder:OTHERS'}, got 'folder:OTHERS'",
        ),
        ({"unknown": ["folder:OTHERS"]}, "data.unknown must be a mapping"),
        ({"unknown": {"a": 1}}, "data.unknown must be a mapping of texts to texts or mappings"),
        ({"calibration_unknown": "folder:OTHERS"}, "data.calibration_unknown must be a mapping of texts to"),
        ({"calibrate_on": "train"}, "data.calibrate_on must be 'validation' or 'test', got 'train'"),
        ({"channels": 2}, "data.channels must be 1, 3 or None, got 2"),
        ({"batch_size": "x"}, "data.batch_size must be a whole number or None, got 'x'"),
        ({"image_size": (32, 32)}, "data.image_size must be a whole number or None, got (32, 32)"),
        ({"val_fraction": "a"}, "data.val_fraction must be a number, got 'a'"),
        ({"mean": "0.5"}, "data.mean must be a number, a list of numbers or None, got '0.5'"),
        ({"seed": True}, "data.seed must be a whole number, got True"),
        ({"allow_overlap": "no"}, "data.allow_overlap must be True or False, got 'no'"),
        ({"predict": 3}, "data.predict must be a text or None, as 'folder:MINE', got 3"),
        ({"known": "x" * 200, "seed": "x" * 200}, "got 'xxx"),
    ],
)
def test_values_of_another_type_are_named(options, told):
    with pytest.raises(UserError, match=re.escape(told)) as refused:
        OpenSetDataModule(**options)
    assert len(str(refused.value)) < 200


def test_values_of_numpy_and_paths_become_plain(tmp_path):
    options = {"batch_size": np.int64(3), "val_fraction": np.float64(0.5), "allow_overlap": np.False_}
    kept = OpenSetDataModule(root=tmp_path, known_classes=(0, "cat"), mean=[1, 0.5], **options).hparams
    assert {type(kept[name]) for name in options} == {int, float, bool}
    assert (kept["root"], kept["known_classes"], kept["mean"]) == (str(tmp_path), (0, "cat"), [1, 0.5])


def test_a_folder_that_is_named_as_a_source_is_told_how(tmp_path):
    with pytest.raises(UserError, match=re.escape(f"which is a folder; write folder:{tmp_path}")):
        OpenSetDataModule(known=tmp_path).setup("fit")


def test_a_class_of_one_image_leaves_nothing_to_validate(tmp_path):
    images = np.arange(2, dtype=np.uint8)[:, None, None] * np.ones((4, 4), np.uint8)  # no copies
    np.savez(tmp_path / "few.npz", images=images, labels=np.arange(2))
    with pytest.raises(UserError, match=r"val_fraction 0\.2 leaves \d training and 0 validation images"):
        module(tmp_path, known=f"npz:{tmp_path}/few.npz").setup("fit")
