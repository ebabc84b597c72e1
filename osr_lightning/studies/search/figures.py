"""Figures of a search, which Optuna draws. Importing this loads matplotlib: do it only to draw."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import matplotlib as mpl

if "matplotlib.pyplot" not in sys.modules:
    mpl.use("agg")  # Optuna draws with pyplot, and a search has no window

import optuna
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.trial import TrialState
from optuna.visualization import matplotlib as plots

from osr_lightning.evaluation.figures.style import COLORS, plain, shorten

_FEW = 4  # complete trials, below which importances say nothing
_OBJECTIVE = "OpenAUC on validation images"


def draw(study: optuna.Study) -> dict[str, Figure]:
    """Name -> figure, of what there are enough trials for."""
    complete = len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))
    if not complete:
        return {}
    found = {"history": history(study), "parallel_coordinates": parallel_coordinates(study)}
    if complete >= _FEW and (bars := importance(study)) is not None:
        found["importance"] = bars
    return found


def history(study: optuna.Study) -> Figure:
    """The objective of complete trials and the best until then; of pruned ones that of their best epoch."""
    with _optunas_style():
        axes = plots.plot_optimization_history(study, target_name=_OBJECTIVE)
        pruned = study.get_trials(deepcopy=False, states=(TrialState.PRUNED,))
        cut = {trial.number: trial.user_attrs["openauc"] for trial in pruned if "openauc" in trial.user_attrs}
        if cut:
            axes.scatter([*cut], [*cut.values()], marker="x", color=COLORS[1], label="pruned, its best epoch")
            axes.legend(loc="best")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        return _figure(axes)


def importance(study: optuna.Study) -> Figure | None:
    """Shares of the objective's variance, by PED-ANOVA (Watanabe et al. 2023); None where there are none."""
    with _optunas_style():
        try:
            axes = plots.plot_param_importances(
                study, evaluator=PedAnovaImportanceEvaluator(), target_name=_OBJECTIVE
            )
        except (ValueError, RuntimeError):  # all trials are equal
            return None
        names = [label.get_text() for label in axes.get_yticklabels()]
        axes.set_yticks(axes.get_yticks(), [shorten(name, 32) for name in names])
        return _figure(axes)


def parallel_coordinates(study: optuna.Study) -> Figure:
    """One line per complete trial through its objective and its values, the darker the better."""
    with _optunas_style():
        axes = plots.plot_parallel_coordinate(study, target_name=_OBJECTIVE)
        trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        names = [_OBJECTIVE, *sorted({n for trial in trials for n in trial.params})]
        labels = [
            plain(name).replace(".", ".\n").replace(" on ", "\non ") for name in names
        ]  # whole, which Optuna's are not
        axes.set_xticks(axes.get_xticks(), labels, rotation=0, fontsize="small")
        figure = _figure(axes)
        figure.set_size_inches(max(6.4, 1.6 * (len(names) + 1)), 4.8)
        for scale in figure.axes:
            if scale is not axes:
                scale.tick_params(labelsize="small")
                if isinstance(scale.yaxis.get_major_locator(), FixedLocator):  # choices, of any text
                    choices = [shorten(label.get_text()) for label in scale.get_yticklabels()]
                    scale.set_yticks(scale.get_yticks(), choices)
        return figure


@contextmanager
def _optunas_style() -> Iterator[None]:
    """Optuna's look for the figures that are made within, which neither stays nor warns."""
    with mpl.rc_context({"figure.constrained_layout.use": True}), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that its figures are experimental
        before = plt.get_fignums()
        try:
            yield
        finally:
            for number in set(plt.get_fignums()) - set(before):
                plt.close(number)


def _figure(axes: Axes) -> Figure:
    figure = axes.figure
    assert isinstance(figure, Figure)
    return figure
