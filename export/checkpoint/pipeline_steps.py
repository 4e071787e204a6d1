"""The steps of an upstream pipeline, read one by one.

Each key that upstream's steps and its data pre-processor know, in 0.x and 1.x, is carried out, has no effect on a mask,
or is refused by its name: docs/export.md has the table. Sources: ``mmcv/transforms/{loading,processing}.py`` (2.1),
``mmseg/datasets/transforms/transforms.py`` and ``mmseg/models/data_preprocessor.py`` (1.2.2);
``mmseg/datasets/pipelines`` (0.30).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from denseport.export.checkpoint.config import CORRECT
from denseport.export.checkpoint.model_settings import last_part
from denseport.export.checkpoint.values import flag, one_or_two, real, reals, whole, whole_pair
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
    Scale,
    Step,
)

__all__ = ["CARRIED_OUT", "HARMLESS", "Reader", "check_keys", "type_name"]

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
        raise CheckpointError(f"the test path has the step {settings!r:.80}, which is no dict with a type", CORRECT)
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
            with _telling(kind):
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
        if own["imdecode_backend"] not in list(libraries):  # it may be of a kind that no dict finds
            raise _only("LoadImageFromFile", "imdecode_backend", own["imdecode_backend"], tuple(libraries))
        load = Load(
            orientation="ignore" not in own["color_type"],
            grey=own["color_type"].startswith("grayscale"),
            float32=flag("LoadImageFromFile", own, "to_float32"),
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
        scale = next((each for each in (scale, own["scale"], own["img_scale"]) if each is not None), None)
        keep_ratio = flag("Resize", own, "keep_ratio")
        if self.old and isinstance(scale, list) and len(scale) == 1:
            scale = scale[0]
        if isinstance(scale, ResizeBy):
            self._add(replace(scale, keep_ratio=keep_ratio))
        elif scale is not None:
            self._add(Resize(one_or_two("Resize", {"scale": scale}, "scale"), keep_ratio, *_sampling("Resize", own)))
        elif own["scale_factor"] is not None:
            factors = reals("Resize", own, "scale_factor")
            if len(factors) not in (1, 2):
                raise _only("Resize", "scale_factor", own["scale_factor"], ("a number", "two numbers"))
            self._add(ResizeBy((factors[0], factors[-1]), keep_ratio, False, *_sampling("Resize", own)))
        else:
            raise CheckpointError("Resize has neither scale nor scale_factor", CORRECT)

    def _shortest_edge(self, step: Settings) -> None:
        own = check_keys("ResizeShortestEdge", step)
        shortest = min(one_or_two("ResizeShortestEdge", own, "scale"))
        self._add(ResizeShortestEdge(shortest, whole("ResizeShortestEdge", own, "max_size")))

    def _to_multiple(self, step: Settings) -> None:
        own = check_keys("ResizeToMultiple", step)
        own["interpolation"], own["backend"] = own["interpolation"] or "bilinear", "cv2"
        divisor = one_or_two("ResizeToMultiple", own, "size_divisor")
        self._add(ResizeToMultiple(divisor, *_sampling("ResizeToMultiple", own)))

    def _pad(self, step: Settings) -> None:
        own = check_keys("Pad", step)
        value = own["pad_val"]
        value = value.get("img", 0) if isinstance(value, Mapping) else value
        values = reals("Pad", {"pad_val": value}, "pad_val")
        if not isinstance(value, (list, tuple)):
            # OpenCV takes a single number for the first channel's, and pads the others with 0.
            values = values * 3 if isinstance(value, int) and not self.old else (*values, 0.0, 0.0)
        if len(values) != 3:
            raise _only("Pad", "pad_val", value, ("a number", "three numbers"))
        size = own["size"]
        if size is not None:
            width, height = whole_pair("Pad", own, "size")
            size = (height, width) if self.old else (width, height)  # 0.x: rows first
        divisor = None if own["size_divisor"] is None else whole("Pad", own, "size_divisor")
        # 0.x cuts the padding off the logits; 1.x cuts off what its data_preprocessor pads alone.
        pad = Pad(size, divisor, flag("Pad", own, "pad_to_square"), values, str(own["padding_mode"]), self.old)
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
        mean, std = (self._channelwise("Normalize", own, key) for key in ("mean", "std"))
        self._add(Normalise(mean, std, flag("Normalize", own, "to_rgb")))

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
        inner = own["transforms"]
        if not isinstance(inner, (list, tuple)):
            raise _only("MultiScaleFlipAug", "transforms", inner, ("a list of steps",))
        kinds = [type_name(each) for each in inner]
        flip = flag("MultiScaleFlipAug", own, "flip")
        if flip and own["flip_direction"] not in ("horizontal", ["horizontal"], ("horizontal",)):
            raise _only("MultiScaleFlipAug", "flip_direction", own["flip_direction"], ("horizontal",))
        if flip and "RandomFlip" not in kinds:
            raise CheckpointError(
                "MultiScaleFlipAug has flip=True and no RandomFlip: mmsegmentation then mirrors the logits of an image "
                "that was not mirrored",
                f"Add dict(type='RandomFlip') to its transforms, or give flip=False. {MEASURE}",
            )
        ratios = () if own["img_ratios"] is None else reals("MultiScaleFlipAug", own, "img_ratios")
        scale = own["img_scale"]
        if scale is None and not ratios:
            raise CheckpointError("MultiScaleFlipAug has neither img_scale nor img_ratios", CORRECT)
        several = [scale]
        if isinstance(scale, list) and scale and isinstance(scale[0], (list, tuple)):
            several, ratios = list(scale), ()  # upstream applies ratios to a single scale
        for each, kind in zip(inner, kinds, strict=True):
            if kind == "Resize":
                self._resize(each, scale=several[0] if scale is not None else ResizeBy((1.0, 1.0), round_down=True))
            elif kind == "RandomFlip":
                self._random_flip(each, harmless=True)  # the flip is MultiScaleFlipAug's
            else:
                self.read(each)
        self._make_views(several, ratios, flip=flip)

    def _make_views(self, several: Sequence[Any], ratios: Sequence[float], *, flip: bool) -> None:
        """One view of each scale: the list's or, of the only one, its ratios."""
        base = resizing(self.steps)
        if (ratios or several[1:]) and sum(isinstance(step, Scale) for step in self.steps) > 1:
            raise CheckpointError(
                "the test pipeline resizes twice, around or in MultiScaleFlipAug", f"Leave one Resize. {MEASURE}"
            )
        if base is None:  # the scale reaches nothing
            scales = []
        elif len(several) == 1:
            scales = [base.scaled(ratio) for ratio in ratios] or [base]
        else:
            assert isinstance(base, Resize)
            pairs = [whole_pair("MultiScaleFlipAug", {"img_scale": each}, "img_scale") for each in several]
            scales = [replace(base, size=pair) for pair in pairs]
        if len(scales) == 1 and not flip:
            self.steps = with_resize(self.steps, scales[0])
        elif scales or flip:
            self.augmentation = Augmentation(tuple(scales or [ResizeBy((1.0, 1.0))]), flip)

    def read_preprocessor(self, settings: Settings) -> None:
        """1.x's SegDataPreProcessor: channel order, normalisation, and padding that is cut off again."""
        with _telling("data_preprocessor"):
            self._read_preprocessor(settings)

    def _read_preprocessor(self, settings: Settings) -> None:
        if not isinstance(settings, Mapping):
            raise ValueError(f"{settings!r} is no dict")
        kind = type_name(settings) if "type" in settings else "SegDataPreProcessor"
        if kind != "SegDataPreProcessor":
            raise CheckpointError(
                f"the data_preprocessor is a {kind!r}, not mmsegmentation's SegDataPreProcessor",
                "Give a configuration with a SegDataPreProcessor that does the same, and measure the accuracy.",
            )
        own = check_keys("data_preprocessor", settings)
        # Both names exchange the first and the last channel.
        swap = flag("data_preprocessor", own, "bgr_to_rgb") or flag("data_preprocessor", own, "rgb_to_bgr")
        given = next((step for step in self.steps if isinstance(step, Normalise)), None)
        if given is None:
            numbers = {"mean": 0.0, "std": 1.0} if own["mean"] is None else own  # upstream takes both or none
            mean, std = (self._channelwise("data_preprocessor", numbers, key) for key in ("mean", "std"))
            self.steps = (*self.steps, Normalise(mean, std, swap))
        elif own["mean"] is not None:
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
            self._pad_batch(own)

    def _pad_batch(self, own: Settings) -> None:
        kind = "data_preprocessor.test_cfg"
        if not isinstance(own["test_cfg"], Mapping):
            raise _only("data_preprocessor", "test_cfg", own["test_cfg"], ("a dict with size or size_divisor",))
        how = check_keys(kind, own["test_cfg"])
        size = None if how["size"] is None else whole_pair(kind, how, "size")[::-1]  # rows first
        divisor = None if how["size_divisor"] is None else whole(kind, how, "size_divisor")
        values = (real("data_preprocessor", own, "pad_val"),) * 3
        self.steps = (*self.steps, Pad(size, divisor, False, values, crop=True))

    def _channelwise(self, kind: str, own: Settings, key: str) -> tuple[float, ...]:
        """A number for each channel of the network; one stands for all."""
        numbers = reals(kind, own, key)
        return numbers * self.channels if len(numbers) == 1 else numbers


@contextmanager
def _telling(kind: str) -> Iterator[None]:
    """Names the step whose numbers `denseport.runtime.bundle.steps` refuses."""
    try:
        yield
    except ValueError as err:
        raise CheckpointError(f"the test path's {kind}: {err}", CORRECT) from err


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
    if own["backend"] not in list(libraries):
        raise _only(kind, "backend", own["backend"], ("cv2", "pillow"))
    return str(own["interpolation"]), libraries[own["backend"]]
