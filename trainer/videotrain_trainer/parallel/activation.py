"""What blocks keep for the backward pass, and their compilation, put on a built model from outside.

A policy (`none`, `selective`, `full`) replaces the `forward` of blocks, not the blocks, so parameter names, checkpoints
and weight files do not depend on it. It may change from step to step: a step holds one bucket, and each row of the
bucket table has its policy. What is compiled is a block with its policy, and all blocks of a kind share it, for their
weights are inputs of the compiled code: compiling a block whose `forward` was replaced already would capture nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import cache, partial
from typing import Any

import torch
import torch.fx.experimental._config as shape_guards
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from videotrain_api.resource.stages import ParallelLayout, Recompute
from videotrain_trainer.errors import ConfigError
from videotrain_trainer.networks.autoencoders.interface import Autoencoder
from videotrain_trainer.networks.mmdit.model import MMDiT
from videotrain_trainer.parallel.blocks import blocks_of
from videotrain_trainer.parallel.deepspeed_import import deepspeed

KEPT = frozenset(
    {
        "aten.mm",
        "aten.addmm",
        "aten._scaled_mm",
        "aten.convolution",
        "aten.mkldnn_convolution",
        "aten._scaled_dot_product_cudnn_attention",
        "aten._scaled_dot_product_efficient_attention",
        "aten._scaled_dot_product_flash_attention",
        "aten._scaled_dot_product_flash_attention_for_cpu",
        "flash_attn._flash_attn_forward",
        "vtr.quantized_linear",
        "_c10d_functional.all_to_all_single",
        "_c10d_functional.wait_tensor",
    }
)
"""Operations whose outputs `selective` keeps: all that are dear, or that other ranks take part in. A list of operations
and no budget of memory: torch's own estimate takes attention by cuDNN to be free and has it run again."""


BACKEND = "inductor"
"""Of torch.compile."""
COMPILED_VARIANTS = 128
"""Most graphs of a policy: for each kind of block, one sample or several, with or without gradients, inputs that need
gradients or not, each degree of context parallelism. A stage has 4 to 16; more ends it, rather than going on slowly."""


class TrainedBlocks:
    """The blocks of a model, and what they keep for the backward pass; everything at first.

    Args:
        blocks: that draw no random numbers; no engine has taken the model yet.
        limited: those of them that `full` is for; all if None.
        compiled: run them through torch.compile.
    """

    def __init__(
        self, blocks: Sequence[nn.Module], limited: Collection[nn.Module] | None = None, compiled: bool = False
    ) -> None:
        self._blocks, self._compiled = blocks, compiled
        self._limited = frozenset(blocks if limited is None else limited)
        self._policy: Recompute | None = None
        self.recompute("none")
        for block in blocks:
            # ZeRO stage 3 then gathers a block as a whole, before its `forward`. Between its layers, a gather would be
            # one of the operations that are recorded and compared with those of the backward pass.
            deepspeed.utils.set_z3_leaf_module(block, True)

    def recompute(self, policy: Recompute) -> None:
        """Follow a policy from the next forward pass on."""
        if policy == self._policy:
            return
        for block in self._blocks:
            own = "none" if policy == "full" and block not in self._limited else policy
            # The class keeps the forward pass itself, so a policy replaces the one before it and never wraps it.
            block.forward = partial(_run_compiled, own, block) if self._compiled else partial(FORWARDS[own], block)
        self._policy = policy


def transformer_blocks(model: MMDiT, layout: ParallelLayout, compiled: bool = False) -> TrainedBlocks:
    """The blocks of a transformer.

    Args:
        model: before an engine takes it.
        layout: says to how many blocks of each kind `full` applies.
        compiled: run them through torch.compile.

    Raises:
        ConfigError: the model has fewer.
    """
    double, single = layout.checkpoint_double_blocks, layout.checkpoint_single_blocks
    _check("checkpointDoubleBlocks", double, len(model.double_blocks))
    _check("checkpointSingleBlocks", single, len(model.single_blocks))
    limited = [*model.double_blocks[:double], *model.single_blocks[:single]]
    return TrainedBlocks(blocks_of(model), limited, compiled)


def autoencoder_blocks(model: Autoencoder) -> TrainedBlocks:
    """The blocks of an autoencoder but the last, which the adaptive weight of a discriminator needs whole."""
    return TrainedBlocks(blocks_of(model))


@cache
def compiled(policy: Recompute) -> Callable[..., Any]:
    """A policy's forward pass of any block, compiled as it first runs; shapes may change, graph breaks are errors."""
    # Two sizes that happen to be equal at first would else be taken to be one, and the next shape compiled again.
    shape_guards.use_duck_shape = False
    program: Callable[..., Any] = torch.compile(  # type: ignore[call-overload]
        FORWARDS[policy], backend=BACKEND, dynamic=True, fullgraph=True, recompile_limit=COMPILED_VARIANTS
    )
    return program


def _run_compiled(policy: Recompute, block: nn.Module, *inputs: Any) -> Any:
    # A view is guarded by the tensor behind it. The first block of each kind gets some, for linear layers and the hooks
    # of `fully_shard` return views, and would be compiled apart from those that get another block's output.
    return compiled(policy)(block, *map(_without_base, inputs))


def _without_base(given: Any) -> Any:
    if isinstance(given, torch.Tensor) and given._is_view():
        return torch.ops.aten._unsafe_view(given, given.shape)
    return given


def _keep_all(block: nn.Module, *inputs: Any) -> Any:
    return type(block).forward(block, *inputs)


def _keep_inputs(block: nn.Module, *inputs: Any) -> Any:
    return checkpoint(partial(type(block).forward, block), *inputs, use_reentrant=False, preserve_rng_state=False)


def _keep_what_is_dear(block: nn.Module, *inputs: Any) -> Any:
    return checkpoint(
        partial(type(block).forward, block),
        *inputs,
        use_reentrant=False,
        preserve_rng_state=False,
        context_fn=partial(create_selective_checkpoint_contexts, _policy),
    )


def _policy(_context: Any, operation: Any, *_arguments: Any, **_keywords: Any) -> CheckpointPolicy:
    kept = str(getattr(operation, "overloadpacket", operation)) in KEPT
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


FORWARDS: dict[Recompute, Callable[..., Any]] = {
    "none": _keep_all,
    "selective": _keep_what_is_dear,
    "full": _keep_inputs,
}
"""The forward pass of a block by policy, the block itself being the first argument."""


def _check(field: str, value: int | None, most: int) -> None:
    if value is not None and value > most:
        raise ConfigError(
            f"train.parallel.{field}: {value}, but the model has {most} such blocks; allowed: 0 to {most}, "
            "see spec.model and spec.stages"
        )
