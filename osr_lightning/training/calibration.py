"""Calibration: what scores are fitted to, the references among it, and the threshold of every score."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from osr_lightning.atomic_write import check_ending, refuse_folder
from osr_lightning.data.batch import Batch
from osr_lightning.data.image_table import ImageTable, ImageTables
from osr_lightning.data.leaks import pixel_digests
from osr_lightning.data.stream import Images
from osr_lightning.errors import UserError
from osr_lightning.models.modes import evaluating
from osr_lightning.models.sampling import LOGITS
from osr_lightning.recogniser.recogniser import Recogniser
from osr_lightning.scoring.calibration import (
    NEEDS_UNKNOWNS,
    Calibration,
    CalibrationMethod,
    calibrate,
    fixed_calibration,
)
from osr_lightning.scoring.class_quantile import Predicted, refuse_few
from osr_lightning.scoring.detectors import DETECTORS
from osr_lightning.scoring.quantile import check_alpha, images_needed
from osr_lightning.scoring.sweep import Costs

_AT_ONCE = 512  # references that are looked at together
_REJECTED = 5  # validation images above the threshold: with fewer it lies where chance puts it


# before anything is trained -------------------------------------------------------------------------------


def require_unknowns(model: Mapping[str, Any], data: Mapping[str, Any]) -> None:
    """Stop where a method needs unknown images and there are none.

    Args:
        model: options of the classifier.
        data: options of the datamodule.

    Raises:
        UserError: naming the option.
    """
    method, on_validation = model["calibration"], data["calibrate_on"] == "validation"
    if method in NEEDS_UNKNOWNS and on_validation and not data["calibration_unknown"]:
        raise UserError(
            f"model.calibration {method} needs unknown images: name some with data.calibration_unknown, or "
            "use known_quantile"
        )


def check_images(
    alpha: float, scores: Sequence[str], known: int, *, shared: bool, share: str = "data.val_fraction"
) -> None:
    """Stop where ``known`` images cannot serve the alpha, for any of the scores that are to be calibrated.

    Args:
        alpha: share in (0, 1) of known images that may be rejected.
        scores: names of those to be calibrated.
        known: how many known images calibrate.
        shared: whether some of them are references of the scores that take held-out images.
        share: what to raise so that there are more, for the message.

    Raises:
        UserError: with the number needed.
    """
    check_alpha(alpha, known, share=share)
    if shared and (takers := _takers(scores)):
        count = reference_count(known, alpha)
        check_alpha(alpha, known - count, f" beside {count:,} for reference of the score {takers[0]}", share)


def are_few(alpha: float, scores: Sequence[str], known: int) -> bool:
    """Whether fewer than five of ``known`` validation images are expected above a threshold of ``alpha``.

    The share of known images that is rejected then has a standard deviation of 0.45 alpha or more. With more,
    validation images serve: the last layer that folds can fit is trained without dropout, which costs a point
    or two of AUROC.

    Args:
        alpha: share in (0, 1).
        scores: names of those to be calibrated; some take a part of the images for reference.
        known: how many known validation images there are.
    """
    return (known - (reference_count(known, alpha) if _takers(scores) else 0)) * alpha < _REJECTED


def _takers(scores: Sequence[str]) -> list[str]:
    """Those of the scores that take held-out images for reference."""
    return [name for name in scores if name in DETECTORS and DETECTORS[name].held_out]


# fitting --------------------------------------------------------------------------------------------------


def references(
    tables: ImageTables, recogniser: Recogniser, alpha: float | None
) -> tuple[Iterable[Batch] | None, Tensor | None]:
    """The known validation images that the fit of some scores takes, and their rows in what calibrates.

    Where validation images calibrate, some of the known ones are references (see `reference_count`), by the
    order of a hash of their pixels: whatever their own order, and copies together. The others then are
    exchangeable with new images, which they would not be had they made the score. Where test images
    calibrate, all are references.

    Args:
        tables: of the images.
        recogniser: whose detectors are to be fitted.
        alpha: of known_quantile; None for other methods.

    Returns:
        Batches of the references, and for each calibration image whether it is one, ``(N,)`` bool; None and
        None where no score takes any.
    """
    if not any(one.held_out for one in recogniser.every_detector.values()):
        return None, None
    _, known = tables.load_training()
    rows = torch.arange(len(known))
    taken = torch.zeros(len(tables.load_calibration()), dtype=torch.bool)
    if tables.options["calibrate_on"] == "validation":  # whose table begins with them
        rows = reference_rows(known.images, alpha)
        taken[rows] = True
    parts = torch.split(rows, _AT_ONCE)
    return (known.__getitems__(part.tolist()) for part in parts), taken


def reference_rows(images: Images, alpha: float | None) -> Tensor:
    """The rows of those known validation images that are references, see `references`, in ascending order."""
    digests = pixel_digests(images)
    count = reference_count(len(digests), alpha)
    return torch.tensor(sorted(range(len(digests)), key=digests.__getitem__)[:count]).long().sort().values


def check_classes(alpha: float, scores: Sequence[str], val: ImageTable, classes: Sequence[str]) -> None:
    """Stop where a class has too few validation images for class_quantile.

    Args:
        alpha: share in (0, 1).
        scores: names of those to be calibrated.
        val: the known validation images, of which some are references of the scores that take any.
        classes: names of the known classes.

    Raises:
        UserError: naming the classes, and how many images each would need.
    """
    sizes = torch.bincount(val.labels, minlength=len(classes))
    beside = ""
    if takers := _takers(scores):
        sizes -= torch.bincount(val.labels[reference_rows(val.images, None)], minlength=len(classes))
        beside = f" beside those for reference of the score {takers[0]}"
    refuse_few(sizes.numpy(), classes, alpha, beside)


def reference_count(known: int, alpha: float | None) -> int:
    """How many of the known validation images are references: half, fewer where ``alpha`` needs more.

    Args:
        known: how many there are.
        alpha: of known_quantile; None for other methods.
    """
    rest = 0 if alpha is None else images_needed(alpha)
    return max(1, min(known // 2, known - rest))


@torch.no_grad()
def fit_detectors(
    recogniser: Recogniser, batches: Iterable[Batch], references: Iterable[Batch] | None = None
) -> None:
    """Fit every detector to what layers say of training images, in a pass without dropout.

    Every process fits to all images: quicker than to send features around, and the same everywhere.

    Args:
        recogniser: with trained weights.
        batches: of the training images.
        references: of the held-out known images that some scores take.
    """
    if not recogniser.detectors:
        return
    device, classes = next(recogniser.parameters()).device, recogniser.spec.num_classes
    detectors = recogniser.every_detector.values()

    def look(at: Iterable[Batch], *, probability: bool = True) -> tuple[dict[str, Tensor], Tensor]:
        found = [
            (recogniser.look(batch.image.to(device), probability=probability), batch.label.to(device))
            for batch in at
        ]
        seen = {name: torch.cat([one[name] for one, _ in found]) for name in found[0][0]}
        return seen, torch.cat([labels for _, labels in found])

    with evaluating(recogniser):
        seen, labels = look(batches, probability=any(one.fits_probability for one in detectors))
        held_out = None if references is None else look(references)[0]
    for detector in detectors:
        last = recogniser.sampler.last_layer if LOGITS in detector.layers else None
        detector.fit(seen, labels, last, held_out, classes)


# choosing -------------------------------------------------------------------------------------------------


def choose_thresholds(
    rows: Mapping[str, Tensor],
    scores: Sequence[str],
    classes: Sequence[str],
    options: Mapping[str, Any],
    *,
    method: CalibrationMethod,
    calibrated_on: str,
    optimistic: bool,
    taken: Tensor | None = None,
) -> tuple[dict[str, Calibration], list[tuple[float, float]]]:
    """Choose the threshold of every score.

    Args:
        rows: per image ``row``, ``label``, ``predicted_class`` and ``score/NAME``, ``(N,)`` each.
        scores: names of those to be calibrated.
        classes: names of the ``K`` known ones; unknown images have the label ``K``.
        options: of the classifier: score, threshold, alpha, costs, unknown_prior and few_share.
        method: how.
        calibrated_on: said of the images in the records.
        optimistic: whether test images are among them.
        taken: ``(N,)`` bool, the rows that are references of scores which take held-out images, and thus
            choose no threshold of theirs; none if not given.

    Returns:
        Score -> calibration, and the trials of the ``optuna`` search.

    Raises:
        UserError: where the images cannot serve the method.
    """
    if method == "fixed":
        return {options["score"]: fixed_calibration(options["threshold"])}, []
    records: dict[str, Calibration] = {}
    trials: list[tuple[float, float]] = []
    every, takers = torch.ones_like(rows["label"], dtype=torch.bool), _takers(scores)
    others = [name for name in scores if name not in takers]
    for names, left in ((others, every), (takers, every if taken is None else ~taken[rows["row"]])):
        found, tried = calibrate(
            {name: rows[f"score/{name}"][left].numpy() for name in names},
            (rows["label"] < len(classes))[left].numpy(),
            (rows["predicted_class"] == rows["label"])[left].numpy(),
            method=method,
            alpha=options["alpha"],
            costs=Costs(**options["costs"]),
            unknown_prior=options["unknown_prior"],
            calibrated_on=calibrated_on,
            optimistic=optimistic,
            predicted=Predicted(
                rows["label"][left].numpy(),
                rows["predicted_class"][left].numpy(),
                classes,
                options["few_share"],
            ),
        )
        records |= found
        trials += tried
    return records, trials


def calibrated_path(ckpt_path: str | None, output: str | None, in_place: bool) -> Path | None:
    """Where a calibrated checkpoint goes; None where the model came from none.

    Raises:
        UserError: where it is to be written over and elsewhere as well, or unasked; is a folder, or ends in
            another way.
    """
    if in_place and (output or ckpt_path is None):
        raise UserError("in_place writes over ckpt_path: give that, and no output")
    if output is not None:
        refuse_folder(output)
        check_ending("output", output, [".ckpt"])
        return Path(output)
    if ckpt_path is None or in_place:
        return None if ckpt_path is None else Path(ckpt_path)
    source = Path(ckpt_path)
    if source.stem.endswith(".calibrated"):
        raise UserError(
            f"{source} is a calibrated checkpoint itself: name the file of the new one with output, or write "
            "over it with in_place true"
        )
    return source.with_name(f"{source.stem}.calibrated.ckpt")
