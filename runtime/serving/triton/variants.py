"""Which models a repository holds for a bundle and a back end, with their configurations and files.

The network's own back ends get a Python model in front of them, which runs the runtime's code and asks the network for
logits (`denseport.runtime.serving.triton.python_models.SegmenterModel`). One graph with everything inside would give
other masks: OpenCV resizes in fixed point, which no ONNX operator repeats. A Triton ensemble cannot move windows over
an image, and takes each of its steps' latest version, so that two versions meet while one replaces the other.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from denseport.runtime.bundle.artifact import FOR_OPENVINO, FOR_TENSORRT
from denseport.runtime.bundle.bundle import MANIFEST, Bundle
from denseport.runtime.bundle.engine_record import BuildRecord
from denseport.runtime.bundle.preprocessing import loading
from denseport.runtime.bundle.protocol import parse_protocol
from denseport.runtime.bundle.steps import Load
from denseport.runtime.errors import InputError
from denseport.runtime.pipeline.network_input import network_inputs
from denseport.runtime.selection import refuse_masks, why_no_logits
from denseport.runtime.serving.triton import (
    CLASSES,
    DEPTH,
    ENCODED,
    IMAGE,
    INSTANCES,
    MASK,
    MEANING,
    OUTPUT,
    python_models,
)
from denseport.runtime.serving.triton.config import ANY, Config, batching, model_config, tensor, version_policy, zeros
from denseport.runtime.system.arguments import whole
from denseport.runtime.system.cpus import usable_cpus

__all__ = ["LABELS", "Options", "Served", "model_name", "served_models"]

LABELS = "labels.txt"
ONNX = "model.onnx"  # the ONNX Runtime back end's default
PLAN = "model.plan"  # the TensorRT back end's default


@dataclass(frozen=True)
class Options:
    """What an export was asked for."""

    backend: str = "python"
    name: str | None = None  # of the model; default: the bundle's
    artifacts: tuple[str, ...] = ()  # default: the bundle's source, or for plans all TensorRT engines
    instances: int | None = None  # processes that run images; default: the CPUs this process may use
    network_instances: int = 1  # of the network, where it is a model of its own
    threads: int = 1  # of each instance
    max_batch: int = 8
    delay_us: int = 0  # how long the first request of a batch waits for others
    queue: int = 128  # requests that may wait; beyond, UNAVAILABLE at once. 0: no limit
    timeout_us: int = 0  # how long one may wait, unless it brings a limit of its own. 0: no limit
    max_pixels: int = 4096 * 4096  # 48 MiB of uint8; Triton's HTTP port takes 64 MB a request
    gpu: bool = False  # back end onnxruntime: the network runs on GPUs
    warmup: tuple[int, int] | None = None  # height and width of an image that each instance answers first
    cache: bool = False
    versions: str = "latest:1"  # which are served: latest:N, all, or 1,3
    ensemble: bool = False

    def __post_init__(self) -> None:
        if self.backend not in _MAKERS:
            raise InputError(f"no back end {self.backend!r}", f"Give one of {', '.join(_MAKERS)}.")
        least = {"instances": 1, "network_instances": 1, "threads": 1, "max_batch": 1, "max_pixels": 1}
        for name, lowest in (least | {"delay_us": 0, "queue": 0, "timeout_us": 0}).items():
            if getattr(self, name) is not None:
                whole(name, getattr(self, name), lowest)
        if self.warmup is not None and not 1 <= min(self.warmup) * max(self.warmup) <= self.max_pixels:
            size = "{1} x {0}".format(*self.warmup)
            raise InputError(
                f"a warm-up image of {size} is not within 1 to {self.max_pixels} pixels", "Lower --warmup."
            )
        if self.network_instances != 1 and self.backend == "python":
            raise InputError("--network-instances does not go with --backend python", "Give --instances.")
        if self.gpu and self.backend != "onnxruntime":
            raise InputError(
                f"--gpu does not go with --backend {self.backend}",
                "The back end python runs where its artifact does, tensorrt_plan always on GPUs.",
            )


@dataclass(frozen=True)
class Served:
    """One model of the repository, as its folder will be."""

    config: Config
    files: dict[str, bytes | Path]  # in the version's folder
    labels: str | None = None
    versioned: bool = True  # False: one version, whatever the bundle


def model_name(bundle: Bundle, name: str | None) -> str:
    """The model's name on the server: ``name``, or the bundle's with other characters than Triton's replaced.

    Raises:
        InputError: a name that cannot be a folder's and a part of a URL.
    """
    if name is None:
        return re.sub(r"[^A-Za-z0-9_.-]+", "_", bundle.manifest.name).strip("._-") or "model"
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise InputError(
            f"{name!r} cannot be a model's name", "Use letters, digits, '_', '-' and '.'; begin with a letter or digit."
        )
    return name


def served_models(bundle: Bundle, options: Options) -> list[Served]:
    """The models of the repository; a model stands before those that ask it.

    Raises:
        BundleError: an artifact is missing or altered.
        InputError: the back end cannot serve the artifact.
    """
    models = _MAKERS[options.backend](bundle, options)
    return models + (_ensemble(models[-1], options, loading(bundle.manifest.preprocess)) if options.ensemble else [])


def _python(bundle: Bundle, options: Options) -> list[Served]:
    name = _one_artifact(bundle, options)
    path = bundle.verified(name)
    warmup = zeros(IMAGE, "TYPE_UINT8", *options.warmup, 3) if options.warmup else []
    front = _front(bundle, options, {"artifact": name}, artifacts=(name,), model_warmup=warmup)
    for file in bundle.artifact(name).files:
        front.files[f"{python_models.BUNDLE}/{file}"] = path.with_name(file)
    return [front]


def _onnxruntime(bundle: Bundle, options: Options) -> list[Served]:
    name = _one_artifact(bundle, options)
    artifact, path = bundle.artifact(name), bundle.verified(name)
    if artifact.kind != "onnx":
        raise InputError(f"{name} is an {artifact.kind}, not an ONNX model", "Give --backend python or tensorrt_plan.")
    if artifact.target == FOR_OPENVINO:
        raise InputError(f"{name} runs on OpenVINO, not on ONNX Runtime", "Give --backend python.")
    # The back end opens model.onnx; external data keeps the name that the model knows.
    files: dict[str, bytes | Path] = {(ONNX if f == artifact.main else f): path.with_name(f) for f in artifact.files}
    warmup = []
    if options.warmup:
        blank, protocol = np.zeros((*options.warmup, 3), np.uint8), parse_protocol("reference", bundle.manifest)
        shown = next(network_inputs(blank, protocol, bundle.manifest.patch_size))
        warmup = zeros(IMAGE, "TYPE_FP32", *shown.shape[1:])
    return _with_network(
        bundle,
        options,
        files,
        "onnxruntime",
        options.max_batch,
        instance_group=[{"kind": "KIND_GPU" if options.gpu else "KIND_CPU", "count": options.network_instances}],
        model_warmup=warmup,
        parameters={} if options.gpu else {"intra_op_thread_count": str(options.threads)},
    )


def _tensorrt_plan(bundle: Bundle, options: Options) -> list[Served]:
    records = _engine_records(bundle, options.artifacts)
    count, max_batch = _common_limits(list(records.values()), bundle)
    files: dict[str, bytes | Path] = {}
    by_gpu: dict[str, str] = {}  # compute capability to file
    for name, record in records.items():
        if record.hardware_compatibility == "ampere_plus":
            file = PLAN
        else:
            file = f"{record.compute_capability}.plan"
            by_gpu[_capability(record)] = file
        if file in files:
            raise InputError(f"{name} and another engine are for the same GPU", "Choose with --artifact.")
        files[file] = bundle.verified(name)
    return _with_network(
        bundle,
        options,
        files,
        "tensorrt",
        max_batch,
        instance_group=[
            {"kind": "KIND_GPU", "count": options.network_instances, "profile": [str(index) for index in range(count)]}
        ],
        default_model_filename=PLAN if PLAN in files else "",
        cc_model_filenames=by_gpu,
    )


def _one_artifact(bundle: Bundle, options: Options) -> str:
    names = options.artifacts or (bundle.manifest.source,)
    if len(names) > 1:
        raise InputError(f"back end {options.backend} serves one artifact, not {', '.join(names)}", "Name one.")
    refuse_masks(names[0], bundle.artifact(names[0]))
    return names[0]


def _engine_records(bundle: Bundle, wanted: tuple[str, ...]) -> dict[str, BuildRecord]:
    """The TensorRT engines to serve: those named, or all that give logits."""
    artifacts = bundle.manifest.artifacts
    engines = [name for name, each in artifacts.items() if (each.kind, each.target) == ("engine", FOR_TENSORRT)]
    names = wanted or [name for name in engines if not why_no_logits(artifacts[name])]
    if not names:
        raise InputError(
            f"{bundle.path}: holds no TensorRT engine", "Build one on the GPU: denseport build BUNDLE --engine tensorrt"
        )
    records = {}
    for name in names:
        artifact = bundle.artifact(name)
        if name not in engines:
            raise InputError(
                f"{name} is not a TensorRT engine, and Triton's back end opens nothing else",
                "TensorRT-RTX engines and ONNX models are served with --backend python.",
            )
        refuse_masks(name, artifact)
        records[name] = BuildRecord.from_dict(artifact.record, f"{bundle.path}: {name}")
    return records


def _capability(record: BuildRecord) -> str:
    """The compute capability of an engine as Triton writes it: "8.6" for sm_86."""
    digits = (record.compute_capability or "").removeprefix("sm_")
    if not digits.isdigit() or len(digits) < 2:
        raise InputError(
            f"an engine's record does not say for which GPU it was built: {record.compute_capability!r}",
            "Build it again: denseport build BUNDLE --engine tensorrt",
        )
    return f"{digits[:-1]}.{digits[-1]}"


def _common_limits(records: list[BuildRecord], bundle: Bundle) -> tuple[int, int]:
    """The number of profiles and the largest batch of all engines; a batch of 0 where it is fixed in the engine."""
    counts = {len(record.profiles) for record in records}
    profiles = [profile for record in records for profile in record.profiles]
    if len(counts) != 1 or any(profile.minimum[0] != 1 for profile in profiles):
        raise InputError(
            f"{bundle.path}: the engines have {sorted(counts)} profiles, for batches from "
            f"{sorted({profile.minimum[0] for profile in profiles})}",
            "Served together they need as many profiles each, and batches from 1: build them with one --profile.",
        )
    folded = {record.folded for record in records}
    if len(folded) != 1:
        raise InputError(f"{bundle.path}: some engines are for one size only", "Build all with one --profile.")
    return counts.pop(), 0 if folded.pop() else min(profile.maximum[0] for profile in profiles)


def _with_network(
    bundle: Bundle, options: Options, files: dict[str, bytes | Path], backend: str, max_batch: int, **fields: Any
) -> list[Served]:
    """The network on its own, normalised images in, logits out; then the model that asks it."""
    batch = () if max_batch else (1,)  # without batches Triton wants it among the dims
    config = model_config(
        f"{model_name(bundle, options.name)}_network",
        backend,
        max_batch_size=max_batch,
        input=[tensor(IMAGE, "TYPE_FP32", *batch, bundle.manifest.input.shape[1], ANY, ANY)],
        output=[tensor(bundle.manifest.output, "TYPE_FP32", *batch, len(bundle.manifest.classes) or 1, ANY, ANY)],
        # Until the model that asks has left its old version, that needs the old network.
        version_policy=version_policy(options.versions, more=1),
        dynamic_batching=batching(options.delay_us, options.queue, options.timeout_us) if max_batch else None,
        **fields,
    )
    return [Served(config, files), _front(bundle, options, {"network": config.name})]


def _front(
    bundle: Bundle,
    options: Options,
    parameters: dict[str, str],
    artifacts: tuple[str, ...] = (),
    **fields: Any,
) -> Served:
    """The model that clients ask: images in, masks or depths out."""
    manifest = bundle.manifest
    kept = {name: manifest.artifacts[name] for name in (manifest.source, *artifacts)}  # no manifest is without a source
    instances = options.instances or usable_cpus()
    mask_type = "TYPE_UINT8" if len(manifest.classes) <= 256 else "TYPE_UINT16"
    output = tensor(MASK, mask_type, ANY, ANY, label_filename=LABELS)
    labels: str | None = "".join(" ".join(name.split()) + "\n" for name in manifest.classes)
    if manifest.task == "depth":
        output, labels = tensor(DEPTH, "TYPE_FP32", ANY, ANY), None
    config = model_config(
        model_name(bundle, options.name),
        "python",
        max_batch_size=options.max_batch,
        input=[tensor(IMAGE, "TYPE_UINT8", ANY, ANY, 3, allow_ragged_batch=True)],
        output=[output],
        version_policy=version_policy(options.versions),
        instance_group=[{"kind": "KIND_CPU", "count": instances}],
        dynamic_batching=batching(options.delay_us, options.queue, options.timeout_us),
        response_cache={"enable": True} if options.cache else None,
        parameters={
            **parameters,
            "max_pixels": str(options.max_pixels),
            "threads": str(options.threads),
            INSTANCES: str(instances),
            CLASSES: json.dumps(manifest.classes),
            OUTPUT: output["name"],
            MEANING: json.dumps(manifest.depth and asdict(manifest.depth)),
        },
        **fields,
    )
    return Served(
        config,
        files={
            "model.py": _model_py("SegmenterModel"),
            f"{python_models.BUNDLE}/{MANIFEST}": replace(manifest, artifacts=kept).to_json().encode(),
        },
        labels=labels,
    )


def _model_py(python_class: str) -> bytes:
    return (
        '"""Written by `denseport triton`: the model is a part of Denseport, which the server must have."""\n\n'
        f"from {python_models.__name__} import {python_class} as TritonPythonModel  # noqa: F401\n"
    ).encode()


def _ensemble(front: Served, options: Options, load: Load) -> list[Served]:
    """An image file in, mask or depth out: decoding in front of the model."""
    encoded, asked = tensor(ENCODED, "TYPE_UINT8", ANY), front.config
    made = asked.output[0].name
    decoder = model_config(
        f"{asked.name}_decode",
        "python",
        max_batch_size=1,  # decoded images differ in size; the model behind still batches them
        input=[encoded],
        output=[tensor(IMAGE, "TYPE_UINT8", ANY, ANY, 3)],
        version_policy=version_policy("latest:1"),
        instance_group=asked.instance_group,
        dynamic_batching=asked.dynamic_batching,
        parameters={
            "max_pixels": str(options.max_pixels),
            "load": json.dumps({f.name: getattr(load, f.name) for f in fields(load) if f.init}),
        },
    )
    ensemble = model_config(
        f"{asked.name}_encoded",
        "ensemble",
        max_batch_size=1,
        input=[encoded],
        output=asked.output,
        version_policy=version_policy("latest:1"),
        # The newest version of each model; the maps go from its tensors to the ensemble's.
        ensemble_scheduling={
            "step": [
                {"model_name": name, "model_version": -1, "input_map": {given: given}, "output_map": {made: made}}
                for name, given, made in ((decoder.name, ENCODED, IMAGE), (asked.name, IMAGE, made))
            ]
        },
        parameters={key: asked.parameters[key].string_value for key in (INSTANCES, CLASSES, OUTPUT, MEANING)},
    )
    return [
        Served(decoder, {"model.py": _model_py("Decoder")}, versioned=False),
        Served(ensemble, {}, labels=front.labels, versioned=False),
    ]


_MAKERS = {"python": _python, "onnxruntime": _onnxruntime, "tensorrt_plan": _tensorrt_plan}
