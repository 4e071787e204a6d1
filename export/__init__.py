"""From a checkpoint to a bundle: reading, the network in torch, ONNX, graph passes, engines, audits.

Needs torch and onnx; `graph` alone does without torch. Imports the runtime.
"""

import denseport.runtime  # noqa: F401 - it switches ONNX Runtime's telemetry off
