"""A client for models that ``denseport triton`` exported: images to a server, masks or depths back.

A temporary refusal is tried again, with growing pauses, until the deadline: UNAVAILABLE (starting, overloaded,
draining, gone), and NOT_FOUND while a model of that name is being loaded again.

``python -m denseport.runtime.serving.triton.client URL MODEL`` is a health probe by real inferences; exit code 0 or 3.
"""

from __future__ import annotations

import json
import random
import re
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Barrier, BrokenBarrierError
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from denseport.runtime.errors import DenseportError, ImageError, InputError, ServerError
from denseport.runtime.serving.triton import CLASSES, DEPTH, INSTANCES, MASK, MEANING, OUTPUT
from denseport.runtime.serving.triton.connections import Connection, Failure, connect, end_thread
from denseport.runtime.serving.triton.shared_memory import SharedMemory

__all__ = ["Client", "main"]

FIRST_PAUSE, LONGEST_PAUSE = 0.05, 2.0  # seconds
MOST_AT_ONCE = 256  # connections of a probe, whatever a server says
IN_A_ROW = 8  # inferences of each of them
T = TypeVar("T")


class Client:
    """A model on a Triton server.

    Not for several threads at once: give each a client of its own.

    Args:
        url: ``http://host:port`` or ``grpc://host:port`` (``https``, ``grpcs``: with TLS).
        model: its name on the server.
        version: of the model; default: the latest that is served.
        deadline: seconds that a call may take, repetitions included.
        shared_memory: images and masks go through memory that both processes map; the server must run on this
            machine, and share ``/dev/shm``.

    Raises:
        InputError: a URL of another form.
        MachineError: tritonclient is not installed.
    """

    def __init__(
        self, url: str, model: str, *, version: int | None = None, deadline: float = 60.0, shared_memory: bool = False
    ) -> None:
        if not deadline > 0:
            raise InputError(f"a deadline of {deadline} s leaves no time", "Give seconds above 0.")
        self.url, self.model = url, model
        self._deadline = deadline
        self._version = "" if version is None else str(version)
        self._shared_memory = shared_memory
        self._connection = self._connect()

    def _connect(self) -> Connection | SharedMemory:
        connection = connect(self.url, self.model, self._version)
        return SharedMemory(connection) if self._shared_memory else connection

    def segment(self, image: NDArray[np.uint8]) -> NDArray[np.unsignedinteger[Any]]:
        """The mask (H, W) of class indices for an image (H, W, 3), uint8 BGR.

        Raises:
            ImageError: another shape or type, or the server refuses the image (too large, too narrow, …).
            InputError: the server has no such model.
            ServerError: until the deadline the server was not reached, was not ready, or failed.
        """
        mask: NDArray[np.unsignedinteger[Any]] = self.segment_batch(_one(image))[0]
        return mask

    def segment_batch(self, images: NDArray[np.uint8]) -> NDArray[np.unsignedinteger[Any]]:
        """Masks (N, H, W) for images of one size, (N, H, W, 3); otherwise as `segment`."""
        return self._infer(images, MASK)

    def estimate(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The depths (H, W) for an image, in the unit of the bundle; arguments and errors as of `segment`."""
        depth: NDArray[np.float32] = self._infer(_one(image), DEPTH)[0]
        return depth

    def _infer(self, images: NDArray[np.uint8], output: str) -> NDArray[Any]:
        if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8 or not images.size:
            raise ImageError(
                f"expected images of shape (N, height, width, 3), uint8 BGR; got {images.shape} {images.dtype}",
                "denseport.runtime.media.images.read_image reads any image file as such.",
            )
        images = np.ascontiguousarray(images)
        return self._checked(self._persist(lambda left: self._connection.infer(images, left, output)), images, output)

    def _checked(self, found: NDArray[Any], images: NDArray[np.uint8], output: str) -> NDArray[Any]:
        if found.shape != images.shape[:3] or found.dtype.kind != {MASK: "u", DEPTH: "f"}[output]:
            raise ServerError(
                f"{self.url}: {self.model} gave {output}s of {found.shape} {found.dtype} for images of {images.shape}",
                "Serve a model that denseport triton exported.",
            )
        return found

    def classes(self) -> tuple[str, ...]:
        """The names of the classes, by index.

        Raises:
            InputError, ServerError: as `segment`; the first also for a model that Denseport did not export.
        """
        names = self._told(CLASSES)
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise InputError(
                f"{self.url}: {self.model} does not name its classes", "Serve a model that denseport triton exported."
            )
        return tuple(names)

    def depth(self) -> dict[str, Any]:
        """What a model's depths mean: the fields of `denseport.runtime.bundle.manifest.DepthOutput`.

        Raises:
            InputError, ServerError: as `segment`; the first also for a model that gives none, or does not say.
        """
        meaning = self._told(MEANING)
        if not isinstance(meaning, dict):
            raise InputError(
                f"{self.url}: {self.model} does not say what its depths mean",
                "Serve a depth bundle that this release's denseport triton exported.",
            )
        return meaning

    def _told(self, parameter: str) -> Any:
        """What a parameter of the model holds as JSON; None where it holds none."""
        try:
            return json.loads(self._persist(self._connection.parameters).get(parameter, ""))
        except (TypeError, ValueError, RecursionError):
            return None

    def probe(self, *, timeout: float = 10.0) -> float:
        """Make sure that the model answers, by real inferences; the seconds of the slowest.

        Triton never restarts a process of its Python back end that died, and stays "ready". There are four times as
        many connections at once as the model has instances, and several inferences in a row on each, so that requests
        wait for every instance until it takes one: of single ones, an instance that is quick can take all. The images
        are noise, new each time, so that no cache answers for the model. A refused request is not repeated.

        Args:
            timeout: seconds for each inference.

        Raises:
            ServerError: one of them failed.
        """
        try:
            parameters = self._connection.parameters(timeout)
            said, output = parameters.get(INSTANCES, "1"), parameters.get(OUTPUT, MASK)
            instances = int(said) if re.fullmatch(r"[1-9]\d{0,8}", said) else 1
            times = min(4 * instances, MOST_AT_ONCE) if instances > 1 else 1
            together = Barrier(times)
            with ThreadPoolExecutor(times) as pool:
                return max(pool.map(lambda _: self._inferences(timeout, together, output), range(times)))
        except Failure as err:
            raise ServerError(f"{self.url}: {self.model} is not healthy: {err}", err.remedy) from err

    def _inferences(self, timeout: float, together: Barrier, output: str) -> float:
        """The inferences of one connection of the probe, in a thread of its own; the seconds of the slowest."""
        images = np.random.default_rng().integers(0, 256, (IN_A_ROW, 1, 64, 64, 3), np.uint8)
        connection = self._connect()
        with suppress(BrokenBarrierError):  # one after the other, all of them could go to one instance
            together.wait(timeout)
        slowest = 0.0
        try:
            for image in images[: IN_A_ROW if together.parties > 1 else 1]:
                started = time.monotonic()
                self._checked(connection.infer(image, timeout, output), image, output)
                slowest = max(slowest, time.monotonic() - started)
        finally:
            connection.close()
            end_thread()
        return slowest

    def _persist(self, ask: Callable[[float], T]) -> T:
        """Call ``ask`` with the seconds that are left, again and again while its failure is temporary."""
        give_up = time.monotonic() + self._deadline
        pause = FIRST_PAUSE
        while True:
            try:
                return ask(max(give_up - time.monotonic(), 0.001))
            except Failure as err:
                wait = random.uniform(pause / 2, pause)  # many clients must not come back all at once
                if not self._is_temporary(err) or time.monotonic() + wait >= give_up:
                    raise self._explained(err) from err
            time.sleep(wait)
            pause = min(2 * pause, LONGEST_PAUSE)

    def _is_temporary(self, failure: Failure) -> bool:
        if failure.kind != "not found":
            return failure.kind == "unavailable"
        try:  # permanent, unless the server knows a model of that name
            return self.model in self._connection.models(self._deadline)
        except Failure as err:
            return err.kind == "unavailable"

    def _explained(self, failure: Failure) -> DenseportError:
        text = f"{self.url}: {self.model}: {failure}"
        if failure.kind == "invalid":
            return ImageError(text, failure.remedy)
        if failure.kind == "not found":
            return InputError(text, "Check the model's name and version; the server's log says what it loaded.")
        return ServerError(text, failure.remedy)

    def close(self) -> None:
        """Close the connection, and free shared memory."""
        self._connection.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _one(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(1, H, W, 3)."""
    if image.ndim != 3:
        raise ImageError(
            f"expected an image of shape (height, width, 3), uint8 BGR; got {image.shape}",
            "Several images of one size go through segment_batch.",
        )
    return image[None]


def main(arguments: list[str]) -> int:
    """The health probe, for a URL and a model."""
    if len(arguments) != 2:
        print("usage: python -m denseport.runtime.serving.triton.client URL MODEL", file=sys.stderr)
        return 2
    try:
        with Client(arguments[0], arguments[1]) as client:
            seconds = client.probe()
    except DenseportError as err:
        print(f"denseport: error: {err}", file=sys.stderr)
        return err.exit_code
    print(f"{arguments[1]} answers within {1000 * seconds:.0f} ms")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
