"""What is checked of the command line before the parser sees it, or beyond what the parser checks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml

from osr_lightning.errors import UserError


def check_seed(seed: object) -> None:
    """Refuse what is no seed.

    Raises:
        UserError: with the range.
    """
    if isinstance(seed, int) and not isinstance(seed, bool) and not 0 <= seed < 2**32:
        raise UserError(f"seed_everything must lie between 0 and {2**32 - 1}, got {seed}")


def check_files(arguments: Sequence[str]) -> None:
    """Refuse configuration files that are no UTF-8, or that say two things of one option.

    Raises:
        UserError: naming the file, and the option and its line.
    """
    for argument in arguments:
        path = Path(argument.rpartition("=")[2] if argument.startswith("-") else argument)
        if path.suffix.lower() not in (".yaml", ".yml", ".json") or not path.is_file():
            continue
        try:
            nodes = [yaml.compose(path.read_text(encoding="utf-8"), yaml.SafeLoader)]
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is no UTF-8 text ({error.reason}): save it in that encoding") from error
        except (OSError, yaml.YAMLError):
            continue  # the parser says what is wrong with it
        seen: set[int] = set()  # an alias may lead back
        while nodes:
            node = nodes.pop()
            if id(node) in seen:
                continue
            seen.add(id(node))
            if isinstance(node, yaml.SequenceNode):
                nodes += node.value
            elif isinstance(node, yaml.MappingNode):
                keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
                for key, value in node.value:
                    if isinstance(key, yaml.ScalarNode) and keys.count(key.value) > 1:
                        line = key.start_mark.line + 1
                        raise UserError(
                            f"{path} names {key.value} more than once, first in line {line}: keep one of them"
                        )
                    nodes.append(value)
