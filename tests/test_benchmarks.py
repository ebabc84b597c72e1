"""Benchmarks run to their end on this machine, on little."""

import json
import logging
import runpy
import shutil
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import photos
import published
import pytest
import yaml
from quick import FAST, SMALL_NETWORK

from osr_lightning import load
from osr_lightning.__main__ import main
from osr_lightning.data.class_splits import ARPL

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch, tmp_path):
    """Run a benchmark by name with these words."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.chdir(tmp_path)
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level

    def run(name, *words):
        monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
        return runpy.run_path(str(BENCHMARKS / name), run_name="__main__")

    yield run
    logger.setLevel(level)  # which they hush


@pytest.mark.filterwarnings("ignore")
def test_the_accelerators_check_runs_on_the_cpu(tmp_path, benchmark):
    words = ["--device", "cpu", "--fits", "float32", "finetuned", "--epochs", "1"]
    words += ["--backbone", "photos.OneConvolution", "--image-size", "32", "--checks", "decisions", "samples"]
    words += ["--batches", "1"]
    benchmark("accelerator.py", *words, "--json", tmp_path / "found.json")
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["decisions"]["images"] == 1975
    assert found["decisions"]["decided_otherwise"] == 0
    assert found["fits"]["float32"]["closed_set_accuracy"] > 0.6
    assert found["fits"]["finetuned"]["train_images_per_s"] > 0  # of random weights, which learn little
    assert set(found["decided_per_s"]) == {"1", "10", "200"}


def test_steps_compares_ways_to_train(tmp_path, benchmark):
    shades = {str(place): (20 * place, 90, 250 - 20 * place) for place in range(10)}
    photos.write_photos(tmp_path / "cifar10" / "train", shades, count=2, size=(8, 8))
    words = ["--data-root", tmp_path, "--json", tmp_path / "found.json", "--images", "16", "--repeats", "1"]
    words += ["--networks", "ConvNet", "--steps", "as `osr fit` has it", "channels first", "float32"]
    benchmark("steps.py", *words)
    found = json.loads((tmp_path / "found.json").read_text())["images_per_s"]["ConvNet"]
    assert list(found) == ["as `osr fit` has it", "channels first", "float32"]
    assert min(found.values()) > 0


@pytest.mark.filterwarnings("ignore")
def test_photos_writes_its_section_and_goes_on_where_it_was_stopped(tmp_path, benchmark, monkeypatch):
    shades = {
        name: (30 + 20 * place, 250 - 22 * place, 80 + 15 * place)
        for place, name in enumerate(
            ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
        )
    }
    photos.write_photos(tmp_path / "cifar10" / "test", shades, count=25)
    photos.write_photos(tmp_path / "clothing", dict(list(shades.items())[:7]), count=4, seed=1)
    page = tmp_path / "page.md"
    page.write_text("# Results\n\n## With a pretrained backbone\n\nearlier\n\n## Cost\n\nlittle\n")
    words = ["--quick", "--groups", "four of CIFAR-10, 20 a class", "--data-root", tmp_path, "--page", page]
    words += ["--folder", tmp_path / "runs", "--json", tmp_path / "found.json"]
    words += ["--backbone", photos.BACKBONE, "--weights", photos.write_weights(tmp_path / "small.pth")]
    benchmark("photos.py", *words)
    (run,) = json.loads((tmp_path / "found.json").read_text())["runs"]["four of CIFAR-10, 20 a class"]
    assert (run["training"], run["validation"], run["tested"]) == (60, 20, 20)
    assert run["accuracy"] > 0.9
    assert run["scikit_learn"] > 0.9
    assert run["method"] == "cross_known_quantile"  # as osr run decides by itself
    assert set(run["left_out"]) == {"rejected", "auroc"}
    own = run["scores"]["2 generalized_entropy + direction"]
    assert own == run["scores"]["fisher"]
    assert own["near"]["auroc"] > 0.6
    lines = page.read_text().splitlines()
    assert lines[:3] == ["# Results", "", "## With a pretrained backbone"]
    assert lines[-3:] == ["## Cost", "", "little"]
    assert "earlier" not in lines
    assert sum(line.startswith("| four of CIFAR-10, 20 a class |") for line in lines) == 2
    rows = {line.split("|")[1].strip(" `"): line for line in lines if line.startswith("| ")}
    assert set(rows) >= {
        "four of CIFAR-10, 20 a class",
        "fisher",
        "msp",
        "fdbd",
        "nci",
        "residual",
        "direction",
    }

    monkeypatch.setattr("osr_lightning.OpenSetTrainer.run", None)  # nothing is trained again
    written = page.read_text()
    benchmark("photos.py", *words)
    assert page.read_text() == written


@pytest.mark.filterwarnings("ignore")
def test_review_measures_groups_of_each_kind_and_writes_its_section(tmp_path, benchmark):
    shades = {str(place): (30 + 20 * place, 250 - 22 * place, 80 + 15 * place) for place in range(10)}
    photos.write_photos(tmp_path / "clothing", shades, count=24)
    photos.write_photos(tmp_path / "cifar10" / "test", shades, count=8, size=(32, 32), seed=1)
    page = tmp_path / "page.md"
    page.write_text("# Review\n\n## How well it groups\n\nearlier\n")
    words = ["--draws", "1", "--data-root", tmp_path, "--page", page, "--json", tmp_path / "found.json"]
    weights = photos.write_weights(tmp_path / "small.pth")
    benchmark("review.py", *words, "--backbone", photos.BACKBONE, "--weights", weights)
    runs = json.loads((tmp_path / "found.json").read_text())["runs"]
    assert list(runs) == [f"{kind}, {count} classes" for kind in ("near", "far") for count in (2, 3, 4)]
    assert all(-1 <= found["review"] <= 1 for (found,) in runs.values())
    lines = page.read_text().splitlines()
    assert "earlier" not in lines
    assert [line.split(" | ")[0] for line in lines if line.startswith("| ")][1:] == [
        f"| {name}" for name in runs
    ]


@pytest.mark.filterwarnings("ignore")
def test_an_hour_in_the_field_ends_with_new_classes_known(tmp_path, benchmark):
    shades = {
        name: (40 * place, 230 - 40 * place, 80 + 150 * (place % 2)) for place, name in enumerate("abcdef")
    }
    photos.write_photos(tmp_path / "clothing", shades, count=28)
    words = ["--data-root", tmp_path, "--page", tmp_path / "page.md", "--json", tmp_path / "found.json"]
    words += ["--classes", *"abcdef", "--pictures", "12", "8", "8"]
    weights = photos.write_weights(tmp_path / "small.pth")
    benchmark("field.py", *words, "--backbone", photos.BACKBONE, "--weights", weights)
    found = json.loads((tmp_path / "found.json").read_text())["hour"]
    assert found["new"][0] == 0.0
    assert found["new"][1] > 0.2
    assert found["of_new_classes"] <= found["unknown"]
    assert "| new classes: right |" in (tmp_path / "page.md").read_text()


@pytest.mark.filterwarnings("ignore")
def test_maps_are_checked_on_pasted_objects_of_four_kinds(tmp_path, benchmark):
    clothing = photos.write_photos(tmp_path / "clothing", {**photos.CLASSES, **photos.OTHER})
    for file in [*clothing.rglob("*.png")]:
        file.rename(file.with_name(f"{file.parent.name}{file.name}"))  # its name alone tells a picture
    photos.write_photos(tmp_path / "cifar10" / "test", {"cat": (200, 200, 20)}, count=3)
    letters = np.random.default_rng(0).integers(0, 256, (5, 28, 28), dtype=np.uint8)
    np.savez(tmp_path / "notmnist_test.npz", images=letters)
    words = [f"--data.known=folder:{clothing}", f"--data.known_classes={json.dumps([*photos.CLASSES])}"]
    words += ["--model.network=Backbone", f"--model.network.name={photos.BACKBONE}"]
    words += [f"--model.network.weights={photos.write_weights(tmp_path / 'small.pth')}"]
    assert main(["run", *words, *FAST, f"--trainer.default_root_dir={tmp_path}"]) == 0
    (ckpt,) = tmp_path.rglob("best.ckpt")
    page = tmp_path / "page.md"
    page.write_text("# Why\n\n## Does the map find what is foreign?\n\nearlier\n")
    words = ["--data-root", tmp_path, "--ckpt_path", ckpt, "--count", "2", "--page", page]
    words += ["--figure", tmp_path / "maps.png", "--json", tmp_path / "found.json"]
    found = benchmark("explain.py", *words)
    kinds = json.loads((tmp_path / "found.json").read_text())["found"]
    assert list(kinds) == list(found["KINDS"])
    for one in kinds.values():
        assert one["pictures"] == 2
        assert list(one["hits"]) == [*found["CANDIDATES"], *found["CHANCE"]]
        assert {2 * share for share in one["hits"].values()} <= {0, 1, 2}
    text = page.read_text()
    assert "earlier" not in text
    assert sum(line.startswith(f"| {found['MAP']} |") for line in text.splitlines()) == 1
    assert (tmp_path / "maps.png").read_bytes().startswith(b"\x89PNG")
    recogniser = load(ckpt)
    for validation in (True, False):
        some = found["known_files"](recogniser, validation, tmp_path)
        held_out = dict(zip(recogniser.known_images.files, recogniser.known_images.held_out, strict=True))
        assert [held_out.get(f"{file.parent.name}/{file.name}") for file in some] == [
            validation or None
        ] * len(some)
        assert len(some) >= 3


def test_features_are_timed_beside_the_bare_backbone(tmp_path, benchmark, monkeypatch):
    pytest.importorskip("onnxscript")
    photos.write_photos(tmp_path / "cifar10" / "test", count=24, size=(40, 40))
    monkeypatch.setenv("OSR_CACHE_DIR", str(tmp_path / "mine"))  # it takes one of its own
    words = ["--pictures", 72, "--data-root", tmp_path, "--json", tmp_path / "found.json"]
    words += ["--backbone", photos.BACKBONE, "--weights", photos.write_weights(tmp_path / "small.pth")]
    benchmark("features.py", *words)
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["osr"]["processor"] > 0.5 * found["bare"]["processor"] > 0
    assert not (tmp_path / "mine").exists()


@pytest.mark.filterwarnings("ignore")
def test_the_open_set_benchmark_goes_on_where_it_was_stopped(tmp_path, benchmark, monkeypatch):
    """The whole protocol of CIFAR-10, a run of each of its three studies: 500 images, one epoch."""
    shades = {f"class{place}": (30 + 20 * place, 250 - 22 * place, 80 + 15 * place) for place in range(10)}
    photos.write_photos(tmp_path / "cifar10" / "train", shades, count=40, size=(32, 32))
    photos.write_photos(tmp_path / "cifar10" / "test", shades, count=10, size=(32, 32), seed=1)
    published.write_openood(tmp_path)
    words = ["--cifar10", f"folder:{tmp_path}/cifar10", "--data-root", tmp_path, "--shard", "1/5"]
    words += ["--seeds", 0, "--folder", tmp_path / "runs", "--json", tmp_path / "found.json"]
    words += ["--trainer.max_epochs=1", "--trainer.accelerator=cpu", "--model.alpha=0.2", *SMALL_NETWORK]
    benchmark("open_set.py", *words)
    found = json.loads((tmp_path / "found.json").read_text())
    assert [*found["studies"]] == ["cifar10-arpl", "cifar10-neal", "openood_cifar10-openood"]
    first, _, openood = found["studies"].values()
    assert (first["runs"], first["of"], first["network"]) == (1, 5, "MCDropoutCNN")
    assert first["each"][0]["split"] == "arpl1"
    assert openood["shown"] == ["AUROC near", "AUROC far"]
    (run,) = openood["each"]
    assert run["AUROC near"] == pytest.approx((run["AUROC cifar100"] + run["AUROC tin"]) / 2)
    table = (tmp_path / "found.md").read_text().splitlines()
    assert [row.split(" | ")[1] for row in table if row.startswith("| `")] == [
        "`arpl`",
        "`neal`",
        "`openood`",
    ]
    assert (
        f"| {100 * first['each'][0]['closed set']:.2f} | rest {100 * first['each'][0]['AUROC rest']:.2f} |"
        in table[5]
    )

    monkeypatch.setattr("osr_lightning.studies.study._start", lambda *_: pytest.fail("trained again"))
    (tmp_path / "benchmark_imglist").rename(tmp_path / "elsewhere")
    benchmark("open_set.py", *words)
    again = json.loads((tmp_path / "found.json").read_text())
    assert [*again["studies"]] == ["cifar10-arpl", "cifar10-neal"]
    assert again["studies"]["cifar10-arpl"] == first
    last = (tmp_path / "found.md").read_text().splitlines()[-1]
    assert last == f"openood_cifar10-openood is left out: it needs {tmp_path}/benchmark_imglist/cifar10."


def test_recipes_are_trained_on_published_and_drawn_splits_once(tmp_path, benchmark, tiny_root):
    shutil.copytree(tiny_root / "MNIST", tmp_path / "FashionMNIST")
    page = tmp_path / "page.md"
    page.write_text("# Results\n\n## Cost\n\nlittle\n")
    words = [
        "--configs",
        "fashion_mnist",
        "--numbers",
        "2",
        "--drawn",
        "1",
        "--epochs",
        "1",
        "--data-root",
        tmp_path,
    ]
    words += ["--folder", tmp_path / "runs", "--page", page, "--json", tmp_path / "found.json"]
    found = benchmark(
        "recipes.py", *words, "--splits", "arpl", "drawn", "--steps", "MCDropoutCNN, logit norm"
    )
    runs = json.loads((tmp_path / "found.json").read_text())["runs"]
    names = [f"fashion_mnist{step}-drawn1-seed0" for step in ("", "-MCDropoutCNN,_logit_norm")]
    assert set(runs) == {"fashion_mnist-arpl2-seed0", *names}
    folder = tmp_path / "runs" / "lightning_logs" / "fashion_mnist"
    tested = {name: json.loads((folder / name / "results.json").read_text()) for name in runs}
    for name, run in tested.items():
        assert runs[name]["closed"] == run["closed_set"]["accuracy"]
        assert runs[name]["auroc"] == run["scores"][runs[name]["score"]]["pooled"]["auroc"]
    # those of the second split of arpl, by their names
    assert set(tested["fashion_mnist-arpl2-seed0"]["classes"]) == {
        *("T-shirt/top", "Pullover", "Dress", "Coat", "Shirt", "Ankle boot")
    }
    lines = page.read_text().splitlines()
    assert lines[:5] == ["# Results", "", "## Cost", "", "little"]
    assert "### `fashion_mnist`" in lines
    [row] = [line for line in lines if line.startswith("| closed-set accuracy |")]
    assert f" {100 * runs['fashion_mnist-arpl2-seed0']['closed']:.2f} " in row
    steps = [line.split("|")[1:3] for line in lines if line.startswith(("| MC", "| the config"))]
    assert steps == [[" MCDropoutCNN, logit norm ", " 1 "], [" the config ", " 1 "]]
    saved = [yaml.safe_load((folder / name / "config.yaml").read_text())["model"] for name in names]
    kinds = [one["init_args"]["network"]["class_path"].rpartition(".")[2] for one in saved]
    assert list(zip(kinds, [one["init_args"]["loss"] for one in saved], strict=True)) == [
        ("ConvNet", "cross_entropy"),
        ("MCDropoutCNN", "logit_norm"),
    ]
    assert saved[1]["init_args"]["network"]["init_args"]["channels"] == [16, 32]
    # again: nothing is trained, and the section is written once
    times = {path: path.stat().st_mtime_ns for path in folder.glob("*/results.json")}
    benchmark("recipes.py", *words, "--splits", "arpl")
    assert times == {path: path.stat().st_mtime_ns for path in folder.glob("*/results.json")}
    assert page.read_text().splitlines() == lines
    # runs of another machine: what the page has of other configs stays, and theirs is written anew
    elsewhere = tmp_path / "elsewhere" / "lightning_logs" / "cifar10"
    shutil.copytree(folder / "fashion_mnist-arpl2-seed0", elsewhere / "cifar10-arpl1-seed0")
    for _ in range(2):
        benchmark("recipes.py", "--configs", "--page", page, "--folder", tmp_path / "elsewhere")
        both = page.read_text().splitlines()
        first, second = both.index("### `cifar10`"), both.index("### `fashion_mnist`")
        assert both[:first] == lines[: lines.index("### `fashion_mnist`")]
        assert both[second:] == lines[lines.index("### `fashion_mnist`") :]
        assert both[first + 2 : first + 5] == ["| | `arpl` |", "|---|---|", "| splits | 1 |"]
    page.write_text("\n".join(lines) + "\n")
    assert not set(found["drawn_splits"](5)) & set(found["published"]("arpl", "fashion_mnist"))
    # what has seen ImageNet has a section of its own
    copied = folder.parent / "cifar10_backbone" / "cifar10_backbone-neal3-seed0"
    shutil.copytree(folder / "fashion_mnist-arpl2-seed0", copied)
    benchmark("recipes.py", "--configs", *words[words.index("--data-root") :])
    text = page.read_text()
    assert text.startswith("\n".join(lines))
    assert "### `cifar10_backbone`" in text.partition("\n## CIFAR-10's published splits")[2]
    assert found["unknown_sets"](tmp_path / "nothing") == {"near": {"rest": "rest"}}
    assert found["unknown_sets"](tmp_path)["far"] == {"fashion_mnist": "fashion_mnist"}


def test_recipes_take_the_splits_of_a_config_s_images(tmp_path, benchmark):
    """CIFAR-10's, whatever the config is called and whether its images are files."""
    words = ["--configs", "--data-root", tmp_path, "--folder", tmp_path, "--json", tmp_path / "found.json"]
    found = benchmark("recipes.py", *words, "--page", tmp_path / "page.md")
    given = {"splits": ["arpl"], "numbers": [1, 2, 3, 4, 5], "steps": [], "drawn": 1}
    for _ in range(2):
        asked = Namespace(configs=["cifar10_backbone"], data_root=tmp_path, folder=tmp_path, **given)
        runs = list(found["planned"](asked))
        wanted = [f"--data.known_classes={list(known)}" for known in ARPL["cifar10"]]
        assert [next(word for word in run.arguments if "known_classes" in word) for run in runs] == wanted
        (tmp_path / "cifar10" / "train").mkdir(parents=True, exist_ok=True)  # the second time as files
    assert f"--data.known=folder:{tmp_path / 'cifar10'}" in runs[0].arguments


@pytest.mark.filterwarnings("ignore")
def test_scores_are_those_of_others_code(tmp_path, benchmark):
    """Twelve of them, on digits that come with a package."""
    pytest.importorskip("pytorch_ood", exc_type=ImportError)
    page = tmp_path / "page.md"
    words = ["--known", "mnist_sample", "--epochs", "2", "--page", page, "--json", tmp_path / "found.json"]
    benchmark("others_code.py", *words)
    scores = json.loads((tmp_path / "found.json").read_text())["scores"]
    assert len(scores) == 12
    for name, row in scores.items():
        assert row["nan"] == 0, name
        apart = 1.0 if name == "generalized_entropy" else 0.1  # theirs clamps probabilities
        assert abs(row["ours"] - row["theirs"]) <= apart, name
        assert row["correlation"] > (0.99 if name == "generalized_entropy" else 0.999), name
    assert page.read_text().count("\n| `") == 12
