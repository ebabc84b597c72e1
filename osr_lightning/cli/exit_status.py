"""How a command ends: its exit status, and the one sentence that says what went wrong."""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, TextIO, TypeVar

from osr_lightning.atomic_write import ELSEWHERE, as_text, cannot_write
from osr_lightning.errors import Failure, UserError, missing_module, missing_package, needs

_Stream = TypeVar("_Stream")
_MARK = "OSR_FIRST_FAILURE"  # environment variable: a file that the first process to fail makes
_PATIENCE = 3.0  # seconds that a process waits for the sentence of the one that failed before it
_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}
_OUTPUT = "the standard output"
# as torch, CUDA, the loader of libraries and the system say it
_NO_MEMORY = re.compile(r"can't allocate memory|out of memory|failed to map segment|Cannot allocate memory")
_LESS = "leave it more"  # memory; a command tells by which options it takes less
_RIGHTS = (PermissionError, NotADirectoryError, FileExistsError)


def run(command: Callable[[], int | None], *, places: Sequence[str] = (), batches: Sequence[str] = ()) -> int:
    """Run a command to its end.

    Args:
        command: what is run.
        places: its options that say where it writes, to name where it cannot.
        batches: its options that say how much memory images take.

    Returns:
        The exit status: the command's own, or 0; 1 after a `Failure` or a full disk; 2 after a user's
        mistake. SIGINT (Ctrl-C) and SIGTERM end it with 130 and 143, a reader that has gone away with 141.
        Of several processes the one that failed first prints its sentence, the others end with its status.

    Raises:
        Exception: whatever else the command raises: it is a bug or an accident and has a traceback.
    """
    if sys.stderr is None:
        _say_errors_to_nobody()
    with _signals(), _standing_in("stderr", _Errors(sys.stderr)), _mark() as mark:
        try:
            if sys.stdout is None:  # the next file that is opened would take its number, and what is printed
                raise UserError("the standard output is closed: send it somewhere, as in > /dev/null")
            with _standing_in("stdout", _Output(sys.stdout)) as output:
                try:
                    status = command() or 0
                except SystemExit:  # of a parser, which passes over what keeps its help from being written
                    output.flush()
                    raise
                output.flush()
                return status
        except KeyboardInterrupt:
            return 128 + signal.SIGINT
        except BrokenPipeError:  # `osr predict … | head`: the reader has what it wanted
            _to_nobody(sys.stdout)
            return 128 + signal.SIGPIPE
        except Exception as error:
            found = sentence(error)
            if found is None and os.environ.get("WORLD_SIZE", "") not in ("", "0", "1"):
                _wait_for(mark)  # this may follow from another's failure
            status, text = found or (1, "")
            if isinstance(error, OSError) and error.filename == _OUTPUT:
                _to_nobody(sys.stdout)
            if (first := _claim(mark, status)) is not None:
                return first
            if found is None:
                raise
            if places:
                text = text.replace(ELSEWHERE, f"{ELSEWHERE} ({', '.join(places)})")
            if batches:
                text = text.replace(_LESS, f"{_LESS} (images take less with a lower {' or '.join(batches)})")
            print(f"osr: error: {text}", file=sys.stderr)
            return status


class _StandIn:
    """A standard stream that goes about a failed write in its own way.

    Args:
        stream: the stream.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return getattr(self._stream, name)


class _Output(_StandIn):
    """The standard output, whose errors say that they are its own."""

    _error: OSError | None = None

    def write(self, text: str) -> int:
        """Write a text."""
        with self._naming():
            return self._stream.write(text)

    def flush(self) -> None:
        """Have all written that was given to `write` until now, or raise what has kept it from being so."""
        if self._error is not None:
            raise self._error
        with self._naming():
            self._stream.flush()

    @contextmanager
    def _naming(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            raise
        except OSError as error:
            error.filename = _OUTPUT
            self._error = error
            raise


@contextmanager
def _standing_in(name: str, own: _Stream) -> Iterator[_Stream]:
    """``sys.stdout`` or ``sys.stderr`` within the block."""
    before = getattr(sys, name)
    setattr(sys, name, own)
    try:
        yield own
    finally:
        if getattr(sys, name) is own:
            setattr(sys, name, before)


def _say_errors_to_nobody() -> None:
    """Open a closed standard error: what is said there is lost, as was meant, and the command goes on."""
    handle = os.open(os.devnull, os.O_WRONLY)
    if handle != 2:
        os.dup2(handle, 2)
        os.close(handle)
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115


class _Errors(_StandIn):
    """The standard error, which loses what it has no room for: the command goes on and keeps its status."""

    def write(self, text: str) -> int:
        """Write a text, or lose it."""
        with self._losing():
            return self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Have all written that there is room for."""
        with self._losing():
            self._stream.flush()

    @contextmanager
    def _losing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in _ROOM:
                raise
            _to_nobody(self._stream)


def _to_nobody(stream: TextIO) -> None:
    """Let go what a standard stream still holds, or Python complains at its end."""
    with suppress(OSError, ValueError):  # of a test's stand-in
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def sentence(error: BaseException) -> tuple[int, str] | None:
    """The exit status and what to say of an error; None for one that is no user's mistake nor a `Failure`."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, (UserError, Failure)):
            return (2 if isinstance(cause, UserError) else 1), _from_worker(str(cause))
        # by now Lightning is imported if it raised this
        if type(cause).__name__ == "MisconfigurationException":
            return 2, str(cause)
        if isinstance(cause, OSError) and (told := _of_disk(cause)) is not None:
            return told
        if isinstance(cause, MemoryError) or _NO_MEMORY.search(str(cause)):
            return 1, f"there is not enough memory for this: {_LESS}; what was written is whole"
        if (package := missing_package(cause)) is not None:
            return 2, f"{_whose(error)} {needs(package)}"
        if (module := missing_module(cause)) is not None:
            return 2, (
                f"{module} is not installed: pip install osr_lightning brings what commands and checkpoints "
                "need; without it, osr predict and serve take a graph of osr export (--ckpt_path NAME.onnx)"
            )
        cause = cause.__cause__
    return None


def _whose(error: BaseException) -> str:
    """The logger or callback that an error is about."""
    found = re.search(r"class_path '(?:\w+\.)*(\w+)'|^`(\w+)`", str(error))
    return "an option" if found is None else found[1] or found[2]


def _from_worker(message: str) -> str:
    """The sentence in the traceback that a process which reads images sends."""
    if not message.startswith("Caught "):
        return message
    # its lines are written with backslashes by now
    return message.replace("\\n", "\n").rstrip().rpartition("Error: ")[2]


def _of_disk(error: OSError) -> tuple[int, str] | None:
    # TensorBoard's names are bytes
    named = as_text(error.filename) if isinstance(error.filename, (str, bytes)) else "the run folder"
    if isinstance(error, _RIGHTS):
        return 2, f"{named}: {error.strerror}; change its rights, or {ELSEWHERE}"
    if error.filename == _OUTPUT:
        reason = error.strerror or error
        return 1, f"cannot write the standard output: {reason}; send it elsewhere; all files are whole"
    if error.errno in _ROOM:
        return 1, cannot_write(error, named)
    return None


@contextmanager
def _signals() -> Iterator[None]:
    """SIGINT and SIGTERM unwind the stack, so that what is half written is removed, and name themselves."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    def tell(args: threading.ExceptHookArgs) -> None:
        if not (isinstance(args.exc_value, OSError) and args.exc_value.errno in _ROOM):
            in_threads(args)  # a full disk is told once, by this thread

    in_threads, threading.excepthook = threading.excepthook, tell
    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        threading.excepthook = in_threads
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _mark() -> Iterator[Path]:
    """The file that tells this process and those it starts, or its siblings, that one of them failed."""
    if "TORCHELASTIC_RUN_ID" in os.environ:  # siblings of one parent
        name = f"osr-{os.getppid()}-{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}.failed"
        yield Path(tempfile.gettempdir(), name)
    elif _MARK in os.environ:
        yield Path(os.environ[_MARK])
    else:
        with tempfile.TemporaryDirectory(prefix="osr-", ignore_cleanup_errors=True) as folder:
            os.environ[_MARK] = os.path.join(folder, "failed")
            try:
                yield Path(os.environ[_MARK])
            finally:
                del os.environ[_MARK]


def _wait_for(mark: Path) -> None:
    end = time.monotonic() + _PATIENCE
    while not mark.exists() and time.monotonic() < end:
        time.sleep(0.05)


def _claim(mark: Path, status: int) -> int | None:
    """Be the first to fail; otherwise the first one's status."""
    try:
        with open(mark, "x", encoding="utf-8") as file:
            file.write(str(status))
    except FileExistsError:
        with suppress(OSError, ValueError):
            return int(mark.read_text(encoding="utf-8"))
        return status
    except OSError:  # no room even for that: speak
        return None
    return None
