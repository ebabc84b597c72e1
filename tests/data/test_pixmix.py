"""PixMix: sums and products by hand, the changes of the authors' code, and pictures of a folder."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from osr_lightning.data import pixel_ops, pixmix
from osr_lightning.data.pixel_ops import change
from osr_lightning.data.pixmix import PixMix, mix, read_pixmix
from osr_lightning.data_spec import DataSpec
from osr_lightning.errors import UserError

pytestmark = pytest.mark.usefixtures("seeded")


def pictures(count, side=16, channels=3, seed=1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, channels, side, side), dtype=torch.uint8, generator=generator)


# mix --------------------------------------------------------------------------------------------------


def weights_of(x, y, found):
    """Every pair of weights under which one of the two formulas gives what was found, per image.

    Of three pixels none of which is cut off, two fix the weights and the third confirms them.
    """
    summed = np.linalg.lstsq(np.stack([2 * x - 1, 2 * y - 1], 1), 2 * found - 1, rcond=None)
    product = np.linalg.lstsq(np.log(np.stack([2 * x, 2 * y], 1)), np.log(2 * found), rcond=None)
    return summed, product


def test_images_are_summed_or_multiplied_with_the_papers_weights():
    count = 3000
    x = 0.45 + 0.1 * torch.rand(count, 1, 1, 6, dtype=torch.float64)  # whose mixtures are not cut off
    y = 0.45 + 0.1 * torch.rand(count, 1, 1, 6, dtype=torch.float64)
    found = mix(x, y)
    summed, inside = [], []
    for one in range(count):
        by_sum, by_product = weights_of(*(part[one, 0, 0].numpy() for part in (x, y, found)))
        exact = [bool(residual[0] < 1e-12) for _, residual, *_ in (by_sum, by_product)]
        assert sorted(exact) == [False, True]
        summed.append(exact[0])
        a, b = (by_sum if exact[0] else by_product)[0]
        assert (0 <= a <= 1 and 0 <= b <= 1) or (1 <= a <= 2 and -1 <= b <= 0)
        inside.append((a, b))
    assert abs(np.mean(summed) - 0.5) < 4 * 0.5 / count**0.5
    weights = np.array(inside)
    within = weights[:, 1] > 0
    assert abs(within.mean() - 0.5) < 4 * 0.5 / count**0.5
    # means of Beta(3, 1) and Beta(1, 3), whose deviation is 0.194
    bound = 4 * 0.194 / (count / 2) ** 0.5
    assert weights[within].mean(0) == pytest.approx([0.75, 0.25], abs=bound)
    assert weights[~within].mean(0) == pytest.approx([1.25, -0.25], abs=bound)


def test_what_is_mixed_stays_in_range():
    black_and_white = torch.randint(2, (200, 1, 4, 4)).float()
    found = mix(black_and_white, torch.randint(2, (200, 1, 4, 4)).float())
    assert found.isfinite().all()
    assert 0 <= found.min() < found.max() <= 1


# changes ----------------------------------------------------------------------------------------------


def test_changes_have_the_strengths_of_the_authors_code(monkeypatch):
    drawn = []
    monkeypatch.setattr(
        pixel_ops,
        "change_each",
        lambda images, ops, by, smooth: drawn.extend(zip(ops, by, strict=True)) or images,
    )
    pixmix._changed(pictures(1, 32).repeat(5000, 1, 1, 1))
    found = {}
    for name, magnitude in drawn:
        found.setdefault(name, []).append(magnitude)
    for values in found.values():  # nine alike
        assert abs(len(values) / 5000 - 1 / 9) < 5 * (8 / 81 / 5000) ** 0.5
    assert set(found["autocontrast"]) == set(found["equalize"]) == {0.0}
    assert set(found["posterize"]) == {3, 4}  # int(0.3 * 4) bits fewer than four, at most
    assert min(found["solarize"]) == 256 - int(0.2999 * 256)
    assert max(found["solarize"]) == 256 - int(0.01 * 256)
    assert set(found["rotate"]) == set(range(-8, 9))  # int(30 * 0.3) is never reached
    for name in ("shear_x", "shear_y"):
        assert 0.085 < max(found[name]) < 0.09 > -min(found[name]) > 0.085
        assert min(map(abs, found[name])) >= 0.003
    for name in ("translate_x", "translate_y"):
        assert {round(32 * value) for value in found[name]} == set(range(-3, 4))


def test_posterize_and_solarize_are_pils():
    [picture] = pictures(1)
    image = Image.fromarray(picture.permute(1, 2, 0).numpy())
    for found, expected in (
        (change(picture[None], "posterize", 3), ImageOps.posterize(image, 3)),
        (change(picture[None], "solarize", 180), ImageOps.solarize(image, 180)),
        (change(picture[None], "autocontrast", 0), ImageOps.autocontrast(image)),
        (change(picture[None], "equalize", 0), ImageOps.equalize(image)),
    ):
        difference = found[0].permute(1, 2, 0).int() - torch.from_numpy(np.array(expected)).int()
        assert difference.abs().max() <= 1  # they round in different ways


# the whole --------------------------------------------------------------------------------------------


def test_a_tenth_is_as_it_was_and_nothing_is_mixed_with_neighbours():
    images = pictures(1500, 8)
    torch.manual_seed(3)
    found = PixMix(pictures(5, 9, seed=2))(images)
    assert found.shape == images.shape
    assert found.dtype == torch.uint8
    unchanged = (found == images).flatten(1).all(1).float().mean().item()
    # no change and no round: 1/2 * 1/5; a translation by no pixel and the like add a few
    assert 0.1 - 4 * (0.09 / 1500) ** 0.5 < unchanged < 0.16
    other = torch.cat([images[:1], pictures(1499, 8, seed=4)])
    torch.manual_seed(3)
    assert torch.equal(PixMix(pictures(5, 9, seed=2))(other)[0], found[0])


def test_parts_of_pictures_are_taken_from_everywhere():
    generator = pictures(3, 10)
    parts = PixMix(generator)._parts(torch.zeros(400, 3, 8, 8, dtype=torch.uint8))
    windows = {
        generator[k, :, y : y + 8, x : x + 8].numpy().tobytes(): (k, y, x)
        for k in range(3)
        for y in range(3)
        for x in range(3)
    }
    assert {windows[part.numpy().tobytes()] for part in parts} == set(windows.values())


def test_mixed_images_hold_something_of_the_pictures():
    grey = torch.full(
        (400, 3, 8, 8), 128, dtype=torch.uint8
    )  # which no change but solarize and posterize alter
    pattern = torch.zeros(1, 3, 9, 9, dtype=torch.uint8)
    pattern[..., ::2] = 255
    found = PixMix(pattern)(grey).float()
    striped = ((found[..., 0] - found[..., 1]).abs() > 5).flatten(1).any(1)
    assert 0.5 < striped.float().mean() < 0.85


def test_a_folders_pictures_are_read_an_eighth_larger(tmp_path):
    for number in range(3):
        Image.fromarray(np.full((40, 50, 3), 80 * number, np.uint8)).save(tmp_path / f"{number}.png")
    spec = DataSpec(("a", "b"), 1, 16, (0.5,), (0.25,))
    found = read_pixmix(str(tmp_path), spec).pictures
    assert tuple(found.shape) == (3, 1, 18, 18)
    assert sorted(found.float().mean((1, 2, 3)).tolist()) == pytest.approx([0, 80, 160], abs=1)


def test_a_missing_or_empty_folder_is_named(tmp_path):
    spec = DataSpec(("a", "b"), 1, 16, (0.5,), (0.25,))
    for folder in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(UserError, match=str(folder)):
            read_pixmix(str(folder), spec)


def test_a_folder_that_is_not_there_is_the_options(tmp_path):
    with pytest.raises(UserError, match=r"model\.pixmix: there is no folder .*none; name one of pictures"):
        read_pixmix(str(tmp_path / "none"), DataSpec(("a", "b"), 3, 32, (0.5,) * 3, (0.5,) * 3))
