"""Admission: how many requests are let in, how large they may be, and how the server closes.

A plain ASGI layer around the application, so that a refused image is neither parsed nor kept; uvicorn throws
away what a client goes on sending after its answer, instead of closing on it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from denseport.runtime.serving.http.limits import Limits, Refusal

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["Admission"]

PIECE = 1 << 16  # bytes of an answer that are handed to uvicorn at once


class Admission:
    """Lets POST requests for ``paths`` in while there is room, and counts them out.

    Args:
        answered: told the status and the seconds of each such request, refused ones included.
    """

    def __init__(
        self, app: ASGIApp, paths: Sequence[str], limits: Limits, answered: Callable[[int, float], None]
    ) -> None:
        self._app, self._paths, self._limits, self._answered = app, paths, limits, answered
        self.active = 0  # requests inside
        self.accepted = 0  # ever let in
        self.draining = False  # set at shutdown: requests inside are answered, others refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] not in self._paths or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send, self._limits.max_bytes, last=lambda: self.draining)
        start = time.perf_counter()
        try:
            if refusal := self._refusal(exchange):
                from starlette.responses import JSONResponse

                answer = JSONResponse(refusal.body, refusal.status, refusal.headers)
                await answer(scope, exchange.receive, exchange.send)
            else:
                self.active += 1
                self.accepted += 1
                try:
                    await self._app(scope, exchange.receive, exchange.send)
                finally:
                    self.active -= 1
        finally:
            self._answered(exchange.status, time.perf_counter() - start)

    def _refusal(self, exchange: _Exchange) -> Refusal | None:
        if self.draining:
            return Refusal(503, "the server is shutting down", "Ask another one.", retry_after=5)
        if self.active >= self._limits.admitted:
            return Refusal(503, f"{self.active} requests are waiting already", "Try again later.", retry_after=1)
        return exchange.too_large() if exchange.announced > self._limits.max_bytes else None


class _Exchange:
    """One request and its answer: bounds what is read, and notes the status."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, max_bytes: int, last: Callable[[], bool]) -> None:
        headers = dict(scope["headers"])
        length = headers.get(b"content-length", b"")
        self.announced = int(length) if length.isdigit() else 0
        self.status = 499  # until an answer begins: the client went away
        self._receive, self._send = receive, send
        self._max_bytes, self._last = max_bytes, last
        self._read = 0

    def too_large(self) -> Refusal:
        return Refusal(
            413, f"the request is larger than {self._max_bytes} bytes", "Scale the image down, or save it as JPEG."
        )

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            self._read += len(message.get("body", b""))
            if self._read > self._max_bytes:
                raise self.too_large()
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            if self._last():  # the next request on this connection would find nobody
                message["headers"] = [*message.get("headers", []), (b"connection", b"close")]
        # Uvicorn waits for a slow reader before it takes a message, not after. In pieces, a request counts until
        # the client has fetched all but the last piece.
        body = message.get("body", b"")
        for at in range(0, len(body) if len(body) > PIECE else 0, PIECE):
            await self._send({"type": message["type"], "body": body[at : at + PIECE], "more_body": True})
        await self._send({**message, "body": b""} if len(body) > PIECE else message)
