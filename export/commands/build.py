"""``denseport build``: artifacts for a precision and an engine."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict

HELP = "build FP16 and other artifacts, audited against FP32"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE", help="a bundle's folder")
    parser.add_argument("--precision", choices=("fp32", "fp16", "bf16"), default="fp16", help="default: %(default)s")
    parser.add_argument(
        "--engine", choices=("onnx",), default="onnx", help="onnx writes the typed graph; default: %(default)s"
    )
    parser.add_argument(
        "--images",
        metavar="PICTURE",
        nargs="+",
        help="pictures like those of the application: their activations show what FP16's range cannot hold, and on "
        "them the result is compared with FP32",
    )
    parser.add_argument("--limit", type=int, default=16, metavar="N", help="pictures to take; default: %(default)s")
    parser.add_argument("--explain-precision", action="store_true", help="print what computes in which type, and why")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(arguments: argparse.Namespace) -> int:
    from denseport.export.build import FP32, build_typed
    from denseport.export.precision import explain
    from denseport.runtime.bundle import Bundle
    from denseport.runtime.errors import InputError
    from denseport.runtime.feed import spread

    if arguments.limit < 1:
        raise InputError(f"--limit {arguments.limit} is below 1")
    bundle = Bundle(arguments.bundle)
    if arguments.precision == "fp32":
        raise InputError(f"{FP32} is the FP32 model already", "Choose --precision fp16 or bf16.")
    pictures = spread(arguments.images, arguments.limit) if arguments.images else []
    name, record, audit = build_typed(
        bundle, arguments.precision, pictures, progress=lambda text: print(text, file=sys.stderr)
    )
    passed = audit is None or audit.passed
    if arguments.json:
        result = {"artifact": name, "passed": passed, "precision": asdict(record)}
        print(json.dumps({**result, "audit": asdict(audit) if audit is not None else None}, indent=1))
        return 0 if passed else 1
    if arguments.explain_precision:
        print(explain(record) + "\n")
    counts = ", ".join(f"{count} nodes {kind}" for kind, count in record.nodes.items())
    print(f"{bundle.path / name}: {counts}, {record.casts} casts, {len(record.islands)} islands of FP32")
    if audit is None:
        print("not audited: give --images to check FP16's range and to compare with FP32")
    else:
        print(
            f"{'PASS' if passed else 'FAIL'}: {100 * audit.agreement:.3f} % of the logits' classes are FP32's "
            f"(worst picture {100 * audit.worst_image:.3f} %), {audit.images} pictures"
        )
        if audit.worst_layer is not None:
            print(f"  most different layer: {audit.worst_layer}")
    return 0 if passed else 1
