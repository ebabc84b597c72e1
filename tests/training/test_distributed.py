"""Two processes give the numbers of one."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from quick import FAST

from osr_lightning import MCDropoutClassifier, OpenSetDataModule, load
from osr_lightning.__main__ import main
from osr_lightning.data.image_table import even_batch_size
from osr_lightning.recogniser.examples import to_plain
from osr_lightning.training.distributed import gather_rows
from osr_lightning.training.examples import choose_examples


def osr(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "osr_lightning", *options, *FAST]
    return subprocess.run(command, capture_output=True, text=True, timeout=150)


@pytest.mark.parametrize(
    ("images", "processes", "batch_size"), [(2049, 2, 1024), (12000, 2, 1024), (7, 3, 1)]
)
def test_even_batch_size_gives_every_process_equally_many_batches(images, processes, batch_size):
    size = even_batch_size(images, processes, batch_size)
    shards = [len(range(rank, images, processes)) for rank in range(processes)]
    assert len({-(-shard // size) for shard in shards}) == 1
    assert batch_size <= size <= batch_size + 2


def test_gather_rows_sorts_and_drops_repeated_images():
    batches = [
        {"row": torch.tensor([3, 1]), "score": torch.tensor([0.3, 0.1], dtype=torch.float64)},
        {"row": torch.tensor([0, 3]), "score": torch.tensor([0.0, 0.3], dtype=torch.float64)},
    ]
    rows = gather_rows(batches, torch.device("cpu"))
    assert rows["row"].tolist() == [0, 1, 3]
    assert rows["score"].tolist() == [0.0, 0.1, 0.3]


@pytest.fixture(scope="module")
def two(tiny_root) -> list[str]:
    """Options of a training of 40 steps in two processes.

    101 known and 50 unknown test images in batches of 25 leave the two processes shards of 76 and 75
    images, which would be 4 and 3 batches.
    """
    return [
        f"--data.root={tiny_root}",
        f"--data.unknown={{noise: 'npz:{tiny_root}/unknown.npz'}}",
        "--data.batch_size=8",
        "--data.eval_batch_size=25",
        "--model.network.class_path=osr_lightning.models.networks.MCDropoutCNN",
        "--model.network.init_args.hidden=5",
        "--trainer.devices=2",
        "--trainer.strategy=ddp",
        "--trainer.max_epochs=2",
        "--trainer.checkpoint_minutes=1e-9",
    ]


@pytest.fixture(scope="module")
def whole(two, tmp_path_factory) -> Path:
    """The folder of a run in two processes."""
    root = tmp_path_factory.mktemp("whole")
    done = osr("run", *two, f"--trainer.default_root_dir={root}")
    assert done.returncode == 0, done.stderr
    # only rank 0 prints
    assert (done.stdout.count("known: 10 classes"), done.stdout.count("report  ")) == (1, 1)
    folder = root / "lightning_logs" / "default"
    assert [entry.name for entry in folder.iterdir()] == ["version_0"]  # and writes
    return folder / "version_0"


def test_two_processes_train_and_agree_with_one(whole, tmp_path):
    """Tests the checkpoint of two processes in one, and calibrates it again."""
    checkpoint = whole / "checkpoints" / "best.ckpt"
    test = ["test", f"--ckpt_path={checkpoint}", f"--trainer.default_root_dir={tmp_path}", *FAST]
    assert main(test) == 0
    one, both = (
        json.loads((folder / "results.json").read_text())
        for folder in (tmp_path / "lightning_logs" / "default" / "version_0", whole)
    )
    for section in (
        "model",
        "score",
        "threshold",
        "closed_set",
        "open_set",
        "unknown",
        "scores",
        "intervals",
    ):
        _agree(one[section], both[section])
    # choosing the threshold again in one process gives the two processes' value
    output = tmp_path / "again.ckpt"
    again = ["calibrate", f"--ckpt_path={checkpoint}", f"--output={output}", *FAST[:3]]
    assert main([*again, f"--trainer.default_root_dir={tmp_path}/again"]) == 0
    thresholds = [load(path).threshold.value for path in (checkpoint, output)]
    assert thresholds[0] == pytest.approx(thresholds[1], abs=1e-7)
    # the pictures are of both processes' images, and stay
    model = MCDropoutClassifier.load_from_checkpoint(checkpoint)
    data = OpenSetDataModule(**torch.load(checkpoint, weights_only=True)["datamodule_hyper_parameters"])
    chosen = choose_examples(model._rows_of(data.val_dataloader()), data.tables.val.images, data.spec)
    assert len(chosen) > 1
    assert to_plain(chosen) == to_plain(load(checkpoint).examples) == to_plain(load(output).examples)


def test_two_processes_stop_at_a_signal_and_go_on_to_the_bit(two, whole, tmp_path):
    options = [*two, f"--trainer.default_root_dir={tmp_path}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "osr_lightning", "run", *options, *FAST],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    folder = tmp_path / "lightning_logs" / "default" / "version_0"
    last = folder / "checkpoints" / "last.ckpt"
    end = time.monotonic() + 120
    while not last.exists() and time.monotonic() < end:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 143, said
    assert "Traceback" not in said
    step = int(re.search(r"stopped by SIGTERM at step (\d+)", said)[1])
    saved = torch.load(last, weights_only=True)
    assert saved["global_step"] == step < 2 * 20
    done = osr("run", *options, "--ckpt_path=last")
    assert done.returncode == 0, done.stderr
    resumed = torch.load(last, weights_only=True)
    expected = torch.load(whole / "checkpoints" / "last.ckpt", weights_only=True)
    for name, weight in expected["state_dict"].items():
        assert not isinstance(weight, torch.Tensor) or torch.equal(weight, resumed["state_dict"][name])
    assert (folder / "metrics.csv").read_text() == (whole / "metrics.csv").read_text()


def _agree(one, both):
    if isinstance(one, dict):
        assert one.keys() == both.keys()
        for key in one:
            _agree(one[key], both[key])
    elif isinstance(one, float):
        np.testing.assert_allclose(one, both, rtol=1e-5, atol=1e-7)
    else:
        assert one == both
