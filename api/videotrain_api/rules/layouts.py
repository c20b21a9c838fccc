"""Parallel layouts that every permitted world can run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from videotrain_api import capabilities
from videotrain_api.resource.stages import AutoencoderTask, ParallelLayout, TrainTask, node_counts
from videotrain_api.resource.trainrun import node_bounds
from videotrain_api.rules.facts import Facts, shown
from videotrain_api.schema import Problem


def check_layouts(facts: Facts) -> Iterator[Problem]:
    """What the trainer can do, and micro-batches, heads and blocks, of every stage that trains."""
    run = facts.run
    for index, stage in enumerate(run.spec.stages):
        task = stage.train or stage.autoencoder
        if task is None:
            continue
        path = f"spec.stages[{index}].{stage.task}"
        for refusal in capabilities.refusals(capabilities.settings_of(task), stage.task):
            yield Problem(f"{path}.{refusal.path}", refusal.value, refusal.allowed)
        if isinstance(task, TrainTask):
            yield from _context(f"{path}.parallel", task.parallel, facts)
            yield from _recomputed(f"{path}.parallel", task.parallel, facts)
        bounds = node_bounds(run, stage)
        counts = node_counts(bounds) if bounds.min <= bounds.max else []
        yield from _worlds(path, task, counts, run.spec.pool.gpus_per_node)


def _context(path: str, layout: ParallelLayout, facts: Facts) -> Iterator[Problem]:
    degree, gpus = layout.context_parallel, facts.run.spec.pool.gpus_per_node
    heads = facts.model.num_heads if facts.model else None
    if gpus % degree:
        allowed = f"must divide spec.pool.gpusPerNode ({gpus}) and so every world size"
        yield Problem(f"{path}.contextParallel", degree, allowed)
    if heads and heads % degree:
        yield Problem(f"{path}.contextParallel", degree, f"must divide the {heads} attention heads of spec.model")


def _recomputed(path: str, layout: ParallelLayout, facts: Facts) -> Iterator[Problem]:
    if facts.model is None:
        return
    blocks = {
        "checkpointDoubleBlocks": (layout.checkpoint_double_blocks, facts.model.double_blocks or 0),
        "checkpointSingleBlocks": (layout.checkpoint_single_blocks, facts.model.single_blocks or 0),
    }
    for name, (value, most) in blocks.items():
        if value > most:
            yield Problem(f"{path}.{name}", value, f"spec.model has {most} of them; allowed: 0 to {most}")


def _worlds(path: str, task: TrainTask | AutoencoderTask, counts: Sequence[int], gpus: int) -> Iterator[Problem]:
    """The refusals of `capabilities.world_refusals`, told once for all node counts."""
    for row in capabilities.rows_of(task):
        if gpus % row.context_parallel:
            continue
        where = f"{path}.{row.path}"
        idle = [n for n in counts if row.idles(n * gpus)]
        if idle:
            groups = idle[-1] * gpus // row.context_parallel
            allowed = f"make up to {groups} data-parallel groups, more than there are micro-batches"
            allowed = f"{shown(idle)} node(s) {allowed}; allowed: {groups} or more, or fewer nodes"
            yield Problem(where, row.micro_batches, allowed)
        uneven = [n for n in counts if not row.idles(n * gpus) and row.uneven(n * gpus)]
        if uneven and capabilities.needs_even_groups(task):
            stage = f"must be a multiple of every data-parallel size under zeroStage {task.parallel.zero_stage}"
            allowed = f"{stage}; it is not with {shown(uneven)} node(s); see nodes.allowed"
            yield Problem(where, row.micro_batches, allowed)
