"""What is fuzzed: each target takes bytes that a stranger could send, and raises nothing but what users are told.

`tests/security/fuzz` runs them within bounds, ``scripts/hardening/fuzz`` for as long as it is told.
"""

from __future__ import annotations

import atexit
import contextlib
import copy
import functools
import io
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from hostile import enter, tiny_bundle
from serving import Server, form, serving
from support import REPO

from denseport.runtime.bundle.bundle import MANIFEST, Bundle
from denseport.runtime.errors import DenseportError

__all__ = ["CORPUS", "EDITS", "TARGETS", "Edit", "command_line", "corpus", "mutate", "mutate_json"]

CORPUS = REPO / "tests" / "security" / "fuzz" / "corpus"

Edit = tuple[str, int, int]  # what is done, where, with which value
EDITS = ("flip", "set", "insert", "delete", "repeat", "cut", "number", "swap")
NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
ODD: tuple[Any, ...] = (
    *(None, True, 0, -1, 1, 2**31, 10**400, 1e308, -0.5, float("nan"), float("inf")),
    *(
        "",
        "x",
        "../x",
        "/etc/passwd",
        "\x1b[2J",
        "a\nb",
        "\ud800",
        "<script>",
        [],
        [[]],
        {},
        {"x": []},
        [0, 0],
        [1] * 9,
    ),
)


def mutate(data: bytes, edits: Sequence[Edit]) -> bytes:
    """``data`` after some edits, each at its place modulo the length."""
    found = bytearray(data)
    for kind, place, value in edits:
        at = place % (len(found) + 1)
        if kind == "flip" and at < len(found):
            found[at] ^= 1 << value % 8
        elif kind == "set" and at < len(found):
            found[at] = value % 256
        elif kind == "insert":
            found[at:at] = bytes([value % 256]) * (1 + value % 7)
        elif kind == "delete":
            del found[at : at + 1 + value % 16]
        elif kind == "repeat":
            found[at:at] = found[at : at + 1 + value % 64]
        elif kind == "cut":
            del found[max(at, 1) :]
        elif kind == "number":
            number = NUMBERS[value % len(NUMBERS)]
            found[at : at + 4] = number.to_bytes(4, "little" if value % 2 else "big")
        elif kind == "swap":
            other = value % (len(found) + 1)
            found[at : at + 4], found[other : other + 4] = found[other : other + 4], found[at : at + 4]
    return bytes(found)


def mutate_json(text: str, edits: Sequence[Edit]) -> str:
    """JSON in which values were exchanged for odd ones, left out or put under another name."""
    root = {"root": json.loads(text)}
    for kind, place, value in edits:
        spots = list(_spots(root))
        holder, key = spots[place % len(spots)]
        if kind == "delete" and isinstance(holder, dict) and key != "root":
            del holder[key]
        elif kind == "insert" and isinstance(holder, dict) and key != "root":
            holder[str(ODD[value % len(ODD)])] = holder[key]
        else:
            holder[key] = copy.deepcopy(ODD[value % len(ODD)])
    return json.dumps(root["root"])


def _spots(value: Any) -> Any:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items):
        yield value, key
        yield from _spots(inner)


def corpus(*suffixes: str) -> list[Path]:
    """The corpus's files that end so, in order."""
    return sorted(file for file in CORPUS.iterdir() if file.name.endswith(suffixes))


def checkpoint(data: bytes, suffix: str = ".pth") -> None:
    """Reading a checkpoint, and all that is concluded from it before there is a network."""
    from denseport.export.checkpoint.file import read_checkpoint
    from denseport.export.checkpoint.pipeline import image_steps
    from denseport.export.checkpoint.recognise import recognise
    from denseport.export.checkpoint.settings import (
        class_names,
        inference_of,
        palette_of,
        reduces_zero_label,
    )

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"c{suffix}"
        file.write_bytes(data)
        with contextlib.suppress(DenseportError):
            found = read_checkpoint(file)
            for conclude in (recognise, image_steps, inference_of, reduces_zero_label):
                with contextlib.suppress(DenseportError):
                    conclude(found)
            with contextlib.suppress(DenseportError):
                class_names(found, 2)
            palette_of(found, 2)


def weights(data: bytes) -> None:
    """The same of a safetensors file."""
    checkpoint(data, ".safetensors")


def manifest(data: bytes) -> None:
    """Opening a bundle, and saying what is in it and what of it runs here."""
    from denseport.runtime.cli.main import main

    with tempfile.TemporaryDirectory() as folder:
        bundle = tiny_bundle(Path(folder) / "b").path
        (bundle / MANIFEST).write_bytes(data)
        for command in (["inspect"], ["inspect", "--json"], ["doctor"]):
            _quietly(main, [*command, str(bundle)])
        with contextlib.suppress(DenseportError):
            segment(Bundle(bundle))


def model(data: bytes) -> None:
    """Opening an ONNX file whose hash is right, and running it."""
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(DenseportError):
        segment(enter(tiny_bundle(Path(folder) / "b"), data))


def foreign(data: bytes) -> None:
    """Importing an ONNX file, and segmenting an image with what comes of it."""
    from denseport.export.entrance.declared import Declared
    from denseport.export.entrance.foreign import import_bundle

    about = Declared(classes=3, mean=(0, 0, 0), std=(255, 255, 255), value_range=255, size=(24, 16))
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(DenseportError):
        file = Path(folder) / "m.onnx"
        file.write_bytes(data)
        segment(import_bundle(file, Path(folder) / "b", about))


def segment(bundle: Bundle) -> None:
    """Segment a small image; a mask that comes out is one."""
    from denseport.runtime.segmenter import Segmenter

    image = np.arange(16 * 24 * 3, dtype=np.uint8).reshape(16, 24, 3)
    with Segmenter(bundle, artifact="model.onnx", threads=1) as segmenter:
        mask = segmenter(image).mask
    assert mask.shape == image.shape[:2] and mask.max() < len(bundle.manifest.classes)


def decode_any_image(data: bytes) -> None:
    """Decoding an image."""
    from denseport.runtime.media.images import decode_image

    with contextlib.suppress(DenseportError):
        image = decode_image(data, "image")
        assert image.ndim == 3 and image.shape[2] == 3 and image.dtype == np.uint8 and image.size


def mask(data: bytes) -> None:
    """Reading the labels of a mask."""
    from denseport.runtime.evaluation.dataset import Dataset, Sample

    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(DenseportError):
        file = Path(folder) / "m.png"
        file.write_bytes(data)
        labels = Dataset((Sample("m", file, file),)).read_mask(Sample("m", file, file), 3)
        assert set(np.unique(labels).tolist()) <= {0, 1, 2, 255}


STATUSES = {200, 400, 404, 405, 408, 413, 415, 422, 503, 504}  # docs/page.md's


def http(data: bytes) -> None:
    """Whatever is sent to a server: it says nothing, or something that is documented, and then gives the right mask."""
    server = _server()
    answer = server.ask(data, patience=0.3)
    assert answer is None or answer.status in STATUSES, answer
    assert answer is None or answer.status == 200 or answer.is_error, answer
    right = server.ask(form((CORPUS / "colour.bmp").read_bytes(), query="?format=raw"))
    assert right is not None and right.body == _colours(), right
    assert server.mebibytes() < 1024


@functools.cache
def _server() -> Server:
    """A server in a process of its own, until this one ends."""
    stack = contextlib.ExitStack()
    atexit.register(stack.close)
    bundle = tiny_bundle(Path(stack.enter_context(tempfile.TemporaryDirectory())) / "b")
    return stack.enter_context(serving(bundle, "--threads", "1", "--timeout", "20"))


@functools.cache
def _colours() -> bytes:
    """The mask of colour.bmp, by this process."""
    from denseport.runtime.media.images import read_image
    from denseport.runtime.segmenter import Segmenter

    with tempfile.TemporaryDirectory() as folder, Segmenter(tiny_bundle(Path(folder) / "b"), threads=1) as segmenter:
        return segmenter(read_image(CORPUS / "colour.bmp")).mask.tobytes()


def command_line(arguments: Sequence[str]) -> int:
    """A call of the command; an exit code that is documented, and no word but through it."""
    from denseport.runtime.cli.main import main

    code = _quietly(main, list(arguments))
    assert code in (0, 1, 2, 3), f"{arguments}: exit code {code}"
    return code


def _quietly(main: Callable[[list[str]], int], arguments: list[str]) -> int:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return main(arguments)


# By name: the target, and the files of the corpus that it starts from.
TARGETS: dict[str, tuple[Callable[[bytes], None], list[Path]]] = {
    "checkpoint": (checkpoint, corpus(".pth")),
    "weights": (weights, corpus(".safetensors")),
    "manifest": (manifest, corpus(".json")),
    "model": (model, corpus(".onnx")),
    "foreign": (foreign, corpus(".onnx")),
    "image": (
        decode_any_image,
        corpus(".png", ".jpg", ".webp", ".gif", ".bmp", ".tiff", ".jp2", ".avif", ".ppm", ".hdr"),
    ),
    "mask": (mask, [file for file in corpus(".png") if file.name.startswith("mask")]),
    "http": (http, corpus(".http")),
}
