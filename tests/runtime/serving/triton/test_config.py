"""config.pbtxt: what is written is what Triton's own message type reads."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from denseport.runtime.errors import InputError, MachineError
from denseport.runtime.serving.triton.config import batching, model_config, tensor, to_pbtxt, version_policy, zeros
from denseport.runtime.system.machine import install_command

text_format = pytest.importorskip("google.protobuf.text_format")
model_config_pb2 = pytest.importorskip("tritonclient.grpc.model_config_pb2")


def parsed(name: str, backend: str, **fields: Any) -> Any:
    """What a server reads."""
    text = to_pbtxt(model_config(name, backend, **fields))
    return text_format.Parse(text.encode(), model_config_pb2.ModelConfig())


def test_every_field_arrives() -> None:
    found = parsed(
        "m",
        "tensorrt",
        max_batch_size=4,
        input=[tensor("image", "TYPE_UINT8", -1, -1, 3, allow_ragged_batch=True)],
        output=[tensor("mask", "TYPE_UINT16", -1, -1, label_filename="labels.txt")],
        version_policy=version_policy("latest:2"),
        dynamic_batching=batching(delay_us=100, queue=7, timeout_us=5_000_000),
        model_warmup=zeros("image", "TYPE_UINT8", 48, 64, 3),
        parameters={"classes": '["a\\"b"]'},
    )
    assert (found.name, found.backend, found.platform, found.max_batch_size) == ("m", "tensorrt", "", 4)
    (image,), (mask,) = found.input, found.output
    assert (image.name, image.data_type, list(image.dims)) == ("image", model_config_pb2.TYPE_UINT8, [-1, -1, 3])
    assert image.allow_ragged_batch
    assert (mask.name, mask.data_type, list(mask.dims)) == ("mask", model_config_pb2.TYPE_UINT16, [-1, -1])
    assert mask.label_filename == "labels.txt"
    assert found.version_policy.latest.num_versions == 2
    waiting, policy = found.dynamic_batching, found.dynamic_batching.default_queue_policy
    assert waiting.max_queue_delay_microseconds == 100
    assert (policy.max_queue_size, policy.default_timeout_microseconds) == (7, 5_000_000)
    assert policy.allow_timeout_override and policy.timeout_action == policy.REJECT
    (warmup,) = found.model_warmup
    assert warmup.batch_size == 1 and list(warmup.inputs["image"].dims) == [48, 64, 3]
    assert warmup.inputs["image"].data_type == model_config_pb2.TYPE_UINT8 and warmup.inputs["image"].zero_data
    assert found.parameters["classes"].string_value == '["a\\"b"]'


def test_requests_wait_in_a_queue_even_where_nothing_was_asked_for() -> None:
    assert parsed("m", "python", dynamic_batching=batching(0, 0, 0)).HasField("dynamic_batching")


def test_an_ensemble_is_a_platform() -> None:
    found = parsed("e", "ensemble")
    assert found.platform == "ensemble" and not found.backend


def test_a_field_that_triton_does_not_have_is_refused() -> None:
    for fields in ({"dynamic_batch": {}}, {"input": [tensor("x", "TYPE_UINT8", 1, dimensions=2)]}):
        with pytest.raises(ValueError, match="has no"):
            model_config("m", "python", **fields)
    with pytest.raises(ValueError, match="TYPE_UINT9"):
        model_config("m", "python", input=[tensor("x", "TYPE_UINT9", 1)])


def test_without_tritonclient_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tritonclient.grpc", None)
    with pytest.raises(MachineError, match="tritonclient is not installed") as caught:
        model_config("m", "python")
    assert caught.value.exit_code == 3 and install_command("client") in str(caught.value)


@given(st.dictionaries(st.text(), st.text(), max_size=3))
def test_any_text_survives(parameters: dict[str, str]) -> None:
    found = parsed("m", "python", parameters=parameters)
    assert {key: value.string_value for key, value in found.parameters.items()} == parameters


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [("latest:3", "latest", 3), ("all", "all", None), ("3,1", "specific", [1, 3]), ("2", "specific", [2])],
)
def test_version_policies(text: str, kind: str, value: object) -> None:
    policy = parsed("m", "python", version_policy=version_policy(text)).version_policy
    assert policy.WhichOneof("policy_choice") == kind
    if kind == "latest":
        assert policy.latest.num_versions == value
    if kind == "specific":
        assert list(policy.specific.versions) == value


@pytest.mark.parametrize("text", ["", "latest", "latest:0", "latest:-1", "0", "1,,2", "newest", "²", "9" * 5000])
def test_versions_that_are_none(text: str) -> None:
    with pytest.raises(InputError, match="names no versions"):
        version_policy(text)
