"""A network of torchvision becomes a bundle: python examples/own_module.py BUNDLE [IMAGE].

Needs torchvision beside Denseport's extras export and onnxruntime. Its weights are random here; a trained network goes
the same way.
"""

from __future__ import annotations

import argparse

import torch
from torchvision.models.segmentation import deeplabv3_mobilenet_v3_large

from denseport.export.entrance.declared import Declared
from denseport.export.entrance.module import export_module
from denseport.runtime import Segmenter
from denseport.runtime.system.progress import Terminal


def main() -> None:
    parser = argparse.ArgumentParser(description="Make a bundle of torchvision's DeepLabV3 and segment an image.")
    parser.add_argument("bundle", help="the folder to make")
    parser.add_argument("image", nargs="?", help="an image to segment with it")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    network = deeplabv3_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=21).eval()
    about = Declared(
        classes=21,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        value_range=1,  # torchvision's numbers are of images in 0..1
        bgr=False,
        scale=(1040, 520),
    )
    bundle = export_module(network, arguments.bundle, about, name="deeplabv3", progress=Terminal())
    checks = bundle.manifest.artifacts["model.onnx"].record["checks"]
    for check in checks:
        print(f"{check['shape']}: ONNX Runtime and torch differ by {check['max_difference']:.1e} at most")
    if arguments.image:
        with Segmenter(bundle) as segment:
            print(segment(arguments.image).mask.shape)


if __name__ == "__main__":
    main()
