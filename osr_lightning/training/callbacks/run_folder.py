"""The run folder of a command that failed before its first step is taken back."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, Trainer

from osr_lightning.training.loggers import ClaimingTensorBoardLogger


class WithdrawUnused(Callback):
    """Leaves no run folder of a command that failed before its first step."""

    def __init__(self) -> None:
        self._begun = False

    def _begin(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        """From now on there is something to keep."""
        self._begun = True

    on_train_batch_end = on_test_batch_end = on_predict_batch_end = _begin

    def on_validation_batch_end(self, trainer: Trainer, *args: Any) -> None:  # noqa: ANN401
        """The same."""
        self._begun |= not trainer.sanity_checking

    def on_exception(self, trainer: Trainer, *args: Any) -> None:  # noqa: ANN401
        """Take the folder back."""
        for logger in () if self._begun else trainer.loggers:
            if isinstance(logger, ClaimingTensorBoardLogger):
                logger.withdraw()
