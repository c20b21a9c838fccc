"""The picture autoencoder of FLUX.1: 8x8 pixels to 16 channels, tensor names as published (`ae.safetensors`).

Text-to-picture-to-video needs it to decode the first frame that the image model draws. It codes pictures only; a clip
goes through it frame by frame.

Shape letters: B batch, C channels, T frames (always 1 for latents that an image model draws), H rows, W columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from videotrain_trainer.networks.attention import attention
from videotrain_trainer.networks.autoencoders.interface import Autoencoder, AutoencoderConfig, Causality, Posterior
from videotrain_trainer.networks.autoencoders.tiling import Axis, TileCoder

NORM_GROUPS = 32
SCALE, SHIFT = 0.3611, 0.1159
"""Latents are (z - SHIFT) * SCALE, which has about unit variance."""


@dataclass(frozen=True, kw_only=True)
class PictureVAEConfig(AutoencoderConfig):
    """Sizes; the defaults are FLUX.1's."""

    latent_channels: int = 16
    scaling_factor: float = SCALE
    width: int = 128
    """Channels at full size; a multiple of 32, as all widths."""
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    """Width of each level, from pixels to latents; every level but the last halves the picture."""
    blocks: int = 2
    """Residual blocks of an encoder level; a decoder level has one more."""

    @property
    def widths(self) -> list[int]:
        """Channels of each level."""
        return [self.width * factor for factor in self.multipliers]

    @property
    def spatial_compression(self) -> int:
        """Pixels per latent row and column."""
        return int(2 ** (len(self.multipliers) - 1))

    @property
    def temporal_compression(self) -> int:
        """Every frame is a picture."""
        return 1

    @property
    def causality(self) -> Causality:
        """Every frame is a picture."""
        return "none"


class ResnetBlock(nn.Module):
    """Norm, SiLU, conv, twice; a 1x1 conv carries the input where the width changes."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.norm1 = _norm(before)
        self.conv1 = nn.Conv2d(before, after, 3, padding=1)
        self.norm2 = _norm(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(before, after, 1) if before != after else None

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, before, H, W) to (B, after, H, W)."""
        h_BCHW = self.conv1(F.silu(self.norm1(x_BCHW)))
        h_BCHW = self.conv2(F.silu(self.norm2(h_BCHW)))
        out: Tensor = (x_BCHW if self.nin_shortcut is None else self.nin_shortcut(x_BCHW)) + h_BCHW
        return out


class AttentionBlock(nn.Module):
    """One head over all positions, with 1x1 convolutions as projections."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = _norm(width)
        self.q = nn.Conv2d(width, width, 1)
        self.k = nn.Conv2d(width, width, 1)
        self.v = nn.Conv2d(width, width, 1)
        self.proj_out = nn.Conv2d(width, width, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        normed = self.norm(x_BCHW)
        q, k, v = (layer(normed).flatten(2).transpose(1, 2)[:, None] for layer in (self.q, self.k, self.v))
        out_BCHW = attention(q, k, v)[:, 0].transpose(1, 2).reshape(x_BCHW.shape)
        out: Tensor = x_BCHW + self.proj_out(out_BCHW)
        return out


class Middle(nn.Module):
    """Resnet, attention, resnet at the smallest size."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(width, width)
        self.attn_1 = AttentionBlock(width)
        self.block_2 = ResnetBlock(width, width)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        out: Tensor = self.block_2(self.attn_1(self.block_1(x_BCHW)))
        return out


class Resample(nn.Module):
    """Halves the picture (padded behind only, as published) or doubles it (nearest), with one convolution."""

    def __init__(self, width: int, up: bool) -> None:
        super().__init__()
        self.up = up
        self.conv = nn.Conv2d(width, width, 3, stride=1 if up else 2, padding=1 if up else 0)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Half or twice the rows and columns."""
        grown = F.interpolate(x_BCHW, scale_factor=2.0, mode="nearest") if self.up else F.pad(x_BCHW, (0, 1, 0, 1))
        out: Tensor = self.conv(grown)
        return out


class Level(nn.Module):
    """Residual blocks of one size, then the way to the next size if there is one."""

    def __init__(self, before: int, after: int, blocks: int, down: bool = False, up: bool = False) -> None:
        super().__init__()
        self.block = nn.ModuleList(ResnetBlock(before if n == 0 else after, after) for n in range(blocks))
        if down:
            self.downsample = Resample(after, up=False)
        if up:
            self.upsample = Resample(after, up=True)
        self._resample = "downsample" if down else "upsample" if up else None

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, before, H, W) to (B, after, ...)."""
        for block in self.block:
            x_BCHW = block(x_BCHW)
        return x_BCHW if self._resample is None else getattr(self, self._resample)(x_BCHW)


class Encoder(nn.Module):
    """From pictures to the mean and log variance of their latents, side by side in the channels."""

    def __init__(self, config: PictureVAEConfig) -> None:
        super().__init__()
        widths = config.widths
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        pairs = list(zip([widths[0], *widths[:-1]], widths, strict=True))
        self.down = nn.ModuleList(
            Level(before, after, config.blocks, down=index < len(pairs) - 1)
            for index, (before, after) in enumerate(pairs)
        )
        self.mid = Middle(widths[-1])
        self.norm_out = _norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], 2 * config.latent_channels, 3, padding=1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, 2 * latent channels, H/8, W/8)."""
        x_BCHW = self.conv_in(x_BCHW)
        for level in self.down:
            x_BCHW = level(x_BCHW)
        out: Tensor = self.conv_out(F.silu(self.norm_out(self.mid(x_BCHW))))
        return out


class Decoder(nn.Module):
    """Latents to pictures. Levels are counted from the pixels and run from the last one on."""

    def __init__(self, config: PictureVAEConfig) -> None:
        super().__init__()
        widths = config.widths
        self.conv_in = nn.Conv2d(config.latent_channels, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1])
        self.up = nn.ModuleList(
            Level([*widths, widths[-1]][index + 1], width, config.blocks + 1, up=index > 0)
            for index, width in enumerate(widths)
        )
        self.norm_out = _norm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, z_BCHW: Tensor) -> Tensor:
        """(B, latent channels, H, W) to (B, 3, 8H, 8W)."""
        x_BCHW = self.mid(self.conv_in(z_BCHW))
        for level in reversed(self.up):
            x_BCHW = level(x_BCHW)
        out: Tensor = self.conv_out(F.silu(self.norm_out(x_BCHW)))
        return out


class PictureVAE(Autoencoder):
    """The autoencoder. Clips of any length go through it frame by frame; it gives the mode of its distribution."""

    config: PictureVAEConfig
    pictures_only = True

    def __init__(self, config: PictureVAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.tiles = TileCoder(config.spatial_compression, Axis(1), None)

    def check_size(self, frames: int, rows: int, columns: int) -> None:
        """Any size is coded; pixels beyond the last whole latent are left out."""

    def moments(self, x_BCTHW: Tensor) -> Tensor:
        """(B, 3, T, H, W) to (B, C, T, H/8, W/8), the means."""
        return _clips(self.encoder(_frames(x_BCTHW)).chunk(2, dim=1)[0], len(x_BCTHW))

    def split(self, moments_BCTHW: Tensor) -> Posterior:
        """One latent for a picture."""
        return Posterior(moments_BCTHW, None)

    def pixels(self, z_BCTHW: Tensor) -> Tensor:
        """(B, C, T, H, W) to (B, 3, T, 8H, 8W)."""
        return _clips(self.decoder(_frames(z_BCTHW)), len(z_BCTHW))

    def normalise(self, z_BCTHW: Tensor) -> Tensor:
        """Shifted, then multiplied by the scale."""
        return (z_BCTHW - SHIFT) * self.config.scaling_factor

    def denormalise(self, z_BCTHW: Tensor) -> Tensor:
        """Divided by the scale, then shifted back."""
        return z_BCTHW / self.config.scaling_factor + SHIFT


def _norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(NORM_GROUPS, width, eps=1e-6)


def _frames(x_BCTHW: Tensor) -> Tensor:
    return x_BCTHW.transpose(1, 2).flatten(0, 1)


def _clips(x_BCHW: Tensor, batch: int) -> Tensor:
    return torch.stack(x_BCHW.chunk(batch)).transpose(1, 2)
