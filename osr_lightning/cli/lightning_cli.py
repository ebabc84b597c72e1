"""The command line: LightningCLI wired to this project's model, data, trainer and run folder."""

from __future__ import annotations

import json
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, Namespace
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger

from osr_lightning.atomic_write import write_text
from osr_lightning.cli.arguments import check_files, check_seed, no_command, value_of
from osr_lightning.cli.checkpoint_path import existing, newest
from osr_lightning.cli.checkpoint_settings import (
    checkpoint_settings,
    refuse_ensemble,
    refuse_forgotten,
    refuse_idle,
    refuse_unfitted,
    refuse_unused,
    same_split,
)
from osr_lightning.cli.config_loader import MODE, SafeLoader
from osr_lightning.cli.messages import check_network, read_options, sentence
from osr_lightning.cli.options import METHODS
from osr_lightning.data.counts import image_lines
from osr_lightning.data.datamodule import OpenSetDataModule
from osr_lightning.data_spec import DataSpec
from osr_lightning.errors import UserError
from osr_lightning.evaluation.console import print_summary
from osr_lightning.models.factory import find
from osr_lightning.recogniser import checkpoint as checkpoints
from osr_lightning.recogniser.migrate import new_class_path
from osr_lightning.training.callbacks.evaluator import Evaluator
from osr_lightning.training.console import hush
from osr_lightning.training.loggers import holds_training, named_folder
from osr_lightning.training.module import MCDropoutClassifier, OpenSetClassifier
from osr_lightning.training.optimizers import OwnOptimizer
from osr_lightning.training.trainer import OpenSetTrainer

TRAINING = ("fit", "run")
# by the datamodule and the command: the parser, and the arguments of the command's own method
_PARSERS: dict[tuple[type[OpenSetDataModule], str], tuple[LightningArgumentParser, list[str]]] = {}


class WholeConfig(SaveConfigCallback):
    """Writes ``config.yaml`` into the run folder, where there is one, at once or not at all."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write it; this is asked of the first process only."""
        folder = next((logger.log_dir for logger in trainer.loggers if logger.log_dir), None)
        if folder is not None:
            write_text(Path(folder, "config.yaml"), plain_text(self.parser, self.config))


class OpenSetCLI(LightningCLI):
    """LightningCLI with the commands run and calibrate, and with checkpoints that bring their settings.

    Args:
        args: command and options; those of the process if not given.
    """

    images: type[OpenSetDataModule] = OpenSetDataModule

    def __init__(self, args: list[str] | None = None) -> None:
        words = sys.argv[1:] if args is None else args
        self.arguments = [_with_new_class_path(word) for word in words]
        known = self.subcommands()
        command = next((word for word in self.arguments if word in known), None)
        if command is None:
            raise UserError(no_command(self.arguments, known))
        self.command = command
        hush(verbose="--verbose" in self.arguments)
        super().__init__(
            OpenSetClassifier,
            self.images,
            trainer_class=OpenSetTrainer,
            subclass_mode_model=True,
            seed_everything_default=0,
            # a resumed run goes on in its own folder
            save_config_callback=WholeConfig,
            save_config_kwargs={"overwrite": True, "save_to_log_dir": False},
            parser_kwargs={
                "prog": "osr",
                "exit_on_error": False,
                "allow_abbrev": False,
                "parser_mode": MODE,
            },
            args=self.arguments,
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Trainer methods that are commands, and their parameters that the command line fills itself."""
        return dict(METHODS)

    def _add_subcommands(self, parser: LightningArgumentParser, **kwargs: Any) -> None:  # noqa: ANN401
        """Build the parser of the command that is asked for: six of them take a second."""
        every = self.subcommands()
        self.subcommands = lambda: {self.command: every[self.command]}  # type: ignore[method-assign]
        super()._add_subcommands(parser, **kwargs)

    def _prepare_subcommand_parser(
        self,
        klass: type,
        subcommand: str,
        **kwargs: Any,  # noqa: ANN401
    ) -> LightningArgumentParser:
        """Build a command's parser once in a process, which may run many of it, as a search does."""
        key = self.images, subcommand
        if key not in _PARSERS:
            parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
            _PARSERS[key] = parser, self._subcommand_method_arguments[subcommand]
        parser, self._subcommand_method_arguments[subcommand] = _PARSERS[key]
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The evaluation's options, trust, words, and the default model."""
        parser.add_lightning_class_args(Evaluator, "evaluation")
        for flag in ("--trust_checkpoint", "--verbose"):
            parser.add_argument(flag, action="store_true")
        parser.link_arguments("verbose", "trainer.verbose")
        default = f"{MCDropoutClassifier.__module__}.{MCDropoutClassifier.__name__}"
        parser.set_defaults({"model": {"class_path": default}})

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:  # noqa: ANN401
        """Parse; where a checkpoint is named, on top of the settings it was trained with.

        Raises:
            UserError: for a checkpoint that is missing or cannot be read.
        """
        self.kept: dict[str, Any] | None = None
        self.downloads = True  # into data.root, unless a checkpoint alone names that
        check_files(self.arguments)
        named = value_of(self.arguments, "--ckpt_path")
        training = any(word in TRAINING for word in self.arguments)
        if named in (None, "best", "last") or training:
            self.config = self._parse(parser, self.arguments)
            named = self._choose_checkpoint()
        if named is not None and self.kept is None and not training:
            root = value_of(self.arguments, "--trainer.default_root_dir") or "."
            self.kept = checkpoints.read(existing(named, Path(root)))
            # as the first config, so that all that the user says goes before it
            settings = checkpoint_settings(self.kept)
            base = f"--config={json.dumps(settings)}"
            at = next(i for i, word in enumerate(self.arguments) if word in self.subcommands()) + 1
            self.config = self._parse(parser, [*self.arguments[:at], base, *self.arguments[at:]])
            config = self.config[self.config.subcommand]
            config.config = config.config[1:]  # a saved config names files
            config.ckpt_path = named
            self._choose_checkpoint()
            self.downloads = config.data.root != settings["data"].get("root") or bool(
                value_of(self.arguments, "--data.root")
            )
            same_split(self.kept, config.data, self.config.subcommand)
            refuse_idle(self.kept, config.model.init_args, self.config.subcommand)
            refuse_unfitted(self.kept, config.model.init_args.score, self.config.subcommand, config.ckpt_path)
        seed = self.config[self.config.subcommand].seed_everything
        if isinstance(seed, int) and not isinstance(seed, bool):
            check_seed("seed_everything", seed)

    def _parse(self, parser: LightningArgumentParser, arguments: list[str]) -> Namespace:
        given = read_options(self.command, arguments[arguments.index(self.command) + 1 :])
        check_network(given)
        network = value_of(arguments, "--model.network")
        if network is not None and re.fullmatch(r"\w+(\.\w+)+", network):
            find(network, trust=True)  # the parser forgets a name that cannot be imported
        try:
            parsed = parser.parse_args(arguments)
        except ArgumentError as error:
            raise UserError(sentence(str(error), given, self.command)) from error
        model = parsed[parsed.subcommand].model
        refuse_unused(self.arguments, model.as_dict().get("init_args", {}))
        return parsed

    def instantiate_classes(self) -> None:
        """Build data, model and trainer.

        Raises:
            UserError: for what no config file can hold.
        """
        try:
            super().instantiate_classes()
        except ValueError as error:
            if "cannot represent an object" not in str(error):
                raise
            raise UserError(
                "config.yaml cannot hold the options of a callback or logger: give those that are text or "
                "numbers (for the callback Timer, trainer.max_time)"
            ) from error
        # which knows this object, with its model and images, and is kept by `_PARSERS`
        del self._parser(self.command).parent_parser  # type: ignore[attr-defined]

    def _choose_checkpoint(self) -> str | None:
        """Put the path of the checkpoint that is meant into the config, and go on in its run's folder."""
        command = self.config.subcommand
        config: Namespace = self.config[command]
        if config.get("ckpt_path") is None:
            if command in TRAINING:
                self._keep_results(config)
                return None
            raise UserError(
                f"{command} needs a trained checkpoint: add --ckpt_path RUN/checkpoints/best.ckpt"
            )
        runs = Path(config.trainer.default_root_dir, "lightning_logs", config.trainer.experiment)
        if config.ckpt_path in ("best", "last"):
            path = newest(runs, config.ckpt_path)
        else:
            path = existing(config.ckpt_path, Path(config.trainer.default_root_dir))
        config.ckpt_path = str(path)
        run_folder = path.resolve().parent.parent
        number = run_folder.name.removeprefix("version_")
        goes_on = command in TRAINING or (command == "calibrate" and config.in_place)
        if goes_on and run_folder.parent == runs.resolve():
            config.trainer.version = int(number) if number.isdigit() else run_folder.name
        else:
            self._keep_results(config)
        if command in TRAINING:
            self.kept = checkpoints.read(path)
            refuse_ensemble(self.kept)
            if not any(value_of(self.arguments, option) for option in ("--config", "--data", "--data.known")):
                refuse_forgotten(self.kept, config.data, run_folder / "config.yaml")
            same_split(self.kept, config.data, command)
        return str(path)

    def _keep_results(self, config: Namespace) -> None:
        """Leave a run folder that holds a run as it is, unless the command line names just that.

        A saved config names the folder that it was saved in.

        Raises:
            UserError: where a training would begin in a folder that the command line names and that holds
                trained checkpoints.
        """
        version, trainer = config.trainer.version, config.trainer
        if version is None:
            return
        folder = named_folder(trainer.default_root_dir, trainer.experiment, version)
        trained = holds_training(folder)
        if value_of(self.arguments, "--trainer.version") is None:
            if trained or (folder / "results.json").is_file():
                trainer.version = None
        elif trained and self.command in TRAINING:
            raise UserError(
                f"{folder} holds a trained run, which this would write over: go on with it by --ckpt_path "
                "last, or take another trainer.version"
            )

    def _run_subcommand(self, subcommand: str) -> None:
        """Run the command, after a look at its images: a mistake shows before other processes start."""
        assert isinstance(self.trainer, OpenSetTrainer)
        self.model.trust_checkpoint = self._get(self.config, "trust_checkpoint")
        self.datamodule.tables.download = self.downloads
        if self.kept is not None:
            path = self._get(self.config, "ckpt_path")
            self.trainer.keeper.hold(path, self.kept)
            self.model.build_for(self.kept)
        self.model.use_backbone(self.datamodule)
        if subcommand == "predict" and not self.trainer.loggers and not self._get(self.config, "output"):
            raise UserError(
                "predict writes predictions.csv into a run folder: leave trainer.logger as it is, or name "
                "the files, as in osr predict --ckpt_path CKPT PHOTOS --output FILE.csv"
            )
        stages = {"run": ["fit", "test"], "calibrate": ["calibrate"]}.get(subcommand, [subcommand])
        if self.trainer.global_rank == 0:
            if self.kept is not None:
                self.datamodule.tables.expect(DataSpec.from_dict(self.kept["recogniser"]["facts"]))
            if "test" in stages:
                self.datamodule.tables.refuse_missing()
            for stage in stages:
                self.datamodule.setup(stage)
            for line in image_lines(self.datamodule.tables):
                print(line, flush=True)
        super()._run_subcommand(subcommand)

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        """What the command's method gets; a test's numbers are in the summary."""
        more = {"verbose": self._get(self.config, "verbose")} if subcommand == "test" else {}
        return super()._prepare_subcommand_kwargs(subcommand) | more

    def after_test(self) -> None:
        """Print the summary, once the progress bar is out of the way."""
        tensorboard = any(isinstance(logger, TensorBoardLogger) for logger in self.trainer.loggers)
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Evaluator) and callback.outcome is not None:
                print_summary(*callback.outcome, tensorboard=tensorboard)

    after_run = after_calibrate = after_test

    def _dump_config(self) -> None:
        """Keep the config as the hyperparameters are told it."""
        if not hasattr(self, "config_dump"):
            dumped = plain_text(self.parser, self.config, skip_link_targets=False)
            read = yaml.load(dumped, Loader=SafeLoader)  # noqa: S506 - in C where there is one
            self.config_dump = read[self.config.subcommand]

    def _parse_ckpt_path(self) -> None:
        """Done in `parse_arguments`; Lightning's own would overrule what the user says."""

    def _add_configure_optimizers_method_to_model(self, subcommand: str | None) -> None:
        """Keep the optimizer the user asked for, if any: there are no weights before the images are known."""
        optimizer, scheduler = (self._get(self.config_init, name) for name in ("optimizer", "lr_scheduler"))
        if scheduler and not optimizer:
            raise UserError("--lr_scheduler needs its optimizer: add --optimizer, or choose a model.schedule")
        if optimizer:
            self.model.own_optimizer = OwnOptimizer(optimizer, scheduler, self.configure_optimizers)


class MemberCLI(OpenSetCLI):
    """``osr run`` for a member of an ensemble."""

    def before_run(self) -> None:
        """Keep the validation images for the ensemble's threshold."""
        self.model.is_member = True


def plain_text(parser: LightningArgumentParser, config: Namespace, **options: bool) -> str:
    """A config as YAML, with all that is none; it is not checked, which was done when it was parsed."""
    # the parser's word for text where a function might stand as well, as of ModelPruning's pruning_fn
    text = "Unable to serialize instance "
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", rf"(?s).*{text}\w+\s*$")
        dumped = str(parser.dump(config, skip_none=False, skip_validation=True, **options))
    return re.sub(rf"{text}(\w+)$", r"\1", dumped, flags=re.MULTILINE)


def _with_new_class_path(word: str) -> str:
    """A word of the command line whose value may be a class path of 0.1."""
    option, equals, value = word.partition("=")
    return f"{option}={new_class_path(value)}" if equals else new_class_path(word)
