"""The input sizes that an engine is built for, by name or by shapes."""

from __future__ import annotations

import re

from denseport.runtime.bundle.engine_record import Profile, Shape
from denseport.runtime.bundle.manifest import Inference
from denseport.runtime.bundle.preprocessing import USUAL_NORMALISE, USUAL_RESIZE, resizing
from denseport.runtime.bundle.protocol import Protocol
from denseport.runtime.errors import InputError
from denseport.runtime.pipeline.views import input_sizes

__all__ = ["named_profiles", "parse_shape", "profile_of"]

PUBLISHED = Protocol("reference", (USUAL_RESIZE, USUAL_NORMALISE), Inference())  # whole images, keep-ratio 2048 x 512
REMEDY = "Give reference, fixed:HEIGHTxWIDTH (fixed:512x512), or three shapes with --min, --opt and --max."


def named_profiles(name: str, flavour: str, protocol: Protocol = PUBLISHED) -> tuple[Profile, ...]:
    """Profiles by name, for an engine flavour.

    ``reference`` is what the network is shown under the bundle's own protocol, batch 1. Whole images at the usual
    test scale of 2048 x 512 become landscapes of 512 x 512..2048 and portraits of 512..2048 x 512; the profile is tuned
    for 4:3. TensorRT gets a profile for each, since it plans and times a profile up to its largest shape, and
    2048 x 2048 has four times the pixels of any such image. TensorRT-RTX plans for the shapes that come, so it gets
    one range; a second profile would cost it 7 MB of kernels. Sliding windows have one size.
    ``fixed:512x512`` is one size alone.

    Args:
        protocol: the bundle's.

    Raises:
        InputError: no such name.
    """
    if name == "reference":
        sizes, resize = input_sizes(protocol), resizing(protocol.preprocess)
        if len(sizes) == 1:
            return (profile_of(*[(1, 3, *sizes[0])] * 3),)
        if resize is None:
            raise InputError("the bundle's images keep their own sizes: there is no profile for all of them", REMEDY)
        return _keeping_ratio(resize.size, sizes[0], flavour)
    if found := re.fullmatch(r"fixed:(\d{1,9})x(\d{1,9})", name):
        height, width = int(found[1]), int(found[2])
        return (profile_of(*[(1, 3, height, width)] * 3),)
    raise InputError(f"no profile {name!r}", REMEDY)


def _keeping_ratio(scale: tuple[int, int], landscape: tuple[int, int], flavour: str) -> tuple[Profile, ...]:
    """For whole images, up to the ratio at which both limits of the scale are met, and at least 2:1."""
    shorter, longer = sorted(scale)
    ratio = max(longer / shorter, 2.0)
    least, widest = min(shorter, int(longer / ratio)), min(longer, int(shorter * ratio))
    height, width = landscape
    if flavour == "tensorrt_rtx":
        return (Profile((1, 3, least, least), (1, 3, height, width), (1, 3, widest, widest)),)
    return (
        Profile((1, 3, least, shorter), (1, 3, height, width), (1, 3, shorter, widest)),
        Profile((1, 3, shorter, least), (1, 3, width, height), (1, 3, widest, shorter)),
    )


def parse_shape(text: str) -> Shape:
    """(N, 3, H, W) of "HxW" or "Nx3xHxW".

    Raises:
        InputError: not of that form.
    """
    numbers = [int(part) for part in text.split("x") if re.fullmatch(r"\d{1,9}", part)]
    if len(numbers) != text.count("x") + 1 or len(numbers) not in (2, 4):
        raise InputError(f"{text!r} is no shape: expected HEIGHTxWIDTH or BATCHx3xHEIGHTxWIDTH", REMEDY)
    batch, channels, height, width = numbers if len(numbers) == 4 else (1, 3, *numbers)
    return batch, channels, height, width


def profile_of(minimum: Shape, optimum: Shape, maximum: Shape) -> Profile:
    """A profile of three input shapes.

    Raises:
        InputError: not 3 channels, a size below 1, or not in order.
    """
    if any(shape[1] != 3 for shape in (minimum, optimum, maximum)):
        raise InputError(
            f"the network's input has 3 channels; the profile gives {minimum}, {optimum}, {maximum}", REMEDY
        )
    try:
        return Profile(minimum, optimum, maximum)
    except ValueError as err:
        raise InputError(str(err), REMEDY) from err
