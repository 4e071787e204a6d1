"""Registers the fused operators with TensorRT when imported, as quick plugins compiled ahead of time.

The builder calls ``autotune`` for the types, layouts and tactics to measure, and ``aot_impl`` for the kernel
of each: PTX, launch dimensions and integers go into the engine, which then needs neither this file nor
Python.

ONNX nodes carry the operator's name and the attributes ``plugin_namespace`` "denseport", ``plugin_version``
"1" and ``aot`` 1 besides the operator's own, which are integers, since TensorRT gives strings a trailing NUL.

TensorRT-RTX takes no plugins. (TensorRT reads the annotations below as types: no ``from __future__`` here.)
"""

# mypy: disable-error-code="import-not-found,import-untyped,untyped-decorator"
import tensorrt as trt

try:
    import tensorrt.plugin as trtp
    from tensorrt.plugin import TensorDesc as Tensor
except ModuleNotFoundError:  # before 10.14 pip's front-end hides what its bindings have
    import tensorrt_bindings.plugin as trtp
    from tensorrt_bindings.plugin import TensorDesc as Tensor

from denseport.export.plugin import launch
from denseport.export.plugin.compile import compile_ptx, single_kernel

__all__ = ["NAMESPACE"]

NAMESPACE = "denseport"

Kernel = tuple[str | bytes, str | bytes, trtp.KernelLaunchParams, trtp.SymExprs]

_BLOCKS = {1: 256, 2: 128}  # UpsampleAdd's tactics: threads a block
_STRIPS: dict[int, launch.Strip] = {1: "wide", 2: "slim"}  # UpsampleArgmax's


@trtp.register("denseport::UpsampleAdd")
def _add(x: Tensor, residual: Tensor, align_corners: int) -> Tensor:
    return residual.like()


@trtp.autotune("denseport::UpsampleAdd")
def _add_variants(x: Tensor, residual: Tensor, outputs: tuple[Tensor]) -> list[trtp.AutoTuneCombination]:
    return [
        trtp.AutoTuneCombination("FP32|FP16, FP32|FP16, FP32|FP16", "LINEAR", list(_BLOCKS)),
        trtp.AutoTuneCombination("FP16, FP16, FP16", "HWC8", list(_BLOCKS)),
    ]


@trtp.aot_impl("denseport::UpsampleAdd")
def _add_kernel(x: Tensor, residual: Tensor, align_corners: int, outputs: tuple[Tensor], tactic: int) -> Kernel:
    plan = launch.upsample_add(
        *x.shape_expr,
        precision=_precision(x),
        layout="hwc8" if x.format == trt.TensorFormat.HWC8 else "linear",
        align_corners=bool(align_corners),
        block=_BLOCKS[tactic],
    )
    return _kernel(plan)


@trtp.register("denseport::UpsampleArgmax")
def _argmax(logits: Tensor, scale: int) -> Tensor:
    batch, _, height, width = logits.shape_expr
    return trtp.from_shape_expr((batch, height * scale, width * scale), trt.int32)


@trtp.autotune("denseport::UpsampleArgmax")
def _argmax_variants(logits: Tensor, outputs: tuple[Tensor]) -> list[trtp.AutoTuneCombination]:
    return [trtp.AutoTuneCombination("FP32*FP16, INT32", "LINEAR", list(_STRIPS))]


@trtp.aot_impl("denseport::UpsampleArgmax")
def _argmax_kernel(logits: Tensor, scale: int, outputs: tuple[Tensor], tactic: int) -> Kernel:
    plan = launch.upsample_argmax(*logits.shape_expr, precision=_precision(logits), scale=scale, strip=_STRIPS[tactic])
    return _kernel(plan)


# Sizes that vary from call to call can reach a quick plugin only as shapes of its inputs: `image` is the
# network's own input (N, 3, H, W); `rows` and `columns` are FP32 vectors as long as the image is high and
# wide, whatever they hold.
@trtp.register("denseport::ResizeArgmax")
def _resize(logits: Tensor, image: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    return trtp.from_shape_expr((logits.shape_expr[0], rows.shape_expr[0], columns.shape_expr[0]), trt.int32)


@trtp.autotune("denseport::ResizeArgmax")
def _resize_variants(
    logits: Tensor, image: Tensor, rows: Tensor, columns: Tensor, outputs: tuple[Tensor]
) -> list[trtp.AutoTuneCombination]:
    return [trtp.AutoTuneCombination("FP32*FP16, FP32*FP16, FP32, FP32, INT32", "LINEAR")]


@trtp.aot_impl("denseport::ResizeArgmax")
def _resize_kernel(
    logits: Tensor, image: Tensor, rows: Tensor, columns: Tensor, outputs: tuple[Tensor], tactic: int
) -> Kernel:
    batch, classes, height, width = logits.shape_expr
    plan = launch.resize_argmax(
        batch,
        classes,
        (height, width),
        (image.shape_expr[2], image.shape_expr[3]),
        (rows.shape_expr[0], columns.shape_expr[0]),
        precision=_precision(logits),
    )
    return _kernel(plan)


def _precision(tensor: Tensor) -> launch.Precision:
    return "f16" if tensor.dtype == trt.float16 else "f32"


def _kernel(plan: launch.Launch) -> Kernel:
    parameters = trtp.KernelLaunchParams(grid_x=plan.grid, block_x=plan.block, shared_mem=0)
    scalars = trtp.SymIntExprs.from_tuple([trtp.SymInt32(value) for value in plan.scalars])
    return plan.kernel, single_kernel(compile_ptx(), plan.kernel), parameters, scalars
