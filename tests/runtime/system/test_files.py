from __future__ import annotations

import os
from pathlib import Path

import pytest
from support import touch

from denseport.runtime.errors import OutputError
from denseport.runtime.system.files import refuse_unwritable, write_atomic


def test_atomic_writing_makes_folders_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "new/folder" / ("n" * 251 + ".bin")
    write_atomic(path, b"one")
    write_atomic(path, b"two")
    assert path.read_bytes() == b"two"
    assert list(path.parent.iterdir()) == [path]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="folder: cannot be written"):
        write_atomic(tmp_path / "folder", b"")
    touch(tmp_path, "file")
    with pytest.raises(OutputError, match="cannot be written") as caught:
        write_atomic(tmp_path / "file/below", b"")
    assert "A file is where a folder is needed" in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_whether_a_folder_can_be_written_is_known_beforehand(tmp_path: Path) -> None:
    refuse_unwritable(tmp_path)
    refuse_unwritable(tmp_path / "new/folder")
    touch(tmp_path, "file")
    for path in (tmp_path / "file", tmp_path / "file/below"):
        with pytest.raises(OutputError, match=f"{path.name}: cannot be written: Not a directory") as caught:
            refuse_unwritable(path)
        assert "A file is where a folder is needed" in str(caught.value.remedy)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_of_somebody_else_is_refused_beforehand(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="Permission denied") as caught:
        refuse_unwritable(tmp_path / "new")
    assert "that you may write to" in str(caught.value.remedy)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full (Linux)")
def test_a_full_disk_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(path: Path, data: bytes) -> None:
        path.touch()
        with open("/dev/full", "wb", buffering=0) as full:  # noqa: PTH123
            full.write(data)

    monkeypatch.setattr(Path, "write_bytes", write)
    with pytest.raises(OutputError, match="No space left") as caught:
        write_atomic(tmp_path / "x", b"data")
    assert "Free some room" in str(caught.value)
    assert not list(tmp_path.iterdir())
