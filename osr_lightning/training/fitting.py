"""What scores are fitted to: training images, and for some of them known images that are held out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from osr_lightning.data.audit import pixel_digests
from osr_lightning.data.batch import Batch
from osr_lightning.data.tables import Tables
from osr_lightning.models.modes import evaluating
from osr_lightning.models.sampling import LOGITS
from osr_lightning.recogniser import Recogniser
from osr_lightning.scoring.calibration import check_alpha, images_needed
from osr_lightning.scoring.detectors import DETECTORS, Detector

if TYPE_CHECKING:
    from osr_lightning.training.base import OpenSetClassifier

_AT_ONCE = 512  # references that are looked at together


def references(
    tables: Tables, recogniser: Recogniser, alpha: float | None
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
    if not any(one.held_out for one in recogniser.detectors.values() if isinstance(one, Detector)):
        return None, None
    _, known = tables.load_training()
    rows = torch.arange(len(known))
    taken = torch.zeros(len(tables.load_calibration()), dtype=torch.bool)
    if tables.selection.calibrate_on == "validation":  # whose table begins with them
        digests = pixel_digests(known.images)
        count = reference_count(len(rows), alpha)
        rows = torch.tensor(sorted(rows.tolist(), key=digests.__getitem__)[:count]).long()
        taken[rows] = True
    parts = torch.split(rows.sort().values, _AT_ONCE)
    return (known.__getitems__(part.tolist()) for part in parts), taken


def reference_count(known: int, alpha: float | None) -> int:
    """How many of the known validation images are references: half, fewer where ``alpha`` needs more.

    Args:
        known: how many there are.
        alpha: of known_quantile; None for other methods.
    """
    rest = 0 if alpha is None else images_needed(alpha)
    return max(1, min(known // 2, known - rest))


def check_images(model: OpenSetClassifier, known: int, *, shared: bool) -> None:
    """Stop where ``known`` images cannot serve the alpha, for any of the scores that are to be calibrated.

    Args:
        model: with its options.
        known: how many known images calibrate.
        shared: whether some of them are references of the scores that take held-out images.

    Raises:
        UserError: with the number needed.
    """
    options = model.options
    check_alpha(options.alpha, known)
    takers = [n for n in (options.score, *options.detectors) if n in DETECTORS and DETECTORS[n].held_out]
    if takers and shared:
        count = reference_count(known, options.alpha)
        check_alpha(options.alpha, known - count, f" beside {count:,} for reference of the score {takers[0]}")


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
    device = next(recogniser.parameters()).device

    def look(at: Iterable[Batch]) -> tuple[dict[str, Tensor], Tensor]:
        found = [(recogniser.look(batch.image.to(device)), batch.label.to(device)) for batch in at]
        seen = {name: torch.cat([one[name] for one, _ in found]) for name in found[0][0]}
        return seen, torch.cat([labels for _, labels in found])

    with evaluating(recogniser):
        seen, labels = look(batches)
        held_out = None if references is None else look(references)[0]
    for detector in recogniser.detectors.values():
        assert isinstance(detector, Detector)
        last = recogniser.sampler.last_layer if LOGITS in detector.layers else None
        detector.fit(seen, labels, last, held_out)
