"""The closed bill of a run, attached to its experiment trackers after its workers are gone."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from videotrain_api.billing.document import RunBill, bill_text
from videotrain_api.resource.tracking import Tracker as Name
from videotrain_api.resource.tracking import Tracking
from videotrain_api.resource.trainrun import Storage
from videotrain_api.storage import layout
from videotrain_trainer.errors import ConfigError
from videotrain_trainer.journal.stored_tracker import StoredTracker, Told, read_told, write_told
from videotrain_trainer.journal.trackers import BILL, TRACKERS, TrackedRun
from videotrain_trainer.storage import ObjectStore

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Attached:
    """What became of the bill in a tracker."""

    tracker: Name
    before: bool = False
    """It had the bill already."""
    error: Exception | None = None
    """What it raised; it has no bill, and the next try begins anew."""


def attach_bill(bill: RunBill, tracking: Tracking, storage: Storage, scratch: Path) -> Iterator[Attached]:
    """Attach it to each tracker, once: `tracking/told.json` says which have it.

    Args:
        bill: closed.
        tracking: of the run.
        storage: of the run, in which trackers keep their files.
        scratch: an empty folder.

    Raises:
        TrainerError: the bill is open, trackers were told of another run under this name since, or the storage cannot
            be used.
    """
    if not bill.closed:
        raise ConfigError(f"the bill of {bill.run} is open: its run is {bill.phase}; a bill is attached once")
    store, prefix = ObjectStore.for_storage(storage), layout.tracking_prefix(storage.uri, bill.run)
    told = read_told(store, prefix) or Told(uid=bill.uid, trackers={})
    if told.uid != bill.uid:
        raise ConfigError(f"{prefix} is of run {told.uid}, which has this name, too; the bill is of {bill.uid}")
    path = scratch / layout.BILL_FILE
    path.write_text(bill_text(bill) + "\n", encoding="utf-8")
    for name in tracking.to:
        known = told.trackers.get(name, {})
        if BILL in known:
            yield Attached(name, before=True)
            continue
        folder = scratch / name
        run = TrackedRun(uid=bill.uid, name=f"{bill.namespace}/{bill.run}", config={}, folder=folder, tracking=tracking)
        one = StoredTracker(name, TRACKERS[name](run), folder, f"{prefix}/{name}", {**known, BILL: 1})
        try:
            _attach(store, one, bill, path)
        except Exception as error:  # whatever a package raises, others get theirs
            log.warning("the bill is not attached to %s", name, exc_info=True)
            yield Attached(name, error=error)
            continue
        told.trackers[name] = one.told
        write_told(store, prefix, bill.uid, told.trackers)
        yield Attached(name)


def _attach(store: ObjectStore, one: StoredTracker, bill: RunBill, path: Path) -> None:
    one.fetch(store)
    # What a process left that was killed before it could say so is replaced.
    left = store.list(f"{one.prefix}/{BILL}")
    one.stored |= {found.uri.removeprefix(f"{one.prefix}/"): (-1, -1) for found in left}
    one.tracker.bill(bill, path)
    one.tracker.flush()
    one.tracker.close()
    one.store(store)
