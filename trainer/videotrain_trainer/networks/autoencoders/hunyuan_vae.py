"""HunyuanVideo VAE: a causal video autoencoder, 4x in time and 8x in space at its published size.

Structure, tensor names and numbers are those of the weights that HunyuanVideo (arXiv 2412.03603) published and
Open-Sora 2.0 uses. Convolutions see no later frame, and a clip of 1 + 4k frames has 1 + k latent frames. The group
norms take their statistics over all frames, so the network as a whole is not strictly causal: a latent frame changes a
little when later frames change, and coding in pieces is not the same as coding at once.

Shape letters: B batch, C channels, T frames, H rows, W columns, P positions of one frame (H * W), S positions of all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from videotrain_trainer.networks.autoencoders.tiling import Axis, TileCoder, Tiling
from videotrain_trainer.networks.common import convolve

TIME_LEVELS = 2
"""The last two resamplings of the encoder also halve the time; in the decoder the last two double it."""
MAX_LOGITS = 2**27
"""Attention scores of one call; more rows are attended in several calls, since a kernel may hold all scores."""
MAX_CONV_VALUES = 2**27
"""Input values of one convolution without gradients; more are convolved in several ranges of frames. So the padded copy
of the input is never held as a whole, and kernels that index with 32 bits stay within them."""


@dataclass(frozen=True, kw_only=True)
class HunyuanVAEConfig:
    """Sizes of a HunyuanVideo VAE. Raises ValueError if they do not fit together."""

    latent_channels: int
    widths: tuple[int, ...]
    """Channels of each level, from pixels to latents."""
    depths: tuple[int, ...]
    """Residual blocks of each encoder level."""
    decoder_depths: tuple[int, ...]
    """Residual blocks of each decoder level, in the same order."""
    norm_groups: int = 32
    """Groups of every norm; divides every width."""
    scaling_factor: float = 1.0
    """Latents are multiplied by it."""
    shift_factor: float = 0.0
    """It is subtracted from latents before that."""
    pixel_channels: int = 3
    tiling: Tiling | None = None

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


@dataclass(frozen=True)
class Posterior:
    """Normal distribution of the unscaled latents of a clip."""

    mean_BCTHW: Tensor
    logvar_BCTHW: Tensor
    """Logarithm of the variance, in [-30, 20]."""

    def sample(self, noise_BCTHW: Tensor) -> Tensor:
        """The latents at that standard normal noise."""
        return self.mean_BCTHW + (0.5 * self.logvar_BCTHW).exp() * noise_BCTHW.to(self.mean_BCTHW)


class HunyuanVAE(nn.Module):
    """The autoencoder. Pixels lie in [-1, 1]; latents are shifted and multiplied by the scaling factor."""

    def __init__(self, config: HunyuanVAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = nn.Conv3d(2 * config.latent_channels, 2 * config.latent_channels, 1)
        self.post_quant_conv = nn.Conv3d(config.latent_channels, config.latent_channels, 1)
        self.tiles = TileCoder(config.spatial_compression, Axis(2**TIME_LEVELS, causal=True), config.tiling)

    def posterior(self, x_BCTHW: Tensor) -> Posterior:
        """Distribution of a clip's latents, before scale and shift; tiles fade into each other as moments.

        Args:
            x_BCTHW: (B, 3, T, H, W); T is 1 + 4k, H and W multiples of the spatial compression.

        Raises:
            ValueError: a size cannot be encoded.
        """
        frames, rows, columns = x_BCTHW.shape[2:]
        unit, group = self.config.spatial_compression, 2**TIME_LEVELS
        if frames % group != 1 or rows % unit or columns % unit:
            raise ValueError(
                f"a clip of {frames} frames of {rows} x {columns} pixels cannot be encoded: frames must be "
                f"1 + {group}k, rows and columns multiples of {unit}"
            )
        return _posterior(self.tiles.encode(self._moments, x_BCTHW))

    def encode(self, x_BCTHW: Tensor, noise_BCTHW: Tensor | None = None) -> Tensor:
        """Pixels to latents.

        Args:
            x_BCTHW: as `posterior` takes them.
            noise_BCTHW: standard normal noise of the latents' shape to sample with; the mode of the posterior if None.

        Returns:
            (B, C, 1 + k, H / 8, W / 8) at the published depth.

        Raises:
            ValueError: a size cannot be encoded.
        """
        posterior = self.posterior(x_BCTHW)
        return self.scaled(posterior.mean_BCTHW if noise_BCTHW is None else posterior.sample(noise_BCTHW))

    def encode_stream(self, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        """Latents (the mode) of a long clip that arrives in pieces, piece by piece: those of `encode`, bit for bit.

        Args:
            chunks: pixels (B, 3, n, H, W) of any number of frames each, 1 + 4k together. Needs a temporal tile.

        Raises:
            ValueError: there is no temporal tile, or the frames do not fit.
        """
        for moments in self.tiles.stream(self._moments, chunks):
            yield self.scaled(_posterior(moments).mean_BCTHW)

    def scaled(self, z_BCTHW: Tensor) -> Tensor:
        """Latents of the posterior as the transformer takes them."""
        return self.config.scaling_factor * (z_BCTHW - self.config.shift_factor)

    def decode(self, z_BCTHW: Tensor) -> Tensor:
        """Latents to pixels: (B, 3, 1 + 4 * (T - 1), 8 * H, 8 * W) at the published depth."""
        unscaled = z_BCTHW / self.config.scaling_factor + self.config.shift_factor
        return self.tiles.decode(self._pixels, unscaled)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        """The reconstruction from the posterior's mode, for training: coded whole, whatever the tiling."""
        return self._pixels(_posterior(self._moments(x_BCTHW)).mean_BCTHW)

    def _moments(self, x_BCTHW: Tensor) -> Tensor:
        return convolve(self.quant_conv, self.encoder(x_BCTHW))

    def _pixels(self, z_BCTHW: Tensor) -> Tensor:
        out: Tensor = self.decoder(convolve(self.post_quant_conv, z_BCTHW))
        return out


def _posterior(moments_BCTHW: Tensor) -> Posterior:
    mean, logvar = moments_BCTHW.chunk(2, dim=1)
    return Posterior(mean, logvar.clamp(-30.0, 20.0))
