"""Which step between the checkpoint and an artifact loses accuracy.

Five measurements on the same images make a chain, in which neighbours differ in one thing only:

    torch --protocol--> torch --export--> model.onnx --precision--> typed or quantized ONNX --engine--> engine

The first measurement takes images as the checkpoint's configuration says, the others as the examined protocol does. So
the losses of the four steps add up to the whole loss. A step that loses more than its precision may lose names its
culprit: a setting, or a layer of the network.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from denseport.export.checkpoint.file import read_checkpoint
from denseport.export.checkpoint.pipeline import image_steps
from denseport.export.checkpoint.recognise import recognise
from denseport.export.checkpoint.settings import inference_of
from denseport.export.checkpoint.weights import load_model
from denseport.export.entrance.compare import TOLERANCE
from denseport.export.entrance.torch_to_onnx import IR_VERSION, OPSET, export_onnx
from denseport.export.errors import CheckpointError
from denseport.export.explain.baseline import TorchSession
from denseport.export.explain.explanation import Culprit, Explanation, Step
from denseport.export.graph.compare.divergence import difference, find_divergence
from denseport.export.models.presets import PRESETS
from denseport.export.models.segmentor import Segmentor
from denseport.export.models.spec import spec_of
from denseport.runtime.backends.onnxruntime import OnnxRuntimeSession
from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.bundle.preprocessing import Preprocessing, loading, normalisation, paddings, size_steps
from denseport.runtime.bundle.protocol import Protocol
from denseport.runtime.bundle.steps import Resize
from denseport.runtime.errors import DenseportError
from denseport.runtime.evaluation.dataset import Dataset
from denseport.runtime.evaluation.gate import AGREEMENTS, BUDGETS, threshold
from denseport.runtime.evaluation.metrics import ConfusionMatrix, mean_iou
from denseport.runtime.media.images import read_image
from denseport.runtime.pipeline.network_input import evenly_spaced, network_inputs
from denseport.runtime.segmenter import Segmenter
from denseport.runtime.system.progress import Progress, Silent

__all__ = ["explain"]

TORCH = "torch"  # stands for an artifact's name

# Relative error of a tensor, and what its cosine may lack to 1, before it counts as diverged.
DIVERGED = {"fp32": 1e-4, "fp16": 0.05, "bf16": 0.2, "int8": 0.3, "fp8": 0.3}


def explain(
    bundle: Bundle,
    artifact: str,
    checkpoint: Path | None,
    dataset: Dataset,
    protocol: Protocol,
    *,
    limit: int = 20,
    progress: Progress | None = None,
) -> Explanation:
    """Find out which step an artifact's loss against its checkpoint comes from.

    Args:
        checkpoint: that the bundle was exported from; without it the export is not examined, and the bundle's own
            settings are taken for right.
        protocol: of the examined measurement.
        limit: images to measure, spread over the data set; each is run about five times.

    Raises:
        BundleError: no such artifact, or a file is altered.
        CheckpointError: the checkpoint cannot be read, or is of another network.
        DatasetError, ImageError: an image or mask that cannot be used.
        InputError: ``limit`` is below 1.
    """
    images = replace(dataset, samples=tuple(evenly_spaced(dataset.samples, limit)))
    chain = _Chain(bundle, artifact, checkpoint, images, protocol, progress or Silent())
    steps = (chain.protocol(), chain.export(), chain.precision(), chain.engine())
    return Explanation(artifact, protocol.name, len(images), len(dataset), steps)


@dataclass(frozen=True)
class _Measured:
    """One network over all the images."""

    masks: list[NDArray[Any]]
    mIoU: float  # percent
    non_finite: int  # images whose logits held a NaN or an infinity


class _Chain:
    """The measurements of one explanation, each made once."""

    def __init__(
        self,
        bundle: Bundle,
        artifact: str,
        checkpoint: Path | None,
        images: Dataset,
        protocol: Protocol,
        progress: Progress,
    ) -> None:
        self.bundle, self.name, self.artifact = bundle, artifact, bundle.artifact(artifact)
        self.images, self.used, self.tell = images, protocol, progress.say
        self.source = bundle.manifest.source
        self.checkpoint = read_checkpoint(checkpoint) if checkpoint is not None else None
        manifest = bundle.manifest
        self.bundled = Protocol(protocol.name, manifest.preprocess, manifest.inference, manifest.augmentation)
        self.own, self.own_warnings = self.bundled, ["no checkpoint was given: compared with the bundle's settings"]
        self.model: Segmentor | None = None
        if self.checkpoint is not None:
            # The network as it was exported: of the same preset, with the same rewrites.
            reference, record = bundle.manifest.reference, bundle.artifact(self.source).record
            preset = PRESETS.get(reference.preset) if reference is not None else None
            if given := manifest.provenance.get("config"):
                self.own_warnings = [f"exported with --config {given}: the bundle's settings are taken for right"]
                spec = spec_of(manifest.spec)
            else:
                recognised = recognise(self.checkpoint, preset)
                spec = recognised.spec
                path = image_steps(self.checkpoint, recognised.usual)
                inference, assumed = inference_of(self.checkpoint, recognised.usual)
                self.own_warnings = [*path.warnings, *assumed]
                self.own = Protocol(protocol.name, path.preprocess, inference, path.augmentation)
            if not given and json.loads(json.dumps(asdict(spec))) != manifest.spec:
                raise CheckpointError(
                    f"{self.checkpoint.path}: is of another network than {bundle.path}",
                    f"Give the file that it was exported from: {manifest.provenance.get('checkpoint')}.",
                )
            rewrite = bool(record.get("rewrite", True))
            self.model = load_model(self.checkpoint, spec, rewrite=rewrite, ema=record.get("ema"))
        self.torch = TorchSession(self.model, device="cpu") if self.model is not None else None
        self._measured: dict[tuple[str, Protocol], _Measured] = {}

    def protocol(self) -> Step:
        """The checkpoint's own settings against those of the examined measurement, on the network before export."""
        network, source = (self.source, "bundle") if self.model is None else (TORCH, "checkpoint")
        before, after = self._measure(network, self.own), self._measure(network, self.used)
        culprits = []
        for name, corrected in _corrections(self.used, self.own):
            owner = "the bundle" if _value(self.bundled, name) == _value(self.used, name) else "this protocol"
            effect = self._measure(network, corrected).mIoU - after.mIoU
            detail = f"{owner} has {_value(self.used, name)}, the {source} {_value(self.own, name)}; "
            detail += f"corrected alone: {effect:+.2f} points"
            culprits.append(Culprit(name, detail, effect=effect))
        unused = [
            f"the bundle's {name} is {_value(self.bundled, name)}, the {source}'s {_value(self.own, name)}; "
            "this protocol does not use it"
            for name, _ in _corrections(self.bundled, self.own)
            if _value(self.used, name) == _value(self.own, name)
        ]
        return Step(
            "protocol",
            (f"{network} as the {source} says", f"{network} as measured"),
            (before.mIoU, after.mIoU),
            failed=before.mIoU - after.mIoU > threshold(BUDGETS, "fp32"),
            culprits=tuple(culprits),
            notes=(*self.own_warnings, *unused),
        )

    def export(self) -> Step:
        """The checkpoint's network in torch against the bundle's source."""
        if self.checkpoint is None or self.model is None or self.torch is None:
            return Step("export", (TORCH, self.source), notes=("no checkpoint was given: --checkpoint FILE",))
        step, worst = self._compare("export", TORCH, self.source, "fp32")
        notes = list(step.notes)
        if self.bundle.manifest.provenance.get("sha256") != self.checkpoint.sha256:
            notes.append(f"the bundle was exported from another file than {self.checkpoint.path}: their hashes differ")
        image = self._network_input(worst)
        logits = OnnxRuntimeSession(self.bundle.verified(self.source)).run(image)
        found = difference(self.torch.run(image), logits)
        wrong = found.exceeds(TOLERANCE)  # masks may agree all the same
        if wrong:
            notes.append(f"the logits of {self.images.samples[worst].name} differ: {found}")
        step = replace(step, failed=step.failed or wrong, notes=tuple(notes))
        if not step.failed:
            return step
        self.tell("exporting the checkpoint afresh")
        with tempfile.TemporaryDirectory(prefix="denseport-") as folder:
            record = self.bundle.artifact(self.source).record
            versions = record.get("opset", OPSET), record.get("ir_version", IR_VERSION)
            fresh = export_onnx(self.model, Path(folder) / self.source, *versions)[0]
            return self._blame(step, fresh, self.source, worst, "fp32")

    def precision(self) -> Step:
        """The bundle's source against the typed or quantized graph."""
        typed, made_of = self._typed(), self.artifact.made_of
        if typed == self.source:
            return Step("precision", (typed, self.name), notes=("the artifact computes in FP32",))
        if typed is None:
            command = f"denseport build {self.bundle.path} --precision {self.artifact.precision} --engine onnx"
            note = f"the bundle has no {made_of}, from which {self.name} was built; make it with {command}"
            return Step("precision", (self.source, str(made_of)), notes=(note,))
        precision = self.bundle.artifact(typed).precision
        step, worst = self._compare("precision", self.source, typed, precision)
        if not step.failed:
            return step
        return self._blame(step, self.bundle.verified(self.source), typed, worst, precision)

    def engine(self) -> Step:
        """The graph that an engine was built from against the engine."""
        before = self._typed() or self.source
        if self.artifact.kind != "engine":
            return Step("engine", (before, self.name), notes=("the artifact is an ONNX graph, not an engine",))
        self.bundle.verified(self.name)
        try:
            self._measure(self.name, self.used)
        except DenseportError as err:  # no device, no library: the other steps are reported all the same
            return Step("engine", (before, self.name), notes=(f"it does not run here: {err.message}",))
        step, _ = self._compare("engine", before, self.name, self.artifact.precision)
        hint = "the inner tensors of an engine cannot be read; build it in FP32 to see what its precision changes"
        return replace(step, notes=(hint,)) if step.failed else step

    def _typed(self) -> str | None:
        """The ONNX artifact with this precision: the artifact itself, or what its engine was built from."""
        name = self.name if self.artifact.kind == "onnx" else self.artifact.made_of
        return name if name in self.bundle.manifest.artifacts else None

    def _measure(self, name: str, protocol: Protocol) -> _Measured:
        if (name, protocol) not in self._measured:
            self.tell(f"measuring {name}, {protocol.description}")
            session = self.torch if name == TORCH else None
            with Segmenter(self.bundle, artifact=name, protocol=protocol, session=session) as segmenter:
                self._measured[name, protocol] = _run(segmenter, self.images)
        return self._measured[name, protocol]

    def _compare(self, name: str, before: str, after: str, precision: str) -> tuple[Step, int]:
        """The step between two runnable things, and the image on which they agree least."""
        first, second = self._measure(before, self.used), self._measure(after, self.used)
        same = [np.count_nonzero(a == b) for a, b in zip(first.masks, second.masks, strict=True)]
        pixels = [mask.size for mask in first.masks]
        agreement = float(sum(same) / sum(pixels))  # of numpy integers: its comparisons would not go into JSON
        failed = (
            first.mIoU - second.mIoU > threshold(BUDGETS, precision)
            or agreement < threshold(AGREEMENTS, precision)
            or second.non_finite > 0
        )
        notes = [f"NaN or infinite logits in {second.non_finite} images"] if second.non_finite else []
        step = Step(name, (before, after), (first.mIoU, second.mIoU), agreement, failed, notes=tuple(notes))
        return step, int(np.argmin(np.divide(same, pixels)))

    def _blame(self, step: Step, trusted: Path, suspect: str, index: int, precision: str) -> Step:
        """The step with the first diverging tensor on one image as its culprit."""
        self.tell(f"comparing the tensors of {suspect} one by one")
        image = self._network_input(index)
        found = find_divergence(trusted, self.bundle.verified(suspect), image, threshold(DIVERGED, precision))
        if found is None:
            note = f"every tensor of {suspect} is equal to its origin's: what differs lies outside the graph"
            return replace(step, notes=(*step.notes, note))
        layer, _, operator = found.node.rpartition("/")
        name = f"{layer} ({operator})" if layer else f"{found.node} ({found.operator})"
        detail = str(found.difference) + ("" if found.first else "; no tensor diverges, this one differs most")
        return replace(step, culprits=(Culprit(name, detail, found.causes, divergence=found),))

    def _network_input(self, index: int) -> NDArray[np.float32]:
        """The first network input of an image: the whole of it, or its first window."""
        image = read_image(self.images.samples[index].image, loading(self.used.preprocess))
        return next(network_inputs(image, self.used, self.bundle.manifest.patch_size))


def _run(segmenter: Segmenter, images: Dataset) -> _Measured:
    total, masks, non_finite = ConfusionMatrix(len(segmenter.manifest.classes)), [], 0
    for sample in images.samples:
        views = segmenter.predict(segmenter.read(sample.image))
        finite = all(np.isfinite(part.logits.sum(dtype=np.float64)) for view in views for part in view)
        non_finite += not finite
        masks.append(segmenter.decide(views)[0])
        total.update(images.read_mask(sample, total.n_classes), masks[-1])
    return _Measured(masks, float(mean_iou(total.intersect, total.union)), non_finite)


def _corrections(wrong: Protocol, right: Protocol) -> Iterator[tuple[str, Protocol]]:
    """Each setting in which two protocols differ, such as "normalise.std", and ``wrong`` with that one corrected."""
    found, wanted = _parts(wrong.preprocess), _parts(right.preprocess)
    for kind in found:
        for name, steps in _corrected_steps(kind, found[kind], wanted[kind]):
            parts = {**found, kind: steps}
            yield name, replace(wrong, preprocess=tuple(step for each in parts.values() for step in each))
    if wrong.inference != right.inference:
        yield "inference", replace(wrong, inference=right.inference)
    if wrong.augmentation != right.augmentation:
        yield "augmentation", replace(wrong, augmentation=right.augmentation)


def _parts(steps: Preprocessing) -> dict[str, Preprocessing]:
    """The steps in four groups, in their order."""
    groups = [(loading(steps),), size_steps(steps), (normalisation(steps),), paddings(steps)]
    return dict(zip(("load", "resize", "normalise", "pad"), groups, strict=True))


def _corrected_steps(kind: str, found: Preprocessing, wanted: Preprocessing) -> Iterator[tuple[str, Preprocessing]]:
    """The same of one group of steps: setting by setting, where both are one step of the same kind."""
    if found == wanted:
        return
    if len(found) != 1 or len(wanted) != 1 or found[0].kind != wanted[0].kind:
        yield kind, wanted
        return
    (old,), (new,) = found, wanted
    differing = [f.name for f in fields(old) if getattr(old, f.name) != getattr(new, f.name)]
    # Settings of a resize go together: the limits of one kind of resizing mean nothing to another.
    for names in [differing] if isinstance(old, Resize) else [[name] for name in differing]:
        values = {name: getattr(new, name) for name in names}
        yield ", ".join(f"{kind}.{name}" for name in names), (replace(old, **values),)


def _value(protocol: Protocol, setting: str) -> str:
    """What a protocol has for a name that `_corrections` gives, for people."""
    if setting == "inference":
        how = protocol.inference
        return how.mode if how.crop is None else f"{how.mode} (crop {how.crop}, stride {how.stride})"
    if setting == "augmentation":
        return protocol.augmentation.words if protocol.augmentation else "a single view"
    parts = _parts(protocol.preprocess)
    settings = [name.partition(".")[::2] for name in setting.split(", ")]
    return ", ".join(_setting(parts[kind], name) for kind, name in settings)


def _setting(steps: Preprocessing, name: str) -> str:
    """A setting of one step; the steps in words where there is no such."""
    if name and len(steps) == 1 and hasattr(steps[0], name):
        return str(getattr(steps[0], name))
    return ", ".join(getattr(step, "words", str(step)) for step in steps) or "none"
