"""Put a checkpoint's weights into the network, strictly."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from itertools import product

import torch
from torch import Tensor

from denseport.export.checkpoint.config import look_up
from denseport.export.checkpoint.file import Checkpoint
from denseport.export.checkpoint.model_settings import last_part
from denseport.export.errors import CheckpointError
from denseport.export.models.segmentor import Segmentor, build
from denseport.export.models.spec import ModelSpec

__all__ = ["choose_weights", "load_model"]

MOST = 6  # keys of each kind of misfit that a message lists
# Keys that no prediction uses, and what they are; "": not worth a word. mmsegmentation's EncoderDecoder runs backbone,
# neck and decode_head, so other heads and a classifier of the backbone's pre-training are never run.
UNUSED = {
    r"auxiliary_head\..*": "",
    r"decode_head\.loss_\w+\..*": "buffers of losses",
    r"(backbone\.)?(head|fc|cls_head)\..*": "a classifier, as pre-training leaves it",
    r"(?!decode_head)\w+_head\..*": "heads that are not the decode head",
}
COUNTER = ".num_batches_tracked"  # of a BatchNorm; only training reads it
CONV_SEG = ("decode_head.conv_seg.weight", "decode_head.conv_seg.bias")


def choose_weights(checkpoint: Checkpoint, ema: bool | None = None) -> tuple[dict[str, Tensor], list[str]]:
    """The weights that a prediction uses, and warnings that name what was left out, one a kind.

    Args:
        ema: of weights that were averaged over the training (exponential moving average) and those that were not: the
            averaged; None: the plain ``state_dict``, which mmsegmentation's tools/test.py takes.

    Raises:
        CheckpointError: a choice, and the file has one set, or does not say which of the two is averaged.
    """
    weights, other, averaged, warnings = _two_sets(checkpoint)
    if ema is not None and (not other or averaged is None):
        why = "does not say which of its two sets of weights is averaged" if other else "has one set of weights"
        message = f"{checkpoint.path}: {why}; --ema and --no-ema choose between two"
        raise CheckpointError(message, "Leave the option out: the plain state_dict is taken.")
    if ema is not None:
        weights, warnings = (weights if ema == averaged else weights | other), []
    for pattern, what in UNUSED.items():
        keys = [key for key in weights if re.fullmatch(pattern, key)]
        weights = {key: value for key, value in weights.items() if key not in keys}
        if keys and what:
            more = f" and {len(keys) - 1} more" * (len(keys) > 1)
            warnings.append(f"Left out {what}, which no prediction uses: {keys[0]}{more}.")
    return weights, warnings


def _two_sets(checkpoint: Checkpoint) -> tuple[dict[str, Tensor], dict[str, Tensor], bool | None, list[str]]:
    """The plain weights, those beside them, whether the plain ones are averaged (None: unknown), and a warning.

    mmengine's EMAHook exchanges the sets when it saves: the ``state_dict`` is averaged, ``ema_state_dict`` (with a
    count of steps) is not. mmcv's (0.x) keeps averages as buffers ``ema_NAME`` with underscores for dots; in a run of
    epochs it exchanges them, before or after the file is saved. Neither averages running statistics by default.
    """
    plain = dict(checkpoint.state_dict)
    buffers = {f"ema_{key.replace('.', '_')}": key for key in plain}
    other = {buffers[key]: value for key, value in plain.items() if key in buffers}
    plain = {key: value for key, value in plain.items() if key not in buffers}
    if other:
        paths = (("runner", "type"), ("train_cfg", "type"))
        runs = [str(last_part(look_up(checkpoint.config, *path, default=""))) for path in paths]
        averaged = False if any(run.startswith("IterBased") for run in runs) else None
        beside = "ema_* keys"
    else:
        other = {key: value for key, value in checkpoint.ema_state_dict.items() if key in plain}
        averaged = True if "steps" in checkpoint.ema_state_dict else None
        beside = "ema_state_dict"
    if not other:
        return plain, {}, None, []
    about = {
        True: "are averaged over the training (EMA); --no-ema takes the others",
        False: "are not averaged over the training; --ema takes the averaged",
        None: "may be averaged or not, which the file does not say",
    }[averaged]
    taken = f"The file has two sets of weights, state_dict and {beside}. As by mmsegmentation, the first are taken"
    return plain, other, averaged, [f"{taken}; they {about}."]


def load_model(checkpoint: Checkpoint, spec: ModelSpec, *, rewrite: bool = True, ema: bool | None = None) -> Segmentor:
    """The network of ``spec`` with the checkpoint's weights as float32, in evaluation mode.

    What no prediction uses is left out (`choose_weights`); every other key must fit. Biases of attention that upstream
    was told to do without (``qkv_bias=False``) are zero.

    Raises:
        CheckpointError: missing or unexpected keys, or shapes that differ; the first of each are listed.
    """
    chosen, _ = choose_weights(checkpoint, ema)
    with torch.device("meta"):
        model = build(spec, rewrite=rewrite)
    wanted = model.state_dict()
    weights = _completed(chosen, wanted, together=checkpoint.follows_mmseg)
    if spec.head.threshold is not None:
        _widen(weights, spec.head.threshold)
    problems = _problems(wanted, weights)
    if problems:
        raise CheckpointError(
            f"{checkpoint.path}: its weights do not fit a {spec.architecture} network:\n  " + "\n  ".join(problems),
            "Give the checkpoint as it was trained; a file with keys renamed or cut out cannot be exported.",
        )
    model.load_state_dict(weights, strict=True, assign=True)
    return model.requires_grad_(False)


def _completed(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], *, together: bool) -> dict[str, Tensor]:
    """Weights as float32, with counters of BatchNorms; zero biases of attention where no layer of a part has one.

    Args:
        together: as in mmsegmentation, an attention has both biases or none; elsewhere the last one is always there.
    """
    weights = {key: value.float() if value.is_floating_point() else value for key, value in found.items()}
    first, last = ".attn.attn.in_proj_bias", ".attn.attn.out_proj.bias"
    for part, ends in product(("backbone.", "decode_head."), [(first, last)] if together else [(first,)]):
        own = [key for key in wanted if key.startswith(part) and key.endswith(ends)]
        if not any(key in weights for key in own):
            weights |= {key: torch.zeros(wanted[key].shape) for key in own}
    counters = [key for key in wanted if key.endswith(COUNTER)]
    counted = {
        key: weights[key].to(torch.int64) if key in weights else torch.zeros((), dtype=torch.int64) for key in counters
    }
    return weights | counted


def _widen(weights: dict[str, Tensor], threshold: float) -> None:
    """From the one output z of a binary head to two classes, whose argmax is upstream's ``sigmoid(z) > threshold``.

    The first class has the constant logit log(t / (1 - t)), which z exceeds where sigmoid(z) exceeds t.
    """
    for key, constant in zip(CONV_SEG, (0.0, math.log(threshold / (1 - threshold))), strict=True):
        if (value := weights.get(key)) is not None and value.dim() and value.is_floating_point():
            weights[key] = torch.cat([torch.full_like(value, constant), value])


def _problems(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    """What does not fit, in words."""
    missing = [f"missing {key} {tuple(value.shape)}" for key, value in wanted.items() if key not in found]
    unexpected = [f"unexpected {key} {tuple(value.shape)}" for key, value in found.items() if key not in wanted]
    different = [
        f"{key} is {tuple(value.shape)} {value.dtype}, expected {tuple(wanted[key].shape)} {wanted[key].dtype}"
        for key, value in found.items()
        if key in wanted and (value.shape != wanted[key].shape or value.dtype != wanted[key].dtype)
    ]
    problems = []
    for kind in (missing, unexpected, different):
        problems += kind[:MOST]
        if len(kind) > MOST:
            problems.append(f"… and {len(kind) - MOST} more like it")
    return problems
