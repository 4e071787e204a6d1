"""Connections to a Triton server over HTTP or gRPC, with one type of failure for both.

tritonclient reports a failure by the protocol's own codes, its HTTP half also by gevent's and the socket's exceptions.
Source: tritonclient 2.73; docs/protocol of triton-inference-server/server.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from denseport.runtime.errors import InputError, MachineError
from denseport.runtime.serving.triton import IMAGE, MASK
from denseport.runtime.system.machine import install_command

__all__ = ["Connection", "Failure", "connect", "end_thread", "load_library", "understood"]

URLS = "Give http://host:port or grpc://host:port; Triton's ports are 8000 and 8001."
KINDS = {
    "400": "invalid",
    "404": "not found",
    "503": "unavailable",
    "StatusCode.INVALID_ARGUMENT": "invalid",
    "StatusCode.NOT_FOUND": "not found",
    "StatusCode.UNAVAILABLE": "unavailable",
    "StatusCode.DEADLINE_EXCEEDED": "late",
    "StatusCode.CANCELLED": "late",
}
# gRPC's own pauses between attempts to connect grow to two minutes, in which it refuses without trying.
CHANNEL = [
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
]


class Failure(Exception):
    """A request that failed.

    Args:
        kind: "invalid" (the request is at fault), "not found" (the model), "unavailable" (for now), "late", "failed".
        remedy: for people.
    """

    def __init__(self, message: str, kind: str, remedy: str | None = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.remedy = remedy


def connect(url: str, model: str, version: str) -> Connection:
    """A connection; nothing is sent yet.

    Args:
        version: of the model; empty: the latest that is served.
    """
    parts = urlsplit(url)
    try:
        usable = parts.scheme in ("http", "https", "grpc", "grpcs") and parts.hostname and parts.port
    except ValueError:  # a port that is no number
        usable = False
    if not usable:
        raise InputError(f"{url!r} is not a server's URL", URLS)
    tls = parts.scheme.endswith("s")
    if parts.scheme.startswith("grpc"):
        library = load_library("grpc")
        client = library.InferenceServerClient(parts.netloc, ssl=tls, channel_args=CHANNEL)
        return _Grpc(library, client, model, version)
    library = load_library("http")
    more = {"ssl": True, "ssl_context_factory": _tls_context} if tls else {}
    return _Http(library, library.InferenceServerClient(parts.netloc + parts.path, **more), model, version)


def end_thread() -> None:
    """Give back what gevent, which HTTP rests on, keeps for the calling thread: for threads that are about to end."""
    if "gevent" in sys.modules:
        sys.modules["gevent"].get_hub().destroy(destroy_loop=True)


@contextmanager
def understood() -> Iterator[None]:
    """Turns an error in reading an answer, tritonclient's or ours, into `Failure`: a server may send anything."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as err:
        raise Failure(f"its answer is not Triton's: {type(err).__name__}: {str(err)[:200]}", "failed") from err


def load_library(protocol: str) -> Any:
    """The half of tritonclient for "http" or "grpc"; the latter has Triton's message types too.

    Raises:
        MachineError: it is not installed.
    """
    try:
        return importlib.import_module(f"tritonclient.{protocol}")
    except ImportError as err:
        raise MachineError(
            f"tritonclient is not installed, or not for {protocol}: {err}", install_command("client")
        ) from err


class Connection:
    """One model of one server. Calls raise `Failure`; ``left`` is the seconds that one may take."""

    plain: ClassVar[dict[str, Any]] = {}  # arguments with which tritonclient gives dictionaries

    def __init__(self, library: Any, client: Any, model: str, version: str) -> None:
        self.library, self.client = library, client
        self._model, self._version = model, version

    @contextmanager
    def failures(self, left: float) -> Iterator[None]:
        """Turns what tritonclient raises into `Failure`."""
        from tritonclient.utils import InferenceServerException

        try:
            yield
        except InferenceServerException as err:
            message = str(err.message())
            remedy = None
            if "Stub process" in message:
                remedy = "A process of the Python back end died: load the model again, or restart the server."
            raise Failure(message, KINDS.get(str(err.status()), "failed"), remedy) from err

    def options(self, left: float) -> dict[str, Any]:
        """Arguments for each call that limit its time."""
        return {}

    def describe(self, result: Any, output: str) -> tuple[str, tuple[int, ...]]:
        """Type and shape of an output of a result, wherever its data is."""
        (found,) = (tensor for tensor in result.get_response(**self.plain)["outputs"] if tensor["name"] == output)
        return found["datatype"], tuple(map(int, found["shape"]))

    def parameters(self, left: float) -> dict[str, str]:
        """Of the model's configuration."""
        with self.failures(left), understood():
            answer = self.client.get_model_config(self._model, self._version, **self.plain, **self.options(left))
            parameters = answer.get("config", answer).get("parameters", {})  # gRPC's is a message around it
            return {key: str(value.get("string_value", "")) for key, value in parameters.items()}

    def models(self, left: float) -> set[str]:
        """Names of the models in the server's repository, loaded or not."""
        with self.failures(left), understood():
            index = self.client.get_model_repository_index(**self.plain, **self.options(left))
            return {entry["name"] for entry in (index.get("models", ()) if isinstance(index, dict) else index)}

    def infer(self, images: NDArray[np.uint8], left: float, output: str = MASK) -> NDArray[Any]:
        """The masks, or another output, that the model gives for images (N, H, W, 3)."""
        tensor = self.describe_input(images)
        tensor.set_data_from_numpy(images)
        result = self.request(tensor, self.library.InferRequestedOutput(output), left)
        with understood():
            found = result.as_numpy(output)
        if not isinstance(found, np.ndarray):
            raise Failure(f"its answer has no {output!r}", "failed")
        return found

    def describe_input(self, images: NDArray[np.uint8]) -> Any:
        """tritonclient's description of the input, without its data."""
        return self.library.InferInput(IMAGE, list(images.shape), "UINT8")

    def request(self, tensor: Any, output: Any, left: float) -> Any:
        """tritonclient's result for its own descriptions of input and output."""
        # The server's own limit too: what still waits when nobody does any more is not worth running.
        limit = max(1, int(left * 1e6))
        with self.failures(left), understood():
            return self.client.infer(
                self._model, [tensor], self._version, outputs=[output], timeout=limit, **self.options(left)
            )

    def close(self) -> None:
        self.client.close()


class _Grpc(Connection):
    plain: ClassVar[dict[str, Any]] = {"as_json": True}

    def options(self, left: float) -> dict[str, Any]:
        return {"client_timeout": left}


class _Http(Connection):
    @contextmanager
    def failures(self, left: float) -> Iterator[None]:
        import gevent
        from geventhttpclient.response import HTTPParseError

        timeout = gevent.Timeout(left)  # tritonclient has no limit for one call
        try:
            with timeout, super().failures(left):
                yield
        except gevent.Timeout as err:
            if err is not timeout:
                raise
            raise Failure(f"no answer within {left:.3g} s", "late") from err
        except (OSError, HTTPParseError) as err:  # refused, reset, or closed in the middle of an answer
            raise Failure(f"cannot be reached: {err or type(err).__name__}", "unavailable", URLS) from err


def _tls_context() -> Any:
    import gevent.ssl

    return gevent.ssl.create_default_context()
