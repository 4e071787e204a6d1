"""What a network peer can do to ``denseport serve``: bytes that are no HTTP, forms and images that lie, connections
that wait. After each the server lives, holds no more memory or descriptors than before, and gives the right mask.
"""

from __future__ import annotations

import re
import socket
import struct
import time
import zlib
from collections.abc import Iterator
from contextlib import ExitStack

import cv2
import numpy as np
import pytest
from hostile import tiny_bundle
from serving import Server, encoded, form, random_image, serving, told, until
from support import REPO

from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.errors import MachineError
from denseport.runtime.segmenter import Segmenter
from denseport.runtime.serving.http.connections import MAX_CONNECTIONS, http_protocol
from denseport.runtime.serving.http.images import MAX_SCANS, decode_upload
from denseport.runtime.serving.http.limits import Limits

IMAGE = encoded(random_image(32, 64))
TIMEOUT = 4  # seconds, of the server: a busy machine must be able to ask within them
MEBIBYTES = 200  # that it may hold beyond what it held at first: some images in work


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("peer") / "bundle")


@pytest.fixture(scope="module")
def mask(bundle: Bundle) -> bytes:
    with Segmenter(bundle, threads=1) as segment:
        found = segment(random_image(32, 64)).mask
    assert len(np.unique(found)) == 3
    return found.tobytes()


@pytest.fixture(scope="module")
def started(bundle: Bundle) -> Iterator[tuple[Server, int, float]]:
    options = ["--threads", "1", "--timeout", str(TIMEOUT), "--max-bytes", str(1 << 20), "--max-pixels", "10000000"]
    with serving(bundle, *options, "--queue", "4") as server:
        server.ask(form(encoded(np.zeros((2500, 4000, 3), np.uint8))))  # what it may hold for good
        yield server, server.descriptors(), server.mebibytes()


@pytest.fixture
def server(started: tuple[Server, int, float], mask: bytes) -> Iterator[Server]:
    server, descriptors, mebibytes = started
    yield server
    answer = server.ask(form(IMAGE, query="?format=raw"))
    assert answer is not None and answer.status == 200 and answer.body == mask
    until(lambda: server.descriptors() <= descriptors)
    assert server.mebibytes() < mebibytes + MEBIBYTES
    log = server.log.read_text()
    assert "Traceback" not in log and "Fatal" not in log, log


GET = b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
CHUNKED = form(b"", body=b"", length=b"0").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")

NO_HTTP = {
    "nothing": b"\r\n\r\n",
    "binary": bytes(range(256)) * 8 + b"\r\n\r\n",
    "no path": b"GET\r\n\r\n",
    "no version": b"GET /health\r\n\r\n",
    "spaces": b"GET  /health  HTTP/1.1\r\nHost: x\r\n\r\n",
    "a path of control characters": b"GET /\x00\x1b[2J HTTP/1.1\r\nHost: x\r\n\r\n",
    "no host": b"GET /health HTTP/1.1\r\n\r\n",
    "TLS": bytes.fromhex("1603010200010001fc0303") + bytes(64) + b"\r\n\r\n",
    "a header without a name": GET + b": x\r\n\r\n",
    "a header with a NUL": GET + b"X: a\0b\r\n\r\n",
    "a negative length": form(IMAGE, length=b"-1"),
    "a signed length": form(IMAGE, length=b"+5"),
    "a length that is no number": form(IMAGE, length=b"0x10"),
    "a length of 5,000 digits": form(IMAGE, length=b"9" * 5000),
    "two lengths": form(IMAGE, length=b"10\r\nContent-Length: 11"),
    "an unknown coding": CHUNKED.replace(b"chunked", b"gzip, chunked"),
    "a chunk without a size": CHUNKED + b"ZZ\r\nabc",
    "a negative chunk": CHUNKED + b"-1\r\nabc",
    "a chunk of 2^100 bytes": CHUNKED + b"1" + b"0" * 25 + b"\r\nabc",
    "a chunk that is too long": CHUNKED + b"3\r\nabcdef\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("name", NO_HTTP)
def test_what_is_no_http_is_refused_in_the_form_of_all_errors(server: Server, name: str) -> None:
    answer = server.ask(NO_HTTP[name])
    assert answer is not None and answer.status == 400 and answer.is_error, answer


ENDLESS = {
    "a path": b"GET /" + b"a" * (4 << 20) + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    "a header": GET + b"X: " + b"a" * (4 << 20) + b"\r\n\r\n",
    "headers": GET + b"X: a\r\n" * (1 << 20) + b"\r\n",
    "a chunk's extension": CHUNKED + b"1;" + b"a" * (4 << 20) + b"\r\na\r\n0\r\n\r\n",
    "trailers": CHUNKED + b"0\r\n" + b"X: a\r\n" * (1 << 20) + b"\r\n",
}


@pytest.mark.parametrize("name", ENDLESS)
def test_a_head_of_megabytes_is_not_read_to_its_end(server: Server, name: str) -> None:
    answer = server.ask(ENDLESS[name])
    assert answer is None or (answer.status == 400 and answer.is_error)  # None: closed while it was sent


def test_http_2_is_not_spoken(server: Server) -> None:
    answer = server.ask(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
    assert answer is not None and answer.status in (400, 404) and answer.is_error


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "PUT", "PATCH", "DELETE", "TRACE", "CONNECT", "BREW"])
@pytest.mark.parametrize("path", ["/", "/v1/segment", "/health"])
def test_other_methods_are_refused(server: Server, method: str, path: str) -> None:
    answer = server.ask(f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    assert answer is not None and answer.status == 405 and (method == "HEAD" or answer.is_error)


def test_lengths_that_lie(server: Server) -> None:
    short = server.ask(form(IMAGE, length=b"10"))
    assert short is not None and short.status == 400 and short.is_error
    long = server.ask(form(IMAGE, length=b"5000"))
    assert long is not None and long.status == 408 and long.is_error
    gone = server.ask(form(IMAGE, length=b"5000"), half_close=True)
    assert gone is None or gone.status in (400, 408)
    huge = server.ask(form(IMAGE, length=b"9" * 19))
    assert huge is not None and huge.status == 413 and huge.is_error
    both = server.ask(CHUNKED.replace(b"\r\n\r\n", b"\r\nContent-Length: 4\r\n\r\n") + b"1\r\na\r\n0\r\n\r\n")
    assert both is not None and both.status == 400 and both.is_error


def test_a_bad_chunk_after_the_answer_ends_the_connection(server: Server) -> None:
    with server.connect() as connection:
        connection.sendall(b"POST /nothing HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        answer = told(connection)
        assert answer is not None and answer.status == 404
        connection.sendall(b"ZZZ\r\n")
        assert connection.recv(100) == b""


def test_pipelined_requests_are_answered_in_order(server: Server, mask: bytes) -> None:
    one = form(IMAGE, query="?format=raw").replace(b"Connection: close\r\n", b"")
    with server.connect() as connection:
        connection.sendall(one + GET.replace(b"Connection: close\r\n", b"") + b"\r\n" + one + b"GARBAGE\r\n\r\n")
        answers = connection.makefile("rb").read()
    assert answers.count(b"HTTP/1.1 200 OK") == 3 and answers.count(b"HTTP/1.1 400") == 1
    assert answers.count(mask) == 2 and answers.index(mask) < answers.index(b'"alive"') < answers.rindex(mask)


PART = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
FORMS = {
    "no boundary": form(IMAGE, kind=b"multipart/form-data"),
    "an empty boundary": form(IMAGE, kind=b"multipart/form-data; boundary="),
    "a boundary of 60 KB": form(IMAGE, kind=b"multipart/form-data; boundary=" + b"x" * 60_000),
    "another form": form(b"image=a", kind=b"application/x-www-form-urlencoded"),
    "no part": form(b"", body=b""),
    "thousands of parts": form(b"", body=(PART + b"a\r\n") * 5000 + b"--x--\r\n"),
    "thousands of fields": form(b"", body=PART.replace(b'; filename="a"', b"") * 5000),
    "thousands of headers": form(b"", body=PART[:-2] + b"X: a\r\n" * 5000 + b"\r\n--x--\r\n"),
    "two files": form(b"", body=(PART + IMAGE + b"\r\n") * 2 + b"--x--\r\n"),
    "a field of that name": form(IMAGE, disposition=b"form-data; name=image"),
    "no name": form(IMAGE, disposition=b"form-data; filename=a"),
    "no disposition": form(IMAGE, disposition=b""),
    "a file name of 64 KB": form(IMAGE, disposition=b"form-data; name=image; filename=" + b"a" * 65536),
    "a file name with a line feed": form(IMAGE, disposition=b'form-data; name=image; filename="a\r\nb"'),
    "no end": form(b"", body=PART + IMAGE),
}


@pytest.mark.parametrize("name", FORMS)
def test_damaged_forms_are_refused(server: Server, name: str) -> None:
    answer = server.ask(FORMS[name])
    assert answer is not None and answer.status == 400 and answer.is_error, answer


@pytest.mark.parametrize("name", [b"../../up.png", b"/etc/passwd", b"a\0b", b"\xff\xfe", b"%2e%2e%2fa", b"CON", b""])
def test_no_file_name_matters(server: Server, mask: bytes, name: bytes) -> None:
    disposition = b'form-data; name="image"; filename="' + name + b'"'
    answer = server.ask(form(IMAGE, query="?format=raw", disposition=disposition))
    assert answer is not None and answer.body == mask


def test_a_form_within_the_form_is_no_image(server: Server) -> None:
    inner = b'--y\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n' + IMAGE + b"\r\n--y--\r\n"
    answer = server.ask(form(inner))
    assert answer is not None and answer.status == 415 and answer.is_error


@pytest.mark.parametrize("charset", [b"undefined", b"base64", b"idna", b"unicode_escape", b"../x", b"cp1140"])
def test_a_form_names_no_codec(server: Server, mask: bytes, charset: bytes) -> None:
    """``undefined`` was an error 500; each other had Python look for a module of that name."""
    kind = b"multipart/form-data; charset=" + charset + b"; boundary=x"
    answer = server.ask(form(IMAGE, query="?format=raw", kind=kind))
    assert answer is not None and answer.status == 200 and answer.body == mask


# Images


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )


def bmp(width: int, height: int) -> bytes:
    return (
        b"BM" + struct.pack("<IHHIIiiHHIIiiII", 200, 0, 0, 54, 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0) + bytes(99)
    )


def webp(kind: bytes, body: bytes) -> bytes:
    data = b"WEBP" + kind + struct.pack("<I", len(body)) + body
    return b"RIFF" + struct.pack("<I", len(data)) + data


def scans(count: int, side: int = 3000) -> bytes:
    """A progressive JPEG, black, of ``count`` scans, all but the first without data."""
    table = struct.pack(">H", 20) + b"%c" + bytes([1] + [0] * 15) + b"\0"
    head = (
        b"\xff\xd8\xff\xdb\0C\0" + b"\1" * 64 + b"\xff\xc2" + struct.pack(">HBHHB", 11, 8, side, side, 1) + b"\1\x11\0"
    )
    tables = b"".join(b"\xff\xc4" + table.replace(b"%c", bytes([each])) for each in (0, 16))
    hidden = b"\xff\xfe\0\4\xff\xd9"  # a comment that looks like the end
    empty = b"\xff\xda\0\x08\1\1\0\1\1\0"
    return head + tables + b"\xff\xda\0\x08\1\1\0\0\0\0\0" + hidden + empty * (count - 1) + b"\xff\xd9"


def with_exif(jpeg: bytes) -> bytes:
    """Directories of EXIF that name each other, and more entries than there are."""
    exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<HHHIII", 0xFFFF, 0x8769, 4, 0xFFFFFFFF, 8, 8)
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", 2 + len(exif)) + exif + jpeg[2:]


HUGE = 2**31 - 1
BOMBS = {
    "PNG": png(2**31, 2**31, (b"IDAT", zlib.compress(bytes(1000)))),
    "PNG at its limit": png(HUGE, HUGE, (b"IDAT", b"")),
    "PNG, wide": png(HUGE, 1, (b"IDAT", b"")),
    "PNG without a pixel": png(0, 5, (b"IDAT", b"")),
    "PNG with another size behind": png(64, 32, (b"IHDR", struct.pack(">IIBBBBB", 9**9, 9**9, 8, 2, 0, 0, 0))),
    "PNG whose rows are missing": png(3000, 3000, (b"IDAT", zlib.compress(bytes(100)))),
    "PNG, animated, one frame too large": png(
        64, 32, (b"acTL", struct.pack(">II", HUGE, 0)),
        (b"fcTL", struct.pack(">IIIIIHHBB", 0, HUGE, HUGE, 0, 0, 0, 0, 0, 0)),
    ),
    "BMP": bmp(HUGE, HUGE),
    "BMP, upside down": bmp(-(2**31), -(2**31)),
    "BMP whose rows are missing": bmp(3000, 3000),
    "WebP": webp(b"VP8X", bytes(4) + b"\xff" * 6),
    "WebP, lossless": webp(b"VP8L", b"\x2f" + b"\xff" * 40),
    "WebP, animated, frames missing": webp(b"VP8X", b"\x02\0\0\0" + b"\x3f\0\0\x1f\0\0" + b"ANIM\x06\0\0\0" + bytes(6)),
    "JPEG of many scans": scans(MAX_SCANS + 1),
    "JPEG of 100,000 scans": scans(100_000),
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused(server: Server, name: str) -> None:
    begun = time.monotonic()
    answer = server.ask(form(BOMBS[name]))
    assert answer is not None and answer.status in (400, 413) and answer.is_error, answer
    assert time.monotonic() - begun < TIMEOUT, "it was decoded"


def test_images_of_few_scans_are_taken() -> None:
    assert decode_upload(scans(MAX_SCANS, 64), Limits()).shape == (64, 64, 3)
    image = random_image(300, 400)
    progressive = encoded(image, ".jpg", cv2.IMWRITE_JPEG_PROGRESSIVE, 1, cv2.IMWRITE_JPEG_RST_INTERVAL, 3)
    assert progressive.count(b"\xff\xda") > 5
    assert np.abs(decode_upload(progressive, Limits()).astype(int) - image).mean() < 10


CORPUS = REPO / "tests" / "security" / "fuzz" / "corpus"


@pytest.mark.parametrize(
    "name", ["moving.png", "moving.webp", "deep.png", "grey.png", "alpha.png", "palette.png", "cmyk.jpg", "turned.jpg"]
)
def test_images_of_unusual_kinds_are_segmented(server: Server, name: str) -> None:
    answer = server.ask(form((CORPUS / name).read_bytes(), query="?format=raw"))
    assert answer is not None and answer.status == 200 and len(answer.body) == 6 * 8


def test_exif_that_goes_in_circles(server: Server) -> None:
    answer = server.ask(form(with_exif(encoded(random_image(32, 64), ".jpg")), query="?format=raw"))
    assert answer is not None and answer.status in (200, 400)


# Connections


def test_no_connection_waits_for_ever_and_there_are_no_more_than_the_bound(server: Server) -> None:
    """Silent ones, half a head, half a second head, a body that drips behind its refusal: all are ended."""
    with ExitStack() as stack:
        waiting = [stack.enter_context(server.connect()) for _ in range(8)]
        waiting[0].sendall(b"GET /health HT")
        waiting[1].sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\nGET /hea")
        waiting[2].sendall(b"POST /health HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
        waiting[3].sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 1000)
        begun = time.monotonic()
        until(lambda: server.descriptors() > 8)
        for _ in range(MAX_CONNECTIONS + 8):
            waiting.append(stack.enter_context(server.connect()))
        waiting[-1].settimeout(5)
        assert ended(waiting[-1]), "one more than the bound was kept"
        assert time.monotonic() - begun < TIMEOUT, "too slow to tell"
        while time.monotonic() - begun < TIMEOUT + 2:
            for dripping in (waiting[2], waiting[3]):
                try:
                    dripping.sendall(b"a")
                except OSError:
                    break
            time.sleep(0.2)
        assert all(ended(connection) for connection in waiting)


def ended(connection: socket.socket) -> bool:
    try:
        fetched(connection)
    except TimeoutError:
        return False
    return True


def test_an_answer_that_nobody_fetches_is_dropped(server: Server) -> None:
    """Each held its whole mask, for ever. Until then it counts as a request inside."""
    black = encoded(np.zeros((2500, 4000, 3), np.uint8))
    with server.connect(4096) as idle, server.connect(4096) as slow:
        for connection in (idle, slow):
            connection.sendall(form(black, query="?format=raw"))
        until(lambda: idle.recv(10, socket.MSG_PEEK) and slow.recv(10, socket.MSG_PEEK))
        assert active(server) == b"2.0"
        answer = told(slow)
        assert answer is not None and answer.body == bytes(2500 * 4000)
        until(lambda: active(server) == b"0.0", seconds=5 * TIMEOUT)
        assert fetched(idle) < 2500 * 4000


def active(server: Server) -> bytes:
    metrics = server.ask(GET.replace(b"/health", b"/metrics") + b"\r\n")
    assert metrics is not None
    return re.findall(rb"^denseport_active_requests (.+)$", metrics.body, re.MULTILINE)[0]


def fetched(connection: socket.socket) -> int:
    count = 0
    try:
        while data := connection.recv(1 << 16):
            count += len(data)
    except ConnectionError:
        pass
    return count


@pytest.mark.parametrize("name", ["h11_impl.H11Protocol", "flow_control.FlowControl"])
def test_another_uvicorn_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Rather than served with connections that nobody limits."""
    http_protocol()
    other = type(name.rpartition(".")[2], (), {"__init__": lambda self: None})
    monkeypatch.setattr(f"uvicorn.protocols.http.{name}", other)
    with pytest.raises(MachineError, match=rf"uvicorn .* has no {other.__name__}\.\w+, without which") as caught:
        http_protocol()
    assert "pip install" in str(caught.value.remedy)
