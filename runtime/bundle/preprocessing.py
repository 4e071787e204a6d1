"""What is done to an image before the network sees it: a list of steps, each one of a closed set.

Each step is a frozen dataclass whose ``kind`` tells it in JSON. `denseport.runtime.pipeline.preprocess` carries the
steps out; a new kind needs its dataclass here, its place in `Step`, and what it does there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

__all__ = [
    "LARGEST_SIDE",
    "USUAL_NORMALISE",
    "USUAL_RESIZE",
    "Normalise",
    "Preprocessing",
    "Resize",
    "Step",
    "check_steps",
    "described",
    "normalisation",
    "resized_to",
    "resizing",
    "without_resize",
]

LARGEST_SIDE = 2**15  # pixels that an image may be resized to; a hostile manifest must not ask for all the memory


@dataclass(frozen=True)
class Resize:
    """Resize to a size, or as large as fits into it."""

    size: tuple[int, int]  # width, height in pixels; with keep_ratio: limits of the longer and the shorter side
    keep_ratio: bool
    interpolation: str = "bilinear"
    library: str = "opencv"  # whose rounding of sizes and grey levels it has
    kind: str = field(default="resize", init=False)

    def __post_init__(self) -> None:
        if not 1 <= min(self.size) <= max(self.size) <= LARGEST_SIDE:
            raise ValueError(f"size {self.size} has a side that is not in 1..{LARGEST_SIDE} pixels")
        for name, known in (("interpolation", "bilinear"), ("library", "opencv")):
            if getattr(self, name) != known:
                raise ValueError(f"{name} {getattr(self, name)!r} is not {known!r}, the only one so far")


@dataclass(frozen=True)
class Normalise:
    """Grey levels to (level - mean) / std, float32, in the network's order of channels."""

    mean: tuple[float, float, float]  # grey levels, in the network's order of channels
    std: tuple[float, float, float]
    bgr_to_rgb: bool  # the network wants RGB (False: BGR)
    kind: str = field(default="normalise", init=False)

    def __post_init__(self) -> None:
        if len(self.mean) != 3 or not all(map(math.isfinite, self.mean)):
            raise ValueError(f"mean {self.mean} is not three numbers")
        if len(self.std) != 3 or not all(0 < value < math.inf for value in self.std):
            raise ValueError(f"std {self.std} is not three positive numbers")


Step = Resize | Normalise
Preprocessing = tuple[Step, ...]  # in the order in which they are done
# What the published models were tested with, and what is assumed of a checkpoint that does not say.
USUAL_RESIZE = Resize((2048, 512), keep_ratio=True)
USUAL_NORMALISE = Normalise((123.675, 116.28, 103.53), (58.395, 57.12, 57.375), bgr_to_rgb=True)


def check_steps(steps: Preprocessing) -> None:
    """Raises ValueError unless the steps are at most one `Resize`, then one `Normalise`."""
    if [step.kind for step in steps] not in (["resize", "normalise"], ["normalise"]):
        raise ValueError("preprocess needs at most one resize, then one normalise")


def resizing(steps: Preprocessing) -> Resize | None:
    """The step that resizes; None where the image keeps its own size."""
    return next((step for step in steps if isinstance(step, Resize)), None)


def normalisation(steps: Preprocessing) -> Normalise:
    """The step that normalises; `check_steps` refuses a list without one."""
    return next(step for step in steps if isinstance(step, Normalise))


def resized_to(steps: Preprocessing, size: tuple[int, int], *, keep_ratio: bool) -> Preprocessing:
    """The steps, with the image's resize to ``size`` (width, height)."""
    resize = replace(resizing(steps) or USUAL_RESIZE, size=size, keep_ratio=keep_ratio)
    return (resize, *without_resize(steps))


def without_resize(steps: Preprocessing) -> Preprocessing:
    """The steps for an image that keeps its own size."""
    return tuple(step for step in steps if not isinstance(step, Resize))


def described(steps: Preprocessing) -> str:
    """How the image is resized, in words."""
    resize = resizing(steps)
    words = "keep-ratio" if resize and resize.keep_ratio else "fixed"
    return f"{words} {resize.size[0]} x {resize.size[1]}" if resize else "own size"
