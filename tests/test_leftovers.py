"""Nothing of a killed process stays, and writers at once leave one whole file."""

import multiprocessing
import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from osr_lightning import atomic_write
from osr_lightning.atomic_write import ENDING, replacing, write_text

DAY = 86_400


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def leftover(folder: Path, host: str, process: int | str, age: float = 0) -> Path:
    path = folder / f".best.{host}.{process}{ENDING}.ckpt"
    path.write_bytes(b"half")
    os.utime(path, (time.time() - age,) * 2)
    return path


@pytest.fixture(scope="module")
def dead() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


# leftovers --------------------------------------------------------------------------------------------


def test_leftovers_of_the_dead_go_and_those_of_the_living_stay(dead, tmp_path):
    here = atomic_write._host()
    gone = [leftover(tmp_path, here, dead), leftover(tmp_path, here, os.getpid())]
    gone += [leftover(tmp_path, "elsewhere", 1, age=DAY + 60), leftover(tmp_path, here, "x", age=2 * DAY)]
    kept = [leftover(tmp_path, here, os.getppid(), age=2 * DAY), leftover(tmp_path, "elsewhere", dead)]
    kept += [tmp_path / name for name in ("a.partial", ".hidden", "my.partial.csv")]
    for path in kept[2:]:
        path.write_text("the user's own")
    write_text(tmp_path / "a", "x")
    assert not any(path.exists() for path in gone)
    assert all(path.exists() for path in kept)


def test_a_file_that_is_being_written_is_no_leftover(tmp_path):
    with replacing(tmp_path / "a") as partial:
        partial.write_text("a")
        write_text(tmp_path / "b", "b")
        assert partial.exists()
    assert names(tmp_path) == ["a", "b"]


def test_a_process_of_another_user_is_alive(monkeypatch, tmp_path):
    def kill(process, number):
        raise PermissionError

    monkeypatch.setattr(os, "kill", kill)
    path = leftover(tmp_path, atomic_write._host(), 1)
    write_text(tmp_path / "a", "x")
    assert path.exists()


@pytest.mark.parametrize("name", ["", "a.b.c", "localhost"])
def test_machines_of_any_name(name, monkeypatch, dead, tmp_path):
    monkeypatch.setattr(socket, "gethostname", lambda: name)
    path = leftover(tmp_path, name.partition(".")[0] or "host", dead)
    write_text(tmp_path / "a", "x")
    assert not path.exists()


# several at once --------------------------------------------------------------------------------------


def write_often(path, letter):
    for _ in range(20):
        write_text(path, letter * 50_000)


def is_whole(text: str) -> bool:
    return len(text) == 50_000 and len(set(text)) == 1


def test_processes_that_write_at_once_leave_one_whole_file(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "z" * 50_000)
    start = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn").Process
    writers = [start(target=write_often, args=(path, letter)) for letter in "abc"]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert is_whole(path.read_text())
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    assert names(tmp_path) == ["a.txt"]


def test_threads_that_write_other_files_leave_all_whole(tmp_path):
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda letter: write_often(tmp_path / letter, letter), "abcd"))
    assert names(tmp_path) == [*"abcd"]
    assert all(is_whole((tmp_path / letter).read_text()) for letter in "abcd")


def test_two_writers_of_one_file_in_a_process_leave_one_whole_file(tmp_path):
    with replacing(tmp_path / "a") as partial:
        partial.write_text("outer")
        write_text(tmp_path / "a", "inner")
        assert partial.exists()
    assert (tmp_path / "a").read_text() == "outer"


def test_a_file_that_is_being_written_is_no_leftover_however_it_is_spelled(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with replacing("a") as partial:
        partial.write_text("a")
        write_text(tmp_path / "b", "b")
        assert partial.exists()
