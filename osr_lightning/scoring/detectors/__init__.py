"""Fitted scores: what layers say of images -> score ``(B,)``, higher is more unknown.

Most see features ``(B, D)``, what the network's last linear layer sees, and logits ``(B, K)``, what it
returns, in one pass without dropout (`osr_lightning.models.sampling`). Each score is a module whose whole
state lies in buffers: it is saved with the weights, moves with the module, and loads into a fresh one. All is
worked out in float64.

A new fitted score is one subclass of `Detector` in a module of this folder. In the formulas ``f`` is the
feature vector, ``z`` the logits, ``N`` the number of training images.
"""

from __future__ import annotations

import importlib
import pkgutil

from osr_lightning.scoring.detectors.base import DETECTORS, LOG_PROBABILITY, Detector

__all__ = ["DETECTORS", "LOG_PROBABILITY", "Detector"]

for module in pkgutil.iter_modules(__path__, f"{__name__}."):
    importlib.import_module(module.name)
