"""The command line's --optimizer and --lr_scheduler are what trains, and the schedules' curves."""

import json
import math
import types

import pytest
import torch

from osr_lightning.__main__ import main
from osr_lightning.errors import UserError
from osr_lightning.training.optimizers import Cosine, refuse_to_stretch, scheduled

OWN = ["--optimizer=SGD", "--optimizer.lr=0.1", "--lr_scheduler=StepLR", "--lr_scheduler.step_size=1"]


def test_a_run_trains_with_them_and_its_config_tests(small, tmp_path, capsys):
    folder = f"--trainer.default_root_dir={tmp_path}"
    assert main(["run", *small, *OWN, folder]) == 0
    assert "SGD 0.1, StepLR" in capsys.readouterr().out
    run = tmp_path / "lightning_logs" / "default" / "version_0"
    last = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["training"]["optimizers"] == ["SGD"]
    [state] = last["optimizer_states"]
    assert state["param_groups"][0]["initial_lr"] == 0.1
    assert state["param_groups"][0]["lr"] == pytest.approx(0.01)  # after an epoch of StepLR
    before = json.loads((run / "results.json").read_text())
    again = ["test", f"--config={run}/config.yaml", f"--ckpt_path={run}/checkpoints/best.ckpt"]
    assert main([*again, "--trainer.version=again"]) == 0
    after = json.loads((run.with_name("again") / "results.json").read_text())
    assert after["open_set"] == before["open_set"]
    # it goes on with the same ones alone
    more = [*small, folder, "--ckpt_path=last", "--trainer.max_epochs=2"]
    assert main(["fit", *more]) == 2
    assert main(["fit", *more, *OWN]) == 0
    last = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["optimizer_states"][0]["param_groups"][0]["lr"] == pytest.approx(0.001)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--optimizer=SGD", "--optimizer.lr=-1"], "--optimizer SGD refuses its options: Invalid learning"),
        (OWN[2:], "--lr_scheduler needs its optimizer"),
        (
            [*OWN[:2], "--lr_scheduler=OneCycleLR", "--lr_scheduler.max_lr=1"],
            "--lr_scheduler OneCycleLR refuses its options",
        ),
    ],
)
def test_what_they_refuse_is_told(options, sentence, small, tmp_path, capsys):
    assert main(["fit", *small, *options, f"--trainer.default_root_dir={tmp_path}"]) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "lightning_logs").exists()  # nothing was begun


def rates(total: int, peak: float = 0.4) -> list[float]:
    """Of every step of a training with the schedule cosine."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    schedule, found = Cosine(optimizer, total), []
    for _ in range(total):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0, abs=1e-9)
    return found


def test_cosine_warms_up_in_a_line_and_falls_by_half_a_cosine():
    found = rates(100)
    assert found[:5] == pytest.approx([0.08, 0.16, 0.24, 0.32, 0.4])
    for step in range(5, 100):
        assert found[step] == pytest.approx(0.2 * (1 + math.cos(math.pi * (step - 4) / 96)))
    assert rates(1) == [0.4]
    assert rates(2) == pytest.approx([0.4, 0.2])


def training_of(steps: float, optimizer=None):
    """As much of a module and its trainer as a schedule asks for."""
    return types.SimpleNamespace(trainer=types.SimpleNamespace(estimated_stepping_batches=steps))


@pytest.mark.parametrize("schedule", ["one_cycle", "cosine"])
def test_a_schedule_by_steps_must_know_its_end_and_ends_there(schedule):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.4, momentum=0.9)
    with pytest.raises(UserError, match=f"model.schedule {schedule} must know its end"):
        scheduled(training_of(math.inf), optimizer, schedule)
    config = scheduled(training_of(30), optimizer, schedule)["lr_scheduler"]
    assert config["interval"] == "step"
    again = types.SimpleNamespace(
        lr_scheduler_configs=[types.SimpleNamespace(**config)], estimated_stepping_batches=31, max_epochs=1
    )
    with pytest.raises(UserError, match="the schedule of the learning rate ends at step 30"):
        refuse_to_stretch(again)
    again.estimated_stepping_batches = 30
    refuse_to_stretch(again)


def test_nesterovs_momentum_follows_a_schedule_of_the_model(small, tmp_path, capsys):
    sgd = ["--optimizer=SGD", "--optimizer.lr=0.1", "--optimizer.momentum=0.9", "--optimizer.nesterov=true"]
    folder = f"--trainer.default_root_dir={tmp_path}"
    options = [*small, *sgd, "--model.schedule=cosine", "--trainer.max_epochs=2", folder]
    assert main(["fit", *options]) == 0
    assert "SGD 0.1, cosine" in capsys.readouterr().out
    last = torch.load(
        tmp_path / "lightning_logs" / "default" / "version_0" / "checkpoints" / "last.ckpt", weights_only=True
    )
    [group] = last["optimizer_states"][0]["param_groups"]
    assert (group["momentum"], group["nesterov"], group["initial_lr"]) == (0.9, True, 0.1)
    assert group["lr"] == pytest.approx(0, abs=1e-9)
    assert last["lr_schedulers"][0]["total_steps"] == 4
