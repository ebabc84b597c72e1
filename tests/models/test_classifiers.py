"""The LightningModules outside the command line."""

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, roc_auc_score

from osr_lightning.data.batch import Batch
from osr_lightning.errors import UserError
from osr_lightning.models.classifiers import BaselineClassifier, MCDropoutClassifier
from osr_lightning.models.metrics import ScoreAUROC, decision_metrics, rejection_metrics
from osr_lightning.models.networks import MCDropoutCNN
from osr_lightning.scoring.calibration import Costs


def batch_of(count: int, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 1, 28, 28, generator=generator)
    labels = torch.randint(0, 11, (count,), generator=generator)
    return Batch(images, labels, (labels == 10).long(), torch.arange(count))


@pytest.mark.parametrize("classifier", [BaselineClassifier, MCDropoutClassifier])
def test_no_argument_gives_the_studys_network(classifier):
    model = classifier()
    assert sum(p.numel() for p in model.network.parameters()) == 76018
    assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    samples = model.sample_logits(torch.zeros(2, 1, 28, 28))
    assert samples.shape == (10 if classifier is MCDropoutClassifier else 1, 2, 10)


@torch.no_grad()
def test_dropout_stays_on_in_eval_and_modes_are_left_alone():
    model = MCDropoutClassifier().eval()
    images = batch_of(4).image
    samples = model.sample_logits(images)
    assert (samples[0] - samples[1]).abs().max() > 1e-3
    assert not any(module.training for module in model.modules())
    assert torch.equal(model(images), model(images))  # one deterministic pass
    model.train()
    model.sample_logits(images)
    assert all(module.training for module in model.modules())


@torch.no_grad()
def test_shared_masks_do_not_depend_on_the_batch_and_leave_the_global_state():
    model = MCDropoutClassifier().eval()
    batch = batch_of(6)
    state = torch.get_rng_state()
    whole = model.sample_logits(batch.image)
    parts = torch.cat([model.sample_logits(batch.image[:1]), model.sample_logits(batch.image[1:])], dim=1)
    torch.testing.assert_close(whole, parts, atol=1e-5, rtol=0)
    assert torch.equal(torch.get_rng_state(), state)


@torch.no_grad()
def test_independent_masks_start_again_with_every_epoch():
    model = MCDropoutClassifier(masks="independent").eval()
    images = batch_of(3).image
    first, second = model.sample_logits(images), model.sample_logits(images)
    assert not torch.equal(first, second)
    model.on_test_epoch_start()
    assert torch.equal(model.sample_logits(images), first)


@torch.no_grad()
def test_classify_against_the_definitions():
    model = MCDropoutClassifier(num_samples=3, score="msp").eval()
    batch = batch_of(20)
    results = model.classify(batch)
    probability = model.sample_logits(batch.image).double().softmax(-1).mean(0)  # (B, K)
    torch.testing.assert_close(results["confidence"], probability.max(-1).values)
    assert torch.equal(results["predicted_class"], probability.argmax(-1))
    torch.testing.assert_close(results["score/msp"], 1 - probability.max(-1).values)
    known = batch.label < 10
    expected = -probability[known, batch.label[known]].log()
    torch.testing.assert_close(results["nll"][known], expected)
    assert results["nll"][~known].isnan().all()
    model.threshold.fill_(results["score/msp"].median().item())
    assert torch.equal(model.rejected(results), results["score/msp"] > results["score/msp"].median())


def test_metrics_against_scikit_learn_with_unequal_batches():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 11, 500)
    predicted = np.where(rng.random(500) < 0.8, labels, rng.integers(0, 11, 500))
    scores = np.round(rng.normal(size=500) * 3 + 2 * (labels == 10), 1)  # with ties, far outside [0, 1]
    decisions, rejections, auroc = decision_metrics(10), rejection_metrics(), ScoreAUROC()
    for part in np.split(np.arange(500), [7, 300, 301]):
        decision, label = torch.from_numpy(predicted[part]), torch.from_numpy(labels[part])
        decisions.update(decision, label)
        rejections.update((decision == 10).int(), (label == 10).int())
        auroc.update(torch.from_numpy(scores[part]), label == 10)
    known = labels < 10
    assert decisions.compute()["test/known_accuracy"].item() == pytest.approx(
        accuracy_score(labels[known], predicted[known])
    )
    assert decisions.compute()["test/total_accuracy"].item() == pytest.approx(
        accuracy_score(labels, predicted)
    )
    unknown_accuracy = accuracy_score(labels[~known], predicted[~known])
    assert rejections.compute()["test/unknown_accuracy"].item() == pytest.approx(unknown_accuracy)
    assert auroc.compute().item() == pytest.approx(roc_auc_score(~known, scores), abs=1e-12)


def test_auroc_of_one_class_is_nan():
    metric = ScoreAUROC()
    metric.update(torch.tensor([0.1, 0.2]), torch.tensor([False, False]))
    assert metric.compute().isnan()


def test_hyperparameters_are_plain_values():
    model = MCDropoutClassifier(MCDropoutCNN(5), num_classes=5, costs=Costs(1, 2, 3))
    assert "network" not in model.hparams
    assert model.hparams["costs"] == {"wrong_label": 1, "false_alarm": 2, "missed_unknown": 3}
    assert model.hparams["num_samples"] == 10


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"num_classes": 1}, "num_classes"),
        ({"num_samples": 0}, "num_samples"),
        ({"alpha": 1.0}, "alpha"),
        ({"score": "msp", "threshold": -0.1}, "threshold"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"calibration": "optuna", "score": "energy"}, "energy"),
    ],
)
def test_bad_values_are_named(options, named):
    with pytest.raises(UserError, match=named):
        MCDropoutClassifier(**options)


def test_a_network_of_another_k_is_named():
    model = BaselineClassifier(MCDropoutCNN(5), num_classes=10)
    with pytest.raises(UserError, match="5 logits"):
        model.classify(batch_of(2))
