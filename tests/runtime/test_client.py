"""The client: what it repeats, what it does not, and for how long. With a server: tests/runtime/triton."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from support import ASSETS

from denseport.runtime import client as client_module
from denseport.runtime.bundle import Bundle
from denseport.runtime.cli import main
from denseport.runtime.client import Client
from denseport.runtime.errors import DenseportError, ImageError, InputError, MachineError, ServerError
from denseport.runtime.triton.connections import Failure

pytest.importorskip("tritonclient.grpc")
pytest.importorskip("tritonclient.http")

IMAGE = np.zeros((4, 6, 3), np.uint8)


class Script:
    """A connection that fails as it is told, then answers; with ``forever`` it never does."""

    def __init__(self, *failures: str, forever: bool = False, known: str = "m", instances: int | None = None) -> None:
        self.failures, self.forever, self.known, self.instances = list(failures), forever, known, instances
        self.calls = 0

    def infer(self, inputs: dict[str, np.ndarray], output: str, left: float) -> np.ndarray:
        self.calls += 1
        if self.failures:
            raise Failure("said so", self.failures[0] if self.forever else self.failures.pop(0))
        return np.full(inputs["image"].shape[:3], 7, np.uint8)

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
    with pytest.raises(ServerError, match="m is not well: said so"):
        scripted(script).probe()
    assert script.calls == 1
    script = Script(instances=5)
    assert scripted(script).probe() >= 0
    assert script.calls == 5


@pytest.mark.parametrize(
    "image",
    [np.zeros((4, 6), np.uint8), np.zeros((4, 6, 4), np.uint8), np.zeros((4, 6, 3)), np.zeros((0, 6, 3), np.uint8)],
)
def test_what_is_no_picture_is_not_sent(scripted: Callable[..., Client], image: np.ndarray) -> None:
    script = Script()
    with pytest.raises(ImageError, match="uint8 BGR; got"):
        scripted(script).segment(image)
    assert not script.calls


def test_a_model_of_another_maker(scripted: Callable[..., Client]) -> None:
    with pytest.raises(InputError, match="does not name its classes"):
        scripted(Script()).classes()


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
    with pytest.raises(InputError, match="is no server's URL"):
        Client(url, "m")


def test_without_tritonclient_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tritonclient.grpc", None)
    with pytest.raises(MachineError, match="not installed") as caught:
        Client("grpc://127.0.0.1:1", "m")
    assert "denseport[client]" in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--server", "http://127.0.0.1:1", "--threads", "2"], "--threads is for running it here"),
        (["--server", "http://127.0.0.1:1", "--protocol", "ms-flip"], "--protocol is for running it here"),
        (["--server", "nowhere"], "no server's URL"),
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
    assert "not well" in capsys.readouterr().err
    assert client_module.main(["http://127.0.0.1:1"]) == 2
