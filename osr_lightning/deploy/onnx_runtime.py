"""An exported recogniser, asked through onnxruntime, numpy and Pillow alone."""

from __future__ import annotations

import json
import math
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NoReturn, cast

import numpy as np
from numpy.typing import NDArray

from osr_lightning.data_spec import DataSpec
from osr_lightning.deploy.onnx_file import check_graph
from osr_lightning.errors import UserError
from osr_lightning.images.pixels import ImageLike, prepared
from osr_lightning.recogniser import examples
from osr_lightning.recogniser.prediction import OUTPUTS, Answers, Predicting, batch_size, check_prepared
from osr_lightning.scoring.calibration import Calibration, fixed_calibration, read_record

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

INPUTS = ("images", "threshold")
MOST_MEMORY = 2**32  # bytes of all tensors that a graph makes of a batch
_AT_ONCE = 16  # small images, the largest batch that one alone does not wait for
# of the graph's metadata, each a JSON value
SPEC, DECISION, EXAMPLES = "facts", "decision", "examples"


@dataclass
class Decision:
    """The score that the graph gives, and the threshold above which it calls an image unknown.

    Attributes:
        score: its name.
        value: the threshold.
        record: where it came from.
    """

    score: str
    value: float
    record: Calibration


def import_onnxruntime() -> ModuleType:
    """The library, which tells nobody of its use and says nothing on standard error but errors.

    From 1.29 on it reports each use to its maker, and keeps a number for the device in the user's cache; once
    it is imported that cannot be taken back.

    Raises:
        ImportError: where it is not installed.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    with _without_warnings():
        import onnxruntime
    onnxruntime.disable_telemetry_events()  # on Windows, and where it was imported before
    onnxruntime.set_default_logger_severity(3)  # errors
    return cast("ModuleType", onnxruntime)


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Without the warnings of onnxruntime's import about devices: it reads no option before."""
    if "onnxruntime" in sys.modules or not hasattr(os, "dup"):
        yield
        return
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with tempfile.TemporaryFile() as file:
            os.dup2(file.fileno(), 2)
            try:
                yield
            finally:
                os.dup2(kept, 2)
                file.seek(0)
                rest = [line for line in file if b"[W:onnxruntime:" not in line]
                os.write(2, b"".join(rest))
    finally:
        os.close(kept)


class ExportedRecogniser(Predicting):
    """A graph that ``osr export`` wrote, with the questions of `Recogniser`.

    Several threads may ask at once. It can be copied, pickled, and asked in a process that was forked.

    Args:
        path: of an ``.onnx`` file.

    Attributes:
        spec: of the known images.
        threshold: what decides.
        examples: pictures of known classes to try it with.

    Raises:
        UserError: if the file is missing, or was not written by ``osr export``; or where onnxruntime is.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        try:
            import_onnxruntime()
        except ImportError as error:
            raise UserError(f"{path} needs onnxruntime: pip install onnxruntime") from error
        if not os.path.isfile(path):
            raise UserError(f"there is no file {path}")
        self._graph = Path(path).read_bytes()
        try:
            check_graph(self._graph)
        except UserError as error:
            raise UserError(f"{path} {error}: it is not run; export it again") from error
        except ValueError as error:
            raise UserError(f"{path} is no ONNX graph ({error}); export it again") from error
        try:
            self._open()
        except Exception as error:  # of a dozen kinds of its own
            raise UserError(f"{path} is no ONNX graph that onnxruntime can run; export it again") from error
        kept = self.session.get_modelmeta().custom_metadata_map
        given = tuple(one.name for one in self.session.get_outputs())
        if given != OUTPUTS or not {SPEC, DECISION} <= set(kept):
            raise UserError(f"{path} was not written by osr export; export a checkpoint with it")
        try:
            self.spec = DataSpec.from_dict(_read(kept[SPEC]))
            decision = _read(kept[DECISION])
            record = read_record(decision)
            self.threshold = Decision(_name(decision["score"]), record.value, record)
            kept_examples = _read(kept[EXAMPLES]) if EXAMPLES in kept else None
            self.examples = examples.from_plain(kept_examples, self.spec)
            self._check_answers()
        except (UserError, KeyError, TypeError) as error:
            raise UserError(f"{path} is damaged ({error}); export it again") from error

    def _open(self) -> None:
        """Make onnxruntime ready, in this process."""
        onnxruntime = import_onnxruntime()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # nothing: errors are raised as well
        options.add_session_config_entry("session.load_model_format", "ONNX")  # the one that was checked
        # a few bytes of a stranger's graph may ask for a tensor of any size. Each session has its own arena:
        # the lock of another may be held where this process was forked. Weights come on top
        arena = onnxruntime.OrtArenaCfg({"max_mem": MOST_MEMORY, "arena_extend_strategy": 1})
        kind, use = onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, onnxruntime.OrtMemType.DEFAULT
        onnxruntime.create_and_register_allocator(onnxruntime.OrtMemoryInfo("Cpu", kind, 0, use), arena)
        options.add_session_config_entry("session.use_env_allocators", "1")
        options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
        self.session: InferenceSession = onnxruntime.InferenceSession(
            self._graph,
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=["ConstantFolding"],  # which makes tensors outside of the arena
        )
        self._process = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        """What a copy is made of: onnxruntime's part is made ready again."""
        return {name: value for name, value in vars(self).items() if name not in ("session", "_process")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take what a copy is made of."""
        self.__dict__ |= state
        self._open()

    def _check_answers(self) -> None:
        """Ask about one black image, as the metadata may belong to another graph.

        Raises:
            UserError: where the answer is none.
        """
        images = self.session.get_inputs()[0]
        fixed = [size for size in images.shape[1:] if isinstance(size, int)]
        if fixed != list(self.spec.input_shape):
            raise UserError(
                f"its images have the shape {fixed}, its metadata says {list(self.spec.input_shape)}"
            )
        self._run(np.zeros((1, *self.spec.input_shape), np.uint8))

    @property
    def score_names(self) -> list[str]:
        """The one score of the graph."""
        return [self.threshold.score]

    def decide_by(self, score: str | None = None, threshold: float | None = None) -> None:
        """Decide by a threshold that is given as a number.

        Raises:
            UserError: for another score than the graph's, or a threshold that is not finite.
        """
        if score not in (None, self.threshold.score):
            raise UserError(
                f"the exported graph has no score {score!r}, only {self.threshold.score}; "
                f"export the checkpoint again with --score {score}"
            )
        if threshold is not None:
            if not math.isfinite(threshold):
                raise UserError(f"a threshold is a finite number, not {threshold}")
            self.threshold = Decision(self.threshold.score, threshold, fixed_calibration(threshold))

    def prepare(self, image: ImageLike) -> NDArray[np.uint8]:
        """Any one image -> ``(C, size, size)``; see `to_pixels` for what it may be."""
        return prepared(image, self.spec)

    def explain(self, image: ImageLike) -> NoReturn:
        """Refuse: why an image is known or unknown is found in layers.

        Raises:
            UserError: always.
        """
        raise UserError(
            "an exported graph's layers cannot be looked into: load the checkpoint (.ckpt) that it was made "
            "of, and ask that"
        )

    def answer(self, images: NDArray[np.uint8]) -> Answers:
        """What is said of prepared images ``(N, C, size, size)``.

        The graph is asked in batches of one size, the last filled up: the same kernels then work on every
        image, and what comes with it moves a score by less than a part in 10^9: by none where it is worked
        out of the logits, by 2 in 10^12 for ``fisher``, as matrices are multiplied in another order.

        Raises:
            UserError: for images that are not prepared, or a graph that cannot be run.
        """
        check_prepared(images, self.spec.input_shape)
        answers = dict(zip(OUTPUTS, self._run(images), strict=True))
        return Answers(**answers, scores={self.threshold.score: answers["score"]})

    def _run(self, images: NDArray[np.uint8]) -> list[NDArray[Any]]:
        if self._process != os.getpid():  # the threads of a session stay in the process that it was made in
            _left.append(self.session)
            self._open()
        threshold = np.array(self.threshold.value, np.float64)
        size = batch_size(self.spec.input_shape, _AT_ONCE)
        parts = []
        for start in range(0, max(1, len(images)), size):
            some = images[start : start + size]
            filled = np.zeros((size, *self.spec.input_shape), np.uint8)
            filled[: len(some)] = some
            try:
                found = self.session.run(OUTPUTS, dict(zip(INPUTS, (filled, threshold), strict=True)))
            except Exception as error:  # of a dozen kinds of its own
                detail = " ".join(str(error).split())[:200]
                raise UserError(f"the graph cannot be run ({detail}); export it again") from error
            self._check(found, size)
            parts.append([values[: len(some)] for values in found])
        return [np.concatenate(values) for values in zip(*parts, strict=True)]

    def _check(self, found: Sequence[NDArray[Any]], size: int) -> None:
        """Refuse what no answer to a batch of that size is.

        Raises:
            UserError: naming the output.
        """
        classes = self.spec.num_classes
        for name, values in zip(OUTPUTS, found, strict=True):
            shape = (size, classes) if name == "probabilities" else (size,)
            kind = _KINDS.get(name, np.dtype(np.float64))
            if not isinstance(values, np.ndarray) or values.shape != shape or values.dtype != kind:
                raise UserError(
                    f"the graph's {name} are not {kind} of the shape {list(shape)} for a batch of {size} "
                    f"and {classes} classes; export it again"
                )
        if not ((found[0] >= 0) & (found[0] <= classes)).all():
            raise UserError(f"the graph's prediction is no number in 0 .. {classes}; export it again")


_KINDS = {"prediction": np.dtype(np.int64), "unknown": np.dtype(np.bool_)}  # others are float64
# sessions of the process that this one was forked from: ending them would wait for ever
_left: list[object] = []


def _read(text: str) -> dict[str, Any]:
    """A mapping that was written as JSON.

    Raises:
        UserError: where it is none.
    """
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"its metadata is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise UserError("its metadata is no mapping")
    return found


def _name(value: object) -> str:
    if not isinstance(value, str):
        raise UserError("its score has no name")
    return value
