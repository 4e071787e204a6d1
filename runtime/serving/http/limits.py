"""What one server process accepts, and the error for what it does not."""

from __future__ import annotations

from dataclasses import dataclass

from denseport.runtime.errors import InputError
from denseport.runtime.system.arguments import whole

__all__ = ["MAX_SIDE", "Limits", "Refusal"]

MAX_SIDE = 16384  # pixels; the largest canvas that every browser draws


@dataclass(frozen=True)
class Limits:
    """What one server process accepts. Encoded images in memory: at most ``admitted * max_bytes``."""

    max_bytes: int = 32 << 20  # of a request's body
    max_pixels: int = 40_000_000  # of a request's images, width times height
    max_images: int = 16  # of a request
    concurrency: int = 2  # images processed at once: one is decoded or encoded while the network runs on another
    queue: int = 16  # accepted requests that wait beyond those; 0 refuses whatever cannot start at once
    timeout: float = 60.0  # seconds, for the upload, and again from there to the answer

    def __post_init__(self) -> None:
        for name, least in (("max_bytes", 1), ("max_pixels", 1), ("max_images", 1), ("concurrency", 1), ("queue", 0)):
            whole(f"--{name.replace('_', '-')}", getattr(self, name), least)
        if not 0 < self.timeout < float("inf"):
            raise InputError(f"--timeout {self.timeout} is not a positive number of seconds", "Give seconds above 0.")

    @property
    def admitted(self) -> int:
        """Requests that may be in the server at once."""
        return self.concurrency + self.queue


class Refusal(InputError):
    """A request that is answered with an error.

    Args:
        status: HTTP status code.
        retry_after: seconds after which the same request may succeed.
    """

    def __init__(self, status: int, message: str, remedy: str | None = None, retry_after: int | None = None) -> None:
        super().__init__(message, remedy)
        self.status = status
        self.headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
        self.body = {"error": message, "remedy": remedy}  # all errors have this JSON
