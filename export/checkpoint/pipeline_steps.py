"""The steps of an upstream pipeline, read one by one.

Each key that upstream's steps and its data pre-processor know, in 0.x and 1.x, is carried out, has no effect on a mask,
or is refused by its name: docs/export.md has the table. Sources: ``mmcv/transforms/{loading,processing}.py`` (2.1),
``mmseg/datasets/transforms/transforms.py`` and ``mmseg/models/data_preprocessor.py`` (1.2.2);
``mmseg/datasets/pipelines`` (0.30).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from denseport.export.checkpoint.config import CORRECT
from denseport.export.checkpoint.model_settings import last_part
from denseport.export.errors import CheckpointError
from denseport.runtime.bundle.preprocessing import Preprocessing, resizing, with_resize
from denseport.runtime.bundle.steps import (
    Augmentation,
    Load,
    Normalise,
    Pad,
    Resize,
    ResizeBy,
    ResizeShortestEdge,
    ResizeToMultiple,
    Step,
)

__all__ = ["CARRIED_OUT", "HARMLESS", "Reader", "check_keys", "type_name", "whole_pair"]

Settings = Mapping[str, Any]
MEASURE = "Then measure the accuracy again."
# The keys that are carried out, or supported with some values, and upstream's defaults (1.x).
CARRIED_OUT: dict[str, dict[str, Any]] = {
    "LoadImageFromFile": {"to_float32": False, "color_type": "color", "imdecode_backend": "cv2"},
    "Resize": {
        **{"scale": None, "img_scale": None, "scale_factor": None, "keep_ratio": False, "backend": "cv2"},
        **{"interpolation": "bilinear", "ratio_range": None, "min_size": None},
    },
    "ResizeShortestEdge": {"scale": None, "max_size": None},
    "ResizeToMultiple": {"size_divisor": 32, "interpolation": None},
    "Pad": {"size": None, "size_divisor": None, "pad_to_square": False, "pad_val": 0, "padding_mode": "constant"},
    "Normalize": {"mean": None, "std": None, "to_rgb": True},
    "RandomFlip": {"prob": None, "flip_ratio": None},
    "MultiScaleFlipAug": {
        **{"transforms": None, "img_scale": None, "img_ratios": None, "flip": False, "flip_direction": "horizontal"},
    },
    "data_preprocessor": {
        **{"mean": None, "std": None, "bgr_to_rgb": False, "rgb_to_bgr": False, "pad_val": 0, "test_cfg": None},
    },
    "data_preprocessor.test_cfg": {"size": None, "size_divisor": None},
    "model.test_cfg": {"mode": "whole", "crop_size": None, "stride": None},
}
# Keys that change no mask: paths, labels, bookkeeping, what acts in training alone.
HARMLESS: dict[str, frozenset[str]] = {
    "LoadImageFromFile": frozenset({"file_client_args", "backend_args", "ignore_empty"}),
    "LoadAnnotations": frozenset(
        {"reduce_zero_label", "imdecode_backend", "file_client_args", "backend_args", "with_bbox", "with_label"}
        | {"with_seg", "with_keypoints", "ignore_index"}
    ),
    "PackSegInputs": frozenset({"meta_keys"}),
    "ImageToTensor": frozenset({"keys"}),
    "DefaultFormatBundle": frozenset(),
    "Collect": frozenset({"keys", "meta_keys"}),
    "Resize": frozenset({"clip_object_border", "multiscale_mode"}),
    "Pad": frozenset({"seg_pad_val"}),
    "RandomFlip": frozenset({"direction", "swap_seg_labels"}),
    "data_preprocessor": frozenset({"size", "size_divisor", "seg_pad_val", "batch_augments", "non_blocking"}),
}


def type_name(settings: Any) -> str:
    """The last part of ``type``: pure-Python configurations write whole paths, others a scope before the name."""
    if not isinstance(settings, Mapping) or "type" not in settings:
        raise ValueError(f"{settings!r} has no type")
    return str(last_part(settings["type"]))


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
        }
        if kind in readers:
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
                f"Put Normalize behind it; the images differ by rounding alone. {MEASURE}",
            )
        self.steps = (*self.steps, step)

    def _load(self, step: Settings) -> None:
        own = check_keys("LoadImageFromFile", step)
        colours = ("color", "grayscale", "color_ignore_orientation", "grayscale_ignore_orientation")
        if own["color_type"] not in colours:
            raise _only("LoadImageFromFile", "color_type", own["color_type"], colours)
        libraries = {"cv2": "opencv", "pillow": "pillow"}
        if own["imdecode_backend"] not in libraries:
            raise _only("LoadImageFromFile", "imdecode_backend", own["imdecode_backend"], tuple(libraries))
        load = Load(
            orientation="ignore" not in own["color_type"],
            grey=own["color_type"].startswith("grayscale"),
            float32=bool(own["to_float32"]),
            library=libraries[own["imdecode_backend"]],
        )
        if self.steps:
            raise CheckpointError("the test pipeline loads the image twice, or late", "Leave one of the loads out.")
        self.steps = () if load == Load() else (load,)

    def _resize(self, step: Settings, scale: Any = None) -> None:
        own = check_keys("Resize", {"keep_ratio": self.old, **step})
        for key in ("ratio_range", "min_size"):
            if own[key] is not None:
                raise _only("Resize", key, own[key], (None,))
        scale = scale or own["scale"] or own["img_scale"]
        keep_ratio = bool(own["keep_ratio"])
        if self.old and isinstance(scale, list) and len(scale) == 1:
            scale = scale[0]
        if isinstance(scale, ResizeBy):
            self._add(replace(scale, keep_ratio=keep_ratio))
        elif scale:
            self._add(Resize(_one_or_two(scale), keep_ratio, *_sampling("Resize", own)))
        elif own["scale_factor"] is not None:
            self._add(ResizeBy(_factors(own["scale_factor"]), keep_ratio, False, *_sampling("Resize", own)))
        else:
            raise CheckpointError("Resize has neither scale nor scale_factor", CORRECT)

    def _shortest_edge(self, step: Settings) -> None:
        own = check_keys("ResizeShortestEdge", step)
        scale = own["scale"]
        self._add(ResizeShortestEdge(min(_one_or_two(scale)), int(own["max_size"])))

    def _to_multiple(self, step: Settings) -> None:
        own = check_keys("ResizeToMultiple", step)
        own["interpolation"], own["backend"] = own["interpolation"] or "bilinear", "cv2"
        self._add(ResizeToMultiple(_one_or_two(own["size_divisor"]), *_sampling("ResizeToMultiple", own)))

    def _pad(self, step: Settings) -> None:
        own = check_keys("Pad", step)
        value = own["pad_val"]
        value = value.get("img", 0) if isinstance(value, Mapping) else value
        if isinstance(value, (list, tuple)):
            values = tuple(float(each) for each in value)
        elif isinstance(value, int) and not self.old:
            values = (float(value),) * 3
        else:  # OpenCV takes a single number for the first channel's, and pads the others with 0
            values = (float(value), 0.0, 0.0)
        if len(values) != 3:
            raise _only("Pad", "pad_val", value, ("a number", "three numbers"))
        size = own["size"]
        if size is not None:
            width, height = whole_pair(size)
            size = (height, width) if self.old else (width, height)  # 0.x: rows first
        divisor = own["size_divisor"]
        # 0.x cuts the padding off the logits; 1.x cuts off what its data_preprocessor pads alone.
        pad = Pad(size, divisor and int(divisor), bool(own["pad_to_square"]), values, own["padding_mode"], self.old)
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

    def _normalise(self, step: Settings) -> None:
        own = check_keys("Normalize", step)
        if any(isinstance(each, Normalise) for each in self.steps):
            raise CheckpointError("the test pipeline normalises twice", "Give one Normalize with both in one.")
        self._add(Normalise(self._channelwise(own["mean"]), self._channelwise(own["std"]), bool(own["to_rgb"])))

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
        if own["flip"] and _names(own["flip_direction"]) != ["horizontal"]:
            raise _only("MultiScaleFlipAug", "flip_direction", own["flip_direction"], ("horizontal",))
        ratios, scale = own["img_ratios"], own["img_scale"]
        ratios = (
            [float(ratio) for ratio in (ratios if isinstance(ratios, (list, tuple)) else [ratios])] if ratios else []
        )
        if scale is None and not ratios:
            raise CheckpointError("MultiScaleFlipAug has neither img_scale nor img_ratios", CORRECT)
        several = [scale]
        if isinstance(scale, list) and scale and isinstance(scale[0], (list, tuple)):
            several, ratios = list(scale), []  # upstream applies ratios to a single scale
        for each, kind in zip(inner, kinds, strict=True):
            if kind == "Resize":
                self._resize(each, scale=several[0] if scale is not None else ResizeBy((1.0, 1.0), round_down=True))
            elif kind == "RandomFlip":
                self._random_flip(each, harmless=True)  # the flip is MultiScaleFlipAug's
            else:
                self.read(each)
        base = resizing(self.steps)
        if base is None:  # the scale reaches nothing
            scales = []
        elif scale is None or len(several) == 1:
            scales = [base.scaled(ratio) for ratio in ratios] or [base]
        else:
            assert isinstance(base, Resize)
            scales = [replace(base, size=whole_pair(each)) for each in several]
        flip = bool(own["flip"]) and "RandomFlip" in kinds
        if len(scales) == 1 and not flip:
            self.steps = with_resize(self.steps, scales[0])
        elif scales or flip:
            self.augmentation = Augmentation(tuple(scales or [ResizeBy((1.0, 1.0))]), flip)

    def read_preprocessor(self, settings: Settings) -> None:
        """1.x's SegDataPreProcessor: channel order, normalisation, and padding that is cut off again."""
        kind = type_name(settings) if "type" in settings else "SegDataPreProcessor"
        if kind != "SegDataPreProcessor":
            raise CheckpointError(
                f"the data_preprocessor is a {kind!r}, not mmsegmentation's SegDataPreProcessor",
                "Give a configuration with a SegDataPreProcessor that does the same, and measure the accuracy.",
            )
        own = check_keys("data_preprocessor", settings)
        swap = bool(own["bgr_to_rgb"]) or bool(own["rgb_to_bgr"])  # both names exchange the first and the last channel
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
            self.steps = tuple(
                again if step is given else replace(step, value=step.value[::-1]) if isinstance(step, Pad) else step
                for step in self.steps
            )
        if own["test_cfg"]:
            pad = check_keys("data_preprocessor.test_cfg", own["test_cfg"])
            height, width = whole_pair(pad["size"]) if pad["size"] is not None else (0, 0)
            size, divisor = (width, height) if pad["size"] is not None else None, pad["size_divisor"]
            values = (float(own["pad_val"]),) * 3
            self.steps = (*self.steps, Pad(size, divisor and int(divisor), False, values, crop=True))

    def _channelwise(self, values: Any) -> tuple[float, ...]:
        """A number for each channel of the network; one stands for all."""
        numbers = tuple(float(each) for each in (values if isinstance(values, (list, tuple)) else [values]))
        return numbers * self.channels if len(numbers) == 1 else numbers


def check_keys(kind: str, given: Settings) -> dict[str, Any]:
    """The values of the keys that count, or upstream's defaults; a key that upstream does not know is refused."""
    known, harmless = CARRIED_OUT.get(kind, {}), HARMLESS.get(kind, frozenset())
    for key in given:
        if key not in {"type", "_scope_", *known, *harmless}:
            raise CheckpointError(
                f"{kind}: the key {key!r} is not known, and may change the masks",
                f"Known: {', '.join(sorted({*known, *harmless})) or 'none'}. Leave it out if upstream ignores it too.",
            )
    return {key: given.get(key, default) for key, default in known.items()}


def _only(kind: str, key: str, value: Any, allowed: Sequence[Any]) -> CheckpointError:
    return CheckpointError(
        f"the test pipeline's {kind} has {key}={value!r}, which is not supported",
        f"Give {' or '.join(str(each) for each in allowed)} instead, in the configuration. {MEASURE}",
    )


def _sampling(kind: str, own: Settings) -> tuple[str, str]:
    """Interpolation and library of a resize."""
    libraries = {"cv2": "opencv", None: "opencv", "pillow": "pillow"}
    if own["backend"] not in libraries:
        raise _only(kind, "backend", own["backend"], ("cv2", "pillow"))
    return str(own["interpolation"]), libraries[own["backend"]]


def _names(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def _one_or_two(value: Any) -> tuple[int, int]:
    """As `whole_pair`; one number stands for both."""
    return whole_pair((value, value) if isinstance(value, int) else value)


def whole_pair(value: Any) -> tuple[int, int]:
    """Two whole numbers, in the order of the configuration."""
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise ValueError(f"{value!r} is not two numbers")
    if any(isinstance(each, bool) or int(each) != each for each in value):
        raise ValueError(f"{value!r} is not whole numbers")
    return int(value[0]), int(value[1])


def _factors(value: Any) -> tuple[float, float]:
    width, height = value if isinstance(value, (list, tuple)) else (value, value)
    return float(width), float(height)
