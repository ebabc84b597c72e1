"""A classifier that was trained elsewhere: which of its outputs is which class, and whether that is so."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from osr_lightning.data.image_table import ImageTable, ImageTables
from osr_lightning.data_spec import composed
from osr_lightning.errors import UserError, did_you_mean
from osr_lightning.models.modes import evaluating
from osr_lightning.recogniser.recogniser import Recogniser
from osr_lightning.training.console import say

_AT_ONCE = 512  # images that are looked at together
_CLASSES = "--classes FILE, one name a line in the order of the outputs"


def read_names(path: Path) -> tuple[str, ...]:
    """The names of a classifier's outputs, in their order.

    Args:
        path: of a text file with a name a line; or of JSON, a list of names, or a mapping from numbers to
            names or from names to numbers.

    Raises:
        UserError: where it is none of these, or a name occurs twice.
    """
    try:
        text = path.expanduser().read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"--classes {path} is no text: write a name a line, in UTF-8") from error
    except OSError as error:
        raise UserError(f"--classes {path} cannot be read ({error.strerror}); name another file") from error
    if text.lstrip().startswith(("[", "{")):
        names = _of_json(text, path)
    else:
        names = [line.strip() for line in text.splitlines() if line.strip()]
    found = composed(names)
    if twice := [name for name in dict.fromkeys(found) if found.count(name) > 1]:
        raise UserError(f"--classes {path} names {twice[0]!r} twice; each output has a name of its own")
    return found


def _of_json(text: str, path: Path) -> list[str]:
    wrong = UserError(
        f"--classes {path} is no JSON list of names, nor a mapping of names and the numbers from 0 on"
    )
    try:
        content = json.loads(text)
    except ValueError as error:
        raise wrong from error
    if isinstance(content, dict):
        if all(isinstance(value, int) for value in content.values()):  # as torchvision's class_to_idx
            content = {str(number): name for name, number in content.items()}
        keys = [str(number) for number in range(len(content))]
        if content.keys() != {*keys}:
            raise wrong
        content = [content[key] for key in keys]
    if not isinstance(content, list) or not all(isinstance(name, str) for name in content):
        raise wrong
    return content


def choose_outputs(classes: Sequence[str], names: Sequence[str] | None, outputs: int) -> list[int] | None:
    """Which outputs are the known classes, in their order; None where they are all of them in theirs.

    Args:
        classes: the known ones.
        names: of the outputs; those of the classes if not given.
        outputs: how many there are.

    Raises:
        UserError: where they cannot be told.
    """
    if names is None:
        if outputs != len(classes):
            raise UserError(
                f"the classifier has {outputs:,} outputs, and there are {len(classes):,} known classes: say "
                f"which output is which with {_CLASSES}"
            )
        return None
    if len(names) != outputs:
        raise UserError(
            f"--classes has {len(names):,} names, and the classifier {outputs:,} outputs: name each"
        )
    known = composed(classes)
    if strangers := [name for name in known if name not in names]:
        way_out = "name it there, rename its folder, or leave it out of data.known_classes"
        raise UserError(
            f"--classes has no {strangers[0]!r}, which is a known class; "
            f"{did_you_mean(strangers[0], names, way_out, repr)}"
        )
    return [names.index(name) for name in known]


@torch.no_grad()
def check_order(recogniser: Recogniser, tables: ImageTables, names: Sequence[str] | None = None) -> float:
    """See how many known images the classifier names rightly, and stop where it names hardly any.

    A share of 1 / K is chance. Below twice that, or below the middle between it and 1, as 3 in 4 of two
    classes, the outputs are in another order than the classes.

    Args:
        recogniser: with the classifier.
        tables: of the images.
        names: of its outputs, in their order; those of the classes if not given.

    Returns:
        The mean of the classes' shares.

    Raises:
        UserError: with that number and, where they show, the outputs that the classes have.
    """
    classes = recogniser.spec.classes
    count = len(classes)
    counts = torch.zeros(count, count)
    for table in tables.load_training():
        counts += _confusion(recogniser, table)
    shares = counts / counts.sum(1, keepdim=True).clamp(min=1)
    seen = counts.sum(1) > 0
    right = float(shares.diagonal()[seen].mean())
    say(
        f"the classifier names {right:.1%} of {int(counts.sum()):,} known images rightly (mean over classes; "
        f"chance is {1 / count:.1%})"
    )
    answers = shares.argmax(1).tolist()
    others = [label for label in range(count) if seen[label] and answers[label] != label]
    told = ", ".join(f"{classes[label]} -> {classes[answers[label]]}" for label in others[:5])
    told += ", …" * (len(others) > 5)
    if right < min(2 / count, (1 + 1 / count) / 2):
        order = [*(names or classes)[:5], *(["…"] if len(names or classes) > 5 else [])]
        way_out = f"give {_CLASSES}" if names is None else "see to the order in --classes"
        raise UserError(
            f"the classifier names {right:.1%} of the known images rightly, where chance is {1 / count:.1%} "
            f"(it answers {told}): its outputs were taken for {', '.join(order)} in "
            f"this order, and if that is wrong, {way_out}; if its images are prepared otherwise, give its "
            "data.mean, data.std and data.image_size; else it has learned too little of them to be wrapped"
        )
    if others:
        say(f"warning: most images of a class are called another ({told}): see to the order in --classes")
    return right


def _confusion(recogniser: Recogniser, table: ImageTable) -> Tensor:
    """``(K, K)``, how many images of each class are called each."""
    count = recogniser.spec.num_classes
    device = next(recogniser.parameters()).device
    found = torch.zeros(count * count)
    with evaluating(recogniser):
        for rows in torch.split(torch.arange(len(table)), _AT_ONCE):
            batch = table.__getitems__(rows.tolist())
            answers = recogniser.describe(batch.image.to(device))["predicted_class"].cpu()
            found += torch.bincount(batch.label * count + answers, minlength=count * count)
    return found.view(count, count)
