"""Reads DPT and Depth Anything, for classes or for depth, off a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, ClassVar

from denseport.export.checkpoint.config import look_up
from denseport.export.checkpoint.networks.original import DEPTH_ANYTHING
from denseport.export.checkpoint.networks.reader import number, numbers
from denseport.export.checkpoint.networks.vit import ViTReader
from denseport.export.errors import CheckpointError
from denseport.export.models.head_spec import DepthAnythingHeadSpec, DPTDepthHeadSpec, DPTHeadSpec, FusionSpec
from denseport.export.models.presets import V2_LAYERS
from denseport.export.models.spec import ViTSpec

__all__ = ["DPTDepthReader", "DPTReader", "DepthAnythingReader", "DepthReader", "FusionReader"]

BLOCKS = "decode_head.reassemble_blocks"
UNIT = "decode_head.fusion_blocks.0.res_conv_unit2.conv1"
RELATIVE, METRES = "relative", "metres"  # what decode_head.depth says


class FusionReader(ViTReader):
    """VisionTransformer and a head on DPT's fusion."""

    def fusion(self, levels: int) -> dict[str, Any]:
        """The settings that every such head has."""
        readout = self.readout_shown()
        if readout is None:
            head = self.published.head if self.published else None
            published = head.readout if isinstance(head, FusionSpec) else None
            readout = str(self.hidden("decode_head.readout_type", "ignore", published, "ignore"))
        return {
            "channels": self.shape("decode_head.fusion_blocks.0.project.conv.weight", 4)[0],
            "post_process_channels": tuple(self.shape(f"{BLOCKS}.projects.{i}.conv.weight", 4)[0] for i in range(4)),
            "readout": readout,
            "unit_norm": f"{UNIT}.bn.weight" in self.shapes,
            "unit_bias": f"{UNIT}.conv.bias" in self.shapes,
            **self.head_basics(levels, tuple(range(levels))),
        }

    def readout_shown(self) -> str | None:
        if f"{BLOCKS}.readout_projects.0.0.weight" in self.shapes:
            return "project"
        return "ignore" if self.layout == DEPTH_ANYTHING else None  # of others it may be "add"

    def shown(self) -> dict[str, Any]:
        return super().shown() | {
            "decode_head.channels": self.first("decode_head.fusion_blocks.0.project.conv.weight"),
            "decode_head.post_process_channels": [self.first(f"{BLOCKS}.projects.{i}.conv.weight") for i in range(4)],
            "decode_head.readout_type": self.readout_shown(),
        }


class DPTReader(FusionReader):
    """DPTHead, for classes."""

    architecture, sign = "DPT", f"{BLOCKS}."
    kinds: ClassVar = {"": "EncoderDecoder", "backbone": "VisionTransformer", "decode_head": "DPTHead"}
    norm_eps = 1e-5

    def head(self, levels: int) -> DPTHeadSpec:
        self.shape("decode_head.project.conv.weight", 4)
        return DPTHeadSpec(upsamples_logits=not self.follows_mmseg, **self.fusion(levels))


class DepthReader(FusionReader):
    """A head for depth: what its numbers mean, no weight shows."""

    unlike = ""  # what shows that it is not the published model it was taken for, in words before others

    def outputs(self) -> int:
        return 0

    def word(self, name: str) -> Any:
        """A setting of the head; None where nothing says it."""
        return look_up(self.model, "decode_head", name)

    def depth(self) -> str | None:
        """`RELATIVE`, `METRES`, or None where the configuration does not say."""
        found = self.word("depth")
        if found not in (None, RELATIVE, METRES):
            raise ValueError(f"model.decode_head.depth {found!r} is neither {RELATIVE!r} nor {METRES!r}")
        return None if found is None else str(found)

    def ask(self, missing: Sequence[str], example: dict[str, Any]) -> CheckpointError:
        """The refusal of a file that does not say what its depth depends on."""
        return CheckpointError(
            f"{self.settings_from}: {self.unlike}the weights do not show {' nor '.join(missing)}; a wrong guess would "
            "give depth that looks right",
            f"Name the published model {'of these sizes ' if self.unlike else ''}by --preset (see denseport models), "
            f"or give a .json by --config, such as {json.dumps(example)}.",
        )


class DPTDepthReader(DepthReader):
    """DPT's and MiDaS's head for depth."""

    architecture, sign = "DPT", "decode_head.head.0."
    kinds: ClassVar = {"": "EncoderDecoder", "backbone": "VisionTransformer", "decode_head": "DPTDepthHead"}

    def head(self, levels: int) -> DPTDepthHeadSpec:
        published = self.published.head if self.published else None
        inversion, depth = self.word("inversion"), self.depth()
        if depth is None and inversion is None:
            if not isinstance(published, DPTDepthHeadSpec):
                raise self.ask(["whether its numbers are metres, or relative (larger is nearer)"], {"depth": RELATIVE})
            inversion, depth = published.inversion, METRES if published.metres else RELATIVE
        if inversion is not None and depth == RELATIVE:
            raise ValueError(f"model.decode_head.depth {RELATIVE!r} does not go with inversion, which gives metres")
        return DPTDepthHeadSpec(
            depth_channels=self.shape("decode_head.head.2.weight", 4)[0],
            projects="decode_head.projection.conv.weight" in self.shapes,
            metres=inversion is not None or depth == METRES,
            inversion=None if inversion is None else self._pair(inversion),
            **self.fusion(levels),
        )

    def _pair(self, value: Any) -> tuple[float, float]:
        found = numbers("decode_head.inversion", value, float)
        if len(found) != 2:
            raise ValueError(f"inversion {value} is not a scale and a shift")
        return found[0], found[1]

    def shown(self) -> dict[str, Any]:
        return super().shown() | {
            "decode_head.unit_norm": f"{UNIT}.bn.weight" in self.shapes,
            "decode_head.unit_bias": f"{UNIT}.conv.bias" in self.shapes,
            "decode_head.projects": "decode_head.projection.conv.weight" in self.shapes,
        }


class DepthAnythingReader(DepthReader):
    """DINOv2 and Depth Anything's head. V1 and V2 differ in the layers that feed it, relative and metric in its end."""

    architecture, sign = "Depth Anything", "decode_head.output_conv1."
    kinds: ClassVar = {"": "EncoderDecoder", "backbone": "VisionTransformer", "decode_head": "DepthAnythingHead"}

    def backbone(self) -> ViTSpec:
        missing, example = list[str](), dict[str, Any]()
        layers, dims = self.count(r"backbone\.layers\.(\d+)\."), self.shape("backbone.cls_token", 3)[2]
        own = self.published.backbone if self.published else None
        if isinstance(own, ViTSpec) and (own.embed_dims, own.num_layers) != (dims, layers):
            self.published = None
            self.unlike = (
                f"it has {layers} layers of {dims} channels, and the published model that it is taken for "
                f"{own.num_layers} of {own.embed_dims}; "
            )
        published = self.published
        if published is None and look_up(self.model, "backbone", "out_indices") is None:
            missing.append("which layers feed the head (V1: the last four; V2: others)")
            example["out_indices"] = list(V2_LAYERS.get(layers, range(layers - 4, layers)))
        if published is None and self.word("max_depth") is None and self.depth() is None:
            missing.append("whether its depth is relative, or metres up to a limit (max_depth)")
            example["depth"] = RELATIVE
        if missing:
            raise self.ask(missing, example)
        return super().backbone()

    def head(self, levels: int) -> DepthAnythingHeadSpec:
        published = self.published.head if self.published else None
        largest, depth = self.word("max_depth"), self.depth()
        if largest is not None and depth == RELATIVE:
            raise ValueError(f"model.decode_head.depth {RELATIVE!r} does not go with max_depth {largest}, of metres")
        if largest is None and depth != RELATIVE and isinstance(published, DepthAnythingHeadSpec):
            largest = published.max_depth
        if largest is None and depth == METRES:
            raise self.ask(["how far its metres go"], {"max_depth": 20.0})
        return DepthAnythingHeadSpec(
            depth_channels=self.shape("decode_head.output_conv2.0.weight", 4)[0],
            max_depth=None if largest is None else number("decode_head.max_depth", largest, float),
            **self.fusion(levels),
        )
