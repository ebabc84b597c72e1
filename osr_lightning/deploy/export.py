"""A recogniser as one graph: ``.onnx`` for onnxruntime, ``.pt2`` for torch."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import warnings
from collections.abc import Iterator, Sized
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

import osr_lightning
from osr_lightning.deploy.export_check import Check, Run, compare, compare_int8
from osr_lightning.deploy.quantising import AT_LEAST, quantise
from osr_lightning.deploy.runtime import DECISION, FACTS, INPUTS, OUTPUTS, ExportedRecogniser
from osr_lightning.errors import UserError
from osr_lightning.models.mc_dropout import MCDropout
from osr_lightning.recogniser import Recogniser
from osr_lightning.writing import replacing

FORMATS = (".onnx", ".pt2")
OPSET = 18
PREPROCESSING = (
    "Turn the image upright as its EXIF orientation says; put transparency on white; bring 16-bit and float "
    "grey to 0..255; make colour grey by round(0.2989 R + 0.587 G + 0.114 B), or repeat grey as three "
    "channels; resize to a square with antialiased bilinear interpolation, whatever the shape. Values stay "
    "uint8 in 0..255: the graph standardises them."
)


class Graph(nn.Module):
    """What is exported: pixels and a threshold to a decision.

    Args:
        recogniser: in eval mode.
    """

    def __init__(self, recogniser: Recogniser) -> None:
        super().__init__()
        self.recogniser = recogniser
        self.unknown_class = recogniser.facts.num_classes

    def forward(self, images: Tensor, threshold: Tensor) -> tuple[Tensor, ...]:
        """Pixels ``(B, C, H, W)`` uint8 and ``()`` float64 -> ``OUTPUTS``.

        Returns:
            ``prediction`` ``(B,)`` int64 in ``0 .. K``, ``K`` for unknown; ``unknown`` ``(B,)`` bool;
            ``score`` and ``confidence`` ``(B,)`` float64; ``probabilities`` ``(B, K)`` float64.
        """
        log_probability, score = self.recogniser.judge(images)
        confidence, predicted = log_probability.max(dim=-1)
        unknown = ~(score <= threshold)
        prediction = predicted.where(~unknown, self.unknown_class)
        return prediction, unknown, score, confidence.exp(), log_probability.exp()


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
        How they compare; see `osr_lightning.deploy.export_check.compare`, and ``compare_int8`` for a
        quantised graph.

    Raises:
        UserError: for what cannot be exported.
        Failure: where the two do not agree; nothing is written then.
    """
    check_exportable(recogniser, path, int8)
    recogniser.eval()
    with replacing(path) as target:
        program = _traced(recogniser, images[:3])
        if Path(path).suffix == ".pt2":
            about = {"metadata.json": json.dumps(metadata(recogniser))}
            with _quiet():
                torch.export.save(program, target, extra_files=about)
            return compare(recogniser, _run_program(target, recogniser.threshold.value), images, str(path))
        _write_onnx(program, recogniser, target)
        check = compare(recogniser, _run_onnx(target), images, str(path))
        if int8 is None:
            return check
        with _quiet():
            quantise(target, int8)
        return compare_int8(recogniser, _run_onnx(target), np.concatenate([images, int8]), str(path))


def check_exportable(recogniser: Recogniser, path: str | os.PathLike[str], int8: Sized | None = None) -> None:
    """Refuse what no graph can be made of.

    Raises:
        UserError: saying why.
    """
    if Path(path).suffix not in FORMATS:
        raise UserError(f"--output {path}: the ending says the format, one of {', '.join(FORMATS)}")
    if int8 is not None and Path(path).suffix != ".onnx":
        raise UserError(f"--int8 needs an .onnx file, not {path}")
    if int8 is not None and len(int8) < AT_LEAST:
        raise UserError(f"--int8 needs at least {AT_LEAST} known images to set its ranges, got {len(int8)}")
    if any(isinstance(part, MCDropout) and not part.shared for part in recogniser.modules()):
        raise UserError(
            "dropout masks that are independent are drawn anew for every image, which a graph cannot: "
            "train with model.masks shared, or test the checkpoint with it"
        )
    _ = recogniser.threshold.value


def metadata(recogniser: Recogniser) -> dict[str, Any]:
    """What a user of the graph needs beside it, in plain values."""
    record = asdict(recogniser.threshold.record)
    return {
        "classes": list(recogniser.facts.classes),
        FACTS: recogniser.facts.to_dict(),
        DECISION: {"score": recogniser.threshold.score, **record},
        "preprocessing": PREPROCESSING,
        "osr_lightning": osr_lightning.__version__,
        "license": "MIT (osr_lightning); weights: as their training images allow",
    }


def _traced(recogniser: Recogniser, images: NDArray[np.uint8]) -> ExportedProgram:
    given = (torch.from_numpy(images), torch.zeros((), dtype=torch.float64))
    try:
        with torch.no_grad(), _quiet():
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
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError("export to .onnx needs its extra: pip install 'osr_lightning[export]'") from error
    onnxruntime.set_default_logger_severity(3)  # errors
    with _quiet():
        made = torch.onnx.export(
            program,
            (),
            dynamo=True,
            opset_version=OPSET,
            input_names=INPUTS,
            output_names=OUTPUTS,
            external_data=False,
        )
        assert made is not None
        model = made.model_proto
    default = np.array(recogniser.threshold.value, np.float64)
    model.graph.initializer.append(onnx.numpy_helper.from_array(default, INPUTS[1]))
    model.producer_name, model.producer_version = "osr_lightning", osr_lightning.__version__
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


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's own report and warnings, which are about its insides."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
