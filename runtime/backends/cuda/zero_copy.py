"""Arrays of other libraries on the GPU, without a copy: ``__cuda_array_interface__`` and DLPack, both ways.

Sources: numba's "CUDA Array Interface (Version 3)" and the array API's DLPack protocol (dlpack.h, version 0).
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from denseport.runtime.backends.cuda.library import LEGACY
from denseport.runtime.errors import InputError

__all__ = ["CUDA", "DeviceArray", "View", "view_of"]

CPU, CUDA = 1, 2  # DLPack's device types
CODES = {"i": 0, "u": 1, "f": 2}  # DLPack's type codes by numpy's kinds


@dataclass(frozen=True)
class View:
    """Contiguous memory of another library."""

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    stream: int | None  # the stream whose work on it must be waited for; None: there is none
    keep: Any  # what must live as long as the address is used

    @property
    def nbytes(self) -> int:
        """Bytes of memory."""
        return math.prod(self.shape) * self.dtype.itemsize


def view_of(array: Any, stream: int | None = None, *, device: tuple[int, int] = (CUDA, 0)) -> View:
    """Memory of an object that has ``__dlpack__`` or ``__cuda_array_interface__``.

    Args:
        stream: the handle of the stream that will use the memory. DLPack's producer lets it wait for its own work;
            the other protocol names a stream at most, which is the view's. torch names none there, so DLPack comes
            first.
        device: where the memory must lie: DLPack's device type, and the device's index.

    Raises:
        InputError: it has neither, lies elsewhere, or is not contiguous.
    """
    if isinstance(array, DeviceArray) and array.__dlpack_device__() == device:
        return View(array.address, array.shape, array.dtype, None, array)  # the work is done
    if hasattr(array, "__dlpack__"):
        view, strides = _from_dlpack(array, stream, device)
    elif device[0] == CUDA and hasattr(array, "__cuda_array_interface__"):
        view, strides = _from_interface(array)
    else:
        name = type(array).__name__
        raise InputError(
            f"a {name} is not an array on the GPU: it has neither __cuda_array_interface__ nor __dlpack__",
            "Give a torch or cupy array that is on the GPU.",
        )
    if strides is not None and not _contiguous(view, strides):
        raise InputError(
            f"the array of shape {view.shape} is not contiguous in memory", "Pass array.contiguous() or a copy."
        )
    return view


def _contiguous(view: View, strides: tuple[int, ...]) -> bool:
    expected = view.dtype.itemsize
    for length, stride in zip(reversed(view.shape), reversed(strides), strict=True):
        if length > 1 and stride != expected:
            return False
        expected *= length
    return True


def _from_interface(array: Any) -> tuple[View, tuple[int, ...] | None]:
    interface = array.__cuda_array_interface__
    strides = interface.get("strides")
    shape, dtype = tuple(interface["shape"]), np.dtype(interface["typestr"])
    # Before version 3 no stream could be named: the default one is what their producers are ordered with.
    stream = interface.get("stream") if interface.get("version", 0) >= 3 else LEGACY
    view = View(int(interface["data"][0]), shape, dtype, stream, array)
    return view, tuple(strides) if strides is not None else None


class _Tensor(ctypes.Structure):
    """DLTensor, its device and its type written out."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("slots", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


_Callback = ctypes.CFUNCTYPE(None, ctypes.c_void_p)  # a deleter, or a capsule's destructor


class _Managed(ctypes.Structure):
    """DLManagedTensor."""

    _fields_ = (("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", _Callback))


_CAPSULE = (ctypes.c_void_p, ctypes.c_char_p)  # by its address, and its name
_new_capsule = ctypes.PYFUNCTYPE(ctypes.py_object, *_CAPSULE, _Callback)(("PyCapsule_New", ctypes.pythonapi))
_is_capsule = ctypes.PYFUNCTYPE(ctypes.c_int, *_CAPSULE)(("PyCapsule_IsValid", ctypes.pythonapi))
_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, *_CAPSULE)(("PyCapsule_GetPointer", ctypes.pythonapi))
_NAME = b"dltensor"  # of a capsule that nobody has taken over; kept alive here, since capsules only point at it


def _from_dlpack(array: Any, stream: int | None, device: tuple[int, int]) -> tuple[View, tuple[int, ...] | None]:
    kind, index = array.__dlpack_device__()
    if kind != device[0]:
        raise InputError(f"the array lies on DLPack device type {kind}, not on an NVIDIA GPU", "Move it there first.")
    if index != device[1]:
        raise InputError(f"the array lies on GPU {index}, the network on GPU {device[1]}", "Move it there first.")
    try:
        capsule = array.__dlpack__(stream=stream)
    except BufferError as err:  # torch: it requires a gradient, say
        raise InputError(f"the array cannot be lent: {err}", "Pass a plain array, tensor.detach() say.") from err
    address = _pointer(id(capsule), _NAME)
    if address is None:
        raise InputError("__dlpack__ gave no capsule named dltensor", "Give a torch or cupy array.")
    tensor = ctypes.cast(address, ctypes.POINTER(_Managed)).contents.tensor
    kinds = {code: kind for kind, code in CODES.items()}
    if tensor.slots != 1 or tensor.code not in kinds:
        raise InputError(
            f"the array's type (DLPack code {tensor.code}, {tensor.bits} bits) is not supported",
            "Convert it to the type that the network takes.",
        )
    dtype = np.dtype(f"{kinds[tensor.code]}{tensor.bits // 8}")
    shape = tuple(tensor.shape[i] for i in range(tensor.ndim))
    strides = tuple(tensor.strides[i] * dtype.itemsize for i in range(tensor.ndim)) if tensor.strides else None
    # The capsule is kept, not taken over: it frees the tensor itself when it goes.
    return View((tensor.data or 0) + tensor.byte_offset, shape, dtype, None, capsule), strides


class DeviceArray:
    """A result on the GPU, for torch, cupy, numba and whoever else reads either protocol.

    ::

        logits = torch.from_dlpack(result)          # or torch.as_tensor(result, device="cuda"), cupy.asarray(result)

    Its memory is given back when neither this object nor a tensor made from it is left.

    Args:
        device: DLPack's device type, and the device's index.
    """

    def __init__(
        self,
        address: int,
        shape: tuple[int, ...],
        dtype: DTypeLike,
        release: Callable[[], None],
        *,
        device: tuple[int, int] = (CUDA, 0),
    ) -> None:
        self.address, self.shape = address, shape
        self.dtype: np.dtype[Any] = np.dtype(dtype)
        self._device, self._release = device, release

    @property
    def nbytes(self) -> int:
        """Bytes of memory on the device."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        if self._device[0] != CUDA:
            raise AttributeError("not on a GPU")
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.address, False),
            "strides": None,
            "version": 3,
            "stream": None,  # the work is done
        }

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._device

    def __dlpack__(self, *, stream: int | None = None, **_: Any) -> Any:
        """A capsule; the work on the memory is done, so ``stream`` has nothing to wait for."""
        managed = _Managed()
        shape = (ctypes.c_int64 * len(self.shape))(*self.shape)
        tensor = managed.tensor
        tensor.data, (tensor.device_type, tensor.device_id) = self.address, self._device
        tensor.ndim, tensor.shape = len(self.shape), ctypes.cast(shape, ctypes.POINTER(ctypes.c_int64))
        tensor.code, tensor.bits, tensor.slots = CODES[self.dtype.kind], 8 * self.dtype.itemsize, 1
        managed.deleter = _delete
        address = ctypes.addressof(managed)
        _exported[address] = (managed, shape, self)
        return _new_capsule(address, _NAME, _destroy)

    def __del__(self) -> None:
        self._release()


_exported: dict[int, tuple[_Managed, Any, DeviceArray]] = {}  # what other libraries still hold


def _forget(managed: int) -> None:
    _exported.pop(managed, None)


def _forget_untaken(capsule: int) -> None:
    if _is_capsule(capsule, _NAME):  # nobody took the tensor over
        _forget(_pointer(capsule, _NAME))


_delete, _destroy = _Callback(_forget), _Callback(_forget_untaken)
