"""The convolutions and linear layers of an exported graph in 8 bits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from osr_lightning.deploy.runtime import INPUTS

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
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Batches(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rest: Iterator[NDArray[np.uint8]] = iter(
                images[start : start + _AT_ONCE] for start in range(0, len(images), _AT_ONCE)
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
        weight_type=QuantType.QInt8,
        activation_type=QuantType.QUInt8,
    )
    model = onnx.load(path)
    onnx.helper.set_model_props(model, {**about, "weights": '"int8"'})  # which it forgets
    path.write_bytes(model.SerializeToString())
