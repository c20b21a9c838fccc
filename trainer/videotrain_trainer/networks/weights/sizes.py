"""Sizes of a model from the names and shapes of its file.

Each size is read from tensors whose shape cannot be transposed (vectors) or from element counts, so that a transposed
matrix is found by comparing with the model, not taken for another model.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from videotrain_trainer.errors import ConfigError
from videotrain_trainer.networks.autoencoders import picture_layouts
from videotrain_trainer.networks.layout_rules import Shapes, count
from videotrain_trainer.networks.mmdit.config import MMDiTConfig

PUBLISHED_AXES = (1, 7, 7)
"""Head dimensions for time, rows and columns of every published model, in sixteenths of the head."""
_SIGNS = {
    "flux-dev": r"double_blocks\.\d+\.img_attn\.qkv\..*|single_blocks\.\d+\.linear1\..*",
    "open-sora-v2": r"double_blocks\.\d+\.img_attn\.q_proj\..*|single_blocks\.\d+\.q_proj\..*",
    "diffusers": r"(single_)?transformer_blocks\.\d+\..*",
    "hunyuan-vae": r"encoder\.(down_blocks\.\d+\.resnets|mid_block)\..*|(post_)?quant_conv\..*",
    "flux-vae": picture_layouts.SIGN,
    "diffusers-image-dc-ae": r"encoder\.down_blocks\.\d+\.\d+\..*",
    "open-sora-dc-ae": r"encoder\.(project_in|stages\.\d+\.op_list)\..*",
}
"""Names that only one layout has. Layouts with the same names are told apart by the caller."""
_MMDIT_ANCHORS = {
    "hidden": ("img_in.bias", "x_embedder.bias", "txt_in.bias", "context_embedder.bias"),
    "in_channels": ("final_layer.linear.bias", "proj_out.bias"),
    "context": ("txt_in.weight", "context_embedder.weight"),
    "pooled": ("vector_in.in_layer.weight", "time_text_embed.text_embedder.linear_1.weight"),
    "inputs": ("x_embedder.weight",),
    "condition": ("cond_in.weight",),
    "head": (
        "double_blocks.0.img_attn.norm.query_norm.scale",
        "single_blocks.0.norm.query_norm.scale",
        "transformer_blocks.0.attn.norm_q.weight",
        "single_transformer_blocks.0.attn.norm_q.weight",
    ),
    "mlp": (
        "double_blocks.0.img_mlp.0.bias",
        "transformer_blocks.0.ff.net.0.proj.bias",
        "single_transformer_blocks.0.proj_mlp.bias",
    ),
    "value_mlp": ("single_blocks.0.v_mlp.bias",),
    "fused_mlp": ("single_blocks.0.linear1.bias",),
}
"""Tensors that a size can be read from, in the names of any layout."""


def layout_of(shapes: Shapes, what: str) -> str:
    """The layout whose names a file has.

    Raises:
        ConfigError: none.
    """
    for layout, sign in _SIGNS.items():
        if any(re.fullmatch(sign, name) for name in shapes):
            if layout == "hunyuan-vae" and picture_layouts.DIFFUSERS_SIGN in shapes:
                return "diffusers"
            two_axes = layout == "open-sora-dc-ae" and len(shapes.get("encoder.project_in.conv.weight", ())) == 4
            return "image-dc-ae" if two_axes else layout
    some = ", ".join(list(shapes)[:3]) or "none at all"
    raise ConfigError(f"{what}: no known layout has its tensor names (such as {some}); known: {', '.join(_SIGNS)}")


def mmdit_sizes(shapes: Shapes, what: str) -> MMDiTConfig:
    """Sizes of an MMDiT's file in any layout, with separate q/k/v and half-split positions.

    Shapes do not tell the patch size of a model without condition input (2 is taken), the rotary axes (in the published
    proportion) and theta (10000). No conversion depends on them.

    Raises:
        ConfigError: tensors that tell the sizes are missing.
    """
    found = {size: _elements(shapes, names) for size, names in _MMDIT_ANCHORS.items()}
    doubles = count(shapes, r"(?:double_blocks|transformer_blocks)\.(\d+)\..*")
    singles = count(shapes, r"(?:single_blocks|single_transformer_blocks)\.(\d+)\..*")
    hidden = _known(found, "hidden", what)
    in_channels, head = _known(found, "in_channels", what), _known(found, "head", what)
    condition = _condition(found, hidden, in_channels)
    mlp = found["mlp"] or (found["value_mlp"] or 0) - hidden
    mlp = mlp if mlp > 0 else (found["fused_mlp"] or 0) - 3 * hidden
    try:
        return MMDiTConfig(
            in_channels=in_channels,
            context_dim=_known(found, "context", what) // hidden,
            pooled_dim=_known(found, "pooled", what) // hidden,
            hidden_size=hidden,
            num_heads=hidden // head,
            double_blocks=doubles,
            single_blocks=singles,
            mlp_ratio=mlp / hidden,
            rope_axes=_axes(head),
            patch_size=math.isqrt(condition - in_channels) if condition > in_channels else 2,
            cond_embed=condition > 0,
            guidance_embed=any(name.startswith(("guidance_in.", "time_text_embed.guidance_")) for name in shapes),
            qkv_bias=_has_biases(shapes),
        )
    except (ValueError, ZeroDivisionError) as error:
        raise ConfigError(f"{what}: its tensors are not those of an MMDiT: {error}") from error


def _condition(found: Mapping[str, int | None], hidden: int, in_channels: int) -> int:
    """Features of a condition token; 0 without that input."""
    if found["condition"]:
        return found["condition"] // hidden
    return found["inputs"] // hidden - in_channels if found["inputs"] else 0


def _axes(head: int) -> tuple[int, int, int]:
    """The published proportion, rounded to even numbers whose sum is the head dimension."""
    side = head * PUBLISHED_AXES[1] // 32 * 2
    return (head - 2 * side, side, side)


def _has_biases(shapes: Shapes) -> bool:
    attention = [name for name in shapes if re.fullmatch(r"double_blocks\.\d+\.\w+_attn\.(q_proj|qkv)\.\w+", name)]
    return not attention or any(name.endswith(".bias") for name in attention)


def _elements(shapes: Shapes, names: tuple[str, ...]) -> int | None:
    return next((math.prod(shapes[name]) for name in names if name in shapes), None)


def _known(found: Mapping[str, int | None], size: str, what: str) -> int:
    value = found[size]
    if not value:
        raise ConfigError(
            f"{what}: missing: {' or '.join(_MMDIT_ANCHORS[size])}, one of which tells the model's {size} size; name "
            "the preset that the file belongs to, to have everything that is missing listed"
        )
    return value
