"""What mmsegmentation 1.2.2 does with an image when it tests: step by step, slowly, from its documentation and source.

Independent of the product: it runs the configuration as upstream does, with a dict of results that the steps hand on.
tests/export/checkpoint/test_upstream_paths.py holds it to what the real mmsegmentation gave.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F

__all__ = ["load", "logits_of"]

Settings = Mapping[str, Any]
Network = Callable[[Tensor], Tensor]
CV2 = {"nearest": 0, "bilinear": 1, "bicubic": 2, "area": 3, "lanczos": 4}
BORDER = {"constant": 0, "edge": 1, "symmetric": 2, "reflect": 4}


def load(data: bytes, step: Settings) -> NDArray[Any]:
    """What LoadImageFromFile makes of a file: (H, W, 3) BGR or (H, W), uint8 or float32."""
    colours = step.get("color_type", "color")
    if step.get("imdecode_backend") == "pillow":
        image: Any = Image.open(io.BytesIO(data))
        if "ignore" not in colours:
            image = ImageOps.exif_transpose(image)
        if image.mode == "LA":
            canvas = Image.new("RGB", image.size, (124, 117, 104))
            canvas.paste(image.convert("RGBA"), mask=image.getchannel("A"))
            image = canvas
        image = image.convert("RGB")
        image = np.array(image.convert("L") if "gray" in colours else image)
        image = image[..., ::-1] if image.ndim == 3 else image
    else:
        flag = cv2.IMREAD_GRAYSCALE if "gray" in colours else cv2.IMREAD_COLOR
        flag |= cv2.IMREAD_IGNORE_ORIENTATION if "ignore" in colours else 0
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
    return image.astype(np.float32) if step.get("to_float32") else image  # type: ignore[no-any-return]


def logits_of(
    image: NDArray[Any], pipeline: list[Settings], model: Settings, network: Network, *, align_corners: bool
) -> NDArray[np.float32]:
    """The logits (K, H, W) that upstream takes the argmax of.

    Args:
        image: of `load`.
        pipeline: 1.x steps behind LoadImageFromFile.
        model: ``data_preprocessor`` and ``test_cfg``.
        network: (1, C, h, w) to (1, K, any, any).
    """
    results: dict[str, Any] = {"img": image, "ori_shape": image.shape[:2]}
    for step in pipeline:
        STEPS[step["type"]](results, step)
    tensor = torch.from_numpy(np.ascontiguousarray(np.atleast_3d(results["img"]).transpose(2, 0, 1)))
    preprocessor = model["data_preprocessor"]
    if (preprocessor.get("bgr_to_rgb") or preprocessor.get("rgb_to_bgr")) and len(tensor) == 3:
        tensor = tensor[[2, 1, 0]]
    tensor = tensor.float()
    if preprocessor.get("mean") is not None:
        mean, std = (torch.tensor(preprocessor[key]).view(-1, 1, 1) for key in ("mean", "std"))
        tensor = (tensor - mean) / std
    padding = (0, 0)
    if preprocessor.get("test_cfg"):
        tensor, padding = pad_batch(tensor, preprocessor)
        results["pad_shape"] = tuple(tensor.shape[1:])
    found = inference(tensor[None], results, model["test_cfg"], network, align_corners)
    height, width = found.shape[2] - padding[0], found.shape[3] - padding[1]
    return upsample(found[:, :, :height, :width], results["ori_shape"], align_corners)[0].numpy()


def upsample(logits: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    return F.interpolate(logits, size=tuple(size), mode="bilinear", align_corners=align_corners)


def pad_batch(tensor: Tensor, preprocessor: Settings) -> tuple[Tensor, tuple[int, int]]:
    how, (height, width) = preprocessor["test_cfg"], tensor.shape[1:]
    if how.get("size") is not None:
        wanted = how["size"]
    else:
        divisor = how["size_divisor"]
        wanted = ((height + divisor - 1) // divisor * divisor, (width + divisor - 1) // divisor * divisor)
    below, right = max(wanted[0] - height, 0), max(wanted[1] - width, 0)
    return F.pad(tensor, (0, right, 0, below), value=preprocessor.get("pad_val", 0)), (below, right)


def inference(tensor: Tensor, results: Settings, test_cfg: Settings, network: Network, align_corners: bool) -> Tensor:
    height, width = tensor.shape[2:]
    if test_cfg["mode"] == "whole":
        return upsample(network(tensor), results.get("pad_shape", (height, width))[:2], align_corners)
    (h_crop, w_crop), (h_stride, w_stride) = test_cfg["crop_size"], test_cfg["stride"]
    total, count = torch.zeros(1), torch.zeros(1, 1, height, width)
    for i in range(max(height - h_crop + h_stride - 1, 0) // h_stride + 1):
        for j in range(max(width - w_crop + w_stride - 1, 0) // w_stride + 1):
            bottom, right = min(i * h_stride + h_crop, height), min(j * w_stride + w_crop, width)
            top, left = max(bottom - h_crop, 0), max(right - w_crop, 0)
            window = tensor[:, :, top:bottom, left:right]
            logits = upsample(network(window), (bottom - top, right - left), align_corners)
            total = total + F.pad(logits, (left, width - right, top, height - bottom))
            count[:, :, top:bottom, left:right] += 1
    return total / count


def sample(image: NDArray[Any], size: tuple[int, int], how: str, backend: str = "cv2") -> NDArray[Any]:
    """mmcv.imresize; size: width, height. Pillow is called twice: 13 alone may begin with the height, 12 did not."""
    if backend == "pillow":
        pixels, way = Image.fromarray(np.ascontiguousarray(image)), Image.Resampling[how.upper()]
        return np.array(pixels.resize((size[0], pixels.height), way).resize(size, way))
    return cv2.resize(image, size, interpolation=CV2[how])


def rescaled(image: NDArray[Any], scale: tuple[int, int]) -> tuple[int, int]:
    """mmcv.rescale_size: the new width and height."""
    height, width = image.shape[:2]
    factor = min(max(scale) / max(height, width), min(scale) / min(height, width))
    return int(width * float(factor) + 0.5), int(height * float(factor) + 0.5)


def resize(results: dict[str, Any], step: Settings) -> None:
    image = results["img"]
    scale = step.get("scale")
    if scale is None:
        factor = step["scale_factor"]
        factors = factor if isinstance(factor, tuple) else (factor, factor)
        scale = int(image.shape[1] * factors[0] + 0.5), int(image.shape[0] * factors[1] + 0.5)
    scale = (scale, scale) if isinstance(scale, int) else tuple(scale)
    size = rescaled(image, scale) if step.get("keep_ratio", False) else scale
    results["img"] = sample(image, size, step.get("interpolation", "bilinear"), step.get("backend", "cv2"))


def resize_shortest_edge(results: dict[str, Any], step: Settings) -> None:
    height, width = results["img"].shape[:2]
    shortest = step["scale"] if isinstance(step["scale"], int) else min(step["scale"])
    scale = shortest / min(height, width)
    new = (float(shortest), scale * width) if height < width else (scale * height, float(shortest))
    if max(new) > step["max_size"]:
        again = step["max_size"] / max(new)
        new = new[0] * again, new[1] * again
    size = rescaled(results["img"], (int(new[1] + 0.5), int(new[0] + 0.5)))
    results["img"] = sample(results["img"], size, "bilinear")


def resize_to_multiple(results: dict[str, Any], step: Settings) -> None:
    divisor, (height, width) = step.get("size_divisor", 32), results["img"].shape[:2]
    across, down = (divisor, divisor) if isinstance(divisor, int) else divisor
    size = math.ceil(width / across) * across, math.ceil(height / down) * down
    results["img"] = sample(results["img"], size, step.get("interpolation") or "bilinear")
    results["pad_shape"] = results["img"].shape[:2]


def pad(results: dict[str, Any], step: Settings) -> None:
    image = results["img"]
    height, width = image.shape[:2]
    if step.get("pad_to_square"):
        height = width = max(height, width)
    if step.get("size_divisor"):
        divisor = step["size_divisor"]
        height, width = math.ceil(height / divisor) * divisor, math.ceil(width / divisor) * divisor
    elif step.get("size"):
        width, height = step["size"]
    below, right = max(height - image.shape[0], 0), max(width - image.shape[1], 0)
    value = step.get("pad_val", 0)
    value = value.get("img", 0) if isinstance(value, Mapping) else value
    value = (value,) * 3 if isinstance(value, int) else value  # OpenCV takes a float for the first channel's
    border = BORDER[step.get("padding_mode", "constant")]
    results["img"] = cv2.copyMakeBorder(image, 0, below, 0, right, border, value=value)
    results["pad_shape"] = results["img"].shape[:2]


def normalise(results: dict[str, Any], step: Settings) -> None:
    image = results["img"].astype(np.float32)
    image = image[..., ::-1] if step.get("to_rgb", True) else image
    results["img"] = np.ascontiguousarray((image - np.float32(step["mean"])) / np.float32(step["std"]))


STEPS: dict[str, Callable[[dict[str, Any], Settings], None]] = {
    "Resize": resize,
    "ResizeShortestEdge": resize_shortest_edge,
    "ResizeToMultiple": resize_to_multiple,
    "Pad": pad,
    "Normalize": normalise,
    "RandomFlip": lambda results, step: None,  # with the probability 0
}
