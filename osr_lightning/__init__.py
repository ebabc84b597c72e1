"""Open-set recognition with PyTorch Lightning: classifiers that answer "unknown"."""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = ["BaselineClassifier", "MCDropoutClassifier", "OpenSetDataModule", "OpenSetTrainer"]

if TYPE_CHECKING:
    from osr_lightning.data.datamodule import OpenSetDataModule
    from osr_lightning.models.classifiers import BaselineClassifier, MCDropoutClassifier
    from osr_lightning.trainer import OpenSetTrainer


def __getattr__(name: str) -> object:
    """Load a public name on first use: torch and Lightning take seconds that ``osr report`` need not wait."""
    from importlib import import_module

    modules = {"OpenSetDataModule": "data.datamodule", "OpenSetTrainer": "trainer"}
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{modules.get(name, 'models.classifiers')}"), name)
