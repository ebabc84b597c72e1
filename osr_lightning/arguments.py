"""What is checked of the command line before the parser sees it, or beyond what the parser checks."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path

import yaml

from osr_lightning.errors import UserError

_MOST_NODES = 100_000


def value_of(arguments: Sequence[str], option: str) -> str | None:
    """The value of an option, the last one if it is given more than once."""
    found = None
    for position, word in enumerate(arguments):
        if word.startswith(f"{option}="):
            found = word.partition("=")[2]
        elif word == option and position + 1 < len(arguments):
            found = arguments[position + 1]
    return found


def no_command(arguments: Sequence[str], commands: Iterable[str]) -> str:
    """What to say where none of the words is a command."""
    first = next((word for word in arguments if not word.startswith("-")), None)
    if first is None:
        return f"a command is missing; there are {', '.join(commands)}"
    return f"there is no command {first!r}; {nearest(first, commands)}"


def nearest(given: str, names: Iterable[str]) -> str:
    """The name that was probably meant, or all of them, as the end of a sentence."""
    names = list(names)
    close = difflib.get_close_matches(given, names, n=1, cutoff=0.8)
    close = close or difflib.get_close_matches(given, names, n=3, cutoff=0.6)
    return f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(names)}"


def check_seed(seed: object) -> None:
    """Refuse what is no seed.

    Raises:
        UserError: with the range.
    """
    if isinstance(seed, int) and not isinstance(seed, bool) and not 0 <= seed < 2**32:
        raise UserError(f"seed_everything must lie between 0 and {2**32 - 1}, got {seed}")


def check_files(arguments: Sequence[str]) -> None:
    """Refuse configuration files that are no UTF-8, that say two things of one option, or that never end.

    Raises:
        UserError: naming the file, and the option and its line.
    """
    for argument in arguments:
        path = Path(argument.rpartition("=")[2] if argument.startswith("-") else argument)
        try:
            if path.suffix.lower() not in (".yaml", ".yml", ".json") or not path.is_file():
                continue
            _check(path, yaml.compose(path.read_text(encoding="utf-8"), yaml.SafeLoader))
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is no UTF-8 text ({error.reason}): save it in that encoding") from error
        except RecursionError as error:
            raise UserError(f"{path} is nested too deeply: no configuration needs that") from error
        except yaml.YAMLError as error:
            raise UserError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
        except (OSError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            # the parser says what is wrong with it


def _check(path: Path, root: yaml.Node | None) -> None:
    sizes: dict[int, int] = {}  # of the nodes that were seen, aliases written out; 0 while within one

    def size(node: yaml.Node | None) -> int:
        if isinstance(node, yaml.MappingNode):
            lines: dict[str, int] = {}
            for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
                line = key.start_mark.line + 1
                if key.value in lines:
                    raise UserError(
                        f"{path} names {key.value} in line {lines[key.value]} and again in line {line}: "
                        "keep one of them"
                    )
                lines[key.value] = line
            below = [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            below = node.value
        else:
            return 1
        if id(node) not in sizes:
            sizes[id(node)] = 0
            sizes[id(node)] = 1 + sum(map(size, below))
        if not 0 < sizes[id(node)] <= _MOST_NODES:
            line = node.start_mark.line + 1
            raise UserError(f"{path} repeats itself by aliases from line {line} on: write the values out")
        return sizes[id(node)]

    size(root)
