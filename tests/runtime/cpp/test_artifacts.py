"""Which artifact runs, and what it gives, are as in Python: of INT8, of BF16, and of other back ends."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from bundles import onnx_artifact, verdict
from cpp import assert_same_mask, built, read_mask, run
from hostile import graph, rewrite, tiny_bundle
from onnx import helper, numpy_helper

from denseport.runtime.bundle.artifact import FOR_CPU, FOR_OPENVINO, FOR_TENSORRT, Artifact
from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.errors import DenseportError
from denseport.runtime.segmenter import Segmenter
from denseport.runtime.selection import select_artifact
from denseport.runtime.system.machine import inspect_machine


def quantized() -> onnx.ModelProto:
    """`hostile.tiny_model` with more weights, input and weights in INT8."""
    weight = np.random.default_rng(0).integers(-9, 10, (3, 3, 3, 3)).astype(np.int8)
    weight[range(3), range(3), 1, 1] = 100
    constants = {"w": weight, "sw": np.float32(0.01), "sx": np.float32(2.0), "zx": np.int8(-128), "zw": np.int8(0)}
    nodes = (
        helper.make_node("QuantizeLinear", ["image", "sx", "zx"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "sx", "zx"], ["x"]),
        helper.make_node("DequantizeLinear", ["w", "sw", "zw"], ["v"]),
        helper.make_node("Conv", ["x", "v"], ["logits"], kernel_shape=[3, 3], strides=[4, 4], pads=[1] * 4),
    )
    arrays = (numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items())
    return graph(*nodes, initializers=tuple(arrays))


def several(folder: Path) -> Bundle:
    """A bundle with an artifact of each kind that a CPU may run."""
    bundle = tiny_bundle(folder)
    data = quantized().SerializeToString()
    (folder / "int8.onnx").write_bytes(data)
    plain = dict(bundle.artifact("model.onnx").files)
    files = {"int8.onnx": hashlib.sha256(data).hexdigest()}
    of_int8: dict[str, dict[str, Any]] = {
        "int8.onnx": {},
        "int8.cpu.onnx": {"target": FOR_CPU},
        "int8.openvino": {"target": FOR_OPENVINO},
        "int8.bf16.openvino": {"target": FOR_OPENVINO, "float_precision": "bf16"},
        "int8.tensorrt.onnx": {"target": FOR_TENSORRT},
    }
    made: dict[str, Artifact] = {name: onnx_artifact(files, "int8", **fields) for name, fields in of_int8.items()}
    made["fp32.openvino"] = onnx_artifact(plain, "fp32", target=FOR_OPENVINO, made_of="model.onnx")
    made["bf16.openvino"] = onnx_artifact(plain, "bf16", target=FOR_OPENVINO)
    made["bf16.onnx"], made["fp16.onnx"] = onnx_artifact(plain, "bf16"), onnx_artifact(plain, "fp16")
    for name, artifact in made.items():
        bundle.add(name, artifact)
    return Bundle(folder)


NAMES = (
    *("model.onnx", "int8.onnx", "int8.cpu.onnx", "int8.openvino", "int8.bf16.openvino", "int8.tensorrt.onnx"),
    *("fp32.openvino", "bf16.openvino", "bf16.onnx", "fp16.onnx"),
)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.png"
    pixels = np.random.default_rng(0).integers(0, 256, (9, 13, 3), np.uint8)
    cv2.imwrite(str(path), cv2.resize(pixels, (150, 110), interpolation=cv2.INTER_CUBIC))
    return path


@pytest.mark.parametrize("name", [name for name in NAMES if name != "bf16.onnx"])  # which test_errors.py has
def test_an_artifact_gives_pythons_mask_or_is_refused_as_there(tmp_path: Path, image: Path, name: str) -> None:
    program, bundle = built("release/denseport-cpp"), several(tmp_path / "bundle")
    given = ("--artifact", name, "--threads", "1")
    done = run(program, "run", bundle.path, image, "-o", tmp_path / "mask.png", *given)
    try:
        with Segmenter(bundle, artifact=name, threads=1) as python:
            expected = python(image, top_k=2)
    except DenseportError as err:
        assert done.returncode == err.exit_code and err.message in done.stderr
        return
    assert done.returncode == 0, done.stderr
    assert len(np.unique(expected.mask)) == 3
    assert_same_mask(read_mask(tmp_path / "mask.png"), expected)


def drawn(seed: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Records of some artifacts."""
    rng, here = random.Random(seed), inspect_machine().processor
    for name in NAMES:
        found: dict[str, Any] = {}
        if name != "model.onnx" and rng.random() < 0.7:
            names = rng.sample(NAMES, rng.randint(0, 3)) + [name, "model.onnx"] * (rng.random() < 0.8)
            accepted = rng.random() < 0.7
            measured = {each: rng.choice((0.5, 0.8, 1.0, 1.3)) for each in names}
            machine = here if rng.random() < 0.8 else "another one"
            found["verdict"] = verdict(machine=machine, accepted=accepted, seconds=measured, reason=f"of {name}")
        if rng.random() < 0.15:
            found["audit"] = {"passed": rng.random() < 0.5}
        if rng.random() < 0.15:
            found["accuracy"] = {"gate": {"passed": rng.random() < 0.5, "reasons": ["this", "that"]}}
        yield name, found


@pytest.mark.parametrize("seed", range(12))
def test_the_choice_is_pythons_whatever_the_records_say(tmp_path: Path, seed: int) -> None:
    program, bundle = built("release/denseport-cpp"), several(tmp_path / "bundle")
    for name, record in drawn(seed):
        bundle.note(name, record)
    expected = select_artifact(bundle)
    done = run(program, "inspect", bundle.path)
    first, *rest = [line for line in done.stdout.splitlines() if not line.startswith("caution: ")][1:]
    assert first.startswith(f"runs: {expected.name} on ") and first.endswith(f"({expected.why})"), done.stderr
    assert dict(line.removeprefix("not ").split(": ", 1) for line in rest) == expected.others


@pytest.mark.parametrize("protocol", ["reference", "fixed:40x40", "slide:32:21", "ms-flip"])
@pytest.mark.parametrize("corners", [False, True])
def test_logits_that_are_resized_to_the_image_at_once(
    tmp_path: Path, image: Path, protocol: str, corners: bool
) -> None:
    """Not by way of the network's input; with what was padded cut off, by that way all the same."""
    program = built("release/denseport-cpp")
    for padded in (False, True):
        bundle = several(tmp_path / f"{padded}")

        def change(data: dict[str, Any], padded: bool = padded) -> None:
            data.update(via_input=False, align_corners=corners)
            if padded:
                data["preprocess"].insert(1, {"kind": "pad", "divisor": 32, "crop": True})

        rewrite(bundle, change)
        given = ("--artifact", "int8.onnx", "--protocol", protocol, "--threads", "1")
        done = run(program, "run", bundle.path, image, "-o", tmp_path / "mask.png", *given)
        assert done.returncode == 0, done.stderr
        with Segmenter(bundle.path, artifact="int8.onnx", protocol=protocol, threads=1) as python:
            assert_same_mask(read_mask(tmp_path / "mask.png"), python(image, top_k=2))
