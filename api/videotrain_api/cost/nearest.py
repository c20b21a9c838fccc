"""Settings near a row's own that a GPU's memory has room for, with as many samples in a step."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations, product
from typing import Any, Final, Literal, get_args

from videotrain_api import capabilities
from videotrain_api.cost.stage_memory import RowMemory, RowSetting, TrainMemory, worlds_of
from videotrain_api.cost.work import waiting
from videotrain_api.resource.stages import Recompute

Kind = Literal["zero_stage", "recompute", "context_parallel", "batch_size"]
Change = Mapping[str, Any]
"""New values of a setting by attribute."""
MOST_SIZES: Final = 1000
"""Sizes of a micro-batch that are tried, from the largest that fits downwards."""
MOST_WASTE: Final = 1.15
"""By how much uneven micro-batches may lengthen a step."""
_WIRE: Final = {
    "recompute": "recompute",
    "batch_size": "batchSize",
    "micro_batches": "microBatches",
    "context_parallel": "contextParallel",
    "engine": "engine",
    "zero_stage": "zeroStage",
    "frames": "frames",
    "resolution": "resolution",
}


def nearest(table: TrainMemory, number: int) -> Iterator[tuple[Change, RowMemory]]:
    """Changes that make a row fit in the smallest world of its stage: one of each kind, or of two kinds if none does.

    Args:
        table: of the stage.
        number: of a row that does not fit.
    """
    setting, gpus = table.setting(table.task.buckets[number]), worlds_of(table.run, table.stage)[0]
    kinds = _kinds(table, setting)
    for together in (1, 2, 3):
        found = False
        for names in combinations(kinds, together):
            chosen = {name: kinds[name] for name in names}
            best = next(_fitting(table, number, gpus, setting, chosen), None)
            if best is not None:
                yield best
                found = True
        if found:
            return


def _kinds(table: TrainMemory, setting: RowSetting) -> dict[Kind, list[Change]]:
    """Each kind of change that saves memory, the smallest first; the kinds by what they cost in speed."""
    task, sharded = capabilities.settings_of(table.task), []
    if setting.engine == "deepspeed":
        higher = [stage for stage in (2, 3) if stage > setting.zero_stage]
        sharded = [one for one in higher if not any(capabilities.refusals(task | {"zero_stage": one}, "train"))]
    kinds: dict[Kind, list[Change]] = {
        "zero_stage": [{"zero_stage": stage} for stage in sharded],
        "recompute": [{"recompute": policy} for policy in less_kept(setting)],
        "batch_size": [{}] if setting.batch_size > 1 else [],
        "context_parallel": [{"context_parallel": n} for n in degrees(table) if n > setting.context_parallel],
    }
    return {kind: changes for kind, changes in kinds.items() if changes}


def _fitting(
    table: TrainMemory, number: int, gpus: int, setting: RowSetting, chosen: Mapping[Kind, list[Change]]
) -> Iterator[tuple[Change, RowMemory]]:
    for parts in product(*chosen.values()):
        change = {name: value for part in parts for name, value in part.items()}
        if "batch_size" in chosen:
            size = largest_batch(table, number, gpus, replace(setting, **change))
            if size is None:
                continue
            change |= {"batch_size": size, "micro_batches": setting.batch_size * setting.micro_batches // size}
        memory = table.of(number, gpus, replace(setting, **change))
        if memory.fits:
            yield change, memory


def largest_batch(table: TrainMemory, number: int, gpus: int, setting: RowSetting) -> int | None:
    """Largest micro-batch below a setting's own that fits and makes as many samples of a step without much waiting."""
    samples, groups = setting.batch_size * setting.micro_batches, gpus_most(table) // setting.context_parallel

    def needs(size: int) -> int:
        return table.of(number, gpus, replace(setting, batch_size=size)).total

    fitting = bisect_right(range(1, setting.batch_size), table.limit, key=needs)
    for size in range(fitting, max(0, fitting - MOST_SIZES), -1):
        if samples % size == 0 and waiting(samples // size, groups) <= MOST_WASTE:
            return size
    return None


def gpus_most(table: TrainMemory) -> int:
    """GPUs of the largest world of the stage."""
    return worlds_of(table.run, table.stage)[-1]


def less_kept(setting: RowSetting) -> Sequence[Recompute]:
    """Policies that keep less than a setting's own."""
    policies = get_args(Recompute)
    return policies[policies.index(setting.recompute) + 1 :]


def degrees(table: TrainMemory) -> list[int]:
    """Degrees of context parallelism that every world of the stage can have, within a node and the heads."""
    gpus, heads = table.pool.gpus_per_node, table.shape.heads
    return [n for n in range(1, gpus + 1) if gpus % n == 0 and heads % n == 0]


def spelled(change: Change) -> str:
    """A change in the fields of the manifest: `batchSize: 6, microBatches: 448`."""
    return ", ".join(f"{_WIRE[name]}: {value}" for name, value in change.items())
