"""Limits on connections: how many there may be, how long each may keep the server waiting, and how it is refused.

Uvicorn waits for ever for the head of a request and for a client to fetch its answer, and has no setting against it.
This file and `server` use private parts of uvicorn; tested with 0.30, 0.42 and 0.54. A release that has renamed one of
them is refused before the server starts.
"""

from __future__ import annotations

import importlib
import json
import time
from collections.abc import Iterable
from importlib.metadata import version
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from denseport.runtime.errors import MachineError
from denseport.runtime.system.machine import install_command

if TYPE_CHECKING:
    from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

__all__ = ["MAX_CONNECTIONS", "Watchdog", "http_protocol"]

MAX_CONNECTIONS = 512  # at once; half of the descriptors that a process may usually open

# By module and class: the attributes that are overridden, read or set.
_RELIED_ON = {
    ("uvicorn.protocols.http.h11_impl", "H11Protocol"): (
        "conn", "connection_made", "connections", "cycle", "flow", "send_400_response", "transport"
    ),
    ("uvicorn.protocols.http.h11_impl", "RequestResponseCycle"): ("disconnected", "message_event", "response_started"),
    ("uvicorn.protocols.http.flow_control", "FlowControl"): ("write_paused",),
    ("uvicorn.server", "Server"): ("force_exit", "handle_exit", "on_tick", "server_state", "should_exit"),
    ("uvicorn.server", "ServerState"): ("connections",),
}  # fmt: skip


def http_protocol() -> type[H11Protocol]:
    """Uvicorn's protocol on h11, which is strict and always there: at most `MAX_CONNECTIONS`, and errors as JSON."""
    try:
        import h11
        from uvicorn.protocols.http.h11_impl import H11Protocol
    except ImportError as err:
        raise MachineError(f"{err.name} is not installed", install_command("serve")) from err
    _check_uvicorn()
    import asyncio

    class Protocol(H11Protocol):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            if len(self.connections) > MAX_CONNECTIONS:
                transport.abort()

        def send_400_response(self, msg: str) -> None:
            if self.cycle is not None:  # else the application would answer too, and log that it cannot
                self.cycle.disconnected = True
                self.cycle.message_event.set()
            if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                body = json.dumps({"error": "the request is not HTTP/1.1", "remedy": "See /docs."}).encode()
                headers = [
                    ("content-type", "application/json"), ("content-length", str(len(body))), ("connection", "close")
                ]  # fmt: skip
                head = h11.Response(status_code=400, headers=headers, reason=b"Bad Request")
                # In one write: while the client still sends, what follows the head may be lost.
                events = (head, h11.Data(data=body), h11.EndOfMessage())
                self.transport.write(b"".join(self.conn.send(event) or b"" for event in events))
            self.transport.close()  # without another answer where one was begun

    return Protocol


def _check_uvicorn() -> None:
    """Look for every attribute of `_RELIED_ON`, in its class and in what the constructor sets."""
    for (module, name), attributes in _RELIED_ON.items():
        kind = getattr(importlib.import_module(module), name, object)
        constructor = getattr(kind.__init__, "__code__", None)
        known = {*dir(kind), *(constructor.co_names if constructor is not None else ())}
        missing = [attribute for attribute in attributes if attribute not in known]
        if missing:
            raise MachineError(
                f"uvicorn {version('uvicorn')} has no {name}.{missing[0]}, without which connections are not limited",
                f"Install a release that Denseport knows: {install_command('serve')}",
            )


class Watchdog:
    """Ends connections that keep the server waiting: for a head, for the rest of a body, or to fetch an answer.

    Args:
        seconds: that a connection may wait in all, from one request to the next.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._waits: WeakKeyDictionary[H11Protocol, tuple[RequestResponseCycle | None, float]] = WeakKeyDictionary()

    def sweep(self, connections: Iterable[H11Protocol]) -> None:
        """Look at all connections; to be called at short intervals."""
        now = time.monotonic()
        for connection in list(connections):
            cycle = connection.cycle
            if cycle is not None and not cycle.response_started and not connection.flow.write_paused:
                # The server works, or reads an image: other limits hold.
                self._waits.pop(connection, None)
                continue
            seen, since = self._waits.get(connection, (cycle, now))
            if seen is not cycle:
                since = now
            self._waits[connection] = cycle, since
            if now - since > self._seconds:
                connection.transport.abort()
