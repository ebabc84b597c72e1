"""`osr export`: graphs that decide as their recogniser, and are asked without torch."""

import copy
import csv
import io
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from recognisers import ENSEMBLE, SHARED, SINGLE, SPEC, DeepDropout, make, pictures

from osr_lightning import load, save
from osr_lightning.__main__ import main
from osr_lightning.data_spec import DataSpec
from osr_lightning.deploy import export as export_check
from osr_lightning.deploy import onnx_runtime
from osr_lightning.deploy.export import Graph, compare, compare_int8, example_images, export
from osr_lightning.deploy.onnx_file import check_graph
from osr_lightning.deploy.onnx_runtime import OUTPUTS
from osr_lightning.errors import Failure, UserError
from osr_lightning.recogniser.examples import to_plain
from osr_lightning.recogniser.rows import class_cells
from osr_lightning.scoring.detectors import DETECTORS

IMAGES = pictures(30, seed=4).numpy()
FEW = IMAGES[:14]  # two of the largest batches that are compared
CONVNET = {**SHARED, "network": {"class_path": "ConvNet", "init_args": {"channels": [4, 8]}}}
RESNET9 = {**SHARED, "network": {"class_path": "ResNet9", "init_args": {"channels": [4, 8]}}}
DEEPER = [RESNET9, {**SHARED, "network": "ResNet18"}, {**SHARED, "network": "VGG32"}]


@pytest.fixture(scope="module")
def recogniser():
    made = make(SHARED, "fisher")
    made.examples = {"cat": IMAGES[0]}
    return made


@pytest.fixture(scope="module")
def exported(recogniser, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    save(recogniser, folder / "any.ckpt")
    assert main(["export", "--ckpt_path", str(folder / "any.ckpt")]) == 0
    return folder / "any.onnx"


# the graph --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("score", ["mutual_information", "variation_ratio", *DETECTORS])
def test_every_kind_of_score_is_exported(score, tmp_path):
    check = export(make(SHARED, score), tmp_path / "a.pt2", FEW)
    assert check.images == len(FEW)
    assert check.difference < 2e-5


@pytest.mark.parametrize(
    "recipe",
    [SINGLE, ENSEMBLE, CONVNET, *DEEPER],
    ids=["single", "ensemble", "convnet", "resnet9", "resnet18", "vgg32"],
)
def test_every_kind_of_network_is_exported(recipe, tmp_path):
    assert export(make(recipe, "fisher"), tmp_path / "a.pt2", FEW).difference < 2e-5


def test_a_network_of_ones_own_is_exported(tmp_path):
    own = make({**SHARED, "network": None}, "entropy", network=DeepDropout(3, 3))
    assert export(own, tmp_path / "a.pt2", FEW).difference < 2e-5


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
    assert kept["examples"] == to_plain(recogniser.examples) != {}
    assert {"preprocessing", "osr_lightning", "license"} <= set(kept)


def test_pictures_of_classes_are_left_out_where_they_are_not_wanted(exported, tmp_path):
    pictures = load(exported).examples
    assert {name: pixels.tolist() for name, pixels in pictures.items()} == {"cat": IMAGES[0].tolist()}
    plain = make(SINGLE, "msp")  # whose graph is small
    plain.examples = {"cat": IMAGES[0]}
    save(plain, tmp_path / "a.ckpt")
    assert to_plain(load(tmp_path / "a.ckpt").examples) != {}
    assert main(["export", "--ckpt_path", f"{tmp_path}/a.ckpt", "--no_examples"]) == 0
    assert load(tmp_path / "a.onnx").examples == {}


def test_a_graph_of_before_has_no_pictures(exported, tmp_path):
    model = onnx.load(exported)
    model.metadata_props.remove(next(prop for prop in model.metadata_props if prop.key == "examples"))
    onnx.save(model, tmp_path / "before.onnx")
    assert load(tmp_path / "before.onnx").examples == {}


def test_a_graph_that_decides_otherwise_is_dropped(tmp_path, monkeypatch):
    path = tmp_path / "a.pt2"
    path.write_text("an earlier one")
    right = Graph.forward

    def wrong(self, images, threshold):
        prediction, unknown, score, *rest = right(self, images, threshold)
        return prediction, unknown, score * 1.01, *rest

    monkeypatch.setattr(Graph, "forward", wrong)
    with pytest.raises(Failure, match=r"a.pt2 is not written: .* scores differ"):
        export(make(SINGLE, "msp"), path, FEW)
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
    weights = [one for one in onnx.load(small).graph.initializer if one.data_type == TensorProto.INT8]
    # seven bits: two products with eight of an activation fit into 16, as processors without VNNI add them
    largest = max(np.abs(onnx.numpy_helper.to_array(one).astype(int)).max() for one in weights)
    assert 32 < largest <= 64
    assert 2 * 255 * largest < 2**15
    assert TensorProto.INT8 not in {one.data_type for one in onnx.load(exported).graph.initializer}
    assert load(small).spec == SPEC


def test_eight_bits_that_decide_otherwise_are_dropped(recogniser):
    answers = recogniser.answer(IMAGES)
    outputs = [np.zeros(len(IMAGES), np.int64)] * 2 + [answers.scores["fisher"]] + [np.zeros(len(IMAGES))] * 2
    with pytest.raises(Failure, match=r"in 8 bits \d+ of 30 images are decided otherwise; export it without"):
        compare_int8(recogniser, lambda images: outputs, IMAGES, "a")


# what cannot be exported --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "said"),
    [("a.pt", "its name must end in .onnx or .pt2"), ("no/where/a.onnx", "there is no folder")],
)
def test_other_formats_and_folders_are_refused(name, said, exported, tmp_path, capsys):
    ckpt = exported.with_suffix(".ckpt")
    assert main(["export", "--ckpt_path", str(ckpt), "--output", str(tmp_path / name)]) == 2
    assert said in capsys.readouterr().err


def test_a_name_that_ends_otherwise_is_refused_in_python(recogniser, tmp_path):
    with pytest.raises(UserError, match=r"path .*a\.pt: its name must end in \.onnx or \.pt2"):
        export(recogniser, tmp_path / "a.pt", IMAGES)


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


def test_the_p_value_is_that_of_the_checkpoint(recogniser, exported, tmp_path):
    graph = load(exported)
    assert {one.p_value for one in graph.predict(list(IMAGES[:3].transpose(0, 2, 3, 1)))} == {None}
    known = recogniser.answer(pictures(50, seed=5).numpy()).score
    kept = {"method": "max_accuracy", "count_known": 50, "known_scores": sorted(known.tolist())}
    model = onnx.load(exported)
    prop = next(one for one in model.metadata_props if one.key == "decision")
    prop.value = json.dumps(json.loads(prop.value) | kept)
    onnx.save(model, tmp_path / "a.onnx")
    graph, images = load(tmp_path / "a.onnx"), list(IMAGES.transpose(0, 2, 3, 1))
    found = [one.p_value for one in graph.predict(images)]
    assert found == [(1 + (known >= score).sum()) / 51 for score in recogniser.answer(IMAGES).score]
    assert len(set(found)) > 10
    graph.decide_by(threshold=graph.threshold.value)  # a number that was given says nothing of known images
    assert graph.predict(images[0])[0].p_value is None


def test_more_images_than_are_asked_at_once(recogniser, exported):
    many = pictures(300, seed=8).numpy()
    found, expected = load(exported).answer(many), recogniser.answer(many)
    assert len(found.confidence) == 300
    assert found.scores["fisher"] == pytest.approx(expected.scores["fisher"], rel=1e-4)
    assert load(exported).answer(many[:0]).prediction.shape == (0,)


def test_images_that_are_not_prepared_are_left_to_predict(exported):
    with pytest.raises(
        UserError, match=r"answer takes images that prepare gave, .*; predict takes any image"
    ):
        load(exported).answer(np.zeros((2, 20, 20, 3), np.uint8))


def test_another_threshold_and_no_other_score(exported):
    graph = load(exported)
    image = pictures(1).numpy()[0].transpose(1, 2, 0)
    with pytest.raises(UserError, match=r"load the checkpoint \(.ckpt\) that it was made of"):
        graph.explain(np.zeros((28, 28), np.uint8))
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


def spec_with(**changes):
    return json.dumps(SPEC.to_dict() | changes)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("facts", "{}"),
        ("facts", "["),
        ("facts", "[" * 100_000),
        ("facts", spec_with(image_size=28)),
        ("facts", spec_with(image_size=-1)),
        ("facts", spec_with(channels=1, mean=[0.5], std=[0.2])),
        ("facts", spec_with(classes=["cat", "dog"])),
        ("facts", spec_with(classes=[f"{k}" for k in range(10)])),
        ("facts", spec_with(mean=[float("nan")] * 3)),
        ("decision", '{"score": "fisher"}'),
        ("decision", "[]"),
        ("decision", "{" * 50_000),
        ("decision", {"value": float("nan")}),
        ("decision", {"value": float("inf")}),
        ("decision", {"value": "1"}),
        ("decision", {"value": True}),
        ("decision", {"value": 10**400}),
        ("decision", {"score": 3}),
        ("decision", {"count_known": -5}),
        ("decision", {"count_unknown": "many"}),
        ("decision", {"rejected_known": 1.5}),
        ("decision", {"method": ["fixed"]}),
        ("decision", {"known_scores": [None]}),
        ("examples", "[]"),
        ("examples", {"bird": ""}),
        ("examples", {"cat": "x" * 10**6}),
    ],
    ids=str,
)
def test_damaged_metadata_is_told(exported, tmp_path, key, value):
    model = onnx.load(exported)
    kept = next(prop for prop in model.metadata_props if prop.key == key)
    kept.value = json.dumps(json.loads(kept.value) | value) if isinstance(value, dict) else value
    onnx.save(model, tmp_path / "a.onnx")
    with pytest.raises(UserError, match=r"a.onnx is damaged .*; export it again") as caught:
        load(tmp_path / "a.onnx")
    assert len(str(caught.value)) < 400


def changed(exported, path, change):
    """The graph with a change, under another name."""
    model = onnx.load(exported)
    change(model)
    onnx.save(model, path)
    return path


def endless(model):
    """Its score comes out of a loop that never ends."""
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Identity", ["x"], ["y"])],
        "body",
        [
            value("i", TensorProto.INT64, []),
            value("go", TensorProto.BOOL, []),
            value("x", TensorProto.DOUBLE, []),
        ],
        [value("on", TensorProto.BOOL, []), value("y", TensorProto.DOUBLE, [])],
    )
    true = helper.make_tensor("true", TensorProto.BOOL, [], [True])
    model.graph.initializer.append(true)
    model.graph.node.insert(0, helper.make_node("Loop", ["", "true", "threshold"], ["never"], body=body))


def elsewhere(model):
    weight = next(one for one in model.graph.initializer if len(one.dims) > 1)
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="../../etc/passwd")


def of_another_domain(model):
    model.graph.node.append(helper.make_node("Inverse", ["score"], ["x"], domain="com.microsoft"))
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))


def with_a_function(model):
    node = helper.make_node("Identity", ["a"], ["b"])
    model.functions.append(helper.make_function("own", "F", ["a"], ["b"], [node], model.opset_import))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (endless, "has an operator Loop with a graph of its own, which may never end"),
        (elsewhere, "has weights in another file"),
        (of_another_domain, "has an operator com.microsoft.Inverse"),
        (with_a_function, "has functions of its own"),
        (lambda model: model.training_info.add(), "has instructions for training"),
        (lambda model: model.graph.sparse_initializer.add(), "has sparse weights"),
    ],
)
def test_a_graph_is_looked_at_before_it_is_run(exported, tmp_path, monkeypatch, change, said):
    path = changed(exported, tmp_path / "a.onnx", change)
    monkeypatch.setattr("onnxruntime.InferenceSession", None)  # is not reached
    with pytest.raises(UserError, match=f"a.onnx {said}.*: it is not run; export it again"):
        load(path)


def hog(kind):
    """Its threshold waits for a tensor of 100 MB or more, whose size is in the file or that of the images."""

    def change(model):
        def weight(name, value):
            model.graph.initializer.append(numpy_helper.from_array(np.array(value, np.int64), name))

        weight("size", [50_000_000] if kind != "Reshaped" else [2000, 1, 1, 1])
        weight("none", 0)
        weight("count", 50_000_000)
        weight("one", 1)
        first = {
            "ConstantOfShape": [("ConstantOfShape", ["size"], "large")],
            "Expand": [("Expand", ["one", "size"], "large")],
            "Tile": [("Unsqueeze", ["one", "none"], "first"), ("Tile", ["first", "size"], "large")],
            "Range": [("Range", ["none", "count", "one"], "large")],
            "Reshaped": [
                ("Shape", ["images"], "shape"),
                ("Mul", ["shape", "size"], "larger"),
                ("ConstantOfShape", ["larger"], "large"),
            ],
        }[kind]
        rest = [
            ("ReduceMax", ["large"], "most"),
            ("Cast", ["most"], "number"),
            ("Mul", ["number", "nought"], "nothing"),
            ("Add", ["nothing", "threshold"], "later"),
        ]
        model.graph.initializer.append(numpy_helper.from_array(np.array(0.0), "nought"))
        for node in model.graph.node:
            for place, name in enumerate(node.input):
                node.input[place] = "later" if name == "threshold" else name
        options = {"ReduceMax": {"keepdims": 0}, "Cast": {"to": TensorProto.DOUBLE}}
        for place, (operator, inputs, output) in enumerate([*first, *rest]):
            node = helper.make_node(operator, inputs, [output], **options.get(operator, {}))
            model.graph.node.insert(place, node)

    return change


@pytest.mark.parametrize("kind", ["ConstantOfShape", "Expand", "Tile", "Range", "Reshaped"])
def test_what_a_graph_makes_of_a_batch_has_a_bound(exported, tmp_path, monkeypatch, kind):
    path = changed(exported, tmp_path / "a.onnx", hog(kind))
    load(path)  # which does work within the bound
    monkeypatch.setattr(onnx_runtime, "MOST_MEMORY", 2**26)
    with pytest.raises(UserError, match=r"a.onnx is damaged \(the graph cannot be run"):
        load(path)
    load(exported)


def test_a_program_for_torch_is_not_loaded(tmp_path, monkeypatch, capsys):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    for name in ("a.pt2", "a.PT2"):
        torch.save(Evil(), tmp_path / name)
        with pytest.raises(UserError, match="is a program, which no command runs"):
            load(tmp_path / name)
        for command in ("predict .", "export", "serve --port=0", "drift a.csv", "test", "calibrate", "fit"):
            assert main([*command.split(), f"--ckpt_path={tmp_path / name}"]) == 2
            assert "is a program, which no command runs" in capsys.readouterr().err
        assert main(["ensemble", str(tmp_path / name)]) == 2
    (tmp_path / "a.pt2").rename(tmp_path / "a.ckpt")
    with pytest.raises(UserError, match="no readable checkpoint"):
        load(tmp_path / "a.ckpt")
    assert not (tmp_path / "ran").exists()


def test_every_cut_of_a_file_is_refused(exported, tmp_path):
    content = exported.read_bytes()
    for length in (0, 1, 7, len(content) // 2, len(content) - 1):
        (tmp_path / "a.onnx").write_bytes(content[:length])
        with pytest.raises(UserError, match=r"a.onnx (is no ONNX graph|was not written by)"):
            load(tmp_path / "a.onnx")


def test_a_prediction_that_no_class_has_is_refused(exported, tmp_path):
    def further(model):
        node = next(node for node in model.graph.node if "prediction" in node.output)
        node.output[0] = "before"
        model.graph.initializer.append(helper.make_tensor("nine", TensorProto.INT64, [], [9]))
        model.graph.node.append(helper.make_node("Add", ["before", "nine"], ["prediction"]))

    with pytest.raises(UserError, match=r"prediction is no number in 0 \.\. 3"):
        load(changed(exported, tmp_path / "a.onnx", further))


def test_the_reader_takes_numbers_as_protobuf_does():
    # the tag of a graph, 58, with bits that protobuf drops; and a node with a graph of its own in it
    own = (
        bytes([7 << 3 | 2])
        + bytes([10])
        + bytes([1 << 3 | 2, 8, 4 << 3 | 2, 2])
        + b"If"
        + b"\x2a\x02\x32\x00"
    )
    check_graph(b"\x08\x09")
    with pytest.raises(UserError, match="If with a graph"):
        check_graph(own)
    with pytest.raises(UserError, match="If with a graph"):
        check_graph(bytes([58 | 128, 128, 128, 128, 16]) + own[1:])
    for cut in (b"\x3a", b"\x3a\x05\x00", b"\x3b", b"\x80" * 11, b"\x38\x01"):
        with pytest.raises(ValueError, match=r"ends too early|no field|too long|should"):
            check_graph(cut)


# copies and processes -----------------------------------------------------------------------------------


def test_an_exported_recogniser_is_copied_and_pickled(exported):
    graph = load(exported)
    graph.decide_by(threshold=0.25)
    expected = graph.predict([*IMAGES[:3].transpose(0, 2, 3, 1)])
    for copied in (copy.deepcopy(graph), pickle.loads(pickle.dumps(graph))):  # noqa: S301
        assert copied.predict([*IMAGES[:3].transpose(0, 2, 3, 1)]) == expected
        copied.decide_by(threshold=9.0)
    assert graph.threshold.value == 0.25


FORKED = """
import multiprocessing, sys
from osr_lightning import load

def ask(path):
    return recogniser.predict(path)

recogniser = load(sys.argv[1])
here = [recogniser.predict(path) for path in sys.argv[2:]]
with multiprocessing.get_context("fork").Pool(2) as pool:
    assert pool.map(ask, sys.argv[2:]) == here
    assert pool.map(recogniser.predict, sys.argv[2:]) == here
"""


@pytest.mark.parametrize("ending", ["ckpt", "onnx"])
@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_recogniser_that_has_answered_answers_in_forked_processes(exported, tmp_path, ending):
    paths = [tmp_path / f"{index}.png" for index in range(3)]
    for path, image in zip(paths, IMAGES, strict=False):
        Image.fromarray(image.transpose(1, 2, 0)).save(path)
    command = [sys.executable, "-c", FORKED, exported.with_suffix(f".{ending}"), *paths]
    # two threads, on a machine of one core as well
    subprocess.run(command, check=True, timeout=120, env=os.environ | {"OMP_NUM_THREADS": "2"})


# onnxruntime's own habits -------------------------------------------------------------------------------

OPEN = """
import sys, time
from osr_lightning import load
load(sys.argv[1])
time.sleep(2)  # what reports does so in a thread
"""


def test_nobody_is_told_that_a_graph_is_loaded(exported, tmp_path):
    # these two keep onnxruntime silent as well
    quiet = {"ORT_DISABLE_TELEMETRY", "CI", "XDG_CACHE_HOME"}
    env = {name: value for name, value in os.environ.items() if name not in quiet} | {"HOME": str(tmp_path)}
    calls = tmp_path / "calls"
    watched = (
        ["strace", "-f", "-e", "trace=network,openat", "-o", str(calls)] if shutil.which("strace") else []
    )
    command = [*watched, sys.executable, "-c", OPEN, exported]
    done = subprocess.run(command, check=True, timeout=120, env=env, capture_output=True, text=True)
    assert done.stderr == ""
    assert [file for file in tmp_path.rglob("*") if file != calls] == []
    if watched:
        lines = calls.read_text().splitlines()
        assert any("any.onnx" in line for line in lines)
        assert [line for line in lines if re.search(r"AF_INET|resolv\.conf|onnxruntime\.db", line)] == []


TALKING = """
import os
os.write(2, b"\\x1b[0;93m2026-01-01 [W:onnxruntime:Default, discovery.cc:1 f] no GPU\\x1b[m\\nfirst\\n")
telemetry = os.environ["ORT_DISABLE_TELEMETRY"]
disable_telemetry_events = lambda: print("off", telemetry)
set_default_logger_severity = print
"""


def test_warnings_of_the_import_are_left_out_and_all_else_is_told(tmp_path):
    (tmp_path / "onnxruntime.py").write_text(TALKING)
    code = (
        "from osr_lightning.deploy.onnx_runtime import import_onnxruntime as i; i(); import sys; "
        "print('then', file=sys.stderr)"
    )
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    done = subprocess.run([sys.executable, "-c", code], check=True, env=env, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("off 1\n3\n", "first\nthen\n")


# from the command line --------------------------------------------------------------------------------


# what the extras runtime and serve install, and nothing else
WITHOUT = """
import sys

RUNTIME = {"numpy", "onnxruntime", "PIL"}
SERVE = {"anyio", "idna", "sniffio", "starlette", "typing_extensions"}

class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] not in sys.stdlib_module_names | RUNTIME | SERVE | {"osr_lightning"}:
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
    cells = dict(zip(SPEC.classes, class_cells(SPEC.classes), strict=True)) | {"unknown": "unknown"}
    assert [row["prediction"] for row in rows] == [cells[p.label] for p in expected]
    assert [float(row["score"]) for row in rows] == pytest.approx([p.score for p in expected], rel=1e-5)


def test_a_server_of_a_graph_has_the_pictures_without_torch(exported):
    command = """
from osr_lightning.deploy.load import load
from osr_lightning.deploy.serve import limits, open, responses
print(responses.model(open.open_backend(load(sys.argv[1])), limits.Limits())["examples"])
"""
    code = WITHOUT.partition("from osr_lightning")[0] + command
    done = subprocess.run([sys.executable, "-c", code, str(exported)], capture_output=True, text=True)
    address = "data:image/png;base64," + to_plain({"cat": IMAGES[0]})["cat"]
    assert (done.stderr, done.stdout) == ("", f"{[{'class': 'cat', 'picture': address}]}\n")


def test_predicting_with_a_graph_stays_on_the_cpu_in_one_process(exported, tmp_path, capsys, monkeypatch):
    Image.fromarray(IMAGES[0].transpose(1, 2, 0)).save(tmp_path / "a.png")
    assert main(["predict", "--ckpt_path", str(exported), "--device", "cuda", str(tmp_path)]) == 2
    assert "runs on the CPU" in capsys.readouterr().err
    with pytest.raises(UserError, match="'cuda:0': an exported graph runs on the CPU"):
        load(exported, device="cuda:0")
    assert load(exported, device="auto").spec == SPEC
    given = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    for name, value in given.items():  # as torchrun does
        monkeypatch.setenv(name, value)
    assert main(["predict", "--ckpt_path", str(exported), str(tmp_path)]) == 2
    assert "one process" in capsys.readouterr().err
