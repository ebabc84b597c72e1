"""A file is written whole or not at all."""

import errno
import io
import os
import stat
import threading
from pathlib import Path

import pytest

from osr_lightning.atomic_write import refuse_folder, refuse_outside, replacing, write_bytes, write_text
from osr_lightning.errors import Failure, UserError


class Accident(Exception):
    pass


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# whole or not at all ----------------------------------------------------------------------------------


def test_texts_and_bytes_are_written_as_they_are(tmp_path):
    write_text(tmp_path / "a.txt", "grün\r\nx\n")
    write_bytes(tmp_path / "b", b"\0\xff")
    write_bytes(tmp_path / "c", io.BytesIO(b"abc"))
    write_text(tmp_path / "d", "\udcff", errors="surrogateescape")
    found = [(tmp_path / name).read_bytes() for name in ("a.txt", "b", "c", "d")]
    assert found == ["grün\r\nx\n".encode(), b"\0\xff", b"abc", b"\xff"]
    assert names(tmp_path) == ["a.txt", "b", "c", "d"]


def test_folders_are_made(tmp_path):
    write_text(tmp_path / "x" / "y" / "a.txt", "a")
    assert (tmp_path / "x" / "y" / "a.txt").read_text() == "a"


@pytest.mark.parametrize("accident", [Accident, KeyboardInterrupt, SystemExit, MemoryError])
def test_whatever_happens_the_file_before_stays_whole(accident, tmp_path):
    path = tmp_path / "a.csv"
    write_text(path, "before")
    with pytest.raises(accident), replacing(path) as partial:  # noqa: PT012 - both are under test
        partial.write_text("hal")
        assert path.read_text() == "before"
        raise accident
    assert names(tmp_path) == ["a.csv"]
    assert path.read_text() == "before"


def test_a_text_that_cannot_be_encoded_leaves_the_file_before(tmp_path):
    write_text(tmp_path / "a", "before")
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "a", "\udcff")
    assert (tmp_path / "a").read_text() == "before"


def test_the_name_to_write_to_is_hidden_beside_the_file_and_ends_alike(tmp_path):
    with replacing(tmp_path / "best.ckpt") as partial:
        assert partial.parent == tmp_path
        assert partial.name.startswith(".best.")
        assert partial.suffix == ".ckpt"
        partial.touch()
    assert names(tmp_path) == ["best.ckpt"]


def test_the_file_then_its_folder_are_synced(monkeypatch, tmp_path):
    order = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(
        os, "fsync", lambda file: order.append(stat.S_ISDIR(os.fstat(file).st_mode)) or fsync(file)
    )
    monkeypatch.setattr(Path, "replace", lambda path, to: order.append("renamed") or replace(path, to))
    write_text(tmp_path / "a", "a")
    assert order == [False, "renamed", True]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_file_systems_that_cannot_sync_are_written_to(number, monkeypatch, tmp_path):
    def refuse(file):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    write_text(tmp_path / "a", "a")
    assert (tmp_path / "a").read_text() == "a"


# what is no plain file --------------------------------------------------------------------------------


def test_links_that_the_user_named_stay_links(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "real").write_text("before")
    (tmp_path / "one").symlink_to(tmp_path / "far" / "real")
    (tmp_path / "two").symlink_to("one")
    (tmp_path / "new").symlink_to(tmp_path / "far" / "made")  # leads to no file yet
    write_bytes(tmp_path / "two", b"after", follow=True)
    write_bytes(tmp_path / "new", b"made", follow=True)
    assert all((tmp_path / name).is_symlink() for name in ("one", "two", "new"))
    assert (tmp_path / "far" / "real").read_text() == "after"
    assert names(tmp_path / "far") == ["made", "real"]


def test_a_folder_is_no_file(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(Failure, match="cannot write"):
        write_text(tmp_path / "folder", "x")
    assert names(tmp_path) == ["folder"]


def test_devices_and_pipes_are_written_to_and_stay(tmp_path):
    write_text(os.devnull, "gone")
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)
    os.mkfifo(tmp_path / "pipe")
    read = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_text()))
    reader.start()
    write_text(tmp_path / "pipe", "through")
    reader.join(10)
    assert read == ["through"]
    assert names(tmp_path) == ["pipe"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_device_without_room_is_told():
    with pytest.raises(Failure, match=r"cannot write /dev/full: No space left .* make room there"):
        write_text("/dev/full", "x")


def test_a_file_that_is_read_only_is_replaced_and_a_folder_that_is_is_told(tmp_path):
    path = tmp_path / "locked" / "a"
    write_text(path, "before")
    path.chmod(0o400)
    write_text(path, "after")
    assert path.read_text() == "after"
    if os.geteuid() == 0:
        pytest.skip("root may write to any folder")
    path.parent.chmod(0o500)
    try:
        with pytest.raises(Failure, match="make it writable"):
            write_text(path, "x")
    finally:
        path.parent.chmod(0o700)
    assert path.read_text() == "after"


def test_a_file_in_place_of_a_folder_is_told(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(Failure, match="cannot write"):
        write_text(tmp_path / "file" / "a", "x")
    assert (tmp_path / "file").read_text() == "x"


# links that the program did not expect ----------------------------------------------------------------


def test_a_link_in_place_of_a_file_of_the_programs_own_is_replaced_and_nothing_written_through_it(tmp_path):
    (tmp_path / "key").write_text("secret")
    (tmp_path / "run").mkdir()
    for name, target in {"report.html": "key", "made": "new"}.items():
        (tmp_path / "run" / name).symlink_to(tmp_path / target)
        write_text(tmp_path / "run" / name, "page")
        assert not (tmp_path / "run" / name).is_symlink()
        assert (tmp_path / "run" / name).read_text() == "page"
    assert (tmp_path / "key").read_text() == "secret"
    assert names(tmp_path) == ["key", "run"]


def test_a_run_folder_has_no_link_out_of_it_no_pipe_and_no_loop(tmp_path):
    run = tmp_path / "run"
    (run / "figures").mkdir(parents=True)
    (run / "figures" / "a.png").write_text("a")
    (run / "inside").symlink_to(run / "figures" / "a.png")
    (run / "up").symlink_to("figures")
    (run / "loop").symlink_to("loop")
    (tmp_path / "link").symlink_to(run)
    refuse_outside(run)
    refuse_outside(tmp_path / "link")  # which the user named
    refuse_outside(tmp_path / "none")
    odd = run / "figures" / "b.png"
    for make in (
        lambda: odd.symlink_to("/etc/passwd"),
        lambda: odd.symlink_to("../../run2/none"),
        lambda: odd.symlink_to(tmp_path, target_is_directory=True),
        lambda: os.mkfifo(odd),
    ):
        make()
        with pytest.raises(UserError, match=r"figures/b\.png is a (link that leads out|pipe or a device)"):
            refuse_outside(tmp_path / "link")
        odd.unlink()


def test_a_new_file_in_a_folder_that_takes_none_is_refused_before_the_work(tmp_path, monkeypatch):
    old = tmp_path / "old.csv"
    old.touch()
    monkeypatch.setattr(
        os, "access", lambda path, mode: str(path) != str(tmp_path)
    )  # root may write anywhere
    with pytest.raises(UserError, match=rf"new\.csv: the folder {tmp_path} cannot be written to; make it"):
        refuse_folder(tmp_path / "new.csv")
    refuse_folder(old)  # which may be a device, or a link to where there is room
    refuse_folder(tmp_path / "no" / "folder.csv")  # of which is told elsewhere
