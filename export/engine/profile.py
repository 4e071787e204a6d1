"""The input sizes that an engine is built for, by name or by shapes. In text a size is width x height."""

from __future__ import annotations

import re

from denseport.runtime.bundle.engine_record import Profile, Shape
from denseport.runtime.bundle.manifest import Inference
from denseport.runtime.bundle.preprocessing import USUAL_NORMALISE, USUAL_RESIZE, paddings, resizing, size_steps
from denseport.runtime.bundle.protocol import Protocol
from denseport.runtime.bundle.steps import Resize, ResizeRounded, Scale
from denseport.runtime.errors import InputError
from denseport.runtime.pipeline.views import input_sizes

__all__ = ["named_profiles", "parse_shape", "profile_of"]

PUBLISHED = Protocol("reference", (USUAL_RESIZE, USUAL_NORMALISE), Inference())  # whole images, keep-ratio 2048 x 512
REMEDY = "Give reference, fixed:WIDTHxHEIGHT (fixed:512x512), or three sizes with --min, --opt and --max."


def named_profiles(name: str, flavour: str, protocol: Protocol = PUBLISHED) -> tuple[Profile, ...]:
    """Profiles by name, for an engine flavour.

    ``reference`` is what the network is shown under the bundle's own protocol, batch 1. Whole images at the usual
    test scale of 2048 x 512 become landscapes of 512..2048 x 512 and portraits of 512 x 512..2048; the profile is tuned
    for 4:3. TensorRT gets a profile for each, since it plans and times a profile up to its largest shape, and
    2048 x 2048 has four times the pixels of any such image. TensorRT-RTX plans for the shapes that come, so it gets
    one range; a second profile would cost it 7 MB of kernels. Sliding windows have one size.
    ``fixed:640x480`` is that one size, width x height.

    Args:
        protocol: the bundle's.

    Raises:
        InputError: no such name, or a network that does not take three channels.
    """
    if protocol.input.shape[1] != 3:
        raise InputError(
            f"the network takes {protocol.input.shape[1]} channel; engines are built for three so far",
            "Run its ONNX artifacts.",
        )
    if name == "reference":
        sizes, steps = input_sizes(protocol), protocol.preprocess
        if len(sizes) > 1:
            sides = None if len(size_steps(steps) + paddings(steps)) > 1 else _sides(resizing(steps))
            if sides is None or protocol.augmentation:
                what = f"the bundle's images reach the network in many sizes ({protocol.description})"
                remedy = "Give fixed:WIDTHxHEIGHT (fixed:512x512), or three sizes with --min, --opt and --max."
                raise InputError(f"{what}: no profile is known to take all of them", remedy)
            return _keeping_ratio(*sides, sizes[0], flavour)
        height, width = sizes[0]
    elif found := re.fullmatch(r"fixed:(\d{1,9})x(\d{1,9})", name):
        width, height = int(found[1]), int(found[2])
    else:
        raise InputError(f"no profile {name!r}", REMEDY)
    return (profile_of(*[(1, 3, height, width)] * 3),)


def _sides(resize: Scale | None) -> tuple[int, int, int] | None:
    """The least side, the shorter one, and the longest, of whole images up to 2:1; None where no such are known.

    With limits, up to the ratio at which both are met.
    """
    if isinstance(resize, Resize):
        shorter, longer = sorted(resize.size)
        ratio = max(longer / shorter, 2.0)
        return min(shorter, int(longer / ratio)), shorter, min(longer, int(shorter * ratio))
    if isinstance(resize, ResizeRounded) and resize.size[0] == resize.size[1] and resize.rule != "stretch":
        side = resize.size[0]
        shorter, longest = resize.output((2 * side, 4 * side))
        small = max(1, side // 4)
        least, _ = resize.output((small, 2 * small))  # "minimal": the longer side of small images becomes ``size``
        return max(1, least), max(1, shorter), max(1, longest)
    return None


def _keeping_ratio(
    least: int, shorter: int, widest: int, landscape: tuple[int, int], flavour: str
) -> tuple[Profile, ...]:
    """For whole images that keep their ratio: one side is ``shorter``, the other between the others."""
    height, width = landscape
    if flavour == "tensorrt_rtx":
        return (Profile((1, 3, least, least), (1, 3, height, width), (1, 3, widest, widest)),)
    return (
        Profile((1, 3, least, shorter), (1, 3, height, width), (1, 3, shorter, widest)),
        Profile((1, 3, shorter, least), (1, 3, width, height), (1, 3, widest, shorter)),
    )


def parse_shape(text: str) -> Shape:
    """(N, 3, H, W) of a size "WxH", at batch 1, or of a whole shape "Nx3xHxW".

    Raises:
        InputError: not of that form.
    """
    if not re.fullmatch(r"\d{1,9}x\d{1,9}(x\d{1,9}x\d{1,9})?", text):
        message = f"{text!r} is neither a size (WIDTHxHEIGHT) nor the shape of an input (BATCHx3xHEIGHTxWIDTH)"
        raise InputError(message, REMEDY)
    numbers = [int(part) for part in text.split("x")]
    batch, channels, height, width = numbers if len(numbers) == 4 else (1, 3, numbers[1], numbers[0])
    return batch, channels, height, width


def profile_of(minimum: Shape, optimum: Shape, maximum: Shape) -> Profile:
    """A profile of three input shapes.

    Raises:
        InputError: not 3 channels, a size below 1, or not in order.
    """
    shapes = minimum, optimum, maximum
    if any(shape[1] != 3 for shape in shapes):
        raise InputError(f"the network's input has 3 channels; the profile gives {shapes}", REMEDY)
    try:
        return Profile(*shapes)
    except ValueError as err:
        raise InputError(str(err), REMEDY) from err
