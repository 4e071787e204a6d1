"""Graphs compared layer by layer: with FP32, or a back end with the arithmetic that is written down.

Imports the passes beside this folder and `denseport.runtime`.
"""
