"""Parallel layouts that every permitted world can run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from videotrain_api import capabilities
from videotrain_api.resource.stages import AutoencoderTask, ParallelLayout, TrainTask, node_counts
from videotrain_api.resource.trainrun import node_bounds, pool_of, pool_path
from videotrain_api.rules.facts import Facts, shown
from videotrain_api.schema import Problem


def check_layouts(facts: Facts) -> Iterator[Problem]:
    """What the trainer can do, degrees and blocks, of every stage that trains."""
    for path, task, nodes in _trained(facts):
        name = path.rpartition(".")[2]
        refusals = capabilities.refusals(capabilities.settings_of(task), name)
        for refusal in (*refusals, *capabilities.row_refusals(task)):
            yield Problem(f"{path}.{refusal.path}", refusal.value, refusal.allowed)
        if isinstance(task, TrainTask):
            yield from _context(path, task, nodes)
            yield from _recomputed(f"{path}.parallel", task, facts)
            heads = facts.model.num_heads if facts.model else None
            for refusal in capabilities.ring_refusals(task, nodes.gpus, heads) if heads else ():
                yield Problem(f"{path}.{refusal.path}", refusal.value, refusal.allowed)


def check_worlds(facts: Facts) -> Iterator[Problem]:
    """Micro-batches of every stage that trains, for every world that it may have."""
    for path, task, nodes in _trained(facts):
        yield from _worlds(path, task, nodes.counts, nodes.gpus)


@dataclass(frozen=True)
class _Nodes:
    """Of a stage."""

    counts: Sequence[int]
    gpus: int
    """Of a node."""
    pool: str
    """Field with the pool."""


def _trained(facts: Facts) -> Iterator[tuple[str, TrainTask | AutoencoderTask, _Nodes]]:
    """Path, task and nodes of the stages that train; those without GPUs are another rule's matter."""
    for index, stage in enumerate(facts.run.spec.stages):
        task, bounds = stage.train or stage.autoencoder, node_bounds(facts.run, stage)
        gpus = pool_of(facts.run, stage).gpus_per_node
        if task is not None and gpus:
            counts = node_counts(bounds) if bounds.min <= bounds.max else []
            yield f"spec.stages[{index}].{stage.task}", task, _Nodes(counts, gpus, pool_path(facts.run, index))


def _context(path: str, task: TrainTask, nodes: _Nodes) -> Iterator[Problem]:
    counts, gpus = nodes.counts, nodes.gpus
    for row in capabilities.rows_of(task):
        degree, where = row.context_parallel, f"{path}.{row.degree_path}"
        if gpus % degree and degree % gpus:
            allowed = f"must divide {nodes.pool}.gpusPerNode ({gpus}) and so every world size, or be a multiple of it"
            yield Problem(where, degree, allowed)
        elif odd := [n for n in counts if n * gpus % degree]:
            allowed = (
                f"{shown(odd)} node(s) of {gpus} GPUs cannot be divided into groups of {degree}; allowed: a divisor of "
                f"{gpus}, or nodes.allowed with multiples of {degree // gpus}"
            )
            yield Problem(where, degree, allowed)


def _recomputed(path: str, task: TrainTask, facts: Facts) -> Iterator[Problem]:
    limits = _limits(task.parallel)
    if all(task.parallel.recompute_of(row) != "full" for row in task.buckets):
        for name, value in limits.items():
            where = "limits `full`, but neither parallel.recompute nor a row of the bucket table says `full`"
            yield Problem(f"{path}.{name}", value, f"{where}; set recompute: full or leave it out")
    if facts.model is None:
        return
    blocks = {"checkpointDoubleBlocks": facts.model.double_blocks, "checkpointSingleBlocks": facts.model.single_blocks}
    for name, value in limits.items():
        most = blocks[name] or 0
        if value > most:
            yield Problem(f"{path}.{name}", value, f"spec.model has {most} of them; allowed: 0 to {most}")


def _limits(layout: ParallelLayout) -> dict[str, int]:
    given = {
        "checkpointDoubleBlocks": layout.checkpoint_double_blocks,
        "checkpointSingleBlocks": layout.checkpoint_single_blocks,
    }
    return {name: blocks for name, blocks in given.items() if blocks is not None}


def _worlds(path: str, task: TrainTask | AutoencoderTask, counts: Sequence[int], gpus: int) -> Iterator[Problem]:
    """The refusals of `capabilities.world_refusals`, told once for all node counts."""
    for row in capabilities.rows_of(task):
        worlds = [n for n in counts if n * gpus % row.context_parallel == 0]
        where = f"{path}.{row.path}"
        idle = [n for n in worlds if row.idles(n * gpus)]
        if idle:
            groups = idle[-1] * gpus // row.context_parallel
            allowed = f"make up to {groups} data-parallel groups, more than there are micro-batches"
            allowed = f"{shown(idle)} node(s) {allowed}; allowed: {groups} or more, or fewer nodes"
            yield Problem(where, row.micro_batches, allowed)
