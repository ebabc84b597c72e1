"""The notebooks of examples/, run from top to bottom with less training."""

import re
import sys
from pathlib import Path

import photos
import pytest

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("IPython")
from IPython.core.interactiveshell import InteractiveShell  # noqa: E402
from IPython.utils.capture import capture_output  # noqa: E402
from traitlets.config import Config  # noqa: E402

EXAMPLES = Path(__file__).parents[1] / "examples"
# in place of the cell that is tagged parameters
LESS = {
    "open_set_mnist": """
KNOWN, UNKNOWN, ROOT = "npz:{data}/known.npz", {{"noise": "npz:{data}/unknown.npz"}}, "."
EPOCHS, RUNS = 1, "."
""",
    "own_photos": """
MINE = OTHERS = None
NETWORK = {{"class_path": "Backbone", "init_args": {{"name": "{backbone}", "weights": "{weights}"}}}}
RUNS = "."
""",
    "plain_lightning": """
KNOWN, UNKNOWN = "npz:{data}/known.npz", {{"noise": "npz:{data}/unknown.npz"}}
EPOCHS, RUNS = 1, "."
""",
}


def test_every_notebook_is_run_here():
    assert {path.stem for path in EXAMPLES.glob("*.ipynb")} == {*LESS}


@pytest.fixture(scope="module")
def said(tiny_root, tmp_path_factory):
    """What the cells of each notebook print and display, as text.

    IPython runs them in this process, which has loaded what a kernel would have to load first.
    """
    place = tmp_path_factory.mktemp("notebooks")
    given = {"backbone": photos.BACKBONE, "weights": photos.write_weights(place / "small.pth")}
    given["data"] = tiny_root
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setitem(sys.modules, "__main__", sys.modules["__main__"])  # the shell puts its own there
        shell = InteractiveShell.instance(config=Config({"HistoryManager": {"enabled": False}}))
        for name, parameters in LESS.items():
            shell.reset()
            parts = []
            for cell in nbformat.read(EXAMPLES / f"{name}.ipynb", 4).cells:
                if cell.cell_type == "code":
                    tagged = "parameters" in cell.metadata.get("tags", ())
                    with capture_output(stderr=False) as captured:
                        ran = shell.run_cell(parameters.format(**given) if tagged else cell.source)
                    ran.raise_error()
                    parts += [captured.stdout, *(str(output.data) for output in captured.outputs)]
            found[name] = "\n".join(parts)
        InteractiveShell.clear_instance()
    return found


@pytest.mark.filterwarnings("ignore")  # as in a kernel
@pytest.mark.parametrize("name", LESS)
def test_it_runs_from_top_to_bottom(name, said):
    said = said[name]
    if name == "open_set_mnist":
        assert said.count("image/png") == 10
        assert "optimistic: test images chose it" in said
        assert "rejected with probability at most 0.05" in said
    if name == "own_photos":
        assert said.count("would be rejected") == 3
        assert "cross-conformal" in said
    if name == "plain_lightning":
        assert "'prediction': (87,)" in said  # a share of 200 known images, and 50 of noise
        assert "logits (87, 10), samples (20, 87, 10), features (87, 800)" in said


@pytest.mark.parametrize("name", LESS)
def test_what_is_kept_is_small_and_of_no_machine(name):
    text = (EXAMPLES / f"{name}.ipynb").read_text()
    assert len(text) < 400_000
    assert not re.search(r"(/home|/root|/tmp|/work)/", text)
    found = nbformat.read(EXAMPLES / f"{name}.ipynb", 4)
    assert all(cell.execution_count for cell in found.cells if cell.cell_type == "code")
    nbformat.validate(found)
