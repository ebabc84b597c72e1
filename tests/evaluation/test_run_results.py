"""Results as a notebook shows them."""

import json

import pytest

from osr_lightning import Prediction, RunResults
from osr_lightning.errors import UserError


def test_the_table_has_the_numbers_of_the_file(small_run):
    results = RunResults.read(small_run)
    assert results == json.loads((small_run / "results.json").read_text())
    shown = results._repr_html_()
    opened, noise = results["open_set"], results["unknown"]["noise"]
    assert f"<td>known</td><td>101</td><td>{opened['known_accuracy']:.2%}</td>" in shown
    assert f"<td>unknown: noise</td><td>50</td><td>{noise['unknown_accuracy']:.2%}</td>" in shown
    assert f"<td>total</td><td>151</td><td>{opened['total_accuracy']:.2%}</td>" in shown
    assert str(small_run / "report.html") in shown
    assert shown.count("<tr") == 1 + 5


def test_names_are_escaped(small_run):
    results = RunResults.read(small_run)
    results["unknown"] = {"<script>": results["unknown"]["noise"]}
    assert "unknown: &lt;script&gt;" in results._repr_html_()
    one = Prediction("<b>", True, 0.5, 3.0, 2.0, "<i>.png", 0.01)
    assert one._repr_html_() == (
        '<b style="color:#d93025">&lt;b&gt;</b> (score 3 &gt; threshold 2, p 0.01) <code>&lt;i&gt;.png</code>'
    )
    assert "score 1 &le; threshold 2)" in Prediction("3", False, 0.5, 1.0, 2.0)._repr_html_()


def test_what_is_not_there_is_named(tmp_path, small_run):
    with pytest.raises(UserError, match=r"results\.json"):
        RunResults.read(tmp_path)
    with pytest.raises(UserError, match=r"the run has no figure 'roc'; it has none"):
        RunResults.read(small_run).figure("roc")
