"""The HTTP API of ``denseport serve``: what it answers, what it refuses, and how it ends."""

from __future__ import annotations

import dataclasses
import http.client
import io
import itertools
import json
import re
import shutil
import signal
import socket
import struct
import sys
import tempfile
import threading
import zlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import pytest
from bundles import engine_artifact
from fake_tensorrt import RECORD
from fastapi.openapi.models import OpenAPI
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from pycocotools import mask as pycoco
from serving import Running, encoded, random_image, running, start, until
from support import stored_indices

from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.cli.main import main
from denseport.runtime.errors import InputError
from denseport.runtime.media.images import decode_image
from denseport.runtime.media.overlay import overlay
from denseport.runtime.pipeline.results import Segmentation
from denseport.runtime.segmenter import Segmenter
from denseport.runtime.serving.http.images import decode_upload, image_size
from denseport.runtime.serving.http.limits import Limits, Refusal
from denseport.runtime.system.machine import inspect_machine, install_command

IMAGE = encoded(random_image())


@pytest.fixture(scope="module")
def server(sample: Bundle) -> Iterator[Running]:
    with running(sample, Limits(max_bytes=1 << 20, max_pixels=300_000)) as started:
        yield started


@pytest.fixture(scope="module")
def mask(sample: Bundle) -> np.ndarray:
    with Segmenter(sample, threads=1) as segment:
        found = segment(random_image()).mask
    assert len(np.unique(found)) > 1, "one class only: the comparisons would show little"
    return found


def assert_refused(response: httpx.Response, status: int, *words: str) -> None:
    assert response.status_code == status, response.text
    told = response.json()
    assert set(told) == {"error", "remedy"}
    for word in words:
        assert word in f"{told['error']} {told['remedy']}"
    assert "/tmp" not in response.text and "Traceback" not in response.text


# What it answers


def test_the_mask_is_the_segmenters(server: Running, mask: np.ndarray, sample: Bundle) -> None:
    response = server.segment(IMAGE)
    assert response.status_code == 200 and response.headers["content-type"] == "image/png"
    data = response.content
    palette = data[data.index(b"PLTE") + 4 :][: 3 * len(sample.manifest.palette)]
    assert palette == b"".join(map(bytes, sample.manifest.palette))
    np.testing.assert_array_equal(stored_indices(data), mask)


@pytest.mark.parametrize(
    ("accepted", "encoding"),
    [
        ("gzip", "gzip"),
        ("br, GZip;q=0.5", "gzip"),
        ("identity", "identity"),
        ("gzip;q=0, *;q=1", "identity"),
        ("gzip; q=0.000", "identity"),
    ],
)
def test_raw_indices_are_the_segmenters(server: Running, mask: np.ndarray, accepted: str, encoding: str) -> None:
    response = server.client.post(
        "/v1/segment?format=raw", files={"image": IMAGE}, headers={"Accept-Encoding": accepted}
    )
    assert response.headers.get("content-encoding", "identity") == encoding
    assert response.headers["x-mask-type"] == "uint8"
    size = int(response.headers["x-mask-height"]), int(response.headers["x-mask-width"])
    np.testing.assert_array_equal(np.frombuffer(response.content, np.uint8).reshape(size), mask)


@pytest.mark.parametrize("kind", ["image/png", "image/jpeg", "application/octet-stream", "IMAGE/PNG; charset=x"])
def test_an_image_alone_is_taken_as_a_form_is(server: Running, mask: np.ndarray, kind: str) -> None:
    response = server.client.post("/v1/segment?format=raw", content=IMAGE, headers={"Content-Type": kind})
    assert response.status_code == 200  # its own first bytes tell what it is
    np.testing.assert_array_equal(np.frombuffer(response.content, np.uint8).reshape(mask.shape), mask)


@pytest.mark.parametrize("kind", ["text/plain", "application/json", "", "multipart/mixed"])
def test_another_type_of_body_is_refused_with_both_ways(server: Running, kind: str) -> None:
    response = server.client.post("/v1/segment", content=IMAGE, headers={"Content-Type": kind})
    assert response.status_code == 400 and "-F image=@" in response.json()["remedy"]
    assert f"the content type is {kind!r}" in response.json()["error"] and "image/webp" in response.json()["error"]
    assert "--data-binary" in response.json()["remedy"]


def test_an_image_alone_has_the_limits_of_one_in_a_form(sample: Bundle) -> None:
    headers = {"Content-Type": "image/png"}
    with running(sample, Limits(max_bytes=len(IMAGE) - 1)) as small:
        assert small.client.post("/v1/segment", content=IMAGE, headers=headers).status_code == 413
        chunks = (IMAGE[at : at + 100] for at in range(0, len(IMAGE), 100))  # no length is told
        assert small.client.post("/v1/segment", content=chunks, headers=headers).status_code == 413
        assert small.client.post("/v1/segment", content=b"", headers=headers).status_code == 415


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # within pycocotools
def test_documents_and_arrays_are_the_segmentations_own(server: Running, mask: np.ndarray, sample: Bundle) -> None:
    coco, polygons, arrays = (server.segment(IMAGE, format=each) for each in ("coco", "geojson", "npz"))
    assert [each.headers["content-type"] for each in (coco, polygons, arrays)] == [
        "application/json",
        "application/geo+json",
        "application/x-npz",
    ]
    for each in coco.json()["annotations"]:
        region = pycoco.decode(each["segmentation"]).astype(bool)
        np.testing.assert_array_equal(region, mask == each["category_id"])
    assert {each["category_id"] for each in coco.json()["annotations"]} == set(np.unique(mask).tolist())
    found = {each["properties"]["class"]: each["properties"]["pixels"] for each in polygons.json()["features"]}
    assert found == {int(index): int((mask == index).sum()) for index in np.unique(mask)}
    with Segmenter(sample, threads=1) as segment, np.load(io.BytesIO(arrays.content)) as told:
        expected = segment(random_image(), scores=True)
        np.testing.assert_array_equal(told["mask"], mask)
        np.testing.assert_allclose(told["scores"], expected.scores, atol=1e-6)


def test_the_report_counts_the_mask(server: Running, mask: np.ndarray, sample: Bundle) -> None:
    told = server.segment(IMAGE, format="json").json()
    assert (told["height"], told["width"], told["artifact"]) == (*mask.shape, "model.onnx")
    for each in told["classes"]:
        assert each["percent"] == pytest.approx(100 * (mask == each["index"]).mean(), abs=1e-3)
        assert each["name"] == sample.manifest.classes[each["index"]].strip()
        assert bytes.fromhex(each["colour"][1:]) == bytes(sample.manifest.palette[each["index"]])
    assert {each["index"] for each in told["classes"]} == set(np.unique(mask).tolist())
    assert told["milliseconds"]["network"] > 0


def test_the_overlay_is_that_of_the_command(server: Running, mask: np.ndarray, sample: Bundle) -> None:
    response = server.segment(IMAGE, format="overlay", opacity=0.9, legend="false")
    assert response.headers["content-type"] == "image/jpeg"
    manifest = sample.manifest
    expected = overlay(random_image(), mask, manifest.classes, manifest.palette, opacity=0.9, legend=False)
    assert response.content == encoded(expected, ".jpg", cv2.IMWRITE_JPEG_QUALITY, 92)
    with_legend = decode_image(server.segment(IMAGE, format="overlay").content, "overlay")
    assert with_legend.shape[1] > expected.shape[1]


def test_more_than_256_classes_take_16_bits(sample: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = Bundle(shutil.copytree(sample.path, tmp_path / "many"))
    with running(bundle) as started:
        wide = np.arange(96 * 128, dtype=np.uint16).reshape(96, 128) % 300
        object.__setattr__(bundle.manifest, "classes", tuple(f"class {index}" for index in range(300)))
        object.__setattr__(bundle.manifest, "palette", ((1, 2, 3),) * 300)
        found = Segmentation(wide, "model.onnx", random_image(), bundle.manifest.classes, bundle.manifest.palette)
        monkeypatch.setattr(Segmenter, "__call__", lambda *_, **__: found)
        png = started.segment(IMAGE).content
        raw = started.segment(IMAGE, format="raw")
    np.testing.assert_array_equal(cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED), wide)
    assert raw.headers["x-mask-type"] == "uint16"
    np.testing.assert_array_equal(np.frombuffer(raw.content, "<u2").reshape(96, 128), wide)


def test_the_time_of_each_stage_is_in_the_head(server: Running) -> None:
    response = server.segment(IMAGE)
    stages = dict(re.findall(r"(\w+);dur=([\d.]+)", response.headers["server-timing"]))
    assert list(stages) == ["queue", "decode", "preprocess", "network", "postprocess", "encode"] and all(
        float(value) >= 0 for value in stages.values()
    )
    assert sum(map(float, stages.values())) < 1000 * response.elapsed.total_seconds()


def test_the_model_is_described(server: Running, sample: Bundle) -> None:
    told = server.client.get("/v1/model").json()
    assert told["name"] == sample.manifest.name and told["default_artifact"] == "model.onnx"
    assert [each["name"] for each in told["classes"]] == [name.strip() for name in sample.manifest.classes]
    assert told["max_bytes"] == 1 << 20 and told["max_pixels"] == 300_000
    assert str(sample.path) not in json.dumps(told)


def test_what_eval_recorded_is_told(sample: Bundle, tmp_path: Path) -> None:
    bundle = Bundle(shutil.copytree(sample.path, tmp_path / "measured"))
    bundle.note("model.onnx", {"accuracy": {"mIoU": 42.5, "images": 3}, "audit": {"agreement": 0.995, "passed": True}})
    with running(bundle) as started:
        (told,) = started.client.get("/v1/model").json()["artifacts"]
        assert told["milliseconds"] is None
        started.segment(IMAGE)
        after = started.client.get("/v1/model").json()["artifacts"][0]
    assert (told["mIoU"], told["agreement"], told["runs_here"]) == (42.5, 99.5, True)
    assert after["milliseconds"]["network"] > 0


def test_openapi_describes_it(server: Running) -> None:
    document = server.client.get("/openapi.json").json()
    OpenAPI.model_validate(document)
    schemas = document["components"]["schemas"]
    operation = document["paths"]["/v1/segment"]["post"]
    assert {"200", "400", "408", "413", "415", "422", "500", "503", "504"} == set(operation["responses"])
    assert operation["requestBody"]["content"]["multipart/form-data"]["schema"]["required"] == ["image"]
    assert set(schemas["Report"]["properties"]) == set(server.segment(IMAGE, format="json").json())
    assert set(schemas["ModelInfo"]["properties"]) == set(server.client.get("/v1/model").json())


def test_prometheus_reads_the_metrics(sample: Bundle) -> None:
    with running(sample) as started:
        for data in (IMAGE, IMAGE, b"no image"):
            started.segment(data)
        families = {
            family.name: family for family in text_string_to_metric_families(started.client.get("/metrics").text)
        }
    requests = {
        s.labels["status"]: s.value for s in families["denseport_requests"].samples if s.name.endswith("_total")
    }
    assert requests == {"200": 2, "415": 1}
    counts = [s for s in families["denseport_stage_seconds"].samples if s.name.endswith("_count")]
    assert {s.labels["stage"]: s.value for s in counts}["network"] == 2
    assert families["denseport_pixels"].samples[0].value == 2 * 96 * 128
    assert families["denseport_active_requests"].samples[0].value == 0


# What it refuses


@pytest.mark.parametrize(
    ("data", "status", "word"),
    [
        (b"", 415, "empty"),
        (b"GIF89a no", 415, "JPEG, PNG, WebP and BMP"),
        (b"just text", 415, "JPEG, PNG, WebP and BMP"),
        (IMAGE[: len(IMAGE) // 2], 400, "cut short"),
        (IMAGE[:20], 400, "damaged"),
        (IMAGE.replace(b"IDAT", b"IDXT"), 400, "no pixels"),
        (encoded(random_image(600, 600), ".jpg"), 413, "600 x 600"),
        (encoded(random_image(2, 20000)), 413, "16384"),
    ],
)
def test_a_bad_image_is_refused(server: Running, data: bytes, status: int, word: str) -> None:
    assert_refused(server.segment(data), status, word)


def test_a_bomb_is_refused_before_it_is_decoded(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("denseport.runtime.serving.http.images.decode_image", lambda *_: pytest.fail("it was decoded"))
    header = b"IHDR" + struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    assert_refused(server.segment(bomb + b"\0" * 1000), 413, "60000 x 60000")


def test_a_form_without_the_image_is_refused(server: Running) -> None:
    post = server.client.post
    assert_refused(post("/v1/segment", content=IMAGE), 400, "multipart/form-data", "curl")
    assert_refused(post("/v1/segment", files={"file": IMAGE}), 400, "a file 'file'", "-F image=@")
    assert_refused(post("/v1/segment", files=[("image", IMAGE), ("image", IMAGE)]), 400, "several", "/v1/batch")
    assert_refused(
        post("/v1/segment", files={"image": IMAGE}, data={"format": "json"}), 400, "a text 'format'", "?format="
    )
    assert_refused(post("/v1/segment", files={"image": (None, IMAGE)}), 400, "a text 'image'", "-F image=@")
    empty = {"Content-Type": "multipart/form-data; boundary=x"}
    assert_refused(post("/v1/segment", content=b"--x--\r\n", headers=empty), 400, "no file 'image'")
    broken = {"Content-Type": "multipart/form-data; boundary=x"}
    assert_refused(post("/v1/segment", content=b"--y\r\n", headers=broken), 400, "damaged")
    assert_refused(post("/v1/segment", content=b"", headers=broken), 400, "no last boundary")


def test_parameters_are_checked_before_the_image(server: Running) -> None:
    assert_refused(server.segment(b"", artifact="int8.onnx"), 422, "no artifact 'int8.onnx'", "model.onnx")
    assert_refused(server.segment(b"", artifact="../../etc/passwd"), 422, "no artifact")
    assert_refused(server.segment(b"", opacity=1.5), 422, "opacity")
    assert_refused(server.segment(b"", format="tiff"), 422, "format")
    assert_refused(server.segment(b"", opacty=0.5), 422, "'opacty'", "opacity")
    assert_refused(server.segment(b"", format="json", opacity=0.6), 422, "opacity means nothing", "overlay")
    assert_refused(server.segment(b"", legend="false"), 422, "legend means nothing")
    assert server.segment(IMAGE, opacity=0.5, legend="true").status_code == 200  # generated clients send defaults
    assert_refused(server.client.post("/v1/segment?format=json&format=raw"), 422, "'format' is given twice")
    assert_refused(server.client.get("/v1/model?artifact=model.onnx"), 422, "'artifact'", "none")
    assert_refused(server.client.get("/v1/segment"), 405)
    for path in ("/nothing", "/%2e%2e/%2e%2e/etc/passwd", "/sample.jpg/../../setup.cfg", "/docs/"):
        assert_refused(server.client.get(path), 404)


def test_an_artifact_of_another_machine_is_refused(
    sample: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = dataclasses.replace(inspect_machine(look_for_gpus=False), gpus=())
    for module in ("selection", "serving.http.service"):
        monkeypatch.setattr(f"denseport.runtime.{module}.inspect_machine", lambda **_: here)
    bundle = Bundle(shutil.copytree(sample.path, tmp_path / "engines"))
    bundle.add("fp16.sm_90.engine", engine_artifact("absent", RECORD))
    with running(bundle) as started:
        assert_refused(started.segment(IMAGE, artifact="fp16.sm_90.engine"), 422, "no NVIDIA GPU")
        told = {each["name"]: each for each in started.client.get("/v1/model").json()["artifacts"]}
    assert not told["fp16.sm_90.engine"]["runs_here"] and "GPU" in told["fp16.sm_90.engine"]["why_unsupported"]


def test_an_artifact_that_gives_masks_is_refused(sample_copy: Bundle) -> None:
    fp32 = sample_copy.artifact("model.onnx")
    sample_copy.add("fp32.mask.onnx", dataclasses.replace(fp32, output="mask"))
    with running(sample_copy) as started:
        assert_refused(started.segment(IMAGE, artifact="fp32.mask.onnx"), 422, "fp32.mask.onnx", "gives masks")
        told = {each["name"]: each for each in started.client.get("/v1/model").json()["artifacts"]}
    assert not told["fp32.mask.onnx"]["runs_here"] and "gives masks" in told["fp32.mask.onnx"]["why_unsupported"]
    assert told["model.onnx"]["runs_here"] and told["model.onnx"]["why_unsupported"] is None


def test_a_large_body_is_refused_while_it_is_sent(server: Running) -> None:
    """Without a length beforehand too; nothing of it is kept."""
    head = b"--x\r\nContent-Disposition: form-data; name=image; filename=a\r\n\r\n"
    chunks = itertools.chain([head], itertools.repeat(bytes(65536), 48))
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    assert_refused(server.client.post("/v1/segment", content=chunks, headers=headers), 413, "1048576 bytes")
    assert server.segment(IMAGE).status_code == 200


def test_a_client_that_reads_only_when_it_has_sent_gets_its_refusal(server: Running) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    size = 24 << 20  # more than all buffers between the two hold
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(f"POST /v1/segment HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n".encode())
        connection.sendall(bytes(size))
        assert connection.recv(4096).startswith(b"HTTP/1.1 413")


def test_nothing_of_a_request_reaches_the_disk(sample: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile.SpooledTemporaryFile, "rollover", lambda self: pytest.fail("a file was made"))
    noise = np.random.default_rng(0).integers(0, 256, (800, 900, 3)).astype(np.uint8)
    data = encoded(noise)
    assert len(data) > 2 << 20
    with running(sample) as started:
        assert started.segment(data, name="../../up.png").status_code == 200


class Gate:
    """Holds the network up until it is let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.entered, self.go = threading.Semaphore(0), threading.Event()
        call = Segmenter.__call__

        def held(segmenter: Segmenter, image: np.ndarray, **options: Any) -> Any:
            self.entered.release()
            assert self.go.wait(20)
            return call(segmenter, image, **options)

        monkeypatch.setattr(Segmenter, "__call__", held)


def test_beyond_the_queue_it_says_when_to_come_back(sample: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    with running(sample, Limits(concurrency=1, queue=1)) as started, ThreadPoolExecutor(2) as pool:
        gate = Gate(monkeypatch)
        accepted = [pool.submit(started.segment, IMAGE) for _ in range(2)]
        try:
            until(lambda: started.admission.active == 2)
            refused = [started.segment(IMAGE) for _ in range(3)]
            health = started.client.get("/health")
        finally:
            gate.go.set()
        for response in refused:
            assert_refused(response, 503, "waiting")
            assert int(response.headers["retry-after"]) >= 1
        assert health.json() == {"status": "alive"}
        assert [future.result().status_code for future in accepted] == [200, 200]
        assert started.segment(IMAGE).status_code == 200


def test_it_answers_when_the_time_is_out(sample: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    with running(sample, Limits(concurrency=1, timeout=0.4)) as started:
        until(lambda: started.segment(IMAGE).status_code == 200)  # loads what Python loads when it is first needed
        with monkeypatch.context() as patch:
            gate = Gate(patch)
            try:
                first, second = started.segment(IMAGE), started.segment(IMAGE)  # in work; waiting behind it
            finally:
                gate.go.set()
        for response in (first, second):
            assert_refused(response, 504, "0.4 s")
        begun = [gate.entered.acquire(blocking=False) for _ in range(2)]
        assert begun == [True, False], "the second was begun although nobody waited for it any more"
        until(lambda: started.segment(IMAGE).status_code == 200)


def test_an_upload_that_never_ends_is_refused(sample: Bundle) -> None:
    with running(sample, Limits(timeout=0.4)) as started:
        host, port = started.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(
                b"POST /v1/segment HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=x\r\n"
                b"Content-Length: 5000\r\n\r\n--x"
            )
            answer = connection.recv(4096)
        assert answer.startswith(b"HTTP/1.1 408")
        until(lambda: not started.admission.active)


def test_a_failure_of_ours_shows_nothing_of_the_machine(sample: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    with running(sample) as started:
        monkeypatch.setattr(Segmenter, "__call__", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("/tmp/secret")))
        assert_refused(started.segment(IMAGE), 500, "server failed")


def test_limits_are_checked() -> None:
    for wrong in (
        {"max_bytes": 0},
        {"max_images": 0},
        {"concurrency": 0},
        {"queue": -1},
        {"timeout": 0.0},
        {"timeout": float("nan")},
    ):
        with pytest.raises(InputError, match=next(iter(wrong)).replace("_", "-")):
            Limits(**wrong)  # type: ignore[arg-type]


def test_a_name_that_no_host_has_is_refused(sample: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", str(sample.path), "--host", "n" * 300]) == 2
    assert "Give another --host" in capsys.readouterr().err


# Images


@pytest.mark.parametrize(
    ("suffix", "params"),
    [
        (".jpg", ()),
        (".jpg", (cv2.IMWRITE_JPEG_PROGRESSIVE, 1)),
        (".png", ()),
        (".bmp", ()),
        (".webp", (cv2.IMWRITE_WEBP_QUALITY, 80)),
        (".webp", (cv2.IMWRITE_WEBP_QUALITY, 101)),
    ],
)
def test_the_size_is_read_off_the_header(suffix: str, params: tuple[int, ...]) -> None:
    for height, width in ((33, 70), (257, 1025)):
        data = encoded(random_image(height, width), suffix, *params)
        assert image_size(data) == (width, height)
        assert decode_upload(data, Limits()).shape == (height, width, 3)


def test_a_turned_photograph_is_decoded_upright() -> None:
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"  # orientation 6: turn clockwise
    jpeg = encoded(random_image(40, 60), ".jpg")
    turned = jpeg[:2] + b"\xff\xe1" + struct.pack(">H", 2 + len(exif)) + exif + jpeg[2:]
    assert image_size(turned) == (60, 40)
    assert decode_upload(turned, Limits()).shape == (60, 40, 3)


HEADERS = st.sampled_from(
    [b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF\xff\0\0\0WEBP", b"RIFF\xff\0\0\0WEBPVP8X", b"BM"]
)


@settings(max_examples=150, deadline=None)
@given(header=HEADERS, rest=st.binary(max_size=80))
def test_any_header_is_read_or_refused(header: bytes, rest: bytes) -> None:
    try:
        width, height = image_size(header + rest)
    except Refusal as err:
        assert err.status == 400
    else:
        assert width > 0 and height > 0


# How it lives and ends


def test_ready_is_proved_by_an_image(sample: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("denseport.runtime.serving.http.service.CANARY_EVERY", 0.0)
    with running(sample) as started:
        assert started.client.get("/ready").json() == {"status": "ready"}
        call = Segmenter.__call__
        with monkeypatch.context() as patch:
            patch.setattr(
                Segmenter, "__call__", lambda *given: dataclasses.replace(call(*given), mask=call(*given).mask * 0)
            )
            assert_refused(started.client.get("/ready"), 503, "another result than at the start")
            patch.setattr(Segmenter, "__call__", lambda *_, **__: (_ for _ in ()).throw(MemoryError()))
            assert_refused(started.client.get("/ready"), 503, "MemoryError")
        assert started.client.get("/ready").status_code == 200
        started.admission.draining = True
        assert_refused(started.client.get("/ready"), 503, "shutting down")
        refused = started.segment(IMAGE)
        assert_refused(refused, 503, "shutting down")
        assert refused.headers["connection"] == "close"
        assert started.client.get("/health").status_code == 200


def post(connection: http.client.HTTPConnection) -> int:
    body = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n' + IMAGE + b"\r\n--x--\r\n"
    connection.request("POST", "/v1/segment", body, {"Content-Type": "multipart/form-data; boundary=x"})
    response = connection.getresponse()
    assert len(response.read()) == int(response.headers["content-length"])
    return response.status


def test_sigterm_under_load_loses_no_accepted_request(sample: Bundle) -> None:
    process, url = start(sample, "--threads", "1", "--queue", "4")
    address = url.removeprefix("http://").rstrip("/")
    outcomes: Counter[Any] = Counter()

    def load() -> None:
        connection = http.client.HTTPConnection(address, timeout=20)
        while True:
            try:
                outcomes[post(connection)] += 1
            except ConnectionRefusedError:
                return
            except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError):
                outcomes["closed"] += 1  # an idle connection was: nothing of an answer was sent
                connection.close()

    threads = [threading.Thread(target=load) for _ in range(8)]
    for thread in threads:
        thread.start()
    until(lambda: outcomes[200] > 20)
    process.send_signal(signal.SIGTERM)
    for thread in threads:
        thread.join(30)
    stderr = process.communicate(timeout=30)[1]
    assert process.returncode == 0, stderr
    assert set(outcomes) <= {200, 503, "closed"} and outcomes["closed"] <= len(threads)
    assert stderr == f"stopped; requests accepted: {outcomes[200]}\n"


def test_it_listens_on_loopback_unless_told(sample: Bundle) -> None:
    process, url = start(sample, "--host", "0.0.0.0")
    port = int(url.rstrip("/").rpartition(":")[2])
    try:
        with httpx.Client() as client:
            assert client.get(f"http://127.0.0.1:{port}/health").status_code == 200
    finally:
        process.send_signal(signal.SIGINT)
    assert "whoever reaches 0.0.0.0:" in process.communicate(timeout=20)[1]


def test_what_cannot_be_served_is_said(
    sample: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["serve", str(sample.path), "--port", str(taken.getsockname()[1])]) == 2
    assert "Address already in use" in capsys.readouterr().err
    assert main(["serve", str(tmp_path)]) == 2
    assert "not a bundle" in capsys.readouterr().err
    assert main(["serve", str(sample.path), "--port", "0", "--artifact", "fp8.onnx"]) == 2
    assert "no artifact 'fp8.onnx'" in capsys.readouterr().err
    assert main(["serve", str(sample.path), "--queue", "-1"]) == 2
    assert "--queue: '-1'" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "fastapi", None)
    assert main(["serve", str(sample.path), "--port", "0"]) == 3
    assert install_command("serve") in capsys.readouterr().err
