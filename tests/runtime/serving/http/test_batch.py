"""Several images in one request: what is answered, and that every limit holds for all of them together."""

from __future__ import annotations

import asyncio
import io
import zipfile
from collections.abc import Iterator, Sequence

import cv2
import httpx
import numpy as np
import pytest
from hostile import tiny_bundle
from serving import Running, encoded, random_image, running, until
from support import stored_indices

from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.segmenter import Segmenter
from denseport.runtime.serving.http.answers import AnswerOptions, Format
from denseport.runtime.serving.http.limits import Limits, Refusal
from denseport.runtime.serving.http.service import Service

PIXELS = [random_image(32, 64, 1), random_image(48, 40, 2), random_image(32, 64, 3)]
IMAGES = [encoded(each) for each in PIXELS]
MOST_PIXELS = sum(each.shape[0] * each.shape[1] for each in PIXELS)
MOST_BYTES = 40_000


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("batch") / "bundle")


@pytest.fixture(scope="module")
def server(bundle: Bundle) -> Iterator[Running]:
    with running(bundle, Limits(max_bytes=MOST_BYTES, max_pixels=MOST_PIXELS, max_images=4)) as started:
        yield started


@pytest.fixture(scope="module")
def masks(bundle: Bundle) -> list[np.ndarray]:
    with Segmenter(bundle, threads=1) as segment:
        return [segment(each).mask for each in PIXELS]


def send(server: Running, images: Sequence[bytes], **query: str) -> httpx.Response:
    files = [("image", ("../../same.png", data)) for data in images]
    return server.client.post("/v1/batch", files=files, params=query)


def unpacked(response: httpx.Response) -> dict[str, bytes]:
    assert response.status_code == 200 and response.headers["content-type"] == "application/zip"
    with zipfile.ZipFile(io.BytesIO(response.content)) as archive:
        assert archive.testzip() is None
        return {name: archive.read(name) for name in archive.namelist()}


def assert_refused(response: httpx.Response, status: int, *words: str) -> None:
    assert response.status_code == status, response.text
    assert set(response.json()) == {"error", "remedy"}
    for word in words:
        assert word in response.text


def test_masks_come_in_the_order_of_the_images(server: Running, masks: list[np.ndarray]) -> None:
    found = unpacked(send(server, IMAGES))
    assert list(found) == ["1.png", "2.png", "3.png"]
    for data, mask in zip(found.values(), masks, strict=True):
        np.testing.assert_array_equal(stored_indices(data), mask)


def test_arrays_and_overlays_are_those_of_single_requests(server: Running, masks: list[np.ndarray]) -> None:
    for data, mask in zip(unpacked(send(server, IMAGES, format="npz")).values(), masks, strict=True):
        with np.load(io.BytesIO(data)) as arrays:
            np.testing.assert_array_equal(arrays["mask"], mask)
            assert arrays["scores"].shape == mask.shape
    query = {"format": "overlay", "opacity": "0.8", "legend": "false"}
    overlays = unpacked(send(server, IMAGES, **query))
    assert list(overlays.values()) == [server.segment(data, **query).content for data in IMAGES]
    assert all(cv2.imdecode(np.frombuffer(data, np.uint8), 1) is not None for data in overlays.values())


@pytest.mark.parametrize("format", ["json", "coco", "geojson"])
def test_documents_are_a_list_of_those_of_single_requests(server: Running, format: str) -> None:
    response = send(server, IMAGES, format=format)
    assert response.headers["content-type"] == "application/json"
    expected = [server.segment(data, format=format).json() for data in IMAGES]
    for told, each in zip(response.json(), expected, strict=True):
        assert told | {"milliseconds": 0} == each | {"milliseconds": 0}


def test_one_image_is_a_list_too(server: Running) -> None:
    assert len(send(server, IMAGES[:1], format="json").json()) == 1
    assert list(unpacked(send(server, IMAGES[:1]))) == ["1.png"]


def test_each_image_is_counted_and_the_request_once(bundle: Bundle) -> None:
    with running(bundle) as started:
        response = send(started, IMAGES)
        figures = started.client.get("/metrics").text
    assert response.headers["x-artifact"] == "model.onnx" and "network;dur=" in response.headers["server-timing"]
    assert f'denseport_pixels_total{{artifact="model.onnx"}} {float(MOST_PIXELS)}' in figures
    assert 'denseport_requests_total{status="200"} 1.0' in figures


# What is refused


def test_the_limits_hold_for_all_together(server: Running) -> None:
    tiny = encoded(random_image(4, 4))
    assert_refused(send(server, [*IMAGES, tiny]), 413, "image 4 of 4", "4 x 4", f"{MOST_PIXELS} together")
    assert_refused(send(server, [tiny] * 5), 413, "more than 4 images")
    assert_refused(send(server, [tiny] * 60), 413, "more than 4 images")
    noise = encoded(np.random.default_rng(0).integers(0, 256, (64, 60, 3)).astype(np.uint8))
    assert len(noise) < MOST_BYTES < 4 * len(noise)
    assert_refused(send(server, [noise] * 4), 413, f"{MOST_BYTES} bytes")
    assert send(server, [tiny] * 4).status_code == 200


@pytest.mark.parametrize(
    ("bad", "status", "word"),
    [
        (b"", 415, "empty"),
        (b"GIF89a no", 415, "JPEG, PNG, WebP and BMP"),
        (IMAGES[0][: len(IMAGES[0]) // 2], 400, "cut short"),
        (encoded(random_image(1, 900)), 422, "patch"),
    ],
    ids=["empty", "GIF", "half", "narrow"],
)
def test_a_bad_image_is_named(server: Running, bad: bytes, status: int, word: str) -> None:
    assert_refused(send(server, [IMAGES[0], bad, IMAGES[1]]), status, "image 2 of 3", word)


def test_a_form_that_holds_something_else_is_refused_by_name(server: Running) -> None:
    post = server.client.post
    assert_refused(post("/v1/batch", files=[("image", IMAGES[0]), ("images", IMAGES[1])]), 400, "a file 'images'")
    assert_refused(post("/v1/batch", files={"image": IMAGES[0]}, data={"format": "json"}), 400, "a text 'format'")
    assert_refused(
        post("/v1/batch", content=IMAGES[0], headers={"Content-Type": "image/png"}), 400, "multipart/form-data"
    )
    boundary = {"Content-Type": "multipart/form-data; boundary=x"}
    assert_refused(post("/v1/batch", content=b"--x--\r\n", headers=boundary), 400, "no file 'image'")


def test_a_form_that_ends_early_is_refused(server: Running) -> None:
    """Whichever of its last bytes are missing: its first images are not taken for all."""
    part = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n%b\r\n'
    body = b"".join(part % data for data in IMAGES) + b"--x--"
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    assert len(unpacked(server.client.post("/v1/batch", content=body, headers=headers))) == 3
    for missing in (1, 2, 4, 6, 60, len(IMAGES[2]) + 5, len(part % IMAGES[2]) + 5):
        response = server.client.post("/v1/batch", content=body[:-missing], headers=headers)
        assert_refused(response, 400, "no last boundary")


def test_parameters_are_those_of_single_requests(server: Running) -> None:
    told = send(server, IMAGES, format="raw")
    assert_refused(told, 422, "format: Input should be 'mask', 'overlay'")
    assert_refused(send(server, IMAGES, artifact="int8.onnx"), 422, "no artifact 'int8.onnx'")
    assert_refused(send(server, IMAGES, opacity="0.6"), 422, "opacity means nothing")
    assert_refused(send(server, IMAGES, smoothing="1"), 422, "'smoothing'")


def test_beyond_the_queue_it_is_refused_as_a_single_request_is(server: Running) -> None:
    server.admission.draining = True
    try:
        assert_refused(send(server, IMAGES), 503, "shutting down")
    finally:
        server.admission.draining = False


# Time


def test_the_time_is_that_of_the_whole_request(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each image alone would be in time."""
    call = Segmenter.__call__

    def slow(segmenter: Segmenter, image: np.ndarray, **options: bool) -> object:
        asyncio.run(asyncio.sleep(0.25))
        return call(segmenter, image, **options)

    with running(bundle, Limits(timeout=0.6)) as started:
        monkeypatch.setattr(Segmenter, "__call__", slow)
        assert_refused(send(started, IMAGES), 504, "image 3 of 3", "0.6 s")
        assert send(started, IMAGES[:1]).status_code == 200


def test_what_nobody_waits_for_is_not_begun(bundle: Bundle) -> None:
    service = Service(bundle, Limits(), threads=1)
    options = AnswerOptions(Format.MASK, "model.onnx", 0.5, True, False)
    asked = 0

    async def gone() -> bool:
        nonlocal asked
        asked += 1
        return asked > 2

    try:
        with pytest.raises(Refusal, match="went away"):
            asyncio.run(service.segment_all(IMAGES, options, gone))
        assert service._images["model.onnx"] == 2
    finally:
        service.close()


def test_a_client_that_goes_is_noticed(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    call, begun = Segmenter.__call__, []

    def slow(segmenter: Segmenter, image: np.ndarray, **options: bool) -> object:
        begun.append(image.shape)
        asyncio.run(asyncio.sleep(0.3))
        return call(segmenter, image, **options)

    with running(bundle) as started:
        monkeypatch.setattr(Segmenter, "__call__", slow)
        with pytest.raises(httpx.ReadTimeout):
            files = [("image", data) for data in IMAGES]
            started.client.post("/v1/batch", files=files, timeout=0.1)
        until(lambda: not started.admission.active)
    assert len(begun) == 1
