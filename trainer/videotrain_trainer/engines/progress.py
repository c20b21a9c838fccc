"""How far a stage of units is, as records: a step for work that is done, a checkpoint for work that a restart keeps."""

from __future__ import annotations

from datetime import UTC, datetime

from videotrain_trainer.engines.board import Found
from videotrain_trainer.engines.interface import Member
from videotrain_trainer.worker.stage_reporter import Work


class UnitReporter:
    """Writes the records of the world's rank 0.

    Args:
        member: this process.
        found: by the listing, which may still go on.
    """

    def __init__(self, member: Member, found: Found) -> None:
        self._records, self._found = member.reporter, found
        self._uri = f"{member.prefix}/units"
        self._total = found.weight
        self._saved = member.saved_step
        self._step = self._kept = self._before()
        self._at = datetime.now(UTC)
        self._records.started(member.size, self._step, max(self._step, found.weight))

    def write(self, kept: int, parts: int) -> None:
        """Tell how far the world is.

        Args:
            kept: steps of this generation whose results are stored.
            parts: other steps that are done.
        """
        now, kept = datetime.now(UTC), kept + self._before()
        if self._found.weight > self._total:
            self._total = self._found.weight
            self._records.phase("list", len(self._found.names), self._total)
        if kept + parts > self._step:
            self._records.step(kept + parts, self._at, now, Work(samples=kept + parts - self._step))
            self._step, self._at = kept + parts, now
        if kept > self._kept:
            self._kept = kept
            self._records.checkpoint(kept, now, now, self._uri)

    def _before(self) -> int:
        """Steps of earlier generations; as the operator knows them while the listing has not come so far."""
        return self._found.kept if self._found.complete else max(self._found.kept, self._saved)
