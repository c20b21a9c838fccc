"""Video DC-AE: a deep-compression video autoencoder, 4x in time and 32x in space at its published size.

Structure, tensor names and numbers are those of the published F32T4C128 weights (arXiv 2503.09642, section 4; the image
DC-AE is arXiv 2410.10733). It is neither causal nor variational. The last three stages use linear attention, and the
two downsamplings before the last stage also halve the time.

Shape letters: B batch, C channels, T frames, H rows, W columns, A attention heads, P positions (T * H * W).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

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
from videotrain_trainer.networks.common import convolve, convolve_enlarged

HEAD_DIM = 32
"""Width of a linear-attention head; attention stages are multiples of it."""
ATTENTION_STAGES = 3
MAX_NORM_VALUES = 2**26
"""Values of one norm without gradients."""
BRANCH_NORM = 0.02
"""First weight of the norms that end a residual branch, as in the published recipe."""


@dataclass(frozen=True, kw_only=True)
class DCAEConfig(AutoencoderConfig):
    """Sizes of a Video DC-AE; latents are divided by the scale. Raises ValueError if they do not fit together."""

    widths: tuple[int, ...]
    """Channels of each stage, from pixels to latents."""
    depths: tuple[int, ...]
    """Blocks of each encoder stage."""
    decoder_depths: tuple[int, ...]
    """Blocks of each decoder stage, in the same order."""
    pixel_channels: int = 3

    def __post_init__(self) -> None:
        count = len(self.widths)
        if count < ATTENTION_STAGES + 1 or len(self.depths) != count or len(self.decoder_depths) != count:
            raise ValueError(
                f"widths {self.widths}, depths {self.depths} and decoder_depths {self.decoder_depths} must have the "
                f"same length of at least {ATTENTION_STAGES + 1}"
            )
        odd = [width for width in self.widths[-ATTENTION_STAGES:] if width % HEAD_DIM]
        if odd:
            raise ValueError(
                f"the last {ATTENTION_STAGES} widths of {self.widths} must be multiples of the head dim {HEAD_DIM}"
            )

    @property
    def spatial_compression(self) -> int:
        """Pixels per latent row and column."""
        return int(2 ** (len(self.widths) - 1))

    @property
    def temporal_compression(self) -> int:
        """Both resamplings between attention stages halve the time."""
        return 4

    @property
    def causality(self) -> Causality:
        """A latent frame has seen the whole clip."""
        return "none"

    def is_attention(self, stage: int) -> bool:
        """Whether a stage is made of linear-attention blocks."""
        return stage >= len(self.widths) - ATTENTION_STAGES

    def factor(self, stage: int) -> tuple[int, int, int]:
        """(time, rows, columns) between a stage and the next deeper one."""
        return (2 if stage >= len(self.widths) - ATTENTION_STAGES else 1, 2, 2)


class RMSNorm3d(nn.Module):
    """Root-mean-square norm over channels with weight and bias; statistics in float32, eps 1e-5."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        """The same shape. Without gradients a range of frames at a time: its float32 copies are the largest of all."""
        frames = x_BCTHW.shape[2]
        pieces = 1 if torch.is_grad_enabled() else min(frames, -(-x_BCTHW.numel() // MAX_NORM_VALUES))
        if pieces == 1:
            return self._normed(x_BCTHW)
        out, each = torch.empty_like(x_BCTHW), -(-frames // pieces)
        for start in range(0, frames, each):
            out[:, :, start : start + each] = self._normed(x_BCTHW[:, :, start : start + each])
        return out

    def _normed(self, x_BCTHW: Tensor) -> Tensor:
        x = x_BCTHW.float()
        normed = x * torch.rsqrt(x.square().mean(dim=1, keepdim=True) + 1e-5)
        return torch.addcmul(_channels(self.bias), normed.to(x_BCTHW.dtype), _channels(self.weight))


def _channels(x_C: Tensor) -> Tensor:
    return x_C.view(1, -1, 1, 1, 1)


class Conv(nn.Module):
    """A 3-D convolution with zero padding of kernel // 2 on every side, and optionally a norm after it."""

    def __init__(
        self,
        channels: tuple[int, int],
        kernel: int = 3,
        stride: tuple[int, int, int] = (1, 1, 1),
        groups: int = 1,
        bias: bool = True,
        norm: bool = False,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv3d(*channels, kernel, stride, kernel // 2, groups=groups, bias=bias)
        self.norm = RMSNorm3d(channels[1]) if norm else None

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        """Convolve, then normalize if there is a norm; (B, C, T, H, W) in and out, with the layer's own C."""
        out = convolve(self.conv, x_BCTHW)
        return out if self.norm is None else self.norm(out)


def _convolve_all(convs: nn.Module, x_BCTHW: Tensor) -> Tensor:
    for conv in cast("nn.Sequential", convs):
        x_BCTHW = convolve(cast("nn.Conv3d", conv), x_BCTHW)
    return x_BCTHW


class Residual(nn.Module):
    """A layer with a shortcut around it: main(x) + x."""

    def __init__(self, main: nn.Module) -> None:
        super().__init__()
        self.main = main

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        """(B, C, T, H, W) to the same shape."""
        out: Tensor = x_BCTHW + self.main(x_BCTHW)
        return out


def _silu(x_BCTHW: Tensor) -> Tensor:
    # Without gradients nothing needs the value before the activation.
    return F.silu(x_BCTHW, inplace=not torch.is_grad_enabled())


class ConvPair(nn.Module):
    """Conv, SiLU, conv, norm."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = Conv((channels, channels))
        self.conv2 = Conv((channels, channels), bias=False, norm=True)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        """(B, C, T, H, W) to the same shape."""
        out: Tensor = self.conv2(_silu(self.conv1(x_BCTHW)))
        return out


class LinearAttention(nn.Module):
    """Multi-scale ReLU linear attention over all positions; the second scale's heads are appended to the first's."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        wide = 3 * channels
        self.qkv = Conv((channels, wide), kernel=1, bias=False)
        depthwise = nn.Conv3d(wide, wide, 5, padding=2, groups=wide, bias=False)
        grouped = nn.Conv3d(wide, wide, 1, groups=wide // HEAD_DIM, bias=False)
        self.aggreg = nn.ModuleList([nn.Sequential(depthwise, grouped)])
        self.proj = Conv((2 * channels, channels), kernel=1, bias=False, norm=True)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        """(B, C, T, H, W) to the same shape."""
        qkv = self.qkv(x_BCTHW)
        both = torch.cat([qkv, *(_convolve_all(scale, qkv) for scale in self.aggreg)], dim=1)
        out_BAKP = _linear_attention(both.reshape(both.shape[0], -1, 3 * HEAD_DIM, both[0, 0].numel()))
        out: Tensor = self.proj(out_BAKP.to(x_BCTHW.dtype).reshape(both.shape[0], -1, *x_BCTHW.shape[2:]))
        return out


def _linear_attention(qkv_BAXP: Tensor) -> Tensor:
    """Heads of (query, key, value) channels to heads of values, in float32: sums over P overflow half precision."""
    q, k, v = qkv_BAXP.float().chunk(3, dim=2)
    v_and_ones = F.pad(v, (0, 0, 0, 1), value=1.0)
    out = (v_and_ones @ F.relu(k).transpose(-1, -2)) @ F.relu(q)
    return out[:, :, :-1] / (out[:, :, -1:] + 1e-15)


class GatedConv(nn.Module):
    """Expansion to 8x, depthwise convolution, first half * SiLU(second half), projection."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        wide = 8 * channels
        self.inverted_conv = Conv((channels, wide), kernel=1)
        self.depth_conv = Conv((wide, wide), groups=wide)
        self.point_conv = Conv((wide // 2, channels), kernel=1, bias=False, norm=True)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        """(B, C, T, H, W) to the same shape."""
        value, gate = self.depth_conv(_silu(self.inverted_conv(x_BCTHW))).chunk(2, dim=1)
        out: Tensor = self.point_conv(value * F.silu(gate))
        return out


class AttentionBlock(nn.Module):
    """Linear attention, then a gated convolution, each with a residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.context_module = Residual(LinearAttention(channels))
        self.local_module = Residual(GatedConv(channels))

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        """(B, C, T, H, W) to the same shape."""
        out: Tensor = self.local_module(self.context_module(x_BCTHW))
        return out


class Downsample(nn.Module):
    """Strided convolution plus averaged space(-time)-to-channel shortcut."""

    def __init__(self, channels: tuple[int, int], factor: tuple[int, int, int]) -> None:
        super().__init__()
        self.channels, self.factor = channels, factor
        self.main = Conv(channels, stride=factor)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        """(B, in, T, H, W) to (B, out, T/t, H/2, W/2); a single frame keeps its time."""
        out: Tensor = self.main(x_BCTHW) + average_to_channels(x_BCTHW, self.channels[1], self.factor)
        return out


class UpConv(nn.Module):
    """Nearest-neighbour enlargement, then a convolution."""

    def __init__(self, channels: tuple[int, int], factor: tuple[int, int, int]) -> None:
        super().__init__()
        self.factor = factor
        self.conv = Conv(channels)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        """(B, in, T, H, W) to (B, out, T*t, H*2, W*2); a single frame keeps its time."""
        return convolve_enlarged(self.conv.conv, x_BCTHW, _applicable(self.factor, x_BCTHW.shape[2]))


class Upsample(nn.Module):
    """Enlarging convolution plus repeated channel-to-space(-time) shortcut."""

    def __init__(self, channels: tuple[int, int], factor: tuple[int, int, int]) -> None:
        super().__init__()
        self.channels, self.factor = channels, factor
        self.main = UpConv(channels, factor)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        """(B, in, T, H, W) to (B, out, T*t, H*2, W*2); a single frame keeps its time."""
        out: Tensor = self.main(x_BCTHW) + repeat_to_space(x_BCTHW, self.channels[1], self.factor)
        return out


def _applicable(factor: tuple[int, int, int], frames: int) -> tuple[int, int, int]:
    return factor if frames > 1 else (1, *factor[1:])


def average_to_channels(x_BCTHW: Tensor, out_channels: int, factor: tuple[int, int, int]) -> Tensor:
    """Space(-time) offsets become channels (channel slowest), then consecutive groups are averaged."""
    batch, channels, frames, rows, columns = x_BCTHW.shape
    t, h, w = _applicable(factor, frames)
    grid = x_BCTHW.reshape(batch, channels, frames // t, t, rows // h, h, columns // w, w)
    folded = grid.permute(0, 1, 3, 5, 7, 2, 4, 6).reshape(batch, out_channels, -1, frames // t, rows // h, columns // w)
    return folded.mean(dim=2)


def repeat_to_space(x_BCTHW: Tensor, out_channels: int, factor: tuple[int, int, int]) -> Tensor:
    """Each channel is repeated in a row, then channels become space(-time) offsets: the inverse of the averaging."""
    batch, channels, frames, rows, columns = x_BCTHW.shape
    t, h, w = _applicable(factor, frames)
    repeated = x_BCTHW.repeat_interleave(out_channels * t * h * w // channels, dim=1)
    grid = repeated.reshape(batch, out_channels, t, h, w, frames, rows, columns)
    return grid.permute(0, 1, 5, 2, 6, 3, 7, 4).reshape(batch, out_channels, frames * t, rows * h, columns * w)


class Stage(nn.Module):
    """Layers in a row under the published name `op_list`."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.op_list = nn.ModuleList(layers)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        """Apply the layers in turn; the last may change C, T, H and W."""
        for layer in self.op_list:
            x_BCTHW = layer(x_BCTHW)
        return x_BCTHW


def _blocks(config: DCAEConfig, stage: int, depth: int) -> list[nn.Module]:
    width = config.widths[stage]
    return [AttentionBlock(width) if config.is_attention(stage) else Residual(ConvPair(width)) for _ in range(depth)]


class ProjectOut(nn.Module):
    """Convolution to latent channels plus averaging shortcut."""

    def __init__(self, channels: tuple[int, int]) -> None:
        super().__init__()
        self.main = Stage([Conv(channels)])
        self.out_channels = channels[1]

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        """(B, in, T, H, W) to (B, out, T, H, W)."""
        out: Tensor = self.main(x_BCTHW) + average_to_channels(x_BCTHW, self.out_channels, (1, 1, 1))
        return out


class ProjectIn(nn.Module):
    """Convolution from latent channels plus repeating shortcut."""

    def __init__(self, channels: tuple[int, int]) -> None:
        super().__init__()
        self.main = Conv(channels)
        self.out_channels = channels[1]

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        """(B, in, T, H, W) to (B, out, T, H, W)."""
        out: Tensor = self.main(x_BCTHW) + repeat_to_space(x_BCTHW, self.out_channels, (1, 1, 1))
        return out


class Encoder(nn.Module):
    """Pixels to latents, one downsampling at the end of every stage but the last."""

    def __init__(self, config: DCAEConfig) -> None:
        super().__init__()
        widths = config.widths
        self.project_in = Conv((config.pixel_channels, widths[0]))
        self.stages = nn.ModuleList(self._stage(config, stage) for stage in range(len(widths)))
        self.project_out = ProjectOut((widths[-1], config.latent_channels))

    @staticmethod
    def _stage(config: DCAEConfig, stage: int) -> Stage:
        layers = _blocks(config, stage, config.depths[stage])
        if stage + 1 < len(config.widths):
            layers.append(Downsample((config.widths[stage], config.widths[stage + 1]), config.factor(stage)))
        return Stage(layers)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        """(B, 3, T, H, W) to (B, C, T/4, H/32, W/32)."""
        x_BCTHW = self.project_in(x_BCTHW)
        for stage in self.stages:
            x_BCTHW = stage(x_BCTHW)
        out: Tensor = self.project_out(x_BCTHW)
        return out


class Decoder(nn.Module):
    """Latents to pixels; each stage but the deepest starts with the upsampling that leads into it."""

    def __init__(self, config: DCAEConfig) -> None:
        super().__init__()
        widths = config.widths
        self.project_in = ProjectIn((config.latent_channels, widths[-1]))
        self.stages = nn.ModuleList(self._stage(config, stage) for stage in range(len(widths)))
        self.project_out = Stage([RMSNorm3d(widths[0]), nn.ReLU(), Conv((widths[0], config.pixel_channels))])

    @staticmethod
    def _stage(config: DCAEConfig, stage: int) -> Stage:
        layers = _blocks(config, stage, config.decoder_depths[stage])
        if stage + 1 < len(config.widths):
            layers.insert(0, Upsample((config.widths[stage + 1], config.widths[stage]), config.factor(stage)))
        return Stage(layers)

    def forward(self, z_BCTHW: Tensor) -> Tensor:
        """(B, C, T, H, W) to (B, 3, T*4, H*32, W*32)."""
        x_BCTHW: Tensor = self.project_in(z_BCTHW)
        for stage in reversed(self.stages):
            x_BCTHW = stage(x_BCTHW)
        out: Tensor = self.project_out(x_BCTHW)
        return out


class DCAE(Autoencoder):
    """The autoencoder. Latents are divided by the scaling factor; one latent frame decodes to ONE frame."""

    config: DCAEConfig

    def __init__(self, config: DCAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.tiles = TileCoder(config.spatial_compression, Axis(config.temporal_compression), config.tiling)

    def check_size(self, frames: int, rows: int, columns: int) -> None:
        """T is 1, 2 or a multiple of 4, H and W are multiples of the spatial compression."""
        unit, step = self.config.spatial_compression, self.config.temporal_compression
        if (frames > step // 2 and frames % step) or rows % unit or columns % unit:
            raise ValueError(
                f"a clip of {frames} frames of {rows} x {columns} pixels cannot be encoded: frames must be 1, "
                f"{step // 2} or a multiple of {step}, rows and columns multiples of {unit}"
            )

    def moments(self, x_BCTHW: Tensor) -> Tensor:
        """(B, 3, T, H, W) to (B, C, T/4, H/32, W/32) at the published depth; one latent frame for T of 1, 2 or 4."""
        out: Tensor = self.encoder(x_BCTHW)
        return out

    def split(self, moments_BCTHW: Tensor) -> Posterior:
        """One latent for a clip."""
        return Posterior(moments_BCTHW, None)

    def pixels(self, z_BCTHW: Tensor) -> Tensor:
        """(B, C, T, H, W) to (B, 3, 4*T, 32*H, 32*W) at the published depth."""
        out: Tensor = self.decoder(z_BCTHW)
        return out

    def normalise(self, z_BCTHW: Tensor) -> Tensor:
        """Divided by the scale."""
        return z_BCTHW / self.config.scaling_factor

    def denormalise(self, z_BCTHW: Tensor) -> Tensor:
        """Multiplied by the scale."""
        return z_BCTHW * self.config.scaling_factor

    def recomputable_blocks(self) -> list[nn.Module]:
        """Residual and attention blocks."""
        return outer_blocks(self, (AttentionBlock, Residual), last=self.decoder.stages[0])

    def first_value(self, name: str) -> float | None:
        """Norms that end a residual branch start near zero, so that at first the shortcuts carry the picture."""
        path, _, kind = name.rpartition(".")
        ends_branch = path.endswith(".norm") and isinstance(self.get_submodule(path.removesuffix(".norm")), Conv)
        return BRANCH_NORM if kind == "weight" and ends_branch else None
