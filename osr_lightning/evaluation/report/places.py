"""Where runs and their files are, as pages and people are told: short names, links, and commands."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from osr_lightning.atomic_write import as_text

# an absolute path, up to its last part: after a space, a quote, the colon of npz:PATH or a bracket
_FOLDERS = re.compile(r"""(?<![^\s'":=\[{(,])(?:[A-Za-z]:[\\/]|/)(?:[^/\\\n'":\[\]{},]+[/\\])+""")


def short_names(paths: Sequence[Path]) -> list[str]:
    """Run folders as ``EXPERIMENT/version_N``, or longer where two would be alike."""
    whole = [Path(os.path.normpath(path.absolute())) for path in paths]
    names = []
    for path in whole:
        length = 2
        while any(
            other != path and other.parts[-length:] == path.parts[-length:] for other in whole
        ) and length < len(path.parts):
            length += 1
        names.append(as_text(Path(*path.parts[-length:])))
    return names


def link(page: Path, target: Path) -> str:
    """The relative URL of a file, as a page on disk needs it; of another drive the file's own."""
    try:
        return quote(os.fsencode(Path(os.path.relpath(target, page.parent)).as_posix()))
    except ValueError:
        return target.absolute().as_uri()


def without_folders(text: str) -> str:
    """Text whose absolute paths are cut to their last part: what a page says of a config or a file."""
    return _FOLDERS.sub("…/", text)


def checkpoint_path(run_dir: Path, results: dict[str, Any]) -> Path | None:
    """Where the tested checkpoint is: in its run's folder, wherever that was moved, or as it was named."""
    named = results.get("checkpoint")
    if not isinstance(named, str) or not named:
        return None
    own = run_dir / "checkpoints" / Path(named).name
    # a test writes a folder of its own, without checkpoints
    return own if own.is_file() else Path(named)


def shown_checkpoint(run_dir: Path, results: dict[str, Any]) -> str | None:
    """The checkpoint's file, beginning with the experiment's folder where it lies in that of a run."""
    path = checkpoint_path(run_dir, results)
    if path is None:
        return None
    if path.is_relative_to(run_dir):
        return as_text(path.relative_to(run_dir).as_posix())
    _, marker, below = as_text(path.as_posix()).rpartition("lightning_logs/")
    return below if marker else without_folders(as_text(path.as_posix()))


def test_command(run_dir: Path, results: dict[str, Any]) -> str | None:
    """The command that tests the checkpoint at another threshold, up to that number, from this folder.

    Args:
        run_dir: of the test.
        results: its ``results.json``.

    Returns:
        None of a test without a checkpoint.
    """
    path = checkpoint_path(run_dir, results)
    if path is None:
        return None
    score = (results.get("score") or {}).get("name")
    chosen = ["--model.score", str(score)] if score else []
    words = ["osr", "test", "--ckpt_path", as_text(_typed(path)), *chosen, "--model.calibration", "fixed"]
    # with =, as a number below 0 would be taken for an option
    return f"{shlex.join(words)} --model.threshold="


def _typed(path: Path) -> Path:
    """The path as a person types it: from the working folder where it lies below that, by a link or not."""
    working = Path.cwd()
    for whole in (path.absolute(), Path(os.path.realpath(path))):
        if whole.is_relative_to(working) and ".." not in whole.parts:
            return whole.relative_to(working)
    return path
