"""``osr wrap``: a classifier that was trained elsewhere becomes a checkpoint like any other."""

import csv
import json
import shutil

import numpy as np
import photos
import pytest
import timm
import torch
from quick import FAST
from starlette.testclient import TestClient

from osr_lightning import load
from osr_lightning.__main__ import main
from osr_lightning.deploy.serve.app import build_app
from osr_lightning.deploy.serve.open import open_backend

OPTIONS = [*FAST, "--model.alpha=0.2"]
LISTED = ["sky", "brick", "grass", "night"]  # another order than that of the folders, and one more


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Pictures that are new to a classifier, its weights, and those of one with other outputs."""
    root = tmp_path_factory.mktemp("wrap")
    photos.write_photos(root / "mine", count=24)
    photos.write_photos(root / "others", photos.OTHER, count=6)
    photos.write_classifier(root / "mine.pth", photos.write_photos(root / "seen", seed=7))
    state = torch.load(root / "mine.pth")
    for name in ("classifier.weight", "classifier.bias"):
        rows = torch.cat([state[name], torch.zeros_like(state[name][:1])])  # brick, grass, sky, night
        state[name] = rows[[2, 0, 1, 3]]
    torch.save(state, root / "listed.pth")
    (root / "listed.txt").write_text("\n".join(LISTED))
    return root


def words(places, weights="mine.pth", known="mine"):
    named = ["--network", photos.BACKBONE, "--weights", str(places / weights)]
    return ["wrap", *named, "--known", str(places / known)]


@pytest.fixture(scope="module")
def run(places, tmp_path_factory):
    root = tmp_path_factory.mktemp("run")
    told = [*words(places), "--unknown", str(places / "others"), *OPTIONS, "--model.detectors=[mahalanobis]"]
    assert main([*told, f"--trainer.default_root_dir={root}"]) == 0
    return root / "lightning_logs" / "default" / "version_0"


def rows(run):
    with (run / "predictions.csv").open() as file:
        return list(csv.DictReader(file))


def test_the_run_is_tested_and_was_not_trained(run):
    results = json.loads((run / "results.json").read_text())
    assert results["closed_set"]["accuracy"] > 0.9
    assert results["open_set"]["auroc"] > 0.7
    assert results["data"]["known"]["train"] > 0
    assert {row["label"] for row in rows(run)} == {*photos.CLASSES, "unknown"}
    assert (run / "report.html").is_file()
    assert not (run / "metrics.csv").exists() or "train/loss" not in (run / "metrics.csv").read_text()


def test_the_checkpoint_answers_as_the_classifier_does(run, places):
    original = timm.create_model(photos.BACKBONE.removeprefix("timm:"), num_classes=3).eval()
    original.load_state_dict(torch.load(places / "mine.pth"))
    recogniser = load(run / "checkpoints" / "best.ckpt")
    pixels = torch.randint(0, 256, (5, 3, photos.SIDE, photos.SIDE), dtype=torch.uint8)
    with torch.no_grad():
        expected = original(recogniser.standardise(pixels))
        found = recogniser.describe(pixels)["logits"]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_a_file_gets_the_row_of_the_test(run, places):
    recogniser = load(run / "checkpoints" / "best.ckpt")
    known = [row for row in rows(run) if row["label"] != "unknown"]
    for row in known[::3]:
        (found,) = recogniser.predict(str(places / "mine" / row["file"]))
        assert found.label == row["prediction"]
        assert found.score == pytest.approx(float(row["score"]), rel=1e-3)


def test_commands_take_the_checkpoint(run, places, tmp_path, capsys):
    ckpt, graph = str(run / "checkpoints" / "best.ckpt"), str(tmp_path / "mine.onnx")
    root = f"--trainer.default_root_dir={tmp_path}"
    assert main(["test", f"--ckpt_path={ckpt}", *FAST, root]) == 0
    assert main(["calibrate", f"--ckpt_path={ckpt}", *FAST, root, f"--output={tmp_path / 'c.ckpt'}"]) == 0
    again = tmp_path / "lightning_logs" / "default" / "version_0"
    assert [row["score"] for row in rows(again)] == [row["score"] for row in rows(run)]
    assert main(["compare", str(run), str(again), f"--output={tmp_path / 'both'}"]) == 0
    pytest.importorskip("onnxscript")
    assert main(["export", f"--ckpt_path={ckpt}", f"--output={graph}"]) == 0
    picture = places / "others" / "night" / "000.png"
    (by_checkpoint,), (by_graph,) = (load(one).predict(str(picture)) for one in (ckpt, graph))
    assert by_checkpoint.label == by_graph.label == "unknown"
    with TestClient(build_app(open_backend(load(ckpt)))) as client:
        answer = client.post("/predict", content=picture.read_bytes())
    assert '"unknown"' in answer.text


def test_drift_and_ensembles_take_the_checkpoint(run, places, tmp_path):
    ckpt = str(run / "checkpoints" / "best.ckpt")
    table = str(tmp_path / "answers.csv")
    assert main(["predict", f"--ckpt_path={ckpt}", str(places / "others"), f"--output={table}"]) == 0
    assert main(["drift", f"--ckpt_path={ckpt}", table, f"--output={tmp_path / 'drift'}"]) == 3  # all unknown
    other = photos.write_other(run / "checkpoints" / "best.ckpt", tmp_path / "other.ckpt")
    words = [ckpt, str(other), f"--output={tmp_path / 'two.ckpt'}", *FAST[:3]]
    assert main(["ensemble", *words]) == 0
    picture = places / "mine" / "sky" / "000.png"
    (alone,), (joined,) = (load(one).predict(str(picture)) for one in (ckpt, tmp_path / "two.ckpt"))
    assert joined.label == alone.label == "sky"
    assert joined.confidence == pytest.approx(alone.confidence, rel=0.01)


def test_a_study_does_not_wrap(places, tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text("model: {class_path: BaselineClassifier}\n")
    network = ["--model.network=Wrapped", f"--model.network.name={photos.BACKBONE}"]
    network.append(f"--model.network.weights={places / 'mine.pth'}")
    words = ["study", str(tmp_path / "mine.yaml"), *network, f"--data.known=folder:{places / 'mine'}"]
    assert main([*words, *OPTIONS, f"--trainer.default_root_dir={tmp_path}"]) == 2
    assert "a wrapped classifier is not trained" in capsys.readouterr().err


def test_it_is_not_trained_further(run, places, tmp_path, capsys):
    known = f"--data.known=folder:{places / 'mine'}"
    told = ["fit", "--model=BaselineClassifier", f"--ckpt_path={run / 'checkpoints' / 'best.ckpt'}", known]
    assert main([*told, *OPTIONS, f"--trainer.default_root_dir={tmp_path}"]) == 2
    assert "a wrapped classifier is not trained" in capsys.readouterr().err


def test_outputs_of_another_order_are_named(places, run, tmp_path):
    told = [*words(places, "listed.pth"), "--classes", str(places / "listed.txt"), *OPTIONS]
    told += ["--unknown", str(places / "others"), f"--trainer.default_root_dir={tmp_path}"]
    assert main(told) == 0
    found = rows(tmp_path / "lightning_logs" / "default" / "version_0")
    assert [row["prediction"] for row in found] == [row["prediction"] for row in rows(run)]


@pytest.mark.parametrize(
    ("weights", "options", "sentence"),
    [
        ("listed.pth", [], "4 outputs, and there are 3 known classes"),
        ("mine.pth", ["--trainer.max_epochs=3"], "osr wrap trains nothing: leave trainer.max_epochs out"),
        ("mine.pth", ["--model.network.dropout=0.2"], "names the network with --network"),
        ("mine.pth", ["--data.known_classes=[sky, grass]"], "3 outputs, and there are 2 known classes"),
        ("nowhere.pth", [], "there is no file"),
    ],
)
def test_what_does_not_fit_is_said_before_images_are_read(
    weights, options, sentence, places, tmp_path, capsys, monkeypatch
):
    from osr_lightning.data import folder

    def refuse(*args, **kwargs):
        raise AssertionError("a picture was read")

    monkeypatch.setattr(folder, "read_image", refuse)
    assert main([*words(places, weights), *OPTIONS, f"--trainer.default_root_dir={tmp_path}", *options]) == 2
    assert sentence in capsys.readouterr().err
    assert not list(tmp_path.glob("lightning_logs/*/*"))


def test_outputs_that_are_other_classes_are_refused(places, tmp_path, capsys):
    (tmp_path / "wrong.txt").write_text("grass\nsky\nbrick\n")
    told = [*words(places), *OPTIONS, f"--trainer.default_root_dir={tmp_path}"]
    assert main([*told, "--classes", str(tmp_path / "wrong.txt")]) == 2
    error = capsys.readouterr().err
    assert "the classifier names 0.0% of the known images rightly, where chance is 33.3%" in error
    assert "brick -> grass, grass -> sky, sky -> brick" in error
    assert "its outputs were taken for grass, sky, brick in this order" in error
    assert "if that is wrong, see to the order in --classes" in error
    assert not list(tmp_path.glob("lightning_logs/*/*"))


@pytest.mark.parametrize(
    ("network", "sentence"),
    [
        ("resnet1888", "there is no backbone 'resnet1888'; did you mean resnet18?"),
        ("resnet18", "name the file of resnet18's weights with --weights"),
    ],
)
def test_a_name_is_looked_up_before_weights_are_asked_for(network, sentence, capsys):
    assert main(["wrap", "--network", network, "--known", "mine"]) == 2
    assert sentence in capsys.readouterr().err


def test_images_that_are_too_few_for_alpha_leave_no_folder(places, tmp_path, capsys):
    told = [*words(places), *OPTIONS, f"--trainer.default_root_dir={tmp_path}", "--model.alpha=0.001"]
    assert main(told) == 2
    assert "alpha 0.001 needs 999" in capsys.readouterr().err
    assert not list(tmp_path.glob("lightning_logs/*/*"))


def test_two_classes_that_are_mixed_up_are_pointed_out(places, tmp_path, capsys):
    for copy, original in (("brick", "brick"), ("grass", "sky"), ("sky", "grass")):
        shutil.copytree(places / "mine" / original, tmp_path / "mixed" / copy)
    photos.write_photos(tmp_path / "mixed", {"brick": photos.CLASSES["brick"]}, count=30, seed=3)
    state = torch.load(places / "mine.pth")
    torch.save(state, tmp_path / "mine.pth")
    assert main([*words(tmp_path, known="mixed"), *OPTIONS, f"--trainer.default_root_dir={tmp_path}"]) == 2
    told = capsys.readouterr()
    assert "grass -> sky, sky -> grass" in told.err


def test_weights_are_named_for_what_brings_none(places, capsys):
    assert main(["wrap", "--network", "resnet18", "--known", str(places / "mine")]) == 2
    assert "name the file of resnet18's weights with --weights" in capsys.readouterr().err


NETWORK = """
import torch
from torch import nn


class MyNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.last = nn.Linear(3, 3)
        colours = torch.tensor([[180.0, 60, 40], [50, 160, 60], [70, 120, 220]]) / 255
        with torch.no_grad():
            self.last.weight.copy_(20 * colours)
            self.last.bias.copy_(-10 * colours.square().sum(1))

    def forward(self, images):
        return self.last(images.mean((2, 3)))
"""


def test_a_class_path_brings_its_weights_and_needs_trust(places, tmp_path, monkeypatch, capsys):
    (tmp_path / "my_networks.py").write_text(NETWORK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    told = ["wrap", "--network", "my_networks.MyNet", "--known", str(places / "mine"), *OPTIONS]
    told += ["--data.image_size=32", "--data.mean=0", "--data.std=1"]
    assert main(told) == 0
    assert "100.0% of" in capsys.readouterr().out
    ckpt = "lightning_logs/default/version_0/checkpoints/best.ckpt"
    picture = str(places / "mine" / "sky" / "001.png")
    assert main(["predict", f"--ckpt_path={ckpt}", picture, "--output=a.csv"]) == 2
    assert "--trust_checkpoint" in capsys.readouterr().err
    assert main(["predict", f"--ckpt_path={ckpt}", picture, "--output=a.csv", "--trust_checkpoint"]) == 0
    with open("a.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["prediction"] in ("sky", "unknown")
    assert float(row["confidence"]) > 0.9


GREY = """
import torch
from torch import nn


class GreyNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 1, 1), nn.Linear(1, 2)
        with torch.no_grad():
            self.first.weight.fill_(4.0)
            self.last.weight.copy_(torch.tensor([[1.0], [-1.0]]))
            for layer in (self.first, self.last):
                layer.bias.zero_()

    def forward(self, images):
        return self.last(self.first(images).mean((2, 3)))
"""


def test_a_classifier_of_grey_images_sees_colours_in_grey(tmp_path, monkeypatch):
    (tmp_path / "grey_networks.py").write_text(GREY)
    monkeypatch.syspath_prepend(tmp_path)
    photos.write_photos(tmp_path / "mine", {"bright": (200, 220, 210), "dark": (50, 30, 40)}, count=24)
    told = ["wrap", "--network", "grey_networks.GreyNet", "--known", str(tmp_path / "mine"), *OPTIONS]
    assert main([*told, "--data.image_size=32", f"--trainer.default_root_dir={tmp_path}"]) == 0
    recogniser = load(next(tmp_path.rglob("best.ckpt")), trust=True)
    assert (recogniser.spec.channels, len(recogniser.spec.mean)) == (1, 1)
    pictures = [tmp_path / "mine" / name / "000.png" for name in ("bright", "dark")]
    images = np.stack([recogniser.prepare(str(picture)) for picture in pictures])
    assert images.shape == (2, 1, 32, 32)
    assert recogniser.answer(images).probabilities.argmax(1).tolist() == [0, 1]
