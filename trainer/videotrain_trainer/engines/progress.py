"""How far a stage of units is, as records: a step for work that is done, a checkpoint for work that a restart keeps."""

from __future__ import annotations

import time

from videotrain_trainer.engines.board import Listing
from videotrain_trainer.engines.interface import Member
from videotrain_trainer.worker.shared_work import StepRecords

LISTING_SECONDS = 20.0
"""So long records wait for the listing to end, since they tell how much there is; work does not."""


class UnitReporter:
    """Writes the records of the world's rank 0, once it is known or long enough waited for how much there is to do.

    Args:
        member: this process.
        listing: which may still go on.
    """

    def __init__(self, member: Member, listing: Listing) -> None:
        self._member, self._listing, self._found = member, listing, listing.found
        self._began = time.monotonic()
        self._records: StepRecords | None = None
        self._total = 0

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

    def _before(self) -> int:
        """Steps of earlier generations; as the operator knows them while the listing has not come so far."""
        return self._found.kept if self._found.complete else max(self._found.kept, self._member.saved_step)
