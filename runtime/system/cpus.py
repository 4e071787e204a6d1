"""How many CPUs this process may use, and what they can.

A container's limit is a quota of processor time in its control group, which neither ``os.cpu_count`` nor the affinity
mask shows: with 64 processors and a quota of 2, 64 threads would be stopped most of the time.

Source: the kernel's Documentation/admin-guide/cgroup-v2.rst (cpu.max) and scheduler/sched-bwc.rst (version 1).
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

from denseport.runtime.system.arguments import whole

__all__ = ["MOST_THREADS", "arithmetic", "check_threads", "has_bf16", "has_vnni", "usable_cpus"]

MOST_THREADS = 1024  # libraries start them all at once, each with a stack: minutes, where there are few processors
CPUINFO = Path("/proc/cpuinfo")
# What decides which artifact is the fastest, and the kernel's flags for it, of x86 and of ARM.
ARITHMETIC = {
    "AVX2": {"avx2"},
    "AVX-512": {"avx512f"},
    "SVE": {"sve"},
    "VNNI": {"avx512_vnni", "avx_vnni"},
    "DOTPROD": {"asimddp"},
    "AMX": {"amx_tile"},
    "I8MM": {"i8mm"},
    "BF16": {"avx512_bf16", "amx_bf16", "bf16"},
}
MEMBERSHIP, GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")  # which groups, and where they are mounted


def usable_cpus() -> int:
    """The processors of the affinity mask, or fewer where a control group's quota (rounded up) allows fewer.

    Systems without affinity masks (macOS, Windows) have no control groups either: all processors.
    """
    quotas = [math.ceil(quota) for folder in _folders() if (quota := _quota(folder)) is not None]
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([found, *quotas]))


def arithmetic() -> tuple[str, ...]:
    """Which of `ARITHMETIC` the processor has, as Linux tells; elsewhere nothing tells, and none is said."""
    try:
        lines = CPUINFO.read_text().splitlines()
    except OSError:
        return ()
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features"))), [])
    return tuple(name for name, known in ARITHMETIC.items() if not known.isdisjoint(flags))


def has_bf16() -> bool:
    """Whether the processor has arithmetic for BF16."""
    return "BF16" in arithmetic()


def has_vnni() -> bool:
    """Whether it sums products of 8-bit integers in 32 bits; else x86 adds pairs in 16, saturating."""
    return not {"VNNI", "DOTPROD"}.isdisjoint(arithmetic())


def check_threads(threads: int | None) -> int | None:
    """The number, or None for the default; raises InputError for one that nobody means."""
    return None if threads is None else whole("threads", threads, 1, MOST_THREADS)


def _folders() -> Iterator[Path]:
    """Each folder of this process's groups, up to the root: a parent's limit binds its children."""
    try:
        lines = MEMBERSHIP.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0":
            bases = [GROUPS, GROUPS / "unified"]
        elif "cpu" in controllers.split(","):
            bases = [GROUPS / controllers]
        else:
            continue
        # In a container the path may be the host's; what is mounted at the root is then the container's own group.
        below = Path(path.lstrip("/"))
        yield from (base / part for base in bases for part in (below, *below.parents))


def _quota(folder: Path) -> float | None:
    """Processors that a group allows; None where it sets no limit."""
    try:
        if (unified := folder / "cpu.max").is_file():
            quota, period = unified.read_text().split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text().strip()
            period = (folder / "cpu.cfs_period_us").read_text().strip()
    except OSError:
        return None
    return int(quota) / int(period) if quota.isdigit() and int(quota) and int(period) else None
