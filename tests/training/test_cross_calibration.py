"""A threshold from scores out of fold, and what a class that was left out would be taken for."""

import json
from pathlib import Path

import numpy as np
import photos
import pytest
import torch
from quick import FAST
from scipy.stats import betabinom
from torch import nn

from osr_lightning import load
from osr_lightning.__main__ import main
from osr_lightning.data_spec import DataSpec
from osr_lightning.models.backbones import Backbone
from osr_lightning.recogniser.checkpoint import build
from osr_lightning.scoring.calibration import CROSS
from osr_lightning.scoring.quantile import conformal_rank, known_quantile
from osr_lightning.training.calibration import are_few
from osr_lightning.training.cross_calibration import KnownFeatures, deal_folds, describe_part, fit_all
from osr_lightning.training.head import solve
from osr_lightning.training.left_out import leave_classes_out

WIDTH = 8
DECAY = 0.03


class Tiny(nn.Module):
    """A backbone whose features have eight numbers."""

    def __init__(self, num_classes: int = 2) -> None:
        super().__init__()
        self.last = nn.Linear(WIDTH, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.last(images.flatten(1)[:, :WIDTH])


def recogniser(classes=3, score="fisher", detectors=()):
    network = Backbone(classes, "tests.Tiny", None, factory=Tiny)
    spec = DataSpec(tuple("abcdefgh"[:classes]), 3, 4, (0.5,) * 3, (0.5,) * 3)
    recipe = {"sampler": "mc_dropout", "num_samples": 3, "score": score, "detectors": list(detectors)}
    return build(recipe, spec, network=network).eval()


def clouds(count, classes=3, seed=0, far=()):
    """Features of ``count`` images a class around a place of its own, and their labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count * classes) % classes
    features = torch.randn(count * classes, WIDTH, generator=generator)
    features[torch.arange(len(labels)), labels] += 4
    for label in far:
        features[labels == label] -= 12
    return features, labels


def known(count, **options):
    features, labels = clouds(count, **options)
    keys = [row.numpy().tobytes() for row in features]
    return KnownFeatures(features, labels, deal_folds(keys, labels))


# folds ----------------------------------------------------------------------------------------------------


def test_folds_hold_as_many_of_each_class_and_copies_together():
    rng = np.random.default_rng(0)
    labels = torch.from_numpy(np.repeat([0, 1, 2], [23, 40, 4]))
    keys = [rng.bytes(16) for _ in labels]
    folds = deal_folds(keys, labels)
    for label in range(3):
        counts = torch.bincount(folds[labels == label], minlength=5)
        assert counts.max() - counts.min() <= 1
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    again = deal_folds([keys[row] for row in shuffled.tolist()], labels[shuffled])
    assert torch.equal(again, folds[shuffled])
    keys[5], keys[60] = keys[1], keys[1]  # the second of another class
    copied = deal_folds(keys, labels)
    assert copied[1] == copied[5] == copied[60]
    assert set(copied.tolist()) == set(range(5))


# out of fold ----------------------------------------------------------------------------------------------


def test_an_images_score_depends_on_no_label_of_its_own_fold():
    data, one, two = known(20), recogniser(), recogniser()
    rows = fit_all(one, data, DECAY)
    changed = data.labels.clone()
    changed[data.folds == 2] = (changed[data.folds == 2] + 1) % 3
    other = fit_all(two, data._replace(labels=changed), DECAY)
    same = data.folds == 2
    for name in ("score/fisher", "score/energy", "logits"):
        torch.testing.assert_close(rows[name][same], other[name][same], rtol=1e-6, atol=1e-6)
        assert not torch.isclose(rows[name][~same], other[name][~same]).any()
    assert torch.equal(rows["row"], torch.arange(60))


def test_threads_share_the_folds_and_change_nothing(monkeypatch):
    data = known(60)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    alone, shared = recogniser(), recogniser()
    one_by_one = fit_all(alone, data)
    counts = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr(torch, "set_num_threads", counts.append)
    at_once = fit_all(shared, data)
    assert set(counts) == {1, 3}
    assert counts[-1] == 3  # as it was
    for name, values in one_by_one.items():
        torch.testing.assert_close(at_once[name], values, rtol=0, atol=0, equal_nan=True)
    weights = shared.state_dict()
    for name, value in alone.state_dict().items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, weights[name]), name


def test_the_fit_to_all_decides_and_its_references_are_out_of_fold():
    data, made = known(20), recogniser(detectors=["knn"])
    fit_all(made, data, DECAY)
    direction, last = made.sampler.network.direction, made.sampler.last_layer
    torch.testing.assert_close(direction.mean, data.features.mean(0))
    weight, bias = torch.zeros(3, WIDTH, requires_grad=True), torch.zeros(3, requires_grad=True)
    solve(weight, bias, direction(data.features), data.labels, DECAY)
    torch.testing.assert_close(last.weight, weight)
    torch.testing.assert_close(last.bias, bias)
    fisher = made.detectors["fisher"]
    assert fisher.references.shape[1] == 60
    with torch.no_grad():
        seen = made.look(data.features)
    # images that a Gaussian was fitted to lie nearer to it than those it has not seen
    assert fisher.references[1].mean() > fisher.statistics(seen)[1].mean()
    assert made.detectors["knn"].fitted


def test_on_the_real_path_false_alarms_are_about_alpha():
    shares = []
    for seed in range(5):
        data, made = known(24, seed=seed), recogniser()
        rows = fit_all(made, data, DECAY)
        features, _ = clouds(400, seed=1000 + seed)
        found = describe_part(made, features)["score/fisher"].numpy()
        shares.append(np.mean(found > known_quantile(rows["score/fisher"].numpy(), 0.1)))
    assert 0.05 < np.mean(shares) < 0.15


@pytest.mark.parametrize(("count", "alpha"), [(40, 0.05), (60, 0.1), (100, 0.2)])
def test_of_1000_draws_about_alpha_is_rejected_and_seldom_more_than_the_bound(count, alpha):
    """The score is the distance to the mean of images fitted to, in three dimensions."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(1000, count, 3, generator=generator, dtype=torch.float64)
    new = torch.randn(1000, 200, 3, generator=generator, dtype=torch.float64)
    folds = deal_folds([bytes([row]) for row in range(count)], torch.zeros(count))
    scores = torch.empty(1000, count, dtype=torch.float64)
    for fold in range(5):
        center = images[:, folds != fold].mean(1, keepdim=True)
        scores[:, folds == fold] = (images[:, folds == fold] - center).norm(dim=2)
    thresholds = torch.tensor([known_quantile(row.numpy(), alpha) for row in scores])
    rejected = (new - images.mean(1, keepdim=True)).norm(dim=2) > thresholds[:, None]
    shares = rejected.double().mean(1)
    assert 0.7 * alpha < shares.mean() < 1.1 * alpha
    assert shares.mean() <= 2 * alpha
    rank = conformal_rank(count, alpha)
    bound = betabinom.ppf(0.95, 200, count + 1 - rank, rank) / 200
    assert (shares <= bound).double().mean() > 0.93


def test_images_are_few_where_hardly_five_are_expected_above_the_threshold():
    assert [are_few(0.05, ["energy"], count) for count in (99, 100)] == [True, False]
    assert [are_few(0.05, ["fisher"], count) for count in (198, 199)] == [True, False]


# classes left out -----------------------------------------------------------------------------------------


def test_a_class_far_away_is_rejected_and_a_near_one_taken_for_its_neighbour():
    features, labels = clouds(60, classes=4, far=(3,))
    generator = torch.Generator().manual_seed(1)
    near = labels == 1  # where the first class is
    features[near] = torch.randn(int(near.sum()), WIDTH, generator=generator)
    features[near, 0] += 4
    keys = [row.numpy().tobytes() for row in features]
    made = recogniser(4)
    before = {name: value.clone() for name, value in made.sampler.state_dict().items()}
    data = KnownFeatures(features, labels, deal_folds(keys, labels))
    found = leave_classes_out(made, data, 0.1, class_weights=torch.tensor([1.0, 1.0, 2.0, 1.0]))
    assert list(found["classes"]) == ["a", "b", "c", "d"]
    far, neighbour = found["classes"]["d"], found["classes"]["b"]
    assert far["rejected"] > 0.95
    assert far["auroc"] > 0.98
    assert far["count"] == 60
    assert neighbour["rejected"] < 0.3
    assert neighbour["auroc"] < 0.7
    assert next(iter(neighbour["mistaken_for"])) == "a"
    assert sum(neighbour["mistaken_for"].values()) == pytest.approx(1 - neighbour["rejected"])
    assert found["rejected"] == pytest.approx(np.mean([one["rejected"] for one in found["classes"].values()]))
    assert all(torch.equal(before[name], value) for name, value in made.sampler.state_dict().items())
    assert not made.detectors["fisher"].fitted


def test_two_classes_and_too_few_images_give_no_estimate():
    assert leave_classes_out(recogniser(2), known(30, classes=2), 0.1) is None
    assert leave_classes_out(recogniser(), known(5), 0.05) is None  # ten are left, and it takes 19


# the commands ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """Twenty pictures of each of three classes, and of a fourth that is unknown."""
    pictures = photos.write_photos(tmp_path_factory.mktemp("few"), {**photos.CLASSES, **photos.OTHER})
    weights = photos.write_weights(tmp_path_factory.mktemp("weights") / "small.pth")
    named = [*photos.backbone_options(weights), f"--data.known=folder:{pictures}", *FAST]
    return [*named, "--data.known_classes=[brick, grass, sky]", "--trainer.max_epochs=2"]


@pytest.fixture(scope="module")
def run(words, tmp_path_factory):
    root = tmp_path_factory.mktemp("run")
    assert main(["run", *words, f"--trainer.default_root_dir={root}"]) == 0
    return root / "lightning_logs" / "default" / "version_0"


def test_few_pictures_choose_a_threshold_out_of_fold(run):
    results = json.loads((run / "results.json").read_text())
    threshold, split = results["threshold"], results["data"]
    assert threshold["method"] == CROSS
    assert threshold["count_known"] == 60 - results["closed_set"]["count"], split
    assert "about 0.05" in threshold["guarantee"]
    assert "at most 0.1 is proven where the folds' own fits decide" in threshold["guarantee"]
    assert results["achieved"]["bound"] > 0
    checkpoint = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    assert len(checkpoint["images"]["train"]) == threshold["count_known"]
    recogniser = load(run / "checkpoints" / "best.ckpt")
    assert recogniser.examples
    assert {record.method for record in recogniser.threshold.records.values()} == {CROSS}


def test_what_a_class_never_met_would_be_is_in_results_and_report(run):
    left_out = json.loads((run / "results.json").read_text())["left_out"]
    assert set(left_out["classes"]) == {"brick", "grass", "sky"}
    page = (run / "report.html").read_text()
    assert "an unknown like" in page
    assert f"{100 * left_out['classes']['sky']['rejected']:.0f} times in 100" in page


def test_another_alpha_stays_out_of_fold_and_validation_images_alone_are_refused(run, tmp_path, capsys):
    best, new = run / "checkpoints" / "best.ckpt", tmp_path / "new.ckpt"
    words = ["calibrate", f"--ckpt_path={best}", f"--output={new}", "--model.alpha=0.3"]
    root = f"--trainer.default_root_dir={tmp_path}"
    assert main([*words, root]) == 0
    records = load(new).threshold.records
    assert (records["fisher"].method, records["fisher"].target) == (CROSS, 0.3)
    assert records["fisher"].value < load(best).threshold.value
    assert main([*words, "--model.calibration=known_quantile", root]) == 2
    assert "were trained on" in capsys.readouterr().err
    assert main(["ensemble", str(best), f"--output={tmp_path / 'both.ckpt'}"]) == 2
    assert "--model.calibration known_quantile" in capsys.readouterr().err


def test_a_fit_leaves_the_last_checkpoint_to_go_on_with(words, tmp_path):
    root = f"--trainer.default_root_dir={tmp_path}"
    quiet = [word for word in words if not word.startswith("--evaluation")] + ["--model.schedule=step"]
    assert main(["fit", *quiet, root]) == 0
    folder = tmp_path / "lightning_logs" / "default" / "version_0" / "checkpoints"
    assert load(folder / "best.ckpt").threshold.record.method == CROSS
    last = torch.load(folder / "last.ckpt", weights_only=True)
    assert len(last["images"]["train"]) < len(torch.load(folder / "best.ckpt")["images"]["train"])
    more = [word.replace("max_epochs=2", "max_epochs=3") for word in quiet]
    assert main(["fit", *more, f"--ckpt_path={folder / 'last.ckpt'}", root]) == 0


def test_an_estimate_can_be_left_out(words, tmp_path):
    root = f"--trainer.default_root_dir={tmp_path}"
    told = ["--evaluation.left_out=false", "--model.calibration=known_quantile", "--model.alpha=0.3"]
    assert main(["run", *words, *told, root]) == 0
    folder = tmp_path / "lightning_logs" / "default" / "version_0"
    results = json.loads((folder / "results.json").read_text())
    assert "left_out" not in results
    assert results["threshold"]["method"] == "known_quantile"
    assert "A class that was never met" not in (folder / "report.html").read_text()


def test_without_a_frozen_backbone_it_is_refused(tiny_root, tmp_path, capsys):
    words = [
        "fit",
        f"--data.root={tiny_root}",
        f"--model.calibration={CROSS}",
        "--model.network=MCDropoutCNN",
    ]
    assert main([*words, "--trainer.max_epochs=1", f"--trainer.default_root_dir={tmp_path}"]) == 2
    assert "use known_quantile" in capsys.readouterr().err
    assert not list(Path(tmp_path).rglob("*.ckpt"))
