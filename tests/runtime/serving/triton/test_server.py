"""A real Triton server on loopback: `scripts/triton-server FOLDER`, `DENSEPORT_TRITON=FOLDER pytest -m triton`."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from support import ASSETS
from triton_server import TritonServer, serve

from denseport.runtime.bundle.bundle import MANIFEST, Bundle
from denseport.runtime.bundle.manifest import Inference
from denseport.runtime.cli.main import main
from denseport.runtime.errors import ImageError, InputError, ServerError
from denseport.runtime.media.images import read_image
from denseport.runtime.segmenter import Segmenter
from denseport.runtime.serving.triton.client import Client
from denseport.runtime.serving.triton.repository import export_repository
from denseport.runtime.serving.triton.variants import Options

pytestmark = pytest.mark.triton

PHOTOS = sorted((ASSETS / "street").rglob("*.jpg"))
MAX_PIXELS = 1_000_000
ONE = Options(instances=1, max_pixels=MAX_PIXELS)
# In the place of Triton's ONNX Runtime back end, which this server lacks: the same file, the same tensors.
STAND_IN = """
import numpy as np
import onnxruntime
import triton_python_backend_utils as pb
from pathlib import Path


class TritonPythonModel:
    def initialize(self, arguments):
        file = Path(arguments["model_repository"]) / arguments["model_version"] / "model.onnx"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        image = np.from_dlpack(pb.get_input_tensor_by_name(request, "image"))
        (logits,) = self.session.run(["logits"], {"image": image})
        return pb.InferenceResponse([pb.Tensor.from_dlpack("logits", logits)])
"""


def options(name: str, **values: Any) -> Options:
    return dataclasses.replace(ONE, name=name, **values)


@pytest.fixture(scope="module")
def sliding(sample: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The sample, moved over an image in windows."""
    folder = tmp_path_factory.mktemp("bundles") / "sliding"
    shutil.copytree(sample.path, folder)
    manifest = dataclasses.replace(sample.manifest, inference=Inference("slide", (96, 96), (64, 64)))
    (folder / MANIFEST).write_text(manifest.to_json())
    return Bundle(folder)


@dataclass(frozen=True)
class Setting:
    server: TritonServer
    repository: Path


@pytest.fixture(scope="module")
def setting(
    triton: Path, sample: Bundle, sliding: Bundle, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Setting]:
    """A server with every kind of model, in explicit mode."""
    repository = tmp_path_factory.mktemp("triton") / "repository"
    export_repository(sample, repository, options("street", ensemble=True, warmup=(48, 64)))
    export_repository(sample, repository, options("mortal", instances=2))
    export_repository(sample, repository, options("cached", cache=True))
    export_repository(sliding, repository, options("composed", backend="onnxruntime"))
    network = repository / "composed_network"
    text = (network / "config.pbtxt").read_text()
    assert 'backend: "onnxruntime"' in text
    (network / "config.pbtxt").write_text(text.replace('backend: "onnxruntime"', 'backend: "python"'))
    (network / "1/model.py").write_text(STAND_IN)
    modes = ("--model-control-mode=explicit", "--load-model=*", "--cache-config=local,size=16777216")
    with serve(triton, repository, *modes) as server:
        server.wait("/v2/health/ready")
        yield Setting(server, repository)


@pytest.fixture(scope="module")
def server(setting: Setting) -> TritonServer:
    return setting.server


@pytest.fixture(scope="module")
def photo() -> NDArray[np.uint8]:
    return read_image(PHOTOS[0])


@pytest.fixture(scope="module")
def mask(sample: Bundle, photo: NDArray[np.uint8]) -> NDArray[Any]:
    """What this process makes of the image."""
    with Segmenter(sample, artifact="model.onnx", threads=1) as segmenter:
        return segmenter(photo).mask


@pytest.mark.parametrize("protocol", ["http", "grpc"])
@pytest.mark.parametrize("shared_memory", [False, True], ids=["messages", "shared"])
def test_masks_are_those_of_this_process(
    server: TritonServer, sample: Bundle, mask: NDArray[Any], protocol: str, shared_memory: bool
) -> None:
    with (
        Segmenter(sample, artifact="model.onnx", threads=1) as segmenter,
        Client(getattr(server, protocol), "street", shared_memory=shared_memory) as client,
    ):
        assert client.classes() == sample.manifest.classes
        for path in PHOTOS:  # of several sizes, the regions grow
            image = read_image(path)
            found = client.segment(image)
            assert found.dtype == np.uint8
            np.testing.assert_array_equal(found, segmenter(image).mask)
        pair = client.segment_batch(np.stack([read_image(PHOTOS[0])] * 2))
        np.testing.assert_array_equal(pair, np.stack([mask] * 2))
    assert not list(Path("/dev/shm").glob(f"denseport_*_{os.getpid()}_*"))


def test_a_network_behind_the_model_gives_the_same_masks(server: TritonServer, sliding: Bundle) -> None:
    """Windows, and the form whose network is a model of its own."""
    with Segmenter(sliding, artifact="model.onnx", threads=1) as segmenter, Client(server.grpc, "composed") as client:
        for path in PHOTOS[:2]:
            image = read_image(path)
            np.testing.assert_array_equal(client.segment(image), segmenter(image).mask)


def test_the_ensemble_decodes(server: TritonServer, mask: NDArray[Any]) -> None:
    grpc = pytest.importorskip("tritonclient.grpc")
    client = grpc.InferenceServerClient(server.grpc.removeprefix("grpc://"))

    def ask(data: bytes) -> Any:
        tensor = grpc.InferInput("encoded", [1, len(data)], "UINT8")
        tensor.set_data_from_numpy(np.frombuffer(data, np.uint8)[None])
        return client.infer("street_encoded", [tensor]).as_numpy("mask")

    np.testing.assert_array_equal(ask(PHOTOS[0].read_bytes())[0], mask)
    huge = cv2.imencode(".png", np.zeros((1001, 1000, 3), np.uint8))[1].tobytes()
    for data, words in ((b"no image", "not an image"), (huge, "more pixels")):
        with pytest.raises(Exception, match=words) as caught:
            ask(data)
        assert "INVALID_ARGUMENT" in str(caught.value)
    client.close()


@pytest.mark.parametrize("model", ["street", "composed"])
@pytest.mark.parametrize(
    ("image", "datatype", "words"),
    [
        (np.zeros((1, 40, 40, 4), np.uint8), "UINT8", "unexpected shape"),
        (np.zeros((1, 40, 3), np.uint8), "UINT8", "unexpected shape"),
        (np.zeros((1, 40, 40, 3), np.float32), "FP32", "data-type"),
        (np.zeros((9, 40, 40, 3), np.uint8), "UINT8", "batch-size must be <= 8"),
        (np.zeros((1, 0, 40, 3), np.uint8), "UINT8", "expected images of shape"),
        (np.zeros((1, 1001, 1000, 3), np.uint8), "UINT8", "takes 1000000 at most"),
        (np.zeros((1, 2, 400, 3), np.uint8), "UINT8", "less than one patch"),
    ],
    ids=["channels", "rank", "type", "batch", "empty", "oversize", "narrow"],
)
def test_bad_requests_are_invalid_arguments(
    server: TritonServer, model: str, image: NDArray[Any], datatype: str, words: str
) -> None:
    for module, url, code in (("http", server.http, "400"), ("grpc", server.grpc, "StatusCode.INVALID_ARGUMENT")):
        library = pytest.importorskip(f"tritonclient.{module}")
        client = library.InferenceServerClient(url.partition("://")[2])
        tensor = library.InferInput("image", list(image.shape), datatype)
        tensor.set_data_from_numpy(image)
        with pytest.raises(Exception, match=words) as caught:
            client.infer(model, [tensor])
        assert caught.value.status() == code
        client.close()


def test_the_client_says_whose_fault_it_is(server: TritonServer, photo: NDArray[np.uint8]) -> None:
    for url in server.urls:
        with Client(url, "street") as client, pytest.raises(ImageError, match="takes 1000000 at most"):
            client.segment(np.zeros((1001, 1000, 3), np.uint8))
        started = time.monotonic()
        with Client(url, "nobody", deadline=20) as client, pytest.raises(InputError, match="nobody"):
            client.segment(photo)
        with Client(url, "street", version=7, deadline=0.5) as client, pytest.raises(InputError, match="version"):
            client.segment(photo)
        assert time.monotonic() - started < 10, "a model that is not there was waited for"


def test_a_batch_goes_through_together(server: TritonServer, sample: Bundle) -> None:
    grpc = pytest.importorskip("tritonclient.grpc")
    images = [cv2.resize(read_image(PHOTOS[i % 2]), (160 + 16 * (i % 3), 120)) for i in range(24)]
    client = grpc.InferenceServerClient(server.grpc.removeprefix("grpc://"))

    def statistics() -> Any:
        """Once they stay as they are: Triton counts a request a moment after its answer."""
        found = None
        while True:
            (now,) = client.get_inference_statistics("street").model_stats
            if found == now:
                return found
            found = now
            time.sleep(0.2)

    before = statistics()
    with ThreadPoolExecutor(12) as pool, Client(server.grpc, "street") as each:
        answers = list(pool.map(each.segment, images))
    after = statistics()
    client.close()
    with Segmenter(sample, artifact="model.onnx", threads=1) as segmenter:
        for image, answer in zip(images, answers, strict=True):
            np.testing.assert_array_equal(answer, segmenter(image).mask)
    assert after.inference_count - before.inference_count == len(images)
    assert after.execution_count - before.execution_count < len(images), "every request went alone"


def test_answers_are_kept_where_the_export_says_so(server: TritonServer, photo: NDArray[np.uint8]) -> None:
    with Client(server.grpc, "cached") as client:
        first, second = client.segment(photo), client.segment(photo)
        np.testing.assert_array_equal(first, second)
        client.probe()
    grpc = pytest.importorskip("tritonclient.grpc")
    client = grpc.InferenceServerClient(server.grpc.removeprefix("grpc://"))
    (found,) = client.get_inference_statistics("cached").model_stats
    client.close()
    assert (found.inference_stats.cache_hit.count, found.inference_stats.cache_miss.count) == (1, 2)


def keep_asking(
    url: str, model: str, image: NDArray[np.uint8], expected: NDArray[Any], stop: threading.Event
) -> tuple[int, list[str]]:
    """How many requests were answered until ``stop``, and what went wrong with the others."""
    done, wrong = 0, []
    with Client(url, model) as client:
        while not stop.is_set():
            try:
                if not np.array_equal(client.segment(image), expected):
                    wrong.append("another mask")
                done += 1
            except Exception as err:  # whatever it is, it counts
                wrong.append(repr(err))
    return done, wrong


def under_load(
    server: TritonServer,
    model: str,
    image: NDArray[np.uint8],
    expected: NDArray[Any],
    act: Callable[[], None],
    clients: int = 4,
) -> int:
    """Requests of some clients, over both protocols, while something happens to the server; none may be lost."""
    stop = threading.Event()
    urls = server.urls * (clients // 2)
    with ThreadPoolExecutor(clients) as pool:
        try:
            jobs = [pool.submit(keep_asking, url, model, image, expected, stop) for url in urls]
            time.sleep(0.3)
            act()
            time.sleep(0.3)
        finally:
            stop.set()
        found = [job.result() for job in jobs]
    assert [wrong for _, wrong in found] == [[]] * clients
    assert all(done for done, _ in found)
    total = sum(done for done, _ in found)
    print(f"{total} requests while {act.__qualname__.rpartition('.')[2]} went on, none lost")
    return total


def test_a_new_version_under_load_loses_no_request(
    setting: Setting, sample: Bundle, photo: NDArray[np.uint8], mask: NDArray[Any]
) -> None:
    server = setting.server

    def reload() -> None:
        assert export_repository(sample, setting.repository, options("street")).version == 2
        assert server.ok("/v2/repository/models/street/load", b"{}")

    assert under_load(server, "street", photo, mask, reload) > 8
    assert server.ok("/v2/models/street/versions/2/ready") and not server.ok("/v2/models/street/versions/1/ready")


def test_a_model_that_is_away_for_a_moment_is_waited_for(
    setting: Setting, photo: NDArray[np.uint8], mask: NDArray[Any]
) -> None:
    """NOT_FOUND: the repository holds the model, the server has unloaded it."""
    server = setting.server

    def leave() -> None:
        assert server.ok("/v2/repository/models/street/unload", b"{}")
        time.sleep(0.5)
        assert server.ok("/v2/repository/models/street/load", b"{}")

    under_load(server, "street", photo, mask, leave)


def test_a_watching_server_never_sees_half_a_version(
    triton: Path, sample: Bundle, tmp_path: Path, photo: NDArray[np.uint8], mask: NDArray[Any]
) -> None:
    repository = tmp_path / "repository"
    export_repository(sample, repository, options("street"))
    with serve(triton, repository, "--model-control-mode=poll", "--repository-poll-secs=1") as server:
        server.wait("/v2/models/street/ready")

        def add() -> None:
            export_repository(sample, repository, options("street"))
            export_repository(sample, repository, options("another"))
            server.wait("/v2/models/street/versions/2/ready")

        under_load(server, "street", photo, mask, add, clients=2)
        server.wait("/v2/models/another/ready")
        complaints = [line for line in server.log().splitlines() if "failed to load" in line or "Poll failed" in line]
        assert not complaints


@pytest.mark.alone  # beside other work, fewer requests reach the dead process
def test_a_dead_process_is_found_by_the_probe_alone(setting: Setting, photo: NDArray[np.uint8]) -> None:
    server = setting.server
    for url in server.urls:
        with Client(url, "mortal") as client:
            assert 0 < client.probe() < 10
    with Client(server.http, "mortal") as client:
        before = len(list(Path("/proc/self/fd").iterdir()))
        for _ in range(5):
            client.probe()
        assert len(list(Path("/proc/self/fd").iterdir())) <= before + 2, "probes leave something open"
    command = [sys.executable, "-m", "denseport.runtime.serving.triton.client", server.http, "mortal"]
    assert subprocess.run(command, check=False, capture_output=True).returncode == 0
    victims = server.stubs("mortal")
    assert len(victims) == 2
    os.kill(victims[0], signal.SIGKILL)
    time.sleep(0.2)
    assert server.ok("/v2/health/ready") and server.ok("/v2/models/mortal/ready")
    for url in server.urls:
        with Client(url, "mortal") as client, pytest.raises(ServerError, match="not healthy") as caught:
            client.probe()
        assert "restart the server" in str(caught.value)
    assert subprocess.run(command, check=False, capture_output=True).returncode == 3


def test_run_asks_a_server(
    server: TritonServer, sample: Bundle, tmp_path: Path, mask: NDArray[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = ["run", str(sample.path), str(PHOTOS[0]), "-o", str(out), "--grey", "--server", server.grpc]
    assert main([*command, "--model", "street"]) == 0
    (path,) = out.rglob("*_mask.png")
    np.testing.assert_array_equal(cv2.imread(str(path), cv2.IMREAD_UNCHANGED), mask)
    assert main(command) == 2  # the bundle's own name is not served
    assert "dpt_tiny_street" in capsys.readouterr().err


def test_other_forms_get_as_far_as_their_back_end(
    triton: Path, with_engines: Callable[..., Bundle], tmp_path: Path
) -> None:
    """Triton accepts every configuration; what this server lacks is the back ends alone."""
    bundle = with_engines(a={"compute_capability": "sm_86"}, b={"compute_capability": "sm_90"})
    for form in ("tensorrt_plan", "onnxruntime"):
        export_repository(bundle, tmp_path / "repository", options(form, backend=form))
    with serve(triton, tmp_path / "repository") as server:
        assert server.process.wait(60) != 0
        log = server.log()
    for form, backend in (("tensorrt_plan", "tensorrt"), ("onnxruntime", "onnxruntime")):
        assert (
            f"failed to load '{form}_network' version 1: Invalid argument: "
            f"unable to find backend library for backend '{backend}'"
        ) in log
        assert f"successfully loaded '{form}'" in log
    assert log.count("version 1: Invalid argument") == 2
