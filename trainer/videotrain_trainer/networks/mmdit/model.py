"""The MMDiT: a rectified-flow transformer with two-stream and one-stream blocks over text and video tokens.

Structure, tensor names and numbers are those of the released Open-Sora 2.0 weights (arXiv 2503.09642, section 3; the
blocks are FLUX.1's). FLUX.1's own layout (fused q/k/v, interleaved rotary positions) can be computed natively, by
configuration; the `weights` package converts between the two.

Shape letters: B batch, N image tokens, L text tokens, S = L + N, A heads, K head dimension, D hidden size,
I packed latent channels, E packed condition features, P pooled text features, R rotary table rows (see rope).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from videotrain_trainer.networks.attention import Attention, attention, merge_heads, split_heads
from videotrain_trainer.networks.common import sinusoid
from videotrain_trainer.networks.mmdit.attention import QKNorm, SelfAttention
from videotrain_trainer.networks.mmdit.config import MMDiTConfig
from videotrain_trainer.networks.rope import apply_rope, apply_rope_interleaved, rope_tables

SINUSOID_WIDTH = 256
ROTATIONS = {"half-split": apply_rope, "interleaved": apply_rope_interleaved}
Rope = tuple[Tensor, Tensor]
"""Cosines and sines of the whole sequence, text first; see `rope_tables`."""


class MLPEmbedder(nn.Module):
    """Linear, SiLU, Linear: one part of the conditioning vector."""

    def __init__(self, in_width: int, width: int) -> None:
        super().__init__()
        self.in_layer = nn.Linear(in_width, width)
        self.out_layer = nn.Linear(width, width)

    def forward(self, x_BF: Tensor) -> Tensor:
        """(B, in_width) to (B, width)."""
        out: Tensor = self.out_layer(F.silu(self.in_layer(x_BF.to(self.in_layer.weight.dtype))))
        return out


class Modulation(nn.Module):
    """Shifts, scales and gates of a block from the conditioning vector."""

    def __init__(self, width: int, chunks: int) -> None:
        super().__init__()
        self.chunks = chunks
        self.lin = nn.Linear(width, chunks * width)

    def forward(self, vec_BD: Tensor) -> tuple[Tensor, ...]:
        """`chunks` tensors of (B, 1, D): shift, scale, gate (twice in a two-stream block)."""
        out_BX: Tensor = self.lin(F.silu(vec_BD))
        return out_BX[:, None].chunk(self.chunks, dim=-1)


def modulate(x_BSD: Tensor, shift_B1D: Tensor, scale_B1D: Tensor) -> Tensor:
    """(1 + scale) * LayerNorm(x) + shift; the norm has no parameters, eps 1e-6."""
    return torch.addcmul(shift_B1D, F.layer_norm(x_BSD, x_BSD.shape[-1:], eps=1e-6), 1 + scale_B1D)


class DoubleBlock(nn.Module):
    """Two streams with their own weights that meet in one attention; text comes first."""

    def __init__(self, config: MMDiTConfig) -> None:
        super().__init__()
        width, mlp = config.hidden_size, config.mlp_width
        self.rotate = ROTATIONS[config.rope_layout]
        self.img_mod = Modulation(width, 6)
        self.img_attn = SelfAttention(config)
        self.img_mlp = nn.Sequential(nn.Linear(width, mlp), nn.GELU(approximate="tanh"), nn.Linear(mlp, width))
        self.txt_mod = Modulation(width, 6)
        self.txt_attn = SelfAttention(config)
        self.txt_mlp = nn.Sequential(nn.Linear(width, mlp), nn.GELU(approximate="tanh"), nn.Linear(mlp, width))

    def forward(
        self, img_BND: Tensor, txt_BLD: Tensor, vec_BD: Tensor, rope: Rope, attend: Attention = attention
    ) -> tuple[Tensor, Tensor]:
        """Both streams after joint attention and their feed-forward layers.

        Args:
            img_BND: image stream.
            txt_BLD: text stream.
            vec_BD: conditioning vector.
            rope: rotary tables of the tokens at hand, text first.
            attend: of this rank's tokens to those of the whole sequence.
        """
        img_mod, txt_mod = self.img_mod(vec_BD), self.txt_mod(vec_BD)
        txt_qkv = self.txt_attn.heads(modulate(txt_BLD, *txt_mod[:2]))
        img_qkv = self.img_attn.heads(modulate(img_BND, *img_mod[:2]))
        q, k, v = (torch.cat(pair, dim=2) for pair in zip(txt_qkv, img_qkv, strict=True))
        out_BSD = merge_heads(attend(self.rotate(q, rope), self.rotate(k, rope), v))
        txt_out, img_out = out_BSD[:, : txt_BLD.shape[1]], out_BSD[:, txt_BLD.shape[1] :]
        img_BND = _finish(img_BND, img_out, img_mod, self.img_attn.proj, self.img_mlp)
        return img_BND, _finish(txt_BLD, txt_out, txt_mod, self.txt_attn.proj, self.txt_mlp)


def _finish(x_BSD: Tensor, out_BSD: Tensor, mod: tuple[Tensor, ...], proj: nn.Module, mlp: nn.Module) -> Tensor:
    _, _, gate1, shift2, scale2, gate2 = mod
    x_BSD = torch.addcmul(x_BSD, gate1, proj(out_BSD))
    return torch.addcmul(x_BSD, gate2, mlp(modulate(x_BSD, shift2, scale2)))


class SingleBlock(nn.Module):
    """One stream of text and image; attention and feed-forward run side by side from the same normalised input."""

    def __init__(self, config: MMDiTConfig) -> None:
        super().__init__()
        width, mlp = config.hidden_size, config.mlp_width
        self.num_heads, self.width, self.fused = config.num_heads, width, config.fused_qkv
        self.rotate = ROTATIONS[config.rope_layout]
        if self.fused:
            self.linear1 = nn.Linear(width, 3 * width + mlp)
        else:
            self.q_proj = nn.Linear(width, width)
            self.k_proj = nn.Linear(width, width)
            self.v_mlp = nn.Linear(width, width + mlp)
        self.linear2 = nn.Linear(width + mlp, width)
        self.norm = QKNorm(width // config.num_heads)
        self.modulation = Modulation(width, 3)

    def forward(self, x_BSD: Tensor, vec_BD: Tensor, rope: Rope, attend: Attention = attention) -> Tensor:
        """The stream after the block, (B, S, D); arguments as in `DoubleBlock`."""
        shift, scale, gate = self.modulation(vec_BD)
        q, k, v, mlp_BSM = self._project(modulate(x_BSD, shift, scale))
        q = self.rotate(self.norm.query_norm(q), rope)
        k = self.rotate(self.norm.key_norm(k), rope)
        out_BSD = merge_heads(attend(q, k, v))
        both_BSM = torch.cat((out_BSD, F.gelu(mlp_BSM, approximate="tanh")), dim=-1)
        return torch.addcmul(x_BSD, gate, self.linear2(both_BSM))

    def _project(self, x_BSD: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Queries, keys and values as heads, and the input of the feed-forward half."""
        width = self.width
        if self.fused:
            q_BSD, k_BSD, v_mlp = self.linear1(x_BSD).tensor_split((width, 2 * width), dim=-1)
        else:
            q_BSD, k_BSD, v_mlp = self.q_proj(x_BSD), self.k_proj(x_BSD), self.v_mlp(x_BSD)
        q, k, v = (split_heads(part, self.num_heads) for part in (q_BSD, k_BSD, v_mlp[..., :width]))
        return q, k, v, v_mlp[..., width:]


class FinalLayer(nn.Module):
    """Modulated norm and projection to packed latent channels."""

    def __init__(self, width: int, out_channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, out_channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x_BND: Tensor, vec_BD: Tensor) -> Tensor:
        """(B, N, D) to (B, N, I)."""
        mod_BX: Tensor = self.adaLN_modulation(vec_BD)
        shift, scale = mod_BX[:, None].chunk(2, dim=-1)
        out: Tensor = self.linear(modulate(x_BND, shift, scale))
        return out


class MMDiT(nn.Module):
    """The velocity model. `double_blocks` and `single_blocks` are plain lists, to be wrapped from outside."""

    def __init__(self, config: MMDiTConfig) -> None:
        super().__init__()
        self.config = config
        width = config.hidden_size
        self.img_in = nn.Linear(config.in_channels, width)
        self.time_in = MLPEmbedder(SINUSOID_WIDTH, width)
        self.vector_in = MLPEmbedder(config.pooled_dim, width)
        self.guidance_in = MLPEmbedder(SINUSOID_WIDTH, width) if config.guidance_embed else None
        self.cond_in = _zero_linear(config.cond_features, width) if config.cond_embed else None
        self.txt_in = nn.Linear(config.context_dim, width)
        self.double_blocks = nn.ModuleList(DoubleBlock(config) for _ in range(config.double_blocks))
        self.single_blocks = nn.ModuleList(SingleBlock(config) for _ in range(config.single_blocks))
        self.final_layer = FinalLayer(width, config.in_channels)

    def forward(
        self,
        img_BNI: Tensor,
        img_ids_BN3: Tensor,
        txt_BLD: Tensor,
        txt_ids_BL3: Tensor,
        timesteps_B: Tensor,
        pooled_BP: Tensor,
        cond_BNE: Tensor | None = None,
        guidance_B: Tensor | None = None,
        attend: Attention = attention,
    ) -> Tensor:
        """The velocity of packed noisy latents, computed in the data type of the weights.

        Args:
            img_BNI: packed noisy latent.
            img_ids_BN3: positions (frame, row, column) in patches.
            txt_BLD: text token features of width context_dim; padding is attended to like any other token.
            txt_ids_BL3: zeros.
            timesteps_B: 0 is data, 1 is noise.
            pooled_BP: pooled text feature.
            cond_BNE: packed [mask, latent]; required if and only if the model has a condition input.
            guidance_B: distilled guidance scale; required if and only if the model has a guidance input.
            attend: attention of every block. Where ranks share a sequence it reaches the tokens of all of them, and
                N and L are this rank's shares; all else in the model works on each token by itself.

        Returns:
            (B, N, I), laid out as `img_BNI`.
        """
        rope = self.rope(torch.cat((txt_ids_BL3, img_ids_BN3), dim=1))
        vec_BD = self.conditioning(timesteps_B, pooled_BP, guidance_B)
        img_BND = self.embed(img_BNI, cond_BNE)
        txt = self.txt_in(txt_BLD.to(self.txt_in.weight.dtype))
        for block in self.double_blocks:
            img_BND, txt = block(img_BND, txt, vec_BD, rope, attend)
        x_BSD = torch.cat((txt, img_BND), dim=1)
        for block in self.single_blocks:
            x_BSD = block(x_BSD, vec_BD, rope, attend)
        out: Tensor = self.final_layer(x_BSD[:, txt.shape[1] :], vec_BD)
        return out

    def rope(self, ids_BS3: Tensor) -> Rope:
        """Rotary tables of positions (frame, row, column), text first."""
        config = self.config
        return rope_tables(ids_BS3, config.rope_axes, config.rope_theta, exact=config.rope_layout == "interleaved")

    def conditioning(self, timesteps_B: Tensor, pooled_BP: Tensor, guidance_B: Tensor | None) -> Tensor:
        """The vector (B, D) that modulates every block: time, guidance and pooled text."""
        _require("guidance_B", "guidance input", guidance_B, self.guidance_in)
        vec_BD: Tensor = self.time_in(sinusoid(timesteps_B, SINUSOID_WIDTH))
        if self.guidance_in is not None and guidance_B is not None:
            vec_BD = vec_BD + self.guidance_in(sinusoid(guidance_B, SINUSOID_WIDTH))
        text_BD: Tensor = self.vector_in(pooled_BP)
        return vec_BD + text_BD

    def embed(self, img_BNI: Tensor, cond_BNE: Tensor | None) -> Tensor:
        """The image stream (B, N, D) that enters the first block."""
        _require("cond_BNE", "condition input", cond_BNE, self.cond_in)
        dtype = self.img_in.weight.dtype
        img_BND: Tensor = self.img_in(img_BNI.to(dtype))
        if self.cond_in is not None and cond_BNE is not None:
            img_BND = img_BND + self.cond_in(cond_BNE.to(dtype))
        return img_BND


def _require(argument: str, what: str, value: Tensor | None, layer: nn.Module | None) -> None:
    if (value is None) != (layer is None):
        has, given = ("has no" if layer is None else "has a"), ("was not given" if value is None else "was given")
        raise ValueError(f"the model {has} {what}, but {argument} {given}")


def _zero_linear(in_width: int, width: int) -> nn.Linear:
    """Starts as a no-op, so that a text-only checkpoint gains the condition input without a change of its output."""
    layer = nn.Linear(in_width, width)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
