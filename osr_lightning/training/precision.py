"""What a processor can do faster than by default, for training on a CPU."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.accelerators import Accelerator, CPUAccelerator
from lightning.pytorch.plugins import Precision

from osr_lightning.errors import UserError


def computes_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 numbers itself (AVX512-BF16 or AMX)."""
    # torch has no public question for this; without an answer, no is the safe one
    questions = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, question, bool)() for question in questions)


def choose_accelerator(accelerator: str | Accelerator) -> str | Accelerator:
    """The accelerator asked for; of auto one that has float64, which mps lacks.

    Raises:
        UserError: for mps.
    """
    if not torch.cuda.is_available():
        # Lightning sets this, and with it torch's optimizers look for a GPU driver at every step
        os.environ.pop("PYTORCH_NVML_BASED_CUDA_CHECK", None)
        if torch.backends.mps.is_available():
            if accelerator == "mps":
                raise UserError("scores need float64, which mps lacks; use trainer.accelerator cpu")
            return "cpu" if accelerator == "auto" else accelerator
    return accelerator


def train_in_bfloat16(trainer: Trainer) -> None:
    """Use `TrainingBFloat16` where the processor is quick at it, unless the user brought a plugin."""
    native = isinstance(trainer.accelerator, CPUAccelerator) and computes_bfloat16()
    if native and type(trainer.precision_plugin) is Precision:
        trainer.strategy.precision_plugin = TrainingBFloat16()


def train_in_float32(trainer: Trainer) -> None:
    """Undo `train_in_bfloat16`, for a single linear layer: it is as quick, and its solution exact."""
    if isinstance(trainer.precision_plugin, TrainingBFloat16):
        trainer.strategy.precision_plugin = Precision()


def precision_name(trainer: Trainer) -> str:
    """In which precision a trainer's steps are."""
    if isinstance(trainer.precision_plugin, TrainingBFloat16):
        return "training steps in bf16-mixed (trainer.precision 32-true makes them float32)"
    return {"32-true": "float32"}.get(str(trainer.precision), str(trainer.precision))


class TrainingBFloat16(Precision):
    """Mixed precision on a CPU while training; all other passes, and so every score, stay in float32.

    Weights, optimizer and loss are float32; convolutions and matrix products multiply in bfloat16.
    """

    @contextmanager
    def train_step_context(self) -> Generator[None]:
        """Autocast of one training step."""
        # each weight is used once a step: a cache of its casts would never be read
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            yield
