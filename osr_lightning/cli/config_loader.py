"""How the command line reads YAML: names stay text, and class paths of 0.1 become today's.

YAML 1.1 takes ``010`` for 8, ``2024_11_29`` for 20241129, ``12:30`` for 750 and ``no`` for false, wherever
they stand. Here a number is what people write as one, only true and false are truths, and keys are text.
"""

from __future__ import annotations

import re
from typing import Any

import yaml
from jsonargparse import set_loader

from osr_lightning.recogniser.migrate import new_class_path
from osr_lightning.yaml_files import change_texts

MODE = "osr"
SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(SafeLoader):  # type: ignore[misc]
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - yaml's own


_RESOLVED = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?(?:0|[1-9][0-9]*)", list("-+0123456789")),
    "float": (
        r"[-+]?(?:(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.(?:inf|Inf|INF))"
        r"|\.(?:nan|NaN|NAN)",
        list("-+0123456789."),
    ),
    "merge": (r"<<", ["<"]),
}
for _tag, (_pattern, _first) in _RESOLVED.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first)


def _mapping(loader: Any, node: yaml.MappingNode) -> Any:  # noqa: ANN401 - yaml is untyped
    loader.flatten_mapping(node)
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode):
            key.tag = "tag:yaml.org,2002:str"
    found: dict[str, Any] = {}
    yield found  # it may refer to itself
    found.update(loader.construct_mapping(node, deep=True))


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)


def load(text: str) -> Any:  # noqa: ANN401 - whatever it holds
    """The value that a YAML text stands for; a text that only looks like a mapping is itself."""
    value = yaml.load(text, Loader=_Loader)  # noqa: S506 - a subclass of the safe loader
    if isinstance(value, dict) and value and all(item is None for item in value.values()):
        keys = set(text.strip(" {}").replace(" ", "").split(","))
        if (len(value) == 1 and text.strip() == f"{next(iter(value))}:") or keys == set(value):
            return text
    if isinstance(value, dict) and value.get("weights_only", True) is None:
        del value["weights_only"]  # Lightning's fit saves it, and other commands do not take it
    return change_texts(value, new_class_path)


set_loader(MODE, load, (yaml.YAMLError,))
