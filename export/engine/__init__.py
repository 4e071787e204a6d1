"""From an ONNX file to an engine, for TensorRT and TensorRT-RTX alike.

Imports `graph`, `plugin` and the runtime.
"""
