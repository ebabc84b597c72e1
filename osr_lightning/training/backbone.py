"""Which backbone sees the images, decided before they are read: its weights say what they must look like."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path

from torch import nn

from osr_lightning.data.image_table import ImageTables
from osr_lightning.data.sources import is_photographs
from osr_lightning.data_spec import PixelFormat
from osr_lightning.errors import UserError
from osr_lightning.models.backbones import (
    DEFAULT_NAME,
    EXTRA,
    Backbone,
    Body,
    OnBackbone,
    check_backbone,
    in_views,
    installed,
    is_class_path,
    pixel_format,
    pretrained,
)
from osr_lightning.models.factory import NetworkLike, find, makes, network_recipe
from osr_lightning.recogniser.recogniser import Recogniser
from osr_lightning.training.console import say
from osr_lightning.training.feature_extractor import BackboneExtractor


def use_backbone(
    network: NetworkLike | None,
    recogniser: Recogniser | None,
    tables: ImageTables,
    *,
    finetune: bool = False,
) -> NetworkLike | None:
    """Let the backbone of a network look at the images, where it has one.

    Where no network is named, and the known images are a folder of photographs, a backbone that is installed
    becomes the network.

    Args:
        network: what the user gave.
        recogniser: that is trained already, whose backbone counts.
        tables: of the images; where the backbone is frozen they serve its features from now on.
        finetune: whether the backbone is to learn.

    Returns:
        The network to be trained; None to choose another.

    Raises:
        UserError: if the backbone or its weights are missing, or there is none to be fine-tuned.
    """
    if recogniser is not None:
        body = _common_body(recogniser)
        if finetune and (body is not None or not _bodies(recogniser)):
            raise UserError(
                "model.finetune: the checkpoint's network does not learn this way; leave --ckpt_path out to "
                "fine-tune a backbone from the beginning"
            )
        if body is not None:
            _serve(body, recogniser.spec.pixel_format, tables)
        elif tables.extractor is not None:
            tables.use_backbone(recogniser.spec.pixel_format, None)
        return network
    if tables.pixel_format is not None:  # it was asked already
        return network
    if network is None:
        network = _suggested(tables, finetune)
    if finetune:
        network = _finetuned(network)
    if isinstance(network, OnBackbone):
        name, weights, body = network.label, network.weights, network.body
        channels = network.channels
    else:
        recipe = None if network is None else network_recipe(network)
        if recipe is None or not makes(recipe, OnBackbone):
            return network
        given = recipe["init_args"]
        name, weights = given.get("name", DEFAULT_NAME), given.get("weights", "DEFAULT")
        made = pretrained(name, weights, find(name, trust=True) if is_class_path(name) else None)
        tunes, views = given.get("finetune", False), given.get("views", 1)
        check_backbone(given.get("dropout", 0.0), views)
        body = Body(made.module, made.width, tunes, views, given.get("style", True))
        channels = made.channels
    wanted = tables.wanted_format(pixel_format(name, weights, channels))
    _serve(body, in_views(wanted, body.views), tables)
    return network


def frozen(body: Body, tables: ImageTables) -> ImageTables:
    """The same images with the features of a backbone as it is now.

    Args:
        body: that is to learn.
        tables: which serve pixels.
    """
    found = ImageTables(tables.options)
    found.download = tables.download
    assert tables.pixel_format is not None
    now = copy.deepcopy(body).requires_grad_(False)
    now.finetune = False
    _serve(now, tables.pixel_format, found)
    return found


def _finetuned(network: NetworkLike | None) -> NetworkLike:
    """The same backbone, which learns.

    Raises:
        UserError: where it is none.
    """
    if isinstance(network, Backbone) and network.body.finetune:
        return network
    recipe = None if network is None else network_recipe(network)
    if recipe is None or not makes(recipe, Backbone):
        raise UserError(
            "model.finetune lets a backbone learn, and the network is none, whose weights learn anyway: "
            "leave it out, or name one with --model.network Backbone (in Python: Backbone(finetune=True))"
        )
    return partial(Backbone, **{**recipe["init_args"], "finetune": True})


def _suggested(tables: ImageTables, finetune: bool) -> NetworkLike | None:
    """The backbone that is installed, for photographs; None for others, or where none is."""
    known, root = tables.options["known"], Path(tables.options["root"])
    if tables.options["channels"] == 1 or not is_photographs(known, root, download=tables.download):
        return None
    if not installed():
        say(
            "the known images are photographs, of which little is learned from random weights: "
            f"{EXTRA} brings a network that has seen many"
        )
        return None
    say(
        f"network: {DEFAULT_NAME}{'' if finetune else ', frozen'}, as the known images are photographs; "
        "--model.network ConvNet trains one from random weights"
    )
    # two views tell classes apart better; a backbone that learns would take twice as long in every epoch
    given = {"name": DEFAULT_NAME, "weights": "DEFAULT", "views": 1 if finetune else 2}
    return {"class_path": Backbone.__name__, "init_args": given}


def _serve(body: Body, wanted: PixelFormat, tables: ImageTables) -> None:
    if body.finetune:
        tables.use_backbone(wanted, None)
        return
    made = BackboneExtractor(body, wanted)
    # one that is there may be ready already
    tables.use_backbone(wanted, tables.extractor if made == tables.extractor else made)


def _bodies(recogniser: nn.Module) -> list[Body]:
    return [module for module in recogniser.modules() if isinstance(module, Body)]


def _common_body(recogniser: nn.Module) -> Body | None:
    """The backbone that all networks of a recogniser have; None where they have none, or several."""
    bodies = _bodies(recogniser)
    if not bodies or any(one.finetune for one in bodies):
        return None
    # a hash goes over all weights: one network needs none
    return bodies[0] if len(bodies) == 1 or len({one.digest() for one in bodies}) == 1 else None
