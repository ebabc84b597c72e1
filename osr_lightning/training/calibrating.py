"""Calibration as a pass over a loader: fit detectors, choose every score's threshold, keep the records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from osr_lightning import checkpoint as checkpoints
from osr_lightning.data.datamodule import OpenSetDataModule
from osr_lightning.errors import UserError
from osr_lightning.scoring.calibration import (
    NEEDS_UNKNOWNS,
    Calibration,
    calibrate,
    fixed_calibration,
    misgivings,
)
from osr_lightning.scoring.detectors import DETECTORS
from osr_lightning.training import restoring
from osr_lightning.training.console import say
from osr_lightning.training.distributed import gather_rows
from osr_lightning.training.fitting import check_images, fit_detectors, references
from osr_lightning.training.loggers import run_folder
from osr_lightning.training.progress import begin_stage
from osr_lightning.writing import write_text

if TYPE_CHECKING:
    from osr_lightning.training.base import OpenSetClassifier
    from osr_lightning.training.trainer import OpenSetTrainer


def calibrate_checkpoint(
    trainer: OpenSetTrainer,
    model: OpenSetClassifier,
    datamodule: OpenSetDataModule,
    ckpt_path: str | None,
    output: str | None,
    in_place: bool,
) -> Path | None:
    """One pass over the images that calibrate, and the files that keep what it finds.

    The arguments are those of :meth:`OpenSetTrainer.calibrate`.

    Returns:
        The calibrated checkpoint; None where the model came from none and no output is given.
    """
    if in_place and (output or ckpt_path is None):
        raise UserError("in_place writes over ckpt_path: give that, and no output")
    require_unknowns(model, datamodule)
    source, method, tables = None, model.options.calibration, datamodule.tables
    if ckpt_path is not None:
        source = checkpoints.read(ckpt_path)
        restoring.restore(model, source, trust=trainer.trust_checkpoint)
    tables.expect(model.trained.facts)
    tables.refuse_seen(model.images_seen, "calibrate")
    if method == "known_quantile":
        known = tables.load_calibration().labels < model.num_classes
        check_images(model, int(known.sum()), shared=tables.selection.calibrate_on == "validation")
    fitted = len(tables.load_training()[0]) if model.trained.detectors else 0
    begin_stage(trainer, "calibrate", fitted + len(tables.load_calibration()))
    device = trainer.strategy.root_device
    model.trained.to(device)
    held_out, taken = references(
        tables, model.trained, model.options.alpha if method == "known_quantile" else None
    )
    fit_detectors(model.trained, datamodule.fitting_dataloader(), held_out)
    # a limit on the images of predict is none on these
    limit, trainer.limit_predict_batches = trainer.limit_predict_batches, 1.0
    batches = Trainer.predict(trainer, model, datamodule.calibration_dataloader())
    trainer.limit_predict_batches = limit
    rows = gather_rows(batches, device)  # type: ignore[arg-type]
    calibrated_on = tables.selection.calibrated_on(unknowns=method in NEEDS_UNKNOWNS)
    choose(model, rows, calibrated_on, optimistic=tables.optimistic, taken=taken)
    if model.images_seen is not None and tables.selection.calibrate_on != "test":
        model.images_seen = model.images_seen.with_calibration(tables.load_calibration().images)
    target = target_path(ckpt_path, output, in_place)
    folder = run_folder(trainer)
    if trainer.is_global_zero:
        if target is not None:
            write(model, datamodule, source, target)
        if folder is not None:
            records = {n: record.summary() for n, record in model.trained.threshold.records.items()}
            write_text(folder / "calibration.json", json.dumps(records, indent=2) + "\n")
    trainer.strategy.barrier("calibrated")
    return target


def choose(
    model: OpenSetClassifier,
    rows: dict[str, Tensor],
    calibrated_on: str,
    *,
    optimistic: bool,
    taken: Tensor | None = None,
) -> None:
    """Choose the threshold of every score; all processes end with rank 0's choice.

    Args:
        model: whose method is used and whose records are replaced.
        rows: of `OpenSetClassifier.classify`, gathered over batches and processes.
        calibrated_on: said of the images in the record.
        optimistic: whether test images are among them.
        taken: ``(N,)`` bool, the rows that are references of scores which take held-out images, and thus
            choose no threshold of theirs; none if not given.

    Raises:
        UserError: where the images cannot serve the method.
    """
    trainer = model.trainer
    options = model.options
    method = options.calibration
    if method in NEEDS_UNKNOWNS and trainer.state.fn == "fit":
        method = "known_quantile"  # a fit validates on known images alone; `calibrate` brings the unknown
    chosen: tuple[dict[str, Calibration], list[tuple[float, float]]] | None = None
    if method == "fixed":
        chosen = {options.score: fixed_calibration(options.threshold)}, []
    elif trainer.is_global_zero:
        chosen = {}, []
        every = torch.ones_like(rows["label"], dtype=torch.bool)
        for held_out, left in ((False, every), (True, every if taken is None else ~taken[rows["row"]])):
            found, trials = calibrate(
                {
                    name: rows[f"score/{name}"][left].numpy()
                    for name in model.trained.score_names
                    if (name in DETECTORS and DETECTORS[name].held_out) is held_out
                },
                (rows["label"] < model.num_classes)[left].numpy(),
                (rows["predicted_class"] == rows["label"])[left].numpy(),
                method=method,
                alpha=options.alpha,
                costs=options.costs,
                unknown_prior=options.unknown_prior,
                calibrated_on=calibrated_on,
                optimistic=optimistic,
            )
            chosen = chosen[0] | found, [*chosen[1], *trials]
    chosen = trainer.strategy.broadcast(chosen)
    assert chosen is not None
    model.trained.threshold.records, model.search_trials = chosen


def require_unknowns(model: OpenSetClassifier, datamodule: OpenSetDataModule) -> None:
    """Stop where the method needs unknown images and the datamodule has none.

    Raises:
        UserError: naming the option.
    """
    selection = datamodule.tables.selection
    no_unknowns = selection.calibrate_on == "validation" and not selection.calibration_unknown
    if model.options.calibration in NEEDS_UNKNOWNS and no_unknowns:
        raise UserError(
            f"model.calibration {model.options.calibration} needs unknown images: name some with "
            "data.calibration_unknown, or use known_quantile"
        )


def target_path(ckpt_path: str | None, output: str | None, in_place: bool) -> Path | None:
    """Where a calibrated checkpoint goes; None where the model came from none."""
    if output is not None:
        return Path(output)
    if ckpt_path is None or in_place:
        return None if ckpt_path is None else Path(ckpt_path)
    source = Path(ckpt_path)
    return source.with_name(f"{source.stem.removesuffix('.calibrated')}.calibrated.ckpt")


def write(
    model: OpenSetClassifier, datamodule: OpenSetDataModule, source: dict[str, Any] | None, target: Path
) -> None:
    """Write the checkpoint ``source`` with the model's thresholds and detectors to ``target``."""
    if source is None:
        checkpoints.save(model.trained, target)
        return
    # the weights as they were, the new thresholds, and fitted detectors if there are any
    state = {
        name: value.cpu() if isinstance(value, torch.Tensor) else value
        for name, value in model.state_dict().items()
    }
    kept = {**source, "state_dict": state, "recogniser": checkpoints.content(model.trained)}
    # a later test starts from these settings, and its leak audit must know what calibrated
    if model.images_seen is not None:
        kept["images"] = model.images_seen._asdict()
    kept["hyper_parameters"] = dict(model.hparams)
    kept["datamodule_hyper_parameters"] = dict(datamodule.hparams)
    checkpoints.write(kept, target)


def tell(model: OpenSetClassifier, target: Path | None) -> None:
    """Print the threshold, where it is, and what is wrong with it."""
    chosen = model.trained.threshold.record
    flattered = "; optimistic: test images chose it" if chosen.optimistic else ""
    where = "" if target is None else f" ({target})"
    say(
        f"threshold {chosen.value:.6g} on {model.options.score} by {chosen.method}, from "
        f"{chosen.calibrated_on}{flattered}{where}"
    )
    unknown = {"the unknown sets": chosen.rejected_unknown}
    for warning in misgivings(chosen.rejected_known, unknown, "calibration images"):
        say(f"warning: {warning}")
