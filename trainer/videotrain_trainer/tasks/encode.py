"""The encode stage: clips and captions to latents and text features in tar shards, with a catalogue and an index.

A unit is a range of clips, so a restarted stage of any world size goes on where it was. Its result is a table of its
samples; ranks put tables together into parts, and rank 0 makes the set of these.
"""

from __future__ import annotations

from videotrain_trainer.engines.choice import engine_of
from videotrain_trainer.engines.interface import Member
from videotrain_trainer.engines.tables import TableBoard
from videotrain_trainer.tasks.encode_merge import Merge
from videotrain_trainer.tasks.encode_work import EncodeWork, find_ranges
from videotrain_trainer.worker.stage_context import Outcome, StageContext


def run(context: StageContext) -> Outcome:
    """Encode the curated clips for all stages that read the set.

    Raises:
        DataError: the curated set is missing or damaged, or no clip fits a bucket.
    """
    work, member = EncodeWork(context.config, context.cache, context.world.device), Member.of(context)
    work.store.check()
    units, board = work.units(), TableBoard(work.store, member, work.tables)
    pod = context.config.gpus_per_node
    if not engine_of(work.engine, context, work.store, work, find_ranges(units), pod, board).run():
        return "drained"
    return "completed" if Merge(member, work, units).run() else "drained"
