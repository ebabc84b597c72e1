"""One trial of a search: ``osr run`` with its drawn values, up to the end of the training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from osr_lightning.cli import OpenSetCLI
from osr_lightning.data.counts import describe
from osr_lightning.errors import UserError
from osr_lightning.studies.objective import Judge, SearchData
from osr_lightning.studies.space import Space, as_arguments, corners

# these go before what the user says
_QUIET = ("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false")
_DEFAULTS = (*_QUIET, "--trainer.devices=1")
# what may differ from one process of a search to the next
_LOCAL = frozenset(
    (
        *("config", "evaluation", "data.unknown", "data.predict", "data.root"),
        *(f"data.{name}" for name in ("memory_limit", "num_workers", "eval_batch_size")),
        *(f"trainer.{name}" for name in ("default_root_dir", "experiment", "version", "logger")),
        *(f"trainer.{name}" for name in ("devices", "accelerator")),
        *(f"trainer.enable_{name}" for name in ("progress_bar", "model_summary")),
    )
)


class TrialCLI(OpenSetCLI):
    """The command line of ``osr run`` that parses, builds and trains, and tests nothing.

    Args:
        arguments: of ``osr run``.
        judge: what watches the training; without it nothing is trained.
        tell: whether to print the number of images.

    Raises:
        UserError: for what the parser does not take.
    """

    images = SearchData

    def __init__(self, arguments: Sequence[str], judge: Judge | None = None, *, tell: bool = False) -> None:
        self.judge, self.tell = judge, tell
        super().__init__(["run", *arguments])

    def _run_subcommand(self, subcommand: str) -> None:
        if self.judge is None:
            return
        if self.tell:
            self.datamodule.setup("fit")
            print("\n".join(describe(self.datamodule.tables)), flush=True)
        self.trainer.callbacks.insert(0, self.judge)  # type: ignore[attr-defined]
        self.trainer.fit(self.model, datamodule=self.datamodule)

    @property
    def yaml(self) -> str:
        """The whole resolved config."""
        return str(self._parser("run").dump(self.config["run"], skip_none=False))


def check(space: Space, arguments: Sequence[str], where: str) -> TrialCLI:
    """Parse the options with every choice and both ends of every range, and build all but the network.

    Args:
        space: of the search.
        arguments: of ``osr run``.
        where: the space's file.

    Returns:
        The command line of the first of these draws.

    Raises:
        UserError: for what no trial could run with.
    """
    fixed = [*_DEFAULTS, *arguments, "--trainer.logger=false"]
    found = []
    for values in corners(space):
        try:
            found.append(TrialCLI([*fixed, *as_arguments(values)]))
        except UserError as error:
            TrialCLI(fixed)  # a mistake that has nothing to do with the space is told without it
            drawn = ", ".join(f"{name} {value}" for name, value in values.items())
            raise UserError(f"{where} draws what osr run does not take ({drawn}): {error}") from error
    _refuse(found[0])
    return found[0]


def _refuse(cli: TrialCLI) -> None:
    config, selection = cli.config["run"], cli.datamodule.tables.selection
    if cli.trainer.world_size > 1:
        raise UserError(
            "a trial trains in one process: leave trainer.devices and num_nodes at 1, and start several "
            "searches on one --storage instead"
        )
    if config.ckpt_path is not None:
        raise UserError("a search trains from the beginning: leave ckpt_path out")
    if selection.calibrate_on == "test":
        raise UserError("a search sees no test image: leave data.calibrate_on at validation")
    limit = cli.trainer.limit_val_batches
    if isinstance(limit, int) or limit < 1:
        raise UserError(
            "a search judges by all validation images: leave trainer.limit_val_batches and fast_dev_run out"
        )
    both = {*selection.calibration_unknown.values()} & {*selection.sets.values()}
    if both and not selection.allow_overlap:
        raise UserError(
            f"the unknown set {min(both)} would choose the options and be tested: take another one for "
            "data.calibration_unknown, or none"
        )


def trial_arguments(arguments: Sequence[str], values: Mapping[str, Any], name: str, number: int) -> list[str]:
    """The options of a trial: it keeps no checkpoint, and its run folder is ``NAME/version_NUMBER``."""
    ours = [f"--trainer.experiment={name}", f"--trainer.version={number}"]
    ours.append("--trainer.enable_checkpointing=false")
    return [*_DEFAULTS, *arguments, *as_arguments(values), *ours]


def settings(config: str, space: Space) -> dict[str, Any]:
    """The resolved config but for searched and local options: what trials that compare have in common."""
    flat = dict(_flat("", yaml.safe_load(config)))
    leave = {*_LOCAL, *space, *(name.replace(".", ".init_args.", 1) for name in space)}
    within = tuple(f"{name}." for name in leave)
    return {name: value for name, value in flat.items() if name not in leave and not name.startswith(within)}


def _flat(prefix: str, value: object) -> Iterator[tuple[str, object]]:
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _flat(f"{prefix}.{key}" if prefix else str(key), item)
    else:
        yield prefix, value
