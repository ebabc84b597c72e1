"""How often ``osr drift`` gives alarm where nothing has changed, by simulation: no data, no network."""

from __future__ import annotations

import argparse

import numpy as np
from scipy.stats import binomtest

from osr_lightning.deploy.drift import distribution_test, share_test
from osr_lightning.scoring.calibration import known_quantile, order_statistics


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=2000, help="calibration sets of each line")
    parser.add_argument("--share", type=float, default=0.05, help="of known images that are to be rejected")
    parser.add_argument("--alpha", type=float, default=0.01, help="of each test")
    options = parser.parse_args()
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


if __name__ == "__main__":
    main()
