"""From a checkpoint to a spec: what its keys show, what its configuration says, what must be assumed.

Sizes come from the keys, which cannot lie. Head count, layer indices, LayerNorm eps, the add or ignore
readout and the test settings come from the checkpoint's own configuration; where it has none, from the
preset that was named or recognised; else they are assumed, and each assumption is a warning.
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
from denseport.export.models.spec import DPTHeadSpec, ModelSpec, NeckSpec, UPerHeadSpec, ViTSpec

__all__ = ["Recognised", "recognise"]

HEAD_DIMS = 64  # of every published ViT

# Settings of ``model`` that change the arithmetic and that no key shows: the only value that is implemented, which
# is also upstream's default.
SUPPORTED: dict[tuple[str, ...], Any] = {
    ("backbone", "interpolate_mode"): "bicubic",
    ("backbone", "with_cls_token"): True,
    ("backbone", "pre_norm"): False,
    ("backbone", "act_cfg", "type"): "GELU",
    ("backbone", "out_origin"): False,
    ("neck", "act_cfg"): None,
    ("decode_head", "expand_channels"): False,
    ("decode_head", "align_corners"): False,
    ("decode_head", "act_cfg", "type"): "ReLU",
    ("decode_head", "norm_cfg", "eps"): 1e-5,
    ("decode_head", "in_index"): (0, 1, 2, 3),
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
    reader = _Reader(checkpoint)
    if preset is not None:
        known: tuple[Preset, str] | None = (preset, "the command line")
    else:
        known = presets.find(sha256=checkpoint.sha256, names=(checkpoint.path.name, checkpoint.experiment))
    candidate, recognised_by = known if known is not None else (None, "")
    spec = reader.spec(candidate.spec if candidate else None)
    if candidate is not None:
        differences = _differences(spec, candidate.spec)
        if preset is not None and differences:
            raise CheckpointError(
                f"{checkpoint.path}: is not {preset.name}: {'; '.join(differences)}",
                "Leave out --preset to take the network from the checkpoint, or see `denseport models`.",
            )
        if differences:  # an experiment named after a configuration, with another network in it
            return Recognised(reader.spec(None), None, "", tuple(reader.warnings))
    return Recognised(spec, candidate, recognised_by, tuple(reader.warnings))


def _differences(spec: ModelSpec, published: ModelSpec) -> list[str]:
    """What differs between two specs, in words; the patch bias, which tools lose on the way, does not count."""
    same_bias = dataclasses.replace(
        published, backbone=dataclasses.replace(published.backbone, patch_bias=spec.backbone.patch_bias)
    )
    found, wanted = dataclasses.asdict(spec), dataclasses.asdict(same_bias)
    differences = []
    for part, value in found.items():
        if not isinstance(value, dict) or not isinstance(wanted[part], dict):
            if value != wanted[part]:
                differences.append(f"{part} is {value}, published {wanted[part]}")
            continue
        for key in value.keys() | wanted[part].keys():
            if value.get(key) != wanted[part].get(key):
                differences.append(f"{part}.{key} is {value.get(key)}, published {wanted[part].get(key)}")
    return sorted(differences)


class _Reader:
    """Reads a spec off one checkpoint and collects warnings on the way."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.shapes = {key: tuple(value.shape) for key, value in checkpoint.state_dict.items()}
        self.model: dict[str, Any] = look_up(checkpoint.config, "model", default={})
        self.warnings: list[str] = []

    def spec(self, published: ModelSpec | None) -> ModelSpec:
        self.warnings = []
        self._check_architecture()
        is_dpt = "decode_head.reassemble_blocks.projects.0.conv.weight" in self.shapes
        try:
            return ModelSpec(
                backbone=self._backbone(published, is_dpt),
                neck=self._neck(),
                head=self._dpt_head(published) if is_dpt else self._uper_head(),
                num_classes=self._shape("decode_head.conv_seg.weight", 4)[0],
            )
        except (TypeError, ValueError, OverflowError) as err:  # a setting of another type, or sizes that do not fit
            raise CheckpointError(
                f"{self.checkpoint.path}: its model configuration cannot be used: {err}", CORRECT
            ) from err

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
            f"{self.checkpoint.path}: not a network that Denseport knows: {reason} (it has {', '.join(parts)}).{said}",
            "Denseport exports mmsegmentation's DPT and UPerNet with a VisionTransformer backbone; "
            "`denseport models` lists the published ones.",
        )

    def _check_architecture(self) -> None:
        self._shape("backbone.pos_embed", 3)
        self._shape("backbone.cls_token", 3)
        self._shape("backbone.patch_embed.projection.weight", 4)
        if not any(
            key.startswith(("decode_head.psp_modules.", "decode_head.reassemble_blocks.")) for key in self.shapes
        ):
            raise self._unknown_architecture("its head is neither DPT's nor UPerNet's")
        for path, supported in SUPPORTED.items():
            value = look_up(self.model, *path, default=supported)
            value = tuple(value) if isinstance(value, list) else value
            if value != supported:
                raise CheckpointError(
                    f"{self.checkpoint.path}: model.{'.'.join(path)} is {value!r}; only {supported!r} is supported",
                    "Train with the published configuration's value, or open an issue with the configuration.",
                )

    def _backbone(self, published: ModelSpec | None, is_dpt: bool) -> ViTSpec:
        dims, _, patch, _ = self._shape("backbone.patch_embed.projection.weight", 4)
        tokens = self._shape("backbone.pos_embed", 3)[1] - 1
        # Counted, not the highest index: a gap shows as missing and unexpected keys when the weights are loaded.
        layers = len({m[1] for key in self.shapes if (m := re.match(r"backbone\.layers\.(\d+)\.", key))})
        return ViTSpec(
            embed_dims=dims,
            num_layers=layers,
            num_heads=self._heads(dims, published),
            mlp_dims=self._shape("backbone.layers.0.ffn.layers.0.0.weight", 2)[0],
            out_indices=self._out_indices(layers, published),
            pos_grid=self._pos_grid(tokens, patch),
            norm_eps=self._norm_eps(is_dpt, published),
            final_norm="backbone.ln1.weight" in self.shapes,
            patch_bias="backbone.patch_embed.projection.bias" in self.shapes,
            patch_size=patch,
        )

    def _assume(self, what: str, value: Any) -> None:
        self.warnings.append(
            f"{what} cannot be seen in the weights and the file has no configuration: assumed {value}. "
            "Name the published model with --preset if it is one."
        )

    def _heads(self, dims: int, published: ModelSpec | None) -> int:
        if "backbone" in self.model:
            heads = int(look_up(self.model, "backbone", "num_heads", default=12))  # upstream's default
        elif published is not None and published.backbone.embed_dims == dims:
            heads = published.backbone.num_heads
        else:
            heads = max(1, dims // HEAD_DIMS)
            self._assume("The number of attention heads", f"{heads} (one for each {HEAD_DIMS} of {dims} channels)")
        if heads < 1 or dims % heads:
            raise CheckpointError(
                f"{self.checkpoint.path}: {heads} attention heads do not divide {dims} channels", CORRECT
            )
        return heads

    def _out_indices(self, layers: int, published: ModelSpec | None) -> tuple[int, ...]:
        if "backbone" in self.model:
            given = look_up(self.model, "backbone", "out_indices", default=-1)  # upstream's default
            given = (given,) if isinstance(given, int) else tuple(given)
            indices = tuple(layers + i if i < 0 else i for i in given)
        elif published is not None and published.backbone.num_layers == layers:
            indices = published.backbone.out_indices
        else:
            indices = tuple(layers * (i + 1) // 4 - 1 for i in range(4))
            self._assume("Which layers feed the head", indices)
        if len(indices) != 4 or not all(0 <= i < layers for i in indices) or list(indices) != sorted(set(indices)):
            raise CheckpointError(
                f"{self.checkpoint.path}: out_indices {indices} are not four layers, in order, of {layers}", CORRECT
            )
        return indices

    def _norm_eps(self, is_dpt: bool, published: ModelSpec | None) -> float:
        if "backbone" in self.model:
            return float(look_up(self.model, "backbone", "norm_cfg", "eps", default=1e-5))  # torch's default
        if published is not None:
            return published.backbone.norm_eps
        eps = 1e-5 if is_dpt else 1e-6
        self._assume("LayerNorm's eps", eps)
        return eps

    def _pos_grid(self, tokens: int, patch: int) -> tuple[int, int]:
        size = look_up(self.model, "backbone", "img_size")
        if size is not None:
            height, width = (size, size) if isinstance(size, int) else tuple(size)
            if (height // patch) * (width // patch) == tokens:
                return height // patch, width // patch
        side = math.isqrt(tokens)
        if side * side != tokens:
            raise CheckpointError(
                f"{self.checkpoint.path}: a position embedding of {tokens} places is not square, and no "
                "model.backbone.img_size in its configuration says what it is",
                CORRECT,
            )
        return side, side

    def _neck(self) -> NeckSpec | None:
        if "neck.convs.0.conv.weight" not in self.shapes:
            return None
        scales = look_up(self.model, "neck", "scales", default=(4, 2, 1, 0.5))
        if len(scales) != 4 or not all(scale > 0 for scale in scales):
            raise ValueError(f"neck.scales {scales} are not four positive numbers")
        return NeckSpec(self._shape("neck.convs.0.conv.weight", 4)[0], tuple(float(s) for s in scales))

    def _dpt_head(self, published: ModelSpec | None) -> DPTHeadSpec:
        prefix = "decode_head.reassemble_blocks"
        if f"{prefix}.readout_projects.0.0.weight" in self.shapes:
            readout = "project"
        elif "decode_head" in self.model:
            readout = str(look_up(self.model, "decode_head", "readout_type", default="ignore"))  # upstream's default
        elif published is not None and isinstance(published.head, DPTHeadSpec):
            readout = published.head.readout
        else:
            readout = "ignore"
            self._assume("Whether the class token is added to the patches", "that it is ignored (readout 'ignore')")
        widths = tuple(self._shape(f"{prefix}.projects.{i}.conv.weight", 4)[0] for i in range(4))
        return DPTHeadSpec(self._shape("decode_head.project.conv.weight", 4)[0], widths, readout)

    def _uper_head(self) -> UPerHeadSpec:
        count = sum(bool(re.fullmatch(r"decode_head\.psp_modules\.\d+\.1\.conv\.weight", key)) for key in self.shapes)
        scales = tuple(int(s) for s in look_up(self.model, "decode_head", "pool_scales", default=(1, 2, 3, 6)))
        if len(scales) != count:
            raise CheckpointError(f"{self.checkpoint.path}: {count} pooling branches for pool_scales {scales}", CORRECT)
        return UPerHeadSpec(self._shape("decode_head.conv_seg.weight", 4)[1], scales)
