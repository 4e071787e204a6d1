"""A depth bundle on a real Triton server; as test_server.py."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support import ASSETS
from triton_server import TritonServer, serve

from denseport.runtime import DepthEstimator
from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.cli.main import main
from denseport.runtime.media.images import read_image
from denseport.runtime.serving.triton.client import Client
from denseport.runtime.serving.triton.repository import export_repository
from denseport.runtime.serving.triton.variants import Options

pytestmark = pytest.mark.triton

PHOTO = next((ASSETS / "street").rglob("*.jpg"))


@pytest.fixture(scope="module")
def server(triton: Path, depth_sample: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    repository = tmp_path_factory.mktemp("triton") / "repository"
    export_repository(depth_sample, repository, Options(name="room", instances=1, ensemble=True))
    with serve(triton, repository, "--model-control-mode=explicit", "--load-model=*") as started:
        started.wait("/v2/health/ready")
        yield started


@pytest.fixture(scope="module")
def depth(depth_sample: Bundle) -> np.ndarray:
    with DepthEstimator(depth_sample, artifact="model.onnx", threads=1) as estimate:
        return estimate(PHOTO).depth


@pytest.mark.parametrize("shared_memory", [False, True], ids=["messages", "shared"])
@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_depths_are_those_of_this_process(
    server: TritonServer, depth: np.ndarray, protocol: str, shared_memory: bool
) -> None:
    with Client(getattr(server, protocol), "room", shared_memory=shared_memory) as client:
        np.testing.assert_allclose(client.estimate(read_image(PHOTO)), depth, atol=1e-5)
        assert client.probe() > 0 and client.classes() == ()


def test_the_ensemble_decodes(server: TritonServer, depth: np.ndarray) -> None:
    from tritonclient import grpc

    data = np.fromfile(PHOTO, np.uint8)[None]
    with grpc.InferenceServerClient(server.grpc.removeprefix("grpc://")) as client:
        tensor = grpc.InferInput("encoded", list(data.shape), "UINT8")
        tensor.set_data_from_numpy(data)
        found = client.infer("room_encoded", [tensor]).as_numpy("depth")
    np.testing.assert_allclose(found[0], depth, atol=1e-5)


def test_run_asks_a_server(server: TritonServer, depth_sample: Bundle, depth: np.ndarray, tmp_path: Path) -> None:
    command = ["run", str(depth_sample.path), str(PHOTO), "-o", str(tmp_path), "--format", "npy,overlay"]
    assert main([*command, "--server", server.grpc, "--model", "room"]) == 0
    (path,) = tmp_path.rglob("*_depth.npy")
    np.testing.assert_allclose(np.load(path), depth, atol=1e-5)
