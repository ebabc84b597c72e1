"""A LightningModule around a recogniser: building it, its checkpoints, and its answers to a batch."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, cast

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from osr_lightning import checkpoint as checkpoints
from osr_lightning.data.audit import Seen
from osr_lightning.data.batch import Batch
from osr_lightning.data.datamodule import OpenSetDataModule
from osr_lightning.errors import UserError
from osr_lightning.facts import Facts
from osr_lightning.models.ensemble import Ensemble
from osr_lightning.models.factory import NetworkLike, Recipe, saved_recipe
from osr_lightning.models.networks import SplitNetwork
from osr_lightning.models.sampling import Sampler
from osr_lightning.recogniser import Recogniser, not_fitted
from osr_lightning.training import restoring
from osr_lightning.training.defaults import Plan, plan
from osr_lightning.training.metrics import EpochMetrics, OpenSetMetrics
from osr_lightning.training.options import Options

if TYPE_CHECKING:
    from typing import Self


class RecogniserModule(LightningModule):
    """Holds a recogniser, which is built once the known images are known.

    A subclass says what its samples are (``sampler`` and :meth:`sampler_options`).

    Args:
        network: see `osr_lightning.models.factory.network_recipe`; the sampler's default if not given.
        options: of score, calibration and training.
    """

    sampler: str  # name of a sampler in a recipe

    def __init__(self, network: NetworkLike | None, options: Options) -> None:
        super().__init__()
        # in a tuple, as a module would be registered here beside its place in the recogniser
        self._given = (network,)
        self.options = options
        # plain values alone: what a checkpoint says is never parsed as a configuration
        recipe = None if network is None else saved_recipe(network)
        self.save_hyperparameters({"network": recipe, **options.to_dict(), **self.sampler_options()})
        self.recogniser: Recogniser | None = None
        self.images_seen: Seen | None = None

    def sampler_options(self, recipe: Recipe | None = None) -> dict[str, Any]:
        """The sampler's part of the recipe, in plain values; ``recipe`` is that of a checkpoint."""
        return {}

    @property
    def trained(self) -> Recogniser:
        """The recogniser.

        Raises:
            UserError: before it is built.
        """
        if self.recogniser is None:
            raise UserError(
                "the model is built once its known images are known: fit it, or call build(facts)"
            )
        return self.recogniser

    @property
    def num_classes(self) -> int:
        """``K``."""
        return self.trained.facts.num_classes

    def decide(self, facts: Facts, images: int) -> Plan:
        """Decide how to train ``images`` of these facts, and keep it as ``plan``."""
        (given,) = self._given
        if given is None and self.recogniser is not None:  # that of a checkpoint
            given = self.recogniser.sampler.recipe.get("network")
        self.plan = plan(given, self.sampler, facts, images).with_given(self.options.to_dict())
        return self.plan

    def decide_on(self, datamodule: OpenSetDataModule) -> Plan:
        """Decide how to train on a datamodule's images, and in which batches it brings them."""
        if self.recogniser is not None:
            datamodule.tables.expect(self.recogniser.facts)
        train, _ = datamodule.tables.load_training()
        plan = self.decide(datamodule.facts, len(train))
        datamodule.planned_batch_size = plan.batch_size
        return plan

    def plan_for(self, facts: Facts) -> Plan:
        """The plan that was decided, or that of very many images."""
        return getattr(self, "plan", None) or self.decide(facts, 10**9)

    def build(self, facts: Facts, recipe: Recipe | None = None, *, trust: bool = False) -> None:
        """Build the recogniser.

        Args:
            facts: of the known images.
            recipe: of a checkpoint, whose network is taken where this model was given none.
            trust: whether that recipe may name code to import.

        Raises:
            UserError: where the network does not fit the images.
        """
        # one that was named by its path in Python or on the command line was named by the user
        (given,) = self._given
        trusted = trust or not isinstance(given, (dict, type(None)))
        options = self.options
        own = {
            "sampler": self.sampler,
            "network": self.plan_for(facts).network if recipe is None else recipe.get("network"),
            "score": options.score,
            "detectors": options.detectors,
            "fixed": options.fixed,
            **self.sampler_options(recipe),
        }
        self.recogniser = checkpoints.build(own, facts, network=given, trust=trusted)
        self.train_metrics = EpochMetrics(facts.num_classes)
        self.val_metrics = EpochMetrics(facts.num_classes)
        self.test_metrics = OpenSetMetrics(facts.num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(B, K)`` of one pass over pixels ``(B, C, H, W)`` uint8, in the mode the network is in."""
        return self.trained.sampler.training_logits(self.trained.standardise(images))

    def classify(self, batch: Batch) -> dict[str, Tensor]:
        """Per-image results of ``B`` images, on the module's device.

        Returns:
            What :meth:`Recogniser.describe` gives but ``log_probability``; ``row``, ``source`` and ``label``
            ``(B,)`` int64; and ``nll`` ``(B,)`` float64, of the label, NaN where that is no known class.
        """
        rows = self.trained.describe(batch.image)
        known = (batch.label >= 0) & (batch.label < self.num_classes)
        log_probability = rows.pop("log_probability")
        nll = -log_probability.gather(1, batch.label.where(known, 0).unsqueeze(1)).squeeze(1)
        return {
            "row": batch.row,
            "source": batch.source,
            "label": batch.label,
            "nll": nll.where(known, torch.nan),
            **rows,
        }

    def rejected(self, results: dict[str, Tensor]) -> Tensor:
        """``(B,)`` whether each image of :meth:`classify` is called unknown.

        Raises:
            UserError: if the score is to be fitted and is not, or has no threshold.
        """
        threshold = self.trained.threshold
        if f"score/{threshold.score}" not in results:
            raise UserError(not_fitted(threshold.score))
        rejected: Tensor = threshold(results[f"score/{threshold.score}"])
        return rejected

    def expected_facts(self) -> Facts | None:
        """Those that this model was built for, which a datamodule then does not measure."""
        return None if self.recogniser is None else self.recogniser.facts

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep recipe, facts and the run beside the weights and their thresholds."""
        checkpoint["recogniser"] = checkpoints.content(self.trained)
        if self.images_seen is not None:
            checkpoint["images"] = self.images_seen._asdict()
        checkpoint["experiment"] = getattr(self._trainer, "experiment", "default")
        checkpoint["seed"] = int(os.environ.get("PL_GLOBAL_SEED", 0))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Build what the checkpoint holds, and check that it fits.

        Raises:
            UserError: for a checkpoint of another class, of other sizes or classes, or damaged.
        """
        restoring.restore(self, checkpoint, trust=getattr(self._trainer, "trust_checkpoint", False))

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls,
        checkpoint_path: str | os.PathLike[str],
        map_location: str | torch.device = "cpu",
        trust: bool = False,
        **kwargs: Any,  # noqa: ANN401
    ) -> Self:
        """Load a trained model; nothing in the file is run.

        Args:
            checkpoint_path: the checkpoint.
            map_location: where to put the model.
            trust: whether the checkpoint may name code to import beside this package's own.
            kwargs: arguments of the class that go before the checkpoint's.

        Raises:
            UserError: where the checkpoint is damaged or does not fit.
        """
        return restoring.load(cls, checkpoint_path, trust, kwargs).to(map_location)


def network_name(sampler: Sampler) -> str:
    """The class of the network, of one that was split its own; of an ensemble its members'."""
    if isinstance(sampler, Ensemble):
        return ", ".join(dict.fromkeys(network_name(cast(Sampler, member)) for member in sampler.members))
    network = getattr(sampler, "network", sampler)
    own = network.trunk if type(network) is SplitNetwork else network
    return str(getattr(own, "label", type(own).__name__))
