"""``python -m osr_lightning`` and the console script ``osr``."""

from __future__ import annotations

import gc
import importlib
import sys

from osr_lightning.arguments import no_command
from osr_lightning.deferring import defer_torchmetrics
from osr_lightning.errors import UserError

COMMANDS = {
    "run": "train, calibrate and test the best checkpoint, and write the complete run folder",
    "fit": "train only",
    "calibrate": "choose the threshold of a trained checkpoint again, without training",
    "validate": "loss and accuracy on the validation images",
    "test": "judge a checkpoint on known and unknown images",
    "predict": "name what is in image files, one row per file",
    "export": "write a checkpoint as one .onnx or .pt2 file that decides as it does",
    "serve": "the rows of predict over HTTP, and a page to try a checkpoint",
    "drift": "compare predictions with calibration: alarm where what comes in has changed",
    "study": "configs x seeds x class splits, and one table of means and deviations",
    "search": "search options of run with Optuna, on validation images alone",
    "ensemble": "join trained checkpoints into one, with a threshold of its own",
    "compare": "put finished runs side by side",
    "report": "write a run's report.html again from its saved files",
    "completion": "print what completes these commands in bash, zsh or tcsh",
}
# those with a parser of their own; their module's main takes the arguments after the name
OWN = {
    "export": "deploy.export_cli",
    "serve": "deploy.serve.serve_cli",
    "drift": "deploy.drift_cli",
    "study": "studies.study",
    "search": "studies.search",
    "ensemble": "studies.ensemble",
    "compare": "evaluation.compare",
    "report": "evaluation.report",
    "completion": "completing",
}


def process() -> int:
    """`main` as all that this process does: what imports leave is never searched for garbage.

    There is none, and the search takes a quarter of the imports' time, and seconds at the end of the process.
    """
    gc.disable()  # until `_imported`
    try:
        return main()
    finally:
        gc.freeze()


def main(args: list[str] | None = None) -> int:
    """Run one command.

    Args:
        args: command and options; those of the process if not given.

    Returns:
        The exit status; see `osr_lightning.ending.run`.
    """
    from osr_lightning.ending import run

    arguments = sys.argv[1:] if args is None else args
    return run(lambda: _run(arguments))


def _run(arguments: list[str]) -> int | None:
    if arguments in ([], ["-h"], ["--help"]):
        print(_overview())  # at once: Lightning takes seconds to load
    elif arguments[0] in OWN:
        if OWN[arguments[0]].startswith(("studies", "completing")):  # the others do without Lightning
            defer_torchmetrics()
        module = importlib.import_module(f"osr_lightning.{OWN[arguments[0]]}")
        _imported()
        status: int | None = module.main(arguments[1:])
        return status
    elif arguments[:1] == ["predict"] and _names_files(arguments[1:]):
        from osr_lightning.deploy.predict_cli import main as predict

        _imported()
        return predict(arguments[1:])
    elif not arguments[0].startswith("-") and arguments[0] not in COMMANDS:
        raise UserError(no_command(arguments, COMMANDS))
    else:
        defer_torchmetrics()
        from osr_lightning.cli import OpenSetCLI
        from osr_lightning.manual.pages import page

        _imported()
        command = next((word for word in arguments if word in COMMANDS), "run")
        help_page = page(command, COMMANDS[command], arguments)
        if help_page is None:
            OpenSetCLI(arguments)
        else:
            print(help_page)
    return 0


def _imported() -> None:
    if not gc.isenabled():  # this is `process`
        gc.freeze()
        gc.enable()


def _names_files(arguments: list[str]) -> bool:
    from osr_lightning.deploy.predict_cli import wanted

    return wanted(arguments)


def _overview() -> str:
    commands = "\n".join(f"  {name:<10} {what}" for name, what in COMMANDS.items())
    return (
        'Open-set recognition: a classifier that says "unknown" to images of no class it has learned.\n\n'
        f"usage: osr COMMAND [--config FILE] [options]\n\n{commands}\n\n"
        "`osr COMMAND --help` explains every option. Start with `osr run --config configs/quickstart.yaml`."
    )


if __name__ == "__main__":
    sys.exit(process())
