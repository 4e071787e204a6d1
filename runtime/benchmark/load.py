"""The load of the machine while something was measured: other processes, clocks, energy."""

from __future__ import annotations

import ctypes
import os
import time
from dataclasses import dataclass
from pathlib import Path

from denseport.runtime.system.machine import proc_values

__all__ = ["Conditions", "LoadMonitor"]

BUSY = 0.10  # of the processors, taken by others, before a measurement is doubted


@dataclass(frozen=True)
class Conditions:
    """What a `LoadMonitor` saw."""

    seconds: float
    others: float | None  # share of all processors that other processes took, 0..1; None where the system does not say
    clock_mhz: tuple[float, float] | None  # mean of the processors' clocks at the start and at the end
    energy_joules: float | None  # of GPU 0; None where NVML does not say

    def warnings(self) -> list[str]:
        """Why the figures may be wrong."""
        found = []
        if self.others is not None and self.others > BUSY:
            found.append(
                f"other processes used {100 * self.others:.0f} % of the processors during the measurement: "
                "measure again on an idle machine"
            )
        if self.clock_mhz is not None and self.clock_mhz[1] < 0.85 * self.clock_mhz[0]:
            before, after = self.clock_mhz
            found.append(f"the processors' clock fell from {before:.0f} to {after:.0f} MHz during the measurement")
        return found


class LoadMonitor:
    """Watches the machine from its making to `stop`; costs nothing in between."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._busy, self._own = _busy_seconds(), _own_seconds()
        self._clock = _clock_mhz()
        self._energy = _energy_joules()

    def stop(self) -> Conditions:
        """What happened since it was made."""
        seconds = time.monotonic() - self._start
        busy, clock, energy = _busy_seconds(), _clock_mhz(), _energy_joules()
        others = None
        if busy is not None and self._busy is not None:
            others = (busy - self._busy - (_own_seconds() - self._own)) / (seconds * (os.cpu_count() or 1))
            others = min(max(others, 0.0), 1.0)
        clocks = (self._clock, clock) if self._clock is not None and clock is not None else None
        used = energy - self._energy if energy is not None and self._energy is not None else None
        return Conditions(seconds, others, clocks, used)


def _busy_seconds() -> float | None:
    """Time that all processors of the machine have worked since it started."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    except OSError:
        return None
    user, nice, system, _idle, _wait, interrupt, soft, steal = (int(field) for field in fields[:8])
    return (user + nice + system + interrupt + soft + steal) / os.sysconf("SC_CLK_TCK")


def _own_seconds() -> float:
    """Time that this process and its finished children have worked."""
    return sum(os.times()[:4])


def _clock_mhz() -> float | None:
    clocks = [float(value) for value in proc_values("cpuinfo", "cpu MHz")]
    return sum(clocks) / len(clocks) if clocks else None


def _energy_joules() -> float | None:
    """Energy that GPU 0 has used since its driver was loaded, from NVML (Volta and newer)."""
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    handle, millijoules = ctypes.c_void_p(), ctypes.c_ulonglong()
    if nvml.nvmlInit_v2() or nvml.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(handle)):
        return None
    if nvml.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(millijoules)):
        return None
    return millijoules.value / 1000
