"""Settings that the weights show too: one that says something else is of another network.

mmsegmentation then loads what fits, logs the rest and predicts with random weights, or leaves layers out. Most often
the configuration is another model's.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from denseport.export.checkpoint.config import look_up

__all__ = ["contradictions"]

Shapes = Mapping[str, tuple[int, ...]]
MISSING: Any = object()  # a configuration may well say None


def contradictions(model: Mapping[str, Any], shapes: Shapes) -> Iterator[str]:
    """What the configuration says of ``model`` and the shapes of the weights deny, in words."""
    shown = {**_backbone(model, shapes), **_neck(shapes), **_head(shapes)}
    for name, found in shown.items():
        said = look_up(model, *name.split("."), default=MISSING)
        said = list(said) if isinstance(said, tuple) else said
        if said is not MISSING and found is not None and said != found:
            yield f"model.{name} is {said!r}, and the weights show {found!r}"


def _backbone(model: Mapping[str, Any], shapes: Shapes) -> dict[str, Any]:
    dims, channels, patch, _ = shapes["backbone.patch_embed.projection.weight"]
    layers = {int(m[1]) for key in shapes if (m := re.match(r"backbone\.layers\.(\d{1,9})\.", key))}
    found: dict[str, Any] = {
        "embed_dims": dims,
        # Weights with a gap are told key by key when they are loaded.
        "num_layers": len(layers) if layers == set(range(len(layers))) else None,
        "in_channels": channels,
        "final_norm": "backbone.ln1.weight" in shapes,
        "qkv_bias": "backbone.layers.0.attn.attn.in_proj_bias" in shapes,
    }
    said = look_up(model, "backbone", "patch_size", default=patch)
    found["patch_size"] = [patch, patch] if isinstance(said, (list, tuple)) else patch
    hidden, ratio = _first(shapes, "backbone.layers.0.ffn.layers.0.0.weight"), look_up(model, "backbone", "mlp_ratio")
    if hidden is not None and isinstance(ratio, (int, float)) and math.isfinite(ratio) and int(ratio * dims) != hidden:
        found["mlp_ratio"] = hidden / dims
    return {f"backbone.{name}": value for name, value in found.items()}


def _neck(shapes: Shapes) -> dict[str, Any]:
    return {"neck.out_channels": _first(shapes, "neck.convs.0.conv.weight")}


def _head(shapes: Shapes) -> dict[str, Any]:
    is_dpt = "decode_head.project.conv.weight" in shapes
    found: dict[str, Any] = {}
    if is_dpt:
        found["channels"] = _first(shapes, "decode_head.project.conv.weight")
        widths = [_first(shapes, f"decode_head.reassemble_blocks.projects.{i}.conv.weight") for i in range(4)]
        found["post_process_channels"] = widths
        if "decode_head.reassemble_blocks.readout_projects.0.0.weight" in shapes:
            found["readout_type"] = "project"
    elif "decode_head.conv_seg.weight" in shapes:
        found["channels"] = shapes["decode_head.conv_seg.weight"][1]
    return {f"decode_head.{name}": value for name, value in found.items()}


def _first(shapes: Shapes, key: str) -> int | None:
    return shapes[key][0] if shapes.get(key) else None
