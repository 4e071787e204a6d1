"""What Triton reads about a model: ``config.pbtxt``, from typed dataclasses.

Only the fields that Denseport uses. The text is protocol buffers' text format, written here so that an export needs no
package of NVIDIA's; the tests parse it back with tritonclient's ``ModelConfig``.
Source: model_config.proto and docs/user_guide/model_configuration.md of triton-inference-server (2.51).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

__all__ = ["ANY", "Batching", "Instances", "ModelConfig", "Step", "Tensor", "VersionPolicy", "Warmup"]

ANY = -1  # a dimension that may have any size
INDENT = "  "


class _Word(str):
    """A bare word of the text format: the name of an enumeration's value."""

    __slots__ = ()


Scalar = bool | int | str
Message = dict[str, "Value"]
Value = Scalar | Message | Sequence["Scalar | Message"]


@dataclass(frozen=True)
class Tensor:
    """An input or an output."""

    name: str
    data_type: str  # "TYPE_UINT8", …
    dims: tuple[int, ...]  # without the batch; ANY is a size that varies
    ragged: bool = False  # inputs: requests of different sizes may be given to the model together
    labels: str | None = None  # outputs: file of class names, in the model's folder


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


@dataclass(frozen=True)
class Instances:
    """Copies of the model that run side by side."""

    count: int
    gpu: bool = False
    profiles: tuple[int, ...] = ()  # TensorRT: optimization profiles to choose from

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"{self.count} instances")


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
        """The field ``version_policy`` of a model's configuration."""
        if self.specific:
            return {"specific": {"versions": list(self.specific)}}
        return {"all": {}} if self.latest is None else {"latest": {"num_versions": self.latest}}


@dataclass(frozen=True)
class Warmup:
    """A request of zeros that each instance answers before it counts as ready."""

    input: str
    data_type: str
    dims: tuple[int, ...]  # without the batch


@dataclass(frozen=True)
class Step:
    """A model of an ensemble, and which of the ensemble's tensors are its own."""

    model: str
    inputs: dict[str, str]  # the model's name to the ensemble's
    outputs: dict[str, str]


@dataclass(frozen=True)
class ModelConfig:
    """One model of a repository."""

    name: str
    backend: str  # "python", "onnxruntime", "tensorrt"; "ensemble" is Triton's own
    max_batch_size: int  # 0: tensors have no batch axis beyond their dims
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    versions: VersionPolicy = field(default_factory=VersionPolicy)
    instances: Instances | None = None
    batching: Batching | None = None
    warmup: Warmup | None = None
    cache: bool = False  # answers are kept; the server needs --cache-config too
    model_file: str | None = None  # within the version's folder, where it is not the back end's default
    files_by_gpu: dict[str, str] = field(default_factory=dict)  # compute capability "8.6" to a file
    steps: tuple[Step, ...] = ()
    parameters: dict[str, str] = field(default_factory=dict)

    def to_pbtxt(self) -> str:
        """The text of ``config.pbtxt``."""
        return "\n".join(_lines(self._message())) + "\n"

    def _message(self) -> Message:
        is_ensemble = self.backend == "ensemble"
        message: Message = {
            "name": self.name,
            "platform" if is_ensemble else "backend": self.backend,
            "max_batch_size": self.max_batch_size,
            "version_policy": self.versions.to_message(),
            "input": [_tensor(tensor) for tensor in self.inputs],
            "output": [_tensor(tensor) for tensor in self.outputs],
        }
        if self.model_file:
            message["default_model_filename"] = self.model_file
        if self.files_by_gpu:
            message["cc_model_filenames"] = _map(self.files_by_gpu)
        if self.instances:
            message["instance_group"] = [_instances(self.instances)]
        if self.batching:
            message["dynamic_batching"] = _batching(self.batching)
        if self.steps:
            message["ensemble_scheduling"] = {"step": [_step(step) for step in self.steps]}
        if self.warmup:
            message["model_warmup"] = [_warmup(self.warmup, batched=self.max_batch_size > 0)]
        if self.cache:
            message["response_cache"] = {"enable": True}
        if self.parameters:
            message["parameters"] = [
                {"key": key, "value": {"string_value": value}} for key, value in self.parameters.items()
            ]
        return message


def _tensor(tensor: Tensor) -> Message:
    message: Message = {"name": tensor.name, "data_type": _Word(tensor.data_type), "dims": list(tensor.dims)}
    if tensor.ragged:
        message["allow_ragged_batch"] = True
    if tensor.labels:
        message["label_filename"] = tensor.labels
    return message


def _instances(instances: Instances) -> Message:
    message: Message = {"kind": _Word("KIND_GPU" if instances.gpu else "KIND_CPU"), "count": instances.count}
    if instances.profiles:
        message["profile"] = [str(index) for index in instances.profiles]
    return message


def _batching(batching: Batching) -> Message:
    policy: Message = {"timeout_action": _Word("REJECT"), "allow_timeout_override": True}
    if batching.timeout_us:
        policy["default_timeout_microseconds"] = batching.timeout_us
    if batching.queue:
        policy["max_queue_size"] = batching.queue
    return {"max_queue_delay_microseconds": batching.delay_us, "default_queue_policy": policy}


def _warmup(warmup: Warmup, *, batched: bool) -> Message:
    value: Message = {"data_type": _Word(warmup.data_type), "dims": list(warmup.dims), "zero_data": True}
    message: Message = {"name": "zeros", "inputs": [{"key": warmup.input, "value": value}]}
    return {**message, "batch_size": 1} if batched else message


def _step(step: Step) -> Message:
    return {
        "model_name": step.model,
        "model_version": -1,  # the latest that is served
        "input_map": _map(step.inputs),
        "output_map": _map(step.outputs),
    }


def _map(values: Mapping[str, str]) -> list[Scalar | Message]:
    return [{"key": key, "value": value} for key, value in values.items()]


def _lines(message: Message, indent: str = "") -> Iterator[str]:
    """A message's fields, one a line; a list is a repeated field, a dict a message of its own."""
    for name, value in message.items():
        many = not isinstance(value, (str, dict)) and isinstance(value, Sequence)
        for each in value if many else [value]:  # type: ignore[union-attr]
            if isinstance(each, dict):
                yield f"{indent}{name} {{"
                yield from _lines(each, indent + INDENT)
                yield f"{indent}}}"
            else:
                yield f"{indent}{name}: {_scalar(each)}"  # type: ignore[arg-type]


def _scalar(value: Scalar) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (_Word, int)):
        return str(value)
    return '"' + "".join(_escaped(byte) for byte in value.encode()) + '"'


def _escaped(byte: int) -> str:
    """A byte of a quoted string: itself if it is plain ASCII, else its octal number."""
    if byte in b'"\\':
        return "\\" + chr(byte)
    return chr(byte) if 32 <= byte < 127 else f"\\{byte:03o}"
