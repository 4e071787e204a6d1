"""Weights by name: the released file of a published model, or a model of the Hugging Face hub; fetched once."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from denseport.export.checkpoint.huggingface import hub
from denseport.export.entrance.download import download, has_hash
from denseport.export.errors import CheckpointError
from denseport.export.models.presets import DepthPreset, Preset, published
from denseport.runtime.errors import ServerError
from denseport.runtime.system.files import cache_folder
from denseport.runtime.system.progress import Progress, Silent

__all__ = ["Weights", "fetch_weights", "similar_presets"]

FILES = (".pth", ".pt", ".bin", ".safetensors")  # ends of names that are meant for files


@dataclass(frozen=True)
class Weights:
    """Where weights are, and what is known of them besides what they hold."""

    path: Path  # a file or a folder
    address: str | None = None  # where they were fetched; None: they were here
    name: str | None = None  # of the model, where the path does not tell it
    licence: str | None = None  # as the hub says it; that of a published model is in its preset


def fetch_weights(name: Path | str, *, offline: bool = False, progress: Progress | None = None) -> Weights:
    """The weights that a name means.

    A path is taken as it is. The released file of a published model (``dpt_vit-b16_160k``) is fetched to Denseport's
    cache, and its hash is compared before anything is read. ``hf:ORG/NAME`` or ``hf:ORG/NAME@REVISION`` is fetched by
    the package ``huggingface_hub`` to its own cache.

    Args:
        offline: take what is in the cache, and ask no server.

    Raises:
        CheckpointError: no such file and no such name; a file with another hash than was published.
        ServerError: a server that cannot be reached or does not have it; nothing in the cache, with ``offline``.
        MachineError: ``hf:`` without the package ``huggingface_hub``.
        OutputError: the cache cannot be written.
    """
    progress, text = progress or Silent(), str(name)
    if os.path.lexists(text):
        return Weights(Path(name))
    if text.startswith("hf:"):
        found = hub.fetch_folder(text, offline=offline, progress=progress)
        return Weights(found.path, found.address, found.name, found.licence)
    if (preset := published().get(text)) is not None:
        return Weights(_released(preset, offline, progress), preset.weights)
    if "/" not in text and not text.endswith(FILES):
        raise CheckpointError(f"{text}: no such file, and no published model has this name", similar_presets(text))
    if re.fullmatch(r"[\w.-]+/[\w.-]+", text) and not text.endswith(FILES) and not Path(text).parent.exists():
        raise CheckpointError(f"{text}: no such file", f"A model of the Hugging Face hub is written hf:{text}.")
    return Weights(Path(name))  # whose reader says what is wrong with it


def similar_presets(name: str) -> str:
    """A remedy for a name that no published model has: the names that are most like it."""
    names = {each: preset.name for preset in published().values() for each in preset.names}
    near = dict.fromkeys(names[each] for each in get_close_matches(name, names, n=6))
    meant = f"Is it {' or '.join([*near][:3])}? " if near else ""
    return f"{meant}`denseport models` lists the names."


def _released(preset: Preset | DepthPreset, offline: bool, progress: Progress) -> Path:
    """The released file in the cache."""
    otherwise = f"Fetch {preset.weights} yourself, and give the file instead of the name."
    file = cache_folder("weights", otherwise) / preset.file
    by_hand = f"Fetch {preset.weights} on a machine that reaches it, and put it at {file}, or give the file itself."
    if has_hash(file, preset.sha256_start):
        return file
    lack = f"{file} was altered since it was fetched" if file.exists() else f"the weights of {preset.name} are not here"
    if offline:
        raise ServerError(f"{lack}, and --offline asks no server", by_hand)
    progress.say(f"{lack}: fetching {preset.weights}")
    try:
        download(preset.weights, file, preset.sha256_start, progress)
    except ServerError as err:
        raise ServerError(err.message, by_hand) from err
    return file
