"""Classes added to a recogniser of a frozen backbone, or taken out, without the images it was made of.

Its checkpoint keeps their features and labels: the last layer and the detectors are fitted to these and to
those of the new images, all classes weighing the same, and scores out of fold choose the threshold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from osr_lightning.atomic_write import as_text
from osr_lightning.data.features import FeaturedImages, thumbnails_of
from osr_lightning.data.folder import featured_files
from osr_lightning.data.leaks import read_digests
from osr_lightning.data_spec import UNKNOWN
from osr_lightning.errors import UserError, did_you_mean
from osr_lightning.models.backbones import Backbone, Body
from osr_lightning.recogniser import checkpoint as checkpoints
from osr_lightning.recogniser.examples import MOST
from osr_lightning.recogniser.known_images import KnownImages, kept_features
from osr_lightning.recogniser.labels import IGNORED
from osr_lightning.recogniser.recogniser import Recogniser
from osr_lightning.scoring.calibration import CROSS, QUANTILES, is_finite
from osr_lightning.scoring.decision import is_unknown
from osr_lightning.scoring.detectors import DETECTORS
from osr_lightning.scoring.quantile import check_alpha
from osr_lightning.training.calibration import choose_thresholds
from osr_lightning.training.cross_calibration import (
    KnownFeatures,
    choose_decay,
    copy_with,
    deal_folds,
    describe_part,
    fit_all,
)
from osr_lightning.training.examples import choose_examples
from osr_lightning.training.feature_extractor import BackboneExtractor
from osr_lightning.training.head import balanced

FEWEST = 3  # images of a class: two folds are left out at once, and one image is to remain
# of a checkpoint: what belongs to its training, which is not gone on with
_OF_TRAINING = ("loops", "callbacks", "optimizer_states", "lr_schedulers", "training", "epoch", "global_step")
_FEWEST = 2  # classes
_ALPHA = 0.05


class Extended(NamedTuple):
    """A recogniser with other classes.

    Attributes:
        checkpoint: its content, to be written.
        recogniser: it.
        report: what changed, in plain values; see `extend`.
    """

    checkpoint: dict[str, Any]
    recogniser: Recogniser
    report: dict[str, Any]


class _Answers(NamedTuple):
    """What is said of ``n`` of ``N`` old images: ``chosen`` ``(N,)`` bool, and ``(n,)`` each."""

    chosen: Tensor
    predicted: Tensor
    rejected: Tensor


def extend(
    path: str | Path,
    added: Mapping[str, Sequence[Path]],
    removed: Sequence[str] = (),
    alpha: float | None = None,
    *,
    old: Recogniser | None = None,
) -> Extended:
    """Add classes and images to a checkpoint, or take classes out, and see what changes for the others.

    Nothing is said by a fit that has seen the image: before, the recogniser is asked about the images that it
    held out, or fits without a fold were when it was calibrated; afterwards, fits without a fold are.

    Args:
        path: of a checkpoint with `osr_lightning.recogniser.known_images.KnownImages`.
        added: class -> files of its images; one that is known gets more.
        removed: known classes to take out.
        alpha: share in (0, 1) of known images that may be rejected; the checkpoint's if not given.
        old: the checkpoint's recogniser, where it is loaded already.

    Returns:
        With the report: ``classes``; ``added`` and ``grown``, class -> number of new images; ``removed``;
        ``already_known``, how many of the files are among the known images; ``images``; ``old``, of the old
        images of the classes that stay: ``count``, ``accuracy`` (rejected ones are wrong), ``closed_set``
        accuracy and ``rejected``, as ``[before, after]``, and ``decisions_changed``; ``new_classes``, each
        with ``count``, ``accuracy`` and ``rejected``; ``called_unknown_before``, the share of the new images
        that the checkpoint rejects; and ``threshold``, ``[before, after]``.

    Raises:
        UserError: where the checkpoint keeps no images, or those that are given do not serve.
    """
    if not added and not removed and alpha is None:
        raise UserError(
            "there is nothing to do: give labels.csv, --add NAME=FOLDER, --remove NAME or --alpha SHARE"
        )
    checkpoint = checkpoints.read(path)
    old = checkpoints.load(path) if old is None else old
    known = _kept(old, path)
    with checkpoints.reading(path):
        alpha, decay = _options(checkpoint, old, alpha)
        seen = read_digests(checkpoint.get("images"))
    _check_names(old.spec.classes, added, removed)
    stays = [name for name in old.spec.classes if name not in removed]
    classes = (*stays, *(name for name in added if name not in stays))
    if len(classes) < _FEWEST:
        raise UserError(
            f"without {', '.join(removed)} the checkpoint would know {len(classes)} class"
            f"{'es' * (len(classes) != 1)}, and {_FEWEST} are the fewest: remove fewer, or add others"
        )
    old.spec._replace(classes=classes).check()
    new, images, doubles = _look(old, added, known, classes)
    kept = known.where(torch.tensor([old.spec.classes[label] in stays for label in known.labels.tolist()]))
    places = torch.tensor([classes.index(n) if n in stays else -1 for n in old.spec.classes])
    joined = replace(kept, labels=places[kept.labels]).joined(new)
    _check_counts(joined, classes, added)
    check_alpha(alpha, len(joined), share="the number of images", option="alpha")
    before = _before(old, known)
    rejected_before = _rejected_by(old, new)
    work = _with_classes(old, classes)
    features = _features(joined, len(kept))
    # or a class of twenty images would hardly be named beside those of hundreds
    weights = balanced(joined.labels, len(classes))
    if decay is None:
        decay = choose_decay(work, features, features.parts[:1], weights)
    rows = fit_all(work, features, decay, weights)
    work.threshold.fixed = None
    work.threshold.records, _ = choose_thresholds(
        rows,
        work.score_names,
        classes,
        {"score": work.threshold.score, "threshold": None, "alpha": alpha}
        | {"costs": {}, "unknown_prior": 0.5, "few_share": False},
        method=CROSS,
        calibrated_on=f"{len(joined):,} known images out of fold, of which {len(new):,} were added",
        optimistic=False,
    )
    scores = rows[f"score/{work.threshold.score}"]
    work.known_images = replace(joined, weight_decay=decay, predicted=rows["predicted_class"], scores=scores)
    work.examples = _examples(old, work, rows, images, len(kept), {*added} - {*stays})
    grown = {name: int((new.labels == classes.index(name)).sum()) for name in added}
    report = {
        "classes": list(classes),
        "added": {name: count for name, count in grown.items() if name not in old.spec.classes},
        "grown": {name: count for name, count in grown.items() if name in old.spec.classes},
        "removed": list(removed),
        "already_known": doubles,
        "images": len(joined),
        "old": _compared(before, rows, work, places, known.labels),
        "new_classes": {n: _of_class(rows, work, classes.index(n), len(kept)) for n in added},
        "called_unknown_before": rejected_before,
        "threshold": [old.threshold.value, work.threshold.value],
    }
    whole = {name: value for name, value in checkpoint.items() if name not in _OF_TRAINING}
    state = {checkpoints.PREFIX + name: value for name, value in work.state_dict().items()}
    whole |= {"state_dict": state, "recogniser": checkpoints.content(work)}
    data = checkpoint.get("datamodule_hyper_parameters")
    if data and classes != old.spec.classes:  # what a test or a calibration reads of a folder
        whole["datamodule_hyper_parameters"] = {**data, "known_classes": list(classes)}
    if seen is not None:
        whole["images"] = seen.trained_on_too(joined.digests)._asdict()
    provenance = {name: report[name] for name in ("added", "grown", "removed")} | {"of": Path(path).name}
    earlier = checkpoint.get("extended")
    whole["extended"] = [*(earlier if isinstance(earlier, list) else []), provenance]
    return Extended(whole, work, report)


def judge(before: Recogniser, after: Recogniser, files: Mapping[str, Sequence[Path]]) -> dict[str, Any]:
    """What recognisers of before and after say of images that neither was made of.

    Args:
        before: with a threshold.
        after: the same with other classes, and its known images.
        files: class -> images; of a name that is no class of a recogniser they are unknown to it.

    Returns:
        ``count``; for ``before`` and ``after`` the shares ``right``, of ``known`` images and ``unknown`` ones
        (None without any) and of ``total``; and ``images``, the number of each, as ``[before, after]``.

    Raises:
        UserError: where an image is among those that the recogniser was made of.
    """
    names = list(files)
    found = _featured(after, [file for name in names for file in files[name]])
    truth = torch.repeat_interleave(torch.arange(len(names)), torch.tensor([len(files[n]) for n in names]))
    assert after.known_images is not None
    known = {row.tobytes() for row in after.known_images.digests.numpy()}
    if leaked := sum(row.tobytes() in known for row in found.digests.numpy()):
        raise UserError(f"{leaked:,} of the images of --test made the recogniser; test others")
    report: dict[str, Any] = {"count": len(truth), "images": {}}
    for when, one in (("before", before), ("after", after)):
        rows = describe_part(one, found.features)
        wanted = torch.tensor([(*one.spec.classes, n).index(n) for n in names])[truth]
        rejected = one.threshold(rows[f"score/{one.threshold.score}"])
        answers = rows["predicted_class"].where(~rejected, one.spec.num_classes)
        right = (answers == wanted.clamp(max=one.spec.num_classes)).double()
        is_known = wanted < one.spec.num_classes
        parts = {"known": is_known, "unknown": ~is_known, "total": torch.ones_like(is_known)}
        report[when] = {name: float(right[m].mean()) if bool(m.any()) else None for name, m in parts.items()}
        for name, mask in parts.items():
            report["images"].setdefault(name, []).append(int(mask.sum()))
    return report


def _kept(recogniser: Recogniser, path: str | Path) -> KnownImages:
    network = getattr(recogniser.sampler, "network", None)
    if not isinstance(network, Backbone) or network.body.finetune:
        raise UserError(
            f"{path}: only the last layer of a frozen backbone is fitted again without its images; train "
            "with the new classes, or with --model.network Backbone"
        )
    if recogniser.known_images is None:
        raise UserError(
            f"{path} keeps no features of its known images (model.keep_features false, or an earlier "
            f"version): osr calibrate --ckpt_path {path} writes a checkpoint that does"
        )
    return recogniser.known_images


def _options(
    checkpoint: Mapping[str, Any], recogniser: Recogniser, alpha: float | None
) -> tuple[float, float | None]:
    """The alpha by which the threshold was chosen, unless it is given, and the last layer's weight decay."""
    given = checkpoint.get("hyper_parameters") or {}
    record = recogniser.threshold.record
    if alpha is None:
        target = record.target if record.method in QUANTILES else given.get("alpha", _ALPHA)
        alpha = target if is_finite(target) and 0 < target < 1 else _ALPHA
    known = recogniser.known_images
    decay = given.get("weight_decay")
    if not is_finite(decay) or decay < 0:
        decay = None if known is None else known.weight_decay
    return alpha, decay


def _check_names(classes: Sequence[str], added: Mapping[str, Sequence[Path]], removed: Sequence[str]) -> None:
    for name in removed:
        if name not in classes:
            there = did_you_mean(name, classes, f"known are {', '.join(classes)}")
            raise UserError(f"--remove {name}: there is no such class; {there}")
        if name in added:
            raise UserError(f"{name} is both added and removed; do one of them")
    spelled = {name.casefold(): name for name in classes}
    for name, files in added.items():
        if name.casefold() == UNKNOWN:
            raise UserError(f"no class can be named {name!r}, which is what rejected images are called")
        if name.casefold() in IGNORED:
            raise UserError(f"no class can be named {name!r}: a table's images of that label are passed over")
        near = spelled.setdefault(name.casefold(), name)
        if near != name:
            raise UserError(f"{name!r} and {near!r} are one name but for capitals; write them alike")
        if not files:
            raise UserError(f"the class {name!r} has no images; add some, or leave it out")


def _featured(recogniser: Recogniser, files: Sequence[Path]) -> FeaturedImages:
    body = recogniser.sampler.network.body
    assert isinstance(body, Body)
    wanted = recogniser.spec.pixel_format
    return featured_files(files, wanted, BackboneExtractor(body, wanted))


def _look(
    old: Recogniser, added: Mapping[str, Sequence[Path]], known: KnownImages, classes: Sequence[str]
) -> tuple[KnownImages, FeaturedImages | None, int]:
    """The new images without copies, where their pixels can be had, and how many were known already."""
    files = [file for some in added.values() for file in some]
    names = [name for name, some in added.items() for _ in some]
    if not files:
        none = known.where(torch.zeros(len(known), dtype=torch.bool))
        return none, None, 0
    found = _featured(old, files)
    label_of = {
        row.tobytes(): old.spec.classes[label]
        for row, label in zip(known.digests.numpy(), known.labels.tolist(), strict=True)
    }
    rows: list[int] = []
    doubles = 0
    seen: dict[bytes, str] = {}
    for row, digest in enumerate(found.digests.numpy()):
        name, key = names[row], digest.tobytes()
        if (before := label_of.get(key, seen.get(key))) is not None:
            if before != name:
                raise UserError(
                    f"{as_text(files[row])} is to be {name!r}, and its very pixels are known as {before!r} "
                    "already; leave one"
                )
            doubles += key in label_of
            continue
        seen[key] = name
        rows.append(row)
    chosen = torch.tensor(rows, dtype=torch.int64)
    taken = found.take(chosen)
    new = KnownImages(
        kept_features(taken.features),
        torch.tensor([classes.index(names[row]) for row in rows], dtype=torch.int64),
        torch.zeros(len(rows), dtype=torch.bool),
        taken.digests,
        thumbnails_of(taken, torch.arange(len(rows))),
        [as_text(files[row].name) for row in rows],
    )
    return new, taken, doubles


def _check_counts(known: KnownImages, classes: Sequence[str], added: Mapping[str, Sequence[Path]]) -> None:
    counts = torch.bincount(known.labels, minlength=len(classes)).tolist()
    for name, count in zip(classes, counts, strict=True):
        if name in added and count < FEWEST:
            raise UserError(
                f"the class {name!r} has {count} different image{'s' * (count != 1)}, and needs {FEWEST} at "
                "least; add more, or leave it out"
            )


def _features(known: KnownImages, old: int) -> KnownFeatures:
    """Those of known images, the first ``old`` of which are dealt into folds as without the others."""
    keys = [row.tobytes() for row in known.digests.numpy()]
    parts = [deal_folds(keys[part], known.labels[part]) for part in (slice(old), slice(old, None))]
    return KnownFeatures(known.features.float(), known.labels, torch.cat(parts))


def _before(old: Recogniser, known: KnownImages) -> _Answers:
    """What was said of old images by fits without them; of those that were held out, where there are none."""
    if known.predicted is not None and known.scores is not None:
        chosen, predicted, scores = torch.ones(len(known), dtype=torch.bool), known.predicted, known.scores
    else:
        rows = describe_part(old, known.features[known.held_out].float())
        chosen, predicted = known.held_out, rows["predicted_class"]
        scores = rows[f"score/{old.threshold.score}"]
    return _Answers(chosen, predicted, is_unknown(scores, old.threshold.value))


def _with_classes(old: Recogniser, classes: Sequence[str]) -> Recogniser:
    work = copy_with(old, classes)
    for name in old.detectors:
        if name not in work.detectors:
            work.detectors[name] = DETECTORS[name].of(work.sampler)
    return work


def _rejected_by(recogniser: Recogniser, new: KnownImages) -> float | None:
    if not len(new):
        return None
    rows = describe_part(recogniser, new.features.float())
    return float(recogniser.threshold(rows[f"score/{recogniser.threshold.score}"]).double().mean())


def _examples(
    old: Recogniser,
    work: Recogniser,
    rows: Mapping[str, Tensor],
    images: FeaturedImages | None,
    begin: int,
    names: set[str],
) -> dict[str, Any]:
    """The pictures of the classes that stay, and one of each new class where the checkpoint keeps any."""
    kept = {name: pixels for name, pixels in old.examples.items() if name in work.spec.classes}
    if not old.examples or images is None:
        return kept
    own = {name: rows[name][begin:].cpu() for name in ("label", "predicted_class", "nll")}
    own["row"] = torch.arange(len(own["label"]))
    found = choose_examples(own, images, work.spec)
    for name in sorted(names & found.keys())[: max(0, MOST - len(kept))]:
        kept[name] = found[name]
    return kept


def _compared(
    before: _Answers, rows: Mapping[str, Tensor], work: Recogniser, places: Tensor, labels: Tensor
) -> dict[str, Any]:
    """What became of old images of the classes that stay.

    Args:
        before: to some of the old images.
        rows: of the old images of the classes that stay, and then of the new ones.
        work: with a threshold.
        places: ``(K,)``, the old classes' labels now; -1 of those that are taken out.
        labels: ``(N,)`` of the old images, as they were.
    """
    stays = places[labels] >= 0
    chosen = stays[before.chosen]
    here = (stays.cumsum(0) - 1)[before.chosen & stays]
    truth = places[labels[before.chosen & stays]]
    rejected = is_unknown(rows[f"score/{work.threshold.score}"][here], work.threshold.value)
    answers = [
        (places[before.predicted[chosen]], before.rejected[chosen]),
        (rows["predicted_class"][here], rejected),
    ]
    pairs: dict[str, list[float]] = {"accuracy": [], "closed_set": [], "rejected": []}
    for predicted, unknown in answers:
        right = predicted == truth
        pairs["accuracy"].append(float((right & ~unknown).double().mean()))
        pairs["closed_set"].append(float(right.double().mean()))
        pairs["rejected"].append(float(unknown.double().mean()))
    old, new = (predicted.where(~unknown, work.spec.num_classes) for predicted, unknown in answers)
    return {"count": len(truth), **pairs, "decisions_changed": float((old != new).double().mean())}


def _of_class(rows: Mapping[str, Tensor], work: Recogniser, label: int, begin: int) -> dict[str, Any]:
    mine = np.flatnonzero(rows["label"][begin:].numpy() == label) + begin
    rejected = is_unknown(rows[f"score/{work.threshold.score}"][mine], work.threshold.value)
    right = (rows["predicted_class"][mine] == label) & ~rejected
    if not len(mine):  # all of its images were known already
        return {"count": 0, "accuracy": None, "rejected": None}
    shares = (float(value.double().mean()) for value in (right, rejected))
    return {"count": len(mine), **dict(zip(("accuracy", "rejected"), shares, strict=True))}
