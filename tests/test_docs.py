"""README.md and docs/: links lead somewhere, and commands are those of this version."""

import argparse
import contextlib
import csv
import functools
import json
import re
import shlex
import shutil
import textwrap
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from osr_lightning.__main__ import main
from osr_lightning.cli import features
from osr_lightning.cli.completion import _osr
from osr_lightning.cli.main import COMMANDS, OWN

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "lightning_logs" / "README.md"])
CONFIGS = sorted(ROOT.glob("configs/**/*.yaml"))
# what is not ours, and asked for help nowhere here
OTHERS = {"tensorboard", "curl", "cd", "cp", "bash", "docker", "python", "python3"}
OTHERS |= {".venv/bin/pytest", ".venv/bin/ruff"}
OTHERS |= {".venv/bin/mypy", ".venv/bin/lint-imports", ".venv/bin/pip"}


PLACES = {
    "CKPT": "RUN/checkpoints/best.ckpt",
    "best.ckpt": "RUN/checkpoints/best.ckpt",
    "C": "configs/mc_dropout.yaml",
    "S": "docs/search_space.yaml",
    "N": "3",
}


def prose(page: Path) -> str:
    return re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(), flags=re.DOTALL)


def anchors(page: Path) -> set[str]:
    """Of its headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = page if not path else page.parent / path
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_the_site_has_every_page():
    named = re.findall(r"^ +- .*: ([\w-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert {page.name for page in ROOT.glob("docs/*.md")} <= set(named)


def shell(text: str) -> list[list[str]]:
    """The words of each command."""
    lines = text.replace("\\\n", " ").splitlines()
    found = []
    for line in lines:
        if "#SBATCH" in line or "…" in line or "..." in line:
            continue
        words = shlex.split(line, comments=True)
        while words:
            end = next((i for i, word in enumerate(words) if word in ("&&", "|", ">", "&")), len(words))
            found.append([word for word in words[:end] if word not in ("2>&1", "srun")])
            words = [] if words[end : end + 1] in ([">"], ["|"]) else words[end + 1 :]
    return [words for words in found if words]


def commands() -> list[tuple[str, list[str]]]:
    """Page and words of every command in the blocks of all pages, and in the first lines of configs."""
    found = []
    for page in PAGES:
        for block in re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL):
            found += [(page.name, words) for words in shell(re.sub(r"^  ", "", block, flags=re.MULTILINE))]
        # and those within a sentence
        text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
        for words in re.findall(r"`((?:osr|python) [^`]*)`", text):
            found += [(page.name, command) for command in shell(words.replace("\n", " "))]
    for config in CONFIGS:
        lines = re.findall(r"^#   (osr .*)$", config.read_text(), re.MULTILINE)
        found += [(config.name, words) for line in lines for words in shell(line)]
    return found


def ours(words: list[str]) -> list[str] | None:
    """The words after ``osr``, however it is called."""
    if "osr_lightning" in words:
        return words[words.index("osr_lightning") + 1 :]
    return words[1:] if Path(words[0]).name == "osr" else None


@pytest.fixture(scope="module")
def work(tmp_path_factory, small_run):
    """A working folder with what the commands name; DATA is no folder, as no data are read."""
    here = tmp_path_factory.mktemp("work")
    shutil.copytree(ROOT / "configs", here / "configs")
    shutil.copytree(ROOT / "docs", here / "docs")
    for name in ("quickstart", "baseline", "mc_dropout", "my_images"):
        shutil.copytree(small_run, here / "lightning_logs" / name / "version_0")
    shutil.copytree(small_run, here / "RUN")
    for place in (here, here / "lightning_logs" / "mc_dropout_search"):
        place.mkdir(exist_ok=True)
        shutil.copy(ROOT / "configs" / "mc_dropout.yaml", place / "best.yaml")
    (here / "my_networks.py").write_text(
        "from torch import nn\n\n\n"
        "class MyNet(nn.Module):\n"
        "    def __init__(self, num_classes: int, width: int = 8) -> None:\n"
        "        super().__init__()\n"
    )
    return here


# each once, under the first page that has it
ASKED = {tuple(ours(words)): page for page, words in reversed(commands()) if ours(words)}


def test_the_pages_have_commands():
    assert len(ASKED) > 60


@pytest.mark.parametrize("words", ASKED, ids=[f"{ASKED[w]} {' '.join(w)}"[:90] for w in ASKED])
def test_commands_are_understood(words, work, monkeypatch, capsys):
    monkeypatch.chdir(work)
    monkeypatch.syspath_prepend(str(work))
    command, *rest = words
    assert command in COMMANDS
    if not rest or "--help" in rest or any(word.endswith(".help") for word in rest):
        return
    rest = [PLACES.get(word, word) for word in rest]
    if command in ("study", "search"):
        own, rest = split_own(command, rest)
        assert own is not None
        command, rest = "run", rest
    elif command in OWN or (command == "predict" and "--data.predict" not in rest):
        parsers()[command].parse_args(rest)
        return
    if "--features" in rest:
        features.build_parser().parse_args(rest)
        return
    with contextlib.suppress(SystemExit):
        assert main([command, *rest, "--print_config"]) == 0, capsys.readouterr().err
    printed = capsys.readouterr()
    assert "seed_everything:" in printed.out, printed.err


@functools.cache
def parsers() -> dict[str, argparse.ArgumentParser]:
    """As completion knows the commands' options."""
    (commands,) = (a for a in _osr()._actions if isinstance(a, argparse._SubParsersAction))
    return commands.choices


def split_own(command: str, words: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The command's own options, and those of ``run``."""
    from osr_lightning.cli import search, study

    parser = {"study": study.build_parser(), "search": search.build_parser()}[command]
    if command == "search":
        return parser.parse_known_args(words)
    count = next((i for i, word in enumerate(words) if word.startswith("-")), len(words))
    options, further = parser.parse_known_args(words[count:])
    return options, [f"--config={words[0]}", *further]


def test_other_commands_are_known_and_benchmarks_have_their_options():
    for page, words in commands():
        if ours(words) is not None:
            continue
        if words[0].startswith("python") and words[1].endswith(".py"):
            script = ROOT / "benchmarks" / Path(words[1]).name
            source = script.read_text() + (ROOT / "benchmarks" / "common.py").read_text()
            for word in words[2:]:
                assert not word.startswith("--") or f'"{word}"' in source, (page, words)
        elif "pip" in Path(words[0]).name:
            extras = re.findall(r"\[([\w,]+)\]", " ".join(words))
            for extra in extras:
                assert re.search(rf"^{extra} = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE), (
                    words
                )
        else:
            assert words[0] in OTHERS or "=" in words[0], (page, words)


def test_what_the_readme_does_with_a_checkpoint(work, monkeypatch, capsys):
    """Its commands and its Python, as they stand."""
    monkeypatch.chdir(work)
    Path("PHOTOS").mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(f"PHOTOS/{number}.png")
    Path("docs").mkdir(exist_ok=True)
    shutil.copy(ROOT / "docs" / "score_histograms.png", "docs")  # a picture that a clone has
    shutil.copy("RUN/checkpoints/best.ckpt", "best.ckpt")
    page = ROOT / "README.md"
    mine = [ours(words) for name, words in commands() if name == page.name and ours(words)]
    wanted = "predict", "drift"
    quick = [words for words in mine if words[0] in wanted and len(words) > 1 and "CKPT" not in words]
    assert [words[0] for words in quick if words[1] != "RUN"] == ["predict", "drift"]
    for words in quick:
        if words[1] != "RUN":
            assert main(words) in (0, 3), words  # noise may give alarm
    with open("answers.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == [f"PHOTOS/{number}.png" for number in range(3)]
    capsys.readouterr()
    (script,) = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    exec(script, {})  # noqa: S102 - the README of this repository
    said = capsys.readouterr().out
    assert said.startswith("[Prediction(label=")
    assert said.count("Prediction(") == 1


def test_a_score_of_ones_own_decides(small, tmp_path):
    """That of the page, which is no part of the package."""
    from osr_lightning import load
    from osr_lightning.scoring.scores import SCORES

    (script,) = re.findall(
        r"  ```python\n(  from osr_lightning.__main__.*?)  ```",
        (ROOT / "docs" / "design.md").read_text(),
        re.DOTALL,
    )
    try:
        exec(textwrap.dedent(script), {"__name__": "margin"})  # noqa: S102 - our own page
        assert main(["run", *small, "--model.score=margin", f"--trainer.default_root_dir={tmp_path}"]) == 0
        results = json.loads(next(tmp_path.rglob("results.json")).read_text())
        assert results["score"]["name"] == "margin"
        recogniser = load(next(tmp_path.rglob("best.ckpt")))
        found = recogniser.answer(np.zeros((1, 1, 28, 28), np.uint8))
        first, second = np.sort(found.probabilities[0])[::-1][:2]
        assert found.score[0] == pytest.approx(1 - (first - second))
    finally:
        SCORES.pop("margin", None)
    with pytest.raises(ValueError, match=r"there is no score 'margin'"):
        load(next(tmp_path.rglob("best.ckpt")))
