"""The counts of the service, for Prometheus."""

from __future__ import annotations

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from studies.serving.models import LoadedModel

PATHS = frozenset({"/", "/predict", "/model", "/healthz", "/readyz", "/metrics", "/openapi.json"})
"""Paths that are counted by name."""
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper ends of the buckets of the time of a request."""


class Meters:
    """The counts of one service, in a Prometheus registry of its own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "study_requests", "Answers by path and code.", ["path", "code"], registry=self._registry
        )
        self._seconds = Histogram(
            "study_request_seconds",
            "From the first byte to the answer.",
            ["path"],
            buckets=SECONDS,
            registry=self._registry,
        )
        self._images = Counter("study_images", "Images judged.", registry=self._registry)
        self._batch = Histogram(
            "study_batch_size", "Images scored together.", buckets=(1, 2, 4, 8, 16, 32), registry=self._registry
        )
        self._swaps = Counter("study_model_swaps", "New models, by outcome.", ["outcome"], registry=self._registry)
        self._waiting = Gauge("study_images_waiting", "Images that wait for the detector.", registry=self._registry)
        self._model = Gauge(
            "study_model_info", "The model that is served.", ["name", "version"], registry=self._registry
        )
        for outcome in ("swapped", "failed"):
            self._swaps.labels(outcome)

    def answered(self, path: str, code: int, seconds: float) -> None:
        """Count a request that was answered. All unknown paths are one series, so that strangers cannot create new ones."""
        label = path if path in PATHS else "other"
        self._requests.labels(label, str(code)).inc()
        self._seconds.labels(label).observe(seconds)

    def judged(self, images: int) -> None:
        """Count images that have a verdict."""
        self._images.inc(images)

    def batched(self, size: int) -> None:
        """Count a batch of `size` images that are scored together."""
        self._batch.observe(size)

    def swapped(self, outcome: str) -> None:
        """Count a new model; `outcome` is ``swapped`` or ``failed``."""
        self._swaps.labels(outcome).inc()

    def expose(self, model: LoadedModel | None, *, waiting: int) -> tuple[bytes, str]:
        """The counts as the text that Prometheus reads, and its media type."""
        self._waiting.set(waiting)
        self._model.clear()
        if model is not None:
            self._model.labels(model.version.name, model.version.number).set(1)
        return generate_latest(self._registry), CONTENT_TYPE_LATEST
