"""From a checkpoint to a spec: of which kind its network is, and which published model, if any.

The kinds are the readers of `denseport.export.checkpoint.networks`, which are asked one after another.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Any

from denseport.export.checkpoint.file import Checkpoint
from denseport.export.checkpoint.networks.dpt import DepthAnythingReader, DPTDepthReader, DPTReader
from denseport.export.checkpoint.networks.reader import Reader, model_of, shapes_of, unknown_network
from denseport.export.checkpoint.networks.segformer import SegFormerReader
from denseport.export.checkpoint.networks.segmenter import LinearReader, MaskReader
from denseport.export.checkpoint.networks.setr import SETRMLAReader, SETRUPReader
from denseport.export.checkpoint.networks.upernet import UPerNetReader
from denseport.export.checkpoint.pipeline import Usual
from denseport.export.errors import CheckpointError
from denseport.export.models import presets
from denseport.export.models.presets import DepthPreset, Preset
from denseport.export.models.spec import ModelSpec
from denseport.runtime.bundle.manifest import Inference
from denseport.runtime.bundle.steps import Resize

__all__ = ["READERS", "Recognised", "recognise"]

READERS: tuple[type[Reader], ...] = (
    DepthAnythingReader,
    DPTDepthReader,
    DPTReader,
    UPerNetReader,
    SETRUPReader,
    SETRMLAReader,
    MaskReader,
    LinearReader,
    SegFormerReader,
)

# Keys that only other networks have, and what they are.
FOREIGN = {
    r"core\.core\..*": "it is ZoeDepth's, as the metric networks of Depth Anything V1 are",
    r"pretrained\..*": "its encoder is neither a plain ViT nor DINOv2 with GELU (hybrid, BEiT, Swin, giant: not known)",
    r"backbone\..*\.(relative_position_bias_table|gamma_1)": "its backbone is BEiT's or MAE's (relative position bias)",
    r"backbone\.ln_pre\..*": "its backbone normalises the tokens before the first layer (pre_norm)",
    r"backbone\.patch_embed\.norm\..*": "its backbone normalises the patches (patch_norm)",
    r"backbone\.layers\.0\.ffn\.layers\.(1\.0|2)\..*": "its feed-forward parts have more than two layers (num_fcs)",
    r"neck\.upsample_.*": "its neck is Feature2Pyramid",
    r"neck\.(?!mla\.).*\.[bgi]n\..*": "its neck is normalised (norm_cfg)",
    r"neck\.mla\..*\.[gi]n\..*": "its neck has another normalisation than BatchNorm (norm_cfg)",
    r"neck\.mla\..*\.conv\.bias": "its neck has no BatchNorm (norm_cfg=None)",
    r"decode_head\.\d+\..*": "it has a cascade of decode heads (CascadeEncoderDecoder)",
    r"decode_head\..*\.[gi]n\..*": "its head has another normalisation than BatchNorm (norm_cfg)",
    r"decode_head\.(bottleneck|project|fusion_conv|up_convs\.0\.0)\.conv\.bias": (
        "its head has no BatchNorm (norm_cfg=None)"
    ),
}


@dataclass(frozen=True)
class Recognised:
    """A checkpoint's network, the published model it is (if any), and what had to be assumed."""

    spec: ModelSpec
    preset: Preset | DepthPreset | None
    recognised_by: str  # how the published model was recognised, in words; "" where it is none
    usual: Usual  # how that model, or the published ones of its kind, are tested
    warnings: tuple[str, ...]


def recognise(
    checkpoint: Checkpoint, preset: Preset | DepthPreset | None = None, *, name: str | None = None
) -> Recognised:
    """The spec of a checkpoint.

    Args:
        preset: what the user says it is; an error if its sizes say otherwise.
        name: under which it was fetched, where its path does not tell it.

    Raises:
        CheckpointError: another architecture, an option that is not supported, or not that preset.
    """
    kind = _kind(checkpoint)
    published, recognised_by = preset, "the command line" if preset else ""
    if preset is None:
        names = (name or checkpoint.path.name, checkpoint.experiment)
        published, recognised_by = presets.find(sha256=checkpoint.sha256, names=names)
    reader = kind(checkpoint, published.spec if published else None)
    spec = reader.spec()
    differences = _differences(spec, published.spec) if published else []
    if preset and differences:
        raise CheckpointError(
            f"{checkpoint.path}: is not {preset.name}: {'; '.join(differences)}",
            "Leave out --preset to take the network from the checkpoint, or see `denseport models`.",
        )
    if differences:  # an experiment named after a configuration, with another network in it
        published, recognised_by, reader = None, "", kind(checkpoint, None)
        spec = reader.spec()
    warnings = list(reader.warnings)
    if isinstance(published, DepthPreset) and recognised_by.startswith("the name"):
        warnings.append(
            f"Taken for {published.name} by {recognised_by}, not by its hash: what the weights do not show (the layers "
            "that feed the head, what its numbers mean) is that model's. Give it by --config if it is another."
        )
    return Recognised(spec, published, recognised_by, _usual(reader, spec, published), tuple(warnings))


def _usual(reader: Reader, spec: ModelSpec, published: Preset | DepthPreset | None) -> Usual:
    usual = reader.usual(spec.backbone)
    if not isinstance(published, Preset):
        return usual
    windows = published.slide and Inference("slide", (published.slide[0],) * 2, (published.slide[1],) * 2)
    return Usual(Resize(published.scale, keep_ratio=True), usual.normalise, windows or Inference())


def _kind(checkpoint: Checkpoint) -> type[Reader]:
    """The first reader whose network the keys are of."""
    shapes, model = shapes_of(checkpoint), model_of(checkpoint)
    for pattern, reason in FOREIGN.items():
        if key := next((key for key in shapes if re.fullmatch(pattern, key)), None):
            raise unknown_network(checkpoint.path, shapes, model, f"{reason}: {key!r}")
    reasons = {reader: reader.why_not(shapes) for reader in READERS}
    if mine := next((reader for reader, reason in reasons.items() if reason is None), None):
        return mine
    why = "; ".join(f"{reader.kinds['decode_head']}: {reason}" for reader, reason in reasons.items())
    raise unknown_network(checkpoint.path, shapes, model, f"its head is not one that Denseport knows ({why})")


def _differences(spec: ModelSpec, published: ModelSpec) -> list[str]:
    """What differs between two specs, in words; the patch bias, which tools lose on the way, does not count.

    Of depth, nor does what transformers computes otherwise with the same weights.
    """
    found, wanted = _settings(spec), _settings(published)
    ported = {"backbone.pos_offset", "backbone.norm_eps", "head.align_corners"} if spec.task == "depth" else set()
    return [
        f"{name} is {found.get(name)}, published {wanted.get(name)}"
        for name in sorted({*found, *wanted} - {"backbone.patch_bias", *ported})
        if found.get(name) != wanted.get(name)
    ]


def _settings(spec: ModelSpec) -> dict[str, Any]:
    """The settings of a spec by their full names, such as backbone.embed_dims."""
    parts = dataclasses.asdict(spec)
    settings = {"num_classes": parts.pop("num_classes")}
    for part, values in parts.items():
        settings |= {f"{part}.{name}": value for name, value in (values or {}).items()}
    return settings
