"""torchmetrics without its metrics of sound, text and images, for which it loads torchvision and SciPy."""

from __future__ import annotations

import logging
import sys
from importlib import import_module
from importlib.util import find_spec, module_from_spec
from types import ModuleType
from typing import Any

# what Lightning and the classifiers import from the package itself, and the modules where that is
_PLACES = {
    "torchmetrics.__version__": "torchmetrics.__about__",
    "torchmetrics.MeanMetric": "torchmetrics.aggregation",
    "torchmetrics.Metric": "torchmetrics.metric",
    "torchmetrics.MetricCollection": "torchmetrics.collections",
}


class _Deferred(ModuleType):
    """A package whose modules can be imported before its own code has run, which then runs when asked."""

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - of any type
        if (place := _PLACES.get(f"{self.__name__}.{name}")) is not None:
            return getattr(import_module(place), name)
        # jsonargparse looks for the shortest path of every module's class that is loaded
        prefix = f"{self.__name__}."
        inside = [module for key, module in sys.modules.items() if key.startswith(prefix)]
        if found := [kind for module in inside if isinstance(kind := vars(module).get(name), type)]:
            vars(self)[name] = found[0]  # the next command of this process does not look again
            return found[0]
        self.__class__ = ModuleType  # type: ignore[assignment]
        assert self.__spec__ is not None
        assert self.__spec__.loader is not None
        self.__spec__.loader.exec_module(self)
        return getattr(self, name)


def defer_torchmetrics() -> None:
    """Let Lightning import the few metrics it needs; whoever asks for any other loads them all, as ever.

    Does nothing once torchmetrics is loaded.
    """
    if "torchmetrics" in sys.modules:
        return
    for name in ("torchmetrics", "torchmetrics.functional"):
        spec = find_spec(name)
        if spec is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        module = module_from_spec(spec)
        module.__class__ = _Deferred
        sys.modules[name] = module
    torchmetrics = sys.modules["torchmetrics"]
    torchmetrics.functional = sys.modules["torchmetrics.functional"]  # type: ignore[attr-defined]
    torchmetrics._logger = logging.getLogger("torchmetrics")  # type: ignore[attr-defined]
    import_module("torchmetrics.utilities")  # first, as in its own order of imports, which is a circle
