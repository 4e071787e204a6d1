"""A Triton server of the tests' own: on loopback, on free ports, and gone with all its processes afterwards."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

READY = 120.0  # seconds; instances load side by side, each starts a Python with OpenCV and ONNX Runtime


@dataclass(frozen=True)
class TritonServer:
    process: subprocess.Popen[bytes]
    log_file: Path
    http_port: int
    grpc_port: int

    @property
    def http(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def grpc(self) -> str:
        return f"grpc://127.0.0.1:{self.grpc_port}"

    @property
    def urls(self) -> tuple[str, str]:
        return self.http, self.grpc

    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def ok(self, path: str, data: bytes | None = None) -> bool:
        """Whether a GET, or a POST of ``data``, has the status 200."""
        try:
            with urllib.request.urlopen(self.http + path, data, timeout=READY) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def wait(self, path: str) -> None:
        give_up = time.monotonic() + READY
        while not self.ok(path):
            assert self.process.poll() is None, self.log()[-3000:]
            assert time.monotonic() < give_up, self.log()[-3000:]
            time.sleep(0.05)

    def stubs(self, model: str) -> list[int]:
        """The processes that run a model's instances: the server's children that were given its folder."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
                command = (folder / "cmdline").read_bytes().split(b"\0")
            except OSError:  # ended meanwhile
                continue
            if int(parent) == self.process.pid and any(f"/{model}/".encode() in word for word in command):
                found.append(int(folder.name))
        return found


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@contextmanager
def serve(triton: Path, repository: Path, *options: str) -> Iterator[TritonServer]:
    """A server on a repository; not necessarily ready, nor even running when it cannot load a model.

    Args:
        triton: the folder that scripts/triton-server made.
    """
    http, grpc, metrics = free_ports(3)
    prefix = f"denseport_{secrets.token_hex(4)}"
    log = repository.parent / f"{prefix}.log"
    command = [str(triton / "tritonserver"), f"--model-repository={repository}"]
    command += [f"--backend-directory={triton / 'backends'}", f"--cache-directory={triton / 'caches'}"]
    command += [f"--backend-config=python,shm-region-prefix-name={prefix}", "--exit-timeout-secs=2"]
    for name, port in (("http", http), ("grpc", grpc), ("metrics", metrics)):
        command += [f"--{name}-address=127.0.0.1", f"--{name}-port={port}"]
    # The back end's stub finds its packages through the first python3 of the path.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, *options], stdout=output, stderr=output, env=environment, start_new_session=True
        )
    try:
        yield TritonServer(process, log, http, grpc)
    finally:
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(15)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # stubs outlive a server that was killed
        process.wait()
        for left in Path("/dev/shm").glob(f"{prefix}*"):
            left.unlink(missing_ok=True)
