"""Images on the device, without a device: a fake of CUDA runs the real kernels on host memory.

The slots are the real ones: ONNX Runtime's on its CPU provider with bound addresses, and TensorRT's over its fakes.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import postprocess
import pytest
from bundles import steps
from cpu_kernels import Kernels
from fake_cuda import FakeCuda, at
from fake_tensorrt import Machine
from support import assert_same_classes

from denseport.runtime.backends.cuda.device import DeviceNetwork
from denseport.runtime.backends.cuda.onnxruntime import CudaExecutionSlot
from denseport.runtime.backends.cuda.zero_copy import View
from denseport.runtime.backends.onnxruntime import OnnxRuntimeSession
from denseport.runtime.backends.session import Session
from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.bundle.manifest import Inference
from denseport.runtime.bundle.protocol import Protocol, parse_protocol
from denseport.runtime.errors import BundleError, InputError, MachineError
from denseport.runtime.pipeline import device_path
from denseport.runtime.pipeline.device_path import DevicePath, open_device_path
from denseport.runtime.pipeline.preprocess import fit_image, normalise
from denseport.runtime.segmenter import Segmenter

SIZES = [(96, 128), (128, 96), (61, 90), (48, 64), (150, 77)]  # images; fixed:64x48 shows them larger and smaller

KERNELS = ["resize_normalise", "non_finite_f32", "image_mask_f32_u8"]


class Slot(CudaExecutionSlot):
    """On ONNX Runtime's CPU provider, whose memory counts as the fake device's."""

    def __init__(self, session: Any, cuda: FakeCuda) -> None:
        super().__init__(session, cuda, ("cpu", 0))
        self._fake = cuda

    def infer(self, image: View) -> View:
        logits = super().infer(image)
        self._fake.lend(logits.address, logits.nbytes)
        return logits


class OnDevice(OnnxRuntimeSession):
    """ONNX Runtime on the CPU with what it has with CUDA, on the fake device."""

    def __init__(self, path: Path, cuda: FakeCuda, slots: int = 2, slot: type[Slot] = Slot) -> None:
        super().__init__(path, threads=1)
        self.cuda, self.slots, self.slot = cuda, slots, slot

    def device_network(self) -> DeviceNetwork:
        return DeviceNetwork(self.cuda, self.slots, False, lambda: self.slot(self._session, self.cuda))


@pytest.fixture
def cuda(image_kernels: Kernels, monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    monkeypatch.setattr(device_path, "image_ptx", lambda: b"PTX")
    return FakeCuda(monkeypatch, image_kernels)


def opened(bundle: Bundle, cuda: FakeCuda, protocol: str = "fixed:64x48", **options: Any) -> Segmenter:
    session = OnDevice(bundle.verified("model.onnx"), cuda, **options)
    protocol_ = parse_protocol(protocol, bundle.manifest)
    return Segmenter(bundle, artifact="model.onnx", protocol=protocol_, session=session, threads=1, device_path=True)


@pytest.fixture
def segment(sample: Bundle, cuda: FakeCuda) -> Iterator[Segmenter]:
    with opened(sample, cuda) as segmenter:
        yield segmenter
    assert cuda.alive == 0


@pytest.fixture(scope="module")
def on_host(sample: Bundle) -> Iterator[Segmenter]:
    with Segmenter(sample, protocol="fixed:64x48", threads=1) as segmenter:
        yield segmenter


def image_of(size: tuple[int, int], seed: int = 0) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Blocks of colour, whose classes differ, with noise."""
    random = np.random.default_rng(seed)
    blocks = random.integers(0, 200, (-(-size[0] // 16), -(-size[1] // 16), 3))
    colours = blocks.repeat(16, 0).repeat(16, 1)[: size[0], : size[1]]
    return (colours + random.integers(0, 56, (*size, 3))).astype(np.uint8)


def logits_of(segmenter: Segmenter, image: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return postprocess.logits(segmenter.predict(image)[0])


# Masks.


@pytest.mark.parametrize("size", SIZES)
def test_the_mask_is_the_hosts(segment: Segmenter, on_host: Segmenter, cuda: FakeCuda, size: tuple[int, int]) -> None:
    image = image_of(size)
    result = segment(image)
    assert cuda.launched == KERNELS
    expected = on_host(image).mask
    assert result.mask.dtype == np.uint8 and result.mask.shape == size
    assert_same_classes(result.mask, expected, logits_of(on_host, image))
    assert (result.mask == expected).mean() > 0.999
    assert result.timings.infer > 0 and result.timings.preprocess == 0


def test_an_image_as_it_was_tested_keeps_its_ratio(sample: Bundle, cuda: FakeCuda) -> None:
    image = image_of((97, 140))
    with opened(sample, cuda, "reference") as on_device, Segmenter(sample, threads=1) as host:
        assert_same_classes(on_device(image).mask, host(image).mask, logits_of(host, image))
    assert cuda.launched[:3] == KERNELS


def test_a_region_is_uploaded_alone(segment: Segmenter, on_host: Segmenter) -> None:
    image = image_of((120, 160))
    region = (10, 20, 77, 61)
    cut = np.ascontiguousarray(image[20:81, 10:87])
    np.testing.assert_array_equal(segment(image, roi=region).mask, segment(cut).mask)


def test_results_do_not_lie_in_buffers_that_are_used_again(segment: Segmenter) -> None:
    first = segment(image_of((96, 128), seed=1)).mask
    before = first.copy()
    segment(image_of((96, 128), seed=2))
    np.testing.assert_array_equal(first, before)


def test_batches_streams_and_clones_go_the_same_way(segment: Segmenter, cuda: FakeCuda) -> None:
    images = [image_of(size, seed) for seed, size in enumerate(SIZES)]
    expected = [segment(image).mask for image in images]
    cuda.launched.clear()
    with segment.clone() as clone:
        assert clone.description == segment.description
        for results in (segment.batch(images), list(segment.stream(images)), [clone(p) for p in images]):
            for result, mask in zip(results, expected, strict=True):
                np.testing.assert_array_equal(result.mask, mask)
    assert len(cuda.launched) == 3 * len(KERNELS) * len(images)


# What the device does not do.


def test_what_needs_logits_is_done_on_the_host(segment: Segmenter, on_host: Segmenter, cuda: FakeCuda) -> None:
    image = image_of((96, 128))
    for options in ({"scores": True}, {"top_k": 3}):
        np.testing.assert_array_equal(segment(image, **options).mask, on_host(image, **options).mask)
    (smooth,), (expected,) = (list(each.stream([image], smoothing=0.5)) for each in (segment, on_host))
    np.testing.assert_array_equal(smooth.mask, expected.mask)
    np.testing.assert_array_equal(logits_of(segment, image), logits_of(on_host, image))
    assert not cuda.launched


def test_sides_beyond_the_kernels_coordinates_stay_on_the_host() -> None:
    assert DevicePath.takes((2**15 - 1, 1), (512, 2048))
    assert not DevicePath.takes((2**15, 1), (512, 2048)) and not DevicePath.takes((1, 1), (512, 2**15))


@pytest.mark.parametrize("protocol", ["ms-flip", "slide:64:48"])
def test_other_protocols_stay_on_the_host_and_say_so(sample: Bundle, cuda: FakeCuda, protocol: str) -> None:
    with opened(sample, cuda, protocol) as segmenter:
        assert "; images on the CPU: the protocol is " in segmenter.description
        assert segmenter(image_of((96, 128))).mask.shape == (96, 128)
    assert not cuda.launched and cuda.alive == 0


def test_without_a_gpu_the_host_does_it_and_says_so(sample: Bundle, on_host: Segmenter) -> None:
    assert "images" not in on_host.description
    with Segmenter(sample, protocol="fixed:64x48", threads=1, device_path=True) as segmenter:
        assert "; images on the CPU: tensors of ONNX Runtime" in segmenter.description
        image = image_of((96, 128))
        np.testing.assert_array_equal(segmenter(image).mask, on_host(image).mask)


def test_without_nvrtc_the_host_does_it_and_names_the_remedy(
    sample: Bundle, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> bytes:
        raise MachineError("NVRTC is not installed", "pip install nvrtc")

    monkeypatch.setattr(device_path, "image_ptx", refuse)
    with opened(sample, cuda) as segmenter:
        assert segmenter.description.endswith("; images on the CPU: NVRTC is not installed pip install nvrtc")
        segmenter(image_of((96, 128)))
    assert not cuda.launched and cuda.alive == 0


def test_a_session_of_the_callers_own_keeps_its_images_on_the_host(sample: Bundle) -> None:
    class Plain(Session):
        description = "a plain session"

        def run(self, image: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
            return image

    protocol = parse_protocol("fixed:64x48", sample.manifest)
    with pytest.raises(MachineError, match=r"^tensors of a plain session are on the host$"):
        open_device_path(Plain(), protocol)
    with pytest.raises(MachineError, match=r"^the logits are resized to the image at once"):
        open_device_path(Plain(), protocol, via_input=False)
    with Segmenter(sample, session=Plain(), protocol=protocol, device_path=True) as segmenter:
        assert segmenter.description.endswith("images on the CPU: tensors of a plain session are on the host")


def test_logits_that_are_not_finite_are_refused_as_on_the_host(sample: Bundle, cuda: FakeCuda) -> None:
    class Overflowing(Slot):
        def infer(self, image: View) -> View:
            logits = super().infer(image)
            at(logits.address, 4).view(np.float32)[0] = np.inf
            return logits

    refused = pytest.raises(BundleError, match=r"model\.onnx gave logits that are not finite")
    with opened(sample, cuda, slot=Overflowing) as segmenter, refused:
        segmenter(image_of((96, 128)))


def test_another_number_of_classes_is_refused(sample_copy: Bundle, cuda: FakeCuda) -> None:
    manifest = sample_copy.manifest
    sample_copy.__dict__["manifest"] = replace(manifest, classes=manifest.classes[1:], palette=manifest.palette[1:])
    with opened(sample_copy, cuda) as segmenter, pytest.raises(BundleError, match="classes apart, the manifest names"):
        segmenter(image_of((96, 128)))


# Memory and threads.


def test_nothing_is_allocated_once_the_largest_image_was_seen(segment: Segmenter, cuda: FakeCuda) -> None:
    for size in ((96, 160), (160, 96)):
        segment(image_of(size))
    taken = len(cuda.allocated), cuda.pinned_count, cuda.alive
    for turn in range(3):
        for size in SIZES:
            segment(image_of(size, seed=turn))
    assert (len(cuda.allocated), cuda.pinned_count, cuda.alive) == taken


def test_a_mask_is_one_byte_a_pixel_and_an_image_three(segment: Segmenter, cuda: FakeCuda) -> None:
    segment(image_of((50, 70)))
    # Levels, flag, image, input, mask.
    assert sorted(cuda.allocated) == sorted([3 * 256 * 4, 4, 50 * 70 * 3, 3 * 48 * 64 * 4, 50 * 70])


def test_threads_have_pipelines_of_their_own(segment: Segmenter, cuda: FakeCuda) -> None:
    images = [image_of(SIZES[i % len(SIZES)], seed=i) for i in range(8)]
    expected = [segment(image).mask for image in images]
    with ThreadPoolExecutor(6) as executor:
        for _ in range(4):
            for result, mask in zip(executor.map(segment, images), expected, strict=True):
                np.testing.assert_array_equal(result.mask, mask)
    assert len(cuda.allocated) <= 2 * 5 * 4  # two pipelines of five buffers, which grow a few times


def test_closing_waits_for_the_image_under_way(sample: Bundle, cuda: FakeCuda) -> None:
    inside, leave = threading.Event(), threading.Event()

    class Held(OnDevice):
        def device_network(self) -> DeviceNetwork:
            network = super().device_network()

            def slot() -> Any:
                made = network.new_slot()
                infer = made.infer

                def held(image: Any) -> Any:
                    inside.set()
                    assert leave.wait(60)
                    return infer(image)

                made.infer = held  # type: ignore[method-assign]
                return made

            return replace(network, new_slot=slot)

    protocol = parse_protocol("fixed:64x48", sample.manifest)
    session = Held(sample.verified("model.onnx"), cuda)
    segmenter = Segmenter(
        sample, artifact="model.onnx", protocol=protocol, session=session, threads=1, device_path=True
    )
    with ThreadPoolExecutor(2) as executor:
        mask = executor.submit(segmenter, image_of((96, 128)))
        assert inside.wait(60)
        closing = executor.submit(segmenter.close)
        leave.set()
        assert mask.result(60).mask.shape == (96, 128)
        closing.result(60)
    assert cuda.alive == 0
    with pytest.raises(InputError, match="closed"):
        segmenter(image_of((96, 128)))


# TensorRT's slot, over fakes: a network of 3 classes, half as high and wide as its input.


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cuda: FakeCuda) -> Machine:
    made = Machine(monkeypatch, tmp_path / "fp16.engine", cuda=cuda)
    made.engine.classes = 3
    return made


def whole(size: tuple[int, int]) -> Protocol:
    return Protocol("whole", steps(size=size[::-1], keep_ratio=False), Inference())


def engine_mask(image: np.ndarray[Any, Any], protocol: Protocol, resized: tuple[int, int]) -> np.ndarray[Any, Any]:
    logits = 2 * normalise(fit_image(image, protocol.preprocess), protocol.preprocess)[0, :, ::2, ::2]
    return postprocess.argmax([postprocess.whole_map(np.ascontiguousarray(logits), resized, image.shape[:2])])


@pytest.mark.parametrize("graphs", [False, True])
def test_an_engine_decides_as_the_host_does(machine: Machine, cuda: FakeCuda, graphs: bool) -> None:
    protocol, resized = whole((8, 12)), (8, 12)
    session = machine.session(cuda_graphs=graphs)
    path = open_device_path(session, protocol)
    shapes = [(20, 30), (9, 7), (20, 30), (20, 30), (9, 7)]
    for turn, size in enumerate(shapes):
        image = image_of(size, seed=turn)
        mask = np.empty(size, np.uint8)
        assert path.paint(image, resized, mask) == (3, True)
        assert (mask == engine_mask(image, protocol, resized)).mean() > 0.99
    # One recording a shape; what follows repeats it.
    assert (cuda.captures, cuda.launches) == ((2, 3) if graphs else (0, 0))
    assert len(machine.engine.contexts) == (2 if graphs else 1)
    path.close()
    session.close()
    assert cuda.alive == 0


@pytest.mark.parametrize("graphs", [False, True])
def test_logits_that_are_not_finite_are_told_and_forgotten(machine: Machine, graphs: bool) -> None:
    session, mask = machine.session(cuda_graphs=graphs), np.empty((20, 30), np.uint8)
    path = open_device_path(session, whole((8, 12)))
    for bad in (None, np.nan, -np.inf, None):
        machine.engine.logit = bad
        assert path.paint(image_of((20, 30)), (8, 12), mask) == (3, bad is None)
    path.close()
    session.close()


def test_a_size_that_the_engine_does_not_take_is_refused(machine: Machine) -> None:
    session = machine.session()
    path = open_device_path(session, whole((64, 64)))
    with pytest.raises(InputError, match=r"8\.\.32"):
        path.paint(image_of((20, 30)), (64, 64), np.empty((20, 30), np.uint8))
    path.close()
    session.close()


def test_a_context_that_failed_is_not_used_again(machine: Machine, cuda: FakeCuda) -> None:
    session = machine.session(contexts=1)
    path = open_device_path(session, whole((8, 12)))
    mask = np.empty((20, 30), np.uint8)
    machine.engine.broken = True
    with pytest.raises(MachineError, match="illegal memory access"):
        path.paint(image_of((20, 30)), (8, 12), mask)
    machine.engine.broken = False
    assert path.paint(image_of((20, 30)), (8, 12), mask) == (3, True)
    assert len(machine.engine.contexts) == 2
    path.close()
    session.close()
    assert cuda.alive == 0
