"""The session of OpenVINO against ONNX Runtime's; what it keeps, tells and refuses."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from hostile import tiny_bundle
from numpy.typing import NDArray
from onnx import TensorProto, helper
from support import ASSETS

from denseport.runtime.backends import openvino as module
from denseport.runtime.backends.onnxruntime import OnnxRuntimeSession
from denseport.runtime.backends.openvino import KEPT, OpenVinoSession
from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.errors import BundleError, InputError, MachineError
from denseport.runtime.evaluation.gate import AGREEMENTS
from denseport.runtime.media.inputs import find_inputs
from denseport.runtime.pipeline.network_input import NetworkInputs
from denseport.runtime.segmenter import Segmenter
from denseport.runtime.system.cpus import has_bf16
from denseport.runtime.system.machine import install_command

needs_bf16 = pytest.mark.skipif(not has_bf16(), reason="this processor has no BF16")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/denseport/openvino"


@pytest.fixture(scope="module")
def model(sample: Bundle) -> Path:
    return sample.verified("model.onnx")


def noise(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


@pytest.mark.parametrize("shape", [(1, 3, 128, 128), (3, 3, 112, 80), (1, 3, 73, 101), (1, 3, 7, 5), (2, 3, 160, 213)])
def test_fp32_is_what_onnx_runtime_gives(model: Path, shape: tuple[int, ...]) -> None:
    image = noise(*shape)
    kept = image.copy()
    expected, session = OnnxRuntimeSession(model).run(image), OpenVinoSession(model)
    found = session.run(image)
    again = found.copy()
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max(), rtol=0)
    session.run(noise(1, 3, 32, 32, seed=1))  # neither what came in nor what went out is memory of the session
    np.testing.assert_array_equal(image, kept)
    np.testing.assert_array_equal(found, again)


@needs_bf16
def test_bf16_computes_in_bf16_and_keeps_the_classes(sample: Bundle, model: Path) -> None:
    images = [each.path for each in find_inputs([str(ASSETS / "street/images")])]
    plain, session = OnnxRuntimeSession(model), OpenVinoSession(model, precision="bf16")
    for image in NetworkInputs.of_bundle(images, sample.manifest):
        expected, found = plain.run(image), session.run(image)
        assert np.abs(found - expected).max() > 1e-4 * np.abs(expected).max(), "it is not FP32"
        assert (found.argmax(1) == expected.argmax(1)).mean() > AGREEMENTS["bf16"]
    assert "BF16" in session.description


def test_several_threads_may_run_it(model: Path) -> None:
    images = [noise(1, 3, 48 + 16 * (seed % 3), 64, seed=seed) for seed in range(12)]
    session = OpenVinoSession(model, threads=1)
    expected = [session.run(image) for image in images]
    with ThreadPoolExecutor(4) as pool:
        for one, other in zip(expected, pool.map(session.run, images), strict=True):
            np.testing.assert_array_equal(one, other)
    session.close()


def test_a_segmenter_of_the_artifact_says_what_runs(sample_copy: Bundle) -> None:
    from denseport.export.artifacts import ArtifactWriter
    from denseport.runtime.system.progress import Silent

    ArtifactWriter(sample_copy, [], Silent()).openvino("fp32")
    photo = str(next((ASSETS / "street/images").rglob("*.jpg")))
    with Segmenter(sample_copy, artifact="fp32.openvino", threads=1) as ours, Segmenter(sample_copy) as theirs:
        assert ours.description.startswith("fp32.openvino on OpenVINO 20") and "FP32, 1 thread" in ours.description
        assert theirs.artifact == "model.onnx"
        assert (ours(photo).mask == theirs(photo).mask).mean() > 0.9999
    with pytest.raises(InputError, match=r"fp32\.openvino runs on OpenVINO, and CUDAExecutionProvider is of ONNX"):
        Segmenter(sample_copy, artifact="fp32.openvino", providers="CUDAExecutionProvider")


def test_the_compiled_model_is_kept_and_an_altered_one_is_compiled_again(model: Path, cache: Path) -> None:
    image, digests = noise(1, 3, 64, 64), ["0" * 64]
    expected = OpenVinoSession(model, digests=digests).run(image)
    (blob,) = cache.glob("*/*.blob")
    whole, written = blob.read_bytes(), blob.stat().st_mtime_ns
    np.testing.assert_array_equal(OpenVinoSession(model, digests=digests).run(image), expected)
    assert blob.stat().st_mtime_ns == written, "it was taken from there"
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF  # a weight: OpenVINO itself takes it
    for damaged in (bytes(flipped), whole[: len(whole) // 2], b"", b"no model"):
        blob.chmod(0o600)
        blob.write_bytes(damaged)
        np.testing.assert_array_equal(OpenVinoSession(model, digests=digests).run(image), expected)
        assert blob.read_bytes() != damaged


def test_a_cache_that_cannot_be_used_does_not_matter(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    for place in (str(tmp_path / "file"), "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", place)
        assert OpenVinoSession(model, digests=["0" * 64]).run(noise(1, 3, 64, 64)).size
    assert not Path("relative").exists()


def test_the_cache_keeps_only_the_latest(tmp_path: Path, cache: Path) -> None:
    path = tiny_bundle(tmp_path / "bundle").path / "model.onnx"
    for number in range(KEPT + 2):
        OpenVinoSession(path, digests=[str(number)]).close()
    assert len(list(cache.iterdir())) == KEPT


def test_nobody_is_told_of_it(model: Path, tmp_path: Path) -> None:
    """`openvino_telemetry` writes into the home, and calls a server, when OpenVINO is imported."""
    code = f"""
import sys
from pathlib import Path
from denseport.runtime.backends.openvino import OpenVinoSession
OpenVinoSession(Path({str(model)!r}))
print("openvino" in sys.modules, [name for name in sys.modules if "telemetry" in name and sys.modules[name]])"""
    home = tmp_path / "home"
    home.mkdir()
    environment = {**os.environ, "HOME": str(home)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    loaded, telemetry = done.stdout.strip().split(" ", 1)
    assert loaded == "True" and "openvino_telemetry" not in telemetry
    assert not list(home.iterdir())


@pytest.mark.parametrize("shape", [(1, 1, 64, 64), (3, 64, 64), (1, 3, 0, 64)])
def test_what_does_not_fit_the_network_is_refused(model: Path, shape: tuple[int, ...]) -> None:
    session = OpenVinoSession(model)
    with pytest.raises(BundleError, match="OpenVINO cannot run it on an input of"):
        session.run(np.zeros(shape, np.float32))
    with pytest.raises(BundleError, match="float64"):
        session.run(np.zeros((1, 3, 64, 64)))  # type: ignore[arg-type]
    assert session.run(noise(1, 3, 64, 64)).size, "it runs on"


def test_what_is_no_network_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(BundleError, match="OpenVINO cannot load it"):
        OpenVinoSession(tmp_path / "text.onnx")
    with pytest.raises(BundleError, match="OpenVINO cannot load it"):
        OpenVinoSession(tmp_path / "missing.onnx")
    value, result = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [None, 3]) for n in ("pixels", "sums"))
    graph = helper.make_graph([helper.make_node("Relu", ["pixels"], ["sums"])], "other", [value], [result])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), tmp_path / "other.onnx")
    with pytest.raises(BundleError, match="which is not a segmentation network"):
        OpenVinoSession(tmp_path / "other.onnx")


def test_a_machine_that_lacks_something_is_told_what(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "has_bf16", lambda: False)
    with pytest.raises(MachineError, match="computes in BF16, and this processor has no BF16 arithmetic"):
        OpenVinoSession(model, precision="bf16")
    monkeypatch.setitem(sys.modules, "openvino", SimpleNamespace(__version__="2024.6.0-1-x"))  # type: ignore[misc]
    with pytest.raises(MachineError, match=r"OpenVINO 2024\.6\.0-1-x is too old: 2025\.0 is") as caught:
        OpenVinoSession(model)
    assert caught.value.remedy == install_command("openvino") + " --upgrade"
    monkeypatch.setitem(sys.modules, "openvino", None)  # type: ignore[arg-type]
    with pytest.raises(MachineError, match="OpenVINO is not installed") as caught:
        OpenVinoSession(model)
    assert caught.value.remedy == install_command("openvino")
