"""Ensembles: one checkpoint that answers as its members together, with a threshold of its own."""

import csv
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from quick import EVALUATION, QUIET

from osr_lightning import EnsembleClassifier, OpenSetDataModule, OpenSetTrainer, load
from osr_lightning.__main__ import main
from osr_lightning.cli.ensemble import ensemble
from osr_lightning.errors import UserError
from osr_lightning.recogniser import checkpoint
from osr_lightning.recogniser.examples import to_plain
from osr_lightning.scoring.scores import SCORES
from osr_lightning.studies.ensemble import join

FAST = [*QUIET, *EVALUATION]
SMALL = ["--model.network.channels=[2, 3]", "--model.network.hidden=8"]
PLAIN = ["--model=BaselineClassifier", "--model.network=BaselineCNN", *SMALL]
MC = ["--model=MCDropoutClassifier", "--model.network=MCDropoutCNN", *SMALL, "--model.num_samples=3"]
NET = """
from torch import nn


def net(num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(28 * 28, num_classes))
"""


def train(root: Path, runs: Path, name: str, *options: str) -> Path:
    """The best checkpoint of an epoch on small data."""
    data = [f"--data.known=npz:{root}/known.npz", f"--data.unknown={{others: 'npz:{root}/unknown.npz'}}"]
    where = [f"--trainer.default_root_dir={runs}", f"--trainer.experiment={name}", "--trainer.max_epochs=1"]
    # 32 validation images are too few for the default alpha
    assert main(["run", *data, *where, *FAST, "--model.alpha=0.2", *options]) == 0
    return runs / "lightning_logs" / name / "version_0" / "checkpoints" / "best.ckpt"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def plain(tiny_root, runs):
    return train(tiny_root, runs, "plain", *PLAIN, "--seed_everything=1")


@pytest.fixture(scope="module")
def other(tiny_root, runs):
    return train(tiny_root, runs, "other", *PLAIN, "--seed_everything=2")


@pytest.fixture(scope="module")
def mc(tiny_root, runs):
    return train(tiny_root, runs, "mc", *MC, "--seed_everything=3")


@pytest.fixture(scope="module")
def mixed(mc, plain, runs):
    """Three samples of one member and one of the other, with a detector."""
    return ensemble([mc, plain], runs / "mixed.ckpt", ["--model.detectors=[vim]", *here(runs)])


def here(folder: Path) -> list[str]:
    return [f"--trainer.default_root_dir={folder}", *QUIET]


def rows(path: Path, images: torch.Tensor, **options: bool) -> dict[str, torch.Tensor]:
    with torch.inference_mode():
        return load(path, **options).describe(images)


@pytest.fixture
def images(tiny_root):
    known, unknown = (np.load(tiny_root / f"{name}.npz")["images"] for name in ("known", "unknown"))
    whole = np.concatenate([known[:40], unknown[:20, :28, :28, 0]])
    return torch.from_numpy(whole).unsqueeze(1)


@pytest.mark.parametrize("kind", ["plain", "mc"])
def test_an_ensemble_of_one_is_its_member_to_the_bit(kind, images, tmp_path, request):
    member = request.getfixturevalue(kind)
    joined = ensemble([member], tmp_path / "one.ckpt", here(tmp_path))
    mine, its = rows(joined, images), rows(member, images)
    assert list(mine) == list(its)
    assert all(torch.equal(mine[name], its[name]) for name in its)
    assert load(joined).threshold.records == load(member).threshold.records
    assert load(joined).predict(list(images)) == load(member).predict(list(images))


def test_probabilities_are_the_mean_of_two_members(plain, other, images, tmp_path):
    joined = ensemble([plain, other], tmp_path / "two.ckpt", here(tmp_path))
    one, two = (rows(path, images)["log_probability"] for path in (plain, other))
    expected = torch.logaddexp(one, two) - math.log(2)
    assert to_plain(load(joined).examples) == to_plain(load(plain).examples) != {}
    torch.testing.assert_close(rows(joined, images)["log_probability"], expected, rtol=0, atol=1e-12)
    assert not torch.equal(one, two)


def test_samples_of_mc_dropout_and_plain_networks_lie_side_by_side(mixed, mc, plain, images):
    whole, *parts = (load(path) for path in (mixed, mc, plain))
    with torch.inference_mode():
        expected = torch.cat([part.sampler(part.standardise(images)).logits for part in parts])
        assert torch.equal(whole.sampler(whole.standardise(images)).logits, expected)
    assert whole.sampler.num_samples == 4


def test_members_look_at_mirror_images_or_do_not(plain, other, images, tmp_path):
    mirrored = tmp_path / "mirrored.ckpt"
    words = [f"--ckpt_path={plain}", "--model.mirror=true", f"--output={mirrored}", *here(tmp_path)]
    assert main(["calibrate", *words]) == 0
    found = rows(mirrored, images)["logits"]
    expected = (rows(plain, images)["logits"] + rows(plain, images.flip(-1))["logits"]) / 2
    torch.testing.assert_close(found, expected)
    with pytest.raises(UserError, match=rf"mirrored\.ckpt looks at mirror images too .*--ckpt_path {other}"):
        ensemble([other, mirrored], tmp_path / "joined.ckpt", here(tmp_path))
    second = tmp_path / "second.ckpt"
    words = [f"--ckpt_path={other}", "--model.mirror=true", f"--output={second}", *here(tmp_path)]
    assert main(["calibrate", *words]) == 0
    joined = ensemble([mirrored, second], tmp_path / "joined.ckpt", here(tmp_path))
    kept = checkpoint.read(joined)
    assert kept["recogniser"]["recipe"]["mirror"]
    assert kept["hyper_parameters"]["mirror"]
    probabilities = rows(joined, images)["log_probability"].exp()
    turned = rows(joined, images.flip(-1))["log_probability"].exp()
    torch.testing.assert_close(probabilities, turned)


def test_an_ensemble_brings_its_members_into_another(mixed, mc, plain, other, images, tmp_path):
    nested = ensemble([mixed, other], tmp_path / "nested.ckpt", here(tmp_path))
    flat = ensemble([mc, plain, other], tmp_path / "flat.ckpt", ["--model.detectors=[vim]", *here(tmp_path)])
    mine, expected = rows(nested, images), rows(flat, images)
    assert all(torch.equal(mine[name], expected[name]) for name in expected)
    members = load(nested).sampler.recipe["members"]
    assert members == load(flat).sampler.recipe["members"]
    named = [(member["file"], member["seed"]) for member in members]
    assert named == [(str(mc), 3), (str(plain), 1), (str(other), 2)]


def test_its_thresholds_are_its_own(mixed, plain):
    records, its = load(mixed).threshold.records, load(plain).threshold.records
    assert set(records) == {*SCORES, "vim", "fisher"}
    for record in records.values():
        assert record.method == "known_quantile"
        assert record.count_known in (its["msp"].count_known, its["fisher"].count_known)
        assert record.rejected_known <= record.target == 0.2
        assert not record.optimistic
    assert records["msp"].value != its["msp"].value


def test_saving_and_loading_keeps_every_row(mixed, images, tmp_path):
    checkpoint.save(load(mixed), tmp_path / "again.ckpt")
    mine, expected = rows(tmp_path / "again.ckpt", images), rows(mixed, images)
    assert all(torch.equal(mine[name], expected[name]) for name in expected)
    assert load(tmp_path / "again.ckpt").sampler.recipe == load(mixed).sampler.recipe


def test_every_command_takes_it(mixed, mc, plain, tiny_root, tmp_path):
    ckpt = f"--ckpt_path={mixed}"
    assert main(["test", ckpt, *here(tmp_path), *FAST]) == 0
    run = tmp_path / "lightning_logs" / "mc" / "version_0"
    results = json.loads((run / "results.json").read_text())
    assert results["model"]["class"] == "EnsembleClassifier"
    assert results["model"]["network"] == "MCDropoutCNN, BaselineCNN"
    assert results["model"]["num_samples"] == 4
    assert results["model"]["members"] == [{"file": str(mc), "seed": 3}, {"file": str(plain), "seed": 1}]
    assert results["threshold"]["value"] == load(mixed).threshold.value
    assert "vim" in results["scores"]
    assert main(["report", str(run)]) == 0
    assert main(["validate", ckpt, *here(tmp_path)]) == 0
    # one image has one row, whichever command gives it
    assert main(["predict", ckpt, *here(tmp_path)]) == 0
    tested, predicted = (
        (tmp_path / "lightning_logs" / "mc" / f"version_{n}" / "predictions.csv").read_text() for n in (0, 2)
    )
    assert [line["score"] for line in csv.DictReader(tested.splitlines())] == [
        line["score"] for line in csv.DictReader(predicted.splitlines())
    ]
    assert (
        main(["calibrate", ckpt, f"--output={tmp_path}/new.ckpt", "--model.alpha=0.5", *here(tmp_path)]) == 0
    )
    assert load(tmp_path / "new.ckpt").threshold.record.target == 0.5
    assert load(tmp_path / "new.ckpt").threshold.value < load(mixed).threshold.value
    again = EnsembleClassifier.load_from_checkpoint(tmp_path / "new.ckpt")
    assert again.trained.sampler.recipe == load(mixed).sampler.recipe


def test_files_are_predicted(mixed, images, tmp_path, capsys):
    from PIL import Image

    Image.fromarray(images[0, 0].numpy()).save(tmp_path / "a.png")
    assert main(["predict", f"--ckpt_path={mixed}", str(tmp_path / "a.png"), "--device=cpu"]) == 0
    (row,) = csv.DictReader(capsys.readouterr().out.splitlines())
    (answer,) = load(mixed).predict(tmp_path / "a.png")
    assert (row["prediction"], float(row["score"])) == (answer.label, answer.score)


def test_the_command_says_threshold_and_place(plain, other, tmp_path, capsys):
    assert main(["ensemble", str(plain), str(other), "--model.alpha", "0.3", *here(tmp_path)]) == 0
    run = tmp_path / "lightning_logs" / "plain" / "version_0"
    found = load(run / "checkpoints" / "ensemble.ckpt").threshold
    assert found.record.target == 0.3
    said = capsys.readouterr().out
    assert f"threshold {found.value:.6g} on {found.score}" in said
    assert f"({run}/checkpoints/ensemble.ckpt)" in said
    assert json.loads((run / "calibration.json").read_text())[found.score]["value"] == found.value
    assert "ckpt_path: null" in (run / "config.yaml").read_text()


def test_two_classes_are_enough(tiny_root, runs, images):
    classes = "--data.known_classes=[0, 1]"
    options = (*PLAIN, classes, "--model.alpha=0.4", "--data.val_fraction=0.4")
    paths = [train(tiny_root, runs, f"pair{n}", *options, f"--seed_everything={n}") for n in (1, 2)]
    joined = ensemble(paths, runs / "pair.ckpt", here(runs))
    assert load(joined).spec.num_classes == 2
    assert len(load(joined).predict(list(images))) == len(images)


def changed(path: Path, target: Path, **spec: object) -> Path:
    """A copy of a checkpoint that says otherwise of its images."""
    kept = torch.load(path, weights_only=True)
    kept["recogniser"]["facts"] |= spec
    torch.save(kept, target)
    return target


@pytest.mark.parametrize(
    ("name", "value"), [("classes", list("1023456789")), ("mean", [0.5]), ("std", [0.5])]
)
def test_facts_that_differ_are_refused_by_name(name, value, plain, other, tmp_path):
    odd = changed(other, tmp_path / "odd.ckpt", **{name: value})
    with pytest.raises(UserError, match=rf"odd\.ckpt has the {name} .*, where {plain} has"):
        join([plain, odd])


def test_another_image_size_is_refused(plain, tiny_root, runs, capsys):
    odd = train(tiny_root, runs, "size", *PLAIN, "--data.image_size=20", "--model.network.image_size=20")
    assert main(["ensemble", str(plain), str(odd)]) == 2
    error = capsys.readouterr().err
    assert "has the image size 20, where" in error
    assert "Traceback" not in error


def test_a_member_that_was_trained_on_the_images_of_the_threshold_is_refused(tiny_root, runs, capsys):
    same = ("--data.mean=0.2", "--data.std=0.3")
    paths = [train(tiny_root, runs, f"split{n}", *PLAIN, *same, f"--data.seed={n}") for n in (0, 1)]
    held, train_ = (torch.load(p, weights_only=True)["images"] for p in paths)
    shared = {*map(tuple, held["calibration"].tolist())} & {*map(tuple, train_["train"].tolist())}
    assert shared
    assert main(["ensemble", *map(str, paths), *here(runs)]) == 2
    assert f"was trained on {len(shared)} of the images" in capsys.readouterr().err


def test_test_images_that_any_member_was_trained_on_are_refused(tiny_root, runs, tmp_path, capsys):
    rng = np.random.default_rng(5)
    pictures = rng.integers(0, 256, (100, 28, 28), dtype=np.uint8)
    np.savez(tmp_path / "elsewhere.npz", images=pictures, labels=np.arange(100) % 10)
    elsewhere = f"npz:{tmp_path}/elsewhere.npz"
    same = ("--data.mean=0.2", "--data.std=0.3")
    first = train(tiny_root, runs, "here", *PLAIN, *same)
    second = train(
        tiny_root, runs, "elsewhere", *PLAIN, *same, f"--data.known={elsewhere}", "--data.unknown={}"
    )
    joined = ensemble([first, second], tmp_path / "joined.ckpt", here(tmp_path))
    ends = ["--data.unknown", f"{{elsewhere: '{elsewhere}'}}", *here(tmp_path), *FAST]
    assert main(["test", f"--ckpt_path={first}", *ends]) == 0
    capsys.readouterr()
    assert main(["test", f"--ckpt_path={joined}", *ends]) == 2
    error = capsys.readouterr().err
    assert "were trained on" in error
    assert "used to choose the threshold" in error  # they chose the second member's best epoch


@pytest.mark.parametrize("command", ["fit", "run"])
def test_it_is_not_trained(command, mixed, tiny_root, tmp_path, capsys):
    assert main([command, f"--ckpt_path={mixed}", *here(tmp_path)]) == 2
    assert "an ensemble is not trained" in capsys.readouterr().err
    data = [f"--data.known=npz:{tiny_root}/known.npz", "--data.unknown={}"]
    assert main([command, "--model=EnsembleClassifier", *data, *here(tmp_path)]) == 2
    assert "an ensemble is not trained" in capsys.readouterr().err


def test_it_is_not_trained_in_python_either(mixed, tiny_root, tmp_path):
    trainer = OpenSetTrainer(default_root_dir=str(tmp_path), logger=False, accelerator="cpu")
    datamodule = OpenSetDataModule(known=f"npz:{tiny_root}/known.npz")
    model = EnsembleClassifier.load_from_checkpoint(mixed)
    with pytest.raises(UserError, match="an ensemble is not trained"):
        trainer.fit(model, datamodule=datamodule)
    with pytest.raises(UserError, match="an ensemble is not trained"):
        model(torch.zeros(1, 1, 28, 28, dtype=torch.uint8))


def test_a_checkpoint_that_does_not_name_its_images_is_refused(plain, tmp_path):
    checkpoint.save(load(plain), tmp_path / "saved.ckpt")
    with pytest.raises(UserError, match=r"saved\.ckpt does not say which images"):
        ensemble([tmp_path / "saved.ckpt"])


def test_a_member_is_never_written_over(plain, other):
    before = plain.read_bytes()
    with pytest.raises(UserError, match="is one of the members"):
        ensemble([other, plain], plain)
    assert plain.read_bytes() == before


def test_a_member_is_named_once(plain, other, tmp_path, capsys):
    (tmp_path / "same.ckpt").symlink_to(plain)
    for again in (plain, tmp_path / "same.ckpt"):
        assert main(["ensemble", str(plain), str(other), str(again), *here(tmp_path)]) == 2
        assert f"{again} is named twice" in capsys.readouterr().err
    assert not list(tmp_path.rglob("version_*"))


def test_a_network_is_counted_once_whatever_file_it_is_in(mixed, plain, other, tmp_path):
    copied = tmp_path / "copied.ckpt"
    shutil.copy(plain, copied)
    # the same weights with another threshold
    main(
        [
            "calibrate",
            f"--ckpt_path={plain}",
            f"--output={tmp_path / 'again.ckpt'}",
            "--model.alpha=0.3",
            *here(tmp_path),
        ]
    )
    for twice in ([plain, other, copied], [mixed, plain], [plain, tmp_path / "again.ckpt"]):
        with pytest.raises(UserError, match=f"{twice[-1]} holds a network of {twice[0]} once more"):
            join(twice)


def test_a_folder_is_no_place_for_its_file(plain, tmp_path, capsys):
    assert main(["ensemble", str(plain), f"--output={tmp_path}", *here(tmp_path)]) == 2
    assert f"output {tmp_path} is a folder: name a file in it" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["ensemble"], ["calibrate", "--ckpt_path"]], ids=" ".join)
def test_another_ending_than_a_checkpoint_s_is_refused(command, plain, tmp_path, capsys):
    output = tmp_path / "joined.onnx"
    assert main([*command, str(plain), f"--output={output}", *here(tmp_path)]) == 2
    assert f"output {output}: its name must end in .ckpt" in capsys.readouterr().err
    assert not output.exists()


@pytest.mark.parametrize("option", ["--ckpt_path=x", "--in_place=true"])
def test_options_that_say_which_checkpoint_are_refused(option, plain, capsys):
    assert main(["ensemble", str(plain), option]) == 2
    assert "leave" in capsys.readouterr().err


def test_a_refused_ensemble_leaves_nothing(plain, tmp_path):
    assert main(["ensemble", str(plain), "--model.alpha=0.001", *here(tmp_path)]) == 2
    assert not list(tmp_path.rglob("*.ckpt"))
    assert not list(tmp_path.rglob("version_*"))


def test_without_a_run_folder_the_file_must_be_named(plain, tmp_path, capsys):
    assert main(["ensemble", str(plain), "--trainer.logger=false", *here(tmp_path)]) == 2
    assert "--output" in capsys.readouterr().err
    target = tmp_path / "named.ckpt"
    assert (
        main(["ensemble", str(plain), "--trainer.logger=false", f"--output={target}", *here(tmp_path)]) == 0
    )
    assert load(target).threshold.value == load(plain).threshold.value


def test_a_network_of_ones_own_needs_trust(plain, tiny_root, runs, tmp_path, images, monkeypatch, capsys):
    (tmp_path / "own_net_of_ensemble.py").write_text(NET)
    monkeypatch.syspath_prepend(tmp_path)
    options = ("--model=BaselineClassifier", "--model.network=own_net_of_ensemble.net")
    own = train(tiny_root, runs, "own", *options)
    target = tmp_path / "own.ckpt"
    command = ["ensemble", str(plain), str(own), f"--output={target}", *here(tmp_path)]
    assert main(command) == 2
    assert "trust" in capsys.readouterr().err
    assert main([*command, "--trust_checkpoint"]) == 0
    with pytest.raises(UserError, match="trust"):
        load(target)
    assert len(rows(target, images, trust=True)["logits"]) == len(images)


@pytest.mark.parametrize("members", [5, [5], "two", {"a": {}}])
def test_damaged_members_are_a_sentence(members, mixed, tmp_path, capsys):
    kept = torch.load(mixed, weights_only=True)
    kept["recogniser"]["recipe"]["members"] = members
    torch.save(kept, tmp_path / "odd.ckpt")
    with pytest.raises(UserError, match="damaged"):
        load(tmp_path / "odd.ckpt")
    assert main(["test", f"--ckpt_path={tmp_path}/odd.ckpt", *here(tmp_path)]) == 2
    assert "damaged" in capsys.readouterr().err


def test_help_explains(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["ensemble", "--help"])
    shown = capsys.readouterr().out
    assert "osr ensemble CKPT" in shown
    assert "same classes in the same order" in " ".join(shown.split())
    assert main(["ensemble"]) == 2
    assert "name the checkpoints first" in capsys.readouterr().err
