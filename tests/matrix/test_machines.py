"""What machines without CUDA, or with an older one, do with the GPU's packages; scripts/test --matrix."""

from __future__ import annotations

import importlib
import subprocess
from pathlib import Path

import pytest
from support import REPO
from wheels import program_on, wheel

from denseport.export.graph.model import read_model, save_model
from denseport.export.graph.precision import set_types
from denseport.export.plugin.compile import compile_ptx
from denseport.runtime.backends.cuda.kernels.compile import image_ptx
from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.errors import MachineError
from denseport.runtime.system.machine import inspect_machine

pytestmark = pytest.mark.matrix

PTXAS = {"12.4": "nvidia-cuda-nvcc-cu12==12.4.131"}
ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90")
ONNXRUNTIME_GPU = "onnxruntime-gpu==1.31.1"
CUOBJDUMP = "nvidia-cuda-cuobjdump==13.4.92"
RTX_PROVIDER = "onnxruntime-ep-nv-tensorrt-rtx-cu13==0.5.0"

MODEL = """
< ir_version: 8, opset_import: ["" : 17] >
g (float[N, 3, H, W] image) => (float[N, 3, H, W] logits) { logits = Relu (image) }
"""
OPEN = """
import sys
from denseport.runtime.backends.onnxruntime import OnnxRuntimeSession
from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.errors import MachineError
try:
    session = OnnxRuntimeSession(sys.argv[1], providers=(sys.argv[2], "CPUExecutionProvider"))
    print("opened:", session.description)
except MachineError as err:
    print("refused:", err.message, err.remedy)
"""
CHECK = """
import sys, onnx
for path in sys.argv[1:]:
    onnx.checker.check_model(path, full_check=True)
    model = onnx.load(path, load_external_data=False)
    print("read", path.rpartition("/")[2], "IR", model.ir_version, "opset", model.opset_import[0].version, end="; ")
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


def test_nvidias_reader_finds_what_stays_of_a_thinned_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As scripts/gpu/pack --keep sm_90 makes it; whether a driver does is for a GPU to show."""
    monkeypatch.syspath_prepend(REPO / "scripts" / "gpu")
    gpu_fatbin = importlib.import_module("gpu_fatbin")
    (cuobjdump,) = wheel(CUOBJDUMP).glob("nvidia/cu13/bin/cuobjdump")
    cuobjdump.chmod(0o755)
    (whole,) = wheel(ONNXRUNTIME_GPU).glob("onnxruntime/capi/libonnxruntime_providers_cuda.so")
    thinned = tmp_path / whole.name
    library = bytearray(whole.read_bytes())
    code = gpu_fatbin.keep_architecture(library, 90)
    thinned.write_bytes(library)

    def said(folder: str, path: Path, *options: str) -> list[str]:
        (tmp_path / folder).mkdir(exist_ok=True)
        command = [cuobjdump, *options, "-arch", "sm_90a", path]
        program = subprocess.run(command, cwd=tmp_path / folder, capture_output=True, text=True, check=True)
        return program.stdout.splitlines()

    listed = said("whole", whole, "--list-elf")
    assert listed == said("thinned", thinned, "--list-elf") and len(listed) > 100
    for folder, path in (("whole", whole), ("thinned", thinned)):
        said(folder, path, "--extract-elf", f"{whole.stem}.10")  # the tenth, and each of which that is the beginning
    files = sorted((tmp_path / "whole").iterdir())
    assert len(files) > 5
    assert all(file.read_bytes() == (tmp_path / "thinned" / file.name).read_bytes() for file in files)
    with capsys.disabled():
        print(
            f"\n{whole.name}: {code[90] / 2**20:.0f} of {code.total() / 2**20:.0f} MiB stay, {len(listed)} cubins",
            end="",
        )


@pytest.fixture
def model(tmp_path: Path) -> Path:
    onnx_parser = pytest.importorskip("onnx.parser")
    import onnx

    path = tmp_path / "model.onnx"
    onnx.save(onnx_parser.parse_model(MODEL), path)
    return path


@pytest.fixture(scope="module")
def graphs(sample: Bundle, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Any size in FP32, and typed FP16, as a Jetson's trtexec is given them."""
    graph = sample.verified("model.onnx")
    model = read_model(graph)
    set_types(model, "fp16")
    typed = tmp_path_factory.mktemp("typed") / "fp16.onnx"
    save_model(model, typed)
    return [graph, typed]


@pytest.mark.parametrize("release", ["1.16.0"])
def test_the_onnx_of_an_older_parser_reads_the_graphs(
    release: str, graphs: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """TensorRT 10.0 and 10.1 are built with ONNX 1.16.0, JetPack 6 has 10.3."""
    said = program_on([wheel(f"onnx=={release}")], "-c", CHECK, *graphs)
    assert said.returncode == 0, said.stderr
    with capsys.disabled():
        print(f"\nONNX {release}: {said.stdout.strip()}", end="")
    assert said.stdout.count("read") == len(graphs)


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
