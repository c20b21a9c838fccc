"""One optimizer step of one rank: its micro-batches, the update, and what the world did."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

from torch import Tensor, nn

from videotrain_api.resource.stages import Optimizer, ParallelLayout
from videotrain_trainer.data.loader import MicroBatchLoader, SampleKey
from videotrain_trainer.data.sample_order import OrderState, StepOrder
from videotrain_trainer.data.sets import TrainingSet
from videotrain_trainer.errors import Diverged
from videotrain_trainer.parallel.data_parallel import Share
from videotrain_trainer.parallel.engine import Engine
from videotrain_trainer.parallel.peers import WorldPeers
from videotrain_trainer.reconstruction.joint_engine import AdversarialEngine
from videotrain_trainer.training.ema import decay_at, update_average
from videotrain_trainer.training.optim import learning_rate
from videotrain_trainer.training.step_flops import MicroBatchWork
from videotrain_trainer.training.timing import Spans

Model = Callable[..., Any]


class Loss(Protocol):
    """A scalar tensor, or several that belong together; see `videotrain_trainer.reconstruction.adaptive_weight`."""

    def __mul__(self, factor: float, /) -> Any: ...

    def detach(self) -> Tensor:
        """The value to report, without its graph."""


class TrainedTask(Protocol):
    """What `train` and `autoencoder` tasks have in common."""

    @property
    def optimizer(self) -> Optimizer:
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


class KeyedBatch(Protocol):
    """A micro-batch that knows its samples."""

    @property
    def keys(self) -> Sequence[SampleKey]:
        """What each sample's random numbers are keyed by, one per sample."""


class Objective(Protocol):
    """What a stage learns, and from what."""

    @property
    def task(self) -> TrainedTask:
        """The stage's task, as configured."""

    @property
    def module(self) -> nn.Module:
        """The model, float32, on the CPU."""

    @property
    def data(self) -> TrainingSet:
        """Samples and their order."""

    def initialize(self) -> None:
        """Give the model its first weights; not called if a checkpoint is loaded."""

    def export_metadata(self, weights: Mapping[str, Tensor], /) -> dict[str, str]:
        """What is stored with the final weights for those who load them; on rank 0 alone, after the last step."""

    def loader(self, state: OrderState, micro_batches: Sequence[Sequence[int]]) -> MicroBatchLoader[Any, Any]:
        """Batches of this rank's micro-batches of every bucket, from `state` on."""

    def loss(self, model: Model, batch: Any) -> tuple[Loss, MicroBatchWork]:
        """Mean loss of a micro-batch, scalar float32, and its work; randomness depends on the keys.

        Ranks that share a micro-batch each have another loss; their mean is that of the micro-batch.
        """


@dataclass(frozen=True)
class MicroBatchIds:
    """Samples that a micro-batch really trained on."""

    micro_batch: int
    ids: list[str]


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """One step of the whole world, equal on all ranks except `trained`."""

    finished_at: datetime
    loss: float
    """Mean over all micro-batches."""
    gradient_norm: float
    learning_rate: float
    samples: int
    tokens: int
    model_flops: float
    data_stall_us: int
    """Of the rank that waited longest."""
    world_spread: float
    drain: bool
    """Some process was asked to stop."""
    save: bool
    """A checkpoint is due by the clock of rank 0."""
    trained: list[MicroBatchIds]
    """Of this rank, if it speaks for its group."""


class Stepper:
    """Runs optimizer steps.

    Args:
        objective: what is learned.
        engine: the sharded model.
        loader: of this rank's micro-batches.
        peers: the world.
        shares: of this rank, in a step of each bucket.
        spans: times of this rank.
    """

    def __init__(
        self,
        objective: Objective,
        engine: Engine | AdversarialEngine,
        loader: MicroBatchLoader[Any, Any],
        peers: WorldPeers,
        shares: Sequence[Share],
        spans: Spans,
    ) -> None:
        self._objective = objective
        self._engine = engine
        self._loader = loader
        self._peers = peers
        self._shares = shares
        self._spans = spans

    def run(self, order: StepOrder, drain_requested: bool, save_due: bool) -> StepResult:
        """Train on one step.

        Args:
            order: of its samples.
            drain_requested: this process was asked to stop.
            save_due: by this process's clock a checkpoint is due; told by one rank only.

        Raises:
            Diverged: loss or gradient norm is not finite.
        """
        task = self._objective.task
        share = self._shares[order.bucket_index]
        losses, works, trained = [], [], []
        for micro_batch in share.micro_batches:
            loss, work, ids = self._micro_batch(order, micro_batch, share.scale)
            losses.append(loss)
            works.append(work)
            trained.append(MicroBatchIds(micro_batch, ids))
        rate = learning_rate(task.optimizer, order.step)
        norm = self._engine.step(rate)
        if task.ema_decay:
            decay = decay_at(task.ema_decay, order.step)
            update_average(self._engine.shards.averages, self._engine.shards.masters, decay)
        # Losses of a group have the micro-batch's as their mean; its samples, tokens and FLOPs are told by one rank.
        row = [sum(float(loss) for loss in losses) / share.degree, *_total(works if share.leads else [])]
        row += [float(drain_requested), float(save_due)]
        table = self._peers.table([*row, self._spans.take("data"), self._spans.take("compute")])
        loss_sum, samples, tokens, flops, drains, saves, _, _ = table.sum(dim=0).tolist()
        result = StepResult(
            finished_at=datetime.now(UTC),
            loss=loss_sum / len(order.micro_batches),
            gradient_norm=norm,
            learning_rate=rate,
            samples=int(samples),
            tokens=int(tokens),
            model_flops=flops,
            data_stall_us=int(table[:, 6].max()),
            world_spread=_spread(table[:, 7]),
            drain=drains > 0,
            save=saves > 0,
            trained=trained if share.leads else [],
        )
        _check_finite(result, order)
        return result

    def _micro_batch(
        self, order: StepOrder, micro_batch: int, scale: float
    ) -> tuple[Tensor, MicroBatchWork, list[str]]:
        with self._spans.measure("data"):
            batch: KeyedBatch = self._loader.fetch(order, micro_batch)
        with self._spans.measure("compute", on_device=True):
            loss, work = self._objective.loss(self._engine, batch)
            self._engine.backward(loss * scale)
        return loss.detach(), work, [key.uid for key in batch.keys]


def _total(works: Sequence[MicroBatchWork]) -> tuple[int, int, float]:
    return (
        sum(work.samples for work in works),
        sum(work.tokens for work in works),
        sum(work.model_flops for work in works),
    )


def _spread(compute_us: Tensor) -> float:
    mean = float(compute_us.mean())
    return float(compute_us.max() - compute_us.min()) / mean if mean else 0.0


def _check_finite(result: StepResult, order: StepOrder) -> None:
    for what, value in (("loss", result.loss), ("gradient norm", result.gradient_norm)):
        if not math.isfinite(value):
            raise Diverged(
                f"step {order.step} (bucket {order.bucket}): the {what} is {value}; lower optimizer.learningRate, add "
                "warmupSteps or look at the step's samples"
            )
