"""Our scores beside those of pytorch-ood, on the same logits and features of real images.

Trains the study's baseline on the six MNIST digits of ARPL's first split, and scores its test digits, known
and unknown, by both. A row has their rank correlation and both AUROCs; what differs has its reason. Writes
the section of docs/results.md.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytorch_ood.detector as ood
import torch
from common import (
    OTHERS_CODE,
    Target,
    finish,
    new_parser,
    print_table,
    quiet_lightning,
    start,
    table_lines,
    write_section,
)
from lightning import seed_everything
from scipy.stats import spearmanr
from torch import Tensor, nn
from torchmetrics.functional.classification import binary_auroc

from osr_lightning import BaselineClassifier, OpenSetDataModule, OpenSetTrainer
from osr_lightning.models.sampling import LOGITS, PENULTIMATE
from osr_lightning.scoring.detectors import DETECTORS, LOG_PROBABILITY
from osr_lightning.scoring.scores import SCORES
from osr_lightning.training.callbacks.evaluator import Evaluator

KNOWN = (2, 4, 5, 9, 8, 3)  # ARPL's first split of MNIST
POINTS = 0.1  # of AUROC in percent, that may lie between two codes of one score
LIMITED = "probabilities are clamped to [1e-7, 1 - 1e-7] in float32, where confident images tie"
SAME = "-"
REASONS = {
    "msp": "theirs is float32, in which probabilities near 1 tie; ours adds up the other classes",
    "entropy": "theirs is float32; p log p is NaN where a probability underflows to 0",
    "generalized_entropy": LIMITED,
    "mahalanobis": "theirs is half of it, times N; it adds 1e-6 to the sums, ours 1e-6 of the mean variance",
    "relative_mahalanobis": "the same",
    "knn": "ours keeps 10,000 of the training images",
    "openmax": "ours is the log-odds of theirs, which do not tie; theirs are fitted to images named rightly",
}
SETTINGS: dict[str, dict[str, Any]] = {"knn": {"k": 10}, "vim": {"dimension": 64}, "nci": {"alpha": 0.001}}


class Seen:
    """What a network says of images.

    Attributes:
        features: ``(N, D)``.
        logits: ``(N, K)``.
        labels: ``(N,)``, ``K`` for unknown ones.
    """

    def __init__(self, features: Tensor, logits: Tensor, labels: Tensor) -> None:
        self.features, self.logits, self.labels = features, logits, labels

    def mapping(self) -> dict[str, Tensor]:
        """As our detectors take it."""
        log_probability = self.logits.double().log_softmax(1)
        return {PENULTIMATE: self.features, LOGITS: self.logits, LOG_PROBABILITY: log_probability}


Scores = Mapping[str, Tensor]


def ours(train: Seen, test: Seen, layer: nn.Linear) -> Scores:
    """Score -> values of the test images, of each that pytorch-ood has too."""
    found = {}
    for name in theirs_of(layer):
        if name in SCORES:
            found[name] = SCORES[name](test.logits[None])
            continue
        detector = DETECTORS[name](**SETTINGS.get(name, {}))
        detector.fit(train.mapping(), train.labels, layer)
        found[name] = detector(test.mapping())
    return found


def theirs_of(layer: nn.Linear) -> dict[str, Callable[[Seen, Seen], Tensor]]:
    """Score -> what makes pytorch-ood's of training and test images."""
    weight, bias = layer.weight.detach(), layer.bias.detach()

    def fitted(detector: Any, *, labels: bool = True) -> Callable[[Seen, Seen], Tensor]:  # noqa: ANN401
        def score(train: Seen, test: Seen) -> Tensor:
            given = (train.features, train.labels) if labels else (train.features,)
            return detector.fit_features(*given).predict_features(test.features)

        return score

    def openmax(train: Seen, test: Seen) -> Tensor:
        right = train.logits.argmax(1) == train.labels
        detector = ood.OpenMax(None, tailsize=20, alpha=min(10, train.logits.shape[1]))
        detector.fit_logits(train.logits[right].double(), train.labels[right])
        return detector.predict_logits(test.logits.double())

    dimension, alpha = SETTINGS["vim"]["dimension"], SETTINGS["nci"]["alpha"]
    return {
        "msp": lambda train, test: ood.MaxSoftmax.score(test.logits),
        "entropy": lambda train, test: ood.Entropy.score(test.logits),
        "max_logit": lambda train, test: ood.MaxLogit.score(test.logits),
        "energy": lambda train, test: ood.EnergyBased.score(test.logits),
        "generalized_entropy": lambda train, test: ood.GEN.score(test.logits),
        "mahalanobis": fitted(ood.Mahalanobis(None)),
        "relative_mahalanobis": fitted(ood.RMD(None)),
        "knn": fitted(ood.KNN(None, k=SETTINGS["knn"]["k"])),
        "vim": fitted(ood.ViM(None, dimension, weight, bias)),
        "fdbd": fitted(ood.fDBD(None, layer), labels=False),
        "nci": fitted(ood.NCI(None, layer, alpha), labels=False),
        "openmax": openmax,
    }


def compare(train: Seen, test: Seen, layer: nn.Linear) -> dict[str, dict[str, float]]:
    """Score -> ``correlation`` of ranks, both ``auroc`` in percent, and how many of their scores are NaN."""
    unknown = test.labels == test.logits.shape[1]
    found = {}
    mine = ours(train, test, layer)
    for name, make in theirs_of(layer).items():
        theirs = make(train, test).detach().double()
        finite = ~theirs.isnan()
        own, truth = mine[name][finite], unknown[finite].int()
        found[name] = {
            "correlation": float(spearmanr(own.numpy(), theirs[finite].numpy()).statistic),
            "ours": 100 * _auroc(own, truth),
            "theirs": 100 * _auroc(theirs[finite], truth),
            "nan": int((~finite).sum()),
        }
    return found


def _auroc(scores: Tensor, unknown: Tensor) -> float:
    """Of any range: torchmetrics takes values within [0, 1] as they are, so ranks are given, ties shared."""
    _, rank = torch.unique(scores, return_inverse=True)
    return float(binary_auroc(rank.double() / max(1, int(rank.max())), unknown))


@torch.no_grad()
def look(model: BaselineClassifier, images: Tensor, labels: Tensor) -> Seen:
    recogniser = model.trained.eval()
    parts = []
    for batch in torch.split(images[:], 1000):
        sampled = recogniser.sampler(recogniser.standardise(batch), (PENULTIMATE,))
        parts.append((sampled.features[PENULTIMATE], sampled.logits[0]))
    features, logits = (torch.cat(part) for part in zip(*parts, strict=True))
    return Seen(features, logits, labels)


def section(found: Mapping[str, Mapping[str, float]]) -> list[str]:
    lines = [
        "Our scores and pytorch-ood's on the same logits and features: the study's plain network, six digits",
        "known (ARPL's first split of MNIST), AUROC times 100 against the other four",
        "(`python benchmarks/others_code.py --data-root DATA`).",
        "",
    ]
    rows = []
    for name, row in found.items():
        reason = REASONS.get(name, SAME)
        if row["nan"]:
            reason += f" ({row['nan']:,} images, which are left out)"
        numbers = f"{row['correlation']:.5f}", f"{row['ours']:.2f}", f"{row['theirs']:.2f}"
        rows.append((f"`{name}`", *numbers, reason))
    return lines + table_lines(("score", "rank correlation", "ours", "theirs", "why they differ"), rows)


def main() -> None:
    parser = new_parser(__doc__, "others_code", repeats=None)
    parser.add_argument("--known", default="mnist", help="source of the digits")
    parser.add_argument("--epochs", type=int, default=15)
    page = Path(__file__).parents[1] / "docs" / "results.md"
    parser.add_argument("--page", type=Path, default=page, help="whose section is written")
    arguments = parser.parse_args()
    machine = start(arguments)
    quiet_lightning()
    seed_everything(0, verbose=False)
    data = OpenSetDataModule(
        arguments.known, root=str(arguments.data_root), known_classes=KNOWN, unknown={"rest": "rest"}
    )
    model = BaselineClassifier("BaselineCNN", score="generalized_entropy", schedule="one_cycle")
    with tempfile.TemporaryDirectory() as folder:
        OpenSetTrainer(
            default_root_dir=folder,
            accelerator="cpu",
            max_epochs=arguments.epochs,
            enable_progress_bar=False,
            callbacks=[Evaluator(figures=False, projector_points=0, bootstrap=10)],
        ).run(model, data)
        training, _ = data.tables.load_training()
        test = data.tables.load_test()
        layer = model.trained.sampler.last_layer
        found = compare(
            look(model, training.images, training.labels), look(model, test.images, test.labels), layer
        )
    rows = [[name, *(f"{value:.5g}" for value in row.values())] for name, row in found.items()]
    print_table("AUROC in percent", ["score", "rank correlation", "ours", "theirs", "NaN"], rows)
    write_section(arguments.page, OTHERS_CODE, section(found))
    targets = [
        Target(f"{name}: points between the codes", abs(row["ours"] - row["theirs"]), POINTS, at_least=False)
        for name, row in found.items()
    ]
    finish(arguments, machine, {"scores": found}, targets)


if __name__ == "__main__":
    main()
