"""One optimizer step of one rank: queued first, and read when the next one is queued.

The device so never waits for the host: it has the next step before anyone asks what came of this one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from videotrain_trainer.data.loader import MicroBatchLoader, SampleKey
from videotrain_trainer.data.sample_order import AppendedSet, OrderState, StepOrder
from videotrain_trainer.data.sample_reader import ReadingCounts
from videotrain_trainer.data.sets import TrainingSet
from videotrain_trainer.errors import TrainerError
from videotrain_trainer.networks.weights import Fragments
from videotrain_trainer.parallel.check_models import CheckModel
from videotrain_trainer.parallel.data_parallel import Share
from videotrain_trainer.parallel.engine import Engine, TrainedTask
from videotrain_trainer.parallel.peers import WorldPeers
from videotrain_trainer.reconstruction.joint_engine import AdversarialEngine
from videotrain_trainer.training.ema import decay_at, update_average
from videotrain_trainer.training.optim import learning_rate
from videotrain_trainer.training.step_flops import MicroBatchWork, together
from videotrain_trainer.training.step_result import (
    RankStep,
    StepResult,
    Wishes,
    check_finite,
    check_groups,
    samples_hash,
    world_result,
)
from videotrain_trainer.training.timing import Marks, Timeline, take_memory_peak
from videotrain_trainer.worker.stage_context import World

Model = Callable[..., Any]


class Loss(Protocol):
    """A scalar tensor, or several that belong together; see `videotrain_trainer.reconstruction.adaptive_weight`."""

    def __mul__(self, factor: float, /) -> Any: ...

    def detach(self) -> Tensor:
        """The value to report, without its graph."""


@runtime_checkable
class HasBase(Protocol):
    """An objective that may train an adapter."""

    @property
    def base(self) -> Fragments | None:
        """The frozen weights under an adapter, which is all that an engine may have of them; None without one."""


@runtime_checkable
class Grows(Protocol):
    """An objective whose data may be appended to while it is trained."""

    @property
    def appended_every(self) -> int | None:
        """Steps between looks for sets that were appended; None for none."""

    def decide(
        self, step: int, known: Sequence[AppendedSet], refused: Callable[[TrainerError], None]
    ) -> list[AppendedSet]:
        """What is taken in behind a step and was not known; `refused` is told of what cannot be. On rank 0 alone."""

    def take_in(self, appended: Sequence[AppendedSet]) -> None:
        """Have the samples of these sets, too: of all that were ever taken in, in order of steps."""

    def passed_over(self) -> dict[str, int]:
        """How many sets were appended to those of a stage that does not look for them, by URI."""


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
        """The model, float32: its trained parameters on the CPU, or on the `meta` device, without memory."""

    @property
    def data(self) -> TrainingSet:
        """Samples and their order."""

    def first_weights(self) -> Fragments | None:
        """The model's first weights, if it is on the `meta` device; else it is given them here. Not called if there is
        a checkpoint.
        """

    @property
    def attention(self) -> str | None:
        """Kernel that attention runs on; None if the model has none."""

    def compile_ahead(self) -> None:
        """Compile what the steps will run; called before an engine takes the model and the device's memory."""

    def export_metadata(self, weights: Mapping[str, Tensor], /) -> dict[str, str]:
        """What is stored with the final weights for those who load them; on rank 0 alone, after the last step."""

    def check_model(self, world: World, /) -> CheckModel:
        """A small model of the same kinds of layers, run as the stage runs its own."""

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
class QueuedStep:
    """A step of this rank that the device has still to do."""

    order: StepOrder
    learning_rate: float
    trained: list[MicroBatchIds]
    share: Share
    work: MicroBatchWork
    """Of its group, if it leads it."""
    values: Tensor
    """Losses of its micro-batches, gradient norm and the discriminator's, float64 on the host. To be read once `marks`
    are passed."""
    marks: Marks
    memory_bytes: int
    """Most that the device held since the step before."""


class Stepper:
    """Runs optimizer steps.

    Args:
        objective: what is learned.
        engine: the sharded model.
        loader: of this rank's micro-batches.
        peers: the world.
        shares: of this rank, in a step of each bucket.
        device: of the work.
    """

    def __init__(
        self,
        objective: Objective,
        engine: Engine | AdversarialEngine,
        loader: MicroBatchLoader[Any, Any],
        peers: WorldPeers,
        shares: Sequence[Share],
        device: torch.device,
    ) -> None:
        self._objective = objective
        self._engine = engine
        self._loader = loader
        self._peers = peers
        self._shares = shares
        self._device = device
        self._timeline = Timeline(device)
        self._reading = ReadingCounts()
        engine.around_update(lambda: self._timeline.mark("communication"), lambda: self._timeline.mark("optimizer"))

    def share_as(self, shares: Sequence[Share]) -> None:
        """Go on with shares of the buckets of an order that has grown."""
        self._shares = shares

    def queue(self, order: StepOrder) -> QueuedStep:
        """Give the device a step to do. No value is read from it."""
        task = self._objective.task
        share = self._shares[order.bucket_index]
        losses, works, trained = [], [], []
        self._timeline.begin()
        for micro_batch, scale, last in share.turns(self._engine.in_step):
            if scale:
                batch: KeyedBatch = self._loader.fetch(order, micro_batch)
                self._timeline.mark("data")
                loss, work = self._objective.loss(self._engine, batch)
                self._timeline.mark("forward")
                self._engine.backward(loss * scale, last)
                self._timeline.mark("backward")
                losses.append(loss.detach())
                works.append(work)
                trained.append(MicroBatchIds(micro_batch, [key.uid for key in batch.keys]))
            else:
                # The batch at hand once more: nothing is trained, others are waited for.
                loss, _ = self._objective.loss(self._engine, batch)
                self._engine.backward(loss * scale, last)
                self._timeline.mark("communication")
        rate = learning_rate(task.optimizer, order.step)
        norm = self._engine.step(rate)
        self._timeline.mark("communication")
        if task.ema_decay:
            decay = decay_at(task.ema_decay, order.step)
            update_average(self._engine.shards.averages, self._engine.shards.masters, decay)
            self._timeline.mark("optimizer")
        # Into page-locked memory, so that the host does not wait; the last mark comes behind the copy.
        values = torch.stack([value.double() for value in (*losses, norm, self._engine.critic_norm)])
        return QueuedStep(
            order=order,
            learning_rate=rate,
            trained=trained,
            share=share,
            work=together(works if share.leads else []),
            values=values.to("cpu", non_blocking=True),
            marks=self._timeline.end(),
            memory_bytes=take_memory_peak(self._device),
        )

    def read(self, queued: QueuedStep, wishes: Callable[[], Wishes]) -> StepResult:
        """What came of a step. Waits for the device, and for all ranks. Collective.

        Args:
            queued: the oldest step that was not read yet.
            wishes: of this process; called once the device is done.

        Raises:
            Diverged: loss or gradient norm is not finite, on any rank.
        """
        finished_at = queued.marks.wait()
        *losses, norm, critic_norm = queued.values.tolist()
        work, phases = queued.work, queued.marks.totals()
        before, reading = self._reading, self._loader.reading()
        self._reading = reading
        row = RankStep(
            # The losses of a group's ranks have the micro-batch's as their mean.
            loss=sum(losses) / queued.share.degree,
            gradient_norm=norm,
            critic_norm=critic_norm,
            samples=work.samples,
            tokens=work.tokens,
            model_flops=work.model_flops,
            hardware_flops=work.hardware_flops,
            useful_flops=work.useful_flops,
            micro_batches=len(losses),
            samples_hash=samples_hash(uid for found in queued.trained for uid in found.ids),
            **phases,
            memory=queued.memory_bytes,
            requests=reading.requests - before.requests,
            second=reading.second - before.second,
            again=reading.again - before.again,
            slowest_sample=reading.slowest_us,
            cache_hits=reading.cache_hits - before.cache_hits,
            cache_misses=reading.cache_misses - before.cache_misses,
            cache_bytes=reading.cache_bytes,
            **wishes()._asdict(),
        )
        table = self._peers.table(row)
        check_finite(table, queued.order)
        check_groups(table, queued.share.degree, queued.order)
        return world_result(table, queued.order, finished_at, queued.learning_rate)
