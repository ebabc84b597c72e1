"""Which side of a split an image lies on: decided by its content, by nothing else."""

import math
import os
import random

import numpy as np
import pytest
import torch
from PIL import Image

from osr_lightning.data.datamodule import OpenSetDataModule
from osr_lightning.data.sources import load_source
from osr_lightning.data.splits import copies, holdout, holdout_by_content, join_copies
from osr_lightning.errors import UserError


def keys_of(count: int, seed: int = 0) -> list[bytes]:
    """Different keys, as digests of different files are."""
    generator = random.Random(seed)
    keys = [generator.randbytes(16) for _ in range(count)]
    assert len(set(keys)) == count
    return keys


def held_out(keys, labels, fraction=0.2, salt="test 0") -> set[bytes]:
    """The held-out keys; the two sides are checked to be sorted, without a common row, and complete."""
    rest, held = holdout_by_content(keys, torch.as_tensor(labels), fraction, salt)
    assert rest.tolist() == sorted(rest.tolist())
    assert held.tolist() == sorted(held.tolist())
    assert sorted([*rest.tolist(), *held.tolist()]) == list(range(len(keys)))
    found = {keys[row] for row in held.tolist()}
    assert found.isdisjoint(keys[row] for row in rest.tolist())  # equal keys lie on one side
    return found


# shares -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fraction", [0.05, 0.2, 0.5, 0.9])
def test_the_share_held_out_is_that_of_independent_draws(fraction):
    count = 20000
    held = held_out(keys_of(count), [0] * count, fraction)
    # a sum of independent draws: four of its deviations are passed by one salt in 16,000
    assert abs(len(held) - count * fraction) < 4 * math.sqrt(count * fraction * (1 - fraction))


def test_every_class_has_about_the_same_share():
    labels = [row % 4 for row in range(8000)]
    keys = keys_of(len(labels))
    held = held_out(keys, labels)
    shares = [sum(key in held for key in keys[label::4]) / 2000 for label in range(4)]
    assert max(abs(share - 0.2) for share in shares) < 4 * math.sqrt(0.2 * 0.8 / 2000)


def test_keys_that_differ_little_are_told_apart_as_well():
    # digests are random already, but a split must not lean on that
    keys = [row.to_bytes(2, "big") for row in range(4000)]
    held = held_out(keys, [0] * 4000)
    assert abs(len(held) - 800) < 4 * math.sqrt(4000 * 0.2 * 0.8)


def test_a_fraction_of_zero_holds_nothing_out():
    assert held_out(keys_of(50), [0] * 50, fraction=0) == set()


# what decides -----------------------------------------------------------------------------------------


def test_equal_keys_stay_together():
    originals = keys_of(300)
    keys = [*originals, *originals[::2], *originals[::3]]
    random.Random(1).shuffle(keys)
    assert 0 < len(held_out(keys, [0] * len(keys))) < 300  # held_out looks at the sides


def test_an_image_that_is_added_or_removed_moves_no_other():
    keys = keys_of(400)
    labels = [row % 2 for row in range(400)]
    whole = held_out(keys, labels)
    for count in (100, 101, 250, 399):
        assert held_out(keys[:count], labels[:count]) == whole & set(keys[:count])


def test_another_class_that_is_added_moves_no_image():
    keys = keys_of(300)
    before = held_out(keys[:200], [0] * 100 + [1] * 100)
    after = held_out(keys, [0] * 100 + [1] * 100 + [2] * 100)
    assert after & set(keys[:200]) == before


def test_neither_order_nor_the_labels_names_decide():
    keys = [*keys_of(200), *keys_of(6, seed=1)]
    labels = [0] * 200 + [1] * 3 + [2] * 3  # two classes small enough to need a place of their own
    expected = held_out(keys, labels)
    for seed in range(5):
        order = random.Random(seed).sample(range(len(keys)), len(keys))
        shuffled = [keys[row] for row in order]
        assert held_out(shuffled, [labels[row] for row in order]) == expected
        assert held_out(shuffled, [2 - labels[row] for row in order]) == expected


def test_another_salt_is_an_independent_split():
    keys = keys_of(20000)
    one, other = (held_out(keys, [0] * len(keys), salt=f"test {seed}") for seed in (0, 1))
    # of independent halves of 0.2 a share of 0.04 is common
    assert abs(len(one & other) - 800) < 4 * math.sqrt(20000 * 0.04 * 0.96)
    assert one == held_out(keys, [0] * len(keys), salt="test 0")


def test_the_test_split_says_nothing_of_the_validation_split():
    # both are drawn from the same keys: if their salts met, the rest of the test would hold no validation
    keys = keys_of(20000)
    rest = sorted(set(keys) - held_out(keys, [0] * len(keys), salt="test 0"))
    held = held_out(rest, [0] * len(rest), salt="validation 0")
    assert abs(len(held) - 0.2 * len(rest)) < 4 * math.sqrt(len(rest) * 0.2 * 0.8)


# tiny classes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("fraction", [0.01, 0.2, 0.99])
@pytest.mark.parametrize("count", [2, 3, 5])
def test_a_tiny_class_of_different_images_has_one_on_each_side(count, fraction):
    for seed in range(60):
        own = keys_of(count, seed)
        held = held_out([*own, *keys_of(40, 1000)], [0] * count + [1] * 40, fraction)
        assert 0 < len(held & set(own)) < count


def test_copies_do_not_count_as_different_images():
    for seed in range(20):
        one, other = keys_of(2, seed)
        assert len(held_out([one, one, one, other], [0] * 4)) == 1
        # nothing can divide a class of one picture, so it is learned
        assert held_out([one, one, one], [0] * 3) == set()


def test_tiny_classes_that_share_a_picture_keep_one_to_learn_from():
    for seed in range(200):
        shared, one, other = keys_of(3, seed)
        held = held_out([shared, one, shared, other], [0, 0, 1, 1])
        assert len(held & {shared, one}) < 2
        assert len(held & {shared, other}) < 2


def test_no_class_loses_all_its_training_images_to_test_and_validation():
    for seed in range(200):
        for count in (1, 2, 3):
            keys = keys_of(count, seed)
            test = held_out(keys, [0] * count)
            rest = [key for key in keys if key not in test]
            assert rest
            assert {*rest} - held_out(rest, [0] * len(rest), salt="validation 0")


# copies -----------------------------------------------------------------------------------------------


def test_images_of_equal_pixels_get_the_smallest_of_their_keys():
    assert join_copies([b"d", b"b", b"c", b"a"], [b"1", b"2", b"1", b"3"]) == [b"c", b"b", b"c", b"a"]
    assert join_copies([], []) == []


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ([], ""),
        ([b"1", b"2", b"3"], ""),
        (
            [b"1", b"2", b"1"],
            "1 image is a copy of another and stays in the same part with it (f0 = f2)",
        ),
        # each copy is named beside the first of its kind
        (
            [b"1", b"2", b"2", b"1", b"1"],
            "3 images are copies of others and stay in the same part with them (f1 = f2, f0 = f3, f0 = f4)",
        ),
        (
            [b"1"] * 1501,
            "1,500 images are copies of others and stay in the same part with them "
            "(f0 = f1, f0 = f2, f0 = f3, …)",
        ),
    ],
)
def test_copies_are_counted_and_named(keys, sentence):
    assert copies(keys, [f"f{row}" for row in range(len(keys))], [0] * len(keys)) == sentence


def test_copies_in_another_class_are_named_whatever_others_there_are():
    keys = [b"1"] * 5 + [b"2"] * 2 + [b"3"] * 2
    files = [f"f{row}" for row in range(9)]
    said = copies(keys, files, [0, 0, 0, 0, 0, 1, 2, 2, 1])
    assert said.startswith("6 images are copies of others and stay in the same part with them (f0 = f1, ")
    assert said.endswith("; 2 of them are of another class (f5 = f6, f7 = f8): remove what is wrong")


def test_as_many_pairs_are_named_as_was_asked():
    assert copies([b"1"] * 4, "abcd", [0] * 4, most=1).endswith("(a = b, …)")
    assert copies([b"1"] * 4, "abcd", [0] * 4, most=3).endswith("(a = b, a = c, a = d)")


# files ------------------------------------------------------------------------------------------------


def pictures(count: int, size: int = 12, seed: int = 0) -> list[Image.Image]:
    rng = np.random.default_rng(seed)
    return [Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8)) for _ in range(count)]


def save(image: Image.Image, path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def load_folder(path, **options):
    return load_source(f"folder:{path}", "train", root=path, **options)


def test_pixel_equal_files_of_other_formats_share_a_key(tmp_path):
    one, other = pictures(2)
    for name in ("a.png", "b.bmp", "c.tiff", "d.ppm"):
        save(one, tmp_path / "x" / name)
    save(one.convert("RGBA"), tmp_path / "y" / "e.png")  # another mode, and another class
    save(other, tmp_path / "y" / "f.png")
    found = load_folder(tmp_path, size=12, channels=3)
    assert found.files == ("x/a.png", "x/b.bmp", "x/c.tiff", "x/d.ppm", "y/e.png", "y/f.png")
    assert len(set(found.keys[:5])) == 1
    assert found.keys[5] not in found.keys[:5]
    assert found.note.startswith("4 images are copies of others")
    assert "x/a.png = x/b.bmp" in found.note
    assert "; 1 of them is of another class (x/a.png = y/e.png): remove what is wrong" in found.note


def test_equal_files_share_a_key_when_they_stay_on_disk_too(tmp_path):
    one, other = pictures(2)
    for image, name in ((one, "x/a.png"), (other, "x/b.png"), (one, "y/c.png")):
        save(image, tmp_path / name)
    found = load_folder(tmp_path, size=12, channels=3, memory_limit=0)
    assert found.keys[0] == found.keys[2] != found.keys[1]
    assert found.note == (
        "1 image is a copy of another and stays in the same part with it (x/a.png = y/c.png); "
        "it is of another class (x/a.png = y/c.png): remove what is wrong"
    )


def test_neither_names_nor_places_decide_a_key(tmp_path):
    for row, image in enumerate(pictures(8)):
        save(image, tmp_path / "one" / "x" / f"{row}.png")
        save(image, tmp_path / "two" / "y" / "deep" / f"{9 - row}.png")
    one, two = (load_folder(tmp_path / name, size=12, channels=3) for name in ("one", "two"))
    assert len(set(one.keys)) == 8
    assert sorted(one.keys) == sorted(two.keys)
    os.utime(tmp_path / "one" / "x" / "0.png", (0, 0))
    assert load_folder(tmp_path / "one", size=12, channels=3).keys == one.keys


def test_another_size_or_limit_gives_the_same_keys(tmp_path):
    for row, image in enumerate(pictures(8)):
        save(image, tmp_path / "x" / f"{row}.png")
    expected = load_folder(tmp_path, size=12, channels=3).keys
    assert load_folder(tmp_path, size=7, channels=1).keys == expected
    assert load_folder(tmp_path, size=12, channels=3, memory_limit=0).keys == expected


def test_pictures_that_differ_in_their_middle_alone_are_no_copies(tmp_path):
    for name, value in (("a", 0), ("b", 255)):
        pixels = np.full((256, 256, 3), 128, np.uint8)  # 192 KiB
        pixels[120:136] = value
        save(Image.fromarray(pixels), tmp_path / "x" / f"{name}.bmp")
    found = load_folder(tmp_path, size=32, channels=3)
    assert not torch.equal(found.images[0], found.images[1])
    assert found.note == ""


# the split at random, which sets without keys take ----------------------------------------------------


def test_the_random_split_is_stratified_and_keeps_single_images():
    labels = torch.tensor([0] * 50 + [1] * 10 + [2])
    rest, held = holdout(labels, 0.2, seed=3)
    assert torch.bincount(labels[held], minlength=3).tolist() == [10, 2, 0]
    assert sorted([*rest.tolist(), *held.tolist()]) == list(range(61))


def test_classes_of_copies_alone_leave_nothing_to_validate_on_and_say_why(tmp_path):
    for name, value in {"a": 10, "b": 200}.items():
        (tmp_path / name).mkdir()
        for number in range(5):
            Image.new("L", (8, 8), value).save(tmp_path / name / f"{number}.png")
    tables = OpenSetDataModule(known=f"folder:{tmp_path}", unknown={}).tables
    with pytest.raises(UserError, match=r"copies of one another.* none of the 10 is left for validation"):
        tables.load_training()
