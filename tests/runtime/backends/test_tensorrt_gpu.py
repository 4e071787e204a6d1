"""Real engines on a real GPU against ONNX Runtime: skipped, with the reason, where there is none."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from denseport.export.engine.build import EngineOptions, build_engine
from denseport.export.engine.profile import profile_of
from denseport.runtime.backends.cuda.driver import Cuda, open_cuda
from denseport.runtime.backends.onnxruntime import OnnxRuntimeSession
from denseport.runtime.backends.tensorrt import TensorRTSession, why_not
from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.bundle.engine_record import BuildRecord
from denseport.runtime.errors import DenseportError, InputError, MachineError

pytestmark = pytest.mark.gpu

TOLERANCE = 5e-3  # on logits of about 1


@pytest.fixture(scope="module", params=["pycuda", "cuda-bindings"])
def cuda(request: pytest.FixtureRequest) -> Cuda:
    try:
        return open_cuda(implementation=request.param)
    except MachineError as err:
        pytest.skip(err.message)


@pytest.fixture(scope="module", params=["tensorrt", "tensorrt_rtx"])
def engine(
    request: pytest.FixtureRequest, exported: Callable[[str], Bundle], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, BuildRecord, OnnxRuntimeSession]:
    """A dynamic engine that runs here, its record, and the graph on ONNX Runtime."""
    try:
        open_cuda()
        model = exported("tiny_dpt_project").verified("model.onnx")
        path = tmp_path_factory.mktemp("engine") / "fp32.engine"
        profile = profile_of((1, 3, 64, 64), (1, 3, 128, 96), (2, 3, 160, 160))
        record = build_engine(model, path, EngineOptions(request.param, (profile,)))
    except DenseportError as err:
        pytest.skip(f"{request.param}: {err.message}")
    if reason := why_not(record):
        pytest.skip(reason)
    assert record.types_built is not None, record.types_built_note
    return path, record, OnnxRuntimeSession(model)


@pytest.fixture(params=[False, True], ids=["plain", "graphs"])
def session(
    request: pytest.FixtureRequest, engine: tuple[Path, BuildRecord, OnnxRuntimeSession], cuda: Cuda
) -> Iterator[TensorRTSession]:
    with TensorRTSession(engine[0], engine[1], contexts=3, cuda_graphs=request.param, cuda=cuda) as opened:
        yield opened


def image_of(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def test_logits_are_onnx_runtimes(
    session: TensorRTSession, engine: tuple[Path, BuildRecord, OnnxRuntimeSession]
) -> None:
    for turn, shape in enumerate([(1, 3, 64, 64), (2, 3, 100, 75), (1, 3, 160, 160), (1, 3, 64, 64), (1, 3, 64, 64)]):
        image = image_of(*shape, seed=turn)
        np.testing.assert_allclose(session.run(image), engine[2].run(image), rtol=0, atol=TOLERANCE)


def test_threads_get_their_own_results(
    session: TensorRTSession, engine: tuple[Path, BuildRecord, OnnxRuntimeSession]
) -> None:
    images = [image_of(1, 3, 64 + 16 * (i % 3), 64, seed=i) for i in range(6)]
    expected = [engine[2].run(image) for image in images]
    worst: list[float] = []

    def work(index: int) -> None:
        for _ in range(10):
            worst.append(float(np.abs(session.run(images[index]) - expected[index]).max()))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(images))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(worst) == 60 and max(worst) < TOLERANCE


def test_tensors_of_torch_are_used_in_place(
    session: TensorRTSession, engine: tuple[Path, BuildRecord, OnnxRuntimeSession]
) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this torch has no CUDA")
    image = image_of(1, 3, 96, 128)
    expected = engine[2].run(image)
    result = session.run_device(torch.from_numpy(image).cuda())
    for tensor in (torch.from_dlpack(result), torch.as_tensor(result, device="cuda")):
        assert tensor.data_ptr() == result.address
        np.testing.assert_allclose(tensor.cpu().numpy(), expected, rtol=0, atol=TOLERANCE)
    out = torch.zeros(expected.shape, device="cuda")
    assert session.run_device(torch.from_numpy(image).cuda(), out) is out
    np.testing.assert_allclose(out.cpu().numpy(), expected, rtol=0, atol=TOLERANCE)


def test_a_slice_that_torch_still_fills_on_a_side_stream_is_waited_for(
    session: TensorRTSession, engine: tuple[Path, BuildRecord, OnnxRuntimeSession]
) -> None:
    """Its address is no multiple of 256 either: it is copied."""
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this torch has no CUDA")
    images = image_of(2, 3, 99, 77)
    expected = engine[2].run(images[1:])
    source = torch.from_numpy(images).cuda()
    batch = torch.zeros_like(source)
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(200_000_000)  # clock cycles, a tenth of a second
        batch.copy_(source)
        assert batch[1:].data_ptr() % 256
        result = session.run_device(batch[1:])
    np.testing.assert_allclose(torch.from_dlpack(result).cpu().numpy(), expected, rtol=0, atol=TOLERANCE)


def test_a_size_outside_of_the_profile_is_refused(session: TensorRTSession) -> None:
    with pytest.raises(InputError, match=r"\(1\.\.2, 3, 64\.\.160, 64\.\.160\)"):
        session.run(image_of(1, 3, 512, 512))


def test_an_altered_record_is_refused(engine: tuple[Path, BuildRecord, OnnxRuntimeSession], cuda: Cuda) -> None:
    with pytest.raises(MachineError, match=r"built with .* 1\.0\.0 for"):
        TensorRTSession(engine[0], dataclasses.replace(engine[1], version="1.0.0"), cuda=cuda)
