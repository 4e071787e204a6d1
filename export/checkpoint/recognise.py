"""From a checkpoint to a spec: what its keys show, what its configuration says, what must be assumed.

Sizes come from the weights. The number of attention heads, the layers that feed the head, LayerNorm's eps and the add
or ignore readout come from the checkpoint's own configuration; where it has none, from the preset that was named or
recognised; else they are assumed, and each assumption is a warning.
"""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass
from typing import Any

from denseport.export.checkpoint.config import CORRECT, look_up
from denseport.export.checkpoint.file import Checkpoint
from denseport.export.errors import CheckpointError
from denseport.export.models import presets
from denseport.export.models.presets import Preset
from denseport.export.models.spec import DPTHeadSpec, ModelSpec, NeckSpec, UPerHeadSpec, ViTSpec, quarters

__all__ = ["Recognised", "recognise"]

HEAD_DIMS = 64  # channels of an attention head of every published ViT

# Settings of ``model`` that change the arithmetic and that no key shows: the only value that is implemented, which
# is also upstream's default.
SUPPORTED: dict[str, Any] = {
    "backbone.interpolate_mode": "bicubic",
    "backbone.with_cls_token": True,
    "backbone.pre_norm": False,
    "backbone.act_cfg.type": "GELU",
    "backbone.out_origin": False,
    "neck.act_cfg": None,
    "decode_head.expand_channels": False,
    "decode_head.align_corners": False,
    "decode_head.act_cfg.type": "ReLU",
    "decode_head.norm_cfg.eps": 1e-5,
    "decode_head.in_index": (0, 1, 2, 3),
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
        self.shapes = {key: tuple(value.shape) for key, value in checkpoint.state_dict.items()}
        self.model: dict[str, Any] = look_up(checkpoint.config, "model", default={})
        self.warnings: list[str] = []

    def spec(self) -> ModelSpec:
        self._check_architecture()
        is_dpt = "decode_head.reassemble_blocks.projects.0.conv.weight" in self.shapes
        try:
            return ModelSpec(
                backbone=self._backbone(is_dpt),
                neck=self._neck(),
                head=self._dpt_head() if is_dpt else self._uper_head(),
                num_classes=self._shape("decode_head.conv_seg.weight", 4)[0],
            )
        except (TypeError, ValueError, OverflowError) as err:  # a setting of another type, or sizes that do not fit
            raise CheckpointError(f"{self.path}: its model settings cannot be used: {err}", CORRECT) from err

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

    def _check_architecture(self) -> None:
        if not any(
            key.startswith(("decode_head.psp_modules.", "decode_head.reassemble_blocks.")) for key in self.shapes
        ):
            raise self._unknown_architecture("its head is neither DPT's nor UPerNet's")
        self._shape("backbone.cls_token", 3)
        for name, supported in SUPPORTED.items():
            value = look_up(self.model, *name.split("."), default=supported)
            value = tuple(value) if isinstance(value, list) else value
            if value != supported:
                raise CheckpointError(
                    f"{self.path}: model.{name} is {value!r}; only {supported!r} is supported",
                    "Train with the published configuration's value, or open an issue with the configuration.",
                )

    def _backbone(self, is_dpt: bool) -> ViTSpec:
        dims, _, patch, _ = self._shape("backbone.patch_embed.projection.weight", 4)
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
        indices = (indices,) if isinstance(indices, int) else tuple(indices)
        return ViTSpec(
            embed_dims=dims,
            num_layers=layers,
            num_heads=int(heads),
            mlp_dims=self._shape("backbone.layers.0.ffn.layers.0.0.weight", 2)[0],
            out_indices=tuple(layers + i if i < 0 else i for i in indices),
            pos_grid=self._pos_grid(tokens, patch),
            norm_eps=float(eps),
            final_norm="backbone.ln1.weight" in self.shapes,
            patch_bias="backbone.patch_embed.projection.bias" in self.shapes,
            patch_size=patch,
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
            "Name the published model with --preset if it is one."
        )
        return assumed

    def _pos_grid(self, tokens: int, patch: int) -> tuple[int, int]:
        size = look_up(self.model, "backbone", "img_size")
        if size is not None:
            height, width = (size, size) if isinstance(size, int) else tuple(size)
            if (height // patch) * (width // patch) == tokens:
                return height // patch, width // patch
        side = math.isqrt(tokens)
        if side * side != tokens:
            raise ValueError(f"a position embedding of {tokens} places is not square, and img_size does not fit it")
        return side, side

    def _neck(self) -> NeckSpec | None:
        if "neck.convs.0.conv.weight" not in self.shapes:
            return None
        scales = look_up(self.model, "neck", "scales", default=(4, 2, 1, 0.5))
        return NeckSpec(self._shape("neck.convs.0.conv.weight", 4)[0], tuple(float(s) for s in scales))

    def _dpt_head(self) -> DPTHeadSpec:
        prefix = "decode_head.reassemble_blocks"
        readout = "project"
        if f"{prefix}.readout_projects.0.0.weight" not in self.shapes:
            head = self.published.head if self.published else None
            published = head.readout if isinstance(head, DPTHeadSpec) else None
            readout = str(self._hidden("decode_head.readout_type", "ignore", published, "ignore"))
        widths = tuple(self._shape(f"{prefix}.projects.{i}.conv.weight", 4)[0] for i in range(4))
        return DPTHeadSpec(self._shape("decode_head.project.conv.weight", 4)[0], widths, readout)

    def _uper_head(self) -> UPerHeadSpec:
        count = sum(bool(re.fullmatch(r"decode_head\.psp_modules\.\d+\.1\.conv\.weight", key)) for key in self.shapes)
        scales = tuple(int(s) for s in look_up(self.model, "decode_head", "pool_scales", default=(1, 2, 3, 6)))
        if len(scales) != count:
            raise ValueError(f"{count} pooling branches for pool_scales {scales}")
        return UPerHeadSpec(self._shape("decode_head.conv_seg.weight", 4)[1], scales)
