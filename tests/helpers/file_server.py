"""A server of files on this machine, which sends them as servers and networks do on bad days."""

from __future__ import annotations

import json
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import unquote, urlsplit


@dataclass
class FileServer:
    """``with FileServer({"/path": data}) as server``: answers GET and HEAD at ``server.address``."""

    files: dict[str, bytes] = field(default_factory=dict)
    headers: dict[str, dict[str, str]] = field(default_factory=dict)  # of a path, besides those of every answer
    cuts: list[int] = field(default_factory=list)  # bytes after which the first, second, … answer ends
    ranges: bool = True  # whether a part of a file can be asked for
    lengths: bool = True  # whether an answer says how long it is
    claimed: int | None = None  # the length that it says instead
    pause: float = 0.0  # seconds before each answer
    status: int = 200
    error: str = ""  # as the Hugging Face hub calls it
    location: str = ""  # where it redirects to
    asked: list[tuple[str, str]] = field(default_factory=list)  # method and path, and the range

    def __enter__(self) -> FileServer:
        handler = type("Handler", (_Handler,), {"files": self})
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,))
        self._thread.start()
        self.address = f"http://127.0.0.1:{self._http.server_address[1]}"
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def put_json(self, path: str, data: Any) -> None:
        self.files[path] = json.dumps(data).encode()
        self.headers[path] = {"Content-Type": "application/json"}


class _Handler(BaseHTTPRequestHandler):
    files: FileServer

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        server, path = self.files, unquote(urlsplit(self.path).path)
        asked = self.headers.get("Range", "") if self.command == "GET" else ""
        server.asked.append((f"{self.command} {path}", asked))
        time.sleep(server.pause)
        if path not in server.files or server.status != 200:
            self.answer(
                server.status if server.status != 200 else 404,
                b"",
                {"Location": server.location, "X-Error-Code": server.error},
            )
            return
        data, headers = server.files[path], dict(server.headers.get(path, {}))
        start = int(asked.removeprefix("bytes=").partition("-")[0]) if asked and server.ranges else 0
        if start and start >= len(data):
            self.answer(416, b"", {})
            return
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self.answer(206 if start else 200, data[start:], headers)

    def answer(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        server = self.files
        self.send_response(status)
        for name, value in headers.items():
            if value:
                self.send_header(name, value)
        if server.lengths:
            self.send_header("Content-Length", str(len(data) if server.claimed is None else server.claimed))
        self.end_headers()
        if self.command == "GET":
            cut = server.cuts.pop(0) if server.cuts and data else len(data)
            with suppress(ConnectionError):  # who asked has seen enough
                self.wfile.write(data[:cut])

    def log_message(self, format: str, *arguments: Any) -> None:
        pass
