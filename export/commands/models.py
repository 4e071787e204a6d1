"""``denseport models``: the published models."""

from __future__ import annotations

import argparse
import dataclasses
import json

HELP = "list the published models and their results"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    from denseport.export.models.presets import PRESETS

    if arguments.json:
        rows = []
        for preset in PRESETS.values():
            row = {**dataclasses.asdict(preset), "method": preset.spec.architecture}
            del row["spec"], row["sha256_start"]
            rows.append(row)
        print(json.dumps(rows, indent=1))
        return 0
    width = max(len(name) for name in PRESETS)
    print(f"{'preset':{width}}  {'method':8} {'backbone':18} {'iterations':>10}   mIoU  ms+flip    fps     GB")
    for p in PRESETS.values():
        figures = f"{p.mIoU:6.2f} {p.mIoU_ms_flip:8.2f} {p.fps:6.2f} {p.memory_gb:6.2f}"
        print(f"{p.name:{width}}  {p.spec.architecture:8} {p.backbone:18} {p.schedule:>10,} {figures}")
    print(
        "\nADE20K validation, 150 classes, whole images at keep-ratio 2048 x 512. mIoU, fps (one V100) and GB (memory\n"
        "while training) are mmsegmentation's figures (configs/dpt and configs/vit)."
    )
    return 0
