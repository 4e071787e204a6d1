"""No name that a client of ``denseport serve`` gives opens anything, whichever way it is written."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hostile import tiny_bundle
from serving import Server, encoded, form, random_image, running

IMAGE = encoded(random_image(32, 64))

opened: list[str] | None = None


def listen(event: str, arguments: tuple[object, ...]) -> None:
    if opened is not None and event in ("open", "import", "os.listdir", "os.scandir"):
        opened.append(f"{event} {arguments[0]}")


@pytest.fixture
def watched() -> Iterator[list[str]]:
    """All files and modules that this process opens, from now on."""
    global opened
    if not getattr(sys, "denseport_listens", False):  # a hook cannot be taken away again
        sys.addaudithook(listen)
        sys.denseport_listens = True  # type: ignore[attr-defined]
    opened = []
    yield opened
    opened = None


NAMES = [
    "../model.onnx", "..%2fmodel.onnx", "%2e%2e%2fmodel.onnx", "/etc/passwd", "file:///etc/passwd", "model.onnx%00",
    "./model.onnx", "manifest.json", "%ed%a0%80", "a" * 10_000, "%0d%0aSet-Cookie:a",
]  # fmt: skip
PATHS = [
    "/../../etc/passwd", "/..%2f..%2fetc%2fpasswd", "/%2e%2e/%2e%2e/etc/passwd", "/static/../../../etc/passwd",
    "//etc/passwd", "/sample.jpg/../manifest.json", "/sample.jpg%00.png", "/model.onnx", "/manifest.json", "/page.html",
    "/.%00./", "/docs/", "http://x/../../etc/passwd", "*", "/v1/../../model.onnx", "/v1/model/",
    "/" + "../" * 1000 + "etc/passwd",
]  # fmt: skip


def test_no_name_of_a_client_opens_anything(tmp_path: Path, watched: list[str]) -> None:
    bundle = tiny_bundle(tmp_path / "bundle")
    with running(bundle) as started:
        host, port = started.url.removeprefix("http://").split(":")
        server = Server(None, (host, int(port)), Path())  # type: ignore[arg-type]  # in this process
        requests = [form(IMAGE, query=f"?artifact={name}") for name in NAMES]
        requests += [f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode() for path in PATHS]
        requests += [form(IMAGE, kind=b"multipart/form-data"), form(IMAGE, query="?opacity=x")]
        requests += [form(IMAGE, disposition=b'form-data; name="image"; filename="../../x.png"')]
        requests += [form(IMAGE, kind=b"multipart/form-data; charset=cp1140; boundary=x")]
        for request in (form(IMAGE), form(b"no image"), requests[0], *requests[-6:-2], requests[len(NAMES)]):
            server.ask(request)  # loads what Python loads when it is first needed
        Path(__file__).read_bytes()
        assert any(__file__ in each for each in watched), "the hook sees nothing"
        watched.clear()
        answers = [server.ask(request) for request in requests]
        assert watched == []
    for request, answer in zip(requests[:-2], answers[:-2], strict=True):
        assert answer is not None and answer.status in (404, 422, 400) and answer.is_error, (request[:80], answer)
        assert b"root:" not in answer.body and str(bundle.path).encode() not in answer.body
    assert all(answer is not None and answer.status == 200 for answer in answers[-2:])
