"""What a command says while it runs: one line an epoch, in pipes and terminals of any width."""

import io
import re
from types import SimpleNamespace

import pytest
import torch
from quick import QUIET
from rich.console import Console

from osr_lightning import BaselineClassifier, OpenSetDataModule, OpenSetTrainer
from osr_lightning.__main__ import main
from osr_lightning.training.callbacks.evaluator import Evaluator
from osr_lightning.training.callbacks.progress import Progress, _epochs_in_all
from osr_lightning.training.console import epoch_line

METRICS = {
    "train/loss": torch.tensor(1.31694),
    "val/loss": torch.tensor(0.45411),
    "train/accuracy": torch.tensor(0.5749),
    "val/accuracy": torch.tensor(0.882),
}
LINE = "epoch 12/15  loss 1.3169, val 0.4541  accuracy 57.49%, val 88.20%  1:02:05 left"


def test_a_line_says_what_there_is_room_for():
    assert epoch_line(12, 15, METRICS, 3724.2, 80) == LINE
    assert epoch_line(12, 15, METRICS, 59.5, 40) == "epoch 12/15  acc. val 88.2%  1:00 left"
    assert epoch_line(1, 300, METRICS, None, 20) == "epoch   1/300"
    assert epoch_line(3, None, {}, None, 80) == "epoch 3"
    for width in range(11, 100):
        assert len(epoch_line(12, 15, METRICS, 3724.2, width)) <= width


@pytest.mark.parametrize(
    ("max_epochs", "max_steps", "epochs"),
    # of five batches, each two of which are a step, and so is the last alone
    [(3, -1, 3), (None, 6, 2), (None, 7, 3), (2, 9, 2), (9, 9, 3), (-1, -1, None)],
)
def test_steps_end_a_training_in_the_epoch_that_has_the_last(max_epochs, max_steps, epochs):
    trainer = SimpleNamespace(
        max_epochs=max_epochs, max_steps=max_steps, num_training_batches=5, accumulate_grad_batches=2
    )
    assert _epochs_in_all(trainer) == epochs


def talking(small: list[str]) -> list[str]:
    return [option for option in small if option not in QUIET]


def test_a_pipe_gets_a_line_for_each_epoch_and_stage_and_nothing_else(small, tmp_path, capfd, caplog):
    command = ["run", *talking(small), "--trainer.max_epochs=2", f"--trainer.default_root_dir={tmp_path}"]
    assert main(command) == 0
    said, err = capfd.readouterr()
    assert err == caplog.text == ""
    assert not set("\r\x1b") & set(said)
    words = [line.split(":")[0] for line in said.split("by class")[0].splitlines()]
    epochs = [line for line in said.splitlines() if line.startswith("epoch ")]
    assert words[:5] == ["known", "unknown", "training", "device", "run folder"]
    assert [epoch[:9] for epoch in epochs] == ["epoch 1/2", "epoch 2/2"]
    assert all(len(epoch) <= 80 and re.search(r" \d+:\d\d left$", epoch) for epoch in epochs)
    assert re.search(r"^calibrate  400 images$", said, re.MULTILINE)
    assert re.search(r"^test       151 images$", said, re.MULTILINE)


@pytest.mark.parametrize(
    ("options", "images"),
    [(["--trainer.limit_test_batches=2"], 60), (["--trainer.limit_test_batches=0.5"], 90), ([], 151)],
)
def test_the_images_are_those_that_are_tested(options, images, small, small_run, tmp_path, capsys):
    # 151 images are 6 batches of 30, the last of 1
    checkpoint = f"--ckpt_path={small_run}/checkpoints/best.ckpt"
    command = ["test", checkpoint, "--data.eval_batch_size=30", *talking(small), *options]
    assert main([*command, f"--trainer.default_root_dir={tmp_path}"]) == 0
    assert re.search(rf"^test       {images} images$", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.filterwarnings("ignore")  # those of Lightning come back as well
def test_verbose_brings_lightning_back(small, tmp_path, capfd, caplog):
    command = ["fit", *talking(small), "--verbose", f"--trainer.default_root_dir={tmp_path}"]
    assert main(command) == 0
    assert "`max_epochs=1` reached" in caplog.text
    # which is printed by newer versions of Lightning, logged by older ones
    assert "Trainable params" in capfd.readouterr().out + caplog.text


@pytest.mark.parametrize(("term", "draws"), [("xterm", True), ("dumb", False)])
def test_only_a_terminal_that_can_gets_a_bar(term, draws, tiny_root, tmp_path, capsys):
    drawn = io.StringIO()
    console = Console(file=drawn, force_terminal=True, width=40, _environ={"TERM": term})
    trainer = OpenSetTrainer(
        default_root_dir=str(tmp_path),
        max_epochs=1,
        logger=False,
        callbacks=[Progress(console), Evaluator(figures=False)],
        accelerator="cpu",
    )
    data = OpenSetDataModule(root=str(tiny_root), unknown={}, batch_size=160)
    trainer.fit(BaselineClassifier("BaselineCNN", score="msp"), datamodule=data)
    assert ("epoch 1/1" in drawn.getvalue()) == draws
    assert (drawn.getvalue() == "") == (not draws)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "epoch" in line and "val" in line]
    assert len(line) <= (40 if draws else 80)  # a dumb one does not say its width
