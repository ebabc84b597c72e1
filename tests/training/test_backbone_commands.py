"""Every command on a checkpoint with a frozen backbone, and Lightning's own trainer with one."""

import csv
import json
import shutil

import lightning
import numpy as np
import photos
import pytest
import torch
from lightning.pytorch import Callback
from PIL import Image
from quick import FAST, TRAINER, refusal
from torch import nn

from osr_lightning import MCDropoutClassifier, OpenSetDataModule, OpenSetTrainer, load
from osr_lightning.__main__ import main
from osr_lightning.data import folder as folder_source
from osr_lightning.data.features import FeaturedImages
from osr_lightning.errors import UserError
from osr_lightning.models.backbones import Backbone, Body
from osr_lightning.models.dropout import dropout_places
from osr_lightning.recogniser.prediction import batch_size
from osr_lightning.studies.search.generated import KINDS, generate
from osr_lightning.training.backbone import use_backbone

KNOWN = ["brick", "grass", "sky"]
# a panorama, a banner, grey, palette with transparency, one smaller than the network's input, a phone's
SHAPES = [((400, 90), "RGB"), ((60, 900), "RGB"), ((200, 210), "L"), ((180, 170), "P"), ((20, 30), "RGB")]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Pictures and weights, and a finished study of two seeds and their ensemble."""
    root = tmp_path_factory.mktemp("photos")
    photos.write_photos(root / "pictures", {**photos.CLASSES, **photos.OTHER})
    photos.write_weights(root / "small.pth")
    (root / "few.yaml").write_text("model: {alpha: 0.2}\ntrainer: {max_epochs: 2}\n")
    words = [*options(root), *FAST, "--seeds", "0", "1", "--ensemble", f"--trainer.default_root_dir={root}"]
    words.append("--model.calibration=known_quantile")  # else validation images are learned too
    assert main(["study", str(root / "few.yaml"), *words]) == 0
    return root


@pytest.fixture(scope="module")
def run(place):
    return place / "lightning_logs" / "few" / "few-seed0"


@pytest.fixture(scope="module")
def ensemble(place):
    return place / "lightning_logs" / "few" / "few-ensemble2" / "checkpoints" / "ensemble.ckpt"


def options(place):
    words = photos.backbone_options(place / "small.pth")
    return [*words, f"--data.known=folder:{place / 'pictures'}", f"--data.known_classes={KNOWN}"]


def rows(folder):
    with (folder / "predictions.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture
def no_picture(monkeypatch):
    """Reading a picture of a folder fails."""

    def refuse(*args, **kwargs):
        raise AssertionError("a picture was read")

    monkeypatch.setattr(folder_source, "read_image", refuse)


@pytest.fixture
def looks(monkeypatch):
    """How many images each pass of a backbone has seen."""
    seen, forward = [], Body.forward

    def counting(body, images):
        if images.ndim == 4:
            seen.append(len(images))
        return forward(body, images)

    monkeypatch.setattr(Body, "forward", counting)
    return seen


# a checkpoint -----------------------------------------------------------------------------------------


def test_a_test_of_the_checkpoint_gives_the_rows_of_its_run(run, tmp_path, no_picture):
    words = [
        "test",
        f"--ckpt_path={run / 'checkpoints' / 'best.ckpt'}",
        f"--trainer.default_root_dir={tmp_path}",
    ]
    assert main([*words, *FAST]) == 0
    (tested,) = tmp_path.glob("lightning_logs/*/version_0")
    assert rows(tested) == rows(run)


def test_a_calibration_finds_the_threshold_again(run, tmp_path, no_picture):
    checkpoint = run / "checkpoints" / "best.ckpt"
    again = tmp_path / "again.ckpt"
    assert main(["calibrate", f"--ckpt_path={checkpoint}", f"--output={again}", *FAST[:3]]) == 0
    expected, found = (load(path).threshold.value for path in (checkpoint, again))
    assert found == pytest.approx(expected, rel=1e-9)


def test_predictions_are_compared_with_the_calibration(run, place, tmp_path, capsys):
    checkpoint = str(run / "checkpoints" / "best.ckpt")
    table = str(tmp_path / "p.csv")
    assert main(["predict", "--ckpt_path", checkpoint, str(place / "pictures"), "--output", table]) == 0
    assert main(["drift", "--ckpt_path", checkpoint, table, "--output", str(tmp_path)]) in (0, 3)
    assert json.loads((tmp_path / "drift.json").read_text())
    assert main(["compare", str(run), str(run.with_name("few-seed1"))]) == 0
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "report.html").unlink()
    assert main(["report", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run" / "report.html").is_file()


def test_a_picture_goes_through_the_backbone_once(run, place, looks):
    recogniser = load(run / "checkpoints" / "best.ckpt")
    pictures = sorted((place / "pictures" / "sky").iterdir())[:3]
    together = recogniser.answer(np.stack([recogniser.prepare(path) for path in pictures]))
    looks.clear()
    alone = [recogniser.answer(recogniser.prepare(path)[None]).score[0] for path in pictures]
    assert looks == [batch_size(recogniser.spec.input_shape, 128)] * len(pictures)
    assert together.score.tolist() == alone


def test_large_images_are_asked_alone_and_small_ones_in_batches():
    assert batch_size((3, 224, 224), 16) == batch_size((3, 224, 224), 128) == 1
    assert batch_size((1, 28, 28), 128) == 128
    assert batch_size((3, 64, 64), 128) == 42
    assert batch_size((3, 64, 64), 16) == 16


@pytest.mark.parametrize("option", ["augment=photos", "mix=cutmix", "pixmix=.", "loss=logit_norm"])
def test_what_a_network_would_have_to_learn_from_is_refused(option, place, tmp_path, capsys):
    words = [
        "fit",
        *options(place),
        *FAST,
        f"--model.{option}",
        "--model.alpha=0.2",
        f"--trainer.default_root_dir={tmp_path}",
    ]
    assert main(words) == 2
    assert f"leave model.{option.partition('=')[0]} out" in capsys.readouterr().err


# an exported graph ------------------------------------------------------------------------------------


def test_the_graph_holds_the_backbone_and_is_asked_with_pictures_of_any_shape(run, tmp_path):
    pytest.importorskip("onnxscript")
    checkpoint, path = run / "checkpoints" / "best.ckpt", tmp_path / "a.onnx"
    assert main(["export", "--ckpt_path", str(checkpoint), "--output", str(path)]) == 0
    graph, recogniser = load(path), load(checkpoint)
    rng = np.random.default_rng(0)
    for number, (size, mode) in enumerate(SHAPES):
        pixels = rng.integers(0, 256, (size[1], size[0], 3), np.uint8)
        file = tmp_path / f"{number}.png"
        Image.fromarray(pixels).convert(mode).save(file, **({"transparency": 3} if mode == "P" else {}))
        assert (graph.prepare(file) == recogniser.prepare(file)).all()
        (expected,), (found,) = recogniser.predict(file), graph.predict(file)
        assert found.label == expected.label
        assert found.score == pytest.approx(expected.score, rel=1e-4, abs=1e-4)
    asked = []
    session = graph.session

    class Asked:
        def run(self, outputs, given):
            asked.append(len(given["images"]))
            return session.run(outputs, given)

    graph.session = Asked()
    graph.predict(file)
    spec = recogniser.spec
    assert asked == [batch_size(spec.input_shape, 16)]
    about = json.loads(session.get_modelmeta().custom_metadata_map["preprocessing"])
    for part in (f"{spec.resize} pixels", spec.interpolation, f"cut {spec.image_size} x", "repeat grey"):
        assert part in about


def test_two_views_of_a_picture_are_one_input_of_the_graph(place, tmp_path):
    pytest.importorskip("onnxscript")
    words = ["run", *options(place), *FAST, "--model.network.views=2", "--model.alpha=0.2"]
    assert main([*words, "--trainer.max_epochs=2", f"--trainer.default_root_dir={tmp_path}"]) == 0
    checkpoint, path = next(tmp_path.rglob("best.ckpt")), tmp_path / "a.onnx"
    assert main(["export", "--ckpt_path", str(checkpoint), "--output", str(path)]) == 0
    recogniser, graph = load(checkpoint), load(path)
    assert recogniser.spec.resize == recogniser.spec.image_size
    with (checkpoint.parents[1] / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))[::7]
    for row in rows:
        picture = str(place / "pictures" / row["file"])
        (slow,), (fast,) = (one.predict(picture) for one in (recogniser, graph))
        assert slow.label == fast.label == row["prediction"]
        assert slow.score == pytest.approx(float(row["score"]), rel=1e-3)
        assert fast.score == pytest.approx(slow.score, rel=1e-3)


@pytest.mark.parametrize("source", ["folder:{}/wrong", "npz:{}/wrong.npz"])
def test_other_classes_are_refused_before_their_features_are_made(source, run, tmp_path, capsys, looks):
    for name in ("lawn", "wall"):
        photos.write_photos(tmp_path / "wrong", {name: (9, 9, 9)}, count=4)
    greys = np.full((16, 16, 3, 8), np.arange(8), np.uint8).transpose(3, 0, 1, 2)
    np.savez(tmp_path / "wrong.npz", images=greys, labels=[0, 1] * 4)
    words = ["calibrate", f"--ckpt_path={run / 'checkpoints' / 'best.ckpt'}"]
    words += [f"--data.known={source.format(tmp_path)}", "--data.known_classes=null"]
    looks.clear()
    said = refusal([*words, f"--output={tmp_path / 'new.ckpt'}", *FAST], capsys)
    assert "does not have the classes that were learned" in said
    assert max(looks) <= 2  # black images, by which a checkpoint is tried
    assert not (tmp_path / "new.ckpt").exists()


# several heads ----------------------------------------------------------------------------------------


def test_members_of_an_ensemble_share_the_backbone(run, ensemble, looks):
    members = [load(run.with_name(f"few-seed{seed}") / "checkpoints" / "best.ckpt") for seed in (0, 1)]
    joined = load(ensemble)
    assert len([module for module in joined.modules() if isinstance(module, Body)]) == 1
    kept = torch.load(ensemble, weights_only=True)["state_dict"]
    bodies = {name.partition(".network.")[0] for name in kept if ".body." in name}
    assert bodies == {"recogniser.sampler.members.0"}
    images = np.random.default_rng(0).integers(0, 256, (2, *members[0].spec.input_shape), np.uint8)
    each = [member.answer(images).probabilities for member in members]
    looks.clear()
    found = joined.answer(images).probabilities
    once = len(looks)
    members[0].answer(images)
    assert len(looks) == 2 * once
    np.testing.assert_allclose(found, np.mean(each, axis=0), rtol=1e-6)
    assert not np.allclose(each[0], each[1])


def test_an_ensemble_of_heads_is_exported_with_the_features_that_decide(ensemble, tmp_path):
    graph = tmp_path / "heads.onnx"
    assert main(["export", f"--ckpt_path={ensemble}", f"--output={graph}"]) == 0
    found, expected = load(graph), load(ensemble)
    assert expected.detectors[expected.threshold.score].layers == ("0:direction",)
    images = np.random.default_rng(1).integers(0, 256, (5, *expected.spec.input_shape), np.uint8)
    assert found.answer(images).score == pytest.approx(expected.answer(images).score, rel=1e-4)


def test_members_that_learn_of_validation_images_are_refused_before_any_training(place, tmp_path, capsys):
    root = f"--trainer.default_root_dir={tmp_path}"
    words = [*options(place), *FAST, "--seeds", "0", "1", "--ensemble", root]
    assert main(["study", str(place / "few.yaml"), *words]) == 2
    assert "give --model.calibration known_quantile" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.ckpt"))


def test_an_ensemble_is_joined_calibrated_and_tested_without_a_picture(run, ensemble, tmp_path, no_picture):
    again = tmp_path / "again.ckpt"
    third = photos.write_other(run / "checkpoints" / "best.ckpt", tmp_path / "third.ckpt")
    paths = [str(ensemble), str(third)]
    assert main(["ensemble", *paths, "--output", str(again), *FAST[:3]]) == 0
    assert len(load(again).sampler.members) == 3
    assert main(["test", f"--ckpt_path={again}", f"--trainer.default_root_dir={tmp_path}", *FAST]) == 0


@pytest.mark.parametrize("members", ["other networks", "nested"])
def test_a_backbone_that_members_only_claim_to_share_is_refused(members, ensemble, tmp_path):
    saved = torch.load(ensemble, weights_only=True)
    recipe = saved["recogniser"]["recipe"]
    if members == "nested":
        saved["recogniser"]["recipe"] = {**recipe, "members": [recipe] * 40}
    else:
        recipe["members"][1]["network"] = {"class_path": "MCDropoutCNN", "init_args": {"channels": [2, 3]}}
    torch.save(saved, tmp_path / "wrong.ckpt")
    with pytest.raises(UserError, match="damaged"):
        load(tmp_path / "wrong.ckpt")


# a search ---------------------------------------------------------------------------------------------


def test_a_search_makes_unknown_images_once(place, tmp_path, capsys, monkeypatch):
    (tmp_path / "space.yaml").write_text("model.weight_decay: {low: 0.01, high: 0.1}\n")
    words = ["search", "--space", str(tmp_path / "space.yaml"), "--trials", "1", *options(place), *FAST]
    words += ["--model.alpha=0.2", "--trainer.max_epochs=1", "--model.keep_examples=false"]
    assert main([*words, f"--trainer.default_root_dir={tmp_path / 'first'}"]) == 0
    assert "colour 64x64" in capsys.readouterr().out

    def refuse(*args, **kwargs):
        raise AssertionError("a picture was read")

    monkeypatch.setattr(folder_source, "read_image", refuse)
    assert main([*words, f"--trainer.default_root_dir={tmp_path / 'second'}"]) == 0


def test_features_of_made_images_are_those_of_their_pixels(place):
    tables = OpenSetDataModule(known=f"folder:{place / 'pictures'}", known_classes=KNOWN).tables
    use_backbone(Backbone(3, photos.BACKBONE, str(place / "small.pth")), None, tables)
    _, known = tables.load_training()
    made = generate(known, 0, tables.extractor)
    assert tuple(made) == KINDS
    for found in made.values():
        assert isinstance(found.images, FeaturedImages)
        pixels = found.images[torch.arange(len(found))]
        np.testing.assert_allclose(
            found.images.features.numpy(), tables.extractor(pixels.numpy()), rtol=1e-3, atol=1e-3
        )
    assert sum(map(len, made.values())) == len(known)


# in Python --------------------------------------------------------------------------------------------


def model(place, kind, **more):
    name, weights = photos.BACKBONE, str(place / "small.pth")
    recipe = {"class_path": "Backbone", "init_args": {"name": name, "weights": weights}}
    network = Backbone(3, name, weights) if kind == "module" else recipe
    return MCDropoutClassifier(network=network, alpha=0.2, keep_examples=False, **more)


def images(place, **more):
    return OpenSetDataModule(known=f"folder:{place / 'pictures'}", known_classes=KNOWN, **more)


@pytest.mark.parametrize("kind", ["module", "recipe"])
@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.filterwarnings("ignore:.*in eval mode at the start of training")  # a backbone is, always
@pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated:FutureWarning")  # Lightning with torch
def test_lightnings_own_trainer_trains_and_tests_a_backbone(kind, place, tmp_path, no_picture, monkeypatch):
    plain = {**TRAINER, "logger": False, "default_root_dir": str(tmp_path)}
    first, data = model(place, kind), images(place)
    trainer = lightning.Trainer(max_epochs=1, **plain)
    trainer.fit(first, data)
    assert data.tables.train.features is not None
    assert first.plan.augment == "none"
    (expected,) = trainer.test(first, data, verbose=False)
    trainer.save_checkpoint(tmp_path / "plain.ckpt")
    # a model that is told of no network takes that of the checkpoint, which Lightning reads after the images
    if kind == "recipe":
        monkeypatch.undo()
    other = model(place, kind) if kind == "module" else MCDropoutClassifier(alpha=0.2)
    (found,) = lightning.Trainer(**plain).test(
        other, images(place), ckpt_path=str(tmp_path / "plain.ckpt"), verbose=False, weights_only=True
    )
    assert found == expected


class Stop(Callback):
    def on_train_epoch_end(self, trainer, module):
        if trainer.current_epoch == 1:
            raise RuntimeError("stopped")


def test_a_resumed_training_equals_one_that_was_not_stopped(place, tmp_path):
    def fit(name, callbacks=(), ckpt_path=None):
        more = {"default_root_dir": str(tmp_path / name), "version": 0, "callbacks": list(callbacks)}
        trainer = OpenSetTrainer(max_epochs=3, **TRAINER, **more)
        torch.manual_seed(0)
        # whose last layer is that of the training: others fit it again to all images
        trained = model(place, "recipe", calibration="known_quantile")
        trainer.fit(trained, datamodule=images(place, num_workers=1), ckpt_path=ckpt_path)

    def last(name):
        return tmp_path / name / "lightning_logs" / "default" / "version_0" / "checkpoints" / "last.ckpt"

    fit("whole")
    with pytest.raises(RuntimeError, match="stopped"):
        fit("parts", [Stop()])
    fit("parts", ckpt_path=str(last("parts")))
    whole, parts = (torch.load(last(name), weights_only=True)["state_dict"] for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    tensors = [name for name, value in whole.items() if isinstance(value, torch.Tensor)]
    assert all(torch.equal(whole[name], parts[name]) for name in tensors)


def test_dropouts_of_a_backbone_do_not_act():
    body = Body(nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(12, 4)), 4)
    assert dropout_places(body) == []
