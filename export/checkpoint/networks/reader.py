"""What every reader of a network does: sizes from the weights, settings from the configuration, warnings for the rest.

Sizes come from the weights. What no weight shows comes from the checkpoint's own configuration; where it has none, from
the published model that the checkpoint is taken for; else it is assumed, and each assumption is a warning.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from denseport.export.checkpoint.config import look_up
from denseport.export.checkpoint.file import Checkpoint
from denseport.export.checkpoint.model_settings import last_part, unsupported
from denseport.export.checkpoint.pipeline import USUAL, Usual
from denseport.export.errors import CheckpointError
from denseport.export.models.head_spec import Head
from denseport.export.models.spec import Backbone, ModelSpec, Neck

__all__ = ["Reader", "Shapes", "flag", "model_of", "number", "numbers", "shapes_of", "unknown_network"]

Shapes = Mapping[str, tuple[int, ...]]
N = TypeVar("N", int, float)
MISSING: Any = object()  # a configuration may well say None
THRESHOLD = 0.3  # upstream's default for a head of one output

# Settings that no key shows, and how a warning calls them.
HIDDEN = {
    "backbone.num_heads": "The number of attention heads",
    "backbone.out_indices": "Which layers feed the head",
    "backbone.norm_cfg.eps": "LayerNorm's eps",
    "decode_head.num_heads": "The number of attention heads of the decoder",
    "decode_head.up_scale": "The factor of the head's upsampling (up_scale)",
    "decode_head.readout_type": "What the head does with the class token (readout)",
}


class Reader(ABC):
    """Reads the spec of one kind of network off one checkpoint.

    Args:
        published: the network that the checkpoint is taken for; what the file does not say is this one's.
    """

    kinds: ClassVar[Mapping[str, str]]  # upstream's types, by part of the network; "" is the whole
    architecture: ClassVar[str]  # for people
    sign: ClassVar[str]  # how the keys begin that no other network has

    def __init__(self, checkpoint: Checkpoint, published: ModelSpec | None) -> None:
        self.path, self.published, self.complete = checkpoint.path, published, checkpoint.complete
        self.settings_from, self.correction = checkpoint.settings_from, checkpoint.correction
        self.layout, self.follows_mmseg = checkpoint.layout, checkpoint.follows_mmseg
        self.shapes = shapes_of(checkpoint)
        self.model = model_of(checkpoint)
        self.warnings: list[str] = []
        self.assumed: list[str] = []  # settings of parts of which there is no configuration

    @classmethod
    def why_not(cls, shapes: Shapes) -> str | None:
        """Why keys are of another kind of network, in words; None: they are of this one."""
        return None if any(key.startswith(cls.sign) for key in shapes) else f"no key begins with {cls.sign!r}"

    @abstractmethod
    def backbone(self) -> Backbone:
        """What the network begins with."""

    def neck(self) -> Neck | None:
        """Most networks have none."""
        if (neck := self.model.get("neck")) is not None:
            kind = last_part(neck.get("type")) if isinstance(neck, Mapping) else neck
            raise self.unknown(f"model.neck.type is {kind!r}, and its weights have no neck")
        return None

    @abstractmethod
    def head(self, levels: int) -> Head:
        """The head, which may take ``levels`` maps of the backbone or the neck."""

    def outputs(self) -> int:
        """Classes, or 1 for a class and its background."""
        return self.shape("decode_head.conv_seg.weight", 4)[0]

    @abstractmethod
    def shown(self) -> dict[str, Any]:
        """Settings that the weights show, by full name; None where they do not show it after all."""

    def usual(self, backbone: Backbone) -> Usual:
        """How the published models of this kind were tested."""
        return USUAL

    def spec(self) -> ModelSpec:
        """The spec.

        Raises:
            CheckpointError: weights, types or settings that are not this network's, or are not supported.
        """
        self._check_settings()
        try:
            backbone, neck = self.backbone(), self.neck()
            levels = neck.strides(backbone.strides) if neck else backbone.strides
            head = self.head(len(levels))
            spec = ModelSpec(backbone, neck, head, 2 if head.threshold else self.outputs())
            for contradiction in self.contradictions():
                raise ValueError(contradiction)
        except (TypeError, ValueError, OverflowError) as err:  # a setting of another type, or sizes that do not fit
            what = f"{self.settings_from}: its model settings cannot be used: {err}"
            raise CheckpointError(what, self.correction) from err
        if self.assumed and self.published is None:
            names = ", ".join(self.assumed)
            self.warnings.append(
                f"The file has no configuration of {names}: assumed what the published models have. "
                "Give the configuration by --config."
            )
        return spec

    def _check_settings(self) -> None:
        """Refuse types and settings that are not carried out, each by its name."""
        for part, kind in self.kinds.items():
            settings = self.model if part == "" else self.model.get(part)
            if settings is None:
                continue
            found = last_part(settings.get("type", kind)) if isinstance(settings, Mapping) else settings
            if not isinstance(settings, Mapping) or found != kind:
                name = f"model.{part}.type".replace("..", ".")
                raise self.unknown(f"{name} is {found!r}, and its weights are to fit {kind}")
            for problem, remedy in unsupported(part, settings, kind):
                raise CheckpointError(f"{self.settings_from}: {problem}", remedy)

    def contradictions(self) -> Iterator[str]:
        """What the configuration says and the weights deny, in words.

        mmsegmentation would load what fits, log the rest and predict with random weights, or leave layers out. Most
        often the configuration is another model's.
        """
        for name, found in self.shown().items():
            said = look_up(self.model, *name.split("."), default=MISSING)
            said = list(said) if isinstance(said, tuple) else said
            if said is not MISSING and found is not None and said != found:
                yield f"model.{name} is {said!r}, and the weights show {found!r}"

    def unknown(self, reason: str) -> CheckpointError:
        """The refusal of a network that is not quite this one."""
        return unknown_network(self.path, self.shapes, self.model, reason)

    def shape(self, key: str, dimensions: int) -> tuple[int, ...]:
        """Of a weight that the network must have."""
        if key not in self.shapes:
            raise self.unknown(f"it has no {key!r}")
        shape = self.shapes[key]
        if len(shape) != dimensions or 0 in shape:
            raise self.unknown(f"its {key!r} is {shape}, expected {dimensions} dimensions")
        return shape

    def first(self, key: str) -> int | None:
        """The first dimension of a weight, where there is such a weight."""
        return self.shapes[key][0] if self.shapes.get(key) else None

    def count(self, pattern: str) -> int:
        """How many values the group of a pattern takes in the keys that begin with it.

        Counted, not the highest index: a gap shows as missing and unexpected keys when the weights are loaded.
        """
        return len({match[1] for key in self.shapes if (match := re.match(pattern, key))})

    def check_channels(self, channels: int) -> None:
        """Of the images that the network takes."""
        if channels not in (1, 3):
            raise CheckpointError(
                f"{self.path}: its network takes images of {channels} channels; 3 (colour) and 1 (grey) are supported",
                "Run it with mmsegmentation, or train a network of three channels.",
            )

    def layers_shown(self, part: str) -> int | None:
        """How many layers a part has; None with a gap, which is told key by key when the weights are loaded."""
        layers = {int(m[1]) for key in self.shapes if (m := re.match(rf"{part}\.layers\.(\d{{1,9}})\.", key))}
        return len(layers) if layers == set(range(len(layers))) else None

    def ratio_shown(self, part: str, key: str, dims: int) -> float | None:
        """The mlp_ratio that the weights show, if the configuration's gives another hidden width."""
        hidden, ratio = self.first(f"{part}.{key}"), look_up(self.model, part, "mlp_ratio")
        if hidden is None or not isinstance(ratio, (int, float)) or not math.isfinite(ratio):
            return None
        return None if int(ratio * dims) == hidden else hidden / dims

    def hidden(self, name: str, default: Any, published: Any, assumed: Any) -> Any:
        """A setting that no weight shows: the configuration's (or upstream's default), the published, or an assumed."""
        part, *path = name.split(".")
        if part in self.model and (self.complete or look_up(self.model[part], *path) is not None):
            return look_up(self.model[part], *path, default=default)
        if published is not None:
            return published
        self.warnings.append(
            f"{HIDDEN[name]} cannot be seen in the weights, and the file has no configuration: assumed {assumed}. "
            "Give it by --config, or name the published model with --preset if it is one."
        )
        return assumed

    def said(self, name: str, default: Any, usual: Any = MISSING) -> Any:
        """A setting that no weight shows and that is the same in all published models of this kind.

        Args:
            default: upstream's, of a configuration that leaves it out.
            usual: the published models', without a configuration; default: the same.
        """
        part, *path = name.split(".")
        value = look_up(self.model, part, *path, default=MISSING)
        if value is not MISSING:
            return value
        if self.complete and part in self.model:
            return default
        self.assumed.append(name)
        return default if usual is MISSING else usual

    def layer_eps(self, name: str, default: float) -> float:
        """Eps of a LayerNorm's settings, which upstream's class has where they are missing; torch's where eps is."""
        part, key = name.split(".")
        given = look_up(self.model, part, key)
        eps = 1e-5 if isinstance(given, Mapping) and "type" in given else default
        return number(f"{name}.eps", self.said(f"{name}.eps", eps, default), float)

    def head_basics(self, levels: int, in_index: int | tuple[int, ...]) -> dict[str, Any]:
        """What every head has; ``in_index``: the levels that it takes where the configuration does not say."""
        index = self.said("decode_head.in_index", in_index)
        index = (index,) if isinstance(index, int) else numbers("decode_head.in_index", index, int)
        eps = number("decode_head.norm_cfg.eps", self.said("decode_head.norm_cfg.eps", 1e-5), float)
        return {
            "in_index": tuple(i + levels if i < 0 else i for i in index),
            "align_corners": flag("decode_head.align_corners", self.said("decode_head.align_corners", False)),
            "norm_eps": eps,
            "threshold": self._threshold(),
        }

    def _threshold(self) -> float | None:
        """Of a head of one output; None of others. What the configuration says of classes must fit the weights."""
        outputs, head = self.outputs(), self.model.get("decode_head") or {}
        classes = head.get("num_classes", outputs)
        wanted = classes if head.get("out_channels") is None else head["out_channels"]
        if wanted != outputs:
            raise ValueError(
                f"decode_head.conv_seg has {outputs} outputs, and the configuration asks for {wanted} (num_classes "
                f"{classes}); mmsegmentation would keep random weights there and only log it"
            )
        if wanted != classes and wanted != 1:
            raise ValueError(f"out_channels {wanted} is neither num_classes {classes} nor 1; mmsegmentation refuses it")
        if outputs != 1:
            return None
        if classes not in (1, 2):
            raise ValueError(f"one output cannot tell {classes} classes apart; mmsegmentation would find the first two")
        threshold = head.get("threshold")
        if threshold is None:
            self.warnings.append(f"The head has one output and no threshold: assumed mmsegmentation's, {THRESHOLD}.")
        return THRESHOLD if threshold is None else number("decode_head.threshold", threshold, float)


def shapes_of(checkpoint: Checkpoint) -> Shapes:
    return {key: tuple(value.shape) for key, value in checkpoint.state_dict.items()}


def model_of(checkpoint: Checkpoint) -> Mapping[str, Any]:
    model = look_up(checkpoint.config, "model")
    return model if isinstance(model, Mapping) else {}


def unknown_network(path: Path, shapes: Shapes, model: Mapping[str, Any], reason: str) -> CheckpointError:
    parts = sorted({key.split(".")[0] for key in shapes})[:6]
    kinds = [look_up(model, part, "type") for part in ("backbone", "decode_head")]
    said = f" Its configuration says {' + '.join(str(kind) for kind in kinds)}." if any(kinds) else ""
    return CheckpointError(
        f"{path}: not a network that Denseport knows: {reason} (it has {', '.join(parts)}).{said}",
        "Denseport exports mmsegmentation's DPT, UPerNet, SETR and Segmenter with a VisionTransformer backbone, "
        "SegFormer, Depth Anything, and DPT for depth; `denseport models` lists the published ones.",
    )


def number(name: str, value: Any, kind: type[N]) -> N:
    """A setting that must be a number; whole ones are taken for fractions too."""
    if isinstance(value, bool) or not isinstance(value, int if kind is int else (int, float)):
        raise ValueError(f"model.{name} {value!r} is not a {'whole ' if kind is int else ''}number")
    return kind(value)


def numbers(name: str, value: Any, kind: type[N]) -> tuple[N, ...]:
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"model.{name} {value!r} is not a list of numbers")
    return tuple(number(name, item, kind) for item in value)


def flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"model.{name} {value!r} is neither True nor False")
    return value
