"""The choice of an engine."""

from __future__ import annotations

from torch import nn

from videotrain_trainer.parallel.engine import Engine, EngineOptions
from videotrain_trainer.parallel.fsdp import FsdpEngine
from videotrain_trainer.parallel.zero import ZeroEngine
from videotrain_trainer.worker.stage_context import World


def shard_model(module: nn.Module, options: EngineOptions, world: World) -> Engine:
    """The engine that the options name, with the model in it. Collective.

    Raises:
        ConfigError: the options exclude each other.
    """
    return FsdpEngine(module, options, world) if options.engine == "fsdp2" else ZeroEngine(module, options, world)
