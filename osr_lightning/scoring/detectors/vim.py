"""The virtual logit."""

from __future__ import annotations

from torch import Tensor

from osr_lightning.models.sampling import LOGITS, PENULTIMATE
from osr_lightning.scoring.detectors.base import Activations, Buffers, Known
from osr_lightning.scoring.detectors.residual import Residual


class ViM(Residual):
    """``alpha ||R'(f - o)|| - log sum_k exp z_k``, any real number: a virtual logit against the real ones.

    ``||R'(f - o)||`` is that of `Residual`, with its argument; ``alpha`` makes the mean virtual logit of
    training images equal the mean of their largest logits. The paper's score is the softmax probability of
    the virtual logit; this is its log-odds, which rank the same and do not tie.
    Wang et al., ViM: Out-Of-Distribution with Virtual-logit Matching, CVPR 2022.

    Deviation: the mean residual that ``alpha`` divides by is at least 1e-6 of the mean length of ``f - o``,
    for training features that leave none.
    """

    name = "vim"
    state = (*Residual.state, "alpha")
    alpha: Tensor  # ()

    def _fit(self, known: Known) -> Buffers:
        space = super()._fit(known)
        centered = known.seen[PENULTIMATE] - space["origin"]
        floor = 1e-6 * centered.norm(dim=1).mean()
        length = (centered @ space["residual"]).norm(dim=1).mean().clamp(min=floor)
        return space | {"alpha": known.seen[LOGITS].amax(1).mean() / length}

    def _score(self, seen: Activations) -> Tensor:
        return self.alpha * super()._score(seen) - seen[LOGITS].logsumexp(1)
