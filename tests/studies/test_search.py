"""``osr search``: its space, its objective, what it keeps, and several processes on one storage."""

import contextlib
import csv
import getpass
import multiprocessing
import os
import pwd
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import optuna
import pytest
import torch
import yaml
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState
from quick import SMALL_NETWORK, process_of

from osr_lightning.__main__ import main
from osr_lightning.data.image_set import ImageSet
from osr_lightning.data.image_table import ImageTable
from osr_lightning.errors import Diverged, UserError
from osr_lightning.studies.search import objective
from osr_lightning.studies.search.generated import MOST, generate, mixed, other_class, permuted, shifted
from osr_lightning.studies.search.objective import judge
from osr_lightning.studies.search.space import as_arguments, corners, read_space
from osr_lightning.studies.search.storage import (
    check_trials,
    finished,
    living_process,
    mend,
    open_study,
    running_elsewhere,
    same_search,
    started,
)

SPACE = "model.learning_rate: {low: 1e-3, high: 2e-3, log: true}\nmodel.num_samples: {choices: [2, 3]}\n"
EXAMPLE = Path(__file__).parents[2] / "docs" / "search_space.yaml"


def space_of(folder: Path, text: str = SPACE) -> Path:
    path = folder / "space.yaml"
    path.write_text(text)
    return path


def command(root: Path, runs: Path, trials: int, *more: str, space: str = SPACE) -> list[str]:
    found = ["search", f"--space={space_of(runs, space)}", f"--trials={trials}", "--name=tried"]
    found += ["--trainer.accelerator=cpu", f"--trainer.default_root_dir={runs}", f"--data.root={root}"]
    # a test that was loaded would miss its images
    found += ["--data.unknown={gone: 'folder:/no/such/folder'}", *SMALL_NETWORK]
    return [*found, "--trainer.max_epochs=1", *more]


def rows_of(runs: Path) -> list[dict]:
    with (runs / "lightning_logs" / "tried" / "trials.csv").open() as file:
        return list(csv.DictReader(file))


def states(runs: Path) -> list[str]:
    return [row["state"] for row in rows_of(runs)]


# the space ----------------------------------------------------------------------------------------------


def test_a_space_has_ranges_and_choices(tmp_path):
    text = "model.a: {low: 1e-3, high: 1, log: true}\nmodel.b: {low: 2, high: 10, step: 3}\n"
    text += "trainer.c: {low: 0, high: 0.35, step: 0.1}\nmodel.d: {choices: [none, null, true, [knn, vim]]}"
    space = read_space(space_of(tmp_path, text))
    assert space == {
        "model.a": FloatDistribution(0.001, 1.0, log=True),
        "model.b": IntDistribution(2, 8, step=3),
        "trainer.c": FloatDistribution(0.0, 0.3, step=0.1),
        "model.d": CategoricalDistribution(["none", None, True, '["knn", "vim"]']),
    }
    ends = corners(space)
    assert [end["model.b"] for end in ends] == [2, 8, 2, 8]
    given = ["--model.a=0.001", "--model.b=2", "--trainer.c=0.0", "--model.d=none"]
    assert as_arguments(ends[0]) == given
    assert [as_arguments(end)[3] for end in ends[1:]] == [
        "--model.d=null",
        "--model.d=true",
        '--model.d=["knn", "vim"]',
    ]


MISTAKES = {
    "empty file": ("", "must name options"),
    "no mapping": ("- model.dropout", "must name options"),
    "no YAML": ("a: [", "no YAML"),
    "no range": ("model.dropout: 0.3", "needs low and high"),
    "half a range": ("model.dropout: {low: 0.3}", "needs low and high"),
    "both": ("model.dropout: {low: 0.1, high: 0.3, choices: [1, 2]}", "choices"),
    "empty range": ("model.dropout: {low: 0.3, high: 0.3}", "is empty"),
    "log of 0": ("model.dropout: {low: 0, high: 0.3, log: true}", "low above 0"),
    "log and step": ("model.dropout: {low: 0.1, high: 0.3, log: true, step: 0.1}", "log and step"),
    "long step": ("model.dropout: {low: 0.1, high: 0.3, step: 1}", "step"),
    "word": ("model.dropout: {low: 0.1, high: 0.3, steps: 1}", "has steps"),
    "text": ("model.dropout: {low: little, high: 0.3}", "must be a number"),
    "infinite": ("model.dropout: {low: 0.1, high: .inf}", "must be a number"),
    "one choice": ("model.schedule: {choices: [step]}", "at least two"),
    "same choices": ("model.schedule: {choices: [step, step]}", "at least two"),
    "twice": ("model.dropout: {low: 0, high: 1}\nmodel.dropout: {low: 0, high: 1}", "again in line 2"),
    "seeds": ("seed_everything: {low: 0, high: 9}", "luck"),
    "split": ("data.seed: {low: 0, high: 9}", "the same images"),
    "threshold": ("model.alpha: {low: 0.1, high: 0.2}", "ranking"),
    "folder": ("trainer.default_root_dir: {choices: [a, b]}", "search sets it"),
    "root": ("dropout: {low: 0.1, high: 0.2}", "no option of osr run"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_space_gets_one_sentence(mistake, tmp_path):
    text, named = MISTAKES[mistake]
    with pytest.raises(UserError, match=named):
        read_space(space_of(tmp_path, text))


REFUSED = {
    "unknown option": ("model.dropuot: {low: 0.1, high: 0.2}", [], "dropuot"),
    "out of range": ("model.dropout: {low: 0.1, high: 1.5}", [], "dropout"),
    "unknown choice": ("model.augment: {choices: [none, letters]}", [], "letters"),
    "test images": (SPACE, ["--data.calibrate_on=test"], "no test image"),
    "two processes": (SPACE, ["--trainer.devices=2"], "one process"),
    "serves both": (
        SPACE,
        ["--data.calibration_unknown={a: 'folder:/no/such/folder'}"],
        "would choose the options and be tested",
    ),
    "few images": (SPACE, ["--trainer.limit_val_batches=2"], "limit_val_batches"),
    "trials": (SPACE, ["--trials=0"], "--trials"),
    "name": (SPACE, ["--name=a/b"], "--name"),
    "storage": (SPACE, ["--storage=nosuch://host/db"], "cannot open the storage"),
}


@pytest.mark.parametrize("mistake", REFUSED)
def test_a_mistake_is_told_before_any_training(mistake, tiny_root, tmp_path, capsys):
    space, options, named = REFUSED[mistake]
    assert main(command(tiny_root, tmp_path, 1, *options, space=space)) == 2
    error = capsys.readouterr().err
    assert named in error
    assert "Traceback" not in error
    assert not list(tmp_path.rglob("version_*"))


# the objective ------------------------------------------------------------------------------------------


def test_the_objective_is_that_of_pairs():
    rng = np.random.default_rng(0)
    label, predicted = rng.integers(0, 4, 60), rng.integers(0, 3, 60)
    score = rng.integers(0, 9, 60) / 4  # with ties
    rows = {"row": np.arange(60), "label": label, "predicted_class": predicted, "score/energy": score}
    found = judge({name: torch.from_numpy(value) for name, value in rows.items()}, "energy", 3, 5)
    known, unknown = np.flatnonzero(label < 3), np.flatnonzero(label == 3)
    won = {(i, j): (score[j] > score[i]) + (score[j] == score[i]) / 2 for i in known for j in unknown}
    assert found.auroc == pytest.approx(np.mean([*won.values()]), abs=1e-12)
    right = [value * (predicted[i] == label[i]) for (i, _), value in won.items()]
    assert found.openauc == pytest.approx(np.mean(right), abs=1e-12)
    assert found.accuracy == pytest.approx(np.mean(predicted[known] == label[known]), abs=1e-12)
    assert found.openauc <= min(found.auroc, found.accuracy)
    assert found.epoch == 5
    # images that the score was fitted to are not ranked, but have their class
    tensors = {name: torch.from_numpy(value) for name, value in rows.items()}
    less = judge(tensors, "energy", 3, 5, {int(known[0])})
    assert less.accuracy == found.accuracy
    rest = [value for (i, _), value in won.items() if i != known[0]]
    assert less.auroc == pytest.approx(np.mean(rest), abs=1e-12)


def test_scores_that_are_no_numbers_are_not_ranked():
    rows = {"label": torch.tensor([0, 1]), "predicted_class": torch.tensor([0, 0])}
    rows["score/energy"] = torch.tensor([0.0, torch.nan])
    with pytest.raises(Diverged, match="NaN for 1 of 2"):
        judge(rows, "energy", 1, 0)


def known_table(count: int = 90, size: int = 9) -> ImageTable:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(256, (count, 1, size, size), dtype=torch.uint8, generator=generator)
    return ImageTable.of([ImageSet(images, torch.arange(count) % 3, ("a", "b", "c"))])


def test_generated_unknowns_are_fixed_by_the_seed_and_are_no_known_images():
    known = known_table()
    first, again, other = generate(known, 0), generate(known, 0), generate(known, 1)
    assert list(first) == ["mixed", "permuted", "shifted"]
    assert [len(found) for found in first.values()] == [30, 30, 30]
    taken = {image.numpy().tobytes() for image in known.images}
    for kind, found in first.items():
        assert torch.equal(found.images, again[kind].images)
        assert not torch.equal(found.images, other[kind].images)
        assert not taken & {image.numpy().tobytes() for image in found.images}
    assert sum(map(len, generate(known_table(MOST + 100, 4), 0).values())) == MOST


def test_generated_unknowns_are_made_as_documented():
    images, others = known_table(6, 8).images, known_table(12, 8).images[6:]
    made = mixed(images, others)
    assert torch.equal(made[0, :, :, :4], images[0, :, :, :4])
    assert torch.equal(made[0, :, :, 4:], others[0, :, :, 4:])
    assert torch.equal(made[1], ((images[1].int() + others[1].int()) // 2).to(torch.uint8))
    odd = known_table(6, 9).images  # 4 x 4 patches of 2 x 2, and an edge that stays
    moved = permuted(odd, torch.Generator().manual_seed(0))
    assert torch.equal(moved[..., 8], odd[..., 8])

    def patches(image: torch.Tensor) -> list[bytes]:
        return [
            image[0, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].numpy().tobytes()
            for i in range(4)
            for j in range(4)
        ]

    for before, after in zip(odd, moved, strict=True):
        assert sorted(patches(before)) == sorted(patches(after))
        assert all(one != two for one, two in zip(patches(before), patches(after), strict=True))
    assert torch.equal(shifted(images)[:, :, :4, :4], images[:, :, 4:, 4:])
    labels = torch.tensor([2, 0, 0, 1, 2, 0])
    partners = other_class(labels, torch.Generator().manual_seed(0))
    assert (labels[partners] != labels).all()
    assert other_class(torch.zeros(3, dtype=torch.int64), torch.Generator()).tolist() == [-1] * 3


def test_images_of_one_colour_make_no_unknowns():
    images = torch.full((4, 1, 8, 8), 7, dtype=torch.uint8)
    with pytest.raises(UserError, match="calibration_unknown"):
        generate(ImageTable.of([ImageSet(images, torch.arange(4) % 2, ("a", "b"))]), 0)


# a search -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def searched(tiny_root, tmp_path_factory):
    """The folder of a search of two trials of the example's options that was begun with one."""
    runs = tmp_path_factory.mktemp("runs")
    space = EXAMPLE.read_text().replace("trainer.max_epochs", "# trainer.max_epochs")
    assert main(command(tiny_root, runs, 1, space=space)) == 0
    assert states(runs) == ["complete"]
    begun = rows_of(runs)
    assert main(command(tiny_root, runs, 2, space=space)) == 0
    assert rows_of(runs)[:1] == begun
    return runs


def test_a_search_goes_on_until_its_trials_are_complete(searched, tiny_root, capsys):
    assert states(searched) == ["complete"] * 2
    before = (searched / "lightning_logs" / "tried" / "trials.csv").read_bytes()
    space = EXAMPLE.read_text().replace("trainer.max_epochs", "# trainer.max_epochs")
    assert main(command(tiny_root, searched, 1, space=space)) == 0
    assert (searched / "lightning_logs" / "tried" / "trials.csv").read_bytes() == before
    shown = capsys.readouterr().out
    assert "best of 2 trials" in shown
    assert f"osr run --config {searched}/lightning_logs/tried/best.yaml" in shown


def test_a_search_leaves_a_table_figures_and_a_folder_for_each_trial(searched):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = searched / "lightning_logs" / "tried"
    for name in ("history.png", "parallel_coordinates.png", "journal.log"):
        assert (folder / name).stat().st_size > 0
    assert not list(folder.rglob("*.ckpt"))
    for row in rows_of(searched):
        trial = folder / f"version_{row['trial']}"
        assert (trial / "config.yaml").is_file()
        events = EventAccumulator(str(trial)).Reload()
        tags = events.Tags()["scalars"]
        assert {"openauc/val", "auroc/val", "accuracy/val", "search/openauc"} <= {*tags}
        assert float(row["openauc"]) == pytest.approx(events.Scalars("search/openauc")[-1].value, abs=1e-6)
        names = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
        assert b"model.schedule" in names
        # what torchmetrics says of the known images
        assert float(row["accuracy"]) == pytest.approx(events.Scalars("accuracy/val")[-1].value, abs=1e-6)


def test_figures_are_drawn_of_what_there_are_enough_trials_for(tmp_path):
    from matplotlib import pyplot as plt

    from osr_lightning.studies.search.figures import draw

    study = open_study(None, tmp_path, "s", 0)
    assert draw(study) == {}
    space = {
        "model.x": FloatDistribution(0.1, 10, log=True),
        "model.y": CategoricalDistribution(["$\\a$", None]),
    }
    before = dict(plt.rcParams)
    for number in range(6):
        trial = study.ask(space)
        trial.set_user_attr("openauc", number / 9)
        if number < 5:
            study.tell(trial, number / 9)
        else:
            study.tell(trial, state=TrialState.PRUNED)
        if number in (2, 3):  # from four on there are importances
            drawn = [*draw(study)]
            assert drawn == ["history", "parallel_coordinates", *(["importance"] if number == 3 else [])]
    figures = draw(study)
    assert dict(plt.rcParams) == before
    assert plt.get_fignums() == []
    for name, figure in figures.items():
        figure.savefig(tmp_path / f"{name}.png")
    points = [part.get_offsets() for part in figures["history"].axes[0].collections]
    complete, cut = (one for one in points if len(one))  # Optuna has a third kind
    assert complete.tolist() == [[number, number / 9] for number in range(5)]
    assert cut.tolist() == [[5, 5 / 9]]
    # each line goes through its objective and its places between the ends of the others, on the same scale
    lines = figures["parallel_coordinates"].axes[0].collections[0].get_segments()
    decades = np.log10([trial.params["model.x"] for trial in study.trials[:5]])
    places = (decades - decades.min()) / (decades.max() - decades.min()) * 4 / 9
    heights = sorted((line[0][1], line[1][1]) for line in lines)
    np.testing.assert_allclose(heights, [(number / 9, places[number]) for number in range(5)], atol=1e-9)
    labels = [label.get_text() for label in figures["parallel_coordinates"].axes[0].get_xticklabels()]
    assert labels == ["OpenAUC\non validation images", "model.\nx", "model.\ny"]
    bars = figures["importance"].axes[0]
    assert {label.get_text() for label in bars.get_yticklabels()} == {"model.x", "model.y"}
    assert sum(bar.get_width() for bar in bars.patches) == pytest.approx(1)


def test_the_best_config_runs(searched, tiny_root, tmp_path):
    folder = searched / "lightning_logs" / "tried"
    best = max(rows_of(searched), key=lambda row: float(row["openauc"]))
    config = yaml.safe_load((folder / "best.yaml").read_text())
    assert config["model"]["init_args"]["learning_rate"] == float(best["model.learning_rate"])
    assert config["model"]["init_args"]["schedule"] == best["model.schedule"]
    assert config["trainer"]["enable_checkpointing"]
    assert config["trainer"]["version"] is None
    done = ["run", f"--config={folder}/best.yaml", f"--trainer.default_root_dir={tmp_path}"]
    done += [f"--data.unknown={{noise: 'npz:{tiny_root}/unknown.npz'}}", "--evaluation.figures=false"]
    done += [
        "--evaluation.projector_points=0",
        "--evaluation.bootstrap=20",
        "--trainer.enable_progress_bar=false",
    ]
    assert main(done) == 0
    with (tmp_path / "lightning_logs" / "default" / "version_0" / "metrics.csv").open() as file:
        accuracy = [float(row["val/accuracy"]) for row in csv.DictReader(file) if row["val/accuracy"]]
    assert accuracy[0] == pytest.approx(float(best["accuracy"]), abs=1e-6)  # the trial was this very training


def test_another_space_or_config_needs_another_name(searched, tiny_root, capsys):
    assert main(command(tiny_root, searched, 6)) == 2
    assert "begun with the space's" in capsys.readouterr().err
    space = EXAMPLE.read_text().replace("trainer.max_epochs", "# trainer.max_epochs")
    assert main(command(tiny_root, searched, 6, "--data.val_fraction=0.3", space=space)) == 2
    assert "data.val_fraction 0.2, not 0.3" in capsys.readouterr().err


def test_unknown_images_of_the_users_judge_and_fitted_scores_rank(tiny_root, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(objective, "judge", lambda *args: seen.append(args) or judge(*args))
    more = [f"--data.calibration_unknown={{noise: 'npz:{tiny_root}/unknown.npz'}}", "--model.score=knn"]
    assert main(command(tiny_root, tmp_path, 1, *more)) == 0
    ((rows, score, classes, *_),) = seen
    assert score == "knn"
    assert torch.bincount(rows["label"] // classes).tolist() == [80, 50]


def test_pruned_and_diverged_trials_count_and_others_go_on(tiny_root, tmp_path, monkeypatch):
    monkeypatch.setattr(optuna.Trial, "should_prune", lambda trial: trial.number == 1)

    def once_nan(rows, *rest):
        if not list((tmp_path / "lightning_logs" / "tried").glob("version_1")):
            raise Diverged("the loss is no finite number")
        return judge(rows, *rest)

    monkeypatch.setattr(objective, "judge", once_nan)
    assert main(command(tiny_root, tmp_path, 3)) == 0
    assert states(tmp_path) == ["pruned", "pruned", "complete"]
    assert [row["reason"] for row in rows_of(tmp_path)] == [
        "the loss is no finite number",
        "pruned after epoch 1",
        "",
    ]


def test_a_signal_ends_a_search_and_loses_no_trial(tiny_root, tmp_path, monkeypatch):
    def stop(*args):
        os.kill(os.getpid(), signal.SIGTERM)
        return judge(*args)

    monkeypatch.setattr(objective, "judge", stop)
    with pytest.raises(SystemExit) as ended:
        main(command(tiny_root, tmp_path, 3))
    assert ended.value.code == 143
    assert states(tmp_path) == ["complete"]  # its last step was done
    assert (tmp_path / "lightning_logs" / "tried" / "best.yaml").is_file()


# the storage --------------------------------------------------------------------------------------------


def test_trials_of_dead_processes_neither_count_nor_block(tmp_path):
    study = open_study(None, tmp_path, "s", 0)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    here = socket.gethostname()
    processes = {
        f"{here} {gone.pid}": TrialState.FAIL,
        f"{here} {living_process(os.getppid())}": TrialState.RUNNING,
        "elsewhere 1": TrialState.RUNNING,
        # what lives, but is no search that ran this trial, hides none
        **dict.fromkeys((f"{here} {odd}" for odd in ("1", "1 x 0", "-1", "x", str(2**70))), TrialState.FAIL),
    }
    for process in processes:
        study.ask().set_user_attr("process", process)
    started(study.ask())  # of this process, which is not in it any more
    assert running_elsewhere(study) == 1
    assert [trial.state for trial in study.trials] == [*processes.values(), TrialState.FAIL]
    assert finished(study) == 0


def test_draws_depend_on_the_trial_alone(tmp_path):
    space = {"x": FloatDistribution(0, 1)}
    drawn = []
    for name, stops in (("a", False), ("b", True)):
        study = open_study(None, tmp_path / name, "s", 3)
        for _ in range(14):
            if stops:
                study = open_study(None, tmp_path / name, "s", 3)
            trial = study.ask(space)
            study.tell(trial, trial.params["x"])
        drawn.append([trial.params["x"] for trial in study.trials])
    assert drawn[0] == drawn[1]
    assert len({*drawn[0]}) == 14


def test_a_line_that_was_cut_short_is_removed(tmp_path):
    study = open_study(None, tmp_path, "s", 0)
    study.tell(study.ask(), 1.0)
    journal = tmp_path / "journal.log"
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"op_code": 4, "wor')
    mend(journal)
    assert journal.read_bytes() == whole
    assert finished(open_study(None, tmp_path, "s", 0)) == 1


LINES = [
    "{",
    "[]",
    '{"op_code": 99}',
    '{"op_code": 0}',
    "[" * 10_000,
    '{"op_code": 4, "worker_id": "x", "study_id": 0, "distributions": 1}',
    "\xff",
]


@pytest.mark.parametrize("line", LINES)
def test_a_journal_that_is_none_is_told_in_a_sentence(line, tmp_path):
    study = open_study(None, tmp_path, "s", 0)
    study.tell(study.ask(), 1.0)
    with (tmp_path / "journal.log").open("ab") as file:
        file.write(line.encode("latin-1") + b"\n")
    with pytest.raises(UserError, match=r"journal\.log is damaged .*another --name"):
        open_study(None, tmp_path, "s", 0)


@pytest.mark.parametrize("content", ["file,label\na.png,cat", "{}", "7", "[" * 10_000, "\xff"])
def test_a_file_of_something_else_is_no_storage_and_stays(content, tmp_path):
    (tmp_path / "mine.csv").write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=r"mine\.csv: it is no journal of a search; name another"):
        open_study(str(tmp_path / "mine.csv"), tmp_path, "s", 0)
    assert (tmp_path / "mine.csv").read_bytes() == content.encode("latin-1")


def test_a_journal_that_is_a_pipe_or_leads_elsewhere_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="it is no file"):
        open_study(str(tmp_path / "pipe"), tmp_path, "s", 0)
    (tmp_path / "search").mkdir()
    (tmp_path / "key").write_text("secret")
    (tmp_path / "search" / "journal.log").symlink_to(tmp_path / "key")
    with pytest.raises(UserError, match="is a link that leads out"):
        open_study(None, tmp_path / "search", "s", 0)
    assert (tmp_path / "key").read_text() == "secret"


DRAWN = {"x": FloatDistribution(0, 1), "kind": CategoricalDistribution(["a", "b"])}
OTHER = CategoricalDistribution(["os.system"])
ENDED = {"value": 0.5, "user_attrs": {"accuracy": 0.9, "auroc": 0.8, "epoch": 1}}


@pytest.mark.parametrize(
    "trial",
    [
        {"params": {"trainer.callbacks": "os.system"}, "distributions": {"trainer.callbacks": OTHER}},
        {"params": {"kind": "os.system"}, "distributions": {"kind": OTHER}},
        {"params": {"x": 7.0}, "distributions": {"x": FloatDistribution(0, 10)}},
        {"state": TrialState.WAITING, "system_attrs": {"fixed_params": {"trainer.callbacks": "os.system"}}},
        {"state": TrialState.WAITING, "system_attrs": {"fixed_params": {"x": "os.system"}}},
        {"state": TrialState.WAITING, "system_attrs": {"fixed_params": "x"}},
        ENDED | {"user_attrs": {}},
        ENDED | {"user_attrs": {"accuracy": "=1+1", "auroc": 0.5}},
        ENDED | {"user_attrs": ENDED["user_attrs"] | {"epoch": [1]}},
        ENDED | {"value": float("inf")},
        ENDED | {"intermediate_values": {1: float("nan")}},
    ],
)
def test_trials_that_no_search_made_are_refused(trial, tmp_path):
    study = open_study(None, tmp_path, "s", 0)
    trial = {"state": TrialState.COMPLETE if "value" in trial else TrialState.FAIL} | trial
    good = {"params": {"x": 0.5, "kind": "a"}, "distributions": DRAWN}
    study.add_trial(optuna.trial.create_trial(**good, **ENDED))
    study.enqueue_trial({"x": 0.25})
    check_trials(study, DRAWN)
    study.add_trial(optuna.trial.create_trial(**trial))
    with pytest.raises(UserError, match="trial 2 of s is none of this search"):
        check_trials(open_study(None, tmp_path, "s", 0), DRAWN)


@pytest.mark.parametrize("kept", [1, [], {"space": {}}, {"space": 1, "settings": {}}])
def test_a_storage_that_does_not_say_what_was_searched_is_refused(kept, tmp_path):
    study = open_study(None, tmp_path, "s", 0)
    study.set_user_attr("search", kept)
    with pytest.raises(UserError, match="does not say what was searched"):
        same_search(study, {}, {})
    study = optuna.create_study(direction="minimize")
    with pytest.raises(UserError, match="does not maximise"):
        check_trials(study, DRAWN)


@pytest.mark.parametrize(
    "change",
    [
        "trial_params set distribution_json = '{'",
        """trial_params set distribution_json = '{"name": "os.system", "attributes": {}}'""",
        "trial_params set param_value = 'x'",
        "trial_user_attributes set value_json = '{'",
        "trial_values set value = 'x'",
        "study_user_attributes set value_json = '['",
        "trials set state = 'x'",
    ],
)
def test_a_database_of_a_strangers_is_told_in_a_sentence(change, tmp_path):
    def opened() -> optuna.Study:
        study = open_study(f"sqlite:///{tmp_path}/a.db", tmp_path, "s", 0)
        same_search(study, {}, {})
        check_trials(study, DRAWN)
        return study

    opened().add_trial(optuna.trial.create_trial(params={"x": 0.5}, distributions={"x": DRAWN["x"]}, **ENDED))
    opened()
    with contextlib.closing(sqlite3.connect(tmp_path / "a.db")) as database, database:
        database.execute(f"update {change}")
    with pytest.raises(UserError, match=r"of s is (damaged|none of this search)"):
        opened()


ENDLESS = "with recursive c(x) as (select 1 union all select x + 1 from c) select x from c"


@pytest.mark.parametrize(
    ("made", "named"),
    [
        (f"create view endless as {ENDLESS}", "the view endless"),
        ("drop table trial_values; create view trial_values as select 1 x", "the view trial_values"),
        ("create trigger t after insert on trials begin select raise(abort, 'x'); end", "the trigger t"),
        ("create virtual table v using fts5(x)", "the table v"),
    ],
)
def test_a_database_that_would_run_something_is_not_opened(made, named, tmp_path):
    storage = f"sqlite:///{tmp_path}/a.db"
    open_study(storage, tmp_path, "s", 0)
    open_study(storage, tmp_path, "s", 0)
    with contextlib.closing(sqlite3.connect(tmp_path / "a.db")) as database:
        database.executescript(made)
    with pytest.raises(UserError, match=rf"a\.db holds {named}, which no search makes"):
        open_study(storage, tmp_path, "s", 0)


# what a search loads, which takes seconds, sooner or later
LOADED = [
    *("osr_lightning.cli.search", "osr_lightning.studies.search.figures"),
    *("sklearn.metrics", "torch.utils.tensorboard"),
]


def two_processes(root: Path, runs: Path, storage: str) -> None:
    """Start two searches of four trials in all on one storage, and check what both leave."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LOADED)
    words = command(root, runs, 4, f"--storage={storage}")
    said = [runs / name for name in "ab"]
    both = [context.Process(target=process_of, args=(words, path)) for path in said]
    for process in both:
        process.start()
    for process in both:
        process.join(timeout=300)
    assert [process.exitcode for process in both] == [0, 0], [path.read_text() for path in said]
    rows = rows_of(runs)
    complete = [row for row in rows if row["state"] == "complete"]
    assert 4 <= len(complete) <= 5  # both may begin the last one at the same moment
    assert len({row["model.learning_rate"] for row in complete}) == len(complete)
    assert len({row["process"] for row in complete}) == 2


def test_two_processes_share_a_journal(tiny_root, tmp_path):
    two_processes(tiny_root, tmp_path, str(tmp_path / "shared" / "journal.log"))


@pytest.fixture
def database():
    """The URL of an empty database of a PostgreSQL server of its own."""
    found = [shutil.which("initdb"), *sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))]
    if not any(found):
        pytest.skip("no PostgreSQL server binary (initdb)")
    if find_spec("psycopg") is None:
        pytest.skip("no driver psycopg")
    binaries = Path(next(filter(None, found))).resolve().parent
    user = "postgres" if os.geteuid() == 0 else getpass.getuser()  # it refuses to run as root
    if user not in {entry.pw_name for entry in pwd.getpwall()}:
        pytest.skip(f"no user {user} to run the server")
    account = {"user": user} if os.geteuid() == 0 else {}
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        shutil.chown(folder, user)
        quiet = {"check": True, "stdout": subprocess.DEVNULL, "cwd": folder, **account}
        data = f"{folder}/data"
        subprocess.run([binaries / "initdb", "-D", data, "-A", "trust", "-U", "osr"], **quiet)
        options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1"
        control = [binaries / "pg_ctl", "-D", data, "-w", "-l", f"{folder}/log"]
        subprocess.run([*control, "-o", options, "start"], **quiet)
        try:
            yield f"postgresql+psycopg://osr@127.0.0.1:{port}/postgres"
        finally:
            subprocess.run([*control, "-m", "immediate", "stop"], **quiet)


def test_two_processes_share_a_postgresql_database(database, tiny_root, tmp_path):
    two_processes(tiny_root, tmp_path, database)
    assert not list(tmp_path.rglob("journal.log"))
