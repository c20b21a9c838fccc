"""Latents as tokens and back, and the tokens' positions.

Shape letters: B batch, C channels, T latent frames, H rows, W columns (latent pixels), N image tokens, D width of a
token.
"""

from __future__ import annotations

import torch
from torch import Tensor


def pack(latent_BCTHW: Tensor, patch: int) -> Tensor:
    """Latents to tokens: frame, row, column; within a token (channel, patch row, patch column).

    Returns:
        (B, T * H/patch * W/patch, C * patch * patch).
    """
    batch, channels, frames, rows, columns = latent_BCTHW.shape
    if rows % patch or columns % patch:
        raise ValueError(f"a latent of {rows} x {columns} cannot be cut into patches of {patch} x {patch}")
    grid = latent_BCTHW.reshape(batch, channels, frames, rows // patch, patch, columns // patch, patch)
    return grid.permute(0, 2, 3, 5, 1, 4, 6).reshape(batch, -1, channels * patch * patch)


def unpack(tokens_BND: Tensor, frames: int, rows: int, columns: int, patch: int) -> Tensor:
    """The inverse of `pack`; `rows` and `columns` are those of the latent.

    Returns:
        (B, C, frames, rows, columns).
    """
    batch, height, width = tokens_BND.shape[0], rows // patch, columns // patch
    grid = tokens_BND.reshape(batch, frames, height, width, -1, patch, patch)
    return grid.permute(0, 4, 1, 2, 5, 3, 6).reshape(batch, -1, frames, rows, columns)


def position_ids(
    frames: int, rows: int, columns: int, patch: int, batch: int, device: torch.device | None = None
) -> Tensor:
    """(B, N, 3) float32 positions (frame, row, column) in units of patches, from 0, for a latent of that size.

    Made on the device (by default the CPU), so that nothing has to be copied there.
    """
    axes = [torch.arange(n, dtype=torch.float32, device=device) for n in (frames, rows // patch, columns // patch)]
    ids_N3 = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, 3)
    return ids_N3.expand(batch, -1, -1)
