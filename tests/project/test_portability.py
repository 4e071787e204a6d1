"""Denseport is imported, and looks at the machine, without what only POSIX or Linux has.

Neither Windows nor macOS is here: these tests take away from Linux what they lack.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from support import NEEDS_TENSORRT, modules

# In this order: libraries and Python's own modules choose their way when they are imported, so that they come first;
# then Denseport comes again, where its modules of POSIX, its functions and its paths are gone.
TAKE_AWAY = """
import importlib, io, os, pathlib, signal, sys

def import_all(names):
    for name in names:
        importlib.import_module(name)

import_all(NAMES)
for name in [name for name in sys.modules if name.partition(".")[0] == "denseport"]:
    del sys.modules[name]
for name in ("fcntl", "resource", "termios", "tty", "pty", "pwd", "grp", "posix", "syslog", "_posixshmem"):
    sys.modules[name] = None
for name in ("sched_getaffinity", "sysconf", "statvfs", "getuid", "geteuid", "fork", "fchmod", "getpgid", "killpg",
             "O_DIRECTORY", "O_NOFOLLOW", "O_CLOEXEC", "ST_RDONLY", "uname", "nice", "getloadavg"):
    if hasattr(os, name):
        delattr(os, name)
for name in ("SIGKILL", "SIGHUP", "SIGALRM", "SIGUSR1", "SIGPIPE", "alarm", "setitimer", "pthread_sigmask"):
    if hasattr(signal, name):
        delattr(signal, name)
"""

NO_PROC = """
real = io.open
def without_proc(file, *arguments, **named):
    if str(file).startswith(("/proc", "/sys")):
        raise FileNotFoundError(2, "No such file or directory", str(file))
    return real(file, *arguments, **named)
io.open = without_proc
sys.platform = "another"
"""


def run(*parts: str) -> str:
    done = subprocess.run([sys.executable, "-c", "\n".join(parts)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_module_is_imported_where_posix_is_missing() -> None:
    names = [name for name in modules() if name != NEEDS_TENSORRT]
    assert len(names) > 150
    run(f"NAMES = {names!r}", TAKE_AWAY, "import_all(NAMES)")


def test_the_test_would_see_a_module_that_needs_posix(tmp_path: Path) -> None:
    code = "try:\n    import fcntl\nexcept ImportError:\n    print('gone')\nprint(hasattr(os, 'statvfs'))"
    assert run("NAMES = ['numpy', 'cv2', 'tempfile']", TAKE_AWAY, code).split() == ["gone", "False"]


def test_the_machine_is_described_as_far_as_the_system_says(tmp_path: Path) -> None:
    names = ["denseport.runtime.system.machine", "denseport.runtime.benchmark.load", "onnxruntime", "filelock"]
    code = """
from denseport.runtime.benchmark.load import LoadMonitor
from denseport.runtime.benchmark.startup import _peak_mib
from denseport.runtime.system.cpus import usable_cpus
from denseport.runtime.system.machine import inspect_machine
machine = inspect_machine(look_for_gpus=False)
assert machine.cpus == usable_cpus() == os.cpu_count(), machine
assert machine.memory_gib is None and machine.processor, machine
assert "memory unknown" in machine.summary()["processor"], machine.summary()
conditions = LoadMonitor().stop()
assert conditions.others is None and conditions.clock_mhz is None and not conditions.warnings(), conditions
assert _peak_mib() is None
"""
    run(f"NAMES = {names!r}", TAKE_AWAY, NO_PROC, code)


def test_files_are_written_locked_and_cached_where_posix_is_missing(tmp_path: Path) -> None:
    code = f"""
os.environ["XDG_CACHE_HOME"] = {str(tmp_path)!r} + "/cache"
from pathlib import Path
from denseport.runtime.errors import OutputError
from denseport.runtime.system.files import cache_folder, exchange, refuse_unwritable, work_folder, write_atomic
place = Path({str(tmp_path)!r}) / "place"
write_atomic(place / "file", b"data")
refuse_unwritable(place)
try:
    refuse_unwritable(place / "file")
except OutputError:
    print("refused")
with work_folder(place) as folder:
    (folder / "x").touch()
assert [path.name for path in place.iterdir()] == ["file"]
assert cache_folder("kernels") == Path({str(tmp_path)!r}) / "cache/denseport/kernels"
assert not exchange(place, place)
"""
    names = ["denseport.runtime.system.files", "filelock"]
    assert run(f"NAMES = {names!r}", TAKE_AWAY, NO_PROC, code).split() == ["refused"]
