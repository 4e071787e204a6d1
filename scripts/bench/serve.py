"""`denseport serve` under load on loopback: its throughput against the bare session's, its refusals and its memory.

    python scripts/bench/serve.py BUNDLE [--clients 1 4 16] [--seconds 10] [--rounds 3] [--json]
    python scripts/bench/serve.py --preset dpt_deit-s16_distilled_160k

Throughput: one tensor through the session alone (the network and nothing else), then JPEG images over HTTP, mask PNGs
back, by 1, 4 and 16 clients, each with one connection and one request at a time; rounds interleaved, medians of the
rounds' ratios. Clients and server share the machine. Overload: twice as many clients as the server admits. Memory:
resident, of the server, after each part. ``--preset`` makes a bundle of a published model with random weights.
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

import cv2
from random_bundle import random_bundle

from denseport.runtime.media.images import decode_image
from denseport.runtime.pipeline.preprocess import fit_image, normalise
from denseport.runtime.segmenter import Segmenter
from denseport.runtime.serving.http.limits import Limits
from denseport.runtime.system.machine import inspect_machine

SIZE = (683, 512)  # width, height: ADE20K's median image
FORM = {"Content-Type": "multipart/form-data; boundary=x"}


def sample_jpeg() -> bytes:
    """The page's sample as a JPEG of `SIZE`."""
    sample = decode_image(
        files("denseport.runtime.serving.http").joinpath("static/sample.jpg").read_bytes(), "sample.jpg"
    )
    return bytes(cv2.imencode(".jpg", cv2.resize(sample, SIZE, interpolation=cv2.INTER_AREA))[1])


def bare(segmenter: Segmenter, data: bytes, seconds: float) -> float:
    """Inferences a second of the session alone."""
    preprocess, image = segmenter.protocol.preprocess, decode_image(data, "the sample")
    tensor = normalise(fit_image(image, preprocess), preprocess)
    segmenter.session.run(tensor)
    count, start = 0, time.perf_counter()
    while (now := time.perf_counter()) - start < seconds:
        segmenter.session.run(tensor)
        count += 1
    return count / (now - start)


@contextmanager
def serving(bundle: Path) -> Iterator[tuple[str, int]]:
    """The address of a server in a process of its own, and the process's number."""
    command = [str(Path(sys.executable).with_name("denseport")), "serve", str(bundle), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        url = next((line.strip() for line in process.stdout or () if line.startswith("http://")), None)
        if url is None:
            raise SystemExit("the server did not start")
        yield url.removeprefix("http://").rstrip("/"), process.pid
    finally:
        process.terminate()
        process.wait()


def form(data: bytes) -> bytes:
    """The body of a request with an image; its header is `FORM`."""
    return b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n' + data + b"\r\n--x--\r\n"


def load(address: str, data: bytes, clients: int, seconds: float) -> tuple[float, Counter[int]]:
    """Answers with a mask a second, and how often each status came."""
    body = form(data)
    statuses: Counter[int] = Counter()
    stop = time.perf_counter() + seconds

    def client() -> None:
        connection = http.client.HTTPConnection(address, timeout=120)
        while time.perf_counter() < stop:
            connection.request("POST", "/v1/segment", body, FORM)
            response = connection.getresponse()
            response.read()
            statuses[response.status] += 1
            if response.status == 503:
                time.sleep(0.05)  # what a client should wait is longer; this is to find out whether it breaks

    threads = [threading.Thread(target=client) for _ in range(clients)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return statuses[200] / (time.perf_counter() - start), statuses


def resident(address: str) -> float:
    """MiB that the server holds."""
    connection = http.client.HTTPConnection(address, timeout=20)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    line = next(line for line in text.splitlines() if line.startswith("process_resident_memory_bytes "))
    return float(line.split()[1]) / 2**20


def measure(bundle: Path, arguments: argparse.Namespace) -> dict[str, object]:
    data = sample_jpeg()
    ratios: dict[int, list[float]] = {clients: [] for clients in arguments.clients}
    rates: list[float] = []
    memory: list[float] = []
    with Segmenter(bundle) as segmenter, serving(bundle) as (address, _):
        load(address, data, 2, min(5.0, arguments.seconds))
        memory.append(resident(address))
        for _ in range(arguments.rounds):
            for clients in arguments.clients:
                alone = bare(segmenter, data, arguments.seconds / 2)
                served, statuses = load(address, data, clients, arguments.seconds)
                if set(statuses) != {200}:
                    raise SystemExit(f"{clients} clients got {dict(statuses)}")
                alone = (alone + bare(segmenter, data, arguments.seconds / 2)) / 2  # before and after
                rates.append(alone)
                ratios[clients].append(served / alone)
            memory.append(resident(address))
        over = 2 * Limits().admitted
        served, statuses = load(address, data, over, arguments.seconds)
        memory.append(resident(address))
        description = segmenter.description
    return {
        "session": description,
        "machine": inspect_machine().summary(),
        "image": SIZE,
        "bare_per_second": statistics.median(rates),
        "ratios": {clients: [round(each, 3) for each in values] for clients, values in ratios.items()},
        "overload": {"clients": over, "statuses": dict(statuses), "per_second": served},
        "resident_mib": [round(each, 1) for each in memory],
    }


def show(result: dict) -> None:
    print(f"{result['session']}; JPEG of {result['image'][0]} x {result['image'][1]}; {result['machine']}")
    print(f"bare session: {result['bare_per_second']:.2f} images/s")
    for clients, values in result["ratios"].items():
        print(f"{clients:3} clients: {statistics.median(values):.2f} of it (rounds: {', '.join(map(str, values))})")
    overload = result["overload"]
    print(f"{overload['clients']} clients: statuses {overload['statuses']}, {overload['per_second']:.2f} masks/s")
    print(f"resident MiB, after warm-up, each round and the overload: {result['resident_mib']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", nargs="?", type=Path)
    parser.add_argument("--preset")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if not (arguments.bundle or arguments.preset):
        parser.error("give BUNDLE or --preset")
    with tempfile.TemporaryDirectory() as folder:
        bundle = arguments.bundle or random_bundle(arguments.preset, Path(folder) / "bundle")
        result = measure(bundle, arguments)
    print(json.dumps(result, indent=1)) if arguments.json else show(result)


if __name__ == "__main__":
    main()
