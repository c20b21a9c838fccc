"""Bytes per parameter that an engine really holds, on a gloo rank."""

from __future__ import annotations

import gc
import weakref

import torch
from support.engine_worlds import LARGE, micro_batch_loss, options, small_model
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from videotrain_trainer.parallel.build import shard_model
from videotrain_trainer.parallel.zero import engine_config, partition_each
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


class Storages(TorchDispatchMode):
    """Bytes of all storages that operations made and that are alive, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, object] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for value in tree_flatten(out)[0]:
            if isinstance(value, torch.Tensor) and not value.is_meta:
                storage = value.untyped_storage()
                key, size = storage._cdata, storage.nbytes()
                if key not in self._known:
                    self._known[key] = weakref.ref(storage, lambda _, key=key, size=size: self._forget(key, size))
                    self.now += size
                    self.peak = max(self.peak, self.now)
        return out

    def _forget(self, key: int, size: int) -> None:
        del self._known[key]
        self.now -= size


def cutting_up(world: World) -> dict[str, int]:
    """Bytes at the most while the parameters of a model on the meta device are cut up, and afterwards."""
    with torch.device("meta"):
        model = small_model(*LARGE)
    largest = max(parameter.numel() for parameter in model.parameters())
    size = sum(parameter.numel() for parameter in model.parameters())
    config = engine_config(options("zero3", "bf16"), size, world)
    with Storages() as storages:
        partition_each(model, config, world.device, torch.bfloat16)
    return {"peak": storages.peak, "after": storages.now, "largest": largest, "size": size}


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
