"""The model card of a run."""

import json
import shutil

import pytest
import yaml

from osr_lightning.errors import UserError
from osr_lightning.evaluation.model_card import card, write_card


@pytest.fixture
def run(small_run, tmp_path):
    return shutil.copytree(small_run, tmp_path / "run")


def test_a_run_has_a_card_with_its_numbers(run):
    results, text = json.loads((run / "results.json").read_text()), (run / "README.md").read_text()
    _, head, body = text.split("---\n", 2)
    assert yaml.safe_load(head)["pipeline_tag"] == "image-classification"
    assert "10 classes: 0 - zero, 1 - one," in body
    noise = results["unknown"]["noise"]
    assert f"| unknown: noise | 50 | {noise['unknown_accuracy']:.2%} | {noise['auroc']:.4f} |" in body
    assert results["threshold"]["guarantee"] in body.replace("\\", "")
    assert "Not stated by who trained it." in body
    assert 'load("checkpoints/best.ckpt")' in body


def test_a_licence_and_a_place_are_named(run):
    write_card(run, "apache-2.0", "hf:a/b")
    text = (run / "README.md").read_text()
    assert yaml.safe_load(text.split("---\n")[1])["license"] == "apache-2.0"
    assert "apache-2.0." in text
    assert 'load("hf:a/b")' in text


def test_what_a_person_has_changed_stays(run):
    written = (run / "README.md").read_text()
    write_card(run)
    assert (run / "README.md").read_text() == written
    (run / "README.md").write_text(written.replace("## Limits", "## Limits\n\n- mine"))
    write_card(run, "mit")
    assert "- mine" in (run / "README.md").read_text()
    (run / "README.md").unlink()
    write_card(run)
    assert (run / "README.md").read_text() == written


def test_names_are_no_markdown(run):
    results = json.loads((run / "results.json").read_text())
    results["classes"][:2] = ["a|b", "[x](http://y)"]
    results["unknown"] = {"<b>\n# no": results["unknown"]["noise"]}
    results["threshold"]["optimistic"] = True
    results["warnings"] = ["low"]
    results["model"]["mirror"] = True
    text = card(results)
    assert r"a\|b, \[x\](http://y)" in text
    assert r"unknown: \<b\>\\n\# no" in text
    assert "- low\n" in text
    assert "of each image and of its mirror image, grey images of 28 pixels a side" in text
    assert "test images chose the threshold" in text


def test_many_classes_are_not_all_named(run):
    results = json.loads((run / "results.json").read_text())
    results["classes"] = [f"c{place}" for place in range(250)]
    assert "250 classes: c0, c1," in (text := card(results))
    assert "c99 and 150 more." in text


def test_a_folder_without_results_is_named(tmp_path):
    with pytest.raises(UserError, match=r"results\.json"):
        write_card(tmp_path)
    (tmp_path / "results.json").write_text('{"schema_version": 2}')
    with pytest.raises(UserError, match=r"results\.json lacks what a model card says"):
        write_card(tmp_path)
