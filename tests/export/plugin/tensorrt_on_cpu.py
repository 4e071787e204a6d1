"""A program: import NVIDIA's TensorRT front-end on a machine without TensorRT, and register the plugins.

    tensorrt_on_cpu.py FOLDER    build the stand-in libraries in FOLDER; print the registered creators as JSON

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

STUB = Path(__file__).with_name("tensorrt_stub.c")


def import_tensorrt(folder: Path) -> None:
    """Make ``import tensorrt`` give NVIDIA's bindings."""
    lean = importlib.util.find_spec("tensorrt_lean_libs")
    if lean is None or not lean.submodule_search_locations:
        raise ModuleNotFoundError("tensorrt_lean_libs")
    os.environ["TENSORRT_LEAN_LIBRARY"] = f"{lean.submodule_search_locations[0]}/libnvinfer_lean.so.11"
    for name in ("libnvinfer.so.11", "libnvinfer_plugin.so.11", "libnvonnxparser.so.11"):
        library = folder / name
        subprocess.run(
            ["gcc", "-shared", "-fPIC", f"-Wl,-soname,{name}", str(STUB), "-ldl", "-o", str(library)],
            check=True,
        )
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    sys.modules["tensorrt"] = importlib.import_module("tensorrt_bindings")
    sys.modules["tensorrt.plugin"] = importlib.import_module("tensorrt_bindings.plugin")


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
    print(json.dumps({"tensorrt": trt.__version__, "creators": creators}))


if __name__ == "__main__":
    main()
