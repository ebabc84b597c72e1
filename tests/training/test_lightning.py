"""Lightning's own trainer and its callbacks: what is trained, averaged and tested is what is kept."""

import json
import re

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from quick import TRAINER

from osr_lightning import BaselineClassifier, EnsembleClassifier, MCDropoutClassifier, OpenSetDataModule, load
from osr_lightning.__main__ import main
from osr_lightning.models.networks import MCDropoutCNN
from osr_lightning.scoring.quantile import known_quantile

pytestmark = pytest.mark.filterwarnings("ignore:.*(LeafSpec|does not have many workers|logging interval)")
PLAIN = {**TRAINER, "logger": False, "max_epochs": 1}


def images(root, **options):
    return OpenSetDataModule(root=str(root), unknown={"noise": "noise:uniform"}, batch_size=160, **options)


@pytest.fixture(scope="module", params=[BaselineClassifier, MCDropoutClassifier])
def trained(request, tiny_root, tmp_path_factory):
    """A model that Lightning's own trainer fitted, its trainer, and a checkpoint of after that."""
    folder = tmp_path_factory.mktemp("plain")
    torch.manual_seed(0)
    model = request.param(
        "MCDropoutCNN", **({} if request.param is BaselineClassifier else {"num_samples": 2})
    )
    trainer = Trainer(**PLAIN, enable_checkpointing=False, default_root_dir=folder)
    trainer.fit(model, datamodule=images(tiny_root))
    trainer.save_checkpoint(folder / "plain.ckpt")
    return model, trainer, folder / "plain.ckpt"


def test_fit_and_test_work_with_the_default_score(trained, tiny_root):
    model, trainer, _ = trained
    assert model.hparams["score"] == "fisher"
    record = model.trained.threshold.record
    assert (record.method, record.count_known) == ("known_quantile", 40)
    data = images(tiny_root)
    (results,) = trainer.test(model, datamodule=data, verbose=False)
    assert set(results) >= {"test/known_accuracy", "test/auroc"}
    _, known = data.tables.load_training()
    with torch.no_grad():
        scores = model.eval().trained.describe(known.images)["score/generalized_entropy"]
    expected = known_quantile(scores.numpy(), 0.05)
    assert model.trained.threshold.records["generalized_entropy"].value == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("score", "count"), [("fisher", 40), ("msp", 80)])  # fisher is fitted to one half
def test_a_fit_that_ends_before_its_first_validation_can_be_tested(score, count, tiny_root):
    model = MCDropoutClassifier("MCDropoutCNN", num_samples=2, score=score)
    trainer = Trainer(**PLAIN | {"max_epochs": None}, max_steps=1, enable_checkpointing=False)
    trainer.fit(model, datamodule=images(tiny_root))
    assert model.trained.threshold.record.count_known == count
    (results,) = trainer.test(model, datamodule=images(tiny_root), verbose=False)
    assert "test/known_accuracy" in results


def test_it_tests_a_checkpoint_whatever_the_model_was_built_for(trained, tiny_root):
    model, trainer, path = trained
    (expected,) = trainer.test(model, datamodule=images(tiny_root), verbose=False)
    fresh = type(model)(
        **({} if type(model) is BaselineClassifier else {"num_samples": 2})
    )  # of no network yet
    other = Trainer(**PLAIN, enable_checkpointing=False)
    (found,) = other.test(fresh, datamodule=images(tiny_root), ckpt_path=path, verbose=False)
    assert found == expected
    assert fresh.images_seen is not None


def test_it_resumes(trained, tiny_root, tmp_path):
    model, _, path = trained
    fresh = type(model)("MCDropoutCNN", **({} if type(model) is BaselineClassifier else {"num_samples": 2}))
    trainer = Trainer(**PLAIN | {"max_epochs": 2}, enable_checkpointing=False, default_root_dir=tmp_path)
    trainer.fit(fresh, datamodule=images(tiny_root), ckpt_path=path)
    assert (trainer.current_epoch, trainer.global_step) == (2, 4)


def test_an_ensemble_waits_for_its_checkpoint(tiny_root):
    model, data = EnsembleClassifier(), images(tiny_root)
    data.setup("test")
    model.prepare(data, "test")
    assert model.recogniser is None


AVERAGING = {
    "EMAWeightAveraging": ["--trainer.callbacks.decay=0.5"],
    "WeightAveraging": [],
    "StochasticWeightAveraging": [
        "--trainer.callbacks.swa_lrs=0.01",
        "--trainer.callbacks.swa_epoch_start=1",
    ],
}


@pytest.mark.filterwarnings("ignore:.*Swapping scheduler", "error:(?s).*nable to serialize")
@pytest.mark.parametrize("callback", AVERAGING)
def test_averaged_weights_are_what_is_calibrated_tested_and_saved(callback, small, tmp_path):
    options = [option for option in small if "max_epochs" not in option]
    options += ["--trainer.max_epochs=3", f"--trainer.default_root_dir={tmp_path}", "--model.score=msp"]
    options += [f"--trainer.callbacks={callback}", *AVERAGING[callback]]
    assert main(["fit", *options]) == 0
    folder = tmp_path / "lightning_logs" / "default" / "version_0"
    kept = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    weights = {name: value for name, value in kept["state_dict"].items() if "network" in name}
    assert len(weights) == len(list(MCDropoutCNN().parameters()))
    if callback != "StochasticWeightAveraging":  # which averages after the last checkpoint
        current = kept["current_model_state"]
        assert any(not torch.equal(value, current[name]) for name, value in weights.items())
    assert "nable to serialize" not in (folder / "config.yaml").read_text(encoding="utf-8")
    # its threshold is that of these weights
    recogniser = load(folder / "checkpoints" / "last.ckpt")
    data = OpenSetDataModule(root=next(o for o in small if "data.root" in o).partition("=")[2], unknown={})
    _, known = data.tables.load_training()
    with torch.no_grad():
        scores = recogniser.describe(known.images)["score/msp"].numpy()
    assert recogniser.threshold.value == pytest.approx(known_quantile(scores, 0.05), rel=1e-5)


PRUNING = {
    "all weights together": [],
    "each layer": ["--trainer.callbacks.use_global_unstructured=false"],
    "a winning ticket": ["--trainer.callbacks.resample_parameters=true"],
    "rows": [
        *("--trainer.callbacks.pruning_fn=random_structured", "--trainer.callbacks.pruning_dim=0"),
        *(
            "--trainer.callbacks.use_global_unstructured=false",
            "--trainer.callbacks.parameter_names=[weight]",
        ),
    ],
}


@pytest.mark.parametrize("how", PRUNING)
def test_a_pruned_network_is_what_is_kept(how, small, tmp_path):
    options = [option for option in small if "max_epochs" not in option]
    options += ["--trainer.max_epochs=2", f"--trainer.default_root_dir={tmp_path}", "--model.score=msp"]
    options += ["--trainer.callbacks=ModelPruning", "--trainer.callbacks.pruning_fn=l1_unstructured"]
    assert main(["fit", *options, "--trainer.callbacks.amount=0.5", *PRUNING[how]]) == 0
    folder = tmp_path / "lightning_logs" / "default" / "version_0"
    assert re.search(r"pruning_fn: \w+_(un)?structured\n", (folder / "config.yaml").read_text())
    path = folder / "checkpoints" / "last.ckpt"
    kept = torch.load(path, weights_only=True)["state_dict"]
    weights = torch.cat([value.flatten() for name, value in kept.items() if "network" in name])
    assert len(weights) == sum(one.numel() for one in load(path).sampler.parameters())
    assert (weights == 0).float().mean() >= (0.5 if how == "rows" else 0.7)  # half, and half of the rest


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (
            ["ModelPruning", "pruning_fn=random_structured", "pruning_dim=0", "amount=0.5"],
            "is supported with `use_global_unstructured=True`",
        ),
        (
            [
                *("ModelPruning", "pruning_fn=random_structured", "pruning_dim=0", "amount=0.5"),
                "use_global_unstructured=false",
            ],
            "prunes whole rows, and a bias of this network has none",
        ),
        (
            ["ModelCheckpoint"],
            "trainer.callbacks ModelCheckpoint: there is one with the same options already",
        ),
        (["Checkpoint"], "Checkpoint does nothing itself: name a subclass of it"),
    ],
)
def test_callbacks_that_cannot_work_are_refused_before_the_training(options, told, small, tmp_path, capsys):
    words = [f"--trainer.callbacks={options[0]}", *(f"--trainer.callbacks.{one}" for one in options[1:])]
    assert main(["fit", *small, f"--trainer.default_root_dir={tmp_path}", *words]) == 2
    assert told in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--model.num_samples=3"], "num_samples 2, not 3"),
        (["--model.masks=independent"], "masks shared, not independent"),
        (["--model.mask_seed=1"], "mask_seed 0, not 1"),
        (["--model.dropout=0.9"], "dropout None, not 0.9"),
        (["--trainer.precision=bf16-true"], "trainer.precision 32-true, not bf16-true"),
    ],
)
def test_a_guarantee_ends_with_the_scores_that_it_was_for(options, told, small_run, tmp_path, capsys):
    command = ["test", f"--ckpt_path={small_run / 'checkpoints' / 'best.ckpt'}", *options]
    command += [f"--trainer.default_root_dir={tmp_path}", "--evaluation.figures=false"]
    assert main([*command, "--evaluation.bootstrap=2", "--evaluation.projector_points=0"]) == 0
    results = json.loads(next(tmp_path.glob("lightning_logs/*/*/results.json")).read_text())
    assert results["threshold"]["guarantee"].startswith(f"none: the threshold was calibrated with {told}")
    assert "achieved" not in results
    assert any(told in warning for warning in results["warnings"])
    assert told in capsys.readouterr().out


def test_a_guarantee_holds_for_what_was_calibrated(small_run, tmp_path):
    command = ["test", f"--ckpt_path={small_run / 'checkpoints' / 'best.ckpt'}", "--model.num_samples=2"]
    command += [f"--trainer.default_root_dir={tmp_path}", "--evaluation.figures=false"]
    assert main([*command, "--evaluation.bootstrap=2", "--evaluation.projector_points=0"]) == 0
    results = json.loads(next(tmp_path.glob("lightning_logs/*/*/results.json")).read_text())
    assert "at most 0.05" in results["threshold"]["guarantee"]
    assert results["achieved"]["bound"] > 0


def test_a_new_calibration_earns_its_guarantee(small_run, tmp_path):
    command = ["calibrate", f"--ckpt_path={small_run / 'checkpoints' / 'best.ckpt'}", "--model.num_samples=3"]
    assert main([*command, f"--output={tmp_path}/new.ckpt", f"--trainer.default_root_dir={tmp_path}"]) == 0
    assert "at most 0.05" in load(tmp_path / "new.ckpt").threshold.record.guarantee


def test_the_best_checkpoint_of_lightnings_own_names_the_way_in_python(tiny_root, tmp_path):
    keeper = ModelCheckpoint(tmp_path, monitor="val/accuracy", mode="max")
    trainer = Trainer(**PLAIN, callbacks=keeper)
    trainer.fit(BaselineClassifier("BaselineCNN"), datamodule=images(tiny_root))
    with pytest.raises(
        ValueError, match=r"in Python OpenSetTrainer\(\)\.calibrate\(model, datamodule, CKPT\)"
    ):
        load(keeper.best_model_path).predict(torch.zeros(28, 28, dtype=torch.uint8))
