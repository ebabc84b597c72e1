"""How commands end: statuses, one sentence, signals, and the first of several processes to fail."""

import argparse
import contextlib
import errno
import importlib
import os
import signal
import subprocess
import sys
import threading

import pytest
from torch._utils import ExceptionWrapper

from osr_lightning.__main__ import main
from osr_lightning.cli import exit_status
from osr_lightning.cli.main import BATCHES, PLACES
from osr_lightning.errors import Failure, UserError


def failing(error):
    def command():
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (UserError("no such thing: name another"), 2, "no such thing: name another"),
        (Failure("the loss is NaN"), 1, "the loss is NaN"),
        (OSError(errno.ENOSPC, "No space left on device", "/x/y"), 1, "cannot write /x/y: No space left"),
        (MemoryError(), 1, "there is not enough memory for this: leave it more; what was written is whole"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), 1, "there is not enough memory for this"),
        (ImportError("libtorch.so: failed to map segment from shared object"), 1, "not enough memory"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"),
            1,
            "not enough memory",
        ),
        (OSError(errno.EROFS, "Read-only file system", b"/x/y"), 1, "cannot write /x/y: Read-only file"),
        (OSError(errno.EROFS, "Read-only file system", "/x/y"), 1, "make it writable"),
        (
            PermissionError(errno.EACCES, "Permission denied", "/x/y"),
            2,
            "/x/y: Permission denied; change",
        ),
    ],
)
def test_each_end_has_its_status_and_one_sentence(error, status, said, capsys):
    assert exit_status.run(failing(error)) == status
    err = capsys.readouterr().err
    assert err.startswith("osr: error: ")
    assert said in err
    assert err.count("\n") == 1


def test_a_command_names_its_own_options(capsys):
    full = OSError(errno.ENOSPC, "No space left on device", "/x/y")
    assert exit_status.run(failing(full), places=["--output", "--b"]) == 1
    assert "make room there, or write elsewhere (--output, --b); what" in capsys.readouterr().err
    assert exit_status.run(failing(full)) == 1
    assert "make room there, or write elsewhere; what" in capsys.readouterr().err
    assert exit_status.run(failing(MemoryError()), batches=["a", "b"]) == 1
    assert "leave it more (images take less with a lower a or b); what" in capsys.readouterr().err


@pytest.mark.parametrize("command", sorted({*PLACES, *BATCHES}))
def test_the_options_that_sentences_name_are_the_commands_own(command, capsys):
    own = command not in ("run", "fit", "calibrate", "validate", "test")
    with pytest.raises(SystemExit, match="0") if own else contextlib.nullcontext():
        main([command, "--help" if own else "--help-all"])
    shown = capsys.readouterr().out
    of_run = "options of osr run" in " ".join(shown.split()) or "options of osr calibrate" in shown
    for option in (*PLACES.get(command, ()), *(f"--{name.strip('-')}" for name in BATCHES.get(command, ()))):
        assert option in shown or (of_run and option.startswith(("--trainer", "--data")))


def test_the_cause_within_another_error_is_told(capsys):
    outer = RuntimeError("parser")
    outer.__cause__ = UserError("the true reason")
    assert exit_status.run(failing(outer)) == 2
    assert capsys.readouterr().err == "osr: error: the true reason\n"


def test_a_package_that_is_not_installed_is_named(capsys, monkeypatch):
    def missing(*_: object) -> None:
        importlib.import_module("numpy.no_such_part")
        importlib.import_module("no_such_package.part")

    monkeypatch.setitem(sys.modules, "no_such_package", None)
    with pytest.raises(ModuleNotFoundError, match="no_such_part"):
        exit_status.run(missing)  # of a package that is there: a bug
    monkeypatch.setitem(sys.modules, "numpy.no_such_part", sys)
    assert exit_status.run(missing) == 2
    told = capsys.readouterr().err
    assert told.startswith("osr: error: no_such_package is not installed: pip install osr_lightning brings")
    assert told.count("\n") == 1


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
@pytest.mark.parametrize("buffering", [-1, 1], ids=["at the end", "line by line"])
@pytest.mark.parametrize(
    "command",
    [
        lambda: print("a line"),
        argparse.ArgumentParser("osr").print_help,  # which passes over errors
        lambda: argparse.ArgumentParser("osr").parse_args(["--help"]),
    ],
    ids=["print", "help", "exit"],
)
def test_a_full_output_is_not_taken_for_the_run_folder(command, buffering, monkeypatch, capsys):
    with open("/dev/full", "w", buffering) as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert exit_status.run(command) == 1
        assert sys.stdout is full
    assert capsys.readouterr().err == (
        "osr: error: cannot write the standard output: No space left on device; send it elsewhere; all files "
        "are whole\n"
    )


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
@pytest.mark.parametrize(
    ("error", "status"), [(None, 0), (UserError("no such thing"), 2), (Failure("NaN"), 1)]
)
def test_a_full_standard_error_loses_what_is_said_and_keeps_the_status(error, status, monkeypatch, capsys):
    def command():
        print("1 predicted", file=sys.stderr)
        print("without an end of line", end="", file=sys.stderr, flush=True)
        print("a row")
        if error is not None:
            raise error

    with open("/dev/full", "w", 1) as full:
        monkeypatch.setattr(sys, "stderr", full)
        assert exit_status.run(command) == status
        assert sys.stderr is full
    assert capsys.readouterr().out == "a row\n"


def test_what_is_no_mistake_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        exit_status.run(failing(ZeroDivisionError()))


def test_the_sentence_of_a_process_that_reads_images_is_told_without_its_traceback(capsys):
    try:
        raise UserError("Cannot read the image a.png: remove it")
    except UserError:
        sent = ExceptionWrapper(where="in DataLoader worker process 0")
    assert exit_status.run(sent.reraise) == 2
    assert capsys.readouterr().err == "osr: error: Cannot read the image a.png: remove it\n"


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_unwind_the_stack(number, status, tmp_path):
    before = signal.getsignal(number)
    unwound = []

    def command():
        try:
            os.kill(os.getpid(), number)
            threading.Event().wait(5)
        finally:
            unwound.append(True)

    with pytest.raises(SystemExit) as caught:
        exit_status.run(command)
    assert caught.value.code == status
    assert unwound == [True]
    assert signal.getsignal(number) == before


def test_ctrl_c_while_python_itself_is_waiting():
    assert exit_status.run(failing(KeyboardInterrupt())) == 130


def test_the_first_process_to_fail_speaks_for_all(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("OSR_FIRST_FAILURE", str(tmp_path / "failed"))
    assert exit_status.run(failing(UserError("first"))) == 2
    assert exit_status.run(failing(Failure("second"))) == 2
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert exit_status.run(failing(RuntimeError("Connection closed by peer"))) == 2
    assert capsys.readouterr().err == "osr: error: first\n"


def test_a_full_disk_in_another_thread_is_told_once(capsys):
    def write():
        raise OSError(errno.ENOSPC, "No space left on device")

    def command():
        thread = threading.Thread(target=write)
        thread.start()
        thread.join()
        raise Failure("the disk is full")

    assert exit_status.run(command) == 1
    assert capsys.readouterr().err == "osr: error: the disk is full\n"


def test_nothing_is_left_in_the_temporary_folder(tmp_path):
    code = "from osr_lightning.__main__ import main; main(['compare', '/nowhere'])"
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], check=False, env=environment, capture_output=True)
    assert list(tmp_path.iterdir()) == []
