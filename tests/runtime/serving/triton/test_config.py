"""config.pbtxt: what is written is what Triton's own message type reads."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from denseport.runtime.serving.triton.config import (
    Batching,
    Instances,
    ModelConfig,
    Step,
    Tensor,
    VersionPolicy,
    Warmup,
)

text_format = pytest.importorskip("google.protobuf.text_format")
model_config_pb2 = pytest.importorskip("tritonclient.grpc.model_config_pb2")


def parsed(config: ModelConfig) -> Any:
    return text_format.Parse(config.to_pbtxt(), model_config_pb2.ModelConfig())


TENSOR = Tensor("x", "TYPE_UINT8", (-1, -1, 3))


def test_every_field_arrives() -> None:
    found = parsed(
        ModelConfig(
            name="m",
            backend="tensorrt",
            max_batch_size=4,
            inputs=(Tensor("image", "TYPE_UINT8", (-1, -1, 3), ragged=True),),
            outputs=(Tensor("mask", "TYPE_UINT16", (-1, -1), labels="labels.txt"),),
            versions=VersionPolicy(2),
            instances=Instances(3, gpu=True, profiles=(0, 1)),
            batching=Batching(delay_us=100, queue=7, timeout_us=5_000_000),
            warmup=Warmup("image", "TYPE_UINT8", (48, 64, 3)),
            cache=True,
            model_file="model.plan",
            files_by_gpu={"8.6": "sm_86.plan", "12.0": "sm_120.plan"},
            parameters={"classes": '["a\\"b"]'},
        )
    )
    assert (found.name, found.backend, found.platform, found.max_batch_size) == ("m", "tensorrt", "", 4)
    (image,), (mask,) = found.input, found.output
    assert (image.name, image.data_type, list(image.dims)) == ("image", model_config_pb2.TYPE_UINT8, [-1, -1, 3])
    assert image.allow_ragged_batch
    assert (mask.name, mask.data_type, list(mask.dims)) == ("mask", model_config_pb2.TYPE_UINT16, [-1, -1])
    assert mask.label_filename == "labels.txt"
    assert found.version_policy.latest.num_versions == 2
    (group,) = found.instance_group
    assert (group.kind, group.count, list(group.profile)) == (group.KIND_GPU, 3, ["0", "1"])
    batching = found.dynamic_batching
    assert batching.max_queue_delay_microseconds == 100
    assert batching.default_queue_policy.max_queue_size == 7
    assert batching.default_queue_policy.default_timeout_microseconds == 5_000_000
    assert batching.default_queue_policy.allow_timeout_override
    (warmup,) = found.model_warmup
    assert warmup.batch_size == 1 and list(warmup.inputs["image"].dims) == [48, 64, 3]
    assert warmup.inputs["image"].zero_data
    assert found.response_cache.enable
    assert found.default_model_filename == "model.plan"
    assert dict(found.cc_model_filenames) == {"8.6": "sm_86.plan", "12.0": "sm_120.plan"}
    assert found.parameters["classes"].string_value == '["a\\"b"]'


def test_an_ensemble() -> None:
    steps = (Step("a", {"x": "encoded"}, {"y": "image"}), Step("b", {"image": "image"}, {"mask": "mask"}))
    found = parsed(ModelConfig("e", "ensemble", 1, (TENSOR,), (TENSOR,), steps=steps))
    assert found.platform == "ensemble" and not found.backend
    first, second = found.ensemble_scheduling.step
    assert (first.model_name, dict(first.input_map), dict(first.output_map)) == ("a", {"x": "encoded"}, {"y": "image"})
    assert (second.model_name, second.model_version) == ("b", -1)


@given(st.dictionaries(st.text(), st.text(), max_size=3))
def test_any_text_survives(parameters: dict[str, str]) -> None:
    found = parsed(ModelConfig("m", "python", 0, (TENSOR,), (TENSOR,), parameters=parameters))
    assert {key: value.string_value for key, value in found.parameters.items()} == parameters


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [("latest:3", "latest", 3), ("all", "all", None), ("3,1", "specific", [1, 3]), ("2", "specific", [2])],
)
def test_version_policies(text: str, kind: str, value: object) -> None:
    config = ModelConfig("m", "python", 0, (TENSOR,), (TENSOR,), versions=VersionPolicy.parse(text))
    policy = parsed(config).version_policy
    assert policy.WhichOneof("policy_choice") == kind
    if kind == "latest":
        assert policy.latest.num_versions == value
    if kind == "specific":
        assert list(policy.specific.versions) == value


@pytest.mark.parametrize("text", ["", "latest", "latest:0", "latest:-1", "0", "1,,2", "newest", "²"])
def test_versions_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="versions"):
        VersionPolicy.parse(text)
