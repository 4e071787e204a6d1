"""Hours of `denseport serve` and of ``Segmenter.stream`` under load on loopback: memory, descriptors, latency.

    python scripts/hardening/soak.py BUNDLE [--minutes 120] [--clients 2] [--plot FOLDER] [--json]

Clients send images of several sizes and, now and then, a broken one. The server is a process of its own; so is the
stream, which reads the same images for ever. Every so often the resident memory and the open descriptors of both, and
the clients' median latency, are noted. Growth is the median of the last quarter over that of the second quarter, since
the first warms up. Exit code 1: more than 2 % of memory, or any descriptor.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import cv2

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bench"))
from serve import FORM, form, sample_jpeg, serving

from denseport.runtime.media.images import decode_image, write_image
from denseport.runtime.media.plot import Axis, Series, chart
from denseport.runtime.system.machine import inspect_machine

GROWTH = 1.02
SIZES = ((683, 512), (512, 683), (320, 240), (641, 333))  # width, height
STREAM = """
import itertools, sys
from denseport.runtime import Segmenter
with Segmenter(sys.argv[1]) as segmenter:
    for _ in segmenter.stream(itertools.cycle(sys.argv[2:])):
        pass
"""


@dataclass
class Track:
    """What was noted of one process."""

    minutes: list[float] = field(default_factory=list)
    mib: list[float] = field(default_factory=list)
    descriptors: list[int] = field(default_factory=list)

    def note(self, minute: float, pid: int) -> None:
        """Look at a process.

        Raises:
            OSError: it is gone.
        """
        status = Path(f"/proc/{pid}/status").read_text()
        resident = next(line for line in status.splitlines() if line.startswith("VmRSS:"))
        self.minutes.append(minute)
        self.mib.append(int(resident.split()[1]) / 1024)
        self.descriptors.append(len(list(Path(f"/proc/{pid}/fd").iterdir())))

    def growth(self) -> tuple[float, float]:
        """Of memory, as a ratio, and of descriptors, as a difference."""
        return _quarter(self.mib, 3) / _quarter(self.mib, 1), _quarter(self.descriptors, 3) - _quarter(
            self.descriptors, 1
        )


def _quarter(values: list[float] | list[int], number: int) -> float:
    size = max(1, len(values) // 4)
    return statistics.median(values[number * size : (number + 1) * size] or values[-1:])


class Clients:
    """Threads that send one request after the other until they are told to stop."""

    def __init__(self, address: str, bodies: list[bytes], count: int) -> None:
        self._address, self._bodies = address, bodies
        self.statuses: Counter[int] = Counter()
        self._latencies: list[float] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._send, args=[i]) for i in range(count)]
        for thread in self._threads:
            thread.start()

    def _send(self, offset: int) -> None:
        connection = http.client.HTTPConnection(self._address, timeout=120)
        for body in itertools.islice(itertools.cycle(self._bodies), offset, None):
            if self._stop.is_set():
                return
            start = time.perf_counter()
            connection.request("POST", "/v1/segment", body, FORM)
            response = connection.getresponse()
            response.read()
            self._latencies.append(1000 * (time.perf_counter() - start))
            self.statuses[response.status] += 1

    def latency(self) -> float:
        """Median milliseconds since the last call."""
        taken, self._latencies = self._latencies, []
        return statistics.median(taken) if taken else float("nan")

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def soak(bundle: Path, minutes: float, clients: int, folder: Path) -> dict[str, object]:
    sample = decode_image(sample_jpeg(), "the sample")
    images = [cv2.resize(sample, size, interpolation=cv2.INTER_AREA) for size in SIZES]
    files = [folder / f"{i}.png" for i in range(len(images))]
    for file, each in zip(files, images, strict=True):
        write_image(file, each)
    encoded = [bytes(cv2.imencode(".jpg", each)[1]) for each in images]
    tracks, latency = {"serve": Track(), "stream": Track()}, []
    stream = subprocess.Popen([sys.executable, "-c", STREAM, str(bundle), *map(str, files)])
    try:
        with serving(bundle) as (address, pid):
            load = Clients(address, [form(data) for data in (*encoded * 4, encoded[0][:2000])], clients)
            begin = time.monotonic()
            try:
                while (passed := (time.monotonic() - begin) / 60) < minutes:
                    time.sleep(max(1.0, minutes * 60 / 240))
                    tracks["serve"].note(passed, pid)
                    tracks["stream"].note(passed, stream.pid)
                    latency.append(load.latency())
            finally:
                load.stop()
    finally:
        stream.terminate()
        stream.wait()
    return {
        "machine": inspect_machine().summary(),
        "minutes": minutes,
        "clients": clients,
        "statuses": dict(load.statuses),
        "latency_ms": latency,
        "tracks": {name: vars(track) for name, track in tracks.items()},
        "growth": {name: track.growth() for name, track in tracks.items()},
    }


def plots(result: dict, folder: Path) -> None:
    """``soak_memory.svg``, ``soak_descriptors.svg`` and ``soak_latency.svg``, against the minutes passed."""
    tracks = result["tracks"]

    def of_both(key: str) -> list[Series]:
        return [Series(name, list(zip(t["minutes"], t[key], strict=True))) for name, t in tracks.items()]

    noted = zip(tracks["serve"]["minutes"], result["latency_ms"], strict=True)
    latency = [Series("", [(minute, ms) for minute, ms in noted if ms == ms])]  # NaN: no answer in that time
    charts = {
        "memory": ("Resident memory of the server and of a stream", "MiB", of_both("mib")),
        "descriptors": ("Open descriptors of the server and of a stream", "descriptors", of_both("descriptors")),
        "latency": ("Median latency of the clients' requests", "ms", latency),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, (title, unit, series) in charts.items():
        text = chart(title, Axis("minutes", zero=True), Axis(unit, zero=True), series)
        (folder / f"soak_{name}.svg").write_text(text, encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--minutes", type=float, default=120.0)
    parser.add_argument("--clients", type=int, default=2)
    parser.add_argument("--plot", type=Path, metavar="FOLDER")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = soak(arguments.bundle, arguments.minutes, arguments.clients, Path(folder))
    if arguments.plot:
        plots(result, arguments.plot)
    if arguments.json:
        print(json.dumps(result, indent=1))
    print(f"{arguments.minutes:g} minutes, {arguments.clients} clients, answers by status: {result['statuses']}")
    passed = True
    for name, (memory, descriptors) in result["growth"].items():
        good = memory <= GROWTH and descriptors <= 0
        passed &= good
        print(f"{name}: memory x {memory:.3f}, descriptors {descriptors:+g}: {'pass' if good else 'FAIL'}")
    latency = result["latency_ms"]
    quarter = max(1, len(latency) // 4)
    early, late = (
        statistics.median(part) for part in (result["latency_ms"][:quarter], result["latency_ms"][-quarter:])
    )
    print(f"median latency: {early:.0f} ms in the first quarter, {late:.0f} ms in the last")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
