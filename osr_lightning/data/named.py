"""The folders that a user has named as those of images, on this machine: what a checkpoint may name, too."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from osr_lightning.data.cache import cache_folder


def paths_of(name: str, value: object) -> list[str]:
    """The folders and files that an option of the datamodule names.

    Args:
        name: of the option.
        value: a source, a mapping of sources, or for ``root`` a folder.
    """
    if isinstance(value, dict):
        return [path for item in value.values() for path in paths_of(name, item)]
    if name == "root":
        return [str(value)]
    kind, _, path = str(value).partition(":")
    return [path] if kind in ("folder", "npz") else []


def remember(paths: Iterable[str]) -> None:
    """Note that the user named these folders or files; without a cache folder it is not noted."""
    for path in paths:
        mark = _mark(Path(path).expanduser().resolve())
        with suppress(OSError):
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.touch()


def is_named(path: str) -> bool:
    """Whether a folder or file lies in the working folder, or in one that was named before."""
    whole = Path(path).expanduser().resolve()
    return whole.is_relative_to(Path.cwd().resolve()) or any(
        _mark(folder).exists() for folder in (whole, *whole.parents)
    )


def _mark(path: Path) -> Path:
    digest = hashlib.blake2b(bytes(path), digest_size=16)
    return cache_folder() / "named" / digest.hexdigest()
