"""The fused kernels of DPT's decoder, as TensorRT quick plugins whose PTX lives in the engine.

Three operators (N batch, C channels or classes):

``denseport::UpsampleAdd``      x (N, C, h, w), residual (N, C, 2h, 2w) -> (N, C, 2h, 2w): bilinear x2, plus.
``denseport::UpsampleArgmax``   logits (N, C, h, w) -> int32 (N, s h, s w): bilinear by s = 2, 4, 16; argmax.
``denseport::ResizeArgmax``     logits (N, C, h, w) -> int32 (N, H, W): mmsegmentation's two resizes, to the
                                network's input size and then to the image's, and argmax.

kernels.cu is joined with what denseport.runtime.backends.cuda.kernels shares.
"""
