"""Studies: which runs, in which folders, gone on with, and their means against numbers worked out by hand."""

import csv
import json
import multiprocessing
import re
import statistics
import subprocess
import sys
import threading
from pathlib import Path

import published
import pytest
import yaml
from quick import FAST as _FAST
from quick import SMALL_NETWORK

from osr_lightning.__main__ import main
from osr_lightning.atomic_write import only_one
from osr_lightning.cli.arguments import split_words, value_of
from osr_lightning.cli.study import build_parser
from osr_lightning.data.class_splits import ARPL, NEAL, class_splits
from osr_lightning.data.sources import load_source, shared_sets
from osr_lightning.errors import UserError
from osr_lightning.evaluation.run_groups import (
    Mean,
    MeasureKey,
    differences,
    mean_of,
    mean_text,
    means,
    run_measures,
)
from osr_lightning.studies.study import plan_runs, run_study, shard

FAST = [*_FAST, "--trainer.max_epochs=1", "--model.alpha=0.1"]


@pytest.fixture(scope="module")
def configs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("configs")
    network = "{class_path: MCDropoutCNN, init_args: {channels: [2, 3], hidden: 5}}"
    for name, kind in {"plain": "BaselineClassifier", "mc": "MCDropoutClassifier"}.items():
        model = f"{{class_path: {kind}, init_args: {{network: {network}}}}}"
        (folder / f"{name}.yaml").write_text(f"model: {model}\ndata: {{known: mnist}}\n")
    return [folder / "plain.yaml", folder / "mc.yaml"]


def study(root, folder, configs, *more):
    known = [f"--data.root={root}", f"--data.unknown={{noise: 'npz:{root}/unknown.npz'}}"]
    own = [*map(str, configs), "--seeds", "0", "1", "--name", "both", *more]
    return main(["study", *own, *FAST, *known, f"--trainer.default_root_dir={folder}"])


@pytest.fixture(scope="module")
def done(tiny_root, tmp_path_factory, configs):
    folder = tmp_path_factory.mktemp("study")
    assert study(tiny_root, folder, configs) == 0
    return folder


def results(folder, run):
    return json.loads((folder / "lightning_logs" / "both" / run / "results.json").read_text())


def test_every_config_and_seed_has_a_run_folder(done):
    folder = done / "lightning_logs" / "both"
    runs = {path.name for path in folder.iterdir() if path.is_dir()}
    assert runs == {"plain-seed0", "plain-seed1", "mc-seed0", "mc-seed1"}
    assert [results(done, f"mc-seed{seed}")["seed"] for seed in (0, 1)] == [0, 1]
    page = (folder / "study.html").read_text()
    assert all(f'href="{run}/report.html"' in page for run in runs)
    # its differences have the report's names, and the file those of its columns
    for name, column in (("closed set", "closed_set_accuracy"), ("FPR95 (known)", "fpr95_known")):
        assert f'data-label="measure">{name}</td>' in page
        assert column not in page
        assert column in (folder / "study.csv").read_text()


def test_the_table_holds_means_deviations_and_paired_differences(done):
    with open(done / "lightning_logs" / "both" / "study.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    found = {(r["config"], r["measure"], r["score"], r["unknown_set"]): r for r in rows}
    value = {
        (config, seed): results(done, f"{config}-seed{seed}")["unknown"]["noise"]["auroc"]
        for config in ("plain", "mc")
        for seed in (0, 1)
    }
    for config in ("plain", "mc"):
        score = results(done, f"{config}-seed0")["score"]["name"]
        row = found[config, "auroc", score, "noise"]
        pair = [value[config, 0], value[config, 1]]
        assert float(row["mean"]) == pytest.approx(statistics.mean(pair))
        assert float(row["deviation"]) == pytest.approx(statistics.stdev(pair))
        assert row["runs"] == "2"
    differing = [value["mc", seed] - value["plain", seed] for seed in (0, 1)]
    assert float(row["difference"]) == pytest.approx(statistics.mean(differing))
    assert row["pairs"] == "2"


def test_started_again_it_does_only_what_is_missing(done, tiny_root, configs, capsys):
    folder = done / "lightning_logs" / "both"
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*/results.json")}
    (folder / "mc-seed1" / "report.html").unlink()  # as if it was stopped before its end
    assert study(tiny_root, done, configs) == 0
    said = capsys.readouterr().out
    assert said.count("finished before") == 3
    assert "--ckpt_path" not in said
    changed = [p.parent.name for p in before if p.stat().st_mtime_ns != before[p]]
    assert changed == ["mc-seed1"]
    assert len((folder / "mc-seed1" / "metrics.csv").read_text().splitlines()) == 3 + 1


def test_the_seeds_are_joined_and_tested(done, tiny_root, configs, capsys):
    assert study(tiny_root, done, configs, "--ensemble") == 0
    joined = results(done, "mc-ensemble2")
    assert [Path(one["file"]).parts[-3] for one in joined["model"]["members"]] == ["mc-seed0", "mc-seed1"]
    assert joined["model"]["num_samples"] == 20
    assert "mc, 2 joined" in (done / "lightning_logs" / "both" / "study.html").read_text()
    capsys.readouterr()
    assert study(tiny_root, done, configs, "--ensemble") == 0  # which finds all there
    assert capsys.readouterr().out.count("run folder") == 0


def test_other_options_need_another_name(done, tiny_root, configs, capsys):
    assert study(tiny_root, done, configs, "--model.learning_rate=0.5") == 2
    assert "was made with other options" in capsys.readouterr().err


def test_a_run_that_was_refused_leaves_the_name_free(tiny_root, configs, tmp_path, capsys):
    known = [f"--data.root={tiny_root}", f"--data.unknown={{noise: 'npz:{tiny_root}/unknown.npz'}}"]
    words = ["study", str(configs[0]), "--seeds", "0", "--name", "mended", *FAST, *known]
    words.append(f"--trainer.default_root_dir={tmp_path}")
    assert main([*words, "--model.alpha=0.0001"]) == 2
    assert "alpha 0.0001 needs 9,999 validation images" in capsys.readouterr().err
    assert main(words) == 0
    assert (tmp_path / "lightning_logs" / "mended" / "plain-seed0" / "results.json").is_file()


def test_a_config_may_change_in_its_comments_alone(done, tiny_root, configs, tmp_path, capsys):
    others = [tmp_path / config.name for config in configs]
    for config, other in zip(configs, others, strict=True):
        other.write_text(f"# once more\n\n{config.read_text()}  # the end\n")
    assert study(tiny_root, done, others) == 0
    assert capsys.readouterr().out.count("run folder") == 0  # all are there
    others[0].write_text(others[0].read_text().replace("mnist", "'3'"))
    assert study(tiny_root, done, others) == 2
    assert "was made with other options or another plain.yaml" in capsys.readouterr().err


def test_runs_of_a_plan():
    (first, *_, last) = runs = plan_runs(
        [CONFIG], [0, 3], "arpl", None, ["--trainer.default_root_dir", "x"], root=Path("x")
    )
    assert len(runs) == 10
    assert [first.name, last.name] == ["mnist-arpl1-seed0", "mnist-arpl5-seed3"]
    assert first.folder == Path("x/lightning_logs/mnist-arpl/mnist-arpl1-seed0")
    assert "--data.known_classes=[2, 4, 5, 9, 8, 3]" in first.arguments
    assert "--seed_everything=3" in last.arguments


CONFIG = Path(__file__).parents[2] / "configs" / "open_set" / "mnist.yaml"


def test_each_config_has_the_splits_of_its_own_known_set():
    cifar10 = CONFIG.with_name("cifar10.yaml")
    runs = plan_runs([CONFIG, cifar10], [0], "arpl", None, [])
    known = [next(a for a in run.arguments if a.startswith("--data.known_classes=")) for run in runs]
    expected = [*ARPL["mnist"], *ARPL["cifar10"]]
    assert known == [f"--data.known_classes={list(classes)}" for classes in expected]


@pytest.mark.parametrize("count", [1, 3, 4])
def test_shards_are_all_runs_once(count):
    runs = plan_runs([CONFIG], [0, 1, 2], None, None, [])
    parts = [shard(runs, f"{index}/{count}") for index in range(1, count + 1)]
    assert sorted(run.name for part in parts for run in part) == sorted(run.name for run in runs)


@pytest.mark.parametrize("part", ["0/2", "3/2", "x", "1", "1/2/3", "-1/2"])
def test_what_is_no_part_says_so(part):
    with pytest.raises(UserError, match="is no part"):
        shard([], part)


def test_the_splits_are_those_of_their_sets():
    assert [split.known for split in class_splits("neal", "cifar10")] == [*NEAL]
    assert [split.known for split in class_splits("arpl", "cifar10")] == [*ARPL["cifar10"]]
    assert [split.known for split in class_splits("arpl", "fashion_mnist")] == [*ARPL["mnist"]]
    for name, lists in (("", NEAL), *ARPL.items()):
        assert [len({*classes}) for classes in lists] == [20 if name == "tiny_imagenet" else 6] * 5


def test_a_split_brings_its_unknown_sets_unless_others_are_named():
    cifar10 = CONFIG.with_name("cifar10.yaml")
    (run, *_) = plan_runs([cifar10], [0], "arpl_plus_10", None, ["--data.known=folder:mine"])
    assert "--data.known_classes=[4, 7, 9, 1]" in run.arguments
    expected = {"cifar100": "cifar100:30,25,1,9,8,0,46,52,49,71"}
    assert json.loads(value_of(run.arguments, "--data.unknown")) == expected
    (run, *_) = plan_runs([cifar10], [0], "arpl_plus_10", None, ["--data.unknown={a: noise:uniform}"])
    assert value_of(run.arguments, "--data.unknown") == "{a: noise:uniform}"  # the last one holds


@pytest.mark.parametrize(
    ("config", "splits"),
    [
        ("svhn", "arpl"),
        ("cifar_plus_10", "arpl_plus_10"),
        ("cifar_plus_50", "arpl_plus_50"),
        ("tiny_imagenet", "arpl"),
        ("cub", "ssb"),
        ("aircraft", "ssb"),
        ("cars", "ssb"),
        ("openood_cifar10", "openood"),
        ("openood_cifar100", "openood"),
    ],
)
def test_a_config_alone_is_the_first_of_its_splits(config, splits):
    data = yaml.safe_load(CONFIG.with_name(f"{config}.yaml").read_text())["data"]
    first = class_splits(splits, data["known"])[0]
    assert data.get("known_classes") == (None if first.known is None else [*first.known])
    assert json.loads(json.dumps(data.get("unknown")).replace(", ", ",")) == json.loads(
        json.dumps(first.unknown).replace(", ", ",")
    )


def test_a_study_of_published_splits_meets_their_unknown_sets(tmp_path, monkeypatch, capsys):
    published.write_cifar(tmp_path, monkeypatch)
    published.write_cifar(tmp_path, monkeypatch, hundred=True, count=100, tested=100)
    config = CONFIG.with_name("cifar_plus_10.yaml")
    options = ["--splits=arpl_plus_10", "--shard=2/5", f"--data.root={tmp_path}", "--model.alpha=0.3"]
    words = [*options, *_FAST, *SMALL_NETWORK, "--trainer.max_epochs=1", "--data.image_size=16"]
    assert main(["study", str(config), *words, f"--trainer.default_root_dir={tmp_path}"]) == 0
    folder = tmp_path / "lightning_logs" / "cifar_plus_10-arpl_plus_10" / "cifar_plus_10-arpl_plus_10_2-seed0"
    found = json.loads((folder / "results.json").read_text())
    assert found["classes"] == ["class 6", "class 7", "class 1", "class 9"]
    assert found["data"]["unknown"]["cifar100"]["test"] == 10
    assert "1 of 5 runs" in capsys.readouterr().out


def test_mistakes_get_one_sentence(tmp_path, capsys):
    same = tmp_path / "mnist.yaml"
    same.write_text("{}")
    for arguments, said in [
        (["nowhere.yaml"], "there is no config nowhere.yaml"),
        ([str(CONFIG), str(same)], "same file name"),
        ([str(CONFIG), "--trainer.devices=2"], "one process"),
        ([str(CONFIG), "--name=../up"], "--name must be the name of a folder, not '../up'"),
        ([str(CONFIG), "--name=a/b"], "--name must be the name of a folder, not 'a/b'"),
    ]:
        assert main(["study", *arguments]) == 2
        err = capsys.readouterr().err
        assert re.search(said, err)
        assert err.count("\n") == 1


def test_own_options_are_told_from_those_of_run():
    configs, own, further = split_words(
        build_parser(),
        ["a.yaml", "b.yaml", "--seeds", "0", "1", "--model.alpha", "0.1", "--name=n", "--data.root=x"],
        "configs",
    )
    assert configs == ["a.yaml", "b.yaml"]
    assert (own.seeds, own.name) == ([0, 1], "n")
    assert further == ["--model.alpha", "0.1", "--data.root=x"]
    assert value_of(further, "--model.alpha") == "0.1"
    assert value_of(further, "--data.root") == "x"
    assert value_of(further, "--model") is None


def test_sets_are_loaded_once_where_runs_share_them(tiny_root):
    with shared_sets():
        first = load_source("mnist", "train", root=tiny_root)
        assert load_source("mnist", "train", root=tiny_root) is first
        assert load_source("mnist", "test", root=tiny_root) is not first
    assert load_source("mnist", "train", root=tiny_root) is not first


def test_means_against_numbers_by_hand():
    one, two = MeasureKey("auroc", "msp", "a"), MeasureKey("oscr", "", "all")
    assert mean_of([0.5, 0.7, 0.9]) == (pytest.approx(0.7), pytest.approx(0.2), 3)
    assert mean_of([0.5]) == (0.5, None, 1)
    assert means([{one: 1.0, two: 0.5}, {one: 0.0}])[one].mean == 0.5
    assert means([{one: 1.0, two: 0.5}, {one: 0.0}])[two].runs == 1
    paired = differences({0: {one: 0.9}, 1: {one: 0.8}, 2: {one: 0.1}}, {0: {one: 0.5}, 1: {one: 0.6}})
    assert paired[one].mean == pytest.approx(0.3)
    assert paired[one].runs == 2
    assert mean_text(Mean(0.98765, 0.00123, 3)) == "98.77 ± 0.12"
    assert mean_text(Mean(0.5, None, 1)) == "50.00"
    assert mean_text(None) == "-"


def test_measures_leave_out_what_is_undefined():
    found = run_measures(
        {"score": {"name": "msp"}, "open_set": {"auroc": None, "oscr": 0.5}, "closed_set": None}
    )
    assert found == {MeasureKey("oscr", "", "all"): 0.5}


def holding(folder: Path, held, done) -> None:
    with only_one(folder, wait=False) as alone:
        held.put(alone)
        done.get(timeout=60)


def test_one_process_is_alone_in_a_folder_until_it_ends(tmp_path):
    context = multiprocessing.get_context("spawn")
    held, done = context.Queue(), context.Queue()
    other = context.Process(target=holding, args=(tmp_path, held, done))
    other.start()
    assert held.get(timeout=60)
    with only_one(tmp_path, wait=False) as alone:
        assert not alone
    other.kill()
    with only_one(tmp_path, wait=True) as alone, only_one(tmp_path, wait=False) as again:
        assert alone
        assert again  # a study and its training are one process
    other.join()
    assert list(tmp_path.iterdir()) == []


def test_two_studies_of_one_name_train_every_seed_once(tiny_root, configs, tmp_path):
    trained: list[str] = []
    begun, go_on = threading.Event(), threading.Event()

    def train(arguments: list[str]) -> None:
        folder = tmp_path / "lightning_logs" / "s" / value_of(arguments, "--trainer.version")
        trained.append(folder.name)
        if len(trained) == 1:
            begun.set()
            go_on.wait(60)
        (folder / "results.json").write_text('{"schema_version": 2}')
        (folder / "report.html").write_text("")

    runs = plan_runs(configs, [0, 1], None, "s", [], root=tmp_path)
    script = (
        "import sys; from pathlib import Path; from osr_lightning.studies.study import plan_runs, run_study\n"
        "root, *configs = map(Path, sys.argv[1:])\n"
        "runs = plan_runs(configs, [0, 1], None, 's', [], root=root)\n"
        "def train(arguments):\n"
        "    version = next(a.partition('=')[2] for a in arguments if a.startswith('--trainer.version='))\n"
        "    folder = root / 'lightning_logs' / 's' / version\n"
        "    (folder / 'other').touch()\n"
        "    (folder / 'results.json').write_text('{\"schema_version\": 2}')\n"
        "    (folder / 'report.html').write_text('')\n"
        "run_study(runs, runs, train)\n"
    )
    first = threading.Thread(target=run_study, args=(runs, runs, train))
    first.start()
    assert begun.wait(60)
    words = [sys.executable, "-u", "-c", script, tmp_path, *configs]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as second:
        said = ""
        while "waiting for" not in said:
            said += second.stdout.readline()
        go_on.set()
        said += second.stdout.read()
    first.join(60)
    assert second.returncode == 0
    others = {path.parent.name for path in tmp_path.glob("lightning_logs/s/*/other")}
    assert "run 1 of 4: plain-seed0, another process trains it" in said
    assert trained == ["plain-seed0"]
    assert others == {"plain-seed1", "mc-seed0", "mc-seed1"}
