"""A recogniser as one graph: ``.onnx`` for onnxruntime, ``.pt2`` for torch."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence, Sized
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from osr_lightning.atomic_write import check_ending, replacing
from osr_lightning.data_spec import DataSpec
from osr_lightning.deploy.onnx_runtime import (
    DECISION,
    EXAMPLES,
    INPUTS,
    SPEC,
    ExportedRecogniser,
    import_onnxruntime,
)
from osr_lightning.errors import Failure, UserError
from osr_lightning.images.pixels import LONGEST
from osr_lightning.models.mc_dropout import draws_anew
from osr_lightning.recogniser.examples import to_plain
from osr_lightning.recogniser.prediction import OUTPUTS, batch_size
from osr_lightning.recogniser.recogniser import Recogniser

OPSET = 18


class Graph(nn.Module):
    """What is exported: the recogniser's `Recogniser.forward`, as a plain tuple.

    Args:
        recogniser: in eval mode.
    """

    def __init__(self, recogniser: Recogniser) -> None:
        super().__init__()
        self.recogniser = recogniser

    def forward(self, images: Tensor, threshold: Tensor) -> tuple[Tensor, ...]:
        """Pixels ``(B, C, H, W)`` uint8 and ``()`` float64 -> ``OUTPUTS``."""
        answers: tuple[Tensor, ...] = self.recogniser(images, threshold)[: len(OUTPUTS)]
        return answers


def export(
    recogniser: Recogniser,
    path: str | os.PathLike[str],
    images: NDArray[np.uint8],
    int8: NDArray[np.uint8] | None = None,
) -> Check:
    """Write a recogniser as one file, if it decides as the recogniser does.

    Args:
        recogniser: calibrated.
        path: ends in ``.onnx`` or ``.pt2``.
        images: prepared, ``(N, C, size, size)``; both are asked about them, in batches of 1, 2 and 7.
        int8: known images by whose activations the graph is quantised; it is not, if not given.

    Returns:
        How they compare; see `osr_lightning.deploy.export.compare`, and ``compare_int8`` for a
        quantised graph.

    Raises:
        UserError: for what cannot be exported, or another ending.
        Failure: where the two do not agree; nothing is written then.
    """
    check_ending("path", path, (".onnx", ".pt2"))
    check_exportable(recogniser, path, int8)
    recogniser.eval()
    with replacing(path, follow=True) as target:
        program = _traced(recogniser, images[:3])
        if Path(path).suffix.lower() == ".pt2":
            about = {"metadata.json": json.dumps(metadata(recogniser))}
            with quiet():
                torch.export.save(program, target, extra_files=about)
            return compare(recogniser, _run_program(target, recogniser.threshold.value), images, str(path))
        _write_onnx(program, recogniser, target)
        check = compare(recogniser, _run_onnx(target), images, str(path))
        if int8 is None:
            return check
        with quiet():
            quantise(target, int8)
        return compare_int8(recogniser, _run_onnx(target), np.concatenate([images, int8]), str(path))


def check_exportable(recogniser: Recogniser, path: str | os.PathLike[str], int8: Sized | None = None) -> None:
    """Refuse what no graph can be made of.

    Raises:
        UserError: saying why.
    """
    if int8 is not None and Path(path).suffix.lower() != ".onnx":
        raise UserError(f"--int8 needs an .onnx file, not {path}")
    if int8 is not None and len(int8) < AT_LEAST:
        raise UserError(f"--int8 needs at least {AT_LEAST} known images to set its ranges, got {len(int8)}")
    if draws_anew(recogniser):
        raise UserError(
            "dropout masks that are independent are drawn anew for every image, which a graph cannot: "
            "train with model.masks shared, or test the checkpoint with it"
        )
    _ = recogniser.threshold.value


def metadata(recogniser: Recogniser) -> dict[str, Any]:
    """What a user of the graph needs beside it, in plain values."""
    record = asdict(recogniser.threshold.record)
    return {
        "classes": list(recogniser.spec.classes),
        SPEC: recogniser.spec.to_dict(),
        DECISION: {"score": recogniser.threshold.score, **record},
        EXAMPLES: to_plain(recogniser.examples),
        "preprocessing": preprocessing(recogniser.spec),
        "osr_lightning": version("osr_lightning"),
        "license": "MIT (osr_lightning); weights: as their training images allow",
    }


def preprocessing(spec: DataSpec) -> str:
    """What is done to a picture before the graph sees it, in words; `osr_lightning.images.pixels` does it."""
    parts = [
        "Turn the image upright as its EXIF orientation says",
        "put transparency on white",
        "bring 16-bit and float grey to 0..255",
    ]
    size = f"{spec.image_size} x {spec.image_size} pixels"
    if spec.resize is None:
        grey = "make colour grey by round(0.2989 R + 0.587 G + 0.114 B)"
        brought = [f"resize to {size} with antialiased bilinear interpolation, whatever the shape"]
    else:
        grey = "make colour grey by 0.299 R + 0.587 G + 0.114 B, as Pillow's mode L"
        brought = [
            f"of an image longer than {LONGEST} times its width, or wider than that many times its height, "
            "keep the middle of that shape",
            f"resize the shorter side to {spec.resize} pixels and the other in proportion, rounded down, by "
            f"antialiased {spec.interpolation} interpolation as Pillow's on uint8",
            f"cut {size} out of the middle",
        ]
    parts += [grey if spec.channels == 1 else "repeat grey as three channels", *brought]
    return "; ".join(parts) + ". Values stay uint8 in 0..255: the graph standardises them."


def _traced(recogniser: Recogniser, images: NDArray[np.uint8]) -> ExportedProgram:
    given = (torch.from_numpy(images), torch.zeros((), dtype=torch.float64))
    try:
        with torch.no_grad(), quiet():
            return torch.export.export(
                Graph(recogniser).eval(), given, dynamic_shapes=({0: Dim("batch", min=1)}, None), strict=False
            )
    except Exception as error:  # a network of one's own may do anything
        detail = str(error).strip().partition("\n")[0][:200]
        raise UserError(
            f"the network cannot be exported: torch.export says {type(error).__name__}: {detail}"
        ) from error


def _write_onnx(program: ExportedProgram, recogniser: Recogniser, target: Path) -> None:
    try:
        import onnx
        import onnxscript  # noqa: F401

        import_onnxruntime()
    except ImportError as error:
        raise UserError("export to .onnx needs its extra: pip install 'osr_lightning[export]'") from error
    model = to_onnx(program, (), input_names=INPUTS, output_names=OUTPUTS)
    default = np.array(recogniser.threshold.value, np.float64)
    model.graph.initializer.append(onnx.numpy_helper.from_array(default, INPUTS[1]))
    model.producer_name, model.producer_version = "osr_lightning", version("osr_lightning")
    onnx.helper.set_model_props(
        model, {name: json.dumps(value) for name, value in metadata(recogniser).items()}
    )
    onnx.checker.check_model(model, full_check=True)
    target.write_bytes(model.SerializeToString())


def _run_onnx(path: Path) -> Run:
    graph = ExportedRecogniser(path)
    return lambda images: graph.session.run(OUTPUTS, {INPUTS[0]: images})  # by its default threshold


def _run_program(path: Path, threshold: float) -> Run:
    module = torch.export.load(path).module()
    given = torch.tensor(threshold, dtype=torch.float64)
    return lambda images: [found.detach().numpy() for found in module(torch.from_numpy(images), given)]


def to_onnx(module: nn.Module | ExportedProgram, given: tuple[Tensor, ...], **options: Any) -> Any:  # noqa: ANN401 - of onnx
    """The ONNX model of a module or a program, with its weights in it.

    Args:
        module: what is exported.
        given: what a module is traced with.
        options: names and shapes, see ``torch.onnx.export``.
    """
    with quiet(), torch.no_grad():
        made = torch.onnx.export(
            module, given, dynamo=True, opset_version=OPSET, external_data=False, **options
        )
    assert made is not None
    return made.model_proto


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the exporter's own report and warnings, which are about its insides."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


TOLERANCE = 1e-4  # of a score, or of its size where that is above 1
FAR, FAR_TOLERANCE = 100, 1e-3  # a score that many times the threshold hangs on float32's last digits
BATCHES = (1, 2, 7)
MOST_OTHERWISE = 0.02  # share of images that a quantised graph may decide otherwise

Run: TypeAlias = Callable[[NDArray[np.uint8]], Sequence[NDArray[np.generic]]]
"""Prepared images ``(B, C, size, size)`` -> the graph's outputs, in their order."""


class Check(NamedTuple):
    """How a graph compares with its recogniser.

    Attributes:
        images: how many it was asked about.
        difference: the greatest of two scores, in units of the score where that is above 1, and a tenth of
            it where the score is more than 100 times the threshold.
        within: images so near to the threshold that they need not be decided alike.
        otherwise: images that a quantised graph decides otherwise; others decide none.
    """

    images: int
    difference: float
    within: int
    otherwise: int = 0


def compare(recogniser: Recogniser, run: Run, images: NDArray[np.uint8], name: str) -> Check:
    """Ask both about the same images, the graph in batches of 1, 2 and 7.

    Args:
        recogniser: what the graph was made of.
        run: asks the graph.
        images: prepared, ``(N, C, size, size)``.
        name: of the graph, for the sentence.

    Raises:
        Failure: where a score differs by more than ``TOLERANCE``, or an image that is further than that from
            the threshold is decided otherwise.
    """
    expected, threshold = recogniser.answer(images), recogniser.threshold
    score, prediction = expected.score, expected.prediction
    scale = np.maximum(1, np.abs(score))
    near = np.abs(score - threshold.value) <= TOLERANCE * np.maximum(scale, abs(threshold.value))
    scale[scale > FAR * max(1, abs(threshold.value))] *= FAR_TOLERANCE / TOLERANCE
    worst = np.float64(0)
    for size in BATCHES:
        found = _asked(run, images, size)
        worst = np.maximum(worst, (np.abs(found["score"] - score) / scale).max())  # keeps NaN
        other = int(((found["prediction"] != prediction) & ~near).sum())
        if not worst <= TOLERANCE or other:
            raise Failure(
                f"{name} is not written: asked in batches of {size}, its scores differ from the "
                f"recogniser's by up to {worst:.1e} and {other} of {len(images)} images are decided otherwise"
            )
    return Check(len(images), float(worst), int(near.sum()))


def _asked(run: Run, images: NDArray[np.uint8], size: int) -> dict[str, NDArray[Any]]:
    """The graph's outputs by name, asked in batches of one size."""
    parts = [run(images[start : start + size]) for start in range(0, len(images), size)]
    return dict(zip(OUTPUTS, map(np.concatenate, zip(*parts, strict=True)), strict=True))


def compare_int8(recogniser: Recogniser, run: Run, images: NDArray[np.uint8], name: str) -> Check:
    """Ask a quantised graph about images: its scores differ, its decisions may on few of them.

    Raises:
        Failure: where more than one image in fifty is decided otherwise.
    """
    expected = recogniser.answer(images)
    score, prediction = expected.score, expected.prediction
    found = _asked(run, images, batch_size(images.shape[1:], _AT_ONCE))
    otherwise = int((found["prediction"] != prediction).sum())
    difference = float((np.abs(found["score"] - score) / np.maximum(1, np.abs(score))).max())
    if otherwise > MOST_OTHERWISE * len(images):
        raise Failure(
            f"{name} is not written: in 8 bits {otherwise} of {len(images)} images are decided otherwise; "
            "export it without --int8, or give --int8 more of the known images"
        )
    return Check(len(images), difference, 0, otherwise)


def example_images() -> Iterator[NDArray[np.uint8]]:
    """Real images that every installation has: 40 of scikit-learn's digits and 32 parts of its two photos.

    Yields:
        Grey ``(8, 8)`` and colour ``(106, 160, 3)``, as `Recogniser.prepare` takes them.
    """
    from sklearn.datasets import load_digits, load_sample_images

    yield from (load_digits().images[:40] * (255 / 16)).round().astype(np.uint8)
    for photo in load_sample_images().images:
        height, width = (size // 4 for size in photo.shape[:2])
        for row in range(4):
            for column in range(4):
                yield photo[row * height :, column * width :][:height, :width]


AT_LEAST = 100  # images, whose activations set the ranges
_AT_ONCE = 64


def quantise(path: Path, images: NDArray[np.uint8]) -> None:
    """Write a graph again with 8-bit weights and activations where it multiplies 32-bit matrices.

    Standardisation, softmax and the score stay as they are; see onnxruntime's ``quantize_static``.

    Args:
        path: of the ``.onnx`` file.
        images: known ones, prepared, ``(N, C, size, size)``; the ranges of activations are those seen here.
    """
    import onnx

    import_onnxruntime()
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    size = batch_size(images.shape[1:], _AT_ONCE)

    class Batches(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rest: Iterator[NDArray[np.uint8]] = iter(
                images[start : start + size] for start in range(0, len(images), size)
            )

        def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
            some = next(self.rest, None)
            return None if some is None else {INPUTS[0]: some}

    model = onnx.load(path)
    about = {prop.key: prop.value for prop in model.metadata_props}
    # a matrix for each sample: of these only the newest onnxruntime multiplies 8-bit ones by channel
    stacks = {one.name for one in model.graph.initializer if len(one.dims) > 2}
    left = [n.name for n in model.graph.node if n.op_type == "MatMul" and stacks.intersection(n.input)]
    quantize_static(
        path,
        path,
        Batches(),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["Conv", "Gemm", "MatMul"],
        nodes_to_exclude=left,
        per_channel=True,
        # in 7 bits, as processors without VNNI add two products in 16, where those of 8 do not always fit
        reduce_range=True,
        weight_type=QuantType.QInt8,
        activation_type=QuantType.QUInt8,
    )
    model = onnx.load(path)
    onnx.helper.set_model_props(model, {**about, "weights": '"int8"'})  # which it forgets
    path.write_bytes(model.SerializeToString())
