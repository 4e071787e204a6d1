"""The session of ONNX Runtime: it runs where it was told to or says why not, and is silent."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import Mock

import numpy as np
import onnxruntime
import pytest
from hostile import tiny_bundle
from onnxruntime.capi.onnxruntime_pybind11_state import EPFail

from denseport.runtime.backends.onnxruntime import OnnxRuntimeSession
from denseport.runtime.errors import BundleError, InputError, MachineError

IMAGE = np.zeros((1, 3, 8, 8), np.float32)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_bundle(tmp_path / "bundle").path / "model.onnx"


def test_a_provider_that_fails_when_it_is_opened_is_not_replaced(
    model: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """ONNX Runtime would print so, and open the model on providers that nobody named."""
    tried: list[object] = []

    def fail(self: object, providers: object, *more: object) -> None:
        tried.append(providers)
        raise RuntimeError("the provider failed")

    monkeypatch.setattr(onnxruntime.InferenceSession, "_create_inference_session", fail)
    with pytest.raises(BundleError, match="the provider failed"):
        OnnxRuntimeSession(model)
    assert tried == [["CPUExecutionProvider"]] and capfd.readouterr() == ("", "")


def test_a_provider_that_fails_when_it_runs_is_not_replaced(
    model: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    session = OnnxRuntimeSession(model, threads=1)
    assert session.run(IMAGE).shape == (1, 3, 2, 2)
    inner = session._session
    failing = Mock(wraps=inner._sess, run=Mock(side_effect=EPFail("the provider failed")))
    monkeypatch.setattr(inner, "_sess", failing)
    monkeypatch.setattr(type(inner), "set_providers", lambda *_: pytest.fail("it went on elsewhere"))
    with pytest.raises(BundleError, match="the provider failed"):
        session.run(IMAGE)
    assert capfd.readouterr() == ("", "")


class Opened:
    """A session on what ONNX Runtime 1.31.1's GPU wheel opens on where CUDA's libraries are absent: the CPU."""

    given: dict[str, object]

    def __init__(self, path: Path, options: onnxruntime.SessionOptions, **given: object) -> None:
        Opened.given = given
        self._inner = onnxruntime.capi.onnxruntime_inference_collection.InferenceSession(path, options)

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)


GPU = ("CUDAExecutionProvider", "CPUExecutionProvider")


@pytest.fixture
def gpu_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    def preload() -> None:
        print("Failed to load libcublas.so.13: libcublas.so.13: cannot open shared object file")

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["TensorrtExecutionProvider", *GPU])
    monkeypatch.setattr(onnxruntime, "InferenceSession", Opened)
    monkeypatch.setattr(onnxruntime, "preload_dlls", preload)


def test_a_gpu_that_cannot_start_is_not_replaced_by_the_cpu(
    model: Path, gpu_wheel: None, capfd: pytest.CaptureFixture[str]
) -> None:
    words = r"cannot start CUDAExecutionProvider, and would take CPUExecutionProvider; not found: libcublas\.so\.13"
    with pytest.raises(MachineError, match=words) as caught:
        OnnxRuntimeSession(model, providers=GPU)
    assert "onnxruntime-gpu" in str(caught.value) and capfd.readouterr() == ("", "")


def test_a_provider_that_nobody_has_is_a_mistyped_name(model: Path) -> None:
    with pytest.raises(InputError, match="no provider 'CUDA'") as caught:
        OnnxRuntimeSession(model, providers=["CUDA"])
    assert "CUDAExecutionProvider" in caught.value.remedy and "NvTensorRTRTXExecutionProvider" in caught.value.remedy


def test_missing_tensorrt_is_not_the_models_fault(
    model: Path, gpu_wheel: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **named: object) -> None:
        raise RuntimeError(
            "onnxruntime_pybind_state.cc:729 Please install TensorRT libraries as mentioned in the GPU …"
        )

    monkeypatch.setattr(onnxruntime, "InferenceSession", fail)
    with pytest.raises(MachineError, match="cannot start TensorrtExecutionProvider: TensorRT's libraries are missing"):
        OnnxRuntimeSession(model, providers=("TensorrtExecutionProvider", "CPUExecutionProvider"))


def test_fp32_is_fp32_on_a_gpu_and_new_sizes_are_not_tried_out(
    model: Path, gpu_wheel: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Opened, "get_providers", lambda _: list(GPU), raising=False)
    session = OnnxRuntimeSession(model, providers=GPU)
    assert session.on_gpu and "CUDAExecutionProvider" in session.description
    assert Opened.given["providers"] == list(GPU)
    assert Opened.given["provider_options"] == [{"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}, {}]


@pytest.mark.parametrize(
    ("target", "exact_products", "optimized"),
    [("any", True, True), ("onnxruntime-cpu", False, True), ("tensorrt", True, False)],
)
def test_the_settings_follow_from_the_target_and_not_from_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, exact_products: bool, optimized: bool
) -> None:
    given: list[onnxruntime.SessionOptions] = []
    whole = onnxruntime.InferenceSession

    def watched(path: Path, options: onnxruntime.SessionOptions, **more: object) -> onnxruntime.InferenceSession:
        given.append(options)
        return whole(path, options, **more)

    monkeypatch.setattr(onnxruntime, "InferenceSession", watched)
    folder = tiny_bundle(tmp_path / "bundle").path
    for name in ("model.onnx", "int8.cpu.onnx", "fp8.onnx"):
        OnnxRuntimeSession((folder / "model.onnx").rename(folder / name), target=target).close()
        (folder / name).rename(folder / "model.onnx")
    for options in given:
        level = options.graph_optimization_level
        assert (level == onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL) == optimized
        if exact_products:
            assert options.get_session_config_entry("session.x64quantprecision") == "1"
        else:
            with pytest.raises(RuntimeError):
                options.get_session_config_entry("session.x64quantprecision")
    assert len(given) == 3
