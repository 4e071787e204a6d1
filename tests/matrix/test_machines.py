"""What machines without CUDA, or with an older one, do with the GPU's packages; scripts/test --matrix."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from wheels import program_on, wheel

from denseport.export.plugin.compile import compile_ptx
from denseport.runtime.backends.cuda.kernels.compile import image_ptx
from denseport.runtime.errors import MachineError
from denseport.runtime.system.machine import inspect_machine

pytestmark = pytest.mark.matrix

PTXAS = {"12.4": "nvidia-cuda-nvcc-cu12==12.4.131"}
ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90")
ONNXRUNTIME_GPU = "onnxruntime-gpu==1.31.1"
RTX_PROVIDER = "onnxruntime-ep-nv-tensorrt-rtx-cu13==0.5.0"

MODEL = """
< ir_version: 8, opset_import: ["" : 17] >
g (float[N, 3, H, W] image) => (float[N, 3, H, W] logits) { logits = Relu (image) }
"""
OPEN = """
from denseport.runtime.backends.onnxruntime import OnnxRuntimeSession
from denseport.runtime.errors import MachineError
try:
    session = OnnxRuntimeSession(sys.argv[1], providers=(sys.argv[2], "CPUExecutionProvider"))
    print("opened:", session.description)
except MachineError as err:
    print("refused:", err.message, err.remedy)
"""


@pytest.mark.parametrize("release", PTXAS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_older_assemblers_take_the_kernels(
    release: str, architecture: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the driver of that CUDA release does when it loads an engine with the plugin, or the device path's kernels."""
    (ptxas,) = wheel(PTXAS[release]).glob("nvidia/cuda_nvcc/bin/ptxas")
    ptxas.chmod(0o755)
    for name, compile_ in (("plugin", compile_ptx), ("images", image_ptx)):
        try:
            ptx = compile_()
        except MachineError as err:
            pytest.skip(err.message)
        source = tmp_path / f"{name}.ptx"
        source.write_bytes(ptx)
        assemble(ptxas, source, architecture)
    with capsys.disabled():
        print(f"\nCUDA {release}, {architecture}: both sets of kernels assemble", end="")


def assemble(ptxas: Path, source: Path, architecture: str) -> None:
    command = [ptxas, f"--gpu-name={architecture}", source, "--output-file=/dev/null"]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr


@pytest.fixture
def model(tmp_path: Path) -> Path:
    onnx_parser = pytest.importorskip("onnx.parser")
    import onnx

    path = tmp_path / "model.onnx"
    onnx.save(onnx_parser.parse_model(MODEL), path)
    return path


@pytest.mark.skipif(bool(inspect_machine().gpus), reason="this machine has a GPU")
@pytest.mark.parametrize(
    ("requirement", "provider"),
    [(ONNXRUNTIME_GPU, "CUDAExecutionProvider"), (RTX_PROVIDER, "NvTensorRTRTXExecutionProvider")],
)
def test_without_a_gpu_a_provider_is_refused(
    requirement: str, provider: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each wheel has the provider, and a machine without a driver or CUDA's libraries cannot start it."""
    said = program_on([wheel(requirement)], "-c", OPEN, model, provider)
    assert said.returncode == 0, said.stderr
    (line,) = said.stdout.splitlines()
    with capsys.disabled():
        print(f"\n{requirement}: {line}", end="")
    assert line.startswith("refused: ")
