"""Help pages and the sentences for mistakes, as a newcomer reads them."""

import shutil
import subprocess
import sys

import pytest
from PIL import Image

from osr_lightning.__main__ import main
from osr_lightning.cli import lightning_cli
from osr_lightning.cli.help import SECTIONS, shown
from osr_lightning.cli.lightning_cli import OpenSetCLI
from osr_lightning.cli.main import COMMANDS as ALL
from osr_lightning.cli.options import CLASSIFIERS, Option, options_of, parameters

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


def test_run_help_is_a_page_of_options_with_what_they_do(capsys):
    page = printed(capsys, "run", "--help")
    lines = page.splitlines()
    assert len(lines) <= 140
    assert max(map(len, lines)) <= 80
    options = [line.split()[0][2:] for line in lines if line.startswith("  --")]
    assert options == [
        name
        for section in SECTIONS
        if "run" in (section.commands or ["run"])
        for name in section.options.split()
        if name not in ("output", "in_place")
    ]
    assert {f"model.{name}" for name in parameters(CLASSIFIERS["MCDropoutClassifier"])} < {*options}
    assert "--data.val_fraction NUMBER        share of training images held out [0.2]" in page
    # wrapped below the text, with what holds otherwise in one piece
    assert "--data.image_size INTEGER         height and width in pixels\n" + 36 * " " + "[the known" in page
    # longer than its column
    keeps = "--trainer.enable_checkpointing true|false\n"
    assert keeps + 36 * " " + "write best.ckpt and last.ckpt" in page
    assert "--model.calibration KIND          how the threshold is chosen\n" in page
    assert "name or class path; see --model.network.help" in page


def test_a_line_is_the_first_clause_its_values_and_what_holds_otherwise():
    text = "minutes between two, at most. More is lost; 1.5 x, or none, if not given."
    option = Option(int | None, None, text)
    assert (option.takes, option.clause) == ("INTEGER", "minutes between two, at most")
    assert option.unset == "1.5 x, or none"
    assert option._replace(default=3).unset == "3"
    assert option._replace(default=False).unset == "false"
    assert option._replace(text="no. 3, as a:b; more").clause == "no"
    assert option._replace(text="as a:b or 0.5; more").clause == "as a:b or 0.5"
    assert option._replace(text="only this.").clause == "only this"
    assert option._replace(text="only this.").unset == ""
    assert Option(None, False, "a flag").unset == ""


@pytest.mark.parametrize("command", COMMANDS)
def test_every_line_of_the_help_says_what_the_option_does(command):
    options = options_of(command)
    for _, names in shown(command, options):
        for name in names:
            clause = options[name].clause
            assert 8 < len(clause) <= 75, (name, clause)
            assert not clause.startswith(("of ", "see ", "whether to ")), name


def test_options_without_a_default_say_what_holds():
    options = options_of("run")
    unset = {name: option.unset for name, option in options.items()}
    assert unset["data.predict"] == "the test images"
    assert unset["data.num_workers"] == "one per processor, at most 8"
    assert unset["model.dropout"] == "the network's own, or 0.3"
    assert unset["trainer.version"] == "the next free number"
    assert unset["trainer.limit_train_batches"] == "all"
    assert options_of("calibrate")["output"].unset == "NAME.calibrated.ckpt beside ckpt_path"
    # a class hands on what another one explains
    assert options["model.network"].text.startswith("name or class path; ")


def test_names_in_the_page_are_options_of_some_command():
    known = {name for command in COMMANDS for name in options_of(command)}
    assert {name for section in SECTIONS for name in section.options.split()} < known


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
    others = {"help", "print_shtab", "trainer", "data", "evaluation"}
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
        ("run --model.schedule one", "model.schedule: there is no 'one'; did you mean one_cycle?"),
        ("run --model.schedule two", "model.schedule: there is no 'two'; there are step, one_cycle"),
        ("run --trainer.max_epochs x", "trainer.max_epochs must be a whole number, got 'x'"),
        ("run --trainer.max_epochs", "trainer.max_epochs lacks its value"),
        ("run --trainer.max_epochs --verbose", "trainer.max_epochs lacks its value"),
        ("run --verbose=true", "verbose takes no value: it is --verbose alone"),
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
        ("run --data nope.yaml", "data: there is no file nope.yaml"),
        ("run --model.init_args.alpha x", "model.alpha must be a number, got 'x'"),
        ("run --data.mean x", "data.mean must be a number or a list, as [a, b], got 'x'"),
        (
            "run --model BaselineClassifier --model.masks shared",
            "there is no option masks of model; see --help-all",
        ),
        ("run --optimizer Adam --optimizer.lrx 3", "there is no option lrx of optimizer; did you mean lr?"),
        (
            "run --trainer.callbacks EarlyStopping --trainer.callbacks.patience x",
            "trainer.callbacks.patience must be a whole number, got 'x'",
        ),
        (
            "run --trainer.name x",
            "no option name of trainer; did you mean experiment or version? Or see --help-all",
        ),
        ("run --trainer.zzzz x", "there is no option zzzz of trainer; see --help-all"),
        (
            "run --data.known_classes.0 1",
            "data.known_classes is given as a whole: --data.known_classes '[A, B]'",
        ),
        (
            "run --trainer.callbacks LambdaCallback --trainer.callbacks.on_train_start print",
            "trainer.callbacks.on_train_start must be the path of a function, as my_module.my_function, got",
        ),
        (
            "run --trainer.callbacks ThroughputMonitor --trainer.callbacks.batch_size_fn len",
            "trainer.callbacks.batch_size_fn must be the path of a function",
        ),
        ("run --data.mean.0 1", "data.mean is given as a whole"),
        ("run --trainer.logger=Foo", "trainer.logger: there is no 'Foo'; there are CSVLogger"),
        (
            "run --trainer.logger.name base",
            "trainer.logger.name is an option of a class, and none is named: put --trainer.logger CSVLogger",
        ),
        (
            "run --trainer.logger true --trainer.logger.name base",
            "trainer.logger.name is an option of a class",
        ),
        ("run --optimizer.lr 3", "none is named: put --optimizer Adam, or another's name, before it"),
        ("run --lr_scheduler.step_size 3", "put --lr_scheduler StepLR, or another's name, before it"),
        ("run --trainer.callbacks.patience 3", "put --trainer.callbacks EarlyStopping, or another's name"),
        ("run --trainer.profiler.x 3", "put --trainer.profiler NAME, or another's name, before it"),
        ("push RUN", "osr push: the following arguments are required: hf:USER/NAME; see osr push --help"),
        ("extend", "osr extend: the following arguments are required: --ckpt_path; see osr extend --help"),
        ("serve --port x", "osr serve: argument --port: invalid int value: 'x'; see osr serve --help"),
        ("study --seeds 1", "osr study: name the configs first, as in osr study CONFIG ..."),
        ("explain --ckpt_path no.ckpt -- -a.png", "there is no checkpoint no.ckpt"),
    ],
)
def test_a_mistake_gets_one_sentence_with_the_nearest_names(words, sentence, capsys):
    assert sentence in error(capsys, *words.split())


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("run --trainer.max_epoch 2", "there is no option max_epoch of trainer; did you mean max_epochs?"),
        ("run --conf a.yaml", "there is no option conf; did you mean config?"),
        ("fit --model.s energy", "there is no option s of model; did you mean score or schedule?"),
        ("predict a.png --ckpt a.ckpt", "there is no option --ckpt; did you mean --ckpt_path?"),
        ("predict --data.predict mnist --scor knn", "there is no option scor; did you mean score?"),
        ("export --ckpt a.ckpt", "there is no option --ckpt; did you mean --ckpt_path?"),
        ("serve --max_b 3", "there is no option --max_b; did you mean --max_body?"),
        ("drift a.csv --alph 0.1", "there is no option --alph; did you mean --alpha?"),
        ("compare a --outp b", "there is no option --outp; did you mean --output?"),
        ("report a --hel", "there is no option --hel; did you mean --help?"),
        ("completion --hel", "there is no option --hel; did you mean --help?"),
        ("ensemble a.ckpt --outp b", "there is no option outp; did you mean output?"),
        ("study {config} --shar 1/2", "there is no option shar; did you mean shard?"),
        (
            "study {config} --trainer.max_ep=2",
            "there is no option max_ep of trainer; did you mean max_epochs?",
        ),
        (
            "search --space {config} --trials 1 --trainer.max_ep 2",
            "there is no option max_ep of trainer; did you mean max_epochs?",
        ),
    ],
)
def test_the_beginning_of_a_name_is_no_name(words, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_text("trainer: {experiment: a}")
    assert sentence in error(capsys, *words.format(config=tmp_path / "a.yaml").split())


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("data: {bach_size: 3}", "there is no option bach_size of data; did you mean batch_size?"),
        ("trainer: {max_epochs: x}", "trainer.max_epochs must be a whole number, got 'x'"),
        ("modle: {num_samples: 3}", "there is no option modle.num_samples; did you mean model.num_samples?"),
        ("data: [", "is no YAML: while parsing a flow node"),
        ("model: {class_path: Foo}", "there is no class 'Foo'; there are MCDropoutClassifier"),
        ("model: {init_args: {num_samples: x}}", "model.num_samples must be a whole number, got 'x'"),
        ("optimizer: {class_path: Adam, init_args: {lr: x}}", "optimizer.lr must be a number, got 'x'"),
        (
            "optimizer: {class_path: Adam, init_args: {lrx: 1}}",
            "no option lrx of optimizer; did you mean lr?",
        ),
        ("trainer: {callbacks: [EarlyStoping]}", "there is no 'EarlyStoping'; did you mean EarlyStopping?"),
        ("trainer: {callbacks: [{class_path: nosuch.A}]}", "cannot be imported: No module named 'nosuch'"),
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


def test_a_parser_for_one_command_alone_is_built_and_once(monkeypatch):
    built = []
    monkeypatch.setattr(lightning_cli, "_PARSERS", {})
    make = OpenSetCLI.init_parser
    monkeypatch.setattr(
        OpenSetCLI, "init_parser", lambda *args, **kwargs: built.append(1) or make(*args, **kwargs)
    )
    with pytest.raises(SystemExit):
        main(["run", "--print_config"])
    assert len(built) == 2  # that of osr, and that of run
    with pytest.raises(SystemExit):
        main(["run", "--print_config"])
    assert len(built) == 3


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
