"""Parallel layouts that every permitted world can run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from videotrain_api.resource.stages import AutoencoderTask, ParallelLayout, node_counts
from videotrain_api.resource.trainrun import node_bounds
from videotrain_api.rules.facts import Facts, shown
from videotrain_api.schema import Problem


def check_layouts(facts: Facts) -> Iterator[Problem]:
    """Context parallelism, micro-batches and recomputation of every stage that trains."""
    run = facts.run
    for index, stage in enumerate(run.spec.stages):
        task = stage.train or stage.autoencoder
        if task is None:
            continue
        path = f"spec.stages[{index}].{stage.task}.parallel"
        bounds = node_bounds(run, stage)
        counts = node_counts(bounds) if bounds.min <= bounds.max else []
        if isinstance(task, AutoencoderTask):
            yield from _not_for_autoencoders(path, task.parallel)
        else:
            yield from _context(path, task.parallel, facts)
            yield from _recomputed(path, task.parallel, facts)
        yield from _worlds(path, task.parallel, counts, run.spec.pool.gpus_per_node)


def _not_for_autoencoders(path: str, layout: ParallelLayout) -> Iterator[Problem]:
    if layout.context_parallel != 1:
        allowed = "autoencoder training has no context parallelism; allowed: 1"
        yield Problem(f"{path}.contextParallel", layout.context_parallel, allowed)
    recomputed = {"Double": layout.checkpoint_double_blocks, "Single": layout.checkpoint_single_blocks}
    for kind, blocks in recomputed.items():
        if blocks:
            yield Problem(f"{path}.checkpoint{kind}Blocks", blocks, "an autoencoder has no such blocks; allowed: 0")


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


def _worlds(path: str, layout: ParallelLayout, counts: Sequence[int], gpus: int) -> Iterator[Problem]:
    degree, micro_batches = layout.context_parallel, layout.micro_batches_per_step
    if gpus % degree:
        return
    idle = [n for n in counts if n * gpus // degree > micro_batches]
    if idle:
        groups = idle[-1] * gpus // degree
        where = f"{shown(idle)} node(s) make up to {groups} data-parallel groups, more than there are micro-batches"
        yield Problem(
            f"{path}.microBatchesPerStep", micro_batches, f"{where}; allowed: {groups} or more, or fewer nodes"
        )
    uneven = [n for n in counts if n * gpus // degree <= micro_batches and micro_batches % (n * gpus // degree)]
    if layout.zero_stage >= 2 and uneven:
        where = f"must be a multiple of every data-parallel size under zeroStage {layout.zero_stage}"
        yield Problem(
            f"{path}.microBatchesPerStep",
            micro_batches,
            f"{where}; it is not with {shown(uneven)} node(s); see nodes.allowed",
        )
