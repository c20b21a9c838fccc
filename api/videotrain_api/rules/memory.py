"""Stages that fit into the memory of a GPU."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice

from videotrain_api.config import presets
from videotrain_api.cost import clip_nearest
from videotrain_api.cost.clip_stage_memory import (
    COUNTED,
    AutoencoderMemory,
    CodingMemory,
    drawing,
    drawing_between_steps,
    encode_rows,
    reconstructing,
)
from videotrain_api.cost.nearest import nearest, spelled
from videotrain_api.cost.stage_memory import GIGA, RowMemory, TrainMemory, worlds_of
from videotrain_api.resource.stages import Stage, TrainingSamples
from videotrain_api.resource.stored_status import LARGEST_GROUP
from videotrain_api.resource.trainrun import VideoTrainingRun, pool_of, pool_path
from videotrain_api.rules.facts import Facts
from videotrain_api.schema import Problem

MOST_ADVICE = 3
"""Ways out that a message tells."""
MOST_ADVISED = 16
"""Rows of a manifest that are told ways out: the webhook has seconds for all 2,048 that there may be."""


def check_memory(facts: Facts) -> Iterator[Problem]:
    """Every row of a stage that trains must fit in the smallest world that the stage may have; clips that are encoded
    and videos that are drawn must fit on one GPU.

    Only for runs without another problem than too few micro-batches: architectures and layouts have to be right.
    """
    refused = 0
    for index, stage in enumerate(facts.run.spec.stages):
        for problem in _of_stage(facts, index, stage, MOST_ADVISED - refused):
            refused += 1
            yield problem


def _of_stage(facts: Facts, index: int, stage: Stage, advised: int) -> Iterator[Problem]:
    if not pool_of(facts.run, stage).gpus_per_node:
        return
    counted = facts.autoencoder is not None and facts.autoencoder.kind in COUNTED
    if stage.train is not None:
        yield from _trained(TrainMemory(facts.run, index), advised)
        if counted and stage.train.samples is not None:
            yield from _drawn_between_steps(facts, index, stage.train.samples, advised)
    elif stage.autoencoder is not None and counted:
        yield from _autoencoder(AutoencoderMemory(facts.run, index), advised)
    elif stage.encode is not None and counted and facts.model is not None:
        yield from _encoded(facts, index, advised)
    elif stage.sample is not None and counted:
        yield from _drawn(facts, index, advised)
    elif stage.evaluate is not None and stage.evaluate.reconstruction is not None and facts.autoencoder and counted:
        task = stage.evaluate.reconstruction
        memory = reconstructing(facts.run, index, task, facts.autoencoder)
        if not memory.fits:
            where = f"{memory.path}.reconstruction.frames"
            yield Problem(where, task.frames, _too_large(memory, [], _pool_memory(facts.run, index)))


def _trained(table: TrainMemory, advised: int) -> Iterator[Problem]:
    gpus, refused = worlds_of(table.run, table.stage)[0], 0
    for number, row in enumerate(table.task.buckets):
        memory = table.of(number, gpus)
        if not memory.fits:
            advise = refused < advised
            near = islice(nearest(table, number) if advise else (), MOST_ADVICE)
            refused += 1
            ways = [f"{spelled(change)} ({told(there.total)})" for change, there in near]
            enough = _enough_nodes(partial(_fits, table, number), gpus, table.pool.gpus_per_node) if advise else None
            yield Problem(
                f"{memory.path}.batchSize",
                row.batch_size,
                _refused(memory, ways, enough, _pool_memory(table.run, table.index)),
            )


def _autoencoder(table: AutoencoderMemory, advised: int) -> Iterator[Problem]:
    gpus = worlds_of(table.run, table.stage)[0]
    memory = table.of(gpus)
    if not memory.fits:
        near = islice(clip_nearest.training(table) if advised > 0 else (), MOST_ADVICE)
        ways = [f"{spelled(change)} ({told(there.total)})" for change, there in near]
        per_node = pool_of(table.run, table.stage).gpus_per_node
        enough = _enough_nodes(lambda more: table.of(more).fits, gpus, per_node) if advised > 0 else None
        yield Problem(
            f"{memory.path}.batchSize",
            table.task.bucket.batch_size,
            _refused(memory, ways, enough, _pool_memory(table.run, table.index)),
        )


def _fits(table: TrainMemory, row: int, gpus: int) -> bool:
    return table.of(row, gpus).fits


def _enough_nodes(fits: Callable[[int], bool], gpus: int, per_node: int) -> int | None:
    """Fewest nodes in whose world of GPUs it fits, more than those of `gpus`; None if that is never so."""
    nodes = range(gpus // per_node + 1, LARGEST_GROUP + 1)
    found = bisect_left(nodes, True, key=lambda count: fits(count * per_node))
    return nodes[found] if found < len(nodes) else None


def _encoded(facts: Facts, index: int, advised: int) -> Iterator[Problem]:
    for row, memory in encode_rows(facts.run, index):
        if not memory.fits:
            near = islice(clip_nearest.encoding_sizes(facts.run, index, row) if advised > 0 else (), MOST_ADVICE)
            advised -= 1
            yield Problem(
                "spec.autoencoder.tiling", _tiling(facts), _too_large(memory, [*near], _pool_memory(facts.run, index))
            )


def _drawn(facts: Facts, index: int, advised: int) -> Iterator[Problem]:
    task = facts.run.spec.stages[index].sample
    assert task is not None, "asked of sample stages"
    memory = drawing(facts.run, index, task, presets.complete_autoencoder(facts.run.spec.autoencoder))
    if not memory.fits:
        near = islice(clip_nearest.drawing_sizes(facts.run, index) if advised > 0 else (), MOST_ADVICE)
        yield Problem(f"{memory.path}.frames", task.frames, _too_large(memory, [*near], _pool_memory(facts.run, index)))


def _drawn_between_steps(facts: Facts, index: int, task: TrainingSamples, advised: int) -> Iterator[Problem]:
    memory = drawing_between_steps(facts.run, index, task)
    if not memory.fits:
        near = islice(clip_nearest.drawing_between_steps_sizes(facts.run, index) if advised > 0 else (), MOST_ADVICE)
        yield Problem(f"{memory.path}.frames", task.frames, _too_large(memory, [*near], _pool_memory(facts.run, index)))


def _tiling(facts: Facts) -> object:
    tiling = facts.autoencoder.tiling if facts.autoencoder else None
    return tiling.to_wire() if tiling else None


def told(amount: int) -> str:
    """Bytes in gigabytes of 10^9, as a table of `videotrain plan` has them."""
    return f"{amount / GIGA:.1f} GB"


def _pool_memory(run: VideoTrainingRun, index: int) -> str:
    return f"{pool_path(run, index)}.gpuMemoryGigabytes"


def _refused(memory: RowMemory, ways: list[str], nodes: int | None, field: str) -> str:
    parts = memory.memory
    needed = (
        f"row {memory.row} needs {told(memory.total)} of each of {memory.gpus} GPUs, which have {told(memory.limit)}: "
        f"weights {told(parts.weights)}, gradients {told(parts.gradients)}, optimizer {told(parts.optimizer)}, "
        f"average {told(parts.average)}, activations {told(parts.activations)}, temporaries {told(parts.temporaries)}, "
        f"reserve {told(parts.reserve)}"
    ) + (f", text encoders {told(parts.text)}" if parts.text else "")
    more = (f"at least {nodes} nodes, or " if nodes else "") + f"{field} if the GPUs have more"
    return f"{needed}; it fits with {', or '.join(ways)}; or {more}" if ways else f"{needed}; allowed: {more}"


def _too_large(memory: CodingMemory, near: list[tuple[str, CodingMemory]], field: str) -> str:
    needed = (
        f"{memory.row} in {memory.path} needs {told(memory.total)} of a GPU, which has {told(memory.limit)}: models "
        f"{told(memory.models)}, {memory.doing} {told(memory.work)}, reserve {told(memory.reserve)}"
    )
    ways = [f"{change} ({told(there.total)})" for change, there in near]
    more = f"{field} if the GPUs have more"
    return f"{needed}; it fits with {', or '.join(ways)}; or {more}" if ways else f"{needed}; allowed: {more}"
