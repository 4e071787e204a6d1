"""The steps of a calibration: from a bundle's FP32 model to INT8 or FP8 artifacts with a record of how they were made.

The steps are smoothing, thresholds, rounding and search, in the order that docs/int8.md measures. The bundle changes
only when the quantized model is whole.
"""

from __future__ import annotations

import difflib
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from denseport.calibration.errors import CalibrationError
from denseport.calibration.observe.collect import collect, collection_key
from denseport.calibration.observe.images import ImageStatistics, check_images, contents_sha256, identity_of, labels_of
from denseport.calibration.observe.observers import ChannelMaximum, Histogram, Observer, RowSample, threshold
from denseport.calibration.options import EFFORTS, CalibrationOptions, Effort
from denseport.calibration.quantize.cpu import lower_for_cpu
from denseport.calibration.quantize.placement import Group, activations, find_groups
from denseport.calibration.quantize.qdq import RoundedWeight
from denseport.calibration.quantize.rounding import round_weights
from denseport.calibration.quantize.smoothing import Smoothing, linear_inputs, smooth
from denseport.calibration.search.search import Budget, Search, Step, search
from denseport.calibration.search.sensitivity import Loss, LossFile, Reference, sensitivities
from denseport.export.graph.model import DEPTH, MASK, output_of, read_model, serialise
from denseport.export.graph.probe import Probe
from denseport.export.graph.unpack import unpack_projections
from denseport.runtime.backends.onnxruntime import INPUT
from denseport.runtime.bundle.artifact import ANY, FOR_CPU, FOR_TENSORRT
from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.bundle.comparison import proof_here, proved
from denseport.runtime.evaluation.dataset import Dataset
from denseport.runtime.evaluation.metrics import LabelMap, agreement_words
from denseport.runtime.pipeline.network_input import NetworkInputs, evenly_spaced
from denseport.runtime.system.files import sha256_of, work_folder, writing
from denseport.runtime.system.machine import inspect_machine
from denseport.runtime.system.progress import Progress
from denseport.runtime.system.text import count

__all__ = ["CalibrationRecord", "Variant", "quantize_bundle"]

_ROWS = 1024  # of each tensor that a linear layer reads, all images together


@dataclass(frozen=True)
class CalibrationRecord:
    """How the variants of a quantized model were made."""

    losses: dict[str, Loss]  # by artifact; empty: nothing kept the budget, and nothing was written
    options: CalibrationOptions
    budget: Budget
    images: int
    images_sha256: str  # of the list of their contents
    labelled: int  # images with labels that the search measured on
    warnings: tuple[str, ...]  # what speaks against the images
    smoothing: tuple[Smoothing, ...]
    search: Search
    seconds: float
    versions: str

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values, for the manifest."""
        return {
            "method": self.options.method,
            "budget": asdict(self.budget),
            "effort": self.options.effort,
            "images": self.images,
            "images_sha256": self.images_sha256,
            "labelled": self.labelled,
            "warnings": list(self.warnings),
            "smoothing": [asdict(each) for each in self.smoothing],
            **self.search.to_dict(),
            "seconds": round(self.seconds, 1),
            "versions": self.versions,
        }


@dataclass(frozen=True)
class Variant:
    """One file that the decision is written as."""

    name: str  # of the artifact
    target: str  # what it is made for (`denseport.runtime.bundle.artifact`)
    model: ir.Model
    loss: Loss  # against FP32, on what the search measured on
    floats: Mapping[str, str]  # nodes that this variant alone computes in float, with the reason


def quantize_bundle(
    bundle: Bundle,
    images: NetworkInputs,
    labelled: Dataset | None,
    options: CalibrationOptions,
    budget: Budget,
    work: Path,
    progress: Progress,
) -> CalibrationRecord:
    """Quantize a bundle's FP32 model and enter its variants, ``int8.onnx`` and ``int8.cpu.onnx``, or ``fp8.onnx``.

    Older ones are replaced when the new ones are whole. Arguments and errors are those of `calibrate.calibrate`.

    Args:
        work: folder for statistics and losses of single layers; those of the same images are used.
    """
    start = time.monotonic()
    model = read_model(bundle.verified(bundle.manifest.source))
    if output_of(model) == MASK:
        raise CalibrationError(f"{bundle.path}: its source model gives masks", "Export or import it again.")
    unpack_projections(model)
    progress.say(f"reading {count(len(images), 'image')}")
    sizes = check_images(images)
    _check_sizes(model, images, sizes)
    default = find_groups(model, Counter(sizes).most_common(1)[0][0])
    if not any(group.is_candidate for group in default):
        raise CalibrationError(f"{bundle.path}: its network has no layer to quantize", "Run it in FP32 or FP16.")
    groups = _as_asked(default, options)
    test = _test_set(images, labelled, EFFORTS[options.effort], len(bundle.manifest.classes))
    progress.say(_estimate(model, images, groups, len(test[0]), options))
    with writing(work):
        work.mkdir(parents=True, exist_ok=True)
    observed = _observe(model, images, default, options, work, progress)
    found, variants = _search(model, observed, groups, options, budget, test, work, progress)
    record = CalibrationRecord(
        losses={variant.name: variant.loss for variant in variants},
        options=options,
        budget=budget,
        images=len(images),
        images_sha256=contents_sha256(images),
        labelled=len(test[0]) if labelled is not None else 0,
        warnings=observed.warnings,
        smoothing=observed.smoothing,
        search=found,
        seconds=time.monotonic() - start,
        versions=inspect_machine(look_for_gpus=False).summary()["packages"],
    )
    for variant in variants:
        _write(bundle, variant, record, progress)
    return record


TestSet = tuple[NetworkInputs, list[LabelMap] | None]  # images, and the labels of each


def _test_set(images: NetworkInputs, labelled: Dataset | None, effort: Effort, n_classes: int) -> TestSet:
    """What the search measures on: labelled images, else some of the calibration's own."""
    if labelled is None:
        return NetworkInputs(evenly_spaced(images.paths, effort.whole), images.protocol, images.patch_size), None
    some = replace(labelled, samples=tuple(evenly_spaced(labelled.samples, effort.whole)))
    chosen = NetworkInputs([sample.image for sample in some.samples], images.protocol, images.patch_size)
    check_images(chosen)
    return chosen, labels_of(chosen, some, n_classes)


def _as_asked(groups: Sequence[Group], options: CalibrationOptions) -> tuple[Group, ...]:
    """The groups, with a reason on each that stays float by the options."""
    reasons: dict[str, str] = {}
    for layer in options.float_layers:
        found = [group.name for group in groups if _is_below(group, layer)]
        if not found:
            near = difflib.get_close_matches(layer, [group.name for group in groups], n=3, cutoff=0.3)
            raise CalibrationError(
                f"--keep-float {layer}: there is no such layer to quantize",
                f"Near it: {', '.join(near)}." if near else f"The first of them is {groups[0].name}.",
            )
        reasons |= dict.fromkeys(found, "asked for with --keep-float")
    if options.attention_float:
        words = "attention stays float unless asked for: --attention search"
        reasons |= {group.name: words for group in groups if group.kind == "attention"}
    return tuple(replace(g, float_reason=reasons.get(g.name, g.float_reason)) for g in groups)


def _is_below(group: Group, layer: str) -> bool:
    return group.name == layer or group.name.startswith((f"{layer}.", f"{layer}/")) or layer in group.nodes


def _check_sizes(model: ir.Model, images: NetworkInputs, sizes: Sequence[tuple[int, int]]) -> None:
    """A model that was exported for one size takes no other."""
    shape = model.graph.inputs[0].shape
    fixed = [n if isinstance(n, int) else None for n in (shape or ())][2:]
    for path, size in zip(images.paths, sizes, strict=True):
        if any(n is not None and n != found for n, found in zip(fixed, size, strict=False)):
            wanted = " x ".join("any" if n is None else str(n) for n in reversed(fixed))
            raise CalibrationError(
                f"{path}: reaches the network as {size[1]} x {size[0]} pixels; the model takes only {wanted} "
                "(width x height)",
                "Give images of that size, or export it for every size.",
            )


def _estimate(
    model: ir.Model, images: NetworkInputs, groups: Sequence[Group], measured: int, options: CalibrationOptions
) -> str:
    """How much there is to do, in words, from the time of one image."""
    image = images[len(images) // 2]
    begin = time.perf_counter()
    probe = Probe(model, threads=options.threads)
    opened = time.perf_counter()
    for _ in range(2):
        run = time.perf_counter()
        probe.run(image)
    once, opening = time.perf_counter() - run, opened - begin
    effort = EFFORTS[options.effort]
    candidates = sum(group.is_candidate for group in groups)
    single = min(effort.single, measured)
    # Observing adds about half a run to each image. Two variants are measured beside FP32.
    seconds = len(images) * 1.5 * once * (1 + options.smoothquant) + 3 * (measured * once + opening)
    # Over budget each group is measured alone, and then about five sets.
    more = candidates * (single * once + opening) + 5 * (measured * once + opening)
    return (
        f"about {max(1, round(seconds / 60))} min: {count(len(images), 'image')} to observe, all layers in 8 bits to "
        f"measure on {measured}; if they are over budget, about {max(1, round(more / 60))} min more: "
        f"{count(candidates, 'group')} of layers to measure on {count(single, 'image')} each; {once:.2f} s for an image"
    )


@dataclass(frozen=True)
class _Observed:
    """What the calibration images showed."""

    smoothing: tuple[Smoothing, ...]
    limits: dict[str, float]  # by tensor: the magnitude that becomes the largest number
    rounded: dict[str, RoundedWeight]  # by weight
    warnings: tuple[str, ...]  # what speaks against the images, with figures
    key: str  # a hash of the model, the images and the tensors


def _observe(
    model: ir.Model,
    images: NetworkInputs,
    groups: Sequence[Group],
    options: CalibrationOptions,
    work: Path,
    progress: Progress,
) -> _Observed:
    """Smooth the model in place, and find the thresholds of its tensors.

    Each collection has a state file in ``work``. An interrupted collection goes on there. A finished one is not
    repeated for another method or budget.

    Args:
        groups: the default ones, whatever the options say of layers, so that a further run with other options finds
            the statistics.
    """
    identity, smoothing = identity_of(images), tuple[Smoothing, ...]()

    def show(what: str, observers: Mapping[str, list[Observer]], file: Path) -> str:
        key = collection_key(model, identity, observers)
        with progress.phase(f"observing {what}") as told:
            collect(model, images, observers, threads=options.threads, state_file=file, key=key, progress=told)
        return key

    chosen, statistics = [group for group in groups if group.is_candidate], ImageStatistics()
    layers = {name for group in chosen for name in group.nodes}

    def sampled() -> dict[str, RowSample]:
        """Of what candidate linear layers read."""
        found = (name for name, linears in linear_inputs(model).items() if any(node.name in layers for node in linears))
        return {name: RowSample(per_image=max(1, _ROWS // len(images)), capacity=_ROWS) for name in found}

    if options.smoothquant and (rows := sampled()):
        maxima = {name: ChannelMaximum() for name in rows}
        show("channels", {name: [maxima[name], rows[name]] for name in rows}, work / "channels.npz")
        smoothing = smooth(model, maxima, rows).tensors
    rows = sampled()
    histograms = {name: Histogram() for name in activations(model, chosen)}
    observers: dict[str, list[Observer]] = {name: [histogram] for name, histogram in histograms.items()}
    for name, sample in rows.items():
        observers[name].append(sample)
    observers.setdefault(INPUT, []).append(statistics)
    key = show("tensors", observers, work / "tensors.npz")
    warnings = tuple(statistics.warnings())
    for warning in warnings:
        progress.say(f"warning: {warning}")
    limits = {name: threshold(histogram, options.method) for name, histogram in histograms.items()}
    progress.say("rounding weights")
    rounded = round_weights(model, rows, limits) if options.precision == "int8" else {}
    return _Observed(smoothing, limits, rounded, warnings, key)


def _search(
    model: ir.Model,
    observed: _Observed,
    groups: Sequence[Group],
    options: CalibrationOptions,
    budget: Budget,
    test: TestSet,
    work: Path,
    progress: Progress,
) -> tuple[Search, list[Variant]]:
    """The layers to quantize, and the graphs that follow; none if nothing keeps the budget."""
    effort, kind, limits, (images, labels) = EFFORTS[options.effort], options.precision, observed.limits, test
    rounded, output = observed.rounded, output_of(model)
    plural = "depths" if output == DEPTH else output

    def alone() -> dict[str, Loss]:
        with progress.phase("measuring each layer") as told:
            single = Reference(model, evenly_spaced(images, effort.single), threads=options.threads)
            what = (observed.key, options.method, identity_of(images), str(effort.single), kind)
            losses = LossFile(work / "losses.npz", *what)
            if losses.damaged:
                progress.say(f"{losses.path}: is damaged; its losses are measured again")
            return sensitivities(
                single, model, limits, groups, kind=kind, rounded=rounded, losses=losses, progress=told
            )

    def said(step: Step) -> None:
        lost = "" if step.loss.miou is None else f"{step.loss.miou:+.2f} points of mIoU lost, "
        verdict = "within" if step.within else "over"
        progress.say(
            f"{100 * step.share:.1f} % of the multiply-adds in {kind.upper()}: {lost}"
            f"{agreement_words(step.loss.agreement, output)}, {plural} differ by {100 * step.loss.error:.2g} % "
            f"in the norm: {verdict} budget"
        )

    progress.say(f"measuring sets of layers on {count(len(images), 'image')}")
    reference = Reference(model, images, labels, threads=options.threads)
    quantized, found = search(
        reference, model, limits, groups, budget, alone, kind=kind, rounded=rounded, batch=effort.batch, told=said
    )
    if not found.chosen:
        return found, []
    # ONNX Runtime runs FP8 only without its optimizations: that graph is for TensorRT.
    portable = Variant(f"{kind}.onnx", ANY if kind == "int8" else FOR_TENSORRT, quantized, found.loss, {})
    if kind != "int8":
        return found, [portable]
    lowered = quantized.clone()
    floats = dict(lower_for_cpu(lowered, model, limits).floats)
    return found, [portable, Variant("int8.cpu.onnx", FOR_CPU, lowered, reference.measure(lowered), floats)]


def _write(bundle: Bundle, variant: Variant, record: CalibrationRecord, progress: Progress) -> None:
    """Enter a variant into the bundle, by a rename within the same folder."""
    with work_folder(bundle.path) as folder:
        file = folder / variant.name
        file.write_bytes(serialise(variant.model))
        source, old = bundle.manifest.source, bundle.manifest.artifacts.get(variant.name)
        if old is not None and old.proof:
            progress.say(f"{variant.name} is replaced, and what was found about it is lost: {proved(old)}")
        artifact = replace(
            bundle.artifact(source),
            precision=record.options.precision,
            target=variant.target,
            made_of=source,
            main=variant.name,
            files={variant.name: sha256_of(file)},
            proof=(proof_here("fp32", "variant", "fp32"),),  # the search's; the verdict follows
            record={
                "calibration": record.to_dict(),
                "variant": {"loss": asdict(variant.loss), "float": variant.floats},
            },
        )
        if lost := [each for each in bundle.outdated_by(artifact) if each != variant.name]:
            progress.say(f"{', '.join(lost)}: was made of the {variant.name} that is replaced, and is removed too")
        bundle.add(variant.name, artifact, [file])
