"""Names stay text, however much they look like numbers or truths; class paths of 0.1 are found."""

import json
import shutil

import numpy as np
import pytest
import yaml
from PIL import Image

from osr_lightning.__main__ import main
from osr_lightning.cli.config_loader import load
from osr_lightning.cli.lightning_cli import OpenSetCLI
from osr_lightning.recogniser.migrate import CLASS_PATHS, new_class_path


class Parsed(OpenSetCLI):
    """The command line up to its parsed options."""

    def instantiate_classes(self):
        raise StopIteration(self.config[self.command])


def parsed(*arguments):
    with pytest.raises(StopIteration) as stop:
        Parsed(["run", *arguments])
    return stop.value.value


@pytest.fixture(scope="module")
def numbered(tmp_path_factory):
    """Four classes named by numbers and truths, twelve pictures each."""
    folder = tmp_path_factory.mktemp("numbered")
    rng = np.random.default_rng(0)
    for label, name in enumerate(("001", "002", "010", "no")):
        (folder / name).mkdir()
        for number in range(40):
            pixels = rng.integers(0, 60, (8, 8), dtype=np.uint8) + np.uint8(60 * label)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[001, 010, 2024_11_29, 12:30]", ["001", "010", "2024_11_29", "12:30"]),
        ("[yes, no, on, off]", ["yes", "no", "on", "off"]),
        ("{2024: a, no: b, 1.50: c, ~: d}", {"2024": "a", "no": "b", "1.50": "c", "~": "d"}),
        ("[0, 7, -3, 0.5, 1e-3, .5, 2., .inf]", [0, 7, -3, 0.5, 0.001, 0.5, 2.0, float("inf")]),
        ("[true, False, null, ~, ]", [True, False, None, None]),
        ("['001', \"no\", '1']", ["001", "no", "1"]),
        ("[0x1F, 0o17, 1_000, 2024-11-29]", ["0x1F", "0o17", "1_000", "2024-11-29"]),
        ("{a: {1: {2: 3}}}", {"a": {"1": {"2": 3}}}),
        ("folder:", "folder:"),
        ("{cat, dog}", "{cat, dog}"),
    ],
)
def test_what_a_value_stands_for(text, value):
    assert load(text) == value


def test_aliases_and_merges_are_read():
    assert load("{a: &x {b: 1}, c: *x, d: {<<: *x, e: 2}}")["d"] == {"b": 1, "e": 2}


@pytest.mark.parametrize("value", ['["001", "no"]', "[001, no]", "['001','no']"])
@pytest.mark.parametrize("place", ["line", "config"])
def test_classes_named_by_numbers_and_truths_are_the_ones_that_are_named(
    value, place, numbered, tmp_path, small, capsys
):
    options = [f"--data.known_classes={value}"]
    if place == "config":
        (tmp_path / "c.yaml").write_text(f"data:\n  known_classes: {value}\n")
        options = [f"--config={tmp_path / 'c.yaml'}"]
    found = parsed(*options, f"--data.known=folder:{numbered}")
    assert found.data.known_classes == ["001", "no"]


def test_a_run_on_them_and_its_checkpoint_keep_the_names(numbered, small, tmp_path, capsys):
    options = [option for option in small if not option.startswith("--data.unknown")]
    options += [
        f"--data.known=folder:{numbered}",
        "--data.known_classes=[010, no]",
        "--data.val_fraction=0.5",
        "--data.image_size=16",
    ]
    options += ["--data.unknown={2024: 'noise:uniform', no: 'noise:gaussian'}", "--model.alpha=0.2"]
    options += [f"--trainer.default_root_dir={tmp_path}", "--trainer.version=2024_11_29"]
    assert main(["run", *options]) == 0
    folder = tmp_path / "lightning_logs" / "default" / "2024_11_29"
    results = json.loads((folder / "results.json").read_text())
    assert results["classes"] == ["010", "no"]
    assert list(results["unknown"]) == ["2024", "no"]
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["data"]["known_classes"] == ["010", "no"]
    assert list(config["data"]["unknown"]) == ["2024", "no"]
    again = ["test", f"--ckpt_path={folder}/checkpoints/best.ckpt", f"--trainer.default_root_dir={tmp_path}"]
    assert main([*again, "--evaluation.figures=false", "--evaluation.bootstrap=2"]) == 0
    assert main(["run", f"--config={folder / 'config.yaml'}", "--trainer.version=12:30"]) == 0
    assert (tmp_path / "lightning_logs" / "default" / "12:30").is_dir()


@pytest.mark.parametrize("version", ["mine", "0"])
def test_a_saved_config_does_not_lead_back_into_its_run_folder(version, small, small_run, tmp_path, capsys):
    runs = tmp_path / "lightning_logs" / "default"
    run = runs / ("version_0" if version == "0" else version)
    shutil.copytree(small_run, run)
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["trainer"] |= {"version": version, "default_root_dir": str(tmp_path)}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    saved = f"--config={run / 'config.yaml'}"
    assert main(["test", saved, f"--ckpt_path={run}/checkpoints/best.ckpt", "--model.num_samples=1"]) == 0
    assert main(["fit", saved]) == 0
    capsys.readouterr()
    # the command line names it
    assert (
        main(["fit", *small, f"--trainer.version={version}", f"--trainer.default_root_dir={tmp_path}"]) == 2
    )
    assert f"{run} holds a trained run, which this would write over" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    assert len([path for path in runs.iterdir() if path.is_dir()]) == 3


@pytest.mark.parametrize(
    ("given", "folder"),
    [("7", 7), ("007", "007"), ("2024_11_29", "2024_11_29"), ("1e3", "1e3"), ("no", "no")],
)
def test_a_version_is_a_number_or_the_name_of_a_folder(given, folder, tmp_path):
    from osr_lightning import OpenSetTrainer

    version = parsed(f"--trainer.version={given}").trainer.version
    trainer = OpenSetTrainer(version=version, default_root_dir=str(tmp_path))
    assert trainer.logger.version == folder


@pytest.mark.parametrize("path", CLASS_PATHS)
def test_class_paths_of_0_1_are_found(path, tmp_path):
    from importlib import import_module

    module, _, name = new_class_path(path).rpartition(".")
    assert isinstance(getattr(import_module(module), name), type)
    if name.endswith("Classifier"):
        (tmp_path / "c.yaml").write_text(f"model:\n  class_path: {path}\n")
        for options in ([f"--config={tmp_path / 'c.yaml'}"], [f"--model={path}"], ["--model", path]):
            assert parsed(*options).model.class_path == f"{module}.{name}"
