"""Fixtures that several test files share."""

import errno
import functools
import gc
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # several test processes share the cores
import struct
import sys
import tempfile
import types
import typing
import weakref
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest

LONG_FIRST = (
    "cli/test_commands.py",
    "deploy/test_export.py",
    "test_benchmarks.py",
    "studies/test_search.py",
    "test_notebooks.py",
    "training/test_backbone_commands.py",
    "recogniser/test_hostile_checkpoints.py",
    "recogniser/test_checkpoint.py",
    "evaluation/test_figures.py",
    "test_faults.py",
    "training/test_distributed.py",
    "test_sklearn.py",
    "test_own_images.py",
    "training/test_extend.py",
    "training/test_resume.py",
    "studies/test_ensemble.py",
    "models/test_torchvision.py",
    "images/test_pixels.py",
    "training/test_cross_calibration.py",
    "studies/test_study.py",
    "training/test_backbone.py",
    "training/test_lightning.py",
    "test_docs.py",
    "training/test_trainer.py",
    "deploy/test_serve.py",
    "cli/test_wrap.py",
    "cli/test_names.py",
    "cli/test_help.py",
    "deploy/test_predict.py",
    "deploy/test_serve_page.py",
    "deploy/test_page.py",
    "test_real_data.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take long, so that both processes end at about the same time."""
    first = {Path(__file__).parent / name: place for place, name in enumerate(LONG_FIRST)}
    items.sort(key=lambda item: first.get(item.path, len(first)))


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Search nothing that is imported for garbage: it is most of what there is, and none."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()
        gc.set_threshold(20_000, 20, 50)  # parsers and exporters make many objects, and few cycles


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Neither read nor fill the user's cache of preprocessed images."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OSR_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def no_sync():
    """No test outlives its machine: nothing waits for the disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: os.fstat(file) and None)  # which fails of what is not open
        yield


@pytest.fixture(autouse=True)
def one_registry():
    """What torch's exporters know of ONNX and of their own files never changes: it is looked up once."""
    exporter = sys.modules.get("torch.onnx._internal.exporter._registration")
    if exporter is not None and not hasattr(exporter.ONNXRegistry.from_torchlib, "cache_info"):
        exporter.ONNXRegistry.from_torchlib = staticmethod(
            functools.cache(exporter.ONNXRegistry.from_torchlib)
        )
    serializer = sys.modules.get("torch._export.serde.serialize")
    if getattr(serializer, "typing", None) is typing:
        serializer.typing = types.ModuleType("typing")
        vars(serializer.typing).update(vars(typing), get_type_hints=_type_hints)


_HINTS: dict[type, dict[str, object]] = {}


def _type_hints(kind: type, **names: object) -> dict[str, object]:
    """The types of a class's fields; nobody changes what is given."""
    if kind not in _HINTS:
        _HINTS[kind] = typing.get_type_hints(kind, **names)
    return _HINTS[kind]


@pytest.fixture(scope="session", autouse=True)
def one_look_at_classes():
    """The path by which a class is imported never changes: jsonargparse looks for it at every option."""
    import jsonargparse._typehints
    import jsonargparse._util

    right = jsonargparse._util.get_import_path
    paths = weakref.WeakKeyDictionary()

    def get_import_path(value):
        if not isinstance(value, type):
            return right(value)
        if value not in paths:
            paths[value] = right(value)
        return paths[value]

    with pytest.MonkeyPatch.context() as patch:
        modules = [module for name, module in sys.modules.items() if name.startswith("jsonargparse.")]
        for module in modules:
            if getattr(module, "get_import_path", None) is right:
                patch.setattr(module, "get_import_path", get_import_path)
        yield


@pytest.fixture(scope="session", autouse=True)
def one_look_at_devices():
    """No graphics card comes or goes: torch's exporter asks the driver for it at every operation."""
    import torch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", functools.cache(torch.cuda.is_available))
        yield


@pytest.fixture(autouse=True)
def own_networks():
    """The networks of a test's user are no other test's."""
    yield
    sys.modules.pop("my_networks", None)


@pytest.fixture
def seeded():
    """The global generator draws, as a training's does; the test begins it anew and leaves it as it was."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture
def quickly_drawn(monkeypatch):
    """Of a tensor of random numbers the first 100,000 are drawn, and repeated: networks begin at once."""
    import torch

    count = 99_991  # a prime: no two rows of a matrix are the same

    def repeating(draw):
        def fill(tensor, *args, **options):
            if tensor.numel() <= count or not tensor.is_contiguous():
                return draw(tensor, *args, **options)
            flat = tensor.detach().view(-1)
            first, times = draw(flat[:count], *args, **options), len(flat) // count
            flat[count : times * count].view(-1, count).copy_(first)
            flat[times * count :] = first[: len(flat) - times * count]
            return tensor

        return fill

    for name in ("normal_", "uniform_"):
        monkeypatch.setattr(torch.Tensor, name, repeating(getattr(torch.Tensor, name)))


@pytest.fixture
def offline(monkeypatch):
    """There is no network."""

    def refuse(*_, **__):
        raise URLError("no network")

    monkeypatch.setattr("urllib.request.urlopen", refuse)


@pytest.fixture
def data_dir() -> Path:
    """Real images; see the variable OSR_DATA_DIR."""
    default = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("OSR_DATA_DIR", default))
    if not (folder / "MNIST").is_dir():
        pytest.skip(f"no real data in {folder} (set OSR_DATA_DIR)")
    return folder


@pytest.fixture(scope="session")
def tab(tmp_path_factory):
    """A tab of Chromium."""
    import browser

    if browser.CHROMIUM is None:
        pytest.skip("needs Chromium")
    with browser.new_tab(tmp_path_factory.mktemp("profile")) as tab:
        yield tab


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


@pytest.fixture(scope="session")
def small(tiny_root) -> list[str]:
    """Options of a run that takes a second; its folder is still to be named."""
    return [
        *(f"--data.root={tiny_root}", f"--data.unknown={{noise: 'npz:{tiny_root}/unknown.npz'}}"),
        *("--data.batch_size=160", "--trainer.max_epochs=1", "--trainer.accelerator=cpu"),
        *("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"),
        *("--evaluation.figures=false", "--evaluation.projector_points=0", "--evaluation.bootstrap=2"),
        *("--model.network=MCDropoutCNN", "--model.network.channels=[2,3]", "--model.network.hidden=5"),
        *("--model.num_samples=2", "--model.augment=none"),
    ]


@pytest.fixture(scope="session")
def small_run(small, tmp_path_factory) -> Path:
    """The folder of a finished run with those options, to be copied before it is changed."""
    from osr_lightning.__main__ import main

    folder = tmp_path_factory.mktemp("small")
    assert main(["run", *small, f"--trainer.default_root_dir={folder}"]) == 0
    return folder / "lightning_logs" / "default" / "version_0"


class Files:
    """What Python does to files, as its audit events tell: counted, made to fail, and kept in a list.

    Attributes:
        folders: below which files may be written and made to fail; none while nothing is watched.
        outside: what was written elsewhere.
        started: modules, programs and shells that were begun.
        count: operations below ``folders`` until now.
    """

    CHANGES = ("os.mkdir", "os.rename", "os.link", "os.symlink", "os.truncate", "os.chmod")
    REMOVES = ("os.remove", "os.rmdir")
    STARTS = (
        "subprocess.Popen",
        "os.system",
        "os.exec",
        "os.posix_spawn",
        "os.spawn",
        "os.fork",
        "pty.spawn",
    )

    def __init__(self) -> None:
        self.stop()
        self._busy = False
        sys.addaudithook(self._hear)  # for good, so it must be one for all tests

    def watch(
        self, *folders: Path, fail_at: int = 0, number: int = errno.ENOSPC, lasting: bool = False
    ) -> None:
        """Begin; the operation ``fail_at``, from 1 on, fails with ``number``, and all after it if lasting."""
        self.stop()
        self.fail_at, self.number, self.lasting = fail_at, number, lasting
        own = (Path(tempfile.gettempdir(), "osr-"), os.environ["OSR_CACHE_DIR"], os.devnull)
        self.folders, self.own = tuple(map(str, folders)), tuple(map(str, own))

    def stop(self) -> None:
        """End; what was heard stays until the next `watch`."""
        self.folders: tuple[str, ...] = ()
        self.count = self.fail_at = 0
        self.outside: list[tuple[str, str]] = []
        self.started: list[str] = []

    def _hear(self, event: str, args: tuple[object, ...]) -> None:
        if not self.folders or self._busy:
            return
        if event in self.STARTS:
            self.started.append(f"{event} {args[0]}")
        elif event == "open":
            path, mode, flags = args
            self._file(
                event, path, isinstance(flags, int) and bool(flags & (os.O_RDWR | os.O_WRONLY)), mode is None
            )
        elif event in self.CHANGES or event in self.REMOVES:
            name, folder = args[0], args[-1]  # shutil.rmtree names files in a folder that it has opened
            if event in self.REMOVES and isinstance(folder, int) and folder >= 0:
                name = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), os.fsdecode(name))  # type: ignore[arg-type]
            self._file(event, name, True, False)

    def _file(self, event: str, path: object, writes: bool, syncs: bool) -> None:
        if not isinstance(path, (str, bytes, os.PathLike)):
            return
        self._busy = True
        name = os.path.realpath(os.fsdecode(path))
        self._busy = False
        if not name.startswith(self.folders):
            if writes and not name.startswith(self.own) and "__pycache__" not in name:
                self.outside.append((event, name))
        elif event == "os.mkdir" and os.path.isdir(name):
            pass  # it is there, which is what the caller hears whatever the disk
        elif (writes or syncs) and event not in self.REMOVES:
            self.step(name)

    def step(self, name: str | None) -> None:
        """Count an operation on a file, which may have to fail."""
        self.count += 1
        if self.fail_at and (self.count == self.fail_at or (self.lasting and self.count > self.fail_at)):
            raise OSError(self.number, os.strerror(self.number), *([name] if name else []))


@pytest.fixture(scope="session")
def heard() -> Files:
    """The one hook of the process."""
    return Files()


@pytest.fixture
def files(heard, monkeypatch):
    """What is done to files; see `Files.watch`."""
    fsync = os.fsync

    def sync(file: int) -> None:
        if heard.folders:
            heard.step(None)
        fsync(file)

    monkeypatch.setattr(os, "fsync", sync)
    yield heard
    heard.stop()
