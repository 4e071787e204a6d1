"""What an engine's inspector says of its types; opening an engine takes a GPU, so TensorRT's objects are fakes."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from denseport.export.engine.types import built_types, inspect_engine
from denseport.runtime.backends.tensorrt_library import Library, LogBook
from denseport.runtime.errors import MachineError

# As NVIDIA's documentation shows them: one key with layout and type, and, since 11 and TensorRT-RTX 1.7, two keys.
TENSORRT_10 = {
    "Layers": [
        {"Name": "conv", "Outputs": [{"Name": "a", "Format/Datatype": "Channel major FP16 format where C % 8 == 0"}]},
        {"Name": "add", "Outputs": [{"Name": "b", "Format/Datatype": "Row major linear FP32"}]},
        {"Name": "quantized", "Outputs": [{"Name": "c", "Format/Datatype": "Thirty-two wide channel Int8 format"}]},
        {"Name": "shape", "Outputs": [{"Name": "d", "Format/Datatype": "N/A due to dynamic shapes"}]},
        {"Name": "bare", "Outputs": []},
        "a name alone",
    ],
    "Bindings": ["image", "logits"],
}
TENSORRT_11 = {
    "Layers": [
        {
            "Name": "conv",
            "Outputs": [{"Name": "a", "Format": "Channel major format where C % 8 == 0", "Datatype": "Half"}],
        },
        {"Name": "add", "Outputs": [{"Name": "b", "Format": "Row major linear format", "Datatype": "Float"}]},
        {"Name": "quantized", "Outputs": [{"Name": "c", "Format": "Thirty-two wide channel", "Datatype": "Int8"}]},
        {"Name": "shape", "Outputs": [{"Name": "d", "Format": "Row major linear format", "Datatype": "Int64"}]},
        {"Name": "bare", "Outputs": []},
    ],
    "I/O Tensors": [{"Name": "image", "IOMode": "Input", "DataType": "Float"}],
}


@pytest.mark.parametrize(("information", "nameless"), [(TENSORRT_10, 2), (TENSORRT_11, 1)], ids=["10", "11"])
def test_layers_are_counted_by_the_type_of_what_they_give(information: dict[str, Any], nameless: int) -> None:
    expected = {"fp16": 1, "fp32": 1, "int8": 1, "other": 1, "unknown": nameless}
    assert built_types(json.dumps(information)) == expected


def opening(opened: Any) -> tuple[Library, list[Any]]:
    """A TensorRT that opens engines as told, and whether each may run code of its own."""
    allowed: list[Any] = []

    class Runtime:
        engine_host_code_allowed = False

        def __init__(self, logger: object) -> None:
            pass

        def deserialize_cuda_engine(self, plan: object) -> Any:
            allowed.append(self.engine_host_code_allowed)
            return opened

    trt = SimpleNamespace(Runtime=Runtime, LayerInformationFormat=SimpleNamespace(JSON="json"))
    return Library("tensorrt", trt, "11.4.0.1", "13", None, LogBook()), allowed


@pytest.mark.parametrize("host_code", [False, True])
def test_a_version_compatible_engine_may_run_its_own_runtime(host_code: bool) -> None:
    inspector = SimpleNamespace(get_engine_information=lambda _: json.dumps(TENSORRT_11))
    library, allowed = opening(SimpleNamespace(create_engine_inspector=lambda: inspector))
    assert inspect_engine(library, b"plan", host_code=host_code)["fp16"] == 1
    assert allowed == [host_code]


def test_an_engine_that_cannot_be_opened_says_so() -> None:
    with pytest.raises(MachineError, match="cannot be opened here: it gave no reason"):
        inspect_engine(opening(None)[0], b"plan")
