"""Fixtures that several test files share."""

import os
import struct
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Neither read nor fill the user's cache of preprocessed images."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OSR_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def data_dir() -> Path:
    """Real images; see the variable OSR_DATA_DIR."""
    default = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("OSR_DATA_DIR", default))
    if not (folder / "MNIST").is_dir():
        pytest.skip(f"no real data in {folder} (set OSR_DATA_DIR)")
    return folder


def _digits(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Ten easily learned classes: a bright bar whose place is the class."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 10
    images = rng.integers(0, 60, (count, 28, 28))
    for image, label in zip(images, labels, strict=True):
        image[4:24, 2 + 2 * label : 6 + 2 * label] += 180
    return images.astype(np.uint8), labels.astype(np.uint8)


@pytest.fixture(scope="session")
def tiny_root(tmp_path_factory) -> Path:
    """A data.root: a small MNIST in torchvision's layout, 400 and 101 images, known.npz and unknown.npz."""
    root = tmp_path_factory.mktemp("data")
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for prefix, count, seed in (("train", 400, 0), ("t10k", 101, 1)):
        images, labels = _digits(count, seed)
        header = struct.pack(">IIII", 0x803, count, 28, 28)
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, count) + labels.tobytes())
    noise = np.random.default_rng(2).integers(0, 256, (50, 32, 32, 3), dtype=np.uint8)
    np.savez(root / "unknown.npz", images=noise)
    images, labels = _digits(200, 3)
    np.savez(root / "known.npz", images=images, labels=labels)
    return root
