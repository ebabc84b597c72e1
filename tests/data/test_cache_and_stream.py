"""Preprocessed pixels kept between runs, and image sets that stay on disk."""

import numpy as np
import pytest
import torch
from PIL import Image

from osr_lightning.data import cache
from osr_lightning.data.datamodule import OpenSetDataModule
from osr_lightning.data.stream import ChainedImages, StreamedImages, chain


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """An empty cache folder in which everything is kept, however quickly it was made."""
    monkeypatch.setenv("OSR_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "WORTH_KEEPING", -1.0)
    return tmp_path / "cache"


def test_cache_returns_what_was_computed_for_the_same_content(kept):
    calls = []

    def compute(value):
        calls.append(value)
        return torch.full((2, 3), value, dtype=torch.uint8)

    assert cache.cached([b"ab", b"c"], (28,), lambda: compute(1)).tolist() == [[1] * 3] * 2
    assert cache.cached([b"ab", b"c"], (28,), lambda: compute(2)).tolist() == [[1] * 3] * 2
    # other content, other boundaries and other settings are other entries
    for content, settings in (([b"ab", b"d"], (28,)), ([b"a", b"bc"], (28,)), ([b"ab", b"c"], (32,))):
        cache.cached(content, settings, lambda: compute(3))
    assert calls == [1, 3, 3, 3]
    assert len(list(kept.iterdir())) == 4


def test_damaged_entry_is_made_again(kept):
    cache.cached([b"x"], (), lambda: torch.ones(5, dtype=torch.uint8))
    (entry,) = kept.iterdir()
    entry.write_bytes(entry.read_bytes()[:-3])
    assert cache.cached([b"x"], (), lambda: torch.ones(5, dtype=torch.uint8)).tolist() == [1] * 5


def test_quick_results_and_unwritable_folders_leave_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("OSR_CACHE_DIR", str(tmp_path / "cache"))
    cache.cached([b"x"], (), lambda: torch.ones(1, dtype=torch.uint8))
    assert not (tmp_path / "cache").exists()
    monkeypatch.setattr(cache, "WORTH_KEEPING", -1.0)
    (tmp_path / "file").touch()
    monkeypatch.setenv("OSR_CACHE_DIR", str(tmp_path / "file"))
    assert cache.cached([b"x"], (), lambda: torch.ones(1, dtype=torch.uint8)).tolist() == [1]


def test_chained_images_index_like_one_tensor():
    first, second, third = (torch.randint(0, 256, (n, 1, 4, 4), dtype=torch.uint8) for n in (3, 5, 2))
    streamed = StreamedImages([*range(5)], lambda rows: second[torch.tensor(rows)], (1, 4, 4))
    images = chain([first, streamed, third])
    assert isinstance(images, ChainedImages)
    whole = torch.cat([first, second, third])
    rows = torch.tensor([9, 0, 3, 7, 2, 8, 3])
    assert torch.equal(images[rows], whole[rows])
    assert len(images) == 10
    assert tuple(images.shape) == (10, 1, 4, 4)
    taken = streamed.take(torch.tensor([4, 1]))
    assert tuple(taken.shape) == (2, 1, 4, 4)
    assert torch.equal(taken[torch.tensor([1, 0, 0])], second[[1, 4, 4]])
    assert torch.equal(chain([first, third]), torch.cat([first, third]))


def test_a_set_above_the_memory_limit_gives_the_same_batches(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / "set" / name).mkdir(parents=True)
        for index in range(30):
            pixels = rng.integers(0, 256, (20 + index % 3, 25, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "set" / name / f"{index:02}.png")

    def batches(limit):
        data = OpenSetDataModule(
            known=f"folder:{tmp_path}/set",
            unknown={"noise": "noise:uniform"},
            unknown_fraction=0.01,
            memory_limit=limit,
            num_workers=1,
            eval_batch_size=16,
        )
        data.setup("fit")
        data.setup("test")
        return data, list(data.val_dataloader()) + list(data.test_dataloader())

    in_memory, expected = batches(4.0)
    streamed, found = batches(0.0)
    assert isinstance(in_memory.tables.train.images, torch.Tensor)
    assert isinstance(streamed.tables.train.images, StreamedImages)
    for one, other in zip(expected, found, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert streamed.facts == in_memory.facts
    assert streamed.facts.channels == 3
    # 20 to 22 by 25 pixels: the shorter side of the middle file
    assert streamed.facts.image_size == 21
