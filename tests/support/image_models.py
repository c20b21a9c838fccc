"""Tiny seeded image models in the layouts in which large ones are published."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
SEEN = {"image_size": 32, "patch_size": 8}
WIDTH = 16


def processor(folder: Path) -> None:
    """What pictures become before the tower sees them."""
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)


def clip_folder(folder: Path) -> Path:
    """CLIP with its text tower, as it is published."""
    torch.manual_seed(1)
    config = CLIPConfig(
        vision_config=SMALL | SEEN | {"projection_dim": WIDTH},
        text_config=SMALL | {"vocab_size": 50, "max_position_embeddings": 8, "projection_dim": WIDTH},
        projection_dim=WIDTH,
    )
    CLIPModel(config).save_pretrained(folder)
    processor(folder)
    return folder


def laion_head(width: int, seed: int = 2) -> dict[str, torch.Tensor]:
    """Names and order of LAION's second predictor; dropouts between its layers take numbers."""
    torch.manual_seed(seed)
    sizes = {0: (64, width), 2: (32, 64), 4: (16, 32), 6: (8, 16), 7: (1, 8)}
    weights = {f"layers.{n}.weight": torch.randn(size) / size[1] ** 0.5 for n, size in sizes.items()}
    return weights | {f"layers.{n}.bias": torch.randn(size[0]) for n, size in sizes.items()}
