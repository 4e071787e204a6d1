"""Kernels that the runtime launches itself, around the network, and what the plugin's kernels share with them.

common.cu           FP16, the loop over a grid's work
resize_argmax.cu    the argmax of logits that are resized twice; the plugin's too
image.cu            an image to the network's input; logits to the image's mask
"""
