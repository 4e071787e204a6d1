"""From a manifest and ``model.onnx`` to a bundle on disk: what every way into a bundle ends with."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from denseport.export.models.presets import PERMISSIVE
from denseport.runtime.bundle.artifact import ANY, Artifact
from denseport.runtime.bundle.bundle import MANIFEST
from denseport.runtime.bundle.comparison import proof_here
from denseport.runtime.bundle.manifest import Manifest
from denseport.runtime.bundle.preprocessing import needs_pillow
from denseport.runtime.errors import InputError, OutputError
from denseport.runtime.system.clock import timestamp
from denseport.runtime.system.files import sha256_of, write_atomic
from denseport.runtime.system.progress import Progress

__all__ = ["MODEL", "announce", "made_with", "refuse_inside", "renamed", "write_source"]

MODEL = "model.onnx"  # the source of every bundle
# What training tools call the files that they write: names that say nothing of the model.
NAMED_BY_TRAINING = re.compile(r"(best|iter|epoch|latest|last|model|checkpoint|weights)([_.-]|\d|$)", re.IGNORECASE)


def refuse_inside(output: Path, files: Sequence[Path | None], *, replace: bool) -> None:
    """Refuse to replace a folder that holds a file which is read.

    Raises:
        OutputError: it names the file.
    """
    for file in files:
        # Not Path.resolve(), which raises an error of its own about links that lead in a circle.
        if replace and file is not None and Path(os.path.realpath(file)).is_relative_to(os.path.realpath(output)):
            what = f"{output}: holds {file.name}, which would be deleted with the old bundle"
            raise OutputError(what, "Move it to another folder.")


def made_with(packages: Sequence[str], warnings: Sequence[str]) -> dict[str, Any]:
    """The end of a manifest's provenance: when, with which versions, and what was warned of."""
    versions = {package: version(package) for package in ("denseport", *packages)}
    return {"created": timestamp(), **versions, "warnings": list(warnings)}


def renamed(manifest: Manifest, name: str | None, progress: Progress) -> Manifest:
    """The manifest with the name that was given; a hint where the name of its file says nothing.

    Raises:
        InputError: an empty name, or one with control characters.
    """
    try:
        if name is not None and not (isinstance(name, str) and name.strip()):
            raise ValueError("no text, or an empty one")
        manifest = dataclasses.replace(manifest, name=manifest.name if name is None else name.strip())
    except ValueError as err:
        raise InputError(f"--name {name!r}: {err}", "Give a name of letters and digits.") from err
    if name is None and NAMED_BY_TRAINING.match(manifest.name):
        progress.say(f"the model is called {manifest.name}, as its file; --name gives it another name")
    return manifest


def announce(manifest: Manifest, progress: Progress, *, doing: str = "exporting") -> None:
    """Say what becomes a bundle, what was assumed of it, and what it needs."""
    size = f"{manifest.parameters / 1e6:,.1f} M parameters"
    progress.say(f"{doing} {manifest.name} ({manifest.architecture}, {size})")
    for warning in manifest.provenance["warnings"]:
        progress.say(f"warning: {warning}")
    if (licence := manifest.provenance.get("licence")) not in (None, PERMISSIVE):
        progress.say(f"licence of the weights: {licence}")
    if needs_pillow(manifest.preprocess):
        progress.say("its image files are decoded by Pillow: machines that open any need the extra pillow")


def write_source(
    manifest: Manifest, files: Sequence[Path], output: Path, *, against: str, record: Mapping[str, Any]
) -> None:
    """Enter ``model.onnx`` as the manifest's source, and write the manifest beside it.

    Args:
        files: of the model, the main one first, in the folder that becomes the bundle.
        output: the bundle, for messages.
        against: what the model was compared with (`denseport.runtime.bundle.artifact.Proof`).
        record: how it was made; ``checks`` in it are the comparisons.
    """
    artifact = Artifact(
        kind="onnx",
        precision="fp32",
        float_precision="fp32",
        target=ANY,
        output=manifest.output,
        fused=False,
        made_of=None,
        main=files[0].name,
        files={file.name: sha256_of(file) for file in files},
        proof=(proof_here(against, "checks", "fp32"),),
        record=dict(record),
    )
    text = dataclasses.replace(manifest, artifacts={files[0].name: artifact}).to_json()
    Manifest.from_json(text, str(output / MANIFEST))  # what cannot be read back takes no bundle's place
    write_atomic(files[0].with_name(MANIFEST), text.encode())
