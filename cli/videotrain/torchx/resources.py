"""Nodes of eight GPUs as TorchX's named resources; capabilities are labels that NVIDIA's GPU feature discovery sets."""

from __future__ import annotations

from typing import Final

from torchx.specs import Resource

GPUS: Final = 8
PRODUCT: Final = "nvidia.com/gpu.product"


def videotrain_h100(fractional: float = 1.0) -> Resource:
    """A DGX H100, or a part of it: 112 cores, 2 TiB, eight H100 of 80 GB."""
    return _part(112, 2048, "NVIDIA-H100-80GB-HBM3", fractional)


def videotrain_h200(fractional: float = 1.0) -> Resource:
    """A DGX H200, or a part of it: 112 cores, 2 TiB, eight H200 of 141 GB."""
    return _part(112, 2048, "NVIDIA-H200", fractional)


def videotrain_b200(fractional: float = 1.0) -> Resource:
    """A DGX B200, or a part of it: 112 cores, 2 TiB, eight B200 of 180 GB."""
    return _part(112, 2048, "NVIDIA-B200", fractional)


def _part(cores: int, gibibytes: int, product: str, fractional: float) -> Resource:
    return Resource(
        cpu=int(cores * fractional),
        gpu=int(GPUS * fractional),
        memMB=int(gibibytes * 1024 * fractional),
        capabilities={PRODUCT: product},
    )
