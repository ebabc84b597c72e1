"""What a release is made of: version, notes, versions of others, what is installed without torch."""

import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import osr_lightning

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
INSTALL = (ROOT / "docs" / "install.md").read_text()

CHANGELOG = """# Changelog

## 0.4.0 (unreleased)

- Nothing yet.

## 0.3.0 (2026-12-01)

### Added
- A line.

## 0.2.0 (2026-01-01)

- Another.
"""


@pytest.fixture(scope="module")
def release():
    return runpy.run_path(str(ROOT / ".ci" / "release_notes.py"))


def test_the_notes_of_a_release_are_its_section(release):
    assert release["notes"]("v0.3.0", "0.3.0", CHANGELOG) == "### Added\n- A line.\n"


@pytest.mark.parametrize(
    ("tag", "version", "said"),
    [
        ("v0.3.1", "0.3.0", "the tag v0.3.1 is not v0.3.0"),
        ("0.3.0", "0.3.0", "the tag 0.3.0 is not v0.3.0"),
        ("v0.4.0", "0.4.0", "unreleased"),
        ("v0.5.0", "0.5.0", "no section 0.5.0"),
    ],
)
def test_what_does_not_go_together_is_no_release(release, tag, version, said):
    with pytest.raises(SystemExit, match=re.escape(said)):
        release["notes"](tag, version, CHANGELOG)


def test_the_version_is_one(release):
    version = osr_lightning.__version__
    assert release["package_version"]() == version
    assert re.search(rf"^version: {re.escape(version)}$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    newest = re.search(r"^## (\S+) \((.*)\)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest[1] == version
    assert re.fullmatch(r"unreleased|\d{4}-\d\d-\d\d", newest[2])


def names(requirements):
    return {re.match(r"[\w.-]+", one)[0] for one in requirements}


def test_without_torch_comes_what_the_extras_say():
    script = ROOT / ".ci" / "without_torch.py"
    said = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True).stdout
    assert names(said.splitlines()) == {"pillow"} | names(EXTRAS["runtime"]) | names(EXTRAS["serve"])
    page = (ROOT / "docs" / "deploy.md").read_text().partition("## Without torch")[2].partition("```\n")[0]
    for_drift = " scipy rich matplotlib"  # which the container does not run
    assert page.count(for_drift) == 1
    installed = " ".join(re.findall(r"pip install (.*?)(?:#.*)?\n", page.replace(for_drift, "")))
    assert set(installed.split()) - {"--no-deps", "osr_lightning"} == names(said.splitlines())


def rows(heading):
    """The cells of the table below a heading of the page on installing."""
    table = re.search(rf"^## {heading}\n.*?((?:^\|[^\n]*\n)+)", INSTALL, re.MULTILINE | re.DOTALL)[1]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def test_the_page_has_the_versions_of_pyproject_and_those_that_ci_tests():
    wanted = {"Python": PROJECT["requires-python"].removeprefix(">=")}
    left_out = {}
    for one in PROJECT["dependencies"] + EXTRAS["runtime"]:
        name, lowest, others = re.fullmatch(r"([\w-]+)(?:\[.*\])?>=([\d.]+)(.*)", one).groups()
        wanted[name], left_out[name] = lowest, re.findall(r"!=([\d.]+)", others)
    for name, lowest, without in rows("Versions"):
        assert wanted[name] == lowest, name
        assert re.findall(r"\d+\.\d+\.\d+", without) == left_out.get(name, []), name
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]
    *some, last = jobs["checks"]["strategy"]["matrix"]["python"]
    assert f"on Python {', '.join(some)} and {last}" in " ".join(INSTALL.split())
    assert some[0] == wanted["Python"]
    steps = jobs["lowest-versions"]["steps"]
    assert any("--resolution lowest-direct" in step.get("run", "") for step in steps)
    (lowest,) = (step["with"]["python-version"] for step in steps if "setup-python" in step.get("uses", ""))
    assert f"the lowest ones on Python {lowest}" in " ".join(INSTALL.split())


def test_the_page_has_every_extra():
    assert {row[0].strip("`") for row in rows("Extras")} == set(EXTRAS)
