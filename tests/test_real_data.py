"""One epoch on real MNIST, judged on real CIFAR-10 images."""

import json
from pathlib import Path

from quick import EVALUATION

from osr_lightning.__main__ import main

CONFIGS = Path(__file__).parents[1] / "configs"


def test_a_quarter_of_an_epoch_on_mnist_rejects_photographs(data_dir, tmp_path):
    command = [
        "run",
        f"--config={CONFIGS}/mc_dropout.yaml",
        f"--data.root={data_dir}",
        f"--data.unknown={{cifar10: 'npz:{data_dir}/cifar10_test_first1017.npz'}}",
        f"--trainer.default_root_dir={tmp_path}",
        "--trainer.max_epochs=1",
        "--trainer.limit_train_batches=0.25",
        "--trainer.enable_progress_bar=false",
        *EVALUATION,
    ]
    assert main(command) == 0
    folder = tmp_path / "lightning_logs" / "mc_dropout" / "version_0"
    results = json.loads((folder / "results.json").read_text())
    assert results["closed_set"]["count"] == 10000
    assert results["open_set"]["count_unknown"] == 1017
    assert results["closed_set"]["accuracy"] > 0.95
    assert results["open_set"]["auroc"] > 0.99
    assert results["open_set"]["unknown_accuracy"] > 0.9
    assert not results["threshold"]["optimistic"]
