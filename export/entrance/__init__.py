"""The ways into a bundle: what all of them share, and the whole way of networks that Denseport does not build itself.

`write` ends every way, without torch; `torch_to_onnx` is the part of those that come from torch. Imports everything of
`export` but the commands.
"""
