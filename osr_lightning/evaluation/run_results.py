"""The headline numbers of a run's results, for the console and for notebooks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from osr_lightning.errors import UserError
from osr_lightning.evaluation.report.render import percent, rate, read_results


class SummaryRow(NamedTuple):
    """A line of the table at the end of a test.

    Attributes:
        name: of the images.
        images: how many they are; None for a mean over sets.
        accuracy: in [0, 1]; None where there are none.
        rates: AUROC and FPR95; none of known images.
        total: whether this is the line of all images.
    """

    name: str
    images: int | None
    accuracy: float | None
    rates: tuple[float | None, ...] = ()
    total: bool = False

    @property
    def cells(self) -> tuple[str, ...]:
        """Name, images, accuracy and rates as text."""
        images = "" if self.images is None else f"{self.images:,}"
        return self.name, images, percent(self.accuracy), *map(rate, self.rates)


def threshold_line(results: Mapping[str, Any]) -> str:
    """The threshold, whose it is and where it is from."""
    threshold = results["threshold"]
    return (
        f"threshold {threshold['value']:.6g} on the score {results['score']['name']} by "
        f"{threshold['method']}, from {threshold['calibrated_on']}"
    )


def summary_heads(results: Mapping[str, Any]) -> tuple[str, ...]:
    """What stands above the columns of `summary_rows`."""
    return ("", "images", "accuracy", *(("AUROC", "FPR95 known") if results["unknown"] else ()))


def summary_rows(results: Mapping[str, Any]) -> Iterator[SummaryRow]:
    """The headline numbers of ``results.json``."""
    unknown, closed, pooled = results["unknown"], results["closed_set"], results["open_set"]
    yield SummaryRow("known, none rejected", closed["count"], closed["accuracy"])
    yield SummaryRow("known", pooled["count_known"], pooled["known_accuracy"])
    for name, found in unknown.items():
        rates = found["auroc"], found["fpr95_known"]
        yield SummaryRow(f"unknown: {name}", found["count_unknown"], found["unknown_accuracy"], rates)
    for name, found in results.get("groups", {}).items():
        yield SummaryRow(
            f"mean of {name}", None, found["unknown_accuracy"], (found["auroc"], found["fpr95_known"])
        )
    if unknown:
        total = pooled["count_known"] + pooled["count_unknown"]
        rates = pooled["auroc"], pooled["fpr95_known"]
        yield SummaryRow("total", total, pooled["total_accuracy"], rates, total=True)
        yield SummaryRow("known or unknown?", total, pooled["binary_accuracy"], (pooled["binary_auroc"],))


class RunResults(dict[str, Any]):
    """The content of a run's ``results.json``, which a notebook shows as a table.

    Attributes:
        folder: of the run; None where nothing was written.
    """

    def __init__(self, results: Mapping[str, Any], folder: Path | None = None) -> None:
        super().__init__(results)
        self.folder = folder

    @classmethod
    def read(cls, folder: str | Path) -> RunResults:
        """Those of a run folder.

        Raises:
            UserError: where it has none, or a damaged one.
        """
        path = Path(folder).expanduser()
        return cls(read_results(path), path)

    def figure(self, name: str) -> Path:
        """The file of a figure, as ``roc`` or ``tsne``, for ``IPython.display.Image``.

        Raises:
            UserError: naming those that there are.
        """
        files = {} if self.folder is None else {p.stem: p for p in (self.folder / "figures").glob("*.png")}
        if name not in files:
            raise UserError(f"the run has no figure {name!r}; it has {', '.join(sorted(files)) or 'none'}")
        return files[name]

    def _repr_html_(self) -> str:
        """The table at the end of a test, the threshold, and where the report is."""
        head = "".join(f"<th>{title}</th>" for title in summary_heads(self))
        body = ""
        for row in summary_rows(self):
            bold = ' style="font-weight:bold"' if row.total else ""
            body += f"<tr{bold}>" + "".join(f"<td>{escape(cell)}</td>" for cell in row.cells) + "</tr>"
        said = threshold_line(self)
        if self["threshold"]["optimistic"]:
            said += "; optimistic: test images chose it"
        if self.folder is not None:
            said += f". Report: {self.folder / 'report.html'}"
        caption = f"<caption>{escape(str(self['experiment']))}</caption>"
        return f"<table>{caption}<tr>{head}</tr>{body}</table><p>{escape(said)}</p>"
