"""The whole way of an ONNX file that Denseport did not make, to a bundle on disk. No torch."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import onnx_ir as ir

from denseport.export.checkpoint.labels import plain_text
from denseport.export.entrance.compare import compare, record_of
from denseport.export.entrance.declared import Declared
from denseport.export.entrance.foreign_network import ForeignNetwork, Run, choose_output, layouts
from denseport.export.entrance.interface import Interface, find_interface
from denseport.export.entrance.onnx_file import ForeignModel, read_onnx
from denseport.export.entrance.write import MODEL, announce, made_with, refuse_inside, renamed, write_source
from denseport.export.errors import ExportError
from denseport.export.graph.ends import CLASSES, NCHW, NHWC, PROBABILITIES, EndsRecord, adapt_ends
from denseport.export.graph.model import LOGITS, save_model
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
    output: int = 0  # its number
    layout: str | None = None  # of its input; None: found
    gives: str | None = None  # LOGITS, PROBABILITIES or CLASSES; None: found
    reference: Run | None = None  # the network in torch, to compare with; None: the file itself

    @property
    def takes_levels(self) -> bool:
        """Whether its input are whole grey levels, so that there is nothing to normalise."""
        return self.model.original.graph.inputs[0].dtype not in (ir.DataType.FLOAT, ir.DataType.DOUBLE)


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
        number, own_name = choose_output(read.original, str(path), output_name), plain_text(path.stem)
        foreign = Foreign(str(path), path.parent, own_name, read, about, "imported ONNX", number, layout, gives)
        write_foreign(foreign, folder, output, declared, name=name, progress=progress)
    return Bundle(output)


def write_foreign(
    foreign: Foreign, folder: Path, output: Path, declared: Declared, *, name: str | None, progress: Progress
) -> None:
    """From a network that was read to a whole bundle in ``folder``; the rest is as of `import_bundle`."""
    progress.say("running it at several sizes")
    network, found = _found(foreign, declared)
    model = foreign.model.model
    model.graph.outputs[:] = [model.graph.outputs[foreign.output]]
    adapted = adapt_ends(model, found.ends)
    manifest = _manifest(foreign, declared, found, adapted)
    _check_protocol(manifest)
    manifest = renamed(manifest, name, progress)
    announce(manifest, progress, doing="importing" if foreign.reference is None else "exporting")
    save_model(model, folder / MODEL)
    files = [folder / MODEL, *folder.glob(f"{MODEL}.data")]
    progress.say(f"comparing the adapted graph with {'the file' if foreign.reference is None else 'torch'}")
    checks = compare(network, files[0], found.ends, found.shapes, adapted, foreign.reference)
    stride = max(1, round(checks[0].shape[2] / checks[0].logits[2]))
    record = record_of(checks) | {
        "interface": dataclasses.asdict(found.ends),
        "adapted": dataclasses.asdict(adapted),
    }
    against = "onnx" if foreign.reference is None else "torch"
    write_source(dataclasses.replace(manifest, stride=stride), files, output, against=against, record=record)


def _found(foreign: Foreign, declared: Declared) -> tuple[ForeignNetwork, Interface]:
    """The network in the layout in which it runs, and what it takes and gives."""
    label, original = foreign.label, foreign.model.original
    possible = layouts(original.graph.inputs[0], label, foreign.layout)
    if declared.mean is not None:
        possible = [each for each in possible if each[1] == len(declared.mean)] or possible
    problem: ExportError | None = None
    for layout, channels in possible:
        normalise = declared.normalise(channels, takes_levels=foreign.takes_levels)
        network = ForeignNetwork(original, label, foreign.folder, foreign.output, layout, normalise)
        try:
            return network, find_interface(network, declared, foreign.gives)
        except ExportError as err:
            problem = problem or err
    assert problem is not None  # there is at least one layout
    raise problem


def _manifest(foreign: Foreign, declared: Declared, found: Interface, adapted: EndsRecord) -> Manifest:
    said, ends = declared.settings, found.ends
    _, channels, height, width = ends.shape
    fixed = None if height is None or width is None else (width, height)
    steps = declared.preprocess(channels, fixed, takes_levels=foreign.takes_levels)
    names, colours, warnings = declared.labels(ends.classes)
    if declared.bgr is None and said.preprocess is None and channels == 3:
        warnings.append("Nothing says in which order the network takes colours: RGB is assumed. --bgr says BGR.")
    scores = adapted.scores and found.scores
    if not scores:
        warnings.append("The network tells the class of a pixel, not how likely it is: there are no scores.")
    warnings = [*found.warnings, *warnings]
    packages = ("onnx", "onnxruntime") if foreign.reference is None else ("torch", "onnx", "onnxruntime")
    corners = said.align_corners if adapted.align_corners is None else adapted.align_corners
    try:
        return Manifest(
            name=foreign.name,
            architecture=foreign.architecture,
            parameters=_parameters(foreign.model.model),
            patch_size=found.divisor,
            stride=1,  # known once the graph is adapted
            classes=names,
            palette=colours,
            reduce_zero_label=bool(said.reduce_zero_label),
            preprocess=_padded(steps, found.divisor),
            augmentation=said.augmentation,
            inference=said.inference or Inference(),
            label_map=said.label_map or {},
            ignore_index=255 if said.ignore_index is None else said.ignore_index,
            reference=None,
            provenance={**foreign.about, **made_with(packages, warnings)},
            spec={},
            source=MODEL,
            task="depth" if declared.is_depth else "segmentation",
            depth=said.depth,
            input=NetworkInput(shape=ends.shape, divisor=found.divisor),
            align_corners=bool(corners),
            via_input=adapted.align_corners is not None or said.via_input is not False,  # a resize that was cut did so
            threshold=ends.threshold,
            scores=scores,
        )
    except ValueError as err:
        raise InputError(f"{foreign.label}: {err}", "Correct what --like, --from-json or the options say.") from err


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


def _parameters(model: ir.Model) -> int:
    """Numbers of the floating-point constants."""
    constants = (value.const_value for value in model.graph.initializers.values())
    return max(1, sum(each.size for each in constants if each is not None and each.dtype == ir.DataType.FLOAT))
