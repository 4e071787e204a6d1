"""What Triton reads about a model, ``config.pbtxt``: its own message ModelConfig, in protocol buffers' text format.

The message type comes with tritonclient and refuses fields that it does not know. It has no types for mypy: `Config`
stands for it.
Source: model_config.proto and docs/user_guide/model_configuration.md of triton-inference-server (2.51).
"""

from __future__ import annotations

import re
from typing import Any, TypeAlias

from denseport.runtime.errors import InputError
from denseport.runtime.serving.triton.connections import load_library

__all__ = ["ANY", "Config", "batching", "model_config", "tensor", "to_pbtxt", "version_policy", "zeros"]

ANY = -1  # a dimension that may have any size
Config: TypeAlias = Any  # tritonclient.grpc.model_config_pb2.ModelConfig
Message = dict[str, Any]  # of another of its message types, by field


def batching(delay_us: int, queue: int, timeout_us: int) -> Message:
    """The field ``dynamic_batching``; arguments as of `denseport.runtime.serving.triton.variants.Options`."""
    policy = {
        "timeout_action": "REJECT",
        "allow_timeout_override": True,
        "default_timeout_microseconds": timeout_us,
        "max_queue_size": queue,
    }
    return {"max_queue_delay_microseconds": delay_us, "default_queue_policy": policy}


def version_policy(text: str, *, more: int = 0) -> Message:
    """The field ``version_policy``.

    Args:
        text: ``latest:N``, ``all`` or ``1,2,…``.
        more: how many versions are served beyond the latest N.

    Raises:
        InputError: another text.
    """
    if text == "all":
        return {"all": {}}
    if match := re.fullmatch(r"latest:([1-9]\d{0,8})", text, re.ASCII):
        return {"latest": {"num_versions": int(match[1]) + more}}
    if re.fullmatch(r"[1-9]\d{0,8}(,[1-9]\d{0,8})*", text, re.ASCII):
        return {"specific": {"versions": sorted({int(part) for part in text.split(",")})}}
    raise InputError(f"--versions: {text!r} names no versions", "Give latest:N, all, or numbers from 1 such as 1,3.")


def model_config(name: str, backend: str, parameters: dict[str, str] | None = None, **fields: Any) -> Config:
    """The configuration of one model of a repository.

    Args:
        backend: "python", "onnxruntime", "tensorrt"; "ensemble" is Triton's own.
        fields: ModelConfig's other fields by their names there; a message within is a dictionary.

    Raises:
        MachineError: tritonclient is not installed.
        ValueError: ModelConfig has no such field.
    """
    fields["platform" if backend == "ensemble" else "backend"] = backend
    fields["parameters"] = {key: {"string_value": value} for key, value in (parameters or {}).items()}
    return load_library("grpc").model_config_pb2.ModelConfig(name=name, **fields)


def tensor(name: str, data_type: str, *dims: int, **fields: Any) -> Message:
    """An input or an output.

    Args:
        data_type: "TYPE_UINT8", …
        dims: without the batch; `ANY` is a size that varies.
        fields: of ModelInput or ModelOutput.
    """
    return {"name": name, "data_type": data_type, "dims": dims, **fields}


def zeros(name: str, data_type: str, *dims: int) -> list[Message]:
    """The field ``model_warmup``: a request of zeros that each instance answers before it counts as ready."""
    value = {"data_type": data_type, "dims": dims, "zero_data": True}
    return [{"name": "zeros", "batch_size": 1, "inputs": {name: value}}]


def to_pbtxt(config: Config) -> str:
    """The text of ``config.pbtxt``."""
    from google.protobuf import text_format

    return str(text_format.MessageToString(config))
