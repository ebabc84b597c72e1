"""``osr calibrate --features FILE``: a recogniser of features that somebody else's network made."""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from osr_lightning.atomic_write import check_place
from osr_lightning.cli.arguments import CommandParser, parse
from osr_lightning.errors import UserError, one_line
from osr_lightning.scoring.quantile import images_needed
from osr_lightning.sklearn import OpenSetClassifier, save

OPTION = "--features"
_LABEL = "label"


def build_parser() -> argparse.ArgumentParser:
    """The parser."""
    parser = CommandParser(
        "osr calibrate",
        description="Fit a linear classifier, a score and a threshold to features of known images, and write "
        "them as one file, with which osr drift compares features that come later. docs/scikit-learn.md.",
    )
    parser.add_argument(
        OPTION,
        required=True,
        metavar="FILE",
        help=".npz with arrays features (N, D) and labels (N,), or .csv with a column label",
    )
    parser.add_argument("--output", required=True, metavar="FILE.npz", help="where to write it")
    parser.add_argument(
        "--score", default="fisher", help="that tells unknown from known (default: %(default)s)"
    )
    parser.add_argument(
        "--alpha",
        type=float,
        default=0.05,
        help="share of known images that may be called unknown (default: %(default)s)",
    )
    parser.add_argument(
        "--unit_length",
        action="store_true",
        help="centre features and bring them to one length, as suits those of a pretrained network",
    )
    parser.add_argument(
        "--style",
        type=int,
        default=0,
        metavar="N",
        help="how many of the last values are an image's style, which fisher alone looks at "
        "(default: %(default)s)",
    )
    return parser


def main(arguments: Sequence[str]) -> None:
    """Run the command.

    Raises:
        UserError: for a mistake in the options or the file.
    """
    options = parse(build_parser(), arguments)
    output = check_place("--output", options.output, (".npz",))
    features, labels = read_features(options.features)
    if output.exists() and output.samefile(Path(options.features).expanduser()):
        raise UserError(f"--output {options.output} is the file of the features: name another file")
    if labels is None:
        wanted = "an array labels" if options.features.lower().endswith(".npz") else f"a column {_LABEL}"
        raise UserError(f"{options.features} has no labels, which calibration needs: add {wanted}")
    if not 0 < options.alpha < 1:
        raise UserError(f"--alpha must lie between 0 and 1, got {options.alpha:g}")
    if len(labels) < (needed := images_needed(options.alpha)):
        raise UserError(
            f"--alpha {options.alpha:g} needs {needed:,} samples, and {options.features} has "
            f"{len(labels):,}; raise it"
        )
    given = {"score_name": options.score, "alpha": options.alpha, "unit_length": options.unit_length}
    model = OpenSetClassifier(**given, style=options.style).fit(features, labels)
    assert model.calibration_ is not None
    save(model, output)
    print(
        one_line(
            f"{output}: {len(model.classes_):,} classes, {len(labels):,} samples, threshold "
            f"{model.threshold_:.6g} on {options.score}: {model.calibration_.guarantee}"
        )
    )


def read_features(path: str) -> tuple[NDArray[np.float64], NDArray[np.str_] | None]:
    """Features ``(N, D)`` of a file, and labels ``(N,)`` as text where it has them.

    Raises:
        UserError: where the file is no table of numbers.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"there is no file {path}; name an .npz or .csv file of features")
    try:
        features, labels = _of_npz(file) if file.suffix.lower() == ".npz" else _of_csv(file)
    except (OSError, ValueError, KeyError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} is no table of features ({' '.join(str(error).split())}): give an .npz with arrays "
            f"features and labels, or a .csv whose columns are numbers but for {_LABEL}"
        ) from error
    if features.ndim != 2 or not len(features) or (labels is not None and labels.shape != (len(features),)):
        shapes = f"{features.shape}" + ("" if labels is None else f" and {labels.shape}")
        raise UserError(f"{path} has features and labels of shape {shapes}; (N, D) and (N,) are needed")
    if not np.isfinite(features).all():
        rows = np.flatnonzero(~np.isfinite(features).all(axis=1))
        raise UserError(
            f"{path} has numbers that are not finite, first in row {rows[0] + 1:,}; leave such rows out"
        )
    return features, labels


def _of_npz(file: Path) -> tuple[NDArray[np.float64], NDArray[np.str_] | None]:
    with np.load(file, allow_pickle=False) as kept:
        labels = kept["labels"].astype(str) if "labels" in kept else None
        return kept["features"].astype(np.float64), labels


def _of_csv(file: Path) -> tuple[NDArray[np.float64], NDArray[np.str_] | None]:
    with file.open(newline="", encoding="utf-8-sig") as lines:
        head, *rows = csv.reader(lines)
    place = head.index(_LABEL) if _LABEL in head else None
    labels = None if place is None else np.array([row[place] for row in rows])
    numbers = [[float(cell) for at, cell in enumerate(row) if at != place] for row in rows]
    return np.array(numbers), labels
