"""``denseport build``: artifacts for a precision and an engine."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from denseport.runtime.cli.arguments import add_bundle, add_values, open_bundle, path, refuse_given, whole
from denseport.runtime.system.text import count

if TYPE_CHECKING:
    from denseport.export.build import EngineSettings
    from denseport.runtime.bundle.engine_record import Shape

HELP = "build FP16 graphs, BF16 and INT8 for CPUs and TensorRT engines, audited against FP32"
NEEDED = ("onnx", "onnx_ir", "onnxruntime")  # looked for first, since the work takes a while

# The first choice is the default.
CHOICES = (
    ("--precision", ("fp16", "fp32", "bf16", "int8", "fp8"), "int8 and fp8 take what denseport calibrate wrote"),
    (
        "--float-precision",
        ("fp32", "fp16", "bf16"),
        "what the float part of int8 and fp8 computes in; bf16: on OpenVINO",
    ),
    (
        "--engine",
        ("onnx", "openvino", "tensorrt", "tensorrt_rtx"),
        "onnx writes the typed graph alone; openvino computes the bundle on CPUs in bf16, int8 or fp32",
    ),
    (
        "--output",
        ("logits", "mask"),
        "what the graph gives: logits, which the runtime resizes to the image, or a class for each pixel of the "
        "network's input",
    ),
    (
        "--plugin",
        ("auto", "on", "off"),
        "fused upsampling kernels; auto: TensorRT builds with and without them and keeps the faster, the others "
        "build without",
    ),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_bundle(parser)
    for option, choices, words in CHOICES:
        parser.add_argument(option, choices=choices, default=choices[0], help=f"{words}; default: %(default)s")
    parser.add_argument(
        "--for-this-machine",
        action="store_true",
        help="instead: make all that may be faster on this CPU (OpenVINO in FP32, BF16 and INT8), compare each with "
        "FP32 on --images, time it, and use the fastest on such CPUs from then on",
    )
    _add_precision(parser.add_argument_group("precision"))
    _add_engine(parser.add_argument_group("engine"))
    words = "replace an audited artifact by one that no --images audit"
    parser.add_argument("--force", action="store_true", help=words)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def _add_precision(group: argparse._ArgumentGroup) -> None:
    words = "images like the application's: FP16's range is checked on them, and the result is compared with FP32"
    group.add_argument("--images", metavar="IMAGE", nargs="+", default=[], help=words)
    add_values(group, ("--limit", whole(1), 16, "N", "images to take; default: %(default)s"))
    group.add_argument("--explain-precision", action="store_true", help="print what computes in which type, and why")


def _add_engine(group: argparse._ArgumentGroup) -> None:
    profile = "reference (512..2048 x 512 and portraits) or fixed:WxH; default: reference"
    other = "input, instead of --profile: WxH, or its shape Nx3xHxW"
    add_values(
        group,
        ("--profile", str, None, "NAME", profile),
        ("--min", _shape, None, "SIZE", f"smallest {other}"),
        ("--opt", _shape, None, "SIZE", f"most usual {other}"),
        ("--max", _shape, None, "SIZE", f"largest {other}"),
        ("--workspace", whole(1), None, "MIB", "scratch memory for a layer; default: no limit"),
        ("--level", whole(0, 5), 3, "0-5", "optimization level; default: %(default)s"),
        ("--timing-cache", path, None, "FILE", "TensorRT: default: one for each GPU"),
    )
    words = "RTX: GPUs to build for, by compute capability or by card: sm_86, rtx4090, l4"
    group.add_argument("--target", metavar="GPU", nargs="+", default=[], help=words)
    group.add_argument("--version-compatible", action="store_true", help="TensorRT: open in later releases too")
    kinds = ("none", "same_compute_capability", "ampere_plus")
    words = "TensorRT: other GPUs that the engine runs on, at some cost of speed; default: %(default)s"
    group.add_argument("--hardware-compatible", choices=kinds, default=kinds[0], help=words)
    group.add_argument("--verbose", action="store_true", help="print TensorRT's log")


def run(arguments: argparse.Namespace) -> int:
    from denseport.runtime.system.machine import require

    require(NEEDED, "export,onnxruntime")
    from denseport.export.build import build, build_for_this_machine
    from denseport.export.graph.precision import precision_table
    from denseport.runtime.system.progress import Terminal

    if arguments.for_this_machine:
        _refuse_choices(arguments)
        images = {"images": arguments.images, "limit": arguments.limit}
        result = build_for_this_machine(open_bundle(arguments), **images, progress=Terminal()).to_dict()
        print(json.dumps(result, indent=1) if arguments.json else "\n".join(_chosen_lines(result)))
        return 0
    taken = ("precision", "float_precision", "engine", "output", "plugin", "images", "limit", "force")
    built = build(
        open_bundle(arguments),
        **{name: getattr(arguments, name) for name in taken},
        settings=_settings(arguments),
        progress=Terminal(),
    )
    result = built.to_dict()
    if arguments.explain_precision and built.precision is not None:
        result["table"] = precision_table(built.precision)
    print(json.dumps(result, indent=1) if arguments.json else "\n".join(_lines(result, verbose=arguments.verbose)))
    return 0 if built.passed else 1


def _refuse_choices(arguments: argparse.Namespace) -> None:
    """Options that say what to build, beside the one that leaves it to a measurement."""
    names = [option[2:].replace("-", "_") for option, _, _ in CHOICES] + ["explain_precision", "force"]
    refuse_given(arguments, names, "--for-this-machine does not go with {}", "Leave one of them out.")


def _chosen_lines(result: dict[str, Any]) -> list[str]:
    lines = [f"{name}: not made: {reason}" for name, reason in result["not_made"].items()]
    for name, audit in result["audits"].items():
        lines += [f"{name}: {line.strip()}" for line in _audit_lines(audit)]
        lines += _layer_lines(result["layers"].get(name))
        if name in result["verdicts"]:
            lines.append(f"  {result['verdicts'][name]['reason']}")
    return [*lines, f"On such processors {result['chosen']} runs: {result['why']}"]


def _settings(arguments: argparse.Namespace) -> EngineSettings:
    from denseport.export.build import EngineSettings
    from denseport.runtime.errors import InputError

    shapes = arguments.min, arguments.opt, arguments.max
    if any(shapes) and (arguments.profile or not all(shapes)):
        raise InputError(
            "--min, --opt and --max go together, and not with --profile", "Give all three, or --profile alone."
        )
    return EngineSettings(
        profile=shapes if all(shapes) else arguments.profile or "reference",
        targets=tuple(arguments.target),
        optimization_level=arguments.level,
        workspace=arguments.workspace * 2**20 if arguments.workspace is not None else None,
        timing_cache=arguments.timing_cache,
        version_compatible=arguments.version_compatible,
        hardware_compatibility=arguments.hardware_compatible,
        verbose=arguments.verbose,
    )


def _shape(text: str) -> Shape:
    from denseport.export.engine.profile import parse_shape
    from denseport.runtime.errors import InputError

    try:
        return parse_shape(text)
    except InputError as err:
        raise argparse.ArgumentTypeError(err.message) from err


def _lines(result: dict[str, Any], *, verbose: bool) -> list[str]:
    lines: list[str] = [result["table"], ""] if "table" in result else []
    if "precision" in result:
        record = result["precision"]
        casts, islands = count(record["casts"], "cast"), count(len(record["islands"]), "FP32 island")
        lines.append(f"{result['artifact']}: {_nodes(record['nodes'])}, {casts}, {islands}")
        lines += _audit_lines(result["audit"])
    elif "artifact" in result and "reused" not in result:
        lines.append(f"{result['artifact']}: OpenVINO computes {result['file'] or 'it'}")
        lines += _layer_lines(result.get("layers"))
        lines += _audit_lines(result["audit"])
    if "variant" in result:
        lines.append(f"{result['variant']}: {_fused_words(result['fusion'])}")
        lines += _audit_lines(result["variant_audit"])
    if "engine" in result:
        lines += _engine_lines(result, verbose=verbose)
    return lines


def _nodes(types: dict[str, int]) -> str:
    return ", ".join(f"{count(number, 'node')} {kind}" for kind, number in types.items())


def _engine_lines(result: dict[str, Any], *, verbose: bool) -> list[str]:
    from denseport.runtime.bundle.engine_record import built_words

    record, audit = result["record"], result["engine_audit"]
    size = f"{result['bytes'] / 2**20:.1f} MiB, {record['seconds']:.0f} s"
    peak = record["peak_host_bytes"]
    return [
        f"{result['engine']}: {size}" + (f", {peak / 2**30:.1f} GiB of memory" if peak else ""),
        f"  asked for {_nodes(record['types_asked'])}",
        f"  plugin {record['plugin']}",
        f"  {built_words(record['types_built'], record['types_built_note'])}",
        *([f"  not audited: {audit}"] if isinstance(audit, str) else _audit_lines(audit)),
        *(f"  {line}" for line in _log_lines(record["log"], verbose=verbose)),
    ]


def _log_lines(log: Sequence[str], *, verbose: bool) -> list[str]:
    """The builder's errors and the warnings that a user can act on; of the other warnings only the number."""
    from denseport.export.engine.errors import is_notable

    shown = [line for line in log if verbose or is_notable(line)]
    if left := len(log) - len(shown):
        shown.append(f"{count(left, 'warning')} of the builder: --verbose shows {'them' if left > 1 else 'it'}")
    return shown


def _fused_words(fusion: dict[str, Any] | None) -> str:
    if fusion is None:
        return "nothing fused"
    words = "fused " + ", ".join(f"{number} {operator}" for operator, number in fusion["fused"].items())
    return words + "".join(f"\n  left as it is: {node}: {reason}" for node, reason in fusion["left"].items())


def _layer_lines(layers: dict[str, Any] | None) -> list[str]:
    """How INT8 layers compared with the arithmetic of Q/DQ."""
    if layers is None:
        return []
    left = layers["layers"] - len(layers["floats"])
    together = f"  {left} of {count(layers['layers'], 'INT8 layer')} computed as Q/DQ says, each within "
    together += f"{100 * layers['tolerance']:g} % of the logits; together {100 * layers['error']:.2g} %"
    if layers["error"] > layers["allowed"]:
        together += f", which is over the {100 * layers['allowed']:.2g} % that rounding explains"
    floats = layers["floats"].items()
    return [together, *(f"  stays float: {layer}: {100 * error:.2g} % by itself" for layer, error in floats)]


def _audit_lines(audit: dict[str, Any] | None) -> list[str]:
    if audit is None:
        return ["not audited: give --images to check FP16's range and to compare with FP32"]
    from denseport.runtime.evaluation.metrics import agreement_words

    words, worst = (agreement_words(audit[name], audit["output"], digits=3) for name in ("agreement", "worst_image"))
    lines = [
        f"{'PASS' if audit['passed'] else 'FAIL'}: {words}; {count(audit['images'], 'image')}",
        f"  worst image: {worst}",
    ]
    return lines + ([f"  layer that differs most: {audit['worst_layer']}"] if audit["worst_layer"] else [])
