"""docs/own-images.md, as written: from folders of pictures to predictions."""

import csv
import json
import logging
import re
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image, ImageDraw, ImageFont
from quick import FAST
from sklearn.datasets import load_sample_images
from torchvision import models

from osr_lightning.__main__ import main

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "own-images.md").read_text()
# Lightning's loaders use what torch has deprecated
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec")

NETWORK = """
import torch
from torch import nn


class MyNet(nn.Module):
    def __init__(self, num_classes, in_channels=3, width=8):
        super().__init__()
        self.conv, self.last = nn.Conv2d(in_channels, width, 3, 2), nn.Linear(width, num_classes)

    def forward(self, images):
        return self.last(self.conv(images).relu().mean((2, 3)))
"""


def blocks(language: str) -> list[str]:
    """The page's blocks of that language."""
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def commands() -> list[list[str]]:
    """The words of the page's commands, one list a command."""
    lines = "".join(blocks("bash")).replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines if line.strip() and not line.startswith("pip ")]


def named(part: str) -> list[list[str]]:
    found = [words for words in commands() if any(part in word for word in words)]
    assert found, f"the page has no command with {part} any more"
    return found


@pytest.fixture(autouse=True)
def handlers():
    """Logging as it was, whatever a run has added."""
    logger = logging.getLogger("osr_lightning")
    kept = list(logger.handlers)
    yield
    logger.handlers[:] = kept


def glyph(letter: str, size: int, seed: int) -> Image.Image:
    """A letter in black on light noise, at a place of its own."""
    rng = np.random.default_rng(seed)
    image = Image.fromarray(rng.integers(200, 256, (size, size, 3), dtype=np.uint8))
    place = tuple(rng.integers(0, size // 2, 2).tolist())
    ImageDraw.Draw(image).text(place, letter, fill=(0, 0, 0), font=ImageFont.load_default(size / 2))
    return image


def crops(photo: np.ndarray, count: int, seed: int) -> list[Image.Image]:
    rng, found = np.random.default_rng(seed), []
    for _ in range(count):
        size = int(rng.integers(30, 60))
        y, x = (int(rng.integers(0, side - size)) for side in photo.shape[:2])
        found.append(Image.fromarray(photo[y : y + size, x : x + size]))
    return found


def keep(images, folder: Path, suffixes=("png", "jpg", "bmp")) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for row, image in enumerate(images):
        image.save(folder / f"{row:03}.{suffixes[row % len(suffixes)]}")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A working folder with all that the page names, and the weights that one of its lines asks for."""
    here = tmp_path_factory.mktemp("work")
    china, flower = load_sample_images().images
    for mine in ("MINE", "my_images"):
        keep(crops(china, 60, 0), here / mine / "china")
        keep(crops(flower, 60, 1), here / mine / "flower")
        keep([glyph("A", 40, seed) for seed in range(60)], here / mine / "letter")
    for others in ("OTHERS", "other_images"):
        keep([glyph("%", 40, 1000 + seed) for seed in range(30)], here / others)
    keep([*crops(china, 3, 7), *crops(flower, 2, 8)], here / "NEW_PICTURES")
    (here / "my_networks.py").write_text(NETWORK)
    shutil.copytree(ROOT / "configs", here / "configs")
    torch.manual_seed(0)
    torch.save(models.resnet18(weights=None).state_dict(), here / "resnet18.pth")
    return here


@pytest.fixture
def work(pictures, monkeypatch):
    monkeypatch.chdir(pictures)
    # the command line adds the working folder itself; what it imports is this test's alone
    monkeypatch.setattr(sys, "path", list(sys.path))
    return pictures


def run(words: list[str], *options: str) -> int:
    assert words[0] == "osr"
    return main([*words[1:], *FAST, *options])


# where what is learned is not looked at
SHORT = ("--trainer.max_epochs=1", "--trainer.limit_train_batches=1")


def latest(experiment: str) -> Path:
    return max(Path("lightning_logs", experiment).glob("version_*"), key=lambda path: int(path.name[8:]))


# the page ---------------------------------------------------------------------------------------------


def test_every_command_of_the_page_is_run_here():
    ways = [words[1] for words in commands()]
    assert len(commands()) >= 6
    assert set(ways) == {"run", "predict", "wrap"}  # of wrap, and of backbones: test_wrap, test_backbone
    for words in commands():
        if words[1] == "run":
            own = any(part in " ".join(words) for part in ("folder:MINE", "configs/my_images.yaml"))
            assert own or "mnist" in words, words


def test_two_folders_are_all_that_a_run_needs(work, capsys):
    (words,) = named("ConvNet")
    assert run(words, "--trainer.max_epochs=1") == 0
    out = capsys.readouterr().out
    first = re.search(
        r"known: 3 classes \(china, flower, letter\), (\d+)/(\d+)/(\d+) train/val/test, colour", out
    )
    assert sum(map(int, first.groups())) == 180
    assert "unknown: others 30" in out
    results = json.loads((latest("default") / "results.json").read_text())
    assert results["classes"] == ["china", "flower", "letter"]
    assert results["closed_set"]["count"] == int(first[3])
    assert results["open_set"]["count_unknown"] == 30
    assert (latest("default") / "report.html").stat().st_size > 0


def test_a_config_with_the_paths_predicts_new_pictures_wherever_its_checkpoint_is(work, capsys, tmp_path):
    (words,) = [words for words in named("configs/my_images.yaml") if len(words) == 4] or [
        ["osr", "run", "--config", "configs/my_images.yaml"]  # the page names it within a sentence
    ]
    shutil.rmtree("lightning_logs", ignore_errors=True)
    assert run(words, *SHORT) == 0
    (predict,) = named("NEW_PICTURES")
    assert main(predict[1:]) == 0
    with Path("answers.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [Path(row["file"]).name for row in rows] == sorted(p.name for p in Path("NEW_PICTURES").iterdir())
    assert {row["prediction"] for row in rows} <= {"china", "flower", "letter", "unknown"}
    capsys.readouterr()
    # the same in Python, as the page has it
    (script,) = blocks("python")
    exec(script, {})  # noqa: S102 - the README of this repository
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(rows)
    for line, row in zip(lines, rows, strict=True):
        name, label, confidence = line.split()
        assert Path(name).name == Path(row["file"]).name
        assert label == row["prediction"]
        assert float(confidence) == pytest.approx(float(row["confidence"]), rel=1e-4)
    # the checkpoint alone is needed
    moved = tmp_path / "moved.ckpt"
    shutil.copy(latest("my_images") / "checkpoints" / "best.ckpt", moved)
    new = str(work / "NEW_PICTURES")
    assert main(["predict", "--ckpt_path", str(moved), new, "--output", str(tmp_path / "again.csv")]) == 0
    with (tmp_path / "again.csv").open() as file:
        again = list(csv.DictReader(file))
    assert [row["prediction"] for row in again] == [row["prediction"] for row in rows]


@pytest.mark.parametrize("kind", ["--model.network resnet18", "Torchvision", "my_networks.MyNet"])
def test_another_network_is_one_option(kind, work, capsys, caplog):
    (words,) = [words for words in named("my_images.yaml") if f" {kind} " in " ".join(words)]
    # so small a step that what is kept is what was read
    little = [*SHORT, "--model.learning_rate=1e-9", "--model.schedule=step", "--data.image_size=32"]
    with caplog.at_level(logging.WARNING, "osr_lightning"):
        assert run(words, *little) == 0
    folder = latest("my_images")
    results = json.loads((folder / "results.json").read_text())
    assert results["closed_set"]["count"] > 0
    saved = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)
    kept = saved["recogniser"]["recipe"]
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["run", f"--config={folder / 'config.yaml'}", "--print_config"])
    again = yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]["network"]
    again = {"class_path": again} if isinstance(again, str) else again
    assert again["class_path"].endswith(kept["network"]["class_path"])
    assert kept["dropout"] == 0.3  # none of them has one of its own
    said = "the last layer has 1000 outputs, which are left out" in caplog.text
    assert said == ("--model.network.weights" in words)
    if said:  # they are what the training begins with
        (name,) = [name for name in saved["state_dict"] if name.endswith("layer1.0.conv1.weight")]
        begun = torch.load("resnet18.pth", weights_only=True)["layer1.0.conv1.weight"]
        assert torch.allclose(saved["state_dict"][name], begun, atol=1e-6)
    assert "weights" not in str(kept["network"])
    predict = ["predict", "--ckpt_path", str(folder / "checkpoints" / "best.ckpt"), "NEW_PICTURES"]
    assert main([*predict, "--output", "x.csv"]) == (2 if kind == "my_networks.MyNet" else 0)
    if kind == "my_networks.MyNet":  # code of the user's
        assert "--trust_checkpoint" in capsys.readouterr().err
        assert main([*predict, "--output", "x.csv", "--trust_checkpoint"]) == 0
        assert kept["network"]["init_args"]["width"] == 64


def test_some_classes_of_a_set_leave_the_rest_unknown(work, tiny_root, capsys):
    (words,) = named("data.known_classes")
    assert run(words, f"--data.root={tiny_root}", *SHORT, "--model.alpha=0.1") == 0
    out = capsys.readouterr().out
    assert "6 classes (0 - zero, 1 - one" in out
    assert "unknown: rest 40" in out  # four tenths of 101 images
    results = json.loads((latest("default") / "results.json").read_text())
    assert results["closed_set"]["count"] == 61


def test_every_option_that_the_page_names_exists(capsys):
    assert main(["run", "--help-all"]) == 0
    assert main(["run", "--model.help=MCDropoutClassifier"]) == 0
    assert main(["run", "--model.network.help=Backbone"]) == 0
    with pytest.raises(SystemExit):
        main(["wrap", "--help"])
    out = capsys.readouterr().out
    named = set(re.findall(r"`(--[a-z_.]+)", PAGE))
    assert len(named) > 10
    assert [option for option in sorted(named) if not re.search(rf"{re.escape(option)}\b", out)] == []


def test_the_config_says_what_the_page_says():
    config = yaml.safe_load((ROOT / "configs" / "my_images.yaml").read_text())
    assert config["data"]["known"].startswith("folder:")
    (predict,) = named("NEW_PICTURES")
    assert f"lightning_logs/{config['trainer']['experiment']}/version_0/checkpoints/best.ckpt" in predict


# a user's folder --------------------------------------------------------------------------------------


def test_copies_stop_no_run_and_are_named(work, tmp_path, capsys):
    for folder in (work / "MINE").iterdir():
        shutil.copytree(folder, tmp_path / "set" / folder.name)
    copied = sorted((tmp_path / "set" / "flower").glob("*.png"))[:10]
    for file in copied:
        shutil.copy(file, file.with_name(f"{file.stem}_again.png"))
        Image.open(file).save(file.with_name(f"{file.stem}_other.bmp"))
    command = ["osr", "run", "--data.known", f"folder:{tmp_path}/set", "--data.unknown"]
    assert run([*command, "{others: 'folder:OTHERS'}"], *SHORT) == 0
    (note,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    assert note.startswith("note: 20 images are copies of others and stay in the same part with them (")
    assert "flower/000.png = flower/000_again.png" in note
    # no picture lies on both sides: the test has all three of a kind, or none
    with (latest("default") / "predictions.csv").open() as file:
        tested = {Path(row["file"]).name for row in csv.DictReader(file) if row["label"] == "flower"}
    for file in copied:
        kinds = {file.name, f"{file.stem}_again.png", f"{file.stem}_other.bmp"}
        assert kinds <= tested or kinds.isdisjoint(tested)


def test_few_and_uneven_classes_are_warned_of_and_may_weigh_the_same(work, tmp_path, capsys):
    china, flower = load_sample_images().images
    keep(crops(china, 100, 0), tmp_path / "set" / "many")
    keep(crops(flower, 12, 1), tmp_path / "set" / "few")
    command = ["osr", "run", "--data.known", f"folder:{tmp_path}/set", "--data.unknown"]
    command += ["{others: 'folder:OTHERS'}", "--model.balance_classes", "true"]
    assert run(command, *SHORT, "--model.alpha=0.3") == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: ")]
    few, uneven = [line for line in lines if "training images" in line]
    assert re.search(r"fewer than 20 training images \(few \d+\)", few)
    assert re.search(r"uneven, from few with \d+ to many with \d+ training images; .*balance_classes", uneven)


def test_three_easily_told_colour_classes_are_learned(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for name, colour in {"red": (190, 60, 60), "green": (60, 190, 60), "blue": (60, 60, 190)}.items():
        noisy = [np.clip(rng.normal(colour, 40, (20, 20, 3)), 0, 255).astype(np.uint8) for _ in range(150)]
        keep(map(Image.fromarray, noisy), tmp_path / "set" / name, ["png"])
    keep([glyph("%", 20, seed) for seed in range(30)], tmp_path / "others")
    command = ["osr", "run", "--data.known", "folder:set", "--data.unknown", "{others: 'folder:others'}"]
    assert run(command, "--trainer.max_epochs=3") == 0
    results = json.loads((latest("default") / "results.json").read_text())
    assert results["closed_set"]["accuracy"] >= 0.9
