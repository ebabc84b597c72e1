"""``python -m osr_lightning`` and the console script ``osr``."""

from __future__ import annotations

import os
import sys

COMMANDS = {
    "run": "train, calibrate and test the best checkpoint, and write the complete run folder",
    "fit": "train only",
    "calibrate": "choose the threshold of a trained checkpoint again, without training",
    "validate": "loss and accuracy on the validation images",
    "test": "judge a checkpoint on known and unknown images",
    "predict": "name what is in image files, one row per file",
    "compare": "put finished runs side by side",
    "report": "write a run's report.html again from its saved files",
}


def main(args: list[str] | None = None) -> int:
    """Run one command.

    Args:
        args: command and options; those of the process if not given.

    Returns:
        The exit status: 0 on success, 2 after a user's mistake, which is told in one sentence. Anything
        else is a bug or an accident: its traceback ends the process with status 1.
    """
    from osr_lightning.errors import UserError

    arguments = sys.argv[1:] if args is None else args
    try:
        if arguments in ([], ["-h"], ["--help"]):
            print(_overview())  # at once: Lightning takes seconds to load
        elif arguments[:1] == ["compare"]:
            from osr_lightning.evaluation.compare import main as compare

            compare(arguments[1:])
        elif arguments[:1] == ["report"]:
            from osr_lightning.evaluation.report import main as report

            report(arguments[1:])
        elif arguments[:1] == ["predict"] and _names_files(arguments[1:]):
            from osr_lightning.deploy.predict_cli import main as predict

            return predict(arguments[1:])
        else:
            from osr_lightning.cli import OpenSetCLI

            OpenSetCLI(args)
    except (PermissionError, NotADirectoryError, FileExistsError) as error:
        return _complain(
            f"{error.filename}: {error.strerror}; change its rights, or write elsewhere with "
            "--trainer.default_root_dir"
        )
    except Exception as error:
        # the parser wraps what a constructor raises; by now Lightning is imported if it raised this
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, UserError) or type(cause).__name__ == "MisconfigurationException":
                return _complain(str(cause))
            cause = cause.__cause__
        raise
    return 0


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


def _complain(sentence: str) -> int:
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"osr: error: {sentence}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
