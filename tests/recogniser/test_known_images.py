"""What a checkpoint keeps of its known images: written, read again, and refused where it is damaged."""

import pytest
import torch

from osr_lightning.data_spec import DataSpec
from osr_lightning.errors import UserError
from osr_lightning.recogniser.known_images import KnownImages, from_plain, kept_features, to_plain

SPEC = DataSpec(("a", "b"), 3, 8, (0.5,) * 3, (0.2,) * 3)


def known(count=4, largest=3.0):
    return KnownImages(
        kept_features(torch.linspace(-1, largest, count * 5).view(count, 5)),
        torch.arange(count) % 2,
        torch.arange(count) == 1,
        torch.zeros(count, 16, dtype=torch.uint8),
        torch.zeros(count, 3, 4, 4, dtype=torch.uint8),
        [f"{row}.png" for row in range(count)],
        0.03,
    )


def test_it_comes_back_as_it_was():
    mine = known()
    found = from_plain(to_plain(mine), SPEC)
    assert found.features.dtype == torch.float16
    for name, before in vars(mine).items():
        after = getattr(found, name)
        assert torch.equal(before, after) if isinstance(before, torch.Tensor) else before == after
    assert from_plain(None, SPEC) is None
    assert len(found) == 4


def test_large_features_keep_their_range():
    found = known(largest=1e5)
    assert found.features.dtype == torch.float32
    assert float(found.features.max()) == 1e5


def test_parts_and_joins_keep_rows_together():
    mine = known()
    odd, even = mine.where(mine.labels == 1), mine.where(mine.labels == 0)
    assert odd.files == ["1.png", "3.png"]
    joined = even.joined(odd)
    assert joined.files == ["0.png", "2.png", "1.png", "3.png"]
    assert torch.equal(joined.features, torch.cat([mine.features[::2], mine.features[1::2]]))
    assert joined.held_out.tolist() == [False, False, True, False]


@pytest.mark.parametrize(
    "damage",
    [
        {"features": torch.full((4, 5), torch.nan)},
        {"features": torch.zeros(3, 5)},
        {"features": torch.zeros(1, 1).expand(4, 10**9)},
        {"features": [1, 2]},
        {"labels": torch.tensor([0, 1, 2, 0])},
        {"labels": torch.tensor([0.0, 1, 1, 0])},
        {"digests": torch.zeros(4, 8, dtype=torch.uint8)},
        {"thumbnails": torch.zeros(4, 3, 99, 99, dtype=torch.uint8)},
        {"thumbnails": torch.zeros(4, 1, 4, 4, dtype=torch.uint8)},
        {"files": ["x"]},
        {"files": ["x", "y", 3, "z"]},
        {"files": ["x" * 5000] * 4},
        {"more": 1},
        {"weight_decay": float("nan")},
        {"weight_decay": "0.1"},
    ],
)
def test_damage_is_one_sentence(damage):
    with pytest.raises(UserError, match="known images is damaged"):
        from_plain({**to_plain(known()), **damage}, SPEC)


def test_what_is_no_mapping_is_refused():
    with pytest.raises(UserError, match="is damaged"):
        from_plain([1], SPEC)
