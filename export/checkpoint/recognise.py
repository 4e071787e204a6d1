"""From a checkpoint to a spec: what its keys show, what its configuration says, what must be assumed.

Sizes come from the weights. The number of attention heads, the layers that feed the head, LayerNorm's eps and the add
or ignore readout come from the checkpoint's own configuration; where it has none, from the preset that was named or
recognised; else they are assumed, and each assumption is a warning.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from denseport.export.checkpoint.config import CORRECT, look_up
from denseport.export.checkpoint.contradictions import contradictions
from denseport.export.checkpoint.file import Checkpoint
from denseport.export.checkpoint.model_settings import last_part, unsupported
from denseport.export.errors import CheckpointError
from denseport.export.models import presets
from denseport.export.models.presets import Preset
from denseport.export.models.spec import DPTHeadSpec, ModelSpec, NeckSpec, UPerHeadSpec, ViTSpec, quarters

__all__ = ["Recognised", "recognise"]

MISSING: Any = object()  # a configuration may well say None
HEAD_DIMS = 64  # channels of an attention head of every published ViT
THRESHOLD = 0.3  # upstream's default for a head of one output

N = TypeVar("N", int, float)

# Keys that only other networks have, and what they are.
FOREIGN = {
    r"backbone\..*\.(relative_position_bias_table|gamma_1)": "its backbone is BEiT's or MAE's (relative position bias)",
    r"backbone\.ln_pre\..*": "its backbone normalises the tokens before the first layer (pre_norm)",
    r"backbone\.patch_embed\.norm\..*": "its backbone normalises the patches (patch_norm)",
    r"backbone\.layers\.0\.ffn\.layers\.(1\.0|2)\..*": "its feed-forward parts have more than two layers (num_fcs)",
    r"neck\.upsample_.*": "its neck is Feature2Pyramid",
    r"neck\..*\.[bgi]n\..*": "its neck is normalised (norm_cfg)",
    r"decode_head\.\d+\..*": "it has a cascade of decode heads (CascadeEncoderDecoder)",
    r"decode_head\..*\.[gi]n\..*": "its head has another normalisation than BatchNorm (norm_cfg)",
    r"decode_head\.(bottleneck|project)\.conv\.bias": "its head has no BatchNorm (norm_cfg=None)",
}

# Settings that no key shows, and how a warning calls them.
HIDDEN = {
    "backbone.num_heads": "The number of attention heads",
    "backbone.out_indices": "Which layers feed the head",
    "backbone.norm_cfg.eps": "LayerNorm's eps",
    "decode_head.readout_type": "What the head does with the class token (readout)",
}


@dataclass(frozen=True)
class Recognised:
    """A checkpoint's network, the published model it is (if any), and what had to be assumed."""

    spec: ModelSpec
    preset: Preset | None
    recognised_by: str  # how the published model was recognised, in words; "" where it is none
    warnings: tuple[str, ...]


def recognise(checkpoint: Checkpoint, preset: Preset | None = None) -> Recognised:
    """The spec of a checkpoint.

    Args:
        preset: what the user says it is; an error if its sizes say otherwise.

    Raises:
        CheckpointError: another architecture, an option that is not supported, or not that preset.
    """
    published, recognised_by = preset, "the command line" if preset else ""
    if preset is None:
        names = (checkpoint.path.name, checkpoint.experiment)
        published, recognised_by = presets.find(sha256=checkpoint.sha256, names=names)
    reader = _Reader(checkpoint, published.spec if published else None)
    spec = reader.spec()
    differences = _differences(spec, published.spec) if published else []
    if preset and differences:
        raise CheckpointError(
            f"{checkpoint.path}: is not {preset.name}: {'; '.join(differences)}",
            "Leave out --preset to take the network from the checkpoint, or see `denseport models`.",
        )
    if differences:  # an experiment named after a configuration, with another network in it
        published, recognised_by, reader = None, "", _Reader(checkpoint, None)
        spec = reader.spec()
    return Recognised(spec, published, recognised_by, tuple(reader.warnings))


def _differences(spec: ModelSpec, published: ModelSpec) -> list[str]:
    """What differs between two specs, in words; the patch bias, which tools lose on the way, does not count."""
    found, wanted = _settings(spec), _settings(published)
    return [
        f"{name} is {found.get(name)}, published {wanted.get(name)}"
        for name in sorted({*found, *wanted} - {"backbone.patch_bias"})
        if found.get(name) != wanted.get(name)
    ]


def _settings(spec: ModelSpec) -> dict[str, Any]:
    """The settings of a spec by their full names, such as backbone.embed_dims."""
    parts = dataclasses.asdict(spec)
    settings = {"num_classes": parts.pop("num_classes")}
    for part, values in parts.items():
        settings |= {f"{part}.{name}": value for name, value in (values or {}).items()}
    return settings


class _Reader:
    """Reads a spec off one checkpoint and collects warnings on the way.

    Args:
        published: the network that it is taken for; what the file does not say is this one's.
    """

    def __init__(self, checkpoint: Checkpoint, published: ModelSpec | None) -> None:
        self.path, self.published, self.complete = checkpoint.path, published, checkpoint.complete
        self.settings_from = checkpoint.settings_from
        self.shapes = {key: tuple(value.shape) for key, value in checkpoint.state_dict.items()}
        model = look_up(checkpoint.config, "model")
        self.model: Mapping[str, Any] = model if isinstance(model, Mapping) else {}
        self.warnings: list[str] = []
        self.assumed: list[str] = []  # settings of parts of which there is no configuration

    def spec(self) -> ModelSpec:
        self._check_keys()
        is_dpt = "decode_head.reassemble_blocks.projects.0.conv.weight" in self.shapes
        self._check_settings("DPTHead" if is_dpt else "UPerHead")
        try:
            backbone, neck = self._backbone(is_dpt), self._neck()
            levels = len(neck.scales if neck else backbone.out_indices)
            head = self._dpt_head(levels) if is_dpt else self._uper_head(levels)
            outputs = self._shape("decode_head.conv_seg.weight", 4)[0]
            spec = ModelSpec(backbone, neck, head, 2 if head.threshold else outputs)
            for problem in contradictions(self.model, self.shapes):
                raise ValueError(problem)
        except (TypeError, ValueError, OverflowError) as err:  # a setting of another type, or sizes that do not fit
            raise CheckpointError(f"{self.settings_from}: its model settings cannot be used: {err}", CORRECT) from err
        if self.assumed and self.published is None:
            names = ", ".join(self.assumed)
            self.warnings.append(
                f"The file has no configuration of {names}: assumed what the published models have. "
                "Give the configuration by --config."
            )
        return spec

    def _shape(self, key: str, dimensions: int) -> tuple[int, ...]:
        if key not in self.shapes:
            raise self._unknown_architecture(f"it has no {key!r}")
        shape = self.shapes[key]
        if len(shape) != dimensions or 0 in shape:
            raise self._unknown_architecture(f"its {key!r} is {shape}, expected {dimensions} dimensions")
        return shape

    def _unknown_architecture(self, reason: str) -> CheckpointError:
        parts = sorted({key.split(".")[0] for key in self.shapes})[:6]
        kinds = [look_up(self.model, part, "type") for part in ("backbone", "decode_head")]
        said = f" Its configuration says {' + '.join(str(kind) for kind in kinds)}." if any(kinds) else ""
        return CheckpointError(
            f"{self.path}: not a network that Denseport knows: {reason} (it has {', '.join(parts)}).{said}",
            "Denseport exports mmsegmentation's DPT and UPerNet with a VisionTransformer backbone; "
            "`denseport models` lists the published ones.",
        )

    def _check_keys(self) -> None:
        for pattern, reason in FOREIGN.items():
            if key := next((key for key in self.shapes if re.fullmatch(pattern, key)), None):
                raise self._unknown_architecture(f"{reason}: {key!r}")
        heads = ("decode_head.psp_modules.", "decode_head.reassemble_blocks.")
        if not any(key.startswith(heads) for key in self.shapes):
            raise self._unknown_architecture("its head is neither DPT's nor UPerNet's")
        self._shape("backbone.cls_token", 3)

    def _check_settings(self, head: str) -> None:
        """Refuse types and settings that are not carried out, each by its name."""
        kinds = {"": "EncoderDecoder", "backbone": "VisionTransformer", "neck": "MultiLevelNeck", "decode_head": head}
        for part, kind in kinds.items():
            settings = self.model if part == "" else self.model.get(part)
            if settings is None:
                continue
            found = last_part(settings.get("type", kind)) if isinstance(settings, Mapping) else settings
            if not isinstance(settings, Mapping) or found != kind:
                name = f"model.{part}.type".replace("..", ".")
                raise self._unknown_architecture(f"{name} is {found!r}, and its weights are to fit {kind}")
            for problem, remedy in unsupported(part, settings, kind):
                raise CheckpointError(f"{self.settings_from}: {problem}", remedy)

    def _backbone(self, is_dpt: bool) -> ViTSpec:
        dims, channels, patch, across = self._shape("backbone.patch_embed.projection.weight", 4)
        if patch != across:
            raise self._unknown_architecture(f"its patches of {across} x {patch} pixels are not square")
        if channels not in (1, 3):
            raise CheckpointError(
                f"{self.path}: its network takes images of {channels} channels; 3 (colour) and 1 (grey) are supported",
                "Run it with mmsegmentation, or train a network of three channels.",
            )
        tokens = self._shape("backbone.pos_embed", 3)[1] - 1
        # Counted, not the highest index: a gap shows as missing and unexpected keys when the weights are loaded.
        layers = len({m[1] for key in self.shapes if (m := re.match(r"backbone\.layers\.(\d+)\.", key))})
        published = self.published.backbone if self.published else None
        if published and (published.embed_dims, published.num_layers) != (dims, layers):
            published = None
        eps = 1e-5 if is_dpt else 1e-6
        # Upstream's defaults are 12 heads, the last layer, and torch's eps.
        heads = self._hidden("backbone.num_heads", 12, published and published.num_heads, max(1, dims // HEAD_DIMS))
        indices = self._hidden("backbone.out_indices", -1, published and published.out_indices, quarters(layers))
        eps = self._hidden("backbone.norm_cfg.eps", 1e-5, published and published.norm_eps, eps)
        indices = (indices,) if isinstance(indices, int) else _numbers("backbone.out_indices", indices, int)
        return ViTSpec(
            embed_dims=dims,
            num_layers=layers,
            num_heads=_number("backbone.num_heads", heads, int),
            mlp_dims=self._shape("backbone.layers.0.ffn.layers.0.0.weight", 2)[0],
            # Upstream gives the features in the layers' order, whatever the order of the list.
            out_indices=tuple(sorted({layers + i if i < 0 else i for i in indices})),
            pos_grid=self._pos_grid(tokens, patch),
            norm_eps=_number("backbone.norm_cfg.eps", eps, float),
            final_norm="backbone.ln1.weight" in self.shapes,
            patch_bias="backbone.patch_embed.projection.bias" in self.shapes,
            patch_size=patch,
            in_channels=channels,
            interpolate_mode=str(self._said("backbone.interpolate_mode", "bicubic")),
            with_cls_token=_flag("backbone.with_cls_token", self._said("backbone.with_cls_token", True)),
        )

    def _hidden(self, name: str, default: Any, published: Any, assumed: Any) -> Any:
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

    def _said(self, name: str, default: Any) -> Any:
        """A setting that no weight shows and that every published model leaves at upstream's default."""
        part, *path = name.split(".")
        value = look_up(self.model, part, *path, default=MISSING)
        if value is MISSING and not (self.complete and part in self.model):
            self.assumed.append(name)
        return default if value is MISSING else value

    def _pos_grid(self, tokens: int, patch: int) -> tuple[int, int]:
        size = look_up(self.model, "backbone", "img_size")
        if size is not None:
            sides = (size,) if isinstance(size, int) else _numbers("backbone.img_size", size, int)
            height, width = sides * 2 if len(sides) == 1 else sides
            if (height // patch) * (width // patch) == tokens:
                return height // patch, width // patch
        side = math.isqrt(tokens)
        if side * side != tokens:
            fits = "tells its height and width, is missing" if size is None else f"is {size}, does not fit it"
            raise ValueError(
                f"a position embedding of {tokens} places is not square, and backbone.img_size, which {fits} "
                f"(patches of {patch} x {patch} pixels)"
            )
        return side, side

    def _neck(self) -> NeckSpec | None:
        if "neck.convs.0.conv.weight" not in self.shapes:
            if self.model.get("neck") is not None:
                raise self._unknown_architecture("its configuration has a neck, its weights have none")
            return None
        default = (0.5, 1, 2, 4) if "neck" in self.model else (4, 2, 1, 0.5)  # upstream's, and the published models'
        scales = _numbers("neck.scales", self._said("neck.scales", default), float)
        return NeckSpec(self._shape("neck.convs.0.conv.weight", 4)[0], scales)

    def _head(self, levels: int) -> dict[str, Any]:
        """What both heads have."""
        index = self._said("decode_head.in_index", tuple(range(levels)))
        index = (index,) if isinstance(index, int) else _numbers("decode_head.in_index", index, int)
        eps = _number("decode_head.norm_cfg.eps", self._said("decode_head.norm_cfg.eps", 1e-5), float)
        return {
            "in_index": tuple(i + levels if i < 0 else i for i in index),
            "align_corners": _flag("decode_head.align_corners", self._said("decode_head.align_corners", False)),
            "norm_eps": eps,
            "threshold": self._threshold(),
        }

    def _threshold(self) -> float | None:
        """Of a head of one output; None of others. What the configuration says of classes must fit the weights."""
        outputs, head = self._shape("decode_head.conv_seg.weight", 4)[0], self.model.get("decode_head") or {}
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
        return THRESHOLD if threshold is None else _number("decode_head.threshold", threshold, float)

    def _dpt_head(self, levels: int) -> DPTHeadSpec:
        prefix = "decode_head.reassemble_blocks"
        readout = "project"
        if f"{prefix}.readout_projects.0.0.weight" not in self.shapes:
            head = self.published.head if self.published else None
            published = head.readout if isinstance(head, DPTHeadSpec) else None
            readout = str(self._hidden("decode_head.readout_type", "ignore", published, "ignore"))
        widths = tuple(self._shape(f"{prefix}.projects.{i}.conv.weight", 4)[0] for i in range(4))
        channels = self._shape("decode_head.project.conv.weight", 4)[0]
        return DPTHeadSpec(channels, widths, readout, **self._head(levels))

    def _uper_head(self, levels: int) -> UPerHeadSpec:
        count = sum(bool(re.fullmatch(r"decode_head\.psp_modules\.\d+\.1\.conv\.weight", key)) for key in self.shapes)
        scales = _numbers("decode_head.pool_scales", self._said("decode_head.pool_scales", (1, 2, 3, 6)), int)
        if len(scales) != count:
            raise ValueError(f"{count} pooling branches for pool_scales {scales}")
        return UPerHeadSpec(self._shape("decode_head.conv_seg.weight", 4)[1], scales, **self._head(levels))


def _number(name: str, value: Any, kind: type[N]) -> N:
    """A setting that must be a number; whole ones are taken for fractions too."""
    if isinstance(value, bool) or not isinstance(value, int if kind is int else (int, float)):
        raise ValueError(f"model.{name} {value!r} is no {'whole ' if kind is int else ''}number")
    return kind(value)


def _numbers(name: str, value: Any, kind: type[N]) -> tuple[N, ...]:
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"model.{name} {value!r} is no list of numbers")
    return tuple(_number(name, item, kind) for item in value)


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"model.{name} {value!r} is neither True nor False")
    return value
