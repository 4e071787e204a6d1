"""A server of ours on loopback, within the test's own process or in one of its own."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import cv2
import httpx
import numpy as np
import uvicorn
from numpy.typing import NDArray

from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.serving.http.admission import Admission
from denseport.runtime.serving.http.app import create_app
from denseport.runtime.serving.http.limits import Limits
from denseport.runtime.serving.http.service import Service


@dataclass(frozen=True)
class Running:
    url: str
    client: httpx.Client
    service: Service
    admission: Admission

    def segment(self, data: bytes, name: str = "street.png", **query: object) -> httpx.Response:
        params = {key: str(value) for key, value in query.items()}
        return self.client.post("/v1/segment", files={"image": (name, data)}, params=params)


@contextmanager
def running(bundle: Bundle, limits: Limits | None = None) -> Iterator[Running]:
    """Serve a bundle on a free port while the block lasts."""
    service = Service(bundle, limits or Limits(), threads=1)
    admission = create_app(service)
    server = uvicorn.Server(
        uvicorn.Config(admission, port=0, lifespan="off", log_config=None, timeout_graceful_shutdown=2)
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.01)
        url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        with httpx.Client(base_url=url, timeout=20) as client:
            yield Running(url, client, service, admission)
    finally:
        server.should_exit = True
        thread.join()
        service.close()


def start(bundle: Bundle, *options: str, stderr: int | IO[str] = subprocess.PIPE) -> tuple[subprocess.Popen[str], str]:
    """The command itself; its process and the address that it prints."""
    command = [str(Path(sys.executable).with_name("denseport")), "serve", str(bundle.path), "--port", "0", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True)
    assert process.stdout is not None
    lines = [process.stdout.readline(), process.stdout.readline()]
    assert lines[1].startswith("http://"), process.communicate()
    return process, lines[1].strip()


@dataclass(frozen=True)
class Server:
    """`denseport serve` in a process of its own, for what is no HTTP."""

    process: subprocess.Popen[str]
    address: tuple[str, int]
    log: Path

    def connect(self, receive_buffer: int | None = None) -> socket.socket:
        connection = socket.socket()
        connection.settimeout(20)
        if receive_buffer:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        connection.connect(self.address)
        return connection

    def ask(self, data: bytes, *, half_close: bool = False, patience: float = 20.0) -> Told | None:
        """The answer to whatever is sent; None: there is none within ``patience`` seconds, or the connection ends."""
        with self.connect() as connection:
            connection.settimeout(patience)
            try:
                connection.sendall(data)
                if half_close:
                    connection.shutdown(socket.SHUT_WR)
            except OSError:
                pass  # it has heard enough
            return told(connection, data.split(b" ")[0].decode("latin-1"))

    def descriptors(self) -> int:
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def mebibytes(self) -> float:
        """Resident memory."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1024


@dataclass(frozen=True)
class Told:
    """An answer."""

    status: int
    type: str
    body: bytes

    @property
    def is_error(self) -> bool:
        """Whether it has the one form of all errors."""
        return self.type == "application/json" and set(json.loads(self.body)) == {"error", "remedy"}


def told(connection: socket.socket, method: str = "GET") -> Told | None:
    """The next answer on a connection; None: there is none."""
    response = http.client.HTTPResponse(connection, method=method)
    try:
        response.begin()
        return Told(response.status, response.headers.get("content-type", ""), response.read())
    except (http.client.BadStatusLine, http.client.IncompleteRead, ConnectionError, TimeoutError):
        return None
    finally:
        response.close()


@contextmanager
def serving(bundle: Bundle, *options: str) -> Iterator[Server]:
    """``denseport serve`` while the block lasts; it must still live at its end, and then end well."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with log.open("w") as stderr:
            process, url = start(bundle, *options, stderr=stderr)
        host, port = url.removeprefix("http://").rstrip("/").split(":")
        try:
            yield Server(process, (host, int(port)), log)
            assert process.poll() is None, log.read_text()
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=60)
        assert process.returncode == 0, log.read_text()


def form(
    data: bytes,
    *,
    query: str = "",
    kind: bytes = b"multipart/form-data; boundary=x",
    disposition: bytes = b'form-data; name="image"; filename="a"',
    body: bytes | None = None,
    length: bytes | None = None,
) -> bytes:
    """A request with an image, byte by byte; ``body`` and ``length`` replace what would be right."""
    if body is None:
        body = b"--x\r\nContent-Disposition: " + disposition + b"\r\n\r\n" + data + b"\r\n--x--\r\n"
    length = str(len(body)).encode() if length is None else length
    head = f"POST /v1/segment{query} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n".encode()
    return head + b"Content-Type: " + kind + b"\r\nContent-Length: " + length + b"\r\n\r\n" + body


def until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def random_image(height: int = 96, width: int = 128, seed: int = 0) -> NDArray[np.uint8]:
    """(height, width, 3) BGR: blobs of colour, which the sample model sees several classes in."""
    blobs = np.random.default_rng(seed).integers(0, 256, (6, 8, 3)).astype(np.uint8)
    return np.asarray(cv2.resize(blobs, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)


def encoded(image: NDArray[np.uint8], suffix: str = ".png", *params: int) -> bytes:
    done, data = cv2.imencode(suffix, image, list(params))
    assert done
    return bytes(data)
