"""The layouts of FLUX.1's picture autoencoder: its own, which is ours, and that of diffusers' AutoencoderKL."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from torch import Tensor

from videotrain_trainer.networks.autoencoders.flux_vae import PictureVAEConfig
from videotrain_trainer.networks.layout_rules import Rule, Shapes

_PARTS = (
    (r"\.nin_shortcut\.", ".conv_shortcut."),
    (r"\.mid\.block_1\.", ".mid_block.resnets.0."),
    (r"\.mid\.block_2\.", ".mid_block.resnets.1."),
    (r"\.mid\.attn_1\.norm\.", ".mid_block.attentions.0.group_norm."),
    (r"\.mid\.attn_1\.proj_out\.", ".mid_block.attentions.0.to_out.0."),
    (r"\.mid\.attn_1\.([qkv])\.", r".mid_block.attentions.0.to_\1."),
    (r"\.norm_out\.", ".conv_norm_out."),
    (r"\.(down|up)\.(\d+)\.block\.", r".\1_blocks.\2.resnets."),
    (r"\.(down|up)\.(\d+)\.(down|up)sample\.", r".\1_blocks.\2.\3samplers.0."),
)
"""Parts of our names and what they are there, levels aside."""
SIGN = r"encoder\.down\.\d+\.block\..*"
"""Names that only FLUX.1's own layout has."""
DIFFUSERS_SIGN = "encoder.conv_in.weight"
"""Of the names that diffusers' AutoencoderKL shares with the HunyuanVideo VAE, the one that only the former has."""


def same_rules(_config: PictureVAEConfig, ours: Shapes) -> list[Rule]:
    """The rules of FLUX.1's own layout, whose names are ours."""
    return [Rule(ours=(name,), theirs=(name,)) for name in ours]


def diffusers_rules(config: PictureVAEConfig, ours: Shapes) -> list[Rule]:
    """AutoencoderKL's: levels of the decoder are counted from the latents, projections of the attention are linear."""
    return [_rule(name, shape, len(config.multipliers)) for name, shape in ours.items()]


def _rule(name: str, shape: tuple[int, ...], levels: int) -> Rule:
    theirs = name
    for pattern, replacement in _PARTS:
        theirs = re.sub(pattern, replacement, theirs)
    theirs = re.sub(r"(?<=\.up_blocks\.)\d+", lambda found: str(levels - 1 - int(found[0])), theirs)
    if ".attn_1." in name and len(shape) == 4:
        return Rule(ours=(name,), theirs=(theirs,), to_theirs=_flat, to_ours=_convolving)
    return Rule(ours=(name,), theirs=(theirs,))


def _flat(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensors[0].flatten(1)]


def _convolving(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensors[0][:, :, None, None]]


def picture_sizes(shapes: Shapes) -> PictureVAEConfig:
    """Sizes from the names and shapes of either layout.

    Raises:
        KeyError: a tensor that tells them is missing.
    """
    theirs = any(name.startswith("encoder.down_blocks.") for name in shapes)
    down, block = ("down_blocks", "resnets") if theirs else ("down", "block")
    width = math.prod(shapes["encoder.conv_in.bias"])
    levels = {int(found[1]) for name in shapes if (found := re.match(rf"encoder\.{down}\.(\d+)\.", name))}
    blocks = {int(found[1]) for name in shapes if (found := re.match(rf"encoder\.{down}\.0\.{block}\.(\d+)\.", name))}
    widths = [math.prod(shapes[f"encoder.{down}.{level}.{block}.0.conv1.bias"]) for level in sorted(levels)]
    return PictureVAEConfig(
        latent_channels=shapes["decoder.conv_in.weight"][1],
        width=width,
        multipliers=tuple(each // width for each in widths),
        blocks=len(blocks),
    )
