"""From the records of the first worker to all that hear of them."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Final

from videotrain_api.records import TrainerRecord
from videotrain_trainer.journal.step_log import StepLog
from videotrain_trainer.journal.stored_records import StoredRecords
from videotrain_trainer.journal.tracked import TrackerSink
from videotrain_trainer.storage import ObjectStore
from videotrain_trainer.worker.stage_context import StageContext
from videotrain_trainer.worker.stage_reporter import RecordSink

log = logging.getLogger(__name__)

LAST_SECONDS: Final = 60.0
"""What is left is told and stored for so long at the end of a stage, each."""
LEAVING_SECONDS: Final = 4.0
"""The same for a process that was asked to stop or failed: others wait for it, and pods are killed soon."""


class Several:
    """A record sink for each of several others, in their order."""

    def __init__(self, sinks: Sequence[RecordSink]) -> None:
        self._sinks = sinks

    def write(self, record: TrainerRecord) -> None:
        """Give it to each."""
        for sink in self._sinks:
            sink.write(record)


@contextmanager
def journal(context: StageContext, run_uid: str) -> Iterator[StageContext]:
    """The context whose records are also logged, stored and told to trackers, on rank 0; as it is elsewhere.

    Args:
        context: of a worker process.
        run_uid: of the run; empty for a process of no run: then records are logged alone.
    """
    config = context.config
    if context.world.rank != 0:
        yield context
        return
    sinks: list[RecordSink] = [context.records, StepLog(config.log_every_steps)]
    if not run_uid:
        yield replace(context, records=Several(sinks))
        return
    store, reporter = ObjectStore.for_storage(config.storage), context.reporter
    stored = StoredRecords(store, config.storage.uri, config.run.rpartition("/")[2], run_uid, reporter)
    sinks.append(stored)
    trackers = None
    if config.tracking.to:
        trackers = TrackerSink(store, config, run_uid, context.scratch, reporter)
        sinks.append(trackers)
    completed = False
    try:
        yield replace(context, records=Several(sinks))
        completed = True
    finally:
        # There are two of them, and whoever takes as long as a hang is ended as one.
        if completed and not context.drain.requested():
            seconds = min(LAST_SECONDS, config.hang_seconds / 4)
        else:
            seconds = min(LEAVING_SECONDS, config.grace_seconds / 4)
        stored.close(seconds)
        if trackers is not None:
            trackers.close(seconds, completed)
