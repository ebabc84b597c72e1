"""What Prometheus reads: requests, seconds, images, and how many of them are called unknown."""

from __future__ import annotations

import math
from collections import deque

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from osr_lightning.data_spec import UNKNOWN

RECENT = 1000  # images, whose share of unknowns is compared with that of the calibration
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """Counters of one server.

    Args:
        paths: whose requests are told apart; others count as ``other``, however many a client makes up.
        rejected_known: share of known images that the threshold rejected when it was calibrated.
    """

    def __init__(self, paths: list[str], rejected_known: float | None) -> None:
        self._registry = registry = CollectorRegistry()
        self._paths = set(paths)
        self._recent: deque[bool] = deque(maxlen=RECENT)
        self._rejected_known = rejected_known
        self._requests = Counter("osr_requests", "Requests", ["path", "status"], registry=registry)
        self._seconds = Histogram(
            "osr_request_seconds", "Time to answer a request", ["path"], buckets=SECONDS, registry=registry
        )
        self._images = Counter(
            "osr_images", "Images of /predict: known, unknown or unreadable", ["answer"], registry=registry
        )
        for answer in ("known", "unknown", "unreadable"):
            self._images.labels(answer)  # 0 until there is one
        self._batches = Histogram(
            "osr_batch_images", "Images classified at once", buckets=BATCHES, registry=registry
        )
        self._waiting = Gauge("osr_images_waiting", "Images on their way", registry=registry)
        self._connected = Gauge("osr_connections", "Open connections", registry=registry)
        self._turned_away = Counter(
            "osr_connections_turned_away",
            "Connections that were closed as they waited while others came, or whose request was refused",
            ["how"],
            registry=registry,
        )
        for how in ("closed", "refused"):
            self._turned_away.labels(how)  # 0 until there is one
        self._share = Gauge(
            "osr_unknown_share", f"Share of unknowns in the last {RECENT} images", registry=registry
        )
        self._share.set(math.nan)  # of no images yet
        if rejected_known is not None:
            Gauge(
                "osr_calibration_unknown_share",
                "Share of known images that the calibration's threshold rejected",
                registry=registry,
            ).set(rejected_known)
            self._drift = Gauge(
                "osr_unknown_share_drift",
                "osr_unknown_share less osr_calibration_unknown_share",
                registry=registry,
            )
            self._drift.set(math.nan)

    def answered(self, path: str, status: int, seconds: float) -> None:
        """Count a request."""
        path = path if path in self._paths else "other"
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def predicted(self, prediction: str) -> None:
        """Count an image by the name in its row; an empty one is an image that could not be read."""
        if not prediction:
            self._images.labels("unreadable").inc()
            return
        unknown = prediction == UNKNOWN
        self._images.labels("unknown" if unknown else "known").inc()
        self._recent.append(unknown)
        share = sum(self._recent) / len(self._recent)
        self._share.set(share)
        if self._rejected_known is not None:
            self._drift.set(share - self._rejected_known)

    def batch(self, images: int) -> None:
        """Count a batch."""
        self._batches.observe(images)

    def turned_away(self, how: str) -> None:
        """Count a connection for which there was no room."""
        self._turned_away.labels(how).inc()

    def text(self, waiting: int, connected: int) -> bytes:
        """Everything, as Prometheus reads it.

        Args:
            waiting: images on their way.
            connected: open connections.
        """
        self._waiting.set(waiting)
        self._connected.set(connected)
        return generate_latest(self._registry)
