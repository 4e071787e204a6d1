"""``denseport build``: artifacts for a precision and an engine."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from denseport.runtime.cli.arguments import path, whole
from denseport.runtime.system.text import count

if TYPE_CHECKING:
    from denseport.export.engine.build import EngineOptions
    from denseport.runtime.bundle.bundle import Bundle
    from denseport.runtime.bundle.engine_record import Shape

HELP = "build FP16 graphs and TensorRT engines, audited against FP32"
NEEDED = ("onnx", "onnx_ir", "onnxruntime")  # looked for first, since the work takes a while
QUANTIZED = ("int8", "fp8")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE", type=path, help="a bundle's folder")
    parser.add_argument(
        "--precision",
        choices=("fp32", "fp16", "bf16", *QUANTIZED),
        default="fp16",
        help="int8 and fp8 take what denseport calibrate wrote; default: %(default)s",
    )
    parser.add_argument(
        "--float-precision",
        choices=("fp32", "fp16"),
        default="fp32",
        help="what the float part of int8 and fp8 computes in; default: %(default)s",
    )
    parser.add_argument(
        "--engine",
        choices=("onnx", "tensorrt", "tensorrt_rtx"),
        default="onnx",
        help="onnx writes the typed graph alone; default: %(default)s",
    )
    parser.add_argument(
        "--output",
        choices=("logits", "mask"),
        default="logits",
        help="what the graph gives: logits, which the runtime resizes to the image, or a class for each pixel of the "
        "network's input; default: %(default)s",
    )
    parser.add_argument(
        "--plugin",
        choices=("auto", "on", "off"),
        default="auto",
        help="fused upsampling kernels; auto: TensorRT builds with and without and keeps the faster, the others build "
        "without; default: %(default)s",
    )
    _add_precision(parser.add_argument_group("precision"))
    _add_engine(parser.add_argument_group("engine"))
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def _add_precision(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--images",
        metavar="IMAGE",
        nargs="+",
        help="images like the application's: on them FP16's range is checked and the result compared with FP32",
    )
    group.add_argument("--limit", type=whole(1), default=16, metavar="N", help="images to take; default: %(default)s")
    group.add_argument("--explain-precision", action="store_true", help="print what computes in which type, and why")


def _add_engine(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--profile", metavar="NAME", help="reference (512 x 512..2048 and portraits) or fixed:HxW; default: reference"
    )
    for name, words in (("min", "smallest"), ("opt", "most usual"), ("max", "largest")):
        group.add_argument(f"--{name}", type=_shape, metavar="[Nx3x]HxW", help=f"{words} input, instead of --profile")
    group.add_argument("--target", metavar="SM", nargs="+", default=[], help="RTX: GPUs to build for, such as sm_86")
    group.add_argument(
        "--workspace", type=whole(1), metavar="MIB", help="scratch memory for a layer; default: no limit"
    )
    group.add_argument(
        "--level", type=whole(0, 5), default=3, metavar="0-5", help="optimization level; default: %(default)s"
    )
    group.add_argument("--timing-cache", type=path, metavar="FILE", help="TensorRT: default: one for each GPU")
    group.add_argument("--version-compatible", action="store_true", help="TensorRT: open in later releases too")
    group.add_argument(
        "--hardware-compatible",
        choices=("none", "same_compute_capability", "ampere_plus"),
        default="none",
        help="TensorRT: other GPUs that the engine runs on, at some cost of speed; default: %(default)s",
    )
    group.add_argument("--verbose", action="store_true", help="print TensorRT's log")


def run(arguments: argparse.Namespace) -> int:
    from denseport.runtime.system.machine import require

    require(NEEDED, "export,onnxruntime")
    from denseport.export.engine.build import check_builder
    from denseport.runtime.bundle.bundle import Bundle
    from denseport.runtime.bundle.manifest import FP32
    from denseport.runtime.errors import InputError
    from denseport.runtime.system.files import refuse_unwritable

    variant = arguments.engine == "onnx" and (arguments.output == "mask" or arguments.plugin == "on")
    if arguments.precision == "fp32" and arguments.engine == "onnx" and not variant:
        raise InputError(
            f"{FP32} is the FP32 graph already",
            "Choose --precision fp16 or bf16, --output mask, --plugin on, or an --engine.",
        )
    bundle = Bundle(arguments.bundle)
    refuse_unwritable(bundle.path)
    if arguments.precision in QUANTIZED:
        _check_quantized(bundle, arguments, variant=variant)
    elif arguments.float_precision != "fp32":
        raise InputError(
            f"--float-precision belongs to --precision {' and '.join(QUANTIZED)}", "Leave --float-precision out."
        )
    options = _engine_options(bundle, arguments) if arguments.engine != "onnx" else None
    if options is not None:
        check_builder(options)
    result: dict[str, Any] = {"bundle": str(bundle.path), "passed": True}
    if arguments.precision not in ("fp32", *QUANTIZED) or arguments.float_precision != "fp32":
        result |= _typed(bundle, arguments, reuse=variant or options is not None)
    if variant and result["passed"]:
        result |= _variant(bundle, arguments)
    if options is not None and result["passed"]:
        result |= _engine(bundle, arguments, options)
    print(json.dumps(result, indent=1) if arguments.json else "\n".join(_lines(result, verbose=arguments.verbose)))
    return 0 if result["passed"] else 1


def _shape(text: str) -> Shape:
    from denseport.export.engine.profile import parse_shape
    from denseport.runtime.errors import InputError

    try:
        return parse_shape(text)
    except InputError as err:
        raise argparse.ArgumentTypeError(err.message) from err


def _check_quantized(bundle: Bundle, arguments: argparse.Namespace, *, variant: bool) -> None:
    """A quantized graph comes from a calibration; here its float part is typed, or an engine is built of it."""
    from denseport.export.artifacts import source_of
    from denseport.runtime.errors import InputError

    name = source_of(arguments.precision)
    if name not in bundle.manifest.artifacts:
        raise InputError(
            f"{bundle.path}: has no {name}",
            f"denseport calibrate {bundle.path} --precision {arguments.precision} --images DIR writes it.",
        )
    if variant and arguments.float_precision != "fp32":
        raise InputError(
            "--float-precision fp16 does not go with --output mask or --plugin on without an engine",
            "Leave --float-precision out, or name an --engine.",
        )
    if arguments.engine == "onnx" and not variant and arguments.float_precision == "fp32":
        raise InputError(
            f"{name} is the {arguments.precision.upper()} graph already",
            "Choose --float-precision fp16, or an --engine.",
        )


def _typed(bundle: Bundle, arguments: argparse.Namespace, *, reuse: bool) -> dict[str, Any]:
    """Write the typed graph; as a means to an end, one that is there is taken unless images are given."""
    from denseport.export.artifacts import build_typed, source_of
    from denseport.export.graph.precision import precision_table

    quantized = arguments.precision if arguments.precision in QUANTIZED else None
    precision = arguments.float_precision if quantized else arguments.precision
    name = source_of(arguments.precision, arguments.float_precision)
    if reuse and not arguments.images and name in bundle.manifest.artifacts:
        return {"artifact": name, "reused": True}
    images = _images(arguments)
    name, record, audit = build_typed(bundle, precision, images, quantized=quantized, progress=_say)
    result = {
        "artifact": name,
        "precision": asdict(record),
        "audit": audit.to_dict() if audit is not None else None,
        "passed": audit is None or audit.passed,
    }
    return result | ({"table": precision_table(record)} if arguments.explain_precision else {})


def _variant(bundle: Bundle, arguments: argparse.Namespace) -> dict[str, Any]:
    """Write the graph with the output, or with the fused nodes, that were asked for."""
    from denseport.export.artifacts import build_variant

    images = _images(arguments)
    mask, fused = arguments.output == "mask", arguments.plugin == "on"
    name, fusion, audit = build_variant(bundle, arguments.precision, images, mask=mask, fused=fused, progress=_say)
    return {
        "variant": name,
        "fusion": asdict(fusion) if fusion is not None else None,
        "variant_audit": audit.to_dict() if audit is not None else None,
        "passed": audit is None or audit.passed,
    }


def _engine_options(bundle: Bundle, arguments: argparse.Namespace) -> EngineOptions:
    from denseport.export.engine.build import EngineOptions
    from denseport.export.engine.profile import named_profiles, profile_of
    from denseport.runtime.bundle.protocol import parse_protocol
    from denseport.runtime.errors import InputError

    shapes = [getattr(arguments, name) for name in ("min", "opt", "max")]
    if any(shapes):
        if arguments.profile or not all(shapes):
            raise InputError(
                "--min, --opt and --max go together, and not with --profile", "Give all three, or --profile alone."
            )
        profiles: Sequence[Any] = (profile_of(*shapes),)
    else:
        protocol = parse_protocol("reference", bundle.manifest)
        profiles = named_profiles(arguments.profile or "reference", arguments.engine, protocol)
    return EngineOptions(
        arguments.engine,
        tuple(profiles),
        targets=tuple(arguments.target),
        optimization_level=arguments.level,
        workspace=arguments.workspace * 2**20 if arguments.workspace is not None else None,
        version_compatible=arguments.version_compatible,
        hardware_compatibility=arguments.hardware_compatible,
        timing_cache=arguments.timing_cache,
        mask=arguments.output == "mask",
        plugin=arguments.plugin == "on",
    )


def _engine(bundle: Bundle, arguments: argparse.Namespace, options: EngineOptions) -> dict[str, Any]:
    from denseport.export.artifacts import build_engine_artifact
    from denseport.runtime.bundle.protocol import parse_protocol
    from denseport.runtime.selection import too_narrow

    verbose = _say if arguments.verbose else None
    images = _images(arguments)
    name, record, audit = build_engine_artifact(
        bundle,
        arguments.precision,
        options,
        images,
        rest=arguments.float_precision,
        try_plugin=arguments.plugin == "auto",
        verbose=verbose,
    )
    file = bundle.path / name
    why = too_narrow(record.profiles, parse_protocol("reference", bundle.manifest))
    if why and record.output == "logits":
        height, width = record.profiles[0].optimum[2:]
        _say(f"{name} {why}: it runs when asked for, --artifact {name} --protocol fixed:{height}x{width}")
    return {
        "engine": name,
        "bytes": file.stat().st_size if file.exists() else 0,
        "record": record.to_dict(),
        "engine_audit": audit if isinstance(audit, str) else audit.to_dict(),
        "passed": isinstance(audit, str) or audit.passed,
    }


def _images(arguments: argparse.Namespace) -> list[Path]:
    from denseport.runtime.errors import InputError
    from denseport.runtime.pipeline.network_input import sample_evenly

    if not arguments.images:
        return []
    images = sample_evenly(arguments.images, arguments.limit)
    if not images:  # videos alone; without images nothing is audited
        raise InputError(f"--images {' '.join(arguments.images)}: there is not an image", "Name images, not videos.")
    return images


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _lines(result: dict[str, Any], *, verbose: bool) -> list[str]:
    lines: list[str] = [result["table"], ""] if "table" in result else []
    if "precision" in result:
        record = result["precision"]
        counts = ", ".join(f"{count(number, 'node')} {kind}" for kind, number in record["nodes"].items())
        lines.append(
            f"{result['artifact']}: {counts}, {count(record['casts'], 'cast')}, "
            f"{count(len(record['islands']), 'FP32 island')}"
        )
        lines += _audit_lines(result["audit"])
    if "variant" in result:
        lines.append(f"{result['variant']}: {_fused_words(result['fusion'])}")
        lines += _audit_lines(result["variant_audit"])
    if "engine" in result:
        lines += _engine_lines(result, verbose=verbose)
    return lines


def _engine_lines(result: dict[str, Any], *, verbose: bool) -> list[str]:
    from denseport.runtime.bundle.engine_record import built_words

    record, audit = result["record"], result["engine_audit"]
    asked = ", ".join(f"{count(number, 'node')} {kind}" for kind, number in record["types_asked"].items())
    size = f"{result['bytes'] / 2**20:.1f} MiB, {record['seconds']:.0f} s"
    peak = record["peak_host_bytes"]
    return [
        f"{result['engine']}: {size}" + (f", {peak / 2**30:.1f} GiB of memory" if peak else ""),
        f"  asked for {asked}",
        f"  plugin {record['plugin']}",
        f"  {built_words(record['types_built'], record['types_built_note'])}",
        *([f"  not audited: {audit}"] if isinstance(audit, str) else _audit_lines(audit)),
        *(f"  {line}" for line in _log_lines(record["log"], verbose=verbose)),
    ]


def _log_lines(log: Sequence[str], *, verbose: bool) -> list[str]:
    """What to read of the builder's warnings and errors; the rest, its talk about its own doings, as a number."""
    from denseport.export.engine.errors import is_notable

    shown = [line for line in log if verbose or is_notable(line)]
    left = len(log) - len(shown)
    return shown + (
        [f"{count(left, 'warning')} of the builder: --verbose shows {'them' if left > 1 else 'it'}"] if left else []
    )


def _fused_words(fusion: dict[str, Any] | None) -> str:
    if fusion is None:
        return "nothing fused"
    words = "fused " + ", ".join(f"{number} {operator}" for operator, number in fusion["fused"].items())
    return words + "".join(f"\n  left as it is: {node}: {reason}" for node, reason in fusion["left"].items())


def _audit_lines(audit: dict[str, Any] | None) -> list[str]:
    if audit is None:
        return ["not audited: give --images to check FP16's range and to compare with FP32"]
    lines = [
        f"{'PASS' if audit['passed'] else 'FAIL'}: {100 * audit['agreement']:.3f} % of the classes are FP32's "
        f"(worst image {100 * audit['worst_image']:.3f} %), {count(audit['images'], 'image')}"
    ]
    return lines + ([f"  most different layer: {audit['worst_layer']}"] if audit["worst_layer"] else [])
