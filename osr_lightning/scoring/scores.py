"""Pure functions from sampled logits ``(S, B, K)`` to one score per image ``(B,)``, higher is more unknown.

All are worked out in float64, and from what the *other* classes add up to rather than from ``1 - max p``:
in float32, or after that subtraction, confident images tie at 0 and can no longer be ranked.

A new score is one function under `register`. In the formulas ``p_s`` is the softmax
of sample ``s``, ``p = mean_s p_s`` the predictive distribution, ``z`` the mean over samples of the logits,
and ``H(p) = -sum_k p_k log p_k`` the entropy in nats.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from typing import TypeAlias, TypeVar

import torch
from torch import Tensor

from osr_lightning.errors import UserError

_CHUNK = 2**17  # sampled logits that are summarised at once


class Samples:
    """Sampled logits, with what several scores share worked out once.

    Every function here takes plain logits or one of these.

    Args:
        logits: ``(S, B, K)``, any floating type and device; ``S >= 1``, ``B`` may be 0.

    Raises:
        ValueError: if the shape is not ``(S, B, K)``.
    """

    def __init__(self, logits: Tensor) -> None:
        if logits.ndim != 3 or logits.shape[0] == 0 or logits.shape[2] == 0:
            raise ValueError(f"Scores need sampled logits of shape (S, B, K), got {tuple(logits.shape)}.")
        # float64 first: autocast lowers float32, but leaves float64 alone
        self.logits = logits.double()

    @cached_property
    def mean_logits(self) -> Tensor:
        """``(B, K)``, the mean over samples."""
        return self.logits.mean(0)

    @cached_property
    def mean_log_probability(self) -> Tensor:
        """``(B, K)``, the log of the mean over samples of the softmax."""
        return self.logits.log_softmax(-1).logsumexp(0) - math.log(len(self.logits))

    @cached_property
    def entropy(self) -> Tensor:
        """``(B,)``, entropy of the mean."""
        return _entropy(self.mean_log_probability)

    @cached_property
    def expected_entropy(self) -> Tensor:
        """``(B,)``, mean of the entropies."""
        return _entropy(self.logits).mean(0)


Logits: TypeAlias = Tensor | Samples
Score = TypeVar("Score", bound=Callable[..., Tensor])
SCORES: dict[str, Callable[..., Tensor]] = {}


def register(function: Score) -> Score:
    """Make a function from logits to ``(B,)`` scores known under its name, everywhere."""
    SCORES[function.__name__] = function
    return function


def mean_log_probability(logits: Logits) -> Tensor:
    """Logits ``(S, B, K)`` -> ``log mean_s softmax(logits_s)``, ``(B, K)`` float64, never above rounding.

    What predictions (its arg max) and the negative log-likelihood are made of; it stays finite where the
    probability itself would underflow.
    """
    return _samples(logits).mean_log_probability


@register
def msp(logits: Logits) -> Tensor:
    """``1 - max_k p_k`` in [0, 1 - 1/K]: one minus the maximum softmax probability.

    Hendrycks and Gimpel, A Baseline for Detecting Misclassified and Out-of-Distribution Examples, ICLR 2017.
    """
    rest = _Relative(_samples(logits).mean_log_probability).rest
    return (rest / (1 + rest)).squeeze(-1)


@register
def entropy(logits: Logits) -> Tensor:
    """``H(p)`` in [0, log K]: the total uncertainty, entropy of the mean over samples.

    Gal, Uncertainty in Deep Learning, 2016, section 3.3.1.
    """
    return _samples(logits).entropy


@register
def expected_entropy(logits: Logits) -> Tensor:
    """``mean_s H(p_s)`` in [0, log K]: the uncertainty that the samples agree on (aleatoric).

    Depeweg et al., Decomposition of Uncertainty in Bayesian Deep Learning, ICML 2018.
    """
    return _samples(logits).expected_entropy


@register
def mutual_information(logits: Logits) -> Tensor:
    """``H(p) - mean_s H(p_s)`` in [0, log K]: how much the samples disagree (epistemic, BALD); 0 if S = 1.

    Houlsby et al., Bayesian Active Learning for Classification and Preference Learning, 2011.
    """
    samples = _samples(logits)
    if len(samples.logits) == 1:  # the rounding error of the difference would rank the images
        return torch.zeros_like(samples.entropy)
    return (samples.entropy - samples.expected_entropy).clamp(min=0)


@register
def variation_ratio(logits: Logits) -> Tensor:
    """``1 - (samples whose arg max is the modal class) / S`` in [0, 1 - 1/K]; 0 if S = 1.

    Freeman, Elementary Applied Statistics, 1965; for MC dropout, Gal 2016, section 3.3.1.
    """
    sampled = _samples(logits).logits
    votes = sampled.argmax(-1, keepdim=True) == torch.arange(sampled.shape[-1], device=sampled.device)
    return 1 - votes.sum(0).amax(-1).double() / len(sampled)  # (S, B, K) -> (B, K) -> (B,)


@register
def max_logit(logits: Logits) -> Tensor:
    """``-max_k z_k``, any real number.

    Hendrycks et al., Scaling Out-of-Distribution Detection for Real-World Settings, ICML 2022.
    """
    return -_samples(logits).mean_logits.amax(-1)


@register
def energy(logits: Logits, temperature: float = 1.0) -> Tensor:
    """``-T log sum_k exp(z_k / T)``, any real number.

    Liu et al., Energy-based Out-of-distribution Detection, NeurIPS 2020.

    Raises:
        UserError: if ``temperature`` (``T``) is not positive.
    """
    if not temperature > 0:
        raise UserError(f"temperature must be positive, got {temperature}.")
    return -temperature * (_samples(logits).mean_logits / temperature).logsumexp(-1)


@register
def generalized_entropy(logits: Logits, gamma: float = 0.1, top: int = 100) -> Tensor:
    """GEN: ``sum_k p_k^gamma (1 - p_k)^gamma`` over the ``min(top, K)`` likeliest classes, 0 or more.

    The paper negates it, since its scores are high for known images; defaults are the paper's.
    Liu, Lochman and Zach, GEN: Pushing the Limits of Softmax-Based Out-of-Distribution Detection, CVPR 2023.

    Raises:
        UserError: if ``gamma`` is not in (0, 1), or ``top`` is below 1.
    """
    if not 0 < gamma < 1:
        raise UserError(f"gamma must lie in (0, 1), got {gamma}.")
    if top < 1:
        raise UserError(f"top must be at least 1, got {top}.")
    relative = _Relative(_samples(logits).mean_log_probability)
    exps = relative.exps.topk(min(top, relative.exps.shape[-1]), dim=-1).values
    # p (1 - p) = e (E - e) / E^2 with E = 1 + rest; for the likeliest class E - e is rest, nothing cancels
    others = torch.cat([relative.rest, 1 + relative.rest - exps[..., 1:]], dim=-1)
    return (exps * others / (1 + relative.rest) ** 2).pow(gamma).sum(-1)


def all_scores(logits: Logits) -> dict[str, Tensor]:
    """Logits ``(S, B, K)`` -> every score of `SCORES`, ``(B,)`` float64 each, sharing the work."""
    samples = _samples(logits)
    return {name: function(samples) for name, function in SCORES.items()}


def summarise(logits: Tensor) -> dict[str, Tensor]:
    """Logits ``(S, B, K)`` -> all that is kept of the samples of ``B`` images.

    Works on a few images at a time: the float64 temporaries of many samples then stay in cache, and a large
    batch does not fragment the memory.

    Returns:
        ``log_probability`` ``(B, K)`` float64, the log of the mean over samples of the softmax; ``logits``
        ``(B, K)`` float32, their mean; and ``score/NAME`` ``(B,)`` float64 for every score of `SCORES`.
    """
    parts = []
    for chunk in torch.split(logits, max(1, _CHUNK // (logits.shape[0] * logits.shape[2])), dim=1):
        samples = Samples(chunk)
        parts.append(
            {
                "log_probability": samples.mean_log_probability,
                "logits": samples.mean_logits.float(),
                **{f"score/{name}": value for name, value in all_scores(samples).items()},
            }
        )
    return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}


def _samples(logits: Logits) -> Samples:
    return logits if isinstance(logits, Samples) else Samples(logits)


class _Relative:
    """``exp(logits)`` relative to the largest, and the sum of all but that one.

    The largest is exactly 1. Left out of the sum, it cannot swallow the others: ``1 + 1e-20`` is 1 in
    float64, ``1e-20`` is not 0.
    """

    def __init__(self, logits: Tensor) -> None:
        peak, argmax = logits.max(-1, keepdim=True)
        self.shifted = logits - peak  # (..., K), at most 0
        self.exps = self.shifted.exp()  # (..., K) in [0, 1]
        self.rest = self.exps.scatter(-1, argmax, 0.0).sum(-1, keepdim=True)  # (..., 1)


def _entropy(logits: Tensor) -> Tensor:
    # H = log(1 + rest) - sum p_k shifted_k: both terms are positive, so nothing cancels for confident images
    relative = _Relative(logits)
    dot = (relative.exps * relative.shifted).sum(-1, keepdim=True)
    return (relative.rest.log1p() - dot / (1 + relative.rest)).squeeze(-1)
