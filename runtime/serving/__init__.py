"""Bundles behind servers: an HTTP server of our own, and NVIDIA Triton.

Imports `segmenter` and what is below it.
"""
