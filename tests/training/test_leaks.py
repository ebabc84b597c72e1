"""Images that made a checkpoint are found again by content, whatever path, seed or name they come under."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from quick import FAST

from osr_lightning.__main__ import main


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Two classes of 60 pictures each."""
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for label, name in enumerate(("left", "right")):
        (root / name).mkdir()
        for index in range(60):
            image = rng.integers(0, 90, (16, 16))
            image[:, 8 * label : 8 * label + 8] += 120
            Image.fromarray(image.astype(np.uint8)).save(root / name / f"{index}.png")
    return root


@pytest.fixture(scope="module")
def trained(pictures, tmp_path_factory):
    """The run folder of one epoch on them."""
    runs = tmp_path_factory.mktemp("runs")
    command = ["run", f"--data.known=folder:{pictures}", "--data.unknown={}", "--trainer.max_epochs=1"]
    assert main([*command, "--model.alpha=0.2", f"--trainer.default_root_dir={runs}", *FAST]) == 0
    return runs / "lightning_logs" / "default" / "version_0"


def osr(command, trained, folder, *options):
    ckpt = f"--ckpt_path={trained}/checkpoints/best.ckpt"
    return main([command, ckpt, f"--trainer.default_root_dir={folder}", *options, *FAST])


def test_a_checkpoint_keeps_16_bytes_of_every_image_that_made_it(trained):
    kept = torch.load(trained / "checkpoints" / "best.ckpt", weights_only=True)["images"]
    counts = json.loads((trained / "results.json").read_text())["data"]["known"]
    assert kept["train"].shape == (counts["train"], 16)
    assert kept["calibration"].shape == (counts["validation"], 16)
    assert not {*map(tuple, kept["train"].tolist())} & {*map(tuple, kept["calibration"].tolist())}


def test_its_own_test_images_are_new_to_it(trained, tmp_path):
    assert osr("test", trained, tmp_path) == 0


@pytest.mark.parametrize("command", ["test", "validate", "calibrate"])
def test_another_split_under_another_spelling_is_refused_with_the_count(
    command, pictures, trained, tmp_path, capsys
):
    spelling = f"--data.known=folder:{pictures.parent}/./{pictures.name}/../{pictures.name}"
    others = ["--data.test_seed=5", "--data.seed=5"]
    assert osr(command, trained, tmp_path, spelling, *others) == 2
    error = capsys.readouterr().err
    assert "were trained on (" in error
    assert ".png" in error


def test_a_copy_of_a_training_image_in_an_unknown_set_is_refused_or_marked(
    pictures, trained, tmp_path, capsys
):
    others = tmp_path / "others"
    shutil.copytree(pictures / "left", others)  # most of them were trained on
    unknown = f"--data.unknown={{others: 'folder:{others}'}}"
    assert osr("test", trained, tmp_path, unknown) == 2
    assert "also tested" in capsys.readouterr().err
    assert osr("test", trained, tmp_path, unknown, "--data.allow_overlap=true") == 0
    results = json.loads((tmp_path / "lightning_logs/default/version_0/results.json").read_text())
    assert results["threshold"]["optimistic"]


def test_a_fit_that_goes_on_with_another_split_is_refused(pictures, trained, tmp_path, capsys):
    spelling = f"--data.known=folder:{pictures}/."
    assert osr("fit", trained, tmp_path, spelling, "--data.seed=5", "--trainer.max_epochs=2") == 2
    assert "were trained on" in capsys.readouterr().err


def test_an_image_that_is_added_moves_no_other(pictures, trained, tmp_path):
    more = tmp_path / "more"
    shutil.copytree(pictures, more)
    for index in range(5):
        image = np.random.default_rng(100 + index).integers(0, 255, (16, 16), dtype=np.uint8)
        Image.fromarray(image).save(more / "left" / f"new{index}.png")
    assert osr("test", trained, tmp_path, f"--data.known=folder:{more}") == 0
