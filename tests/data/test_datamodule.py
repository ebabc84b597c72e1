"""Splits, mixing, labels and the leak audit."""

import numpy as np
import pytest
import torch

from osr_lightning.data.audit import overlaps
from osr_lightning.data.datamodule import OpenSetDataModule
from osr_lightning.errors import UserError


def module(root, **options) -> OpenSetDataModule:
    options.setdefault("unknown", {"noise": f"npz:{root}/unknown.npz"})
    return OpenSetDataModule(root=str(root), **options)


def test_train_and_validation_partition_the_pool(tiny_root):
    data = module(tiny_root, val_fraction=0.25)
    data.setup("fit")
    assert len(data.train_set) == 300
    assert len(data.val_set) == 100
    assert not overlaps({"val": data.val_set.images}, {"train": data.train_set.images})
    assert torch.bincount(data.val_set.labels).tolist() == [10] * 10  # stratified
    assert data.class_names[3].startswith("3")


def test_splits_follow_the_seed(tiny_root):
    first, again, other = (module(tiny_root, seed=seed) for seed in (0, 0, 1))
    for data in (first, again, other):
        data.setup("fit")
    assert torch.equal(first.val_set.images, again.val_set.images)
    assert not torch.equal(first.val_set.images, other.val_set.images)


def test_test_set_is_known_images_then_each_unknown_set(tiny_root):
    unknown = {"near": {"a": f"npz:{tiny_root}/unknown.npz"}, "far": {"b": "noise:uniform"}}
    data = module(tiny_root, unknown=unknown, unknown_fraction=0.1)
    data.setup("test")
    assert data.source_names == ("mnist", "a", "b")
    assert data.groups == {"near": ("a",), "far": ("b",)}
    assert torch.bincount(data.test_set.sources).tolist() == [101, 5, 200]
    assert set(data.test_set.labels[101:].tolist()) == {10}
    batches = list(data.test_dataloader())
    assert torch.cat([batch.row for batch in batches]).tolist() == list(range(306))
    assert torch.equal(torch.cat([batch.image for batch in batches]), data.test_set.images)


def test_batches_are_standardised_after_the_transfer(tiny_root):
    data = module(tiny_root, eval_batch_size=10)
    data.setup("test")
    batch = next(iter(data.test_dataloader()))
    assert batch.image.dtype == torch.uint8
    image = data.on_after_batch_transfer(batch, 0).image
    torch.testing.assert_close(image, (batch.image.float() / 255 - 0.1307) / 0.3081)


def test_audit_finds_planted_images(tiny_root, tmp_path):
    data = module(tiny_root)
    data.setup("fit")
    planted = np.concatenate([data.val_set.images[:3, 0].numpy(), np.zeros((2, 28, 28), np.uint8)])
    np.savez(tmp_path / "planted.npz", images=planted)
    leaky = {"planted": f"npz:{tmp_path}/planted.npz"}
    with pytest.raises(UserError, match="3 of mnist's validation images are in the test set planted"):
        module(tiny_root, unknown=leaky).setup("test")
    data = module(tiny_root, unknown=leaky, allow_overlap=True)
    data.setup("test")
    assert data.optimistic


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
    assert not data.optimistic


def test_an_unknown_name_given_twice_is_refused():
    with pytest.raises(UserError, match="twice"):
        OpenSetDataModule(unknown={"near": {"a": "mnist"}, "a": "cifar10"})


def test_an_unknown_set_must_not_be_named_like_the_known_source():
    with pytest.raises(UserError, match="mnist"):
        OpenSetDataModule(known="mnist", unknown={"mnist": "cifar10"})
