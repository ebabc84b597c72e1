"""The scikit-learn estimators: scikit-learn's own checks, and what open-set recognition adds to them."""

import pickle
import re
from pathlib import Path

import numpy as np
import photos
import pytest
import torch
from PIL import Image
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from osr_lightning.errors import UserError
from osr_lightning.scoring.detectors import DETECTORS
from osr_lightning.scoring.scores import SCORES
from osr_lightning.sklearn import BackboneFeatures, OpenSetClassifier

REJECTS = "some training samples are called unknown, as alpha says"
# checks that every training sample is named as one of the classes
NAMED_ALL = {"check_classifiers_train": REJECTS}


def _failing(estimator):
    return {} if estimator.alpha < 1e-6 else NAMED_ALL


@pytest.mark.filterwarnings("ignore:alpha .* needs .* samples:UserWarning")
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
@parametrize_with_checks(
    [OpenSetClassifier(), OpenSetClassifier(alpha=1e-9, score_name="energy")], expected_failed_checks=_failing
)
def test_the_checks_of_scikit_learn(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def digits():
    """Known training and test samples of six classes, and unknown ones of four."""
    samples, labels = load_digits(return_X_y=True)
    known = labels < 6
    parts = train_test_split(samples[known], labels[known], random_state=0, stratify=labels[known])
    return *parts, samples[~known]


@pytest.fixture(scope="module")
def fitted(digits):
    return OpenSetClassifier().fit(digits[0], digits[2])


def test_unknown_samples_are_called_unknown(digits, fitted):
    _, known, _, truth, unknown = digits
    assert (fitted.predict(unknown) == -1).mean() > 0.9
    assert fitted.score(known, truth) > 0.9
    scores = np.concatenate([fitted.score_samples(unknown), fitted.score_samples(known)])
    assert roc_auc_score(np.arange(len(scores)) >= len(unknown), scores) > 0.97


def test_what_is_predicted_is_what_the_score_says(digits, fitted):
    samples = np.concatenate([digits[1], digits[4]])
    unknown = fitted.score_samples(samples) < -fitted.threshold_
    named = fitted.classes_[fitted.predict_proba(samples).argmax(1)]
    assert (fitted.predict(samples) == np.where(unknown, -1, named)).all()
    assert (fitted.decision_function(samples).argmax(1) == fitted.predict_proba(samples).argmax(1)).all()
    assert np.allclose(fitted.predict_proba(samples).sum(1), 1)
    # a sample above the threshold is rarer than alpha
    assert (fitted.p_values(samples)[unknown] <= fitted.alpha).all()


def test_the_inner_classifier_is_scikit_learns_own(digits, fitted):
    train, known, labels, _, _ = digits
    plain = LogisticRegression(max_iter=1000).fit(train, labels)
    assert np.allclose(plain.predict_proba(known), fitted.predict_proba(known))


def test_msp_is_one_minus_the_largest_probability(digits):
    train, known, labels, _, _ = digits
    model = OpenSetClassifier(score_name="msp").fit(train, labels)
    assert np.allclose(-model.score_samples(known), 1 - model.predict_proba(known).max(1))


def test_the_threshold_is_the_quantile_of_scores_out_of_fold():
    """Worked out by hand for a score of the outputs alone."""
    rng = np.random.default_rng(0)
    samples = np.concatenate([rng.normal(place, 1, (30, 2)) for place in (-1, 1)])
    labels = np.repeat([0, 1], 30)
    model = OpenSetClassifier(score_name="msp", alpha=0.1, cv=3).fit(samples, labels)
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    folds = StratifiedKFold(3, shuffle=True, random_state=0)
    found = cross_val_predict(LogisticRegression(), samples, labels, cv=folds, method="predict_proba")
    # the ceil(61 * 0.9)-th smallest
    assert model.threshold_ == pytest.approx(np.sort(1 - found.max(1))[55 - 1], abs=1e-6)
    assert model.calibration_.count_known == 60


@pytest.mark.parametrize("score", [*SCORES, *DETECTORS])
@pytest.mark.parametrize("unit_length", [False, True])
def test_every_score_serves(digits, score, unit_length):
    train, known, labels, _, _ = digits
    model = OpenSetClassifier(score_name=score, unit_length=unit_length, alpha=0.1, cv=3).fit(train, labels)
    assert np.isfinite(model.score_samples(known)).all()
    assert (model.predict(known) == -1).mean() < 0.2


@pytest.mark.parametrize("score", ["fisher", "knn", "vim", "msp"])
def test_style_is_for_fisher_alone(digits, score):
    train, known, labels, _, _ = digits
    plain = OpenSetClassifier(score_name=score, unit_length=True, alpha=0.1, cv=3).fit(train, labels)
    rng = np.random.default_rng(0)

    def styled(samples, at=0.0):
        return np.concatenate([samples, rng.normal(at, 3, (len(samples), 4))], axis=1)

    model = OpenSetClassifier(score_name=score, unit_length=True, style=4, alpha=0.1, cv=3)
    model.fit(styled(train), labels)
    assert np.allclose(model.predict_proba(styled(known)), plain.predict_proba(known))
    assert np.allclose(model.score_samples(styled(known)), plain.score_samples(known)) == (score != "fisher")
    assert (model.predict(styled(known)) == -1).mean() < 0.2
    assert (model.predict(styled(known, at=40)) == -1).all() == (score == "fisher")


def test_samples_of_style_alone_are_refused():
    with pytest.raises(UserError, match=r"style 2 leaves none of the 2 values of a sample"):
        OpenSetClassifier(style=2).fit(np.zeros((40, 2)), [0, 1] * 20)
    with pytest.raises(UserError, match=r"style must be 0 or more values, got -1"):
        OpenSetClassifier(style=-1).fit(np.zeros((40, 2)), [0, 1] * 20)


def test_about_alpha_of_known_samples_is_called_unknown():
    """Over 60 draws of training and test samples, whose mean has a deviation of 0.4 points."""
    rng = np.random.default_rng(0)
    rejected = []
    for _ in range(60):
        labels = np.arange(400) % 3
        samples = rng.normal(size=(400, 4)) + 3 * np.eye(4)[labels]
        model = OpenSetClassifier(GaussianNB(), score_name="mahalanobis", alpha=0.1)
        model.fit(samples[:100], labels[:100])
        rejected.append((model.predict(samples[100:]) == -1).mean())
    assert 0.07 < np.mean(rejected) < 0.115


def test_a_part_of_a_pipeline_is_searched(digits):
    train, known, labels, truth, unknown = digits
    pipeline = make_pipeline(StandardScaler(), OpenSetClassifier(cv=3))
    options = {"opensetclassifier__score_name": ["msp", "fisher"]}
    search = GridSearchCV(pipeline, options, cv=2).fit(train, labels)
    assert search.score(known, truth) > 0.85
    assert (search.predict(unknown) == -1).mean() > 0.6


def test_a_copy_answers_as_the_first(digits, fitted):
    again = pickle.loads(pickle.dumps(fitted))  # noqa: S301 - our own
    assert (again.predict(digits[4]) == fitted.predict(digits[4])).all()
    assert clone(fitted).get_params() == fitted.get_params()


def test_names_and_numbers():
    rng = np.random.default_rng(0)
    samples = np.concatenate([rng.normal(place, 0.1, (20, 2)) for place in (-1, 1)])
    far = [[40.0, -40.0]]
    for names, wanted in (
        (["cat", "dog"], "unknown"),
        ([0, 1], -1),
        ([-1, 1], -2),
        ([2.0, 3.0], -1.0),
        ([False, True], "unknown"),
    ):
        model = OpenSetClassifier(score_name="mahalanobis", alpha=0.1).fit(samples, np.repeat(names, 20))
        assert model.predict(far)[0] == wanted
        assert model.predict([[-1.0, -1.0]])[0] == names[0]
    model = OpenSetClassifier(score_name="knn", alpha=0.1, unknown_label=99).fit(
        samples, np.repeat([0, 1], 20)
    )
    assert model.predict(far)[0] == 99


@pytest.mark.parametrize(
    ("names", "label", "wanted"),
    [
        ([False, True], None, "unknown"),
        ([0, 1], "unknown", "unknown"),
        ([2.0, 3.0], "other", "other"),
        (["cat", "dog"], -1, -1),
        (["cat", "dog"], None, "unknown"),
        ([0, 1], None, -1),
    ],
)
def test_classes_stay_themselves_beside_unknown_samples(names, label, wanted):
    rng = np.random.default_rng(0)
    samples = np.concatenate([rng.normal(place, 0.1, (20, 2)) for place in (-1, 1)])
    truth = np.repeat(names, 20)
    model = OpenSetClassifier(score_name="mahalanobis", alpha=0.1, unknown_label=label).fit(samples, truth)
    found = model.predict(np.concatenate([samples, [[40.0, -40.0]]]))
    assert (found[:-1] == truth).mean() > 0.8
    assert found[-1] == wanted
    assert type(found.tolist()[-1]) is type(wanted)
    assert model.score([*samples, [40.0, -40.0]], [*truth.tolist(), wanted]) == pytest.approx(
        np.mean([*(found[:-1] == truth), True])
    )


@pytest.mark.parametrize("inner", [RandomForestClassifier(20, random_state=0), RidgeClassifier()])
def test_other_classifiers(digits, inner):
    train, known, labels, truth, _ = digits
    model = OpenSetClassifier(inner, cv=2).fit(train, labels)
    assert model.score(known, truth) > 0.75


def test_few_samples_call_nothing_unknown_and_warn():
    samples = np.arange(12.0).reshape(6, 2)
    with pytest.warns(UserWarning, match=r"needs 19 samples, there are 6: nothing is called unknown"):
        model = OpenSetClassifier().fit(samples, [0, 0, 0, 1, 1, 1])
    assert (model.predict(samples * 1000) != -1).all()
    assert np.isnan(model.p_values(samples)).all()
    with pytest.raises(UserError, match="drift needs a threshold"):
        model.drift(samples)


class NamesAlone(ClassifierMixin, BaseEstimator):
    """A classifier without outputs."""

    def fit(self, samples, labels):
        return self

    def predict(self, samples):
        return np.zeros(len(samples), dtype=int)


def test_a_threshold_of_held_out_samples_and_an_alarm(digits):
    train, held_out, labels, truth, unknown = digits
    model = OpenSetClassifier(score_name="msp", alpha=0.1).fit(train, labels)
    model.calibrate(held_out, truth)
    scores = np.sort(1 - model.predict_proba(held_out).max(1))
    rank = int(np.ceil((len(scores) + 1) * 0.9))  # split conformal, by hand
    assert model.threshold_ == pytest.approx(scores[rank - 1])
    assert model.calibration_.method == "known_quantile"
    assert not model.drift(held_out).alarm
    assert model.drift(unknown).alarm
    with pytest.raises(UserError, match="which is no class of fit's"):
        model.calibrate(unknown, np.full(len(unknown), 9))
    with pytest.raises(UserError, match=r"alpha 0\.1 needs 9 samples, there are 5"):
        model.calibrate(held_out[:5], truth[:5])
    with pytest.raises(UserError, match="X has 5 samples and y 4 classes"):
        model.calibrate(held_out[:5], truth[:4])


@pytest.mark.parametrize(
    ("options", "labels", "said"),
    [
        ({"score_name": "fischer"}, [0, 1], "there is no score_name 'fischer'; did you mean fisher"),
        ({"alpha": 0}, [0, 1], "alpha must lie between 0 and 1, got 0"),
        ({"cv": 1}, [0, 1], "cv must be 2 or more folds, got 1"),
        ({"unknown_label": 1}, [0, 1], "y has the class 1, which is what unknown samples are called"),
        ({}, ["unknown", "dog"], "y has the class .*unknown.*, which is what unknown samples are called"),
        ({}, [3, 3], "y has one class, 3; a classifier needs two or more"),
        (
            {"estimator": RandomForestClassifier(5), "score_name": "vim"},
            [0, 1],
            "vim needs .* linear classifier",
        ),
    ],
)
def test_mistakes_get_a_sentence(options, labels, said):
    samples = np.random.default_rng(0).normal(size=(40, 2))
    model = OpenSetClassifier(**options)
    with pytest.raises(UserError, match=said):
        model.fit(samples, np.repeat(labels, 20))


def test_a_class_of_one_sample_is_refused():
    with pytest.raises(UserError, match=r"the class .*2.* has 1 sample"):
        OpenSetClassifier().fit(np.random.default_rng(0).normal(size=(41, 2)), [0] * 20 + [1] * 20 + [2])


# the backbone -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return BackboneFeatures(
        photos.BACKBONE, str(photos.write_weights(tmp_path_factory.mktemp("w") / "small.pth"))
    )


def test_features_are_the_backbones_own(backbone, tmp_path):
    """By the network itself, of images that need no resizing, as arrays and as files."""
    import timm
    from timm.data import create_transform, resolve_data_config

    files = sorted(photos.write_photos(tmp_path, count=2, size=(182, 182)).glob("*/*.png"))
    network = timm.create_model(photos.BACKBONE.removeprefix("timm:"), num_classes=7).eval()
    network.load_state_dict(torch.load(backbone.weights))
    network.reset_classifier(0)
    prepare = create_transform(**resolve_data_config({}, model=network))
    images = [Image.open(file).convert("RGB") for file in files]
    with torch.no_grad():
        expected = network(torch.stack([prepare(image) for image in images])).numpy()
    found = backbone.fit(files).transform(files)
    assert np.allclose(found, expected, atol=2e-3)
    assert np.array_equal(found, backbone.transform([np.asarray(image) for image in images]))
    assert found.shape == (6, backbone.n_features_out_) == (6, len(backbone.get_feature_names_out()))
    assert backbone.transform([]).shape == (0, backbone.n_features_out_)
    styled = BackboneFeatures(backbone.name, backbone.weights, style=True).fit(files)
    assert (backbone.n_style_, styled.n_style_) == (0, styled.n_features_out_ - backbone.n_features_out_)
    assert styled.n_style_ > 0
    assert styled.get_feature_names_out()[-1] == f"style{styled.n_style_ - 1}"
    assert np.allclose(styled.transform(files)[:, : -styled.n_style_], found, atol=1e-5)


def test_photographs_go_through_a_pipeline(backbone, tmp_path):
    files = sorted(photos.write_photos(tmp_path / "known").glob("*/*.png"))
    others = sorted(photos.write_photos(tmp_path / "others", photos.OTHER, count=8).glob("*/*.png"))
    classifier = OpenSetClassifier(score_name="mahalanobis", unit_length=True, alpha=0.1)
    model = make_pipeline(backbone, classifier).fit(files, [file.parent.name for file in files])
    assert (model.predict(others) == "unknown").mean() > 0.7
    assert model.score(files, [file.parent.name for file in files]) > 0.7


def test_weights_that_are_missing_are_named():
    with pytest.raises(UserError, match=r"^weights: there is no file .*none\.pth"):
        BackboneFeatures(photos.BACKBONE, "none.pth").fit([])


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"views": 7}, "views must be 1 or 2, got 7"),
        ({"views": 0}, "views must be 1 or 2, got 0"),
        ({"views": "2"}, "views must be a whole number, got '2'"),
        ({"style": "yes"}, "style must be True or False, got 'yes'"),
        ({"weights": None}, "weights must be a text, got None"),
    ],
)
def test_options_of_a_backbone_that_are_wrong_are_named(options, told, backbone):
    with pytest.raises(UserError, match=told):
        BackboneFeatures(**backbone.get_params() | options).fit([])


@pytest.mark.parametrize("images", ["MINE", Path("MINE"), b"GIF89a", Image.new("L", (2, 2))])
def test_images_in_place_of_a_list_of_images_are_refused(images, backbone):
    fitted = backbone.fit([])
    for ask in (fitted.fit, fitted.transform):
        with pytest.raises(UserError, match=r"X is a list of images, as sorted\(.*, not .* itself"):
            ask(images)


PAGE = Path(__file__).parents[1] / "docs" / "scikit-learn.md"


def test_the_page_prints_what_it_says(capsys):
    (first, *_), (said,) = (
        re.findall(rf"```{kind}\n(.*?)```", PAGE.read_text(), re.DOTALL) for kind in ("python", "text")
    )
    exec(first, {})  # noqa: S102 - our own page
    for found, expected in zip(capsys.readouterr().out.splitlines(), said.splitlines(), strict=True):
        assert float(found[:5]) == pytest.approx(float(expected[:5]), abs=0.01)
        assert found[5:] == expected[5:]
