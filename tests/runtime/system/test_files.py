from __future__ import annotations

import errno
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from support import touch

from denseport.runtime.errors import OutputError
from denseport.runtime.system.files import cache_folder, locked, refuse_unwritable, work_folder, write_atomic


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
    refuse_unwritable(tmp_path, "file", "new")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="folder: cannot be written: Is a directory") as caught:
        refuse_unwritable(tmp_path, "file", "folder")
    assert "choose another name" in str(caught.value.remedy)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_disk_that_fills_up_is_told_whoever_wrote(tmp_path: Path, number: int) -> None:
    with pytest.raises(OutputError, match=f"{tmp_path.name}: cannot be written: ") as caught, work_folder(tmp_path):
        raise OSError(number, os.strerror(number))
    assert "Free some room" in str(caught.value.remedy)
    with pytest.raises(OSError, match="Input/output error"), work_folder(tmp_path):
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc (Linux)")
def test_a_file_system_that_takes_no_files_is_not_waited_for() -> None:
    with pytest.raises(OutputError, match="/proc: cannot be written"), work_folder(Path("/proc")):
        pass


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


# Locks.

COUNT = """
import sys
from pathlib import Path
from denseport.runtime.system.files import locked
folder = Path(sys.argv[1])
for _ in range(40):
    with locked(folder / "lock"):
        number = int((folder / "number").read_text())
        (folder / "half").open("x").close()  # fails where another is inside
        (folder / "number").write_text(str(number + 1))
        (folder / "half").unlink()
"""


def test_processes_take_turns_and_leave_no_lock(tmp_path: Path) -> None:
    (tmp_path / "number").write_text("0")
    program = [sys.executable, "-c", COUNT, str(tmp_path)]
    processes = [subprocess.Popen(program) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert (tmp_path / "number").read_text() == "120"
    assert {path.name for path in tmp_path.iterdir()} == {"number"}


HOLD = """
import sys, time
from pathlib import Path
from denseport.runtime.system.files import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_killed_process_holds_nothing(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(lock)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        with pytest.raises(TimeoutError), locked(lock, wait=False):
            pass
        assert lock.exists(), "who did not get the lock must not remove it"
        holder.kill()
    assert lock.exists()
    with locked(lock, wait=False):
        pass
    assert not lock.exists()


def test_a_waiter_never_holds_a_lock_whose_file_was_removed(tmp_path: Path) -> None:
    """Each holder removes the file that others have open already: two of them must never be inside at once."""
    lock, inside, most = tmp_path / "lock", [0], [0]

    def work() -> None:
        for _ in range(25):
            with locked(lock):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                time.sleep(random.uniform(0, 0.002))
                inside[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] and not lock.exists()


# The cache.


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/denseport"


def test_the_cache_is_for_its_user_alone(cache: Path) -> None:
    before = os.umask(0)
    try:
        assert cache_folder("kernels") == cache_folder("kernels") == cache / "kernels"
    finally:
        os.umask(before)
    assert [path.stat().st_mode & 0o777 for path in (cache, cache / "kernels")] == [0o700, 0o700]
    (cache / "kernels").chmod(0o755)  # others could only read
    assert cache_folder("kernels").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("place", ["", "kernels"])
def test_a_cache_that_others_can_fill_is_refused(cache: Path, tmp_path: Path, place: str) -> None:
    folder = cache / place
    folder.mkdir(parents=True)
    for mode in (0o720, 0o702):
        folder.chmod(mode)
        with pytest.raises(OutputError, match="can be written by other users"):
            cache_folder("kernels")
    folder.rmdir()
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutputError, match="is a link") as caught:
        cache_folder("kernels", "Do without it.")
    assert caught.value.remedy == "Do without it." and not list((tmp_path / "elsewhere").iterdir())
    folder.unlink()
    touch(folder.parent, folder.name)
    with pytest.raises(OutputError, match="File exists"):
        cache_folder("kernels")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_cache_of_another_user_is_refused(cache: Path) -> None:
    cache_folder("kernels")
    os.chown(cache / "kernels", 12345, 12345)
    with pytest.raises(OutputError, match="belongs to another user"):
        cache_folder("kernels")


def test_without_a_home_there_is_no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    with pytest.raises(OutputError, match="which is not an absolute path"):
        cache_folder("kernels")

    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(OutputError, match="Could not determine home") as caught:
        cache_folder("kernels")
    assert "XDG_CACHE_HOME" in str(caught.value)
