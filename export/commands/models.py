"""``denseport models``: the published models."""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from denseport.export.models.presets import Preset

HELP = "list the published models and their results"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--family", metavar="NAME", help="only these, such as segformer, each with its address")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    from denseport.export.models.presets import PRESETS

    presets = list(PRESETS.values())
    if arguments.family is not None:
        presets = _of_family(presets, arguments.family)
    if arguments.json:
        print(json.dumps([_row(preset) for preset in presets], indent=1))
    else:
        _print(presets, addresses=arguments.family is not None)
    return 0


def _of_family(presets: list[Preset], family: str) -> list[Preset]:
    from denseport.runtime.errors import InputError

    found = [preset for preset in presets if preset.spec.architecture.lower() == family.lower()]
    if not found:
        families = ", ".join(dict.fromkeys(preset.spec.architecture for preset in presets))
        raise InputError(f"--family {family}: no published model is of it", f"Families are {families}.")
    return found


def _row(preset: Preset) -> dict[str, object]:
    row = {**dataclasses.asdict(preset), "method": preset.spec.architecture}
    del row["spec"], row["file"]
    return {**row, "weights": preset.weights, "protocol": preset.protocol}


def _print(presets: list[Preset], *, addresses: bool) -> None:
    from denseport.export.models.presets import PERMISSIVE

    width = max(len(preset.name) for preset in presets)
    head = f"{'method':9} {'backbone':17} {'data':10} {'test':18} {'iterations':>10}"
    print(f"{'preset':{width}}  {head}   mIoU  ms+flip    fps     GB")
    notes: list[str] = []
    for p in presets:
        mark = ""
        if p.licence != PERMISSIVE:
            notes = [*dict.fromkeys([*notes, p.licence])]
            mark = " " + "*" * (notes.index(p.licence) + 1)
        test = f"{p.scale[0]}x{p.scale[1]}" + ("" if p.slide is None else f" {p.slide[0]}/{p.slide[1]}")
        about = f"{p.spec.architecture:9} {p.backbone:17} {p.dataset:10} {test:18} {p.schedule:>10,}"
        fps = "-" if p.fps is None else f"{p.fps:.2f}"
        print(f"{p.name:{width}}  {about} {p.mIoU:6.2f} {p.mIoU_ms_flip:8.2f} {fps:>6} {p.memory_gb:6.2f}{mark}")
        if addresses:
            print(f"  {p.weights}")
    print(
        "\nValidation images; ADE20K has 150 classes, Cityscapes 19. test: limits of the longer and the shorter side,\n"
        "then side and stride of sliding windows; without them whole images. mIoU, fps (one V100) and GB (memory\n"
        "while training) are mmsegmentation's figures.\n"
        f"Licence of the weights: {PERMISSIVE}{' unless marked.' if notes else '.'}"
    )
    for number, licence in enumerate(notes, start=1):
        print(f"{'*' * number} {licence}")
