"""What a search leaves behind: its trials as a table, the best as a config, figures, and a few lines."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, TrialState

from osr_lightning.atomic_write import replacing, replacing_rows, write_text
from osr_lightning.recogniser.rows import table_sink
from osr_lightning.studies.search.space import as_arguments
from osr_lightning.studies.search.storage import finished

_COLUMNS = ("accuracy", "auroc", "epoch", "epochs", "seconds", "process", "reason")


def best_trial(study: optuna.Study) -> FrozenTrial | None:
    """The complete trial of the best objective, of equal ones the first; None where there is none."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return max(complete, key=lambda trial: (trial.value, -trial.number), default=None)


def write_trials(study: optuna.Study, folder: Path) -> None:
    """Write ``trials.csv``: a row for every trial; ``epoch`` is the one it is judged by, from 0."""
    trials = study.get_trials(deepcopy=False)
    names = list(dict.fromkeys(name for trial in trials for name in trial.params))
    with replacing_rows(folder / "trials.csv") as file:
        write = table_sink(file, ["trial", "state", "openauc", *_COLUMNS, *names])
        for trial in trials:
            kept = [trial.user_attrs.get(name, "") for name in _COLUMNS]
            # of a pruned trial that of its best epoch, to look at
            value = trial.user_attrs.get("openauc", "") if trial.value is None else trial.value
            drawn = [trial.params.get(name, "") for name in names]
            write([[trial.number, trial.state.name.lower(), value, *kept, *drawn]])


def write_best(
    study: optuna.Study, folder: Path, arguments: Sequence[str], config_of: Callable[[list[str]], str]
) -> None:
    """Write ``best.yaml``: the whole config of the best trial, as ``osr run`` takes it.

    Args:
        study: of the search.
        folder: for the file.
        arguments: of every trial.
        config_of: the whole config that options resolve to.
    """
    best = best_trial(study)
    if best is None:
        return
    config = config_of([*arguments, *as_arguments(best.params)])
    head = f"# Trial {best.number} of the search {study.study_name}: {_numbers(best)} on validation images.\n"
    write_text(folder / "best.yaml", head + config)


def write_figures(study: optuna.Study, folder: Path) -> None:
    """Draw what there are enough trials for."""
    from osr_lightning.studies.search.figures import draw  # loads matplotlib

    for name, figure in draw(study).items():
        with replacing(folder / f"{name}.png") as partial:
            figure.savefig(partial, dpi=120)


def tell_trial(study: optuna.Study, number: int, trials: int) -> None:
    """Print a line on a trial that has just ended."""
    trial = next(one for one in study.get_trials(deepcopy=False) if one.number == number)
    how = _numbers(trial) if trial.state is TrialState.COMPLETE else str(trial.user_attrs.get("reason"))
    drawn = ", ".join(f"{name} {_short(value)}" for name, value in trial.params.items())
    best = best_trial(study)
    record = "" if best is None else f"; best {best.value:.4f} (trial {best.number})"
    print(f"trial {number} ({finished(study)} of {trials}): {how}{record}; {drawn}", flush=True)


def tell_best(study: optuna.Study, folder: Path, trials: int) -> None:
    """Print the best values and what to run next."""
    best = best_trial(study)
    if best is None:
        print(f"no trial is complete, of {finished(study)} that ended; {folder / 'trials.csv'} says why")
        return
    print(
        f"best of {max(trials, finished(study))} trials: {best.number}, {_numbers(best)} on validation images"
    )
    for name, value in best.params.items():
        print(f"  {name}: {_short(value)}")
    best_config, shown = (shlex.quote(str(path)) for path in (folder / "best.yaml", folder))
    print(f"next:\n  osr run --config {best_config}\n  tensorboard --logdir {shown}")


def _numbers(trial: FrozenTrial) -> str:
    kept = trial.user_attrs
    return f"OpenAUC {trial.value:.4f} (accuracy {kept['accuracy']:.2%}, AUROC {kept['auroc']:.4f})"


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
