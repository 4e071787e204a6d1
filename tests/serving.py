"""A server of ours on loopback, within the test's own process."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import cv2
import httpx
import numpy as np
import uvicorn
from numpy.typing import NDArray

from denseport.runtime.bundle import Bundle
from denseport.runtime.serve.admission import Admission
from denseport.runtime.serve.app import create_app
from denseport.runtime.serve.limits import Limits
from denseport.runtime.serve.service import Service


@dataclass(frozen=True)
class Running:
    url: str
    client: httpx.Client
    service: Service
    door: Admission

    def segment(self, data: bytes, name: str = "street.png", **query: object) -> httpx.Response:
        params = {key: str(value) for key, value in query.items()}
        return self.client.post("/v1/segment", files={"image": (name, data)}, params=params)


@contextmanager
def running(bundle: Bundle, limits: Limits | None = None) -> Iterator[Running]:
    """Serve a bundle on a free port while the block lasts."""
    service = Service(bundle, limits or Limits(), threads=1)
    door = create_app(service)
    server = uvicorn.Server(uvicorn.Config(door, port=0, lifespan="off", log_config=None, timeout_graceful_shutdown=2))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.01)
        url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        with httpx.Client(base_url=url, timeout=20) as client:
            yield Running(url, client, service, door)
    finally:
        server.should_exit = True
        thread.join()
        service.close()


def picture(height: int = 96, width: int = 128, seed: int = 0) -> NDArray[np.uint8]:
    """(height, width, 3) BGR: blobs of colour, which the sample model sees several classes in."""
    blobs = np.random.default_rng(seed).integers(0, 256, (6, 8, 3)).astype(np.uint8)
    return np.asarray(cv2.resize(blobs, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)


def encoded(image: NDArray[np.uint8], suffix: str = ".png", *params: int) -> bytes:
    done, data = cv2.imencode(suffix, image, list(params))
    assert done
    return bytes(data)
