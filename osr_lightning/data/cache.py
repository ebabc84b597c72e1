"""Preprocessed pixels kept between runs."""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import numpy as np
import PIL
import torch
from numpy.typing import NDArray
from torch import Tensor

from osr_lightning.atomic_write import replacing
from osr_lightning.errors import Failure

ROWS_AT_ONCE = 256  # images that are resized between two looks at the clock
WORTH_KEEPING = 1.0  # seconds; what takes less is quicker made again than looked up by anybody


def cache_folder() -> Path:
    """``OSR_CACHE_DIR``, or ``osr_lightning`` in the user's cache folder; may be deleted at any time."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "osr_lightning"
    return Path(os.environ.get("OSR_CACHE_DIR", default))


def cached(
    content: Iterable[bytes],
    settings: tuple[int | str, ...],
    shape: Sequence[int],
    compute: Callable[[], Tensor],
) -> Tensor:
    """``compute()``, or what it gave before for the same content, settings and code.

    The key is a digest of the raw content, of the settings, of this package's own data code and of the
    versions of the libraries that decode and resize, so an entry can never be stale.

    Args:
        content: the raw bytes that the result depends on, in order.
        settings: what else it depends on.
        shape: of the result.
        compute: makes the result, a uint8 tensor.

    Returns:
        The result; kept on disk if it took more than a second and the cache folder can be written.
    """
    path = _path(content, settings)
    if (kept := _kept(path, shape)) is not None:
        return torch.from_numpy(np.array(kept))
    begin = time.perf_counter()
    result = compute()
    if time.perf_counter() - begin > WORTH_KEEPING:
        with suppress(Failure), replacing(path) as partial:  # a run does without its cache
            np.save(partial, result.numpy(), allow_pickle=False)
    return result


def mapped(
    content: Iterable[bytes],
    settings: tuple[int | str, ...],
    shape: Sequence[int],
    compute: Callable[[int, int], Tensor],
) -> Path | None:
    """Images too many for memory, made once and then read from one file as they are asked for.

    Args:
        content: as for `cached`; digests of the files will do.
        settings: as for `cached`.
        shape: ``(N, C, H, W)``.
        compute: makes the images from one row up to another.

    Returns:
        The file, for `read_rows`; None where the cache folder has not the room.
    """
    path, size = _path(content, settings), math.prod(shape)
    if _kept(path, shape) is None:
        try:
            if path.is_dir():  # whoever made it: no file could take its place
                return None
            path.parent.mkdir(parents=True, exist_ok=True)
            if shutil.disk_usage(path.parent).free < 2 * size:
                return None
            _write_rows(path, shape, compute)
        except (OSError, Failure):  # a run does without its cache
            return None
    return path


def _kept(path: Path, shape: Sequence[int]) -> NDArray[np.uint8] | None:
    """The entry, still on disk, if there is one and it is whole and what is expected."""
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception:  # not there, or cut short by a full disk: a damaged header fails in many ways
        return None
    whole = isinstance(found, np.ndarray) and found.dtype == np.uint8 and found.shape == tuple(shape)
    return found if whole else None


def read_rows(path: Path, rows: Sequence[int]) -> Tensor:
    """The images at ``rows`` of a file of `mapped`."""
    return torch.from_numpy(np.load(path, mmap_mode="r")[np.asarray(rows, dtype=np.int64)])


def _write_rows(path: Path, shape: Sequence[int], compute: Callable[[int, int], Tensor]) -> None:
    from rich.progress import track

    with replacing(path) as partial:
        rows = np.lib.format.open_memmap(partial, "w+", np.uint8, tuple(shape))
        starts = range(0, shape[0], ROWS_AT_ONCE)
        for start in track(starts, description="resizing once", disable=not sys.stderr.isatty()):
            end = min(start + ROWS_AT_ONCE, shape[0])
            rows[start:end] = compute(start, end).numpy()
        rows.flush()


def _path(content: Iterable[bytes], settings: tuple[int | str, ...]) -> Path:
    digest = hashlib.blake2b(digest_size=20)
    libraries = (torch.__version__, version("torchvision"), PIL.__version__)
    folder = Path(__file__).parent
    images = sorted((folder.parent / "images").glob("*.py"))
    code = [file.read_bytes() for file in (*sorted(folder.glob("*.py")), *images)]
    for part in (repr((settings, libraries)).encode(), *code):
        digest.update(part)
    for part in content:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return cache_folder() / f"{digest.hexdigest()}.npy"
