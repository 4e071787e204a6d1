"""``denseport inspect``: what is in a bundle."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING

from denseport.runtime.cli.arguments import path
from denseport.runtime.system.text import count

if TYPE_CHECKING:
    from denseport.runtime.bundle.artifact import Artifact
    from denseport.runtime.bundle.bundle import Bundle
    from denseport.runtime.bundle.manifest import Manifest

HELP = "show what is in a bundle"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE", type=path, help="a bundle's folder")
    parser.add_argument("--json", action="store_true", help="print the manifest itself")
    parser.add_argument("--verify", action="store_true", help="compare each artifact's hash with the manifest")


def run(arguments: argparse.Namespace) -> int:
    from denseport.runtime.bundle.bundle import Bundle
    from denseport.runtime.bundle.decode import reading_record

    bundle = Bundle(arguments.bundle)
    if arguments.verify:
        for name in bundle.manifest.artifacts:
            bundle.verified(name)
    if arguments.json:
        print(bundle.manifest.to_json(), end="")
        return 0
    with reading_record(str(bundle.path)):
        lines = [(title, str(text)) for title, text in _lines(bundle)]
    for title, text in lines:
        print(f"{title:14} " + " ".join(text.split()))  # a line each, whatever the manifest holds
    if arguments.verify:
        print(f"{'verified':14} every file is what the manifest says")
    return 0


def _lines(bundle: Bundle) -> Iterator[tuple[str, str]]:
    from denseport.runtime.bundle.preprocessing import described, normalisation

    manifest, source = bundle.manifest, bundle.manifest.provenance
    normalise, inference, reference = normalisation(manifest.preprocess), manifest.inference, manifest.reference
    yield "model", f"{manifest.name} ({manifest.architecture}, {manifest.parameters / 1e6:,.1f} M parameters)"
    digest = f", sha256 {str(source['sha256'])[:16]}…" if "sha256" in source else ""
    yield "checkpoint", f"{source.get('checkpoint')} ({source.get('layout')}){digest}"
    library = next((f"{name} {source[name]}" for name in ("torch", "onnx") if name in source), "")
    yield "exported", f"{source.get('created')} by Denseport {source.get('denseport')}, {library}"
    if "parity" in source:
        yield "parity", source["parity"]
    yield "task", manifest.task
    order = "grey" if len(normalise.mean) == 1 else "RGB" if normalise.bgr_to_rgb else "BGR"
    shape = ", ".join("any" if size is None else str(size) for size in manifest.input.shape)
    mean, std = (", ".join(f"{level:.6g}" for level in levels) for levels in (normalise.mean, normalise.std))
    yield "input", f"{manifest.input.name} ({shape}), {order}; mean {mean}; std {std}"
    yield "resized", described(manifest.preprocess)
    mode = inference.mode
    if inference.crop and inference.stride:
        (height, width), (down, right) = inference.crop, inference.stride
        mode += f", windows {width} x {height}, every {right} x {down} pixels"
    corners = ", resized with aligned corners" if manifest.align_corners else ""
    at_once = "" if manifest.via_input or manifest.depth else ", resized to the image at once"
    grid = f"one {manifest.output.removesuffix('s')} for {manifest.stride} x {manifest.stride} pixels"
    yield "inference", f"{mode}; {grid}{corners}{at_once}"
    if manifest.augmentation is not None:
        yield "views", manifest.augmentation.words
    if not manifest.scores:
        yield "scores", "none: the network tells the class of a pixel, not how likely it is"
    elif manifest.temperature != 1:
        yield "scores", f"softmax of the logits / {manifest.temperature:.6g}, the temperature"
    if manifest.threshold is not None:
        yield "threshold", f"{manifest.classes[1]} where its probability is above {manifest.threshold:g}"
    if manifest.depth is not None:
        limit = "" if manifest.depth.largest is None else f", up to {manifest.depth.largest:g}"
        larger, how = manifest.depth.larger_is, manifest.depth.interpolation
        yield "depth", f"{manifest.depth.unit}{limit}, larger is {larger}; {how} to the image"
    else:
        names = ", ".join(manifest.classes[:6]) + (", …" if len(manifest.classes) > 6 else "")
        yield "classes", f"{len(manifest.classes)}: {names}"
    if labels := _labels(manifest):
        yield "labels", labels
    recognised = "none: not recognised as a published model"
    if reference is not None:
        miou = (
            f"mIoU {reference.mIoU}, ms + flip {reference.mIoU_ms_flip} on {reference.dataset} ({reference.protocol})"
        )
        figures = reference.protocol if manifest.task == "depth" else miou  # which has them in words
        recognised = f"{reference.preset}: {figures}; recognised by {reference.recognised_by}"
    yield "reference", recognised
    yield "signature", _signature(bundle)
    for name in manifest.artifacts:
        for number, text in enumerate(_of_artifact(bundle, name)):
            yield "" if number else "artifact", text
    for warning in source.get("warnings", []):
        yield "warning", warning


def _signature(bundle: Bundle) -> str:
    """Who says to have signed the bundle: nothing is verified here."""
    from denseport.runtime.bundle.signature import read_signature
    from denseport.runtime.errors import BundleError

    try:
        said = read_signature(bundle.path)
    except BundleError as err:
        return err.message
    if said is None:
        return "none"
    how = f"denseport verify {bundle.path} --trust FILE tells whether that is true"
    if said.manifest != bundle.digest:
        how = f"the manifest changed since: denseport sign {bundle.path} --key FILE"
    return f"of {count(len(said.files), 'file')}, by {said.signer}; {how}"


def _labels(manifest: Manifest) -> str:
    """How the data set's masks are read, where not each label is its class."""
    words = ["masks count from 1, 0 is not counted"] if manifest.reduce_zero_label else []
    if manifest.label_map:
        words.append("mapped " + " ".join(f"{old}:{new}" for old, new in manifest.label_map.items()))
    words += [f"{manifest.ignore_index} is not counted"] if manifest.ignore_index != 255 else []
    return "; ".join(words)


def _of_artifact(bundle: Bundle, name: str) -> Iterator[str]:
    from denseport.runtime.bundle.comparison import comparing_command

    artifact, source = bundle.manifest.artifacts[name], bundle.manifest.provenance.get("checkpoint") or "the checkpoint"
    files = [bundle.path / file for file in artifact.files]
    size = f"{sum(file.stat().st_size for file in files if file.is_file()) / 2**20:,.1f} MiB"
    missing = "".join(f", {file.name} is MISSING" for file in files if not file.is_file())
    floats = f" with {artifact.float_precision} floats" * (artifact.float_precision != artifact.precision)
    gives = ", fused" * artifact.fused + ", gives masks" * (artifact.output == "mask")
    yield f"{name}: {artifact.kind}, {artifact.precision}{floats}{gives}, {size}{missing}"
    yield f"made of {artifact.made_of or source}, target {artifact.target}"
    hows = [
        (each.against, f"computed in {each.arithmetic}, {each.machine}, {each.date[:10]}") for each in artifact.proof
    ]
    for against, how in dict.fromkeys(hows):  # an audit and a verdict may say the same
        yield f"compared with {against} ({how})"
    difference = artifact.record.get("max_difference")
    if difference is not None:
        sizes = count(len(artifact.record["checks"]), "size")
        against = next((each.against for each in artifact.proof if each.figures == "checks"), "torch")
        gives = "depths" if artifact.output == "depth" else artifact.output
        yield f"checked against {against} on {sizes}: {gives} differ by {difference:.1e} at most"
    yield from _calibrated(name, artifact)
    yield from _measured(artifact)
    if not artifact.is_compared:  # in its own arithmetic, with FP32 or labels
        how = f" in {artifact.float_precision.upper()}" if artifact.proof else ""
        yield f"not audited{how}; this does it: {comparing_command(name, bundle.manifest)}"
    if artifact.kind == "engine":
        yield from _built(name, artifact)


def _calibrated(name: str, artifact: Artifact) -> Iterator[str]:
    """What `denseport calibrate` did and found."""
    from denseport.runtime.bundle.verdict import MachineVerdict
    from denseport.runtime.evaluation.metrics import agreement_words

    record, verdict = artifact.record.get("calibration"), MachineVerdict.of(artifact, name)
    if record is not None:
        smoothed = count(sum(each["strength"] > 0 for each in record["smoothing"]), "tensor")
        kind, share = record["precision"].upper(), f"{100 * record['share']:.1f} % of the multiply-adds"
        images = count(record["images"], "image")
        yield f"calibrated on {images} by {record['method']}, {smoothed} smoothed: {share} in {kind}"
        yield f"{count(len(record['narrow']), 'group')} of layers in {kind}, {len(record['float'])} in float"
        for warning in record["warnings"]:
            yield f"warning: {warning}"
    if verdict is not None:
        accuracy = agreement_words(verdict.agreement, artifact.output)
        if verdict.miou is not None and verdict.fp32_miou is not None:
            images = count(verdict.labelled, "image")
            accuracy += f", mIoU {verdict.miou:.2f} (FP32 {verdict.fp32_miou:.2f}) on {images}"
        yield accuracy
        yield verdict.words


def _measured(artifact: Artifact) -> Iterator[str]:
    """What `denseport build` and `denseport eval --record` measured."""
    from denseport.runtime.evaluation.metrics import agreement_words

    audit, accuracy = artifact.record.get("audit"), artifact.record.get("accuracy")
    if audit is not None:
        agreement = agreement_words(audit["agreement"], artifact.output, digits=3)
        yield f"audited on {count(audit['images'], 'image')}: {agreement}"
    if accuracy is not None:
        verdict = {None: "", True: ", passed", False: ", FAILED"}[accuracy["gate"] and accuracy["gate"]["passed"]]
        where = f"{count(accuracy['images'], 'image')}, {accuracy['protocol']['description']}, {accuracy['date'][:10]}"
        name, digits = ("AbsRel", 4) if "AbsRel" in accuracy else ("mIoU", 2)
        figure = "unknown: no pixel counted" if accuracy[name] is None else f"{accuracy[name]:.{digits}f}"
        others = [each.arithmetic for each in artifact.proof if each.figures == "accuracy"]
        how = "".join(f", computed in {each.upper()}" for each in others if each != artifact.float_precision)
        yield f"{name} {figure} ({where}){verdict}{how}"


def _built(name: str, artifact: Artifact) -> Iterator[str]:
    from denseport.runtime.bundle.engine_record import BuildRecord, built_words

    record = BuildRecord.from_dict(artifact.record, name)
    yield f"built with {record.built_for} in {record.seconds:.0f} s"
    if record.plugin != "off":
        yield f"plugin {record.plugin}"
    yield "accepts " + " or ".join(str(profile) for profile in record.profiles)
    asked = ", ".join(f"{count(number, 'node')} {kind}" for kind, number in record.types_asked.items())
    yield f"asked for {asked}; {built_words(record.types_built, record.types_built_note)}"
