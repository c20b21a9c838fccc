"""The engine that a stage asks for."""

from __future__ import annotations

from collections.abc import Iterator

from videotrain_api.resource.stages import UnitEngine
from videotrain_trainer.engines.board import Board
from videotrain_trainer.engines.interface import Member, UnitRange, Work
from videotrain_trainer.engines.local import LocalRun
from videotrain_trainer.engines.ray_pods import RayPods
from videotrain_trainer.storage import ObjectStore
from videotrain_trainer.worker.stage_context import StageContext


def engine_of(
    kind: UnitEngine,
    context: StageContext,
    store: ObjectStore,
    work: Work,
    ranges: Iterator[UnitRange],
    workers: int,
    board: Board | None = None,
) -> LocalRun | RayPods:
    """What does the units of a stage in this world.

    Args:
        kind: as the manifest says.
        context: of the stage.
        store: object store.
        work: does units.
        ranges: finds them; used by rank 0 alone.
        workers: that a pod has room for.
        board: keeps the results; by default those of a range together.
    """
    member, pod = Member.of(context), context.config.gpus_per_node
    if kind == "local":
        return LocalRun(member, store, work, ranges, max(1, workers // pod), board)
    gpus = pod if context.world.device.type == "cuda" else 0
    return RayPods(member, store, work, ranges, workers, context.world.local_rank, gpus, board)
