"""Activation recomputation of transformer blocks, put on a built model from outside."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from videotrain_api.resource.stages import ParallelLayout
from videotrain_trainer.errors import ConfigError
from videotrain_trainer.networks.autoencoders.interface import Autoencoder
from videotrain_trainer.networks.mmdit.model import MMDiT


def recompute_blocks(model: MMDiT, layout: ParallelLayout) -> None:
    """Let the first blocks of each kind keep only their inputs and run again in the backward pass.

    Parameter names stay as they are, so checkpoints and weight files do not depend on it.

    Args:
        model: before DeepSpeed takes it.
        layout: says how many blocks.

    Raises:
        ConfigError: the model has fewer blocks.
    """
    double, single = layout.checkpoint_double_blocks, layout.checkpoint_single_blocks
    _check("checkpointDoubleBlocks", double, len(model.double_blocks))
    _check("checkpointSingleBlocks", single, len(model.single_blocks))
    _recompute([*model.double_blocks[:double], *model.single_blocks[:single]])


def recompute_autoencoder(model: Autoencoder) -> int:
    """Let the blocks of an autoencoder keep only their inputs; the last one keeps everything.

    Args:
        model: before DeepSpeed takes it.

    Returns:
        How many blocks recompute.
    """
    blocks = model.recomputable_blocks()
    _recompute(blocks)
    return len(blocks)


def _recompute(blocks: Iterable[nn.Module]) -> None:
    # The method is replaced, not the module: a wrapper module would change the names of its parameters. Blocks draw no
    # random numbers, so no generator state has to be kept.
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)


def _check(field: str, value: int, most: int) -> None:
    if value > most:
        raise ConfigError(
            f"train.parallel.{field}: {value}, but the model has {most} such blocks; allowed: 0 to {most}, "
            "see spec.model and spec.stages"
        )
