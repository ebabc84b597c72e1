"""osr extend: classes added to a frozen backbone's checkpoint, or taken out, without the old images."""

import json
import shutil

import photos
import pytest
import torch
from quick import FAST, QUIET

from osr_lightning import load
from osr_lightning.__main__ import main
from osr_lightning.errors import UserError
from osr_lightning.recogniser import checkpoint as checkpoints
from osr_lightning.training.extend import extend, judge


@pytest.fixture(scope="module")
def trained(pictures, tmp_path_factory):
    """A checkpoint of three of four classes."""
    root = tmp_path_factory.mktemp("run")
    weights = photos.write_weights(root / "small.pth")
    words = ["run", *photos.backbone_options(weights), f"--data.known=folder:{pictures}", *FAST]
    words += ["--data.known_classes=[brick, grass, sky]", "--model.alpha=0.2", "--trainer.max_epochs=2"]
    words += ["--model.detectors=[mahalanobis]"]
    assert main([*words, f"--trainer.default_root_dir={root}"]) == 0
    return root / "lightning_logs" / "default" / "version_0" / "checkpoints" / "best.ckpt"


@pytest.fixture(scope="module")
def extended(trained, pictures, tmp_path_factory):
    """Its fourth class added; and what was reported."""
    target = tmp_path_factory.mktemp("extended") / "four.ckpt"
    words = [f"--ckpt_path={trained}", f"--add=night={pictures}/night", f"--output={target}"]
    assert main(["extend", *words]) == 0
    return target, json.loads(target.with_suffix(".json").read_text())


def test_its_classes_are_those_that_a_folder_is_asked_for(extended, pictures, tmp_path, capsys):
    """The checkpoint said that it knows three of the folder's four, and a calibration lacked the fourth."""
    words = [f"--ckpt_path={extended[0]}", f"--data.known=folder:{pictures}"]
    words += [f"--trainer.default_root_dir={tmp_path}"]
    again = tmp_path / "again.ckpt"
    assert main(["calibrate", *words, "--data.unknown={}", f"--output={again}"]) == 0
    assert load(again).spec.classes == load(extended[0]).spec.classes
    assert main(["test", *words]) == 2
    assert "so that none is left as rest: leave one out, or name others" in capsys.readouterr().err


def test_the_new_class_is_known_and_the_old_ones_stay(trained, extended, pictures):
    target, report = extended
    before, after = load(trained), load(target)
    assert after.spec.classes == ("brick", "grass", "sky", "night")
    assert after.spec._replace(classes=before.spec.classes) == before.spec
    found = after.predict(str(pictures / "night"))
    assert sum(one.label == "night" for one in found) >= 0.6 * len(found)
    old = report["old"]
    assert old["count"] == len(before.known_images)
    assert old["closed_set"][1] >= old["closed_set"][0] - 0.1
    assert report["added"] == {"night": 20}
    assert report["images"] == len(after.known_images) == old["count"] + 20
    assert report["threshold"] == [before.threshold.value, after.threshold.value]
    assert {"fisher", "mahalanobis"} <= {*after.threshold.records}
    assert after.threshold.record.method == "cross_known_quantile"
    assert after.threshold.record.target == 0.2


def test_the_old_last_layer_is_that_of_the_joined_images(extended, pictures):
    """A fit of scikit-learn's to the features that are kept gives the same probabilities."""
    from sklearn.linear_model import LogisticRegression

    recogniser = load(extended[0])
    known, network = recogniser.known_images, recogniser.sampler.network
    directions = network.last_input(known.features.float())
    last = recogniser.sampler.last_layer
    decays = []
    for decay in (0.3, 0.1, 0.03, 0.01):
        theirs = LogisticRegression(C=1 / (len(known) * decay), max_iter=2000, tol=1e-8)
        theirs.fit(directions.numpy(), known.labels.numpy())
        mine = torch.softmax(last(directions), 1).detach().numpy()
        decays.append(abs(theirs.predict_proba(directions.numpy()) - mine).max())
    assert min(decays) < 0.01


def test_a_class_is_taken_out_again(extended, tmp_path):
    target = tmp_path / "three.ckpt"
    assert main(["extend", f"--ckpt_path={extended[0]}", "--remove=sky", f"--output={target}"]) == 0
    recogniser = load(target)
    assert recogniser.spec.classes == ("brick", "grass", "night")
    assert {*recogniser.known_images.labels.tolist()} == {0, 1, 2}
    assert {*recogniser.examples} <= {"brick", "grass", "night"}
    history = checkpoints.read(target)["extended"]
    assert [step["added"] for step in history] == [{"night": 20}, {}]
    assert history[1]["removed"] == ["sky"]


def test_labels_grow_an_old_class(trained, tmp_path, monkeypatch):
    more = photos.write_photos(tmp_path / "more", {"grass": photos.CLASSES["grass"]}, count=4, seed=9)
    rows = [f"{file},grass" for file in sorted(more.glob("grass/*.png"))]
    (tmp_path / "labels.csv").write_text("\n".join(["file,label", *rows, f"{more}/grass/000.png,grass"]))
    target = tmp_path / "grown.ckpt"
    words = [str(tmp_path / "labels.csv"), f"--ckpt_path={trained}", f"--output={target}"]
    assert main(["extend", *words]) == 0
    report = json.loads(target.with_suffix(".json").read_text())
    assert (report["added"], report["grown"]) == ({}, {"grass": 4})
    assert load(target).spec.classes == load(trained).spec.classes
    seen = checkpoints.read(target)["images"]["train"]
    assert len(seen) >= len(load(trained).known_images) + 4


def test_images_that_are_known_already_change_nothing(trained, pictures):
    held = load(trained).known_images
    done = extend(trained, {"grass": sorted((pictures / "grass").glob("*.png"))})
    grass = int((held.labels == 1).sum())
    assert done.report["already_known"] == grass
    assert done.report["images"] == len(held) + 20 - grass


def test_images_of_a_test_are_asked_before_and_after(trained, extended, tmp_path):
    fresh = photos.write_photos(tmp_path / "fresh", {**photos.CLASSES, **photos.OTHER}, count=6, seed=5)
    files = {one.name: sorted(one.glob("*.png")) for one in sorted(fresh.iterdir())}
    found = judge(load(trained), load(extended[0]), files)
    assert found["count"] == 24
    assert found["after"]["unknown"] is None
    assert found["images"] == {"known": [18, 24], "unknown": [6, 0], "total": [24, 24]}
    rejected = [one.label == "unknown" for one in load(trained).predict(str(fresh / "night"))]
    assert found["before"]["unknown"] == pytest.approx(sum(rejected) / 6)
    answers = {name: load(extended[0]).predict(str(fresh / name)) for name in files}
    right = [one.label == name for name, some in answers.items() for one in some]
    assert found["after"]["total"] == pytest.approx(sum(right) / 24)


def test_a_test_of_known_images_is_refused(trained, extended, pictures):
    with pytest.raises(UserError, match="of the images of --test made the recogniser"):
        judge(load(trained), load(extended[0]), {"night": sorted((pictures / "night").glob("*.png"))})


def test_another_alpha_alone_moves_the_threshold(extended, tmp_path, capsys):
    """An extended checkpoint has no images left that osr calibrate could ask."""
    before, target = load(extended[0]), tmp_path / "wider.ckpt"
    assert main(["extend", f"--ckpt_path={extended[0]}", "--alpha=0.4", f"--output={target}"]) == 0
    after = load(target)
    assert after.spec.classes == before.spec.classes
    assert len(after.known_images) == len(before.known_images)
    record = after.threshold.record
    assert (record.target, record.count_known) == (0.4, len(before.known_images))
    assert after.threshold.value < before.threshold.value
    report = json.loads(target.with_suffix(".json").read_text())
    assert report["added"] == report["grown"] == {}
    assert report["called_unknown_before"] is None
    assert report["old"]["rejected"][0] < report["old"]["rejected"][1] <= 0.4 + 1 / len(before.known_images)
    assert report["old"]["closed_set"][0] == report["old"]["closed_set"][1]
    told = capsys.readouterr().out
    assert "of the new images" not in told
    assert "the old classes lose" not in told  # which is what was asked for


def test_nothing_is_written_over_by_itself(trained, pictures, tmp_path, capsys):
    mine = tmp_path / "mine.ckpt"
    shutil.copy(trained, mine)
    for name in ("mine.extended", "mine.extended2"):
        assert main(["extend", f"--ckpt_path={mine}", f"--add=night={pictures}/night"]) == 0
        assert (tmp_path / f"{name}.ckpt").is_file()
        assert (tmp_path / f"{name}.json").is_file()
    for kept in ("mine.extended3.json", "results.json"):
        (tmp_path / kept).write_text("kept")
    assert main(["extend", f"--ckpt_path={mine}", f"--add=night={pictures}/night"]) == 0
    assert (tmp_path / "mine.extended4.ckpt").is_file()
    words = [f"--ckpt_path={mine}", f"--add=night={pictures}/night", f"--output={tmp_path}/results.ckpt"]
    assert main(["extend", *words]) == 2
    assert "results.json; name another" in capsys.readouterr().err
    assert not (tmp_path / "results.ckpt").exists()
    assert {(tmp_path / kept).read_text() for kept in ("mine.extended3.json", "results.json")} == {"kept"}


def test_other_commands_take_the_extended_checkpoint(extended, pictures, tmp_path, capsys):
    target = extended[0]
    assert main(["predict", f"--ckpt_path={target}", str(pictures / "night" / "000.png")]) == 0
    assert "night" in capsys.readouterr().out
    words = [f"--ckpt_path={target}", *FAST, f"--trainer.default_root_dir={tmp_path}"]
    assert main(["test", *words, "--data.known_classes=null"]) in (0, 2)
    assert main(["export", f"--ckpt_path={target}", f"--output={tmp_path}/four.onnx"]) == 0
    (found,) = load(tmp_path / "four.onnx").predict(str(pictures / "night" / "001.png"))
    (wanted,) = load(target).predict(str(pictures / "night" / "001.png"))
    assert found.label == wanted.label


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "there is nothing to do"),
        (["--add=night"], "give a class and the folder"),
        (["--add=night=NONE"], "there is no such folder"),
        (["--add=night=EMPTY"], "there are no images in it"),
        (["--add=night=NIGHT", "--add=night=NIGHT"], "names the class 'night' twice"),
        (["--add=Grass=NIGHT"], "'Grass' and 'grass' are one name but for capitals"),
        (["--add=unknown=NIGHT"], "no class can be named 'unknown'"),
        (["--add=Unknown=NIGHT"], "no class can be named 'Unknown'"),
        (["--add=night=TWO"], "has 2 different images, and needs 3"),
        (["--add=night=GRASS"], "its very pixels are known as 'grass' already"),
        (["--remove=gras"], "did you mean grass?"),
        (["--remove=grass", "--add=grass=NIGHT"], "both added and removed"),
        (["--remove=grass", "--remove=sky"], "would know 1 class, and 2 are the fewest: remove fewer"),
        (["--add=Ignore=NIGHT"], "no class can be named 'Ignore': a table's images of that label"),
        (["--add=night=NIGHT", "--alpha=2"], "--alpha must lie between 0 and 1"),
        (["--add=night=NIGHT", "--alpha=0.0001"], "alpha 0.0001 needs"),
        (["--alpha=0.0001"], "raise alpha or the number of images"),
        (["--add=night=NIGHT", "--output=x.onnx"], "must end in .ckpt"),
        (["--add=night=NIGHT", "--test=EMPTY"], "no folder of a class"),
        (["LABELS"], "gives no image a class: 1 rows"),
        (["--ad=night=NIGHT"], "--add"),
    ],
)
def test_a_mistake_is_one_sentence_and_writes_nothing(trained, pictures, tmp_path, capsys, words, sentence):
    empty, two = tmp_path / "empty", tmp_path / "two"
    empty.mkdir()
    two.mkdir()
    for name in ("000", "001"):
        shutil.copy(pictures / "night" / f"{name}.png", two)
    (tmp_path / "labels.csv").write_text(f"file,label\n{two}/000.png,ignore\n")
    places = {"NIGHT": pictures / "night", "GRASS": pictures / "grass", "EMPTY": empty, "TWO": two}
    for name, place in {**places, "NONE": tmp_path / "none", "LABELS": tmp_path / "labels.csv"}.items():
        words = [word.replace(name, str(place)) for word in words]
    before = sorted(trained.parent.iterdir())
    assert main(["extend", f"--ckpt_path={trained}", *words]) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert "Traceback" not in said
    assert sorted(trained.parent.iterdir()) == before


def test_a_checkpoint_without_features_says_how_to_get_them(trained, tmp_path):
    checkpoint = checkpoints.read(trained)
    checkpoint["recogniser"]["known_images"] = None
    checkpoints.write(checkpoint, tmp_path / "bare.ckpt")
    with pytest.raises(UserError, match="keeps no features of its known images"):
        extend(tmp_path / "bare.ckpt", {}, ["sky"])


def test_what_is_kept_and_damaged_is_taken_out(trained, tmp_path):
    checkpoint = checkpoints.read(trained)
    checkpoint["recogniser"]["known_images"] = {"features": 1}
    checkpoints.write(checkpoint, tmp_path / "odd.ckpt")
    with pytest.raises(UserError, match=r"is damaged: osr calibrate .* --model.keep_features false"):
        load(tmp_path / "odd.ckpt")
    words = [f"--ckpt_path={tmp_path / 'odd.ckpt'}", f"--output={tmp_path / 'out.ckpt'}", *FAST]
    assert main(["calibrate", *words, "--model.keep_features=false", "--trainer.logger=false"]) == 0
    assert load(tmp_path / "out.ckpt").known_images is None


def test_a_validation_of_what_was_fitted_to_all_images_says_so(trained, tmp_path, capsys):
    words = ["validate", f"--ckpt_path={trained}", f"--trainer.default_root_dir={tmp_path}", *QUIET]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "no image is left to validate on: " in said
    assert "copies" not in said
    assert main([*words, "--data.allow_overlap=true"]) == 0
