"""``osr search``: options of ``osr run`` searched with Optuna, on validation images alone."""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import optuna
from optuna.trial import TrialState

from osr_lightning.data.sources import shared_sets
from osr_lightning.errors import Diverged, UserError
from osr_lightning.files import folder_name
from osr_lightning.studies.objective import Judge
from osr_lightning.studies.results import (
    tell_best,
    tell_trial,
    write_best,
    write_figures,
    write_trials,
)
from osr_lightning.studies.space import Space, described, read_space
from osr_lightning.studies.storage import (
    finished,
    open_study,
    running_elsewhere,
    same_search,
    started,
    undisturbed,
)
from osr_lightning.studies.trials import TrialCLI, check, settings, trial_arguments
from osr_lightning.training.console import silence

_ABOUT = """\
Search options of osr run with Optuna's TPE, and write the best as a config.

The objective is OpenAUC (Wang et al., NeurIPS 2022) on validation images, in [0, 1]: how often an unknown
image has a higher deciding score than a known one, ties half, where a wrongly classified known image counts
as above every unknown one. It is at most the accuracy and at most the AUROC. Unknown are the images of
data.calibration_unknown; where there are none, images made of the known validation images: two classes
spliced or averaged, patches shuffled, rolled by half. Test images are never loaded. A trial is worth what
its epoch of the best validation accuracy is, whose weights osr run would test. In the second half of its
epochs a trial is pruned where it is below the median of earlier trials at that epoch.
"""


class Search(NamedTuple):
    """What the trials of a search have in common.

    Attributes:
        study: Optuna's.
        space: what is drawn.
        arguments: of ``osr run``.
        name: of the study and its folder.
        folder: for everything that is written.
        trials: how many are to be complete or pruned.
    """

    study: optuna.Study
    space: Space
    arguments: list[str]
    name: str
    folder: Path
    trials: int


def parser() -> argparse.ArgumentParser:
    """The search's own options; all others are those of ``osr run``."""
    options = argparse.ArgumentParser(
        "osr search",
        description=_ABOUT,
        epilog="All further options are those of osr run, as --config; osr run --help explains them.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = options.add_argument
    ranges = "options of osr run with low/high/log/step or choices"
    add("--space", type=Path, required=True, metavar="YAML", help=ranges)
    total = "go on until N trials are complete or pruned, earlier ones included"
    add("--trials", type=int, required=True, metavar="N", help=total)
    where = "sqlite:///FILE, postgresql://USER@HOST/DB or a journal's path, which several processes may share"
    add("--storage", metavar="URL", help=f"{where}; a journal in the search's folder if not given")
    add("--name", help="of the study and of its folder in lightning_logs; EXPERIMENT_search if not given")
    return options


def main(arguments: Sequence[str]) -> None:
    """Run a search, or a part of it.

    Args:
        arguments: of the command line, after ``search``.

    Raises:
        UserError: for a mistake in them, before anything is trained.
    """
    options, further = parser().parse_known_args(arguments)
    if options.trials < 1:
        raise UserError(f"--trials must be at least 1, got {options.trials}")
    space = read_space(options.space)
    with silence():
        cli = check(space, further, str(options.space))
    config = cli.config["run"]
    name = options.name or f"{config.trainer.experiment}_search"
    folder = Path(config.trainer.default_root_dir, "lightning_logs", folder_name("--name", name))
    study = open_study(options.storage, folder, name, config.seed_everything)
    same_search(study, described(space), settings(cli.yaml, space))
    search = Search(study, space, further, name, folder, options.trials)
    try:
        with shared_sets(), silence():
            _go_on(search)
    finally:  # a signal or a mistake of one trial loses nothing of the others
        write_trials(study, folder)
        write_best(study, folder, further)
    write_figures(study, folder)
    tell_best(study, folder, options.trials)


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
        drawn = trial_arguments(search.arguments, trial.params, search.name, trial.number)
        TrialCLI(drawn, judge, tell=trial.number == 0)
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
