"""Small recognisers of seeded weights, and images that tell their answers apart."""

import torch
from torch import nn

from osr_lightning.data.batch import Batch
from osr_lightning.data_spec import DataSpec
from osr_lightning.recogniser.checkpoint import build
from osr_lightning.scoring.calibration import fixed_calibration
from osr_lightning.scoring.detectors import DETECTORS
from osr_lightning.training.calibration import fit_detectors

SIZE = 20
SPEC = DataSpec(("cat", "dog", "a,b\n=c"), 3, SIZE, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
SMALL = {"channels": [4, 8], "hidden": 16}
SINGLE = {"sampler": "single", "network": {"class_path": "BaselineCNN", "init_args": SMALL}}
SHARED = {
    "sampler": "mc_dropout",
    "network": {"class_path": "MCDropoutCNN", "init_args": SMALL},
    "num_samples": 5,
    "masks": "shared",
    "mask_seed": 3,
}
ENSEMBLE = {"sampler": "ensemble", "members": [SINGLE, SHARED, SINGLE]}
RECIPES = {"single": SINGLE, "mc_dropout": SHARED, "ensemble": ENSEMBLE}
SAMPLES = {"single": 1, "mc_dropout": 5, "ensemble": 7}


class DeepDropout(nn.Module):
    """Two dropouts inside and a batch norm: no fast path, and a mode that matters."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(in_channels, 6, 5, stride=3)
        self.norm = nn.BatchNorm2d(6)
        self.drop = nn.Dropout2d(0.4)
        self.hidden = nn.Linear(6 * 6 * 6, 12)
        self.again = nn.Dropout(0.3)
        self.last = nn.Linear(12, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.drop(self.norm(self.first(images)).relu())
        return self.last(self.again(self.hidden(features.flatten(1)).relu()))


def pictures(count: int, seed: int = 0) -> torch.Tensor:
    """uint8 images of differing brightness and contrast, so that answers differ."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(count, 3, SIZE, SIZE, generator=generator)
    values *= torch.rand(count, 3, 1, 1, generator=generator)
    return (values * 255).to(torch.uint8)


@torch.no_grad()
def make(recipe, score="entropy", network=None, spec=SPEC, **options):
    """A recogniser of seeded weights whose threshold rejects about half, far from any score."""
    torch.manual_seed(0)
    recogniser = build({**recipe, "score": score, **options}, spec, network=network).eval()
    for parameter in recogniser.parameters():
        parameter.mul_(1.5)  # else all answers are nearly the same
    if score in DETECTORS:
        fit(recogniser)
    # between two neighbours in the middle, so that rounding cannot turn a decision
    scores = recogniser.describe(pictures(64))[f"score/{score}"].sort().values
    middle = scores[24:41]
    at = int(middle.diff().argmax())
    recogniser.threshold.records[score] = fixed_calibration(float(middle[at : at + 2].mean()))
    return recogniser


def fit(recogniser, count=40):
    images, labels = pictures(count, seed=9), torch.arange(count) % 3
    nothing = torch.zeros(count, dtype=torch.int64)
    batches = [
        Batch(*parts)
        for parts in zip(*(t.split(16) for t in (images, labels, nothing, nothing)), strict=True)
    ]
    fit_detectors(recogniser, batches, batches)
    return images
