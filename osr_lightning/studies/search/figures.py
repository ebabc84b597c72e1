"""Figures of a search. Importing this loads matplotlib: do it only to draw."""

from __future__ import annotations

import warnings

import numpy as np
import optuna
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from osr_lightning.evaluation.figures.style import COLORS, GREY, colormap, dress, new_axes, plain, shorten

_FEW = 4  # complete trials, below which importances say nothing


def draw(study: optuna.Study) -> dict[str, Figure]:
    """Name -> figure, of what there are enough trials for."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    pruned = study.get_trials(deepcopy=False, states=(TrialState.PRUNED,))
    if not complete:
        return {}
    found = {"history": history(complete, pruned), "parallel_coordinates": parallel_coordinates(complete)}
    importances = importance(study) if len(complete) >= _FEW else {}
    if importances:
        found["importance"] = importance_bars(importances)
    return found


def history(complete: list[FrozenTrial], pruned: list[FrozenTrial]) -> Figure:
    """The objective of every trial and the best until then; of pruned ones that of their best epoch."""
    figure, axes = new_axes()
    number = [trial.number for trial in complete]
    value = np.array([trial.value for trial in complete], np.float64)
    axes.step(number, np.maximum.accumulate(value), where="post", color=COLORS[0], label="best so far")
    low = value.max() - 1.3 * (value.max() - np.quantile(value, 0.1))  # bad trials would flatten all others
    cut = [(trial.number, trial.user_attrs["openauc"]) for trial in pruned if "openauc" in trial.user_attrs]
    for found, mark, color, name in (
        (zip(number, value, strict=True), "o", GREY, "complete"),
        (cut, "x", COLORS[1], "pruned"),
    ):
        points = list(found)
        if points:
            at, height = np.array(points, np.float64).T
            label = f"{name} ({len(points):,}; {(height < low).sum():,} of them lower than shown)"
            axes.plot(at, np.maximum(height, low), mark, color=color, label=label, clip_on=False)
    if value.max() > low:
        axes.set_ylim(low, value.max() + 0.1 * (value.max() - low))
    axes.set(title="Search", xlabel="trial", ylabel="OpenAUC on validation images")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="best", fontsize="small")
    return figure


def importance(study: optuna.Study) -> dict[str, float]:
    """Option -> its share of the objective's variance, by PED-ANOVA (Watanabe et al. 2023); or empty."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = optuna.importance.get_param_importances(
                study, evaluator=optuna.importance.PedAnovaImportanceEvaluator()
            )
        except (ValueError, RuntimeError):  # all trials are equal
            return {}
    return {name: float(value) for name, value in found.items() if np.isfinite(value)}


def importance_bars(importances: dict[str, float]) -> Figure:
    """One bar per option, the most important on top."""
    names = sorted(importances, key=lambda name: importances[name])
    figure, axes = new_axes(6.4, 1.4 + 0.35 * len(names))
    bars = axes.barh([shorten(name, 32) for name in names], [importances[n] for n in names], color=COLORS[0])
    axes.bar_label(bars, fmt="%.2f", padding=3, fontsize="small")
    axes.grid(visible=False, axis="y")
    axes.set(title="Importance of the options", xlabel="share of the objective's variance (PED-ANOVA)")
    axes.margins(x=0.1)
    return figure


def parallel_coordinates(complete: list[FrozenTrial]) -> Figure:
    """One line per complete trial through its values, the darker the better; the best is drawn on top."""
    names = list(dict.fromkeys(name for trial in complete for name in trial.params))
    figure = Figure(figsize=(max(6.4, 1.5 * (len(names) + 1)), 4.8), layout="constrained")
    axes = dress(figure.add_subplot())
    axes.grid(visible=False, axis="y")
    value = np.array([trial.value for trial in complete], np.float64)
    norm = Normalize(
        np.quantile(value, 0.1), value.max() if value.max() > value.min() else value.max() + 1e-9
    )
    columns = [[_place(trial, name) for trial in complete] for name in names]
    for row in np.argsort(value, kind="stable"):
        axes.plot(
            [column[row] for column in columns],
            color=colormap("Blues")(0.15 + 0.85 * float(np.clip(norm(value[row]), 0, 1))),
            linewidth=1.2,
            marker="." if len(names) == 1 else None,
        )
    best = int(value.argmax())
    axes.plot([column[best] for column in columns], color=COLORS[1], linewidth=2.2, marker="o", label="best")
    for at, name in enumerate(names):
        _label(axes, at, next(t.distributions[name] for t in complete if name in t.params))
    axes.set_xticks(range(len(names)), [plain(name).replace(".", ".\n") for name in names], fontsize="small")
    axes.set(
        title="Values of the complete trials", ylim=(-0.06, 1.06), yticks=[], xlim=(-0.2, len(names) - 0.4)
    )
    axes.spines["left"].set_visible(False)
    axes.legend(loc="upper right", fontsize="small")
    figure.colorbar(ScalarMappable(norm, colormap("Blues")), ax=axes, label="OpenAUC on validation images")
    return figure


def _place(trial: FrozenTrial, name: str) -> float:
    """Where a trial's value lies between the ends of its range, in [0, 1]."""
    value, distribution = trial.params[name], trial.distributions[name]
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices.index(value) / max(1, len(distribution.choices) - 1)
    assert isinstance(distribution, (FloatDistribution, IntDistribution))
    low, high = distribution.low, distribution.high
    if distribution.log:
        low, high, value = np.log(low), np.log(high), np.log(value)
    return float((value - low) / (high - low))


def _label(axes: Axes, at: int, distribution: object) -> None:
    """Write the values beside the axis of an option."""
    if isinstance(distribution, CategoricalDistribution):
        texts = [str(choice) for choice in distribution.choices]
        places = np.linspace(0, 1, max(2, len(texts)))[: len(texts)]
    else:
        assert isinstance(distribution, (FloatDistribution, IntDistribution))
        texts, places = [f"{distribution.low:.3g}", f"{distribution.high:.3g}"], np.array([0.0, 1.0])
    axes.axvline(at, color=GREY, linewidth=0.8, zorder=0)
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 1}
    for text, place in zip(texts, places, strict=True):
        axes.text(at + 0.04, place, shorten(text, 14), fontsize="small", va="center", bbox=box, zorder=5)
