"""What runs in Triton's Python back end, with a stand-in for the module that exists there alone."""

from __future__ import annotations

import importlib.util
import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import ASSETS

from denseport.runtime import DepthEstimator
from denseport.runtime.bundle.bundle import Bundle
from denseport.runtime.bundle.steps import Load
from denseport.runtime.errors import ImageError, InputError, MachineError, ServerError
from denseport.runtime.media.images import read_image
from denseport.runtime.segmenter import Segmenter
from denseport.runtime.serving.triton import python_models
from denseport.runtime.serving.triton.repository import export_repository
from denseport.runtime.serving.triton.variants import Options

PHOTO = next((ASSETS / "street").rglob("*.jpg"))


class Tensor:
    """Of one name and an array, given and taken by DLPack alone, as with NumPy 2 in old stubs."""

    def __init__(self, name: str, array: np.ndarray) -> None:
        self.name, self.array = name, array

    @classmethod
    def from_dlpack(cls, name: str, array: np.ndarray) -> Tensor:
        return cls(name, array)

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.array.__dlpack_device__()


class TritonError(Exception):
    INTERNAL, INVALID_ARG, NOT_FOUND, UNAVAILABLE, CANCELLED = range(5)

    def __init__(self, message: str, code: int = INTERNAL) -> None:
        super().__init__(message)
        self._code = code

    def code(self) -> int:
        return self._code

    def message(self) -> str:
        return str(self)


class Response:
    def __init__(self, tensors: list[Tensor] | None = None, error: TritonError | None = None) -> None:
        self.tensors, self._error = tensors or [], error

    def has_error(self) -> bool:
        return self._error is not None

    def error(self) -> TritonError | None:
        return self._error


class Request:
    def __init__(self, cancelled: bool = False, **arrays: np.ndarray) -> None:
        self.tensors = [Tensor(name, array) for name, array in arrays.items()]
        self.cancelled = cancelled

    def is_cancelled(self) -> bool:
        return self.cancelled


class Network:
    """What an InferenceRequest to the network gives: the responses of a list, the last one for ever."""

    def __init__(self, *responses: Response) -> None:
        self.responses, self.asked = list(responses), []

    def __call__(self, **arguments: Any) -> Network:
        self.asked.append(arguments)
        return self

    def exec(self) -> Response:
        return self.responses.pop(0) if len(self.responses) > 1 else self.responses[0]


@pytest.fixture
def pb(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    module: Any = types.ModuleType("triton_python_backend_utils")
    module.Tensor, module.TritonError, module.InferenceResponse = Tensor, TritonError, Response
    module.logged = []
    module.Logger = types.SimpleNamespace(log_error=module.logged.append)
    module.PreferredMemory, module.TRITONSERVER_MEMORY_CPU = lambda kind, device: (kind, device), "cpu"

    def by_name(holder: Request | Response, name: str) -> Tensor:
        (found,) = (tensor for tensor in holder.tensors if tensor.name == name)
        return found

    module.get_input_tensor_by_name = module.get_output_tensor_by_name = by_name
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


def loaded(repository: Path, model: str) -> Any:
    """An instance, from the model.py that was written, initialised as Triton does."""
    spec = importlib.util.spec_from_file_location("model", repository / model / "1/model.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    instance = module.TritonPythonModel()
    parameters = dict(line.split("=", 1) for line in PARAMETERS[model])
    config = {"parameters": {key: {"string_value": value} for key, value in parameters.items()}}
    instance.initialize(
        {
            "model_name": model,
            "model_version": "1",
            "model_repository": str(repository / model),
            "model_config": json.dumps(config),
        }
    )
    return instance


LIMITS = ("max_pixels=200000", "threads=1")
PARAMETERS = {
    "street": (*LIMITS, "artifact=model.onnx"),
    "composed": (*LIMITS, "network=composed_network"),
    "street_decode": (*LIMITS, 'load={"orientation": true, "grey": true}'),
}


@pytest.fixture
def repository(sample: Bundle, tmp_path: Path) -> Path:
    export_repository(sample, tmp_path / "repo", Options(name="street", ensemble=True))
    export_repository(sample, tmp_path / "repo", Options(name="composed", backend="onnxruntime"))
    return tmp_path / "repo"


def test_requests_of_a_batch_are_answered_each_for_itself(
    pb: types.ModuleType, repository: Path, sample: Bundle
) -> None:
    photo = read_image(PHOTO)
    requests = [
        Request(image=np.stack([photo, photo[:, ::-1]])),
        Request(image=np.zeros((1, 2, 400, 3), np.uint8)),
        Request(image=np.zeros((1, 400, 501, 3), np.uint8)),
        Request(image=photo[None], cancelled=True),
        Request(image=photo[None, :200]),
    ]
    answers = loaded(repository, "street").execute(requests)
    with Segmenter(sample, artifact="model.onnx") as segmenter:
        expected = [
            np.stack([segmenter(photo).mask, segmenter(photo[:, ::-1]).mask]),
            segmenter(photo[:200]).mask[None],
        ]
    for answer, masks in zip((answers[0], answers[4]), expected, strict=True):
        (mask,) = answer.tensors
        assert mask.name == "mask"
        np.testing.assert_array_equal(mask.array, masks)
    codes = [answer.error().code() for answer in answers[1:4]]
    assert codes == [TritonError.INVALID_ARG, TritonError.INVALID_ARG, TritonError.CANCELLED]
    assert "--max-pixels" in answers[2].error().message()


def test_depths_are_those_of_the_estimator(
    pb: Any, depth_sample: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run here, and by a network of the server's own, whose output has the name of the bundle's."""
    export_repository(depth_sample, tmp_path, Options(name="street"))
    export_repository(depth_sample, tmp_path, Options(name="composed", backend="onnxruntime"))
    photo = read_image(PHOTO)
    with DepthEstimator(depth_sample, threads=1) as estimate:
        expected, maps = estimate(photo).depth, estimate.predict(photo)
    asked = Network(Response([Tensor("depth", maps[0][0].logits[None])]))
    pb.InferenceRequest = asked
    for name in ("street", "composed"):
        monkeypatch.setitem(PARAMETERS, name, (*PARAMETERS[name], "output=depth"))
        (answer,) = loaded(tmp_path, name).execute([Request(image=photo[None])])
        (depth,) = answer.tensors
        assert depth.name == "depth" and depth.array.dtype == np.float32
        np.testing.assert_allclose(depth.array[0], expected, atol=1e-6)
    assert asked.asked[-1]["requested_output_names"] == ["depth"]


def test_a_fault_of_ours_is_logged_and_internal(pb: Any, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = loaded(repository, "street")
    monkeypatch.setattr(model, "_segmenter", lambda image: 1 / 0)
    (answer,) = model.execute([Request(image=np.zeros((1, 40, 40, 3), np.uint8))])
    assert answer.error().code() == TritonError.INTERNAL
    assert "ZeroDivisionError" in answer.error().message() and "Traceback" in pb.logged[0]


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (TritonError.INVALID_ARG, TritonError.INVALID_ARG),  # an engine was not built for the size
        (TritonError.NOT_FOUND, TritonError.UNAVAILABLE),  # to be asked again
        (TritonError.UNAVAILABLE, TritonError.UNAVAILABLE),
        (TritonError.INTERNAL, TritonError.INTERNAL),
    ],
)
def test_what_a_network_refuses(
    pb: Any, repository: Path, monkeypatch: pytest.MonkeyPatch, code: int, expected: int
) -> None:
    monkeypatch.setattr(python_models, "PATIENCE", 0.1)
    pb.InferenceRequest = Network(Response(error=TritonError("because", code)))
    (answer,) = loaded(repository, "composed").execute([Request(image=np.zeros((1, 40, 40, 3), np.uint8))])
    assert answer.error().code() == expected
    assert "composed_network, version 1: because" in answer.error().message()


def test_a_network_that_loads_a_moment_later_is_waited_for(pb: Any, repository: Path) -> None:
    logits = np.zeros((1, 150, 10, 10), np.float32)
    logits[:, 7] = 1
    absent = Response(error=TritonError("not yet", TritonError.NOT_FOUND))
    pb.InferenceRequest = network = Network(absent, absent, Response([Tensor("logits", logits)]))
    (answer,) = loaded(repository, "composed").execute([Request(image=np.zeros((1, 40, 40, 3), np.uint8))])
    (mask,) = answer.tensors
    assert mask.array.shape == (1, 40, 40) and (mask.array == 7).all()
    asked = network.asked[-1]
    assert (asked["model_name"], asked["model_version"]) == ("composed_network", 1)
    assert asked["preferred_memory"] == ("cpu", 0)
    (image,) = asked["inputs"]
    assert image.name == "image" and image.array.shape == (1, 3, 160, 160) and image.array.dtype == np.float32


def test_the_decoder(pb: Any, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENCV_IO_MAX_IMAGE_PIXELS", "OPENCV_LOG_LEVEL"):
        monkeypatch.setenv(name, "")  # put back afterwards
    decoder = loaded(repository, "street_decode")
    data = np.fromfile(PHOTO, np.uint8)
    good, bad = decoder.execute([Request(encoded=data[None]), Request(encoded=data[None, :1000])])
    np.testing.assert_array_equal(good.tensors[0].array[0], read_image(PHOTO, Load(grey=True)))
    assert bad.error().code() == TritonError.INVALID_ARG and "cut short" in bad.error().message()


@pytest.mark.parametrize(
    "images",
    [np.zeros((40, 40, 3), np.uint8), np.zeros((1, 40, 40), np.uint8), np.zeros((1, 4, 4, 3), np.int8)],
)
def test_what_is_no_image(images: np.ndarray) -> None:
    with pytest.raises(ImageError, match="expected images of shape"):
        python_models.check_images(images, 100)


def test_errors_keep_their_kinds() -> None:
    """The codes above rest on it."""
    assert issubclass(ImageError, InputError) and issubclass(ServerError, MachineError)
    assert not issubclass(ServerError, InputError)
