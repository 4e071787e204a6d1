"""What Triton reads about a model, ``config.pbtxt``: its own message ModelConfig, in protocol buffers' text format.

The message type comes with tritonclient and refuses fields that it does not know. It has no types for mypy: `Config`
stands for it.
Source: model_config.proto and docs/user_guide/model_configuration.md of triton-inference-server (2.51).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

from denseport.runtime.errors import MachineError
from denseport.runtime.system.machine import install_command

__all__ = ["ANY", "Batching", "Config", "VersionPolicy", "model_config", "tensor", "to_pbtxt", "zeros"]

ANY = -1  # a dimension that may have any size
Config: TypeAlias = Any  # tritonclient.grpc.model_config_pb2.ModelConfig
Message = dict[str, Any]  # of another of its message types, by field


@dataclass(frozen=True)
class Batching:
    """How requests wait, and which go through together."""

    delay_us: int = 0  # how long the first of a batch waits for others
    queue: int = 0  # requests that may wait; beyond, UNAVAILABLE at once. 0: no limit
    timeout_us: int = 0  # how long one may wait, unless it brings a limit of its own. 0: no limit

    def __post_init__(self) -> None:
        for name in ("delay_us", "queue", "timeout_us"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} {getattr(self, name)} is negative")

    def to_message(self) -> Message:
        """The field ``dynamic_batching``."""
        policy = {
            "timeout_action": "REJECT",
            "allow_timeout_override": True,
            "default_timeout_microseconds": self.timeout_us,
            "max_queue_size": self.queue,
        }
        return {"max_queue_delay_microseconds": self.delay_us, "default_queue_policy": policy}


@dataclass(frozen=True)
class VersionPolicy:
    """Which versions of a model are served: the latest few, some, or all."""

    latest: int | None = 1
    specific: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if (self.specific and min(self.specific) < 1) or (self.latest is not None and self.latest < 1):
            raise ValueError("versions count from 1")

    @classmethod
    def parse(cls, text: str) -> VersionPolicy:
        """From ``latest:N``, ``all`` or ``1,2,…``.

        Raises:
            ValueError: none of these.
        """
        if text == "all":
            return cls(None)
        word, _, count = text.partition(":")
        if word == "latest" and count.isascii() and count.isdigit():
            return cls(int(count))
        if all(part.isascii() and part.isdigit() for part in text.split(",")):
            return cls(None, tuple(sorted({int(part) for part in text.split(",")})))
        raise ValueError(f"no versions {text!r}")

    def to_message(self) -> Message:
        """The field ``version_policy``."""
        if self.specific:
            return {"specific": {"versions": self.specific}}
        return {"all": {}} if self.latest is None else {"latest": {"num_versions": self.latest}}


def model_config(name: str, backend: str, parameters: dict[str, str] | None = None, **fields: Any) -> Config:
    """The configuration of one model of a repository.

    Args:
        backend: "python", "onnxruntime", "tensorrt"; "ensemble" is Triton's own.
        fields: ModelConfig's other fields by their names there; a message within is a dictionary.

    Raises:
        MachineError: tritonclient is not installed.
        ValueError: ModelConfig has no such field.
    """
    try:
        from tritonclient.grpc.model_config_pb2 import ModelConfig
    except ImportError as err:
        raise MachineError(
            f"Triton's message types are missing: tritonclient is not installed: {err}", install_command("client")
        ) from err
    fields["platform" if backend == "ensemble" else "backend"] = backend
    fields["parameters"] = {key: {"string_value": value} for key, value in (parameters or {}).items()}
    return ModelConfig(name=name, **fields)


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
