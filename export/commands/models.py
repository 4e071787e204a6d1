"""``denseport models``: the published models."""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from denseport.export.models.presets import DepthPreset, Preset

HELP = "list the published models and their results"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--family", metavar="NAME", help="only these, such as segformer, each with its address")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    from denseport.export.models.presets import DepthPreset, Preset, published

    presets = list(published().values())
    if arguments.family is not None:
        presets = _of_family(presets, arguments.family)
    if arguments.json:
        print(json.dumps([_row(preset) for preset in presets], indent=1))
        return 0
    classes = [preset for preset in presets if isinstance(preset, Preset)]
    depths = [preset for preset in presets if isinstance(preset, DepthPreset)]
    if classes:
        _print(classes, addresses=arguments.family is not None)
    if classes and depths:
        print()
    if depths:
        _print_depth(depths, addresses=arguments.family is not None)
    return 0


def _of_family(presets: list[Preset | DepthPreset], family: str) -> list[Preset | DepthPreset]:
    from denseport.runtime.errors import InputError

    found = [preset for preset in presets if preset.spec.architecture.lower() == family.lower()]
    if not found:
        families = ", ".join(dict.fromkeys(preset.spec.architecture for preset in presets))
        raise InputError(f"--family {family}: no published model is of it", f"Families are {families}.")
    return found


def _row(preset: Preset | DepthPreset) -> dict[str, object]:
    row = {"name": preset.name, **dataclasses.asdict(preset), "method": preset.spec.architecture}
    del row["spec"], row["file"]
    return {**row, "weights": preset.weights, "protocol": preset.protocol, "task": preset.spec.task}


class _Licences:
    """Marks for what is not under the usual licence, and their notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def mark(self, licence: str) -> str:
        from denseport.export.models.presets import PERMISSIVE

        if licence == PERMISSIVE:
            return ""
        self.notes = [*dict.fromkeys([*self.notes, licence])]
        return " " + "*" * (self.notes.index(licence) + 1)

    def print(self) -> None:
        from denseport.export.models.presets import PERMISSIVE

        print(f"Licence of the weights: {PERMISSIVE}{' unless marked.' if self.notes else '.'}")
        for number, licence in enumerate(self.notes, start=1):
            print(f"{'*' * number} {licence}")


def _print_depth(presets: list[DepthPreset], *, addresses: bool) -> None:
    width, licences = max(len(preset.name) for preset in presets), _Licences()
    print(f"{'depth preset':{width}}  {'method':14} {'backbone':8} {'gives':14}  NYUv2 AbsRel d1   KITTI AbsRel d1")
    for p in presets:
        limit = getattr(p.spec.head, "max_depth", None)
        gives = "relative depth" if limit is None else f"metres to {limit:g}"
        figures = ["-" if pair is None else f"{pair[0]:.3f} {pair[1]:.3f}" for pair in (p.nyu, p.kitti)]
        about = f"{p.spec.architecture:14} {p.backbone:8} {gives:14}  {figures[0]:>15}   {figures[1]:>15}"
        print(f"{p.name:{width}}  {about}{licences.mark(p.licence)}")
        if addresses:
            print(f"  {p.weights}")
    print(
        "\nAbsRel and d1 are zero-shot, after a fit of scale and shift to each image (Depth Anything V2, table 2);\n"
        "none was published of the others on these data sets."
    )
    licences.print()


def _print(presets: list[Preset], *, addresses: bool) -> None:
    width, licences = max(len(preset.name) for preset in presets), _Licences()
    head = f"{'method':9} {'backbone':17} {'data':10} {'test':18} {'iterations':>10}"
    print(f"{'preset':{width}}  {head}   mIoU  ms+flip    fps     GB")
    for p in presets:
        test = f"{p.scale[0]}x{p.scale[1]}" + ("" if p.slide is None else f" {p.slide[0]}/{p.slide[1]}")
        about = f"{p.spec.architecture:9} {p.backbone:17} {p.dataset:10} {test:18} {p.schedule:>10,}"
        fps = "-" if p.fps is None else f"{p.fps:.2f}"
        figures = f"{p.mIoU:6.2f} {p.mIoU_ms_flip:8.2f} {fps:>6} {p.memory_gb:6.2f}"
        print(f"{p.name:{width}}  {about} {figures}{licences.mark(p.licence)}")
        if addresses:
            print(f"  {p.weights}")
    print(
        "\nValidation images; ADE20K has 150 classes, Cityscapes 19. test: limits of the longer and the shorter side,\n"
        "then side and stride of sliding windows; without them whole images. mIoU, fps (one V100) and GB (memory\n"
        "while training) are mmsegmentation's figures."
    )
    licences.print()
