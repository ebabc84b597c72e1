"""The notebooks of examples/, run from top to bottom with less training; one kernel runs them all."""

import re
from pathlib import Path

import photos
import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

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
def ran(tiny_root, tmp_path_factory):
    """The cells of all notebooks with what they gave, by notebook."""
    place = tmp_path_factory.mktemp("notebooks")
    given = {"backbone": photos.BACKBONE, "weights": photos.write_weights(place / "small.pth")}
    given["data"] = tiny_root
    joined, owners = nbformat.v4.new_notebook(), [None]
    # timm of the kernel's process knows the small backbone as well
    small = f"import sys; sys.path.append({str(Path(__file__).parent)!r}); import photos"
    joined.cells.append(nbformat.v4.new_code_cell(small))
    for name, parameters in LESS.items():
        found = nbformat.read(EXAMPLES / f"{name}.ipynb", 4)
        joined.cells.append(nbformat.v4.new_code_cell("%reset -f"))
        owners.append(None)
        for cell in found.cells:
            if cell.cell_type == "code":
                if "parameters" in cell.metadata.get("tags", ()):
                    cell = nbformat.v4.new_code_cell(parameters.format(**given))
                joined.cells.append(cell)
                owners.append(name)
    nbclient.NotebookClient(joined, timeout=300, resources={"metadata": {"path": str(place)}}).execute()
    cells = {name: [] for name in LESS}
    for owner, cell in zip(owners, joined.cells, strict=True):
        if owner is not None:
            cells[owner].append(cell)
    return cells


def texts(cells) -> str:
    return "\n".join(
        str(output.get("text") or output.get("data")) for cell in cells for output in cell.outputs
    )


@pytest.mark.filterwarnings("ignore")  # of the kernel's
@pytest.mark.parametrize("name", LESS)
def test_it_runs_from_top_to_bottom(name, ran):
    cells = ran[name]
    assert all(cell.execution_count for cell in cells)
    assert not [o for cell in cells for o in cell.outputs if o.output_type == "error"]
    said = texts(cells)
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
