"""Some classes of a set are known, the others are the unknown set; and which images a seed decides."""

import numpy as np
import pytest
import torch
from PIL import Image

from osr_lightning.data.counts import image_lines
from osr_lightning.data.datamodule import OpenSetDataModule
from osr_lightning.data.image_set import ImageSet, resolve
from osr_lightning.data.image_table import ImageTable
from osr_lightning.data.leaks import overlaps
from osr_lightning.data.sources import load_source
from osr_lightning.errors import UserError

CLASSES = ("ant", "bee", "cat", "dog")


def rows_of(images) -> list[bytes]:
    """One value per image that is equal where all pixels are."""
    return [image.tobytes() for image in images[torch.arange(len(images))].numpy()]


def labelled(count=12, classes=CLASSES, **options) -> ImageSet:
    """Image ``i`` is filled with ``i`` and is of class ``i % K``."""
    images = torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(count, 1, 4, 4).clone()
    return ImageSet(images, torch.arange(count) % len(classes), classes, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four classes of 25, 20, 15 and 10 different pictures, the class's number in the top left pixel."""
    root, rng = tmp_path_factory.mktemp("classes"), np.random.default_rng(0)
    for label, (name, count) in enumerate(zip(CLASSES, (25, 20, 15, 10), strict=True)):
        (root / name).mkdir()
        for row in range(count):
            pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            pixels[0, 0] = label
            Image.fromarray(pixels).save(root / name / f"{row}.png")
    return root


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """Five classes of 20 pictures, the class's number in the top left pixel."""
    path, rng = tmp_path_factory.mktemp("npz") / "set.npz", np.random.default_rng(1)
    images, labels = rng.integers(0, 256, (100, 8, 8), dtype=np.uint8), np.arange(100) % 5
    images[:, 0, 0] = labels
    np.savez(path, images=images, labels=labels)
    return path


@pytest.fixture(params=["mnist", "folder", "npz"])
def source(request):
    """A source, and numbers of three of its classes, which are not in order."""
    if request.param == "mnist":
        return "mnist", [7, 0, 4], request.getfixturevalue("tiny_root")
    if request.param == "folder":
        return f"folder:{request.getfixturevalue('folder')}", [3, 0, 1], "."
    return f"npz:{request.getfixturevalue('archive')}", [4, 0, 2], "."


def module(source, classes, root=".", **options) -> OpenSetDataModule:
    data = OpenSetDataModule(known=source, known_classes=classes, root=str(root), **options)
    data.setup("fit")
    data.setup("test")
    return data


# which classes are meant ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "names"),
    [
        (["cat", "ant"], ("cat", "ant")),
        ([2, 0], ("cat", "ant")),
        (["2", "0"], ("cat", "ant")),  # as a command line gives them
        (["dog", 1], ("dog", "bee")),
        ([0, 1, 2, 3], CLASSES),
    ],
)
def test_names_and_numbers_mean_classes_in_the_order_that_is_given(wanted, names):
    assert resolve(wanted, CLASSES, "a set") == names


def test_a_class_of_that_very_name_goes_before_a_number():
    assert resolve([1, "7"], ("9", "7", "1"), "a set") == ("1", "7")
    assert resolve([0, 1], ("9", "7", "1"), "a set") == ("9", "1")  # none is called 0


@pytest.mark.parametrize("one", [1, "1"])
def test_a_number_is_no_place_where_a_class_is_named_by_it_in_another_writing(one):
    names = ("001", "002", "003")
    assert resolve(["001", "002"], names, "a set") == ("001", "002")
    with pytest.raises(UserError, match=r"1 may be the class '001' of a set or the one at place 1"):
        resolve([one, "002"], names, "a set")


@pytest.mark.parametrize("given", ["[08, 1e3]", "[null, ant]", "[ant,bee"])
def test_a_list_that_could_not_be_read_is_told_of_quotes(given):
    with pytest.raises(UserError, match=r"is no list of names: put names that .* in quotes, as"):
        resolve([given], CLASSES, "a set")


def test_text_that_only_looks_like_a_number_is_no_place():
    with pytest.raises(UserError, match="has no class '01'"):
        resolve(["ant", "01"], CLASSES, "a set")


@pytest.mark.parametrize("typo", ["catt", "ct", "Cat"])
def test_a_typo_is_met_with_the_class_that_is_like_it(typo):
    with pytest.raises(UserError, match=rf"a set has no class '{typo}'; did you mean 'cat'\?.*ant, bee, cat"):
        resolve(["ant", typo], CLASSES, "a set")


@pytest.mark.parametrize("wrong", [4, -1, "zzzzz", 1.0, "", "²"])
def test_what_is_no_class_is_refused_with_those_there_are(wrong):
    with pytest.raises(UserError, match=r"has no class .*; it has ant, bee, cat, dog"):
        resolve(["ant", wrong], CLASSES, "a set")


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ([], "at least two classes"),
        (["ant"], "at least two classes"),
        (["ant", "ant"], "names 'ant' twice"),
        (["ant", 0], "names 'ant' twice"),
        (["ant", "bee", 1], "names 'bee' twice"),
    ],
)
def test_one_class_or_one_twice_is_refused(wanted, said):
    with pytest.raises(UserError, match=said):
        resolve(wanted, CLASSES, "a set")


# only these classes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [("cat", "ant"), ("dog", "bee", "ant"), CLASSES])
def test_only_keeps_every_image_of_those_classes_with_its_class(classes):
    whole = labelled(files=tuple(f"{i}.png" for i in range(12)), keys=tuple(bytes([i]) for i in range(12)))
    found = whole.only(classes)
    assert found.classes == classes
    numbers = found.images[:, 0, 0, 0].tolist()
    assert numbers == [i for i in range(12) if CLASSES[i % 4] in classes]
    for row, number in enumerate(numbers):
        assert classes[found.labels[row]] == CLASSES[number % 4]
        assert found.files[row] == f"{number}.png"
        assert found.keys[row] == bytes([number])


def test_two_selections_that_share_no_class_divide_the_images():
    whole = labelled(23)
    parts = [whole.only(("dog", "ant")), whole.only(("bee", "cat"))]
    assert sorted(row for part in parts for row in rows_of(part.images)) == sorted(rows_of(whole.images))


# known and rest ---------------------------------------------------------------------------------------


def test_known_and_rest_are_the_test_split_exactly(source):
    name, classes, root = source
    data = module(name, classes, root)
    official = load_source(
        name, "test", root=data.tables.options.root, size=data.spec.image_size, as_known=True
    )
    test = data.tables.test
    assert data.tables.source_names == (name, "rest")
    assert sorted(rows_of(test.images)) == sorted(rows_of(official.images))
    of_class = dict(zip(rows_of(official.images), official.labels.tolist(), strict=True))
    for pixels, label, owner in zip(rows_of(test.images), test.labels, test.sources, strict=True):
        number = of_class[pixels]
        # known labels are places in known_classes, as they were given; all others are K
        assert (classes.index(number) if number in classes else 3) == label
        assert owner == (number not in classes)
    assert data.spec.classes == tuple(official.classes[number] for number in classes)


def test_training_sees_the_known_classes_alone(source):
    name, classes, root = source
    data = module(name, classes, root)
    pool = load_source(name, "train", root=data.tables.options.root, size=data.spec.image_size, as_known=True)
    expected = {
        pixels: classes.index(label)
        for pixels, label in zip(rows_of(pool.images), pool.labels.tolist(), strict=True)
        if label in classes
    }
    parts = (data.tables.train, data.tables.val)
    found = [pair for part in parts for pair in zip(rows_of(part.images), part.labels.tolist(), strict=True)]
    assert len(found) == len(expected)
    assert dict(found) == expected
    assert all(set(part.labels.tolist()) == {0, 1, 2} for part in parts)
    assert not overlaps({"test": data.tables.test}, {"train": data.tables.train, "val": data.tables.val})


def test_names_choose_what_their_numbers_choose(folder):
    one, other = (module(f"folder:{folder}", c) for c in ([2, 0], ["cat", "ant"]))
    assert one.spec == other.spec
    assert one.spec.classes == ("cat", "ant")
    assert torch.equal(one.tables.test.images, other.tables.test.images)
    assert torch.equal(one.tables.test.labels, other.tables.test.labels)


def test_a_folder_with_a_test_part_of_its_own_is_divided_by_class_too(tmp_path):
    rng = np.random.default_rng(0)
    for part, count in (("train", 12), ("test", 4)):
        for name in CLASSES:
            (tmp_path / part / name).mkdir(parents=True)
            for row in range(count):
                pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / part / name / f"{row}.png")
    test = module(f"folder:{tmp_path}", ["dog", "bee"]).tables.test
    assert sorted(test.files) == sorted(f"test/{name}/{row}.png" for name in CLASSES for row in range(4))
    place = {"dog": 0, "bee": 1, "ant": 2, "cat": 2}
    assert test.labels.tolist() == [place[file.split("/")[1]] for file in test.files]


def test_a_checkpoints_order_of_classes_is_kept(folder):
    trained = module(f"folder:{folder}", ["cat", "ant", "dog"]).spec
    data = OpenSetDataModule(known=f"folder:{folder}", known_classes=["ant", "dog", "cat"])
    data.tables.expect(trained)
    data.setup("test")
    place = {name: label for label, name in enumerate(trained.classes)}
    test = data.tables.test
    assert test.labels.tolist() == [place.get(file.split("/")[0], 3) for file in test.files]


def test_rest_may_stand_beside_other_unknown_sets(folder):
    unknown = {"others": "rest", "noise": "noise:uniform"}
    data = module(f"folder:{folder}", ["ant", "bee"], unknown=unknown, unknown_fraction=0.5)
    sizes = torch.bincount(data.tables.test.sources).tolist()
    whole = module(f"folder:{folder}", ["ant", "bee"]).tables.test
    assert sizes[1] == round(0.5 * int((whole.sources == 1).sum()))
    assert sizes[2] == 1000


def test_an_unknown_set_that_is_given_takes_the_place_of_rest(folder):
    data = module(f"folder:{folder}", ["ant", "bee"], unknown={"noise": "noise:uniform"})
    assert data.tables.source_names == (f"folder:{folder}", "noise")


@pytest.mark.parametrize("unknown", [{"rest": "rest"}, {"near": {"others": "rest"}}])
def test_rest_of_no_choice_is_refused(unknown, folder):
    data = OpenSetDataModule(known=f"folder:{folder}", unknown=unknown)
    with pytest.raises(UserError, match=r"rest is what data\.known_classes leaves"):
        data.setup("test")


def test_all_classes_leave_no_rest(folder):
    data = OpenSetDataModule(known=f"folder:{folder}", known_classes=[*CLASSES])
    with pytest.raises(UserError, match=r"names all classes of folder:.*none is left as rest"):
        data.setup("test")


def test_a_typo_is_refused_before_the_training(folder):
    data = OpenSetDataModule(known=f"folder:{folder}", known_classes=["ant", "doge"])
    with pytest.raises(UserError, match="did you mean 'dog'"):
        data.setup("fit")


# which images a seed decides --------------------------------------------------------------------------


def parts(source, **options) -> dict[str, list[bytes]]:
    data = OpenSetDataModule(known=source, **options)
    data.setup("fit")
    data.setup("test")
    tables = {"train": data.tables.train, "val": data.tables.val, "test": data.tables.test}
    return {name: rows_of(table.images) for name, table in tables.items()}


@pytest.mark.parametrize("kind", ["folder", "npz"])
def test_another_seed_leaves_the_test_alone_and_another_test_seed_does_not(kind, request):
    source = f"{kind}:{request.getfixturevalue('folder' if kind == 'folder' else 'archive')}"
    first, again = parts(source), parts(source)
    assert first == again
    seeded, redrawn = parts(source, seed=1), parts(source, test_seed=1)
    assert seeded["test"] == first["test"]
    assert seeded["val"] != first["val"]
    assert sorted(seeded["val"] + seeded["train"]) == sorted(first["val"] + first["train"])
    assert redrawn["test"] != first["test"]
    for found in (first, seeded, redrawn):
        assert len(set().union(*found.values())) == sum(map(len, found.values()))  # nothing lies in two


def test_a_published_test_split_is_drawn_by_no_seed(tiny_root):
    first, other = (parts("mnist", root=str(tiny_root), test_seed=s, seed=s) for s in (0, 1))
    assert first["test"] == other["test"]
    assert first["val"] != other["val"]


def test_choosing_classes_moves_no_image_between_the_parts(folder):
    whole, some = parts(f"folder:{folder}"), parts(f"folder:{folder}", known_classes=["bee", "ant"])
    for name in ("train", "val"):
        assert set(some[name]) <= set(whole[name])
    assert sorted(some["test"]) == sorted(whole["test"])


def test_a_picture_that_is_added_moves_no_other(tmp_path):
    rng = np.random.default_rng(0)
    for name in CLASSES:
        (tmp_path / name).mkdir()
        for index in range(40):  # of fewer, all may lie on one side by chance, where one is moved by force
            image = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(image).save(tmp_path / name / f"{index}.png")
    before = parts(f"folder:{tmp_path}")
    pixels = np.random.default_rng(9).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    for name in CLASSES:
        Image.fromarray(pixels + np.uint8(len(name))).save(tmp_path / name / "00_new.png")
    after = parts(f"folder:{tmp_path}")
    assert sum(map(len, after.values())) == sum(map(len, before.values())) + 4
    for name, images in before.items():
        assert set(images) <= set(after[name])


# copies and worries -----------------------------------------------------------------------------------


def test_copies_in_a_folder_are_named_and_stay_in_one_part(folder, tmp_path):
    for number, file in enumerate(sorted(folder.glob("*/*.png"))):
        (tmp_path / file.parent.name).mkdir(exist_ok=True)
        (tmp_path / file.parent.name / file.name).write_bytes(file.read_bytes())
        if number % 2:  # half of them once more, in another format
            Image.open(file).save(tmp_path / file.parent.name / f"{file.stem}_copy.bmp")
    data = OpenSetDataModule(known=f"folder:{tmp_path}")
    data.setup("fit")
    data.setup("test")  # which the leak audit would refuse
    found = [set(rows_of(t.images)) for t in (data.tables.train, data.tables.val, data.tables.test)]
    assert sum(map(len, found)) == len(set.union(*found)) == 70
    (note,) = [line for line in image_lines(data.tables) if line.startswith("note: ")]
    assert note.startswith("note: 35 images are copies of others")
    assert "_copy.bmp" in note


def test_few_and_uneven_classes_are_pointed_out(folder, tmp_path):
    data = OpenSetDataModule(known=f"folder:{folder}")
    data.setup("fit")
    counts = torch.bincount(data.tables.train.labels).tolist()
    (few,) = [line for line in image_lines(data.tables) if line.startswith("warning")]
    named = [f"{name} {count}" for count, name in sorted(zip(counts, CLASSES, strict=True)) if count < 20]
    assert few == f"warning: {len(named)} classes have fewer than 20 training images ({', '.join(named)})"
    np.savez(
        tmp_path / "uneven.npz",
        images=np.random.default_rng(0).integers(0, 256, (330, 8, 8), dtype=np.uint8),
        labels=np.repeat([0, 1], [290, 40]),
    )
    data = OpenSetDataModule(known=f"npz:{tmp_path}/uneven.npz")
    data.setup("fit")
    many, least = torch.bincount(data.tables.train.labels).tolist()
    assert least >= 20
    assert many >= 5 * least  # or else this test would say nothing
    (uneven,) = [line for line in image_lines(data.tables) if line.startswith("warning")]
    assert f"from 1 with {least} to 0 with {many} training images" in uneven
    assert "--model.balance_classes true" in uneven


def test_many_even_classes_without_copies_are_passed_over_in_silence(tiny_root):
    data = OpenSetDataModule(root=str(tiny_root))
    data.setup("fit")
    assert not [line for line in image_lines(data.tables) if line.startswith(("warning", "note"))]


# the audit --------------------------------------------------------------------------------------------


def table(values, files=()) -> ImageTable:
    images = torch.tensor(values, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 2, 2).clone()
    return ImageTable(images, torch.zeros(len(values)), torch.zeros(len(values)), files)


def test_the_audit_names_the_files_of_both_sides():
    mine, theirs = table([1, 2, 3], ["a", "b", "c"]), table([9, 3, 1], ["x", "y", "z"])
    assert overlaps({"val": mine}, {"test": theirs}) == ["2 of val are in test (a = z, c = y)"]
    assert overlaps({"val": mine}, {"test": table([9, 8], ["x", "y"])}) == []


def test_the_audit_names_at_most_three_pairs_and_counts_them_all():
    values = [*range(7)]
    found = overlaps(
        {"val": table(values, [f"v{i}" for i in values])}, {"test": table(values, [f"t{i}" for i in values])}
    )
    assert found == ["7 of val are in test (v0 = t0, v1 = t1, v2 = t2)"]


@pytest.mark.parametrize("files", [((), ("x", "y")), (("a", "b"), ()), ((), ()), (("", ""), ("x", "y"))])
def test_the_audit_counts_images_without_files_too(files):
    found = overlaps({"val": table([1, 2], files[0])}, {"test": table([2, 1], files[1])})
    assert found == ["2 of val are in test"]


def test_a_leak_between_folders_names_both_files(folder, tmp_path):
    data = OpenSetDataModule(known=f"folder:{folder}")
    data.setup("fit")
    leaked = data.tables.val.files[0]
    (tmp_path / "copy.png").write_bytes((folder / leaked).read_bytes())
    data = OpenSetDataModule(known=f"folder:{folder}", unknown={"others": f"folder:{tmp_path}"})
    data.setup("fit")
    with pytest.raises(UserError, match=rf"1 of .* are in the test set others \({leaked} = copy\.png\)"):
        data.setup("test")
