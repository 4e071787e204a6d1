"""Passes over ONNX graphs, one file a pass. No torch.

Imports the runtime; calibration uses it too.
"""
