"""Train the toy depth network of tests/assets/depth, on rendered scenes alone, and save it as a Hugging Face folder.

    python scripts/doc_images/depth_sample/train.py tests/assets/depth/network [--steps 4000]

A Depth Anything with a small DINOv2 encoder, metres up to 20. No weights and no image of anybody's are used. Each scene
is seen once, with its mirror image beside it, the first ones at few pixels. The same seed, threads and versions give
the same weights.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from render import MAX_DEPTH, render
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from denseport.export.models.head_spec import DepthAnythingHeadSpec
from denseport.export.models.segmentor import Segmentor, build
from denseport.export.models.spec import ModelSpec, ViTSpec, quarters

SIZES = {(112, 84): 0.5, (168, 126): 0.3, (224, 168): 0.2}  # width, height, and its share of the steps
LAST = (224, 168)
BATCH, RATE, WARM = 16, 1e-3, 0.07  # images, mirrored ones too; the largest rate; share of the steps to reach it
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DIMS, LAYERS, HEADS, WIDTHS, CHANNELS, HIDDEN = 96, 8, 3, (24, 32, 48, 64), 32, 16
VALIDATION = 2_000_000  # the first of the scenes that are looked at on the way; they change nothing
SPEC = ModelSpec(
    ViTSpec(
        embed_dims=DIMS,
        num_layers=LAYERS,
        num_heads=HEADS,
        mlp_dims=4 * DIMS,
        out_indices=quarters(LAYERS),
        pos_grid=(16, 16),
        norm_eps=1e-6,
        norm_outputs=True,
        layer_scale=True,
        patch_size=14,
        keeps_equal_count=False,
        cuts_rest=True,
    ),
    None,
    DepthAnythingHeadSpec(
        CHANNELS, WIDTHS, "ignore", depth_channels=HIDDEN, max_depth=MAX_DEPTH, unit_norm=False, unit_bias=True
    ),
    num_classes=0,
)
# transformers' names for the parts of `SPEC`'s network.
NAMES = {
    r"backbone\.(cls_token)": r"backbone.embeddings.\1",
    r"backbone\.pos_embed": "backbone.embeddings.position_embeddings",
    r"backbone\.patch_embed\.": "backbone.embeddings.patch_embeddings.",
    r"backbone\.ln1\.": "backbone.layernorm.",
    r"backbone\.layers\.(\d+)\.ln(\d)\.": r"backbone.encoder.layer.\1.norm\2.",
    r"backbone\.layers\.(\d+)\.attn\.attn\.out_proj\.": r"backbone.encoder.layer.\1.attention.output.dense.",
    r"backbone\.layers\.(\d+)\.ffn\.layers\.0\.0\.": r"backbone.encoder.layer.\1.mlp.fc1.",
    r"backbone\.layers\.(\d+)\.ffn\.layers\.1\.": r"backbone.encoder.layer.\1.mlp.fc2.",
    r"backbone\.layers\.(\d+)\.ls(\d)\.gamma": r"backbone.encoder.layer.\1.layer_scale\2.lambda1",
    r"decode_head\.reassemble_blocks\.projects\.(\d)\.conv\.": r"neck.reassemble_stage.layers.\1.projection.",
    r"decode_head\.reassemble_blocks\.resize_layers\.(\d)\.": r"neck.reassemble_stage.layers.\1.resize.",
    r"decode_head\.convs\.(\d)\.conv\.": r"neck.convs.\1.",
    r"decode_head\.fusion_blocks\.(\d)\.project\.conv\.": r"neck.fusion_stage.layers.\1.projection.",
    r"decode_head\.fusion_blocks\.(\d)\.res_conv_unit(\d)\.conv(\d)\.conv\.": (
        r"neck.fusion_stage.layers.\1.residual_layer\2.convolution\3."
    ),
    r"decode_head\.output_conv1\.": "head.conv1.",
    r"decode_head\.output_conv2\.0\.": "head.conv2.",
    r"decode_head\.output_conv2\.2\.": "head.conv3.",
}
PACKED = re.compile(r"backbone\.layers\.(\d+)\.attn\.attn\.in_proj_(weight|bias)")


class Scenes(Dataset[tuple[Tensor, Tensor]]):
    """Rendered images (3, H, W), normalised, and their depths (H, W), at most `MAX_DEPTH`."""

    def __init__(self, first: int, number: int, size: tuple[int, int]) -> None:
        self.first, self.number, self.size = first, number, size

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, depth = render(self.first + index, *self.size)
        normal = (image / np.float32(255) - np.float32(MEAN)) / np.float32(DEVIATION)
        return torch.from_numpy(normal.transpose(2, 0, 1)), torch.from_numpy(np.minimum(depth, np.float32(MAX_DEPTH)))


def batches(steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Images and depths for each step, rendered by a process of its own."""
    scenes, first = BATCH // 2, 0
    for size, share in SIZES.items():
        number = round(share * steps) * scenes
        for both in DataLoader(Scenes(first, number, size), scenes, num_workers=1, prefetch_factor=4):
            images, depths = (torch.cat([each, each.flip(-1)]) for each in both)
            yield images, depths
        first += number


def train(steps: int, seed: int) -> Segmentor:
    """The network after so many steps of AdamW on the difference of log depths."""
    torch.manual_seed(seed)
    model = build(SPEC).train()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps + 1, pct_start=WARM)
    start, mean = time.perf_counter(), 0.0
    for done, (images, depths) in enumerate(batches(steps), start=1):
        with torch.autocast("cpu", torch.bfloat16):  # half the time, where the processor has it
            found = model(images)[:, 0].float()
        loss = (log_of(found) - log_of(depths)).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        mean = loss.item() if done == 1 else 0.98 * mean + 0.02 * loss.item()
        if done % 200 == 0 or done == steps:
            minutes = (time.perf_counter() - start) / 60
            print(f"step {done}, {minutes:.1f} min: loss {mean:.4f}; {words(validate(model))}", flush=True)
    return model.eval()


def log_of(depth: Tensor) -> Tensor:
    return depth.clamp(min=1e-3).log()


@torch.inference_mode()
def validate(model: Segmentor, number: int = 32) -> tuple[float, float]:
    """AbsRel of the network, and of one number for all pixels (the best, by absolute differences of logs)."""
    scenes = Scenes(VALIDATION, number, LAST)
    images, depths = (torch.stack(each) for each in zip(*(scenes[i] for i in range(number)), strict=True))
    counts = depths < MAX_DEPTH
    found = torch.cat([model(part)[:, 0] for part in images.split(BATCH)])
    constant = depths[counts].median()
    own, same = (((guess - depths).abs() / depths)[counts].mean() for guess in (found, constant))
    return float(own), float(same)


def words(figures: tuple[float, float]) -> str:
    return f"AbsRel {figures[0]:.4f}, of a constant {figures[1]:.4f}"


def renamed(model: Segmentor) -> dict[str, Tensor]:
    """The weights under transformers' names, in float16."""
    found: dict[str, Tensor] = {}
    for key, value in model.state_dict().items():
        if packed := PACKED.fullmatch(key):
            for name, part in zip(("query", "key", "value"), value.chunk(3), strict=True):
                found[f"backbone.encoder.layer.{packed[1]}.attention.attention.{name}.{packed[2]}"] = part
        else:
            pattern = next(each for each in NAMES if re.match(each, key))
            found[re.sub(f"^{pattern}", NAMES[pattern], key)] = value
    return {key: value.half().contiguous() for key, value in found.items()}


def save(model: Segmentor, folder: Path) -> None:
    """The folder as transformers' ``save_pretrained`` lays it out."""
    backbone = {
        "model_type": "dinov2",
        "hidden_size": DIMS,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "mlp_ratio": 4,
        "image_size": 224,
        "patch_size": 14,
        "out_indices": [i + 1 for i in quarters(LAYERS)],
        "apply_layernorm": True,
        "reshape_hidden_states": False,
    }
    config = {
        "architectures": ["DepthAnythingForDepthEstimation"],
        "model_type": "depth_anything",
        "backbone_config": backbone,
        "patch_size": 14,
        "reassemble_hidden_size": DIMS,
        "neck_hidden_sizes": list(WIDTHS),
        "fusion_hidden_size": CHANNELS,
        "head_hidden_size": HIDDEN,
        "depth_estimation_type": "metric",
        "max_depth": int(MAX_DEPTH),  # transformers 5 takes no other number
    }
    processor: dict[str, Any] = {
        "image_processor_type": "DPTImageProcessor",
        "size": dict(zip(("width", "height"), LAST, strict=True)),
        "keep_aspect_ratio": True,
        "ensure_multiple_of": 14,
        "resample": 3,
        "image_mean": MEAN,
        "image_std": DEVIATION,
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(renamed(model), folder / "model.safetensors", {"format": "pt"})
    for name, content in (("config", config), ("preprocessor_config", processor)):
        (folder / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    save(train(arguments.steps, arguments.seed), arguments.folder)


if __name__ == "__main__":
    main()
