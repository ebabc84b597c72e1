"""A frozen backbone as what features are made with: onnxruntime on a CPU, torch elsewhere."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from osr_lightning.atomic_write import replacing
from osr_lightning.data.cache import cache_folder
from osr_lightning.data_spec import PixelFormat
from osr_lightning.deploy.onnx_runtime import import_onnxruntime
from osr_lightning.errors import Failure
from osr_lightning.images.tensors import standardise
from osr_lightning.models.backbones import Body
from osr_lightning.training.console import say

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

TOLERANCE = 1e-4  # of a feature, or of the largest one's size where that is above 1
_CPU_IMAGES, _GPU_IMAGES = 16, 256  # that go through together: more no longer fit into a processor's caches
# images: what onnxruntime saves of so many is what an export takes (15 and 29 ms of an image beside 7 s of
# efficientnet_lite0, one core)
_WORTH_EXPORTING = 500


class BackboneExtractor:
    """Features of prepared images by a frozen backbone.

    Args:
        body: the backbone.
        pixel_format: what it wants of images.
        device: where torch runs it, a GPU where there is one if not given; where it is a CPU and onnxruntime
            is installed, that runs it.

    Attributes:
        key: tells this backbone, its weights and its preprocessing from others.
        width: ``D``.
        batch_size: images that go through together.
    """

    def __init__(self, body: Body, pixel_format: PixelFormat, device: torch.device | None = None) -> None:
        device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.body, self.pixel_format, self.device = body, pixel_format, device
        about = f"{body.digest()} {tuple(pixel_format)}"
        self.key = hashlib.blake2b(about.encode(), digest_size=16).hexdigest()
        self.batch_size = _CPU_IMAGES if device.type == "cpu" else _GPU_IMAGES
        self.width = body.width
        self._graph = cache_folder() / "backbones" / f"{self.key}.onnx"
        self._session: InferenceSession | None = None
        self._images = 0

    def __eq__(self, other: object) -> bool:
        """Whether the other gives the same features."""
        return isinstance(other, BackboneExtractor) and other.key == self.key

    def __hash__(self) -> int:
        """Of the key."""
        return hash(self.key)

    def begin(self, images: int) -> None:
        """Get ready for so many more images: export the backbone once that pays, and say what is to come."""
        place = f"are kept in {cache_folder()}"
        try:
            (cache_folder() / "features" / self.key).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            place = (
                f"are kept for this process alone, as {cache_folder()} cannot be written ({error.strerror}): "
                "set OSR_CACHE_DIR to another folder"
            )
        say(f"features: {images:,} images go through the backbone once, and {place}")
        self._images += images
        worth = self._images >= _WORTH_EXPORTING or self._graph.is_file()
        if self.device.type == "cpu" and self._session is None and worth:
            self._session = self._open_session()

    @torch.inference_mode()
    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Prepared images ``(n, C, H, W)`` -> features ``(n, D)``."""
        images = torch.from_numpy(pixels)
        wanted = self.pixel_format
        if self._session is not None:
            given = {"images": standardise(images, wanted.mean, wanted.std).numpy()}
            return cast("NDArray[np.float32]", self._session.run(None, given)[0])
        ready = standardise(images.to(self.device), wanted.mean, wanted.std)
        self.body.to(self.device)
        found: Tensor = self.body(ready)
        return cast("NDArray[np.float32]", found.float().cpu().numpy())

    def _open_session(self) -> InferenceSession | None:
        """The backbone in onnxruntime; None where that, or what exports to it, is not there or differs."""
        if any(find_spec(name) is None for name in ("onnxruntime", "onnx", "onnxscript")):
            say("onnxruntime makes features in two thirds of the time: pip install 'osr_lightning[photos]'")
            return None
        onnxruntime = import_onnxruntime()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors
        options.intra_op_num_threads = torch.get_num_threads()
        graph: str | bytes = str(self._graph)
        if not self._graph.is_file():
            graph = _exported(self.body, self._example())
            with suppress(Failure, OSError):  # a run does without its cache
                self._graph.parent.mkdir(parents=True, exist_ok=True)
                with replacing(self._graph) as partial:
                    Path(partial).write_bytes(graph)
        try:
            session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
            given = self._example()
            expected = self.body(given).detach()
            found = torch.from_numpy(session.run(None, {"images": given.numpy()})[0])
        except Exception as error:  # of a dozen kinds of its own
            say(f"onnxruntime cannot run the backbone ({type(error).__name__}): torch does, more slowly")
            return None
        size = max(1.0, float(expected.abs().max()))
        if not torch.allclose(found, expected, rtol=0, atol=TOLERANCE * size):
            say("onnxruntime's features differ from torch's by more than 1e-4: torch makes them, more slowly")
            return None
        return cast("InferenceSession", session)

    def _example(self) -> Tensor:
        wanted = self.pixel_format
        generator = torch.Generator().manual_seed(0)
        size = wanted.image_size
        return torch.rand(2, wanted.channels, size, size, generator=generator)


def _exported(body: nn.Module, images: Tensor) -> bytes:
    from osr_lightning.deploy.export import to_onnx  # torch's exporter takes a second to load

    shapes = ({0: torch.export.Dim("batch", min=1)},)
    model = to_onnx(body, (images,), input_names=["images"], dynamic_shapes=shapes)
    return cast(bytes, model.SerializeToString())
