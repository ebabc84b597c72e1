"""The exact measures of a test, in float64: images -> one number.

A function with ``@measure`` above it, in any module of this folder, is all that a new measure of known
against unknown takes: ``results.json`` and the report go through ``MEASURES``. *Unknown* is the positive
class. A measure that its images leave undefined is ``None``, never NaN or 0.
"""

from importlib import import_module
from pkgutil import iter_modules

from osr_lightning.evaluation.measures.registry import MEASURES, measure

__all__ = ["MEASURES", "measure"]

for _module in iter_modules(__path__):  # by name, which is the order of MEASURES
    import_module(f"{__name__}.{_module.name}")
