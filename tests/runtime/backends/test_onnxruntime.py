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
from denseport.runtime.errors import BundleError

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
