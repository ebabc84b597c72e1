"""What the HTML pages share: reading a run folder, and the template engine with its number formats."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from osr_lightning.errors import UserError

NOTHING = "-"  # in place of what the images left undefined


def read_results(run_dir: Path) -> dict[str, Any]:
    """Read a run folder's ``results.json``.

    Args:
        run_dir: a run folder of ``osr run`` or ``osr test``.

    Raises:
        UserError: if the folder or the file is missing, or the file does not hold results.
    """
    path = run_dir / "results.json"
    if not run_dir.is_dir():
        raise UserError(f"{run_dir} is no run folder: it does not exist; give one that 'osr test' wrote")
    if not path.is_file():
        raise UserError(f"{run_dir} is no run folder: it has no results.json; write one with 'osr test'")
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}): write it again with 'osr test'") from error
    if not isinstance(results, dict) or results.get("schema_version") != 2:
        raise UserError(f"{path} is not of schema_version 2: write it again with 'osr test'")
    return results


def render(template: str, **values: object) -> str:
    """Fill one of the package's templates; text is escaped, and a missing key shows as a dash.

    Args:
        template: file name in ``templates/``.
        values: what the template names.
    """
    from jinja2 import ChainableUndefined, Environment, PackageLoader

    environment = Environment(
        loader=PackageLoader("osr_lightning.evaluation"),
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
        "text": text,
    }
    return environment.get_template(template).render(**values)


def percent(value: object) -> str:
    """A share as percent with two decimals."""
    return f"{value:.2%}" if _is_number(value) else NOTHING


def rate(value: object) -> str:
    """A rate with four decimals."""
    return f"{value:.4f}" if _is_number(value) else NOTHING


def count(value: object) -> str:
    """A count with separated thousands."""
    return f"{value:,.0f}" if _is_number(value) else NOTHING


def general(value: object) -> str:
    """Any number, to six digits."""
    return f"{value:.6g}" if _is_number(value) else NOTHING


def text(value: object) -> str:
    """A setting of any kind: text, number, truth, or a mapping on one line."""
    if _is_number(value):
        return general(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{key} {text(item)}" for key, item in value.items())
    # jinja's undefined is not None, but empty as text
    return NOTHING if value is None else str(value) or NOTHING


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
