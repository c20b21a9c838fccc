"""A model under DeepSpeed: ZeRO stage, precision, clipping and our own hand on the sharded state.

The engine is given no topology (`mpu=None`) and one micro-batch per rank; how they are shared and weighed is decided in
`data_parallel`. `managed_gradient_accumulation: false` lets `step` alone end a step, however many micro-batches it has.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from videotrain_api.capabilities import refusals
from videotrain_trainer.errors import ConfigError
from videotrain_trainer.parallel.deepspeed_import import deepspeed
from videotrain_trainer.parallel.engine import EngineOptions, adamw, materialise
from videotrain_trainer.parallel.shards import Run, Shards, partitioned, replicated, sliced
from videotrain_trainer.sharded_state import numel
from videotrain_trainer.worker.stage_context import World

REDUCE_BUCKET = 200_000_000
"""Elements that are reduced at once."""


class ZeroEngine:
    """See `Engine`.

    Args:
        module: see `Engine`.
        options: how it is trained.
        world: this process.

    Raises:
        ConfigError: the options exclude each other.
    """

    def __init__(self, module: nn.Module, options: EngineOptions, world: World) -> None:
        check_options(options)
        os.environ.setdefault("LOCAL_RANK", str(world.local_rank))  # DeepSpeed takes it from nowhere else
        self.dtype, self.in_step = options.dtype, options.zero_stage >= 2
        shapes = {name: tuple(p.shape) for name, p in module.named_parameters() if p.requires_grad}
        # Converting a module gives its parameters new storage; what is remembered here keeps the full precision.
        initial = {n: p.detach() for n, p in module.named_parameters() if p.requires_grad and not p.is_meta}
        config = engine_config(options, sum(map(numel, shapes.values())), world)
        if options.zero_stage == 3:
            partition_each(module, config, world.device, self.dtype)
        else:
            materialise(module, world.device, self.dtype)
        self._engine, optimizer, self._clipped = _initialize(module, options, config)
        names = {p: name for name, p in self._engine.module.named_parameters() if name in shapes}
        masters, runs, saved = _layout(self._engine, names, options.zero_stage)
        self.shards = Shards(shapes, masters, runs, saved, optimizer, keep_average=options.keep_average)
        self._optimizer, self._stage, self._device = optimizer, options.zero_stage, world.device
        self.critic_norm = torch.zeros((), device=world.device)
        # A sum adds bf16 gradients as they are; an average would round them once more wherever the world's size is no
        # power of two. Stage 3 has no sum.
        self._weight = 1.0 if options.zero_stage == 3 else 1.0 / world.size
        if initial:
            self.shards.write_full(initial)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model's forward pass."""
        return self._engine(*args, **kwargs)

    @property
    def module(self) -> nn.Module:
        """The model; under stage 3 its parameters are gathered only while it runs."""
        module: nn.Module = self._engine.module
        return module

    def backward(self, loss: Tensor, last: bool = True) -> None:  # noqa: ARG002 - DeepSpeed need not know
        """Add the gradients of a weighed micro-batch loss."""
        self._engine.backward(loss * self._weight, scale_wrt_gas=False)

    def step(self, learning_rate: float) -> Tensor:
        """Average the gradients over the ranks, clip, update; the global gradient norm before clipping."""
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._engine.step()
        norm = self._clipped() if self._clipped else self._engine.get_global_grad_norm()
        return torch.as_tensor(norm, dtype=torch.float32, device=self._device)

    def around_update(self, before: Callable[[], None], after: Callable[[], None]) -> None:
        """Call these when the optimizer begins and ends to update weights."""
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
    settings = {
        "engine": options.engine,
        "zero_stage": options.zero_stage,
        "precision": options.precision,
        "offload": options.offload,
    }
    for refusal in refusals(settings):
        raise ConfigError(f"{refusal.path}: {refusal.value}: {refusal.allowed}")


def engine_config(options: EngineOptions, elements: int, world: World) -> dict[str, Any]:
    """DeepSpeed's configuration.

    Args:
        options: how the model is trained.
        elements: parameters of the model.
        world: this process.
    """
    stage = options.zero_stage
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_allreduce_op": "mean" if stage == 3 else "sum",
        # DeepSpeed's clipping under stages 1 and 2 reads the norm on the host; `_clip_by_norm` does not.
        "gradient_clipping": options.optimizer.gradient_clip if stage == 3 else 0.0,
        # torch's fused AdamW is not on DeepSpeed's list; its own would be compiled at start.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {
            "stage": stage,
            # Only where gradients are partitioned, and only where a device has streams.
            "overlap_comm": stage >= 2 and world.device.type == "cuda",
            # Each gradient goes to the rank that owns it; the default sends all of them to all ranks.
            "use_multi_rank_bucket_allreduce": False,
            # Stage 3 would put a linear of its own in the place of torch's, which adds the bias in place to a product
            # that selective recompute keeps: the backward pass would see it added twice.
            "memory_efficient_linear": False,
            "reduce_bucket_size": min(elements, REDUCE_BUCKET),
        },
        "steps_per_print": None,
    }
    if options.offload == "optimizer":
        pinned = world.device.type == "cuda"
        config["zero_optimization"]["offload_optimizer"] = {"device": "cpu", "pin_memory": pinned}
    if options.precision == "bf16":
        # Under stage 1 the bf16 gradients would otherwise live beside the float32 ones until the step.
        # A norm that is not finite ends the run one step later (training.step_result); looking at it here, to leave out
        # the update, would make the host wait for the device in every step.
        config["bf16"] = {"enabled": True, "immediate_grad_update": True, "check_grad_overflow": False}
        config["data_types"] = {"grad_accum_dtype": "fp32"}
        config["communication_data_type"] = "fp32"
    return config


def partition_each(module: nn.Module, config: Mapping[str, Any], device: torch.device, dtype: torch.dtype) -> None:
    """Cut up the parameters of one layer after the other, so that no rank holds more than one layer beside its share.

    DeepSpeed would take them as they are, all of them whole. Collective.
    """
    first: Any = None
    for part in module.modules():
        own = {id(parameter) for parameter in part.parameters(recurse=False)}
        if own:
            materialise(part, device, dtype, lambda tensor, own=own: id(tensor) in own)  # type: ignore[misc]
            parameters = list(part.parameters(recurse=False))
            if first is None:
                deepspeed.zero.Init(module=nn.ParameterList(parameters), config_dict_or_path=config, dtype=dtype)
                first = parameters[0]
            else:
                first.convert_to_zero_parameters(param_list=parameters)
    materialise(module, device, dtype, lambda tensor: not isinstance(tensor, nn.Parameter))


def _initialize(
    module: nn.Module, options: EngineOptions, config: dict[str, Any]
) -> tuple[Any, torch.optim.Optimizer, Callable[[], Tensor] | None]:
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = adamw(parameters, options.optimizer)
    limit = options.optimizer.gradient_clip
    clipped = None if options.zero_stage else _clip_before_step(optimizer, parameters, limit)
    engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=config, dist_init_required=False)
    if options.zero_stage in (1, 2):
        _clip_by_norm(optimizer, engine.optimizer, limit)
    return engine, optimizer, clipped


def _clip_by_norm(optimizer: torch.optim.Optimizer, sharded: Any, limit: float) -> None:
    """Clip this rank's part of the gradients before the update, by the norm that DeepSpeed has computed of all."""

    def clip(*_: Any) -> None:
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        for gradient in gradients:
            norm = torch.as_tensor(sharded._global_grad_norm, dtype=torch.float32, device=gradient.device)
            gradient.mul_(1.0 / torch.clamp((norm + 1e-6) / limit, min=1.0))

    optimizer.register_step_pre_hook(clip)


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
