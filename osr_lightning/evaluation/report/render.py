"""What the HTML pages share: reading a run folder, and the template engine with its number formats."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from osr_lightning.atomic_write import refuse_outside
from osr_lightning.errors import UserError
from osr_lightning.evaluation.retest import reading, retest_command
from osr_lightning.scoring.calibration import is_finite

if TYPE_CHECKING:
    from jinja2 import Environment

NOTHING = "-"  # in place of what the images left undefined
_DEEPEST = 20  # mappings in one another
# where results.json has mappings, and each entry (*) of those; a missing one shows as a dash
_MAPPINGS = (
    *("model", "data", "score", "threshold", "achieved", "timing", "versions"),
    *("closed_set", "open_set", "unknown", "groups", "scores", "intervals", "left_out"),
    *("closed_set.per_class", "scores.*.pooled", "scores.*.unknown", "scores.*.unknown.*"),
    *("left_out.classes", "left_out.classes.*.mistaken_for"),
)
_ENTRIES = ("unknown.*", "groups.*", "scores.*", "left_out.classes.*")  # none of which may be missing
_NAMES = ("classes", "warnings", "groups.*.sets")


def read_results(run_dir: Path) -> dict[str, Any]:
    """Read a run folder's ``results.json``.

    Args:
        run_dir: a run folder of ``osr run`` or ``osr test``.

    Raises:
        UserError: if the folder or the file is missing, the file does not hold results, or the folder holds
            a link that leads out of it.
    """
    path = run_dir / "results.json"
    if not run_dir.is_dir():
        why = "it is a file" if run_dir.exists() else "it does not exist"
        raise UserError(f"{run_dir} is no run folder: {why}; give one that 'osr test' wrote")
    if not path.is_file():
        raise UserError(
            f"{run_dir} is no run folder: it has no results.json; write it with {retest_command(run_dir)}"
        )
    refuse_outside(run_dir)
    with reading(path):
        results = _plain(json.loads(path.read_text(encoding="utf-8")))
        if isinstance(results, dict):
            _refuse_misfits(results)
    if not isinstance(results, dict) or results.get("schema_version") != 2:
        raise UserError(f"{path} is not of schema_version 2: write it again with {retest_command(run_dir)}")
    return results


def _plain(value: Any, depth: int = 0) -> Any:  # noqa: ANN401 - whatever the JSON holds
    """The same without what no page can hold: lone surrogates, and numbers that are not finite."""
    if depth > _DEEPEST:
        raise ValueError("it is nested too deep")
    if isinstance(value, dict):
        return {_plain(key): _plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item, depth + 1) for item in value]
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _refuse_misfits(results: dict[str, Any]) -> None:
    """Stop where a part is of another kind than its readers count on."""
    for places, kinds in ((_MAPPINGS, (dict, type(None))), (_ENTRIES, dict)):
        for place in places:
            if not all(isinstance(found, kinds) for found in _at(results, place.split("."))):
                raise ValueError(f"{place} is no mapping")
    for place in _NAMES:
        for names in _at(results, place.split(".")):
            if names is not None and not (isinstance(names, list) and all(isinstance(n, str) for n in names)):
                raise ValueError(f"{place} is no list of text")


def _at(value: object, place: Sequence[str]) -> Iterator[object]:
    """What stands at a place below mappings, each entry of one for a star; None where there is nothing."""
    if not place:
        yield value
    elif isinstance(value, dict):
        for below in value.values() if place[0] == "*" else [value.get(place[0])]:
            yield from _at(below, place[1:])


def render(template: str, **values: object) -> str:
    """Fill one of the package's templates; text is escaped, and a missing key shows as a dash.

    Args:
        template: file name in ``templates/``.
        values: what the template names.
    """
    return _environment().get_template(template).render(**values)


@functools.cache  # with the templates that it has compiled, which takes most of the time of a page
def _environment() -> Environment:
    from jinja2 import ChainableUndefined, Environment, PackageLoader

    environment = Environment(
        loader=PackageLoader("osr_lightning.evaluation.report"),
        autoescape=True,
        undefined=ChainableUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": percent,
        "rate": rate,
        "count": count,
        "general": general,
        "seconds": seconds,
        "text": text,
    }
    return environment


def _written(shape: str) -> Callable[[object], str]:
    """What writes a number in this shape, and a dash for what is none."""
    return lambda value: format(value, shape) if is_finite(value) else NOTHING


percent = _written(".2%")  # of a share
rate = _written(".4f")
count = _written(",.0f")
seconds = _written(".2f")
general = _written(".6g")  # of any number


def text(value: object) -> str:
    """A setting of any kind: text, number, truth, or a mapping on one line."""
    if is_finite(value):
        return general(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{key} {text(item)}" for key, item in value.items())
    # jinja's undefined is not None, but empty as text
    return NOTHING if value is None else str(value) or NOTHING
