"""How far a stage of units is, as records: a step for work that is done, a checkpoint for work that a restart keeps."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Literal

from videotrain_trainer.engines.board import Listing
from videotrain_trainer.engines.interface import SHARE_SECONDS, Member
from videotrain_trainer.worker.stage_reporter import Measured, StageReporter, Work

LISTING_SECONDS = 20.0
"""So long records wait for the listing to end, since they tell how much there is; work does not."""
NOTHING: Mapping[str, int] = MappingProxyType({})
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

    def write(self, kept: int, parts: int, ended: bool = False, used: Mapping[str, int] = NOTHING) -> None:
        """Tell how far the world is.

        Args:
            kept: steps of this generation whose results are stored.
            parts: other steps that are done.
            ended: nothing more will be told.
            used: by all workers of this generation, as Used.

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
        self._records.write(kept + parts, kept, used)

    def finished(self, used: Mapping[str, int] = NOTHING) -> None:
        """Tell that every unit of the world is done."""
        self._listing.wait(LISTING_SECONDS)  # its thread may be at its last line
        self.write(self._found.weight - self._before(), 0, ended=True, used=used)

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
        self._size, self._told = size, Counter[str]()
        self._step = self._kept = resumed
        self._at = datetime.now(UTC)
        reporter.started(size, resumed, total)

    def write(self, step: int, kept: int, used: Mapping[str, int]) -> None:
        """Tell that `step` steps are done and `kept` of them kept, those of earlier generations included.

        Args:
            step: of the stage.
            kept: steps that a restart keeps.
            used: by all workers of this generation so far, as Used.
        """
        now = datetime.now(UTC)
        if step > self._step:
            measured = self._measured(used, (now - self._at) // timedelta(microseconds=1)) if used else Measured()
            self._reporter.step(step, self._at, now, Work(samples=step - self._step), **measured)
            self._step, self._at = step, now
        if kept > self._kept:
            self._kept = kept
            self._reporter.checkpoint(kept, now, now, self._uri)

    def _measured(self, used: Mapping[str, int], length_us: int) -> Measured:
        """What was used since the last step, means of the ranks for times. What others tell late and would make more
        than the step's length is told with the next one.
        """
        told = {"stored_bytes": used.get("stored_bytes", 0) - self._told["stored_bytes"]}
        for name in ("busy_us", "waited_us"):
            told[name] = max(0, min((used.get(name, 0) - self._told[name]) // self._size, length_us))
            length_us -= told[name]
            self._told[name] += told[name] * self._size
        self._told["stored_bytes"] += told["stored_bytes"]
        return Measured(data_stall_us=told["waited_us"], forward_us=told["busy_us"], stored_bytes=told["stored_bytes"])
