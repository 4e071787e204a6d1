"""The keys of upstream's steps: which are carried out, which change no mask, and how their values are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from denseport.export.checkpoint.config import CORRECT
from denseport.export.checkpoint.model_settings import last_part
from denseport.export.errors import CheckpointError

__all__ = [
    "CARRIED_OUT",
    "HARMLESS",
    "MEASURE",
    "check_keys",
    "factors",
    "one_or_two",
    "refused_value",
    "sampling",
    "type_name",
    "whole_pair",
]

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
    "PackSegInputs": {"meta_keys": None},
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
        raise CheckpointError(f"the test path has the step {settings!r:.80}, which is not a dict with a type", CORRECT)
    return str(last_part(settings["type"]))


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


def refused_value(kind: str, key: str, value: Any, allowed: Sequence[Any]) -> CheckpointError:
    return CheckpointError(
        f"the test pipeline's {kind} has {key}={value!r}, which is not supported",
        f"Give {' or '.join(str(each) for each in allowed)} instead, in the configuration. {MEASURE}",
    )


def sampling(kind: str, own: Settings) -> tuple[str, str]:
    """Interpolation and library of a resize."""
    libraries = {"cv2": "opencv", None: "opencv", "pillow": "pillow"}
    if own["backend"] not in list(libraries):  # it may be of a kind that no dict finds
        raise refused_value(kind, "backend", own["backend"], ("cv2", "pillow"))
    return str(own["interpolation"]), libraries[own["backend"]]


def one_or_two(value: Any) -> tuple[int, int]:
    """As `whole_pair`; one number stands for both."""
    return whole_pair((value, value) if isinstance(value, int) else value)


def whole_pair(value: Any) -> tuple[int, int]:
    """Two whole numbers, in the order of the configuration."""
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise ValueError(f"{value!r} is not two numbers")
    if any(isinstance(each, bool) or int(each) != each for each in value):
        raise ValueError(f"{value!r} is not whole numbers")
    return int(value[0]), int(value[1])


def factors(value: Any) -> tuple[float, float]:
    width, height = value if isinstance(value, (list, tuple)) else (value, value)
    return float(width), float(height)
