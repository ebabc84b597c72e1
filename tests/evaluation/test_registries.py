"""The promise to whoever extends the evaluation: a measure or a figure is one decorated function."""

import json
from functools import partial

import numpy as np
import pytest
from matplotlib.figure import Figure

from osr_lightning import BaselineClassifier, OpenSetDataModule, OpenSetTrainer
from osr_lightning.evaluation.figures import figure
from osr_lightning.evaluation.figures.registry import FIGURES
from osr_lightning.evaluation.measures import MEASURES, measure
from osr_lightning.evaluation.outcomes import Outcomes
from osr_lightning.models.networks import BaselineCNN
from osr_lightning.training.callbacks.evaluator import Evaluator


@pytest.fixture
def made_up():
    """A measure and a figure, for one test."""

    @measure(label="made-up measure", format="percent", says="a quarter of the images", needs="nothing")
    def made_up_measure(outcomes):
        return np.float32(0.25)

    @figure(caption="The made-up figure.", order=-1, wide=True, needs="nothing")
    def made_up_figure(material):
        return Figure(figsize=(1, 1))

    yield
    del MEASURES["made_up_measure"], FIGURES["made_up_figure"]


def test_a_decorated_function_is_in_every_file_of_a_run(made_up, tiny_root, tmp_path, monkeypatch):
    for name in FIGURES.keys() - {"made_up_figure", "score_histograms"}:
        monkeypatch.delitem(FIGURES, name)
    trainer = OpenSetTrainer(
        default_root_dir=str(tmp_path),
        callbacks=[Evaluator(tsne_points=0, projector_points=0, bootstrap=5)],
        max_epochs=1,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    noise = {"noise": f"npz:{tiny_root}/unknown.npz"}
    network = partial(BaselineCNN, channels=(2, 3), hidden=5)
    trainer.run(BaselineClassifier(network), OpenSetDataModule(root=str(tiny_root), unknown=noise))
    folder = tmp_path / "lightning_logs" / "default" / "version_0"
    results = json.loads((folder / "results.json").read_text())
    assert results["open_set"]["made_up_measure"] == results["unknown"]["noise"]["made_up_measure"] == 0.25
    assert (folder / "figures" / "made_up_figure.png").is_file()
    events = folder.glob("events.out.tfevents.*")
    assert any(b"test/made_up_figure" in path.read_bytes() for path in events)
    page = (folder / "report.html").read_text()
    assert "made-up measure <span>a quarter of the images</span></td><td>25.00%</td>" in page
    assert page.index("The made-up figure.") < page.index(FIGURES["score_histograms"].caption.text)


def test_a_name_can_be_given_only_once(made_up):
    def made_up_measure(outcomes):
        return None

    def made_up_figure(material):
        return None

    with pytest.raises(ValueError, match="a measure named made_up_measure already"):
        measure(label="", format="rate", says="")(made_up_measure)
    with pytest.raises(ValueError, match="a figure named made_up_figure already"):
        figure(caption="", order=0)(made_up_figure)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None])
def test_what_json_cannot_hold_is_undefined(value):
    @measure(label="", format="rate", says="", needs="nothing")
    def broken(outcomes):
        return value

    taken = MEASURES.pop("broken").take
    assert taken(Outcomes(*(np.zeros(3),) * 4, 1)) is None
