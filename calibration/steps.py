"""The steps of a calibration, from a bundle's FP32 model to INT8 or FP8 artifacts with a record of how they came about.

Smoothing, thresholds, search: the order that docs/int8.md measures. Nothing of the bundle is touched before the
quantized model is whole.
"""

from __future__ import annotations

import difflib
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from denseport.calibration.errors import CalibrationError
from denseport.calibration.observe.images import CalibrationImages, labels_of
from denseport.calibration.options import EFFORTS, CalibrationOptions, Effort
from denseport.calibration.quantize.placement import Group, find_groups
from denseport.calibration.quantize.smoothing import Smoothing, SmoothingRecord
from denseport.calibration.quantize.statistics import Thresholds, find_thresholds, smooth_norms
from denseport.calibration.search.loss_file import LossFile
from denseport.calibration.search.search import Budget, Search, Step, search
from denseport.calibration.search.sensitivity import Loss, Reference, sensitivities
from denseport.calibration.search.variants import Variant, variants_of
from denseport.export.graph.model import LOGITS, output_of, read_model, serialise
from denseport.export.graph.probe import Probe
from denseport.export.graph.unpack import unpack_projections
from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.evaluation.dataset import Dataset
from denseport.runtime.pipeline.network_input import evenly_spaced
from denseport.runtime.system.files import sha256_of, work_folder, writing
from denseport.runtime.system.machine import inspect_machine
from denseport.runtime.system.progress import Progress
from denseport.runtime.system.text import count

__all__ = ["CalibrationRecord", "quantize_bundle"]


@dataclass(frozen=True)
class CalibrationRecord:
    """How the variants of a quantized model came about."""

    losses: dict[str, Loss]  # of each artifact; none: nothing kept the budget, and nothing was written
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
        """The variant for the manifest."""
        options = self.options
        return {
            "method": options.method,
            "budget": asdict(self.budget),
            "effort": options.effort,
            "images": self.images,
            "images_sha256": self.images_sha256,
            "labelled": self.labelled,
            "warnings": list(self.warnings),
            "smoothing": [asdict(each) for each in self.smoothing],
            **self.search.to_dict(),
            "seconds": round(self.seconds, 1),
            "versions": self.versions,
        }


def quantize_bundle(
    bundle: Bundle,
    images: CalibrationImages,
    labelled: Dataset | None,
    options: CalibrationOptions,
    budget: Budget,
    work: Path,
    progress: Progress,
) -> CalibrationRecord:
    """Quantize a bundle's FP32 model and enter its variants, ``int8.onnx`` and ``int8.cpu.onnx``, or ``fp8.onnx``.

    Older ones are replaced when the new ones are whole.

    Args:
        images: images of the application, without labels.
        labelled: images with labels for a budget on mIoU; not those that the artifact is to be gated with.
        work: folder for statistics and single losses; what is there from the same images is used.

    Raises:
        CalibrationError: a model that is quantized already, an unknown layer, or images that cannot be used.
        BundleError: the bundle's model is missing or altered.
        DatasetError: labels that do not fit the bundle's classes.
    """
    start = time.monotonic()
    model = read_model(bundle.verified(bundle.manifest.source))
    if output_of(model) != LOGITS:
        raise CalibrationError(f"{bundle.path}: its source model gives no logits", "Export the checkpoint again.")
    unpack_projections(model)
    progress.say(f"reading {count(len(images), 'image')}")
    sizes = images.check(bundle.manifest.patch_size)
    _check_sizes(model, images, sizes)
    default = find_groups(model, Counter(sizes).most_common(1)[0][0])
    groups = _as_asked(default, options)
    test = _test_set(bundle, images, labelled, EFFORTS[options.effort])
    progress.say(_estimate(model, images, groups, len(test[0]), options))
    with writing(work):
        work.mkdir(parents=True, exist_ok=True)
    smoothing, thresholds = _observe(model, images, default, options, work, progress)
    found, variants = _search(model, thresholds, groups, options, budget, test, work, progress)
    record = CalibrationRecord(
        losses={variant.name: variant.loss for variant in variants},
        options=options,
        budget=budget,
        images=len(images),
        images_sha256=images.sha256(),
        labelled=len(test[0]) if labelled is not None else 0,
        warnings=thresholds.warnings,
        smoothing=smoothing.norms,
        search=found,
        seconds=time.monotonic() - start,
        versions=inspect_machine(look_for_gpus=False).summary()["packages"],
    )
    for variant in variants:
        _write(bundle, variant, {"calibration": record.to_dict(), "variant": variant.to_dict()})
    return record


TestSet = tuple[CalibrationImages, list[Any] | None]  # images, and the labels of each


def _test_set(bundle: Bundle, images: CalibrationImages, labelled: Dataset | None, effort: Effort) -> TestSet:
    """What the search measures on: labelled images, else some of the calibration's own."""
    if labelled is None:
        return CalibrationImages(evenly_spaced(images.paths, effort.whole), images.protocol), None
    some = replace(labelled, samples=tuple(evenly_spaced(labelled.samples, effort.whole)))
    chosen = CalibrationImages([sample.image for sample in some.samples], images.protocol)
    chosen.check(bundle.manifest.patch_size)
    return chosen, labels_of(chosen, some, len(bundle.manifest.classes))


def _as_asked(groups: Sequence[Group], options: CalibrationOptions) -> tuple[Group, ...]:
    """The groups, of which those that are to stay float by the options say so."""
    asked = {layer: [g for g in groups if _is_below(g, layer)] for layer in options.float_layers}
    for layer, found in asked.items():
        if not found:
            near = difflib.get_close_matches(layer, [group.name for group in groups], n=3, cutoff=0.3)
            raise CalibrationError(
                f"--keep-float {layer}: there is no such layer to quantize",
                f"Near it: {', '.join(near)}." if near else f"The first of them is {groups[0].name}.",
            )
    names = {group.name for found in asked.values() for group in found}
    reasons = {name: "asked for with --keep-float" for name in names}
    if options.attention_float:
        words = "attention stays float unless asked for: --attention search"
        reasons |= {group.name: words for group in groups if group.kind == "attention"}
    return tuple(replace(g, float_reason=reasons.get(g.name, g.float_reason)) for g in groups)


def _is_below(group: Group, layer: str) -> bool:
    return group.name == layer or group.name.startswith((f"{layer}.", f"{layer}/")) or layer in group.nodes


def _check_sizes(model: ir.Model, images: CalibrationImages, sizes: Sequence[tuple[int, int]]) -> None:
    """A model that was exported for one size takes no other."""
    shape = model.graph.inputs[0].shape
    fixed = [n if isinstance(n, int) else None for n in (shape or ())][2:]
    for path, size in zip(images.paths, sizes, strict=True):
        if any(n is not None and n != found for n, found in zip(fixed, size, strict=False)):
            wanted = " x ".join("any" if n is None else str(n) for n in fixed)
            raise CalibrationError(
                f"{path}: reaches the network as {size[0]} x {size[1]}, which takes {wanted} (height x width) only",
                "Give images of that size, or export the checkpoint again: its model takes every size.",
            )


def _estimate(
    model: ir.Model, images: CalibrationImages, groups: Sequence[Group], measured: int, options: CalibrationOptions
) -> str:
    """How much there is to do, in words; from the time of one image."""
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
    # Observing costs about half a run more; about five sets are measured as a whole.
    seconds = len(images) * 1.5 * once * (1 + options.smoothquant) + candidates * (single * once + opening)
    seconds += 5 * (measured * once + opening)
    return (
        f"about {max(1, round(seconds / 60))} min: {count(len(images), 'image')} to observe, "
        f"{count(candidates, 'group')} of layers to "
        f"try on {single}, sets of them on {measured}; {once:.2f} s an image"
    )


def _observe(
    model: ir.Model,
    images: CalibrationImages,
    groups: Sequence[Group],
    options: CalibrationOptions,
    work: Path,
    progress: Progress,
) -> tuple[SmoothingRecord, Thresholds]:
    """Smooth the model, as it is to be quantized, and find the thresholds of its tensors.

    Args:
        groups: as they are by default: what is observed does not depend on the options for layers, so that a further
            run with others finds it.
    """
    identity = images.identity()
    smoothing = SmoothingRecord(())
    if options.smoothquant:
        with progress.phase("observing LayerNorms") as told:
            smoothing = smooth_norms(model, images, identity, work, threads=options.threads, progress=told)
    with progress.phase("observing tensors") as told:
        thresholds = find_thresholds(
            model,
            [group for group in groups if group.is_candidate],
            images,
            identity,
            work,
            options.method,
            threads=options.threads,
            progress=told,
        )
    for warning in thresholds.warnings:
        progress.say(f"warning: {warning}")
    return smoothing, thresholds


def _search(
    model: ir.Model,
    thresholds: Thresholds,
    groups: Sequence[Group],
    options: CalibrationOptions,
    budget: Budget,
    test: TestSet,
    work: Path,
    progress: Progress,
) -> tuple[Search, list[Variant]]:
    """The layers to quantize, and the graphs that follow; none where nothing keeps the budget."""
    effort, (images, labels) = EFFORTS[options.effort], test
    limits = thresholds.limits
    few = CalibrationImages(evenly_spaced(images.paths, effort.single), images.protocol)
    with progress.phase("measuring each layer") as told:
        single = Reference(model, [few[i] for i in range(len(few))], threads=options.threads)
        names = [group.name for group in groups if group.is_candidate]
        losses = LossFile(work / "losses.npz", thresholds.key, options.method, few.sha256(), options.precision)
        if losses.damaged:
            progress.say(f"{losses.path}: is damaged; its losses are measured again")
        alone = sensitivities(
            single, model, limits, groups, names, kind=options.precision, losses=losses, progress=told
        )
        losses.save()
    del single

    def said(step: Step) -> None:
        lost = "" if step.loss.miou is None else f"{step.loss.miou:+.2f} points of mIoU lost, "
        verdict = "within" if step.within else "over"
        progress.say(
            f"{100 * step.share:.1f} % in {options.precision.upper()}: {lost}{100 * step.loss.agreement:.2f} % of the "
            f"classes stay, logits differ by {100 * step.loss.error:.2g} %: {verdict} budget"
        )

    progress.say(f"measuring sets of layers on {count(len(images), 'image')}")
    reference = Reference(model, images, labels, threads=options.threads)
    quantized, found = search(
        reference,
        model,
        limits,
        groups,
        budget,
        kind=options.precision,
        losses=alone,
        batch=effort.batch,
        told=said,
    )
    return found, variants_of(quantized, found, model, limits, reference) if found.chosen else []


def _write(bundle: Bundle, variant: Variant, details: dict[str, Any]) -> None:
    """Enter a variant into the bundle, by a rename within the same folder."""
    with work_folder(bundle.path) as folder:
        file = folder / variant.name
        file.write_bytes(serialise(variant.model))
        source = bundle.manifest.source
        artifact = replace(
            bundle.artifact(source),
            precision=details["calibration"]["precision"],
            target=variant.target,
            made_of=source,
            main=variant.name,
            files={variant.name: sha256_of(file)},
            proof=(),
            record=details,
        )
        bundle.add(variant.name, artifact, [file])
