"""Which epoch best.ckpt is of."""

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from osr_lightning import BaselineClassifier, OpenSetDataModule, OpenSetTrainer
from osr_lightning.training.callbacks import checkpointing
from osr_lightning.training.callbacks.checkpointing import FEW, BestCheckpoint

OPTIONS = {"filename": "best", "monitor": "val/accuracy", "mode": "max", "enable_version_counter": False}
EPOCHS = [(0.5, 1.0), (0.8, 0.6), (0.8, 0.5), (0.8, 0.55), (0.8, 0.4), (0.7, 0.1)]  # accuracy and loss


def chosen(callback: BestCheckpoint, epochs: list[tuple[float, float]]) -> list[bool]:
    """Whether each epoch was the best until then."""
    found = []
    for accuracy, loss in epochs:
        metrics = {"val/loss": torch.tensor(loss), "val/accuracy": torch.tensor(accuracy)}
        trainer = SimpleNamespace(
            callback_metrics=metrics, strategy=SimpleNamespace(reduce_boolean_decision=bool)
        )
        found.append(callback.check_monitor_top_k(trainer, metrics["val/accuracy"]))
        if found[-1]:
            callback.best_model_score = metrics["val/accuracy"]
            callback.best_k_models = {"best.ckpt": metrics["val/accuracy"]}
            callback.kth_best_model_path = "best.ckpt"
    return found


@pytest.mark.parametrize(
    ("few", "expected"),
    [(False, [True, True, False, False, False, False]), (True, [True, True, True, False, True, False])],
)
def test_of_few_validation_images_equal_accuracies_are_told_apart_by_loss(few, expected, monkeypatch):
    monkeypatch.setattr(checkpointing, "_has_few", lambda trainer: few)
    assert chosen(BestCheckpoint(**OPTIONS), EPOCHS) == expected


def test_a_training_that_goes_on_knows_the_loss_of_its_best_epoch(monkeypatch):
    monkeypatch.setattr(checkpointing, "_has_few", lambda trainer: True)
    first, then = BestCheckpoint(**OPTIONS), BestCheckpoint(**OPTIONS)
    chosen(first, EPOCHS[:3])
    then.load_state_dict(first.state_dict())
    assert chosen(then, EPOCHS[3:]) == [False, True, False]
    # an earlier version's checkpoint has no such loss, and its best epoch stays the first of equal ones
    state = {name: value for name, value in first.state_dict().items() if name != "best_loss"}
    before = BestCheckpoint(**OPTIONS)
    before.load_state_dict(state)
    assert chosen(before, EPOCHS[3:]) == [False, False, False]


def test_a_checkpoint_of_before_is_gone_on_with():
    assert BestCheckpoint(**OPTIONS).state_key == ModelCheckpoint(**OPTIONS).state_key


def test_so_many_images_are_few(tiny_root):
    images = OpenSetDataModule(root=str(tiny_root))
    assert checkpointing._has_few(SimpleNamespace(datamodule=images))  # 80
    table = SimpleNamespace(load_training=lambda: (None, range(FEW)))
    images.tables = table
    assert not checkpointing._has_few(SimpleNamespace(datamodule=images))
    assert not checkpointing._has_few(SimpleNamespace())


@pytest.mark.filterwarnings("ignore")
def test_the_best_epoch_of_a_training_is_that_of_the_lowest_loss_among_equals(tiny_root, tmp_path):
    images = OpenSetDataModule(root=str(tiny_root), batch_size=160)
    options = {"accelerator": "cpu", "enable_progress_bar": False, "default_root_dir": str(tmp_path)}
    trainer = OpenSetTrainer(max_epochs=6, **options)
    trainer.fit(BaselineClassifier(network="BaselineCNN", score="energy", learning_rate=1e-7), images)
    rows = [row for row in trainer.loggers[1].experiment.metrics if "val/accuracy" in row]
    equal = [row for row in rows if row["val/accuracy"] == max(r["val/accuracy"] for r in rows)]
    assert len(equal) == 6
    best = torch.load(trainer.checkpoint_callback.best_model_path, weights_only=True)
    assert best["epoch"] == min(equal, key=lambda row: row["val/loss"])["epoch"] > 0
