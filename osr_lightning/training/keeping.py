"""The checkpoints of a run: when they are written, that they are whole, and what is taken up from them."""

from __future__ import annotations

import os
from typing import Any

import lightning
from lightning.fabric.utilities.types import _PATH
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from packaging.version import Version
from torch import Tensor

from osr_lightning import checkpoint as checkpoints
from osr_lightning.errors import UserError
from osr_lightning.training.stopping import Stopping


class WholeCheckpoints(TorchCheckpointIO):
    """Checkpoints that replace earlier ones at once or not at all; Lightning copies over them."""

    def load_checkpoint(self, path: _PATH, *args: Any, **kwargs: Any) -> dict[str, Any]:  # noqa: ANN401
        """Read one, and the version of Lightning that its training had; ours where it had none.

        Raises:
            UserError: where that is no version of Lightning 2.
        """
        checkpoint = super().load_checkpoint(path, *args, **kwargs)
        version = checkpoint.setdefault("pytorch-lightning_version", lightning.__version__)
        with checkpoints.reading(path):
            if Version(version) < Version("2"):
                raise UserError(f"it is of Lightning {version}; 2.0 and later can go on with it")
        return checkpoint

    def save_checkpoint(self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any = None) -> None:  # noqa: ANN401
        """Write one."""
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
        else:
            checkpoints.write(checkpoint, path)


def checkpoint_callbacks(minutes: float | None, *, keep: bool) -> list[Callback]:
    """Callbacks that keep ``best.ckpt``, by validation accuracy, and ``last.ckpt``, to resume from.

    Lightning's own ``save_last`` is the last best one, not the last epoch.

    Args:
        minutes: between two ``last.ckpt`` within an epoch; None for none.
        keep: whether to write any.
    """
    if not keep:
        return [Stopping(None)]
    best = ModelCheckpoint(
        filename="best",
        monitor="val/accuracy",
        mode="max",
        # a better checkpoint replaces best.ckpt instead of becoming best-v1.ckpt
        enable_version_counter=False,
    )
    last = ModelCheckpoint(filename="last", save_on_train_epoch_end=True, enable_version_counter=False)
    return [best, last, Stopping(last, minutes)]


def take_up(trainer: Trainer, callbacks: dict[str, Any]) -> dict[str, Any]:
    """The states of callbacks that a resumed training may take up.

    Of a callback that keeps checkpoints nothing is taken that names files outside of this run's own folder:
    Lightning deletes what it calls the best before.

    Raises:
        UserError: where one says of the best checkpoint what none can.
    """
    keeping = [one for one in trainer.checkpoint_callbacks if isinstance(one, ModelCheckpoint)]
    own = {os.path.realpath(one.dirpath) for one in keeping if one.dirpath}
    taken = {name: state for name, state in callbacks.items() if _stays_in(own, state)}
    for one in keeping:
        if one.state_key in taken and not _is_of_best(taken[one.state_key]):
            raise UserError("what it says of the best checkpoint is damaged")
    return taken


def _stays_in(folders: set[str], state: object) -> bool:
    """Whether all paths in a callback's state lie in these folders."""
    if not isinstance(state, dict):
        return True
    paths = [value for name, value in state.items() if name.endswith("_path") and value]
    paths += list(state.get("best_k_models") or {})
    return all("://" not in str(p) and os.path.realpath(os.path.dirname(p)) in folders for p in paths)


def _is_of_best(state: dict[str, Any]) -> bool:
    """Whether it has the paths, and scores that can be compared; a KeyError where one is missing."""
    scores = [state["best_model_score"], state["kth_value"], *state["best_k_models"].values()]
    paths = [state["best_model_path"], state["kth_best_model_path"], *state["best_k_models"]]
    return all(isinstance(path, str) for path in paths) and all(
        score is None or (isinstance(score, Tensor) and score.numel() == 1) for score in scores
    )
