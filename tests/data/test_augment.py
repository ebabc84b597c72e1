"""Augmentation of whole batches: what may happen to an image, how often, and what may not."""

import math

import pytest
import torch
import torch.nn.functional as F

from osr_lightning.data.augment import AUGMENTATIONS, affine, crop, digits, erase, mirror, tint

pytestmark = pytest.mark.usefixtures("seeded")

PARTS = {
    **AUGMENTATIONS,
    "mirror": mirror,
    "crop": crop,
    "tint": tint,
    "erase": erase,
    "affine": lambda images: affine(images, degrees=30, scale=0.2, shift=0.2),
}
RANDOM = [name for name in PARTS if name != "none"]


def ramp(batch=1, channels=3, height=16, width=16) -> torch.Tensor:
    """Images whose every pixel has a value of its own, from 1 up."""
    image = torch.arange(1, channels * height * width + 1, dtype=torch.float32)
    return image.view(1, channels, height, width).repeat(batch, 1, 1, 1)


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


# all of them ------------------------------------------------------------------------------------------


def test_the_documented_augmentations_are_there_by_name():
    assert {"none", "digits", "photos", "photos_strong"} <= set(AUGMENTATIONS)


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(32, 32), (17, 17), (9, 20), (20, 9)])
def test_shape_and_type_are_kept_and_the_given_images_too(name, channels, size):
    images = noise(6, channels, *size)
    given = images.clone()
    found = PARTS[name](images)
    assert found.shape == images.shape
    assert found.dtype == images.dtype
    assert found.isfinite().all()
    assert torch.equal(images, given)


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("size", range(1, 9))
def test_the_smallest_images_work(name, size):
    found = PARTS[name](noise(5, 3, size, size))
    assert found.shape == (5, 3, size, size)
    assert found.isfinite().all()


@pytest.mark.parametrize("name", PARTS)
def test_half_precision_is_kept(name):
    assert PARTS[name](noise(4, 1, 16, 16).bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("name", PARTS)
def test_double_precision_is_kept(name):
    assert PARTS[name](noise(4, 1, 16, 16).double()).dtype == torch.float64


@pytest.mark.parametrize("name", PARTS)
def test_under_autocast_the_result_is_that_of_float32(name):
    # a training in mixed precision augments within autocast
    images = noise(6, 3, 64, 64)
    torch.manual_seed(3)
    expected = PARTS[name](images)
    torch.manual_seed(3)
    with torch.autocast("cpu", torch.bfloat16):
        found = PARTS[name](images)
    assert found.dtype == torch.float32
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("name", RANDOM)
def test_each_image_has_its_own_draw(name):
    # 40 copies of one image: if they shared a draw, all would come out alike
    found = PARTS[name](ramp(40))
    different = {image.numpy().tobytes() for image in found}
    assert len(different) > 1
    if name != "mirror":  # which has two outcomes
        assert len(different) >= 10


@pytest.mark.parametrize("name", RANDOM)
def test_the_seed_decides(name):
    def drawn(seed):
        torch.manual_seed(seed)
        return PARTS[name](ramp(40))

    assert torch.equal(drawn(5), drawn(5))
    assert not torch.equal(drawn(5), drawn(6))


@pytest.mark.parametrize("name", RANDOM)
def test_channels_are_varied_alike(name):
    grey = noise(20, 1, 16, 16).expand(-1, 3, -1, -1)
    found = PARTS[name](grey)
    assert torch.equal(found[:, 0], found[:, 1])
    assert torch.equal(found[:, 0], found[:, 2])


@pytest.mark.parametrize("name", RANDOM)
def test_an_image_is_not_mixed_with_its_neighbours(name):
    images = noise(10, 1, 16, 16)
    other = images.clone()
    other[1:] = noise(9, 1, 16, 16) + 5
    for one in (images, other):
        torch.manual_seed(2)
        one.copy_(PARTS[name](one))
    assert torch.equal(images[0], other[0])
    assert not torch.equal(images[1:], other[1:])


def test_none_is_the_identity():
    images = noise(4, 3, 9, 9)
    assert torch.equal(AUGMENTATIONS["none"](images), images)


# mirror -----------------------------------------------------------------------------------------------


def test_mirror_turns_about_half_of_the_images_and_nothing_else():
    images = ramp(2000, 3, 4, 5)
    found = mirror(images)
    turned = (found == images.flip(-1)).flatten(1).all(1)
    kept = (found == images).flatten(1).all(1)
    assert (turned ^ kept).all()
    assert abs(int(turned.sum()) - 1000) < 4 * math.sqrt(2000 * 0.25)


def test_mirror_keeps_the_values_of_each_row():
    images = noise(50, 3, 8, 11)
    assert torch.equal(mirror(images).sort(-1).values, images.sort(-1).values)


# crop -------------------------------------------------------------------------------------------------


def reflected(place: int, size: int) -> int:
    """Where a place beyond the edges is read from, the edge itself not read twice."""
    return -place if place < 0 else 2 * (size - 1) - place if place >= size else place


def shifts(images: torch.Tensor, found: torch.Tensor) -> list[tuple[int, int]]:
    """Per image the one shift by which it was moved, found by trying all of them."""
    height, width = images.shape[2:]
    down, right = height // 8, width // 8
    expected = {}
    for y in range(-down, down + 1):
        rows = [reflected(row + y, height) for row in range(height)]
        for x in range(-right, right + 1):
            columns = [reflected(column + x, width) for column in range(width)]
            expected[images[0][:, rows][:, :, columns].numpy().tobytes()] = (y, x)
    return [expected[image.numpy().tobytes()] for image in found]  # KeyError: it was not only moved


@pytest.mark.parametrize(("height", "width"), [(16, 16), (8, 24), (25, 17)])
def test_crop_moves_the_image_by_up_to_an_eighth_and_mirrors_its_edges(height, width):
    images = ramp(600, 3, height, width)
    found = shifts(images, crop(images))
    # every shift occurs: with at most 49 of them, each is missed once in 200,000 times
    assert set(found) == {
        (y, x) for y in range(-(height // 8), height // 8 + 1) for x in range(-(width // 8), width // 8 + 1)
    }


def test_all_shifts_are_equally_likely():
    images = ramp(9000, 1, 8, 8)
    found = shifts(images, crop(images))
    counts = [found.count((y, x)) for y in (-1, 0, 1) for x in (-1, 0, 1)]
    # chi squared with 8 degrees of freedom passes 37.3 once in 100,000 times
    assert sum((count - 1000) ** 2 / 1000 for count in counts) < 37.3


def test_crop_of_images_without_an_eighth_is_the_identity():
    images = noise(5, 3, 7, 7)
    assert torch.equal(crop(images), images)


@pytest.mark.parametrize("name", ["crop", "mirror", "photos"])
def test_moving_makes_no_new_values(name):
    images = ramp(50, 3, 24, 24)
    found = PARTS[name](images)
    for channel in range(3):
        assert set(found[:, channel].unique().tolist()) <= set(images[0, channel].flatten().tolist())
    constant = torch.full((4, 3, 24, 24), 0.7)
    assert torch.equal(PARTS[name](constant), constant)


# affine -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (8, 8), (28, 28), (33, 20)])
def test_affine_by_nothing_is_the_identity(size):
    images = noise(8, 3, *size)
    found = affine(images, degrees=0, scale=0, shift=0)
    assert torch.allclose(found, images, atol=1e-5)


@pytest.mark.parametrize("name", ["affine", "digits"])
def test_affine_of_a_constant_image_is_constant(name):
    constant = torch.full((20, 3, 16, 16), 0.7)  # no black corners: edges are continued
    assert torch.allclose(PARTS[name](constant), constant, atol=1e-6)


def plane(size: int, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images whose two channels are the place of each pixel, in pixels from the middle."""
    places = torch.arange(size) - (size - 1) / 2
    y, x = torch.meshgrid(places, places, indexing="ij")
    return torch.stack([x, y]).expand(batch, -1, -1, -1).contiguous(), places


def maps(size: int, batch: int, **amounts: float) -> torch.Tensor:
    """The 2 x 3 matrices of ``affine``, read off the middle of images that tell the place of each pixel.

    Interpolation is exact for these, so what is read is what was applied.
    """
    images, _ = plane(size, batch)
    found = affine(images, **amounts)
    low, high = size // 2 - 4, size // 2 + 4  # far enough from the edges
    corner, right, down = found[:, :, low, low], found[:, :, low, high], found[:, :, high, low]
    linear = torch.stack([(right - corner) / 8, (down - corner) / 8], dim=2)
    at = torch.tensor([low - (size - 1) / 2] * 2)
    return torch.cat([linear, (corner - linear @ at)[:, :, None]], dim=2)


def test_affine_turns_by_every_angle_up_to_the_given_one():
    found = maps(40, 1000, degrees=25, scale=0, shift=0)
    angles = torch.atan2(found[:, 1, 0], found[:, 0, 0]).rad2deg()
    assert torch.allclose(found[:, :, :2].det(), torch.ones(1000), atol=1e-3)  # nothing is scaled
    assert found[:, :, 2].abs().max() < 1e-3  # nor moved
    assert angles.abs().max() <= 25.01
    # of a uniform distribution, whose mean has a deviation of 25 / sqrt(3 * 1000)
    assert abs(angles.mean()) < 4 * 25 / math.sqrt(3000)
    assert angles.min() < -24
    assert angles.max() > 24


def test_affine_scales_and_shifts_up_to_the_given_amounts():
    found = maps(40, 1000, degrees=0, scale=0.1, shift=0.1)
    zoom = found[:, 0, 0]
    assert torch.allclose(found[:, 1, 1], zoom, atol=1e-3)  # both sides alike
    assert found[:, [0, 1], [1, 0]].abs().max() < 1e-3
    assert 0.8999 < zoom.min() < 0.905
    assert 1.095 < zoom.max() < 1.1001
    shift = found[:, :, 2]
    assert shift.abs().max() <= 4.001  # a tenth of 40 pixels
    for axis in (0, 1):
        assert shift[:, axis].min() < -3.9
        assert shift[:, axis].max() > 3.9
        assert abs(shift[:, axis].mean()) < 4 * 4 / math.sqrt(3000)
    # the draws do not hang together
    together = torch.corrcoef(torch.stack([zoom, shift[:, 0], shift[:, 1]]))
    assert (together - torch.eye(3)).abs().max() < 4 / math.sqrt(1000)


def test_digits_stay_within_what_they_promise():
    images, _ = plane(40, 500)
    found = digits(images)
    middle = found[:, :, 19:21, 19:21].mean((2, 3))
    assert middle.abs().max() <= 4.01
    slope = found[:, :, 20, 24] - found[:, :, 20, 16]  # 8 pixels apart
    angle, zoom = torch.atan2(slope[:, 1], slope[:, 0]).rad2deg(), slope.norm(dim=1) / 8
    assert 9 < angle.abs().max() <= 10.01
    assert 0.8999 < zoom.min() < zoom.max() < 1.1001


# tint -------------------------------------------------------------------------------------------------


def test_tint_is_one_gain_and_one_offset_per_image_within_its_bounds():
    images = noise(2000, 3, 2, 2)
    found = tint(images)
    x, y = images.flatten(1), found.flatten(1)
    # least squares per image; the fit must be exact
    gain = ((x - x.mean(1, True)) * (y - y.mean(1, True))).sum(1) / (x - x.mean(1, True)).square().sum(1)
    offset = y.mean(1) - gain * x.mean(1)
    assert torch.allclose(gain[:, None] * x + offset[:, None], y, atol=1e-4)
    for values, centre in ((gain, 1), (offset, 0)):
        assert (values - centre).abs().max() <= 0.2001
        assert (values - centre).abs().max() > 0.19
        assert abs(values.mean() - centre) < 4 * 0.2 / math.sqrt(6000)
    assert abs(torch.corrcoef(torch.stack([gain, offset]))[0, 1]) < 4 / math.sqrt(2000)


# erase ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(32, 32), (16, 40), (9, 21)])
def test_erase_leaves_out_one_square_exactly(height, width):
    images = ramp(1000, 3, height, width)
    found = erase(images)
    gone = found == 0
    assert torch.equal(found[~gone], images[~gone])
    assert torch.equal(gone, gone[:, :1].expand_as(gone))  # in all channels
    for one in gone[:, 0]:
        rows, columns = one.any(1), one.any(0)
        assert torch.equal(one, rows[:, None] & columns[None, :])  # a rectangle …
        for line, size in ((rows, height), (columns, width)):
            at = line.nonzero().flatten()
            assert len(at) == at[-1] - at[0] + 1  # … in one piece …
            inside = at[0] > 0 and at[-1] < size - 1
            assert len(at) == size // 4 if inside else 1 <= len(at) <= size // 4  # … of a quarter


def test_every_pixel_is_erased_sometimes_and_the_middle_as_often_as_it_should():
    gone = (erase(torch.ones(4000, 1, 16, 16)) == 0).float().mean(0)[0]
    assert gone.min() > 0
    # 4 of 16 places cover a pixel of the middle in either direction
    middle = gone[4:12, 4:12]
    assert (middle - 1 / 16).abs().max() < 5 * math.sqrt(1 / 16 * 15 / 16 / 4000)


def test_a_square_of_small_images_is_a_pixel():
    for size in (2, 3, 5, 7):
        gone = erase(torch.ones(200, 1, size, size)) == 0
        assert (gone.sum((1, 2, 3)) == 1).all()


# in a network -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_a_training_step_in_mixed_precision_takes_the_result(name):
    convolution = torch.nn.Conv2d(3, 4, 3)
    with torch.autocast("cpu", torch.bfloat16):
        F.relu(convolution(AUGMENTATIONS[name](noise(4, 3, 16, 16)))).mean().backward()
    assert convolution.weight.grad.abs().sum() > 0
