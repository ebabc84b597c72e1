"""A test run's results in loggers: numbers, settings and figures, and in TensorBoard the Projector."""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger
from PIL import Image

from osr_lightning.data.features import thumbnails_of
from osr_lightning.data.stream import Images
from osr_lightning.errors import one_line
from osr_lightning.evaluation.embedding import drawn_rows
from osr_lightning.evaluation.prediction_table import PredictionTable

_HEADLINE = ("known_accuracy", "unknown_accuracy", "total_accuracy", "auroc")
_MOST_NUMBERS = 2**22  # of the Projector's points, which are kept as text: 2,000 of 2,000 classes
_SETS = re.compile("^test/(accuracy|auroc)/")
_PLAIN = (bool, int, float, str)


def log_test(
    logger: Logger,
    results: dict[str, Any],
    figures: Iterable[Path],
    hyperparameters: dict[str, Any],
    step: int,
    files: Iterable[Path] = (),
) -> None:
    """Add a test's numbers, settings, figures and files, through what a logger offers.

    TensorBoard has the report's place, every figure, the numbers under ``test/``, and one row of the HParams
    page. Lightning's CSV logger is left alone. Others have the numbers under ``test/``, those of each set
    under ``test_accuracy/SET`` and ``test_auroc/SET``, and the settings under ``trained/``: what was chosen
    for a training has names of its own, as Lightning has logged the options already and MLflow takes no
    second value. Figures go to loggers with Lightning's ``log_image`` (Weights & Biases has it), figures and
    files to MLflow as artifacts of its run.

    Args:
        logger: where to.
        results: of ``results.json``.
        figures: image files.
        hyperparameters: how it was trained; those that are no number or text are left out.
        step: the training step of the tested weights.
        files: to be kept beside the figures, the report among them.
    """
    if isinstance(logger, CSVLogger):
        return
    settings, numbers = _settings_of(results, hyperparameters), _final_numbers(results)
    if isinstance(logger, TensorBoardLogger):
        for path in figures:
            _add_figure(logger, path, step)
        for report in (path for path in files if path.suffix == ".html"):
            logger.experiment.add_text("report", f"[{report}]({report.as_uri()})", step)
        logger.log_hyperparams(settings, numbers, step)
        logger.save()
        return
    logger.log_hyperparams({f"trained/{name}": value for name, value in settings.items()})
    # where names are paths, test/auroc is no folder as well
    logger.log_metrics({_SETS.sub(r"test_\1/", name): value for name, value in numbers.items()}, step)
    if isinstance(logger, MLFlowLogger):
        for folder, kept in (("figures", figures), ("", files)):
            for path in kept:
                logger.experiment.log_artifact(logger.run_id, str(path), folder)
    elif callable(log_image := getattr(logger, "log_image", None)):
        for path in figures:
            log_image(f"test/{path.stem}", [str(path)], step)
    logger.save()


def _add_figure(logger: TensorBoardLogger, path: Path, step: int) -> None:
    """The file as it is: to draw the figure once more, or to encode its pixels, takes time."""
    from tensorboard.compat.proto.summary_pb2 import Summary

    with Image.open(path) as image:
        width, height = image.size
    png = Summary.Image(height=height, width=width, colorspace=4, encoded_image_string=path.read_bytes())
    value = Summary.Value(tag=f"test/{path.stem}", image=png)
    logger.experiment.file_writer.add_summary(Summary(value=[value]), step)


def _final_numbers(results: dict[str, Any]) -> dict[str, float]:
    """Name -> the accuracies, AUROCs and threshold of ``results.json``; without those that are null.

    ``test/accuracy/SET`` is that of each set by its name: of known images those that are right and not
    rejected, of unknown ones those that are rejected.
    """
    opened, known = results["open_set"], results["data"].get("known")
    numbers = {
        "test/closed_set_accuracy": results["closed_set"]["accuracy"],
        **{f"test/{name}": opened[name] for name in _HEADLINE},
        **({f"test/accuracy/{one_line(known['source'])}": opened["known_accuracy"]} if known else {}),
        "test/threshold": results["threshold"]["value"],
    }
    for name, found in results["unknown"].items():
        numbers[f"test/accuracy/{one_line(name)}"] = found["unknown_accuracy"]
        numbers[f"test/auroc/{one_line(name)}"] = found["auroc"]
    return {name: value for name, value in numbers.items() if value is not None}


def _settings_of(results: dict[str, Any], hyperparameters: dict[str, Any]) -> dict[str, Any]:
    """Numbers and texts that say what was trained, and how."""
    seen = {
        "model": results["model"]["class"],
        "network": results["model"]["network"],
        "channels": results["data"]["channels"],
        "image_size": results["data"]["image_size"],
        "seed": results["seed"],
    }
    plain = {k: v for k, v in hyperparameters.items() if isinstance(v, _PLAIN) and not k.startswith("_")}
    return plain | seen


def log_projector(
    logger: TensorBoardLogger, table: PredictionTable, images: Images, max_points: int, seed: int, step: int
) -> None:
    """Add the test images' logits to the Projector, with labels and the images as sprites.

    Args:
        logger: where to.
        table: the test run, ``N`` rows.
        images: ``(N, C, H, W)`` uint8.
        max_points: images to draw by ``seed``, see `drawn_rows`; 0 for none. Of more than 2,000 classes
            fewer are drawn.
        seed: of the draw.
        step: the training step of the tested weights.
    """
    chosen = drawn_rows(table.source, min(max_points, _MOST_NUMBERS // table.num_classes), seed)
    if not len(chosen):
        return
    names = [*table.class_names, "unknown"]
    # rows and cells of a file that is split at newlines and tabs
    metadata = [
        [
            one_line(names[table.label[i]]),
            one_line(names[table.prediction[i]]),
            one_line(table.source_names[table.source[i]]),
            f"{table.score[i]:.4g}",
        ]
        for i in chosen
    ]
    # a second test of the same weights writes over the first, of which torch prints a warning
    with redirect_stdout(StringIO()):
        logger.experiment.add_embedding(
            torch.from_numpy(table.logits[chosen]),
            metadata=metadata,
            metadata_header=["label", "prediction", "source", "score"],
            label_img=thumbnails_of(images, torch.from_numpy(chosen)).float() / 255,
            tag="test_logits",
            global_step=step,
        )
