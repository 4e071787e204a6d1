"""A program: import NVIDIA's TensorRT front-end on a machine without TensorRT, and register the plugins.

    tensorrt_on_cpu.py FOLDER [BUILDER]

builds the stand-in libraries in FOLDER and prints JSON: the registered creators and, where BUILDER (mini_builder.cpp,
compiled) is given, what engines would hold for the nodes described on standard input.

It runs in a process of its own, since it puts ``tensorrt`` into ``sys.modules`` and libraries into memory.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

STUB = Path(__file__).with_name("tensorrt_stub.c")


def import_tensorrt(folder: Path, lean: Path | None = None) -> None:
    """Make ``import tensorrt`` give NVIDIA's bindings.

    Args:
        lean: the lean runtime of the same major release; default: that of the environment.
    """
    lean = lean or _lean_runtime()
    os.environ["TENSORRT_LEAN_LIBRARY"] = str(lean)
    for name in ("libnvinfer", "libnvinfer_plugin", "libnvonnxparser"):
        library = folder / f"{name}.so{lean.suffix}"  # ".11"
        subprocess.run(
            ["gcc", "-shared", "-fPIC", f"-Wl,-soname,{library.name}", str(STUB), "-ldl", "-o", str(library)],
            check=True,
        )
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    sys.modules["tensorrt"] = importlib.import_module("tensorrt_bindings")
    sys.modules["tensorrt.plugin"] = importlib.import_module("tensorrt_bindings.plugin")


def _lean_runtime() -> Path:
    package = importlib.util.find_spec("tensorrt_lean_libs")
    if package is None or not package.submodule_search_locations:
        raise ModuleNotFoundError("tensorrt_lean_libs")
    (found,) = Path(package.submodule_search_locations[0]).glob("libnvinfer_lean.so.*")
    return found


def ask(builder: ctypes.CDLL, operator: str, fields: dict[str, int], inputs: list[tuple[str, list[int]]]) -> Any:
    """What an engine would hold for one node: mini_builder.cpp's answer, with the code as text."""
    import tensorrt as trt

    types = {"f32": trt.float32, "f16": trt.float16, "int8": trt.int8}
    sizes = [size for _, shape in inputs for size in shape]
    builder.build_plugin.restype = ctypes.c_char_p
    answer = json.loads(
        builder.build_plugin(
            operator.encode(),
            b"denseport",
            len(fields),
            (ctypes.c_char_p * len(fields))(*(name.encode() for name in fields)),
            (ctypes.c_int32 * len(fields))(*fields.values()),
            len(inputs),
            (ctypes.c_int32 * len(inputs))(*(int(types[name]) for name, _ in inputs)),
            (ctypes.c_int32 * len(inputs))(*(len(shape) for _, shape in inputs)),
            (ctypes.c_int64 * len(sizes))(*sizes),
        )
    )
    for kernel in answer.get("kernels", []):
        kernel["code"] = ctypes.string_at(kernel["code"], kernel["bytes"]).decode()
        kernel["formats"] = [trt.TensorFormat(number).name for number in kernel["formats"]]
    return answer


def main() -> None:
    import_tensorrt(Path(sys.argv[1]))
    import tensorrt as trt

    from denseport.export.plugin import tensorrt_plugin

    creators = [
        {
            "name": creator.name,
            "version": creator.plugin_version,
            "fields": [field.name for field in creator.field_names],
        }
        for creator in trt.get_plugin_registry().all_creators
        if creator.plugin_namespace == tensorrt_plugin.NAMESPACE
    ]
    answers = []
    if len(sys.argv) > 2:
        builder = ctypes.CDLL(sys.argv[2])
        answers = [ask(builder, **question) for question in json.load(sys.stdin)]
    print(json.dumps({"tensorrt": trt.__version__, "creators": creators, "answers": answers}))


if __name__ == "__main__":
    main()
