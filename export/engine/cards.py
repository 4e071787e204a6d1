"""NVIDIA's GPUs by the names of their cards, for those who know the card and not its compute capability."""

from __future__ import annotations

import re
from collections.abc import Iterable

from denseport.runtime.errors import InputError

__all__ = ["CARDS", "architectures"]

# Source: NVIDIA's list "CUDA GPU Compute Capability". A Ti, a SUPER and a laptop's GPU are what the plain name says.
CARDS: dict[str, tuple[str, ...]] = {
    "sm_75": ("t4", "rtx2060", "rtx2070", "rtx2080", "titanrtx", "quadrortx8000"),
    "sm_80": ("a100", "a30"),
    "sm_86": ("a10", "a16", "a2", "a40", "rtx3050", "rtx3060", "rtx3070", "rtx3080", "rtx3090", "rtxa4000", "rtxa6000"),
    "sm_87": ("orin", "jetsonorin"),
    "sm_89": ("l4", "l40", "l40s", "rtx4060", "rtx4070", "rtx4080", "rtx4090", "rtx6000ada"),
    "sm_90": ("gh200", "h100", "h200"),
    "sm_100": ("b200", "gb200"),
    "sm_103": ("b300", "gb300"),
    "sm_110": ("jetsonthor", "thor"),
    "sm_120": ("rtx5060", "rtx5070", "rtx5080", "rtx5090", "rtxpro6000"),
    "sm_121": ("dgxspark", "gb10"),
}
_IGNORED = re.compile(r"nvidia|geforce|tesla|generation|sxm\d*|pcie|nvl|hbm\d?e?|\d+gb")  # words of a name
_VARIANT = re.compile(r"(?<=\d)(ti|super|laptop|gpu)+$")


def architectures(targets: Iterable[str]) -> tuple[str, ...]:
    """Compute capabilities ("sm_89") of targets, each once, in their order.

    Args:
        targets: compute capabilities as they are, or cards, such as "rtx4090", also as nvidia-smi prints them:
            "NVIDIA A100-SXM4-80GB".

    Raises:
        InputError: a card that is not known; the message lists those that are.
    """
    return tuple(dict.fromkeys(_architecture(target) for target in targets))


def _architecture(target: str) -> str:
    if re.fullmatch(r"sm_\d+[a-z]?", target):
        return target  # the builder knows which it has
    words = re.split(r"[\s_-]+", target.lower())
    card = _VARIANT.sub("", "".join(word for word in words if not _IGNORED.fullmatch(word)))
    for architecture, names in CARDS.items():
        if card in names:
            return architecture
    known = ", ".join(sorted(name for names in CARDS.values() for name in names))
    raise InputError(
        f"no GPU {target!r} is known",
        f"Give its compute capability (nvidia-smi --query-gpu=compute_cap --format=csv), say sm_89, or one of {known}.",
    )
