"""One image to its mask: mmsegmentation's own inference and Denseport's artifacts, in turns in one run.

    python scripts/bench/mmseg.py CHECKPOINT CONFIG BUNDLE IMAGE [--artifacts NAME …] [--rounds 6]

CONFIG is a file, or a name among those that mmsegmentation 1.2.2 brings (dpt/dpt_vit-b16_8xb2-160k_ade20k-512x512.py).
BUNDLE was exported from CHECKPOINT. mmsegmentation is installed in an environment of its own (``--environment``; torch
is the big part), with mmcv-lite: the compiled operators of mmcv, of which DPT and UPerNet need none, raise when called.
Each contender is open in a process of its own and is given the decoded image; after a pause, in which idle threads
come to rest, one of them computes. Prints the medians, the ratios over the rounds, the peak memory of each process, and
the share of the pixels that get mmsegmentation's class.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
from processes import Program, environment

from denseport.runtime.system.cpus import usable_cpus

PACKAGES = ("torch==2.13.0", "mmsegmentation==1.2.2", "mmcv-lite==2.1.0", "mmengine==0.10.7", "ftfy", "regex")
PAUSE = 0.3  # seconds
ANSWER = """
def peak():  # of this program alone: ru_maxrss begins at the parent's
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024
def answer(infer):
    infer()
    for line in sys.stdin:
        start = time.perf_counter()
        mask = infer()
        seconds = time.perf_counter() - start
        if line.strip() != "time":
            np.save(line.strip(), mask)
        print(seconds, peak(), file=out, flush=True)
out, sys.stdout = sys.stdout, sys.stderr
"""
UPSTREAM = (
    """
import sys, time, types, cv2, numpy as np, torch
class Absent(types.ModuleType):
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        def operator(*_, **__):
            raise NotImplementedError(f"mmcv-lite has no {name}")
        return operator
sys.modules["mmcv._ext"] = Absent("mmcv._ext")
from pathlib import Path
import mmseg
from mmengine import Config
from mmseg.apis import inference_model, init_model
checkpoint, config, image, threads = sys.argv[1:5]
if not Path(config).is_file():
    config = str(Path(mmseg.__file__).parent / ".mim/configs" / config)
settings = Config.fromfile(config)
weights = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
# Released weights have this bias, which 1.2 passes over unless it is told to build it.
settings.model.backbone.patch_bias = "backbone.patch_embed.projection.bias" in weights
torch.set_num_threads(int(threads))
"""
    + ANSWER
    + """
model, pixels = init_model(settings, checkpoint, device="cpu"), cv2.imread(image)
answer(lambda: inference_model(model, pixels).pred_sem_seg.data[0].numpy())
"""
)
OURS = (
    """
import sys, time, numpy as np
from denseport.runtime import Segmenter
bundle, name, image, threads = sys.argv[1:5]
"""
    + ANSWER
    + """
with Segmenter(bundle, artifact=name, threads=int(threads)) as segment:
    pixels = segment.read(image)
    answer(lambda: segment(pixels).mask)
"""
)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("config", help="file, or name in mmsegmentation's configs")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("image", type=Path)
    parser.add_argument("--artifacts", nargs="+", default=["model.onnx"], metavar="NAME")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--threads", type=int, default=usable_cpus())
    parser.add_argument("--environment", type=Path, default=Path("out/bench/mmseg-env"))
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    python, more = environment(arguments.environment, PACKAGES), (str(arguments.image), str(arguments.threads))
    programs = {
        "mmsegmentation": Program([python, "-c", UPSTREAM, str(arguments.checkpoint), arguments.config, *more]),
        **{
            name: Program([sys.executable, "-c", OURS, str(arguments.bundle), name, *more])
            for name in arguments.artifacts
        },
    }
    rows = compare(programs, arguments.rounds)
    for program in programs.values():
        program.close()
    if arguments.json:
        print(json.dumps(rows, indent=1))
        return 0
    print(f"{'':20} {'seconds':>8} {'times':>6} {'peak MiB':>9} {'same class':>11}")
    for name, row in rows.items():
        seconds, times, memory, same = row.values()
        print(f"{name:20} {seconds:8.3f} {times:6.2f} {memory:9.0f} {100 * same:9.3f} %")
    return 0


def compare(programs: dict[str, Program], rounds: int) -> dict[str, dict[str, float]]:
    """Median seconds, times as fast as the first, largest memory, and share of its pixels with the first's class."""
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    memory, masks = dict.fromkeys(programs, 0.0), {}
    with tempfile.TemporaryDirectory() as folder:
        for name, program in programs.items():
            file = Path(folder, f"{name}.npy")
            program.ask(str(file))
            masks[name] = np.load(file)
    for number in range(rounds):
        for name in list(programs)[:: 1 if number % 2 == 0 else -1]:
            time.sleep(PAUSE)
            taken, memory[name] = programs[name].ask("time")
            seconds[name].append(taken)
    first = next(iter(programs))
    return {
        name: {
            "seconds": median(taken),
            "times": median(a / b for a, b in zip(seconds[first], taken, strict=True)),
            "peak_MiB": memory[name],
            "agreement": float((masks[name] == masks[first]).mean()),
        }
        for name, taken in seconds.items()
    }


if __name__ == "__main__":
    sys.exit(main())
