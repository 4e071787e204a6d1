"""``denseport models``: the published models."""

from __future__ import annotations

import argparse
import json

HELP = "list the published models and their results"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    from denseport.export.models.presets import PRESETS

    if arguments.json:
        rows = [
            {
                "name": p.name,
                "config": p.config,
                "method": p.method,
                "backbone": p.backbone,
                "schedule": p.schedule,
                "mIoU": p.miou,
                "mIoU_ms_flip": p.miou_ms_flip,
                "fps": p.fps,
                "memory_gb": p.memory_gb,
            }
            for p in PRESETS.values()
        ]
        print(json.dumps(rows, indent=1))
        return 0
    width = max(len(name) for name in PRESETS)
    print(
        f"{'preset':{width}}  {'method':8} {'backbone':18} {'iterations':>10} "
        f"{'mIoU':>6} {'ms+flip':>8} {'fps':>6} {'GB':>6}"
    )
    for p in PRESETS.values():
        figures = " ".join(
            f"{'-' if value is None else format(value, '.2f'):>{columns}}"
            for value, columns in ((p.miou, 6), (p.miou_ms_flip, 8), (p.fps, 6), (p.memory_gb, 6))
        )
        print(f"{p.name:{width}}  {p.method:8} {p.backbone:18} {p.schedule:>10,} {figures}")
    print(
        "\nADE20K validation, 150 classes, whole images at keep-ratio (2048, 512); fps on a V100 and memory while\n"
        "training as mmsegmentation published them (configs/dpt and configs/vit)."
    )
    return 0
