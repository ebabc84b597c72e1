"""What a checkpoint claims is held against what it holds, before memory is taken for it.

A stranger's file of a few kilobytes may name a network of gigabytes, repeat one list a million times, or hold
a tensor whose elements are all one number of its file.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from osr_lightning.data_spec import DataSpec
from osr_lightning.errors import UserError
from osr_lightning.models.backbones import Backbone, OnBackbone, is_class_path
from osr_lightning.models.factory import Recipe, build_network, find, makes, saved_recipe

MOST_MEMBERS = 1000  # of an ensemble
_DEEPEST = 100  # lists and mappings in one another
_REPEATED = 10  # how much longer a content may be with what it repeats written out
_SHARED = 4  # how often a number of the file may stand in the weights: tied layers share theirs
_SLACK = 2**20  # numbers, bytes or parts that are no matter
_MOST_ACTIVATIONS = 2**30  # numbers that a layer may give for two images


def refuse_packed(path: str | os.PathLike[str]) -> None:
    """Stop where a checkpoint is no file, arrays, or unpacks to more than it is: torch packs nothing.

    Raises:
        UserError: saying so.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        raise UserError(
            f"{path} is no readable checkpoint: it is no file; name one, as RUN/checkpoints/best.ckpt"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(info.file_size for info in archive.infolist())
            arrays = archive.namelist()
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
        return  # torch's reader says what is wrong
    if arrays and all(name.endswith(".npy") for name in arrays):
        raise UserError(
            f"{path} is no checkpoint but arrays: osr drift and osr_lightning.sklearn.load take those that "
            "osr calibrate --features wrote"
        )
    if unpacked > os.path.getsize(path):
        raise UserError(f"{path} would unpack to {unpacked:,} bytes; it is damaged, so train again")


def refuse_tangled(checkpoint: object) -> None:
    """Stop where a checkpoint contains itself or repeats itself endlessly.

    Raises:
        UserError: saying so.
    """
    sizes: dict[int, int] = {}  # of the lists and mappings that were seen, in parts written out
    held = 0

    def size(value: object, depth: int) -> int:
        nonlocal held
        if not isinstance(value, (Mapping, list, tuple, set, frozenset)):
            return 1
        if id(value) not in sizes:
            if depth > _DEEPEST:
                raise UserError(f"its content is more than {_DEEPEST} lists deep; it is damaged")
            sizes[id(value)] = 0  # while within it
            below = [*value, *value.values()] if isinstance(value, Mapping) else value
            held += 1 + len(below)
            sizes[id(value)] = 1 + sum(size(part, depth + 1) for part in below)
        if not sizes[id(value)]:
            raise UserError("its content contains itself; it is damaged")
        return sizes[id(value)]

    whole = size(checkpoint, 0)
    if whole > _REPEATED * held + _SLACK:
        raise UserError(f"its content has {whole:,} parts, of which it holds {held:,}; it is damaged")


def refuse_hollow(weights: Mapping[str, Any]) -> None:
    """Stop where weights have more numbers than their file: one can stand for a whole tensor.

    Raises:
        UserError: saying so.
    """
    tensors = [value for value in weights.values() if isinstance(value, Tensor)]
    if any(tensor.layout != torch.strided or tensor.device.type != "cpu" for tensor in tensors):
        raise UserError("its weights are of another kind than those of a network; it is damaged")
    held = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    claimed, there = sum(tensor.nbytes for tensor in tensors), sum(held.values())
    if claimed > _SHARED * there + _SLACK:
        raise UserError(f"its weights have {claimed:,} bytes, of which it holds {there:,}; it is damaged")


def refuse_larger(recipe: Recipe, spec: DataSpec, weights: Mapping[str, Any]) -> None:
    """Stop where the networks of a recipe have more parameters than the checkpoint, or take too much memory.

    They are built and run on torch's meta device, which keeps shapes alone. What is not of this package or
    torchvision is left out: who trusts its code trusts its size.

    Args:
        recipe: see `osr_lightning.recogniser.checkpoint.build`.
        spec: of the known images.
        weights: the checkpoint's.

    Raises:
        UserError: saying so.
    """
    numbers = [value.numel() for value in weights.values() if isinstance(value, Tensor)]
    most, total = sum(numbers) + _SLACK, 0
    sizes: dict[str, tuple[int, int]] = {}  # of a network and its backbone; members are mostly alike
    kept = recipe.get("members")
    members = kept if isinstance(kept, list) else []
    # an ensemble within one builds all that it has before it is refused as a member that shares
    nested = any(isinstance(one, dict) and one.get("sampler") == "ensemble" for one in members)
    shared = recipe.get("shared_body") is True and not nested
    for network in _networks(recipe):
        key = repr(network)
        if key not in sizes:
            with _at_most(2 * most, 4 * len(numbers) + 100):
                built = _shapes(network, spec)
            parts = (built, built.body if isinstance(built, Backbone) else nn.Identity())
            whole, body = (sum(value.numel() for value in part.state_dict().values()) for part in parts)
            sizes[key] = whole, body
            _refuse_wide(built, spec)
        whole, body = sizes[key]
        total += whole - (body if shared and total else 0)
        if total > most:
            raise UserError(
                f"its networks have at least {total:,} parameters, of which it holds {sum(numbers):,}; "
                "it is damaged"
            )


def _networks(recipe: Recipe, depth: int = 0) -> Iterator[Recipe]:
    """Those of this package and of torchvision; whatever else is wrong, building them says."""
    kept = recipe.get("members")
    if recipe.get("sampler") == "ensemble" and isinstance(kept, list):
        if len(kept) > MOST_MEMBERS or depth > _DEEPEST:
            raise UserError(f"it has {len(kept):,} members, and an ensemble has at most {MOST_MEMBERS:,}")
        for member in kept:
            if isinstance(member, dict):
                yield from _networks(member, depth + 1)
        return
    network = recipe.get("network")
    if isinstance(network, (str, Mapping)) and (found := saved_recipe(network)) is not None:
        named = [found["class_path"]]
        if makes(found, OnBackbone) and is_class_path(name := str(found["init_args"].get("name", ""))):
            named.append(name)
        try:
            for path in named:
                find(path, trust=False)
        except UserError:
            return
        yield found


class _TooLarge(UserError):
    """A network of more numbers than there are."""


def _shapes(network: Recipe, spec: DataSpec) -> nn.Module:
    """The network on the meta device."""
    try:
        with torch.device("meta"):
            return build_network(network, spec)
    except _TooLarge:
        raise
    except UserError:  # torchvision's RegNets reckon their widths with tensors, which meta ones cannot
        return build_network(network, spec).to("meta")


@contextmanager
def _at_most(numbers: int, entries: int) -> Iterator[None]:
    """Within the block, modules are built of no more than so many numbers and so many parts."""
    left = [numbers, entries]

    def count(module: nn.Module, name: str, part: object) -> None:
        left[0] -= part.numel() if isinstance(part, Tensor) else 0
        left[1] -= 1
        if min(left) < 0:
            raise _TooLarge("its recipe makes a larger network than it has weights for; it is damaged")

    hooks = [
        register_module_parameter_registration_hook(count),
        register_module_buffer_registration_hook(count),
        register_module_module_registration_hook(count),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _refuse_wide(network: nn.Module, spec: DataSpec) -> None:
    """Stop where a layer of a network on the meta device gives more numbers than memory is for.

    It runs only where it could: torch's meta kernels load its compiler, which takes longer than all else.
    """
    # none of these networks enlarges an image, so that a layer gives at most the widest's channels at each
    # pixel; twice that, as windows and tokens of transformers may need some more
    widest = max((value.shape[0] for value in network.parameters() if value.ndim), default=1)
    if 2 * 2 * widest * spec.image_size**2 <= _MOST_ACTIVATIONS:
        return

    def look(module: nn.Module, given: object, result: object) -> None:
        if isinstance(result, Tensor) and result.numel() > _MOST_ACTIVATIONS:
            raise UserError(
                f"its network takes {4 * result.numel() / 2**30:,.0f} GiB for two images of "
                f"{spec.image_size} pixels a side; it is damaged"
            )

    for module in network.modules():
        module.register_forward_hook(look)
    try:
        with torch.no_grad():
            network.eval()(torch.empty(2, *spec.input_shape, device="meta"))
    except UserError:
        raise
    except Exception:  # it does not fit the images, which building it says
        return
