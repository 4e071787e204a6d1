"""The process: a socket, uvicorn on it, and an end that loses no accepted request."""

from __future__ import annotations

import ipaddress
import logging
import socket
import sys
import time
from types import FrameType
from typing import TYPE_CHECKING

from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.errors import InputError
from denseport.runtime.serving.http.admission import Admission
from denseport.runtime.serving.http.app import create_app
from denseport.runtime.serving.http.connections import Watchdog, http_protocol
from denseport.runtime.serving.http.limits import Limits
from denseport.runtime.serving.http.service import Service

if TYPE_CHECKING:
    import uvicorn

__all__ = ["serve"]

KEEP_ALIVE = 30  # seconds that an idle connection stays open
TICKS = 5  # of uvicorn, each 0.1 s, between two looks at the connections


def serve(
    bundle: Bundle, limits: Limits, host: str, port: int, *, artifact: str | None = None, threads: int | None = None
) -> int:
    """Serve a bundle until SIGTERM or SIGINT; then finish what was accepted, and return how many that were in all.

    A second signal ends it at once.

    Raises:
        InputError: the address cannot be used.
        MachineError: the extra ``serve`` is not installed, or its release of uvicorn is not a known one.
        BundleError: as `Segmenter`.
    """
    with _listen(host, port) as listener:  # first, lest a taken port be found out only after the model is loaded
        service = Service(bundle, limits, artifact=artifact, threads=threads)
        admission = create_app(service)
        server = _server(admission, limits)
        logging.basicConfig(format="denseport: %(message)s", level=logging.WARNING)
        # They warn of what clients do wrong, who could fill the log with it.
        for library in ("uvicorn", "python_multipart"):
            logging.getLogger(library).setLevel(logging.ERROR)
        if service.caution:
            print(f"warning: {service.caution}", file=sys.stderr)
        print(f"{bundle.manifest.name}: {service.description}")
        print(f"http://{_authority(host, listener.getsockname()[1])}/", flush=True)
        try:
            server.run(sockets=[listener])
        finally:
            service.close()
    return admission.accepted


def _server(admission: Admission, limits: Limits) -> uvicorn.Server:
    protocol = http_protocol()  # refuses an absent uvicorn, too
    import uvicorn

    watchdog = Watchdog(limits.timeout)

    class Server(uvicorn.Server):
        """At a signal it lets no request in, and ends when all are answered; no connection waits for ever."""

        deadline = float("inf")

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            if admission.draining:
                self.should_exit = self.force_exit = True
                return
            admission.draining = True
            # The time to upload an image, to answer it, and to fetch the answer.
            self.deadline = time.monotonic() + 3 * limits.timeout

        async def on_tick(self, counter: int) -> bool:
            if counter % TICKS == 0:
                watchdog.sweep(self.server_state.connections)  # type: ignore[arg-type]  # all are the protocol's below
            if admission.draining and (not admission.active or time.monotonic() > self.deadline):
                self.should_exit = True
            return await super().on_tick(counter)

    return Server(
        uvicorn.Config(
            admission,
            http=protocol,
            ws="none",
            proxy_headers=False,
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE,
            timeout_graceful_shutdown=KEEP_ALIVE,
        )
    )


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, OverflowError, UnicodeError) as err:  # the last: no name that a host could have
        reason = getattr(err, "strerror", None) or err
        raise InputError(
            f"cannot listen on {_authority(host, port)}: {reason}", "Give another --host or --port."
        ) from err
    address = ipaddress.ip_address(listener.getsockname()[0].partition("%")[0])
    if not address.is_loopback:
        print(
            f"denseport: warning: whoever reaches {_authority(host, port)} can use this server: it asks for no "
            "password and does not encrypt. Put a proxy in front of it that does both.",
            file=sys.stderr,
        )
    return listener


def _authority(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
