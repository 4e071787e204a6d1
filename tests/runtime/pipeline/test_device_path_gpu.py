"""Images on a real GPU against the host's way: skipped, with the reason, where there is none."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import postprocess
import pytest
from bundles import steps
from support import REPO, assert_same_classes

from denseport.export.engine.build import EngineOptions, build_engine
from denseport.export.engine.profile import profile_of
from denseport.export.explain.baseline import torch_baseline
from denseport.runtime.backends.cuda.buffers import Buffers
from denseport.runtime.backends.cuda.driver import Cuda, open_cuda
from denseport.runtime.backends.cuda.kernels.compile import image_ptx
from denseport.runtime.backends.cuda.kernels.launch import image_mask, resize_normalise
from denseport.runtime.backends.onnxruntime import OnnxRuntimeSession
from denseport.runtime.backends.session import Session
from denseport.runtime.backends.tensorrt import TensorRTSession, why_not
from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.bundle.preprocessing import resized_to
from denseport.runtime.bundle.protocol import parse_protocol
from denseport.runtime.errors import DenseportError, MachineError
from denseport.runtime.pipeline import preprocess
from denseport.runtime.segmenter import Segmenter

pytestmark = pytest.mark.gpu

SIZES = [(480, 640), (61, 90), (640, 480), (1, 7), (1000, 333)]
NETWORK = (96, 128)
LEVELS = steps(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
MARGIN = 1e-5  # of logits of about 1


@pytest.fixture(scope="module", params=["pycuda", "cuda-bindings"])
def cuda(request: pytest.FixtureRequest) -> Cuda:
    try:
        image_ptx()
        return open_cuda(implementation=request.param)
    except MachineError as err:
        pytest.skip(err.message)


def launched(cuda: Cuda, plan: Any, inputs: list[np.ndarray[Any, Any]], output: np.ndarray[Any, Any]) -> None:
    with cuda.current(), ExitStack() as stack:
        module = cuda.load(image_ptx())
        stack.callback(module.close)
        stream = stack.enter_context(cuda.stream())
        buffers = Buffers(cuda)
        stack.callback(buffers.close)
        addresses = [buffers.device(str(i), array.nbytes) for i, array in enumerate(inputs)]
        for address, array in zip(addresses, inputs, strict=True):
            cuda.copy_to_device(address, array, stream)
        target = buffers.device("output", output.nbytes)
        module.launch(plan, addresses, target, stream.handle)
        cuda.copy_to_host(output, target, stream)
        cuda.synchronize(stream)


def image_of(size: tuple[int, int], seed: int = 0) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)


@pytest.mark.parametrize("size", SIZES)
def test_pixels_are_opencvs(cuda: Cuda, size: tuple[int, int]) -> None:
    image, found = image_of(size), np.full((1, 3, *NETWORK), np.nan, np.float32)
    launched(cuda, resize_normalise(size, NETWORK, bgr_to_rgb=True), [image, preprocess.levels(LEVELS)], found)
    shown = preprocess.fit_image(image, resized_to(LEVELS, NETWORK[::-1], keep_ratio=False))
    apart = np.abs(found - preprocess.normalise(shown, LEVELS))
    assert apart.max() <= 1 and (apart > 0).mean() < 0.005


@pytest.mark.parametrize("types", [(np.float32, np.uint8), (np.float16, np.uint16)])
@pytest.mark.parametrize("size", SIZES)
def test_masks_are_the_cpus(cuda: Cuda, size: tuple[int, int], types: tuple[Any, Any]) -> None:
    logits = np.random.default_rng(1).standard_normal((7, 24, 32)).astype(types[0])
    mask = np.full(size, 255, types[1])
    launched(cuda, image_mask((7, 24, 32), NETWORK, size, *types), [logits], mask)
    full = postprocess.logits([postprocess.whole_map(logits.astype(np.float32), NETWORK, size)])
    chosen = np.take_along_axis(full, mask[None].astype(np.intp), 0)[0]
    assert (full.max(0) - chosen <= MARGIN * np.abs(full).max()).all()


def torch_session(checkpoint: Path, bundle: Bundle, graphs: bool) -> Session:
    """The checkpoint's network in torch, which needs no other package for the GPU (scripts/gpu/gpu_torch.py)."""
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this torch has no CUDA")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(REPO / "scripts" / "gpu")
        gpu_torch = importlib.import_module("gpu_torch")
    found: Session = gpu_torch.TorchDeviceSession(torch_baseline(bundle.manifest, checkpoint)._model, graphs=graphs)
    return found


BACK_ENDS = ["torch", "torch, graphs", "onnxruntime", "tensorrt", "tensorrt, graphs", "tensorrt_rtx"]


@pytest.fixture(scope="module", params=BACK_ENDS)
def session(
    request: pytest.FixtureRequest,
    oracle: Path,
    exported: Callable[[str], Bundle],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Callable[[], Session], Bundle]:
    """What opens a session whose tensors are on the GPU, and its bundle."""
    flavour, _, graphs = request.param.partition(", ")
    try:
        open_cuda()
        bundle = exported("tiny_dpt_project")
        model = bundle.verified("model.onnx")
        if flavour == "torch":
            return lambda: torch_session(oracle / "tiny_dpt_project.pth", bundle, bool(graphs)), bundle
        if flavour == "onnxruntime":
            providers = ("CUDAExecutionProvider", "CPUExecutionProvider")
            OnnxRuntimeSession(model, providers=providers).close()
            return lambda: OnnxRuntimeSession(model, providers=providers), bundle
        path: Path = tmp_path_factory.mktemp("engine") / "fp32.engine"
        record = build_engine(model, path, EngineOptions(flavour, (profile_of(*[(1, 3, *NETWORK)] * 3),)))
    except DenseportError as err:
        pytest.skip(f"{flavour}: {err.message}")
    if reason := why_not(record):
        pytest.skip(reason)
    return lambda: TensorRTSession(path, record, contexts=2, cuda_graphs=bool(graphs)), bundle


def test_masks_and_threads(session: tuple[Callable[[], Session], Bundle]) -> None:
    open_session, bundle = session
    protocol = parse_protocol("fixed:{1}x{0}".format(*NETWORK), bundle.manifest)
    images = [image_of(size, seed) for seed, size in enumerate([*SIZES[:3], *SIZES[:3]])]
    with Segmenter(bundle, artifact="gpu", protocol=protocol, session=open_session(), device_path=True) as on_device:
        assert on_device.description.endswith("; images on the GPU")
        for image in images:
            logits = postprocess.logits(on_device.predict(image)[0])
            assert_same_classes(on_device(image).mask, logits.argmax(0), logits)
        expected = [on_device(image).mask for image in images]
        with ThreadPoolExecutor(4) as executor:
            for _ in range(5):
                for result, mask in zip(executor.map(on_device, images), expected, strict=True):
                    assert (result.mask == mask).mean() > 0.999  # an engine's contexts may round differently
