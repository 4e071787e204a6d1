"""Connections that a stranger holds: how many there may be, how long each may keep us waiting, and how it is told no.

Uvicorn waits for ever for the head of a request and for a client to fetch its answer.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from denseport.runtime.errors import MachineError

if TYPE_CHECKING:
    from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

__all__ = ["MOST", "Watch", "protocol"]

MOST = 512  # connections at once; half of the descriptors that a process may usually open


def protocol() -> type[H11Protocol]:
    """Uvicorn's protocol on h11, which is strict and always there: at most `MOST` connections, and errors as JSON.

    Raises:
        MachineError: the extra ``serve`` is not installed.
    """
    try:
        import h11
        from uvicorn.protocols.http.h11_impl import H11Protocol
    except ImportError as err:
        raise MachineError(f"{err.name} is not installed", "pip install 'denseport[serve]'") from err
    import asyncio

    class Protocol(H11Protocol):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            if len(self.connections) > MOST:
                transport.abort()

        def send_400_response(self, msg: str) -> None:
            if self.cycle is not None:  # else the application would answer too, and log that it cannot
                self.cycle.disconnected = True
                self.cycle.message_event.set()
            if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                body = json.dumps({"error": "the request is no HTTP/1.1", "remedy": "See /openapi.json."}).encode()
                headers = [
                    ("content-type", "application/json"), ("content-length", str(len(body))), ("connection", "close")
                ]  # fmt: skip
                head = h11.Response(status_code=400, headers=headers, reason=b"Bad Request")
                for event in (head, h11.Data(data=body), h11.EndOfMessage()):
                    self.transport.write(self.conn.send(event) or b"")
            self.transport.close()  # nothing more is said where an answer was begun

    return Protocol


class Watch:
    """Ends connections that keep the server waiting: for a head, for the rest of a body, or to fetch an answer.

    Args:
        seconds: that a connection may wait in all, from one request to the next.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._waits: WeakKeyDictionary[H11Protocol, tuple[RequestResponseCycle | None, float]] = WeakKeyDictionary()

    def sweep(self, connections: Iterable[H11Protocol]) -> None:
        """Look at all connections; to be called again and again."""
        now = time.monotonic()
        for connection in list(connections):
            cycle = connection.cycle
            if cycle is not None and not cycle.response_started and not connection.flow.write_paused:
                # We are at work, or read a picture; other limits hold.
                self._waits.pop(connection, None)
                continue
            seen, since = self._waits.get(connection, (cycle, now))
            if seen is not cycle:
                since = now
            self._waits[connection] = cycle, since
            if now - since > self._seconds:
                connection.transport.abort()
