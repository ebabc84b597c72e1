"""`osr export`: graphs that decide as their recogniser, and are asked without torch."""

import csv
import io
import json
import re
import subprocess
import sys
from dataclasses import asdict

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image
from recognisers import ENSEMBLE, SHARED, SINGLE, SPEC, DeepDropout, make, pictures

from osr_lightning import load, save
from osr_lightning.__main__ import main
from osr_lightning.data_spec import DataSpec
from osr_lightning.deploy import export as export_check
from osr_lightning.deploy.export import Graph, compare, compare_int8, example_images, export
from osr_lightning.deploy.onnx_runtime import OUTPUTS
from osr_lightning.errors import Failure, UserError
from osr_lightning.scoring.detectors import DETECTORS

IMAGES = pictures(30, seed=4).numpy()
CONVNET = {**SHARED, "network": {"class_path": "ConvNet", "init_args": {"channels": [4, 8]}}}


@pytest.fixture(scope="module")
def recogniser():
    return make(SHARED, "fisher")


@pytest.fixture(scope="module")
def exported(recogniser, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    save(recogniser, folder / "any.ckpt")
    assert main(["export", "--ckpt_path", str(folder / "any.ckpt")]) == 0
    return folder / "any.onnx"


# the graph --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("score", ["mutual_information", "variation_ratio", *DETECTORS])
def test_every_kind_of_score_is_exported(score, tmp_path):
    check = export(make(SHARED, score), tmp_path / "a.pt2", IMAGES)
    assert check.images == len(IMAGES)
    assert check.difference < 2e-5


@pytest.mark.parametrize("recipe", [SINGLE, ENSEMBLE, CONVNET], ids=["single", "ensemble", "convnet"])
def test_every_kind_of_network_is_exported(recipe, tmp_path):
    assert export(make(recipe, "fisher"), tmp_path / "a.pt2", IMAGES).difference < 2e-5


def test_a_network_of_ones_own_is_exported(tmp_path):
    own = make({**SHARED, "network": None}, "entropy", network=DeepDropout(3, 3))
    assert export(own, tmp_path / "a.pt2", IMAGES).difference < 2e-5


def test_outputs_are_as_described(recogniser, exported):
    session = load(exported).session
    assert [one.name for one in session.get_outputs()] == list(OUTPUTS)
    assert [one.type for one in session.get_outputs()] == [
        *("tensor(int64)", "tensor(bool)", "tensor(double)", "tensor(double)", "tensor(double)")
    ]
    assert [opset.version >= 18 for opset in onnx.load(exported).opset_import if not opset.domain] == [True]
    found = dict(zip(OUTPUTS, session.run(None, {"images": IMAGES}), strict=True))
    expected = recogniser.answer(IMAGES)
    assert found["prediction"].tolist() == expected.prediction.tolist()
    assert 0 < expected.unknown.sum() < len(IMAGES)
    assert found["unknown"].tolist() == expected.unknown.tolist()
    assert found["score"] == pytest.approx(expected.scores["fisher"], rel=1e-4)
    assert found["confidence"] == pytest.approx(expected.confidence, abs=1e-6)
    assert found["probabilities"].shape == (len(IMAGES), 3)
    assert found["probabilities"].sum(1) == pytest.approx(np.ones(len(IMAGES)))


def test_the_threshold_is_an_input_with_a_default(exported):
    session = load(exported).session
    score = session.run(["score"], {"images": IMAGES})[0]
    least = np.array(np.sort(score)[3])
    (unknown,) = session.run(["unknown"], {"images": IMAGES, "threshold": least})
    assert unknown.tolist() == (score > least).tolist()


def test_metadata_says_what_it_takes(recogniser, exported):
    kept = {prop.key: json.loads(prop.value) for prop in onnx.load(exported).metadata_props}
    assert kept["classes"] == list(SPEC.classes)
    assert DataSpec.from_dict(kept["facts"]) == SPEC
    record = json.loads(json.dumps(asdict(recogniser.threshold.record)))
    assert kept["decision"] == {"score": "fisher", **record}
    assert {"preprocessing", "osr_lightning", "license"} <= set(kept)


def test_a_graph_that_decides_otherwise_is_dropped(recogniser, tmp_path, monkeypatch):
    path = tmp_path / "a.pt2"
    path.write_text("an earlier one")
    right = Graph.forward

    def wrong(self, images, threshold):
        prediction, unknown, score, *rest = right(self, images, threshold)
        return prediction, unknown, score * 1.01, *rest

    monkeypatch.setattr(Graph, "forward", wrong)
    with pytest.raises(Failure, match=r"a.pt2 is not written: .* scores differ"):
        export(recogniser, path, IMAGES)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("a.pt2", "an earlier one")]


def test_other_decisions_and_numbers_that_are_none_are_told(recogniser):
    answers = recogniser.answer(IMAGES)
    score = answers.scores["fisher"]
    prediction = answers.prediction

    def answering(prediction, score):
        outputs = dict.fromkeys(OUTPUTS, np.zeros(len(IMAGES))) | {"prediction": prediction, "score": score}
        columns = [outputs[name] for name in OUTPUTS]
        # the images of a batch are told by their pixels
        place = {image.tobytes(): index for index, image in enumerate(IMAGES)}
        return lambda images: [column[[place[image.tobytes()] for image in images]] for column in columns]

    assert compare(recogniser, answering(prediction, score), IMAGES, "a").difference == 0
    with pytest.raises(Failure, match="and 1 of 30 images are decided otherwise"):
        compare(recogniser, answering(np.r_[(prediction[:1] + 1) % 4, prediction[1:]], score), IMAGES, "a")
    with pytest.raises(Failure, match="up to nan"):
        compare(recogniser, answering(prediction, np.r_[np.nan, score[1:]]), IMAGES, "a")


def test_example_images_are_real_and_fit_any_facts(recogniser):
    prepared = np.stack([recogniser.prepare(image) for image in example_images()])
    assert prepared.shape == (72, *SPEC.input_shape)
    assert len(np.unique(prepared, axis=0)) == 72


def test_eight_bits(recogniser, exported, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(export_check, "MOST_OTHERWISE", 0.1)  # this threshold lies where scores are densest
    for index, image in enumerate(pictures(100, seed=5).numpy()):
        Image.fromarray(image.transpose(1, 2, 0)).save(tmp_path / f"{index}.png")
    small = tmp_path / "small.onnx"
    ckpt = str(exported.with_suffix(".ckpt"))
    assert main(["export", "--ckpt_path", ckpt, "--output", str(small), "--int8", str(tmp_path)]) == 0
    told = re.search(r"int8: (\d+) of 172 images are decided otherwise", capsys.readouterr().err)
    found, expected = load(small).answer(IMAGES), recogniser.answer(IMAGES)
    assert int((found.unknown != expected.unknown).sum()) <= int(told[1])
    assert 0 < np.abs(found.scores["fisher"] - expected.scores["fisher"]).max() < 1
    kinds = {one.data_type for one in onnx.load(small).graph.initializer}
    assert TensorProto.INT8 in kinds
    assert TensorProto.INT8 not in {one.data_type for one in onnx.load(exported).graph.initializer}
    assert load(small).spec == SPEC


def test_eight_bits_that_decide_otherwise_are_dropped(recogniser):
    answers = recogniser.answer(IMAGES)
    outputs = [np.zeros(len(IMAGES), np.int64)] * 2 + [answers.scores["fisher"]] + [np.zeros(len(IMAGES))] * 2
    with pytest.raises(Failure, match=r"in 8 bits \d+ of 30 images are decided otherwise; export it without"):
        compare_int8(recogniser, lambda images: outputs, IMAGES, "a")


# what cannot be exported --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "said"), [("a.pt", "one of .onnx, .pt2"), ("no/where/a.onnx", "there is no folder")]
)
def test_other_formats_and_folders_are_refused(name, said, exported, tmp_path, capsys):
    ckpt = exported.with_suffix(".ckpt")
    assert main(["export", "--ckpt_path", str(ckpt), "--output", str(tmp_path / name)]) == 2
    assert said in capsys.readouterr().err


def test_eight_bits_need_images_and_onnx(recogniser, tmp_path):
    with pytest.raises(UserError, match="at least 100 known images to set its ranges, got 30"):
        export(recogniser, tmp_path / "a.onnx", IMAGES, IMAGES)
    with pytest.raises(UserError, match=r"--int8 needs an .onnx file"):
        export(recogniser, tmp_path / "a.pt2", IMAGES, pictures(100).numpy())


def test_independent_masks_are_refused(tmp_path):
    with pytest.raises(UserError, match="masks shared"):
        export(make({**SHARED, "masks": "independent"}), tmp_path / "a.onnx", IMAGES)


def test_a_network_that_no_graph_is_made_of_is_refused(tmp_path):
    class Asking(DeepDropout):
        def forward(self, images):
            return super().forward(images) * (2 if images.sum() > 0 else 1)

    with pytest.raises(UserError, match=r"the network cannot be exported: torch.export says"):
        export(make({**SHARED, "network": None}, "entropy", network=Asking(3, 3)), tmp_path / "a.pt2", IMAGES)
    assert not list(tmp_path.iterdir())


# without torch ----------------------------------------------------------------------------------------


def test_an_exported_recogniser_answers_as_the_checkpoint(recogniser, exported, tmp_path):
    forms = [Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))) for image in IMAGES[:6]]
    forms += [np.full((31, 12), 200, np.uint8), Image.new("L", (9, 40), 7), Image.new("RGBA", (5, 5))]
    forms[0].save(tmp_path / "a.png")
    forms.append(str(tmp_path / "a.png"))
    graph = load(exported)
    found, expected = graph.predict(forms), recogniser.predict(forms)
    assert [(p.label, p.unknown, p.file) for p in found] == [(p.label, p.unknown, p.file) for p in expected]
    assert {p.unknown for p in found} == {True, False}
    assert [p.score for p in found] == pytest.approx([p.score for p in expected], rel=1e-5)
    assert [p.confidence for p in found] == pytest.approx([p.confidence for p in expected], rel=1e-5)
    # and whatever comes with an image
    alone = [graph.predict(form)[0] for form in forms]
    assert [p.label for p in alone] == [p.label for p in found]
    assert [p.score for p in alone] == pytest.approx([p.score for p in found], rel=1e-9)


def test_more_images_than_are_asked_at_once(recogniser, exported):
    many = pictures(300, seed=8).numpy()
    found, expected = load(exported).answer(many), recogniser.answer(many)
    assert len(found.confidence) == 300
    assert found.scores["fisher"] == pytest.approx(expected.scores["fisher"], rel=1e-4)
    assert load(exported).answer(many[:0]).prediction.shape == (0,)


def test_another_threshold_and_no_other_score(exported):
    graph = load(exported)
    image = pictures(1).numpy()[0].transpose(1, 2, 0)
    graph.decide_by(threshold=-1e9)
    assert [(p.label, p.threshold) for p in graph.predict(image)] == [("unknown", -1e9)]
    graph.decide_by("fisher", 1e9)
    assert graph.predict(image)[0].label in SPEC.classes
    with pytest.raises(UserError, match="no score 'msp', only fisher; export the checkpoint again"):
        graph.decide_by("msp")
    with pytest.raises(UserError, match="finite"):
        graph.decide_by(threshold=float("nan"))


def test_other_files_are_told(tmp_path):
    with pytest.raises(UserError, match="there is no file"):
        load(tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("text")
    with pytest.raises(UserError, match=r"text.onnx is no ONNX graph"):
        load(tmp_path / "text.onnx")
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(UserError, match=r"other.onnx was not written by osr export"):
        load(tmp_path / "other.onnx")


@pytest.mark.parametrize(
    ("key", "value"),
    [("facts", "{}"), ("facts", "["), ("decision", '{"score": "fisher"}'), ("decision", "[]")],
)
def test_damaged_metadata_is_told(exported, tmp_path, key, value):
    model = onnx.load(exported)
    next(prop for prop in model.metadata_props if prop.key == key).value = value
    onnx.save(model, tmp_path / "a.onnx")
    with pytest.raises(UserError, match=r"a.onnx is damaged .*; export it again"):
        load(tmp_path / "a.onnx")


WITHOUT = """
import sys

class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "torchvision", "lightning", "scipy", "sklearn", "rich", "onnx"}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Nothing())
from osr_lightning.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def test_osr_predict_needs_neither_torch_nor_the_rest(recogniser, exported, tmp_path):
    for index, image in enumerate(IMAGES[:5]):
        Image.fromarray(image.transpose(1, 2, 0)).save(tmp_path / f"{index}.png")
    command = [sys.executable, "-c", WITHOUT, "predict", "--ckpt_path", str(exported), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, f"5 predicted ({done.stdout.count('unknown')} unknown)\n")
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    expected = recogniser.predict(sorted(tmp_path.glob("*.png")))
    assert [row["prediction"] for row in rows] == [p.label for p in expected]
    assert [float(row["score"]) for row in rows] == pytest.approx([p.score for p in expected], rel=1e-5)


def test_predicting_with_a_graph_stays_on_the_cpu_in_one_process(exported, tmp_path, capsys, monkeypatch):
    Image.fromarray(IMAGES[0].transpose(1, 2, 0)).save(tmp_path / "a.png")
    assert main(["predict", "--ckpt_path", str(exported), "--device", "cuda", str(tmp_path)]) == 2
    assert "runs on the CPU" in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["predict", "--ckpt_path", str(exported), str(tmp_path)]) == 2
    assert "one process" in capsys.readouterr().err
