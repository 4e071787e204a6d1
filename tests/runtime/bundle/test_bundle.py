"""A bundle is run only as it was written."""

from __future__ import annotations

import dataclasses
import json
import shutil
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from bundles import onnx_artifact, proof

from denseport.runtime.bundle import bundle as bundle_module
from denseport.runtime.bundle.bundle import LARGEST_MANIFEST, Bundle, new_bundle
from denseport.runtime.errors import BundleError, OutputError
from denseport.runtime.system.files import sha256_of


def rewrite(bundle: Bundle, files: dict[str, str]) -> Bundle:
    """The bundle with another list of files for its artifact."""
    data: dict[str, Any] = json.loads((bundle.path / "manifest.json").read_text())
    main = "model.onnx" if "model.onnx" in files else next(iter(files), "model.onnx")
    data["artifacts"]["model.onnx"] |= {"files": files, "main": main}
    (bundle.path / "manifest.json").write_text(json.dumps(data))
    return Bundle(bundle.path)


def test_an_unchanged_bundle_is_verified_wherever_it_lies(sample_copy: Bundle, tmp_path: Path) -> None:
    assert sample_copy.verified("model.onnx") == sample_copy.path / "model.onnx"
    moved = Bundle(str(sample_copy.path.rename(tmp_path / "moved")))
    assert moved.verified("model.onnx") == tmp_path / "moved/model.onnx"
    (tmp_path / "link").symlink_to("moved")
    assert Bundle(tmp_path / "link").verified("model.onnx").is_file()


def test_places_that_are_no_bundle(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "odd/manifest.json").mkdir(parents=True)
    (tmp_path / "binary").mkdir()
    (tmp_path / "binary/manifest.json").write_bytes(b"\xff\xfe\x00")
    for name, words in {
        "none": "no such folder",
        "file": "not a bundle: a file",
        "empty": "not a bundle: no manifest.json",
        "odd": "cannot be read: not an ordinary file",
        "binary": "cannot be read: 'utf-8' codec",
        "n" * 300: "cannot be read: File name too long",
        "file/below": "no such folder",
    }.items():
        with pytest.raises(BundleError, match=words) as caught:
            Bundle(tmp_path / name)
        assert str(caught.value).startswith(str(tmp_path / name)) and caught.value.remedy


def test_a_file_in_a_bundle_s_stead_brings_the_bundle_to_mind(sample: Bundle, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="not a bundle: a file") as caught:
        Bundle(sample.path / "model.onnx")
    assert caught.value.remedy == f"Give the bundle's folder: {sample.path}"
    (tmp_path / "c.pth").touch()
    with pytest.raises(BundleError, match=r"denseport export .*c\.pth -o BUNDLE"):
        Bundle(tmp_path / "c.pth")


def test_an_unknown_artifact_is_refused_with_those_there_are(sample_copy: Bundle) -> None:
    with pytest.raises(BundleError, match=r"no artifact 'int8\.onnx'; it has model\.onnx") as caught:
        sample_copy.verified("int8.onnx")
    assert "denseport build" in str(caught.value)
    for part in ("model", "fp32"):
        with pytest.raises(BundleError, match=r"Give its whole name: model\.onnx\."):
            sample_copy.verified(part)


def test_a_missing_file_is_named(sample_copy: Bundle) -> None:
    (sample_copy.path / "model.onnx").unlink()
    with pytest.raises(BundleError, match=r"bundle/model\.onnx: missing from the bundle"):
        sample_copy.verified("model.onnx")


@pytest.mark.parametrize("at", [0, 1000, -1])
def test_one_changed_bit_is_noticed(sample_copy: Bundle, at: int) -> None:
    data = bytearray((sample_copy.path / "model.onnx").read_bytes())
    data[at] ^= 1
    (sample_copy.path / "model.onnx").write_bytes(data)
    with pytest.raises(BundleError, match=r"bundle/model\.onnx: altered since it was written"):
        sample_copy.verified("model.onnx")


def test_a_link_in_the_place_of_a_file_is_refused(sample_copy: Bundle, tmp_path: Path) -> None:
    """A bundle from elsewhere must not make us open files of ours, not even one with the right content."""
    (sample_copy.path / "model.onnx").rename(tmp_path / "elsewhere.onnx")
    (sample_copy.path / "model.onnx").symlink_to(tmp_path / "elsewhere.onnx")
    with pytest.raises(BundleError, match="does not name a file of the bundle itself"):
        sample_copy.verified("model.onnx")


@pytest.mark.parametrize("name", ["../model.onnx", "/etc/passwd", "a/b.onnx", "./model.onnx", "..", ".", "", "a\0b"])
def test_files_outside_of_the_bundle_are_refused(sample_copy: Bundle, name: str) -> None:
    shutil.copy(sample_copy.path / "model.onnx", sample_copy.path.parent)
    digest = sample_copy.manifest.artifacts["model.onnx"].files["model.onnx"]
    with pytest.raises(BundleError, match=r"of the bundle itself|missing from the bundle"):
        rewrite(sample_copy, {name: digest}).verified("model.onnx")


def test_an_artifact_of_no_file_or_of_an_unreadable_name_is_refused(sample_copy: Bundle) -> None:
    with pytest.raises(BundleError, match=r"main 'model\.onnx' is not one of"):
        rewrite(sample_copy, {})
    with pytest.raises(BundleError, match="cannot be read"):
        rewrite(sample_copy, {"n" * 300: ""}).verified("model.onnx")


def test_every_file_of_an_artifact_is_checked_and_the_main_one_is_opened(sample_copy: Bundle) -> None:
    digest = sample_copy.manifest.artifacts["model.onnx"].files["model.onnx"]
    (sample_copy.path / "model.onnx.data").write_bytes(b"weights")
    with pytest.raises(BundleError, match=r"model\.onnx\.data: altered"):
        rewrite(sample_copy, {"model.onnx": digest, "model.onnx.data": digest}).verified("model.onnx")
    right = {"model.onnx.data": sha256_of(sample_copy.path / "model.onnx.data"), "model.onnx": digest}
    assert rewrite(sample_copy, right).verified("model.onnx").name == "model.onnx", "in whatever order they are"


def test_an_artifact_can_be_added(sample_copy: Bundle) -> None:
    shutil.copy(sample_copy.path / "model.onnx", sample_copy.path / "again.onnx")
    files = {"again.onnx": sample_copy.manifest.artifacts["model.onnx"].files["model.onnx"]}
    sample_copy.add("again.onnx", onnx_artifact(files))
    assert list(sample_copy.manifest.artifacts) == ["model.onnx", "again.onnx"]
    reread = Bundle(sample_copy.path)
    assert reread.manifest == sample_copy.manifest
    assert reread.verified("again.onnx") == sample_copy.path / "again.onnx"
    assert {path.name for path in sample_copy.path.iterdir()} == {"manifest.json", "model.onnx", "again.onnx"}


def test_two_processes_that_add_at_once_both_keep_their_artifact(sample_copy: Bundle) -> None:
    """Each opened the bundle before the other wrote it."""
    digest = sample_copy.manifest.artifacts["model.onnx"].files["model.onnx"]

    def add(number: int) -> None:
        bundle = Bundle(sample_copy.path)
        barrier.wait()
        bundle.add(f"{number}.onnx", onnx_artifact({"model.onnx": digest}))
        bundle.note(f"{number}.onnx", {"number": number})

    barrier = threading.Barrier(8)
    threads = [threading.Thread(target=add, args=[number]) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    artifacts = Bundle(sample_copy.path).manifest.artifacts
    assert {name: artifact.record.get("number") for name, artifact in artifacts.items()} == {
        "model.onnx": None,
        **{f"{number}.onnx": number for number in range(8)},
    }


def test_an_artifact_that_is_replaced_is_never_named_with_the_wrong_file(
    sample_copy: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the files and the manifest: the artifact is gone, the bundle is whole."""
    before = sample_copy.manifest.artifacts["model.onnx"]
    for number in (1, 2):
        (tmp_path / "other.onnx").write_bytes(b"\x08\x0a" * number)  # a field of the format
        artifact = onnx_artifact({"other.onnx": sha256_of(tmp_path / "other.onnx")}, "fp16")
        if number == 2:
            monkeypatch.setattr(Path, "replace", killed_after(2, Path.replace))
            with pytest.raises(KeyboardInterrupt):
                sample_copy.add("other.onnx", artifact, [tmp_path / "other.onnx"])
        else:
            sample_copy.add("other.onnx", artifact, [tmp_path / "other.onnx"])
            assert Bundle(sample_copy.path).verified("other.onnx").read_bytes() == b"\x08\x0a"
    monkeypatch.undo()
    assert (sample_copy.path / "other.onnx").read_bytes() == b"\x08\x0a" * 2
    assert Bundle(sample_copy.path).manifest.artifacts == {"model.onnx": before}


def killed_after(calls: int, function: Any) -> Any:
    count = 0

    def wrapper(*arguments: Any) -> Any:
        nonlocal count
        count += 1
        if count > calls:
            raise KeyboardInterrupt
        return function(*arguments)

    return wrapper


def test_a_note_on_an_artifact_that_was_replaced_is_refused(sample_copy: Bundle) -> None:
    digest = sample_copy.manifest.artifacts["model.onnx"].files["model.onnx"]
    sample_copy.add("other.onnx", onnx_artifact({"model.onnx": digest}, "fp16"))
    late = Bundle(sample_copy.path)
    sample_copy.add("other.onnx", onnx_artifact({"manifest.json": digest}, "fp16"))
    with pytest.raises(BundleError, match=r"other\.onnx was replaced meanwhile"):
        late.note("other.onnx", {"accuracy": {}})


def test_a_note_on_an_artifact_that_was_taken_out_is_refused(sample_copy: Bundle) -> None:
    digest = sample_copy.manifest.artifacts["model.onnx"].files["model.onnx"]
    text = (sample_copy.path / "manifest.json").read_text()
    sample_copy.add("other.onnx", onnx_artifact({"model.onnx": digest}, "fp16"))
    (sample_copy.path / "manifest.json").write_text(text)
    with pytest.raises(BundleError, match=r"other\.onnx was replaced meanwhile"):
        sample_copy.note("other.onnx", {"accuracy": {}})


def test_a_proof_goes_with_the_figures_that_it_rests_on(sample_copy: Bundle) -> None:
    exported = sample_copy.artifact("model.onnx").proof
    assert [each.figures for each in exported] == ["checks"]
    for arithmetic in ("fp16", "fp32"):
        found = dataclasses.replace(proof(arithmetic), figures="accuracy")
        sample_copy.note("model.onnx", {"accuracy": {"by": arithmetic}}, found)
        artifact = Bundle(sample_copy.path).artifact("model.onnx")
        assert artifact.proof == (*exported, found) and artifact.record["accuracy"] == {"by": arithmetic}
    sample_copy.note("model.onnx", {"speed": 1})
    assert Bundle(sample_copy.path).artifact("model.onnx").proof == (*exported, found)
    sample_copy.note("model.onnx", {"checks": []})
    assert Bundle(sample_copy.path).artifact("model.onnx").proof == (found,), "whose figures were replaced goes"


def test_a_new_bundle_appears_whole_and_can_be_read_by_others(tmp_path: Path) -> None:
    path = tmp_path / "new/folder/bundle"
    with new_bundle(path) as folder:
        (folder / "file").touch()
        assert not path.exists() and path.parent in folder.parents  # where a rename is possible
    assert [found.name for found in path.parent.iterdir()] == ["bundle"]
    assert (path / "file").exists() and path.stat().st_mode & 0o777 == 0o755


def test_a_failed_bundle_leaves_neither_itself_nor_the_folders_above(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error), new_bundle(tmp_path / "kept/new/folder/bundle") as folder:
            (folder / "file").touch()
            raise error
    assert [path.name for path in tmp_path.rglob("*")] == ["kept"]


def test_a_bundle_that_appears_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    with pytest.raises(OutputError, match="bundle: cannot be written"), new_bundle(path):
        path.mkdir()
        (path / "manifest.json").touch()
    assert [found.name for found in tmp_path.rglob("*")] == ["bundle", "manifest.json"]


def test_a_bundle_whose_manifest_is_damaged_can_be_replaced(tmp_path: Path) -> None:
    for name, text in {"cut": '{"format_version": 1, "na', "deep": "[" * 100_000, "bytes": "\udcff"}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text(text, errors="surrogateescape")
        with new_bundle(tmp_path / name, replace=True) as folder:
            (folder / "file").touch()
        assert [path.name for path in (tmp_path / name).iterdir()] == ["file"]


@pytest.mark.parametrize(("more", "replaced"), [(0, True), (1, False)])
def test_a_file_too_large_for_a_manifest_is_not_read(tmp_path: Path, more: int, replaced: bool) -> None:
    (tmp_path / "folder").mkdir()
    text = b'{"format_version": 1}'
    (tmp_path / "folder/manifest.json").write_bytes(text + b" " * (LARGEST_MANIFEST - len(text) + more))
    if replaced:
        with new_bundle(tmp_path / "folder", replace=True):
            pass
    else:
        with (
            pytest.raises(OutputError, match="exists already and is not a bundle"),
            new_bundle(tmp_path / "folder", replace=True),
        ):
            pass
        with pytest.raises(BundleError, match="larger than 64 MiB"):
            Bundle(tmp_path / "folder")


@pytest.mark.parametrize(
    ("content", "replace", "words"),
    [
        (
            '{"format_version": 2}',
            False,
            "exists already and is a bundle\n  Choose another name with -o, or give --force",
        ),
        ("[", False, "exists already and is a bundle"),
        ('{"name": "app"}', True, "exists already and is not a bundle\n  Choose another name with -o."),
        ('["format_version"]', True, "exists already and is not a bundle"),
        (None, True, "exists already and is not a bundle"),
    ],
)
def test_what_is_there_already_is_kept(tmp_path: Path, content: str | None, replace: bool, words: str) -> None:
    """Many programs have a manifest.json."""
    (tmp_path / "folder").mkdir()
    if content is not None:
        (tmp_path / "folder/manifest.json").write_text(content)
    with pytest.raises(OutputError) as caught, new_bundle(tmp_path / "folder", replace=replace):
        pass
    assert words in str(caught.value)


def test_nothing_needs_to_be_there_to_be_replaced(tmp_path: Path) -> None:
    with new_bundle(tmp_path / "new", replace=True) as folder:
        (folder / "file").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["new", "file"]


def test_a_link_to_nowhere_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(OutputError, match="exists already and is not a bundle"), new_bundle(tmp_path / "link"):
        pass


@pytest.mark.parametrize("fails", [False, True])
def test_a_bundle_is_replaced_where_folders_cannot_be_exchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    """As on Windows: the old one is moved away first, and back where the new one cannot take its place."""
    monkeypatch.setattr(bundle_module, "exchange", lambda new, old: False)
    path = tmp_path / "bundle"
    for name in ("old", "new"):
        with ExitStack() as stack:
            if fails and name == "new":
                stack.enter_context(pytest.raises(OutputError, match="cannot be written"))
                monkeypatch.setattr(Path, "rename", failing_for("new", Path.rename))
            folder = stack.enter_context(new_bundle(path, replace=True))
            (folder / "manifest.json").write_text(f'{{"format_version": "{name}"}}')
    assert ("new" in (path / "manifest.json").read_text()) is not fails
    assert [found.name for found in tmp_path.iterdir()] == ["bundle"]


def failing_for(name: str, function: Any) -> Any:
    def wrapper(path: Path, *arguments: Any) -> Any:
        if path.name == name:
            raise OSError(13, "Permission denied", str(path))
        return function(path, *arguments)

    return wrapper


def test_what_shares_a_file_goes_with_the_old_one(sample_copy: Bundle, tmp_path: Path) -> None:
    """Artifacts for OpenVINO share another's file: once that is replaced, the file is not what they were audited on."""

    def written(text: str) -> Path:
        (tmp_path / "int8.onnx").write_text(text)
        return tmp_path / "int8.onnx"

    old, new = (sha256_of(written(text)) for text in ("old", "new"))
    sample_copy.add("int8.onnx", onnx_artifact({"int8.onnx": old}, "int8"), [written("old")])
    for name, files in {"int8.openvino": {"int8.onnx": old}, "own.openvino": {"own.onnx": "0" * 64}}.items():
        sample_copy.add(name, onnx_artifact(files, "int8", target="openvino"))
    same = onnx_artifact({"int8.onnx": old}, "int8", record={"calibration": {}})
    assert sample_copy.outdated_by(same) == []
    sample_copy.add("int8.onnx", same, [written("old")])
    assert "int8.openvino" in sample_copy.manifest.artifacts
    other = onnx_artifact({"int8.onnx": new}, "int8")
    assert sorted(sample_copy.outdated_by(other)) == ["int8.onnx", "int8.openvino"]
    sample_copy.add("int8.onnx", other, [written("new")])
    assert list(Bundle(sample_copy.path).manifest.artifacts) == ["model.onnx", "own.openvino", "int8.onnx"]
