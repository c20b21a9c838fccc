"""Seeded random weights of LPIPS, small ones of the same structure, in the files and layouts that are published."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from videotrain_trainer.networks.losses.perceptual import PerceptualDistance

SMALL = (4, 6, 8, 8, 8)


def small_lpips(seed: int = 0) -> PerceptualDistance:
    """Features of He's scale, channel weights of 0 or more as the published ones."""
    module, generator = PerceptualDistance(SMALL), torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        values = torch.randn(parameter.shape, generator=generator)
        scale = (2 / parameter[0].numel()) ** 0.5 if parameter.ndim == 4 else 0.1
        parameter.data = values.abs() if name.startswith("lin") else values * scale
    return module.eval()


def write_lpips(folder: Path, seed: int = 0) -> str:
    """VGG16 as a .pth file of torchvision and the linear layers as safetensors; the folder's URI."""
    folder.mkdir(parents=True, exist_ok=True)
    state = small_lpips(seed).state_dict()
    features = {name: tensor for name, tensor in state.items() if name.startswith("features")}
    torch.save(features | {"classifier.0.weight": torch.zeros(2, 2)}, folder / "vgg16-397923af.pth")
    linear = {name: tensor.contiguous() for name, tensor in state.items() if name.startswith("lin")}
    save_file(linear, folder / "lpips.safetensors")
    return folder.as_uri()
