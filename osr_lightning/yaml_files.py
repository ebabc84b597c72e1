"""YAML files of a user's, checked before anything takes values from them; and the texts in such values."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from osr_lightning.errors import UserError

if TYPE_CHECKING:  # else on first use: who asks an exported graph need not have it
    import yaml

ENDINGS = (".yaml", ".yml", ".json")
_MOST_NODES = 100_000


def check_yaml(path: Path) -> None:
    """Refuse a file that is no UTF-8, that says two things of one option, or that never ends.

    Raises:
        UserError: naming the file, and the option and its line.
        OSError: where it cannot be read.
    """
    import yaml

    try:
        _refuse_doubles(path, yaml.compose(path.read_text(encoding="utf-8"), yaml.SafeLoader))
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no UTF-8 text ({error.reason}): save it in that encoding") from error
    except RecursionError as error:
        raise UserError(f"{path} is nested too deeply: no configuration needs that") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path} is no YAML: {' '.join(str(error).split())}") from error


def _refuse_doubles(path: Path, root: yaml.Node | None) -> None:
    import yaml

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


def change_texts(value: Any, change: Callable[[str], str]) -> Any:  # noqa: ANN401 - whatever YAML or JSON holds
    """The same value with each text in it changed, but for the keys of mappings."""
    if isinstance(value, dict):
        return {key: change_texts(item, change) for key, item in value.items()}
    if isinstance(value, list):
        return [change_texts(item, change) for item in value]
    return change(value) if isinstance(value, str) else value
