"""``hf:ORG/NAME`` by the real package huggingface_hub, from a server on this machine that answers as the hub does."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from file_server import FileServer
from progress_told import Told
from safetensors.torch import load_file

from denseport.export.bundle import export_bundle
from denseport.export.checkpoint.file import read_checkpoint
from denseport.export.checkpoint.huggingface.hub import HubFolder, fetch_folder
from denseport.export.errors import CheckpointError, ExportError
from denseport.runtime.errors import MachineError, ServerError
from denseport.runtime.system.machine import install_command
from denseport.runtime.system.progress import Silent

huggingface_hub = pytest.importorskip("huggingface_hub")
SHA = "0123456789abcdef" * 2 + "01234567"
MODEL = "org/segformer"
FILES = ("config.json", "preprocessor_config.json", "model.safetensors")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    with FileServer() as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.address)
        template = running.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield running


def serve(hub: FileServer, files: dict[str, bytes], revision: str | None = None, **about: Any) -> None:
    """A model of the hub: its page for programs, and its files."""
    for name, data in files.items():
        path = f"/{MODEL}/resolve/{revision or 'main'}/{name}"
        kind = hashlib.sha1 if name.endswith(".json") else hashlib.sha256
        hub.files[path] = data
        hub.headers[path] = {"ETag": f'"{kind(data).hexdigest()}"', "X-Repo-Commit": SHA}
    siblings = [{"rfilename": name, "size": len(data)} for name, data in files.items()]
    page = f"/api/models/{MODEL}" + (f"/revision/{revision}" if revision else "")
    info = {"id": MODEL, "sha": SHA, "siblings": siblings, "tags": ["license:other"], **about}
    hub.put_json(page, info)


@pytest.fixture
def files(shared: Path) -> dict[str, bytes]:
    return {name: (shared / "oracle_families/hf_segformer" / name).read_bytes() for name in FILES}


def fetch(name: str = f"hf:{MODEL}", *, offline: bool = False) -> HubFolder:
    return fetch_folder(name, offline=offline, progress=Silent())


def test_a_folder_is_fetched_once(hub: FileServer, files: dict[str, bytes]) -> None:
    serve(hub, {**files, "README.md": b"", "tf_model.h5": b"", "pytorch_model.bin": b""})
    with pytest.raises(ServerError, match="not all in the cache"):
        fetch(offline=True)
    found = fetch()
    assert (found.name, found.address) == ("segformer", f"{hub.address}/{MODEL}/tree/{SHA}")
    assert found.licence == f"other; see {hub.address}/{MODEL}"
    assert {path.name: path.read_bytes() for path in found.path.iterdir()} == files
    hub.asked.clear()
    for name in (f"hf:{MODEL}", f"hf:{MODEL}@main", f"hf:{MODEL}@{SHA}"):
        assert fetch(name, offline=True).path == found.path and not hub.asked


def test_a_bundle_says_where_its_weights_are_from(
    hub: FileServer, files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(hub, files, revision="refs/pr/1")

    def stop(*_: object) -> None:
        raise ExportError("as far as this test needs it")

    told = Told()
    monkeypatch.setattr("denseport.export.bundle.export_onnx", stop)
    with pytest.raises(ExportError, match="as far as"):
        export_bundle(f"hf:{MODEL}@refs/pr/1", tmp_path / "bundle", progress=told)
    assert any(line.startswith("exporting segformer (SegFormer") for line in told.lines)
    assert f"licence of the weights: other; see {hub.address}/{MODEL}" in told.lines


def test_a_pickle_is_read_as_data(hub: FileServer, files: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(files.pop("model.safetensors"))
    weights = load_file(tmp_path / "w.safetensors")
    torch.save(weights, tmp_path / "pytorch_model.bin")
    serve(hub, {**files, "pytorch_model.bin": (tmp_path / "pytorch_model.bin").read_bytes()})
    read = read_checkpoint(fetch().path)
    assert read.layout == "Hugging Face" and len(read.state_dict) > 50


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model.safetensors": None}, r"it has no model\.safetensors or pytorch_model\.bin"),
        ({"model.safetensors": None, "model.safetensors.index.json": b"{}"}, "its weights are in several files"),
        ({"config.json": None}, r"it has no config\.json"),
    ],
)
def test_models_without_what_is_needed(
    hub: FileServer, files: dict[str, bytes], changes: dict[str, bytes | None], words: str
) -> None:
    serve(hub, {name: data for name, data in {**files, **changes}.items() if data is not None})
    with pytest.raises(CheckpointError, match=words):
        fetch()
    assert len(hub.asked) == 1, "nothing is fetched of it"


def test_models_that_are_not_taken(hub: FileServer, files: dict[str, bytes]) -> None:
    serve(hub, files, config={"architectures": ["LlamaForCausalLM"]})
    with pytest.raises(CheckpointError, match="it is a 'LlamaForCausalLM'; of Hugging Face's classes"):
        fetch()
    serve(hub, files, siblings=[{"rfilename": name, "size": 9 * 10**9} for name in files])
    with pytest.raises(CheckpointError, match=r"model\.safetensors has 9\.0 GB; at most 8 GB"):
        fetch()
    assert len(hub.asked) == 2


def test_a_model_that_changes_meanwhile(hub: FileServer, files: dict[str, bytes]) -> None:
    serve(hub, files)
    hub.headers[f"/{MODEL}/resolve/main/model.safetensors"]["X-Repo-Commit"] = SHA[::-1]
    with pytest.raises(ServerError, match="changed while it was fetched"):
        fetch()


def test_weights_that_are_not_the_hubs(hub: FileServer, files: dict[str, bytes]) -> None:
    serve(hub, files)
    path = f"/{MODEL}/resolve/main/model.safetensors"
    hub.files[path] = hub.files[path][:-1] + b"!"
    for offline in (False, True):
        with pytest.raises(CheckpointError, match="does not have the SHA-256 that the hub has for it"):
            fetch(offline=offline)


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (401, "RepoNotFound", "the hub knows no such model, or it is private"),
        (404, "RevisionNotFound", "the hub knows no such revision"),
        (403, "GatedRepo", "only to those who accept the terms"),
        (500, "", "could not be fetched: .*500"),
    ],
)
def test_what_the_hub_refuses(hub: FileServer, files: dict[str, bytes], status: int, code: str, words: str) -> None:
    hub.status, hub.error = status, code
    with pytest.raises(ServerError, match=words):
        fetch(f"hf:{MODEL}@main")


def test_without_a_network(hub: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(ServerError, match=f"hf:{MODEL}: could not be fetched: ") as caught:
        fetch()
    assert "--offline" in (caught.value.remedy or "")


@pytest.mark.parametrize(
    "name", ["hf:segformer", "hf:", "hf:a/b/c", "hf:a/b@", "hf:../..@x y", "hf:../x", "hf:-a/b", "hf:a/b@../x"]
)
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(CheckpointError, match="not a model of the Hugging Face hub"):
        fetch(name)


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MachineError, match="huggingface_hub is not installed") as caught:
        fetch()
    assert install_command("hub") in (caught.value.remedy or "")
