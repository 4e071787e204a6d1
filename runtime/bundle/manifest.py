"""The manifest of a bundle: what the model is, how images reach it, and which artifacts run it.

A bundle is a folder; ``manifest.json`` in it is this module's `Manifest` as JSON (docs/bundle.md has it
field by field). Reading is strict: a missing, unknown or mistyped field is an error that names it.
"""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass, field
from typing import Any

from denseport.runtime.bundle.artifact import ANY, FLOATS, FOR_TENSORRT, QUANTIZED, Artifact
from denseport.runtime.bundle.decode import decode_dataclass
from denseport.runtime.bundle.preprocessing import Preprocessing, check_steps, normalisation
from denseport.runtime.bundle.steps import LARGEST_SIDE, Augmentation
from denseport.runtime.errors import BundleError
from denseport.runtime.system.terminal import CONTROLS

__all__ = [
    "FORMAT_VERSION", "NOT_OF_DEPTH", "OUTPUTS", "TEMPERATURES", "DepthOutput", "Inference", "Manifest", "NetworkInput",
    "Reference",
]  # fmt: skip

FORMAT_VERSION = 2
TEMPERATURES = (0.05, 20.0)  # least and largest
NOT_OF_DEPTH = (  # fields that mean nothing for it
    "classes", "palette", "threshold", "reduce_zero_label", "label_map", "augmentation", "scores", "ignore_index",
    "temperature",
)  # fmt: skip
OUTPUTS = {"segmentation": "logits", "depth": "depth"}  # of each task: what its network gives, and its tensor's name
# Names are printed, one a line: a name with a line break could add any line.
_UNPRINTABLE = re.compile(f"[\t\n{CONTROLS}]")


@dataclass(frozen=True)
class Inference:
    """How the network is moved over the resized image."""

    mode: str = "whole"  # "whole" or "slide"
    crop: tuple[int, int] | None = None  # slide: height, width of a window, pixels of the resized image
    stride: tuple[int, int] | None = None  # slide: rows, columns from one window to the next

    def __post_init__(self) -> None:
        if self.mode not in ("whole", "slide"):
            raise ValueError(f"mode {self.mode!r} is neither 'whole' nor 'slide'")
        if self.mode == "slide" and (self.crop is None or self.stride is None):
            raise ValueError("mode 'slide' needs crop and stride")
        if self.mode == "whole" and (self.crop is not None or self.stride is not None):
            raise ValueError("mode 'whole' has neither crop nor stride")
        for name in ("crop", "stride"):
            value = getattr(self, name)
            if value is not None and not 1 <= min(value) <= max(value) <= LARGEST_SIDE:
                raise ValueError(f"{name} {value} has a side that is not in 1..{LARGEST_SIDE} pixels")
        if self.crop and self.stride and (self.stride[0] > self.crop[0] or self.stride[1] > self.crop[1]):
            raise ValueError(f"stride {self.stride} is above the crop {self.crop} and leaves gaps")


@dataclass(frozen=True)
class Reference:
    """The published result that this model is compared with."""

    preset: str
    dataset: str
    protocol: str  # how it was measured; the accuracy gate compares like with like
    mIoU: float | None  # percent, single scale
    mIoU_ms_flip: float | None  # percent, multi-scale and flip
    recognised_by: str  # why this checkpoint is taken for that model
    figures: dict[str, tuple[float, float]] = field(default_factory=dict)  # of depth: AbsRel and d1 by data set


@dataclass(frozen=True)
class NetworkInput:
    """What every artifact takes: one float32 tensor."""

    name: str = "image"
    shape: tuple[int | None, int, int | None, int | None] = (None, 3, None, None)  # N, channels, H, W; None: any
    divisor: int = 1  # of H and W: other sizes are not taken

    def __post_init__(self) -> None:
        if self.name != "image" or self.shape[1] not in (1, 3):  # what sessions hand over
            raise ValueError(
                f"the network's input {self.name!r} has shape {self.shape}, not 'image' with 3 or 1 channels"
            )
        if any(size is not None and not 1 <= size <= LARGEST_SIDE for size in self.shape):
            raise ValueError(f"shape {self.shape} has a size that is not in 1..{LARGEST_SIDE}")
        if not 1 <= self.divisor <= LARGEST_SIDE:
            raise ValueError(f"divisor {self.divisor} is not in 1..{LARGEST_SIDE}")


@dataclass(frozen=True)
class DepthOutput:
    """What the numbers of a depth network mean, and how they are resized to the image."""

    unit: str  # "metres"; "relative": known up to a scale and a shift, which differ from image to image
    larger_is: str  # "farther": a depth; "nearer": a disparity
    largest: float | None  # the network gives no larger number (max_depth), in the unit; None: it has no limit
    interpolation: str  # to the image: "bilinear" or "bicubic" (a = -0.75), neither with antialias

    def __post_init__(self) -> None:
        if self.unit not in ("metres", "relative"):
            raise ValueError(f"unit {self.unit!r} is neither 'metres' nor 'relative'")
        if self.larger_is not in (("farther",) if self.unit == "metres" else ("farther", "nearer")):
            raise ValueError(f"larger_is {self.larger_is!r} is not 'farther', nor 'nearer' of relative depth")
        if self.largest is not None and not self.largest > 0:
            raise ValueError(f"largest {self.largest} is not above 0")
        if self.interpolation not in ("bilinear", "bicubic"):
            raise ValueError(f"interpolation {self.interpolation!r} is neither 'bilinear' nor 'bicubic'")


@dataclass(frozen=True)
class Manifest:
    """Everything that a deployment needs to know about a model."""

    name: str
    architecture: str  # the network's name, such as "DPT" or "SegFormer"; "imported ONNX"
    parameters: int
    patch_size: int  # pixels; a network input has at least one patch (SegFormer: its smallest side)
    stride: int  # input pixels per logit, or per depth
    classes: tuple[str, ...]  # empty of depth, as the palette
    palette: tuple[tuple[int, int, int], ...]  # RGB
    reduce_zero_label: bool  # the data set's masks count from 1, 0 is ignored
    preprocess: Preprocessing
    inference: Inference
    reference: Reference | None
    provenance: dict[str, Any]  # checkpoint and its hash, versions, warnings given
    spec: dict[str, Any]  # the network, for people; `denseport.export.models.spec` has the meaning
    source: str  # the artifact that all others are made of and compared with: the checkpoint's network in FP32
    task: str  # a key of `OUTPUTS`
    input: NetworkInput
    depth: DepthOutput | None = None  # of the task "depth", and of no other
    augmentation: Augmentation | None = None  # of the checkpoint's own test; None: an image is seen once
    align_corners: bool = False  # what the network gives is resized to the image, corners on corners
    via_input: bool = True  # the logits are resized to the network's input, then to the image; False: to it at once
    threshold: float | None = None  # two classes of one output: the probability above which a pixel is of the second
    scores: bool = (
        True  # a softmax over the logits gives the network's probabilities; False: the largest counts, no more
    )
    temperature: float = 1.0  # the logits are divided by it for probabilities; the classes do not depend on it
    label_map: dict[str, int] = field(default_factory=dict)  # a label in the masks, 0 dropped, to its class
    ignore_index: int = 255  # the label that is not counted, once mapped
    artifacts: dict[str, Artifact] = field(default_factory=dict)
    # What a precision may lose: points of mIoU, or percent by which AbsRel may grow; default: the gate's own.
    budgets: dict[str, float] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        if self.task not in OUTPUTS:
            raise ValueError(f"task {self.task!r} is not one of {', '.join(OUTPUTS)}")
        self._check_depth() if self.task == "depth" else self._check_classes()
        check_steps(self.preprocess)
        if (channels := len(normalisation(self.preprocess).mean)) != self.input.shape[1]:
            raise ValueError(f"mean and std are of {channels} channels, the network takes {self.input.shape[1]}")
        for name in ("parameters", "patch_size", "stride"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} is below 1")
        if self.inference.crop and min(self.inference.crop) < self.patch_size:
            raise ValueError(f"crop {self.inference.crop} is below one patch of {self.patch_size} pixels")
        for precision, points in self.budgets.items():
            if precision not in FLOATS + QUANTIZED or not 0 <= points <= 100:
                raise ValueError(f"budget {precision!r}: {points} is not 0..100 points of a known precision")
        if not 0 <= self.ignore_index <= 255:
            raise ValueError(f"ignore_index {self.ignore_index} is not in 0..255")
        if not all(key.isdecimal() and int(key) <= 255 and 0 <= new <= 255 for key, new in self.label_map.items()):
            raise ValueError(f"label_map {self.label_map} does not map labels in 0..255 to such")
        for text in (self.name, self.architecture, self.source, *self.classes, *self.artifacts):
            if _UNPRINTABLE.search(text):
                raise ValueError(f"the name {text!r} holds control characters")

    def _check_classes(self) -> None:
        if self.depth is not None:
            raise ValueError("depth is said of a network that tells classes apart")
        if not self.classes:
            raise ValueError("a model has at least one class")
        if len(self.palette) != len(self.classes):
            raise ValueError(f"{len(self.palette)} colours for {len(self.classes)} classes")
        if not all(0 <= level <= 255 for colour in self.palette for level in colour):
            raise ValueError("the palette is not within 0..255")
        if self.threshold is not None and not (len(self.classes) == 2 and 0 < self.threshold < 1):
            raise ValueError(f"threshold {self.threshold} is not a probability that divides two classes")
        if not TEMPERATURES[0] <= self.temperature <= TEMPERATURES[1]:
            raise ValueError(f"temperature {self.temperature} is not in {TEMPERATURES[0]:g}..{TEMPERATURES[1]:g}")
        if self.temperature != 1 and not self.scores:
            raise ValueError(f"temperature {self.temperature} means nothing without scores")

    def _check_depth(self) -> None:
        if self.depth is None:
            raise ValueError("a depth network without depth: its unit and its direction")
        for name in NOT_OF_DEPTH:
            usual = {"scores": True, "ignore_index": 255, "temperature": 1.0}.get(name)
            if (usual is None and getattr(self, name)) or (usual is not None and getattr(self, name) != usual):
                raise ValueError(f"{name} means nothing for depth")
        if self.inference.mode != "whole":
            raise ValueError("depth is not estimated in sliding windows: their depths do not join")

    @property
    def output(self) -> str:
        """What the network gives: "logits" or "depth", the name of its tensor."""
        return OUTPUTS[self.task]

    def graph(self, precision: str, float_precision: str | None = None) -> str | None:
        """The ONNX artifact that variants and engines of a precision are made of; None where there is none.

        Args:
            float_precision: of a quantized graph; default: "fp32".

        Raises:
            BundleError: there are several.
        """
        if precision == "fp32":
            return self.source
        floats = precision if precision in FLOATS else float_precision or "fp32"
        wanted = ("onnx", precision, floats, self.output, False)
        found = [
            name
            for name, a in self.artifacts.items()
            if (a.kind, a.precision, a.float_precision, a.output, a.fused) == wanted and a.target in (ANY, FOR_TENSORRT)
        ]
        if len(found) > 1:
            what = f"the bundle has several {precision} graphs: {', '.join(found)}"
            raise BundleError(what, "Export or import it again, and build one.")
        return found[0] if found else None

    def to_json(self) -> str:
        """The manifest as JSON text."""
        return json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str) -> Manifest:
        """Read the manifest of the file ``where``.

        Raises:
            BundleError: no JSON, another format version, a field that is missing, unknown or mistyped, or no source.
        """
        try:
            data = json.loads(text)
            json.dumps(data, ensure_ascii=False).encode()  # lone surrogates could be written nowhere
        except (ValueError, RecursionError) as err:
            raise BundleError(f"{where}: not JSON: {err}", "Export or import it again.") from err
        version = data.get("format_version") if isinstance(data, dict) else None
        if version != FORMAT_VERSION:
            raise BundleError(
                f"{where}: format version {version!r}; this Denseport reads version {FORMAT_VERSION}",
                "Export or import it again, or use the Denseport that wrote the bundle.",
            )
        manifest = decode_dataclass(cls, data, where, "manifest")
        a, gives = manifest.artifacts.get(manifest.source), manifest.output
        if a is None or (a.kind, a.precision, a.output, a.made_of) != ("onnx", "fp32", gives, None):
            what = f"is not an artifact of kind onnx and precision fp32 that gives {gives} and is made of no other"
            raise BundleError(f"{where}: manifest.source: {manifest.source!r} {what}", "Export or import it again.")
        return manifest
