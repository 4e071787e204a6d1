"""Figures for Prometheus."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from typing import TYPE_CHECKING

from denseport.runtime.pipeline.results import Segmentation

if TYPE_CHECKING:
    from denseport.runtime.pipeline.depth import Depth

__all__ = ["Metrics"]

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)  # seconds


class Metrics:
    """What one server counts.

    Args:
        model: name of the model served.
        active: how many requests are inside now.
    """

    def __init__(self, model: str, active: Callable[[], int]) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector

        self._registry = own = CollectorRegistry()
        ProcessCollector(registry=own)
        build = Info("denseport_server", "What is served.", registry=own)
        build.info({"model": model, "version": version("denseport")})
        self._requests = Counter(
            "denseport_requests", "Requests with images, by HTTP status.", ["status"], registry=own
        )
        whole = "From the first byte of a request to the last of its answer."
        self._duration = Histogram("denseport_request_seconds", whole, registry=own, buckets=BUCKETS)
        stage = "Time of an image in a stage."
        self._stages = Histogram("denseport_stage_seconds", stage, ["artifact", "stage"], registry=own, buckets=BUCKETS)
        self._pixels = Counter("denseport_pixels", "Pixels of images that were answered.", ["artifact"], registry=own)
        gauge = Gauge("denseport_active_requests", "Requests in work or waiting.", registry=own)
        gauge.set_function(active)

    def answered(self, status: int, seconds: float) -> None:
        """Count a request; 499 is a client that went away."""
        self._requests.labels(str(status)).inc()
        self._duration.observe(seconds)

    def segmented(self, found: Segmentation | Depth, milliseconds: dict[str, float]) -> None:
        """Count an image and the time of its stages."""
        self._pixels.labels(found.artifact).inc(found.image.shape[0] * found.image.shape[1])
        for stage, value in milliseconds.items():
            self._stages.labels(found.artifact, stage).observe(value / 1000)

    def exposition(self) -> tuple[bytes, str]:
        """The figures in Prometheus' text format, and its media type."""
        from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

        return generate_latest(self._registry), CONTENT_TYPE_LATEST
