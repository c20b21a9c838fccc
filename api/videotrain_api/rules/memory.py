"""Rows of bucket tables that fit into the memory of a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from videotrain_api.cost.nearest import nearest, spelled
from videotrain_api.cost.stage_memory import GIGA, RowMemory, TrainMemory, worlds_of
from videotrain_api.resource.trainrun import pool_of, pool_path
from videotrain_api.rules.facts import Facts
from videotrain_api.schema import Problem

MOST_ADVICE = 3
"""Ways out that a message tells."""
MOST_ADVISED = 16
"""Rows of a manifest that are told ways out: the webhook has seconds for all 2,048 that there may be."""


def check_memory(facts: Facts) -> Iterator[Problem]:
    """Every row of a stage that trains must fit in the smallest world that the stage may have.

    Only for runs without another problem than too few micro-batches: architectures and layouts have to be right.
    """
    refused = 0
    for index, stage in enumerate(facts.run.spec.stages):
        if stage.train is None or not pool_of(facts.run, stage).gpus_per_node:
            continue
        table, gpus = TrainMemory(facts.run, index), worlds_of(facts.run, stage)[0]
        for number, row in enumerate(stage.train.buckets):
            memory = table.of(number, gpus)
            if not memory.fits:
                refused += 1
                near = islice(nearest(table, number) if refused <= MOST_ADVISED else (), MOST_ADVICE)
                ways = [f"{spelled(change)} ({told(there.total)})" for change, there in near]
                where = f"{pool_path(facts.run, index)}.gpuMemoryGigabytes"
                yield Problem(f"{memory.path}.batchSize", row.batch_size, _refused(memory, ways, where))


def told(amount: int) -> str:
    """Bytes in gigabytes of 10^9, as a table of `videotrain plan` has them."""
    return f"{amount / GIGA:.1f} GB"


def _refused(memory: RowMemory, ways: list[str], field: str) -> str:
    parts = memory.memory
    needed = (
        f"row {memory.row} needs {told(memory.total)} of each of {memory.gpus} GPUs, which have {told(memory.limit)}: "
        f"weights {told(parts.weights)}, gradients {told(parts.gradients)}, optimizer {told(parts.optimizer)}, "
        f"average {told(parts.average)}, activations {told(parts.activations)}, temporaries {told(parts.temporaries)}, "
        f"reserve {told(parts.reserve)}"
    )
    more = f"more nodes, or {field} if the GPUs have more"
    return f"{needed}; it fits with {', or '.join(ways)}; or {more}" if ways else f"{needed}; allowed: {more}"
