"""The client over gRPC, against a server that answers with tritonclient's own messages."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from denseport.runtime.errors import InputError
from denseport.runtime.serving.triton.client import Client

grpc = pytest.importorskip("grpc")
messages = pytest.importorskip("tritonclient.grpc.service_pb2")
services = pytest.importorskip("tritonclient.grpc.service_pb2_grpc")


class Server(services.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """One model, "street", of two instances, which finds class 7 everywhere."""

    def __init__(self) -> None:
        self.regions: dict[str, str] = {}  # the files of shared memory, by the names that a client gives them

    def ModelConfig(self, request: Any, context: Any) -> Any:
        if request.name != "street":
            context.abort(grpc.StatusCode.NOT_FOUND, "no such model")
        answer = messages.ModelConfigResponse()
        for key, value in {"classes": '["road", "sky"]', "instances": "2", "empty": ""}.items():
            answer.config.parameters[key].string_value = value
        return answer

    def RepositoryIndex(self, request: Any, context: Any) -> Any:
        return messages.RepositoryIndexResponse(models=[{"name": "street"}, {"name": "other"}])

    def SystemSharedMemoryRegister(self, request: Any, context: Any) -> Any:
        self.regions[request.name] = request.key
        return messages.SystemSharedMemoryRegisterResponse()

    def SystemSharedMemoryUnregister(self, request: Any, context: Any) -> Any:
        return messages.SystemSharedMemoryUnregisterResponse()

    def ModelInfer(self, request: Any, context: Any) -> Any:
        shape, wanted = request.inputs[0].shape[:3], request.outputs[0]
        mask = np.full(shape, 7, np.uint8).tobytes()
        answer = messages.ModelInferResponse(outputs=[{"name": wanted.name, "datatype": "UINT8", "shape": shape}])
        if "shared_memory_region" in wanted.parameters:
            region = self.regions[wanted.parameters["shared_memory_region"].string_param]
            with Path("/dev/shm", region.lstrip("/")).open("r+b") as file:
                file.write(mask)
        else:
            answer.raw_output_contents.append(mask)
        return answer


@pytest.fixture
def url() -> Iterator[str]:
    server = grpc.server(futures.ThreadPoolExecutor(16))
    services.add_GRPCInferenceServiceServicer_to_server(Server(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"grpc://127.0.0.1:{port}"
    server.stop(None)


@pytest.mark.parametrize("shared_memory", [False, True])
def test_masks_and_classes(url: str, shared_memory: bool) -> None:
    if shared_memory and not Path("/dev/shm").is_dir():
        pytest.skip("this system has no /dev/shm")
    with Client(url, "street", shared_memory=shared_memory, deadline=20) as client:
        mask = client.segment(np.zeros((4, 5, 3), np.uint8))
        assert mask.shape == (4, 5) and mask.dtype == np.uint8 and (mask == 7).all()
        assert client.classes() == ("road", "sky")
        assert client._connection.parameters(5.0)["empty"] == ""
        assert client._connection.models(5.0) == {"street", "other"}
        assert client.probe() > 0


def test_a_model_that_is_not_there(url: str) -> None:
    with Client(url, "absent", deadline=5) as client, pytest.raises(InputError, match="no such model"):
        client.classes()
