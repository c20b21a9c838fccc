"""The parts of a model that are gathered, reduced and recomputed as one."""

from __future__ import annotations

from torch import nn

from videotrain_trainer.networks.autoencoders.interface import Autoencoder
from videotrain_trainer.networks.mmdit.model import MMDiT


def blocks_of(module: nn.Module) -> list[nn.Module]:
    """Blocks in the order in which they run; none of a model that has no such parts."""
    if isinstance(module, MMDiT):
        return [*module.double_blocks, *module.single_blocks]
    return module.recomputable_blocks() if isinstance(module, Autoencoder) else []
