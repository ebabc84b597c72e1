"""Options of tests that train or test: no progress bars, no figures, as little resampling as will do."""

import contextlib
import sys
from pathlib import Path

from osr_lightning.__main__ import main

TRAINER = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
EVALUATION = ["--evaluation.figures=false", "--evaluation.projector_points=0", "--evaluation.bootstrap=20"]
# where the network is not looked at: the one that is chosen for few images takes seconds
SMALL_NETWORK = ["--model.network=MCDropoutCNN", "--model.network.channels=[2,3]", "--model.network.hidden=5"]
FAST = [*QUIET, "--trainer.accelerator=cpu", *EVALUATION]


def status_of(words: list[str]) -> int:
    """The exit status of a command, where its parser ends it in its own way as well."""
    try:
        return main(words)
    except SystemExit as stop:
        return stop.code


def refusal(words: list[str], capsys) -> str:
    """What a command says of a mistake, which ends it with status 2 and without a traceback."""
    assert status_of(words) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error


def process_of(words: list[str], said: Path) -> None:
    """Run a command as all that a process of multiprocessing's does; what it prints is written to a file."""
    with said.open("w") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        sys.exit(main(words))
