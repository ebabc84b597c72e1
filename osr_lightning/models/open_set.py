"""What both LightningModules share: training, per-image results, calibration."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from osr_lightning.data.batch import Batch
from osr_lightning.data.datamodule import OpenSetDataModule
from osr_lightning.distributed import gather_rows
from osr_lightning.errors import UserError
from osr_lightning.hardware import TrainingBFloat16, keep_freed_memory
from osr_lightning.models import checkpoints
from osr_lightning.models.features import features_and_logits, last_linear
from osr_lightning.models.metrics import ScoreAUROC, decision_metrics, rejection_metrics
from osr_lightning.scoring.calibration import (
    NEEDS_UNKNOWNS,
    Calibration,
    CalibrationMethod,
    Costs,
    calibrate,
    fixed_calibration,
)
from osr_lightning.scoring.detectors import DETECTORS, Detector, DetectorName
from osr_lightning.scoring.scores import ScoreName, summarise

Schedule = Literal["step", "one_cycle"]


class OpenSetClassifier(LightningModule):
    """What both classifiers share: training, the per-image results, the threshold.

    A subclass says what its samples are (:meth:`sample_logits`).

    Args:
        network: images ``(B, C, H, W)`` to logits ``(B, K)``.
        num_classes: number of known classes, K.
        score: what tells unknown images from known ones; higher means more unknown.
        detectors: scores to fit to the training images as well (each the score may also be):
            mahalanobis, relative_mahalanobis, knn, vim, openmax. run and calibrate fit them, to features
            of passes without dropout.
        calibration: how the threshold is chosen. known_quantile: so that at most a share alpha of known
            images is rejected; max_accuracy and min_cost: best on validation images with
            data.calibration_unknown; optuna: the notebook's search; fixed: the given threshold.
        alpha: largest share of known images that known_quantile may reject, in (0, 1).
        threshold: an image is called unknown when its score is greater than this. The final value for
            fixed, a start for the other methods; in units of the score.
        costs: of a wrong label, a false alarm and a missed unknown, for min_cost.
        learning_rate: of Adam; the peak of one_cycle.
        schedule: step halves the learning rate every 10 epochs, as the study did; one_cycle (Smith & Topin
            2019) raises it over the first 30% of the steps and then lowers it to almost 0.
        compile: whether torch.compile speeds up the training's passes; it pays on GPUs and large networks.
    """

    threshold: Tensor

    def __init__(
        self,
        network: nn.Module,
        num_classes: int = 10,
        score: ScoreName | DetectorName = "generalized_entropy",
        detectors: list[DetectorName] | None = None,
        calibration: CalibrationMethod = "known_quantile",
        alpha: float = 0.05,
        threshold: float = 0.5,
        costs: Costs | None = None,
        learning_rate: float = 0.01,
        schedule: Schedule = "step",
        compile: bool = False,
    ) -> None:
        super().__init__()
        if not learning_rate > 0:
            raise UserError(f"model.learning_rate must be above 0, got {learning_rate}")
        if num_classes < 2:
            raise UserError(f"model.num_classes must be at least 2, got {num_classes}")
        if not 0 < alpha < 1:
            raise UserError(f"model.alpha must lie between 0 and 1, got {alpha}")
        if score == "msp" and not 0 <= threshold <= 1:
            raise UserError(f"model.threshold must lie in [0, 1] for the score msp, got {threshold}")
        if calibration == "optuna" and score != "msp":
            raise UserError(
                f"model.calibration optuna searches a threshold of the score msp only, not of {score}"
            )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*is an instance of `nn.Module`.*")
            self.save_hyperparameters()
        checkpoints.make_plain(self.hparams)
        self.network = network
        self.num_classes = num_classes
        self.score_name = score
        fitted = [name for name in DETECTORS if name == score or name in (detectors or [])]
        self.detectors = nn.ModuleDict({name: DETECTORS[name]() for name in fitted})
        self.method = calibration
        self.alpha = alpha
        self.fixed = threshold
        self.costs = costs or Costs()
        self.learning_rate = learning_rate
        self.schedule = schedule
        self.compile_network = compile
        # float64, like the scores it is compared with
        self.register_buffer("threshold", torch.tensor(threshold, dtype=torch.float64))
        self.calibrations: dict[str, Calibration] = {score: fixed_calibration(threshold)}
        self.search_trials: list[tuple[float, float]] = []
        self._train_steps: list[tuple[Tensor, Tensor, Tensor]] = []
        self._val_batches: list[dict[str, Tensor]] = []
        self.train_loss, self.train_accuracy = MeanMetric(), MulticlassAccuracy(num_classes, average="micro")
        self.val_loss, self.val_accuracy = MeanMetric(), MulticlassAccuracy(num_classes, average="micro")
        self.test_decisions = decision_metrics(num_classes)
        self.test_rejections = rejection_metrics()
        self.test_auroc = ScoreAUROC()

    def setup(self, stage: str) -> None:
        """Check that the network's classes are the data's.

        Raises:
            UserError: where they are not.
        """
        datamodule: Any = getattr(self.trainer, "datamodule", None)
        if stage == "predict" or not hasattr(datamodule, "class_names"):
            return
        if (found := len(datamodule.class_names)) != self.num_classes:
            raise UserError(
                f"the model has num_classes={self.num_classes}, but the known set {datamodule.known} has "
                f"{found} classes; set model.num_classes to {found}"
            )
        shape = (1, datamodule.channels, datamodule.image_size, datamodule.image_size)
        try:
            with torch.no_grad():
                copy.deepcopy(self.network).eval()(torch.zeros(shape, device=self.device))
        except RuntimeError as error:
            raise UserError(
                f"the network {type(self.network).__name__} does not take images of {shape[1]} channels and "
                f"{shape[2]} pixels; give model.network its in_channels and image_size, or change "
                "data.channels and data.image_size"
            ) from error

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> OpenSetClassifier:
        """Move the threshold but keep its precision, which half of it would not compare with scores."""
        threshold = self.threshold
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.threshold = threshold.to(self.threshold.device)
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(B, K)`` of one deterministic pass over ``(B, C, H, W)`` standardised images."""
        logits: Tensor = self.network(images)
        return logits

    def sample_logits(self, images: Tensor) -> Tensor:
        """Logits ``(S, B, K)`` of ``S`` samples for ``(B, C, H, W)`` standardised images."""
        raise NotImplementedError

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Adam and the schedule; the command line's --optimizer and --lr_scheduler take their place."""
        optimizer = torch.optim.Adam(self.parameters(), lr=self.learning_rate, fused=True)
        if self.schedule == "step":
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, step_size=10, gamma=0.5)]
        if math.isinf(self.trainer.estimated_stepping_batches):
            raise UserError("model.schedule one_cycle must know its end: set trainer.max_epochs or max_steps")
        one_cycle = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, self.learning_rate, total_steps=int(self.trainer.estimated_stepping_batches)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": one_cycle, "interval": "step"}}

    def classify(self, batch: Batch) -> dict[str, Tensor]:
        """Per-image results of ``B`` images, on the module's device.

        Returns:
            ``row``, ``source``, ``label`` and ``predicted_class`` ``(B,)`` int64; ``confidence`` (mean
            probability of the predicted class) and ``nll`` (of the label; NaN where that is no known
            class) ``(B,)`` float64; ``logits`` ``(B, K)`` float32, mean over samples; and for every
            score ``score/NAME`` ``(B,)`` float64.
        """
        samples = self.sample_logits(batch.image)
        if samples.shape[-1] != self.num_classes:
            raise UserError(
                f"the network gives {samples.shape[-1]} logits, but model.num_classes is {self.num_classes}; "
                "make them equal"
            )
        summary = summarise(samples)
        log_probability = summary.pop("log_probability")
        confidence, predicted = log_probability.max(dim=-1)
        known = (batch.label >= 0) & (batch.label < self.num_classes)
        nll = -log_probability.gather(1, batch.label.where(known, 0).unsqueeze(1)).squeeze(1)
        if self.detectors:
            features = features_and_logits(self.network, batch.image)
            for name, detector in self.detectors.items():
                if detector.fitted:  # not before the end of training
                    summary[f"score/{name}"] = detector(*features)
        return {
            "row": batch.row,
            "source": batch.source,
            "label": batch.label,
            "predicted_class": predicted,
            "confidence": confidence.exp(),
            "nll": nll.where(known, torch.nan),
            **summary,
        }

    def rejected(self, results: dict[str, Tensor]) -> Tensor:
        """``(B,)`` whether each image of :meth:`classify` is called unknown.

        Raises:
            UserError: if the score is to be fitted and is not.
        """
        if f"score/{self.score_name}" not in results:
            raise UserError(f"the score {self.score_name} is not fitted yet; run calibrate first")
        return results[f"score/{self.score_name}"] > self.threshold

    def on_predict_start(self) -> None:
        """While calibrating, first fit the detectors to the training images."""
        datamodule: Any = getattr(self.trainer, "datamodule", None)
        if self.detectors and getattr(datamodule, "calibrating", False):
            self._fit_detectors(datamodule)

    def _fit_detectors(self, datamodule: OpenSetDataModule) -> None:
        # every process fits to all images: quicker than to send features around, and the same everywhere
        datamodule.setup("fit")
        table, size = datamodule.train_set, datamodule.eval_batch_size
        assert table is not None
        features, logits, labels = [], [], []
        for start in range(0, len(table), size):
            batch = table.__getitems__(list(range(start, min(start + size, len(table)))))
            batch = Batch(*(tensor.to(self.device) for tensor in batch))
            found = features_and_logits(self.network, datamodule.on_after_batch_transfer(batch, 0).image)
            features.append(found[0])
            logits.append(found[1])
            labels.append(batch.label)
        images = torch.cat(features), torch.cat(logits), torch.cat(labels)
        for detector in self.detectors.values():
            assert isinstance(detector, Detector)
            detector.fit(*images, last_linear(self.network))

    # training ---------------------------------------------------------------------------------------

    def on_train_start(self) -> None:
        """Refuse to resume beyond the end of a one-cycle schedule.

        Raises:
            UserError: where the checkpoint's schedule is shorter than the training asked for.
        """
        for config in self.trainer.lr_scheduler_configs:
            planned = getattr(config.scheduler, "total_steps", math.inf)
            if planned < self.trainer.estimated_stepping_batches:
                raise UserError(
                    f"the checkpoint's one_cycle schedule ends at step {planned}, before trainer.max_epochs; "
                    "resume with the epochs it was planned for, or train anew"
                )

    def on_fit_start(self) -> None:
        """Prepare the process and the network for many steps."""
        if self.device.type == "cpu":
            keep_freed_memory()
        if isinstance(self.trainer.precision_plugin, TrainingBFloat16):
            rank_zero_info("training steps are bf16-mixed; trainer.precision 32-true makes them float32")
        if self.compile_network:
            self.network.compile()  # in place, which leaves the names of its weights as they are

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Cross-entropy of one pass."""
        logits = self(batch.image)
        loss = F.cross_entropy(logits, batch.label)
        # metric updates wait for the end of the epoch: one call instead of one a step
        self._train_steps.append((loss.detach(), logits.detach().argmax(dim=-1), batch.label))
        return loss

    def on_train_epoch_end(self) -> None:
        """Log the epoch's loss and accuracy, each image weighing the same."""
        losses, predictions, labels = zip(*self._train_steps, strict=True)
        self._train_steps.clear()
        sizes = torch.tensor([len(label) for label in labels], device=self.device)
        self.train_loss(torch.stack(losses), weight=sizes)
        self.train_accuracy(torch.cat(predictions), torch.cat(labels))
        self.log("train/loss", self.train_loss, prog_bar=True)
        self.log("train/accuracy", self.train_accuracy, prog_bar=True)

    # validation and calibration -----------------------------------------------------------------------

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Per-image results of held-out images."""
        self._val_batches.append(self.classify(batch))

    def on_validation_epoch_end(self) -> None:
        """Log loss and accuracy of the known images and set the threshold that fits these weights."""
        batches, self._val_batches = self._val_batches, []
        if self.trainer.sanity_checking:
            return
        for results in batches:
            known = results["label"] < self.num_classes
            if known.any():
                self.val_loss.update(results["nll"][known])
                self.val_accuracy.update(results["predicted_class"][known], results["label"][known])
        self.log("val/loss", self.val_loss, prog_bar=True)
        self.log("val/accuracy", self.val_accuracy, prog_bar=True)
        if self.trainer.state.fn == "fit":
            self.calibrate(gather_rows(batches, self.device), "validation images", optimistic=False)
            self.log("val/threshold", self.threshold.float(), sync_dist=True)

    def calibrate(self, results: dict[str, Tensor], calibrated_on: str, *, optimistic: bool) -> None:
        """Choose the threshold of every score; all processes end with rank 0's choice.

        Args:
            results: of :meth:`classify`, gathered over batches and processes.
            calibrated_on: said of the images in the record.
            optimistic: whether test images are among them.

        Raises:
            UserError: where the images cannot serve the method.
        """
        chosen: tuple[dict[str, Calibration], list[tuple[float, float]]] | None = None
        method = self.method
        if method in NEEDS_UNKNOWNS and self.trainer.state.fn == "fit":
            method = "known_quantile"  # a fit validates on known images alone; `calibrate` brings the unknown
        if self.method == "fixed":
            chosen = {self.score_name: fixed_calibration(self.fixed)}, []
        elif self.trainer.is_global_zero:
            chosen = calibrate(
                {n.removeprefix("score/"): v.numpy() for n, v in results.items() if n.startswith("score/")},
                (results["label"] < self.num_classes).numpy(),
                (results["predicted_class"] == results["label"]).numpy(),
                method=method,
                alpha=self.alpha,
                costs=self.costs,
                calibrated_on=calibrated_on,
                optimistic=optimistic,
            )
        chosen = self.trainer.strategy.broadcast(chosen)
        assert chosen is not None
        self.calibrations, self.search_trials = chosen
        if self.score_name not in self.calibrations:  # a detector, which is fitted after the training
            self.calibrations[self.score_name] = fixed_calibration(self.fixed)
        self.threshold.fill_(self.calibrations[self.score_name].value)

    # test and prediction ------------------------------------------------------------------------------

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Per-image results, for the metrics here and for the evaluation callback."""
        results = self.classify(batch)
        rejected = self.rejected(results)
        unknown = results["label"] == self.num_classes
        decision = results["predicted_class"].where(~rejected, self.num_classes)
        self.test_decisions.update(decision, results["label"])
        self.test_rejections.update(rejected.int(), unknown.int())
        self.test_auroc.update(results[f"score/{self.score_name}"], unknown)
        return results

    def on_test_epoch_end(self) -> None:
        """Log the test metrics that the images at hand define."""
        auroc = self.test_auroc.compute()
        metrics = {**self.test_decisions.compute(), "test/auroc": auroc}
        if not auroc.isnan():  # both known and unknown images are present
            metrics |= self.test_rejections.compute()
        self.log_dict({name: value.float() for name, value in metrics.items() if not value.isnan()})
        for metric in (self.test_decisions, self.test_rejections, self.test_auroc):
            metric.reset()

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Per-image results with the decision: a class in ``0 .. K-1``, or ``K`` for unknown."""
        results = self.classify(batch)
        results["prediction"] = results["predicted_class"].where(~self.rejected(results), self.num_classes)
        return results

    # checkpoints --------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the class, the run and every score's calibration beside the weights."""
        checkpoints.write(self, checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the threshold of the score in use, unless a fixed one was asked for.

        Raises:
            UserError: for a checkpoint of another class, of other sizes, or without this score.
        """
        checkpoints.read(self, checkpoint)
