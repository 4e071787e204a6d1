"""A served depth bundle: every format holds the depths of the estimator, and what is of masks is not there."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator

import cv2
import httpx
import numpy as np
import pytest
from serving import Running, encoded, random_image, running

from denseport.runtime import DepthEstimator
from denseport.runtime.bundle.bundle import Bundle

IMAGE = random_image(48, 64, 1)


@pytest.fixture(scope="module")
def server(depth_sample: Bundle) -> Iterator[Running]:
    with running(depth_sample) as started:
        yield started


@pytest.fixture(scope="module")
def depth(depth_sample: Bundle) -> np.ndarray:
    with DepthEstimator(depth_sample, threads=1) as estimate:
        return estimate(IMAGE).depth


def ask(server: Running, **query: object) -> httpx.Response:
    params = {key: str(value) for key, value in query.items()}
    return server.client.post("/v1/depth", files={"image": ("a.png", encoded(IMAGE))}, params=params)


def test_every_format_holds_the_depths(server: Running, depth: np.ndarray) -> None:
    png = ask(server)
    assert png.status_code == 200 and png.headers["content-type"] == "image/png", png.text
    assert (png.headers["x-depth-unit"], png.headers["x-depth-larger-is"]) == ("metres", "farther")
    values = cv2.imdecode(np.frombuffer(png.content, np.uint8), cv2.IMREAD_UNCHANGED)
    scale, offset = float(png.headers["x-depth-scale"]), float(png.headers["x-depth-offset"])
    np.testing.assert_allclose(values / scale + offset, np.maximum(depth, 0), atol=0.51 / scale)
    raw = ask(server, format="raw")
    shape = int(raw.headers["x-depth-height"]), int(raw.headers["x-depth-width"])
    np.testing.assert_array_equal(np.frombuffer(raw.content, "<f4").reshape(shape), depth)
    np.testing.assert_array_equal(np.load(io.BytesIO(ask(server, format="npz").content))["depth"], depth)
    report = ask(server, format="json").json()
    assert (report["width"], report["height"], report["unit"], report["larger_is"]) == (64, 48, "metres", "farther")
    assert (report["least"], report["most"]) == pytest.approx((depth.min(), depth.max()))
    overlay = ask(server, format="overlay", legend="false", opacity=0.5)
    painted = cv2.imdecode(np.frombuffer(overlay.content, np.uint8), cv2.IMREAD_COLOR)
    assert painted.shape == IMAGE.shape and overlay.headers["content-type"] == "image/jpeg"


def test_a_batch_holds_what_each_image_would(server: Running, depth: np.ndarray) -> None:
    files = [("image", ("a.png", encoded(each))) for each in (IMAGE, IMAGE[:32])]

    def ask_all(format: str) -> httpx.Response:
        return server.client.post("/v1/batch", files=files, params={"format": format})

    with zipfile.ZipFile(io.BytesIO(ask_all("png").content)) as packed:
        assert packed.namelist() == ["1.png", "2.png"]
        first = packed.read("1.png")
        assert first == ask(server).content and b"tEXtDepth\0" in first, "each says how its values are meant"
    with zipfile.ZipFile(io.BytesIO(ask_all("npz").content)) as packed:
        np.testing.assert_array_equal(np.load(io.BytesIO(packed.read("1.npz")))["depth"], depth)
    assert [each["height"] for each in ask_all("json").json()] == [48, 32]
    refused = ask_all("raw")
    assert refused.status_code == 422 and "npz" in refused.json()["error"]
    several = server.client.post("/v1/depth", files=files)
    assert several.status_code == 400 and "/v1/batch" in several.json()["remedy"]


def test_the_model_says_what_its_numbers_mean(server: Running) -> None:
    model = server.client.get("/v1/model").json()
    assert model["task"] == "depth" and model["depth"]["unit"] == "metres" and model["depth"]["largest"] == 10
    assert model["classes"] == [] and model["formats"] == ["png", "overlay", "json", "raw", "npz"]
    assert server.client.get("/ready").status_code == 200
    assert 'denseport_pixels_total{artifact="model.onnx"}' in server.client.get("/metrics").text
    for page in ("/", "/docs"):
        text = server.client.get(page).text
        assert "/v1/depth" in text and "/v1/segment" not in text


def test_the_description_is_of_depths(server: Running) -> None:
    paths = server.client.get("/openapi.json").json()["paths"]
    one = paths["/v1/depth"]["post"]["responses"]
    example = one["200"]["content"]["application/json"]["examples"]["json"]["value"]
    assert example.keys() == ask(server, format="json").json().keys()
    several = paths["/v1/batch"]["post"]["responses"]["200"]["content"]
    assert several["application/json"]["examples"]["json"]["value"] == [example]
    assert {"400", "408", "413", "415", "422", "500", "503", "504"} <= one.keys()


def test_what_is_of_masks_is_refused(server: Running) -> None:
    assert server.segment(encoded(IMAGE)).status_code == 404
    for query in ({"format": "mask"}, {"format": "coco"}, {"opacity": 0.5}, {"artifact": "int8.onnx"}, {"scale": 10}):
        assert ask(server, **query).status_code == 422, query
