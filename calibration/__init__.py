"""INT8 and FP8 for a bundle: what tensors hold, which layers are worth it, the graph, the verdict.

Needs onnx and ONNX Runtime, no torch. Imports the runtime and `export.graph`.
"""

import denseport.runtime  # noqa: F401 - it switches ONNX Runtime's telemetry off
