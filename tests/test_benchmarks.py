"""The check of another machine runs on this one, too."""

import json
import logging
import runpy
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.filterwarnings("ignore")
def test_the_accelerators_check_runs_on_the_cpu(tmp_path, monkeypatch):
    words = ["--device", "cpu", "--fits", "float32", "finetuned", "--epochs", "1"]
    words += ["--backbone", "shufflenet_v2_x0_5", "--image-size", "32", "--checks", "decisions", "samples"]
    monkeypatch.setattr(sys, "argv", ["accelerator.py", *words, "--json", str(tmp_path / "found.json")])
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.chdir(tmp_path)
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    try:
        runpy.run_path(str(BENCHMARKS / "accelerator.py"), run_name="__main__")
    finally:
        logger.setLevel(level)  # which it hushes
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["decisions"]["images"] == 1975
    assert found["decisions"]["decided_otherwise"] == 0
    assert found["fits"]["float32"]["closed_set_accuracy"] > 0.6
    assert found["fits"]["finetuned"]["closed_set_accuracy"] > 0.15  # of random weights; chance is 0.1
    assert found["fits"]["finetuned"]["train_images_per_s"] > 0
    assert set(found["decided_per_s"]) == {"1", "10", "200"}
