"""A model under DeepSpeed: ZeRO stage, precision, clipping and our own hand on the sharded state.

The engine is given no topology (`mpu=None`) and one micro-batch per rank; how they are shared and weighed is decided in
`data_parallel`. `managed_gradient_accumulation: false` lets ranks run different numbers of micro-batches: `backward`
only accumulates, and `step` reduces once.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from videotrain_api.capabilities import refusals
from videotrain_api.resource.stages import Optimizer as OptimizerSpec
from videotrain_trainer.errors import ConfigError
from videotrain_trainer.parallel.deepspeed_import import deepspeed
from videotrain_trainer.parallel.shards import Run, Shards, partitioned, replicated, sliced
from videotrain_trainer.worker.stage_context import World

REDUCE_BUCKET = 50_000_000
"""Elements that are reduced at once."""


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """How a model is trained."""

    optimizer: OptimizerSpec
    precision: Literal["bf16", "fp32"]
    zero_stage: Literal[0, 1, 2, 3]
    keep_average: bool
    """Keep a moving average of the weights."""


class Engine:
    """The sharded model of one rank. Collective: all ranks call the same methods in the same order.

    Args:
        module: float32 weights, equal on all ranks; they become the master weights without being rounded.
        options: how it is trained.
        world: this process.

    Raises:
        ConfigError: the options exclude each other.
    """

    def __init__(self, module: nn.Module, options: EngineOptions, world: World) -> None:
        check_options(options)
        os.environ.setdefault("LOCAL_RANK", str(world.local_rank))  # DeepSpeed takes it from nowhere else
        self.dtype = torch.bfloat16 if options.precision == "bf16" else torch.float32
        shapes = {name: tuple(p.shape) for name, p in module.named_parameters() if p.requires_grad}
        # Converting a module gives its parameters new storage; what is remembered here keeps the full precision.
        initial = {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}
        self._engine, optimizer, self._clipped = _initialize(module.to(world.device), options)
        names = {p: name for name, p in self._engine.module.named_parameters() if name in shapes}
        masters, runs, saved = _layout(self._engine, names, options.zero_stage)
        self.shards = Shards(shapes, masters, runs, saved, optimizer, keep_average=options.keep_average)
        self._optimizer, self._stage = optimizer, options.zero_stage
        self._no_critic = torch.zeros((), device=world.device)
        self.shards.write_full(initial)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model's forward pass."""
        return self._engine(*args, **kwargs)

    @property
    def module(self) -> nn.Module:
        """The model; under stage 3 its parameters are gathered only while it runs."""
        module: nn.Module = self._engine.module
        return module

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a weighed micro-batch loss."""
        self._engine.backward(loss, scale_wrt_gas=False)

    def step(self, learning_rate: float) -> Tensor:
        """Average the gradients over the ranks, clip, update.

        Returns:
            Global gradient norm before clipping, a scalar that nobody has read from the device.
        """
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._engine.step()
        norm = self._clipped() if self._clipped else self._engine.get_global_grad_norm()
        return torch.as_tensor(norm, device=self.shards.device)

    @property
    def critic_norm(self) -> Tensor:
        """0: there is no discriminator."""
        return self._no_critic

    def around_update(self, before: Callable[[], None], after: Callable[[], None]) -> None:
        """Call these when the optimizer begins and ends to update weights, between reduction and gathering."""
        self._optimizer.register_step_pre_hook(lambda *_: before())
        self._optimizer.register_step_post_hook(lambda *_: after())

    def refresh(self) -> None:
        """Make the weights that the model computes with follow the master weights; after loading."""
        optimizer = self._engine.optimizer
        if self._stage in (1, 2):
            optimizer.update_lp_params()
        elif self._stage == 3:
            for number in range(len(optimizer.fp32_partitioned_groups_flat)):
                optimizer._reassign_or_swap_out_partitioned_parameters(number)
            if optimizer.persistent_parameters:
                optimizer.persistent_parameters[0].partition(optimizer.persistent_parameters)
                optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)


def check_options(options: EngineOptions) -> None:
    """Refuse what DeepSpeed cannot do.

    Raises:
        ConfigError: names the field.
    """
    for refusal in refusals({"zero_stage": options.zero_stage, "precision": options.precision}):
        raise ConfigError(f"{refusal.path}: {refusal.value}: {refusal.allowed}")


def engine_config(options: EngineOptions, elements: int) -> dict[str, Any]:
    """DeepSpeed's configuration.

    Args:
        options: how the model is trained.
        elements: parameters of the model.
    """
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": options.optimizer.gradient_clip if options.zero_stage else 0.0,
        # torch's fused AdamW is not on DeepSpeed's list; its own would be compiled at start.
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {
            "stage": options.zero_stage,
            "overlap_comm": False,
            # Stage 3 would put a linear of its own in the place of torch's, which adds the bias in place to a product
            # that selective recompute keeps: the backward pass would see it added twice.
            "memory_efficient_linear": False,
            "reduce_bucket_size": min(elements, REDUCE_BUCKET),
        },
        "steps_per_print": None,
    }
    if options.precision == "bf16":
        config["bf16"] = {"enabled": True}
        config["data_types"] = {"grad_accum_dtype": "fp32"}
        config["communication_data_type"] = "fp32"
    return config


def _initialize(
    module: nn.Module, options: EngineOptions
) -> tuple[Any, torch.optim.Optimizer, Callable[[], Tensor] | None]:
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    spec = options.optimizer
    optimizer = torch.optim.AdamW(
        parameters,
        lr=spec.learning_rate[0].value,
        betas=(spec.beta1, spec.beta2),
        eps=spec.epsilon,
        weight_decay=spec.weight_decay,
        fused=True,
    )
    clipped = None if options.zero_stage else _clip_before_step(optimizer, parameters, spec.gradient_clip)
    config = engine_config(options, sum(parameter.numel() for parameter in parameters))
    engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=config, dist_init_required=False)
    return engine, optimizer, clipped


def _clip_before_step(
    optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], limit: float
) -> Callable[[], Tensor]:
    """Stage 0 clips gradients, but does not tell their norm; so clip between its reduction and the update."""
    norms: list[Tensor] = []

    def clip(*_: Any) -> None:
        norms[:] = [torch.nn.utils.clip_grad_norm_(parameters, limit)]

    optimizer.register_step_pre_hook(clip)
    return lambda: norms[0]


def _layout(engine: Any, names: dict[Any, str], stage: int) -> tuple[list[Tensor], list[Run], list[Run]]:
    if stage == 0:
        return replicated(names)
    masters, runs = sliced(engine, names) if stage == 3 else partitioned(engine, names)
    return masters, runs, runs
