"""The check of another machine runs on this one, too."""

import json
import os
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_the_accelerators_check_runs_on_the_cpu(tmp_path):
    words = ["--device", "cpu", "--fits", "float32", "--epochs", "1", "--checks", "decisions", "samples"]
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "accelerator.py", *words, "--json", tmp_path / "found.json"],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["decisions"]["images"] == 1975
    assert found["decisions"]["decided_otherwise"] == 0
    assert found["fits"]["float32"]["closed_set_accuracy"] > 0.6
    assert set(found["decided_per_s"]) == {"1", "10", "200"}
