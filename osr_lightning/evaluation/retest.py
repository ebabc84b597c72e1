"""The command that writes what a run's folder lacks: another test, or the rest of a run that was stopped."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from osr_lightning.atomic_write import as_text
from osr_lightning.errors import UserError

_LOGS = "lightning_logs"


def retest_command(run_dir: Path) -> str:
    """``osr test`` with what makes it write into this run folder, and not into a new one.

    A checkpoint without a threshold cannot be tested: of a run that was stopped before it had one, it is
    the command that goes on with it.

    Args:
        run_dir: a run folder; one that was moved elsewhere, or has no checkpoint, gets the command alone.
    """
    kept = [run_dir / "checkpoints" / f"{name}.ckpt" for name in ("best", "last")]
    found = next((path for path in kept if path.is_file()), None)
    last, config = run_dir / "checkpoints" / "last.ckpt", run_dir / "config.yaml"
    if not (run_dir / "calibration.json").is_file() and last.is_file() and config.is_file():
        return shlex.join(["osr", "run", "--config", as_text(config), "--ckpt_path", as_text(last)])
    whole = run_dir.absolute()
    if found is None or whole.parent.parent.name != _LOGS:
        return "'osr test'"
    version, experiment, root = whole.name, whole.parent.name, run_dir.parent.parent.parent
    number = version.removeprefix("version_")
    words: list[str | Path] = ["osr", "test", "--ckpt_path", found, "--trainer.experiment", experiment]
    words += ["--trainer.version", number if number.isdecimal() else version]
    if root.resolve() != Path.cwd():
        words += ["--trainer.default_root_dir", root]
    return shlex.join(as_text(word) for word in words)


@contextmanager
def reading(path: Path) -> Iterator[Path]:
    """Turn whatever a missing or damaged file of a run raises into a mistake the user can act on."""
    try:
        yield path
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: write it with {retest_command(path.parent)}") from error
    except Exception as error:  # a damaged archive or text can fail anywhere
        raise UserError(
            f"{path} is damaged ({error}): write it again with {retest_command(path.parent)}"
        ) from error
