"""A row of docs/verification.md: a full-size network with random weights, exported, typed, calibrated and built.

    python scripts/family.py segmenter_vit-b_mask_160k [--work DIR] [--steps export compare]
    python scripts/family.py FOLDER        # a Hugging Face folder, or another checkpoint

Every step is a process of its own, whose time and peak memory (with those of its children) are printed beside what it
found. Images are the photographs in tests/assets. Random weights keep no class under any change, so that budgets are
switched off and agreements say little of trained networks. What is in DIR already is not made again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from denseport.export.models.presets import DEPTH_PRESETS

BENCH = Path(__file__).parent / "bench"
PHOTOS = Path(__file__).parents[1] / "tests/assets/street/images"
DENSEPORT = [sys.executable, "-m", "denseport.runtime.cli.main"]
# The shorter and the longer side of what torch and ONNX Runtime are compared on; the first alone of fixed engines.
SIDES = {"segmentation": (512, 688), "depth": (518, 686)}
COMPARE = """
import json, sys
from pathlib import Path
from denseport.export.checkpoint.file import read_checkpoint
from denseport.export.checkpoint.recognise import recognise
from denseport.export.checkpoint.weights import load_model
from denseport.export.entrance.torch_to_onnx import check_export
from denseport.export.models.presets import published
checkpoint, preset = read_checkpoint(Path(sys.argv[1])), published().get(sys.argv[3])
model = load_model(checkpoint, recognise(checkpoint, preset).spec)
side, long = map(int, sys.argv[4:])
shapes = [(1, 3, side, side), (1, 3, side, long), (2, 3, side, side)]
checks = check_export(model, Path(sys.argv[2]), shapes)
print(json.dumps({"logits": [f"{c.max_difference:.1e}" for c in checks], "same": min(c.agreement for c in checks)}))
"""


def measured(*command: str | Path) -> dict[str, Any]:
    """What a command printed as JSON (as a list of words where it is none), with its cost."""
    start = time.perf_counter()
    process = subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    text = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    cost = {"seconds": round(time.perf_counter() - start), "peak_GB": round(usage.ru_maxrss * 1024 / 1e9, 2)}
    code = os.waitstatus_to_exitcode(status)
    try:
        found = json.loads(text)
    except ValueError:
        found = {"printed": text.split()[:20]}
    return {"code": code, **cost, "found": found}


def steps(given: str, work: Path) -> dict[str, list[str | Path]]:
    """The commands of a row, by name."""
    bundle = work / "bundle"
    checkpoint, preset = (work / "random.pth", given) if not Path(given).exists() else (Path(given), "")
    side, long = SIDES["depth" if preset in DEPTH_PRESETS else "segmentation"]
    export = [*DENSEPORT, "export", checkpoint, "-o", bundle, "--json"]
    if preset:
        export = [sys.executable, BENCH / "random_bundle.py", bundle, "--preset", preset, "--checkpoint", checkpoint]
    photos = ["--images", PHOTOS, "--json"]
    engine = [sys.executable, BENCH / "engine.py", preset or Path(given).name]
    return {
        "export": export,
        "compare": [sys.executable, "-c", COMPARE, checkpoint, bundle / "model.onnx", preset, str(side), str(long)],
        "fp16": [*DENSEPORT, "build", bundle, "--limit", "2", *photos],
        "int8": [*DENSEPORT, "calibrate", bundle, "--agreement", "0", "--effort", "low", *photos],
        "rtx-fp16": [*engine, "--onnx", bundle / "fp16.onnx", "--profile", "reference"],
        "rtx-int8": [*engine, "--onnx", bundle / "int8.onnx", "--profile", f"fixed:{side}x{side}"],
    }


def cells(results: dict[str, dict[str, Any]]) -> list[str]:
    """The cells of the row; a step that was not run, or failed, says so."""
    row = []
    for name, words in WORDS.items():
        result = results.get(name)
        if result is None or result["code"] != 0:
            row.append("not run" if result is None else f"failed ({result['code']})")
        else:
            row.append(f"{words(result['found'])}{result['seconds']} s, {result['peak_GB']} GB")
    return row


def _int8(found: dict[str, Any]) -> str:
    return f"{found['share']:.0%}, {found['verdicts']['int8.onnx']['agreement']:.2%}; "


WORDS: dict[str, Callable[[dict[str, Any]], str]] = {
    "export": lambda _: "",
    "compare": lambda found: f"{', '.join(found['logits'])}; ",
    "fp16": lambda found: f"{found['audit']['agreement']:.2%}; ",
    "int8": _int8,
    "rtx-fp16": lambda found: f"{found['engine_MB']} MB; ",
    "rtx-int8": lambda found: f"{found['engine_MB']} MB; ",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", help="a name of denseport models, or a checkpoint")
    parser.add_argument("--work", type=Path, metavar="DIR", help="keep all there; default: a folder that is removed")
    parser.add_argument("--steps", nargs="+", metavar="STEP", help="only these: " + ", ".join(steps("", Path())))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        work = arguments.work or Path(name)
        work.mkdir(exist_ok=True)
        known = work / "results.json"
        results = json.loads(known.read_text()) if known.exists() else {}
        for step, command in steps(arguments.network, work).items():
            wanted = arguments.steps is None or step in arguments.steps
            if wanted and results.get(step, {}).get("code") != 0:
                print(f"== {step}", file=sys.stderr)
                results[step] = measured(*command)
                known.write_text(json.dumps(results, indent=1))
        print(f"| {arguments.network} | {' | '.join(cells(results))} |")
    return max(result["code"] for result in results.values())


if __name__ == "__main__":
    sys.exit(main())
