"""How a network is trained where the user does not say: from the known images, and what is given wins."""

import functools
import math

import numpy as np
import pytest
import torch
from torch import nn

from osr_lightning.data.augment import AUGMENTATIONS
from osr_lightning.data.batch import Batch
from osr_lightning.data.datamodule import OpenSetDataModule
from osr_lightning.data_spec import DataSpec
from osr_lightning.errors import UserError
from osr_lightning.models.networks import BaselineCNN, ConvNet, MCDropoutCNN
from osr_lightning.training.module import BaselineClassifier, MCDropoutClassifier
from osr_lightning.training.plan import Plan, plan_training
from osr_lightning.training.trainer import OpenSetTrainer

# Lightning's loaders use what torch has deprecated
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec")

STUDY = {
    "augment": "none",
    "learning_rate": 0.01,
    "weight_decay": 0.0,
    "label_smoothing": 0.0,
    "schedule": "step",
    "batch_size": 128,
    "epochs": 15,
}
ONE_CYCLE = {"weight_decay": 0.02, "label_smoothing": 0.05, "schedule": "one_cycle", "batch_size": 64}


def spec(channels=1, size=28, classes=10) -> DataSpec:
    names = tuple(f"class {label}" for label in range(classes))
    return DataSpec(names, channels, size, (0.5,) * channels, (0.25,) * channels)


def of(network=None, sampler="single", images=60_000, **known) -> dict:
    return vars(plan_training(network, sampler, spec(**known), images))


# what is chosen ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sampler", "name"), [("single", "BaselineCNN"), ("mc_dropout", "MCDropoutCNN")])
@pytest.mark.parametrize("size", [16, 20, 28])
def test_many_small_grey_images_are_the_studys(sampler, name, size):
    assert of(None, sampler, size=size) == {"network": name, **STUDY}
    assert of(None, sampler, size=size, images=10_000) == {"network": name, **STUDY}


OTHERS = {
    "colour": ({"channels": 3, "size": 32}, 60_000, "photos", 30),
    "small colour": ({"channels": 3, "size": 20}, 60_000, "photos", 30),
    "large grey": ({"size": 29}, 60_000, "none", 30),
    "tiny grey": ({"size": 15}, 60_000, "none", 30),
    "few grey": ({}, 9_999, "digits", 30),
    "few large grey": ({"size": 64}, 9_999, "digits", 30),
    "many grey of few classes": ({"size": 64, "classes": 2}, 2_000, "none", 48),
    "few grey of few classes": ({"classes": 2}, 1_999, "digits", 49),
    "the example of the docs": ({"channels": 3, "size": 32, "classes": 4}, 2_524, "photos", 39),
    "a handful": ({"channels": 3, "classes": 2}, 10, "photos", 300),
}


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("sampler", ["single", "mc_dropout"])
def test_all_other_images_get_the_convolutional_network(kind, sampler):
    known, images, augment, epochs = OTHERS[kind]
    assert of(None, sampler, images, **known) == {
        "network": "ConvNet",
        "augment": augment,
        "learning_rate": 0.004,
        "epochs": epochs,
        **ONE_CYCLE,
    }


@pytest.mark.parametrize(
    "network",
    [
        "BaselineCNN",
        "MCDropoutCNN",
        MCDropoutCNN,
        functools.partial(BaselineCNN, hidden=8),
        {"class_path": "osr_lightning.models.networks.BaselineCNN", "init_args": {"hidden": 8}},
    ],
)
@pytest.mark.parametrize("known", [{}, {"channels": 3, "size": 64}])
@pytest.mark.parametrize("images", [50, 60_000])
def test_the_studys_networks_by_name_are_trained_as_in_the_study(network, known, images):
    assert of(network, "single", images, **known) == {"network": None, **STUDY}


@pytest.mark.parametrize(
    ("network", "rate"),
    [
        ("ConvNet", 0.004),
        (ConvNet, 0.004),
        (functools.partial(ConvNet, channels=[8]), 0.004),
        ("resnet18", 0.001),
        ("my_networks.MyNet", 0.001),
        ({"class_path": "Torchvision", "init_args": {"name": "resnet18"}}, 0.001),
        (nn.Linear(2, 2), 0.001),
        (lambda num_classes: nn.Linear(2, num_classes), 0.001),
    ],
)
def test_other_networks_get_one_cycle_whatever_the_images(network, rate):
    expected = {"network": None, "learning_rate": rate, **ONE_CYCLE, "epochs": 30}
    assert of(network) == {**expected, "augment": "none"}
    assert of(network, channels=3) == {**expected, "augment": "photos"}
    assert of(network, images=5_000) == {**expected, "augment": "digits"}


@pytest.mark.parametrize("name", ["BaselineCNN", "ConvNet"])
def test_a_users_network_of_the_same_name_is_another(name):
    assert of(f"my_networks.{name}", channels=3) == of("my_networks.MyNet", channels=3)


# epochs -----------------------------------------------------------------------------------------------


def test_small_sets_are_trained_for_as_many_steps_and_no_longer_than_300_epochs():
    before = 300
    for images in [1, 2, 63, 319, 320, 321, 1000, 2524, 3199, 3200, 3201, 10_000, 1_000_000]:
        epochs = of(channels=3, images=images)["epochs"]
        assert 30 <= epochs <= 300
        assert epochs <= before  # more images, no more epochs
        if 30 < epochs < 300:  # 1,500 steps of 64, and not an epoch more
            assert epochs * images / 64 >= 1500 > (epochs - 1) * images / 64
        before = epochs
    assert of(channels=3, images=3199)["epochs"] == 31  # docs: more for fewer than 3,200 images
    assert of(channels=3, images=3200)["epochs"] == 30
    assert of(channels=3, images=0)["epochs"] == 300


@pytest.mark.parametrize(("epochs", "taken"), [(1, 1), (10_000, 10_000), (-1, -1), (None, 15)])
def test_numbers_of_epochs_are_let_through(epochs, taken):
    trainer = OpenSetTrainer(max_epochs=epochs, logger=False, accelerator="cpu")
    assert trainer.max_epochs == taken


@pytest.mark.parametrize("epochs", [0, -2, -100])
def test_what_is_no_number_of_epochs_is_refused(epochs):
    with pytest.raises(UserError, match=rf"trainer\.max_epochs must be at least 1 .*, got {epochs}"):
        OpenSetTrainer(max_epochs=epochs, logger=False, accelerator="cpu")


# what is given ----------------------------------------------------------------------------------------


GIVEN = {
    "augment": "photos_strong",
    "learning_rate": 0.5,
    "weight_decay": 0.0,
    "label_smoothing": 0.0,
    "schedule": "step",
}


@pytest.mark.parametrize("name", GIVEN)
@pytest.mark.parametrize("network", [None, "BaselineCNN", "resnet18"])
def test_a_value_that_is_given_wins_and_moves_no_other(name, network):
    known = {"channels": 3, "size": 32}
    model = BaselineClassifier(network, **{name: GIVEN[name]})
    found = vars(model.decide(spec(**known), 5000))
    assert found == {**of(network, images=5000, **known), name: GIVEN[name]}
    assert model.plan == Plan(**found)


def test_nothing_given_says_nothing_and_zero_does():
    chosen = plan_training(None, "single", spec(3, 32), 5000)
    assert chosen.with_given(dict.fromkeys(GIVEN)) == chosen
    assert chosen.with_given({"score": "msp", "alpha": 0.1}) == chosen
    assert chosen.with_given({"weight_decay": 0.0}).weight_decay == 0.0


@pytest.mark.parametrize("sampler", [BaselineClassifier, MCDropoutClassifier])
def test_the_network_that_is_chosen_is_built(sampler):
    for known, images, expected in (
        (spec(), 60_000, BaselineCNN if sampler is BaselineClassifier else MCDropoutCNN),
        (spec(3, 32), 60_000, ConvNet),
        (spec(), 500, ConvNet),
    ):
        model = sampler()
        model.decide(known, images)
        model.build(known)
        assert type(model.trained.sampler.network) is expected


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"augment": "photo"}, r"model\.augment: there is no 'photo'; did you mean photos\?"),
        ({"learning_rate": 0}, "learning_rate must be above 0"),
        ({"learning_rate": math.inf}, "learning_rate must be above 0"),
        ({"learning_rate": math.nan}, "learning_rate must be above 0"),
        ({"weight_decay": -0.1}, "weight_decay must be 0 or above"),
        ({"label_smoothing": 1}, r"label_smoothing must lie in \[0, 1\)"),
        ({"label_smoothing": -0.1}, r"label_smoothing must lie in \[0, 1\)"),
    ],
)
def test_what_is_out_of_range_is_refused(given, sentence):
    with pytest.raises(UserError, match=sentence):
        BaselineClassifier(**given)


# the training step ------------------------------------------------------------------------------------


def stepping(**options) -> tuple[BaselineClassifier, Batch]:
    """A model whose network is one linear layer, and a batch of two uneven classes."""
    torch.manual_seed(0)
    known = spec(1, 4, classes=2)
    flat = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    model = BaselineClassifier(flat, augment="none", **options)
    model.build(known)
    model.decide(known, 12)
    images = torch.randint(256, (12, 1, 4, 4), dtype=torch.uint8)
    return model, Batch(images, torch.tensor([0] * 9 + [1] * 3), torch.zeros(12), torch.arange(12))


@pytest.mark.parametrize("smoothing", [0.0, 0.05, 0.4])
def test_label_smoothing_spreads_that_share_over_all_classes(smoothing):
    model, batch = stepping(label_smoothing=smoothing)
    loss = model.training_step(batch, 0)
    logs = model(batch.image).log_softmax(-1)
    target = torch.eye(2)[batch.label] * (1 - smoothing) + smoothing / 2
    assert loss.item() == pytest.approx(-(target * logs).sum(-1).mean().item(), rel=1e-5)


def uneven(path, counts=(30, 10)) -> str:
    """An archive of so many images per class, bright bars at different places."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(len(counts)), counts)
    images = rng.integers(0, 60, (len(labels), 8, 8))
    for image, label in zip(images, labels, strict=True):
        image[:, 4 * label : 4 * label + 3] += 180
    np.savez(path, images=images.astype(np.uint8), labels=labels)
    return f"npz:{path}"


def trainer_of(tmp_path, **options) -> OpenSetTrainer:
    return OpenSetTrainer(
        default_root_dir=str(tmp_path),
        logger=False,
        enable_checkpointing=False,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


def test_balanced_classes_weigh_the_same_however_many_images_they_have(tmp_path):
    data = OpenSetDataModule(known=uneven(tmp_path / "x.npz"))
    model = BaselineClassifier("ConvNet", balance_classes=True, alpha=0.3)
    trainer_of(tmp_path, max_epochs=1).fit(model, datamodule=data)
    counts = torch.bincount(data.tables.train.labels)
    totals = counts * model.class_weights.cpu()
    assert torch.allclose(totals, totals.mean().expand(2))
    assert totals.sum().item() == pytest.approx(len(data.tables.train))  # the loss keeps its scale


def test_the_loss_of_balanced_classes_is_the_mean_of_theirs():
    model, batch = stepping(label_smoothing=0.0, balance_classes=True)
    model.class_weights = torch.tensor([12 / 2 / 9, 12 / 2 / 3])  # as for these 9 and 3 images
    loss = model.training_step(batch, 0)
    logs = -model(batch.image).log_softmax(-1)
    expected = (logs[:9, 0].mean() + logs[9:, 1].mean()) / 2
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_weights_of_classes_follow_the_model_to_its_device(tmp_path):
    data = OpenSetDataModule(known=uneven(tmp_path / "x.npz"))
    model = BaselineClassifier("ConvNet", balance_classes=True, alpha=0.3)
    trainer_of(tmp_path, max_epochs=1).fit(model, datamodule=data)
    # no GPU is needed to see it: the device meta holds no values, but refuses to mix with others
    model.to("meta")
    label = torch.zeros(4, dtype=torch.int64, device="meta")
    batch = Batch(torch.zeros(4, 1, 8, 8, dtype=torch.uint8, device="meta"), label, label, label)
    assert model.training_step(batch, 0).device.type == "meta"


def test_training_images_alone_are_augmented(tmp_path, monkeypatch):
    seen = []

    def noted(images):
        seen.append(len(images))
        assert model.training  # on standardised images, while training
        assert images.is_floating_point()
        return images

    monkeypatch.setitem(AUGMENTATIONS, "noted", noted)
    data = OpenSetDataModule(known=uneven(tmp_path / "x.npz"), unknown={"noise": "noise:uniform"})
    model = BaselineClassifier("ConvNet", augment="noted", alpha=0.3)
    trainer = trainer_of(tmp_path, max_epochs=2)
    trainer.fit(model, datamodule=data)
    assert sum(seen) == 2 * len(data.tables.train)
    seen.clear()
    trainer.validate(model, datamodule=data, verbose=False)
    assert seen == []


# epochs of a training ---------------------------------------------------------------------------------


class Ended(Exception):
    """What was planned is known by now."""


class Stopping(BaselineClassifier):
    def on_train_start(self):
        raise Ended


@pytest.mark.parametrize(
    ("options", "expected"), [({}, 300), ({"max_epochs": 2}, 2), ({"max_epochs": 1000}, 1000)], ids=str
)
def test_the_planned_epochs_are_the_trainings_unless_they_are_given(options, expected, tmp_path):
    trainer, data = trainer_of(tmp_path, **options), OpenSetDataModule(known=uneven(tmp_path / "x.npz"))
    with pytest.raises(Ended):
        trainer.fit(Stopping("ConvNet", alpha=0.3), datamodule=data)
    assert trainer.max_epochs == expected
    assert trainer.estimated_stepping_batches == expected * len(data.train_dataloader())


def test_a_number_of_steps_that_is_given_ends_the_training(tmp_path):
    trainer, data = trainer_of(tmp_path, max_steps=3), OpenSetDataModule(known=uneven(tmp_path / "x.npz"))
    with pytest.raises(Ended):
        trainer.fit(Stopping("ConvNet", alpha=0.3), datamodule=data)
    assert trainer.estimated_stepping_batches == 3


def test_a_datamodule_in_the_second_place_is_planned_for_too(tmp_path):
    trainer, data = trainer_of(tmp_path), OpenSetDataModule(known=uneven(tmp_path / "x.npz"))
    with pytest.raises(Ended):
        trainer.fit(Stopping("ConvNet", alpha=0.3), data)
    assert trainer.max_epochs == 300
    assert data.train_dataloader().batch_size == 64


@pytest.mark.parametrize(("given", "expected"), [(None, 64), (16, 16)])
def test_the_planned_batch_size_is_the_loaders_unless_it_is_given(given, expected, tmp_path):
    trainer = trainer_of(tmp_path, max_epochs=1)
    data = OpenSetDataModule(known=uneven(tmp_path / "x.npz"), batch_size=given)
    with pytest.raises(Ended):
        trainer.fit(Stopping("ConvNet", alpha=0.3), datamodule=data)
    assert data.train_dataloader().batch_size == expected


def test_a_backbone_that_learns_takes_smaller_steps_and_more_of_them_with_few_images():
    network = {"class_path": "Backbone", "init_args": {"finetune": True}}
    few, many = (plan_training(network, "mc_dropout", spec(3, 224), images) for images in (300, 20_000))
    assert (few.epochs, many.epochs) == (30, 10)
    assert few.augment == many.augment == "photos"
    frozen = plan_training({"class_path": "Backbone", "init_args": {}}, "mc_dropout", spec(3, 224), 300)
    assert few.learning_rate < frozen.learning_rate
    assert frozen.augment == "none"
