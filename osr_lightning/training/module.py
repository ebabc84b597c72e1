"""The LightningModule that trains, calibrates and tests a recogniser, and its three kinds.

The hooks stand in the order in which Lightning calls them.
"""

from __future__ import annotations

import inspect
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import torch
from jsonargparse.typing import register_type
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from osr_lightning.data.augment import augment
from osr_lightning.data.batch import Batch
from osr_lightning.data.datamodule import OpenSetDataModule, datamodule_of
from osr_lightning.data.leaks import ImageDigests, packed_digests, pixel_digests, read_digests
from osr_lightning.data.mix import MIXES
from osr_lightning.data.pixmix import PixMix, read_pixmix
from osr_lightning.data_spec import DataSpec, same_classes
from osr_lightning.errors import Diverged, UserError
from osr_lightning.models.allocator import keep_freed_memory
from osr_lightning.models.backbones import Backbone, Body, Wrapped
from osr_lightning.models.ensemble import Ensemble
from osr_lightning.models.factory import NetworkLike, Recipe, makes, network_recipe, saved_recipe
from osr_lightning.models.mc_dropout import MaskKind
from osr_lightning.models.modes import evaluating
from osr_lightning.models.networks import SplitNetwork
from osr_lightning.models.sampling import NOT_TRAINED, LogitSampler
from osr_lightning.option_types import typed
from osr_lightning.recogniser import checkpoint as checkpoints
from osr_lightning.recogniser import known_images
from osr_lightning.recogniser.examples import from_plain
from osr_lightning.recogniser.migrate import migrate
from osr_lightning.recogniser.recogniser import Recogniser, not_fitted
from osr_lightning.scoring.calibration import (
    BY_CLASS,
    CROSS,
    NEEDS_UNKNOWNS,
    QUANTILES,
    CalibrationMethod,
)
from osr_lightning.scoring.quantile import check_alpha
from osr_lightning.scoring.sweep import Costs
from osr_lightning.training.backbone import frozen, use_backbone
from osr_lightning.training.calibration import (
    are_few,
    check_classes,
    check_images,
    choose_thresholds,
    fit_detectors,
    references,
)
from osr_lightning.training.console import device_name, say
from osr_lightning.training.cross_calibration import KnownFeatures, choose_decay, deal_folds, fit_all
from osr_lightning.training.distributed import gather_rows
from osr_lightning.training.examples import choose_examples, known_images_of
from osr_lightning.training.head import GRID, balanced, held_out_losses, solve
from osr_lightning.training.left_out import leave_classes_out
from osr_lightning.training.losses import LOSSES
from osr_lightning.training.metrics import EpochMetrics, OpenSetMetrics
from osr_lightning.training.optimizers import OwnOptimizer, Schedule, configure, refuse_to_stretch
from osr_lightning.training.plan import Plan, check_options, plan_training
from osr_lightning.training.precision import precision_name, train_in_float32
from osr_lightning.training.resume import EpochSteps, accept, resume, training_state

if TYPE_CHECKING:
    from typing import Self

_EVERY = 50  # steps between two looks at losses on a GPU, each of which waits for it
_MANY_IMAGES = 10**9  # the plan of a network that is built before its images are known


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
    # StochasticWeightAveraging has a device among its options, which config.yaml has to hold
    register_type(torch.device, fail_already_registered=False)
Network: TypeAlias = BareName | Callable[[int], nn.Module] | str | dict[str, Any]


class OpenSetClassifier(LightningModule):
    """Trains a recogniser, which is built once the known images are known.

    A subclass says what its samples are (``sampler`` and `sampler_options`).

    Args:
        network: name or class path; what suits the known images if not given. A name (BaselineCNN,
            MCDropoutCNN, ConvNet, ResNet9, ResNet18, VGG32, or one of torchvision's classifiers, such as
            resnet18), a class path, a class or a function: it gets the number of classes, and in_channels and
            image_size where it has such parameters. Of a module, a copy is taken.
        score: tells unknown from known images; higher means more unknown.
        detectors: further scores to fit to training images; each may also be the score: fisher, mahalanobis,
            relative_mahalanobis, knn, vim, residual, openmax, fdbd, nci. run and calibrate fit them, to
            features of passes without dropout; fit does so once it is done.
        calibration: how the threshold is chosen; what suits the images if not given: known_quantile, and
            cross_known_quantile for a frozen backbone with few validation images. known_quantile: so that at
            most a share alpha of known images is rejected, by validation images; cross_known_quantile: about
            alpha, by training and validation images, each scored by a last layer fitted without its fold, and
            one fitted to all decides; class_quantile: so that at most a share alpha of each class is
            rejected, by a threshold of its own, for which the scores of images named it are shifted;
            max_accuracy and min_cost: best on validation images with data.calibration_unknown;
            optuna: the notebook's search; fixed: the given threshold.
        alpha: largest share of known images to reject, in (0, 1), by known_quantile.
        few_share: classes of few images share a threshold; those that have too few for class_quantile,
            which are refused otherwise.
        threshold: above this score images are unknown; for calibration fixed, which needs it, in units of the
            score.
        costs: costs of mistakes, for min_cost; of a wrong label, a false alarm and a missed unknown.
        unknown_prior: share of unknown images to expect; in (0, 1), for max_accuracy and min_cost.
        loss: what is minimised; cross_entropy: of the probabilities; logit_norm: of those of logits brought
            to one length (Wei et al., ICML 2022), which leaves a network less sure of what is unlike the
            known images.
        loss_temperature: divides the logits of logit_norm; above 0, the paper's if not given.
        learning_rate: learning rate; the peak of one_cycle and cosine; what suits the network if not given.
        weight_decay: weight decay of AdamW; 0 for Adam; what suits the network if not given.
        label_smoothing: share of labels to spread over all classes; what suits the network if not given.
        schedule: how the learning rate changes; what suits the network if not given. step halves it every 10
            epochs, as the study did; one_cycle (Smith & Topin 2019) raises it over the first 30% of the steps
            and then lowers it to almost 0; cosine (Loshchilov & Hutter 2017) raises it over the first 5% and
            then lowers it by half a cosine.
        augment: how to vary training images, as digits or photos; what suits the known images if not given.
            none: not at all; digits: small turns and shifts; photos: mirrored and shifted; photos_strong:
            brightness, contrast and a missing square too; rand_augment: two of 14 changes of form and colour
            too (Cubuk et al. 2020).
        mix: mix images and labels, as cutmix; none: not at all; mixup: means of two (Zhang et al. 2018);
            cutmix: a rectangle of one in the other (Yun et al. 2019). The accuracy of a training then counts
            each image's own label alone.
        pixmix: folder of pictures to mix in; not at all if not given. By PixMix (Hendrycks et al. 2022);
            any with much structure will do, its authors' fractals are not downloaded.
        mirror: look at mirror images too; logits and features are the mean of an image's and its mirror
            image's, in twice the time. For kinds of things that have no left and right, trained with
            augment photos.
        finetune: let a backbone learn too; from the last layer that suits it as it is (Kumar et al., ICLR
            2022), at a tenth of the learning rate. Its batch norms keep their statistics.
        balance_classes: let classes weigh the same in the loss; however many images they have.
        compile: use torch.compile for the training; it pays on GPUs and for large networks.
        keep_examples: keep small pictures of up to 12 classes; a validation image of each in the checkpoint,
            which the page of osr serve shows. calibrate with false takes them out of a checkpoint.
        keep_features: keep features of the known images; those of a frozen backbone, with small pictures,
            about 6 KB each, in the checkpoint. osr extend needs them, and osr explain shows the nearest.
            calibrate with false takes them out.

    Attributes:
        plan: how the training goes, once its images are known.
        trust_checkpoint: whether a checkpoint may name code to import beside this package's own.
        own_optimizer: of the command line; None for the plan's.
        images_seen: digests of the images that trained and calibrated these weights.
        search_trials: ``(threshold, value)`` of the last calibration by optuna.
        tested_epoch: the one, from 1, in which the tested checkpoint was written; None without one.
        rows: of `classify`, of all images of a fit's last validation, whichever process looked at them.

    Raises:
        UserError: for an option that is out of range.
    """

    sampler: str  # name of a sampler in a recipe
    plan: Plan | None = None
    tested_epoch: int | None = None
    trust_checkpoint = False

    def __init__(
        self,
        network: Network | None = None,
        score: str = "fisher",
        detectors: list[str] | None = None,
        calibration: CalibrationMethod | None = None,
        alpha: float = 0.05,
        few_share: bool = False,
        threshold: float | None = None,
        costs: Costs | None = None,
        unknown_prior: float = 0.5,
        learning_rate: float | None = None,
        weight_decay: float | None = None,
        label_smoothing: float | None = None,
        loss: str = "cross_entropy",
        loss_temperature: float = 0.04,
        schedule: Schedule | None = None,
        augment: str | None = None,
        mix: str = "none",
        pixmix: str | None = None,
        mirror: bool = False,
        finetune: bool = False,
        balance_classes: bool = False,
        compile: bool = False,
        keep_examples: bool = True,
        keep_features: bool = True,
    ) -> None:
        # those of a user's subclass may have the same names
        own = {n: value for n, value in locals().items() if n not in ("self", "__class__", "network")}
        plain = typed("model.", OpenSetClassifier, own, {"detectors": "['knn', 'vim']"})
        super().__init__()
        # in a tuple, as a module would be registered here beside its place in the recogniser
        self._given: tuple[NetworkLike | None] = (network,)
        # what the command line adds would have Lightning parse a checkpoint as a configuration
        self.save_hyperparameters(ignore=["network", "_class_path", "_instantiator"])
        plain |= typed("model.", type(self), {n: v for n, v in self.hparams.items() if n not in plain})
        costs = plain["costs"] or Costs()
        costs = costs if isinstance(costs, Costs) else Costs(**costs)
        plain |= {
            "network": None if network is None else saved_recipe(network),
            "detectors": list(plain["detectors"] or []),
            "costs": asdict(costs),
        }
        self.save_hyperparameters(plain)  # in place of what is no plain value
        check_options(self.hparams)
        self.recogniser: Recogniser | None = None
        self.images_seen: ImageDigests | None = None
        self.class_weights: Tensor | None
        self.register_buffer("class_weights", None, persistent=False)
        self.own_optimizer: OwnOptimizer | None = None
        self.search_trials: list[tuple[float, float]] = []
        self._pixmix: PixMix | None = None
        self.is_member = False  # of an ensemble to be, whose threshold the validation images choose
        self._steps = EpochSteps()
        self._resumed: dict[str, Any] = {}
        self._calibrated_in: str | None = None  # precision
        self._val_batches: list[dict[str, Tensor]] = []
        self.rows: dict[str, Tensor] = {}

    @property
    def trained(self) -> Recogniser:
        """The recogniser.

        Raises:
            UserError: before it is built.
        """
        if self.recogniser is None:
            raise UserError(
                "the model is not built yet, as it was given neither known images nor a checkpoint: give fit "
                "an OpenSetDataModule, as fit(model, OpenSetDataModule(known='folder:MINE')), read a "
                "checkpoint with load_from_checkpoint, or call build(spec)"
            )
        return self.recogniser

    @property
    def num_classes(self) -> int:
        """``K``."""
        return self.trained.spec.num_classes

    @property
    def trains_head_alone(self) -> bool:
        """Whether the network is a frozen backbone, of which the last layer learns."""
        network = self._network
        return isinstance(network, Backbone) and not network.body.finetune

    @property
    def _is_wrapped(self) -> bool:
        """Whether the network is a classifier that was trained elsewhere."""
        (given,) = self._given
        recipe = None if given is None else network_recipe(given)
        return isinstance(self._network or given, Wrapped) or (recipe is not None and makes(recipe, Wrapped))

    @property
    def _network(self) -> object:
        """What is trained; None before it is built, and of an ensemble."""
        return getattr(getattr(self.recogniser, "sampler", None), "network", None)

    @property
    def expected_spec(self) -> DataSpec | None:
        """What this model was built for, which a datamodule then does not measure."""
        return None if self.recogniser is None else self.recogniser.spec

    def sampler_options(self, recipe: Recipe | None = None) -> dict[str, Any]:
        """The sampler's part of the recipe, in plain values; ``recipe`` is that of a checkpoint."""
        return {}

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(B, K)`` of one pass over pixels ``(B, C, H, W)`` uint8, in the mode the network is in."""
        return self.trained.sampler.training_logits(self.trained.standardise(images))

    # before the first step ----------------------------------------------------------------------------

    def prepare(self, datamodule: OpenSetDataModule, stage: str) -> None:
        """Plan the training and build the recogniser for a datamodule's known images, once it has them.

        The datamodule asks for this when it is set up: what Lightning sets up afterwards, as a callback that
        averages weights, finds the network.

        Args:
            datamodule: with the images of the stage.
            stage: fit, validate, test or predict.

        Raises:
            UserError: where the images do not serve the model.
        """
        if stage == "fit":
            if self._is_wrapped:
                raise UserError(
                    "a wrapped classifier is not trained: name its network and weights with --model.network "
                    "Backbone to train a last layer, or all of it with --model.finetune true"
                )
            self._plan_on(datamodule)
        if self.recogniser is None:
            self.build(datamodule.spec)
            if stage == "fit":
                self._begin_head(datamodule)
        same_classes(self.trained.spec.classes, datamodule.spec.classes, "the known set")

    def use_backbone(self, datamodule: OpenSetDataModule) -> None:
        """Let a backbone say what images must look like; a frozen one's features are served from then on.

        Args:
            datamodule: before it reads its images.

        Raises:
            UserError: if the backbone or its weights are missing.
        """
        network, tables = self._given[0], datamodule.tables
        if network is None and self.recogniser is None and self._fn() not in (None, "fit"):
            return  # the checkpoint that is to come names it
        self._given = (use_backbone(network, self.recogniser, tables, finetune=self.hparams["finetune"]),)

    def _begin_head(self, datamodule: OpenSetDataModule) -> None:
        """Tell a backbone's last layer of its features: their mean, and how much its weights decay.

        That of a backbone which learns begins as the solution for features of before.
        """
        network = self.trained.sampler.network
        if not isinstance(network, Backbone):
            return
        tunes = network.body.finetune
        tables = (frozen(network.body, datamodule.tables) if tunes else datamodule.tables).load_training()
        features = [table.features for table in tables if table.features is not None]
        if len(features) < len(tables):
            return
        network.direction.begin_at_mean(features[0])
        assert self.plan is not None
        if self.plan.weight_decay is not None and not tunes:
            return
        train, held_out = (network.last_input(part) for part in features)
        labels, held_out_labels = (table.labels for table in tables)
        losses = held_out_losses(
            train, labels, held_out, held_out_labels, datamodule.spec.num_classes, self.class_weights
        )
        decay = min(zip(losses, GRID, strict=True))[1]
        if tunes:
            last = self.trained.sampler.last_layer
            solve(last.weight, last.bias, train, labels, decay, self.class_weights)
            last.zero_grad()
        else:
            self.plan = replace(self.plan, weight_decay=decay)

    def _plan_on(self, datamodule: OpenSetDataModule) -> None:
        train, val = datamodule.tables.load_training()
        if (method := self.calibration_method(datamodule)) != "fixed":
            self.check_images(method, datamodule, len(val))
        if self.is_member and method == CROSS:
            raise UserError(
                f"{CROSS} fits a checkpoint to its {len(val):,} validation images as well, so that none can "
                "choose the ensemble's threshold: give --model.calibration known_quantile"
            )
        plan = self.decide(datamodule.spec, len(train))
        changes = {"augment": plan.augment, "mix": self.hparams["mix"], "pixmix": self.hparams["pixmix"]}
        for name, value in changes.items():
            if value not in (None, "none") and train.features is not None:
                raise UserError(
                    f"model.{name} {value} changes pictures at each step, and a frozen backbone sees each "
                    f"once; leave model.{name} out"
                )
        if self.hparams["loss"] != "cross_entropy" and train.features is not None:
            raise UserError(
                f"model.loss {self.hparams['loss']} is for networks that learn, and the last layer of a "
                "frozen backbone is fitted by cross_entropy; leave model.loss out, or let it learn with "
                "--model.finetune true"
            )
        datamodule.planned_batch_size = plan.batch_size
        if getattr(self._trainer, "epochs_open", False):
            self.trainer.fit_loop.max_epochs = plan.epochs
        self.class_weights = self._balance(train.labels, datamodule.spec.num_classes)

    def _balance(self, labels: Tensor, num_classes: int) -> Tensor | None:
        """Weights ``(K,)`` under which classes weigh the same in the loss, where they are to."""
        return balanced(labels, num_classes) if self.hparams["balance_classes"] else None

    def decide(self, spec: DataSpec, images: int) -> Plan:
        """Decide how to train on so many ``images`` of this data spec, and keep it as ``plan``."""
        (given,) = self._given
        if given is None and self.recogniser is not None:  # that of a checkpoint
            given = self.recogniser.sampler.recipe.get("network")
        self.plan = plan_training(given, self.sampler, spec, images).with_given(self.hparams)
        return self.plan

    def build(
        self, spec: DataSpec, recipe: Recipe | None = None, weights: Mapping[str, Any] | None = None
    ) -> None:
        """Build the recogniser.

        Args:
            spec: of the known images.
            recipe: of a checkpoint, whose network is taken where this model was given none.
            weights: of that checkpoint.

        Raises:
            UserError: where the network does not fit the images, or the checkpoint names code of others and
                is not trusted.
        """
        # one that was named by its path in Python or on the command line was named by the user
        (given,) = self._given
        trusted = self.trust_checkpoint or not isinstance(given, (dict, type(None)))
        own = self._recipe(spec, recipe)
        self.recogniser = checkpoints.build(own, spec, network=given, trust=trusted, weights=weights)
        self.train_metrics = EpochMetrics(spec.num_classes)
        self.val_metrics = EpochMetrics(spec.num_classes)
        self.test_metrics = OpenSetMetrics(spec.num_classes)

    def _recipe(self, spec: DataSpec, recipe: Recipe | None) -> Recipe:
        options = self.hparams
        if recipe is None:
            network = (self.plan or self.decide(spec, _MANY_IMAGES)).network
        else:
            network = recipe.get("network")
        return {
            "sampler": self.sampler,
            "network": network,
            "score": options["score"],
            "detectors": options["detectors"],
            "fixed": options["threshold"] if options["calibration"] == "fixed" else None,
            "mirror": options["mirror"],
            **self.sampler_options(recipe),
        }

    # checkpoints --------------------------------------------------------------------------------------

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
        checkpoint = checkpoints.read(checkpoint_path)
        model = cls(**cls.options_of(checkpoint) | kwargs)
        model.trust_checkpoint = trust
        model.restore(checkpoint)
        return model.to(map_location)

    @classmethod
    def options_of(cls, checkpoint: dict[str, Any]) -> dict[str, Any]:
        """The checkpoint's arguments of this class, its network left to the recipe."""
        bases = [base for base in cls.__mro__ if base.__module__ == __name__]
        known = {name for base in bases for name in inspect.signature(base).parameters} - {"network"}
        kept = checkpoint.get("hyper_parameters") or {}
        return {name: value for name, value in kept.items() if name in known}

    def build_for(self, checkpoint: dict[str, Any]) -> None:
        """Build what a checkpoint holds, with this model's options in place of its own, unless it is built.

        Raises:
            UserError: for a checkpoint of another class, or whose network cannot be built.
        """
        kept = checkpoint["recogniser"]
        recipe, spec = kept["recipe"], DataSpec.from_dict(kept["facts"])
        if recipe.get("sampler") != self.sampler:
            kinds = {kind.sampler: kind.__name__ for kind in CLASSIFIERS.values()}
            saved = kinds.get(str(recipe.get("sampler")), "recogniser of another kind")
            raise UserError(
                f"the checkpoint holds a {saved}, but the model is a {type(self).__name__}; "
                "pass the matching --model or leave --config and --model out; in Python call that "
                "class's load_from_checkpoint, or osr_lightning.load"
            )
        if self.recogniser is not None:
            same_classes(spec.classes, self.recogniser.spec.classes, "the model")
            network = self.recogniser.sampler.recipe.get("network")
            if self._given[0] is None and (network, self.recogniser.spec) != (recipe.get("network"), spec):
                self.recogniser = None  # Lightning has the images set up before it reads a checkpoint
        if self.recogniser is None:
            self.build(spec, recipe, checkpoint["state_dict"])
        self._take_backbones(checkpoint["state_dict"])

    def _take_backbones(self, weights: Mapping[str, Any]) -> None:
        """Take a checkpoint's weights of backbones, which look at the images before the others are loaded.

        What does not fit is left to `take_weights`, which says so.
        """
        for name, module in self.trained.named_modules():
            if isinstance(module, Body):
                own, before = module.state_dict(), f"{checkpoints.PREFIX}{name}."
                found = {key: weights.get(before + key) for key in own}
                fitting = {
                    k: v for k, v in found.items() if isinstance(v, Tensor) and v.shape == own[k].shape
                }
                module.load_state_dict(fitting, strict=False)

    def restore(self, checkpoint: dict[str, Any]) -> None:
        """Build what a checkpoint holds and take its weights; the checkpoint's become the model's, in place.

        Raises:
            UserError: for a checkpoint of another class, of other sizes or classes, or damaged.
        """
        self.build_for(checkpoint)
        self.images_seen = read_digests(checkpoint.get("images"))
        weights = {
            name.removeprefix(checkpoints.PREFIX): value
            for name, value in checkpoint["state_dict"].items()
            if name.startswith(checkpoints.PREFIX)
        }
        examples = from_plain(checkpoint["recogniser"].get("examples"), self.trained.spec)
        self.trained.examples = examples if self.hparams["keep_examples"] else {}
        kept = checkpoint["recogniser"].get("known_images") if self.hparams["keep_features"] else None
        self.trained.known_images = known_images.from_plain(kept, self.trained.spec)
        kept = checkpoint["recogniser"]["recipe"]
        if kept.get("mask_seed") != self.sampler_options().get("mask_seed"):  # others were asked for
            masks = checkpoints.mask_names(self.trained)
            weights = {name: value for name, value in weights.items() if name not in masks}
        checkpoints.take_weights(self.trained, weights)
        if (datamodule := datamodule_of(self._trainer)) is not None:
            # Lightning has the images set up before it reads a checkpoint, whose backbone may be another one
            self.use_backbone(datamodule)
        self._calibrated_in = checkpoint.get("precision")
        given = {**self.sampler_options(), "mirror": self.hparams["mirror"]}
        kept = {"mirror": False, **kept}
        changed = {n: (kept[n], v) for n, v in given.items() if v is not None and kept.get(n, v) != v}
        self._drop_guarantees(changed)
        weights["threshold._extra_state"] = self.trained.threshold.get_extra_state()
        checkpoint["state_dict"] = {checkpoints.PREFIX + name: value for name, value in weights.items()}

    def _drop_guarantees(self, changed: dict[str, tuple[object, object]]) -> None:
        """Expect nothing of thresholds that were chosen on scores of another distribution.

        Args:
            changed: option -> its value at the calibration, and now.
        """
        threshold = self.trained.threshold
        if not changed or not threshold.records:
            return
        told = ", ".join(f"{name} {before}, not {now}" for name, (before, now) in changed.items())
        why = f"the threshold was calibrated with {told}; calibrate again with the new value"
        threshold.records = {n: record.without_guarantee(why) for n, record in threshold.records.items()}
        if threshold.fixed is None and self._fn() in ("test", "predict"):
            say(f"warning: {why}")

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the checkpoint's recogniser, and go on with its training where that is the command.

        Raises:
            UserError: see `restore`; or where the datamodule was told of other images.
        """
        checkpoint |= migrate(checkpoint)
        self.restore(checkpoint)
        if (datamodule := datamodule_of(self._trainer)) is not None:
            datamodule.tables.expect(self.trained.spec)
        if self._fn() == "fit":
            self._resumed = accept(self.trainer, checkpoint)
        else:
            if isinstance(epoch := checkpoint.get("epoch"), int):
                self.tested_epoch = epoch + 1
            # Lightning would go on with loops and callbacks of the training
            checkpoint.pop("loops", None)
            checkpoint.pop("callbacks", None)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the recogniser, and beside it the training, to go on with it to the bit."""
        checkpoint["recogniser"] = checkpoints.content(self.trained)
        # a callback that averages weights puts the state of its own copy here, which is never calibrated
        calibrated = self.trained.threshold.get_extra_state()
        checkpoint["state_dict"][f"{checkpoints.PREFIX}threshold._extra_state"] = calibrated
        if self.images_seen is not None:
            checkpoint["images"] = self.images_seen._asdict()
        checkpoint["experiment"] = getattr(self._trainer, "experiment", "default")
        checkpoint["seed"] = int(os.environ.get("PL_GLOBAL_SEED", 0))
        checkpoint["precision"] = str(self.trainer.precision)
        if self._fn() == "fit":
            checkpoint["training"] = training_state(self.trainer, self._steps)

    # training -----------------------------------------------------------------------------------------

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Adam and the schedule, or `own_optimizer` in their place."""
        if self.own_optimizer is not None:
            return self.own_optimizer.configure(self)
        plan = self.plan or self.decide(self.trained.spec, _MANY_IMAGES)
        decay = plan.weight_decay or 0.0
        decoupled = not self.trains_head_alone
        backbone = [w for part in self.modules() if isinstance(part, Body) for w in part.parameters()]
        return configure(self, plan.learning_rate, decay, plan.schedule, decoupled=decoupled, slow=backbone)

    def on_fit_start(self) -> None:
        """Prepare the process and the network for many steps."""
        datamodule = datamodule_of(self._trainer)
        if datamodule is not None:
            datamodule.tables.refuse_seen(self.images_seen, "fit")
            self.images_seen = datamodule.tables.seen(self.images_seen)
        if self.plan is None:
            self.decide(self.trained.spec, _MANY_IMAGES)
        if self.trains_head_alone:
            train_in_float32(self.trainer)
        if self.hparams["pixmix"] is not None:
            self._pixmix = read_pixmix(self.hparams["pixmix"], self.trained.spec)
        resume(self.trainer, self._resumed, self._steps, self.device)
        self._resumed = {}
        if self.device.type == "cpu":
            keep_freed_memory()
        for detector in self.trained.every_detector.values():  # fitted to the weights of before
            detector.forget()
        self._say_start()
        if self.hparams["compile"]:
            self.trained.sampler.network.compile()  # in place, which leaves the names of its weights

    def _say_start(self) -> None:
        """Say what is trained, how, on what, and where its files go; every process must ask."""
        trainer, plan, sampler = self.trainer, self.plan, self.trained.sampler
        folder = trainer.log_dir if trainer.loggers else None  # broadcast
        count = sum(weight.numel() for weight in sampler.parameters() if weight.requires_grad)
        parts = [f"training: {network_name(sampler)} ({count:,} weights)"]
        if plan is not None:
            decays = plan.weight_decay and not self.trains_head_alone
            own = f"{'AdamW' if decays else 'Adam'} {plan.learning_rate:g}, {plan.schedule}"
            options = self.hparams
            mixed = [options["mix"]] * (options["mix"] != "none") + ["pixmix"] * (self._pixmix is not None)
            losses = [options["loss"]] * (options["loss"] != "cross_entropy")
            parts += [f"augmentation {' + '.join([plan.augment, *mixed])}", *losses]
            parts.append(own if self.own_optimizer is None else self.own_optimizer.told(options["schedule"]))
        if trainer.max_epochs not in (None, -1):
            parts.append(f"{trainer.max_epochs} epoch{'s' * (trainer.max_epochs != 1)}")
        say(", ".join(parts))
        processes = f", {trainer.world_size} processes" if trainer.world_size > 1 else ""
        say(f"device: {device_name(self.device)}{processes}, {precision_name(trainer)}")
        if folder is not None:
            say(f"run folder: {os.path.normpath(folder)}")

    def on_train_start(self) -> None:
        """Refuse to resume beyond the end of a schedule by steps."""
        refuse_to_stretch(self.trainer)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of one pass."""
        assert self.plan is not None
        pixels = batch.image if self._pixmix is None else self._pixmix(batch.image)
        images = augment(self.plan.augment, pixels, self.trained.standardise)
        images, target = MIXES[self.hparams["mix"]](images, batch.label, self.num_classes)
        logits = self.trained.sampler.training_logits(images)
        loss = LOSSES[self.hparams["loss"]](
            logits,
            target,
            self.class_weights,
            self.plan.label_smoothing,
            self.hparams["loss_temperature"],
        )
        # metric updates wait for the end of the epoch: one call instead of one a step
        self._steps.add(loss.detach(), logits.detach().argmax(dim=-1), batch.label)
        self._refuse_nan_loss(batch_idx)
        return loss

    def _refuse_nan_loss(self, batch_idx: int) -> None:
        """Stop at a loss that is no number, before its weights reach a checkpoint.

        Raises:
            Diverged: naming the first such step.
        """
        losses, on_cpu = self._steps.losses, self.device.type == "cpu"
        if on_cpu:
            if math.isfinite(float(losses[-1])):
                return
        elif batch_idx % _EVERY != _EVERY - 1:
            return  # on a GPU a look makes the processor wait
        new = list(losses[-1:] if on_cpu else losses[-_EVERY:])
        finite = torch.stack(new).isfinite()
        if not bool(finite.all()):
            before = len(new) - 1 - int((~finite).nonzero()[0])
            raise Diverged(
                f"the training loss is no finite number at batch {batch_idx - before} of epoch "
                f"{self.current_epoch} (step {self.global_step - before}); the last checkpoint is of before "
                "that: lower model.learning_rate, or set trainer.gradient_clip_val"
            )

    def refuse_nan_weights(self) -> None:
        """Stop where the last step made weights that are no numbers, before a checkpoint keeps them.

        Raises:
            Diverged: naming the step.
        """
        for name, weight in self.named_parameters():
            if not bool(weight.isfinite().all()):
                raise Diverged(
                    f"the weight {name} is no finite number after step {self.global_step}; the last "
                    "checkpoint is of before that: lower model.learning_rate, or set "
                    "trainer.gradient_clip_val"
                )

    def on_train_epoch_end(self) -> None:
        """Log the epoch's loss and accuracy, each image weighing the same."""
        self.refuse_nan_weights()
        self.train_metrics.update(*self._steps.take())
        self.log("train/loss", self.train_metrics.loss, prog_bar=True)
        self.log("train/accuracy", self.train_metrics.accuracy, prog_bar=True)
        if self.trainer.optimizers:  # the epoch's last one: schedules by epoch go on after this
            self.log("train/learning_rate", float(self.trainer.optimizers[0].param_groups[0]["lr"]))

    def on_train_end(self) -> None:
        """Fit what is fitted after the training, where the trainer is Lightning's own."""
        datamodule = datamodule_of(self._trainer)
        if datamodule is None or getattr(self.trainer, "calibrates", False):
            return
        threshold = self.trained.threshold
        # a training that is stopped before its first validation has none
        missing = threshold.score not in threshold.records
        needs_more = self.calibration_method(datamodule) in NEEDS_UNKNOWNS
        if self.completes(datamodule) or (missing and not needs_more):
            self.fit_and_calibrate(datamodule)

    # validation ---------------------------------------------------------------------------------------

    def _restart_sampling(self) -> None:
        if self._fn() == "fit":
            self.refuse_nan_weights()
        self.trained.sampler.restart()

    on_validation_epoch_start = on_test_epoch_start = on_predict_epoch_start = _restart_sampling

    def on_validation_start(self) -> None:
        """Refuse held-out images that the checkpoint was trained on."""
        if self._fn() == "validate":
            self._refuse_seen("validate")

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Per-image results of held-out images."""
        results = self.classify(batch)
        self._val_batches.append(results)
        return results

    def on_validation_epoch_end(self) -> None:
        """Log loss and accuracy of the known images and set the threshold that fits these weights."""
        batches, self._val_batches = self._val_batches, []
        if self.trainer.sanity_checking:
            return
        for results in batches:
            known = results["label"] < self.num_classes
            if known.any():
                loss, label = results["nll"][known], results["label"][known]
                self.val_metrics.update(loss, None, results["predicted_class"][known], label)
        self.log("val/loss", self.val_metrics.loss, prog_bar=True)
        self.log("val/accuracy", self.val_metrics.accuracy, prog_bar=True)
        if self._fn() == "fit":
            # a fit validates on known images alone; `calibrate` brings the unknown
            datamodule = datamodule_of(self._trainer)
            method = self.calibration_method(datamodule)
            if method in NEEDS_UNKNOWNS or method == BY_CLASS:  # which is chosen at the end
                method = "known_quantile"
            self.rows = gather_rows(batches, self.device)
            if method == CROSS:  # by a last layer of its own, once the training is done
                self.trained.threshold.records = {}
            else:
                self.calibrate(self.rows, method=method, calibrated_on="validation images", optimistic=False)
            if datamodule is not None and datamodule.tables.extractor is None:
                self._keep_examples(self.rows, datamodule)
            threshold = self.trained.threshold
            if threshold.score in threshold.records:  # a detector's is fitted after the training
                self.log("val/threshold", threshold.value, sync_dist=True)

    def _keep_examples(self, rows: dict[str, Tensor], datamodule: OpenSetDataModule) -> None:
        if self.hparams["keep_examples"]:
            _, val = datamodule.tables.load_training()
            self.trained.examples = choose_examples(rows, val.images, self.trained.spec)

    def _keep_features(self, datamodule: OpenSetDataModule, weight_decay: float | None) -> None:
        if self.hparams["keep_features"] and self.trains_head_alone and self._learns_of_features(datamodule):
            if weight_decay is None and self.trained.known_images is not None:
                weight_decay = self.trained.known_images.weight_decay  # of the training
            kept = known_images_of(datamodule.tables, weight_decay)
            self.trained.known_images = kept
            say(
                f"kept of {len(kept):,} known images: features and small pictures, {kept.size / 1e6:,.1f} MB "
                "of the checkpoint (model.keep_features)"
            )

    def calibration_method(self, datamodule: OpenSetDataModule | None) -> CalibrationMethod:
        """How the threshold is chosen: what the user says, or what suits the images.

        Raises:
            UserError: where that is for a frozen backbone, and there is none.
        """
        given: CalibrationMethod | None = self.hparams["calibration"]
        features = datamodule is not None and self._learns_of_features(datamodule)
        if given == CROSS and not features:
            raise UserError(
                f"model.calibration {CROSS} fits the last layer of a frozen backbone again and again, and "
                "calibrates on validation images: use known_quantile"
            )
        if given is not None or datamodule is None or not features:
            return given or "known_quantile"
        records = {} if self.recogniser is None else self.recogniser.threshold.records
        if any(record.method == CROSS for record in records.values()):  # which has seen all images
            return CROSS
        _, val = datamodule.tables.load_training()
        return CROSS if are_few(self.hparams["alpha"], self._calibrated, len(val)) else "known_quantile"

    @property
    def _calibrated(self) -> tuple[str, ...]:
        return (self.hparams["score"], *self.hparams["detectors"])

    def _learns_of_features(self, datamodule: OpenSetDataModule) -> bool:
        """Whether the last layer of a frozen backbone learns, and validation images calibrate."""
        tables = datamodule.tables
        head = self.trains_head_alone or (self.recogniser is None and self.sampler != "ensemble")
        if not head or tables.extractor is None or tables.options["calibrate_on"] != "validation":
            return False
        return all(table.features is not None for table in tables.load_training())

    def _known_features(self, datamodule: OpenSetDataModule) -> KnownFeatures:
        """What a frozen backbone says of training images and then of validation images."""
        parts = datamodule.tables.load_training()
        features = [part.features for part in parts if part.features is not None]
        labels = torch.cat([part.labels for part in parts])
        folds = deal_folds([key for part in parts for key in pixel_digests(part.images)], labels)
        return KnownFeatures(*(part.to(self.device) for part in (torch.cat(features), labels, folds)))

    def check_images(self, method: CalibrationMethod, datamodule: OpenSetDataModule, known: int) -> None:
        """Stop where there are too few known images for alpha.

        Args:
            method: how the threshold is chosen.
            datamodule: the images.
            known: how many known ones calibrate, where that is not by folds.

        Raises:
            UserError: with the number needed.
        """
        alpha = self.hparams["alpha"]
        if method == CROSS:
            images = sum(map(len, datamodule.tables.load_training()))
            check_alpha(alpha, images, share="the number of known images")
        else:
            shared = datamodule.hparams["calibrate_on"] == "validation"
            share = datamodule.tables.share_of_calibration
            check_images(alpha, self._calibrated, known, shared=shared, share=share)
            if method == BY_CLASS and not self.hparams["few_share"] and shared:
                val, classes = datamodule.tables.load_training()[1], datamodule.spec.classes
                check_classes(alpha, self._calibrated, val, classes)

    def check_alpha(self, datamodule: OpenSetDataModule) -> None:
        """Stop where the images that are to calibrate are too few for alpha; see `check_images`."""
        method = self.calibration_method(datamodule)
        if method in QUANTILES:
            images = datamodule.tables.load_calibration()
            self.check_images(method, datamodule, int((images.labels < self.num_classes).sum()))

    def completes(self, datamodule: OpenSetDataModule) -> bool:
        """Whether something is fitted, or chosen of known images, once a training is done."""
        method = self.calibration_method(datamodule)
        return method in (CROSS, BY_CLASS) or (bool(self.trained.detectors) and method not in NEEDS_UNKNOWNS)

    def fit_and_calibrate(
        self,
        datamodule: OpenSetDataModule,
        rows_of: Callable[[Iterable[Batch]], dict[str, Tensor]] | None = None,
    ) -> None:
        """Fit the detectors to the training images and choose every threshold.

        Args:
            datamodule: the images.
            rows_of: batches -> the rows of all of them, see `classify`; a pass of every process if not
                given.

        Raises:
            UserError: where the images cannot serve the method.
        """
        tables, method = datamodule.tables, self.calibration_method(datamodule)
        if method == CROSS:
            self._cross_calibrate(datamodule)
            return
        alpha = self.hparams["alpha"] if method == "known_quantile" else None
        self.trained.threshold.forget_shifts()
        held_out, taken = references(tables, self.trained, alpha)
        fit_detectors(self.trained, datamodule.fitting_dataloader(), held_out)
        rows = (rows_of or self._rows_of)(datamodule.calibration_dataloader())
        images = tables.calibrated_on(unknowns=method in NEEDS_UNKNOWNS)
        optimistic = tables.optimistic
        self.calibrate(rows, method=method, calibrated_on=images, optimistic=optimistic, taken=taken)
        # pictures that are on disk are read once, after the training; of calibration images, which begin
        # with the validation's, where no others choose the threshold
        validation = datamodule.hparams["calibrate_on"] == "validation"
        if tables.extractor is not None and validation and not self.trained.examples:
            self._keep_examples(rows, datamodule)
        decay = self.hparams["weight_decay"] if self.plan is None else self.plan.weight_decay
        self._keep_features(datamodule, decay)

    def _cross_calibrate(self, datamodule: OpenSetDataModule) -> None:
        """Fit last layer and detectors to training and validation images; scores out of fold choose.

        Every process does it all, which takes seconds, and finds the same.
        """
        tables, known = datamodule.tables, self._known_features(datamodule)
        train, val = tables.load_training()
        say(
            f"{CROSS}: fits without one of {known.num_folds} folds choose the threshold, and a fit to all "
            f"{len(known.labels):,} known images decides"
        )
        self.trained.sampler.restart()
        weights = self._balance(known.labels, self.num_classes)
        decay = self.hparams["weight_decay"]
        if decay is None:
            decay = choose_decay(self.trained, known, known.parts, weights)
        rows = fit_all(self.trained, known, decay, weights)
        rows = {name: value.cpu() for name, value in rows.items()}
        images = f"training and validation images out of fold: {tables.options['known']}"
        self.trained.threshold.records, self.search_trials = choose_thresholds(
            rows,
            self.trained.score_names,
            self.trained.spec.classes,
            self.hparams,
            method=CROSS,
            calibrated_on=images,
            optimistic=tables.optimistic,
        )
        if self.images_seen is not None:
            self.images_seen = self.images_seen.trained_on_too(packed_digests(val.images))
        if not self.trained.examples:
            own = {name: value[len(train) :] for name, value in rows.items()}
            self._keep_examples({**own, "row": own["row"] - len(train)}, datamodule)
        self._keep_features(datamodule, decay)
        if (kept := self.trained.known_images) is not None:
            scores = rows[f"score/{self.hparams['score']}"]
            self.trained.known_images = replace(kept, predicted=rows["predicted_class"], scores=scores)

    @torch.inference_mode(False)
    def leave_classes_out(self, datamodule: OpenSetDataModule) -> dict[str, Any] | None:
        """What would become of a class that was never met; see `osr_lightning.training.left_out`.

        None without a frozen backbone, or a share of known images that may be rejected.
        """
        record = self.trained.threshold.record
        alpha = record.target if record.method in QUANTILES else record.rejected_known
        if not self._learns_of_features(datamodule) or not isinstance(alpha, float) or not 0 < alpha < 1:
            return None
        known = self._known_features(datamodule)
        weights = self._balance(known.labels, self.num_classes)
        return leave_classes_out(self.trained, known, alpha, self.hparams["weight_decay"], weights)

    def _rows_of(self, loader: Iterable[Batch]) -> dict[str, Tensor]:
        self.trained.sampler.restart()
        with evaluating(self), torch.no_grad():
            batches = [self.classify(Batch(*(part.to(self.device) for part in batch))) for batch in loader]
        return {name: torch.cat([batch[name].cpu() for batch in batches]) for name in batches[0]}

    def calibrate(self, rows: dict[str, Tensor], **about: Any) -> None:  # noqa: ANN401
        """Choose the threshold of every score; all processes end with rank 0's choice.

        Args:
            rows: of `classify`, gathered over batches and processes.
            about: what else `osr_lightning.training.calibration.choose_thresholds` is told of the images.

        Raises:
            UserError: where the images cannot serve the method.
        """
        chosen = None
        if self.trainer.is_global_zero:
            names, options = self.trained.score_names, self.hparams
            chosen = choose_thresholds(rows, names, self.trained.spec.classes, options, **about)
        chosen = self.trainer.strategy.broadcast(chosen)
        assert chosen is not None
        self.trained.threshold.records, self.search_trials = chosen

    # test and prediction ------------------------------------------------------------------------------

    def on_test_start(self) -> None:
        """Refuse test images that trained or calibrated the checkpoint."""
        self._refuse_seen("test")
        if self._calibrated_in not in (None, now := str(self.trainer.precision)):
            self._drop_guarantees({"trainer.precision": (self._calibrated_in, now)})

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Per-image results, for the metrics here and for the evaluation callback."""
        results = self.classify(batch)
        rejected, score = self.rejected(results), results[f"score/{self.trained.threshold.score}"]
        self.test_metrics.update(results["predicted_class"], rejected, score, results["label"])
        return results

    def on_test_epoch_end(self) -> None:
        """Log the test metrics that the images at hand define."""
        self.log_dict(self.test_metrics.compute())
        self.test_metrics.reset()

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Per-image results; once there is a threshold, with the decision in ``0 .. K``."""
        results = self.classify(batch)
        threshold = self.trained.threshold
        if threshold.fixed is not None or threshold.score in threshold.records:
            unknown = self.rejected(results)
            results["prediction"] = results["predicted_class"].where(~unknown, self.num_classes)
        return results

    def classify(self, batch: Batch) -> dict[str, Tensor]:
        """Per-image results of ``B`` images, on the module's device.

        Returns:
            What `Recogniser.describe` gives but ``log_probability``; ``row``, ``source`` and ``label``
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
        """``(B,)`` whether each image of `classify` is called unknown.

        Raises:
            UserError: if the score is to be fitted and is not, or has no threshold.
        """
        threshold = self.trained.threshold
        if f"score/{threshold.score}" not in results:
            raise not_fitted(threshold.score)
        rejected: Tensor = threshold(results[f"score/{threshold.score}"])
        return rejected

    # the trainer's part -------------------------------------------------------------------------------

    def _fn(self) -> str | None:
        """What the trainer is doing: fit, validate, test or predict; None without a trainer."""
        return None if self._trainer is None or self.trainer.state.fn is None else self.trainer.state.fn.value

    def _refuse_seen(self, stage: str) -> None:
        datamodule = datamodule_of(self._trainer)
        if datamodule is not None:
            datamodule.tables.refuse_seen(self.images_seen, stage)


class BaselineClassifier(OpenSetClassifier):
    """A deterministic network; one pass is its only sample."""

    sampler = "single"


class MCDropoutClassifier(OpenSetClassifier):
    """Monte-Carlo dropout (Gal & Ghahramani, ICML 2016): dropout stays on when predicting.

    Args:
        network: see `OpenSetClassifier`.
        num_samples: stochastic passes per image, S.
        dropout: probability of dropping a feature, in (0, 1); the network's own, or 0.3, if not given. It
            holds before the last layer of a network that has no dropout of its own, or only that one.
        masks: whether images share dropout masks; shared: one mask per sample for all images, so that
            results do not depend on batches, order or number of processes; independent: one per image and
            sample.
        mask_seed: seed of dropout masks when predicting.
        kwargs: see `OpenSetClassifier`.
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
        super().__init__(network, **kwargs)

    def sampler_options(self, recipe: Recipe | None = None) -> dict[str, Any]:
        """Samples, masks and their seed."""
        return {name: self.hparams[name] for name in ("num_samples", "dropout", "masks", "mask_seed")}


class EnsembleClassifier(OpenSetClassifier):
    """Several trained networks, joined by ``osr ensemble``; it is asked and calibrated, but not trained."""

    sampler = "ensemble"

    def sampler_options(self, recipe: Recipe | None = None) -> dict[str, Any]:
        """The members, which the checkpoint alone knows."""
        return {} if recipe is None else {name: recipe.get(name) for name in ("members", "shared_body")}

    def prepare(self, datamodule: OpenSetDataModule, stage: str) -> None:
        """Check that the images are those of the members; a checkpoint that is to come brings these.

        Raises:
            UserError: where they are not, or a training begins.
        """
        if self.recogniser is not None or stage == "fit":
            super().prepare(datamodule, stage)

    def decide(self, spec: DataSpec, images: int) -> Plan:
        """There is nothing to decide.

        Raises:
            UserError: always.
        """
        raise UserError(NOT_TRAINED)


CLASSIFIERS: dict[str, type[OpenSetClassifier]] = {
    kind.__name__: kind for kind in (MCDropoutClassifier, BaselineClassifier, EnsembleClassifier)
}


def network_name(sampler: LogitSampler) -> str:
    """The class of the network, of one that was split its own; of an ensemble its members'."""
    if isinstance(sampler, Ensemble):
        return ", ".join(dict.fromkeys(network_name(cast(LogitSampler, one)) for one in sampler.members))
    network = getattr(sampler, "network", sampler)
    own = network.trunk if type(network) is SplitNetwork else network
    return str(getattr(own, "label", type(own).__name__))
