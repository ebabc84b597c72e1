"""The notebook's protocol in plain PyTorch: what benchmarks/study.py compares our code with.

Nothing here is ours: torchvision's data sets, PIL transforms for each image each time it is read, DataLoaders
without workers, a forward pass of the whole network for every sample of MC dropout, and a threshold search
that evaluates the combined test set again in every trial. Three things differ from the notebook, none of
them to its cost: plain loops take the place of Lightning, the validation loss is that of the mean
probability, and the last evaluation keeps the dropout on.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import optuna
import torch
import torch.nn.functional as F
from sklearn import metrics
from sklearn.manifold import TSNE
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, random_split
from torchvision import transforms
from torchvision.datasets import MNIST, ImageFolder

mpl.use("Agg")
from matplotlib import pyplot as plt

UNKNOWN = 10
PASSES = 10
TRIALS = 20

Loader = DataLoader[Any]
History = dict[str, list[float]]
seconds: dict[str, float] = {}


class CNN(nn.Module):
    """The study's network; with a dropout rate, channels are dropped before the second pooling."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 16, 5), nn.Conv2d(16, 32, 5)
        self.dropout = nn.Dropout2d(dropout)
        self.fc1, self.fc2 = nn.Linear(512, 120), nn.Linear(120, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(B, 1, 28, 28)`` -> logits ``(B, 10)``."""
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(self.dropout(F.relu(self.conv2(x))), 2)
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Add to the seconds of a phase."""
    begin = time.perf_counter()
    yield
    seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - begin


def data_sets(root: Path, seed: int) -> dict[str, Dataset[Any]]:
    """Training, validation, test and combined test images."""
    normalise = [transforms.ToTensor(), transforms.Normalize(0.1307, 0.3081)]
    digits = transforms.Compose(normalise)
    photos = transforms.Compose([transforms.Grayscale(), transforms.Resize((28, 28)), *normalise])
    generator = torch.Generator().manual_seed(seed)
    train, val = random_split(MNIST(str(root), train=True, transform=digits), [48_000, 12_000], generator)
    test = MNIST(str(root), train=False, transform=digits)
    cifar = ImageFolder(str(root / "cifar10" / "test"), photos, target_transform=lambda _: UNKNOWN)
    # the draw of osr_lightning's data.unknown_fraction 0.2, so that both sides test the same images
    drawn = torch.randperm(len(cifar), generator=torch.Generator().manual_seed(seed))[: len(cifar) // 5]
    combined = ConcatDataset([test, Subset(cifar, drawn.sort().values.tolist())])
    return {"train": train, "val": val, "test": test, "combined": combined}


def predict(network: CNN, images: Tensor, passes: int) -> tuple[Tensor, Tensor]:
    """Mean probabilities and mean logits, of one deterministic pass or of many with dropout on."""
    network.train(passes > 1)
    with torch.no_grad():
        logits = torch.stack([network(images) for _ in range(passes)])
    return logits.softmax(-1).mean(0), logits.mean(0)


def fit(
    network: CNN, train: Loader, val: Loader, epochs: int, passes: int, max_batches: int | None
) -> History:
    """Train, validate every epoch, and end with the weights of the best one."""
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=10, gamma=0.5)
    history: History = {"train loss": [], "train accuracy": [], "val loss": [], "val accuracy": []}
    best: dict[str, Tensor] = {}
    for _ in range(epochs):
        network.train()
        rows = []
        for step, (images, labels) in enumerate(train):
            if step == max_batches:
                break
            optimizer.zero_grad()
            logits = network(images)
            loss = F.cross_entropy(logits, labels)
            loss.backward()
            optimizer.step()
            rows.append((loss.item(), (logits.argmax(-1) == labels).float().mean().item()))
        scheduler.step()
        checked = []
        for images, labels in val:
            probability, _ = predict(network, images, passes)
            loss = F.nll_loss(probability.clamp_min(1e-12).log(), labels)
            checked.append((loss.item(), (probability.argmax(-1) == labels).float().mean().item()))
        for name, values in zip(
            history, [*zip(*rows, strict=True), *zip(*checked, strict=True)], strict=True
        ):
            history[name].append(float(np.mean(values)))
        if history["val accuracy"][-1] == max(history["val accuracy"]):
            best = {name: value.clone() for name, value in network.state_dict().items()}
    network.load_state_dict(best)
    return history


def run_over(network: CNN, loader: Loader, passes: int) -> dict[str, np.ndarray]:
    """Label, predicted class, confidence and logits of every image."""
    rows = []
    for images, labels in loader:
        probability, logits = predict(network, images, passes)
        confidence, predicted = probability.max(-1)
        rows.append((labels, predicted, confidence, logits))
    columns = zip(("label", "predicted", "confidence", "logits"), zip(*rows, strict=True), strict=True)
    return {name: torch.cat(values).numpy() for name, values in columns}


def decide(found: dict[str, np.ndarray], threshold: float) -> np.ndarray:
    """The predicted class, or 10 where the confidence is below the threshold."""
    return np.where(found["confidence"] < threshold, UNKNOWN, found["predicted"])


def search_threshold(network: CNN, combined: Loader) -> optuna.Study:
    """20 trials, each of which runs over the whole combined test set."""

    def total_accuracy(trial: optuna.Trial) -> float:
        threshold = trial.suggest_float("threshold", 0.1, 0.9)
        found = run_over(network, combined, PASSES)
        return float((decide(found, threshold) == found["label"]).mean())

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=10))
    study.optimize(total_accuracy, n_trials=TRIALS)
    return study


def judge(found: dict[str, np.ndarray], threshold: float) -> dict[str, float]:
    """The study's numbers."""
    label, decision = found["label"], decide(found, threshold)
    unknown, rejected = label == UNKNOWN, decision == UNKNOWN
    return {
        "threshold": 1 - threshold,
        "known_accuracy": float((decision == label)[~unknown].mean()),
        "unknown_accuracy": float(rejected[unknown].mean()),
        "total_accuracy": float((decision == label).mean()),
        "binary_accuracy": float(metrics.accuracy_score(unknown, rejected)),
        "balanced_accuracy": float(metrics.balanced_accuracy_score(unknown, rejected)),
        "auroc": float(metrics.roc_auc_score(unknown, 1 - found["confidence"])),
        "auroc_of_decisions": float(metrics.roc_auc_score(unknown, rejected)),
    }


def draw(
    folder: Path,
    histories: dict[str, History],
    closed: dict[str, np.ndarray],
    found: dict[str, np.ndarray],
    study: optuna.Study,
) -> None:
    """Curves, confusion matrices, ROC and the search's history."""
    decision = decide(found, study.best_params["threshold"])
    unknown = found["label"] == UNKNOWN
    for name, history in histories.items():
        figure, axes = plt.subplots(1, 2, figsize=(10, 4))
        for axis, kind in zip(axes, ("loss", "accuracy"), strict=True):
            for stage in ("train", "val"):
                axis.plot(history[f"{stage} {kind}"], label=stage)
            axis.set(xlabel="epoch", ylabel=kind)
            axis.legend()
        figure.savefig(folder / f"{name}_curves.png")
    for name, truth, answer in (
        ("confusion_10", closed["label"], closed["predicted"]),
        ("confusion_11", found["label"], decision),
        ("confusion_2", unknown, decision == UNKNOWN),
    ):
        metrics.ConfusionMatrixDisplay.from_predictions(truth, answer).figure_.savefig(folder / f"{name}.png")
    for name, score in (("roc", 1 - found["confidence"]), ("roc_decisions", decision == UNKNOWN)):
        metrics.RocCurveDisplay.from_predictions(unknown, score).figure_.savefig(folder / f"{name}.png")
    optuna.visualization.matplotlib.plot_optimization_history(study).figure.savefig(folder / "search.png")
    plt.close("all")


def draw_tsne(folder: Path, found: dict[str, np.ndarray]) -> None:
    """All images by their logits, the unknown ones in black."""
    points = TSNE(random_state=0).fit_transform(found["logits"])
    unknown = found["label"] == UNKNOWN
    plt.figure(figsize=(8, 8))
    plt.scatter(*points[~unknown].T, c=found["label"][~unknown], cmap="tab10", s=2)
    plt.scatter(*points[unknown].T, c="black", s=2)
    plt.savefig(folder / "tsne.png")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--data-root", type=Path, default=Path("data"), help="folder of MNIST/ and cifar10/test/"
    )
    parser.add_argument("--epochs", type=int, default=15, help="epochs of both fits")
    parser.add_argument("--max-batches", type=int, help="training batches per epoch; all if not given")
    parser.add_argument("--tsne", action="store_true", help="embed all 12,000 images too")
    parser.add_argument("--seed", type=int, default=0, help="of weights, split and draws")
    parser.add_argument("--threads", type=int, help="torch's threads; torch's own choice if not given")
    parser.add_argument(
        "--output", type=Path, default=Path("notebook_protocol"), help="folder for results.json and figures"
    )
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    arguments.output.mkdir(parents=True, exist_ok=True)
    with phase("data"):
        sets = data_sets(arguments.data_root, arguments.seed)
        train = DataLoader(sets["train"], batch_size=128, shuffle=True)
        val = DataLoader(sets["val"], batch_size=128)
        test = DataLoader(sets["test"], batch_size=512)
        combined = DataLoader(sets["combined"], batch_size=1024)
    baseline, osr = CNN(), CNN(dropout=0.5)
    limits = arguments.epochs, arguments.max_batches
    histories = {}
    with phase("fit baseline"):
        histories["baseline"] = fit(baseline, train, val, limits[0], 1, limits[1])
    with phase("fit mc_dropout"):
        histories["mc_dropout"] = fit(osr, train, val, limits[0], PASSES, limits[1])
    with phase("threshold search"):
        study = search_threshold(osr, combined)
    with phase("evaluation"):
        closed = run_over(baseline, test, 1)
        found = run_over(osr, combined, PASSES)
        results: dict[str, Any] = {
            "baseline_accuracy": float((closed["predicted"] == closed["label"]).mean()),
            **judge(found, study.best_params["threshold"]),
            "best_trial": study.best_value,
        }
    with phase("figures"):
        draw(arguments.output, histories, closed, found, study)
    if arguments.tsne:
        with phase("t-SNE"):
            draw_tsne(arguments.output, found)
    results["seconds"] = seconds
    (arguments.output / "results.json").write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
