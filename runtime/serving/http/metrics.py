"""Figures for Prometheus."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version

from denseport.runtime.serving.http.answers import Segmented

__all__ = ["Metrics"]

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)  # seconds


class Metrics:
    """What one server counts, in a registry of its own.

    Args:
        model: name of the model served.
        active: how many requests are inside now.
    """

    def __init__(self, model: str, active: Callable[[], int]) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector

        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        build = Info("denseport_server", "What is served.", registry=self._registry)
        build.info({"model": model, "version": version("denseport")})
        self._requests = Counter(
            "denseport_requests", "Requests for a segmentation, by HTTP status.", ["status"], registry=self._registry
        )
        self._duration = Histogram(
            "denseport_request_seconds",
            "From the first byte of a request to the last of its answer.",
            registry=self._registry,
            buckets=BUCKETS,
        )
        self._stages = Histogram(
            "denseport_stage_seconds",
            "Time of an image in a stage.",
            ["artifact", "stage"],
            registry=self._registry,
            buckets=BUCKETS,
        )
        self._pixels = Counter("denseport_pixels", "Pixels segmented.", ["artifact"], registry=self._registry)
        gauge = Gauge("denseport_active_requests", "Requests in work or waiting.", registry=self._registry)
        gauge.set_function(active)

    def answered(self, status: int, seconds: float) -> None:
        """Count a request; 499 is a client that went away."""
        self._requests.labels(str(status)).inc()
        self._duration.observe(seconds)

    def segmented(self, found: Segmented) -> None:
        """Count an image and the time of its stages."""
        self._pixels.labels(found.artifact).inc(found.mask.size)
        for stage, milliseconds in found.milliseconds.items():
            self._stages.labels(found.artifact, stage).observe(milliseconds / 1000)

    def exposition(self) -> tuple[bytes, str]:
        """The figures in Prometheus' text format, and its media type."""
        from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

        return generate_latest(self._registry), CONTENT_TYPE_LATEST
