"""scikit-learn estimators: a classifier of arrays that answers "unknown", and features of a backbone."""

from __future__ import annotations

import functools
import io
import json
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassifierMixin, TransformerMixin, clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn

from osr_lightning.atomic_write import write_bytes
from osr_lightning.data.features import featured
from osr_lightning.data.folder import featured_files
from osr_lightning.data.leaks import digest_of
from osr_lightning.data_spec import UNKNOWN
from osr_lightning.deploy.drift import Drift, drift
from osr_lightning.errors import UserError, did_you_mean
from osr_lightning.images.pixels import ImageLike, to_input, to_pixels
from osr_lightning.models.backbones import (
    DEFAULT_NAME,
    Body,
    check_backbone,
    in_views,
    pixel_format,
    pretrained,
)
from osr_lightning.models.sampling import LOGITS, PENULTIMATE
from osr_lightning.option_types import typed
from osr_lightning.scoring.calibration import CROSS, Calibration, CalibrationMethod, calibrate, read_record
from osr_lightning.scoring.decision import is_unknown
from osr_lightning.scoring.detectors import DETECTORS, LOG_PROBABILITY, Detector
from osr_lightning.scoring.detectors.fisher import Fisher
from osr_lightning.scoring.p_values import p_values
from osr_lightning.scoring.quantile import images_needed
from osr_lightning.scoring.scores import SCORES
from osr_lightning.scoring.sweep import Costs
from osr_lightning.training.cross_calibration import fit_without_each
from osr_lightning.training.feature_extractor import BackboneExtractor

Floats = NDArray[np.float64]
Seen = dict[str, Tensor]
_SHORT = 1e-12  # the shortest length
_STYLED = "styled"  # what fisher looks at, of samples with style


class OpenSetClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Any scikit-learn classifier, which answers "unknown" where a sample is unlike the known classes.

    The inner classifier names one of the ``K`` known classes; a score says how unlike them the sample is; a
    sample whose score is greater than a threshold is called unknown. The threshold is the conformal quantile
    of scores out of fold: the classifier and the score are fitted again without each part of the samples, and
    that part is scored. A sample exchangeable with those of ``fit`` is called unknown with probability about
    ``alpha`` (see `osr_lightning.scoring.calibration`). No unknown sample is needed.

    Args:
        estimator: the inner classifier, with ``decision_function`` or ``predict_proba``; None for
            ``LogisticRegression(max_iter=1000)``. The scores ``vim``, ``residual``, ``fdbd`` and ``nci`` need
            a linear one.
        score_name: one of ``osr_lightning.scoring.scores.SCORES``, from the classifier's outputs alone, or
            of ``osr_lightning.scoring.detectors.DETECTORS``, which look at the features too.
        alpha: share of known samples that may be called unknown, in (0, 1).
        cv: number of folds, from 2 on; fewer where a class has fewer samples.
        unit_length: whether samples are centred and brought to one length first, as suits the features of a
            pretrained network (Mueller and Hein, Mahalanobis++, ICML 2025); other arrays lose by it.
        style: how many of a sample's values, the last ones, are an image's style (see `BackboneFeatures`),
            which ``fisher`` looks at and the inner classifier does not.
        unknown_label: what ``predict`` calls unknown samples; None for "unknown" beside names, and beside
            numbers -1, or one below the least class where a class is -1 itself. A name beside numbers, or a
            number beside names, gives an array of objects, so that classes stay themselves.
        random_state: of the folds.

    Attributes:
        classes_: ``(K,)`` the known classes.
        unknown_label_: what unknown samples are called.
        estimator_: the inner classifier, fitted to all samples.
        threshold_: in units of the score; infinite where there are fewer than ``1 / alpha - 1`` samples, of
            which ``fit`` warns.
        calibration_: the record of the threshold; None where it is infinite.
        n_features_in_: ``D``.
    """

    def __init__(
        self,
        estimator: BaseEstimator | None = None,
        *,
        score_name: str = "fisher",
        alpha: float = 0.05,
        cv: int = 5,
        unit_length: bool = False,
        style: int = 0,
        unknown_label: Any = None,  # noqa: ANN401 - a name or a number
        random_state: int | None = 0,
    ) -> None:
        self.estimator = estimator
        self.score_name = score_name
        self.alpha = alpha
        self.cv = cv
        self.unit_length = unit_length
        self.style = style
        self.unknown_label = unknown_label
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: ArrayLike) -> OpenSetClassifier:
        """Fit classifier and score, and choose the threshold.

        Args:
            X: ``(N, D)`` samples of known classes.
            y: ``(N,)`` their classes, names or numbers, two or more.

        Raises:
            ValueError: where an argument is out of range, or the samples cannot serve it.
        """
        samples, y = validate_data(self, X, y, dtype=np.float64)
        check_classification_targets(y)
        self._check()
        if self.style >= samples.shape[1]:
            raise UserError(
                f"style {self.style:,} leaves none of the {samples.shape[1]:,} values of a sample for the "
                "classifier; it counts the last ones, n_style_ of BackboneFeatures"
            )
        self.classes_, labels = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise UserError(f"y has one class, {_plain(self.classes_[0])!r}; a classifier needs two or more")
        self.unknown_label_ = _unknown_label(self.classes_, self.unknown_label)
        fewest = int(np.bincount(labels).min())
        if fewest < 2:
            name = _plain(self.classes_[np.bincount(labels).argmin()])
            raise UserError(
                f"the class {name!r} has 1 sample, and the threshold is chosen by samples that the "
                "classifier was not fitted to: give it 2 or more"
            )
        folds = np.empty(len(labels), dtype=np.int64)
        dealt = StratifiedKFold(min(self.cv, fewest), shuffle=True, random_state=self.random_state)
        for fold, (_, rows) in enumerate(dealt.split(samples, labels)):
            folds[rows] = fold
        self._fitted, scores, predicted = self._fit_out_of_fold(samples, labels, folds)
        self.estimator_ = self._fitted.estimator
        if len(scores) < (needed := images_needed(self.alpha)):
            warnings.warn(
                f"alpha {self.alpha:g} needs {needed:,} samples, there are {len(scores):,}: nothing is "
                "called unknown; raise alpha or fit to more samples",
                UserWarning,
                stacklevel=2,
            )
            self.calibration_ = None
        else:
            self.calibration_ = self._record(scores, predicted == labels, CROSS, "out of fold")
        self.threshold_ = math.inf if self.calibration_ is None else self.calibration_.value
        return self

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """The class of each sample ``(N, D)``, or ``unknown_label_``; ``(N,)``."""
        seen = self._look(X)
        scores = self._fitted.score(self.score_name, seen)
        named = self.classes_[seen[LOGITS].argmax(1).numpy()]
        unknown = is_unknown(scores, self.threshold_)
        if not unknown.any():
            return cast("NDArray[Any]", named)
        label = np.asarray(self.unknown_label_)
        if (label.dtype.kind == "U") != (named.dtype.kind == "U"):  # else numbers would become text
            named = named.astype(object)
        return np.where(unknown, label, named)

    def score(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> float:
        """The share of samples whose class, or ``unknown_label_``, is the given one.

        scikit-learn's own refuses names beside numbers.

        Args:
            X: ``(N, D)`` samples.
            y: ``(N,)`` what they are.
            sample_weight: ``(N,)``; all 1 if not given.
        """
        right = self.predict(X) == np.asarray(y, dtype=object)
        return float(np.average(right, weights=None if sample_weight is None else np.asarray(sample_weight)))

    def predict_proba(self, X: ArrayLike) -> Floats:
        """Probabilities of the known classes, ``(N, K)``: the softmax of the classifier's outputs."""
        return cast(Floats, softmax(self._look(X)[LOGITS].numpy(), axis=1))

    def decision_function(self, X: ArrayLike) -> Floats:
        """The classifier's outputs before rejection, ``(N, K)``; of two classes ``(N,)``, the second's."""
        logits = self._look(X)[LOGITS].numpy()
        return cast(Floats, logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 else logits)

    def score_samples(self, X: ArrayLike) -> Floats:
        """How well each sample fits the known classes, ``(N,)``: the score with its sign turned.

        As scikit-learn's outlier detectors have it, greater is more known. ``predict`` calls a sample unknown
        where ``score_samples(X) < -threshold_``.
        """
        return -self._fitted.score(self.score_name, self._look(X))

    def p_values(self, X: ArrayLike) -> Floats:
        """The share of known samples that look as unknown as each sample does, ``(N,)`` in (0, 1].

        Conformal p-values, see `osr_lightning.scoring.p_values`; NaN where ``calibration_`` is None.
        """
        scores = -self.score_samples(X)
        if self.calibration_ is None:
            return np.full(len(scores), np.nan)
        return p_values(self.calibration_, scores)

    def calibrate(self, X: ArrayLike, y: ArrayLike) -> OpenSetClassifier:
        """Choose the threshold again by known samples that ``fit`` has not seen; nothing else changes.

        A sample exchangeable with these is then called unknown with probability at most ``alpha`` (split
        conformal), where ``fit``'s own threshold promises about ``alpha``.

        Args:
            X: ``(N, D)`` samples of known classes.
            y: ``(N,)`` their classes.

        Raises:
            ValueError: where they are too few for ``alpha``, or of classes that ``fit`` did not see.
        """
        seen, given = self._look(X), np.asarray(y)
        if len(given) != len(seen[LOGITS]):
            raise UserError(f"X has {len(seen[LOGITS]):,} samples and y {len(given):,} classes")
        if len(strange := np.setdiff1d(given, self.classes_)):
            raise UserError(
                f"calibrate takes known samples, and y has {_plain(strange[0])!r}, which is no class of fit's"
            )
        if len(given) < (needed := images_needed(self.alpha)):
            raise UserError(
                f"alpha {self.alpha:g} needs {needed:,} samples, there are {len(given):,}; raise alpha, or "
                "give more"
            )
        correct = self.classes_[seen[LOGITS].argmax(1).numpy()] == given
        scores = self._fitted.score(self.score_name, seen)
        self.calibration_ = self._record(scores, correct, "known_quantile", "held-out")
        self.threshold_ = self.calibration_.value
        return self

    def drift(self, X: ArrayLike, alpha: float = 0.01) -> Drift:
        """Whether samples that came in later still fit the known ones that chose the threshold.

        Args:
            X: ``(N, D)`` samples, of whatever class.
            alpha: probability of a false alarm of each of the two tests, see `osr_lightning.deploy.drift`.

        Raises:
            ValueError: where there is no calibration, as ``fit`` had too few samples.
        """
        scores = -self.score_samples(X)
        if self.calibration_ is None:
            raise UserError(f"drift needs a threshold, and fit had too few samples for alpha {self.alpha:g}")
        return drift(self.calibration_, scores, alpha)

    def _check(self) -> None:
        if self.score_name not in (*SCORES, *DETECTORS):
            names = [*SCORES, *DETECTORS]
            there = did_you_mean(self.score_name, names, f"there are {', '.join(names)}")
            raise UserError(f"there is no score_name {self.score_name!r}; {there}")
        if not 0 < self.alpha < 1:
            raise UserError(f"alpha must lie between 0 and 1, got {self.alpha!r}")
        if self.cv < 2:
            raise UserError(f"cv must be 2 or more folds, got {self.cv!r}")
        if self.style < 0:
            raise UserError(f"style must be 0 or more values, got {self.style!r}")

    def _look(self, X: ArrayLike) -> Seen:
        check_is_fitted(self)
        return self._fitted.look(validate_data(self, X, dtype=np.float64, reset=False))

    def _fit_out_of_fold(
        self, samples: Floats, labels: NDArray[np.int64], folds: NDArray[np.int64]
    ) -> tuple[_Fit, Floats, NDArray[np.int64]]:
        """The fit to all samples, and of each its score and class, ``(N,)``, by a fit to the other folds."""

        def fit(without: tuple[int, ...]) -> _Fit:
            left = np.isin(folds, without)
            return self._fit(samples[~left], labels[~left])

        takes = self.score_name in DETECTORS and DETECTORS[self.score_name].held_out
        fits, whole = fit_without_each(
            int(folds.max()) + 1,
            fit,
            lambda fitted, fold: fitted.statistics(samples[folds == fold]),
            _Fit.refer,
            samples=len(labels) if takes else None,
        )
        scores, predicted = np.empty(len(labels)), np.empty(len(labels), dtype=np.int64)
        for fold, fitted in enumerate(fits):
            rows = folds == fold
            seen = fitted.look(samples[rows])
            scores[rows] = fitted.score(self.score_name, seen)
            predicted[rows] = seen[LOGITS].argmax(1).numpy()
        return whole, scores, predicted

    def _fit(self, samples: Floats, labels: NDArray[np.int64]) -> _Fit:
        features = samples[:, : samples.shape[1] - self.style]
        mean = features.mean(0) if self.unit_length else None
        estimator = LogisticRegression(max_iter=1000) if self.estimator is None else clone(self.estimator)
        estimator.fit(_directions(features, mean), labels)
        fit = _Fit(estimator, mean, self.style, self._detector())
        if fit.detector is not None:
            seen = fit.look(samples)
            one = {name: value[:1] for name, value in seen.items()}  # a passing reference
            truth = torch.from_numpy(labels)
            fit.detector.fit(seen, truth, _last_layer(estimator), one, seen[LOGITS].shape[1])
        return fit

    def _detector(self) -> Detector | None:
        if self.score_name not in DETECTORS:
            return None
        if DETECTORS[self.score_name] is Fisher:  # as `Fisher.of` weighs a backbone's features
            weights = (2.0, 1.0) if self.unit_length else None
            return Fisher((_STYLED if self.style else PENULTIMATE,), weights, (self.style,))
        return DETECTORS[self.score_name]()

    def _record(
        self, scores: Floats, correct: NDArray[np.bool_], method: CalibrationMethod, which: str
    ) -> Calibration:
        found, _ = calibrate(
            {self.score_name: scores},
            np.ones(len(scores), dtype=bool),
            correct,
            method=method,
            alpha=self.alpha,
            costs=Costs(),
            unknown_prior=0.5,
            calibrated_on=f"{len(scores):,} known samples, {which}",
            optimistic=False,
        )
        return found[self.score_name]


class _Fit(NamedTuple):
    """A classifier and a score that are fitted to some samples.

    Attributes:
        estimator: of labels ``0 .. K-1``.
        mean: ``(D,)`` that samples are centred by before they are brought to one length; None leaves them.
        style: how many values of a sample come after these ``D``.
        detector: the fitted score; None for one of the outputs alone.
    """

    estimator: Any
    mean: Floats | None
    style: int
    detector: Detector | None

    def look(self, samples: Floats) -> Seen:
        """What scores look at, of samples ``(n, D + style)``."""
        features, style = np.split(samples, [samples.shape[1] - self.style], axis=1)
        directions = _directions(features, self.mean)
        logits = torch.tensor(_logits(self.estimator, directions))
        seen = {PENULTIMATE: torch.tensor(directions), LOGITS: logits}
        if self.style:
            seen[_STYLED] = torch.tensor(np.concatenate([directions, style], axis=1))
        return seen | {LOG_PROBABILITY: F.log_softmax(logits, dim=1)}

    def score(self, name: str, seen: Seen) -> Floats:
        """Of what was looked at, ``(n,)``; higher is more unknown."""
        detector = self.detector
        found = SCORES[name](seen[LOGITS].unsqueeze(0)) if detector is None else detector(seen)
        return cast(Floats, found.numpy())

    def statistics(self, samples: Floats) -> Tensor:
        """See `Detector.statistics`."""
        assert self.detector is not None
        return self.detector.statistics(self.look(samples))

    def refer(self, statistics: Sequence[Tensor]) -> None:
        """See `Detector.refer`."""
        assert self.detector is not None
        self.detector.refer(torch.cat(list(statistics), dim=1))


def _directions(samples: Floats, mean: Floats | None) -> Floats:
    """Samples ``(n, D)`` as they are; with a mean, ``sqrt(D) (x - m) / |x - m|``."""
    if mean is None:
        return samples
    centred = samples - mean
    length = np.linalg.norm(centred, axis=1, keepdims=True).clip(min=_SHORT)
    return cast(Floats, centred / length * math.sqrt(samples.shape[1]))


def _logits(estimator: Any, samples: Floats) -> Floats:  # noqa: ANN401 - any classifier
    """Outputs ``(n, K)``, of which the softmax are probabilities."""
    if hasattr(estimator, "decision_function"):
        outputs = np.asarray(estimator.decision_function(samples), dtype=np.float64)
        return np.stack([np.zeros_like(outputs), outputs], axis=1) if outputs.ndim == 1 else outputs
    if not hasattr(estimator, "predict_proba"):
        raise UserError(
            f"the estimator {type(estimator).__name__} has neither decision_function nor predict_proba; take "
            "a classifier with one of them"
        )
    tiny = np.finfo(np.float64).tiny
    return cast(Floats, np.log(np.asarray(estimator.predict_proba(samples), dtype=np.float64).clip(min=tiny)))


def _last_layer(estimator: Any) -> nn.Linear | None:  # noqa: ANN401
    """A linear classifier's weights as a layer; None of others."""
    if not hasattr(estimator, "coef_") or not hasattr(estimator, "intercept_"):
        return None
    weight, bias = np.atleast_2d(estimator.coef_), np.atleast_1d(estimator.intercept_)
    if len(weight) == 1:  # of the second of two classes
        weight, bias = np.concatenate([np.zeros_like(weight), weight]), np.append(0, bias)
    layer = nn.Linear(weight.shape[1], len(weight), dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight))
        layer.bias.copy_(torch.from_numpy(np.broadcast_to(bias, len(weight)).copy()))
    return layer


def _plain(value: Any) -> Any:  # noqa: ANN401 - of an array of any kind
    """A value of an array as Python writes it: ``'a'``, not ``np.str_('a')``."""
    return value.item() if isinstance(value, np.generic) else value


def _unknown_label(classes: NDArray[Any], given: Any) -> Any:  # noqa: ANN401
    if given is None:
        numbers = classes.dtype.kind in "iuf"
        given = min(-1, classes.min() - 1) if numbers and -1 in classes else -1 if numbers else UNKNOWN
    if given in classes:
        raise UserError(
            f"y has the class {given!r}, which is what unknown samples are called; give another unknown_label"
        )
    return given


class BackboneFeatures(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Features of images by a frozen pretrained network, for a pipeline.

    An image's features are worked out once and kept in the cache of `osr run`, whatever its fold.

    Args:
        name: of the network, see `osr_lightning.models.backbones.Backbone`.
        weights: of the network, see there.
        views: 1 or 2, see there.
        style: whether an image's style stands behind its features, see
            `osr_lightning.models.backbones.Body`: give `OpenSetClassifier` its ``n_style_`` as ``style``.

    Attributes:
        n_features_out_: ``D``, with the style.
        n_style_: how many of these are the style, the last ones.
    """

    def __init__(
        self, name: str = DEFAULT_NAME, weights: str = "DEFAULT", views: int = 1, style: bool = False
    ) -> None:
        self.name = name
        self.weights = weights
        self.views = views
        self.style = style

    def fit(self, X: Sequence[ImageLike], y: object = None) -> BackboneFeatures:
        """Load the network; the images change nothing.

        Raises:
            ValueError: where there is no such network, its weights are missing, or an option or the images
                are of another type.
        """
        _refuse_one(X)
        extractor = self._extractor()
        self.n_features_out_, self.n_style_ = extractor.width, extractor.body.style
        return self

    def transform(self, X: Sequence[ImageLike]) -> NDArray[np.float32]:
        """``N`` images, each a path, a PIL image, an array or a tensor -> features ``(N, D)`` float32.

        Raises:
            ValueError: naming the first that is no image or cannot be read.
        """
        check_is_fitted(self)
        _refuse_one(X)
        extractor = self._extractor()
        wanted = extractor.pixel_format
        images = list(X)
        if not images:
            return np.empty((0, extractor.width), dtype=np.float32)
        if all(isinstance(image, (str, Path)) for image in images):
            found = featured_files(
                [Path(cast(str, image)).expanduser() for image in images], wanted, extractor
            )
        else:
            pixels = [to_input(to_pixels(one, wanted.resize or wanted.image_size), wanted) for one in images]
            keys = [digest_of(one) for one in pixels]
            found = featured(
                keys, pixels, lambda some: torch.from_numpy(np.stack(some)), extractor, pixels[0].shape
            )
        return cast("NDArray[np.float32]", found.features.numpy())

    def get_feature_names_out(self, input_features: object = None) -> NDArray[Any]:
        """``feature0 …``, and ``style0 …``."""
        check_is_fitted(self)
        counts = {"feature": self.n_features_out_ - self.n_style_, "style": self.n_style_}
        names = [f"{name}{place}" for name, count in counts.items() for place in range(count)]
        return np.array(names, dtype=object)

    def _extractor(self) -> BackboneExtractor:
        return _extractor(**typed("", BackboneFeatures, self.get_params()))


def _refuse_one(X: object) -> None:
    """Stop where images are given as one thing, which would be taken letter by letter or line by line.

    Raises:
        UserError: naming it.
    """
    if isinstance(X, (str, bytes, Path, Image.Image)):
        given = repr(str(X)) if isinstance(X, (str, Path)) else type(X).__name__
        raise UserError(
            f"X is a list of images, as sorted(Path('MINE').glob('*/*.jpg')) or [image], not {given} itself"
        )


@functools.lru_cache(maxsize=2)
def _extractor(name: str, weights: str, views: int, style: bool) -> BackboneExtractor:
    check_backbone(0, views)
    try:
        made = pretrained(name, weights)
    except UserError as error:  # which names options of a training
        raise UserError(str(error).replace("model.network.", "")) from error
    wanted = in_views(pixel_format(name, weights, made.channels), views)
    return BackboneExtractor(Body(made.module, made.width, views=views, style=style), wanted)


def save(model: OpenSetClassifier, path: str | Path) -> None:
    """Write a fitted classifier as arrays alone, for `load` and ``osr drift``.

    Raises:
        ValueError: where its inner classifier is none of the default kind.
    """
    check_is_fitted(model)
    fit = model._fitted
    if type(fit.estimator) is not LogisticRegression:
        raise UserError(
            f"only the default classifier is kept as arrays, and this is {type(fit.estimator).__name__}; "
            "pickle it"
        )
    arrays = {"coef": fit.estimator.coef_, "intercept": fit.estimator.intercept_, "classes": model.classes_}
    if fit.mean is not None:
        arrays["mean"] = fit.mean
    for name in () if fit.detector is None else fit.detector.state:
        arrays[f"detector/{name}"] = getattr(fit.detector, name).numpy()
    record = None if model.calibration_ is None else dict(vars(model.calibration_))
    told = {name: getattr(model, name) for name in ("score_name", "alpha", "unit_length", "style")}
    arrays["told"] = np.array(json.dumps(told | {"calibration": record}))
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    write_bytes(path, content)


def load(path: str | Path) -> OpenSetClassifier:
    """Read what `save` wrote; it is data, of which nothing is run.

    Raises:
        ValueError: where it is none.
    """
    try:
        with np.load(path, allow_pickle=False) as kept:
            arrays = dict(kept)
        told = json.loads(str(arrays["told"]))
        record = told.pop("calibration")
        model = OpenSetClassifier(**told)
        model._check()
        model.classes_ = arrays["classes"]
        model.unknown_label_ = _unknown_label(model.classes_, None)
        inner = LogisticRegression(max_iter=1000)
        inner.coef_, inner.intercept_ = arrays["coef"], arrays["intercept"]
        inner.classes_ = np.arange(len(model.classes_))
        inner.n_features_in_ = inner.coef_.shape[1]
        model.n_features_in_ = inner.n_features_in_ + model.style
        detector = model._detector()
        for name in () if detector is None else detector.state:
            setattr(detector, name, torch.from_numpy(arrays[f"detector/{name}"]))
        model.estimator_ = inner
        model._fitted = _Fit(inner, arrays.get("mean"), model.style, detector)
        model.calibration_ = None if record is None else read_record(record)
        model.threshold_ = math.inf if model.calibration_ is None else model.calibration_.value
        model.predict(np.zeros((1, model.n_features_in_)))  # arrays of other shapes do not go together
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, RuntimeError) as error:
        raise UserError(
            f"{path} is no file of osr calibrate --features ({type(error).__name__}: {error}); write it again"
        ) from error
    return model
