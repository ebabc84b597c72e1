"""What an ``.onnx`` file asks for, read before anything in it is run; onnxruntime tells only afterwards.

It is protobuf; https://github.com/onnx/onnx/blob/main/onnx/onnx.proto has the numbers of the fields.
"""

from __future__ import annotations

from collections.abc import Iterator

from osr_lightning.errors import UserError

_MODEL_GRAPH, _MODEL_TRAINING, _MODEL_FUNCTIONS = 7, 20, 25
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_SPARSE = 1, 5, 15
_NODE_OPERATOR, _NODE_ATTRIBUTE, _NODE_DOMAIN = 4, 5, 7
_ATTRIBUTE_TENSOR, _ATTRIBUTE_GRAPH, _ATTRIBUTE_TENSORS, _ATTRIBUTE_GRAPHS = 5, 6, 10, 11
_TENSOR_EXTERNAL, _TENSOR_LOCATION = 13, 14
_DOMAINS = ("", "ai.onnx")  # the standard's own operators, by both of its names


def check_graph(content: bytes) -> None:
    """Refuse a graph that is more than a sequence of the standard's operators on weights in the same file.

    A loop may never end, and nothing ends onnxruntime while it is in one; other domains' operators and other
    files are none that ``osr export`` writes.

    Args:
        content: of an ``.onnx`` file.

    Raises:
        UserError: naming what there is, as the end of a sentence that begins with the file's name.
        ValueError: where this is no protobuf message of a model.
    """
    for number, value in _fields(content):
        if number == _MODEL_FUNCTIONS:
            raise UserError("has functions of its own, which osr export does not write")
        if number == _MODEL_TRAINING:
            raise UserError("has instructions for training, which osr export does not write")
        if number == _MODEL_GRAPH:
            _check(_bytes(value))


def _check(graph: memoryview) -> None:
    for number, value in _fields(graph):
        if number == _GRAPH_NODE:
            _check_node(_bytes(value))
        elif number == _GRAPH_INITIALIZER:
            _check_tensor(_bytes(value))
        elif number == _GRAPH_SPARSE:
            raise UserError("has sparse weights, which osr export does not write")


def _check_node(node: memoryview) -> None:
    found = list(_fields(node))
    texts = {number: bytes(_bytes(value)).decode() for number, value in found if number in _TEXTS}
    operator, domain = texts.get(_NODE_OPERATOR, ""), texts.get(_NODE_DOMAIN, "")
    if domain not in _DOMAINS:
        raise UserError(f"has an operator {domain}.{operator}, which is none of the standard's")
    for number, value in found:
        if number != _NODE_ATTRIBUTE:
            continue
        for kind, part in _fields(_bytes(value)):
            if kind in (_ATTRIBUTE_GRAPH, _ATTRIBUTE_GRAPHS):
                raise UserError(f"has an operator {operator} with a graph of its own, which may never end")
            if kind in (_ATTRIBUTE_TENSOR, _ATTRIBUTE_TENSORS):
                _check_tensor(_bytes(part))


_TEXTS = (_NODE_OPERATOR, _NODE_DOMAIN)


def _check_tensor(tensor: memoryview) -> None:
    if any(n == _TENSOR_EXTERNAL or (n == _TENSOR_LOCATION and value) for n, value in _fields(tensor)):
        raise UserError("has weights in another file, where osr export writes one")


def _bytes(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a number stands where a message should")
    return value


def _fields(message: bytes | memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """The fields of a protobuf message: their numbers, and a whole number or the bytes of a part.

    Raises:
        ValueError: where it is cut off, or none.
    """
    rest, place = memoryview(message), 0
    while place < len(rest):
        key, place = _number(rest, place)
        key &= 2**32 - 1  # all that protobuf's own readers look at
        kind = key & 7
        if kind == 0:
            value, place = _number(rest, place)
            yield key >> 3, value
            continue
        if kind == 2:
            length, place = _number(rest, place)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise ValueError(f"there is no field of kind {kind}")
        if length > len(rest) - place:
            raise ValueError("it ends too early")
        yield key >> 3, rest[place : place + length]
        place += length


def _number(message: memoryview, place: int) -> tuple[int, int]:
    """A whole number of up to ten bytes, seven bits each, and the place after it."""
    value = 0
    for index in range(10):
        if place + index >= len(message):
            raise ValueError("it ends too early")
        byte = message[place + index]
        value |= (byte & 127) << 7 * index
        if byte < 128:
            return value, place + index + 1
    raise ValueError("a number is too long")
