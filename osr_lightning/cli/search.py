"""``osr search``: options of ``osr run`` searched with Optuna, on validation images alone."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from osr_lightning.atomic_write import folder_name
from osr_lightning.cli.arguments import CommandParser, add_name, names
from osr_lightning.cli.lightning_cli import OpenSetCLI, plain_text
from osr_lightning.cli.messages import read_options
from osr_lightning.data.counts import image_lines
from osr_lightning.errors import UserError, check_range
from osr_lightning.studies.search.objective import Judge, SearchData
from osr_lightning.studies.search.search import Search, run_search
from osr_lightning.studies.search.space import Space, as_arguments, corners, described, read_space
from osr_lightning.studies.search.storage import check_trials, open_study, same_search
from osr_lightning.studies.search.trials import DEFAULTS, settings
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


def build_parser() -> argparse.ArgumentParser:
    """The search's own options; all others are those of ``osr run``."""
    options = CommandParser(
        "osr search",
        description=_ABOUT,
        epilog="All further options are those of osr run, as --config; osr run --help explains them.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = options.add_argument
    ranges = "options of osr run with low/high/log/step or choices"
    add("--space", type=Path, required=True, metavar="YAML", help=ranges)
    total = "go on until N trials are complete or pruned, earlier ones included"
    add("--trials", type=int, required=True, metavar="N", help=total)
    where = "sqlite:///FILE, postgresql://USER@HOST/DB or a journal's path, which several processes may share"
    add("--storage", metavar="URL", help=f"{where}; a journal in the search's folder if not given")
    add_name(options, "EXPERIMENT_search")
    return options


def main(arguments: Sequence[str]) -> None:
    """Run a search, or a part of it.

    Args:
        arguments: of the command line, after ``search``.

    Raises:
        UserError: for a mistake in them, before anything is trained.
    """
    parser = build_parser()
    options, further = parser.parse_known_args(arguments)
    read_options("run", further, names(parser))
    check_range("--", vars(options), "trials", lambda value: value >= 1, "be at least 1")
    space = read_space(options.space)
    with silence():
        cli = check(space, further, str(options.space))
    config = cli.config["run"]
    name = options.name or f"{config.trainer.experiment}_search"
    folder = Path(config.trainer.default_root_dir, "lightning_logs", folder_name("--name", name))
    study = open_study(options.storage, folder, name, config.seed_everything)
    same_search(study, described(space), settings(cli.yaml, space))
    check_trials(study, space)
    search = Search(
        study,
        space,
        further,
        folder,
        options.trials,
        lambda drawn, judge, tell: TrialCLI(drawn, judge, tell=tell),
        lambda drawn: TrialCLI(drawn).yaml,
    )
    run_search(search)


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
            self.model.use_backbone(self.datamodule)
            self.datamodule.setup("fit")
            print("\n".join(image_lines(self.datamodule.tables)), flush=True)
        self.trainer.callbacks.insert(0, self.judge)  # type: ignore[attr-defined]
        self.trainer.fit(self.model, datamodule=self.datamodule)

    @property
    def yaml(self) -> str:
        """The whole resolved config."""
        return plain_text(self._parser("run"), self.config["run"])


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
    fixed = [*DEFAULTS, *arguments, "--trainer.logger=false"]
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
    config, tables = cli.config["run"], cli.datamodule.tables
    if cli.trainer.world_size > 1:
        raise UserError(
            "a trial trains in one process: leave trainer.devices and num_nodes at 1, and start several "
            "searches on one --storage instead"
        )
    if config.ckpt_path is not None:
        raise UserError("a search trains from the beginning: leave ckpt_path out")
    if tables.options["calibrate_on"] == "test":
        raise UserError("a search sees no test image: leave data.calibrate_on at validation")
    limit = cli.trainer.limit_val_batches
    if isinstance(limit, int) or limit < 1:
        raise UserError(
            "a search judges by all validation images: leave trainer.limit_val_batches and fast_dev_run out"
        )
    both = {*tables.calibration_unknown.values()} & {*tables.sets.values()}
    if both and not tables.options["allow_overlap"]:
        raise UserError(
            f"the unknown set {min(both)} would choose the options and be tested: take another one for "
            "data.calibration_unknown, or none"
        )
