"""What jsonargparse looks for again at every option, looked for once: a third of a command's parsing."""

import functools
import sys
import weakref
from importlib import import_module

import pytest


def remember(patch: pytest.MonkeyPatch) -> None:
    """Patch it; does nothing where a release of jsonargparse has its functions elsewhere."""
    try:
        actions, namespace, subcommands, util = (
            import_module(f"jsonargparse.{name}")
            for name in ("_actions", "_namespace", "_subcommands", "_util")
        )
        path, find = util.get_import_path, subcommands.find_action_and_subcommand
        faster = {path: _import_path(path), find: _find_action(find, actions, subcommands.ActionSubCommands)}
        space = namespace.Namespace
        parse_key = _parse_key(space._parse_key, space, namespace.add_clash_mark)
    except (ImportError, AttributeError):
        return
    for old, new in faster.items():
        _swap(patch, old, new)
    patch.setattr(space, "_parse_key", parse_key)


def _swap(patch, old, new) -> None:
    """Put a function in the place of another, in each module that has imported it."""
    modules = [module for name, module in sys.modules.items() if name.partition(".")[0] == "jsonargparse"]
    for module in modules:
        for name in [name for name, value in vars(module).items() if value is old]:
            patch.setattr(module, name, new)


def _import_path(right):
    paths = weakref.WeakKeyDictionary()

    @functools.wraps(right)
    def get_import_path(value):
        if not isinstance(value, type):
            return right(value)
        if (path := paths.get(value)) is None:
            path = paths[value] = right(value)
        return path

    return get_import_path


def _find_action(right, actions, commands):
    aside, not_parsed = (actions._ActionConfigLoad, actions.ActionFail), actions.non_parsing_actions
    indices = weakref.WeakKeyDictionary()  # by parser: how many actions it had, and those of each name

    def index(parser):
        count, names = indices.get(parser, (0, None))
        if count != len(parser._actions):
            names = {}
            for action in parser._actions:
                if isinstance(action, commands):
                    names = None  # whose commands go before
                    break
                if not isinstance(action, not_parsed):
                    options = (name[2:] for name in action.option_strings if name.startswith("--"))
                    for name in {action.dest, *options}:
                        names.setdefault(name, []).append(action)
            indices[parser] = len(parser._actions), names
        return names

    @functools.wraps(right)
    def find(parser, dest, exclude=None):
        names = index(parser)
        if names is None:
            return right(parser, dest, exclude=exclude)
        fallback = None
        for action in names.get(dest, ()):
            if exclude is None or not isinstance(action, exclude):
                if not isinstance(action, aside):
                    return action, None
                fallback = action
        return fallback, None

    return find


def _parse_key(right, space, add_clash_mark):
    @functools.cache
    def split(key):
        parts = key.split(".")
        if " " in key or "" in parts:
            return None
        *before, leaf = map(add_clash_mark, parts)
        return leaf, before, ".".join(before)

    @functools.wraps(right)
    def parse_key(self, key):
        if not isinstance(key, str) or (found := split(key)) is None:
            return right(self, key)  # which refuses it
        leaf, before, parent_key = found
        parent = self
        for part in before:
            if not (hasattr(parent, part) or (isinstance(parent, dict) and part in parent)):
                return leaf, None, parent_key
            parent = parent[part]
            if parent is not None and not isinstance(parent, (space, dict)):
                return leaf, None, parent_key
        return leaf, parent, parent_key

    return parse_key
