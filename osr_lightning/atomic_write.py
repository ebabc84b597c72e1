"""Writing files so that nothing is lost: to another name in the same folder, synced, then renamed.

And what a file or a folder may be called, what may lie in a run folder, and that one process writes there.
"""

from __future__ import annotations

import errno
import io
import itertools
import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from osr_lightning.errors import Failure, UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

ENDING = ".partial"
_DAY = 86_400.0  # seconds after which another machine's leftovers are of no run any more
_underway: set[str] = set()  # of this process
_held: set[str] = set()  # folders that this process writes alone
_numbers = itertools.count()
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def replacing(path: str | os.PathLike[str], *, follow: bool = False) -> Iterator[Path]:
    """Write a file under another name; once the block is done it takes its place, at once or not at all.

    What was there before stays whole until then, whatever happens. A pipe or a device is written to.

    Args:
        path: of the file; its folder is made where there is none.
        follow: whether a link stays one, and what it leads to is replaced, as for a file that the user
            named. A link in place of a file that the program named may be a stranger's: the file takes its
            place, and what it led to stays as it was.

    Yields:
        The name to write to, of the same ending, in the same folder.

    Raises:
        Failure: if the disk is full or cannot be written.
    """
    linked = os.path.islink(path)
    target = Path(os.path.realpath(path)) if linked and follow else Path(path)
    with report_write_errors(path):
        if (follow or not linked) and target.exists() and not target.is_file():
            yield target
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        _sweep(target.parent)
        own = f"{os.getpid()}-{next(_numbers)}"  # threads may write the same file
        partial = target.with_name(f".{target.stem}.{_host()}.{own}{ENDING}{target.suffix}")
        _underway.add(os.path.realpath(partial))
        try:
            yield partial
            _sync(partial)
            partial.replace(target)
            _sync(target.parent)
        finally:
            with suppress(OSError):
                partial.unlink()
            _underway.discard(os.path.realpath(partial))


@contextmanager
def replacing_rows(path: str | os.PathLike[str]) -> Iterator[TextIO]:
    """The UTF-8 text file to write a table's rows to, whose line ends stay as they are; see `replacing`."""
    with replacing(path) as partial, open(partial, "w", newline="", encoding="utf-8") as file:
        yield file


def write_text(path: str | os.PathLike[str], text: str, errors: str = "strict") -> None:
    """Write a text file in UTF-8; see `replacing`."""
    write_bytes(path, text.encode("utf-8", errors))


def write_bytes(path: str | os.PathLike[str], content: bytes | io.BytesIO, *, follow: bool = False) -> None:
    """Write a file; see `replacing`."""
    with replacing(path, follow=follow) as partial, open(partial, "wb") as file:
        file.write(content.getbuffer() if isinstance(content, io.BytesIO) else content)


ELSEWHERE = "write elsewhere"  # a command tells by which options


@contextmanager
def report_write_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Say in one sentence what keeps ``path`` from being written.

    Raises:
        Failure: in place of an `OSError`.
    """
    try:
        yield
    except OSError as error:
        named = error.filename
        if isinstance(named, str) and Path(named).absolute().parent not in Path(path).absolute().parents:
            raise  # of another file
        raise Failure(cannot_write(error, path)) from error


def cannot_write(error: OSError, path: str | os.PathLike[str]) -> str:
    """The sentence of `report_write_errors`."""
    if error.errno == errno.EISDIR:
        return f"cannot write {os.fspath(path)}: it is a folder; name a file"
    way_out = "make room there" if error.errno in _NO_ROOM else "make it writable"
    return (
        f"cannot write {os.fspath(path)}: {error.strerror or error}; {way_out}, or {ELSEWHERE}; what was "
        "written before is whole"
    )


def refuse_folder(output: str | os.PathLike[str]) -> None:
    """Stop where the file that is to be written is a folder, or a new one in a folder that takes none.

    Raises:
        UserError: naming it.
    """
    if os.path.isdir(output):
        raise UserError(f"output {os.fspath(output)} is a folder: name a file in it")
    folder = os.path.dirname(os.path.abspath(output))
    if os.path.isdir(folder) and not os.path.lexists(output) and not os.access(folder, os.W_OK):
        raise UserError(
            f"output {as_text(output)}: the folder {as_text(folder)} cannot be written to; make it "
            "writable, or name another"
        )


def check_place(option: str, output: str | os.PathLike[str], endings: Sequence[str]) -> Path:
    """The path of a file that a command is to write, if it can, before any work is done.

    Args:
        option: its name, for the message.
        output: the file, as a user names it.
        endings: which its name may have.

    Raises:
        UserError: for another ending, a folder, or one in a folder that is not there.
    """
    path = Path(output).expanduser()
    refuse_folder(path)
    check_ending(option, path, endings)
    if not path.absolute().parent.is_dir():
        raise UserError(f"{option} {as_text(output)}: there is no folder {as_text(path.absolute().parent)}")
    return path


def check_ending(option: str, path: str | os.PathLike[str], endings: Sequence[str]) -> None:
    """Refuse a name that ends otherwise, in capitals or not.

    Raises:
        UserError: with the endings that there are.
    """
    if Path(path).suffix.lower() not in endings:
        raise UserError(f"{option} {as_text(path)}: its name must end in {' or '.join(endings)}")


def as_text(path: str | bytes | os.PathLike[str]) -> str:
    """A path or name as text that any file can hold, what is no UTF-8 written with backslashes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def folder_name(option: str, name: str) -> str:
    """The name, if a folder can have it.

    Args:
        option: whose value it is.
        name: given for a folder that the command makes.

    Raises:
        UserError: for a path of several parts, or none.
    """
    if Path(name).name != name or name in ("", ".", ".."):
        raise UserError(f"{option} must be the name of a folder, not {name!r}")
    return name


@contextmanager
def only_one(folder: Path, *, wait: bool) -> Iterator[bool]:
    """Within the block no other process is in such a block for that folder; a process that dies leaves it.

    Args:
        folder: there must be one. Where its file system or the system knows no locks, there are none.
        wait: until the other is done.

    Yields:
        Whether this is the one; always so after waiting.
    """
    place = os.path.realpath(folder)
    if fcntl is None or place in _held:
        yield True
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        except OSError:  # as some network file systems for a folder
            pass
        _held.add(place)
        yield True
    finally:
        _held.discard(place)
        os.close(handle)


def refuse_outside(run_dir: Path) -> None:
    """Stop where a run folder, which may be a stranger's, holds a link out of it, a pipe or a device.

    What such a link leads to would be shown in the run's pages, or overwritten.

    Args:
        run_dir: a link itself, or below one, it may be: the user named it. It need not exist.

    Raises:
        UserError: naming the first.
    """
    whole = Path(os.path.realpath(run_dir))
    for folder, folders, files in os.walk(whole):
        for path in (Path(folder, name) for name in sorted((*folders, *files))):
            named = as_text(Path(run_dir, path.relative_to(whole)))
            if path.is_symlink():
                if not Path(os.path.realpath(path)).is_relative_to(whole):
                    raise UserError(
                        f"{named} is a link that leads out of its run folder, to what is no file of this "
                        "run: put a copy of the file in its place, or remove it"
                    )
            elif not path.is_file() and not path.is_dir():
                raise UserError(f"{named} is a pipe or a device, which no run leaves behind: remove it")


def _sweep(folder: Path) -> None:
    """Remove what processes that were killed left behind."""
    with suppress(OSError):
        for path in folder.glob(f".*{ENDING}*"):
            if _left_behind(path):
                with suppress(OSError):
                    path.unlink()


def _left_behind(path: Path) -> bool:
    *_, host, process = path.name.partition(ENDING)[0].split(".")
    if os.path.realpath(path) in _underway:
        return False
    process = process.partition("-")[0]
    if host != _host() or not process.isdigit():
        return time.time() - path.stat().st_mtime > _DAY
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except OSError:  # it runs, for another user
        return False
    return int(process) == os.getpid()  # in a container every run may have the same number


def _host() -> str:
    return socket.gethostname().partition(".")[0] or "host"


def _sync(path: Path) -> None:
    """Have the disk keep a file, or the names in a folder, before more is done."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except PermissionError:  # a folder may be written without being read
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # not all file systems can
            raise
    finally:
        os.close(handle)
