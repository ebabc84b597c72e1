"""Mixing within a batch: what an image holds of another, its target says."""

import pytest
import torch
import torch.nn.functional as F

from osr_lightning.data.mix import MIXES

pytestmark = pytest.mark.usefixtures("seeded")

LABELS = torch.tensor([0, 1, 2, 1])


def constant() -> torch.Tensor:
    """Images whose every pixel is their number in the batch."""
    return torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 8, 8).clone()


def test_none_is_the_identity():
    images = constant()
    found, target = MIXES["none"](images, LABELS, 3)
    assert found is images
    assert target is LABELS


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_targets_are_shares_that_add_up_to_1_and_the_given_images_stay(name, dtype):
    images = constant().to(dtype)
    found, target = MIXES[name](images, LABELS, 5)
    assert found.shape == images.shape
    assert found.dtype == dtype
    assert target.shape == (4, 5)
    torch.testing.assert_close(target.sum(1), torch.ones(4))
    assert torch.equal(images, constant().to(dtype))


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_the_share_of_a_label_is_that_of_its_image(name):
    shares = []
    for _ in range(300):
        found, target = MIXES[name](constant(), LABELS, 3)
        own = torch.arange(4.0)
        # the mean pixel tells the share of the neighbour's, whose value differs
        share = (found.mean((1, 2, 3)) - own) / (own.roll(1) - own)
        assert torch.allclose(share, share[:1].expand(4), atol=1e-5)
        weight = 1 - share[:, None]
        expected = weight * F.one_hot(LABELS, 3) + (1 - weight) * F.one_hot(LABELS.roll(1), 3)
        torch.testing.assert_close(target, expected, rtol=1e-4, atol=1e-5)
        shares.append(1 - float(share[0]))
    assert max(shares) > 0.9
    assert min(shares) < 0.5  # rectangles that reach beyond an edge are cut off there
    if name == "mixup":
        assert min(shares) < 0.05
        # of Beta(1, 1), which is uniform: the deviation of a mean is sqrt(1 / 12 / 300)
        assert abs(sum(shares) / 300 - 0.5) < 4 * (1 / 12 / 300) ** 0.5


def test_cutmix_takes_one_rectangle():
    for _ in range(50):
        found, _ = MIXES["cutmix"](constant(), LABELS, 3)
        other = found[0, 0] != 0
        rows, columns = other.any(1), other.any(0)
        assert torch.equal(other, rows[:, None] & columns[None, :])
        assert torch.equal(found[0], torch.where(other, 3.0, 0.0).expand(3, 8, 8))


def test_an_image_alone_is_mixed_with_itself():
    for name in ("mixup", "cutmix"):
        found, target = MIXES[name](constant()[1:2], LABELS[1:2], 3)
        torch.testing.assert_close(found, constant()[1:2])
        torch.testing.assert_close(target, torch.tensor([[0.0, 1.0, 0.0]]))
