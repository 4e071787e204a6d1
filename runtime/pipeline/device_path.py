"""Images on the GPU from the first byte to the last: uploaded as they are, downloaded as masks.

An image's bytes go up once, from pinned memory; one kernel resizes, normalises and transposes them into the network's
input; another resizes the logits as `denseport.runtime.pipeline.resample` does and keeps only each pixel's class, and a
third looks for logits that are not finite; one byte a pixel (two for more than 256 classes) comes back. Every buffer is
used again: nothing is allocated once the largest image was seen.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from denseport.runtime.backends.cuda.buffers import Buffers
from denseport.runtime.backends.cuda.device import DeviceNetwork
from denseport.runtime.backends.cuda.kernels.compile import image_ptx
from denseport.runtime.backends.cuda.kernels.launch import LARGEST_SIDE, image_mask, non_finite, resize_normalise
from denseport.runtime.backends.cuda.module import Module
from denseport.runtime.backends.cuda.replay import Replay
from denseport.runtime.backends.cuda.zero_copy import View
from denseport.runtime.backends.pool import Pool
from denseport.runtime.backends.session import Session
from denseport.runtime.bundle.preprocessing import Preprocessing, is_usual, normalisation
from denseport.runtime.bundle.protocol import Protocol
from denseport.runtime.errors import BundleError, MachineError
from denseport.runtime.pipeline.preprocess import levels

__all__ = ["DevicePath", "Painted", "open_device_path"]

Size = tuple[int, int]  # height, width
Mask = NDArray[np.unsignedinteger[Any]]
FLOATS = (np.dtype(np.float32), np.dtype(np.float16))


def open_device_path(
    session: Session, protocol: Protocol, *, align_corners: bool = False, via_input: bool = True
) -> DevicePath:
    """The session's images on the GPU: where its tensors are there, and the network sees whole images once.

    Args:
        align_corners, via_input: of the manifest.

    Raises:
        MachineError: the images stay on the CPU, and why.
    """
    if protocol.augmentation is not None or protocol.inference.mode != "whole" or not is_usual(protocol.preprocess):
        raise MachineError(f"the protocol is {protocol.description}")
    if align_corners:
        raise MachineError("the logits are resized with aligned corners, which the GPU's kernel does not do")
    if not via_input:
        raise MachineError("the logits are resized to the image at once, which the GPU's kernel does not do")
    return DevicePath(session.device_network(), protocol.preprocess, image_ptx())


class Painted(NamedTuple):
    """What is known of the logits that a mask was made from."""

    classes: int  # with more than the mask's type holds, the mask holds nonsense
    finite: bool  # else too


class DevicePath:
    """A network on the GPU that takes images and gives masks. Safe to call from several threads.

    Args:
        network: of a session, which is closed after this.
        ptx: of the kernels around it.

    Raises:
        MachineError: the driver refuses the kernels.
    """

    def __init__(self, network: DeviceNetwork, preprocess: Preprocessing, ptx: bytes) -> None:
        self._network = network
        with network.cuda.current():
            self._module = network.cuda.load(ptx)
        self._pool: Pool[_Pipeline] = Pool(lambda key: _Pipeline(network, self._module, preprocess), network.slots)

    @staticmethod
    def takes(image: Size, resized: Size) -> bool:
        """Whether the kernels' 32-bit coordinates suffice for an image and the size that the network sees."""
        return max(*image, *resized) <= LARGEST_SIDE

    def paint(self, image: NDArray[np.uint8], resized: Size, mask: Mask) -> Painted:
        """Segment an image.

        Args:
            image: (H, W, 3) uint8 BGR.
            resized: the size at which the network sees it.
            mask: (H, W) uint8 or uint16, is filled with classes.

        Raises:
            InputError: the network does not take this size.
            MachineError: the GPU failed, or its memory is full.
            BundleError: the network gives no logits.
        """
        network = self._network
        # A recorded graph serves one shape, a pipeline that records nothing serves all.
        key = (image.shape, resized) if network.graphs else None
        with network.cuda.current(), self._pool.take(key) as pipeline:
            return pipeline.paint(image, resized, mask)

    def close(self) -> None:
        """Give back the pipelines and the kernels."""
        with self._network.cuda.current():
            self._pool.close()
            self._module.close()


class _Pipeline:
    """A slot of the network with the buffers before and behind it."""

    def __init__(self, network: DeviceNetwork, module: Module, preprocess: Preprocessing) -> None:
        self._cuda, self._module, self._preprocess = network.cuda, module, preprocess
        self._classes = 0  # of the last image
        with ExitStack() as stack:
            self._slot = network.new_slot()
            stack.callback(self._slot.close)
            self._buffers = Buffers(self._cuda)
            stack.callback(self._buffers.close)
            self._replay = Replay(self._cuda, self._slot.stream, graphs=network.graphs)
            stack.callback(self._replay.close)
            self._levels = self._upload("levels", levels(preprocess))
            self._flag = self._upload("flag", np.zeros(1, np.int32))  # 1 once logits were not finite
            self._stack = stack.pop_all()

    def _upload(self, name: str, data: NDArray[Any]) -> int:
        source = self._buffers.host(name, data.shape, data.dtype)
        np.copyto(source, data)
        address = self._buffers.device(name, source.nbytes)
        self._cuda.copy_to_device(address, source, self._slot.stream)
        self._cuda.synchronize(self._slot.stream)
        return address

    def paint(self, image: NDArray[np.uint8], resized: Size, mask: Mask) -> Painted:
        upload = self._buffers.host("image", image.shape, np.uint8)
        np.copyto(upload, image)
        target = self._buffers.host("mask", mask.shape, mask.dtype)
        flag = self._buffers.host("flag", (1,), np.int32)
        self._replay.run(lambda: self._queue(upload, resized, target, flag), self._slot.capturable)
        np.copyto(mask, target)
        finite = not flag[0]
        if not finite:
            self._upload("flag", np.zeros(1, np.int32))
        return Painted(self._classes, finite)

    def _queue(self, upload: NDArray[np.uint8], resized: Size, mask: Mask, flag: NDArray[np.int32]) -> None:
        """Queue all the work on an image."""
        stream, buffers = self._slot.stream, self._buffers
        size = (upload.shape[0], upload.shape[1])
        image = View(buffers.device("input", 12 * resized[0] * resized[1]), (1, 3, *resized), FLOATS[0], None, None)
        source = buffers.device("image", upload.nbytes)
        result = buffers.device("mask", mask.nbytes)
        self._cuda.copy_to_device(source, upload, stream)
        plan = resize_normalise(size, resized, bgr_to_rgb=normalisation(self._preprocess).bgr_to_rgb)
        self._module.launch(plan, [source, self._levels], image.address, stream.handle)
        logits = self._slot.infer(image)
        if len(logits.shape) != 4 or logits.shape[0] != 1 or logits.dtype not in FLOATS:
            raise BundleError(
                f"expected logits (1, C, h, w) of float32 or float16; the network gives {logits.shape} {logits.dtype}",
                "Choose an artifact that gives logits: denseport inspect shows their outputs.",
            )
        _, classes, height, width = logits.shape
        shape = (classes, height, width)
        self._module.launch(non_finite(shape, logits.dtype), [logits.address], self._flag, stream.handle)
        plan = image_mask(shape, resized, size, logits.dtype, mask.dtype)
        self._module.launch(plan, [logits.address], result, stream.handle)
        self._cuda.copy_to_host(mask, result, stream)
        self._cuda.copy_to_host(flag, self._flag, stream)
        self._classes = classes

    def close(self) -> None:
        self._stack.close()
