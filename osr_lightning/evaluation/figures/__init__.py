"""Figures of a test run. Importing this loads matplotlib: do it only to draw.

A function with ``@figure`` above it, in any module of this folder, is all that a new figure takes.
"""

from importlib import import_module
from pkgutil import iter_modules

from osr_lightning.evaluation.figures.registry import Material, each_figure, figure, save_figures

__all__ = ["Material", "each_figure", "figure", "save_figures"]

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
