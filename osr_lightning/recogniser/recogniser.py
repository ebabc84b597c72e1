"""The recogniser: preprocessing, samples, scores and threshold in one module.

It is what is trained, loaded, asked, exported and served. Neither Lightning nor a data set is needed.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Iterable, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from osr_lightning.data_spec import DataSpec
from osr_lightning.errors import NotCalibrated, UserError
from osr_lightning.images import tensors
from osr_lightning.images.pixels import ImageLike, prepared, to_pixels
from osr_lightning.models.modes import evaluating
from osr_lightning.models.places import Places, find_places
from osr_lightning.models.sampling import PENULTIMATE, LogitSampler, Sampled
from osr_lightning.recogniser.examples import Examples
from osr_lightning.recogniser.explain import (
    enlarged,
    nearest,
    parts_of,
    scored_windows,
    some_of,
    unusual_map,
    usual_differences,
    why_no_nearest,
)
from osr_lightning.recogniser.explanation import Explanation, Neighbour, UnusualMap
from osr_lightning.recogniser.known_images import KnownImages
from osr_lightning.recogniser.prediction import (
    AT_ONCE,
    OUTPUTS,
    Answers,
    Predicting,
    batch_size,
    check_prepared,
    to_prediction,
)
from osr_lightning.scoring.decision import is_unknown
from osr_lightning.scoring.detectors import DETECTORS, LOG_PROBABILITY, Detector
from osr_lightning.scoring.scores import SCORES, Samples, mean_log_probability, summarise
from osr_lightning.scoring.sweep import Floats
from osr_lightning.scoring.threshold import Threshold

_AT_LEAST = 16  # images that an accelerator takes about as long for as for one


class Recogniser(nn.Module, Predicting):
    """Asks a sampler about images, and decides by score and threshold.

    With shared masks nothing is changed by asking: several threads may use one recogniser.

    Args:
        sampler: of the network.
        spec: of the known images.
        threshold: the score that decides, and the calibration of every score.
        detectors: names of the scores that are fitted to training images.

    Attributes:
        examples: pictures of known classes to try it with; no answer depends on them.
        known_images: what it keeps of those it was made of, for `osr extend` and `osr explain`; None where
            nothing is kept. No answer depends on them.
    """

    def __init__(
        self, sampler: LogitSampler, spec: DataSpec, threshold: Threshold, detectors: Sequence[str] = ()
    ) -> None:
        super().__init__()
        self.sampler = sampler
        self.spec = spec
        self.threshold = threshold
        self.examples: Examples = {}
        self.known_images: KnownImages | None = None
        self._usual: dict[str, list[Floats]] = {}  # by score
        # the deciding score first exists once its detector does
        fitted = [name for name in DETECTORS if name in (threshold.score, *detectors)]
        self.detectors = nn.ModuleDict({name: DETECTORS[name].of(sampler) for name in fitted})

    __repr__ = Predicting.__repr__  # its modules are `sampler`'s

    @property
    def score_names(self) -> list[str]:
        """All scores that `describe` gives."""
        return [*SCORES, *self._fitted()]

    @property
    def every_detector(self) -> dict[str, Detector]:
        """``detectors`` by name, as what they are."""
        return {name: one for name, one in self.detectors.items() if isinstance(one, Detector)}

    def _fitted(self) -> dict[str, Detector]:
        return {name: one for name, one in self.every_detector.items() if one.fitted}

    def decide_by(self, score: str | None = None, threshold: float | None = None) -> None:
        """Decide by another score, by its own threshold, or by a threshold given as a number.

        Raises:
            UserError: where there is no such score, or it has no threshold and none is given.
        """
        if score in DETECTORS and score not in self.score_names:
            raise not_fitted(score)
        if score is not None and score not in self.score_names:
            raise UserError(f"there is no score {score!r}; the scores are {', '.join(self.score_names)}")
        if threshold is not None and not math.isfinite(threshold):
            raise UserError(f"a threshold is a finite number, not {threshold}")
        if score is not None and score != self.threshold.score:
            self.threshold.score, self.threshold.fixed = score, None
        if threshold is not None:
            self.threshold.fixed = threshold
        _ = self.threshold.value  # complains where there is none

    def standardise(self, images: Tensor) -> Tensor:
        """Pixels ``(B, C, H, W)`` uint8 -> the network's input, in the precision of its weights.

        A backbone's features ``(B, D)`` in their place stay as they are.
        """
        _one_thread_after_fork()  # whatever is computed begins here
        weight = next(self.sampler.parameters())
        if images.ndim == 2:
            return images.to(weight.dtype)
        return tensors.standardise(images, self.spec.mean, self.spec.std).to(weight.dtype)

    def forward(self, images: Tensor, threshold: Tensor | None = None) -> Answers:
        """Decide on pixels ``(B, C, H, W)`` uint8, of the spec's channels and size.

        Args:
            images: on the recogniser's device.
            threshold: ``()`` float64, in place of the calibrated one.

        Returns:
            Tensors; of the scores the deciding one alone.

        Raises:
            UserError: where the score needs a fit that is missing, or has no threshold yet.
        """
        name = self.threshold.score
        detector = self._fitted().get(name)
        if detector is None and name in DETECTORS:
            raise not_fitted(name)
        sampled = self.sampler(self.standardise(images), () if detector is None else detector.layers)
        samples = Samples(sampled.logits)
        log_probability = mean_log_probability(samples)
        if detector is None:
            score = SCORES[name](samples)
        else:
            score = detector({**sampled.features, LOG_PROBABILITY: log_probability})
        score = self.threshold.by_class(name, score, log_probability.argmax(dim=-1))
        return self._decide(log_probability, score, self.threshold.value if threshold is None else threshold)

    def _decide(self, log_probability: Tensor, score: Tensor, threshold: float | Tensor) -> Answers:
        confidence, predicted = log_probability.max(dim=-1)
        unknown = is_unknown(score, threshold)
        return Answers(
            prediction=predicted.where(~unknown, self.spec.num_classes),
            unknown=unknown,
            score=score,
            confidence=confidence.exp(),
            probabilities=log_probability.exp(),
            scores={self.threshold.score: score},
        )

    @torch.no_grad()
    def describe(self, images: Tensor) -> dict[str, Tensor]:
        """All that is known of pixels ``(B, C, H, W)`` uint8; `forward` is what gradients go through.

        Returns:
            ``predicted_class`` ``(B,)`` int64 before any rejection; ``log_probability`` ``(B, K)`` float64,
            of the mean over samples; ``confidence`` ``(B,)`` float64, of the predicted class; ``logits``
            ``(B, K)`` float32, mean over samples; and ``score/NAME`` ``(B,)`` float64 for every score and
            every fitted detector, as `Threshold.by_class` has it compared.
        """
        fitted = self._fitted()
        sampled = self.sampler(self.standardise(images), _layers(fitted.values()))
        rows = summarise(sampled.logits)
        seen = {**sampled.features, LOG_PROBABILITY: rows[LOG_PROBABILITY]}
        rows |= {f"score/{name}": detector(seen) for name, detector in fitted.items()}
        confidence, predicted = rows["log_probability"].max(dim=-1)
        for name in self.score_names:
            rows[f"score/{name}"] = self.threshold.by_class(name, rows[f"score/{name}"], predicted)
        return rows | {"predicted_class": predicted, "confidence": confidence.exp()}

    def _describe_evenly(self, images: Tensor) -> dict[str, Tensor]:
        """`describe` for any number of images on the CPU, in batches of one size, filled up if need be.

        The same kernels then work on every image, so that its row does not depend on how many come with it;
        nor does it depend on the mode that the module is in.
        """
        device = next(self.parameters()).device
        size = batch_size(self.spec.input_shape, AT_ONCE)
        if device.type != "cpu":
            size = max(size, _AT_LEAST)
        parts = []
        with evaluating(self):
            for batch in torch.split(images, size):
                filled = torch.cat([batch, batch.new_zeros(size - len(batch), *batch.shape[1:])])
                rows = self.describe(filled.to(device))
                parts.append({name: value[: len(batch)].cpu() for name, value in rows.items()})
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def look(self, images: Tensor, *, probability: bool = True) -> dict[str, Tensor]:
        """What detectors are fitted to: the layers that all of them ask for, and the log of the mean.

        Args:
            images: ``(B, C, H, W)`` uint8.
            probability: whether to work out the latter.
        """
        self._usual.clear()  # the detectors are about to change
        sampled = self.sampler(self.standardise(images), _layers(self.every_detector.values()))
        answers = {LOG_PROBABILITY: mean_log_probability(sampled.logits)} if probability else {}
        return {**sampled.features, **answers}

    def prepare(self, image: ImageLike) -> NDArray[np.uint8]:
        """Any one image -> ``(C, size, size)``; see `to_pixels` for what it may be.

        Raises:
            UserError: if it is no image or cannot be read.
        """
        if self.spec.resize is not None:
            return prepared(image, self.spec)
        size, channels = self.spec.image_size, self.spec.channels
        pixels = torch.from_numpy(to_pixels(image, size))[None]
        return tensors.to_uint8_images(pixels, size=size, channels=channels)[0].numpy()

    @torch.inference_mode()
    def answer(self, images: NDArray[np.uint8]) -> Answers:
        """What is said of prepared images ``(N, C, size, size)``.

        Raises:
            UserError: for images that are not prepared; or where the deciding score has no fit or no
                threshold yet.
        """
        check_prepared(images, self.spec.input_shape)
        if self.threshold.score not in self.score_names:
            raise not_fitted(self.threshold.score)
        rows = self._describe_evenly(torch.from_numpy(images))
        score = rows[f"score/{self.threshold.score}"]
        decided = self._decide(rows[LOG_PROBABILITY], score, self.threshold.value)
        arrays = {name: getattr(decided, name).numpy() for name in OUTPUTS}
        return Answers(**arrays, scores={name: rows[f"score/{name}"].numpy() for name in self.score_names})

    def explain(self, image: ImageLike) -> Explanation:
        """Why one image is answered as it is: the score's parts, known images that are near, and a map.

        Args:
            image: see `to_pixels`.

        Raises:
            UserError: if it is no image or cannot be read; or where the deciding score has no fit or no
                threshold yet.
        """
        file = str(image) if isinstance(image, (str, os.PathLike)) else None
        if file is not None and os.path.isdir(os.path.expanduser(file)):
            raise UserError(f"explain takes one image, and {file} is a folder; predict takes folders")
        return self.explain_pixels(self.prepare(image), file)

    @torch.inference_mode()
    def explain_pixels(
        self, pixels: NDArray[np.uint8], file: str | None = None, *, with_map: bool = True
    ) -> Explanation:
        """The same of a prepared image ``(C, size, size)``.

        Args:
            pixels: of the image.
            file: where it was read from.
            with_map: whether to work out the map, which takes most of the time.

        Raises:
            UserError: see `explain`.
        """
        answers = self.answer(pixels[None])
        prediction = to_prediction(self, answers, 0, file)
        name = self.threshold.score
        detector = self._fitted().get(name)
        layers = () if detector is None else detector.layers
        no_nearest = why_no_nearest(self.known_images, self.sampler)
        asked = layers if no_nearest else tuple(dict.fromkeys((*layers, PENULTIMATE)))
        with evaluating(self):
            image = self.standardise(torch.from_numpy(pixels[None]).to(next(self.parameters()).device))
            sampled = self.sampler(image, asked)
            log_probability = mean_log_probability(sampled.logits)
            seen = {**sampled.features, LOG_PROBABILITY: log_probability}

            found: UnusualMap | str = "it was not asked for"
            if with_map:
                places = find_places(self.sampler, image, layers)
                usual = () if places is None or no_nearest else self._usual_map(places, layers)
                score = partial(self._score_of_places, own=log_probability)
                found = unusual_map(places, image, layers, score, usual)
            known: tuple[Neighbour, ...] = ()
            if not no_nearest and self.known_images is not None:
                features = sampled.features[PENULTIMATE]
                known = nearest(self.known_images, self.sampler, features, self.spec.classes)
            record, p = self.threshold.record, prediction.p_value
            resembled = answers.probabilities.argmax(1)
            nothing = torch.zeros(1, dtype=torch.float64)
            shift = float(self.threshold.by_class(name, nothing, torch.from_numpy(resembled)))
            parts = parts_of(name, detector, seen, prediction.score, record, p, shift)
        return Explanation(
            prediction=prediction,
            score=name,
            parts=parts,
            resembles=self.spec.classes[int(resembled[0])],
            probabilities=answers.probabilities[0],
            nearest=known,
            no_nearest=no_nearest,
            map=None if isinstance(found, str) else found,
            no_map=found if isinstance(found, str) else "",
            pixels=pixels,
        )

    def _score_of_places(self, found: Sampled, own: Tensor) -> Tensor:
        """The deciding score ``(V,)`` of some places of an image, and the log p ``(1, K)`` of all of it."""
        name = self.threshold.score
        if (detector := self._fitted().get(name)) is None:
            return SCORES[name](Samples(found.logits))
        # the distance is that to the image's own class, whatever its places look like
        own = own.expand(found.logits.shape[1], -1)
        scores: Tensor = detector({**found.features, LOG_PROBABILITY: own})
        return scores

    def _usual_map(self, places: Places, layers: Sequence[str]) -> Sequence[Floats]:
        """What known images have at their places by the deciding score; worked out once."""
        name = self.threshold.score
        if name not in self._usual and self.known_images is not None:
            some, weight = some_of(self.known_images), next(self.parameters())
            pictures = self.standardise(enlarged(some.thumbnails, self.spec).to(weight.device))
            owns = mean_log_probability(self.sampler(some.features.to(weight)).logits)
            found = []
            for image, own in zip(torch.split(pictures, 1), torch.split(owns, 1), strict=True):
                score = partial(self._score_of_places, own=own)
                found.append(scored_windows(places, image, layers, score))
            self._usual[name] = usual_differences(found)
        return self._usual.get(name, ())


@functools.cache
def _one_thread_after_fork() -> None:
    """Let torch work with one thread in processes that are forked from now on.

    Its threads stay in this process: one that is forked once they have worked would wait for them for ever.
    """
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))


def _layers(detectors: Iterable[Detector]) -> tuple[str, ...]:
    """What to ask of the sampler, each once."""
    return tuple(dict.fromkeys(layer for detector in detectors for layer in detector.layers))


def not_fitted(score: str) -> NotCalibrated:
    """What is wrong where a fitted score has nothing to score with yet."""
    return NotCalibrated(
        f"the score {score} is fitted after the training, and is not yet: calibrate the checkpoint (osr "
        "calibrate --ckpt_path CKPT; in Python OpenSetTrainer().calibrate(model, datamodule, CKPT)), or "
        "decide by a score that needs no fit, such as generalized_entropy",
        score,
    )
