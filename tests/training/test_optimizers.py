"""The command line's --optimizer and --lr_scheduler are what trains."""

import json

import pytest
import torch

from osr_lightning.__main__ import main

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
