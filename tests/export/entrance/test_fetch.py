"""Weights by name: fetched once, resumed, with the right hash or not at all; what cannot be fetched is said."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from file_server import FileServer
from progress_told import Told
from support import ASSETS

from denseport.export import bundle as export
from denseport.export.bundle import export_bundle
from denseport.export.checkpoint.file import read_checkpoint
from denseport.export.checkpoint.recognise import recognise
from denseport.export.entrance import download as transport
from denseport.export.entrance.download import download
from denseport.export.entrance.fetch import Weights, fetch_weights
from denseport.export.errors import CheckpointError
from denseport.export.models import presets
from denseport.export.models.presets import PRESETS, Preset
from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.cli.main import main
from denseport.runtime.errors import DenseportError, OutputError, ServerError
from denseport.runtime.system.progress import Silent

SAMPLE = ASSETS / "dpt_tiny_street.pth"
DATA = np.random.default_rng(0).bytes(3_000_000)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    monkeypatch.setattr(transport, "PAUSES", (0.01, 0.01))
    return tmp_path / "cache/denseport/weights"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    with FileServer() as running:
        monkeypatch.setattr(presets, "SERVER", running.address)
        yield running


def publish(server: FileServer, monkeypatch: pytest.MonkeyPatch, data: bytes, **changes: object) -> Preset:
    """A published model "tiny" whose released file is ``data``."""
    file = f"tiny_512x512_160k_ade20k-{hashlib.sha256(data).hexdigest()[:8]}.pth"
    preset = dataclasses.replace(PRESETS["dpt_vit-b16_160k"], name="tiny", file=file, **changes)
    monkeypatch.setitem(PRESETS, "tiny", preset)
    server.files[f"/dpt/{preset.released}/{file}"] = data
    return preset


@pytest.fixture
def tiny(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> Preset:
    return publish(server, monkeypatch, DATA)


def contents(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def ranges(server: FileServer) -> list[str]:
    return [asked for _, asked in server.asked]


def test_the_released_file_is_fetched_once(server: FileServer, tiny: Preset, cache: Path) -> None:
    with pytest.raises(ServerError, match="are not here, and --offline asks no server") as caught:
        fetch_weights("tiny", offline=True)
    assert tiny.weights in caught.value.remedy and str(cache / tiny.file) in caught.value.remedy and not server.asked
    told = Told()
    found = fetch_weights("tiny", progress=told)
    assert found == Weights(cache / tiny.file, tiny.weights) and found.path.read_bytes() == DATA
    assert tiny.weights in told.lines[0] and ranges(server) == [""]
    assert told.phases == {f"fetching {tiny.file}, MB": [(1, 3, ""), (2, 3, ""), (3, 3, "")]}
    assert fetch_weights(Path("tiny"), offline=True) == fetch_weights("tiny") == found
    assert len(server.asked) == 1 and contents(cache) == {tiny.file}
    found.path.write_bytes(DATA[:-1] + b"!")
    with pytest.raises(ServerError, match="was altered since it was fetched, and --offline"):
        fetch_weights("tiny", offline=True)
    assert fetch_weights("tiny").path.read_bytes() == DATA and len(server.asked) == 2


def test_an_export_by_name_knows_the_published_model(
    server: FileServer, tmp_path: Path, sample: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        export, "export_onnx", lambda _, path, *__: [Path(shutil.copy(sample.verified("model.onnx"), path))]
    )
    spec = recognise(read_checkpoint(SAMPLE)).spec
    preset = publish(server, monkeypatch, SAMPLE.read_bytes(), spec=spec, licence="for a test")
    manifest = export_bundle("tiny", tmp_path / "bundle").manifest
    assert manifest.name == "tiny" and manifest.reference is not None
    assert manifest.reference.recognised_by == "hash of the released file"
    assert manifest.provenance["address"] == preset.weights and manifest.provenance["licence"] == "for a test"
    assert manifest.provenance["checkpoint"] == preset.file


@pytest.mark.parametrize("lengths", [True, False])
def test_a_file_that_is_cut_off_is_resumed(server: FileServer, tiny: Preset, lengths: bool) -> None:
    server.cuts, server.lengths = [1_000_000, 500_000], lengths
    if not lengths:  # nothing but the hash shows that more was to come
        for _ in range(2):
            with pytest.raises(CheckpointError, match="SHA-256 that begins with"):
                fetch_weights("tiny")
    assert fetch_weights("tiny").path.read_bytes() == DATA
    if lengths:
        assert ranges(server) == ["", "bytes=1000000-", "bytes=1500000-"]


def test_a_second_call_goes_on_where_the_first_ended(server: FileServer, tiny: Preset, cache: Path) -> None:
    server.cuts = [1_000_000, 0, 0, 0]
    with pytest.raises(ServerError, match=r"cut off after 1\.0 of 3\.0 MB; 1\.0 MB are here, and the next try goes on"):
        fetch_weights("tiny")
    assert contents(cache) == {f"{tiny.file}.part"}
    server.asked.clear(), server.cuts.clear()
    assert fetch_weights("tiny").path.read_bytes() == DATA and ranges(server) == ["bytes=1000000-"]


@pytest.mark.parametrize(
    ("part", "can_resume", "asked"),
    [
        (DATA[:1_000_000], False, ["bytes=1000000-"]),  # everything comes again
        (DATA, True, ["bytes=3000000-"]),  # killed before the file got its name
        (b"!" * 1_000_000, True, ["bytes=1000000-", ""]),
        (DATA + b"!", True, ["bytes=3000001-", ""]),
        (DATA + b"!", False, ["bytes=3000001-"]),
    ],
    ids=["no ranges", "whole", "other bytes", "too long", "too long, no ranges"],
)
def test_what_is_here_of_a_file(
    server: FileServer, tiny: Preset, cache: Path, part: bytes, can_resume: bool, asked: list[str]
) -> None:
    server.ranges = can_resume
    cache.mkdir(parents=True, mode=0o700)
    cache.joinpath(f"{tiny.file}.part").write_bytes(part)
    assert fetch_weights("tiny").path.read_bytes() == DATA and ranges(server) == asked
    assert contents(cache) == {tiny.file}


def test_a_file_with_another_hash_is_not_kept(server: FileServer, tiny: Preset, cache: Path) -> None:
    server.files = dict.fromkeys(server.files, DATA[::-1])
    with pytest.raises(CheckpointError, match=f"begins with [0-9a-f]{{8}}, published is {tiny.sha256_start}"):
        fetch_weights("tiny")
    assert not contents(cache)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"files": {}}, "the server answers 404"),
        ({"status": 503}, "the server answers 503"),
        ({"pause": 0.5}, "the server sent nothing for 0 s"),
        ({"cuts": [0]}, r"cut off after 0\.0 of 3\.0 MB"),
        ({"claimed": transport.LIMIT + 1}, "sends more than 8 GB"),
        ({"status": 302, "location": "http://example.invalid/x"}, "example.invalid/x: refused: not an https address"),
        ({"status": 302, "location": "ftp://127.0.0.1/x"}, "refused: not an https address"),
        ({"status": 302, "location": "file:///etc/passwd"}, "the server answers 302"),
    ],
    ids=["404", "503", "silent", "empty", "large", "http", "ftp", "file"],
)
def test_what_a_server_may_do_ends_in_a_sentence(
    server: FileServer, tiny: Preset, monkeypatch: pytest.MonkeyPatch, changes: dict[str, object], words: str
) -> None:
    monkeypatch.setattr(transport, "SILENCE", 0.2)
    for name, value in changes.items():
        setattr(server, name, value)
    with pytest.raises(ServerError, match=words) as caught:
        fetch_weights("tiny")
    assert tiny.weights in caught.value.remedy and caught.value.exit_code == 3
    assert len(server.asked) == 1, "asked again though nothing had come"


def test_without_a_network(tiny: Preset, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(presets, "SERVER", "https://localhost:1")
    assert main(["export", "tiny", "-o", "bundle"]) == 3
    error = capsys.readouterr().err
    assert f"{tiny.weights}: cannot be reached" in error and f"put it at {os.environ['XDG_CACHE_HOME']}" in error


def test_an_address_that_is_not_encrypted_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="refused: not an https address"):
        download("http://example.invalid/file", tmp_path / "file", "", Silent())


def test_more_bytes_than_any_file_has(server: FileServer, tiny: Preset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "LIMIT", 2_000_000)
    server.lengths = False
    with pytest.raises(ServerError, match="sends more than"):
        fetch_weights("tiny")


def test_no_room(server: FileServer, tiny: Preset, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(cache.parents[2])
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=len(DATA) - 1))
        with pytest.raises(OutputError, match=r"\.part: cannot be written: No space left"):
            fetch_weights("tiny")
    assert not contents(cache)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_500_000, before[1]))  # as a full disk, in the middle of the file
    try:
        with pytest.raises(OutputError, match=r"\.part: cannot be written: File too large"):
            fetch_weights("tiny")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert fetch_weights("tiny").path.read_bytes() == DATA


def test_two_processes_fetch_a_file_once(server: FileServer, tmp_path: Path) -> None:
    server.files["/file"], server.pause = DATA, 0.3
    code = f"""
from pathlib import Path
from denseport.export.entrance.download import download
from denseport.runtime.system.progress import Terminal
download("{server.address}/file", Path("file"), "{hashlib.sha256(DATA).hexdigest()}", Terminal())
"""
    start = {"args": [sys.executable, "-c", code], "cwd": tmp_path, "stderr": subprocess.PIPE, "text": True}
    both = [subprocess.Popen(**start) for _ in range(2)]
    said = [process.communicate()[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert (tmp_path / "file").read_bytes() == DATA and ranges(server) == [""]
    assert contents(tmp_path) - {"cache"} == {"file"}


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("dpt_vit-b16_160", "Is it dpt_vit-b16_160k"),
        ("segformer_mit-b0_8xb2-160k_ade20k-512x512", "Is it segformer_mit-b0_160k"),
        ("setr_pup_512x512_160k_b16_ade20k", "Is it setr_vit-l_pup_160k"),
        ("resnet", "`denseport models` lists the names"),
        ("nvidia/segformer-b0", "is written hf:nvidia/segformer-b0"),
        ("missing/weights.pth", "Give the .pth"),
        ("missing.pth", "Give the .pth"),
    ],
)
def test_names_that_mean_nothing(tmp_path: Path, name: str, remedy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="no such file") as caught:
        export_bundle(name, tmp_path / "bundle")
    assert remedy in (caught.value.remedy or "")


def test_a_file_of_that_name_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("dpt_vit-b16_160k").write_bytes(b"")
    assert fetch_weights("dpt_vit-b16_160k", offline=True) == Weights(Path("dpt_vit-b16_160k"))
    with pytest.raises(DenseportError, match="dpt_vit-b16_160k: not a checkpoint"):
        export_bundle("dpt_vit-b16_160k", tmp_path / "bundle")
