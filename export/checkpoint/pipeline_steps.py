"""The steps of an upstream pipeline, read one by one.

Each key that upstream's steps and its data pre-processor know, in 0.x and 1.x, is carried out, has no effect on a mask,
or is refused by its name: docs/settings.md has the table. Sources: ``mmcv/transforms/{loading,processing}.py`` (2.1),
``mmseg/datasets/transforms/transforms.py`` and ``mmseg/models/data_preprocessor.py`` (1.2.2);
``mmseg/datasets/pipelines`` (0.30).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from denseport.export.checkpoint.config import CORRECT
from denseport.export.checkpoint.pipeline_keys import (
    HARMLESS,
    MEASURE,
    Keys,
    check_keys,
    factors,
    one_or_two,
    telling,
    type_name,
    whole_pair,
)
from denseport.export.errors import CheckpointError
from denseport.runtime.bundle.preprocessing import Preprocessing, loading, resizing
from denseport.runtime.bundle.steps import (
    LARGEST_SIDE,
    Augmentation,
    Load,
    Normalise,
    Pad,
    Resize,
    ResizeBy,
    ResizeShortestEdge,
    ResizeToMultiple,
    Scale,
    Step,
)

__all__ = ["Reader"]

Settings = Mapping[str, Any]
ONCE = f"Leave one Resize, before Pad and RandomFlip, in MultiScaleFlipAug and none before it. {MEASURE}"
# What else to change where cv2 takes their place.
OTHER_DECODERS = {
    "turbojpeg": "color_type='color_ignore_orientation', because turbojpeg ignores the orientation",
    "tifffile": "the opposite of bgr_to_rgb, because tifffile gives RGB",
}


class Reader:
    """Reads a pipeline step by step.

    Args:
        old: of mmsegmentation 0.x, whose steps have other defaults.
        channels: of the network's input.
    """

    def __init__(self, *, old: bool, channels: int) -> None:
        self.old, self.channels = old, channels
        self.steps: Preprocessing = ()
        self.augmentation: Augmentation | None = None

    def read(self, step: Settings) -> None:
        kind = type_name(step)
        readers = {
            "LoadImageFromFile": self._load,
            "Resize": self._resize,
            "ResizeShortestEdge": self._shortest_edge,
            "ResizeToMultiple": self._to_multiple,
            "Pad": self._pad,
            "Normalize": self._normalise,
            "RandomFlip": self._random_flip,
            "MultiScaleFlipAug": self._multi_scale,
            "PackSegInputs": self._pack,
        }
        if kind in readers:
            with telling(kind):
                readers[kind](step)
        elif kind in HARMLESS:
            check_keys(kind, step)
        elif kind == "TestTimeAug":
            raise CheckpointError(
                "the test pipeline is a TestTimeAug",
                "Give the configuration that is tested without --tta; the bundle's protocol ms-flip:1.x has the views.",
            )
        else:
            raise CheckpointError(
                f"the test pipeline's step {kind!r} is not supported",
                "Supported: " + ", ".join(sorted({*readers, *HARMLESS} - {"data_preprocessor"})) + ". Do what "
                "it does to the images before Denseport sees them, and leave it out of the configuration.",
            )

    def _add(self, step: Step) -> None:
        if any(isinstance(each, Normalise) for each in self.steps) and not isinstance(step, Pad):
            raise CheckpointError(
                f"the test pipeline resizes ({step.kind}) after it normalises",
                "Put Normalize behind it, and to_float32=True into LoadImageFromFile: images are then rounded as "
                "little as now.",
            )
        if self.old and isinstance(step, Scale) and any(isinstance(each, ResizeToMultiple) for each in self.steps):
            raise CheckpointError(
                "the test pipeline resizes after ResizeToMultiple", f"Put ResizeToMultiple behind the others. {MEASURE}"
            )
        self.steps = (*self.steps, step)

    def _load(self, step: Settings) -> None:
        own = check_keys("LoadImageFromFile", step)
        colours = ("color", "grayscale", "color_ignore_orientation", "grayscale_ignore_orientation")
        if own["color_type"] == "unchanged":
            same = "color" if self.channels == 3 else "grayscale"
            raise CheckpointError(
                "the test pipeline's LoadImageFromFile has color_type='unchanged', which is not supported",
                f"Give {same}_ignore_orientation instead: files of 8 bits and as many channels load alike.",
            )
        if own["color_type"] not in colours:
            raise own.unsupported("color_type", colours)
        if own["imdecode_backend"] in list(OTHER_DECODERS):
            raise CheckpointError(
                f"the test pipeline's LoadImageFromFile has imdecode_backend={own['imdecode_backend']!r}, which is not "
                "supported",
                f"Give cv2 instead, and {OTHER_DECODERS[own['imdecode_backend']]}. {MEASURE}",
            )
        load = Load(
            orientation="ignore" not in own["color_type"],
            grey=own["color_type"].startswith("grayscale"),
            float32=own.flag("to_float32"),
            library=own.library("imdecode_backend"),
        )
        if self.steps:
            raise CheckpointError("the test pipeline loads the image twice, or late", "Leave one of the loads out.")
        self.steps = () if load == Load() else (load,)

    def _resize(self, step: Settings) -> None:
        own = _resize_keys(step, old=self.old)
        scale = own["scale"] or own["img_scale"]
        if self.old and isinstance(scale, list) and len(scale) == 1:
            scale = scale[0]
        if not scale and own["scale_factor"] is not None:
            self._add(ResizeBy(factors(own["scale_factor"]), own.flag("keep_ratio"), False, *own.sampling()))
        elif scale:
            self._add(_resize_to(one_or_two(scale), own))
        else:
            raise CheckpointError("Resize has neither scale nor scale_factor", CORRECT)

    def _shortest_edge(self, step: Settings) -> None:
        own = check_keys("ResizeShortestEdge", step)
        self._add(ResizeShortestEdge(min(one_or_two(own["scale"])), own.whole("max_size")))

    def _to_multiple(self, step: Settings) -> None:
        own = check_keys("ResizeToMultiple", step)
        own["interpolation"], own["backend"] = own["interpolation"] or "bilinear", "cv2"
        self._add(ResizeToMultiple(one_or_two(own["size_divisor"]), *own.sampling()))

    def _pad(self, step: Settings) -> None:
        own = check_keys("Pad", step)
        value = own["pad_val"]
        value = value.get("img", 0) if isinstance(value, Mapping) else value
        if isinstance(value, (list, tuple)):
            values = Keys("Pad", {"pad_val": value}).reals("pad_val")
        elif loading(self.steps).grey or (isinstance(value, int) and not self.old):
            values = (float(value),) * 3
        else:  # OpenCV takes a single number for the first channel's, and pads the others with 0
            values = (float(value), 0.0, 0.0)
        if len(values) != 3:
            raise Keys("Pad", {"pad_val": value}).unsupported("pad_val", ("a number", "three numbers"))
        size = own["size"]
        if size is not None:
            width, height = whole_pair(size)
            size = (height, width) if self.old else (width, height)  # 0.x: rows first
        divisor = None if own["size_divisor"] is None else own.whole("size_divisor")
        # 0.x cuts the padding off the logits; 1.x cuts off what its data_preprocessor pads alone.
        pad = Pad(size, divisor, own.flag("pad_to_square"), values, str(own["padding_mode"]), self.old)
        if pad.mode == "constant":
            self._add(pad)
        else:  # pixels that are repeated are normalised alike
            before = [isinstance(each, Normalise) for each in self.steps]
            at = before.index(True) if any(before) else len(before)
            if any(isinstance(each, Pad) for each in self.steps[at:]):
                raise CheckpointError(
                    "Pad with values comes before a Pad that repeats pixels", f"Exchange them. {MEASURE}"
                )
            self.steps = (*self.steps[:at], pad, *self.steps[at:])

    def _pack(self, step: Settings) -> None:
        """Without its pad_shape, upstream resizes logits to another size where a resize comes behind a pad."""
        kept = check_keys("PackSegInputs", step)["meta_keys"]
        kinds = [isinstance(each, Pad | ResizeToMultiple) for each in self.steps if not isinstance(each, Normalise)]
        if kept is not None and "pad_shape" not in kept and any(kinds) and not kinds[-1]:
            raise CheckpointError(
                "the test pipeline resizes after Pad or ResizeToMultiple, and PackSegInputs leaves pad_shape out",
                f"Add pad_shape to its meta_keys. {MEASURE}",
            )

    def _normalise(self, step: Settings) -> None:
        own = check_keys("Normalize", step)
        if any(isinstance(each, Normalise) for each in self.steps):
            raise CheckpointError("the test pipeline normalises twice", "Give one Normalize with both in one.")
        self._add(Normalise(self._channelwise(own["mean"]), self._channelwise(own["std"]), own.flag("to_rgb")))

    def _random_flip(self, step: Settings, *, harmless: bool = False) -> None:
        own = check_keys("RandomFlip", step)
        if any(own.values()) and not harmless:
            raise CheckpointError(
                f"RandomFlip mirrors images at random when testing (prob={own['prob'] or own['flip_ratio']})",
                "Leave it out: masks of a mirrored image are mirrored back, so the accuracy stays.",
            )

    def _multi_scale(self, step: Settings) -> None:
        """0.x: the scales and the mirroring of an inner pipeline."""
        own = check_keys("MultiScaleFlipAug", step)
        inner = list(own["transforms"])
        kinds = [type_name(each) for each in inner]
        flip, (base, scales) = own.flag("flip"), _scales(own["img_scale"], own["img_ratios"])
        if flip and _names(own["flip_direction"]) != ["horizontal"]:
            raise own.unsupported("flip_direction", ("horizontal",))
        if flip and "RandomFlip" not in kinds:
            raise CheckpointError(
                "MultiScaleFlipAug has flip=True without a RandomFlip: upstream mirrors its masks alone",
                f"Put RandomFlip into its transforms, or leave flip out. {MEASURE}",
            )
        several: list[Scale] = []
        before = self.steps
        for each, kind in zip(inner, kinds, strict=True):
            if kind == "Resize":
                keys = _resize_keys(each, old=True)
                resizes = [_resize_to(scale, keys) for scale in scales]
                other_size = isinstance(resizes[0], ResizeBy) and self.steps != before
                if several or other_size or (len(resizes) > 1 and resizing(self.steps) is not None):
                    raise CheckpointError("MultiScaleFlipAug resizes an image that was resized or padded already", ONCE)
                several = resizes
                self._add(_resize_to(base, keys))
            elif kind == "RandomFlip":
                self._random_flip(each, harmless=True)  # the flip is MultiScaleFlipAug's
                if flip and any(isinstance(step, Pad) for step in self.steps):
                    raise CheckpointError("the test pipeline mirrors an image that was padded", ONCE)
            else:
                self.read(each)
        if len(several) > 1 or flip:
            one = resizing(self.steps) or ResizeBy((1.0, 1.0))
            self.augmentation = Augmentation(tuple(several) if len(several) > 1 else (one,), flip)

    def read_preprocessor(self, settings: Settings) -> None:
        if not isinstance(settings, Mapping):
            raise CheckpointError(f"the data_preprocessor is {settings!r:.80}, which is not a dict", CORRECT)
        with telling("data_preprocessor"):
            self._read_preprocessor(settings)

    def _read_preprocessor(self, settings: Settings) -> None:
        """1.x's SegDataPreProcessor: channel order, normalisation, and padding that is cut off again."""
        kind = type_name(settings) if "type" in settings else "SegDataPreProcessor"
        if kind != "SegDataPreProcessor":
            raise CheckpointError(
                f"the data_preprocessor is a {kind!r}, not mmsegmentation's SegDataPreProcessor",
                "Give a configuration with a SegDataPreProcessor that does the same, and measure the accuracy.",
            )
        own = check_keys("data_preprocessor", settings)
        # Both names exchange the first and the last channel.
        swap = own.flag("bgr_to_rgb") or own.flag("rgb_to_bgr")
        given = next((step for step in self.steps if isinstance(step, Normalise)), None)
        mean, std = own["mean"], own["std"]
        if given is None:
            mean, std = (0.0, 1.0) if mean is None else (mean, std)  # upstream takes both or none
            self.steps = (*self.steps, Normalise(self._channelwise(mean), self._channelwise(std), swap))
        elif mean is not None:
            raise CheckpointError(
                "images are normalised twice: by Normalize and by data_preprocessor.mean",
                "Give one of them: mean m1 + s1 * m2 and deviation s1 * s2 do the same.",
            )
        elif swap:
            again = Normalise(given.mean[::-1], given.std[::-1], not given.bgr_to_rgb)
            at = self.steps.index(given)  # what is padded behind it has the order of its channels
            pads = [
                replace(step, value=step.value[::-1]) if isinstance(step, Pad) else step
                for step in self.steps[at + 1 :]
            ]
            self.steps = (*self.steps[:at], again, *pads)
        if own["test_cfg"]:
            if not isinstance(own["test_cfg"], Mapping):
                raise own.unsupported("test_cfg", ("a dict with size_divisor",))
            pad = check_keys("data_preprocessor.test_cfg", own["test_cfg"])
            size = None if pad["size"] is None else whole_pair(pad["size"])  # height, width
            divisor = None if pad["size_divisor"] is None else pad.whole("size_divisor")
            values = (own.real("pad_val"),) * 3
            self.steps = (*self.steps, Pad(size and size[::-1], divisor, False, values, crop=True))

    def _channelwise(self, values: Any) -> tuple[float, ...]:
        """A number for each channel of the network; one stands for all."""
        numbers = Keys("normalisation", {"mean or std": values}).reals("mean or std")
        return numbers * self.channels if len(numbers) == 1 else numbers


def _resize_keys(step: Settings, *, old: bool) -> Keys:
    own = check_keys("Resize", {"keep_ratio": old, **step})
    if own["ratio_range"] is not None:
        raise own.unsupported("ratio_range", (None,))
    return own


def _resize_to(scale: tuple[int, int] | ResizeBy, own: Keys) -> Scale:
    """A Resize with these keys, to a size or by a factor."""
    keep_ratio, smallest = own.flag("keep_ratio"), own["min_size"]
    if isinstance(scale, ResizeBy):
        if smallest is not None and keep_ratio:
            raise CheckpointError(
                "the test pipeline's Resize has min_size, and MultiScaleFlipAug no img_scale",
                f"Give an img_scale, or leave min_size out. {MEASURE}",
            )
        return replace(scale, keep_ratio=keep_ratio)
    if smallest is not None and keep_ratio:  # 0.x
        return ResizeShortestEdge(max(min(scale), int(smallest)), LARGEST_SIDE)
    return Resize(scale, keep_ratio, *own.sampling())


def _scales(scale: Any, ratios: Any) -> tuple[tuple[int, int] | ResizeBy, list[tuple[int, int] | ResizeBy]]:
    """The sizes, or factors of its own, that MultiScaleFlipAug shows an image in: of one view, and of each view."""
    numbers = [float(each) for each in (ratios if isinstance(ratios, (list, tuple)) else [ratios] if ratios else [])]
    several: list[tuple[int, int] | ResizeBy]
    one: tuple[int, int] | ResizeBy
    if isinstance(scale, list) and scale and isinstance(scale[0], (list, tuple)):
        several = [whole_pair(each) for each in scale]  # upstream applies ratios to a single scale
        one = several[0]
    elif scale is not None:
        one = one_or_two(scale)
        several = [Resize(one, True).scaled(ratio).size for ratio in numbers] or [one]
    elif numbers:
        one = ResizeBy((1.0, 1.0), round_down=True)
        several = [one.scaled(ratio) for ratio in numbers]
    else:
        raise CheckpointError("MultiScaleFlipAug has neither img_scale nor img_ratios", CORRECT)
    return (one if len(several) > 1 else several[0]), several


def _names(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value)
