"""Evaluation protocols: how images reach the network when accuracy is measured.

A mIoU holds for its protocol only: the published ones were measured on whole images at keep-ratio 2048 x 512, and a
fixed 512 x 512 input does not reproduce them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace

from denseport.runtime.bundle.manifest import Inference, Manifest, NetworkInput
from denseport.runtime.bundle.preprocessing import (
    Preprocessing,
    described,
    of_one_size,
    resizing,
    without_resize,
)
from denseport.runtime.bundle.steps import LARGEST_SIDE, Augmentation, ResizeBy
from denseport.runtime.errors import InputError

__all__ = ["Protocol", "parse_protocol"]

SLIDE_CROP, SLIDE_STRIDE = (512, 512), (341, 341)  # upstream's configurations for this crop size
_NAMES = "reference, ms-flip, ms-flip:1.x, slide, slide:CROP:STRIDE, native, native:CROP:STRIDE or fixed:WIDTHxHEIGHT"
RATIOS = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)  # of multi-scale testing, in every published configuration


@dataclass(frozen=True)
class Protocol:
    """Pre-processing, inference mode and augmentation of one measurement."""

    name: str
    preprocess: Preprocessing
    inference: Inference
    augmentation: Augmentation | None = None  # of test time: several views; None: one
    input: NetworkInput = field(default=NetworkInput(), repr=False, compare=False)  # what the network takes

    @property
    def description(self) -> str:
        """The protocol in words."""
        text = f"{self.inference.mode}, {described(self.preprocess)}"
        if self.inference.crop and self.inference.stride:
            (height, width), (down, right) = self.inference.crop, self.inference.stride
            text += f", crop {width} x {height}, stride {right} x {down}"
        return text + (f", {self.augmentation.words}" if self.augmentation else "")


def parse_protocol(text: str, manifest: Manifest) -> Protocol:
    """The protocol that ``--protocol`` names.

    ``reference`` (as the checkpoint was tested), ``ms-flip`` or ``ms-flip:1.x``, ``slide`` or ``slide:512:341``
    (crop and stride, pixels), ``native`` or ``native:512:341`` (slide over the image at its own size, for images
    of any size), ``fixed:1024x512`` (width x height).

    Raises:
        InputError: none of these.
    """
    if not isinstance(text, str):
        raise InputError(f"protocol cannot be {text!r}", f"Give {_NAMES}.")
    base = Protocol(text, manifest.preprocess, manifest.inference, input=manifest.input)
    if text == "reference":
        return replace(base, augmentation=manifest.augmentation)
    if manifest.task == "depth" and text.partition(":")[0] in ("ms-flip", "slide", "native"):
        what = f"the protocol {text} is of segmentation: it averages probabilities, or joins windows"
        raise InputError(what, "Give reference, or fixed:WIDTHxHEIGHT.")
    if text in ("ms-flip", "ms-flip:0.x", "ms-flip:1.x"):
        # 0.x applies the ratios to the test scale, as the published figures did; 1.x to the image, as its tta_pipeline.
        own = resizing(base.preprocess) or ResizeBy((1.0, 1.0), round_down=True)
        if text.endswith("1.x"):
            own = ResizeBy((1.0, 1.0), keep_ratio=True, interpolation=own.interpolation, library=own.library)
        return replace(base, augmentation=Augmentation(tuple(own.scaled(ratio) for ratio in RATIOS), flip=True))
    if text == "slide":
        return replace(base, inference=_slide(manifest.inference))
    if text == "native":
        return replace(base, preprocess=without_resize(base.preprocess), inference=_slide(manifest.inference))
    if match := re.fullmatch(r"(slide|native):(\d{1,5}):(\d{1,5})", text):
        crop, stride = int(match[2]), int(match[3])
        if crop >= manifest.patch_size and 1 <= stride <= crop <= LARGEST_SIDE:  # a longer stride would leave gaps
            inference = Inference("slide", (crop, crop), (stride, stride))
            steps = without_resize(base.preprocess) if match[1] == "native" else base.preprocess
            return replace(base, preprocess=steps, inference=inference)
    if match := re.fullmatch(r"fixed:(\d{1,5})x(\d{1,5})", text):
        size = (int(match[1]), int(match[2]))
        if manifest.patch_size <= min(size) <= max(size) <= LARGEST_SIDE:
            return replace(base, preprocess=of_one_size(manifest.preprocess, size), inference=Inference())
    raise InputError(
        f"no protocol {text!r} for a network with patches of {manifest.patch_size} pixels",
        f"Give {_NAMES}.",
    )


def _slide(own: Inference) -> Inference:
    return own if own.mode == "slide" else Inference("slide", SLIDE_CROP, SLIDE_STRIDE)
