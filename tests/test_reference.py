"""docs/reference.md: every public name has its place and an example, and the examples run."""

import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

import osr_lightning
from osr_lightning.__main__ import main
from osr_lightning.recogniser import checkpoint

PAGE = (Path(__file__).parents[1] / "docs" / "reference.md").read_text()
NAMES = [f"osr_lightning.{name}" for name in osr_lightning.__all__]
NAMES += ["osr_lightning.sklearn.OpenSetClassifier", "osr_lightning.sklearn.BackboneFeatures"]


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_has_its_place_and_an_example(name):
    (part,) = re.findall(rf"^::: {re.escape(name)}\n(.*?)(?=^:::|^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    (example,) = re.findall(r"```python\n(.*?)```", part, re.DOTALL)
    names = {"Prediction": "prediction", "Recogniser": "recogniser"}  # what is given, and not made
    last = name.rpartition(".")[2]
    assert re.search(rf"\b{names.get(last, last)}\b", example)


def test_the_examples_run(small_run, tiny_root, tmp_path, monkeypatch, capsys):
    """As they stand, one after the other."""
    monkeypatch.chdir(tmp_path)
    Path("DATA").symlink_to(tiny_root)
    kept = small_run / "checkpoints"
    shutil.copy(kept / "best.ckpt", "best.ckpt")
    shutil.copytree(small_run, "RUN")
    other = checkpoint.read("best.ckpt")
    for name, value in other["state_dict"].items():
        other["state_dict"][name] = value * 1.01 if name.endswith(".weight") else value
    checkpoint.write(other, "other.ckpt")
    assert main(["ensemble", str(kept / "best.ckpt"), "other.ckpt", "--output=ensemble.ckpt"]) == 0
    Image.new("L", (28, 28), 200).save("a.png")
    exec("".join(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)), {})  # noqa: S102 - our own page
    assert Path("baseline.ckpt").is_file()
