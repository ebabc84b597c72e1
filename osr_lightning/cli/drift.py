"""The command ``osr drift --ckpt_path CKPT predictions.csv``: has what comes in changed?"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from osr_lightning.atomic_write import replacing, write_text
from osr_lightning.cli.arguments import CommandParser, add_checkpoint, nearest, parse
from osr_lightning.cli.checkpoint_path import existing, telling_calibrated
from osr_lightning.deploy import sequential
from osr_lightning.deploy.drift import Distribution, Drift, Scores, Share, draw, drift, read, to_dict
from osr_lightning.deploy.load import is_exported
from osr_lightning.deploy.sequential import Sequential
from osr_lightning.errors import UserError, one_line
from osr_lightning.scoring.calibration import Calibration

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FEATURES = ".npz"  # what osr calibrate --features writes
ALARM = 3  # the exit status, beside 0 for none and 2 for a mistake


class Reference(NamedTuple):
    """What predictions are compared with: the name of a score, and the calibration of its threshold."""

    score: str
    calibration: Calibration


def reference(path: str, score: str | None = None) -> Reference:
    """The calibration in a checkpoint or an exported graph, with the scores of its known images.

    Args:
        path: of the file.
        score: whose; the score that decides if not given.

    Raises:
        UserError: if it is neither, or its threshold was not chosen on known images whose scores it
            keeps.
    """
    with telling_calibrated(Path(path), "osr drift --ckpt_path", score):
        known = _of_graph(path, score) if is_exported(path) else _of_checkpoint(path, score)
    if known.calibration.method == "fixed":
        raise UserError(
            f"{path}: its threshold is a number that was given, there are no calibration images to compare "
            "with; choose one with osr calibrate --ckpt_path CKPT --model.calibration known_quantile"
        )
    if not known.calibration.known_scores:
        raise UserError(
            f"{path} does not keep the scores of its calibration images, as an earlier version wrote it; "
            "run osr calibrate --ckpt_path CKPT again"
        )
    return known


def _of_checkpoint(path: str, score: str | None) -> Reference:
    from osr_lightning.recogniser import checkpoint as checkpoints
    from osr_lightning.scoring.detectors import DETECTORS
    from osr_lightning.scoring.scores import SCORES
    from osr_lightning.scoring.threshold import Threshold

    if score is not None and score not in SCORES and score not in DETECTORS:
        raise UserError(f"there is no score {score!r}; {nearest(score, (*SCORES, *DETECTORS))}")
    kept = checkpoints.read(path)
    with checkpoints.reading(path):
        recipe = kept["recogniser"]["recipe"]
        fixed = recipe.get("fixed") if score in (None, recipe["score"]) else None
        threshold = Threshold(score or recipe["score"], fixed)
        threshold.set_extra_state(kept["state_dict"][f"{checkpoints.PREFIX}threshold._extra_state"])
    return Reference(threshold.score, threshold.record)


def of_features(path: str, score: str | None, files: Sequence[str]) -> tuple[Reference, Scores]:
    """What ``osr calibrate --features`` wrote, and the scores that it gives features in files.

    Raises:
        UserError: where it keeps no threshold or another score is asked for, or a file holds no features, or
            such of another width.
    """
    from osr_lightning.cli.features import read_features
    from osr_lightning.sklearn import load

    model, found = load(path), []
    if score not in (None, model.score_name):
        raise UserError(f"{path} has the score {model.score_name} alone, not {score}; leave --score out")
    if model.calibration_ is None:
        raise UserError(f"{path} has no threshold, as it was fitted to too few samples; calibrate on more")
    for file in files:
        features, _ = read_features(file)
        if features.shape[1] != model.n_features_in_:
            raise UserError(
                f"{file} has {features.shape[1]:,} features a row, and {path} was fitted to "
                f"{model.n_features_in_:,}"
            )
        found.append(-model.score_samples(features))
    counts = [(file, len(scores)) for file, scores in zip(files, found, strict=True)]
    return Reference(model.score_name, model.calibration_), Scores(np.concatenate(found), 0, counts)


def _of_graph(path: str, score: str | None) -> Reference:
    from osr_lightning.deploy.onnx_runtime import ExportedRecogniser

    graph = ExportedRecogniser(path)
    graph.decide_by(score)
    return Reference(graph.threshold.score, graph.threshold.record)


def build_parser() -> argparse.ArgumentParser:
    """The parser; it imports nothing heavy."""
    parser = CommandParser(
        "osr drift",
        description="Compare predictions with the known images that chose the threshold: the share called "
        "unknown, and the distribution of the scores.",
        epilog="Exit status: 0 without, 3 with an alarm, 2 after a mistake. docs/deploy.md says more.",
    )
    parser.add_argument("predictions", nargs="+", metavar="CSV", help="of osr predict; all files together")
    add_checkpoint(parser, "the checkpoint that was asked", required=True)
    parser.add_argument("--score", help="the score that decided, where predict was given one")
    parser.add_argument(
        "--alpha",
        type=float,
        default=0.01,
        help="greatest probability of a false alarm, for each of the two tests; with --sequential of one "
        "ever (default: %(default)s)",
    )
    parser.add_argument(
        "--sequential",
        action="store_true",
        help="take the rows of all files in order, from the first prediction on: whoever looks every day, "
        "with one file more each time, ever gets a false alarm with probability at most alpha",
    )
    parser.add_argument("--output", metavar="FOLDER", help="where to write drift.json and drift.png")
    return parser


def main(arguments: Sequence[str]) -> int:
    """Run the command; returns the exit status.

    Raises:
        UserError: for a mistake in the options or files.
    """
    options = parse(build_parser(), arguments)
    if not 0 < options.alpha < 1:
        raise UserError(f"--alpha must lie between 0 and 1, got {options.alpha:g}")
    if options.output is not None and Path(options.output).exists() and not Path(options.output).is_dir():
        raise UserError(f"--output {options.output} is a file: name a folder")
    _refuse_twice(options.predictions)
    path = str(existing(options.ckpt_path))
    if path.lower().endswith(FEATURES):
        known, scores = of_features(path, options.score, options.predictions)
    else:
        known = reference(path, options.score)
        scores = read(options.predictions, known.score, known.calibration.value)
    record = {
        "checkpoint": options.ckpt_path,
        "predictions": options.predictions,
        "score": known.score,
        "errors": scores.errors,
    }
    calibration = known.calibration
    if options.sequential:
        bets = sequential.sequential(calibration, scores.values, scores.files, options.alpha)
        show(*_of_bets(bets, len(scores.values)), known, scores)
        alarm, record["sequential"] = bets.alarm, sequential.to_dict(bets)
        drawn = partial(sequential.draw, bets)
    else:
        found = drift(calibration, scores.values, options.alpha)
        show(*_of_tests(found, known.calibration), known, scores)
        alarm, record = found.alarm, record | to_dict(found)
        drawn = partial(draw, found, calibration, scores.values, known.score)
    if options.output is not None:
        write(Path(options.output), record | {"calibration": calibration.summary()}, drawn())
    return ALARM if alarm else 0


def _refuse_twice(files: Sequence[str]) -> None:
    seen: set[str] = set()
    for file in files:
        place = os.path.realpath(file)
        if place in seen:
            raise UserError(f"{file} is named twice, and its images would count twice: name it once")
        seen.add(place)


def write(folder: Path, record: dict[str, object], figure: Figure) -> None:
    """Write ``drift.json`` and ``drift.png``."""
    write_text(folder / "drift.json", json.dumps(record, indent=2) + "\n")
    with replacing(folder / "drift.png") as path:
        figure.savefig(path, dpi=120)


def show(rows: Sequence[Sequence[str]], verdict: str, known: Reference, scores: Scores) -> None:
    """Print a table, whose first row has its titles, and what follows from it."""
    from rich.console import Console

    from osr_lightning.evaluation.console import new_table

    console = Console(highlight=False, markup=False)
    table = new_table(console, *rows[0])
    for row in rows[1:]:
        table.add_row(*row)
    console.print(table)
    lines = [
        f"threshold {known.calibration.value:.6g} on {known.score}, calibrated on "
        f"{known.calibration.calibrated_on}"
    ]
    if scores.errors:
        lines.append(f"left out: {scores.errors:,} rows with an error")
    for line in (*lines, verdict):
        console.print(one_line(line), soft_wrap=True)


def _of_tests(found: Drift, calibration: Calibration) -> tuple[list[tuple[str, ...]], str]:
    """What both tests found, as rows and a sentence."""
    share, distribution = found.share, found.distribution
    rejected, range_ = f"{share.rejected / share.images:.2%}", f"{share.low:.2%} to {share.high:.2%}"
    medians = f"{distribution.median_expected:.4g}", f"{distribution.median:.4g}"
    rows: list[tuple[str, ...]] = [
        ("", "calibration", "predictions", "no alarm", "p-value"),
        ("images", f"{calibration.count_known:,}", f"{share.images:,}", "", ""),
        ("called unknown", f"{share.expected:.2%}", rejected, range_, _p_value(share)),
        ("median score", *medians, "", ""),
        ("KS distance", "", f"{distribution.statistic:.3f}", "", _p_value(distribution)),
    ]
    return rows, _verdict(found)


def _of_bets(found: Sequential, images: int) -> tuple[list[tuple[str, ...]], str]:
    """What the bets came to, file by file, as rows and a sentence."""
    rows: list[tuple[str, ...]] = [("predictions", "images", "wealth", "greatest so far")]
    for file in found.files:
        greatest = f"{_wealth(file.log10_greatest)}{' ALARM' if file.file == found.alarm_in else ''}"
        rows.append((one_line(file.file), f"{file.images:,}", _wealth(file.log10_wealth), greatest))
    limit = f"{1 / found.alpha:,.6g}"
    return rows, (
        f"alarm at image {found.alarm_at:,} of {images:,}, in {found.alarm_in}: there the wealth "
        f"reached {limit}, which happens without drift with probability at most {found.alpha:g}, ever"
        if found.alarm
        else f"no alarm: the wealth never reached {limit}"
    )


def _wealth(digits: float) -> str:
    return f"{10**digits:.3g}" if abs(digits) < 6 else f"10^{digits:.0f}"


def _p_value(test: Share | Distribution) -> str:
    return f"{test.p_value:.2g}{' ALARM' if test.alarm else ''}"


def _verdict(found: Drift) -> str:
    share = found.share
    if not found.alarm:
        return f"no alarm at alpha {found.alpha:g} per test"
    what = []
    if share.alarm:
        more = "more" if share.rejected / share.images > share.high else "fewer"
        what.append(f"{more} images are called unknown than calibration explains")
    if found.distribution.alarm:
        what.append("the scores are distributed otherwise than those of the calibration images")
    return f"alarm at alpha {found.alpha:g} per test: {', and '.join(what)}"
