"""The recogniser: its decision by definition, and that nothing around an image changes its answer."""

import copy
import io
import itertools
import random
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from recognisers import (
    ENSEMBLE,
    RECIPES,
    SAMPLES,
    SHARED,
    SINGLE,
    SIZE,
    SPEC,
    DeepDropout,
    fit,
    make,
    pictures,
)
from torch import nn

from osr_lightning.data_spec import DataSpec
from osr_lightning.errors import UserError
from osr_lightning.models.sampling import LOGITS, PENULTIMATE
from osr_lightning.recogniser.checkpoint import build
from osr_lightning.scoring.calibration import fixed_calibration
from osr_lightning.scoring.scores import SCORES


@pytest.fixture(params=RECIPES)
def recogniser(request):
    return make(RECIPES[request.param])


@pytest.fixture(scope="module")
def asked():
    """One that several tests only ask; grey enough of a task that every input form is told apart."""
    return make(SHARED)


def numpy_scores(logits):
    """Every score by its definition, in float64: logits (S, B, K)."""
    logits = logits.double().numpy()
    exps = np.exp(logits - logits.max(-1, keepdims=True))
    each = exps / exps.sum(-1, keepdims=True)
    p = each.mean(0)
    z = logits.mean(0)
    votes = np.stack([np.bincount(column, minlength=p.shape[1]) for column in logits.argmax(-1).T])
    entropy = -(p * np.log(p)).sum(-1)
    expected = -(each * np.log(each)).sum(-1).mean(0)
    return p, {
        "msp": 1 - p.max(-1),
        "entropy": entropy,
        "expected_entropy": expected,
        "mutual_information": entropy - expected,
        "variation_ratio": 1 - votes.max(-1) / len(logits),
        "max_logit": -z.max(-1),
        "energy": -np.log(np.exp(z).sum(-1)),
        "generalized_entropy": (p**0.1 * (1 - p) ** 0.1).sum(-1),
    }


def answers(predictions):
    return [(p.label, p.unknown) for p in predictions]


def same(found, expected):
    """Equal decisions, and scores and confidences to a millionth."""
    assert answers(found) == answers(expected)
    assert [p.score for p in found] == pytest.approx([p.score for p in expected], rel=1e-6)
    assert [p.confidence for p in found] == pytest.approx([p.confidence for p in expected], rel=1e-6)


# the decision, by definition --------------------------------------------------------------------------


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("kind", RECIPES)
@torch.no_grad()
def test_forward_is_what_the_sampled_logits_say(kind, score):
    recogniser, images = make(RECIPES[kind], score), pictures(50, seed=1)
    mean, std = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in (SPEC.mean, SPEC.std))
    standardised = (images.double() / 255 - mean) / std
    torch.testing.assert_close(recogniser.standardise(images), standardised.float(), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=r"images must be a tensor of uint8, not numpy.ndarray of uint8"):
        recogniser.standardise(images.numpy())
    logits = recogniser.sampler(recogniser.standardise(images)).logits
    assert logits.shape == (SAMPLES[kind], 50, 3)
    p, scores = numpy_scores(logits)
    # two of the scores are 0 for one sample, and nothing exceeds that
    threshold = recogniser.threshold.value
    answer = recogniser(images)
    np.testing.assert_allclose(answer.confidence, p.max(-1), rtol=1e-12)
    np.testing.assert_allclose(answer.score, scores[score], rtol=1e-9, atol=1e-12)
    expected = np.where(answer.score.numpy() > threshold, 3, p.argmax(-1))
    np.testing.assert_array_equal(answer.prediction, expected)
    assert answer.prediction.dtype == torch.int64
    assert answer.confidence.dtype == answer.score.dtype == torch.float64


@torch.no_grad()
def test_half_of_the_images_are_rejected_so_that_these_tests_see_both(recogniser):
    unknown = (recogniser(pictures(200, seed=4)).prediction == 3).float().mean()
    assert 0.2 < unknown < 0.8


@torch.no_grad()
def test_a_score_equal_to_the_threshold_is_known():
    recogniser, images = make(SHARED), pictures(20)
    row = recogniser(images)
    for fixed, unknown in ((float(row.score[7]), False), (np.nextafter(float(row.score[7]), -1), True)):
        recogniser.threshold.fixed = fixed
        assert (recogniser(images).prediction[7] == 3) == unknown


@torch.no_grad()
def test_shared_masks_are_sub_networks():
    recogniser, images = make(SHARED), pictures(10)
    sampler = recogniser.sampler
    network, inputs = sampler.network, recogniser.standardise(images)
    expected = torch.stack([network.head(network.trunk(inputs) * mask) for mask in sampler.masks])
    torch.testing.assert_close(sampler(inputs).logits, expected, rtol=1e-5, atol=1e-5)
    assert set(sampler.masks.unique().tolist()) == {0.0, 2.0}


@torch.no_grad()
def test_an_ensemble_has_its_members_samples_side_by_side():
    recogniser, images = make(ENSEMBLE), pictures(10)
    inputs = recogniser.standardise(images)
    expected = torch.cat([member(inputs).logits for member in recogniser.sampler.members])
    torch.testing.assert_close(recogniser.sampler(inputs).logits, expected)
    first, _, third = recogniser.sampler.members
    assert not torch.equal(first(inputs).logits, third(inputs).logits)


@pytest.mark.parametrize("score", ["entropy", "knn"])
@pytest.mark.parametrize("kind", RECIPES)
@torch.no_grad()
def test_describe_agrees_with_forward(kind, score):
    recogniser, images = make(RECIPES[kind], score), pictures(30, seed=2)
    rows, answer = recogniser.describe(images), recogniser(images)
    torch.testing.assert_close(rows[f"score/{score}"], answer.score, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(rows["confidence"], answer.confidence, rtol=1e-6, atol=0)
    unknown = rows[f"score/{score}"] > recogniser.threshold.value
    assert torch.equal(torch.where(unknown, 3, rows["predicted_class"]), answer.prediction)
    assert torch.equal(rows["predicted_class"], rows["log_probability"].argmax(-1))
    torch.testing.assert_close(rows["log_probability"].exp().sum(-1), torch.ones(30).double())


def test_what_is_described_becomes_numpy_and_what_forward_gives_has_gradients(recogniser):
    images = pictures(2, seed=2)
    assert recogniser.describe(images)["logits"].numpy().shape == (2, 3)
    assert recogniser(images).probabilities.requires_grad


@torch.no_grad()
def test_describe_has_every_score_and_the_mean_logits(recogniser):
    images = pictures(30, seed=2)
    rows = recogniser.describe(images)
    logits = recogniser.sampler(recogniser.standardise(images)).logits
    p, scores = numpy_scores(logits)
    np.testing.assert_allclose(rows["log_probability"], np.log(p), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(rows["logits"], logits.double().mean(0), rtol=1e-6, atol=1e-6)
    assert {name for name in rows if name.startswith("score/")} == {f"score/{name}" for name in SCORES}
    for name, expected in scores.items():
        np.testing.assert_allclose(rows[f"score/{name}"], expected, rtol=1e-8, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("kind", RECIPES)
@torch.no_grad()
def test_with_a_detector_the_score_is_the_detectors(kind):
    recogniser = make(RECIPES[kind], "knn")
    training, images = fit(recogniser), pictures(25, seed=3)
    near, far = (recogniser.look(some)[PENULTIMATE].double().numpy() for some in (images, training))
    near, far = (f / np.linalg.norm(f, axis=1, keepdims=True) for f in (near, far))
    distances = np.sort(np.linalg.norm(near[:, None] - far[None], axis=2), axis=1)
    # the tenth nearest; the training features are kept in float32
    np.testing.assert_allclose(recogniser(images).score, distances[:, 9], atol=1e-6)
    assert "score/knn" in recogniser.describe(images)


@torch.no_grad()
def test_features_are_of_the_pass_without_dropout():
    recogniser, images = make(SHARED, detectors=["vim"]), pictures(6)
    network, inputs = recogniser.sampler.network, recogniser.standardise(images)
    seen = recogniser.look(images)
    expected = network.head[:-1](network.trunk(inputs))
    torch.testing.assert_close(seen[PENULTIMATE], expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(seen[LOGITS], network.head[-1](expected), rtol=1e-5, atol=1e-5)


def test_a_detector_that_was_not_fitted_says_so_and_is_left_out_of_the_rows():
    recogniser = build({**SINGLE, "score": "knn", "detectors": ["vim"], "fixed": 1.0}, SPEC).eval()
    assert list(recogniser.detectors) == ["knn", "vim"]
    with pytest.raises(UserError, match="score knn is fitted after the training, and is not yet"):
        recogniser(pictures(2))
    assert not {"score/knn", "score/vim"} & set(recogniser.describe(pictures(2)))


def test_without_a_threshold_it_does_not_decide():
    recogniser = build({**SINGLE, "score": "msp"}, SPEC).eval()
    with pytest.raises(UserError, match="there is no threshold for the score msp"):
        recogniser(pictures(1))
    with pytest.raises(UserError, match="there is no threshold for the score msp"):
        recogniser.predict(pictures(1))


# the same image, the same answer ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*RECIPES, "deep", "knn"])
def test_an_image_has_one_answer_whatever_comes_with_it(kind):
    if kind == "deep":
        recogniser = make({**SHARED, "network": None}, network=DeepDropout)
    else:
        recogniser = make(RECIPES.get(kind, SHARED), "knn" if kind == "knn" else "entropy")
    images = list(pictures(200, seed=5))
    expected = recogniser.predict(images)
    assert {p.unknown for p in expected} == {True, False}
    for size in (1, 7):  # a batch of its own for the first few
        found = [recogniser.predict(images[start : start + size]) for start in range(0, 21, size)]
        same(list(itertools.chain(*found)), expected[:21])
    for index in (0, 150, 199):
        same(recogniser.predict(images[index]), [expected[index]])
    order = torch.randperm(200, generator=torch.Generator().manual_seed(0)).tolist()
    same(recogniser.predict([images[i] for i in order]), [expected[i] for i in order])
    white = torch.full((3, SIZE, SIZE), 255, dtype=torch.uint8)
    for neighbour in (white, torch.zeros_like(white), images[3]):
        crowd = [neighbour] * 5 + [images[11]] + [neighbour] * 3
        same([recogniser.predict(crowd)[5]], [expected[11]])


@pytest.mark.parametrize("kind", RECIPES)
@torch.no_grad()
def test_forward_gives_the_same_row_in_any_batch(kind):
    recogniser, images = make(RECIPES[kind]), pictures(200, seed=5)
    whole = recogniser(images)
    for size in (1, 7, 64, 199):
        parts = [recogniser(part) for part in images.split(size)]
        assert torch.equal(torch.cat([part.prediction for part in parts]), whole.prediction)
        # other batches take other kernels, which round float32 sums in another order
        torch.testing.assert_close(torch.cat([p.score for p in parts]), whole.score, rtol=2e-6, atol=0)


@pytest.mark.parametrize(
    "kind",
    [
        "single",
        *(pytest.param(kind) for kind in ("mc_dropout", "ensemble")),
    ],
)
@torch.no_grad()
def test_an_empty_batch_has_an_answer_of_its_shape(kind):
    answer = make(RECIPES[kind])(pictures(0))
    assert [tuple(part.shape) for part in answer[:5]] == [*[(0,)] * 4, (0, 3)]


def test_no_images_have_no_predictions(recogniser):
    assert recogniser.predict([]) == []
    assert recogniser.predict(np.zeros((0, 9, 9, 3), np.uint8)) == []


@pytest.mark.parametrize("network", [None, DeepDropout], ids=["split", "deep"])
def test_eight_threads_get_what_one_gets(network):
    recogniser = make(SHARED if network is None else {**SHARED, "network": None}, network=network)
    batches = [list(pictures(15, seed=seed)) for seed in range(16)]
    expected = [recogniser.predict(batch) for batch in batches]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(recogniser.predict, batches * 2))
    for one, other in zip(found, expected * 2, strict=True):
        same(one, other)


@pytest.mark.parametrize("network", [None, DeepDropout], ids=["split", "deep"])
def test_dropout_stays_on_whatever_the_mode(network):
    recogniser = make(SHARED if network is None else {**SHARED, "network": None}, network=network)
    images = pictures(10)
    with torch.no_grad():
        logits = recogniser.eval().sampler(recogniser.standardise(images)).logits
    assert (logits.std(0) > 1e-3).any(-1).all()  # the samples of every image differ
    assert (recogniser.describe(images)["score/mutual_information"] > 1e-6).all()


def test_the_mode_of_a_network_without_batch_norm_does_not_matter():
    recogniser, images = make(SHARED), list(pictures(10))
    same(recogniser.train().predict(images), recogniser.eval().predict(images))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", [*RECIPES, "deep", "independent"])
def test_asking_changes_neither_modes_nor_weights_nor_the_global_random_state(kind, training):
    if kind == "deep":
        recogniser = make({**SHARED, "network": None}, network=DeepDropout)
    else:
        recogniser = make(RECIPES.get(kind, {**SHARED, "masks": "independent"}))
    recogniser.train(training)
    for module in list(recogniser.modules())[::2]:
        module.training = not training  # mixed modes too
    for module in recogniser.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.training = False  # see the next test
    modes = [module.training for module in recogniser.modules()]
    weights = copy.deepcopy({k: v for k, v in recogniser.state_dict().items() if torch.is_tensor(v)})
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    recogniser.predict(list(pictures(3)))
    assert modes == [module.training for module in recogniser.modules()]
    assert all(torch.equal(recogniser.state_dict()[name], value) for name, value in weights.items())
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.array_equal(np.random.get_state()[1], states[2])


def test_asking_in_training_mode_leaves_a_batch_norm_alone():
    recogniser = make({**SHARED, "network": None}, network=DeepDropout).train()
    before = recogniser.sampler.network.trunk.norm.running_mean.clone()
    images = list(pictures(5))
    alone = recogniser.predict(images[0])
    assert torch.equal(recogniser.sampler.network.trunk.norm.running_mean, before)
    same(recogniser.predict(images)[:1], alone)


def test_half_precision_keeps_the_threshold_exact():
    recogniser = make(SHARED, "knn")
    value = 0.1 + 0.2  # no float32, let alone float16, holds it
    recogniser.threshold.records["knn"] = fixed_calibration(value)
    halved = copy.deepcopy(recogniser).half()
    assert halved.threshold.value == value
    assert halved.state_dict()["threshold._extra_state"] == recogniser.state_dict()["threshold._extra_state"]
    other = make(SHARED, "knn").half()
    other.load_state_dict(halved.state_dict())
    assert other.threshold.value == value
    # distances need what half precision does not have
    assert halved.detectors["knn"].neighbours.dtype == torch.float32


# what may be asked about ------------------------------------------------------------------------------


def color(seed=0, height=13, width=31):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path):
    """Three images and what is none."""
    for name, seed in (("b.png", 1), ("a.bmp", 2), ("sub/c.PNG", 3)):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(color(seed)).save(path)
    (tmp_path / "notes.txt").write_text("no image")
    return tmp_path


def test_every_form_of_one_image_gives_one_answer(asked, tmp_path):
    array = color()
    path = tmp_path / "x.png"
    Image.fromarray(array).save(path)
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    expected = asked.predict(array)
    assert len(expected) == 1
    forms = {
        "path": path,
        "text": str(path),
        "PIL": Image.fromarray(array),
        "(N, H, W, C)": array[None],
        "tensor (C, H, W)": tensor,
        "tensor (B, C, H, W)": tensor[None],
        "uint16": array.astype(np.uint16) * np.uint16(257),
        "float64": array / 255,
        "float32 tensor": tensor.float() / 255,
        "tensor with grad": (tensor.float() / 255).requires_grad_(),
        "upside down twice": np.ascontiguousarray(array[::-1])[::-1],
        "channels first in memory": np.asfortranarray(array),
        "opaque": np.concatenate([array, np.full_like(array[..., :1], 255)], axis=2),
        "in a list": [array],
        "in nested lists": [[(array,)]],
        "a generator": (array for _ in range(1)),
    }
    for name, form in forms.items():
        found = asked.predict(form)
        assert answers(found) == answers(expected), name
        assert found[0].score == expected[0].score, name
        assert found[0].file == (str(path) if name in ("path", "text") else None)


def test_every_form_of_one_grey_image_gives_one_answer(asked):
    grey = color(5)[..., 0]
    expected = asked.predict(np.stack([grey] * 3, axis=2))
    forms = {
        "(H, W)": grey,
        "(H, W, 1)": grey[..., None],
        "tensor (H, W)": torch.from_numpy(grey),
        "tensor (1, H, W)": torch.from_numpy(grey)[None],
        "tensor (B, 1, H, W)": torch.from_numpy(grey)[None, None],
        "L": Image.fromarray(grey),
        "grey and opaque": np.stack([grey, np.full_like(grey, 255)], axis=2),
        "floats": grey.astype(np.float32) / 255,
        "uint16": grey.astype(np.uint16) * np.uint16(257),
    }
    for name, form in forms.items():
        assert [p.score for p in asked.predict(form)] == [expected[0].score], name


def test_bool_is_black_and_white(asked):
    mask = color(6)[..., 0] > 127
    expected = asked.predict(mask.astype(np.uint8) * np.uint8(255))
    for form in (mask, torch.from_numpy(mask), Image.fromarray(mask)):
        assert asked.predict(form)[0].score == expected[0].score


WHITE = {
    "1": 1, "L": 255, "LA": (255, 255), "P": 0, "PA": None, "RGB": (255,) * 3, "RGBA": (255,) * 4,
    "RGBa": (255,) * 4, "La": (255, 255), "RGBX": (255,) * 4, "CMYK": (0, 0, 0, 0), "YCbCr": (255, 128, 128),
    "HSV": (0, 0, 255), "I": 65535, "I;16": 65535, "I;16B": 65535, "F": 1.0,
}  # fmt: skip


@pytest.mark.parametrize("mode", WHITE)
def test_white_is_white_in_every_mode_of_pil(asked, mode):
    if mode in ("P", "PA"):
        image = Image.new("P", (9, 12), 0)
        image.putpalette([255, 255, 255])
        image = image.convert(mode)
    else:
        image = Image.new(mode, (9, 12), WHITE[mode])
    assert image.mode == mode
    expected = asked.predict(np.full((12, 9, 3), 255, np.uint8))
    assert asked.predict(image)[0].score == expected[0].score


def test_what_is_transparent_is_white(asked):
    clear = np.concatenate([color(), np.zeros((13, 31, 1), np.uint8)], axis=2)
    expected = asked.predict(np.full((13, 31, 3), 255, np.uint8))[0].score
    assert asked.predict(clear)[0].score == asked.predict(Image.fromarray(clear))[0].score == expected


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (700, 3), (SIZE, SIZE), (300, 200)])
def test_any_size_will_do(asked, shape):
    array = color(1, *shape)
    found = asked.predict([array, Image.fromarray(array), torch.from_numpy(array).permute(2, 0, 1)])
    assert len({(p.label, p.score) for p in found}) == 1
    assert np.isfinite(found[0].score)


def test_images_of_many_kinds_and_sizes_in_one_list_keep_their_order(asked, folder):
    images = [color(1), Image.fromarray(color(2)), torch.from_numpy(color(4, 5, 6)).permute(2, 0, 1)]
    mixed = [images[0], [folder / "b.png", images[1:]], np.stack([color(7), color(8)]), str(folder)]
    alone = [*images[:1], color(1), *images[1:], color(7), color(8), color(2), color(1), color(3)]
    same(asked.predict(mixed), [asked.predict(image)[0] for image in alone])
    files = [str(folder / name) for name in ("b.png", "a.bmp", "b.png", "sub/c.PNG")]
    assert [p.file for p in asked.predict(mixed)] == [None, files[0], *[None] * 4, *files[1:]]


def test_a_folder_a_glob_and_a_path_name_files(asked, folder):
    def files(*arguments):
        return [str(p.file) for p in asked.predict(*arguments)]

    everything = [str(folder / name) for name in ("a.bmp", "b.png", "sub/c.PNG")]
    assert files(folder) == files(str(folder)) == everything
    assert files(folder, False) == everything[:2]
    assert files(f"{folder}/*.png") == everything[1:2]
    assert files(f"{folder}/**/*.[pP][nN][gG]") == everything[1:]
    expected = [asked.predict(color(seed))[0] for seed in (2, 1, 3)]
    same(asked.predict(folder), expected)


def test_labels_are_names_and_follow_from_score_and_threshold(recogniser):
    found = recogniser.predict(list(pictures(100)))
    with torch.no_grad():
        classes = recogniser.describe(pictures(100))["predicted_class"].tolist()
    assert {p.threshold for p in found} == {recogniser.threshold.value}
    for prediction, label in zip(found, classes, strict=True):
        assert prediction.unknown == (prediction.score > prediction.threshold)
        assert prediction.label == ("unknown" if prediction.unknown else SPEC.classes[label])
        assert isinstance(prediction.unknown, bool)
        assert type(prediction.score) is type(prediction.confidence) is float
        assert 1 / 3 <= prediction.confidence <= 1


def test_a_grey_recogniser_sees_colour_as_grey():
    spec = DataSpec(("x", "y"), 1, SIZE, (0.5,), (0.25,))
    torch.manual_seed(0)
    recogniser = build({**SINGLE, "score": "msp", "fixed": 0.4}, spec).eval()
    array = color(height=SIZE, width=SIZE)
    grey = np.rint(array.astype(np.float64) @ [0.2989, 0.587, 0.114]).astype(np.uint8)
    assert recogniser.predict(array)[0].score == pytest.approx(recogniser.predict(grey)[0].score, rel=1e-4)


# mistakes ---------------------------------------------------------------------------------------------


def test_a_file_that_cannot_be_read_is_named(asked, folder):
    (folder / "cut.png").write_bytes((folder / "b.png").read_bytes()[:200])
    (folder / "empty.jpg").write_bytes(b"")
    for name in ("cut.png", "empty.jpg", "notes.txt", "missing.png"):
        with pytest.raises(UserError, match=rf"Cannot read the image .*{re.escape(name)}"):
            asked.predict([folder / "b.png", color(), folder / name, folder / "b.png"])
    with pytest.raises(UserError, match=r"cut\.png"):
        asked.predict(folder)


@pytest.mark.parametrize(
    ("images", "told"),
    [
        (
            np.zeros((2, SIZE, SIZE, 3), np.uint8),
            rf"\(N, 3, {SIZE}, {SIZE}\), not uint8 of shape \(2, {SIZE}, ",
        ),
        (np.zeros((2, 3, SIZE, SIZE)), "not float64 of shape"),
        (np.zeros((3, SIZE, SIZE), np.uint8), "not uint8 of shape"),
        ([color()], "not list; predict takes any image"),
        ("a.png", "not str; predict takes any image"),
    ],
)
def test_images_that_are_not_prepared_are_left_to_predict(asked, images, told):
    with pytest.raises(UserError, match=f"answer takes images that prepare gave, .*{told}"):
        asked.answer(images)


def test_a_folder_is_not_explained(asked, folder):
    with pytest.raises(
        UserError, match=r"explain takes one image, and .* is a folder; predict takes folders"
    ):
        asked.explain(folder)


def test_a_folder_or_glob_without_images_is_named(asked, folder):
    (folder / "none").mkdir()
    with pytest.raises(UserError, match=r"there are no images in .*none"):
        asked.predict(folder / "none")
    with pytest.raises(UserError, match=r"no file matches .*\*\.xyz"):
        asked.predict(f"{folder}/*.xyz")


NO_IMAGES = {
    "int64 above 255": (np.full((5, 5, 3), 256, np.int64), "256"),
    "complex": (np.zeros((5, 5), np.complex64), "not complex64"),
    "text": (np.array([["a", "b"]]), "Cannot read the image a"),
    "floats up to 255": (np.full((5, 5), 255.0), r"values in \[0, 1\], not from 255 to 255"),
    "negative floats": (np.full((5, 5), -0.1), "from -0.1"),
    "NaN": (np.full((5, 5), np.nan), "has NaN; put values in its place, as numpy.nan_to_num"),
    "infinity": (np.array([[0.0, np.inf]]), "inf"),
    "a line": (np.zeros(5, np.uint8), r"not \(5,\)"),
    "no pixels": (np.zeros((0, 5, 3), np.uint8), r"not \(0, 5, 3\)"),
    "a film": (np.zeros((2, 2, 5, 5, 3), np.uint8), r"not \(2, 2, 5, 5, 3\)"),
    "tensor of int32 below 0": (torch.full((3, 5, 5), -1, dtype=torch.int32), "-1"),
    "tensor of five channels": (torch.zeros(5, 9, 9, dtype=torch.uint8), r"not \(5, 9, 9\)"),
}


@pytest.mark.parametrize("kind", NO_IMAGES)
def test_what_is_no_image_is_a_users_mistake(asked, kind):
    image, message = NO_IMAGES[kind]
    with pytest.raises(UserError, match=message):
        asked.predict([color(), image])


@pytest.mark.parametrize(
    "thing", [5, None, 0.5, b"\x89PNG", object()], ids=["int", "None", "float", "bytes", "object"]
)
def test_a_thing_of_another_kind_is_a_users_mistake(asked, thing):
    with pytest.raises(UserError):
        asked.predict([color(), thing])


def test_a_damaged_pil_image_is_a_users_mistake(asked):
    stream = io.BytesIO()
    Image.fromarray(color(0, 100, 100)).save(stream, "png")
    with pytest.raises(UserError):
        asked.predict(Image.open(io.BytesIO(stream.getvalue()[:2000])))


@pytest.mark.parametrize(
    "dtype",
    [
        torch.float16,
        torch.float64,
        pytest.param(
            torch.bfloat16,
        ),
    ],
)
def test_tensors_of_any_float_type_are_images(asked, dtype):
    values = (torch.arange(3 * 9 * 9).view(3, 9, 9) % 2).float()  # 0 and 1, which all types hold
    assert asked.predict(values.to(dtype))[0].score == asked.predict(values)[0].score


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_recogniser_of_another_precision_answers(dtype):
    recogniser = make(SHARED)
    expected = recogniser.predict(list(pictures(20)))
    found = recogniser.to(dtype).predict(list(pictures(20)))
    assert [p.score for p in found] == pytest.approx([p.score for p in expected], rel=0.1, abs=0.05)


def test_it_is_printed_in_a_line():
    made = build({**SHARED, "score": "fisher"}, SPEC)
    about = "<Recogniser of 3 classes (cat, dog, a,b\\n=c), colour images of 20 pixels a side; "
    assert repr(made) == f"{about}no threshold of fisher yet>"
    made.threshold.fixed = 0.5
    assert repr(made) == f"{about}unknown where fisher is above 0.5>"
    many = build({**SHARED, "score": "msp"}, DataSpec(tuple("abcdefgh"), 1, SIZE, (0.5,), (0.2,)))
    assert repr(many).startswith("<Recogniser of 8 classes (a, b, c, d, e, f, …), grey images")
