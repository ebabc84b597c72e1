"""The help pages: of a command, of its classifiers and networks.

A line of help is the first clause of the option's docstring; headings and the order are written here.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from osr_lightning.cli.options import (
    WITH_CLASSES,
    Option,
    classes_of,
    classifier,
    find_class,
    options_of,
    parameters,
    summary,
)


class Section(NamedTuple):
    """The options below one heading.

    Attributes:
        heading: what they are for.
        options: their names, in the order of the page.
        commands: those that heed them; empty for all.
    """

    heading: str
    options: str
    commands: tuple[str, ...] = ()


_TRAINING = ("run", "fit")
SECTIONS = (
    Section("Settings", "config print_config seed_everything verbose trust_checkpoint"),
    Section("Resuming", "ckpt_path", _TRAINING),
    Section(
        "Checkpoint (a file, or best or last of the experiment's newest run)",
        "ckpt_path output in_place",
        ("calibrate", "validate", "test", "predict"),
    ),
    Section(
        "Images (sources: mnist, cifar10, ..., folder:PATH, npz:PATH, noise:uniform)",
        "data.known data.known_classes data.unknown data.predict data.root data.channels data.image_size "
        "data.mean data.std data.val_fraction data.unknown_fraction data.seed data.test_seed "
        "data.eval_batch_size data.memory_limit data.num_workers",
    ),
    Section(
        "Model",
        "model model.network model.num_samples model.dropout model.masks model.mask_seed model.mirror",
    ),
    Section(
        "Score (msp, entropy, mutual_information, energy, fisher, knn, vim, ...)",
        "model.score model.detectors",
    ),
    Section(
        "Threshold",
        "model.calibration model.alpha model.few_share model.threshold model.costs model.unknown_prior "
        "data.calibration_unknown data.calibrate_on data.allow_overlap",
        ("run", "fit", "calibrate"),
    ),
    Section(
        "Training",
        "trainer.max_epochs trainer.max_time data.batch_size model.learning_rate model.schedule "
        "model.weight_decay model.label_smoothing model.loss model.loss_temperature model.augment model.mix "
        "model.pixmix model.finetune model.balance_classes model.compile optimizer lr_scheduler "
        "model.keep_examples model.keep_features",
        _TRAINING,
    ),
    Section(
        "Results",
        "evaluation.figures evaluation.tsne_points evaluation.bootstrap evaluation.left_out evaluation.seed",
        ("run", "test"),
    ),
    Section(
        "Run folder (default_root_dir/lightning_logs/EXPERIMENT/version_N)",
        "trainer.default_root_dir trainer.experiment trainer.version trainer.logger "
        "trainer.enable_checkpointing trainer.checkpoint_minutes",
    ),
    Section(
        "Machine",
        "trainer.accelerator trainer.devices trainer.precision trainer.enable_progress_bar trainer.callbacks",
    ),
)
WIDTH = 80
_COLUMN = 36  # where a line's text begins
_NO_BREAK = "\N{NO-BREAK SPACE}"  # textwrap takes it as a letter
_INTRO = [
    "An option is --NAME VALUE here, and keys in a YAML: `data: {known: mnist}` is",
    "--data.known mnist. MAP is {NAME: VALUE}, LIST is [A, B], and [ ] at the end",
    "of a line is what holds while the option is not given.",
]
_FILLED = ("params", "optimizer")  # arguments that the training gives


def page(command: str, what: str, arguments: Sequence[str]) -> str | None:
    """The help that a command line asks for; None if it asks for none.

    Args:
        command: as in the arguments.
        what: it does, in a line.
        arguments: of the command line.

    Raises:
        UserError: for a class that does not exist.
    """
    for option in WITH_CLASSES:
        if (at := _position(arguments, f"--{option}.help")) is not None:
            name = arguments[at].partition("=")[2] or next(iter(arguments[at + 1 : at + 2]), "")
            return _class_page(option, command, "" if name.startswith("-") else name, classes_of(option))
    if "--help-all" in arguments:
        return _all_options(command, what)
    if "-h" in arguments or "--help" in arguments:
        return _short_page(command, what, classifier(arguments))
    return None


def _position(arguments: Sequence[str], option: str) -> int | None:
    return next((i for i, word in enumerate(arguments) if word.partition("=")[0] == option), None)


def shown(command: str, options: Mapping[str, Option]) -> list[tuple[str, list[str]]]:
    """Headings and names of options, as the page of a command has them."""
    sections = [section for section in SECTIONS if command in (section.commands or [command])]
    named = [(one.heading, [name for name in one.options.split() if name in options]) for one in sections]
    return [(heading, names) for heading, names in named if names]


def _short_page(command: str, what: str, kind: type[Any]) -> str:
    options = options_of(command, kind)
    lines = [f"usage: osr {command} [--config FILE] [options]", "", _sentence(what), *_INTRO]
    for heading, names in shown(command, options):
        lines += ["", f"{heading}:"]
        for name in names:
            lines += _line(name, options[name])
    lines += ["", f"All options, with more to read: osr {command} --help-all"]
    return "\n".join(lines)


def _line(name: str, option: Option) -> list[str]:
    head = _head(name, option.takes)
    if len(head) > WIDTH:  # of many values
        head = _head(name, "KIND")
    told = option.clause + (f"; see --{name}.help" if name in WITH_CLASSES else "") + _unset(option)
    indent = " " * _COLUMN
    fits = len(head) + 1 < _COLUMN
    first = f"{head:<{_COLUMN}}" if fits else indent
    text = textwrap.wrap(told, WIDTH, initial_indent=first, subsequent_indent=indent, break_on_hyphens=False)
    return [*([] if fits else [head]), *(line.replace(_NO_BREAK, " ") for line in text)]


def _all_options(command: str, what: str) -> str:
    lines = [f"usage: osr {command} [--config FILE] [options]", "", _sentence(what)]
    section = None
    for name, option in options_of(command).items():
        if (found := name.rpartition(".")[0]) != section:
            section = found
            lines.append("")
        lines += _entry(name, option)
    names = ", ".join(f"--{option}.help" for option in WITH_CLASSES)
    told = textwrap.fill(f"Classes and, with a name, their options: {names}", WIDTH, break_on_hyphens=False)
    lines += ["", told]
    return "\n".join(lines)


def _class_page(option: str, command: str, name: str, known: dict[str, type[Any]]) -> str:
    if name:
        kind = find_class(name, known)
        options = {key: found for key, found in parameters(kind).items() if key not in _FILLED}
        entries = [line for key, found in options.items() for line in _entry(f"{option}.{key}", found)]
        head = textwrap.fill(f"{kind.__name__}: {summary(kind)}", WIDTH)
        return "\n".join([head, "", *entries])
    indent = " " * 22
    lines = [f"For --{option}, beside the path of a class of one's own, as package.Name:", ""]
    for key, kind in known.items():
        lines += textwrap.wrap(f"  {key:<19} {summary(kind)}", WIDTH, subsequent_indent=indent)
    return "\n".join([*lines, "", f"Options of one: osr {command} --{option}.help NAME"])


def _entry(name: str, option: Option) -> list[str]:
    default = option._replace(text="")  # which is below
    indent = " " * 6
    head = _head(name, option.takes) + _unset(default)
    told = textwrap.wrap(option.text, WIDTH, initial_indent=indent, subsequent_indent=indent)
    lines = textwrap.wrap(head, WIDTH, subsequent_indent=indent, break_on_hyphens=False)
    return [*(line.replace(_NO_BREAK, " ") for line in lines), *told]


def _head(name: str, takes: str) -> str:
    return f"  --{name} {takes}".rstrip()


def _unset(option: Option) -> str:
    short = len(option.unset) <= WIDTH - _COLUMN - 2
    return f" [{option.unset.replace(' ', _NO_BREAK) if short else option.unset}]" if option.unset else ""


def _sentence(what: str) -> str:
    return textwrap.fill(f"{what[0].upper()}{what[1:]}.", WIDTH)
