"""What training needs of a model whose state is spread over ranks; `build` chooses who keeps it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from videotrain_api.resource.stages import EngineName, Offload, ParallelLayout
from videotrain_api.resource.stages import Optimizer as OptimizerSpec
from videotrain_trainer.parallel.shards import Shards

Precision = Literal["bf16", "fp32"]


def compute_dtype(precision: Precision) -> torch.dtype:
    """What forward and backward compute in."""
    return torch.bfloat16 if precision == "bf16" else torch.float32


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """How a model is trained."""

    optimizer: OptimizerSpec
    precision: Precision
    keep_average: bool
    """Keep a moving average of the weights."""
    engine: EngineName = "deepspeed"
    zero_stage: Literal[0, 1, 2, 3] = 2
    """Of DeepSpeed alone."""
    offload: Offload = "none"

    @property
    def dtype(self) -> torch.dtype:
        """What forward and backward compute in."""
        return compute_dtype(self.precision)


class TrainedTask(Protocol):
    """What `train` and `autoencoder` tasks have in common."""

    @property
    def optimizer(self) -> OptimizerSpec:
        """Optimizer and learning rate."""

    @property
    def parallel(self) -> ParallelLayout:
        """How its batches and its model are spread over ranks."""

    @property
    def steps(self) -> int:
        """How many optimizer steps the stage has."""

    @property
    def precision(self) -> Any:
        """What forward and backward compute in: `bf16` or `fp32`."""

    @property
    def ema_decay(self) -> float | None:
        """Decay of the moving average; none is kept for None and 0."""


def engine_options(task: TrainedTask, layout: ParallelLayout | None = None) -> EngineOptions:
    """How the engine of a stage trains, under its own layout or another."""
    layout = layout or task.parallel
    return EngineOptions(
        optimizer=task.optimizer,
        precision=task.precision,
        keep_average=bool(task.ema_decay),
        engine=layout.engine,
        zero_stage=layout.deepspeed_stage,
        offload=layout.offload,
    )


class Engine(Protocol):
    """The sharded model of one rank. Collective: all ranks call the same methods in the same order.

    A step is any number of `backward`, then `step`. Gradients are averaged over all ranks and accumulated in float32;
    master weights, moments and average are float32 shards, which `shards` reads and writes.

    An engine is made from a module whose float32 weights are equal on all ranks; they become the master weights without
    being rounded. Parameters, but no buffers, may also lie on the meta device: then `shards.write` gives the masters
    their values, and `refresh` the model.
    """

    @property
    def dtype(self) -> torch.dtype:
        """What forward and backward compute in."""

    @property
    def shards(self) -> Shards:
        """This rank's part of the state."""

    @property
    def module(self) -> nn.Module:
        """The model; its parameters may be whole only while it runs."""

    @property
    def in_step(self) -> bool:
        """Whether forward and backward communicate, so that all ranks must run equally many in a step."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model's forward pass."""

    def backward(self, loss: Tensor, last: bool = True) -> None:
        """Add the gradients of a weighed micro-batch loss.

        Args:
            loss: scalar.
            last: no other forward pass with gradients comes before `step`.
        """

    def step(self, learning_rate: float) -> Tensor:
        """Average the gradients over the ranks, clip, update.

        Returns:
            () float32: global gradient norm before clipping, not finite if a gradient is not; nobody has read it from
            the device.
        """

    @property
    def critic_norm(self) -> Tensor:
        """() float32: gradient norm of a discriminator in the last step; 0 if there is none."""

    def around_update(self, before: Callable[[], None], after: Callable[[], None]) -> None:
        """Call these when the optimizer begins and ends to update weights, between reduction and gathering."""

    def refresh(self) -> None:
        """Make the weights that the model computes with follow the master weights; after loading."""


def materialise(
    module: nn.Module, device: torch.device, dtype: torch.dtype, chosen: Callable[[Tensor], bool] = lambda _: True
) -> None:
    """Move parameters and buffers to a device in a data type; parameters on the meta device get storage without values.

    Args:
        module: changed in place, one tensor after the other.
        device: of this process.
        dtype: of what is floating-point.
        chosen: which of the tensors.
    """
    for part in module.modules():
        for name, tensor in [*part._parameters.items(), *part._buffers.items()]:
            if tensor is None or not chosen(tensor):
                continue
            wanted = dtype if tensor.is_floating_point() else tensor.dtype
            if tensor.is_meta:
                empty = torch.empty_like(tensor, device=device, dtype=wanted)
                part._parameters[name] = nn.Parameter(empty, requires_grad=tensor.requires_grad)
            else:
                tensor.data = tensor.data.to(device=device, dtype=wanted)


def adamw(parameters: Iterable[Tensor], spec: OptimizerSpec) -> torch.optim.AdamW:
    """AdamW in one kernel; `step` sets its learning rate."""
    return torch.optim.AdamW(
        parameters,
        lr=spec.learning_rate[0].value,
        betas=(spec.beta1, spec.beta2),
        eps=spec.epsilon,
        weight_decay=spec.weight_decay,
        fused=True,
    )
