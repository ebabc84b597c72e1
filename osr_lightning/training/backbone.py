"""Which backbone sees the images, decided before they are read: its weights say what they must look like."""

from __future__ import annotations

import torch
from torch import nn

from osr_lightning.data.image_table import ImageTables
from osr_lightning.data.sources import is_photographs
from osr_lightning.data_spec import PixelFormat
from osr_lightning.models.backbones import (
    DEFAULT_NAME,
    EXTRA,
    Backbone,
    Body,
    OnBackbone,
    installed,
    is_class_path,
    pixel_format,
    pretrained,
)
from osr_lightning.models.factory import NetworkLike, find, is_backbone, network_recipe
from osr_lightning.recogniser.recogniser import Recogniser
from osr_lightning.training.console import say
from osr_lightning.training.feature_extractor import BackboneExtractor


def use_backbone(
    network: NetworkLike | None, recogniser: Recogniser | None, tables: ImageTables
) -> NetworkLike | None:
    """Let the backbone of a network look at the images, where it has one.

    Where no network is named, and the known images are a folder of photographs, a backbone that is installed
    becomes the network.

    Args:
        network: what the user gave.
        recogniser: that is trained already, whose backbone counts.
        tables: of the images; where the backbone is frozen they serve its features from now on.

    Returns:
        The network to be trained; None to choose another.

    Raises:
        UserError: if the backbone or its weights are missing.
    """
    if recogniser is not None:
        if (body := _common_body(recogniser)) is not None:
            _serve(body, recogniser.spec.pixel_format, tables)
        elif tables.extractor is not None:
            tables.use_backbone(recogniser.spec.pixel_format, None)
        return network
    if tables.pixel_format is not None:  # it was asked already
        return network
    if network is None:
        network = _suggested(tables)
    if isinstance(network, OnBackbone):
        name, weights, body = network.label, network.weights, network.body
    else:
        recipe = None if network is None else network_recipe(network)
        if recipe is None or not is_backbone(recipe):
            return network
        given = recipe["init_args"]
        name, weights = given.get("name", DEFAULT_NAME), given.get("weights", "DEFAULT")
        made = pretrained(name, weights, find(name, trust=True) if is_class_path(name) else None)
        body = Body(made.module, made.width, given.get("finetune", False))
    _serve(body, tables.wanted_format(pixel_format(name, weights)), tables)
    return network


def _suggested(tables: ImageTables) -> NetworkLike | None:
    """The backbone that is installed, for photographs; None for others, or where none is."""
    if tables.options["channels"] == 1 or not is_photographs(tables.options["known"]):
        return None
    if not installed():
        say(
            "the known images are photographs, of which little is learned from random weights: "
            f"{EXTRA} brings a network that has seen many"
        )
        return None
    say(
        f"network: {DEFAULT_NAME}, frozen, as the known images are photographs; --model.network ConvNet "
        "trains one from random weights"
    )
    return {"class_path": Backbone.__name__, "init_args": {"name": DEFAULT_NAME, "weights": "DEFAULT"}}


def _serve(body: Body, wanted: PixelFormat, tables: ImageTables) -> None:
    if body.finetune:
        tables.use_backbone(wanted, None)
        return
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    made = BackboneExtractor(body, wanted, device)
    # one that is there may be ready already
    tables.use_backbone(wanted, tables.extractor if made == tables.extractor else made)


def _common_body(recogniser: nn.Module) -> Body | None:
    """The backbone that all networks of a recogniser have; None where they have none, or several."""
    bodies = [module for module in recogniser.modules() if isinstance(module, Body)]
    same = bodies and all(not one.finetune and one.digest() == bodies[0].digest() for one in bodies)
    return bodies[0] if same else None
