"""Where a search keeps its trials: several processes may share one storage, and any of them may be killed."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, TPESampler
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock, JournalStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import ArgumentError  # Optuna needs it itself

from osr_lightning.atomic_write import report_write_errors
from osr_lightning.errors import UserError
from osr_lightning.recogniser.migrate import new_class_path

_FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
_PROCESS = "process"  # attribute of a trial: host and number of the process that runs it
_ATTEMPTS = 5  # to open a database, whose tables another process may be making


class NumberedTPE(BaseSampler):
    """Multivariate TPE (Falkner et al. 2018; Watanabe 2023) whose draws depend on the trial's number.

    So a search that was stopped goes on as if it had not been, and two processes do not draw the same. Trials
    that run elsewhere count as bad ones (constant liar), which spreads the draws.

    Args:
        seed: of the search.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._tpe: BaseSampler = _tpe(seed)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Begin the draws of this trial."""
        self._tpe = _tpe((self.seed + 1_000_003 * trial.number) % 2**32)

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """See `optuna.samplers.BaseSampler`."""
        return self._tpe.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """See `optuna.samplers.BaseSampler`."""
        return self._tpe.sample_relative(study, trial, search_space)

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:  # noqa: ANN401
        """See `optuna.samplers.BaseSampler`."""
        return self._tpe.sample_independent(study, trial, param_name, param_distribution)


def _tpe(seed: int) -> BaseSampler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)  # before Optuna 5 both options were
        return TPESampler(seed=seed, multivariate=True, constant_liar=True)


def open_study(storage: str | None, folder: Path, name: str, seed: int) -> optuna.Study:
    """The study of that name, made where there is none.

    Args:
        storage: a URL, the path of a journal file, or None for the journal in ``folder``.
        folder: of the search.
        name: of the study.
        seed: of the draws.

    Raises:
        UserError: where the storage cannot be opened.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    where: str | JournalStorage
    if storage is not None and "://" in storage:
        where = storage
    else:
        journal = folder / "journal.log" if storage is None else Path(storage).expanduser()
        with report_write_errors(journal):
            journal.parent.mkdir(parents=True, exist_ok=True)
            mend(journal)
            where = JournalStorage(JournalFileBackend(str(journal)))
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return optuna.create_study(
                storage=where,
                study_name=name,
                direction="maximize",
                load_if_exists=True,
                sampler=NumberedTPE(seed),
                pruner=optuna.pruners.MedianPruner(),
            )
        except Exception as error:  # each database has its own
            if attempt == _ATTEMPTS or isinstance(error, (ImportError, ValueError, ArgumentError)):
                shown = re.sub(r"(://[^:/@]*):[^@]*@", r"\1:***@", str(storage or folder / "journal.log"))
                said = next(iter(str(error).strip().splitlines()), type(error).__name__)
                raise UserError(f"cannot open the storage {shown}: {said}") from error
            time.sleep(0.2 * attempt)
    raise AssertionError  # the last attempt returned or raised


def mend(journal: Path) -> None:
    """Remove a last line that a killed process or a full disk cut short: Optuna could never read on."""
    if not journal.exists() or _is_whole(journal):
        return
    lock = JournalFileSymlinkLock(str(journal))
    lock.acquire()
    try:
        if not _is_whole(journal):
            content = journal.read_bytes()
            os.truncate(journal, content.rfind(b"\n") + 1)
    finally:
        lock.release()


def _is_whole(journal: Path) -> bool:
    with journal.open("rb") as file:
        if not file.seek(0, os.SEEK_END):
            return True
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def same_search(study: optuna.Study, space: dict[str, str], settings: dict[str, Any]) -> None:
    """Keep what a search is of; stop where it is another one than before.

    Args:
        study: whose attributes keep it.
        space: of `osr_lightning.studies.search.space.described`.
        settings: of `osr_lightning.studies.search.trials.settings`.

    Raises:
        UserError: naming the first difference.
    """
    now = json.loads(json.dumps({"space": space, "settings": settings}))
    kept = study.user_attrs.get("search")
    if kept is None:
        study.set_user_attr("search", now)
        return
    for part in ("space", "settings"):
        for name in sorted({*kept[part], *now[part]}):
            before, after = (found[part].get(name) for found in (kept, now))
            before = new_class_path(before) if isinstance(before, str) else before
            if before != after:
                whose = "the space's " if part == "space" else ""
                raise UserError(
                    f"the search {study.study_name} was begun with {whose}{name} {before}, not {after}: its "
                    "trials would not compare; change it back, or take another --name"
                )


def started(trial: optuna.Trial) -> None:
    """Note which process runs a trial."""
    trial.set_user_attr(_PROCESS, f"{socket.gethostname()} {os.getpid()}")


def finished(study: optuna.Study) -> int:
    """How many trials are complete or pruned."""
    return len(study.get_trials(deepcopy=False, states=_FINISHED))


def running_elsewhere(study: optuna.Study) -> int:
    """How many trials other living processes of this machine run; those of dead ones become failed.

    Of another machine's processes it is not known whether they live: their trials neither count nor change.
    """
    living = 0
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        host, _, process = str(trial.user_attrs.get(_PROCESS, "")).rpartition(" ")
        if host != socket.gethostname():
            continue
        if int(process) != os.getpid() and _lives(int(process)):
            living += 1
        else:
            study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
    return living


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True


@contextmanager
def undisturbed() -> Iterator[None]:
    """SIGINT and SIGTERM wait until the block is done."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []

    def receive(number: int, frame: FrameType | None) -> None:
        came.append(number)

    numbers: Sequence[signal.Signals] = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, receive) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        raise SystemExit(128 + came[0])
