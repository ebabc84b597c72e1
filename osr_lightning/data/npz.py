"""Images in a NumPy archive."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import torch

from osr_lightning.atomic_write import as_text
from osr_lightning.data.image_set import ImageSet
from osr_lightning.data.leaks import pixel_digests
from osr_lightning.errors import UserError

MOST_CLASSES = 2**16  # a name is made for every number up to the largest label


def refuse_no_file(path: Path) -> None:
    """Stop where an archive is not there."""
    if not path.is_file():
        raise UserError(f"There is no file {path.absolute()}: put it there, or name another with npz:PATH.")


def load_npz(path: Path) -> ImageSet:
    """Load ``images`` and, where the archive has them, ``labels``.

    ``images`` is uint8 of shape ``(N, H, W)``, ``(N, H, W, C)`` or ``(N, C, H, W)`` with ``C`` 1 or 3
    (``(N, H, W, C)`` if it could be either). ``labels`` is ``(N,)``, integers from 0. Nothing in the
    file is run: archives that hold pickled objects are refused, as are arrays larger than the memory.

    Args:
        path: The archive.

    Returns:
        The images ``(N, C, H, W)``; the classes are named ``"0"`` to the largest label, or, without
        labels, one class is named after the file.

    Raises:
        UserError: The file is missing or damaged, or its arrays are not as above.
    """
    refuse_no_file(path)
    try:
        # opened here, as numpy leaves the file open when it is damaged
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            found = [key for key in ("images", "labels") if key in archive]
            members = [info for info in archive.zip.infolist() if Path(info.filename).stem in found]
            size = sum(info.file_size for info in members)
            if size <= _memory():  # a small file may unpack to any size
                arrays = {key: np.asarray(archive[key]) for key in found}
    except Exception as error:  # a damaged zip, a pickle, a plain .npy: each has its own kind
        raise UserError(
            f"Cannot read {path}: write it again with numpy.savez(path, images=images)."
        ) from error
    if size > _memory():
        raise UserError(
            f"The arrays in {path} take {size / 2**30:,.0f} GiB, which is more than this machine's memory: "
            "write fewer or smaller images, or give them as files with folder:PATH."
        )
    if "images" not in arrays:
        raise UserError(f"{path} has no array 'images': write it with numpy.savez(path, images=images).")

    images, shape = arrays["images"], arrays["images"].shape
    if images.dtype != np.uint8:
        raise UserError(
            f"The images in {path} are {images.dtype}: convert them to uint8 in [0, 255], "
            "from floats in [0, 1] with (images * 255).round().astype('uint8')."
        )
    if images.ndim == 3:
        images = images[..., None]
    elif images.ndim == 4 and images.shape[3] not in (1, 3):
        images = images.transpose(0, 2, 3, 1)
    if images.ndim != 4 or images.shape[3] not in (1, 3) or not images.size:
        raise UserError(
            f"The images in {path} have the shape {shape}: give (N, H, W), (N, H, W, C) or (N, C, H, W) "
            "with C 1 or 3 and at least one image."
        )

    labels = arrays.get("labels", np.zeros(len(images), dtype=np.int64))
    if labels.shape != (len(images),) or labels.dtype.kind not in "iu" or labels.min() < 0:
        raise UserError(
            f"The labels in {path} are {labels.dtype} of the shape {labels.shape}: "
            f"give one integer from 0 up for each of the {len(images)} images."
        )
    if labels.max() >= MOST_CLASSES:
        raise UserError(
            f"The largest label in {path} is {labels.max()}: number the classes from 0 up without gaps, "
            f"to at most {MOST_CLASSES - 1}."
        )
    return ImageSet(
        images=torch.from_numpy(images).permute(0, 3, 1, 2),
        labels=torch.from_numpy(labels.astype(np.int64)),
        classes=tuple(map(str, range(int(labels.max()) + 1)))
        if "labels" in arrays
        else (as_text(path.stem),),
        keys=tuple(pixel_digests(torch.from_numpy(images))),
    )


def _memory() -> float:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # not every system says
        return math.inf
