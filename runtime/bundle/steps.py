"""The steps from an image to the network's input: a closed set of frozen dataclasses.

Field ``kind`` tells a step in JSON. A step that changes the size knows what size comes out. What is done to the image
is in `denseport.runtime.pipeline.preprocess`. A new kind needs its dataclass and its place in `Step` here, and its part
there. Sizes of images are (height, width); sizes and factors in a step are width, height.

Sources: ``mmcv/transforms/{loading,processing}.py``, ``mmcv/image/geometric.py`` (2.1), ``mmseg/datasets/transforms``,
``mmseg/models/data_preprocessor.py`` and ``mmseg/utils/misc.py`` (1.2.2), ``mmseg/datasets/pipelines`` (0.30);
``models/dpt/image_processing_dpt.py`` (transformers 4.57), ``transforms.py`` of MiDaS and of Depth Anything.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

__all__ = [
    "LARGEST_SIDE",
    "Augmentation",
    "Load",
    "Normalise",
    "Pad",
    "Resize",
    "ResizeBy",
    "ResizeRounded",
    "ResizeShortestEdge",
    "ResizeStep",
    "ResizeToMultiple",
    "Scale",
    "SizeStep",
    "Step",
    "rescaled_size",
]

Size = tuple[int, int]  # height, width
LARGEST_SIDE = 2**15  # pixels that an image may be resized to; a hostile manifest must not ask for all the memory
LIBRARIES = ("opencv", "pillow")
INTERPOLATIONS = {
    "opencv": ("nearest", "bilinear", "bicubic", "area", "lanczos"),
    "pillow": ("nearest", "bilinear", "bicubic", "box", "lanczos", "hamming"),
}
PAD_MODES = ("constant", "edge", "reflect", "symmetric")
RULES = ("minimal", "lower_bound", "stretch")


@dataclass(frozen=True)
class Load:
    """How a file becomes an image; an image that is given as an array is taken as loaded."""

    orientation: bool = True  # turn it as its EXIF data says
    grey: bool = False  # without colours; three equal channels
    float32: bool = False  # resize it as float32, not rounded to grey levels again
    library: str = "opencv"  # that decodes it
    kind: str = field(default="load", init=False)

    def __post_init__(self) -> None:
        _one_of("library", self.library, LIBRARIES)

    @property
    def words(self) -> str:
        """What is unusual, for people."""
        words = ["decoded by Pillow"] if self.library == "pillow" else []
        words += [] if self.orientation else ["EXIF orientation ignored"]
        words += ["grey"] if self.grey else []
        return ", ".join(words + (["float32"] if self.float32 else []))


@dataclass(frozen=True)
class Resize:
    """Resize to a size, or as large as fits into it."""

    size: tuple[int, int]  # width, height in pixels; with keep_ratio: limits of the longer and the shorter side
    keep_ratio: bool
    interpolation: str = "bilinear"
    library: str = "opencv"  # whose rounding of sizes and grey levels it has
    kind: str = field(default="resize", init=False)

    def __post_init__(self) -> None:
        _check_sampling(self)
        _check_size(self.size)

    def output(self, size: Size) -> Size:
        """(height, width) of the result for an image of ``size``, as every size step has it."""
        return _fit(size, self.size) if self.keep_ratio else (self.size[1], self.size[0])

    def scaled(self, ratio: float) -> Resize:
        """The step of multi-scale testing at a ratio: 0.x multiplies the size, and cuts the fraction off."""
        return replace(self, size=(int(self.size[0] * ratio), int(self.size[1] * ratio)))

    @property
    def words(self) -> str:
        """What is done, for people, as every size step has it."""
        return f"{'keep-ratio' if self.keep_ratio else 'fixed'} {self.size[0]} x {self.size[1]}{_sampling(self)}"


@dataclass(frozen=True)
class ResizeBy:
    """Resize by a factor of the image's own size."""

    factor: tuple[float, float]  # of the width, of the height
    keep_ratio: bool = False  # then the image becomes as large as fits that size
    round_down: bool = False  # the size in pixels; else half up
    interpolation: str = "bilinear"
    library: str = "opencv"
    kind: str = field(default="resize_by", init=False)

    def __post_init__(self) -> None:
        _check_sampling(self)
        if not all(0 < factor <= LARGEST_SIDE for factor in self.factor):
            raise ValueError(f"factor {self.factor} is not two positive numbers")

    def output(self, size: Size) -> Size:
        half = 0.0 if self.round_down else 0.5
        wanted = (int(size[1] * self.factor[0] + half), int(size[0] * self.factor[1] + half))
        return _fit(size, wanted) if self.keep_ratio else (max(1, wanted[1]), max(1, wanted[0]))

    def scaled(self, ratio: float) -> ResizeBy:
        return replace(self, factor=(self.factor[0] * ratio, self.factor[1] * ratio))

    @property
    def words(self) -> str:
        width, height = self.factor
        factor = f"{width:g}" if width == height else f"{width:g} (width) and {height:g} (height)"
        return f"by {factor}{_sampling(self)}"


@dataclass(frozen=True)
class ResizeShortestEdge:
    """Resize the shorter side to a length, unless the longer side then exceeds its limit."""

    shortest: int  # pixels
    longest: int
    interpolation: str = "bilinear"
    library: str = "opencv"
    kind: str = field(default="resize_shortest_edge", init=False)

    def __post_init__(self) -> None:
        _check_sampling(self)
        if not 1 <= min(self.shortest, self.longest) <= max(self.shortest, self.longest) <= LARGEST_SIDE:
            raise ValueError(f"shortest {self.shortest}, longest {self.longest}: not in 1..{LARGEST_SIDE} pixels")

    def output(self, size: Size) -> Size:
        scale = self.shortest / min(size)
        sides = [float(self.shortest) if side == min(size) else scale * side for side in size]
        if max(sides) > self.longest:
            limit = self.longest / max(sides)
            sides = [side * limit for side in sides]
        return _fit(size, (int(sides[1] + 0.5), int(sides[0] + 0.5)))

    def scaled(self, ratio: float) -> ResizeShortestEdge:
        return replace(self, shortest=int(self.shortest * ratio), longest=int(self.longest * ratio))

    @property
    def words(self) -> str:
        return f"shorter side {self.shortest}, longer at most {self.longest}{_sampling(self)}"


@dataclass(frozen=True)
class ResizeToMultiple:
    """Resize each side to the next multiple of a number."""

    divisor: tuple[int, int]  # of the width, of the height; pixels
    interpolation: str = "bilinear"
    library: str = "opencv"
    kind: str = field(default="resize_to_multiple", init=False)

    def __post_init__(self) -> None:
        _check_sampling(self)
        _check_divisor(self.divisor)

    def output(self, size: Size) -> Size:
        return _multiple(size[0], self.divisor[1]), _multiple(size[1], self.divisor[0])

    @property
    def words(self) -> str:
        return f"up to multiples of {_each(self.divisor)}{_sampling(self)}"


@dataclass(frozen=True)
class ResizeRounded:
    """Resize towards a size, each side to the nearest multiple of a number, half to even; as DPT and Depth Anything.

    The factors of the two sides are those that lead to ``size``. A very narrow image may be left without pixels.
    """

    size: tuple[int, int]  # width, height in pixels
    rule: str  # both sides by the factor nearer to 1 ("minimal") or the larger ("lower_bound"); else "stretch"
    divisor: int = 1  # pixels; "lower_bound" rounds up where the nearest multiple is below ``size``
    interpolation: str = "bilinear"
    library: str = "opencv"
    kind: str = field(default="resize_rounded", init=False)

    def __post_init__(self) -> None:
        _check_sampling(self)
        _one_of("rule", self.rule, RULES)
        _check_size(self.size)
        _check_divisor((self.divisor,))

    def output(self, size: Size) -> Size:
        wanted = self.size[::-1]
        factors = [new / old for new, old in zip(wanted, size, strict=True)]
        if self.rule != "stretch":
            one = max(factors) if self.rule == "lower_bound" else min(factors, key=lambda factor: abs(1 - factor))
            factors = [one, one]
        height, width = (self._rounded(*each) for each in zip(size, factors, wanted, strict=True))
        return height, width

    def _rounded(self, side: int, factor: float, least: int) -> int:
        units = factor * side / self.divisor
        rounded = round(units) * self.divisor
        return math.ceil(units) * self.divisor if self.rule == "lower_bound" and rounded < least else rounded

    def scaled(self, ratio: float) -> ResizeRounded:
        return replace(self, size=(int(self.size[0] * ratio), int(self.size[1] * ratio)))

    @property
    def words(self) -> str:
        multiples = f", multiples of {self.divisor}" if self.divisor > 1 else ""
        return f"{self.rule.replace('_', ' ')} {self.size[0]} x {self.size[1]}{multiples}{_sampling(self)}"


@dataclass(frozen=True)
class Pad:
    """Add pixels, up to a size or to a multiple; never cuts."""

    size: tuple[int, int] | None = None  # width, height
    divisor: int | None = None
    square: bool = False  # first up to a square
    value: tuple[float, float, float] = (0.0, 0.0, 0.0)  # of each channel, in the order that it has at this step
    mode: str = "constant"
    crop: bool = False  # the logits of what was added are cut off, before they are resized to the image
    centred: bool = False  # half of them at the left and at the top; else all at the right and at the bottom
    kind: str = field(default="pad", init=False)

    def __post_init__(self) -> None:
        _one_of("mode", self.mode, PAD_MODES)
        if self.size is not None and (self.divisor is not None or self.square):
            raise ValueError("a pad has a size, or a divisor, or is square")
        if self.size is None and self.divisor is None and not self.square:
            raise ValueError("a pad needs a size or a divisor, or is square")
        if self.size is not None:
            _check_size(self.size)
        if self.divisor is not None:
            _check_divisor((self.divisor,))
        if self.centred and self.crop:
            raise ValueError("the logits of a centred pad are not cut off")
        if not all(map(math.isfinite, self.value)):
            raise ValueError(f"value {self.value} is not three numbers")

    def output(self, size: Size) -> Size:
        if self.square:
            size = (max(size), max(size))
        if self.divisor:
            return _multiple(size[0], self.divisor), _multiple(size[1], self.divisor)
        width, height = self.size or (0, 0)
        return max(size[0], height), max(size[1], width)

    def added(self, size: Size) -> tuple[Size, Size]:
        """Pixels at the top and at the bottom, at the left and at the right of an image of ``size``."""
        rows, cols = (new - old for new, old in zip(self.output(size), size, strict=True))
        top, left = (rows // 2, cols // 2) if self.centred else (0, 0)
        return (top, rows - top), (left, cols - left)

    @property
    def words(self) -> str:
        to = [f"{self.size[0]} x {self.size[1]}"] if self.size else []
        to += ["a square"] if self.square else []
        to += [f"multiples of {self.divisor}"] if self.divisor else []
        filled = "" if self.mode == "constant" else f" ({self.mode})"
        where = ", centred" if self.centred else ", cut off again" if self.crop else ""
        return f"padded to {' of '.join(to)}{filled}{where}"


@dataclass(frozen=True)
class Normalise:
    """Grey levels to (level - mean) / std, float32, in the network's order of channels."""

    mean: tuple[float, ...]  # grey levels, of each channel of the network: three, or one of grey images
    std: tuple[float, ...]
    bgr_to_rgb: bool  # the network wants RGB (False: BGR)
    kind: str = field(default="normalise", init=False)

    def __post_init__(self) -> None:
        if len(self.mean) not in (1, 3) or not all(map(math.isfinite, self.mean)):
            raise ValueError(f"mean {self.mean} is not three numbers")
        if len(self.std) != len(self.mean) or not all(0 < value < math.inf for value in self.std):
            raise ValueError(f"std {self.std} is not as many positive numbers")


ResizeStep = Resize | ResizeBy | ResizeShortestEdge | ResizeToMultiple | ResizeRounded
SizeStep = ResizeStep | Pad
Step = Load | SizeStep | Normalise
Scale = Resize | ResizeBy | ResizeShortestEdge | ResizeRounded  # chooses the size at which an image is seen


@dataclass(frozen=True)
class Augmentation:
    """Several views of an image, whose probabilities are averaged: one of each scale, and each mirrored too."""

    scales: tuple[Scale, ...]  # each takes the place of the first resize
    flip: bool

    def __post_init__(self) -> None:
        if not self.scales:
            raise ValueError("an augmentation has at least one scale")

    @property
    def words(self) -> str:
        """What is averaged, for people."""
        several = len(self.scales) > 1
        kind = " + ".join(["ms"] * several + ["flip"] * self.flip)
        scales = [f"{len(self.scales)} scales", f"{self.scales[0].words} to {self.scales[-1].words}"]
        return f"{kind} ({', '.join(scales if several else [self.scales[0].words])})"


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{name} {value!r} is not one of {', '.join(known)}")


def _check_sampling(step: ResizeStep) -> None:
    _one_of("library", step.library, LIBRARIES)
    _one_of(f"{step.library}'s interpolation", step.interpolation, INTERPOLATIONS[step.library])


def _check_size(size: tuple[int, int]) -> None:
    if not 1 <= min(size) <= max(size) <= LARGEST_SIDE:
        raise ValueError(f"size {size} has a side that is not in 1..{LARGEST_SIDE} pixels")


def _check_divisor(divisor: tuple[int, ...]) -> None:
    if not all(1 <= each <= LARGEST_SIDE for each in divisor):
        raise ValueError(f"divisor {divisor} is not in 1..{LARGEST_SIDE}")


def _sampling(step: ResizeStep) -> str:
    usual = step.interpolation == "bilinear", step.library == "opencv"
    words = [
        word for word, known in zip((step.interpolation, step.library.capitalize()), usual, strict=True) if not known
    ]
    return f" ({', '.join(words)})" if words else ""


def _each(divisor: tuple[int, int]) -> str:
    return str(divisor[0]) if divisor[0] == divisor[1] else f"{divisor[0]} (width) and {divisor[1]} (height)"


def _multiple(side: int, divisor: int) -> int:
    return -(-side // divisor) * divisor


def rescaled_size(size: Size, factor: float) -> Size:
    """(height, width) times a factor, rounded half up as mmcv does, at least one pixel each."""
    height, width = size
    return max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5))


def _fit(size: Size, limits: tuple[int, int]) -> Size:
    """As large as fits: the longer side into the larger limit, the shorter side into the smaller one."""
    return rescaled_size(size, min(max(limits) / max(size), min(limits) / min(size)))
