"""HunyuanVideo VAE: a causal video autoencoder, 4x in time and 8x in space at its published size.

Structure, tensor names and numbers are those of the weights that HunyuanVideo (arXiv 2412.03603) published and
Open-Sora 2.0 uses. Convolutions see no later frame, and a clip of 1 + 4k frames has 1 + k latent frames. The group
norms take their statistics over all frames, so the network as a whole is not strictly causal: a latent frame changes a
little when later frames change, and coding in pieces is not the same as coding at once.

Shape letters: B batch, C channels, T frames, H rows, W columns, P positions of one frame (H * W), S positions of all.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from videotrain_trainer.networks.autoencoders.interface import (
    Autoencoder,
    AutoencoderConfig,
    Causality,
    Posterior,
    outer_blocks,
)
from videotrain_trainer.networks.autoencoders.tiling import Axis, TileCoder
from videotrain_trainer.networks.common import convolve

TIME_LEVELS = 2
"""The last two resamplings of the encoder also halve the time; in the decoder the last two double it."""
MAX_LOGITS = 2**27
"""Attention scores of one call; more rows are attended in several calls, since a kernel may hold all scores."""
MAX_CONV_VALUES = 2**27
"""Input values of one convolution without gradients; more are convolved in several ranges of frames. So the padded copy
of the input is never held as a whole, and kernels that index with 32 bits stay within them."""


@dataclass(frozen=True, kw_only=True)
class HunyuanVAEConfig(AutoencoderConfig):
    """Sizes of a HunyuanVideo VAE; latents are multiplied by the scale. Raises ValueError if they do not fit."""

    widths: tuple[int, ...]
    """Channels of each level, from pixels to latents."""
    depths: tuple[int, ...]
    """Residual blocks of each encoder level."""
    decoder_depths: tuple[int, ...]
    """Residual blocks of each decoder level, in the same order."""
    norm_groups: int = 32
    """Groups of every norm; divides every width."""
    shift_factor: float = 0.0
    """It is subtracted from latents before they are multiplied by the scale."""
    pixel_channels: int = 3

    def __post_init__(self) -> None:
        count = len(self.widths)
        if count <= TIME_LEVELS or len(self.depths) != count or len(self.decoder_depths) != count:
            raise ValueError(
                f"widths {self.widths}, depths {self.depths} and decoder_depths {self.decoder_depths} must have the "
                f"same length of at least {TIME_LEVELS + 1}"
            )
        odd = [width for width in self.widths if width % self.norm_groups]
        if odd:
            raise ValueError(f"widths {self.widths} must be multiples of norm_groups {self.norm_groups}; {odd} are not")

    @property
    def spatial_compression(self) -> int:
        """Pixels per latent row and column."""
        return int(2 ** (len(self.widths) - 1))

    @property
    def temporal_compression(self) -> int:
        """The last resamplings halve the time too."""
        return int(2**TIME_LEVELS)

    @property
    def causality(self) -> Causality:
        """The first latent frame stands for a single frame."""
        return "causal"

    def factor(self, step: int) -> tuple[int, int, int]:
        """(time, rows, columns) of a resampling, counted from the side that the half starts with."""
        return (2 if step >= len(self.widths) - 1 - TIME_LEVELS else 1, 2, 2)


class CausalConv(nn.Module):
    """A convolution that sees earlier frames only; borders repeat their nearest value."""

    def __init__(self, channels: tuple[int, int], kernel: int = 3, stride: tuple[int, int, int] = (1, 1, 1)) -> None:
        super().__init__()
        self.conv = nn.Conv3d(*channels, kernel, stride)
        self.pad = (*(kernel // 2,) * 4, kernel - 1, 0)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        """(B, in, T, H, W) to (B, out, 1 + (T - 1) / stride, H / stride, W / stride)."""
        if self.conv.kernel_size[0] == 1:
            return convolve(self.conv, x_BCTHW)
        pieces = 1 if torch.is_grad_enabled() else -(-x_BCTHW.numel() // MAX_CONV_VALUES)
        if pieces == 1:
            return convolve(self.conv, F.pad(x_BCTHW, self.pad, mode="replicate"))
        return self._in_pieces(x_BCTHW, pieces)

    def _in_pieces(self, x_BCTHW: Tensor, pieces: int) -> Tensor:
        """The same result, a range of frames at a time."""
        step, behind = self.conv.stride[0], self.conv.kernel_size[0] - 1
        frames, out = (x_BCTHW.shape[2] - 1) // step + 1, None
        each = -(-frames // pieces)
        for start in range(0, frames, each):
            stop = min(start + each, frames)
            first, last = start * step - behind, (stop - 1) * step + 1
            piece = F.pad(x_BCTHW[:, :, max(first, 0) : last], (*self.pad[:4], max(-first, 0), 0), mode="replicate")
            part = convolve(self.conv, piece)
            if out is None:
                out = part.new_empty(*part.shape[:2], frames, *part.shape[3:])
            out[:, :, start:stop] = part
        assert out is not None
        return out


class Resnet(nn.Module):
    """Norm, SiLU, convolution, twice, with a residual."""

    def __init__(self, channels: tuple[int, int], groups: int) -> None:
        super().__init__()
        into, out = channels
        self.norm1 = nn.GroupNorm(groups, into, eps=1e-6)
        self.conv1 = CausalConv(channels)
        self.norm2 = nn.GroupNorm(groups, out, eps=1e-6)
        self.conv2 = CausalConv((out, out))
        self.conv_shortcut = CausalConv(channels, kernel=1) if into != out else None

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        """(B, in, T, H, W) to (B, out, T, H, W)."""
        hidden = self.conv1(_activated(self.norm1, x_BCTHW))
        hidden = _activated(self.norm2, hidden)
        hidden = self.conv2(hidden)
        shortcut = x_BCTHW if self.conv_shortcut is None else self.conv_shortcut(x_BCTHW)
        out: Tensor = hidden.add_(shortcut) if not torch.is_grad_enabled() else hidden + shortcut
        return out


def _activated(norm: nn.GroupNorm, x_BCTHW: Tensor) -> Tensor:
    # Without gradients nothing needs the value before the activation, and the copy would raise the peak.
    return F.silu(norm(x_BCTHW), inplace=not torch.is_grad_enabled())


class FrameCausalAttention(nn.Module):
    """Attention of one head in which a position sees its own frame and all earlier ones, with a residual."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        """(B, C, T, H, W) to the same shape."""
        positions = x_BCTHW.shape[3] * x_BCTHW.shape[4]
        normed_BSC = self.group_norm(x_BCTHW).flatten(2).transpose(1, 2)
        query, key, value = self.to_q(normed_BSC), self.to_k(normed_BSC), self.to_v(normed_BSC)
        mixed_BSC = frame_causal_attention(query, key, value, positions)
        out_BCS = self.to_out[0](mixed_BSC).transpose(1, 2)
        out: Tensor = x_BCTHW + out_BCS.reshape(x_BCTHW.shape)
        return out


def frame_causal_attention(q_BSC: Tensor, k_BSC: Tensor, v_BSC: Tensor, positions: int) -> Tensor:
    """Each frame attends to the growing prefix that ends with it: half the work of a mask, and no mask in memory.

    Args:
        q_BSC: queries, frame after frame.
        k_BSC: keys.
        v_BSC: values.
        positions: positions of one frame.

    Returns:
        (B, S, C).
    """
    length = q_BSC.shape[1]
    done = []
    for start in range(0, length, positions):
        stop = start + positions
        keys, values = k_BSC[:, None, :stop], v_BSC[:, None, :stop]
        rows = max(1, MAX_LOGITS // (len(q_BSC) * stop))
        for first in range(start, stop, rows):
            queries = q_BSC[:, None, first : min(first + rows, stop)]
            done.append(F.scaled_dot_product_attention(queries, keys, values)[:, 0])
    return torch.cat(done, dim=1)


class MidBlock(nn.Module):
    """Residual block, attention, residual block."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(Resnet((channels, channels), groups) for _ in range(2))
        self.attentions = nn.ModuleList([FrameCausalAttention(channels, groups)])

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        """(B, C, T, H, W) to the same shape."""
        out: Tensor = self.resnets[1](self.attentions[0](self.resnets[0](x_BCTHW)))
        return out


class Downsample(nn.Module):
    """A causal convolution whose stride divides time, height and width by the factors."""

    def __init__(self, channels: int, factor: tuple[int, int, int]) -> None:
        super().__init__()
        self.conv = CausalConv((channels, channels), stride=factor)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        """(B, C, T, H, W) to (B, C, 1 + (T - 1) / t, H / 2, W / 2)."""
        out: Tensor = self.conv(x_BCTHW)
        return out


class Upsample(nn.Module):
    """Nearest-neighbour enlargement, of the first frame in space only, then a convolution."""

    def __init__(self, channels: int, factor: tuple[int, int, int]) -> None:
        super().__init__()
        self.factor = [float(n) for n in factor]
        self.conv = CausalConv((channels, channels))

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        """(B, C, T, H, W) to (B, C, 1 + (T - 1) * t, H * 2, W * 2)."""
        enlarged = F.interpolate(x_BCTHW, scale_factor=self.factor, mode="nearest")
        # The first frame would be doubled in time like the others; a latent clip begins with a single frame.
        out: Tensor = self.conv(enlarged[:, :, int(self.factor[0]) - 1 :])
        return out


class DownBlock(nn.Module):
    """A level of the encoder."""

    def __init__(self, channels: tuple[int, int], depth: int, groups: int, factor: tuple[int, int, int] | None) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(Resnet(pair, groups) for pair in _pairs(channels, depth))
        self.downsamplers = nn.ModuleList([] if factor is None else [Downsample(channels[1], factor)])

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        """Blocks, then the downsampling if the level has one."""
        for layer in (*self.resnets, *self.downsamplers):
            x_BCTHW = layer(x_BCTHW)
        return x_BCTHW


class UpBlock(nn.Module):
    """A level of the decoder."""

    def __init__(self, channels: tuple[int, int], depth: int, groups: int, factor: tuple[int, int, int] | None) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(Resnet(pair, groups) for pair in _pairs(channels, depth))
        self.upsamplers = nn.ModuleList([] if factor is None else [Upsample(channels[1], factor)])

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        """Blocks, then the upsampling if the level has one."""
        for layer in (*self.resnets, *self.upsamplers):
            x_BCTHW = layer(x_BCTHW)
        return x_BCTHW


def _pairs(channels: tuple[int, int], depth: int) -> list[tuple[int, int]]:
    return [(channels[0] if index == 0 else channels[1], channels[1]) for index in range(depth)]


class Encoder(nn.Module):
    """Pixels to moments, before `quant_conv`."""

    def __init__(self, config: HunyuanVAEConfig) -> None:
        super().__init__()
        widths, groups, last = config.widths, config.norm_groups, len(config.widths) - 1
        self.conv_in = CausalConv((config.pixel_channels, widths[0]))
        self.down_blocks = nn.ModuleList(
            DownBlock((widths[max(i - 1, 0)], width), config.depths[i], groups, config.factor(i) if i < last else None)
            for i, width in enumerate(widths)
        )
        self.mid_block = MidBlock(widths[-1], groups)
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], eps=1e-6)
        self.conv_out = CausalConv((widths[-1], 2 * config.latent_channels))

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        """(B, 3, T, H, W) to (B, 2 * latent channels, 1 + (T - 1) / 4, H / 8, W / 8)."""
        hidden = self.conv_in(x_BCTHW)
        for block in self.down_blocks:
            hidden = block(hidden)
        out: Tensor = self.conv_out(_activated(self.conv_norm_out, self.mid_block(hidden)))
        return out


class Decoder(nn.Module):
    """Latents to pixels, after `post_quant_conv`."""

    def __init__(self, config: HunyuanVAEConfig) -> None:
        super().__init__()
        widths, depths = config.widths[::-1], config.decoder_depths[::-1]
        groups, last = config.norm_groups, len(widths) - 1
        self.conv_in = CausalConv((config.latent_channels, widths[0]))
        self.mid_block = MidBlock(widths[0], groups)
        self.up_blocks = nn.ModuleList(
            UpBlock((widths[max(i - 1, 0)], width), depths[i], groups, config.factor(i) if i < last else None)
            for i, width in enumerate(widths)
        )
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], eps=1e-6)
        self.conv_out = CausalConv((widths[-1], config.pixel_channels))

    def forward(self, z_BCTHW: Tensor) -> Tensor:
        """(B, C, T, H, W) to (B, 3, 1 + 4 * (T - 1), 8 * H, 8 * W)."""
        hidden = self.mid_block(self.conv_in(z_BCTHW))
        for block in self.up_blocks:
            hidden = block(hidden)
        out: Tensor = self.conv_out(_activated(self.conv_norm_out, hidden))
        return out


class HunyuanVAE(Autoencoder):
    """The autoencoder. Latents are shifted and multiplied by the scale; tiles fade into each other as moments."""

    config: HunyuanVAEConfig

    def __init__(self, config: HunyuanVAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = nn.Conv3d(2 * config.latent_channels, 2 * config.latent_channels, 1)
        self.post_quant_conv = nn.Conv3d(config.latent_channels, config.latent_channels, 1)
        time = Axis(config.temporal_compression, causal=True)
        self.tiles = TileCoder(config.spatial_compression, time, config.tiling)

    def check_size(self, frames: int, rows: int, columns: int) -> None:
        """T is 1 + 4k, H and W are multiples of the spatial compression."""
        unit, group = self.config.spatial_compression, self.config.temporal_compression
        if frames % group != 1 or rows % unit or columns % unit:
            raise ValueError(
                f"a clip of {frames} frames of {rows} x {columns} pixels cannot be encoded: frames must be "
                f"1 + {group}k, rows and columns multiples of {unit}"
            )

    def moments(self, x_BCTHW: Tensor) -> Tensor:
        """(B, 3, T, H, W) to (B, 2 * C, 1 + (T - 1) / 4, H / 8, W / 8) at the published depth."""
        return convolve(self.quant_conv, self.encoder(x_BCTHW))

    def split(self, moments_BCTHW: Tensor) -> Posterior:
        """Mean, and logarithm of the variance in [-30, 20]."""
        mean, logvar = moments_BCTHW.chunk(2, dim=1)
        return Posterior(mean, logvar.clamp(-30.0, 20.0))

    def pixels(self, z_BCTHW: Tensor) -> Tensor:
        """(B, C, T, H, W) to (B, 3, 1 + 4 * (T - 1), 8 * H, 8 * W) at the published depth."""
        out: Tensor = self.decoder(convolve(self.post_quant_conv, z_BCTHW))
        return out

    def normalise(self, z_BCTHW: Tensor) -> Tensor:
        """Shifted, then multiplied by the scale."""
        return self.config.scaling_factor * (z_BCTHW - self.config.shift_factor)

    def denormalise(self, z_BCTHW: Tensor) -> Tensor:
        """Divided by the scale, then shifted back."""
        return z_BCTHW / self.config.scaling_factor + self.config.shift_factor

    def recomputable_blocks(self) -> list[nn.Module]:
        """Residual and middle blocks."""
        return outer_blocks(self, (Resnet, MidBlock), last=self.decoder.up_blocks[-1])
