"""The command line: LightningCLI wired to this project's model, data, trainer and run folder."""

from __future__ import annotations

import logging
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from osr_lightning.data.datamodule import OpenSetDataModule
from osr_lightning.errors import UserError
from osr_lightning.evaluation.evaluator import Evaluator
from osr_lightning.evaluation.summary import print_summary
from osr_lightning.models.classifiers import MCDropoutClassifier
from osr_lightning.models.open_set import OpenSetClassifier
from osr_lightning.trainer import OpenSetTrainer

TRAINING = ("fit", "run")
NOT_FOR_USERS = (
    ".*does not have many workers.*",  # the images are in memory
    ".*is smaller than the logging interval.*",  # metrics are logged once an epoch
    ".*LeafSpec.* is deprecated.*",  # between Lightning and torch
    ".*lightning_logs.* exists and is not empty.*",  # a resumed run goes on in its own folder
    ".*The dirpath has changed from.*",  # a test writes a folder of its own
)


class OpenSetCLI(LightningCLI):
    """LightningCLI with the commands run and calibrate, and with checkpoints that bring their settings.

    Args:
        args: command and options; those of the process if not given.
    """

    def __init__(self, args: list[str] | None = None) -> None:
        self.arguments = sys.argv[1:] if args is None else args
        for message in NOT_FOR_USERS:
            warnings.filterwarnings("ignore", message)
        logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_is_no_advertisement)
        super().__init__(
            OpenSetClassifier,
            OpenSetDataModule,
            trainer_class=OpenSetTrainer,
            subclass_mode_model=True,
            seed_everything_default=0,
            # a resumed run goes on in its own folder
            save_config_kwargs={"overwrite": True},
            parser_kwargs={"prog": "osr"},
            args=args,
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Trainer methods that are commands, and their parameters that the command line fills itself."""
        return {
            "run": {"model", "datamodule"},
            "calibrate": {"model", "datamodule"},
            "fit": {"model", "train_dataloaders", "val_dataloaders", "datamodule"},
            "validate": {"model", "dataloaders", "datamodule"},
            "test": {"model", "dataloaders", "datamodule"},
            "predict": {"model", "dataloaders", "datamodule", "return_predictions"},
        }

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The evaluation's options and the default model."""
        parser.add_lightning_class_args(Evaluator, "evaluation")
        default = f"{MCDropoutClassifier.__module__}.{MCDropoutClassifier.__name__}"
        parser.set_defaults({"model": {"class_path": default}})

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:  # noqa: ANN401
        """Parse; where a checkpoint is named, start from the settings it was trained with.

        Raises:
            UserError: for a checkpoint that is missing or cannot be read.
        """
        self.config = parser.parse_args(self.arguments)
        command: str = self.config.subcommand
        config = self.config[command]
        path = _checkpoint_path(config, command)
        if path is None:
            return
        settings = _settings(path)
        if command in TRAINING:
            runs = Path(config.trainer.default_root_dir, "lightning_logs", config.trainer.experiment)
            run_folder = path.resolve().parent.parent
            number = run_folder.name.removeprefix("version_")
            if run_folder.parent == runs.resolve() and number.isdigit():
                config.trainer.version = int(number)  # go on in the run's own folder
        else:
            # parsed again on top of the checkpoint's settings, so that what the user says still wins
            with tempfile.TemporaryDirectory() as folder:
                base = Path(folder, "checkpoint.yaml")
                base.write_text(yaml.safe_dump(settings))
                at = self.arguments.index(command) + 1
                self.config = parser.parse_args(
                    [*self.arguments[:at], f"--config={base}", *self.arguments[at:]]
                )
            # the saved config must not refer to the temporary file
            config = self.config[command]
            config.config = [entry for entry in config.config if Path(str(entry)) != base]
            _same_split(settings["data"], config.data, command)
        config.ckpt_path = str(path)

    def _run_subcommand(self, subcommand: str) -> None:
        """Run the command, after a look at its images: a mistake shows before other processes start."""
        stages = {"run": ["fit", "test"], "calibrate": []}.get(subcommand, [subcommand])
        if self.trainer.global_rank == 0:
            for stage in stages:
                self.datamodule.setup(stage)
        super()._run_subcommand(subcommand)

    def after_test(self) -> None:
        """Print the summary, once the progress bar is out of the way."""
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Evaluator) and callback.outcome is not None:
                print_summary(*callback.outcome)

    after_run = after_test

    def _parse_ckpt_path(self) -> None:
        """Done in :meth:`parse_arguments`; Lightning's own would overrule what the user says."""

    def _add_configure_optimizers_method_to_model(self, subcommand: str | None) -> None:
        """Build the optimizer the user asked for, if any; the classifier has the study's as default."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*will be overridden by.*configure_optimizers.*")
            super()._add_configure_optimizers_method_to_model(subcommand)


def _is_no_advertisement(record: logging.LogRecord) -> bool:
    return "litlogger" not in record.getMessage()


def _checkpoint_path(config: Namespace, command: str) -> Path | None:
    """The checkpoint file the user means; best and last are those of the experiment's newest run.

    Raises:
        UserError: where there is none.
    """
    given = config.get("ckpt_path")
    if given is None:
        if command not in TRAINING:
            raise UserError(
                f"{command} needs a trained checkpoint: add --ckpt_path RUN/checkpoints/best.ckpt"
            )
        return None
    if given in ("best", "last"):
        runs = Path(config.trainer.default_root_dir, "lightning_logs", config.trainer.experiment)
        found = list(runs.glob(f"version_*/checkpoints/{given}.ckpt"))
        if not found:
            raise UserError(
                f"no {given}.ckpt under {runs}; pass --config or --trainer.experiment of the run, "
                "or the path of a checkpoint"
            )
        return max(found, key=lambda path: path.stat().st_mtime)
    path = Path(given).expanduser()
    if not path.is_file():
        raise UserError(f"there is no checkpoint {path}; pass --ckpt_path RUN/checkpoints/best.ckpt")
    return path


def _same_split(trained: dict[str, Any], data: Namespace, command: str) -> None:
    """Refuse a split under which images of the training would calibrate or be tested.

    Raises:
        UserError: where the known images are those of the training, but divided otherwise.
    """
    if command == "predict" or trained.get("known") != data.known:
        return
    for name in ("seed", "val_fraction"):
        if trained[name] != data[name]:
            raise UserError(
                f"the checkpoint was trained with data.{name} {trained[name]}; with {data[name]} some of its "
                f"training images would be held out, so leave data.{name} as it was"
            )


def _settings(path: Path) -> dict[str, Any]:
    """The model, data, seed and experiment that a checkpoint was trained with, as a config."""
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        model = dict(checkpoint["hyper_parameters"])
        data = dict(checkpoint.get("datamodule_hyper_parameters", {}))
        classifier = checkpoint["classifier"]
    except Exception as error:
        raise UserError(
            f"{path} is no readable checkpoint of this project ({type(error).__name__}); "
            "train one with run or fit"
        ) from error
    class_path = model.pop("_class_path", f"{MCDropoutClassifier.__module__}.{classifier}")
    for hyperparameters in (model, data):
        hyperparameters.pop("_instantiator", None)
    settings: dict[str, Any] = {"model": {"class_path": class_path, "init_args": model}, "data": data}
    if "experiment" in checkpoint:
        settings["trainer"] = {"experiment": checkpoint["experiment"]}
        settings["seed_everything"] = checkpoint["seed"]
    return settings
