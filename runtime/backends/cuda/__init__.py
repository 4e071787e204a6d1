"""CUDA for the back ends: the driver, memory, kernels, and networks whose tensors stay on the GPU.

Nothing here is imported until an engine or ``device_path`` asks for it.
"""
