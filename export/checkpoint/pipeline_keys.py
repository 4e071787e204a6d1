"""The keys of upstream's steps: which are carried out, which change no mask, and how their values are read."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from denseport.export.checkpoint.config import CORRECT
from denseport.export.checkpoint.model_settings import last_part
from denseport.export.errors import CheckpointError

__all__ = [
    "CARRIED_OUT",
    "HARMLESS",
    "MEASURE",
    "Keys",
    "check_keys",
    "factors",
    "one_or_two",
    "telling",
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
LIBRARIES = {"cv2": "opencv", None: "opencv", "pillow": "pillow"}  # the default is the first


class Keys(dict[str, Any]):
    """The values of a step's keys, read as what they must be; others are refused, by step and key."""

    def __init__(self, kind: str, values: Settings) -> None:
        super().__init__(values)
        self.kind = kind

    def flag(self, key: str) -> bool:
        """True or False; 1, 0 and None are what Python takes for them."""
        value = self[key]
        if value is not None and not (isinstance(value, int) and value in (0, 1)):
            raise self._refusal(key, "True or False")
        return bool(value)

    def whole(self, key: str) -> int:
        if not _is_real(self[key]) or int(self[key]) != self[key]:
            raise self._refusal(key, "a whole number")
        return int(self[key])

    def real(self, key: str) -> float:
        if not _is_real(self[key]):
            raise self._refusal(key, "a number")
        return float(self[key])

    def reals(self, key: str) -> tuple[float, ...]:
        """Several numbers; a single one is a list of one."""
        values = self[key] if isinstance(self[key], (list, tuple)) else [self[key]]
        if not all(map(_is_real, values)):
            raise self._refusal(key, "a number or a list of them")
        return tuple(map(float, values))

    def library(self, key: str) -> str:
        """What loads or resizes an image."""
        if self[key] not in list(LIBRARIES):  # it may be of a kind that no dict finds
            raise self.unsupported(key, ("cv2", "pillow"))
        return LIBRARIES[self[key]]

    def sampling(self) -> tuple[str, str]:
        """Interpolation and library of a resize."""
        return str(self["interpolation"]), self.library("backend")

    def unsupported(self, key: str, allowed: Sequence[Any]) -> CheckpointError:
        """The refusal of a value that means something else than the ones that are carried out."""
        return CheckpointError(
            f"the test pipeline's {self.kind} has {key}={self[key]!r}, which is not supported",
            f"Give {' or '.join(str(each) for each in allowed)} instead, in the configuration. {MEASURE}",
        )

    def _refusal(self, key: str, wanted: str) -> CheckpointError:
        return CheckpointError(f"the test path's {self.kind} has {key}={self[key]!r}, which is not {wanted}", CORRECT)


def _is_real(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


@contextmanager
def telling(kind: str) -> Iterator[None]:
    """Names the step whose values cannot be used."""
    try:
        yield
    except (TypeError, ValueError, OverflowError) as err:
        raise CheckpointError(f"the test path's {kind}: {err}", CORRECT) from err


def type_name(settings: Any) -> str:
    """The last part of ``type``: pure-Python configurations write whole paths, others a scope before the name."""
    if not isinstance(settings, Mapping) or "type" not in settings:
        raise CheckpointError(f"the test path has the step {settings!r:.80}, which is not a dict with a type", CORRECT)
    return str(last_part(settings["type"]))


def check_keys(kind: str, given: Settings) -> Keys:
    """The values of the keys that count, or upstream's defaults; a key that upstream does not know is refused."""
    known, harmless = CARRIED_OUT.get(kind, {}), HARMLESS.get(kind, frozenset())
    for key in given:
        if key not in {"type", "_scope_", *known, *harmless}:
            raise CheckpointError(
                f"{kind}: the key {key!r} is not known, and may change the masks",
                f"Known: {', '.join(sorted({*known, *harmless})) or 'none'}. Leave it out if upstream ignores it too.",
            )
    return Keys(kind, {key: given.get(key, default) for key, default in known.items()})


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
