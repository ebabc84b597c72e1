"""The callback that turns a test run into the files of its run folder."""

from __future__ import annotations

import json
import os
import platform
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from numpy.typing import NDArray
from torch import Tensor

from osr_lightning.atomic_write import write_text
from osr_lightning.data.counts import counts
from osr_lightning.data.datamodule import OpenSetDataModule
from osr_lightning.data.image_table import ImageTables
from osr_lightning.data.leaks import digest
from osr_lightning.errors import check_range
from osr_lightning.evaluation.acceptance import IntArray
from osr_lightning.evaluation.prediction_table import PredictionTable
from osr_lightning.evaluation.report.effects import effects
from osr_lightning.models.factory import origin
from osr_lightning.recogniser.recogniser import Recogniser
from osr_lightning.scoring.calibration import QUANTILES, misgivings
from osr_lightning.scoring.p_values import p_values
from osr_lightning.training.distributed import gather_rows
from osr_lightning.training.loggers import run_folder
from osr_lightning.training.module import OpenSetClassifier, network_name


class Evaluator(Callback):
    """Collects the per-image results of a test and writes numbers, figures and report.

    After a test, ``outcome`` holds on rank 0 the content of ``results.json`` and the run folder, None without
    a logger.

    Args:
        figures: draw figures; without, the report has numbers and tables alone.
        tsne_points: images in the t-SNE figure; drawn by seed, at most half of them unknown; 0 leaves the
            figure out.
        projector_points: images in TensorBoard's Projector; drawn in the same way; 0 leaves it out.
        bootstrap: resamples behind the 95% intervals.
        left_out: what an unmet class would be called; an estimate by leaving out each known class once,
            of a frozen backbone, whose last layer is fitted again without it.
        seed: seed of these draws and of t-SNE.
    """

    def __init__(
        self,
        figures: bool = True,
        tsne_points: int = 1000,
        projector_points: int = 2000,
        bootstrap: int = 1000,
        left_out: bool = True,
        seed: int = 0,
    ) -> None:
        points = {"tsne_points": tsne_points, "projector_points": projector_points}
        require = partial(check_range, "evaluation.", {**points, "bootstrap": bootstrap, "seed": seed})
        for name in points:
            require(name, lambda value: value >= 0, "not be below 0")
        require("bootstrap", lambda value: value >= 1, "be at least 1")
        # numpy and scikit-learn take no other, and are asked after hours of training
        require("seed", lambda value: 0 <= value < 2**32, f"be from 0 to {2**32 - 1}")
        self.figures = figures
        self.tsne_points, self.projector_points = tsne_points, projector_points
        self.bootstrap, self.seed = bootstrap, seed
        self.left_out = left_out
        self._batches: list[dict[str, Tensor]] = []
        self._begin = 0.0
        self.outcome: tuple[dict[str, Any], Path | None] | None = None

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._begin = time.perf_counter()

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,  # noqa: ANN401
        *args: Any,  # noqa: ANN401
    ) -> None:
        """Keep a batch's results."""
        self._batches.append(outputs)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gather the table on every process; rank 0 writes the files."""
        # drawing and scikit-learn take seconds to load, and only a test needs them
        from osr_lightning.evaluation.embedding import tsne_embedding
        from osr_lightning.evaluation.figures import Material, each_figure, save_figures
        from osr_lightning.evaluation.mistakes import save_pictures
        from osr_lightning.evaluation.model_card import write_card
        from osr_lightning.evaluation.report.write import write_report
        from osr_lightning.evaluation.result_loggers import log_projector, log_test
        from osr_lightning.evaluation.results import achieved, evaluate

        batches, self._batches = self._batches, []
        rows = gather_rows(batches, pl_module.device)
        test_s = time.perf_counter() - self._begin
        folder = run_folder(trainer)
        if not trainer.is_global_zero:
            return
        assert isinstance(pl_module, OpenSetClassifier)
        recogniser = pl_module.trained
        datamodule: OpenSetDataModule = trainer.datamodule  # type: ignore[attr-defined]
        tables = datamodule.tables
        images = tables.load_test().images
        table = prediction_table(rows, recogniser, tables)
        timing = {
            **getattr(trainer, "timing", {}),
            "test_s": test_s,
            "images_per_s": len(table.label) / test_s,
        }
        if self.figures and folder is not None:  # beside the measures and the other figures, on another core
            # two threads that load parts of it at once meet in its circle of imports, and one fails
            import sklearn.manifold
            import sklearn.metrics  # noqa: F401

            pool = ThreadPoolExecutor(1)
            embedding = pool.submit(tsne_embedding, table.logits, self.seed, self.tsne_points, table.source)
            pool.shutdown(wait=False)
        results = run_record(trainer, type(pl_module).__name__, recogniser, tables, timing)
        results |= evaluate(table, self.bootstrap, self.seed)
        threshold = recogniser.threshold.record
        if threshold.method in QUANTILES and threshold.guaranteed:
            assert isinstance(threshold.target, float)
            results["achieved"] = achieved(table, threshold.target, threshold.count_known)
        if self.left_out and (left_out := pl_module.leave_classes_out(datamodule)) is not None:
            results["left_out"] = left_out
        known, *unknown = effects(table)
        sets = {effect.name: effect.rejected for effect in unknown}
        results["warnings"] = misgivings(known.rejected, sets, "test images")
        if threshold.method != "fixed" and not threshold.guaranteed:
            results["warnings"].append(threshold.guarantee.removeprefix("none: "))
        self.outcome = results, folder
        if folder is None:
            return
        table.save(folder)
        write_text(folder / "results.json", json.dumps(results, indent=2, allow_nan=False) + "\n")
        for logger in trainer.loggers:
            logger.save()  # metrics.csv holds the last epoch before its curves are drawn
            if isinstance(logger, TensorBoardLogger):
                log_projector(logger, table, images, self.projector_points, self.seed, trainer.global_step)
        files: list[Path] = []
        if self.figures:

            def pictures(chosen: IntArray) -> NDArray[np.uint8]:
                return images[torch.from_numpy(chosen)].numpy()

            save_pictures(table, pictures, folder)
            material = Material(
                table,
                images=pictures,
                metrics=folder / "metrics.csv",
                trials=pl_module.search_trials,
                embedding=embedding.result,
                epoch=pl_module.tested_epoch,
            )
            files = save_figures(each_figure(material), folder / "figures")
        write_report(folder)
        write_card(folder)
        beside = [folder.absolute() / name for name in ("results.json", "report.html")]
        for logger in trainer.loggers:
            log_test(logger, results, files, how_trained(trainer, pl_module), trainer.global_step, beside)


def how_trained(trainer: Trainer, model: OpenSetClassifier) -> dict[str, Any]:
    """The model's settings, with what was chosen where none was given if the training was here."""
    if model.plan is None:
        return dict(model.hparams)
    return {**model.hparams, **asdict(model.plan), "epochs": trainer.max_epochs}


def _plain(path: str) -> str:
    """Without a leading ``./``; an address as it is."""
    return path if "://" in path else str(Path(path))


def prediction_table(rows: dict[str, Tensor], recogniser: Recogniser, tables: ImageTables) -> PredictionTable:
    """The table of a test run from its gathered rows, which name their scores ``score/NAME``."""
    return PredictionTable(
        class_names=recogniser.spec.classes,
        source_names=tables.source_names,
        groups=tables.groups,
        score_name=recogniser.threshold.score,
        threshold=recogniser.threshold.value,
        source=rows["source"].numpy(),
        label=rows["label"].numpy(),
        predicted_class=rows["predicted_class"].numpy(),
        confidence=rows["confidence"].numpy(),
        nll=rows["nll"].numpy(),
        scores={k.removeprefix("score/"): v.numpy() for k, v in rows.items() if k.startswith("score/")},
        logits=rows["logits"].numpy(),
        files=tuple(tables.load_test().files[row] for row in rows["row"].tolist())
        if tables.load_test().files
        else (),
        p_value=p_values(recogniser.threshold.record, rows[f"score/{recogniser.threshold.score}"].numpy()),
    )


def run_record(
    trainer: Trainer,
    model: str,
    recogniser: Recogniser,
    tables: ImageTables,
    timing: dict[str, float | None],
) -> dict[str, Any]:
    """What was run: the part of ``results.json`` that is no measurement of the images."""
    threshold = recogniser.threshold.record.summary(recogniser.spec.classes)
    # the audit of this very test may have found what the calibration could not know
    threshold["optimistic"] |= tables.optimistic
    spec, sampler = recogniser.spec.to_dict(), recogniser.sampler
    members = [origin(member) for member in sampler.recipe.get("members", [])]
    return {
        "schema_version": 2,
        "experiment": getattr(trainer, "experiment", "default"),
        "checkpoint": None if trainer.ckpt_path is None else _plain(str(trainer.ckpt_path)),
        "seed": int(os.environ.get("PL_GLOBAL_SEED", 0)),
        "model": {
            "class": model,
            "network": network_name(sampler),
            "parameters": sum(parameter.numel() for parameter in sampler.parameters()),
            "num_samples": sampler.num_samples,
            "masks": sampler.recipe.get("masks"),
            **({"members": members} if members else {}),
            **({"mirror": True} if sampler.mirror else {}),
        },
        "classes": spec.pop("classes"),
        "data": {**counts(tables), **spec},
        "score": {"name": recogniser.threshold.score},
        "threshold": threshold,
        # tells compare whether two runs saw the same images
        "test_images": digest(tables.load_test().images),
        "timing": timing,
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("osr_lightning", "torch", "lightning", "torchmetrics")},
        },
    }
