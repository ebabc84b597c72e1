"""The default score is fitted after the training; its references choose no threshold."""

import copy
import functools
import json

import pytest
import torch
from lightning.pytorch import Trainer
from quick import FAST, TRAINER

from osr_lightning import BaselineClassifier, MCDropoutClassifier, OpenSetDataModule, OpenSetTrainer, load
from osr_lightning.__main__ import main
from osr_lightning.errors import UserError
from osr_lightning.models.networks import MCDropoutCNN
from osr_lightning.scoring.detectors import DETECTORS
from osr_lightning.scoring.quantile import images_needed, known_quantile
from osr_lightning.training import module as training
from osr_lightning.training.calibration import check_images, fit_detectors, reference_count, references

NETWORK = functools.partial(MCDropoutCNN, channels=(2, 3), hidden=5)


def data(root, **options):
    return OpenSetDataModule(root=str(root), unknown={"noise": "noise:uniform"}, **options)


def fit(root, folder, model):
    torch.manual_seed(0)
    trainer = OpenSetTrainer(max_epochs=1, default_root_dir=str(folder), logger=False, **TRAINER)
    Trainer.fit(trainer, model, datamodule=data(root))  # Lightning's own, which fits nothing afterwards
    trainer.save_checkpoint(folder / "fit.ckpt")
    return trainer, folder / "fit.ckpt"


@pytest.fixture(scope="module", params=[BaselineClassifier, MCDropoutClassifier])
def fitted(request, tiny_root, tmp_path_factory):
    """A model that was trained only, its checkpoint, and that calibrated."""
    folder = tmp_path_factory.mktemp("fit")
    model = request.param(NETWORK)
    trainer, path = fit(tiny_root, folder, model)
    trainer.calibrate(model, data(tiny_root), str(path), output=str(folder / "calibrated.ckpt"))
    return model, path, folder / "calibrated.ckpt"


def test_half_are_references_unless_alpha_needs_more():
    assert images_needed(0.05) == 19
    assert [reference_count(known, None) for known in (1, 2, 7, 100)] == [1, 1, 3, 50]
    assert [reference_count(known, 0.05) for known in (100, 38, 30, 20)] == [50, 19, 11, 1]
    check_images(0.05, ("fisher",), 20, shared=True)
    check_images(0.05, ("fisher",), 19, shared=False)
    with pytest.raises(UserError, match="needs 19 validation images beside 1 for reference of the score"):
        check_images(0.05, ("fisher",), 19, shared=True)
    check_images(0.05, ("energy",), 19, shared=True)


def test_probabilities_of_training_images_are_there_for_the_fit_that_looks_at_them(fitted, tiny_root):
    class Seeing(DETECTORS["knn"]):
        fits_probability = True

        def _fit(self, known):
            found.append(known.seen["log_probability"].exp().sum(1))
            return super()._fit(known)

    found = []
    recogniser = copy.deepcopy(fitted[0].trained)
    module = data(tiny_root)
    train, _ = module.tables.load_training()
    recogniser.detectors["knn"] = Seeing()
    fit_detectors(recogniser, module.fitting_dataloader(), references(module.tables, recogniser, 0.05)[0])
    torch.testing.assert_close(found, [torch.ones(len(train), dtype=torch.float64)])


def test_the_split_is_by_content(fitted, tiny_root):
    recogniser = fitted[0].trained
    module = data(tiny_root)
    _, known = module.tables.load_training()
    _, taken = references(module.tables, recogniser, 0.05)
    assert taken.sum() == 40
    assert torch.equal(taken, references(data(tiny_root).tables, recogniser, 0.05)[1])
    # the same images in another order
    order = torch.randperm(len(known), generator=torch.Generator().manual_seed(0))
    known.images, known.labels = known.images[order], known.labels[order]
    batches, moved = references(module.tables, recogniser, 0.05)
    assert torch.equal(moved, taken[order])
    images = torch.cat([batch.image for batch in batches])
    assert torch.equal(images, known.images[moved])
    # copies stay together
    known.images = known.images[torch.arange(80) // 2 * 2]
    pairs = references(module.tables, recogniser, 0.05)[1].view(40, 2)
    assert torch.equal(pairs[:, 0], pairs[:, 1])


def test_scores_without_references_take_none(tiny_root):
    model = BaselineClassifier(NETWORK, score="knn")
    model.build(data(tiny_root).spec)
    assert references(data(tiny_root).tables, model.trained, 0.05) == (None, None)


def test_the_threshold_is_the_quantile_of_the_other_half(fitted, tiny_root):
    recogniser = load(fitted[2])
    module = data(tiny_root)
    _, taken = references(module.tables, recogniser, 0.05)
    _, known = module.tables.load_training()
    record = recogniser.threshold.record
    assert record.count_known == 40
    assert recogniser.threshold.records["generalized_entropy"].count_known == 80
    with torch.no_grad():
        scores = recogniser.describe(known.images)["score/fisher"]
    assert record.value == pytest.approx(known_quantile(scores[~taken].numpy(), 0.05), rel=1e-9)
    assert recogniser.detectors["fisher"].references.shape == (3, 40)


def test_unknown_images_that_calibrate_are_no_references(fitted, tiny_root):
    module = data(tiny_root, calibration_unknown={"photos": "photo_patches"})
    _, taken = references(module.tables, fitted[0].trained, None)
    assert len(taken) > 80
    assert taken[:80].sum() == 40
    assert not taken[80:].any()


def test_where_test_images_calibrate_all_validation_images_are_references(fitted, tiny_root):
    module = data(tiny_root, calibrate_on="test")
    batches, taken = references(module.tables, fitted[0].trained, 0.05)
    assert sum(len(batch.row) for batch in batches) == 80
    assert not taken.any()


def test_a_checkpoint_that_was_only_trained_says_so(fitted, tmp_path, capsys, tiny_root):
    _, path, _ = fitted
    with pytest.raises(UserError, match="fisher is fitted after the training, and is not yet: calibrate the"):
        load(path).predict(torch.zeros(28, 28, dtype=torch.uint8))
    command = ["test", f"--ckpt_path={path}", f"--trainer.default_root_dir={tmp_path}", *FAST]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert f"{path} was not calibrated with the score fisher" in said
    assert f"osr calibrate --ckpt_path {path} writes one that was" in said
    # another score has its threshold
    assert main([*command, "--model.score=generalized_entropy"]) == 0


def test_the_calibrated_checkpoint_is_complete(fitted, tmp_path, tiny_root):
    model, _, path = fitted
    one, two = load(path), model.eval().trained
    pixels = torch.randint(0, 256, (9, 1, 28, 28), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(one(pixels).score, two(pixels).score)
    assert one.predict(pixels)[0].threshold == two.threshold.value
    command = [f"--ckpt_path={path}", f"--trainer.default_root_dir={tmp_path}", *FAST]
    assert main(["test", *command]) == 0
    [results] = tmp_path.glob("lightning_logs/*/version_0/results.json")
    assert json.loads(results.read_text())["score"] == {"name": "fisher"}
    other = main(["calibrate", *command[:-3], f"--output={tmp_path}/again.ckpt", "--model.alpha=0.1"])
    assert other == 0
    assert load(tmp_path / "again.ckpt").threshold.record.count_known == 40


def test_further_training_forgets_the_fit(fitted, tiny_root, tmp_path):
    model = type(fitted[0]).load_from_checkpoint(fitted[2])
    assert model.trained.detectors["fisher"].fitted
    fit(tiny_root, tmp_path, model)
    assert not model.trained.detectors["fisher"].fitted
    assert "fisher" not in model.trained.threshold.records


@pytest.mark.parametrize("kind", [BaselineClassifier, MCDropoutClassifier])
def test_what_a_fit_keeps_is_fitted_and_has_its_threshold(kind, tiny_root, tmp_path):
    torch.manual_seed(0)
    trainer = OpenSetTrainer(max_epochs=2, default_root_dir=str(tmp_path), **TRAINER)
    model = kind(NETWORK)
    trainer.fit(model, datamodule=data(tiny_root))
    assert "val/accuracy" in trainer.callback_metrics  # of the training, not of what followed
    folder = tmp_path / "lightning_logs" / "default" / "version_0" / "checkpoints"
    for name in ("best", "last"):
        recogniser = load(folder / f"{name}.ckpt")
        assert recogniser.threshold.score == "fisher"
        assert recogniser.detectors["fisher"].fitted
        assert recogniser.predict(torch.zeros(28, 28, dtype=torch.uint8))[0].threshold > 0
    # the model has the weights of the last
    last = load(folder / "last.ckpt").state_dict()
    for name, value in model.trained.state_dict().items():
        assert not isinstance(value, torch.Tensor) or torch.equal(value, last[name])


def test_without_checkpoints_the_model_itself_is_fitted(tiny_root):
    model = BaselineClassifier(NETWORK)
    OpenSetTrainer(max_epochs=1, logger=False, **TRAINER).fit(model, datamodule=data(tiny_root))
    assert model.trained.predict(torch.zeros(28, 28, dtype=torch.uint8))[0].threshold > 0


def test_a_fit_reads_no_test_images(tiny_root, tmp_path):
    trainer = OpenSetTrainer(max_epochs=1, default_root_dir=str(tmp_path), **TRAINER)
    module = OpenSetDataModule(root=str(tiny_root), unknown={"gone": "folder:/no/such/folder"})
    trainer.fit(BaselineClassifier(NETWORK), datamodule=module)
    assert module.tables.test is None


def test_best_weights_that_are_the_last_are_looked_at_once(tiny_root, tmp_path, monkeypatch):
    looked = []
    whole = training.fit_detectors
    monkeypatch.setattr(training, "fit_detectors", lambda *args: looked.append(whole(*args)))
    trainer = OpenSetTrainer(max_epochs=1, default_root_dir=str(tmp_path), **TRAINER)
    trainer.fit(BaselineClassifier(NETWORK), datamodule=data(tiny_root))
    assert len(looked) == 1
    folder = tmp_path / "lightning_logs" / "default" / "version_0" / "checkpoints"
    best, last = (torch.load(folder / f"{name}.ckpt", weights_only=True) for name in ("best", "last"))
    assert best["images"].keys() == last["images"].keys()
    for name, value in best["state_dict"].items():
        found = last["state_dict"][name]
        assert torch.equal(found, value) if isinstance(value, torch.Tensor) else found == value
