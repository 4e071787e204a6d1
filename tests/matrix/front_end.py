"""A program: NVIDIA's TensorRT front-end of one release, on a machine without TensorRT; prints what it has, as JSON.

    front_end.py FOLDER LEAN

builds the stand-in libraries in FOLDER (see tests/export/plugin/tensorrt_on_cpu.py) over the lean runtime LEAN. It then
registers the plugins as a build does and creates one of each, and lists the members of TensorRT's classes.
"""

from __future__ import annotations

import inspect
import json
import sys
import types
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "export" / "plugin"))
import tensorrt_on_cpu

FIELDS = {"UpsampleAdd": {"align_corners": 1}, "UpsampleArgmax": {"scale": 4}, "ResizeArgmax": {}}
WITH_PLUGIN = (10, 14)  # the first whose package `tensorrt` has a module `plugin`; the bindings have it before


def main() -> None:
    tensorrt_on_cpu.import_tensorrt(Path(sys.argv[1]), Path(sys.argv[2]))
    bindings = sys.modules["tensorrt"]
    version = tuple(int(part) for part in bindings.__version__.split(".")[:2])
    if version < WITH_PLUGIN:
        del sys.modules["tensorrt.plugin"]
        package = types.ModuleType("tensorrt")
        package.__dict__.update({key: value for key, value in vars(bindings).items() if key != "__path__"})
        sys.modules["tensorrt"] = package
    enumerations = [name for name, value in vars(bindings).items() if hasattr(value, "__members__")]
    print(json.dumps({"plugin": plugin(bindings), "members": members(bindings), "enumerations": enumerations}))


def plugin(trt: Any) -> str:
    """ "created", or what the product or NVIDIA's front-end said."""
    import numpy as np

    from denseport.export.engine.build import _register_plugin
    from denseport.runtime.backends.tensorrt_library import Library, LogBook
    from denseport.runtime.errors import MachineError

    try:
        _register_plugin(Library("tensorrt", trt, trt.__version__, "13", None, LogBook()))
    except MachineError as err:
        return f"refused: {err.message}"
    for name, fields in FIELDS.items():
        creator = trt.get_plugin_registry().get_creator(name, "1", "denseport")
        types_ = trt.PluginFieldType.INT32
        given = [trt.PluginField(key, np.array([value], np.int32), types_) for key, value in fields.items()]
        how = trt.TensorRTPhase.BUILD, trt.QuickPluginCreationRequest.STRICT_AOT
        try:
            creator.create_plugin(name, "denseport", trt.PluginFieldCollection(given), *how)
        except Exception as err:  # whatever the front-end raises is the finding
            return f"fails: {type(err).__name__}: {err}"
    return "created"


def members(trt: Any) -> dict[str, list[str]]:
    """Public members of each class, with the names of the module itself under ""."""
    classes = {name: value for name, value in vars(trt).items() if inspect.isclass(value)}
    found = {name: [key for key in dir(value) if not key.startswith("_")] for name, value in classes.items()}
    return found | {"": [key for key in dir(trt) if not key.startswith("_")]}


if __name__ == "__main__":
    main()
