"""What is measured on the known images, what is given instead, and what a trained network expects."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image

from osr_lightning.data.counts import counts, image_lines
from osr_lightning.data.datamodule import OpenSetDataModule
from osr_lightning.data.image_set import ImageSet
from osr_lightning.data.measure_spec import mean_and_std, natural_file_shape, natural_shape
from osr_lightning.data.stream import StreamedImages
from osr_lightning.data_spec import DataSpec, same_classes
from osr_lightning.errors import UserError

SPEC = DataSpec(("cat", "dog"), 1, 28, (0.25,), (0.5,))


def random_images(count, channels, size=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, channels, size, size), dtype=torch.uint8, generator=generator)


def colour_class_folders(folder, *names, count=10, size=(40, 30), shift=0):
    """Images of one colour, whose red says which class and whose green which image it is."""
    for label, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            colour = (40 * label + shift, 10 * index, 200)
            Image.new("RGB", size, colour).save(folder / name / f"{index:02}.png")
    return f"folder:{folder}"


# mean and deviation -----------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("count", [1, 2500])  # more than are added up at once
def test_mean_and_deviation_are_numpys_per_channel(count, channels):
    images = random_images(count, channels)
    images[:, 0] //= 3  # channels that differ
    values = images.numpy().astype(np.float64) / 255
    mean, std = mean_and_std(images)
    assert mean == pytest.approx(values.mean((0, 2, 3)), abs=1e-6)
    assert std == pytest.approx(values.std((0, 2, 3)), abs=1e-6)
    assert all(type(value) is float for value in (*mean, *std))


@pytest.mark.parametrize("level", [0, 100, 255])
def test_a_channel_without_variance_has_the_deviation_1(level):
    images = random_images(50, 3)
    images[:, 1] = level
    mean, std = mean_and_std(images)
    assert mean[1] == pytest.approx(level / 255, abs=1e-6)
    assert std[1] == 1.0
    assert 0.2 < std[0] < 0.4


def test_many_pixels_do_not_overflow():
    image = random_images(1, 1, 28)
    many = image.expand(100_000, -1, -1, -1)  # the size of the largest sets, in the memory of one image
    values = image.numpy() / 255
    mean, std = mean_and_std(many)
    assert mean == pytest.approx([values.mean()], abs=1e-6)
    assert std == pytest.approx([values.std()], abs=1e-6)


def test_streamed_images_are_measured_on_some_evenly_spaced_ones(monkeypatch):
    images = random_images(100, 1)
    streamed = StreamedImages([*range(100)], lambda rows: images[torch.tensor(rows)], images.shape[1:])
    assert mean_and_std(streamed) == mean_and_std(images)
    monkeypatch.setattr("osr_lightning.data.measure_spec._MEASURED", 25)
    assert mean_and_std(streamed) == mean_and_std(images[::4])
    assert mean_and_std(images) != mean_and_std(images[::4])


# channels and size ------------------------------------------------------------------------------------


def grey_in_colour(count, height, width):
    return random_images(count, 1, max(height, width))[:, :, :height, :width].repeat(1, 3, 1, 1)


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [(28, 28, 28), (32, 48, 32), (50, 20, 20), (64, 64, 64), (65, 90, 64), (300, 70, 64)],
)
def test_the_size_is_the_shorter_side_and_at_most_64(height, width, size):
    assert natural_shape(grey_in_colour(2, height, width)) == (1, size)
    assert natural_shape(grey_in_colour(2, height, width)[:, :1]) == (1, size)


def test_grey_content_is_grey_and_colour_is_colour():
    images = grey_in_colour(200, 8, 8)
    assert natural_shape(images) == (1, 8)
    images[7, 0, 3, 4] = images[7, 1, 3, 4] // 2 + 128  # one pixel of one image in two hundred
    images[7, 1:, 3, 4] = 0
    assert natural_shape(images) == (1, 8)
    images[8] = images[7]  # and of one in a hundred
    assert natural_shape(images) == (3, 8)


@pytest.mark.parametrize(("spread", "channels"), [(16, 1), (17, 3)])
def test_a_few_levels_between_the_channels_are_still_grey(spread, channels):
    images = torch.full((4, 3, 8, 8), 100, dtype=torch.uint8)
    images[:, 2] += spread
    assert natural_shape(images) == (channels, 8)


def test_files_are_grey_or_coloured_by_what_they_show(tmp_path):
    photo = Image.fromarray(load_sample_image("china.jpg")).resize((50, 40))
    grey = photo.convert("L")
    files = {
        "grey.png": grey,
        "grey_as_colour.png": grey.convert("RGB"),
        "grey_as_colour.jpg": grey.convert("RGB"),
        "palette.png": grey.convert("P"),
        "bits.png": grey.convert("1"),
        "deep.png": Image.fromarray(np.asarray(grey).astype(np.uint16) * 257),
    }
    for name, image in files.items():
        image.save(tmp_path / name)
        assert natural_file_shape([tmp_path / name]) == (1, 40), name
    for name in ("colour.png", "colour.jpg", "colour.gif"):
        photo.save(tmp_path / name)
        assert natural_file_shape([tmp_path / name]) == (3, 40), name


def test_files_agree_on_the_middle_size_and_unreadable_ones_do_not_count(tmp_path):
    files = []
    for index, side in enumerate((10, 20, 30, 40, 50)):
        Image.new("L", (side, 99), 9).save(tmp_path / f"{index}.png")
        files.append(tmp_path / f"{index}.png")
    assert natural_file_shape(files) == (1, 30)
    assert natural_file_shape(files[:4]) == (1, 20)  # of two middle ones the smaller
    (tmp_path / "bad.png").write_bytes(b"no image")
    assert natural_file_shape([*files, tmp_path / "bad.png", Path("absent.png")]) == (1, 30)
    assert natural_file_shape([tmp_path / "bad.png"]) == (1, 64)
    Image.new("L", (1000, 2000)).save(tmp_path / "large.jpg")
    assert natural_file_shape([tmp_path / "large.jpg"]) == (1, 64)


# the facts of a study ---------------------------------------------------------------------------------


def test_facts_are_those_of_the_training_split_alone(tiny_root):
    data = OpenSetDataModule(root=str(tiny_root))
    spec = data.spec
    train, val = data.tables.load_training()
    values = train.images.numpy() / 255
    assert spec.channels == 1
    assert spec.image_size == 28
    assert spec.classes == tuple(sorted(spec.classes))
    assert spec.mean == pytest.approx([values.mean()], abs=1e-6)
    assert spec.std == pytest.approx([values.std()], abs=1e-6)
    everything = torch.cat([train.images, val.images]).numpy() / 255
    assert spec.mean != pytest.approx([everything.mean()], abs=1e-6)


def test_facts_of_a_folder_of_class_folders(tmp_path):
    data = OpenSetDataModule(known=colour_class_folders(tmp_path, "zebra", "ape", "cow"))
    train, _ = data.tables.load_training()
    assert data.spec.classes == ("ape", "cow", "zebra")
    assert data.spec.channels == 3
    assert data.spec.image_size == 30
    values = train.images.numpy() / 255
    assert data.spec.mean == pytest.approx(values.mean((0, 2, 3)), abs=1e-6)
    assert data.spec.std[:2] == pytest.approx(values.std((0, 2, 3))[:2], abs=1e-6)
    # labels are places in the names: the red of zebra is 0, of ape 40, of cow 80
    assert [{*train.images[train.labels == k][:, 0].flatten().tolist()} for k in range(3)] == [
        {40},
        {80},
        {0},
    ]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"image_size": 20}, {"image_size": 20, "channels": 3}),
        ({"channels": 1}, {"image_size": 30, "channels": 1}),
        ({"mean": 0.5, "std": 0.25}, {"mean": (0.5,) * 3, "std": (0.25,) * 3}),
        ({"mean": [0.1, 0.2, 0.3]}, {"mean": (0.1, 0.2, 0.3)}),
        ({"mean": 0.0}, {"mean": (0.0,) * 3}),
        ({"std": [1, 1, 2]}, {"std": (1.0, 1.0, 2.0)}),
    ],
)
def test_given_values_win_and_the_rest_is_measured(tmp_path, options, expected):
    source = colour_class_folders(tmp_path, "a", "b")
    data, measured = (OpenSetDataModule(known=source, **given) for given in (options, {}))
    found = data.spec._asdict()
    for name, value in expected.items():
        assert found[name] == value
    for name in ("mean", "std"):
        if name not in options and "channels" not in options:
            assert found[name] == pytest.approx(getattr(measured.spec, name), abs=1e-3)
    train, _ = data.tables.load_training()
    assert train.images.shape[1:] == data.spec.input_shape


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"std": 0.0}, r"data\.std must be above 0"),
        ({"std": [1.0, 1.0]}, r"data\.std must be one number for each of the 3 channels"),
        ({"mean": [0.1, float("nan"), 0.2]}, r"data\.mean must be one number for each"),
    ],
)
def test_given_values_that_serve_no_network_are_refused(tmp_path, options, message):
    known = colour_class_folders(tmp_path, "a", "b", count=3, size=(4, 4))
    with pytest.raises(UserError, match=message):
        _ = OpenSetDataModule(known=known, **options).spec


def test_one_class_is_not_enough_to_learn(tmp_path):
    with pytest.raises(UserError, match=r"at least 2 classes, not 1 \(only\)"):
        _ = OpenSetDataModule(known=colour_class_folders(tmp_path, "only")).spec


@pytest.mark.parametrize("name", ["unknown", "Unknown", "UNKNOWN"])
def test_a_class_named_as_rejected_images_are_is_not_learned(tmp_path, name):
    known = colour_class_folders(tmp_path, "a", "b", name)
    with pytest.raises(UserError, match=f"named '{name}', which is what rejected .* make its images an unkn"):
        _ = OpenSetDataModule(known=known).spec
    without = OpenSetDataModule(known=known, known_classes=["a", "b"], unknown={"rest": "rest"})
    assert without.spec.classes == ("a", "b")
    DataSpec(("a", "Unknown"), 3, 8, (0.5,) * 3, (0.5,) * 3).check()  # as earlier versions learned it


def test_unknown_images_take_the_shape_of_the_known_ones(tmp_path, tiny_root):
    unknown = {"noise": f"npz:{tiny_root}/unknown.npz"}
    data = OpenSetDataModule(root=str(tiny_root), unknown=unknown)
    assert data.tables.load_test().images.shape == (151, 1, 28, 28)
    colour = OpenSetDataModule(known=colour_class_folders(tmp_path, "a", "b"), unknown=unknown)
    held_out = len(colour.tables.load_test()) - 50
    assert colour.tables.load_test().images.shape == (held_out + 50, 3, 30, 30)
    assert held_out >= 2


def test_counts_and_a_line_of_each_kind(tiny_root):
    unknown = {"near": {"a": f"npz:{tiny_root}/unknown.npz"}, "b": "noise:uniform"}
    tables = OpenSetDataModule(root=str(tiny_root), unknown=unknown).tables
    known, unseen = {"source": "mnist", "train": None, "validation": None, "test": None}, {"test": None}
    sources = {"a": {"source": unknown["near"]["a"]}, "b": {"source": "noise:uniform"}}
    assert counts(tables) == {"known": known, "unknown": {n: one | unseen for n, one in sources.items()}}
    tables.load_training()
    assert image_lines(tables)[0].endswith("), 320/80/- train/val/test, grey 28x28")
    assert len(image_lines(tables)) == 1
    tables.load_test()
    assert counts(tables) == {
        "known": known | {"train": 320, "validation": 80, "test": 101},
        "unknown": {"a": sources["a"] | {"test": 50}, "b": sources["b"] | {"test": 2000}},
    }
    assert image_lines(tables)[0].startswith("known: 10 classes (0 - zero, 1 - one, ")
    assert image_lines(tables)[0].endswith("), 320/80/101 train/val/test, grey 28x28")
    assert image_lines(tables)[1] == "unknown: a 50, b 2,000"


# a trained network's facts ----------------------------------------------------------------------------


def test_expected_facts_are_taken_instead_of_measured(tiny_root):
    measured = OpenSetDataModule(root=str(tiny_root)).spec
    expected = measured._replace(channels=3, image_size=20, mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 3.0))
    tables = OpenSetDataModule(root=str(tiny_root)).tables
    tables.expect(expected)
    assert tables.spec == expected
    assert tables.load_training()[0].images.shape == (320, 3, 20, 20)
    assert tables.spec == expected
    assert tables.load_test().images.shape == (101, 3, 20, 20)


def test_tables_that_were_loaded_for_other_facts_are_loaded_anew(tiny_root):
    tables = OpenSetDataModule(root=str(tiny_root)).tables
    first, _ = tables.load_training()
    tables.load_test()
    tables.expect(tables.spec)
    assert tables.load_training()[0] is first
    tables.expect(tables.spec._replace(image_size=20))
    assert tables.load_training()[0].images.shape == (320, 1, 20, 20)
    assert tables.load_test().images.shape == (101, 1, 20, 20)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 32}, r"data\.image_size 28, not 32; leave data\.image_size out, or train again"),
        ({"channels": 3}, r"data\.channels 1, not 3"),
        ({"mean": 0.5}, r"data\.mean 0\.25, not 0\.5"),
        ({"mean": [0.1, 0.2, 0.3]}, r"data\.mean 0\.25, not \(0\.1, 0\.2, 0\.3\)"),
        ({"std": 0.25}, r"data\.std 0\.5, not 0\.25"),
    ],
)
def test_other_values_than_the_trained_ones_are_refused(tiny_root, options, message):
    tables = OpenSetDataModule(root=str(tiny_root), **options).tables
    with pytest.raises(UserError, match=message):
        tables.expect(SPEC)


@pytest.mark.parametrize(
    "options", [{"image_size": 28, "channels": 1}, {"mean": 0.25}, {"mean": [0.25], "std": 0.5}]
)
def test_the_trained_values_may_be_given_again(tiny_root, options):
    tables = OpenSetDataModule(root=str(tiny_root), **options).tables
    tables.expect(SPEC)
    assert tables.spec == SPEC


def test_one_number_stands_for_every_channel(tiny_root):
    colour = SPEC._replace(channels=3, mean=(0.25,) * 3, std=(0.5, 0.5, 0.6))
    OpenSetDataModule(root=str(tiny_root), mean=0.25).tables.expect(colour)
    with pytest.raises(UserError, match=r"data\.std \(0\.5, 0\.5, 0\.6\), not 0\.5"):
        OpenSetDataModule(root=str(tiny_root), std=0.5).tables.expect(colour)


# classes by name --------------------------------------------------------------------------------------


def test_classes_are_matched_by_name_whatever_their_order(tmp_path):
    source = colour_class_folders(tmp_path, "ape", "cow", "zebra")
    plain = OpenSetDataModule(known=source).tables
    plain.load_test()
    reds = {"ape": 0, "cow": 40, "zebra": 80}
    for order in (("ape", "cow", "zebra"), ("zebra", "ape", "cow"), ("cow", "zebra", "ape")):
        tables = OpenSetDataModule(known=source).tables
        tables.expect(plain.spec._replace(classes=order))
        for table in (*tables.load_training(), tables.load_test()):
            assert len(table)
            for image, label in zip(table.images, table.labels.tolist(), strict=True):
                assert image[0].unique().tolist() == [reds[order[label]]]


def test_folders_with_train_and_test_are_matched_by_name_too(tmp_path):
    colour_class_folders(tmp_path / "train", "ape", "cow")
    colour_class_folders(tmp_path / "test", "cow", count=2, shift=45)  # test images of one class only
    tables = OpenSetDataModule(known=f"folder:{tmp_path}").tables
    tables.expect(DataSpec(("cow", "ape"), 3, 30, (0.5,) * 3, (0.5,) * 3))
    assert tables.load_test().labels.tolist() == [0, 0]
    train, _ = tables.load_training()
    assert {*train.images[train.labels == 0][:, 0].flatten().tolist()} == {40}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("ape", "bull", "zebra"), "it has 'bull' and lacks 'cow'; rename"),
        (("Ape", "cow", "zebra"), "it has 'Ape' and lacks 'ape'"),
        (("ape", "cow"), "it lacks 'zebra'; rename the classes, give another data.known with"),
        (("ape", "cow", "yak", "zebra"), "it has 'yak'; name those that were learned in data.known_cl"),
    ],
)
@pytest.mark.parametrize("load", ["load_training", "load_test"])
def test_renamed_classes_are_refused_by_name(tmp_path, names, message, load):
    source = colour_class_folders(tmp_path, *names)
    tables = OpenSetDataModule(known=source).tables
    tables.expect(DataSpec(("ape", "cow", "zebra"), 3, 30, (0.5,) * 3, (0.5,) * 3))
    with pytest.raises(UserError, match=f"the known set {source} does not have the classes .*{message}"):
        getattr(tables, load)()


def test_unknown_sets_need_no_classes_in_common(tmp_path):
    known = colour_class_folders(tmp_path / "known", "ape", "cow")
    other = colour_class_folders(tmp_path / "other", "car", "tree", count=3, shift=100)
    tables = OpenSetDataModule(known=known, unknown={"things": other}).tables
    tables.expect(DataSpec(("cow", "ape"), 3, 30, (0.5,) * 3, (0.5,) * 3))
    assert tables.load_test().labels[-6:].tolist() == [2] * 6


def test_labels_follow_their_names():
    found = ImageSet(torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, 1, 2, 1]), ("a", "b", "c"))
    moved = found.with_classes(("c", "a", "b"))
    assert moved.classes == ("c", "a", "b")
    assert moved.labels.tolist() == [1, 2, 0, 2]
    assert found.labels.tolist() == [0, 1, 2, 1]


def test_a_long_difference_is_cut_short():
    names = tuple("abcdefg")
    with pytest.raises(UserError, match=r"it has 'a', 'b', 'c', 'd', 'e' and more and lacks 'x'; rename"):
        same_classes(("x",), names, "this")
    same_classes(names, names[::-1], "this")


# the tuple itself -------------------------------------------------------------------------------------


def test_facts_survive_json():
    spec = DataSpec(("cat", "dög"), 3, 32, (0.1, 0.2, 1 / 3), (0.4, 0.5, 0.6))
    found = DataSpec.from_dict(json.loads(json.dumps(spec.to_dict())))
    assert found == spec
    assert type(found.classes) is type(found.mean) is tuple
    assert spec.num_classes == 2
    assert spec.input_shape == (3, 32, 32)


GOOD = {"classes": ["a", "b"], "channels": 1, "image_size": 28, "mean": [0.1], "std": [0.3]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": None}, "no data spec"),
        ({"classes": ["a", 3]}, "3 is no name"),
        ({"classes": ["a"]}, "at least 2 classes"),
        ({"classes": ["a", "a"]}, "same name"),
        ({"classes": ["a", "unknown"]}, "named 'unknown'"),
        ({"channels": 2}, "1 or 3 channels"),
        ({"channels": "many"}, "no data spec"),
        ({"image_size": 0}, "not 1 and 0"),
        ({"image_size": 4097}, "at most 4096 pixels"),
        ({"image_size": float("inf")}, "no data spec"),
        ({"mean": 0.1}, "no data spec"),
        ({"mean": [0.1, 0.2]}, "data.mean"),
        ({"mean": [float("nan")]}, "data.mean"),
        ({"std": [0.0]}, "data.std must be above 0"),
        ({"std": [float("inf")]}, "data.std"),
    ],
)
def test_damaged_facts_are_refused(change, message):
    assert DataSpec.from_dict(GOOD).channels == 1
    with pytest.raises(UserError, match=message):
        DataSpec.from_dict(GOOD | change)


@pytest.mark.parametrize("field", GOOD)
def test_missing_facts_are_refused(field):
    with pytest.raises(UserError, match=field):
        DataSpec.from_dict({name: value for name, value in GOOD.items() if name != field})


def test_facts_in_a_line():
    assert str(SPEC) == "2 classes (cat, dog), grey 28x28"
    many = SPEC._replace(classes=tuple(f"c{i}" for i in range(13)), channels=3, image_size=32)
    names = ", ".join(f"c{i}" for i in range(11))
    assert str(many) == f"13 classes ({names}, ... c12), colour 32x32"
