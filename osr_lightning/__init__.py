"""Open-set recognition with PyTorch Lightning: classifiers that answer "unknown"."""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.3.0"
__all__ = [
    "BaselineClassifier",
    "EnsembleClassifier",
    "MCDropoutClassifier",
    "OpenSetDataModule",
    "OpenSetTrainer",
    "Prediction",
    "Recogniser",
    "RunResults",
    "load",
    "save",
]

if TYPE_CHECKING:
    from osr_lightning.data.datamodule import OpenSetDataModule
    from osr_lightning.deploy.load import load
    from osr_lightning.evaluation.run_results import RunResults
    from osr_lightning.recogniser.checkpoint import save
    from osr_lightning.recogniser.prediction import Prediction
    from osr_lightning.recogniser.recogniser import Recogniser
    from osr_lightning.training.module import (
        BaselineClassifier,
        EnsembleClassifier,
        MCDropoutClassifier,
    )
    from osr_lightning.training.trainer import OpenSetTrainer

_MODULES = {
    "BaselineClassifier": "training.module",
    "EnsembleClassifier": "training.module",
    "MCDropoutClassifier": "training.module",
    "OpenSetDataModule": "data.datamodule",
    "OpenSetTrainer": "training.trainer",
    "Prediction": "recogniser.prediction",
    "Recogniser": "recogniser.recogniser",
    "RunResults": "evaluation.run_results",
    "load": "deploy.load",
    "save": "recogniser.checkpoint",
}


def __getattr__(name: str) -> object:
    """Load a public name on first use: torch and Lightning take seconds that ``osr report`` need not wait."""
    from importlib import import_module

    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    """What there is, also before its first use."""
    return sorted({*globals(), *__all__})
