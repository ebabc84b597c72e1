"""What both LightningModules share: how a recogniser is trained, validated and tested."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from osr_lightning.data.augment import AUGMENTATIONS
from osr_lightning.data.batch import Batch
from osr_lightning.data.datamodule import OpenSetDataModule
from osr_lightning.facts import same_classes
from osr_lightning.models.factory import NetworkLike
from osr_lightning.scoring.calibration import CalibrationMethod
from osr_lightning.scoring.detectors import Detector
from osr_lightning.scoring.sweep import Costs
from osr_lightning.training.calibrating import choose
from osr_lightning.training.console import say_start
from osr_lightning.training.distributed import gather_rows
from osr_lightning.training.fitting import check_images
from osr_lightning.training.hardware import keep_freed_memory
from osr_lightning.training.module import RecogniserModule
from osr_lightning.training.optimizers import OwnOptimizer, Schedule, configure, refuse_to_stretch
from osr_lightning.training.options import Options
from osr_lightning.training.resuming import EpochSteps, accept, resume, training_state
from osr_lightning.training.stopping import refuse_nan, refuse_nan_weights


class OpenSetClassifier(RecogniserModule):
    """Trains a recogniser.

    Args:
        network: what makes the network; what suits the known images if not given. A name (BaselineCNN,
            MCDropoutCNN, ConvNet, or one of torchvision's classifiers, as resnet18), a class path, a class or
            a function: it gets the number of classes, and in_channels and image_size where it has such
            parameters. Of a module, a copy is taken.
        score: what tells unknown images from known ones; higher means more unknown.
        detectors: scores to fit to the training images as well (each the score may also be): fisher,
            mahalanobis, relative_mahalanobis, knn, vim, openmax. run and calibrate fit them, to features
            of passes without dropout; fit does so once it is done.
        calibration: how the threshold is chosen. known_quantile: so that at most a share alpha of known
            images is rejected; max_accuracy and min_cost: best on validation images with
            data.calibration_unknown; optuna: the notebook's search; fixed: the given threshold.
        alpha: largest share of known images that known_quantile may reject, in (0, 1).
        threshold: an image is called unknown when its score is greater than this; for calibration fixed, in
            units of the score.
        costs: of a wrong label, a false alarm and a missed unknown, for min_cost.
        unknown_prior: share of unknown images to expect, in (0, 1), for max_accuracy and min_cost.
        learning_rate: of the optimizer; the peak of one_cycle. What suits the network if not given.
        weight_decay: of AdamW; 0 for Adam. What suits the network if not given.
        label_smoothing: share of the label that is spread over all classes; what suits if not given.
        schedule: step halves the learning rate every 10 epochs, as the study did; one_cycle (Smith & Topin
            2019) raises it over the first 30% of the steps and then lowers it to almost 0. What suits if not
            given.
        augment: how training images are varied: none, digits (small turns and shifts), photos (mirrored and
            shifted), photos_strong (brightness, contrast and a missing square too). What suits the known
            images if not given.
        balance_classes: whether classes weigh the same in the loss, however many images they have.
        compile: whether torch.compile speeds up the training's passes; it pays on GPUs and large networks.
    """

    def __init__(
        self,
        network: NetworkLike | None = None,
        score: str = "fisher",
        detectors: list[str] | None = None,
        calibration: CalibrationMethod = "known_quantile",
        alpha: float = 0.05,
        threshold: float = 0.5,
        costs: Costs | None = None,
        unknown_prior: float = 0.5,
        learning_rate: float | None = None,
        weight_decay: float | None = None,
        label_smoothing: float | None = None,
        schedule: Schedule | None = None,
        augment: str | None = None,
        balance_classes: bool = False,
        compile: bool = False,
    ) -> None:
        options = Options(
            score=score,
            detectors=list(detectors or []),
            calibration=calibration,
            alpha=alpha,
            threshold=threshold,
            unknown_prior=unknown_prior,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            label_smoothing=label_smoothing,
            schedule=schedule,
            augment=augment,
            balance_classes=balance_classes,
            compile=compile,
            costs=Costs(**costs) if isinstance(costs, dict) else costs or Costs(),
        )
        super().__init__(network, options)
        self.class_weights: Tensor | None
        self.register_buffer("class_weights", None, persistent=False)
        self.own_optimizer: OwnOptimizer | None = None  # of the command line
        self.search_trials: list[tuple[float, float]] = []
        self._steps = EpochSteps()
        self._resumed: dict[str, Any] = {}
        self._val_batches: list[dict[str, Tensor]] = []

    def setup(self, stage: str) -> None:
        """Build the recogniser for the datamodule's known images, unless a checkpoint is to bring it.

        Raises:
            UserError: where the images do not serve the model.
        """
        datamodule = getattr(self.trainer, "datamodule", None)
        if not isinstance(datamodule, OpenSetDataModule):
            return
        facts, tables = datamodule.facts, datamodule.tables
        if stage in ("fit", "validate", "test"):
            tables.refuse_seen(self.images_seen, stage)
        if stage == "fit":
            train, val = tables.load_training()
            self.images_seen = tables.seen(self.images_seen)
            if self.options.calibration != "fixed":
                check_images(self, len(val), shared=datamodule.tables.selection.calibrate_on == "validation")
            self.decide(facts, len(train))
            if self.options.balance_classes:
                counts = torch.bincount(train.labels, minlength=facts.num_classes).clamp(min=1)
                self.class_weights = len(train) / facts.num_classes / counts
        if self.recogniser is None:
            self.build(facts)
        same_classes(self.trained.facts.classes, facts.classes, "the known set")

    def _restart_sampling(self) -> None:
        if self._trainer is not None and self.trainer.state.fn == "fit":
            refuse_nan_weights(self)
        self.trained.sampler.restart()

    on_validation_epoch_start = on_test_epoch_start = on_predict_epoch_start = _restart_sampling

    # training -----------------------------------------------------------------------------------------

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Adam and the schedule, or `own_optimizer` in their place."""
        if self.own_optimizer is not None:
            return self.own_optimizer.configure(self)
        plan = self.plan
        return configure(self, plan.learning_rate, plan.weight_decay, plan.schedule)

    def on_train_start(self) -> None:
        """Refuse to resume beyond the end of a one-cycle schedule."""
        refuse_to_stretch(self.trainer)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the training beside the recogniser, to go on with it to the bit."""
        super().on_save_checkpoint(checkpoint)
        if self.trainer.state.fn == "fit":
            checkpoint["training"] = training_state(self, self._steps)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Build what the checkpoint holds, and go on with its training where that is the command."""
        super().on_load_checkpoint(checkpoint)
        if self._trainer is not None and self.trainer.state.fn == "fit":
            self._resumed = accept(self.trainer, checkpoint)
        else:  # Lightning would go on with loops and callbacks of the training
            checkpoint.pop("loops", None)
            checkpoint.pop("callbacks", None)

    def on_fit_start(self) -> None:
        """Prepare the process and the network for many steps."""
        resume(self, self._resumed, self._steps)
        self._resumed = {}
        if self.device.type == "cpu":
            keep_freed_memory()
        for detector in self.trained.detectors.values():  # fitted to the weights of before
            assert isinstance(detector, Detector)
            detector.forget()
        say_start(self)
        if self.options.compile:
            self.trained.sampler.network.compile()  # in place, which leaves the names of its weights

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Cross-entropy of one pass."""
        images = AUGMENTATIONS[self.plan.augment](self.trained.standardise(batch.image))
        logits = self.trained.sampler.training_logits(images)
        loss = F.cross_entropy(
            logits, batch.label, self.class_weights, label_smoothing=self.plan.label_smoothing
        )
        # metric updates wait for the end of the epoch: one call instead of one a step
        self._steps.add(loss.detach(), logits.detach().argmax(dim=-1), batch.label)
        refuse_nan(self, self._steps.losses, batch_idx)
        return loss

    def on_train_epoch_end(self) -> None:
        """Log the epoch's loss and accuracy, each image weighing the same."""
        refuse_nan_weights(self)
        self.train_metrics.update(*self._steps.take())
        self.log("train/loss", self.train_metrics.loss, prog_bar=True)
        self.log("train/accuracy", self.train_metrics.accuracy, prog_bar=True)

    # validation, test and prediction ------------------------------------------------------------------

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
        if self.trainer.state.fn == "fit":
            rows = gather_rows(batches, self.device)
            choose(self, rows, "validation images", optimistic=False)
            threshold = self.trained.threshold
            if threshold.score in threshold.records:  # a detector's is fitted after the training
                self.log("val/threshold", threshold.value, sync_dist=True)

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Per-image results, for the metrics here and for the evaluation callback."""
        results = self.classify(batch)
        rejected, score = self.rejected(results), results[f"score/{self.options.score}"]
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
