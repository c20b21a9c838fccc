"""A model under torch's fully sharded data parallelism: one gather and one reduction per block, beside its compute.

Every block is a group of parameters of its own, and what is left of the model another. Weights are gathered in the
first forward pass of a step and stay until its last backward pass; gradients are reduced to their owners in every
backward pass, so that no rank ever holds all of them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor

from videotrain_trainer.parallel.blocks import blocks_of
from videotrain_trainer.parallel.engine import EngineOptions, adamw, materialise
from videotrain_trainer.parallel.shards import Shards, row_runs
from videotrain_trainer.worker.stage_context import World

# The model's output is a view; whoever computes a loss from it changes nothing in place.
warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor", category=UserWarning)


class FsdpEngine:
    """See `Engine`. Frozen parameters stay whole on every rank, in the data type of the computation.

    Args:
        module: see `Engine`.
        options: how it is trained.
        world: this process.
    """

    def __init__(self, module: nn.Module, options: EngineOptions, world: World) -> None:
        self.dtype, self.in_step, self.module = options.dtype, True, module
        self._device, self.critic_norm = world.device, torch.zeros((), device=world.device)
        self._limit, self._weight = options.optimizer.gradient_clip, 1.0 / world.size
        shapes = {name: tuple(p.shape) for name, p in module.named_parameters() if p.requires_grad}
        self._root = _sharded(module, options, world)
        self._parameters = [p for p in module.parameters() if p.requires_grad]
        masters = [_local(parameter) for parameter in self._parameters]
        self._optimizer = adamw(masters, options.optimizer)
        runs = row_runs(shapes, masters, world.rank, world.size)
        self.shards = Shards(shapes, masters, runs, runs, self._optimizer, keep_average=options.keep_average)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model's forward pass."""
        return self.module(*args, **kwargs)

    def backward(self, loss: Tensor, last: bool = True) -> None:
        """Add the gradients of a weighed micro-batch loss; after the last one weights are no longer whole."""
        self._root.set_is_last_backward(last)
        self._root.set_reshard_after_backward(last)
        torch.autograd.backward(loss * self._weight)

    def step(self, learning_rate: float) -> Tensor:
        """Clip, update; the global gradient norm before clipping."""
        masters = self.shards.masters
        for parameter, master in zip(self._parameters, masters, strict=True):
            master.grad = None if parameter.grad is None else _local(parameter.grad)
        norm = clip_shards([master.grad for master in masters if master.grad is not None], self._limit)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._optimizer.step()
        for tensor in (*self._parameters, *masters):
            tensor.grad = None
        return norm.to(self._device)

    def around_update(self, before: Callable[[], None], after: Callable[[], None]) -> None:
        """Call these when the optimizer begins and ends to update weights."""
        self._optimizer.register_step_pre_hook(lambda *_: before())
        self._optimizer.register_step_post_hook(lambda *_: after())

    def refresh(self) -> None:
        """Let the next forward pass gather the weights anew; after loading."""
        for part in self.module.modules():
            if isinstance(part, FSDPModule):
                part.reshard()


@torch.no_grad()
def clip_shards(gradients: list[Tensor], limit: float) -> Tensor:
    """Scale a model's gradients, of which every rank holds a share, to a largest global norm. Collective.

    No value is read on the host, so nothing waits for the device.

    Returns:
        () float32: norm before it.
    """
    squares = torch.stack(torch._foreach_norm(gradients)).square().sum()
    dist.all_reduce(squares)
    norm = squares.sqrt()
    torch._foreach_mul_(gradients, (limit / (norm + 1e-6)).clamp(max=1.0))
    return norm


def _sharded(module: nn.Module, options: EngineOptions, world: World) -> FSDPModule:
    materialise(module, world.device, options.dtype, lambda tensor: not tensor.requires_grad)
    frozen = {parameter for parameter in module.parameters() if not parameter.requires_grad}
    # Rounding timesteps, positions and rotation tables to bf16 on their way in would cost more than all of bf16 does.
    rounding = MixedPrecisionPolicy(param_dtype=options.dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    pinned = world.device.type == "cuda"
    place = CPUOffloadPolicy(pin_memory=pinned) if options.offload == "optimizer" else OffloadPolicy()
    mesh = init_device_mesh(world.device.type, (world.size,))
    for part in (*blocks_of(module), module):
        # Whole in float32 for a moment, one block after the other.
        materialise(part, world.device, torch.float32, lambda t: t.requires_grad and not isinstance(t, DTensor))
        fully_shard(
            part,
            mesh=mesh,
            mp_policy=rounding,
            reshard_after_forward=False,
            offload_policy=place,
            ignored_params=frozen,
        )
    if not isinstance(module, FSDPModule):
        raise TypeError(type(module))
    # What no sample of a rank needed has a gradient of zero there, as everywhere else.
    module.set_reduce_scatter_unused_params(True)
    for part in module.modules():
        if isinstance(part, FSDPModule):
            # Sums, with the weight on the loss: so bf16 gradients are rounded alike in worlds of any size.
            part.set_gradient_divide_factor(1.0)
            part.set_force_sum_reduction_for_comms(True)
    return module


def _local(tensor: Tensor) -> Tensor:
    """This rank's rows; they share their storage with the tensor."""
    if not isinstance(tensor, DTensor):
        raise TypeError(type(tensor))
    local: Tensor = tensor.to_local()
    return local.detach()
