"""The client: what it repeats, what it does not, and for how long. With a server: tests/runtime/triton."""

from __future__ import annotations

import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from support import ASSETS

from denseport.runtime.bundle.bundle import MANIFEST, Bundle
from denseport.runtime.bundle.manifest import DepthOutput
from denseport.runtime.cli.main import main
from denseport.runtime.errors import DenseportError, ImageError, InputError, MachineError, ServerError
from denseport.runtime.media.images import write_image
from denseport.runtime.serving.triton import client as client_module
from denseport.runtime.serving.triton.client import Client
from denseport.runtime.serving.triton.connections import Failure
from denseport.runtime.serving.triton.variants import Options, served_models
from denseport.runtime.system.machine import install_command

pytest.importorskip("tritonclient.grpc")
pytest.importorskip("tritonclient.http")

IMAGE = np.zeros((4, 6, 3), np.uint8)


class Script:
    """A connection that fails as it is told, then answers; with ``forever`` it never does."""

    def __init__(self, *failures: str, forever: bool = False, known: str = "m", instances: int | None = None) -> None:
        self.failures, self.forever, self.known, self.instances = list(failures), forever, known, instances
        self.calls = 0

    def infer(self, images: np.ndarray, left: float, output: str = "mask") -> np.ndarray:
        self.calls += 1
        if self.failures:
            raise Failure("said so", self.failures[0] if self.forever else self.failures.pop(0))
        return np.full(images.shape[:3], 7, np.uint8 if output == "mask" else np.float32)

    def parameters(self, left: float) -> dict[str, str]:
        return {} if self.instances is None else {"instances": str(self.instances)}

    def models(self, left: float) -> set[str]:
        return {self.known}

    def close(self) -> None:
        pass


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Client]:
    def make(script: Script, deadline: float = 5.0) -> Client:
        monkeypatch.setattr(client_module, "connect", lambda *arguments, **more: script)
        return Client("http://127.0.0.1:1", "m", deadline=deadline)

    return make


def test_what_passes_is_asked_again(scripted: Callable[..., Client]) -> None:
    script = Script("unavailable", "not found", "unavailable")
    mask = scripted(script).segment(IMAGE)
    assert script.calls == 4 and mask.shape == (4, 6) and (mask == 7).all()


@pytest.mark.parametrize(
    ("kind", "error"),
    [("invalid", ImageError), ("failed", ServerError), ("late", ServerError)],
)
def test_what_does_not_pass_is_not(scripted: Callable[..., Client], kind: str, error: type[DenseportError]) -> None:
    script = Script(kind)
    with pytest.raises(error, match="said so"):
        scripted(script).segment(IMAGE)
    assert script.calls == 1


def test_a_model_that_the_server_does_not_know_is_not_waited_for(scripted: Callable[..., Client]) -> None:
    script = Script("not found", known="other")
    with pytest.raises(InputError, match="m: said so"):
        scripted(script).segment(IMAGE)
    assert script.calls == 1


def test_the_deadline_ends_it_and_pauses_grow(scripted: Callable[..., Client]) -> None:
    script = Script("unavailable", forever=True)
    started = time.monotonic()
    with pytest.raises(ServerError, match="said so"):
        scripted(script, deadline=1.0).segment(IMAGE)
    assert 0.3 < time.monotonic() - started < 5
    assert 2 <= script.calls <= 8  # 0.05, 0.1, 0.2, 0.4 s, each as short as its half


def test_the_probe_repeats_nothing_and_asks_every_instance(scripted: Callable[..., Client]) -> None:
    script = Script("unavailable")
    with pytest.raises(ServerError, match="m is not healthy: said so"):
        scripted(script).probe()
    assert script.calls == 1
    script = Script(instances=5)
    assert scripted(script).probe() >= 0
    assert script.calls == 20 * client_module.IN_A_ROW


def test_the_probe_begins_once_all_its_connections_are_there(
    scripted: Callable[..., Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    seen: list[int] = []

    class Watching(Script):
        def infer(self, images: np.ndarray, left: float, output: str = "mask") -> np.ndarray:
            seen.append(len(made))
            return super().infer(images, left, output)

    client, script = scripted(Script(instances=3)), Watching()

    def slowly(*_: object, **__: object) -> Script:
        time.sleep(0.02 * len(made))
        made.append(1)
        return script

    monkeypatch.setattr(client_module, "connect", slowly)
    client.probe()
    assert seen == [12] * 12 * client_module.IN_A_ROW


def test_depths_are_asked_for_by_their_name(scripted: Callable[..., Client]) -> None:
    depth = scripted(Script()).estimate(IMAGE)
    assert depth.dtype == np.float32 and depth.shape == (4, 6) and (depth == 7).all()
    with pytest.raises(ServerError, match=r"gave depths of \(1, 4, 6\) uint8"):
        scripted(Lying(np.zeros((1, 4, 6), np.uint8))).estimate(IMAGE)
    assert scripted(Lying(np.zeros((1, 64, 64), np.float32), output="depth")).probe() >= 0
    with pytest.raises(ServerError, match="gave masks of"):
        scripted(Lying(np.zeros((1, 64, 64), np.float32))).probe()


@pytest.mark.parametrize(
    "image",
    [np.zeros((4, 6), np.uint8), np.zeros((4, 6, 4), np.uint8), np.zeros((4, 6, 3)), np.zeros((0, 6, 3), np.uint8)],
)
def test_what_is_no_image_is_not_sent(scripted: Callable[..., Client], image: np.ndarray) -> None:
    script = Script()
    with pytest.raises(ImageError, match="uint8 BGR; got"):
        scripted(script).segment(image)
    assert not script.calls


def test_a_model_of_another_maker(scripted: Callable[..., Client]) -> None:
    with pytest.raises(InputError, match="does not name its classes"):
        scripted(Script()).classes()


# A server that means ill: it is trusted with its answers, not with the client


class Lying(Script):
    """A connection whose server says whatever it is told to."""

    def __init__(self, mask: np.ndarray | None = None, **parameters: str) -> None:
        super().__init__()
        self.mask, self.told = mask, parameters

    def infer(self, images: np.ndarray, left: float, output: str = "mask") -> np.ndarray:
        answer = super().infer(images, left, output)
        return answer if self.mask is None else self.mask

    def parameters(self, left: float) -> dict[str, str]:
        return self.told


@pytest.mark.parametrize(
    "mask",
    [
        np.zeros((1, 6, 4), np.uint8),
        np.zeros((2, 4, 6), np.uint8),
        np.zeros((1, 4, 6, 1), np.uint8),
        np.zeros((0, 4, 6), np.uint8),
        np.zeros((), np.uint8),
        np.zeros((1, 4, 6), np.int64),
        np.full((1, 4, 6), np.nan),
        np.full((1, 4, 6), b"\x1b[2J", object),
    ],
    ids=lambda mask: f"{mask.shape} {mask.dtype}",
)
def test_masks_that_were_not_asked_for(scripted: Callable[..., Client], mask: np.ndarray) -> None:
    with pytest.raises(ServerError, match="gave masks of"):
        scripted(Lying(mask)).segment(IMAGE)


@pytest.mark.parametrize(
    "said", ["", "-1", "0", "1.5", "1e9", "９", "9" * 5000, "0x10", " 3", "3\n", "nan", "\x1b[2J", "1" * 10]
)
def test_counts_of_instances_that_are_none_are_taken_for_one(scripted: Callable[..., Client], said: str) -> None:
    script = Lying(instances=said)
    scripted(script).probe()
    assert script.calls == 1


def test_a_probe_makes_no_more_connections_than_its_bound(
    scripted: Callable[..., Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "MOST_AT_ONCE", 3)
    script = Lying(instances="999999999")
    scripted(script).probe()
    assert script.calls == 3 * client_module.IN_A_ROW


def test_a_probe_is_not_content_with_another_size(scripted: Callable[..., Client]) -> None:
    with pytest.raises(ServerError, match="gave masks of"):
        scripted(Lying(np.zeros((1, 1, 1), np.uint8))).probe()


@pytest.mark.parametrize(
    "said",
    ["", "{}", "null", "3", '"road"', "[1]", "[[]]", '["road", null]', "[" * 100_000, "not JSON", "NaN", "\ud800"],
)
def test_class_names_that_are_none(scripted: Callable[..., Client], said: str) -> None:
    with pytest.raises(InputError, match="does not name its classes"):
        scripted(Lying(classes=said)).classes()


class Answers(BaseHTTPRequestHandler):
    """Says 200 and the same to every request."""

    body, header = b"", "0"

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.body)))
        self.send_header("Inference-Header-Content-Length", self.header)
        self.end_headers()
        self.wfile.write(self.body)

    do_POST = do_GET

    def log_message(self, *given: object) -> None:
        pass


# tritonclient leaves the socket of an answer that it cannot read to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("header", [None, "0", "-1", "99999", "x"])
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"null",
        b"{}",
        b'{"parameters": 3}',
        b'{"parameters": {"classes": 3}}',
        b'{"parameters": {"classes": {"string_value": [1]}, "instances": {"string_value": [1]}}}',
        b'{"outputs": 3}',
        b'{"outputs": [{}]}',
        b'{"outputs": [{"name": "mask", "datatype": "UINT8", "shape": [1, 4, 6]}]}',
        b'{"outputs": [{"name": "mask", "datatype": "UINT8", "shape": [-1], "data": [1, 2]}]}',
        b'{"outputs": [{"name": "mask", "datatype": "X", "shape": ["a"], "data": ["b"]}]}',
        b'{"outputs": [{"name": "mask", "datatype": "UINT8", "shape": [9], "parameters": {"binary_data_size": 1e9}}]}',
        b'{"outputs": [{"name": "mask", "datatype": "UINT8", "shape": [1], "data": [99999999999999999999]}]}',
    ],
)
def test_answers_of_another_form_are_told_in_words(body: bytes, header: str | None) -> None:
    made = {"body": body, "header": str(len(body)) if header is None else header}
    with HTTPServer(("127.0.0.1", 0), type("Made", (Answers,), made)) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            with Client(f"http://127.0.0.1:{server.server_port}", "m", deadline=0.3) as client:
                for ask in (lambda: client.segment(IMAGE), client.classes, lambda: client.probe(timeout=2)):
                    with pytest.raises(DenseportError, match="m"):
                        ask()
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("said", [{}, {"meaning": "null"}, {"meaning": "[1]"}, {"meaning": "{"}], ids=str)
def test_depths_without_a_meaning(scripted: Callable[..., Client], said: dict[str, str]) -> None:
    with pytest.raises(InputError, match="does not say what its depths mean"):
        scripted(Lying(**said)).depth()


def test_a_server_of_other_depths_is_refused(
    depth_sample: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the export says of the server's own bundle is compared with the manifest that is given."""
    (front,) = served_models(depth_sample, Options())
    said = {key: value.string_value for key, value in front.config.parameters.items()}
    monkeypatch.setattr(client_module, "connect", lambda *_: Lying(**said))
    image = tmp_path / "image.png"
    write_image(image, np.zeros((8, 8, 3), np.uint8))
    depth = depth_sample.manifest.depth
    assert depth is not None and depth.unit == "metres"
    with Client("http://127.0.0.1:1", "m") as client:
        assert DepthOutput(**client.depth()) == depth
    for change in ({"unit": "relative", "largest": None}, {"unit": "relative", "larger_is": "nearer", "largest": None}):
        given = Bundle(shutil.copytree(depth_sample.path, tmp_path / "bundle", dirs_exist_ok=True))
        other = replace(given.manifest, depth=replace(depth, **change))
        (given.path / MANIFEST).write_text(other.to_json())
        command = ["run", given.path, image, "-o", tmp_path / "out", "--server", "http://127.0.0.1:1"]
        assert main([str(word) for word in command]) == 2
        assert "has other depths (unit, direction or limit)" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_class_names_are_what_the_server_says(scripted: Callable[..., Client]) -> None:
    assert scripted(Lying(classes='["road", "car"]')).classes() == ("road", "car")


@contextmanager
def silent_server() -> Iterator[int]:
    """Takes connections, and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_a_server_that_is_not_there_or_silent(scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        closed = listener.getsockname()[1]
    with silent_server() as silent:
        for port in (closed, silent):
            started = time.monotonic()
            with Client(f"{scheme}://127.0.0.1:{port}", "m", deadline=0.6) as client, pytest.raises(ServerError):
                client.segment(IMAGE)
            assert time.monotonic() - started < 10  # without a limit of ours it would be a minute, or for ever


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "http://", "ftp://a:1", "http://a", "grpc://a:b", "http://a:99999"])
def test_urls_that_are_none(url: str) -> None:
    with pytest.raises(InputError, match="is not a server's URL"):
        Client(url, "m")


def test_without_tritonclient_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tritonclient.grpc", None)
    with pytest.raises(MachineError, match="not installed") as caught:
        Client("grpc://127.0.0.1:1", "m")
    assert install_command("client") in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--server", "http://127.0.0.1:1", "--threads", "2"], "--threads is for running it on this machine"),
        (["--server", "http://127.0.0.1:1", "--protocol", "ms-flip"], "--protocol is for running it on this machine"),
        (["--server", "nowhere"], "not a server's URL"),
        (["--server", "http://127.0.0.1:1", "--model", "a/b"], "cannot be a model's name"),
        (["--model", "m"], "Give --server too"),
    ],
)
def test_arguments_of_run_that_do_not_go_together(
    sample: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    (photo, *_) = (ASSETS / "street").rglob("*.jpg")
    assert main(["run", str(sample.path), str(photo), "-o", str(tmp_path / "out"), *arguments]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_probe_as_a_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    scripts = {"m": Script(), "sick": Script("failed")}
    monkeypatch.setattr(client_module, "connect", lambda url, model, version, **more: scripts[model])
    assert client_module.main(["http://127.0.0.1:1", "m"]) == 0
    assert "m answers within" in capsys.readouterr().out
    assert client_module.main(["http://127.0.0.1:1", "sick"]) == 3
    assert "not healthy" in capsys.readouterr().err
    assert client_module.main(["http://127.0.0.1:1"]) == 2
