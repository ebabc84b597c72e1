"""What is read of an option that is given, and of the parser's message."""

import os

import pytest

from osr_lightning.__main__ import main
from osr_lightning.cli.lightning_cli import OpenSetCLI
from osr_lightning.cli.messages import _KEY, read_options
from osr_lightning.errors import UserError


class Parsed(OpenSetCLI):
    """The command line up to its parser's verdict."""

    def instantiate_classes(self) -> None:
        raise AssertionError("the parser refused nothing")


@pytest.mark.parametrize(
    ("words", "keys"),
    [
        (["--data.calibrate_on=tset"], ["data.calibrate_on"]),
        (["--trainer.max_epochs=x"], ["trainer.max_epochs"]),
        (["--trainer={max_epochs: x}"], ["trainer", "trainer.max_epochs"]),
        (["--model.num_samples=x"], ["model", "num_samples"]),
        (["--optimizer=Adam", "--optimizer.lr=x"], ["optimizer", "lr"]),
        (["--optimizer=Adam", "--optimizer.lrx=1"], ["optimizer"]),
        (["--trainer.logger=Foo"], ["trainer.logger"]),
    ],
)
def test_the_parser_names_the_option_as_it_is_read(words, keys):
    with pytest.raises(UserError) as caught:
        Parsed(["run", *words])
    assert list(dict.fromkeys(_KEY.findall(str(caught.value.__cause__)))) == keys


def names_of(*words: str) -> dict[str, object]:
    return {one.name: one.value for one in read_options("fit", words)}


def test_options_are_read_from_words_and_files_in_their_order(tmp_path):
    (tmp_path / "data.yaml").write_text("batch_size: 3\n")
    (tmp_path / "a.yaml").write_text(
        "data: data.yaml\n"
        "model: {init_args: {alpha: 0.1}, class_path: osr_lightning.BaselineClassifier}\n"
        "trainer: {callbacks: [{class_path: EarlyStopping}], max_time: null}\n"
    )
    words = ["--verbose", f"--config={tmp_path}/a.yaml", "--model.init_args.threshold", "-3", "--model+=x.Y"]
    with pytest.raises(UserError, match=r"x.Y cannot be imported: No module named 'x'"):
        read_options("fit", words)
    assert names_of(*words[:-1]) == {
        "verbose": "",
        "data.batch_size": 3,
        "model": "osr_lightning.BaselineClassifier",
        "model.alpha": 0.1,
        "trainer.callbacks": [{"class_path": "EarlyStopping"}],
        "trainer.max_time": None,
        "model.threshold": "-3",
    }
    assert names_of("--trainer={max_epochs: 3}", "--data.unknown.a", "cifar10", "--optimizer.lr=1") == {
        "trainer.max_epochs": 3,
        "data.unknown.a": "cifar10",
        "optimizer.lr": "1",
    }
    read_options("fit", ["--model.num_samples=3", "--model=BaselineClassifier"])  # dropped with its class


def test_a_config_of_a_run_is_read(small_run):
    read_options("run", [f"--config={small_run}/config.yaml"])


def test_a_pipe_is_left_to_the_parser(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for stream in (f"{tmp_path}/pipe", "-"):
        assert names_of("--config", stream) == {"config": stream}


def test_help_of_others_is_left_to_the_parser(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["run", "--trainer.profiler.help", "SimpleProfiler"])
    assert "--trainer.profiler.dirpath" in capsys.readouterr().out


def test_a_mapping_without_its_spaces_is_told_of_them():
    with pytest.raises(UserError) as caught:
        Parsed(["fit", "--data.unknown={p:photo_patches}"])
    assert str(caught.value) == (
        "data.unknown must be a mapping of names to texts or mappings, got '{p:photo_patches}'; YAML wants a "
        "space after each colon, as in {name: value}"
    )


def test_names_that_yaml_reads_otherwise_are_told_of_quotes(tmp_path):
    (tmp_path / "c.yaml").write_text("data:\n  known_classes: [yes, null]\n")
    with pytest.raises(UserError, match=r"put names that look like numbers, truths or null in quotes$"):
        Parsed(["fit", f"--config={tmp_path / 'c.yaml'}"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--model.costs.wrong_label=x", "model.costs.wrong_label must be a number, got 'x'"),
        ("--model.costs={wrong_label: x}", "model.costs.wrong_label must be a number, got 'x'"),
        ("--model.costs.wrong=1", "there is no option wrong of model.costs; did you mean wrong_label?"),
        ("--model.costs={wrong_lable: 1}", "no option wrong_lable of model.costs; did you mean wrong_label?"),
        ("--model.costs=3", "model.costs must be a mapping, as {name: value}, got '3'"),
        ("--model.network.channels=x", "model.network.channels must be a list, as [a, b], got 'x'"),
        ("--model.network.channels=[x]", "model.network.channels must be a list of whole numbers, got '[x]'"),
        ("--model.network.hidden=2.5", "model.network.hidden must be a whole number, got '2.5'"),
        ("--model.network.hiden=2", "there is no option hiden of model.network; did you mean hidden?"),
        ("--data.mean=[1, x]", "data.mean must be a list of numbers, got '[1, x]'"),
    ],
)
def test_what_an_option_may_hold_is_told(words, said, tmp_path):
    with pytest.raises(UserError) as caught:
        Parsed(["fit", "--model.network=MCDropoutCNN", "--model.calibration=min_cost", words])
    assert said in str(caught.value)
    assert "Parser key" not in str(caught.value)
    # the same in a file
    name, _, value = words.removeprefix("--").partition("=")
    group, _, name = name.partition(".")
    text = f"{name}: {value}"
    while "." in name:
        outer, _, name = name.partition(".")
        text = f"{outer}: {{{name}: {value}}}"
        if outer == "network":
            text = f"network: {{class_path: MCDropoutCNN, init_args: {{{name}: {value}}}}}"
    whole = f"model: {{class_path: MCDropoutClassifier, init_args: {{{text}}}}}"
    (tmp_path / "a.yaml").write_text(whole if group == "model" else f"{group}: {{{text}}}")
    with pytest.raises(UserError) as caught:
        Parsed(["fit", f"--config={tmp_path}/a.yaml"])
    assert said.replace("there is ", "").partition(", got")[0] in str(caught.value)


def test_options_of_a_class_stand_after_it():
    with pytest.raises(
        UserError, match=r"^optimizer\.lr stands before --optimizer, .*: name the class first"
    ):
        Parsed(["fit", "--optimizer.lr=0.1", "--optimizer=SGD"])
    with pytest.raises(UserError, match=r"^model\.network\.name stands before .*: name the network first"):
        Parsed(["fit", "--model.network.name=resnet18", "--model.network=Backbone"])


@pytest.mark.parametrize(
    "words",
    [
        "--model.costs.wrong_label=2",
        "--model.costs={wrong_label: 2}",
        "--model.network.channels=[2, 3]",
    ],
)
def test_what_fits_is_taken(words):
    with pytest.raises(AssertionError, match="the parser refused nothing"):
        Parsed(["fit", "--model.network=MCDropoutCNN", "--model.calibration=min_cost", words])
