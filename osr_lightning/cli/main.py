"""The commands, and the way from a command line to one of them."""

from __future__ import annotations

import atexit
import gc
import os
import sys
import warnings
from contextlib import suppress
from importlib import import_module

from osr_lightning import __version__
from osr_lightning.cli.arguments import no_command
from osr_lightning.cli.fast_torchmetrics import defer_torchmetrics
from osr_lightning.errors import UserError
from osr_lightning.models.allocator import keep_freed_memory

COMMANDS = {
    "run": "train, calibrate and test the best checkpoint, and write the complete run folder",
    "fit": "train only",
    "calibrate": "choose the threshold of a trained checkpoint again, without training",
    "validate": "loss and accuracy on the validation images",
    "test": "judge a checkpoint on known and unknown images",
    "predict": "name what is in image files, one row per file",
    "explain": "why images are known or unknown: what is unusual, where, and what is near",
    "export": "write a checkpoint as one .onnx or .pt2 file that decides as it does",
    "serve": "the rows of predict over HTTP, and a page to try a checkpoint",
    "drift": "compare predictions with calibration: alarm where what comes in has changed",
    "review": "group what was called unknown, on a page where a person names it",
    "study": "configs x seeds x class splits, and one table of means and deviations",
    "search": "search options of run with Optuna, on validation images alone",
    "wrap": "make a recogniser of a classifier trained elsewhere, without training",
    "extend": "add classes to a checkpoint of a frozen backbone, or take some out, without the old images",
    "ensemble": "join trained checkpoints into one, with a threshold of its own",
    "compare": "put finished runs side by side",
    "report": "write a run's report.html again from its saved files",
    "push": "put a run's checkpoint, results and model card on the Hugging Face Hub",
    "completion": "print what completes these commands in bash, zsh or tcsh",
}
# of the trainer alone; each of the others is a module of this folder with a main of its own
_TRAINERS = ("run", "fit", "calibrate", "validate", "test")
OWN = tuple(name for name in COMMANDS if name not in _TRAINERS)
_OF_RUN = (*_TRAINERS, "study", "search", "wrap", "ensemble")  # which take the trainer's options
# where else a command can write, and what lets it take less memory: its own options, for its sentences
PLACES = {
    **dict.fromkeys(_OF_RUN, ("--trainer.default_root_dir",)),
    **dict.fromkeys(("predict", "export", "explain", "extend", "review", "drift", "compare"), ("--output",)),
    **dict.fromkeys(("calibrate", "ensemble"), ("--trainer.default_root_dir", "--output")),
}
BATCHES = {
    **dict.fromkeys(_OF_RUN, ("data.batch_size", "data.eval_batch_size", "data.memory_limit")),
    "serve": ("--batch",),
}
_WITH_LIGHTNING = ("study", "search", "wrap", "ensemble", "completion")


def process() -> int:
    """`main` as all that this process does: what imports leave is neither searched nor taken apart.

    There is none, and the search takes a quarter of the imports' time, and seconds at the end of the process.
    Libraries whose objects are left then (triton's binding) would print them all as leaks.
    """
    gc.disable()  # until `imported`
    status = 1  # of a traceback

    def leave() -> None:
        with suppress(AttributeError, OSError, ValueError):  # of which the interpreter tells
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    atexit.register(leave)  # the first one runs last
    keep_freed_memory()
    try:
        status = main()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        raise
    return status


def imported() -> None:
    """From now on there may be garbage; what is there is none."""
    if not gc.isenabled():  # this is `process`
        gc.freeze()
        gc.enable()


def main(args: list[str] | None = None) -> int:
    """Run one command.

    Args:
        args: command and options; those of the process if not given.

    Returns:
        The exit status; see `osr_lightning.cli.exit_status.run`.
    """
    from osr_lightning.cli.exit_status import run

    # PIL warns of an image that is too large, which `images.decode` refuses in a sentence; only a command,
    # whose process this is, may filter warnings
    warnings.filterwarnings("ignore", r"Image size .* could be decompression bomb")
    # a network of the user's own lies beside the working folder, where that is still there
    with suppress(FileNotFoundError):
        if (here := os.getcwd()) not in sys.path:
            sys.path.append(here)
    arguments = sys.argv[1:] if args is None else args
    command = next((word for word in arguments if word in COMMANDS), "")
    return run(lambda: _run(arguments), places=PLACES.get(command, ()), batches=BATCHES.get(command, ()))


def _run(arguments: list[str]) -> int | None:
    if arguments in ([], ["-h"], ["--help"]):
        print(_overview())  # at once: Lightning takes seconds to load
        return 0
    if arguments == ["--version"]:
        print(f"osr_lightning {__version__}")
        return 0
    if arguments[0] in OWN:
        if arguments[0] in _WITH_LIGHTNING:
            defer_torchmetrics()
        module = import_module(f"osr_lightning.cli.{arguments[0]}")
        imported()
        status: int | None = module.main(arguments[1:])
        return status
    if not arguments[0].startswith("-") and arguments[0] not in COMMANDS:
        raise UserError(no_command(arguments, COMMANDS))
    if arguments[0] == "calibrate" and any(word.split("=")[0] == "--features" for word in arguments):
        import_module("osr_lightning.cli.features").main(arguments[1:])
        return 0
    with_lightning(arguments)
    return 0


def with_lightning(arguments: list[str]) -> None:
    """Run a command that is a method of the trainer, or print its help."""
    defer_torchmetrics()
    from osr_lightning.cli.help import page
    from osr_lightning.cli.lightning_cli import OpenSetCLI

    imported()
    command = next((word for word in arguments if word in COMMANDS), "run")
    help_page = page(command, COMMANDS[command], arguments)
    if help_page is None:
        OpenSetCLI(arguments)
    else:
        print(help_page)


def _overview() -> str:
    commands = "\n".join(f"  {name:<10} {what}" for name, what in COMMANDS.items())
    return (
        'Open-set recognition: a classifier that says "unknown" to images of no class it has learned.\n\n'
        f"usage: osr COMMAND [--config FILE] [options]\n\n{commands}\n\n"
        "`osr COMMAND --help` explains every option. Start with `osr run --config configs/quickstart.yaml`."
    )
