"""What would end a command late, refused before it begins, in one sentence."""

import math
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    BaseFinetuning,
    BasePredictionWriter,
    EarlyStopping,
    ModelCheckpoint,
)
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

from osr_lightning import BaselineClassifier, MCDropoutClassifier, OpenSetDataModule, OpenSetTrainer
from osr_lightning.__main__ import main
from osr_lightning.errors import UserError
from osr_lightning.training.optimizers import OwnOptimizer
from osr_lightning.training.refusals import check_monitors, first_validation, last_batch

QUIET = {"logger": False, "accelerator": "cpu", "enable_progress_bar": False}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"barebones": True}, "trainer.barebones leaves out"),
        ({"check_val_every_n_epoch": 0}, "check_val_every_n_epoch must be at least 1, got 0"),
        ({"val_check_interval": 0}, "val_check_interval must be above 0"),
        ({"val_check_interval": 1.5}, r"trainer.val_check_interval 1.5: .*\[0.0, 1.0\]"),
        ({"accumulate_grad_batches": 0}, "accumulate_grad_batches must be at least 1, got 0"),
        ({"gradient_clip_val": -1}, "gradient_clip_val must be at least 0, got -1"),
        ({"gradient_clip_algorithm": "foo"}, "trainer.gradient_clip_algorithm foo: .*'value', 'norm'"),
        ({"num_sanity_val_steps": -5}, "num_sanity_val_steps must be at least 0 .*, got -5"),
        ({"max_time": "00:00:00:00"}, "max_time leaves no time"),
        ({"max_time": "foo"}, "trainer.max_time foo: .*DD:HH:MM:SS"),
        ({"strategy": "foo"}, "trainer.strategy foo: "),
        ({"strategy": "ddp_spawn"}, "ddp_spawn brings no checkpoints back .*: use ddp"),
        ({"strategy": "ddp_fork"}, "ddp_fork brings no checkpoints back .*: use ddp"),
        ({"devices": 0}, "trainer.devices 0: "),
        ({"devices": "foo"}, "trainer.devices foo: "),
        ({"num_nodes": 0}, "trainer.num_nodes 0: "),
        ({"accelerator": "foo"}, "trainer.accelerator foo: .*; auto takes what there is"),
        ({"profiler": "foo"}, "trainer.profiler foo: .*simple"),
        ({"callbacks": "EarlyStopping"}, r"trainer.callbacks: 'EarlyStopping' .* as \[EarlyStopping\("),
        ({"callbacks": [EarlyStopping]}, "trainer.callbacks: <class .*EarlyStopping'> is none; give"),
        ({"callbacks": 3}, "trainer.callbacks: 3 is none; give"),
        ({"limit_val_batches": 2.5}, "trainer.limit_val_batches 2.5: "),
        (
            {"precision": "transformer-engine"},
            "transformer-engine needs a package .*pip install 'transformer",
        ),
    ],
)
def test_a_trainer_that_cannot_serve_is_refused_when_it_is_made(options, said):
    with pytest.raises(UserError, match=said) as caught:
        OpenSetTrainer(**QUIET | options)
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:You defined a `validation_step`")  # Lightning's, before the sentence
@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda trainer, model, data: trainer.fit(model), "give fit an OpenSetDataModule"),
        (lambda trainer, model, data: trainer.fit(model, "folder:MINE"), "fit takes .*, got 'folder:MINE'"),
        (
            lambda trainer, model, data: trainer.fit(model, datamodule="folder:MINE"),
            r"OpenSetDataModule\(known='folder:MINE'\), got 'folder:MINE'",
        ),
        (lambda trainer, model, data: trainer.fit(model, OwnImages()), "give fit an OpenSetDataModule"),
        (
            lambda trainer, model, data: Trainer(**QUIET, max_epochs=1).fit(model, OwnImages()),
            "give fit an OpenSetDataModule",
        ),
        (
            lambda trainer, model, data: trainer.predict(model, "folder:MINE"),
            "predict takes images as an Open",
        ),
        (lambda trainer, model, data: trainer.run(None, data), r"as MCDropoutClassifier\(\), got None"),
        (
            lambda trainer, model, data: trainer.calibrate(type(model), data),
            "calibrate takes a classifier, .*'>",
        ),
        (lambda trainer, model, data: trainer.run(model, "folder:MINE"), "run takes .*, got 'folder:MINE'"),
        (
            lambda trainer, model, data: trainer.calibrate(model, None, "a.ckpt"),
            "calibrate takes .*, got None",
        ),
        (
            lambda trainer, model, data: trainer.calibrate(model, data),
            r"name its checkpoint, as calibrate\(model, datamodule, 'best.ckpt'\), or fit it first",
        ),
    ],
)
def test_images_or_a_checkpoint_that_are_missing_are_asked_for(ask, said, tiny_root):
    data = OpenSetDataModule(root=str(tiny_root))
    with pytest.raises(UserError, match=said):
        ask(OpenSetTrainer(**QUIET, max_epochs=1), MCDropoutClassifier(), data)


class OwnImages(LightningDataModule):
    """Batches of a user's own."""

    def train_dataloader(self):
        return DataLoader(TensorDataset(torch.zeros(4, 1, 28, 28), torch.zeros(4)))


def test_the_way_to_more_validation_images_is_one_that_there_is(tmp_path):
    for part, count in (("train", 20), ("val", 6), ("test", 5)):
        for name in ("a", "b"):
            (tmp_path / part / name).mkdir(parents=True)
            for index in range(count):
                pixels = np.random.default_rng([index, len(part), ord(name)]).integers(
                    0, 256, (8, 8), np.uint8
                )
                Image.fromarray(pixels).save(tmp_path / part / name / f"{index}.png")

    def told(**options):
        data = OpenSetDataModule(known=f"folder:{tmp_path}", **options)
        with pytest.raises(UserError) as caught:
            OpenSetTrainer(**QUIET, max_epochs=1).fit(BaselineClassifier(score="energy", alpha=0.01), data)
        return str(caught.value).partition("raise ")[2]

    assert told() == "model.alpha or the number of images in its validation folder"
    assert told(calibrate_on="test") == "model.alpha or the number of test images"
    for one in (tmp_path / "val").rglob("*.png"):
        one.unlink()
    shutil.rmtree(tmp_path / "val")
    assert told() == "model.alpha or data.val_fraction"


class Finetuning(BackboneFinetuning):
    pass


@pytest.mark.parametrize(
    ("callback", "said"),
    [
        (Finetuning(), "Finetuning freezes the part .* called backbone, and BaselineClassifier has none"),
        (BaseFinetuning(), "BaseFinetuning does nothing itself"),
        (BasePredictionWriter(), "BasePredictionWriter does nothing itself"),
    ],
)
def test_callbacks_that_end_in_a_traceback_are_refused(callback, said):
    trainer = OpenSetTrainer(**QUIET, max_epochs=1, callbacks=[callback])
    with pytest.raises(UserError, match=said):
        check_monitors(trainer, BaselineClassifier())


def test_a_model_with_a_backbone_may_thaw_it():
    class Own(BaselineClassifier):
        backbone = torch.nn.Linear(2, 2)

    check_monitors(OpenSetTrainer(**QUIET, max_epochs=1, callbacks=[BackboneFinetuning()]), Own())


def test_an_argument_that_there_is_not_is_python_s_own_error():
    with pytest.raises(TypeError, match="no_such_argument"):
        OpenSetTrainer(**QUIET, no_such_argument=1)


# what is watched ------------------------------------------------------------------------------------------


def test_what_a_callback_may_watch_is_what_is_logged(tiny_root, tmp_path):
    images = OpenSetDataModule(root=str(tiny_root), batch_size=160)
    trainer = OpenSetTrainer(**QUIET, max_epochs=1, default_root_dir=str(tmp_path))
    model = BaselineClassifier(network="BaselineCNN", score="energy")
    trainer.fit(model, images)
    for name in trainer.callback_metrics:
        check_monitors(OpenSetTrainer(**QUIET, callbacks=[EarlyStopping(name)]), model)
    with pytest.raises(UserError, match="there are") as caught:
        check_monitors(OpenSetTrainer(**QUIET, callbacks=[EarlyStopping("x")]), model)
    assert {*str(caught.value).rpartition("there are ")[2].split(", ")} == {*trainer.callback_metrics}


@pytest.mark.parametrize(
    ("callback", "said"),
    [
        (EarlyStopping("val_loss"), "EarlyStopping watches 'val_loss', .* did you mean val/loss"),
        (
            ModelCheckpoint(monitor="val_acc"),
            "ModelCheckpoint watches 'val_acc', .* did you mean val/accuracy",
        ),
        # that of a fitted score is chosen after the training
        (EarlyStopping("val/threshold"), "EarlyStopping watches 'val/threshold', which is not logged"),
    ],
)
def test_a_callback_that_watches_what_is_not_logged_is_refused(callback, said):
    with pytest.raises(UserError, match=said):
        check_monitors(OpenSetTrainer(**QUIET, callbacks=[callback]), MCDropoutClassifier())


def test_a_schedule_that_watches_what_is_not_logged_is_refused():
    model = BaselineClassifier()
    kind = "lightning.pytorch.cli.ReduceLROnPlateau"
    for monitor in ("val/loss", "val_loss"):
        scheduler = {"class_path": kind, "init_args": {"monitor": monitor}}
        model.own_optimizer = OwnOptimizer({}, scheduler, lambda *_: None)
        if monitor == "val/loss":
            check_monitors(OpenSetTrainer(**QUIET), model)
    with pytest.raises(UserError, match="ReduceLROnPlateau watches 'val_loss'"):
        check_monitors(OpenSetTrainer(**QUIET), model)


class Logging(Callback):
    """One of the user's, which may log anything."""


class Own(BaselineClassifier):
    """One of the user's, which may log anything."""


def test_where_the_user_may_log_more_nothing_is_refused():
    watching = EarlyStopping("val/own")
    check_monitors(OpenSetTrainer(**QUIET, callbacks=[watching, Logging()]), BaselineClassifier())
    check_monitors(OpenSetTrainer(**QUIET, callbacks=[watching]), Own())
    check_monitors(OpenSetTrainer(**QUIET, callbacks=[ModelCheckpoint(monitor="step")]), BaselineClassifier())


# how long a training is -----------------------------------------------------------------------------------


def loop(batches, epochs=1, steps=-1, together=1, every=1, within=None):
    return SimpleNamespace(
        num_training_batches=batches,
        max_epochs=epochs,
        max_steps=steps,
        accumulate_grad_batches=together,
        check_val_every_n_epoch=every,
        val_check_batch=batches if within is None else within,
    )


@pytest.mark.parametrize(
    ("training", "first", "last"),
    [
        (loop(10, 3), 10, 30),
        (loop(10, 3, every=2), 20, 30),
        (loop(10, 3, every=2, within=5), 15, 30),
        (loop(10, 3, every=None, within=25), 25, 30),
        (loop(10, 3, steps=7), 10, 7),
        (loop(10, -1, steps=7, together=2), 10, 14),  # of 2, 2, 2, 2, 2 and then of 2, 2
        (loop(10, -1, steps=5, together=4), 10, 18),  # of 4, 4, 2 and then of 4, 4
        (loop(10, -1), 10, math.inf),
        (loop(10, 2, within=math.inf), 10, 20),
    ],
)
def test_the_first_validation_and_the_last_batch_are_counted_over_epochs(training, first, last):
    assert first_validation(training) == first
    assert last_batch(training) == last


# commands -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ["--trainer.check_val_every_n_epoch=2"],
            "the first would follow batch 4, and the training ends with",
        ),
        (["--trainer.max_steps=1"], "the first would follow batch 2, and the training ends with batch 1"),
        (["--trainer.val_check_interval=5"], "val_check_interval 5 is more than the 2 batches"),
        (["--trainer.overfit_batches=0.5"], "trainer.overfit_batches 0.5 of 1 validation batches is none"),
        (["--trainer.limit_val_batches=0.001"], "trainer.limit_val_batches 0.001 of 1 validation batches"),
        (["--trainer.limit_test_batches=0"], "limit_test_batches 0 leaves nothing to test"),
        (["--trainer.fast_dev_run=true"], "leave trainer.logger, fast_dev_run"),
        (
            ["--trainer.logger=WandbLogger"],
            "WandbLogger needs a package that is not installed: pip install 'wan",
        ),
        (
            ["--trainer.logger=CSVLogger"],
            "trainer.logger CSVLogger lacks its save_dir: add --trainer.logger.save_dir VALUE",
        ),
        (
            ["--trainer.callbacks=EarlyStopping"],
            "EarlyStopping lacks its monitor: add --trainer.callbacks.mon",
        ),
        (
            ["--optimizer=Adam", "--lr_scheduler=StepLR"],
            "StepLR lacks its step_size: add --lr_scheduler.step",
        ),
        (["--trainer.callbacks=BatchSizeFinder"], "set data.batch_size"),
        (["--trainer.callbacks=Timer"], "trainer.max_time"),
        (
            ["--trainer.callbacks=EarlyStopping", "--trainer.callbacks.monitor=val_loss"],
            "did you mean val/loss?",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_run_says_before_a_training_what_would_end_it(options, said, small, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert main(["run", *small, f"--trainer.default_root_dir={tmp_path}", *options]) == 2
    out, err = capsys.readouterr()
    assert said in err
    assert err.startswith("osr: error: ")
    assert err.count("\n") == 1
    assert "training:" not in out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--data.unknown={others: folder:/no/such}", "There is no folder /no/such: name another"),
        ("--data.unknown={far: {others: npz:/no/such.npz}}", "There is no file /no/such.npz: put it there"),
        ("--data.unknown={others: list:/no/such.txt}", "Cannot read /no/such.txt"),
        ("--data.unknown={others: foldr:photos}", "There is no source 'foldr:photos'"),
        ("--data.calibration_unknown={others: folder:/no/such}", "There is no folder /no/such: name another"),
    ],
)
@pytest.mark.parametrize("command", ["run", "test"])
def test_unknown_sets_that_are_missing_are_told_before_known_images_are_read(
    command, option, said, small, small_run, tmp_path, capsys, monkeypatch
):
    loaded: list[str] = []
    monkeypatch.setattr(
        "osr_lightning.data.image_table.load_source", lambda name, *_, **__: loaded.append(name)
    )
    place = [] if command == "run" else [f"--ckpt_path={small_run}/checkpoints/best.ckpt"]
    assert main([command, *small, *place, f"--trainer.default_root_dir={tmp_path}", option]) == 2
    assert said in capsys.readouterr().err
    assert loaded == []


def test_a_training_is_the_same_whether_it_was_looked_at_or_not(tiny_root, tmp_path, monkeypatch):
    weights = []
    for looks in (True, False):
        if not looks:
            monkeypatch.setattr("osr_lightning.training.refusals.FitChecks.on_fit_start", lambda *_: None)
        torch.manual_seed(0)
        trainer = OpenSetTrainer(**QUIET, max_epochs=1, default_root_dir=str(tmp_path))
        model = BaselineClassifier(network="BaselineCNN")
        trainer.fit(model, OpenSetDataModule(root=str(tiny_root), batch_size=50))
        weights.append(torch.cat([weight.flatten() for weight in model.parameters()]))
    assert torch.equal(*weights)


# streams --------------------------------------------------------------------------------------------------


def shell(command: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHON": sys.executable}
    return subprocess.run(
        ["/bin/sh", "-c", command], check=False, capture_output=True, text=True, env=environment, timeout=60
    )


def test_a_closed_standard_output_is_told_before_anything_is_done():
    found = shell('"$PYTHON" -m osr_lightning compare /nowhere >&-')
    assert found.returncode == 2
    assert found.stderr == (
        "osr: error: the standard output is closed: send it somewhere, as in > /dev/null\n"
    )


def test_a_closed_standard_error_takes_nothing_away(small_run, tmp_path):
    from PIL import Image

    Image.new("L", (28, 28)).save(tmp_path / "a.png")
    checkpoint, rows = small_run / "checkpoints" / "best.ckpt", tmp_path / "rows.csv"
    asked = f'"$PYTHON" -m osr_lightning predict --ckpt_path {checkpoint} {tmp_path}/a.png --output {rows}'
    found = shell(f"{asked} 2>&-")
    assert found.returncode == 0
    assert len(rows.read_text().splitlines()) == 2
