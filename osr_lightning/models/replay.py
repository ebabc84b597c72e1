"""Running a network again without what is the same in every pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only


@dataclass
class Tape:
    """What the modules returned before the first dropout, in the order in which they returned."""

    outputs: list[tuple[nn.Module, Any]] = field(default_factory=list)
    recording: bool = True
    dropped: bool = False
    position: int = 0

    def run(self, module: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """Stands in for the module's forward: replays it if it is next on the tape."""
        if not self.recording and self.position < len(self.outputs):
            recorded, output = self.outputs[self.position]
            if recorded is module:
                self.position += 1
                return _clone(output)
        begin = len(self.outputs)
        output = forward(*args, **kwargs)
        if self.recording and not self.dropped:
            # replaying a module replays all that it called
            self.outputs[begin:] = [(module, _clone(output))]
        return output

    def rewind(self) -> None:
        """Go back to the start, after a pass."""
        self.recording = self.dropped = False
        self.position = 0


def _clone(output: Any) -> Any:  # noqa: ANN401
    # the network may change what a module returned in place, as in `out += shortcut`
    return tree_map_only(Tensor, torch.clone, output)


@contextmanager
def patched(forwards: dict[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Replaces the modules' ``forward``; on leaving, each is as it was found."""
    before = {module: vars(module)["forward"] for module in forwards if "forward" in vars(module)}
    try:
        for module, forward in forwards.items():
            vars(module)["forward"] = forward
        yield
    finally:
        for module in forwards:
            del vars(module)["forward"]
            if module in before:
                vars(module)["forward"] = before[module]
