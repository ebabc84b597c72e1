"""The LightningModules that the command line chooses from: one pass, Monte-Carlo dropout, ensembles."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from jsonargparse.typing import register_type
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import nn

from osr_lightning.errors import UserError
from osr_lightning.facts import Facts
from osr_lightning.models.factory import Recipe
from osr_lightning.models.mc_dropout import MaskKind
from osr_lightning.models.sampling import NOT_TRAINED
from osr_lightning.training.base import OpenSetClassifier
from osr_lightning.training.defaults import Plan


def _bare(name: object) -> str:
    """A name as resnet18, which the command line's parser must not take for a function's path."""
    if not isinstance(name, str) or re.fullmatch(r"[a-z]\w*", name) is None:
        raise ValueError("no bare name")
    return name


if TYPE_CHECKING:
    BareName: TypeAlias = str
else:
    BareName = type("BareName", (), {})
    register_type(BareName, serializer=_bare, deserializer=_bare)
Network: TypeAlias = BareName | Callable[[int], nn.Module] | str | dict[str, Any]


class BaselineClassifier(OpenSetClassifier):
    """A deterministic network; one pass is its only sample.

    Args:
        network: what makes the network; what suits the known images if not given. A name (BaselineCNN,
            MCDropoutCNN, ConvNet, or one of torchvision's classifiers, as resnet18) or a class path; more in
            :class:`OpenSetClassifier`.
        kwargs: see :class:`OpenSetClassifier`.
    """

    sampler = "single"

    def __init__(
        self,
        network: Network | None = None,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(network, **kwargs)


class MCDropoutClassifier(OpenSetClassifier):
    """Monte-Carlo dropout (Gal & Ghahramani, ICML 2016): dropout stays on when predicting.

    Args:
        network: what makes the network; what suits the known images if not given. A name (BaselineCNN,
            MCDropoutCNN, ConvNet, or one of torchvision's classifiers, as resnet18) or a class path; more in
            :class:`OpenSetClassifier`.
        num_samples: stochastic passes per image, S.
        dropout: probability, in (0, 1), that a feature is dropped before the last layer of a network that has
            no dropout of its own, or only that one; 0.3, or as it is, if not given.
        masks: shared (one dropout mask per sample for all images: results do not depend on batches,
            order or number of processes) or independent (one per image and sample).
        mask_seed: seed of the dropout masks when predicting.
        kwargs: see :class:`OpenSetClassifier`.
    """

    sampler = "mc_dropout"

    def __init__(
        self,
        network: Network | None = None,
        num_samples: int = 10,
        dropout: float | None = None,
        masks: MaskKind = "shared",
        mask_seed: int = 0,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        if num_samples < 1:
            raise UserError(f"model.num_samples must be at least 1, got {num_samples}")
        if dropout is not None and not 0 < dropout < 1:
            raise UserError(f"model.dropout must lie between 0 and 1, got {dropout}")
        self._sampler_options = {
            "num_samples": num_samples,
            "dropout": dropout,
            "masks": masks,
            "mask_seed": mask_seed,
        }
        super().__init__(network, **kwargs)

    def sampler_options(self, recipe: Recipe | None = None) -> dict[str, Any]:
        """Samples, masks and their seed."""
        return self._sampler_options


class EnsembleClassifier(OpenSetClassifier):
    """Several trained networks, joined by ``osr ensemble``; it is asked and calibrated, but not trained.

    Args:
        network: of all members, where it was made in Python and their checkpoints cannot name it.
        kwargs: see :class:`OpenSetClassifier`.
    """

    sampler = "ensemble"

    def __init__(
        self,
        network: Network | None = None,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(network, **kwargs)

    def sampler_options(self, recipe: Recipe | None = None) -> dict[str, Any]:
        """The members, which the checkpoint alone knows."""
        return {} if recipe is None else {"members": recipe.get("members")}

    def decide(self, facts: Facts, images: int) -> Plan:
        """There is nothing to decide.

        Raises:
            UserError: always.
        """
        raise UserError(NOT_TRAINED)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """There is nothing to optimise.

        Raises:
            UserError: always.
        """
        raise UserError(NOT_TRAINED)
