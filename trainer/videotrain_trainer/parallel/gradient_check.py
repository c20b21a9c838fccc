"""Whether gradients survive the engine and the layout of this world, asked at every start.

A small model of the stage's kinds of layers goes through the stage's own engine, options, ranks and groups, and what
comes out is compared with plain sums of the gradients that every rank finds without any of them. So a release of a
library, a driver or a layout that loses gradients ends the generation before it has trained on them.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Final

import torch
from torch import Tensor, nn

from videotrain_api.records import GradientCheck
from videotrain_trainer.errors import GradientsLost
from videotrain_trainer.parallel.activation import TrainedBlocks
from videotrain_trainer.parallel.blocks import blocks_of
from videotrain_trainer.parallel.build import shard_model
from videotrain_trainer.parallel.check_models import CheckCase, CheckModel
from videotrain_trainer.parallel.data_parallel import Share, share_of
from videotrain_trainer.parallel.engine import Engine, EngineOptions, materialise
from videotrain_trainer.parallel.peers import WorldPeers
from videotrain_trainer.sharded_state import numel, packed_length
from videotrain_trainer.worker.stage_context import World

BOUNDS: Final = {"bf16": 0.05, "fp32": 1e-4}
"""Largest relative difference of the gradient of a part, about ten times what another order of roundings makes of it.
A rank's gradient that is lost from one part alone is 1 over the root of the ranks: 0.067 of 224."""
UNCLIPPED: Final = 1e30
"""Gradient norm that no gradient has."""


def check_gradients(model: CheckModel, options: EngineOptions, world: World, peers: WorldPeers) -> GradientCheck:
    """Compare the engine's gradients with plain sums. Collective.

    Args:
        model: what is trained for it.
        options: of the stage.
        world: this process.
        peers: the world.

    Raises:
        GradientsLost: they differ; on all ranks.
        ConfigError: the options exclude each other.
    """
    began = time.monotonic()
    module, plain = model.build(), model.build()
    blocks = TrainedBlocks(blocks_of(module))
    # Without a decay the first moment is the gradient, as the optimizer got it; at no rate the weights stay.
    optimizer = options.optimizer.model_copy(update={"beta1": 0.0, "gradient_clip": UNCLIPPED})
    engine = shard_model(module, replace(options, keep_average=False, optimizer=optimizer), world)
    materialise(plain, world.device, options.dtype)
    parts = _Parts(engine, model)
    worst, bound = 0.0, BOUNDS[options.precision]
    for case in model.cases:
        blocks.recompute(case.policy)
        degree = case.group.degree if case.group else 1
        # One more than there are groups, so that one of them has two and the others run one of no weight.
        micro_batches = world.size // degree + 1
        share = share_of(world.rank, world.size, micro_batches, degree)
        _engine_gradients(engine, model, case, share)
        expected = _plain_gradients(plain, model, share, micro_batches, peers)
        error, part = parts.worst(expected, peers)
        if not error <= bound:
            raise GradientsLost(
                f"gradient check: {_name(options)} on {world.size} processes, contextParallel {degree}, recompute "
                f"{case.policy}: gradients of {part} differ from plain sums by {error:.2g} of their size, at most "
                f"{bound:g} is rounding. Nothing was trained on them; use another parallel.engine or "
                "parallel.zeroStage, and if this happens on one node alone, replace it"
            )
        worst = max(worst, error)
    seconds = time.monotonic() - began
    return GradientCheck(
        engine=_name(options), cases=len(model.cases), worst_error=worst, bound=bound, duration_us=int(seconds * 1e6)
    )


def _name(options: EngineOptions) -> str:
    engine = options.engine if options.engine == "fsdp2" else f"{options.engine} zeroStage {options.zero_stage}"
    offload = "" if options.offload == "none" else f", offload {options.offload}"
    return f"{engine}{offload}, {options.precision}"


def _engine_gradients(engine: Engine, model: CheckModel, case: CheckCase, share: Share) -> None:
    """A step as the loop makes it."""
    for micro_batch, scale, last in share.turns(engine.in_step):
        engine.backward(model.loss(engine, micro_batch, case.group) * scale, last)
    engine.step(0.0)


def _plain_gradients(plain: nn.Module, model: CheckModel, share: Share, count: int, peers: WorldPeers) -> Tensor:
    """Gradients of all parameters as one float32 vector on the host, the same on all ranks. Collective."""
    parameters = list(plain.parameters())
    total = torch.zeros(sum(parameter.numel() for parameter in parameters))
    for number in share.micro_batches:
        loss = model.loss(plain, number, None) / count
        gradients = torch.autograd.grad(loss, parameters)
        total += torch.cat([gradient.float().flatten() for gradient in gradients]).cpu()
    # Every rank of a group has found the gradients of the group.
    return peers.sum(total) / share.degree


class _Parts:
    """Where the elements of the model belong: to a block, to the rest, or to a row of the last layer."""

    def __init__(self, engine: Engine, model: CheckModel) -> None:
        self._shards = engine.shards
        self._names: dict[str, int] = {}
        self._first: dict[str, int] = {}
        of_element: list[Tensor] = []
        for name, shape in engine.shards.shapes.items():
            self._first[name] = sum(numbers.numel() for numbers in of_element)
            pieces = name.split(".")
            owner = ".".join(pieces[:2]) if len(pieces) > 1 and pieces[1].isdigit() else "the layers beside the blocks"
            if name in model.rows:
                numbers = torch.tensor([self._number(f"{name}[{row}]") for row in range(shape[0])])
                of_element.append(numbers.repeat_interleave(numel(shape[1:])))
            else:
                of_element.append(torch.full((numel(shape),), self._number(owner)))
        self._of_element = torch.cat(of_element)

    def _number(self, part: str) -> int:
        return self._names.setdefault(part, len(self._names))

    def worst(self, expected: Tensor, peers: WorldPeers) -> tuple[float, str]:
        """The largest relative difference of a part and its name; infinite if one is not finite. Collective."""
        found = torch.empty(packed_length(self._shards.saved))
        self._shards.read("exp_avg", found)
        squares = torch.zeros(2, len(self._names), dtype=torch.float64)
        for piece in self._shards.saved:
            start = self._first[piece.parameter] + piece.start
            want, where = (whole[start : start + piece.length] for whole in (expected, self._of_element))
            got = found[piece.offset : piece.offset + piece.length]
            squares[0].index_add_(0, where, (got - want).double().square())
            squares[1].index_add_(0, where, want.double().square())
        error, size = peers.table(squares.flatten().tolist()).sum(dim=0).view(2, -1).sqrt()
        # A row that no micro-batch of the case reaches has no gradient, and must get none.
        relative = torch.where(error == 0, 0.0, error / size).nan_to_num(nan=torch.inf)
        return float(relative.max()), list(self._names)[int(relative.argmax())]
