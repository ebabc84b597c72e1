"""A search of options with Optuna, on validation images alone: its trials, one after another."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import optuna
from optuna.trial import TrialState

from osr_lightning.data.sources import shared_sets
from osr_lightning.errors import Diverged, UserError
from osr_lightning.studies.search.objective import Judge
from osr_lightning.studies.search.outputs import (
    tell_best,
    tell_trial,
    write_best,
    write_figures,
    write_trials,
)
from osr_lightning.studies.search.space import Space
from osr_lightning.studies.search.storage import (
    finished,
    running_elsewhere,
    started,
    undisturbed,
)
from osr_lightning.studies.search.trials import trial_arguments
from osr_lightning.training.console import silence


class Search(NamedTuple):
    """What the trials of a search have in common.

    Attributes:
        study: Optuna's.
        space: what is drawn.
        arguments: of ``osr run``.
        folder: for everything that is written.
        trials: how many are to be complete or pruned.
        train: ``osr run`` with these options up to the end of the training, watched by the judge; whether to
            print the number of images.
        config_of: the whole config that these options resolve to.
    """

    study: optuna.Study
    space: Space
    arguments: list[str]
    folder: Path
    trials: int
    train: Callable[[list[str], Judge, bool], object]
    config_of: Callable[[list[str]], str]


def run_search(search: Search) -> None:
    """Go on until so many trials are complete or pruned, and write what was found.

    Raises:
        UserError: where a trial shows a mistake.
    """
    try:
        with shared_sets(), silence():
            _go_on(search)
    finally:  # a signal or a mistake of one trial loses nothing of the others
        write_trials(search.study, search.folder)
        with silence():
            write_best(search.study, search.folder, search.arguments, search.config_of)
    write_figures(search.study, search.folder)
    tell_best(search.study, search.folder, search.trials)


def _go_on(search: Search) -> None:
    while True:
        elsewhere, done = running_elsewhere(search.study), finished(search.study)
        if done + elsewhere >= search.trials:
            if done < search.trials:
                print(f"the last {elsewhere} trials run in other processes", flush=True)
            return
        trial = search.study.ask(search.space)
        _run(search, trial)
        write_trials(search.study, search.folder)
        tell_trial(search.study, trial.number, search.trials)
        gc.collect()  # trainer, model and loaders refer to one another


def _run(search: Search, trial: optuna.Trial) -> None:
    judge, begin, state, reason = Judge(trial), time.perf_counter(), TrialState.FAIL, ""
    try:
        started(trial)
        drawn = trial_arguments(search.arguments, trial.params, search.study.study_name, trial.number)
        search.train(drawn, judge, trial.number == 0)
        if judge.best is None:
            raise UserError("no epoch was validated: lower trainer.check_val_every_n_epoch")
        state = TrialState.COMPLETE
    except optuna.TrialPruned as pruned:
        state, reason = TrialState.PRUNED, str(pruned)
    except Diverged as diverged:  # these values are bad ones, which the sampler should know
        state, reason = TrialState.PRUNED, str(diverged)
    except UserError as error:
        drawn = [f"{name} {value}" for name, value in trial.params.items()]
        raise UserError(f"trial {trial.number} ({', '.join(drawn)}): {error}") from error
    except BaseException:
        if judge.finished and judge.best is not None:
            state = TrialState.COMPLETE  # a signal came after its last step
        raise
    finally:
        with undisturbed():
            kept = {} if judge.best is None else judge.best._asdict()
            kept |= {
                "epochs": judge.epochs,
                "seconds": round(time.perf_counter() - begin, 1),
                "reason": reason,
            }
            for key, value in kept.items():
                trial.set_user_attr(key, value)
            value = judge.best.openauc if judge.best is not None and state is TrialState.COMPLETE else None
            search.study.tell(trial, value, state)
