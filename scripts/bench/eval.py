"""Two figures of `denseport eval`: its throughput against the bare session's, and its memory.

    python scripts/bench/eval.py BUNDLE --data ROOT [--limit N] [--rounds 3] [--json]
    python scripts/bench/eval.py --preset dpt_vit-b16_160k --data ROOT --limit 40

Throughput: the same images, pre-processed beforehand, through the session alone (the network and nothing else), and
through the whole evaluation (decode, pre-process, network, post-process, count), in interleaved rounds. Memory: peak of
the process after a quarter of the images and after all of them. ``--preset`` makes a bundle of a published model with
random weights; its accuracy means nothing.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from random_bundle import random_bundle

from denseport.runtime.evaluation.dataset import Dataset, open_dataset
from denseport.runtime.evaluation.measure import measure_dataset
from denseport.runtime.media.images import read_image
from denseport.runtime.pipeline.preprocess import fit_image, normalise
from denseport.runtime.segmenter import Segmenter


def peak_gib() -> float:
    """Largest resident size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def bare(segmenter: Segmenter, dataset: Dataset) -> float:
    """Seconds of the session alone over the images; pre-processing is not counted."""
    seconds = 0.0
    preprocess = segmenter.protocol.preprocess
    for sample in dataset.samples:
        image = read_image(sample.image)
        tensor = normalise(fit_image(image, preprocess), preprocess)
        start = time.perf_counter()
        segmenter.session.run(tensor)
        seconds += time.perf_counter() - start
    return seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", nargs="?", type=Path)
    parser.add_argument("--preset")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if not (arguments.bundle or arguments.preset):
        parser.error("give BUNDLE or --preset")
    with tempfile.TemporaryDirectory() as folder:
        bundle = arguments.bundle or random_bundle(arguments.preset, Path(folder) / "bundle")
        dataset = open_dataset(arguments.data)
        dataset = replace(dataset, samples=dataset.samples[: arguments.limit])
        quarter = replace(dataset, samples=dataset.samples[: max(1, len(dataset) // 4)])
        segmenter = Segmenter(bundle)
        measure_dataset(quarter, segmenter)
        peaks = [peak_gib()]
        alone, whole = [], []
        for _ in range(arguments.rounds):
            alone.append(bare(segmenter, dataset))
            start = time.perf_counter()
            measure_dataset(dataset, segmenter)
            whole.append(time.perf_counter() - start)
        peaks.append(peak_gib())
    ratios = [a / w for a, w in zip(alone, whole, strict=True)]
    result = {
        "images": len(dataset),
        "bare_images_per_second": len(dataset) / statistics.median(alone),
        "eval_images_per_second": len(dataset) / statistics.median(whole),
        "ratio_median": statistics.median(ratios),
        "ratios": ratios,
        "peak_gib_quarter": peaks[0],
        "peak_gib_all": peaks[1],
        "machine": platform.processor() or platform.machine(),
        "session": segmenter.description,
    }
    if arguments.json:
        print(json.dumps(result, indent=1))
        return 0
    print(f"{result['session']}; {len(dataset)} images, {arguments.rounds} interleaved rounds, medians")
    print(f"bare session {result['bare_images_per_second']:.2f} images/s, eval {result['eval_images_per_second']:.2f}")
    print(f"eval / bare = {result['ratio_median']:.3f}  (rounds: {', '.join(f'{r:.3f}' for r in ratios)})")
    print(f"peak memory {peaks[0]:.2f} GiB after {len(quarter)} images, {peaks[1]:.2f} GiB after all rounds")
    return 0


if __name__ == "__main__":
    sys.exit(main())
