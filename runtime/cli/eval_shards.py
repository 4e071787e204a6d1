"""How ``denseport eval`` spreads its work: one process, a shard of it, shards merged, or Ray."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from denseport.runtime.cli.arguments import path
from denseport.runtime.system.text import count

if TYPE_CHECKING:
    from denseport.runtime.evaluation.dataset import Dataset
    from denseport.runtime.evaluation.evaluate import Evaluation
    from denseport.runtime.segmenter import Segmenter

__all__ = ["Work", "add_arguments", "check"]


def add_arguments(group: argparse._ArgumentGroup) -> None:
    way = group.add_mutually_exclusive_group()
    way.add_argument("--shard", type=_shard, metavar="I/N", help="only every Nth image from the Ith, kept in --state")
    way.add_argument("--merge", nargs="+", type=path, metavar="STATE", help="measure nothing: add up shards' states")
    way.add_argument("--ray", metavar="ADDRESS", help="spread over a Ray cluster, or 'local' for one on this machine")


def check(arguments: argparse.Namespace) -> None:
    """Refuse what cannot go together.

    Raises:
        OutputError: a state that cannot be written.
        InputError: a state that would be lost; a shard without a state, or that would judge.
    """
    from denseport.runtime.errors import InputError

    if arguments.merge is None:
        _refuse_state(arguments)
    if arguments.shard is None:
        return
    if arguments.state is None:
        raise InputError("--shard keeps its counts for the merge", "Name their file with --state FILE.")
    for name in ("report", "explain", "record"):
        if getattr(arguments, name):
            raise InputError(f"--{name} needs all images, not a shard", f"Give --{name} with --merge.")


def _refuse_state(arguments: argparse.Namespace) -> None:
    """A file that is there may be a shard's, or anything: the run would replace it, and remove it at its end."""
    from denseport.runtime.errors import InputError
    from denseport.runtime.system.files import refuse_unwritable, writing

    state = arguments.state
    if state is None:
        return
    refuse_unwritable(state.parent)
    with writing(state):  # of a name that is too long
        if not state.exists():
            return
    if not state.is_file():
        raise InputError(f"--state {state}: is no file", "Name a file, or one that is not there yet.")
    if not arguments.resume:
        raise InputError(f"--state {state}: exists", "Go on with it (--resume), or name another file.")


@dataclass(frozen=True)
class Work:
    """One measurement, whichever way it is done."""

    dataset: Dataset
    segmenter: Segmenter
    fp32: Segmenter | None
    key: str
    state_file: Path
    progress: Callable[[int, float], None]

    def measure(self, arguments: argparse.Namespace) -> tuple[Evaluation, str]:
        """What was measured of the whole data set, and on which session, in words."""
        from denseport.runtime.evaluation.evaluate import Effort, evaluate, evaluation_of
        from denseport.runtime.evaluation.state import merge_states

        if arguments.merge:
            state = merge_states(arguments.merge, self.key)
            return evaluation_of(self.dataset, state, Effort()), f"{count(len(arguments.merge), 'state')} merged"
        if arguments.ray is not None:
            from denseport.runtime.evaluation.shards import evaluate_on_ray

            return evaluate_on_ray(
                arguments.ray,
                self.dataset,
                self.segmenter,
                fp32=self.fp32,
                threads=arguments.threads,
                workers=arguments.workers,
                state_file=self.state_file,
                resume=arguments.resume,
                key=self.key,
                progress=self.progress,
            )
        evaluation = evaluate(
            self.dataset,
            self.segmenter,
            fp32=self.fp32,
            workers=arguments.workers,
            state_file=self.state_file,
            resume=arguments.resume,
            key=self.key,
            progress=self.progress,
        )
        return evaluation, self.segmenter.description

    def shard(self, arguments: argparse.Namespace) -> int:
        """Measure every Nth image and keep the counts; nothing is judged."""
        from denseport.runtime.errors import InputError
        from denseport.runtime.evaluation.evaluate import measure
        from denseport.runtime.evaluation.state import open_state, save_state

        first, step = arguments.shard
        images, classes = len(self.dataset), len(self.segmenter.manifest.classes)
        indices = range(first - 1, images, step)
        if not indices:
            raise InputError(
                f"--shard {first}/{step}: the data set has only {count(images, 'image')}", "Make fewer shards."
            )
        state = open_state(
            self.state_file, self.key, images, classes, with_fp32=self.fp32 is not None, resume=arguments.resume
        )
        if state.done.sum() > state.done[indices].sum():
            raise InputError(f"{self.state_file}: holds another shard", "Name another file with --state.")
        measure(
            self.dataset,
            self.segmenter,
            state,
            images=indices,
            fp32=self.fp32,
            workers=arguments.workers,
            state_file=self.state_file,
            progress=self.progress,
        )
        save_state(self.state_file, state)
        result = {"shard": f"{first}/{step}", "images": len(indices), "of": images, "state": str(self.state_file)}
        text = "shard {shard}: {images} of {of} images, kept in {state}; add the shards up with --merge"
        print(json.dumps(result, indent=1) if arguments.json else text.format(**result))
        return 0


def _shard(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
    if match and 1 <= int(match[1]) <= int(match[2]):
        return int(match[1]), int(match[2])
    raise argparse.ArgumentTypeError(f"{text!r} is not I/N with I from 1 to N, such as 2/8")
