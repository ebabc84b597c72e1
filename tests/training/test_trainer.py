"""From Python: what `run` gives back, checkpoints made without the command line, and folders of one's own."""

import functools
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image
from quick import FAST, SMALL_NETWORK, TRAINER
from torch import nn

from osr_lightning import (
    MCDropoutClassifier,
    OpenSetDataModule,
    OpenSetTrainer,
    load,
)
from osr_lightning.__main__ import main
from osr_lightning.errors import UserError
from osr_lightning.models.networks import MCDropoutCNN
from osr_lightning.training.callbacks.evaluator import Evaluator

NETWORK = functools.partial(MCDropoutCNN, channels=(2, 3), hidden=5)


class UserNet(nn.Module):
    """A network as a user writes it: it knows nothing of this package."""

    def __init__(self, num_classes, width=4):
        super().__init__()
        self.conv = nn.Conv2d(1, width, 7, stride=3)
        self.dropout = nn.Dropout(0.5)
        self.fc = nn.Linear(width, num_classes)

    def forward(self, images):
        return self.fc(self.dropout(self.conv(images).relu().mean((2, 3))))


def data(root, **options):
    options.setdefault("unknown", {"noise": f"npz:{root}/unknown.npz"})
    return OpenSetDataModule(root=str(root), **options)


def quiet_trainer(folder, **options):
    evaluation = Evaluator(figures=False, projector_points=0, bootstrap=20)
    return OpenSetTrainer(default_root_dir=str(folder), callbacks=[evaluation], **TRAINER, **options)


@pytest.mark.parametrize("phase", ["calibrate", "test"])
def test_whoever_stops_a_run_after_its_training_reads_how_to_go_on(phase, tmp_path, monkeypatch, capsys):
    def stop(*_, **__):
        raise SystemExit(143)

    for name in ("_fit", "calibrate", "test"):
        monkeypatch.setattr(OpenSetTrainer, name, stop if name == phase else lambda *_, **__: None)
    trainer = quiet_trainer(tmp_path)
    trainer.checkpoint_callback.best_model_path = "best.ckpt"
    with pytest.raises(SystemExit):
        trainer.run(MCDropoutClassifier(), data(tmp_path))
    assert capsys.readouterr().out == "stopped after the training; --ckpt_path last goes on from there\n"


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """Three classes of colour pictures in folders, 40 each, and a folder of others."""
    root = tmp_path_factory.mktemp("shapes")
    rng = np.random.default_rng(0)
    for label, name in enumerate(("bar", "cross", "dot")):
        for index in range(40):
            image = rng.integers(0, 80, (20, 24, 3))
            image[4 * label + 2 : 4 * label + 8, 3:18, label] += 150
            path = root / "known" / name / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.astype(np.uint8)).save(path)
    for index in range(10):
        path = root / "other" / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (20, 20, 3), dtype=np.uint8)).save(path)
    return root


def test_run_returns_the_results_that_it_writes(tiny_root, tmp_path):
    trainer = quiet_trainer(tmp_path, max_epochs=1)
    results = trainer.run(MCDropoutClassifier(NETWORK), data(tiny_root))
    folder = tmp_path / "lightning_logs" / "default" / "version_0"
    assert results == json.loads((folder / "results.json").read_text())
    assert results["open_set"]["count_unknown"] == 50


@pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated:FutureWarning")  # Lightning with torch
@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*logging interval")
def test_a_checkpoint_made_by_a_plain_trainer_is_a_recogniser(tiny_root, tmp_path):
    model = MCDropoutClassifier(NETWORK, num_samples=3, score="generalized_entropy")
    trainer = Trainer(max_epochs=1, logger=False, enable_checkpointing=False, **TRAINER)
    trainer.fit(model, datamodule=data(tiny_root))
    trainer.save_checkpoint(tmp_path / "plain.ckpt")
    recogniser = load(tmp_path / "plain.ckpt")
    image = torch.randint(0, 256, (28, 28), dtype=torch.uint8)
    [prediction] = recogniser.predict(image)
    assert prediction.threshold == model.trained.threshold.value
    rows = model.eval().trained.describe(image[None, None])
    assert prediction.score == pytest.approx(rows["score/generalized_entropy"].item(), abs=1e-6)
    command = ["test", f"--ckpt_path={tmp_path}/plain.ckpt", f"--trainer.default_root_dir={tmp_path}"]
    assert main([*command, *FAST]) == 0


def test_a_network_of_ones_own_needs_trust_to_come_back(tiny_root, tmp_path, monkeypatch, capsys):
    (tmp_path / "my_networks.py").write_text(
        "import torch\nclass Net(torch.nn.Module):\n"
        "    def __init__(self, num_classes, in_channels, width=4):\n"
        "        super().__init__()\n"
        "        self.conv = torch.nn.Conv2d(in_channels, width, 7, stride=3)\n"
        "        self.drop = torch.nn.Dropout(0.5)\n"
        "        self.fc = torch.nn.Linear(width, num_classes)\n"
        "    def forward(self, x):\n"
        "        return self.fc(self.drop(self.conv(x).relu().mean((2, 3))))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    common = [
        f"--data.root={tiny_root}",
        "--data.unknown={}",
        f"--trainer.default_root_dir={tmp_path}",
        *FAST,
    ]
    network = ["--model.network=my_networks.Net", "--model.network.width=6"]
    assert main(["run", *network, *common, "--trainer.max_epochs=1"]) == 0
    ckpt = tmp_path / "lightning_logs" / "default" / "version_0" / "checkpoints" / "best.ckpt"
    with pytest.raises(UserError, match="trust"):
        load(ckpt)
    assert load(ckpt, trust=True).sampler.network.trunk.conv.out_channels == 6
    command = ["test", f"--ckpt_path={ckpt}", f"--trainer.default_root_dir={tmp_path}", *FAST]
    assert main(command) == 2
    assert "--trust_checkpoint" in capsys.readouterr().err
    assert main([*command, "--trust_checkpoint"]) == 0
    # what the user names on the command line is the user's own word
    assert main([*command, *network]) == 0
    assert MCDropoutClassifier.load_from_checkpoint(ckpt, trust=True).trained.spec.channels == 1


@pytest.mark.parametrize(
    ("network", "data_options", "shape"),
    [
        (["ConvNet", "--model.network.channels=[4,6]"], [], (1, 28)),
        (["BaselineCNN"], ["--data.channels=3", "--data.image_size=20"], (3, 20)),
        (["Torchvision", "--model.network.name=squeezenet1_1"], ["--data.image_size=40"], (1, 40)),
    ],
)
def test_a_network_named_on_the_command_line_takes_the_shape_of_the_data(
    tiny_root, tmp_path, network, data_options, shape
):
    """Not that of its own defaults, which the parser fills in."""
    name, *options = network
    command = ["run", "--model=BaselineClassifier", f"--model.network={name}", *options, *data_options]
    command += [f"--data.root={tiny_root}", "--data.unknown={}", f"--trainer.default_root_dir={tmp_path}"]
    assert main([*command, *FAST, "--trainer.max_epochs=1", "--trainer.limit_train_batches=1"]) == 0
    ckpt = tmp_path / "lightning_logs" / "default" / "version_0" / "checkpoints" / "best.ckpt"
    recogniser = load(ckpt)
    assert recogniser.spec.input_shape == (shape[0], shape[1], shape[1])
    first = next(m for m in recogniser.sampler.network.modules() if isinstance(m, torch.nn.Conv2d))
    assert first.in_channels == shape[0]


def test_a_module_made_in_python_is_given_again(tiny_root, tmp_path):
    trainer = quiet_trainer(tmp_path, max_epochs=1)
    trainer.run(MCDropoutClassifier(UserNet(10)), data(tiny_root, unknown={}))
    ckpt = tmp_path / "lightning_logs" / "default" / "version_0" / "checkpoints" / "best.ckpt"
    with pytest.raises(UserError, match="network="):
        load(ckpt)
    first = load(ckpt, network=UserNet)
    second = MCDropoutClassifier.load_from_checkpoint(ckpt, network=UserNet(10)).eval().trained
    image = torch.randint(0, 256, (1, 1, 28, 28), dtype=torch.uint8)
    assert torch.equal(first.describe(image)["logits"], second.describe(image)["logits"])


def test_folders_need_nothing_else(shapes, tmp_path, capsys):
    command = [
        "run",
        f"--data.known=folder:{shapes}/known",
        f"--data.unknown={{other: 'folder:{shapes}/other'}}",
    ]
    options = ["--trainer.max_epochs=3", "--model.alpha=0.2", f"--trainer.default_root_dir={tmp_path}", *FAST]
    assert main([*command, *options]) == 0
    out = capsys.readouterr().out
    [counts] = re.findall(r"known: 3 classes \(bar, cross, dot\), (.*) train/val/test, colour 20x20", out)
    assert sum(map(int, counts.split("/"))) == 120
    assert "unknown: other 10" in out
    folder = tmp_path / "lightning_logs" / "default" / "version_0"
    results = json.loads((folder / "results.json").read_text())
    assert results["classes"] == ["bar", "cross", "dot"]
    assert (results["data"]["channels"], results["data"]["image_size"]) == (3, 20)
    found = sum(one["count"] for one in results["closed_set"]["per_class"].values())
    assert found == int(counts.split("/")[2]) == results["closed_set"]["count"]
    assert (folder / "predictions.csv").read_text().splitlines()[1].split(",")[1].startswith("bar/")


def test_a_renamed_class_stops_the_test_and_is_named(shapes, tmp_path, capsys):
    options = ["--trainer.max_epochs=1", "--model.alpha=0.2", f"--trainer.default_root_dir={tmp_path}", *FAST]
    options += SMALL_NETWORK
    known, copy = f"--data.known=folder:{shapes}/known", tmp_path / "copy"
    assert main(["run", known, "--data.unknown={}", *options]) == 0
    ckpt = tmp_path / "lightning_logs" / "default" / "version_0" / "checkpoints" / "best.ckpt"
    shutil.copytree(shapes / "known", copy)
    (copy / "bar").rename(copy / "zebra")
    for command in ("test", "calibrate"):
        arguments = [
            command,
            f"--ckpt_path={ckpt}",
            f"--data.known=folder:{copy}",
            "--data.allow_overlap=true",
        ]
        assert main([*arguments, f"--trainer.default_root_dir={tmp_path}", *FAST]) == 2
        error = capsys.readouterr().err
        assert "'zebra'" in error
        assert "'bar'" in error


def test_given_facts_win_and_others_are_refused_at_the_test(shapes, tmp_path, capsys):
    options = [f"--trainer.default_root_dir={tmp_path}", *FAST]
    given = ["--data.image_size=16", "--data.channels=1", "--data.mean=0.5", "--data.std=0.25"]
    known = f"--data.known=folder:{shapes}/known"
    training = ["--trainer.max_epochs=1", "--model.alpha=0.2", *SMALL_NETWORK]
    assert main(["run", known, *given, *training, *options]) == 0
    ckpt = tmp_path / "lightning_logs" / "default" / "version_0" / "checkpoints" / "best.ckpt"
    spec = load(ckpt).spec
    assert (spec.image_size, spec.channels, spec.mean, spec.std) == (16, 1, (0.5,), (0.25,))
    assert main(["test", f"--ckpt_path={ckpt}", "--data.image_size=20", *options]) == 2
    assert "image_size 16, not 20" in capsys.readouterr().err


def test_a_threshold_that_decides_nothing_is_said_aloud(tiny_root, tmp_path, capsys):
    for threshold, said in (
        ("-1", "of the known test images are rejected"),
        ("1e9", "of noise are rejected"),
    ):
        command = [
            "run",
            f"--data.root={tiny_root}",
            f"--data.unknown={{noise: 'npz:{tiny_root}/unknown.npz'}}",
        ]
        command += ["--model.calibration=fixed", f"--model.threshold={threshold}", "--trainer.max_epochs=1"]
        command += [f"--trainer.default_root_dir={tmp_path}/{threshold}", *SMALL_NETWORK, *FAST]
        assert main(command) == 0
        folder = tmp_path / threshold / "lightning_logs" / "default" / "version_0"
        warnings = json.loads((folder / "results.json").read_text())["warnings"]
        assert any(said in warning for warning in warnings)
        assert said in " ".join(capsys.readouterr().out.split())
        assert said in (folder / "report.html").read_text()


def test_asking_loads_no_lightning(small_run, tmp_path):
    moved = tmp_path / "elsewhere" / "model.ckpt"
    moved.parent.mkdir()
    shutil.copy(small_run / "checkpoints" / "best.ckpt", moved)
    Image.fromarray(np.zeros((30, 20, 3), np.uint8)).save(tmp_path / "black.png")
    code = (
        "import sys\nfrom osr_lightning import load\n"
        f"print(load({str(moved)!r}).predict({str(tmp_path / 'black.png')!r}))\n"
        "late = {'lightning', 'pytorch_lightning', 'torchvision', 'torchmetrics', 'torch._dynamo', 'sympy'}\n"
        "print(late & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Prediction(label=" in done.stdout
    assert done.stdout.endswith("set()\n")
