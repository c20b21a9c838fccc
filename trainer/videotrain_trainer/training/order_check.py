"""From what every rank trained on to the order lines of a checkpoint, checked against the plan."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Final

from pydantic import TypeAdapter

from videotrain_api.storage.artifacts import OrderLine, SourceIds
from videotrain_trainer.data.loader import SPARES
from videotrain_trainer.data.sample_order import StepOrder
from videotrain_trainer.data.sets import TrainingSet
from videotrain_trainer.errors import TrainerError
from videotrain_trainer.training.step import MicroBatchIds


@dataclass
class TrainedSteps:
    """What one rank trained on since the last checkpoint."""

    steps: list[StepOrder] = field(default_factory=list)
    trained: list[list[MicroBatchIds]] = field(default_factory=list)
    """For every step, this rank's micro-batches."""

    def add(self, order: StepOrder, trained: list[MicroBatchIds]) -> None:
        """Note a finished step."""
        self.steps.append(order)
        self.trained.append(trained)

    def clear(self) -> None:
        """Begin anew after a checkpoint."""
        self.steps.clear()
        self.trained.clear()


@dataclass(frozen=True)
class RankSteps:
    """What a rank sends to rank 0."""

    trained: list[list[MicroBatchIds]]
    skipped: frozenset[str]
    """Uids of damaged samples."""


RANK_STEPS: Final = TypeAdapter(RankSteps)


def order_lines(data: TrainingSet, steps: Sequence[StepOrder], ranks: Sequence[RankSteps]) -> list[OrderLine]:
    """One line per step, micro-batch after micro-batch.

    Args:
        data: the samples and their order.
        steps: the plan of the steps since the last checkpoint.
        ranks: what each rank trained on.

    Raises:
        TrainerError: a micro-batch was trained on not once, or on other samples than planned.
    """
    skipped = frozenset().union(*(rank.skipped for rank in ranks))
    lines = []
    for number, order in enumerate(steps):
        done = sorted(
            (micro_batch for rank in ranks for micro_batch in rank.trained[number]), key=lambda found: found.micro_batch
        )
        if [found.micro_batch for found in done] != list(range(len(order.micro_batches))):
            raise TrainerError(
                f"step {order.step}: micro-batches {[found.micro_batch for found in done]} instead of each one once"
            )
        for found in done:
            _check_micro_batch(data, order, found, skipped)
        ids = [uid for found in done for uid in found.ids]
        sources = _sources(data, order) if data.plan.sources else None
        lines.append(OrderLine(step=order.step, epoch=order.epoch, bucket=order.bucket, ids=ids, sources=sources))
    return lines


def _sources(data: TrainingSet, order: StepOrder) -> list[SourceIds]:
    """The sources of a step's samples; one that stands in for a damaged sample is of the same source."""
    planned = [index for micro_batch in order.micro_batches for index in micro_batch]
    places: dict[int, list[int]] = {}
    for place, index in enumerate(planned):
        places.setdefault(data.plan.source_of(order.bucket_index, index), []).append(place)
    return [
        SourceIds(name=data.plan.sources[source], epoch=order.source_epochs[source], places=places[source])
        for source in sorted(places)
    ]


def _check_micro_batch(data: TrainingSet, order: StepOrder, found: MicroBatchIds, skipped: Collection[str]) -> None:
    planned = order.micro_batches[found.micro_batch]
    for index, position, uid in zip(planned, order.positions[found.micro_batch], found.ids, strict=True):
        bucket, expected = order.bucket_index, data.uid(order.bucket_index, index)
        spares = (data.uid(bucket, data.plan.spare(bucket, index, position, number)) for number in range(1, SPARES + 1))
        if uid != expected and not (expected in skipped and uid in spares):
            raise TrainerError(
                f"step {order.step}, micro-batch {found.micro_batch}: trained on sample {uid} where the order "
                f"has {expected}"
            )
