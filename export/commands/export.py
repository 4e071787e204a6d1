"""``denseport export``: a checkpoint to a bundle."""

from __future__ import annotations

import argparse

from denseport.runtime.cli.arguments import add_values, path, whole

NEEDED = ("torch", "onnx", "onnxscript", "onnxruntime")  # checked before the work starts
HELP = "export a checkpoint to a bundle with a checked ONNX model"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    words = "a .pth, .pt or .safetensors of mmsegmentation, Depth Anything or isl-org/DPT, or a Hugging Face folder; "
    words += "or what is fetched: a name of denseport models, or hf:ORG/NAME[@REVISION]"
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=path, help=words)
    parser.add_argument("-o", "--output", metavar="BUNDLE", type=path, required=True, help="the folder to make")
    add_values(
        parser,
        ("--config", path, None, "FILE", "mmsegmentation's .py, or a .json of what the file does not say"),
        ("--classes", str, None, "NAMES", "names with commas between, or a file with one a line"),
        ("--palette", path, None, "FILE", "a colour a line: R G B, or #rrggbb"),
        ("--name", str, None, "NAME", "what the model is called; default: as the published one, or the file"),
        ("--preset", str, None, "NAME", "the published model that the file is (see denseport models)"),
        ("--opset", whole(1), 20, "N", "of ONNX, 13 to 20 (default)"),
        ("--ir-version", whole(1), 10, "N", "of ONNX, 7 to 10 (default)"),
    )
    words = "limits of the longer and the shorter side, pixels; default: the checkpoint's, else 2048 512"
    parser.add_argument("--scale", metavar=("LONG", "SHORT"), nargs=2, type=whole(1), help=words)
    parser.add_argument("--no-rewrite", action="store_true", help="keep upstream's order of operations (slower)")
    words = "of two sets of weights in the file, take the averaged (EMA), or the others; default: the plain "
    words += "state_dict, which mmsegmentation tests"
    parser.add_argument("--ema", action=argparse.BooleanOptionalAction, help=words)
    parser.add_argument("--offline", action="store_true", help="fetch nothing: take named weights from the cache")
    parser.add_argument("--force", action="store_true", help="replace an existing bundle, once the new one is whole")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(arguments: argparse.Namespace) -> int:
    from denseport.runtime.system.machine import require

    require(NEEDED, "export,onnxruntime")
    from denseport.export.bundle import export_bundle
    from denseport.export.checkpoint.labels import read_classes, read_palette
    from denseport.export.commands.made import say_made
    from denseport.runtime.system.progress import Terminal
    from denseport.runtime.system.text import count

    bundle = export_bundle(
        arguments.checkpoint,
        arguments.output,
        preset=arguments.preset,
        config=arguments.config,
        classes=None if arguments.classes is None else read_classes(arguments.classes),
        palette=None if arguments.palette is None else read_palette(arguments.palette),
        name=arguments.name,
        scale=tuple(arguments.scale) if arguments.scale else None,
        opset=arguments.opset,
        ir_version=arguments.ir_version,
        rewrite=not arguments.no_rewrite,
        ema=arguments.ema,
        replace=arguments.force,
        offline=arguments.offline,
        progress=Terminal(),
    )
    record = say_made(bundle, as_json=arguments.json)
    if record is None:
        return 0
    for check in record["checks"]:
        batch, _, height, width = check["shape"]
        shape = f"{count(batch, 'image')} of {width} x {height} pixels"
        gives = bundle.manifest.output
        print(f"  ONNX Runtime against torch, {shape}: largest difference of the {gives} {check['max_difference']:.1e}")
    return 0
