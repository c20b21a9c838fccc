"""Bytes per parameter that an engine really holds, on a gloo rank."""

from __future__ import annotations

import gc

import torch
from support.engine_worlds import micro_batch_loss, options, small_model

from videotrain_trainer.parallel.build import shard_model
from videotrain_trainer.worker.stage_context import World


def held_bytes(world: World, engines: list[tuple[str, str]]) -> dict[tuple[str, str], int]:
    """Bytes of all tensors that an engine added, between two backward passes of its second step.

    Args:
        world: this process.
        engines: precision and name, see `options`.
    """
    found = {}
    for precision, name in engines:
        before = _bytes()
        model = small_model()
        engine = shard_model(model, options(name, precision), world)
        del model
        engine.backward(micro_batch_loss(engine, 0, 0), True)
        engine.step(1e-3)
        engine.backward(micro_batch_loss(engine, 1, 0), False)
        found[precision, name] = _bytes() - before
        engine.backward(micro_batch_loss(engine, 1, 1), True)
        del engine
    return found


def _bytes() -> int:
    """Of the storages of all tensors that Python knows, and of their gradients."""
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        if not issubclass(type(thing), torch.Tensor):
            continue
        for tensor in (thing, thing.grad if thing.is_leaf else None):
            if tensor is not None:
                tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
                storages[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
    return sum(storages.values())
