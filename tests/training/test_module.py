"""The LightningModules outside the command line."""

import functools
import re
import shutil

import numpy as np
import pytest
import sklearn.metrics
import torch
from lightning.pytorch import Trainer
from torch import nn

from osr_lightning.data.batch import Batch
from osr_lightning.data.datamodule import OpenSetDataModule
from osr_lightning.data_spec import DataSpec
from osr_lightning.errors import UserError
from osr_lightning.models.networks import BaselineCNN, MCDropoutCNN
from osr_lightning.scoring.calibration import fixed_calibration
from osr_lightning.scoring.sweep import Costs
from osr_lightning.training.metrics import EpochMetrics, OpenSetMetrics, ScoreAUROC
from osr_lightning.training.module import BaselineClassifier, MCDropoutClassifier

# Lightning's loaders use what torch has deprecated
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec")

CLASSIFIERS = [BaselineClassifier, MCDropoutClassifier]
SPEC = DataSpec(tuple("abcdefghij"), 1, 28, (0.13,), (0.31,))


def batch_of(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (count, 1, 28, 28), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 11, (count,), generator=generator)
    return Batch(images, labels, (labels == 10).long(), torch.arange(count))


def built(classifier=MCDropoutClassifier, *arguments, spec=SPEC, **options):
    model = classifier(*arguments, **options)
    model.build(spec)
    return model


def sample_logits(model, images):
    return model.trained.sampler(model.trained.standardise(images)).logits


def is_plain(value):
    if isinstance(value, dict):
        return all(type(key) is str and is_plain(item) for key, item in value.items())
    if type(value) is list:
        return all(map(is_plain, value))
    return value is None or type(value) in (bool, int, float, str)


# a model that is not trained --------------------------------------------------------------------------


@pytest.mark.parametrize("classifier", CLASSIFIERS)
def test_no_argument_gives_the_studys_network_for_the_facts(classifier):
    model = built(classifier)
    assert sum(p.numel() for p in model.parameters()) == 76018
    images = torch.zeros(2, 1, 28, 28, dtype=torch.uint8)
    assert model(images).shape == (2, 10)
    samples = sample_logits(model, images)
    assert samples.shape == (10 if classifier is MCDropoutClassifier else 1, 2, 10)
    other = built(classifier, spec=DataSpec(("x", "y", "z"), 3, 20, (0.5,) * 3, (0.5,) * 3))
    assert other(torch.zeros(2, 3, 20, 20, dtype=torch.uint8)).shape == (2, 3)
    assert other.num_classes == 3


@pytest.mark.parametrize("classifier", CLASSIFIERS)
def test_before_it_is_built_it_says_what_to_do(classifier):
    model = classifier()
    assert not list(model.parameters())
    assert model.expected_spec is None
    for ask in (lambda: model.trained, lambda: model.num_classes, lambda: model(batch_of(1).image)):
        with pytest.raises(UserError, match=r"give fit an OpenSetDataModule, .* or call build\(spec\)"):
            ask()
    model.build(SPEC)
    assert model.expected_spec == SPEC


@torch.no_grad()
def test_pixels_are_standardised_by_the_facts():
    model = built(BaselineClassifier).eval()
    images = batch_of(3).image
    network = model.trained.sampler.network
    expected = network((images.float() / 255 - 0.13) / 0.31)
    torch.testing.assert_close(model(images), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(sample_logits(model, images)[0], expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_dropout_stays_on_in_eval_and_modes_are_left_alone():
    model = built().eval()
    images = batch_of(4).image
    samples = sample_logits(model, images)
    assert (samples[0] - samples[1]).abs().max() > 1e-3
    assert not any(module.training for module in model.modules())
    assert torch.equal(model(images), model(images))  # one deterministic pass
    model.train()
    sample_logits(model, images)
    assert all(module.training for module in model.modules())
    assert not torch.equal(model(images), model(images))


@torch.no_grad()
def test_shared_masks_do_not_depend_on_the_batch_and_leave_the_global_state():
    model = built().eval()
    batch = batch_of(6)
    state = torch.get_rng_state()
    whole = sample_logits(model, batch.image)
    parts = [sample_logits(model, batch.image[:1]), sample_logits(model, batch.image[1:])]
    torch.testing.assert_close(whole, torch.cat(parts, dim=1), atol=1e-5, rtol=0)
    assert torch.equal(torch.get_rng_state(), state)


@torch.no_grad()
@pytest.mark.parametrize("stage", ["validation", "test", "predict"])
def test_independent_masks_start_again_with_every_epoch(stage):
    model = built(masks="independent").eval()
    images = batch_of(3).image
    first, second = sample_logits(model, images), sample_logits(model, images)
    assert not torch.equal(first, second)
    getattr(model, f"on_{stage}_epoch_start")()
    assert torch.equal(sample_logits(model, images), first)


@torch.no_grad()
def test_samples_masks_and_seed_are_those_asked_for():
    images = batch_of(2).image
    torch.manual_seed(0)
    model = built(num_samples=4, mask_seed=3).eval()
    samples = sample_logits(model, images)
    assert len(samples) == 4
    for other in (built(num_samples=4, mask_seed=3), built(num_samples=4, mask_seed=4)):
        other.trained.sampler.network.load_state_dict(model.trained.sampler.network.state_dict())
        same = torch.allclose(sample_logits(other.eval(), images), samples)
        assert same == (other.trained.sampler.mask_seed == 3)


@torch.no_grad()
def test_classify_against_the_definitions():
    model = built(num_samples=3, score="msp").eval()
    batch = batch_of(20)
    results = model.classify(batch)
    probability = sample_logits(model, batch.image).double().softmax(-1).mean(0)  # (B, K)
    torch.testing.assert_close(results["confidence"], probability.max(-1).values)
    assert torch.equal(results["predicted_class"], probability.argmax(-1))
    torch.testing.assert_close(results["score/msp"], 1 - probability.max(-1).values)
    torch.testing.assert_close(
        results["logits"], sample_logits(model, batch.image).mean(0), rtol=1e-5, atol=1e-5
    )
    for name in ("label", "source", "row"):
        assert torch.equal(results[name], getattr(batch, name))
    known = batch.label < 10
    assert known.any()
    assert not known.all()
    expected = -probability[known, batch.label[known]].log()
    torch.testing.assert_close(results["nll"][known], expected)
    assert results["nll"][~known].isnan().all()

    median = results["score/msp"].median()
    model.trained.threshold.records = {"msp": fixed_calibration(median.item())}
    unknown = results["score/msp"] > median
    assert 0 < unknown.sum() < 20
    assert torch.equal(model.rejected(results), unknown)
    decision = model.predict_step(batch, 0)["prediction"]
    assert torch.equal(decision, torch.where(unknown, 10, probability.argmax(-1)))


@torch.no_grad()
def test_images_without_a_label_can_be_classified():
    model, batch = built(BaselineClassifier).eval(), batch_of(4)
    results = model.classify(batch._replace(label=torch.full((4,), -1)))
    assert results["nll"].isnan().all()
    assert torch.equal(results["score/energy"], model.classify(batch)["score/energy"])


@torch.no_grad()
def test_without_a_threshold_there_is_no_decision():
    model, batch = built(BaselineClassifier, score="msp").eval(), batch_of(3)
    assert "prediction" not in model.predict_step(batch, 0)
    with pytest.raises(UserError, match="no threshold for the score msp"):
        model.rejected(model.classify(batch))
    unfitted = built(BaselineClassifier, score="knn").eval()
    with pytest.raises(UserError, match="score knn is fitted after the training, and is not yet"):
        unfitted.rejected(unfitted.classify(batch))


@torch.no_grad()
def test_a_given_threshold_decides_at_once():
    model = built(BaselineClassifier, score="energy", calibration="fixed", threshold=-1e9).eval()
    assert model.predict_step(batch_of(3), 0)["prediction"].tolist() == [10, 10, 10]


# metrics ----------------------------------------------------------------------------------------------


def test_metrics_against_scikit_learn_with_unequal_batches():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 11, 500)
    predicted = np.where(rng.random(500) < 0.8, labels, rng.integers(0, 10, 500)) % 10
    rejected = rng.random(500) < np.where(labels == 10, 0.7, 0.1)
    scores = np.round(rng.normal(size=500) * 3 + 2 * (labels == 10), 1)  # with ties, far outside [0, 1]
    metrics = OpenSetMetrics(10)
    for part in np.split(np.arange(500), [7, 300, 301]):
        metrics.update(*(torch.from_numpy(values[part]) for values in (predicted, rejected, scores, labels)))
    known, decision = labels < 10, np.where(rejected, 10, predicted)
    expected = {
        "known_accuracy": np.mean(decision[known] == labels[known]),
        "total_accuracy": np.mean(decision == labels),
        "unknown_accuracy": np.mean(rejected[~known]),
        "binary_accuracy": sklearn.metrics.accuracy_score(~known, rejected),
        "balanced_accuracy": sklearn.metrics.balanced_accuracy_score(~known, rejected),
        "precision": sklearn.metrics.precision_score(~known, rejected),
        "recall": sklearn.metrics.recall_score(~known, rejected),
        "f1": sklearn.metrics.f1_score(~known, rejected),
        "auroc": sklearn.metrics.roc_auc_score(~known, scores),
    }
    found = {name.removeprefix("test/"): value.item() for name, value in metrics.compute().items()}
    assert found == pytest.approx(expected, abs=1e-6)
    metrics.reset()
    # of one side alone, only what it defines
    metrics.update(torch.tensor([1, 2]), torch.tensor([False, True]), torch.zeros(2), torch.tensor([1, 2]))
    found = {name: value.item() for name, value in metrics.compute().items()}
    assert found == {"test/known_accuracy": 0.5, "test/total_accuracy": 0.5}


def test_auroc_is_exact_for_raw_scores_and_nan_for_one_class():
    rng = np.random.default_rng(1)
    unknown, scores = rng.random(400) < 0.3, np.round(rng.normal(size=400) * 50, 0)
    metric = ScoreAUROC()
    for part in np.split(np.arange(400), [1, 150]):
        metric.update(torch.from_numpy(scores[part]), torch.from_numpy(unknown[part]))
    assert metric.compute().item() == pytest.approx(sklearn.metrics.roc_auc_score(unknown, scores), abs=1e-12)
    metric.reset()
    metric.update(torch.tensor([0.1, 0.2]), torch.tensor([False, False]))
    assert metric.compute().isnan()


def test_an_epochs_loss_weighs_every_image_the_same():
    metrics = EpochMetrics(3)
    metrics.update(torch.tensor([1.0, 4.0]), torch.tensor([3, 1]), torch.tensor([0, 1, 2, 0]), torch.zeros(4))
    metrics.update(torch.tensor([6.0]), None, torch.tensor([1]), torch.tensor([1]))
    assert metrics.loss.compute().item() == pytest.approx((3 * 1 + 4 + 6) / 5)
    assert metrics.accuracy.compute().item() == pytest.approx(3 / 5)


# arguments --------------------------------------------------------------------------------------------


def test_hyperparameters_are_plain_values():
    network = functools.partial(MCDropoutCNN, dropout=0.2, channels=[8, 8])
    model = MCDropoutClassifier(network, detectors=["knn"], costs=Costs(1, 2, 3))
    assert model.hparams["network"] == {
        "class_path": "MCDropoutCNN",
        "init_args": {"dropout": 0.2, "channels": [8, 8]},
    }
    assert model.hparams["costs"] == {"wrong_label": 1, "false_alarm": 2, "missed_unknown": 3}
    assert model.hparams["num_samples"] == 10
    assert is_plain(dict(model.hparams))
    # a network made in Python has no plain name, and is not kept
    for kind, made in ((MCDropoutClassifier, MCDropoutCNN()), (BaselineClassifier, lambda k: BaselineCNN(k))):
        hparams = dict(kind(made).hparams)
        assert hparams["network"] is None
        assert is_plain(hparams)


def test_costs_may_be_given_as_plain_values():
    given = {"wrong_label": 1.0, "false_alarm": 2.0, "missed_unknown": 3.0}
    assert dict(MCDropoutClassifier(costs=given).hparams) == dict(
        MCDropoutClassifier(costs=Costs(1, 2, 3)).hparams
    )


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"num_samples": 0}, "num_samples"),
        ({"alpha": 1.0}, "alpha"),
        ({"alpha": 0.0}, "alpha"),
        ({"unknown_prior": 0.0}, "unknown_prior"),
        ({"score": "msp", "threshold": -0.1}, "threshold"),
        ({"threshold": float("nan")}, "threshold"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"calibration": "optuna", "score": "energy"}, "energy"),
    ],
)
def test_bad_values_are_named(options, named):
    with pytest.raises(UserError, match=named):
        MCDropoutClassifier(**options)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"num_samples": "3"}, "model.num_samples must be a whole number, got '3'"),
        ({"num_samples": 2.5}, "model.num_samples must be a whole number, got 2.5"),
        ({"mirror": 1}, "model.mirror must be True or False, got 1"),
        ({"mirror": "yes"}, "model.mirror must be True or False, got 'yes'"),
        ({"alpha": None}, "model.alpha must be a number, got None"),
        ({"alpha": True}, "model.alpha must be a number, got True"),
        (
            {"detectors": "knn"},
            "model.detectors must be a list of texts or None, as ['knn', 'vim'], got 'knn'",
        ),
        (
            {"costs": 5},
            "model.costs must be a mapping of wrong_label, false_alarm, missed_unknown to numbers",
        ),
        ({"costs": {"missed": 5}}, "model.costs must be a mapping of wrong_label, false_alarm"),
        ({"masks": "fresh"}, "model.masks must be 'shared' or 'independent', got 'fresh'"),
        ({"schedule": "two_cycle"}, "'cosine' or None, got 'two_cycle'"),
    ],
)
def test_values_of_another_type_are_named(options, told):
    with pytest.raises(UserError, match=re.escape(told)):
        MCDropoutClassifier(**options)


def test_values_of_numpy_become_plain():
    options = {"num_samples": np.int64(3), "alpha": np.float32(0.5), "mirror": np.True_}
    hparams = MCDropoutClassifier(detectors=("knn",), **options).hparams
    assert [hparams[name] for name in ("num_samples", "alpha", "mirror")] == [3, 0.5, True]
    assert is_plain(dict(hparams))


@pytest.mark.parametrize(
    ("options", "named"),
    [({"masks": "fresh"}, "fresh"), ({"score": "mps"}, "mps"), ({"detectors": ["knm"]}, "knm")],
)
def test_names_that_do_not_exist_are_refused_when_it_is_built(options, named):
    with pytest.raises(UserError, match=named):
        built(**options)


def test_a_network_of_another_k_is_named():
    with pytest.raises(UserError, match=r"gives \(2, 5\) .* 10 known classes"):
        built(BaselineClassifier, MCDropoutCNN(5))


@pytest.mark.parametrize(("given", "rate"), [(None, 0.3), (0.6, 0.6)])
def test_a_network_without_dropout_gets_one_before_its_head(given, rate):
    model = built(MCDropoutClassifier, BaselineCNN, dropout=given)
    assert model.trained.sampler.network.dropout.p == rate
    with torch.no_grad():
        samples = model.eval().trained.sampler(torch.rand(2, 1, 28, 28)).logits
    assert len(samples.unique(dim=0)) == 10


def test_a_network_named_in_python_is_the_users_own_word():
    assert built(BaselineClassifier, f"{__name__}.OwnNet").trained.sampler.network.last is not None


# checkpoints ------------------------------------------------------------------------------------------


class OwnNet(nn.Sequential):
    """A network of the user's, with a dropout deep inside."""

    def __init__(self, num_classes, width=7):
        super().__init__(nn.Flatten(), nn.Linear(784, width), nn.Dropout(0.3), nn.Linear(width, num_classes))

    def forward(self, images):
        return super().forward(images)


def trained(classifier, root, folder, *arguments, **options):
    torch.manual_seed(0)
    model = classifier(*arguments, **options)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(model, datamodule=OpenSetDataModule(root=str(root)))
    trainer.save_checkpoint(folder / "model.ckpt")
    return model.eval(), folder / "model.ckpt"


@pytest.fixture(scope="module", params=CLASSIFIERS)
def saved(request, tiny_root, tmp_path_factory):
    # a score that a fit alone can decide by
    folder = tmp_path_factory.mktemp("fit")
    return trained(request.param, tiny_root, folder, score="generalized_entropy")


def test_a_plain_fit_measures_the_facts_and_sets_a_threshold_for_every_score(saved, tiny_root):
    model, _ = saved
    spec = OpenSetDataModule(root=str(tiny_root)).spec
    assert model.trained.spec == spec
    assert spec.classes[3].startswith("3")
    records = model.trained.threshold.records
    assert {"msp", "energy", "generalized_entropy"} <= records.keys()
    for record in records.values():
        assert record.method == "known_quantile"
        assert record.count_known == 80  # a fifth of 400
        assert record.rejected_known <= 0.05
        assert record.calibrated_on == "validation images"
    assert not any(record.optimistic for record in records.values())


@torch.no_grad()
def test_a_checkpoint_alone_gives_the_same_model(saved, tmp_path):
    model, path = saved
    moved = shutil.copy(path, tmp_path / "elsewhere.ckpt")
    state = torch.get_rng_state()
    found = type(model).load_from_checkpoint(moved).eval()
    torch.set_rng_state(state)
    batch = batch_of(7)
    assert torch.equal(sample_logits(found, batch.image), sample_logits(model, batch.image))
    assert found.trained.spec == model.trained.spec
    assert found.trained.threshold.records == model.trained.threshold.records
    assert dict(found.hparams) == dict(model.hparams)
    assert torch.equal(found.predict_step(batch, 0)["prediction"], model.predict_step(batch, 0)["prediction"])


def test_a_checkpoint_is_data(saved):
    model, path = saved
    content = torch.load(path, weights_only=True)
    assert is_plain(content["hyper_parameters"])
    assert is_plain(content["datamodule_hyper_parameters"])
    assert is_plain(content["recogniser"])
    assert content["recogniser"]["facts"]["classes"] == list(model.trained.spec.classes)


def test_arguments_that_are_given_go_before_the_checkpoints(saved):
    model, path = saved
    found = type(model).load_from_checkpoint(path, score="msp", alpha=0.2)
    assert found.trained.threshold.score == "msp"
    assert found.hparams["alpha"] == 0.2
    assert found.trained.threshold.value == model.trained.threshold.records["msp"].value
    if isinstance(model, MCDropoutClassifier):
        images = batch_of(3).image
        with torch.no_grad():
            few = sample_logits(type(model).load_from_checkpoint(path, num_samples=3).eval(), images)
            other = sample_logits(type(model).load_from_checkpoint(path, mask_seed=1).eval(), images)
            expected = sample_logits(model, images)
        torch.testing.assert_close(few, expected[:3])
        assert not torch.allclose(other, expected)


def test_a_checkpoint_of_the_other_class_is_refused(saved):
    model, path = saved
    (other,) = (kind for kind in CLASSIFIERS if kind is not type(model))
    with pytest.raises(UserError, match=f"holds a .*, but the model is a {other.__name__}.*; in Python call"):
        other.load_from_checkpoint(path)


def test_a_loaded_model_can_be_tested_and_trained_on(saved, tiny_root, tmp_path):
    model, path = saved
    found = type(model).load_from_checkpoint(path)
    options = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    trainer = Trainer(
        accelerator="cpu", max_epochs=1, enable_model_summary=False, default_root_dir=tmp_path, **options
    )
    data = OpenSetDataModule(root=str(tiny_root), unknown={"noise": f"npz:{tiny_root}/unknown.npz"})
    (metrics,) = trainer.test(found, datamodule=data, verbose=False)
    # by hand, from the model that was never saved
    table = data.tables.load_test()
    with torch.no_grad():
        results = model.classify(Batch(table.images, table.labels, table.sources, torch.arange(len(table))))
    rejected = model.rejected(results)
    decision = results["predicted_class"].where(~rejected, 10)
    assert len(table) == 151
    assert metrics["test/total_accuracy"] == pytest.approx((decision == table.labels).double().mean().item())
    assert metrics["test/unknown_accuracy"] == pytest.approx(rejected[101:].double().mean().item())
    trainer.fit(found, datamodule=data)
    assert found.trained.spec == model.trained.spec


def test_a_network_of_the_users_own_needs_trust_or_is_given_again(tiny_root, tmp_path):
    network = functools.partial(OwnNet, width=5)
    model, path = trained(MCDropoutClassifier, tiny_root, tmp_path, network, num_samples=3)
    with pytest.raises(UserError, match=r"OwnNet, code from outside .*trust=True"):
        MCDropoutClassifier.load_from_checkpoint(path)
    images = batch_of(3).image
    with torch.no_grad():
        expected = sample_logits(model, images)
        for options in ({"trust": True}, {"network": network}):
            found = MCDropoutClassifier.load_from_checkpoint(path, **options).eval()
            torch.testing.assert_close(sample_logits(found, images), expected)


def test_a_network_made_in_python_is_asked_for_again(tiny_root, tmp_path):
    model, path = trained(BaselineClassifier, tiny_root, tmp_path, lambda k: OwnNet(k))
    with pytest.raises(UserError, match="made in Python"):
        BaselineClassifier.load_from_checkpoint(path)
    found = BaselineClassifier.load_from_checkpoint(path, network=OwnNet(10)).eval()
    images = batch_of(3).image
    with torch.no_grad():
        torch.testing.assert_close(sample_logits(found, images), sample_logits(model, images))
    with pytest.raises(UserError, match="shape"):
        BaselineClassifier.load_from_checkpoint(path, network=functools.partial(OwnNet, width=9))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"text",
        b"PK\x03\x04",
    ],
)
def test_a_damaged_file_is_no_checkpoint(tmp_path, content):
    (tmp_path / "a.ckpt").write_bytes(content)
    with pytest.raises(UserError, match="no readable checkpoint"):
        BaselineClassifier.load_from_checkpoint(tmp_path / "a.ckpt")


def test_a_missing_or_cut_file_is_no_checkpoint(saved, tmp_path):
    model, path = saved
    (tmp_path / "cut.ckpt").write_bytes(path.read_bytes()[:-500])
    with pytest.raises(UserError, match="no readable checkpoint"):
        type(model).load_from_checkpoint(tmp_path / "cut.ckpt")
    torch.save({"state_dict": {"weight": torch.zeros(2)}}, tmp_path / "other.ckpt")
    with pytest.raises(UserError, match="no checkpoint of osr_lightning"):
        type(model).load_from_checkpoint(tmp_path / "other.ckpt")
    with pytest.raises(UserError, match="there is no checkpoint"):
        type(model).load_from_checkpoint(tmp_path / "absent.ckpt")


class _Stricter(MCDropoutClassifier):
    def __init__(self, alpha: str = "five", more: object = None):
        super().__init__(network="ConvNet", alpha={"five": 0.05}[alpha], num_samples=3)


def test_a_subclass_says_what_its_base_is_given():
    made = _Stricter(more=[])
    assert (made.hparams["alpha"], made.hparams["num_samples"]) == (0.05, 3)


@pytest.mark.parametrize("given", [{"knn": 1}.keys(), iter(["knn"]), np.array(["knn", "vim"])])
def test_what_is_no_list_is_refused_before_it_is_copied(given):
    with pytest.raises(UserError, match=r"model\.detectors must be a list of texts"):
        MCDropoutClassifier(detectors=given)
