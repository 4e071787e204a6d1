"""NVIDIA's own front-end takes the plugins, on a machine without TensorRT; see tensorrt_on_cpu.py.

The whole contract, down to what an engine would hold, is checked where DENSEPORT_TENSORRT_INCLUDE names the folders
(with ``:`` between them) of TensorRT's headers, which no wheel has, and CUDA's, which the test extra installs below
``nvidia/cu13/include``.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from denseport.export.plugin import launch
from denseport.export.plugin.compile import compile_ptx, single_kernel
from denseport.runtime.errors import MachineError

HERE = Path(__file__).parent
WHEELS = {"tensorrt_bindings": "tensorrt-cu13-bindings", "tensorrt_lean_libs": "tensorrt-lean-cu13-libs"}
HEADERS = "DENSEPORT_TENSORRT_INCLUDE"

FLOAT16, INT32 = 1, 3  # tensorrt.DataType
ADD = {
    "operator": "UpsampleAdd",
    "fields": {"align_corners": 1},
    "inputs": [("f16", [2, 12, 7, 8]), ("f16", [2, 12, 14, 16])],
}
ARGMAX = {"operator": "UpsampleArgmax", "fields": {"scale": 4}, "inputs": [("f32", [2, 5, 6, 9])]}
RESIZE = {
    "operator": "ResizeArgmax",
    "fields": {},
    "inputs": [("f16", [2, 5, 6, 9]), ("f32", [2, 3, 12, 17]), ("f32", [15]), ("f32", [22])],
}
INT8 = ADD | {"inputs": [("int8", [2, 12, 7, 8]), ("int8", [2, 12, 14, 16])]}


@pytest.fixture(scope="module", autouse=True)
def _needs() -> None:
    absent = [wheel for module, wheel in WHEELS.items() if importlib.util.find_spec(module) is None]
    if absent:
        pytest.skip(f"not installed: {', '.join(absent)}")
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")


def run(folder: Path, *arguments: str, questions: list[dict[str, Any]] | None = None) -> Any:
    program = subprocess.run(
        [sys.executable, str(HERE / "tensorrt_on_cpu.py"), str(folder), *arguments],
        input=json.dumps(questions),
        capture_output=True,
        text=True,
        check=False,
    )
    assert program.returncode == 0, program.stderr
    return json.loads(program.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """What engines would hold for the nodes above, in their order."""
    include = os.environ.get(HEADERS)
    if not include:
        pytest.skip(f"{HEADERS} does not name the folders of TensorRT's and CUDA's headers")
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    try:
        compile_ptx()
    except MachineError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("tensorrt")
    builder = folder / "mini_builder.so"
    folders = [f"-I{path}" for path in include.split(os.pathsep)]
    subprocess.run(
        ["g++", "-std=c++17", "-shared", "-fPIC", *folders, str(HERE / "mini_builder.cpp"), "-o", str(builder)],
        check=True,
    )
    return list(run(folder, str(builder), questions=[ADD, ARGMAX, RESIZE, INT8])["answers"])


def test_tensorrt_registers_and_validates_the_plugins(tmp_path: Path) -> None:
    creators = run(tmp_path)["creators"]
    assert {creator["name"]: creator["fields"] for creator in creators} == {
        "UpsampleAdd": ["align_corners"],
        "UpsampleArgmax": ["scale"],
        "ResizeArgmax": [],
    }
    assert {creator["version"] for creator in creators} == {"1"}


def assert_holds(kernel: Any, plan: launch.Launch) -> None:
    """The engine launches what the plan says, with int32 scalars, from that kernel's own PTX."""
    assert kernel["kernel"] == plan.kernel
    assert kernel["launch"] == [plan.grid, 1, 1, plan.block, 1, 1, 0]
    assert kernel["scalars"] == list(plan.scalars)
    assert set(kernel["scalar_types"]) == {2}  # PluginArgDataType.INT32
    assert kernel["code"].rstrip("\0") == single_kernel(compile_ptx(), plan.kernel).decode()


def test_what_an_engine_holds_for_upsample_add(answers: list[Any]) -> None:
    answer = answers[0]
    assert (answer["output_type"], answer["output_shape"]) == (FLOAT16, [2, 12, 14, 16])
    layouts: tuple[launch.Layout, ...] = ("linear", "hwc8")
    expected = [(layout, tactic, block) for layout in layouts for tactic, block in ((1, 256), (2, 128))]
    for kernel, (layout, tactic, block) in zip(answer["kernels"], expected, strict=True):
        assert kernel["formats"] == [layout.upper()] * 3
        assert kernel["tactic"] == tactic
        shape = (2, 12, 7, 8)
        plan = launch.upsample_add(*shape, precision="f16", layout=layout, align_corners=True, block=block)
        assert_holds(kernel, plan)


def test_what_an_engine_holds_for_upsample_argmax(answers: list[Any], kernels: Any) -> None:
    answer = answers[1]
    assert (answer["output_type"], answer["output_shape"]) == (INT32, [2, 24, 36])
    assert [kernel["tactic"] for kernel in answer["kernels"]] == [1, 2]
    logits = np.random.default_rng(0).standard_normal((2, 5, 6, 9)).astype(np.float32)
    results = []
    for kernel, strip in zip(answer["kernels"], launch.STRIPS, strict=True):
        assert_holds(kernel, launch.upsample_argmax(2, 5, 6, 9, precision="f32", scale=4, strip=strip))
        held = launch.Launch(kernel["kernel"], kernel["launch"][0], kernel["launch"][3], tuple(kernel["scalars"]))
        results.append(kernels.run(held, [logits], (2, 24, 36), np.int32))
    np.testing.assert_array_equal(*results)


def test_what_an_engine_holds_for_resize_argmax(answers: list[Any]) -> None:
    answer = answers[2]
    assert (answer["output_type"], answer["output_shape"]) == (INT32, [2, 15, 22])
    (kernel,) = answer["kernels"]
    assert_holds(kernel, launch.resize_argmax(2, 5, (6, 9), (12, 17), (15, 22), precision="f16"))


def test_int8_is_not_offered(answers: list[Any]) -> None:
    """A graph with Q/DQ around the operator dequantizes before it: no kernel takes int8."""
    assert answers[3]["kernels"] == []
