"""The fastest setting of every row that fits: micro-batch, recomputation, context parallelism and engine.

Speed is modelled (`step_time`), memory is arithmetic (`memory`). A step keeps its samples, so training stays the same;
it is only cut up in another way.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import isqrt
from typing import Any, Final, get_args

from videotrain_api import capabilities
from videotrain_api.cost.forecast import row_time
from videotrain_api.cost.nearest import degrees
from videotrain_api.cost.rates import MID
from videotrain_api.cost.stage_memory import RowMemory, RowSetting, TrainMemory, worlds_of
from videotrain_api.resource.stages import Bucket, ParallelLayout, Recompute, TrainTask
from videotrain_api.schema import ApiModel

ENGINES: Final[tuple[Mapping[str, Any], ...]] = (
    {"engine": "deepspeed", "zero_stage": None},
    {"engine": "fsdp2", "zero_stage": None},
)
"""What a stage may be sharded by."""
LAST_RESORT: Final[Mapping[str, Any]] = {"engine": "deepspeed", "zero_stage": 3}
"""Where no other fits: it gathers all weights for every micro-batch, which the model of speed leaves out."""
AS_FAST: Final = 1.02
"""Settings that are so little slower count as equally fast; of them the largest micro-batch is taken, since products of
few rows are slower than the model of speed knows."""
_WHOLE: Final = {"checkpoint_double_blocks": None, "checkpoint_single_blocks": None}
"""`full` for all blocks."""


@dataclass(frozen=True)
class Choice:
    """A setting of a row, and what it gives."""

    bucket: Bucket
    setting: RowSetting
    memory: RowMemory
    """In the smallest world of the stage."""
    seconds_per_step: float
    """Modelled, in its largest world."""

    @property
    def samples_per_second(self) -> float:
        """Of the whole world."""
        return self.setting.batch_size * self.setting.micro_batches / self.seconds_per_step


@dataclass(frozen=True)
class StageSearch:
    """What a search found for a stage."""

    stage: str
    gpus: int
    """Of the largest world."""
    task: TrainTask
    """The stage's task with everything that was found."""
    before: list[Choice]
    """The rows as the manifest has them, whether they fit or not."""
    after: list[Choice]
    """The fastest that fit, in the same order."""


def search_stage(table: TrainMemory) -> StageSearch | None:
    """The engine and settings with the least time for a step of every row, or None if some row fits in no way."""
    task, gpus = table.task, worlds_of(table.run, table.stage)[-1]
    found: list[tuple[float, ParallelLayout, list[Choice]]] = []
    for engine in (*ENGINES, LAST_RESORT):
        if found and engine is LAST_RESORT:
            break
        layout = task.parallel.model_copy(update={**_WHOLE, **engine})
        settings = capabilities.settings_of(task.model_copy(update={"parallel": layout}))
        if any(capabilities.refusals(settings, "train")):
            continue
        best = [_fastest(table, layout, number, gpus) for number in range(len(task.buckets))]
        chosen = [choice for choice in best if choice is not None]
        if len(chosen) == len(best):
            found.append((sum(choice.seconds_per_step for choice in chosen), layout, chosen))
    if not found:
        return None
    _, layout, after = min(found, key=lambda each: each[0])
    before = [_choice(table, task.parallel, number, bucket, gpus) for number, bucket in enumerate(task.buckets)]
    buckets = [_shortened(choice.bucket, layout) for choice in after]
    return StageSearch(
        stage=table.stage.name,
        gpus=gpus,
        task=task.model_copy(update={"parallel": layout, "buckets": buckets}),
        before=before,
        after=after,
    )


def _fastest(table: TrainMemory, layout: ParallelLayout, number: int, gpus: int) -> Choice | None:
    found = list(choices(table, layout, number, gpus))
    least = min((choice.seconds_per_step for choice in found), default=0.0)
    fast = [choice for choice in found if choice.seconds_per_step <= AS_FAST * least]
    best = max(fast, key=lambda choice: (choice.memory.tokens, -choice.seconds_per_step), default=None)
    # Nobody who asks for the fastest wants to be given something slower than what stands in the manifest.
    setting = table.setting(table.task.buckets[number], table.task.parallel)
    present = replace(setting, engine=layout.engine, zero_stage=layout.deepspeed_stage)
    as_now = [choice for choice in fast if choice.setting == present]
    return min([best, *as_now], key=lambda choice: choice.seconds_per_step) if best else None


def choices(table: TrainMemory, layout: ParallelLayout, number: int, gpus: int, slack: float = 1.0) -> Iterator[Choice]:
    """Settings of a row that fit: of each degree and policy the sizes that make as many samples, up to the largest.

    Args:
        table: of the stage.
        layout: engine and what is common to all rows.
        number: of the row.
        gpus: of the largest world, of which no GPU may be without a micro-batch.
        slack: how much of the limit may be needed; above 1 for those who measure.
    """
    row = table.task.buckets[number]
    samples = row.batch_size * table.task.parallel.micro_batches_of(row)
    sizes = _divisors(samples)
    for degree, policy in product(degrees(table), get_args(Recompute)):
        for size in sizes:
            if samples // size < gpus // degree:
                break
            changes = {"micro_batches": samples // size, "context_parallel": degree, "recompute": policy}
            bucket = row.model_copy(update={"batch_size": size, **changes})
            choice = _choice(table, layout, number, bucket, gpus)
            if choice.memory.total > slack * choice.memory.limit:
                break
            yield choice


def pasted_fields(buckets: Sequence[Bucket], layout: ParallelLayout) -> dict[str, Any]:
    """`buckets` and `parallel` of a stage with these settings, in the fields of the manifest."""

    def written(part: ApiModel) -> dict[str, Any]:
        return part.model_dump(mode="json", by_alias=True, exclude_defaults=True)

    rows = [_shortened(bucket, layout) for bucket in buckets]
    return {"buckets": [written(row) for row in rows], "parallel": written(layout)}


def _divisors(number: int) -> list[int]:
    small = [n for n in range(1, isqrt(number) + 1) if number % n == 0]
    return sorted({*small, *(number // n for n in small)})


def _choice(table: TrainMemory, layout: ParallelLayout, number: int, bucket: Bucket, gpus: int) -> Choice:
    setting = table.setting(bucket, layout)
    memory = table.of(number, worlds_of(table.run, table.stage)[0], setting)
    task = table.task.model_copy(update={"parallel": layout})
    return Choice(bucket, setting, memory, row_time(table.run, task, bucket, gpus, MID, table.pool.gpus_per_node).total)


def _shortened(bucket: Bucket, layout: ParallelLayout) -> Bucket:
    """The row without what the layout says anyway."""
    said = {
        "micro_batches": layout.micro_batches_per_step,
        "context_parallel": layout.context_parallel,
        "recompute": layout.recompute,
    }
    return bucket.model_copy(update={name: None for name, value in said.items() if getattr(bucket, name) == value})
