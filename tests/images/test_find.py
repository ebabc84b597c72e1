"""Finding image files: what a path, a folder and a glob stand for, and in which order."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from osr_lightning.data.sources import load_source
from osr_lightning.errors import UserError
from osr_lightning.images.decode import read_image
from osr_lightning.images.find import expand, find
from osr_lightning.images.pixels import to_pixels

needs_fifo = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")


def lay(root: Path, *names: str) -> Path:
    """Empty files of these names below ``root``; finding does not open them."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def names(named, root, **options) -> list[str]:
    """What is found, relative to ``root``; a ``-`` before what is no image."""
    found = find(named, **options)
    return [f"{'' if file.image else '-'}{file.path.relative_to(root)}" for file in found]


# folders ----------------------------------------------------------------------------------------------


def test_a_folders_files_come_sorted_and_before_those_of_its_folders(tmp_path):
    lay(tmp_path, "z.png", "B.png", "a.png", "b/2.png", "b/10.png", "b/c/x.png", "a/1.png", "é.png")
    # by code point: no locale decides
    expected = ["B.png", "a.png", "z.png", "é.png", "a/1.png", "b/10.png", "b/2.png", "b/c/x.png"]
    assert names(tmp_path, tmp_path) == expected
    assert names(str(tmp_path), tmp_path) == expected
    assert names(tmp_path, tmp_path, recursive=False) == expected[:4]


def test_the_order_does_not_depend_on_the_order_of_creation(tmp_path):
    files = [f"{folder}/{index}.png" for folder in "ab" for index in range(5)]
    lay(tmp_path / "one", *files)
    lay(tmp_path / "two", *reversed(files))
    assert names(tmp_path / "one", tmp_path / "one") == names(tmp_path / "two", tmp_path / "two") == files


def test_other_files_in_a_folder_are_told_apart_from_images(tmp_path):
    lay(tmp_path, "a.PNG", "b.JpEg", "c.txt", "d", "e.png.bak", "f.heic", "png", "g.csv")
    expected = ["a.PNG", "b.JpEg", "-c.txt", "-d", "-e.png.bak", "f.heic", "-g.csv", "-png"]
    assert names(tmp_path, tmp_path) == expected


def test_hidden_files_and_folders_are_passed_over(tmp_path):
    lay(tmp_path, ".DS_Store", ".hidden.png", "._a.png", "a.png", ".cache/b.png", "sub/.c.png", "sub/d.png")
    assert names(tmp_path, tmp_path) == ["a.png", "sub/d.png"]


def test_a_hidden_file_or_folder_that_was_named_is_found(tmp_path):
    lay(tmp_path, ".cache/b.png", ".a.png")
    assert names(tmp_path / ".cache", tmp_path) == [".cache/b.png"]
    assert names(tmp_path / ".a.png", tmp_path) == [".a.png"]


def test_an_empty_folder_has_no_files(tmp_path):
    assert names(tmp_path, tmp_path) == []


# links, pipes and what is missing ---------------------------------------------------------------------


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_a_loop_of_links_ends(tmp_path):
    lay(tmp_path, "a.png", "sub/b.png")
    (tmp_path / "sub" / "up").symlink_to(tmp_path)
    (tmp_path / "sub" / "self").symlink_to(tmp_path / "sub")
    assert names(tmp_path, tmp_path) == ["a.png", "sub/b.png"]


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_a_linked_folder_is_followed_once(tmp_path):
    lay(tmp_path, "here/a.png", "there/b.png")
    for link in ("x", "y"):
        (tmp_path / "here" / link).symlink_to(tmp_path / "there")
    assert names(tmp_path / "here", tmp_path / "here") == ["a.png", "x/b.png"]


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_a_linked_file_is_a_file_and_a_dead_link_is_read_for_its_error(tmp_path):
    lay(tmp_path, "a.png")
    (tmp_path / "b.png").symlink_to(tmp_path / "a.png")
    (tmp_path / "c.png").symlink_to(tmp_path / "nowhere.png")
    assert names(tmp_path, tmp_path) == ["a.png", "b.png", "c.png"]
    # named, it is yielded: reading it will say what is wrong
    assert names(tmp_path / "c.png", tmp_path) == ["c.png"]


@needs_fifo
def test_a_pipe_in_a_folder_is_no_image(tmp_path):
    lay(tmp_path, "a.png")
    os.mkfifo(tmp_path / "b.png")  # whoever opens it waits for a writer
    assert names(tmp_path, tmp_path) == ["a.png", "-b.png"]
    assert list(expand(tmp_path)) == [tmp_path / "a.png"]


@needs_fifo
def test_a_pipe_that_a_glob_matches_is_no_image(tmp_path):
    lay(tmp_path, "a.png")
    os.mkfifo(tmp_path / "b.png")
    assert names(f"{tmp_path}/*.png", tmp_path) == ["a.png", "-b.png"]


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_a_link_to_itself_is_read_for_its_error(tmp_path):
    lay(tmp_path, "a.png")
    (tmp_path / "b.png").symlink_to(tmp_path / "b.png")
    assert names(tmp_path, tmp_path) == ["a.png", "b.png"]


def test_a_missing_file_is_yielded_for_reading_to_complain(tmp_path):
    assert names(tmp_path / "no.png", tmp_path) == ["no.png"]
    assert list(expand(str(tmp_path / "no.png"))) == [tmp_path / "no.png"]


@pytest.mark.parametrize("name", ["a.png", "notes.txt", "no_ending"])
def test_a_file_that_was_named_is_read_whatever_its_ending(tmp_path, name):
    lay(tmp_path, name)
    assert names(tmp_path / name, tmp_path) == [name]


def test_the_home_directory_is_understood(tmp_path, monkeypatch):
    lay(tmp_path, "a.png", "sub/b.png")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert names("~", tmp_path) == ["a.png", "sub/b.png"]
    assert names("~/a.png", tmp_path) == ["a.png"]
    assert names("~/*/*.png", tmp_path) == ["sub/b.png"]


def test_a_relative_path_stays_relative(tmp_path, monkeypatch):
    lay(tmp_path, "sub/b.png")
    monkeypatch.chdir(tmp_path)
    assert [file.path for file in find("sub")] == [Path("sub/b.png")]
    assert [file.path for file in find("s*/*.png")] == [Path("sub/b.png")]
    assert [file.path for file in find(".")] == [Path("sub/b.png")]


# globs ------------------------------------------------------------------------------------------------


def test_a_glob_gives_its_files_sorted(tmp_path):
    lay(tmp_path, "b.png", "a.png", "a.jpg", "c.txt", "sub/d.png")
    assert names(f"{tmp_path}/*.png", tmp_path) == ["a.png", "b.png"]
    assert names(f"{tmp_path}/?.[jp]*g", tmp_path) == ["a.jpg", "a.png", "b.png"]


def test_a_recursive_glob_gives_every_file_once(tmp_path):
    lay(tmp_path, "a.png", "b/c.png", "b/d/e.png", "b/d/f.txt", ".hidden/g.png")
    assert names(f"{tmp_path}/**/*.png", tmp_path) == ["a.png", "b/c.png", "b/d/e.png"]
    everything = names(f"{tmp_path}/**", tmp_path)
    assert [name.lstrip("-") for name in everything] == ["a.png", "b/c.png", "b/d/e.png", "b/d/f.txt"]


def test_a_folder_that_a_glob_matches_is_opened(tmp_path):
    lay(tmp_path, "x1/b.png", "x1/c/d.png", "x2/a.png", "x2/n.txt", "x3.png", "y/e.png")
    expected = ["x1/b.png", "x1/c/d.png", "x2/a.png", "-x2/n.txt", "x3.png"]
    assert names(f"{tmp_path}/x*", tmp_path) == expected
    assert names(f"{tmp_path}/x*", tmp_path, recursive=False) == [n for n in expected if n != "x1/c/d.png"]


def test_a_file_whose_name_looks_like_a_glob_is_that_file(tmp_path):
    lay(tmp_path, "scan[1].png", "scan1.png", "all*.png", "all2.png", "what?.png", "whats.png")
    for name in ("scan[1].png", "all*.png", "what?.png"):
        assert names(tmp_path / name, tmp_path) == [name]
    (tmp_path / "scan[1].png").unlink()  # now it is a pattern
    assert names(tmp_path / "scan[1].png", tmp_path) == ["scan1.png"]


def test_a_folder_whose_name_looks_like_a_glob_is_that_folder(tmp_path):
    lay(tmp_path, "run[1]/a.png", "run1/b.png")
    assert names(tmp_path / "run[1]", tmp_path) == ["run[1]/a.png"]


def test_a_glob_that_matches_nothing_is_a_users_mistake(tmp_path):
    with pytest.raises(UserError, match=r"no file matches .*\*\.png"):
        list(find(f"{tmp_path}/*.png"))


# expand -----------------------------------------------------------------------------------------------


def test_expand_gives_images_alone_and_in_order(tmp_path):
    lay(tmp_path, "b.png", "a.txt", "c/d.jpg", "c/.e.png")
    expected = [tmp_path / "b.png", tmp_path / "c/d.jpg"]
    assert list(expand(tmp_path)) == expected
    assert list(expand(tmp_path, recursive=False)) == expected[:1]
    assert list(expand([f"{tmp_path}/c/*", [tmp_path / "b.png", tmp_path]])) == [
        expected[1],
        expected[0],
        *expected,
    ]


@pytest.mark.parametrize("empty", ["", "sub"])
def test_a_folder_without_images_is_a_users_mistake(tmp_path, empty):
    lay(tmp_path, "a.txt", "sub/.b.png")
    with pytest.raises(UserError, match="there are no images in"):
        list(expand(tmp_path / empty))


def test_expand_leaves_one_image_whole_and_opens_what_holds_several():
    array, tensor, picture = np.zeros((4, 5, 3)), torch.zeros(3, 4, 5), Image.new("L", (5, 4))
    for image in (array, tensor, picture, array[..., 0]):
        (only,) = expand(image)
        assert only is image
    batch, stack = torch.arange(24).view(2, 3, 2, 2), np.arange(24).reshape(2, 2, 2, 3)
    found = list(expand([array, (stack, [tensor, batch]), picture]))
    assert len(found) == 7
    assert (found[0] is array, found[3] is tensor, found[6] is picture) == (True,) * 3
    for one, expected in zip([*found[1:3], *found[4:6]], [*stack, *batch], strict=True):
        assert np.array_equal(one, expected)


@pytest.mark.parametrize(
    ("array", "count"),
    [
        # an array's channels are last: what is not one to four of them is an image's width
        (np.zeros((5, 28, 28)), 5),
        (np.zeros((3, 28, 28)), 3),
        (np.zeros((1, 28, 28)), 1),
        (np.zeros((28, 28, 3)), 1),
        (np.zeros((28, 28, 1)), 1),
        (np.zeros((5, 28, 28, 3)), 5),
        (np.zeros((5, 3, 28, 28)), 5),
        (np.zeros((28, 28)), 1),
        # a tensor's are first
        (torch.zeros(3, 28, 28), 1),
        (torch.zeros(5, 1, 28, 28), 5),
    ],
)
def test_how_many_images_an_array_holds_is_told_by_its_shape(array, count):
    found = list(expand(array))
    assert len(found) == count
    for image in found:
        assert to_pixels(image).shape[1:] == (28, 28)


def test_a_tensor_of_several_grey_images_needs_the_axis_of_the_channels():
    (found,) = expand(torch.zeros(5, 28, 28))
    with pytest.raises(UserError, match=r"not \(5, 28, 28\); several grey tensors are \(N, 1, H, W\)"):
        to_pixels(found)


def test_an_array_of_paths_is_a_list_of_paths(tmp_path):
    lay(tmp_path, "a.png", "b/c.png")
    paths = [str(tmp_path / "a.png"), str(tmp_path / "b")]
    expected = [tmp_path / "a.png", tmp_path / "b/c.png"]
    for array in (np.array(paths), np.array(paths, dtype=object), np.array([Path(path) for path in paths])):
        assert list(expand(array)) == expected
    assert list(expand(np.array(paths)[1])) == list(expand(np.array(paths[1]))) == expected[1:]


@pytest.mark.parametrize("named", ["", [""], ["d.png", ""], np.array([""])])
def test_an_empty_path_is_no_folder(named, tmp_path, monkeypatch):
    lay(tmp_path, "a.png", "d.png")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"an empty path names no image; name .*\(\. is this one\)"):
        list(expand(named))
    assert list(expand(".")) == [Path("a.png"), Path("d.png")]


def test_links_that_are_not_followed_are_told(tmp_path):
    lay(tmp_path, "here/a.png", "there/b.png")
    for link, target in (("x", "there"), ("y", "there"), ("z", "here")):
        (tmp_path / "here" / link).symlink_to(tmp_path / target)
    again = []
    here = tmp_path / "here"
    assert len(list(find(here, again=again))) == 2
    assert again == [(here / "y", here / "x"), (here / "z", here)]


def test_nothing_expands_to_nothing():
    assert list(expand([])) == list(expand([[], ()])) == list(expand(np.zeros((0, 3, 4, 4)))) == []


def test_a_folder_that_may_not_be_read_is_not_passed_over_in_silence(tmp_path, monkeypatch):
    lay(tmp_path, "a.png", "sealed/b.png", "z/c.png")
    scandir = os.scandir

    def guarded(folder):
        if Path(folder).name == "sealed":  # whoever runs the tests may be allowed to read everything
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", guarded)
    assert names(tmp_path, tmp_path) == ["a.png", "sealed", "z/c.png"]


def test_folders_too_deep_are_a_users_mistake(tmp_path):
    deep = tmp_path.joinpath(*"d" * 64)
    deep.mkdir(parents=True)
    (deep / "a.png").touch()
    assert len(list(find(tmp_path))) == 1
    (deep / "d").mkdir()
    with pytest.raises(UserError, match="more than 64 folders down: name a folder nearer"):
        list(find(tmp_path))
    assert len(list(find(deep.parent))) == 1  # counted from the folder that was named


def test_a_path_longer_than_the_system_allows_has_an_answer_coming(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name, parts = "n" * 250, []
    while len(str(tmp_path)) + 251 * len(parts) <= 4096:
        os.mkdir(name)
        os.chdir(name)
        parts.append(name)
    monkeypatch.chdir(tmp_path)
    (found,) = find(tmp_path)
    assert found.image
    with pytest.raises(UserError, match="File name too long"):
        read_image(found.path)
    with pytest.raises(UserError, match="Cannot read the folder"):
        load_source(f"folder:{tmp_path}", "train", root=tmp_path)
    for depth in range(len(parts), 0, -1):  # pytest's own removal may not reach so far
        os.chdir(tmp_path)
        for part in parts[: depth - 1]:
            os.chdir(part)
        os.rmdir(name)
    monkeypatch.chdir(tmp_path)


def test_control_characters_in_a_message_are_written_with_backslashes(tmp_path):
    with pytest.raises(UserError) as caught:
        read_image(tmp_path / "a\nb\t\x1b[31m\udcff ü.png")
    assert r"a\nb\t\x1b[31m\udcff ü.png" in str(caught.value)


def test_the_home_of_nobody_is_a_name_like_any_other():
    (found,) = find("~no-such-user/a.png")
    assert found.path == Path("~no-such-user/a.png")
    with pytest.raises(UserError, match=r"There is no folder .*~no-such-user"):
        load_source("folder:~no-such-user", "train", root=Path("."))


def test_a_list_that_contains_itself_is_no_list_of_images(tmp_path):
    Image.new("L", (2, 2)).save(tmp_path / "a.png")
    images: list[object] = [tmp_path / "a.png"]
    assert list(expand([[[images]]])) == [tmp_path / "a.png"]
    images.append(images)
    with pytest.raises(UserError, match="does one contain itself"):
        list(expand(images))


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ("scans/*.png", "no file matches scans/*.png: there is no folder scans in {here}"),
        ("a/b/**/*.png", "no file matches a/b/**/*.png: there is no folder b in {here}/a"),
        ("a/*/x.png", "no file matches a/*/x.png: the folder {here}/a has none"),
        ("*.png", "no file matches *.png: the folder {here} has none"),
    ],
)
def test_a_glob_without_files_says_where_it_looked(named, said, tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        list(find(named))
    assert str(caught.value) == said.format(here=tmp_path)
