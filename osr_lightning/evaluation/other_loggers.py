"""A test run's results in loggers other than TensorBoard's: through what each of them offers."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger

from osr_lightning.evaluation.tensorboard import final_numbers, settings_of

_SETS = re.compile("^test/(accuracy|auroc)/")


def log_test(
    logger: Logger,
    results: dict[str, Any],
    figures: Iterable[Path],
    hyperparameters: dict[str, Any],
    step: int,
    files: Iterable[Path] = (),
) -> None:
    """Add the numbers under ``test/``, the settings under ``trained/``, every figure, and files.

    Those of each set are under ``test_accuracy/SET`` and ``test_auroc/SET``.

    Figures go to loggers with Lightning's ``log_image`` (Weights & Biases has it), figures and files to
    MLflow as artifacts of its run. What was chosen for a training has names of its own, as Lightning has
    logged the options already and MLflow takes no second value.

    Args:
        logger: where to.
        results: of ``results.json``.
        figures: image files.
        hyperparameters: how it was trained; those that are no number or text are left out.
        step: the training step of the tested weights.
        files: to be kept beside the figures.
    """
    if isinstance(logger, (CSVLogger, TensorBoardLogger)):
        return
    settings = settings_of(results, hyperparameters)
    logger.log_hyperparams({f"trained/{name}": value for name, value in settings.items()})
    # where names are paths, test/auroc is no folder as well
    numbers = {_SETS.sub(r"test_\1/", name): value for name, value in final_numbers(results).items()}
    logger.log_metrics(numbers, step)
    if isinstance(logger, MLFlowLogger):
        for folder, kept in (("figures", figures), ("", files)):
            for path in kept:
                logger.experiment.log_artifact(logger.run_id, str(path), folder)
    elif callable(log_image := getattr(logger, "log_image", None)):
        for path in figures:
            log_image(f"test/{path.stem}", [str(path)], step)
    logger.save()
