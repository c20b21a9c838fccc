"""How far a stage of units is, as records: a step for work that is done, a checkpoint for work that a restart keeps."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Literal

from videotrain_trainer.engines.board import Listing
from videotrain_trainer.engines.interface import SHARE_SECONDS, Member
from videotrain_trainer.worker.stage_reporter import StageReporter, Work

LISTING_SECONDS = 20.0
"""So long records wait for the listing to end, since they tell how much there is; work does not."""
Phase = Literal["merge"]
"""Units that are no steps: they put together what steps have left."""


class UnitReporter:
    """Writes the records of the world's rank 0, once it is known or long enough waited for how much there is to do.

    Args:
        member: this process.
        listing: which may still go on.
        phase: that the units are, where they are no steps.
    """

    def __init__(self, member: Member, listing: Listing, phase: Phase | None = None) -> None:
        self._member, self._listing, self._found, self._phase = member, listing, listing.found, phase
        self._began = time.monotonic()
        self._records: StepRecords | None = None
        self._total = 0
        self._told, self._told_at = -1, 0.0

    def write(self, kept: int, parts: int, ended: bool = False) -> None:
        """Tell how far the world is.

        Args:
            kept: steps of this generation whose results are stored.
            parts: other steps that are done.
            ended: nothing more will be told.

        Raises:
            Exception: that ended the listing.
        """
        complete, found = self._listing.wait(0), self._found
        if self._phase is not None:
            self._tell_phase(self._phase, found.kept + kept + parts)
            return
        if self._records is None:
            if not (complete or ended or time.monotonic() - self._began >= LISTING_SECONDS):
                return
            self._total, resumed = found.weight, self._before()
            total, uri = max(resumed, self._total), f"{self._member.prefix}/units"
            self._records = StepRecords(self._member.reporter, uri, self._member.size, resumed, total)
        if found.weight > self._total:
            self._total = found.weight
            self._member.reporter.phase("list", len(found.names), self._total)
        kept += self._before()
        self._records.write(kept + parts, kept)

    def finished(self) -> None:
        """Tell that every unit of the world is done."""
        self._listing.wait(LISTING_SECONDS)  # its thread may be at its last line
        self.write(self._found.weight - self._before(), 0, ended=True)

    def _tell_phase(self, phase: Phase, done: int) -> None:
        now = time.monotonic()
        if done != self._told or now - self._told_at >= SHARE_SECONDS:
            self._told, self._told_at = done, now
            self._member.reporter.phase(phase, done, max(done, self._found.weight))

    def _before(self) -> int:
        """Steps of earlier generations; as the operator knows them while the listing has not come so far."""
        return self._found.kept if self._found.complete else max(self._found.kept, self._member.saved_step)


class StepRecords:
    """Turns progress into records: a step for work that is done, a checkpoint for work that a restart keeps.

    Args:
        reporter: of the stage.
        uri: where kept work lies.
        size: worker processes.
        resumed: steps that earlier generations have done.
        total: of the stage, as far as it is known.
    """

    def __init__(self, reporter: StageReporter, uri: str, size: int, resumed: int, total: int) -> None:
        self._reporter, self._uri = reporter, uri
        self._step = self._kept = resumed
        self._at = datetime.now(UTC)
        reporter.started(size, resumed, total)

    def write(self, step: int, kept: int) -> None:
        """Tell that `step` steps are done and `kept` of them kept, those of earlier generations included."""
        now = datetime.now(UTC)
        if step > self._step:
            self._reporter.step(step, self._at, now, Work(samples=step - self._step))
            self._step, self._at = step, now
        if kept > self._kept:
            self._kept = kept
            self._reporter.checkpoint(kept, now, now, self._uri)
