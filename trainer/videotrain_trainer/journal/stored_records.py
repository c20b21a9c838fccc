"""The records of a generation in the run's storage, so that a report can be made of them when its pods are gone."""

from __future__ import annotations

import threading
from functools import partial

from videotrain_api.records import CheckpointRecord, TrainerRecord
from videotrain_api.storage import layout
from videotrain_trainer.errors import TrainerError
from videotrain_trainer.storage import ObjectStore
from videotrain_trainer.worker.stage_reporter import StageReporter

EVERY_SECONDS = 20.0
PART_BYTES = 1 << 20
"""A part that is so large grows no more, so that a long generation does not write all of its records again."""


class StoredRecords:
    """Record sink that stores lines as they come, in parts, by a thread: no step waits for the store.

    What was told in the last seconds before a process is killed is lost here; the pod's own file has it. A store that
    fails is asked again with the next lines.

    Args:
        store: object store.
        storage_uri: of the run.
        run: its name.
        uid: its uid; another run under this name counts its generations anew.
        reporter: tells of a failure, once until it is over; not to this sink.
    """

    def __init__(self, store: ObjectStore, storage_uri: str, run: str, uid: str, reporter: StageReporter) -> None:
        self._store, self._reporter = store, reporter
        self._place = partial(layout.records_part, storage_uri, run, uid, reporter.generation)
        self._lock, self._wake = threading.Lock(), threading.Event()
        self._lines = bytearray()
        """Of the last part, stored ones too."""
        self._part = self._stored = 0
        """Number of the last part, and how many of its bytes are stored."""
        self._failing = self._closing = False
        self._thread = threading.Thread(target=self._work, name="stored-records", daemon=True)
        self._thread.start()

    def write(self, record: TrainerRecord) -> None:
        """Store it soon; at once with a checkpoint, from which another generation may go on."""
        line = record.model_dump_json(by_alias=True, exclude_none=True).encode() + b"\n"
        with self._lock:
            self._lines += line
        if isinstance(record, CheckpointRecord):
            self._wake.set()

    def close(self, seconds: float) -> None:
        """Store what is left.

        Args:
            seconds: to wait for it; a store that needs longer is left, and that is reported.
        """
        self._closing = True
        self._wake.set()
        self._thread.join(seconds)
        if self._thread.is_alive():
            error = TimeoutError(f"the last records were not stored in {seconds:g} s; the pod's own file has them")
            self._reporter.housekeeping("records", error)

    def _work(self) -> None:
        while not self._closing:
            self._wake.wait(EVERY_SECONDS)
            self._wake.clear()
            self._put()
        self._put()

    def _put(self) -> None:
        with self._lock:
            lines = bytes(self._lines)
        if len(lines) == self._stored:
            return
        try:
            self._store.put(self._place(self._part), lines)
        except TrainerError as error:
            if not self._failing:
                self._reporter.housekeeping("records", error)
            self._failing = True
            return
        self._failing, self._stored = False, len(lines)
        if len(lines) >= PART_BYTES:
            with self._lock:
                del self._lines[: len(lines)]
            self._part, self._stored = self._part + 1, 0
