"""``osr push``: a run's checkpoint, results and model card on the Hugging Face Hub."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from osr_lightning.cli.arguments import CommandParser, parse, run_folder
from osr_lightning.deploy.hub import FILES, is_hub, place_of, upload
from osr_lightning.errors import UserError
from osr_lightning.evaluation.model_card import NAME, write_card
from osr_lightning.evaluation.report.places import checkpoint_path, without_folders
from osr_lightning.evaluation.report.render import read_results
from osr_lightning.yaml_files import change_texts


def build_parser() -> argparse.ArgumentParser:
    """The parser."""
    parser = CommandParser(
        "osr push",
        description="Put a run's tested checkpoint, results.json and model card into a repository of the "
        "Hugging Face Hub, from where load('hf:USER/NAME') and --ckpt_path hf:USER/NAME take it. The "
        "checkpoint holds small pictures of known images (model.keep_examples, model.keep_features); "
        "images, predictions and the report stay here.",
    )
    parser.add_argument("run", help="a run folder, such as lightning_logs/NAME/version_0")
    parser.add_argument(
        "name", metavar="hf:USER/NAME", help="the repository, which is made where there is none"
    )
    parser.add_argument(
        "--licence", help="of the weights, as the Hub names it: mit, apache-2.0, cc-by-4.0, …"
    )
    parser.add_argument("--private", action="store_true", help="of a repository that is made")
    return parser


def main(arguments: Sequence[str]) -> None:
    """Run the command.

    Raises:
        UserError: for a mistake in the options, or a folder that is of no finished run.
    """
    options = parse(build_parser(), arguments)
    folder = run_folder(options.run)
    if not is_hub(options.name):
        raise UserError(f"{options.name}: name a repository as hf:USER/NAME")
    place_of(options.name)
    results = read_results(folder)
    checkpoint = checkpoint_path(folder, results)
    if checkpoint is None or not checkpoint.is_file():
        raise UserError(
            f"{folder} has no checkpoint that was tested: push the folder of osr run, or test it again"
        )
    card = write_card(folder, options.licence, options.name)
    with tempfile.TemporaryDirectory() as place:
        numbers = Path(place, "results.json")
        shown = change_texts(results, without_folders)  # absolute paths are of this machine
        numbers.write_text(json.dumps(shown, indent=2) + "\n", encoding="utf-8")
        files = [(card, NAME), (checkpoint, FILES[0]), (numbers, numbers.name)]
        address = upload(options.name, files, private=options.private)
    print(f'{address}: {", ".join(there for _, there in files)}; load("{options.name}") takes it')
