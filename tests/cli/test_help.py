"""Help pages and the sentences for mistakes, as a newcomer reads them."""

import shutil
import subprocess
import sys

import pytest
from PIL import Image

from osr_lightning.__main__ import main
from osr_lightning.cli.help_lines import GROUPS
from osr_lightning.cli.lightning_cli import OpenSetCLI
from osr_lightning.cli.main import COMMANDS as ALL
from osr_lightning.cli.options import CLASSIFIERS, options_of, parameters

COMMANDS = ("run", "fit", "calibrate", "validate", "test", "predict")
NOT_OURS = ("torch.nn", "torchmetrics", "known subclasses")


def printed(capsys, *words) -> str:
    assert main([*words]) == 0
    return capsys.readouterr().out


def error(capsys, *words) -> str:
    assert main([*words]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len([line for line in lines if line != "Seed set to 0"]) == 1, lines
    return lines[-1]


def test_run_help_is_a_page_of_options_a_line_each(capsys):
    page = printed(capsys, "run", "--help")
    lines = page.splitlines()
    assert len(lines) <= 120
    assert max(map(len, lines)) <= 80
    options = [line.split()[0][2:] for line in lines if line.startswith("  --")]
    assert options == [
        line.option
        for group in GROUPS
        if "run" in (group.commands or ["run"])
        for line in group.lines
        if line.option not in ("output", "in_place")
    ]
    assert {f"model.{name}" for name in parameters(CLASSIFIERS["MCDropoutClassifier"])} < {*options}
    assert "--data.val_fraction SHARE           share of training images held out [0.2]" in page
    assert "--data.memory_limit GIB             larger folders stay on disk [4.0]" in page


@pytest.mark.parametrize("command", COMMANDS)
def test_every_line_of_the_help_is_an_option_with_a_default(command):
    options = options_of(command)
    for group in GROUPS:
        for line in group.lines if command in (group.commands or COMMANDS) else ():
            if line.option in options:
                shown = options[line.option].default
                assert shown is None or not line.unset or line.option == "model", line.option


def test_names_in_the_lines_are_options_of_some_command():
    known = {name for command in COMMANDS for name in options_of(command)}
    assert {line.option for group in GROUPS for line in group.lines} - known == {"print_config"}


class Built(OpenSetCLI):
    """The command line up to its parser."""

    def parse_arguments(self, parser, args) -> None:
        raise StopIteration(self._parser(self.command))


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_knows_every_option_that_the_parser_takes(command):
    with pytest.raises(StopIteration) as stop:
        Built([command])
    dests = {action.dest for action in stop.value.value._actions if action.option_strings}
    # the parser's own, whole groups, what --verbose is linked to, what Lightning reads other checkpoints with
    others = {"help", "print_config", "print_shtab", "trainer", "data", "evaluation"}
    others |= {"trainer.verbose", "weights_only"}
    named = {name for name in options_of(command) if not name.startswith("model.")}
    assert {dest for dest in dests if not dest.endswith(".help")} - others == named


def test_help_of_another_command_and_class(capsys):
    page = printed(capsys, "test", "--help")
    assert "--model.learning_rate" not in page
    assert "--evaluation.bootstrap" in page
    assert "--in_place" in printed(capsys, "calibrate", "-h")
    assert "--model.num_samples" not in printed(capsys, "run", "--model=BaselineClassifier", "-h")


def test_help_all_has_every_option_with_its_type_and_default(capsys):
    page = printed(capsys, "run", "--help-all")
    for name in options_of("run"):
        assert f"\n  --{name}" in page, name
    assert "--data.calibrate_on validation|test [validation]" in page
    assert "--trainer.accumulate_grad_batches INTEGER [1]" in page
    assert max(map(len, page.splitlines())) <= 80
    assert not any(word in page for word in NOT_OURS)


def test_model_help_lists_our_classes_and_their_options(capsys):
    page = printed(capsys, "run", "--model.help")
    names = [line.split()[0] for line in page.splitlines() if line.startswith("  ") and line[2] != " "]
    assert names == [*CLASSIFIERS]
    assert not any(word in page for word in NOT_OURS)
    one = printed(capsys, "run", "--model.help", "BaselineClassifier")
    assert "--model.alpha NUMBER [0.05]" in one
    assert "num_samples" not in one
    assert "ConvNet" in printed(capsys, "run", "--model.network.help")
    assert "--model.network.image_size" in printed(capsys, "run", "--model.network.help=ConvNet")
    assert "\n  AdamW " in printed(capsys, "run", "--optimizer.help")
    assert "--lr_scheduler.gamma NUMBER [0.1]" in printed(capsys, "run", "--lr_scheduler.help", "StepLR")
    assert "\n  CSVLogger " in printed(capsys, "run", "--trainer.logger.help")
    assert "\n  EarlyStopping " in printed(capsys, "run", "--trainer.callbacks.help")
    assert "did you mean BaselineClassifier" in error(capsys, "run", "--model.help", "BaselineClasifier")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("rn", "there is no command 'rn'; did you mean run?"),
        ("serch x.yaml", "there is no command 'serch'; did you mean search?"),
        ("run --model Foo", "there is no class 'Foo'; there are MCDropoutClassifier, BaselineClassifier"),
        ("run --model.score entrpy", "model.score: there is no 'entrpy'; did you mean entropy?"),
        ("run --model.num_sample 3", "there is no option num_sample of model; did you mean num_samples?"),
        ("run --model.num_samples x", "model.num_samples must be a whole number, got 'x'"),
        ("run --model.schedule one", "model.schedule: there is no 'one'; there are step, one_cycle"),
        ("run --trainer.max_epochs x", "trainer.max_epochs must be a whole number, got 'x'"),
        ("run --trainer.max_epochs", "trainer.max_epochs lacks its value"),
        ("run --trainer.precision bf61-mixed", "there is no 'bf61-mixed'; did you mean bf16-mixed?"),
        ("run --trainer.callbacks EarlyStoping", "there is no 'EarlyStoping'; did you mean EarlyStopping?"),
        ("run --data.bach_size 3", "there is no option bach_size of data; did you mean batch_size?"),
        ("run --data.calibrate_on tset", "data.calibrate_on: there is no 'tset'; did you mean test?"),
        ("run --data.channels 2", "data.channels: there is no '2'; there are 1, 3"),
        ("run --data.unknown 3", "data.unknown must be a mapping, as {name: value}, got '3'"),
        ("run --evaluation.figures maybe", "evaluation.figures must be true or false, got 'maybe'"),
        ("run --optimizer Adma", "optimizer: there is no 'Adma'; did you mean"),
        ("run --optimizer Adam --optimizer.lr x", "optimizer.lr must be a number, got 'x'"),
        ("run --optimizer nosuch.Adam", "a class path cannot be imported: No module named 'nosuch'"),
        ("run --model.network nosuch.Net --model.network.width 3", "network nosuch.Net cannot be imported"),
        ("run --config nope.yaml", "config: there is no file"),
        ("run epochs", "'epochs' belongs to no option"),
    ],
)
def test_a_mistake_gets_one_sentence_with_the_nearest_names(words, sentence, capsys):
    assert sentence in error(capsys, *words.split())


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("data: {bach_size: 3}", "there is no option bach_size of data; did you mean batch_size?"),
        ("trainer: {max_epochs: x}", "trainer.max_epochs must be a whole number, got 'x'"),
        ("modle: {num_samples: 3}", "there is no option modle.num_samples; did you mean model.num_samples?"),
        ("data: [", "is no YAML: while parsing a flow node"),
    ],
)
def test_a_mistake_in_a_file_names_the_file(content, sentence, tmp_path, capsys):
    file = tmp_path / "a.yaml"
    file.write_text(content)
    told = error(capsys, "fit", f"--config={file}")
    assert told.startswith(f"osr: error: {file}")
    assert sentence in told


def test_commands_load_nothing_that_they_do_not_need(small_run, tmp_path):
    run = shutil.copytree(small_run, tmp_path / "run")
    Image.new("L", (28, 28)).save(tmp_path / "a.png")
    code = f"""if True:
        import sys
        from osr_lightning.__main__ import main
        assert main(["report", {str(run)!r}]) == 0
        assert main(["compare", {str(run)!r}, {str(run)!r}, "--output", {str(tmp_path)!r}]) == 0
        words = ["--output", {str(tmp_path / "p.csv")!r}, "--ckpt_path"]
        words += [{str(run / "checkpoints" / "best.ckpt")!r}]
        assert main(["predict", {str(tmp_path / "a.png")!r}, *words]) == 0
        late = ("torchvision", "scipy", "sklearn", "optuna", "tensorboard")
        print("loaded:", *(name for name in ("lightning", "torchmetrics", *late) if name in sys.modules))
        try:
            main(["run", "--model.network=ConvNet", "--print_config"])
        except SystemExit:
            print("loaded:", *(name for name in late if name in sys.modules))
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "class_path: osr_lightning.models.networks.ConvNet" in done.stdout
    assert [line.strip() for line in done.stdout.splitlines() if line.startswith("loaded")] == ["loaded:"] * 2


def test_a_parser_for_one_command_alone_is_built(monkeypatch):
    built = []
    make = OpenSetCLI.init_parser
    monkeypatch.setattr(
        OpenSetCLI, "init_parser", lambda *args, **kwargs: built.append(1) or make(*args, **kwargs)
    )
    with pytest.raises(SystemExit):
        main(["run", "--print_config"])
    assert len(built) == 2  # that of osr, and that of run


def test_bash_completes_commands_options_and_values(tmp_path, capsys):
    (tmp_path / "osr.bash").write_text(printed(capsys, "completion", "bash"))
    (tmp_path / "mine.yaml").write_text("")
    cases = {
        "stud": "study",
        "run --model.sc": "--model.score --model.schedule",
        "run --model.score en": "entropy energy",
        "run --seed_everything 3 --data.calibrate_on v": "validation",
        "fit --config mi": "mine.yaml",
        "search --tri": "--trials",
        "predict --str": "--strict",
        "compare --out": "--output",
    }
    script = "source osr.bash\n"
    for words in cases:
        count = len(words.split())
        script += (
            f"COMP_WORDS=(osr {words}) COMP_CWORD={count} COMPREPLY=()\n_shtab_osr; echo ${{COMPREPLY[@]}}\n"
        )
    command = ["bash", "--norc", "-c", script]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert dict(zip(cases, done.stdout.splitlines(), strict=True)) == cases


def test_every_command_completes(capsys):
    script = printed(capsys, "completion", "bash")
    named = next(line for line in script.splitlines() if line.startswith("_shtab_osr_subparsers="))
    assert {word.strip("()'") for word in named.partition("=")[2].split()} == set(ALL)
