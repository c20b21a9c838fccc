"""Sizes of an MMDiT, and the published names of the fields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from videotrain_trainer.networks.rope import ROPE_THETA

RopeLayout = Literal["half-split", "interleaved"]
"""Which elements of a head are rotated against each other: j and j + K/2, or 2j and 2j + 1."""


@dataclass(frozen=True, kw_only=True)
class MMDiTConfig:
    """Sizes of an MMDiT. Raises ValueError if they do not fit together."""

    in_channels: int
    """Channels of a packed token: latent channels times patch_size squared."""
    context_dim: int
    """Width of the text token features."""
    pooled_dim: int
    """Width of the pooled text feature."""
    hidden_size: int
    num_heads: int
    double_blocks: int
    single_blocks: int
    mlp_ratio: float
    rope_axes: tuple[int, int, int]
    """Head dimensions for time, rows and columns."""
    patch_size: int
    cond_embed: bool
    """Has the image/video condition input."""
    guidance_embed: bool
    """Has the distilled guidance input."""
    qkv_bias: bool = True
    """Queries, keys and values of the two-stream blocks have biases; those of the one-stream blocks always do."""
    fused_qkv: bool = False
    """One matrix makes queries, keys and values (and the feed-forward input of a one-stream block)."""
    rope_layout: RopeLayout = "half-split"
    rope_theta: float = ROPE_THETA
    """Base of the rotary frequencies."""

    @classmethod
    def from_published(cls, facts: Mapping[str, Any]) -> MMDiTConfig:
        """From the fields of a published configuration file (`depth`, `axes_dim`, `use_liger_rope`, ...).

        Raises:
            ValueError: a field is missing or unknown, or the sizes do not fit together.
        """
        names = _PUBLISHED_FIELDS.keys() | _PUBLISHED_DEFAULTS.keys()
        missing, unknown = _PUBLISHED_FIELDS.keys() - facts.keys(), facts.keys() - names
        if missing or unknown:
            raise ValueError(
                f"a published MMDiT configuration: missing fields {sorted(missing)}, unknown fields {sorted(unknown)}; "
                f"allowed are {sorted(names)}"
            )
        given = {**_PUBLISHED_DEFAULTS, **facts}
        sizes = {ours: given[theirs] for theirs, ours in _PUBLISHED_FIELDS.items()}
        return cls(
            **{**sizes, "rope_axes": tuple(sizes["rope_axes"])},
            patch_size=given["patch_size"],
            cond_embed=given["cond_embed"],
            qkv_bias=given["qkv_bias"],
            fused_qkv=given["fused_qkv"],
            rope_layout="half-split" if given["use_liger_rope"] else "interleaved",
            rope_theta=float(given["theta"]),
        )

    def __post_init__(self) -> None:
        if self.rope_layout not in get_args(RopeLayout):
            raise ValueError(f"rope_layout {self.rope_layout!r} must be one of {sorted(get_args(RopeLayout))}")
        if self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size {self.hidden_size} must be a multiple of num_heads {self.num_heads}")
        head_dim = self.hidden_size // self.num_heads
        if sum(self.rope_axes) != head_dim or any(width % 2 for width in self.rope_axes):
            raise ValueError(f"rope_axes {self.rope_axes} must be even numbers whose sum is the head dim {head_dim}")

    @property
    def cond_features(self) -> int:
        """Features of a packed condition token: the mask's, then the latent's."""
        return self.in_channels + self.patch_size**2

    @property
    def mlp_width(self) -> int:
        """Width of the feed-forward layers."""
        return int(self.hidden_size * self.mlp_ratio)


_PUBLISHED_FIELDS = {
    "in_channels": "in_channels",
    "context_in_dim": "context_dim",
    "vec_in_dim": "pooled_dim",
    "hidden_size": "hidden_size",
    "num_heads": "num_heads",
    "depth": "double_blocks",
    "depth_single_blocks": "single_blocks",
    "mlp_ratio": "mlp_ratio",
    "axes_dim": "rope_axes",
    "guidance_embed": "guidance_embed",
}
_PUBLISHED_DEFAULTS = {
    "qkv_bias": True,
    "fused_qkv": True,
    "use_liger_rope": False,
    "theta": ROPE_THETA,
    "patch_size": 2,
    "cond_embed": False,
}
"""What the published class takes for a field that its file leaves out."""
