"""Faults, injected: what is on disk afterwards is old or new, never half, and the next run goes on.

``scripts/hardening/faults`` does the same to whole commands that are killed at random moments. docs/security.md has the
table.
"""

from __future__ import annotations

import ast
import hashlib
import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from bundles import onnx_artifact
from hostile import tiny_bundle
from support import REPO

from denseport.calibration.search.sensitivity import Loss, LossFile
from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.errors import BundleError
from denseport.runtime.evaluation.state import Measurement, load_state
from denseport.runtime.media.images import write_image
from denseport.runtime.segmenter import Segmenter
from denseport.runtime.system.files import exchange, work_folder

KILLED_EVERYWHERE = """
import os, signal, shutil, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import numpy as np
from bundles import onnx_artifact
from hostile import enter, tiny_bundle, tiny_model
from denseport.runtime.bundle.bundle import Bundle, new_bundle
from denseport.runtime.evaluation.state import Measurement, load_state
from denseport.runtime.system.files import new_folder, sha256_of, write_atomic

STEPS = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.chmod", "fcntl.flock", "ctypes.dlopen")
root = Path({folder!r})

def replace_artifact(place):
    source = place / "source"
    source.mkdir()
    files = [source / "other.onnx", source / "other.onnx.data"]
    for file in files:
        file.write_bytes(b"\\x08\\x0a" * 2)
    Bundle(place / "b").add("other.onnx", onnx_artifact({{f.name: sha256_of(f) for f in files}}, "fp16"), files)
    Bundle(place / "b").note("other.onnx", {{"speed": 1}})

def check_artifact(place):
    bundle = Bundle(place / "b")
    for name in bundle.manifest.artifacts:
        bundle.verified(name)

def export_again(place):
    with new_bundle(place / "b", replace=True) as folder:
        shutil.copytree(place / "new", folder, dirs_exist_ok=True)

def check_export(place):
    bundle = Bundle(place / "b")
    bundle.verified("model.onnx")
    assert bundle.manifest.artifacts.keys() in ({{"model.onnx"}}, {{"model.onnx", "other.onnx"}})

def write(place):
    write_atomic(place / "text", b"new" * 10000)

def check_write(place):
    assert (place / "text").read_bytes() in (b"old", b"new" * 10000)

def frames(place):
    with new_folder(place / "masks") as folder:
        for i in range(3):
            (folder / f"{{i}}.png").write_bytes(b"whole")

def check_frames(place):
    assert all(file.read_bytes() == b"whole" for file in (place / "masks").glob("*"))

def state(place):
    found = load_state(place / "state.npz", "key")
    found = found or Measurement("key", 2, 3, with_fp32=False, file=place / "state.npz")
    mask = np.zeros((4, 4), np.uint8)
    for i in np.flatnonzero(~found.done):
        found.add(i, mask, mask, None, finite=True)
        found.save()

def check_state(place):
    found = load_state(place / "state.npz", "key")
    assert found is None or found.confusion.matrix.sum() == 16 * found.done.sum()

def set_up(place):
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(root / "start", place)

def killed_at(step, action, place):
    child = os.fork()
    if child == 0:
        left = step
        def hook(event, arguments):
            nonlocal left
            if event in STEPS and str(place) in str(arguments) + str(event == "ctypes.dlopen" and place):
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(hook)
        action(place)
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])

tiny_bundle(root / "start/b")
tiny_bundle(root / "start/new")
shutil.copyfile(root / "start/new/model.onnx", root / "start/b/other.onnx")
b = Bundle(root / "start/b")
b.add("other.onnx", onnx_artifact({{"other.onnx": sha256_of(b.path / "other.onnx")}}, "fp16"))
(root / "start/text").write_bytes(b"old")
for action, check in (
    (replace_artifact, check_artifact), (export_again, check_export), (write, check_write), (frames, check_frames),
    (state, check_state),
):
    step, place = 0, root / "place"
    while True:
        set_up(place)
        if not killed_at(step, action, place):
            break
        check(place)
        shutil.rmtree(place / "source", ignore_errors=True)
        action(place)
        check(place)
        left = [p.name for p in (*place.iterdir(), *(place / "b").iterdir()) if p.name.startswith(".denseport")]
        assert not left, (action.__name__, step, left)
        step += 1
    print(action.__name__, step)
"""


def test_killed_at_every_step_nothing_is_half_there_and_the_next_run_cleans_up(tmp_path: Path) -> None:
    """SIGKILL before each file that is opened, renamed, removed, made or locked."""
    program = KILLED_EVERYWHERE.format(tests=str(REPO / "tests" / "helpers"), folder=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    steps = {name: int(count) for name, count in (line.split() for line in done.stdout.splitlines())}
    assert steps.keys() == {"replace_artifact", "export_again", "write", "frames", "state"}
    assert all(count >= 2 for count in steps.values()) and steps["replace_artifact"] > 10


def test_work_folders_of_the_dead_are_removed_and_of_the_living_kept(tmp_path: Path) -> None:
    with work_folder(tmp_path) as mine:
        (mine / "file").touch()
        dead = tmp_path / f"{mine.name[:-8]}abandoned"
        (dead / "below").mkdir(parents=True)
        (tmp_path / ".denseport-work-link").symlink_to(REPO)
        with work_folder(tmp_path) as other:
            assert (mine / "file").exists() and other != mine and not dead.exists()
        (tmp_path / ".denseport-work-link").unlink()
    assert not list(tmp_path.iterdir()) and (REPO / "setup.cfg").exists()


def test_two_folders_change_places_at_once(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    if not exchange(tmp_path / "a", tmp_path / "b"):
        pytest.skip("this file system cannot")
    assert (tmp_path / "a/b").exists() and (tmp_path / "b/a").exists()
    assert not exchange(tmp_path / "a", tmp_path / "none")


def test_two_that_write_one_artifact_at_once_leave_the_files_of_one_of_them(tmp_path: Path) -> None:
    """An artifact of two files: never the graph of one with the weights of the other."""
    bundle, barrier = tiny_bundle(tmp_path / "b"), threading.Barrier(4)

    def build(number: int) -> None:
        own, data = Bundle(bundle.path), b"\x08" + bytes([number])
        for _ in range(10):
            with work_folder(bundle.path) as folder:
                files = [folder / "x.onnx", folder / "x.onnx.data"]
                for file in files:
                    file.write_bytes(data)
                barrier.wait()
                digests = {file.name: hashlib.sha256(data).hexdigest() for file in files}
                own.add("x.onnx", onnx_artifact(digests, "fp16", record={"number": number}), files)

    threads = [threading.Thread(target=build, args=[number]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    last = Bundle(bundle.path)
    number = last.artifact("x.onnx").record["number"]
    assert last.verified("x.onnx").read_bytes() == b"\x08" + bytes([number])
    assert {file.name for file in bundle.path.iterdir()} == {"manifest.json", "model.onnx", "x.onnx", "x.onnx.data"}


def damaged_forms(path: Path) -> Iterator[None]:
    """The file cut off at every length and with each byte changed, one after the other; at last it is whole again."""
    whole = path.read_bytes()
    for at in range(len(whole)):
        for damaged in (whole[:at], whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :]):
            path.write_bytes(damaged)
            yield
    path.write_bytes(whole)


def test_a_damaged_state_is_measured_again_never_counted(tmp_path: Path) -> None:
    path = tmp_path / "state.npz"
    state = Measurement("key", 3, 2, with_fp32=True, file=path)
    mask = np.array([[0, 1], [1, 1]], np.uint8)
    state.add(1, mask, mask, mask, finite=True)
    state.save()
    for _ in damaged_forms(path):
        assert load_state(path, "key") is None
    found = load_state(path, "key")
    assert found is not None and (found.done == state.done).all()
    assert (found.confusion.matrix == state.confusion.matrix).all()


def test_damaged_losses_of_layers_are_measured_again_never_believed(tmp_path: Path) -> None:
    stored = {"stem": Loss(0.125, 0.75), "head": Loss(0.5, 1.0, -0.25)}
    file = LossFile(tmp_path / "losses.npz", "model", "images")
    for name, loss in stored.items():
        file[name] = loss
    for _ in damaged_forms(file.path):
        found = LossFile(file.path, "model", "images")
        assert not found and found.damaged
    assert dict(LossFile(file.path, "model", "images")) == stored


def test_a_back_end_that_fails_in_the_middle_of_a_stream_ends_it_after_what_was_whole(tmp_path: Path) -> None:
    before = threading.active_count()
    with Segmenter(tiny_bundle(tmp_path / "b"), artifact="model.onnx", threads=1) as segmenter:
        run, calls = segmenter.session.run, 0

        def fail(image: np.ndarray) -> np.ndarray:
            nonlocal calls
            calls += 1
            if calls == 3:
                raise BundleError("the device fell off the bus")
            return run(image)

        segmenter.session.run = fail  # type: ignore[method-assign]
        results = segmenter.stream([np.zeros((16, 16, 3), np.uint8)] * 9)
        assert [next(results).mask.shape for _ in range(2)] == [(16, 16)] * 2
        with pytest.raises(BundleError, match="fell off the bus"):
            next(results)
        give_up = time.monotonic() + 5
        while threading.active_count() > before and time.monotonic() < give_up:
            time.sleep(0.01)
        assert threading.active_count() == before


def denseport(*arguments: object, before: str = "") -> str:
    """A program that runs the command."""
    words = [str(argument) for argument in arguments]
    return f"import sys\nfrom denseport.runtime.cli.main import main\n{before}\nsys.exit(main({words!r}))"


def test_a_full_disk_is_told_and_leaves_nothing_half(tmp_path: Path) -> None:
    """On a file system of 96 KB, in a name space of its own."""
    bundle, disk = tiny_bundle(tmp_path / "b"), tmp_path / "disk"
    disk.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (600, 600, 3), np.uint8)
    write_image(tmp_path / "noise.png", noise)
    command = denseport("run", bundle.path, tmp_path / "noise.png", "-o", disk / "out")
    mount = f"mount -t tmpfs -o size=96k none {disk}"
    way = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    if shutil.which("unshare") is None or subprocess.run([*way, mount], check=False).returncode:
        pytest.skip("this machine lets nobody mount")
    shell = f'{mount} && {sys.executable} -c "$1"; echo code $?; find {disk} -type f'
    done = subprocess.run([*way, shell, "sh", command], capture_output=True, text=True, check=False)
    assert "code 2" in done.stdout and "No space left" in done.stderr and "Traceback" not in done.stderr
    assert "/." not in done.stdout


def test_too_little_memory_is_told_in_a_line(tmp_path: Path) -> None:
    """Address space for 200 MB more than the program needs, and an image of 300 MB."""
    bundle = tiny_bundle(tmp_path / "b")
    write_image(tmp_path / "large.png", np.zeros((10000, 10000), np.uint8))
    limit = """
import resource, cv2, onnxruntime, denseport.runtime.segmenter
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 200_000_000,) * 2)
"""
    program = denseport("run", bundle.path, tmp_path / "large.png", "-o", tmp_path / "o", "--threads", 1, before=limit)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode in (2, 3) and "memory" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "o").exists()


def test_no_duration_is_taken_from_the_clock_on_the_wall() -> None:
    """That one jumps; it only dates reports. What is done is known by counts and hashes, not by files' times."""
    for file in [path for room in ("runtime", "export", "calibration") for path in (REPO / room).rglob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Attribute):
                used = f"{getattr(node.value, 'id', '')}.{node.attr}"
                assert used not in ("time.time", "time.localtime") and node.attr not in ("st_mtime", "st_ctime"), file


def sealed(folder: Path) -> list[str]:
    """A command that runs Python programs where ``folder`` is on a read-only file system."""
    way = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    seal = f"mount --bind {folder} {folder} && mount -o remount,bind,ro {folder}"
    if shutil.which("unshare") is None or subprocess.run([*way, seal], check=False).returncode:
        pytest.skip("this machine lets nobody mount")
    return [*way, f'{seal} && for program; do {sys.executable} -c "$program" || exit; done', "sh"]


@pytest.mark.parametrize(
    "command",
    [
        ["calibrate", "BUNDLE", "--images", "nowhere"],
        ["build", "BUNDLE", "--images", "nowhere"],
        ["eval", "BUNDLE", "--data", "nowhere", "--record"],
        ["bench", "BUNDLE", "--image", "nowhere"],
    ],
    ids=lambda command: command[0],
)
def test_what_writes_to_a_read_only_bundle_says_so_before_the_work(tmp_path: Path, command: list[str]) -> None:
    bundle = tiny_bundle(tmp_path / "b")
    program = denseport(*[bundle.path if word == "BUNDLE" else word for word in command])
    done = subprocess.run([*sealed(bundle.path), program], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "Read-only file system" in done.stderr, done.stderr


def test_a_read_only_bundle_can_be_run_and_is_not_written(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "b")
    image = tmp_path / "p.png"
    write_image(image, np.zeros((16, 16, 3), np.uint8))
    command = denseport("run", bundle.path, image, "-o", tmp_path / "o", "--json")
    again = denseport("run", bundle.path, image, "-o", bundle.path / "o")
    done = subprocess.run([*sealed(bundle.path), command, again], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "Read-only file system" in done.stderr and "Traceback" not in done.stderr
    assert json.loads(done.stdout)["failures"] == [] and (tmp_path / "o/p_mask.png").exists()
