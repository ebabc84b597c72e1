"""The checkpoint that a command line names: its file, or the one that was probably meant, or that decides.

Nothing heavy is imported here.
"""

from __future__ import annotations

import glob
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from osr_lightning.deploy.hub import download, is_hub
from osr_lightning.errors import NotCalibrated, UserError


def newest(runs: Path, name: str) -> Path:
    """The checkpoint best or last of an experiment's newest run.

    Of numbered runs that is the one of the highest number; a named run is newer where its file is.

    Raises:
        UserError: where there is none.
    """
    found = list(runs.glob(f"*/checkpoints/{name}.ckpt"))
    if not found:
        raise UserError(
            f"no {name}.ckpt under {runs}; pass --config or --trainer.experiment of the run, "
            "or the path of a checkpoint"
        )
    numbers = {path: path.parent.parent.name.removeprefix("version_") for path in found}
    numbered = [path for path in found if numbers[path].isdigit()]
    named = [path for path in found if path not in numbered]
    latest = [max(numbered, key=lambda path: int(numbers[path]))] if numbered else []
    return max([*latest, *named], key=os.path.getmtime)


def existing(given: str, root: Path = Path(), option: str = "--ckpt_path ") -> Path:
    """The path of a checkpoint or of an exported graph that is there.

    Args:
        given: by the user.
        root: folder that holds lightning_logs.
        option: what stands before the path on the command line.

    Raises:
        UserError: where it is not, with the one that was probably meant.
    """
    if not given:
        raise UserError(
            f"{option.strip() or 'a path'} is empty: name a checkpoint, as RUN/checkpoints/best.ckpt"
        )
    if is_hub(given):
        return Path(download(given))
    path = Path(os.path.expanduser(given))
    if os.path.isfile(path):
        return path
    if os.path.exists(path) and not os.path.isdir(path):
        raise UserError(f"{path} is a pipe or a device, and no checkpoint; name a file")
    exported = path.suffix.lower() == ".onnx"
    ending = path.suffix if exported else ".ckpt"
    same = [path.parent / "checkpoints" / path.name]
    if path.parent == Path():  # as last.ckpt: of whichever run is the newest
        runs = glob.escape(path.stem) + ending
        same += root.glob(f"lightning_logs/*/*/checkpoints/{runs}")
    inside = [path / name for name in ("best.ckpt", "checkpoints/best.ckpt")]
    found = [
        *filter(os.path.isfile, same),
        *filter(os.path.isfile, inside),
        *filter(os.path.isfile, path.parent.glob(f"*{ending}")),
    ]
    if not found:
        way_out = "osr export writes one" if exported else f"pass {option}RUN/checkpoints/best.ckpt"
        raise UserError(f"there is no checkpoint {path}; {way_out}")
    near = max(filter(os.path.isfile, same), key=os.path.getmtime, default=found[0])
    raise UserError(f"there is no checkpoint {path}; did you mean {option}{shlex.quote(str(near))}?")


@contextmanager
def telling_calibrated(path: Path, command: str, score: str | None) -> Iterator[None]:
    """Where a checkpoint turns out not to be calibrated within the block, say how to get one that is.

    Args:
        path: of the checkpoint.
        command: that takes it, as it is typed before the path of another.
        score: that was asked for; None where the checkpoint's own decides.

    Raises:
        UserError: in place of `NotCalibrated`.
    """
    try:
        yield
    except NotCalibrated as error:
        raise UserError(not_calibrated(path, error.score, command, own=score is None)) from error


def not_calibrated(path: Path, score: str, command: str, *, own: bool) -> str:
    """What to say of a checkpoint that has no threshold, or no fit, of a score.

    Args:
        path: of the checkpoint.
        score: its name.
        command: that takes the checkpoint, as it is typed before its path.
        own: whether it is the checkpoint's own score, and not another that was asked for.
    """
    named = shlex.quote(str(path))
    further = "" if own else f" --model.score {score}"
    best = path.with_name("best.ckpt")
    decides = own and best != path and best.is_file() and _is_calibrated(best, score)
    other = f", or {command} {shlex.quote(str(best))}" if decides else ""
    return (
        f"{path} was not calibrated with the score {score}: osr calibrate --ckpt_path {named}{further} "
        f"writes one that was{other}"
    )


def _is_calibrated(path: Path, score: str) -> bool:
    """Whether a checkpoint has a threshold of a score: that of a training which was stopped has none."""
    from osr_lightning.recogniser import checkpoint as checkpoints

    try:
        kept = checkpoints.read(path)
        return score in kept["state_dict"][f"{checkpoints.PREFIX}threshold._extra_state"]["records"]
    except (UserError, KeyError, TypeError):  # it is no way out
        return False
