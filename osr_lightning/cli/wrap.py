"""``osr wrap``: a classifier that was trained elsewhere, with detectors, a threshold and a test."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.cli import LightningArgumentParser

from osr_lightning.cli.arguments import CommandParser, names
from osr_lightning.cli.help import SECTIONS
from osr_lightning.cli.lightning_cli import OpenSetCLI
from osr_lightning.cli.messages import read_options
from osr_lightning.data.datamodule import OpenSetDataModule
from osr_lightning.data.image_table import ImageTables
from osr_lightning.data.sources import is_source
from osr_lightning.errors import UserError
from osr_lightning.models.backbones import OWN, Wrapped, is_class_path, library_of, pixel_format, pretrained
from osr_lightning.models.factory import find
from osr_lightning.training.console import say
from osr_lightning.training.loggers import run_folder
from osr_lightning.training.module import OpenSetClassifier
from osr_lightning.training.trainer import OpenSetTrainer
from osr_lightning.training.wrap import check_order, choose_outputs, read_names

NAME = "best.ckpt"
_NOTHING_TRAINED = {
    name
    for section in SECTIONS
    for name in section.options.split()
    if section.heading in ("Training", "Resuming") and name != "model.keep_examples"
}


class WrapCLI(OpenSetCLI):
    """``osr run`` for a network that is trained already.

    Args:
        arguments: ``run`` and its options.
        names: of the network's outputs; those of the known classes if not given.
    """

    def __init__(self, arguments: list[str], names: Sequence[str] | None) -> None:
        self.names = names
        super().__init__(arguments)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:  # noqa: ANN401
        """Parse, and find which outputs are the known classes, before any image is read.

        Raises:
            UserError: where they cannot be told, or the network is none to be wrapped.
        """
        super().parse_arguments(parser, args)
        config = self.config[self.command]
        given = config.model.init_args.network.init_args
        factory = find(given.name, trust=True) if is_class_path(given.name) else None
        found = pretrained(given.name, given.weights, factory)
        tables = ImageTables(config.data.as_dict())
        wanted = tables.wanted_format(pixel_format(given.name, given.weights, found.channels))
        generator = torch.Generator().manual_seed(0)
        size = wanted.image_size
        found.refuse_more(given.name, torch.rand(2, wanted.channels, size, size, generator=generator))
        classes, outputs = tables.known_names(), found.own_layer(given.name).out_features
        given.outputs = choose_outputs(classes, self.names, outputs)
        if len(classes) < outputs:
            say(f"{len(classes):,} of {outputs:,} outputs are kept: those of the known classes")

    def run(self, model: OpenSetClassifier, datamodule: OpenSetDataModule, ckpt_path: None) -> None:
        """Fit detectors, choose thresholds, and test."""
        trainer = self.trainer
        assert isinstance(trainer, OpenSetTrainer)
        model.prepare(datamodule, "calibrate")
        check_order(model.trained, datamodule.tables, self.names)
        model.check_alpha(datamodule)  # before there is a run folder
        model.images_seen = datamodule.tables.seen(None)
        if (folder := run_folder(trainer)) is None:
            raise UserError("osr wrap writes its checkpoint into a run folder: leave trainer.logger as it is")
        path = str(folder / "checkpoints" / NAME)
        trainer.calibrate(model, datamodule, output=path)
        trainer.test(model, datamodule=datamodule, ckpt_path=path, verbose=False)


def _source(name: str) -> str:
    """A folder as a source; other sources as they are."""
    return name if is_source(name) else f"folder:{name}"


def build_parser() -> argparse.ArgumentParser:
    """The command's own options; all others are those of ``osr run``."""
    parser = CommandParser(
        "osr wrap",
        usage="osr wrap --network NAME --weights FILE --known FOLDER [--unknown FOLDER] [--classes FILE] "
        "[options of osr run]",
        description="Make a recogniser of a classifier that was trained elsewhere, without training. Its "
        "logits stay as they are; detectors are fitted to its features, the threshold is chosen on images "
        "that are held out of FOLDER, and others of it are the test. The run folder is that of osr run, with "
        "a checkpoint for predict, export, serve and calibrate.",
        epilog="Score, alpha, detectors, image size, mean and deviation are options of osr run "
        "(--model.score, --model.alpha, --model.detectors, --data.image_size, --data.mean, --data.std). The "
        "images of FOLDER should be none that the classifier was trained on: it is more certain of those "
        "than of new ones, and the threshold would reject more than alpha of these.",
    )
    parser.add_argument(
        "--network",
        required=True,
        metavar="NAME",
        help="one of torchvision's or timm's classifiers, as timm:resnet50, or a class path (my_package.Net)",
    )
    parser.add_argument(
        "--weights",
        metavar="FILE",
        help="its state dict (.pth, .pt, .safetensors), a folder with one, or DEFAULT for published ones; "
        "those that a class path brings if not given",
    )
    parser.add_argument(
        "--known", required=True, metavar="FOLDER", help="a folder of images per class, or another source"
    )
    parser.add_argument(
        "--unknown",
        metavar="FOLDER",
        help="images of none of the classes, for the test alone; or a mapping, as of data.unknown",
    )
    parser.add_argument(
        "--classes",
        type=Path,
        metavar="FILE",
        help="names of the outputs in their order, one a line, or JSON (a list, or a mapping of names and "
        "numbers); the known classes, sorted, if not given. Outputs of no known class are left out",
    )
    return parser


def main(arguments: Sequence[str]) -> None:
    """Wrap a classifier.

    Args:
        arguments: of the command line, after ``wrap``.

    Raises:
        UserError: for a mistake in them, or where the network and the images do not fit together.
    """
    parser = build_parser()
    own, further = parser.parse_known_args(arguments)
    for one in read_options("run", further, names(parser)):
        if one.file is None and one.name in _NOTHING_TRAINED:
            raise UserError(f"osr wrap trains nothing: leave {one.name} out")
        if one.file is None and one.name.startswith("model.network"):
            raise UserError(f"osr wrap names the network with --network and --weights: leave {one.name} out")
    if own.weights is None and not is_class_path(own.network):
        library_of(own.network)  # or it is no network's name
        raise UserError(f"name the file of {own.network}'s weights with --weights")
    given = ["--model=BaselineClassifier", f"--model.network={Wrapped.__name__}"]
    given += [f"--model.network.name={own.network}", f"--model.network.weights={own.weights or OWN}"]
    given.append(f"--data.known={_source(own.known)}")
    if (unknown := own.unknown) is not None:
        sets = unknown if unknown.startswith("{") else json.dumps({"others": _source(unknown)})
        given.append(f"--data.unknown={sets}")
    WrapCLI(["run", *given, *further], None if own.classes is None else read_names(own.classes))
