"""The model card of a run: ``README.md`` in its folder, in the form that model hubs read."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from osr_lightning.atomic_write import write_text
from osr_lightning.data_spec import UNKNOWN
from osr_lightning.errors import UserError, one_line
from osr_lightning.evaluation.report.places import without_folders
from osr_lightning.evaluation.report.render import read_results
from osr_lightning.evaluation.report.write import verdict
from osr_lightning.evaluation.retest import retest_command
from osr_lightning.evaluation.run_results import summary_rows

NAME = "README.md"
MOST_CLASSES = 100  # that are named; the checkpoint has all
_MARK = "<!-- as osr_lightning wrote it: {} -->"
_MARKED = re.compile(r"\n<!-- as osr_lightning wrote it: ([0-9a-f]{16}) -->\n\Z")


def write_card(run_dir: Path, licence: str | None = None, place: str | None = None) -> Path:
    """Write the model card from a run folder's ``results.json``; one that a person has changed stays.

    Args:
        run_dir: of the run.
        licence: of the weights, as hubs name it (``mit``, ``apache-2.0``); not stated if not given.
        place: from where it is loaded; the checkpoint's file if not given.

    Returns:
        Its path.

    Raises:
        UserError: where the folder has no results, or lacks parts of them.
    """
    path = run_dir / NAME
    if path.is_file() and not _is_own(path.read_text(encoding="utf-8", errors="replace")):
        return path
    try:
        text = card(read_results(run_dir), licence, place)
    except (KeyError, TypeError, AttributeError) as error:  # of an earlier version
        raise UserError(
            f"{run_dir / 'results.json'} lacks what a model card says: write it again with "
            f"{retest_command(run_dir)}"
        ) from error
    write_text(path, f"{text}\n{_MARK.format(_digest(text))}\n", "backslashreplace")
    return path


def card(results: dict[str, Any], licence: str | None = None, place: str | None = None) -> str:
    """The model card of ``results.json``, Markdown below the YAML that hubs read."""
    model, data, threshold = results["model"], results["data"], results["threshold"]
    known, classes = data["known"], results["classes"]
    shown = [_cell(name) for name in classes[:MOST_CLASSES]]
    more = f" and {len(classes) - len(shown):,} more" if len(classes) > len(shown) else ""
    colour = "grey" if data["channels"] == 1 else "colour"
    samples = model["num_samples"]
    mirrored = " and of its mirror image" if model.get("mirror") else ""
    lines = [
        *("---", "library_name: osr_lightning", "pipeline_tag: image-classification"),
        *(["license: " + json.dumps(licence)] if licence else []),
        *(
            "tags:",
            "- open-set-recognition",
            "- out-of-distribution-detection",
            "- pytorch-lightning",
            "---",
            "",
        ),
        *(f"# {_cell(results['experiment'])}", ""),
        f"An image classifier that answers `{UNKNOWN}` to what is none of its classes. {verdict(results)}",
        *("", "## What it knows", ""),
        f"{len(classes):,} classes: {', '.join(shown)}{more}.",
        *("", "## How it was trained", ""),
        f"- network: {_cell(model['network'])} ({model['parameters']:,} weights), {samples} "
        f"sample{'s' * (samples != 1)} of each image{mirrored}, {colour} images of {data['image_size']} "
        "pixels a side",
        f"- known images: {_cell(without_folders(known['source']))}, {known['train']:,} for training and "
        f"{known['validation']:,} for validation",
        f"- seed {results['seed']}; "
        + ", ".join(f"{name} {version}" for name, version in results["versions"].items()),
        *("", "## How its threshold was chosen", ""),
        f"An image is called `{UNKNOWN}` where the score `{results['score']['name']}` is greater than "
        f"{threshold['value']:.6g}: chosen by `{threshold['method']}` from "
        f"{_cell(without_folders(threshold['calibrated_on']))}. Guarantee: {_cell(threshold['guarantee'])}.",
        *("", "## Results", "", "| | images | accuracy | AUROC | FPR95 known |", "|---|---|---|---|---|"),
    ]
    for row in summary_rows(results):
        name, *numbers = [*row.cells, "", ""][:5]
        lines.append("| " + " | ".join([_cell(name), *numbers]) + " |")
    lines += [
        "",
        "A known image is right where its class is and it is not rejected, an unknown one where it is.",
        *("", "## Limits", ""),
        *(f"- {_cell(warning)}" for warning in results.get("warnings") or ()),
    ]
    if threshold["optimistic"]:
        lines.append("- test images chose the threshold, so these results flatter it")
    if left_out := results.get("left_out"):
        lines.append(
            f"- of a class that it has never met, about {left_out['rejected']:.0%} would be called "
            f"`{UNKNOWN}` (AUROC {left_out['auroc']:.2f}), by leaving out each known class once"
        )
    lines += [
        "- images of another camera, crop or background than the known ones may be called unknown more "
        "often; `osr drift` tests for it",
        *("", "## Licence", ""),
        f"{licence}." if licence else "Not stated by who trained it.",
        *("", "## How to load it", "", "```python", "from osr_lightning import load", ""),
        f"recogniser = load({json.dumps(place or 'checkpoints/best.ckpt')})",
        'print(recogniser.predict("image.png"))',
        "```",
    ]
    return "\n".join(lines) + "\n"


def _cell(text: object) -> str:
    """Text that is no Markdown of its own and stays in its cell."""
    return re.sub(r"([\\`*_{}\[\]<>|#])", r"\\\1", one_line(str(text)))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="backslashreplace")).hexdigest()[:16]


def _is_own(text: str) -> bool:
    found = _MARKED.search(text)
    return found is not None and _digest(text[: found.start()]) == found[1]
