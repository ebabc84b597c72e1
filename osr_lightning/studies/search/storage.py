"""Where a search keeps its trials: several processes may share one storage, and any of them may be killed."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sqlite3
import threading
import time
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import TPESampler
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock, JournalStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError  # Optuna needs it itself

from osr_lightning.atomic_write import cannot_write, refuse_outside, report_write_errors
from osr_lightning.errors import Failure, UserError
from osr_lightning.scoring.calibration import is_finite
from osr_lightning.studies.search.space import Space

_FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
_PROCESS = "process"  # attribute of a trial: host, number and beginning of the process that runs it
_NUMBERS = ("accuracy", "auroc", "epoch", "epochs", "seconds", "openauc")  # others of a trial that ended
_ANEW = "take another --name, or remove it"
_ATTEMPTS = 5  # to open a database, whose tables another process may be making


class NumberedTPE(TPESampler):
    """Multivariate TPE (Falkner et al. 2018; Watanabe 2023) whose draws depend on the trial's number.

    So a search that was stopped goes on as if it had not been, and two processes do not draw the same. Trials
    that run elsewhere count as bad ones (constant liar), which spreads the draws.

    Args:
        seed: of the search.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._begin(seed)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Begin the draws of this trial."""
        self._begin((self.seed + 1_000_003 * trial.number) % 2**32)

    def _begin(self, seed: int) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)  # before Optuna 5 both options were
            super().__init__(seed=seed, multivariate=True, constant_liar=True)


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
    if storage is not None:
        _refuse_programs(storage)
    if storage is not None and "://" in storage:
        where = storage
    else:
        journal = folder / "journal.log" if storage is None else Path(storage).expanduser()
        if storage is None:
            refuse_outside(folder)
        if journal.exists() and not journal.is_file():
            raise UserError(f"cannot open the storage {journal}: it is no file; name another with --storage")
        if storage is not None and not _may_be_journal(journal):
            raise UserError(
                f"cannot open the storage {journal}: it is no journal of a search; name another with "
                "--storage"
            )
        with report_write_errors(journal):
            journal.parent.mkdir(parents=True, exist_ok=True)
            mend(journal)
            try:
                json.loads(
                    _last_line(journal) or "0"
                )  # which Optuna forgives, until a further one is written
                where = JournalStorage(JournalFileBackend(str(journal)))
            except OSError:
                raise
            except Exception as error:  # its lines may be anything
                raise UserError(f"{journal} is damaged ({_said(error)}); {_ANEW}") from error
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
                if isinstance(error, OSError) and not isinstance(where, str):  # of a full disk, or no rights
                    raise Failure(cannot_write(error, shown)) from error
                raise UserError(f"cannot open the storage {shown}: {_said(error)}") from error
            time.sleep(0.2 * attempt)
    raise AssertionError  # the last attempt returned or raised


def _refuse_programs(storage: str) -> None:
    """Stop where a SQLite file, which may be a stranger's, holds what runs when it is read or written.

    A view may have no end, which nothing but SIGKILL would end; Optuna makes tables and indices alone.

    Raises:
        UserError: naming the first.
    """
    try:
        url = make_url(storage)
    except ArgumentError:  # a journal's path, or told when it is opened
        return
    if url.get_backend_name() != "sqlite" or not url.database or not os.path.isfile(url.database):
        return
    place = f"{Path(url.database).absolute().as_uri()}?mode=ro"
    query = (
        "select type, name from sqlite_master where type not in ('table', 'index') "
        "or sql like 'create virtual%'"
    )
    with suppress(sqlite3.Error), closing(sqlite3.connect(place, uri=True)) as database:
        found = database.execute(query).fetchone()
        if found is not None:
            raise UserError(
                f"the storage {url.database} holds the {found[0]} {found[1]}, which no search makes: name "
                "another with --storage"
            )


def _said(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


_OPERATION = b'{"op_code"'  # how Optuna begins a line


def _may_be_journal(path: Path) -> bool:
    """Whether it begins as one; a file of something else must not be mended."""
    try:
        with path.open("rb") as file:
            first = file.read(len(_OPERATION))
    except OSError:  # there is none yet, or opening it says why
        return True
    return _OPERATION.startswith(first)


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


def _last_line(journal: Path) -> str:
    with suppress(FileNotFoundError), journal.open("rb") as file:
        return next(iter(deque(file, maxlen=1)), b"").decode("utf-8")
    return ""


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
    with _reading(study):
        kept = study.user_attrs.get("search")
    if kept is None:
        study.set_user_attr("search", now)
        return
    if not (isinstance(kept, dict) and all(isinstance(kept.get(part), dict) for part in now)):
        raise UserError(f"the storage of {study.study_name} does not say what was searched; {_ANEW}")
    for part in ("space", "settings"):
        for name in sorted({*kept[part], *now[part]}):
            before, after = (found[part].get(name) for found in (kept, now))
            if before != after:
                whose = "the space's " if part == "space" else ""
                raise UserError(
                    f"the search {study.study_name} was begun with {whose}{name} {before}, not {after}: its "
                    "trials would not compare; change it back, or take another --name"
                )


@contextmanager
def _reading(study: optuna.Study) -> Iterator[None]:
    """Whatever a damaged storage raises is told in a sentence."""
    try:
        yield
    except Exception as error:  # each database, and each part of a row, has its own
        raise UserError(f"the storage of {study.study_name} is damaged ({_said(error)}); {_ANEW}") from error


def check_trials(study: optuna.Study, space: Space) -> None:
    """Stop where a storage, which may be a stranger's, holds trials that no search of this space makes.

    Their values would become options of ``osr run``.

    Raises:
        UserError: naming the first.
    """
    if [*study.directions] != [StudyDirection.MAXIMIZE]:
        raise UserError(f"the study {study.study_name} does not maximise one number; {_ANEW}")
    with _reading(study):
        trials = study.get_trials(deepcopy=False)
    for trial in trials:
        fixed = trial.system_attrs.get("fixed_params", {})
        kept = [trial.user_attrs.get(name, 0) for name in _NUMBERS]
        if trial.state is TrialState.COMPLETE:
            kept += [trial.value, *(trial.user_attrs.get(name) for name in ("accuracy", "auroc"))]
        if not (
            isinstance(fixed, dict)
            and all(_draws(space, drawn) for drawn in (trial.params, fixed))
            and all(is_finite(value) for value in (*kept, *trial.intermediate_values.values()))
        ):
            raise UserError(
                f"trial {trial.number} of {study.study_name} is none of this search: its values or results "
                f"cannot be; {_ANEW}"
            )


def _draws(space: Space, values: dict[str, Any]) -> bool:
    """Whether a space draws these values."""
    try:
        return all(
            space[name]._contains(space[name].to_internal_repr(value)) for name, value in values.items()
        )
    except (KeyError, TypeError, ValueError):
        return False


def started(trial: optuna.Trial) -> None:
    """Note which process runs a trial."""
    trial.set_user_attr(_PROCESS, f"{socket.gethostname()} {living_process(os.getpid())}")


def finished(study: optuna.Study) -> int:
    """How many trials are complete or pruned."""
    return len(study.get_trials(deepcopy=False, states=_FINISHED))


def running_elsewhere(study: optuna.Study) -> int:
    """How many trials other living processes of this machine run; those of dead ones become failed.

    Of another machine's processes it is not known whether they live: their trials neither count nor change.
    """
    living = 0
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        host, _, process = str(trial.user_attrs.get(_PROCESS, "")).partition(" ")
        if host != socket.gethostname():
            continue
        number = process.partition(" ")[0]
        # a number alone may be any process's by now, and a stranger's journal names any
        if number.isdecimal() and int(number) != os.getpid() and process == living_process(int(number)):
            living += 1
        else:
            study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
    return living


def living_process(number: int) -> str:
    """A living process by its number and when it began, which no other has; of a dead one nothing."""
    try:
        os.kill(number, 0)
    except PermissionError:  # another user's
        pass
    except (OSError, OverflowError):
        return ""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        # behind the command's name, which may hold anything
        began = Path(f"/proc/{number}/stat").read_bytes().rpartition(b")")[2].split()[19].decode()
    except (OSError, IndexError):  # not every system says
        return str(number)
    return f"{number} {boot} {began}"


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
