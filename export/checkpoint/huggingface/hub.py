"""A folder of the Hugging Face hub, fetched by the package ``huggingface_hub`` to its own cache."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from denseport.export.checkpoint.huggingface.folder import CONFIG, FAMILIES, PROCESSOR, WEIGHTS
from denseport.export.checkpoint.labels import plain_text
from denseport.export.errors import CheckpointError
from denseport.runtime.errors import DenseportError, MachineError, ServerError
from denseport.runtime.system.files import sha256_of
from denseport.runtime.system.machine import install_command
from denseport.runtime.system.progress import Progress

__all__ = ["HubFolder", "fetch_folder"]

LIMIT = 8 * 10**9  # bytes of the weights
NAME = re.compile(r"hf:(\w[\w.-]*/\w[\w.-]*)(?:@(\w[\w./-]*))?", re.ASCII)


@dataclass(frozen=True)
class HubFolder:
    """A model of the hub, as it is at one commit."""

    path: Path  # in the hub's cache
    name: str  # without the organisation's
    address: str  # of its page, at that commit
    licence: str  # as its page says it, and the page


def fetch_folder(name: str, *, offline: bool, progress: Progress) -> HubFolder:
    """The configuration, the processor and the weights of ``hf:ORG/NAME`` or ``hf:ORG/NAME@REVISION``.

    Weights in safetensors are taken where there are some, else those that torch pickled, which are read without
    running what they may call (`denseport.export.checkpoint.file`). The hash of the weights is compared with the
    hub's.

    Args:
        offline: take what is in the hub's cache; ``HF_HUB_OFFLINE`` says so too.

    Raises:
        CheckpointError: no such name, no weights, or weights that are damaged or too large.
        ServerError: the hub cannot be reached, does not know the model, or does not give it to this user; with
            ``offline`` the cache lacks a part of it.
        MachineError: the package ``huggingface_hub`` is missing.
    """
    match = NAME.fullmatch(name)
    if match is None:
        raise CheckpointError(
            f"{name}: not a model of the Hugging Face hub", "Write hf:ORG/NAME, or hf:ORG/NAME@REVISION."
        )
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        from huggingface_hub import constants
    except ImportError as err:
        raise MachineError(f"{name}: huggingface_hub is not installed", install_command("hub")) from err
    model, revision = match.groups()
    if offline or constants.HF_HUB_OFFLINE:
        folder, licence = _cached(name, model, revision), "not asked"
    else:
        folder, licence = _fetched(name, model, revision, progress)
    _check_hash(folder)
    page = f"{constants.ENDPOINT}/{model}"
    return HubFolder(folder, model.partition("/")[2], f"{page}/tree/{folder.name}", f"{licence}; see {page}")


def _fetched(name: str, model: str, revision: str | None, progress: Progress) -> tuple[Path, str]:
    """The folder in the cache, filled from the hub, and the licence."""
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        about = api.model_info(model, revision=revision, files_metadata=True, timeout=30)
        sizes = {file.rfilename: file.size or 0 for file in about.siblings or ()}
        files = _wanted(name, sizes)
        _check_class(name, about.config)
        progress.say(f"fetching {', '.join(files)} of {model} at {about.sha} from {api.endpoint}")
        # By the name of the revision, not its commit: the cache is asked for that name when there is no network.
        paths = [Path(api.hf_hub_download(model, file, revision=revision)) for file in files]
        if len({path.parent for path in paths}) > 1:
            raise ServerError(f"{name}: changed while it was fetched", "Try again.")
    except DenseportError:
        raise
    except Exception as err:  # its own, and those of its HTTP client, which is another with each major version
        raise _refusal(name, model, err) from err
    return paths[0].parent, _licence(about)


def _wanted(name: str, sizes: dict[str, int]) -> list[str]:
    """The files to fetch, the weights last."""
    weights = next((file for file in WEIGHTS if file in sizes), None)
    if CONFIG not in sizes or weights is None:
        several = next((file for file in sizes if file.endswith(".index.json")), None)
        lack = f"its weights are in several files ({several})" if several else f"it has no {' or '.join(WEIGHTS)}"
        what = f"{name}: {lack if CONFIG in sizes else f'it has no {CONFIG}'}"
        raise CheckpointError(what, "Give the model of transformers, or export it elsewhere and `denseport import` it.")
    if sizes[weights] > LIMIT:
        what = f"{name}: {weights} has {sizes[weights] / 1e9:.1f} GB; at most {LIMIT / 1e9:.0f} GB are fetched"
        raise CheckpointError(what, "Fetch the folder yourself, and give its path.")
    return [CONFIG, *[file for file in (PROCESSOR,) if file in sizes], weights]


def _check_class(name: str, config: Any) -> None:
    """Refuse a model of another class before its weights are fetched; the hub tells what its config.json says."""
    classes = config.get("architectures") if isinstance(config, dict) else None
    if classes and not {*classes} & {*FAMILIES}:
        known = f"of Hugging Face's classes, {', '.join(FAMILIES)} are known"
        what = f"{name}: it is a {', '.join(map(repr, classes))}; {known}"
        raise CheckpointError(what, "Export it with transformers, and `denseport import` the ONNX file.")


def _refusal(name: str, model: str, err: Exception) -> ServerError:
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    page = f"https://huggingface.co/{model}"
    if isinstance(err, GatedRepoError):
        return ServerError(
            f"{name}: its owner gives it only to those who accept the terms",
            f"Accept them at {page}, then `hf auth login`.",
        )
    if isinstance(err, RevisionNotFoundError):
        return ServerError(f"{name}: the hub knows no such revision", f"See {page}/commits/main.")
    if isinstance(err, RepositoryNotFoundError):
        return ServerError(
            f"{name}: the hub knows no such model, or it is private",
            "Check the name; for a private one, `hf auth login`.",
        )
    why = str(err).strip().split("\n")[0] or type(err).__name__
    return ServerError(
        f"{name}: could not be fetched: {why}",
        "Check the network and try again; --offline takes what was fetched before. Or give a folder that you fetched.",
    )


def _licence(about: Any) -> str:
    """What the page of a model says, such as "apache-2.0"."""
    tags = [tag.partition(":")[2] for tag in about.tags or () if tag.startswith("license:")]
    return plain_text(", ".join(tags)) or "not said"


def _cached(name: str, model: str, revision: str | None) -> Path:
    """The folder in the hub's cache."""
    from huggingface_hub import try_to_load_from_cache

    found = {file: try_to_load_from_cache(model, file, revision=revision) for file in (CONFIG, PROCESSOR, *WEIGHTS)}
    here = {file: path for file, path in found.items() if isinstance(path, str)}
    if CONFIG not in here or not {*WEIGHTS} & {*here} or found[PROCESSOR] is None:
        what = f"{name}: its files are not all in the cache of huggingface_hub, and no server is asked"
        raise ServerError(
            what, "Leave out --offline (and HF_HUB_OFFLINE), or give a folder that was fetched elsewhere."
        )
    return Path(here[CONFIG]).parent


def _check_hash(folder: Path) -> None:
    """The cache calls large files by the SHA-256 that the hub has for them."""
    for name in WEIGHTS:
        blob = (folder / name).resolve()
        if blob.exists() and re.fullmatch("[0-9a-f]{64}", blob.name) and sha256_of(blob) != blob.name:
            raise CheckpointError(
                f"{folder / name}: does not have the SHA-256 that the hub has for it", f"Delete {blob}, and try again."
            )
