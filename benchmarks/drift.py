"""How often ``osr drift`` gives alarm where nothing has changed, and how soon where something has.

By simulation: no data, no network.
"""

from __future__ import annotations

import argparse

import numpy as np
from scipy.stats import binomtest

from osr_lightning.deploy.drift import distribution_test, drift, share_test
from osr_lightning.deploy.sequential import sequential
from osr_lightning.scoring.calibration import Calibration, order_statistics
from osr_lightning.scoring.quantile import known_quantile

DAYS = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=2000, help="calibration sets of each line")
    parser.add_argument("--share", type=float, default=0.05, help="of known images that are to be rejected")
    parser.add_argument("--alpha", type=float, default=0.01, help="of each test")
    parser.add_argument("--sequential", action="store_true", help="look every day, at --images a day")
    parser.add_argument("--images", type=int, default=20, help="a day")
    options = parser.parse_args()
    if options.sequential:
        days_to_alarm(options)
        return
    print(f"{'n':>6} {'m':>7} {'binomial':>9} {'beta-binomial':>14} {'Kolmogorov-Smirnov':>19}  (% alarms)")
    for images in (250, 1000, 6000):
        for predictions in (100, 1000, 10000):
            rates = 100 * np.mean(list(alarms(images, predictions, options)), axis=0)
            print("{:>6} {:>7} {:>9.1f} {:>14.1f} {:>19.1f}".format(images, predictions, *rates), flush=True)


def alarms(images: int, predictions: int, options: argparse.Namespace):  # noqa: ANN201
    """For each draw, whether each of the three tests gives alarm."""
    rng = np.random.default_rng(0)
    for _ in range(options.draws):
        # a rank test: any continuous distribution gives the same
        known, new = rng.random(images), rng.random(predictions)
        threshold = known_quantile(known, options.share)
        rejected, among = int((new > threshold).sum()), int((known > threshold).sum())
        plain = binomtest(rejected, predictions, options.share).pvalue <= options.alpha
        exact = share_test(rejected, predictions, among, images, options.alpha).alarm
        yield plain, exact, distribution_test(order_statistics(known), new, options.alpha).alarm


# what new images' scores become where something changes: of the known ones, standard normal
CHANGES = {
    "nothing": lambda known, rng: known,
    "5% unknown": lambda known, rng: np.where(rng.random(known.shape) < 0.05, known + 4, known),
    "20% unknown": lambda known, rng: np.where(rng.random(known.shape) < 0.2, known + 4, known),
    "all +0.5": lambda known, rng: known + 0.5,
    "all -0.5": lambda known, rng: known - 0.5,
}


def days_to_alarm(options: argparse.Namespace) -> None:
    """Of deployments that are looked at every day: alarms in 1,000 days, and days until then.

    Beside ``osr drift --sequential`` the two tests of ``osr drift`` on each day's images alone.
    """
    print(f"alarms in % of {options.draws} deployments, and days from the change to it, median")
    print(f"{'n':>6} {'change':>12} {'on day':>7} {'sequential':>16} {'every day anew':>16}")
    for images in (250, 1000):
        for change, make in CHANGES.items():
            for begin in (0,) if change == "nothing" else (30, 300):
                rng, found = np.random.default_rng(0), []
                for _ in range(options.draws):
                    calibration = calibration_of(rng.normal(size=images), options.share)
                    scores = rng.normal(size=(DAYS, options.images))
                    scores[begin:] = make(scores[begin:], rng)
                    bets = sequential(calibration, scores.ravel(), [("all", scores.size)], options.alpha)
                    first = (
                        DAYS * options.images if bets.alarm_at is None else bets.alarm_at - 1
                    ) // options.images
                    anew = (
                        day for day in range(DAYS) if drift(calibration, scores[day], options.alpha).alarm
                    )
                    found.append((first, next(anew, DAYS)))
                text = [column(np.array(days), begin) for days in zip(*found, strict=True)]
                print(f"{images:>6} {change:>12} {begin:>7} {text[0]:>16} {text[1]:>16}", flush=True)


def column(first: np.ndarray, begin: int) -> str:
    """The share with an alarm, and the median number of days from the change to those not before it."""
    right = first[(first >= begin) & (first < DAYS)]
    days = f"{np.median(right) - begin + 1:>5.0f} days" if begin and len(right) else ""
    return f"{100 * np.mean(first < DAYS):.1f}% {days}"


def calibration_of(known: np.ndarray, share: float) -> Calibration:
    """The record that calibration by ``known_quantile`` makes of known scores."""
    threshold = known_quantile(known, share)
    return Calibration(
        threshold,
        "known_quantile",
        share,
        "simulated",
        False,
        len(known),
        "",
        rejected_known=float(np.mean(known > threshold)),
        known_scores=order_statistics(known),
    )


if __name__ == "__main__":
    main()
