"""A training that is killed at any step and resumed equals one that was not, to the bit."""

import functools
import itertools
import os
import re
import signal
import time

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from PIL import Image
from quick import TRAINER

from osr_lightning import BaselineClassifier, MCDropoutClassifier, OpenSetDataModule, OpenSetTrainer
from osr_lightning.data.resumable_loader import random_states
from osr_lightning.errors import Failure, UserError
from osr_lightning.models.networks import MCDropoutCNN
from osr_lightning.training.callbacks.evaluator import Evaluator

EPOCHS, STEPS = 2, 4  # 400 training images, 20% of them for validation, in batches of 80
QUIET = {**TRAINER, "max_epochs": EPOCHS}


class Killed(Exception):
    pass


class Kill(Callback):
    """Ends the process in the middle of a step, as far as its files can tell."""

    def __init__(self, after):
        self.left = after

    def on_before_optimizer_step(self, *args):
        self.left -= 1
        if self.left < 0:
            raise Killed


def fit(root, folder, kind, *, ckpt_path=None, callbacks=(), seed=0, batch_size=80, model=None, **options):
    torch.manual_seed(seed)
    data = OpenSetDataModule(root=str(root), unknown={}, batch_size=batch_size, seed=0)
    model = model or {}
    if kind is MCDropoutClassifier:
        model = {"num_samples": 2, **model}
    network = functools.partial(MCDropoutCNN, channels=(2, 3), hidden=5)
    model = {"network": network, "augment": "digits", **model}
    module = kind(**model)
    options = {**QUIET, "precision": "auto", "checkpoint_minutes": 1e-9, **options}
    trainer = OpenSetTrainer(
        default_root_dir=str(folder), version=0, callbacks=[Evaluator(figures=False), *callbacks], **options
    )
    trainer.fit(module, datamodule=data, ckpt_path=ckpt_path)
    return folder / "lightning_logs" / "default" / "version_0"


def content(run):
    saved = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    best = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    state = {"last": saved["state_dict"], "best": best["state_dict"], "optimizer": saved["optimizer_states"]}
    return state, (run / "metrics.csv").read_text()


def same(first, other):
    if isinstance(first, torch.Tensor):
        return torch.equal(first, other)
    if isinstance(first, dict):
        return first.keys() == other.keys() and all(same(first[key], other[key]) for key in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(other) and all(map(same, first, other))
    return first == other


@pytest.fixture(scope="module", params=[(MCDropoutClassifier, "auto"), (BaselineClassifier, "32-true")])
def whole(request, tiny_root, tmp_path_factory):
    kind, precision = request.param
    run = fit(tiny_root, tmp_path_factory.mktemp("whole"), kind, precision=precision)
    return kind, precision, content(run)


@pytest.mark.parametrize("after", range(1, EPOCHS * STEPS))
def test_killed_at_any_step_and_resumed_equals_uninterrupted(whole, after, tiny_root, tmp_path):
    kind, precision, expected = whole
    with pytest.raises(Killed):
        fit(tiny_root, tmp_path, kind, callbacks=[Kill(after)], precision=precision)
    last = tmp_path / "lightning_logs" / "default" / "version_0" / "checkpoints" / "last.ckpt"
    run = fit(tiny_root, tmp_path, kind, ckpt_path=str(last), seed=after, precision=precision)
    state, metrics = content(run)
    assert same(state, expected[0])
    assert metrics == expected[1]


def test_a_clock_that_is_set_back_again_and_again_costs_no_checkpoint(
    whole, tiny_root, tmp_path, monkeypatch
):
    kind, precision, expected = whole
    clock = itertools.count(2**31, -3600)
    monkeypatch.setattr(time, "time", lambda: float(next(clock)))
    with pytest.raises(Killed):  # within the first epoch, whose end would write one anyway
        fit(tiny_root, tmp_path, kind, callbacks=[Kill(1)], precision=precision)
    last = tmp_path / "lightning_logs" / "default" / "version_0" / "checkpoints" / "last.ckpt"
    run = fit(tiny_root, tmp_path, kind, ckpt_path=str(last), precision=precision)
    assert same(content(run)[0], expected[0])


def test_checkpoints_of_epoch_ends_resume_as_exactly(tiny_root, tmp_path):
    options = {"checkpoint_minutes": None, "model": {"schedule": "one_cycle"}}
    expected = content(fit(tiny_root, tmp_path / "whole", MCDropoutClassifier, **options))
    with pytest.raises(Killed):
        fit(tiny_root, tmp_path, MCDropoutClassifier, callbacks=[Kill(STEPS + 2)], **options)
    last = tmp_path / "lightning_logs" / "default" / "version_0" / "checkpoints" / "last.ckpt"
    state, metrics = content(
        fit(tiny_root, tmp_path, MCDropoutClassifier, ckpt_path=str(last), seed=5, **options)
    )
    assert same(state, expected[0])
    assert metrics == expected[1]


@pytest.mark.parametrize(
    "recipe",
    [
        {"schedule": "cosine", "mix": "cutmix", "loss": "logit_norm"},
        {"augment": "rand_augment", "pixmix": "pictures", "mix": "mixup"},
    ],
    ids=["cutmix", "pixmix"],
)
def test_what_a_recipe_draws_resumes_as_exactly(recipe, tiny_root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    rng = np.random.default_rng(0)
    for number in range(3):
        picture = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(picture).save(tmp_path / "pictures" / f"{number}.png")
    options = {"checkpoint_minutes": 1e-9, "model": recipe}
    expected = content(fit(tiny_root, tmp_path / "whole", BaselineClassifier, **options))
    with pytest.raises(Killed):
        fit(tiny_root, tmp_path, BaselineClassifier, callbacks=[Kill(STEPS + 1)], **options)
    last = tmp_path / "lightning_logs" / "default" / "version_0" / "checkpoints" / "last.ckpt"
    found = content(fit(tiny_root, tmp_path, BaselineClassifier, ckpt_path=str(last), seed=5, **options))
    assert same(found[0], expected[0])
    assert found[1] == expected[1]


def test_epochs_that_are_cut_short_resume_as_exactly(tiny_root, tmp_path):
    options = {"limit_train_batches": 3}
    expected = content(fit(tiny_root, tmp_path / "whole", MCDropoutClassifier, **options))
    for after in (2, 3):
        folder = tmp_path / str(after)
        with pytest.raises(Killed):
            fit(tiny_root, folder, MCDropoutClassifier, callbacks=[Kill(after)], **options)
        last = folder / "lightning_logs" / "default" / "version_0" / "checkpoints" / "last.ckpt"
        run = fit(tiny_root, folder, MCDropoutClassifier, ckpt_path=str(last), seed=5, **options)
        assert same(content(run)[0], expected[0])


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        (
            {"batch_size": 40},
            "batches of 80 on 1 processes, which cannot go on with 320 images in batches of 40",
        ),
        ({"model": {"schedule": "one_cycle"}}, "trained with the schedule StepLR, not OneCycleLR"),
        ({"model": {"weight_decay": 0.1}}, "trained with what was planned as model.weight_decay"),
    ],
)
def test_what_cannot_go_on_says_so(changed, sentence, tiny_root, tmp_path):
    with pytest.raises(Killed):
        fit(tiny_root, tmp_path, BaselineClassifier, callbacks=[Kill(2)])
    last = tmp_path / "lightning_logs" / "default" / "version_0" / "checkpoints" / "last.ckpt"
    with pytest.raises(UserError, match=re.escape(sentence)):
        fit(tiny_root, tmp_path, BaselineClassifier, ckpt_path=str(last), **changed)


class Poison(Callback):
    """Makes the weights that a step leaves no numbers."""

    def __init__(self, after):
        self.after = after

    def on_train_batch_end(self, trainer, module, *args):
        if trainer.global_step == self.after:
            with torch.no_grad():
                next(module.parameters()).fill_(torch.nan)


@pytest.mark.parametrize("after", [2, STEPS, STEPS + 1])
def test_a_loss_of_nan_stops_at_its_step_and_reaches_no_checkpoint(after, tiny_root, tmp_path):
    with pytest.raises(Failure, match=r"no finite number .*step (\d+)") as caught:
        fit(
            tiny_root,
            tmp_path,
            BaselineClassifier,
            callbacks=[Poison(after)],
            checkpoint_minutes=None,
            max_epochs=9,
        )
    assert f"step {after}" in str(caught.value)
    for name in ("best", "last"):
        path = tmp_path / f"lightning_logs/default/version_0/checkpoints/{name}.ckpt"
        assert path.is_file() == (after > STEPS)
        if path.is_file():
            weights = torch.load(path, weights_only=True)["state_dict"].values()
            assert all(w.isfinite().all() for w in weights if isinstance(w, torch.Tensor))


def test_random_states_are_those_of_torch():
    torch.manual_seed(3)
    states = random_states()
    first = torch.rand(5)
    torch.set_rng_state(states[0])
    assert torch.equal(torch.rand(5), first)


class Signal(Callback):
    """Sends this process a signal within a step."""

    def __init__(self, number, after):
        self.number, self.after = number, after

    def on_train_batch_start(self, trainer, *args):
        if trainer.global_step == self.after:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize(
    ("number", "status", "after"),
    [
        (signal.SIGTERM, 143, 1),
        (signal.SIGTERM, 143, STEPS - 1),
        (signal.SIGTERM, 143, 2 * STEPS - 1),
        (signal.SIGINT, 130, 2),
    ],
)
def test_signals_end_with_their_status_after_last_ckpt(number, status, after, tiny_root, tmp_path):
    before = signal.getsignal(number)
    options = {"checkpoint_minutes": None}
    expected = content(fit(tiny_root, tmp_path / "whole", BaselineClassifier, **options))
    with pytest.raises(SystemExit) as caught:
        fit(tiny_root, tmp_path, BaselineClassifier, callbacks=[Signal(number, after)], **options)
    assert caught.value.code == status
    assert signal.getsignal(number) == before
    checkpoints = tmp_path / "lightning_logs" / "default" / "version_0" / "checkpoints"
    last = checkpoints / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == after + 1
    run = fit(tiny_root, tmp_path, BaselineClassifier, ckpt_path=str(last), seed=7, **options)
    assert same(content(run)[0], expected[0])
    assert not [name for name in os.listdir(checkpoints) if "partial" in name]


def test_rates_that_the_optimizer_would_not_take_up_are_refused(tiny_root, tmp_path):
    folder = fit(tiny_root, tmp_path, BaselineClassifier, model={"learning_rate": 0.01})
    last = str(folder / "checkpoints" / "last.ckpt")
    for changed, before in (({"learning_rate": 0.5}, "0.01"), ({"weight_decay": 0.9}, "what was planned")):
        (name,) = changed
        options = {"learning_rate": 0.01, **changed}
        with pytest.raises(
            UserError, match=rf"trained with {before} as model\.{name}, .*leave that as it was"
        ):
            fit(tiny_root, tmp_path, BaselineClassifier, ckpt_path=last, model=options, max_epochs=3)
    with pytest.raises(
        UserError, match=r"the checkpoint: it has 2 epochs done, and trainer\.max_epochs is 1: give as many"
    ):
        fit(
            tiny_root,
            tmp_path,
            BaselineClassifier,
            ckpt_path=last,
            model={"learning_rate": 0.01},
            max_epochs=1,
        )


def test_a_new_training_does_not_write_over_one_that_is_there(tiny_root, tmp_path):
    folder = fit(tiny_root, tmp_path, BaselineClassifier)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=r"holds a trained run, .*ckpt_path='last', or give OpenSetTrainer"):
        fit(tiny_root, tmp_path, BaselineClassifier)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
