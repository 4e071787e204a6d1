"""Run the FP32 model on calibration images and show its tensors to observers.

Tensors are fetched in groups that fit a memory limit. Each group is one pass over the images.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from denseport.calibration.errors import CalibrationError
from denseport.calibration.observe.observers import Observer
from denseport.export.graph.model import serialise
from denseport.export.graph.probe import Probe, in_groups
from denseport.runtime.backends.onnxruntime import INPUT
from denseport.runtime.system.arrays import read_arrays, write_arrays
from denseport.runtime.system.progress import StepCallback, no_steps

__all__ = ["collect", "collection_key"]

LIMIT = 2**30  # bytes of fetched tensors
SAVE_SECONDS = 10.0

Images = Sequence[NDArray[np.float32]]
Observers = Mapping[str, Sequence[Observer]]


def collect(
    model: ir.Model,
    images: Images,
    observers: Observers,
    *,
    limit: int = LIMIT,
    threads: int | None = None,
    state_file: Path | None = None,
    key: str = "",
    progress: StepCallback = no_steps,
) -> None:
    """Show each tensor of each image to its observers.

    Args:
        images: normalised, (N, 3, H, W) float32; asked for again in every pass.
        observers: by tensor name; "image" is the input.
        limit: bytes of tensors fetched at a time, measured on the first image.
        state_file: keeps what was seen; an interrupted collection of the same ``key`` goes on from there.
        key: what is collected, as `collection_key` gives it.
        progress: is given steps done and in all; a step is one image of one pass.

    Raises:
        CalibrationError: no images, or values that are not finite.
        ExportError: the model does not run on the images, or is too large.
    """
    if not len(images):
        raise CalibrationError("there are no images to calibrate with", "Give at least one image, best 32 or more.")
    tensors = [name for name in observers if name != INPUT]
    passes = in_groups(model, images[0], tensors, limit, threads=threads) or [[]]  # be it for the input alone
    done = _load(state_file, key, observers) if state_file is not None else 0
    total = len(passes) * len(images)
    saved = time.monotonic()
    for number, names in enumerate(passes):
        if done >= (number + 1) * len(images):
            continue
        probe = Probe(model, names, threads=threads)
        for index in range(done - number * len(images), len(images)):
            image = images[index]
            found = dict(zip(names, probe.run(image), strict=True))
            if number == 0:
                found[INPUT] = image
            _show(found, observers)
            del found  # before the next image's come
            done += 1
            progress(done, total)
            # Only here have all observers seen the same images: an interruption loses what came after.
            if state_file is not None and time.monotonic() - saved > SAVE_SECONDS:
                _save(state_file, key, done, observers)
                saved = time.monotonic()
        del probe  # before the next one is opened
    if state_file is not None:
        _save(state_file, key, done, observers)


def collection_key(model: ir.Model, images: str, observers: Observers, limit: int = LIMIT) -> str:
    """A hash of what is collected: the model, the images' identity, the tensors and their observers."""
    digest = hashlib.sha256(serialise(model))
    what = [images, limit, [(name, [type(o).__name__ for o in seen]) for name, seen in observers.items()]]
    digest.update(repr(what).encode())
    return digest.hexdigest()


def _show(tensors: Mapping[str, NDArray[Any]], observers: Observers) -> None:
    for name, values in tensors.items():
        for observer in observers.get(name, ()):
            try:
                observer.update(values)
            except CalibrationError as err:
                raise CalibrationError(f"{name}: {err.message}", err.remedy) from err


def _save(path: Path, key: str, done: int, observers: Observers) -> None:
    arrays: dict[str, Any] = {"key": np.array(key), "done": np.array(done)}
    for place, observer in _placed(observers):
        arrays |= {f"{place}.{field}": value for field, value in observer.state().items()}
    write_arrays(path, arrays)


def _load(path: Path, key: str, observers: Observers) -> int:
    """Restore the observers and return the steps that they saw, 0 without a usable file."""
    arrays = read_arrays(path)
    if arrays is None or "key" not in arrays or str(arrays["key"]) != key:
        return 0
    for place, observer in _placed(observers):
        observer.restore({field: arrays[f"{place}.{field}"] for field in observer.state()})
    return int(arrays["done"])


def _placed(observers: Observers) -> Iterator[tuple[str, Observer]]:
    """Each observer with a name for the file. The tensors' own names hold slashes, which mean folders in a zip file."""
    for n, seen in enumerate(observers.values()):
        for i, observer in enumerate(seen):
            yield f"{n}.{i}", observer
