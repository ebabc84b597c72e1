"""Open-set recognition with PyTorch Lightning: classifiers that answer "unknown"."""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.2.0"
__all__ = [
    "BaselineClassifier",
    "EnsembleClassifier",
    "MCDropoutClassifier",
    "OpenSetDataModule",
    "OpenSetTrainer",
    "Prediction",
    "Recogniser",
    "load",
    "save",
]

if TYPE_CHECKING:
    from osr_lightning.answers import Prediction
    from osr_lightning.checkpoint import save
    from osr_lightning.data.datamodule import OpenSetDataModule
    from osr_lightning.deploy.opening import load
    from osr_lightning.recogniser import Recogniser
    from osr_lightning.training.classifiers import (
        BaselineClassifier,
        EnsembleClassifier,
        MCDropoutClassifier,
    )
    from osr_lightning.training.trainer import OpenSetTrainer

_MODULES = {
    "BaselineClassifier": "training.classifiers",
    "EnsembleClassifier": "training.classifiers",
    "MCDropoutClassifier": "training.classifiers",
    "OpenSetDataModule": "data.datamodule",
    "OpenSetTrainer": "training.trainer",
    "Prediction": "answers",
    "Recogniser": "recogniser",
    "load": "deploy.opening",
    "save": "checkpoint",
}


def __getattr__(name: str) -> object:
    """Load a public name on first use: torch and Lightning take seconds that ``osr report`` need not wait."""
    from importlib import import_module

    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
