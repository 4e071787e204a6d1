"""The whole way of an ONNX file that Denseport did not make, to a bundle on disk. No torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from denseport.export.checkpoint.labels import plain_text
from denseport.export.entrance.compare import TOLERANCE, Check, compare
from denseport.export.entrance.declared import Declared
from denseport.export.entrance.foreign_network import ForeignNetwork, Run, Samples, choose_output, layouts
from denseport.export.entrance.interface import Interface, Wanted, find_interface
from denseport.export.entrance.onnx_file import ForeignModel, read_onnx
from denseport.export.entrance.write import MODEL, announce, made_with, refuse_inside, renamed, write_source
from denseport.export.errors import ExportError
from denseport.export.graph.ends import CLASSES, NCHW, NHWC, PROBABILITIES, EndsRecord, adapt_ends
from denseport.export.graph.model import DEPTH, LOGITS, save_model
from denseport.runtime.bundle.bundle import Bundle, new_bundle
from denseport.runtime.bundle.manifest import Inference, Manifest, NetworkInput
from denseport.runtime.bundle.preprocessing import Preprocessing, paddings
from denseport.runtime.bundle.protocol import parse_protocol
from denseport.runtime.bundle.steps import Pad
from denseport.runtime.errors import ImageError, InputError
from denseport.runtime.pipeline.views import protocol_views
from denseport.runtime.system.arguments import required_path
from denseport.runtime.system.files import sha256_of
from denseport.runtime.system.progress import Progress, Silent

__all__ = ["Foreign", "import_bundle", "write_foreign"]

NO_PARITY = "none with torch: the bundle's source was compared with the imported file, both on ONNX Runtime"
PHOTOGRAPHS = ((1536, 2048), (2048, 1536))  # height, width: what most cameras take


@dataclasses.dataclass(frozen=True)
class Foreign:
    """A network on its way into a bundle."""

    label: str  # of its file, or of the module, for messages
    folder: Path  # where its weights lie
    name: str
    model: ForeignModel
    about: dict[str, Any]  # of the manifest's provenance
    architecture: str
    reference: Run | None = None  # the network in torch, to compare with; None: the file itself


def import_bundle(
    model: Path | str,
    output: Path | str,
    declared: Declared,
    *,
    layout: str | None = None,
    output_name: str | None = None,
    gives: str | None = None,
    name: str | None = None,
    replace: bool = False,
    progress: Progress | None = None,
) -> Bundle:
    """Make a bundle of an ONNX file with one image as its input, if it gives a class or a depth for each pixel.

    Its source has the house's ends: what lies behind the logits is cut off, layouts are turned, and classes become
    logits of ones and zeros. It is kept only if it gives, at three sizes, what the file gives. Nothing shows that the
    file computes what its network did in training.

    Args:
        model: the ONNX file; its weights may lie in files beside it.
        declared: classes or depths, and how images are prepared.
        layout: of the input, "NCHW" or "NHWC"; default: found.
        output_name: of several outputs the one to take.
        gives: "logits", "probabilities" or "classes"; default: found by the values.
        name: what the manifest calls the model; default: the file's name.
        replace: replace an existing bundle.

    Raises:
        ExportError: the file cannot be read or run, is not finite or not repeatable, or gives no class for each pixel.
        InputError: something that was declared does not fit the network, or is missing.
        OutputError: ``output`` exists, cannot be written, or is to be replaced and holds a file that is read.
    """
    for option, value, known in (("layout", layout, (NCHW, NHWC)), ("gives", gives, (LOGITS, PROBABILITIES, CLASSES))):
        if value is not None and value not in known:
            raise InputError(f"--{option} {value!r} is unknown", f"Choose one of {', '.join(known)}.")
    if declared.is_depth and gives is not None:
        raise InputError(
            f"--gives {gives} applies to networks that tell classes apart", "Leave it out with --task depth."
        )
    path, output, progress = required_path("model", model), required_path("output", output), progress or Silent()
    refuse_inside(output, (path,), replace=replace)
    with new_bundle(output, replace=replace) as folder:
        progress.say(f"reading {path}")
        read = read_onnx(path)
        about = {
            "checkpoint": plain_text(path.name),
            "sha256": sha256_of(path),
            "layout": f"ONNX of opset {read.opset}, written by {read.producer}",
            "parity": NO_PARITY,
        }
        foreign = Foreign(str(path), path.parent, plain_text(path.stem), read, about, "imported ONNX")
        number = choose_output(read.original, foreign.label, output_name)
        write_foreign(foreign, folder, output, declared, number, layout, gives, name=name, progress=progress)
    return Bundle(output)


def write_foreign(
    foreign: Foreign,
    folder: Path,
    output: Path,
    declared: Declared,
    number: int,
    layout: str | None,
    gives: str | None,
    *,
    name: str | None,
    progress: Progress,
) -> None:
    """From a network that was read to a whole bundle in ``folder``.

    Args:
        number: of the output to take; other arguments and errors as of `import_bundle`.
    """
    progress.say("running it at several sizes")
    network, samples, found = _found(foreign, declared, number, layout, gives)
    model = foreign.model.model
    model.graph.outputs[:] = [model.graph.outputs[number]]
    adapted = adapt_ends(model, found.ends)
    manifest = _manifest(foreign, declared, found, adapted, samples, _parameters(model))
    _check_protocol(manifest)
    manifest = renamed(manifest, name, progress)
    announce(manifest, progress, doing="importing" if foreign.reference is None else "exporting")
    save_model(model, folder / MODEL)
    files = [folder / MODEL, *folder.glob(f"{MODEL}.data")]
    against = "onnx" if foreign.reference is None else "torch"
    progress.say(f"comparing the adapted graph with {'the file' if against == 'onnx' else 'torch'}")
    reference = foreign.reference or network.run
    checks = compare(reference, folder / MODEL, found.ends, samples, found.shapes, adapted)
    manifest = dataclasses.replace(manifest, stride=_stride(checks[0]))
    write_source(manifest, files, output, against=against, record=_record(checks, found, adapted))


def _found(
    foreign: Foreign, declared: Declared, number: int, layout: str | None, gives: str | None
) -> tuple[ForeignNetwork, Samples, Interface]:
    """The network in the layout in which it runs, and what it takes and gives."""
    label, original = foreign.label, foreign.model.original
    image = original.graph.inputs[0]
    takes_levels = image.dtype not in (ir.DataType.FLOAT, ir.DataType.DOUBLE)
    possible = layouts(image, label, layout)
    if declared.mean is not None:
        possible = [each for each in possible if each[1] == len(declared.mean)] or possible
    problem: ExportError | None = None
    for each, channels in possible:
        normalise = declared.normalise(channels, takes_levels=takes_levels)
        samples = Samples(normalise.mean, normalise.std)
        network = ForeignNetwork(original, label, foreign.folder, number, each)
        dims = (None,) * 4 if image.shape is None else tuple(image.shape)
        sides = dims[2:] if each == NCHW else dims[1:3]
        threshold = declared.threshold if declared.threshold is not None else declared.own.threshold
        gives = DEPTH if declared.is_depth else gives
        wanted = Wanted(declared.resize_size(), gives, None if declared.is_depth else declared.num_classes, threshold)
        try:
            return network, samples, find_interface(network, (dims[0], *sides), samples, label, wanted)
        except ExportError as err:
            problem = problem or err
    assert problem is not None  # there is at least one layout
    raise problem


def _manifest(
    foreign: Foreign,
    declared: Declared,
    found: Interface,
    adapted: EndsRecord,
    samples: Samples,
    parameters: int,
) -> Manifest:
    own, ends = declared.own, found.ends
    height, width = ends.shape[2:]
    fixed = None if height is None or width is None else (width, height)
    dtype = foreign.model.original.graph.inputs[0].dtype
    takes_levels = dtype not in (ir.DataType.FLOAT, ir.DataType.DOUBLE)
    steps = declared.preprocess(len(samples.mean), fixed, takes_levels=takes_levels)
    names, colours, warnings = _classes(declared, ends.classes)
    if declared.bgr is None and own.preprocess is None and len(samples.mean) == 3:
        warnings.append("Nothing says in which order the network takes colours: RGB is assumed. --bgr says BGR.")
    scores = adapted.scores and found.scores
    if not scores:
        warnings.append("The network tells the class of a pixel, not how likely it is: there are no scores.")
    warnings = [*found.warnings, *warnings]
    packages = ("onnx", "onnxruntime") if foreign.reference is None else ("torch", "onnx", "onnxruntime")
    corners = adapted.align_corners if adapted.align_corners is not None else declared.align_corners
    corners = bool(own.align_corners if corners is None else corners)
    try:
        return Manifest(
            name=foreign.name,
            architecture=foreign.architecture,
            parameters=parameters,
            patch_size=found.divisor,
            stride=1,  # known once the graph is adapted
            classes=names,
            palette=colours,
            reduce_zero_label=bool(own.reduce_zero_label),
            preprocess=_padded(steps, found.divisor),
            augmentation=own.augmentation,
            inference=own.inference or Inference(),
            label_map=own.label_map or {},
            ignore_index=255 if own.ignore_index is None else own.ignore_index,
            reference=None,
            provenance={**foreign.about, **made_with(packages, warnings)},
            spec={},
            source=MODEL,
            task="depth" if declared.is_depth else "segmentation",
            depth=declared.depth_output,
            input=NetworkInput(shape=ends.shape, divisor=found.divisor),
            align_corners=corners,
            via_input=adapted.align_corners is not None or own.via_input is not False,  # a resize that was cut did so
            threshold=ends.threshold,
            scores=scores,
        )
    except ValueError as err:
        raise InputError(f"{foreign.label}: {err}", "Correct what --like, --from-json or the options say.") from err


def _classes(declared: Declared, classes: int) -> tuple[tuple[str, ...], tuple[tuple[int, int, int], ...], list[str]]:
    """Names, colours and warnings; a depth network has none."""
    if declared.is_depth:
        return (), (), []
    names, warnings = declared.names(classes)
    named = 1 if classes == 2 and declared.num_classes == 1 else classes
    return names, declared.colours(classes, named), warnings


def _padded(steps: Preprocessing, divisor: int) -> Preprocessing:
    """The steps, with a pad to what the network takes, whose logits are cut off again."""
    pads = [step for step in paddings(steps) if isinstance(step, Pad)]
    if divisor == 1 or any(pad.divisor and pad.divisor % divisor == 0 for pad in pads[-1:]):
        return steps
    return (*steps, Pad(divisor=divisor, crop=True))


def _check_protocol(manifest: Manifest) -> None:
    """Photographs have to reach the network in sizes that it takes."""
    protocol = parse_protocol("reference", manifest)
    for size in PHOTOGRAPHS:
        try:
            protocol_views(size, protocol, manifest.patch_size)
        except ImageError as err:
            raise InputError(
                f"the network does not take what the settings make of images: {err.message}",
                "Leave --scale and --size out for a network of one size, or give sizes that it takes.",
            ) from err


def _stride(check: Check) -> int:
    return max(1, round(check.shape[2] / check.logits[2]))


def _parameters(model: ir.Model) -> int:
    """Numbers of the floating-point constants."""
    constants = (value.const_value for value in model.graph.initializers.values())
    return max(1, sum(each.size for each in constants if each is not None and each.dtype == ir.DataType.FLOAT))


def _record(checks: Sequence[Check], found: Interface, adapted: EndsRecord) -> dict[str, Any]:
    return {
        "tolerance": TOLERANCE,
        "max_difference": max(check.max_difference for check in checks),
        "checks": [dataclasses.asdict(check) for check in checks],
        "interface": dataclasses.asdict(found.ends),
        "adapted": dataclasses.asdict(adapted),
    }
