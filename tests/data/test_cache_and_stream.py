"""Preprocessed pixels kept between runs, and image sets that stay on disk."""

import json
import multiprocessing
import os
import signal
from collections import namedtuple

import numpy as np
import pytest
import torch
from PIL import Image

from osr_lightning.data import cache
from osr_lightning.data import folder as folders
from osr_lightning.data.datamodule import OpenSetDataModule
from osr_lightning.data.features import featured
from osr_lightning.data.folder import read_images
from osr_lightning.data.sources import load_source
from osr_lightning.data.stream import ChainedImages, StreamedImages, chain
from osr_lightning.errors import UserError
from osr_lightning.training.callbacks.evaluator import Evaluator
from osr_lightning.training.module import BaselineClassifier
from osr_lightning.training.trainer import OpenSetTrainer


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

    assert cache.cached([b"ab", b"c"], (28,), (2, 3), lambda: compute(1)).tolist() == [[1] * 3] * 2
    assert cache.cached([b"ab", b"c"], (28,), (2, 3), lambda: compute(2)).tolist() == [[1] * 3] * 2
    # other content, other boundaries and other settings are other entries
    for content, settings in (([b"ab", b"d"], (28,)), ([b"a", b"bc"], (28,)), ([b"ab", b"c"], (32,))):
        cache.cached(content, settings, (2, 3), lambda: compute(3))
    assert calls == [1, 3, 3, 3]
    assert len(list(kept.iterdir())) == 4


def truncate(entry):
    entry.write_bytes(entry.read_bytes()[:-3])


def write(array):
    def damage(entry):
        with entry.open("wb") as file:
            np.save(file, array)

    return damage


def folder_instead(entry):
    entry.unlink()
    entry.mkdir()


DAMAGE = {
    "truncated": truncate,
    "empty": lambda entry: entry.write_bytes(b""),
    "text": lambda entry: entry.write_bytes(b"text" * 100),
    "header": lambda entry: entry.write_bytes(entry.read_bytes().replace(b"{", b"(")),
    "shape": write(np.full((5, 1, 1, 2), 7, np.uint8)),
    "fewer rows": write(np.full((4, 1, 1, 1), 7, np.uint8)),
    "dtype": write(np.full((5, 1, 1, 1), 7, np.int64)),
    "objects": write(np.full((5, 1, 1, 1), None)),
    "archive": lambda entry: np.savez(entry.open("wb"), images=np.full((5, 1, 1, 1), 7, np.uint8)),
    "folder": folder_instead,
}


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # numpy leaves damaged files open
@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damaged_entry_is_made_again(kept, damage):
    whole = torch.ones(5, 1, 1, 1, dtype=torch.uint8)
    cache.cached([b"x"], (), whole.shape, lambda: whole)
    (entry,) = kept.iterdir()
    damage(entry)
    assert torch.equal(cache.cached([b"x"], (), whole.shape, lambda: whole), whole)
    if damage is not folder_instead:  # and kept
        cache.cached([b"x"], (), whole.shape, lambda: pytest.fail("it was made once more"))


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_of_rows_is_made_again(kept, damage):
    whole = torch.ones(5, 1, 1, 1, dtype=torch.uint8)
    make = lambda start, end: whole[start:end]  # noqa: E731
    entry = cache.mapped([b"x"], (), whole.shape, make)
    damage(entry)
    again = cache.mapped([b"x"], (), whole.shape, make)
    if damage is folder_instead:
        assert again is None  # images are decoded when they are asked for
    else:
        assert torch.equal(cache.read_rows(again, range(5)), whole)


def test_quick_results_and_unwritable_folders_leave_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("OSR_CACHE_DIR", str(tmp_path / "cache"))
    cache.cached([b"x"], (), (1,), lambda: torch.ones(1, dtype=torch.uint8))
    assert not (tmp_path / "cache").exists()
    monkeypatch.setattr(cache, "WORTH_KEEPING", -1.0)
    (tmp_path / "file").touch()
    monkeypatch.setenv("OSR_CACHE_DIR", str(tmp_path / "file"))
    assert cache.cached([b"x"], (), (1,), lambda: torch.ones(1, dtype=torch.uint8)).tolist() == [1]


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
    assert streamed.spec == in_memory.spec
    assert streamed.spec.channels == 3
    # 20 to 22 by 25 pixels: the shorter side of the middle file
    assert streamed.spec.image_size == 21


# one file of resized images ---------------------------------------------------------------------------


SIZE = 12


@pytest.fixture
def pictures(tmp_path):
    """Two classes of 20 pictures of several sizes, which one image in memory already is too much for."""
    rng = np.random.default_rng(0)
    for label, name in enumerate(("a", "b")):
        (tmp_path / "set" / name).mkdir(parents=True)
        for index in range(20):
            pixels = rng.integers(0, 100, (14 + index % 3, 15, 3), dtype=np.uint8)
            pixels[:, 8 * label : 8 * label + 7] += 150  # easily told apart
            Image.fromarray(pixels).save(tmp_path / "set" / name / f"{index:02}.png")
    return tmp_path / "set"


def files_of(pictures):
    return sorted(pictures.glob("*/*.png"))


def streamed(pictures, size=SIZE) -> StreamedImages:
    images = load_source(
        f"folder:{pictures}", "train", root=pictures, size=size, channels=3, memory_limit=0
    ).images
    assert isinstance(images, StreamedImages)
    return images


@pytest.fixture
def no_decoding(monkeypatch):
    """From when it is called on, no picture may be decoded."""

    def forbid():
        monkeypatch.setattr(folders, "read_image", lambda *_: pytest.fail("a picture was read again"))

    return forbid


def test_mapped_images_are_those_that_are_read_directly(kept, pictures, no_decoding):
    expected = read_images(files_of(pictures), size=SIZE, channels=3)
    images = streamed(pictures)
    assert len(list(kept.iterdir())) == 1
    no_decoding()
    assert torch.equal(images[torch.arange(40)], expected)
    rows = torch.tensor([39, 0, 7, 7, 21])
    assert torch.equal(images[rows], expected[rows])
    assert torch.equal(images.take(rows)[torch.tensor([4, 1])], expected[[21, 0]])


def test_mapped_images_are_made_once(kept, pictures, no_decoding):
    first = streamed(pictures)[torch.arange(40)]
    (file,) = kept.iterdir()
    written = file.stat().st_mtime_ns
    no_decoding()
    assert torch.equal(streamed(pictures)[torch.arange(40)], first)
    assert [one.stat().st_mtime_ns for one in kept.iterdir()] == [written]


def test_what_was_read_is_the_readers_own(kept, pictures):
    # a batch may be changed in place; the file must not be
    images = streamed(pictures)
    batch = images[torch.arange(5)]
    batch.zero_()
    assert images[torch.arange(5)].any()


def test_other_content_order_or_size_is_another_file(kept, pictures):
    streamed(pictures)
    streamed(pictures, size=10)
    assert len(list(kept.iterdir())) == 2
    pixels = np.zeros((14, 15, 3), np.uint8)
    Image.fromarray(pixels).save(pictures / "a" / "00.png")
    changed = streamed(pictures)
    assert len(list(kept.iterdir())) == 3
    assert not changed[torch.tensor([0])].any()
    expected = read_images(files_of(pictures), size=SIZE, channels=3)
    assert torch.equal(changed[torch.arange(40)], expected)
    # names are no content: the first picture comes last now
    (pictures / "a" / "00.png").rename(pictures / "b" / "99.png")
    moved = streamed(pictures)
    assert len(list(kept.iterdir())) == 4
    assert torch.equal(moved[torch.arange(40)], expected.roll(-1, 0))


def test_a_picture_that_is_changed_in_its_middle_is_resized_again(kept, tmp_path):
    pixels = np.full((256, 256, 3), 128, np.uint8)  # 192 KiB
    (tmp_path / "set").mkdir()
    for value in (0, 255):
        pixels[120:136] = value
        Image.fromarray(pixels).save(tmp_path / "set" / "x.bmp")
        found = streamed(tmp_path / "set", size=32)[torch.tensor([0])]
    assert torch.equal(found, read_images([tmp_path / "set" / "x.bmp"], size=32, channels=3))


def test_without_room_pictures_are_read_when_they_are_asked_for(kept, pictures, monkeypatch):
    usage = namedtuple("usage", "total used free")
    size = 40 * 3 * SIZE * SIZE
    compute = lambda start, end: pytest.fail("there is no room for it")  # noqa: E731
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: usage(10**9, 0, 2 * size - 1))
    assert cache.mapped([b"x"], (), (40, 3, SIZE, SIZE), compute) is None
    images = streamed(pictures)
    assert not list(kept.iterdir())
    expected = read_images(files_of(pictures), size=SIZE, channels=3)
    assert torch.equal(images[torch.arange(40)], expected)
    # twice the size is enough
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: usage(10**9, 0, 2 * size))
    assert torch.equal(streamed(pictures)[torch.arange(40)], expected)
    assert len(list(kept.iterdir())) == 1


def test_a_cache_folder_that_cannot_be_written_stops_nothing(pictures, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("OSR_CACHE_DIR", str(tmp_path / "file"))
    expected = read_images(files_of(pictures), size=SIZE, channels=3)
    assert torch.equal(streamed(pictures)[torch.arange(40)], expected)


@pytest.mark.parametrize("error", [OSError, RuntimeError, KeyboardInterrupt])
def test_a_failure_while_writing_leaves_no_file(kept, error):
    def compute(start, end):
        if start:
            raise error("in the middle")
        return torch.ones(end - start, 1, 2, 2, dtype=torch.uint8)

    count = cache.ROWS_AT_ONCE + 1  # two pieces
    if error is OSError:  # a full disk: the run goes on without
        assert cache.mapped([b"x"], (), (count, 1, 2, 2), compute) is None
    else:
        with pytest.raises(error, match="in the middle"):
            cache.mapped([b"x"], (), (count, 1, 2, 2), compute)
    assert list(kept.iterdir()) == []


def test_a_damaged_picture_is_named_and_leaves_no_file(kept, pictures):
    (pictures / "b" / "03.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"b/03\.png"):
        streamed(pictures)
    assert list(kept.iterdir()) == []


def test_rows_are_written_in_pieces_that_fit_together(kept):
    count = 2 * cache.ROWS_AT_ONCE + 3
    pieces = []

    def compute(start, end):
        pieces.append((start, end))
        return torch.arange(start, end).remainder(251).byte()[:, None, None, None]

    file = cache.mapped([b"x"], (), (count, 1, 1, 1), compute)
    assert [end - start for start, end in pieces] == [cache.ROWS_AT_ONCE, cache.ROWS_AT_ONCE, 3]
    found = cache.read_rows(file, range(count))
    assert found.flatten().tolist() == [row % 251 for row in range(count)]


@pytest.mark.filterwarnings("ignore:.*LeafSpec", "ignore:.*(num_workers|many workers).*")
def test_a_folder_above_the_memory_limit_trains_like_one_in_memory(kept, pictures, tmp_path):
    def trained(limit, workers):
        torch.manual_seed(0)
        runs = tmp_path / f"{limit}_{workers}"
        data = OpenSetDataModule(
            known=f"folder:{pictures}",
            unknown={"noise": "noise:uniform"},
            unknown_fraction=0.02,
            image_size=SIZE,
            memory_limit=limit,
            num_workers=workers,
        )
        trainer = OpenSetTrainer(
            default_root_dir=str(runs),
            callbacks=[Evaluator(figures=False, projector_points=0, bootstrap=20)],
            max_epochs=1,
            accelerator="cpu",
            precision="32-true",
            enable_progress_bar=False,
            enable_model_summary=False,
            log_every_n_steps=1,
        )
        model = BaselineClassifier("ConvNet", alpha=0.3)
        trainer.run(model, data)
        assert isinstance(data.tables.train.images, torch.Tensor if limit else StreamedImages)
        (results,) = runs.rglob("results.json")
        (rows,) = runs.rglob("predictions.csv")
        kept = json.loads(results.read_text())
        return rows.read_text(), {
            key: kept[key] for key in ("closed_set", "open_set", "threshold", "unknown")
        }

    expected = trained(4.0, 0)
    assert trained(0.0, 0) == expected
    assert trained(0.0, 2) == expected


@pytest.mark.parametrize("resumed", [False, True], ids=["from the start", "within an epoch"])
def test_workers_leave_ctrl_c_to_the_process_that_ends_them(resumed, kept, pictures):
    options = {"known": f"folder:{pictures}", "image_size": SIZE, "memory_limit": 0.0, "num_workers": 1}
    data = OpenSetDataModule(unknown={}, batch_size=2, **options)
    data.setup("fit")
    loader = data.train_dataloader()
    if resumed:
        next(iter(loader))
        loader.load_state_dict(loader.state_dict())
    batches = iter(loader)
    next(batches)
    (worker,) = multiprocessing.active_children()
    os.kill(worker.pid, signal.SIGINT)
    left = len(loader) - 1 - resumed
    assert left > 2  # more than are read ahead
    assert sum(1 for _ in batches) == left


class Mean:
    """In place of a backbone: the mean of an image's pixels, two images at a time."""

    key, width, batch_size = "mean", 1, 2

    def __init__(self):
        self.begun = []

    def begin(self, images):
        self.begun.append(images)

    def __call__(self, pixels):
        return pixels.reshape(len(pixels), -1).mean(1, keepdims=True).astype(np.float32)


@pytest.mark.parametrize("end", [UserError("damaged"), KeyboardInterrupt(), SystemExit(143)])
def test_features_made_before_an_interruption_are_kept(end, kept, capsys):
    items, keys, refused = list(range(9)), [bytes([row]) * 16 for row in range(9)], {7}

    def read(some):
        if refused & {*some}:
            raise end
        return torch.stack([torch.full((3, 40, 40), row, dtype=torch.uint8) for row in some])

    mean = Mean()
    with pytest.raises(type(end)):
        featured(keys, items, read, mean, (3, 40, 40))
    told = "features: those of 6 of 9 images are kept; the same command or call goes on from there\n"
    assert capsys.readouterr().err == told
    refused.clear()
    found = featured(keys, items, read, mean, (3, 40, 40))
    assert capsys.readouterr().err == ""
    assert found.features.flatten().tolist() == items
    assert mean.begun == [9, 3]  # those before the pair with the seventh are there
