"""A bundle of a published model with random weights: it takes as long as the trained one, and its masks mean nothing.

    python scripts/bench/random_bundle.py BUNDLE [--preset dpt_vit-b16_160k] [--checkpoint FILE.pth]

Used by the bench_*.py, whose ``--preset`` it is.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

EXPORT = """
import sys
from pathlib import Path
import torch
from denseport.export.bundle import export_bundle
from denseport.export.models.segmentor import build
from denseport.export.models.presets import PRESETS
checkpoint, bundle, preset = Path(sys.argv[1]), Path(sys.argv[2]), PRESETS[sys.argv[3]]
torch.manual_seed(0)
torch.save({"state_dict": build(preset.spec).state_dict()}, checkpoint)
export_bundle(checkpoint, bundle, preset=preset)
"""


def random_bundle(preset: str, bundle: Path, checkpoint: Path | None = None) -> Path:
    """Export it to ``bundle``, in a process of its own: torch and its copies of the weights are in nobody's figures.

    Args:
        checkpoint: where the weights are kept; default: nowhere.
    """
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = checkpoint or Path(folder) / "random.pth"
        subprocess.run([sys.executable, "-c", EXPORT, checkpoint, bundle, preset], check=True)
    return bundle


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, help="folder to make")
    parser.add_argument("--preset", default="dpt_vit-b16_160k", help="denseport models lists them")
    parser.add_argument("--checkpoint", type=Path, metavar="FILE.pth", help="keep the weights there")
    arguments = parser.parse_args()
    random_bundle(arguments.preset, arguments.bundle, arguments.checkpoint)


if __name__ == "__main__":
    main()
