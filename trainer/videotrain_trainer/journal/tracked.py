"""The record sink that tells experiment trackers, each step once in the life of a run."""

from __future__ import annotations

import logging
import queue
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Final

from videotrain_api.config.stage_config import StageConfig
from videotrain_api.records import (
    CheckpointRecord,
    SamplesRecord,
    StartedRecord,
    StepRecord,
    TrainerRecord,
    ValidationRecord,
)
from videotrain_api.storage import layout
from videotrain_api.storage.artifacts import VideosIndex
from videotrain_trainer.checksums import read_checked, unsealed_json
from videotrain_trainer.errors import TrainerError
from videotrain_trainer.journal.stored_tracker import StoredTracker, read_told, write_told
from videotrain_trainer.journal.trackers import TRACKERS, TrackedRun
from videotrain_trainer.storage import ObjectStore
from videotrain_trainer.worker.stage_reporter import StageReporter

log = logging.getLogger(__name__)

MOST_VIDEOS: Final = 16
"""Of a sample stage."""
MOST_WAITING: Final = 10_000
"""Values that are held for a tracker that fails; the oldest are forgotten."""
_TOLD: Final = (StartedRecord, StepRecord, ValidationRecord, SamplesRecord, CheckpointRecord)
"""Kinds of records that trackers hear of."""
_END: Final = None


@dataclass(frozen=True)
class _Values:
    """Values of a curve after a step."""

    curve: str
    step: int
    values: Mapping[str, float]
    at: datetime


@dataclass
class _One(StoredTracker):
    """One of those that are told."""

    waiting: deque[_Values] = field(default_factory=lambda: deque(maxlen=MOST_WAITING))
    """What it is still to be told."""
    ready: bool = False
    """Its files are here, and it was asked how far it is."""
    failed: bool = False
    """Left alone until the next checkpoint."""


class TrackerSink:
    """Tells trackers of steps, validations and videos by a thread: no step waits for them, and none fails by them.

    How far each was told when its files were stored last is in `tracking/told.json`. A generation that goes on from an
    earlier step does those steps again and tells nothing of them, so the curves have each step once.

    Args:
        store: object store.
        config: of the stage.
        uid: of the run.
        scratch: folder of this process, empty.
        reporter: tells of a tracker that fails.
    """

    def __init__(
        self, store: ObjectStore, config: StageConfig, uid: str, scratch: Path, reporter: StageReporter
    ) -> None:
        self._store, self._config, self._uid, self._reporter = store, config, uid, reporter
        self._scratch = scratch / "tracking"
        self._prefix = layout.tracking_prefix(config.storage.uri, config.run.rpartition("/")[2])
        self._stage, self._total, self._task = config.stage.name, 0, config.stage.task
        self._kept: dict[str, dict[str, int]] = {}
        """Of told.json."""
        self._trackers: list[_One] = []
        self._queue: queue.SimpleQueue[TrainerRecord | None] = queue.SimpleQueue()
        self._completed = False
        self._thread = threading.Thread(target=self._work, name="trackers", daemon=True)
        self._thread.start()

    def write(self, record: TrainerRecord) -> None:
        """Tell of it soon."""
        if isinstance(record, _TOLD):
            self._queue.put(record)

    def close(self, seconds: float, completed: bool = False) -> None:
        """Tell what is left, and of the videos of a stage that drew some and is complete.

        Args:
            seconds: to wait for it; trackers that need longer are left, and that is reported.
            completed: whether the stage did not fail.
        """
        self._completed = completed
        self._queue.put(_END)
        self._thread.join(seconds)
        if self._thread.is_alive():
            error = TimeoutError(f"trackers did not take in {seconds:g} s what was left to tell; it is lost to them")
            self._reporter.housekeeping("tracking", error)

    def _work(self) -> None:
        self._begin()
        while (record := self._queue.get()) is not _END:
            if isinstance(record, StartedRecord):
                self._total = record.total_steps
            elif isinstance(record, StepRecord):
                due = record.step % self._config.tracking.every_steps == 0 or record.step in (1, self._total)
                if due:
                    self._scalars(_Values(self._stage, record.step, step_values(record), record.finished_at))
            elif isinstance(record, ValidationRecord):
                losses = {"validation_loss": record.loss}
                self._scalars(_Values(f"{self._stage}/validation", record.step, losses, record.at))
            elif isinstance(record, SamplesRecord):
                self._each(partial(self._samples, record=record))
            else:
                self._store_all()
        self._store_all()
        if self._completed and self._task == "sample":
            self._each(self._videos)
            self._store_all()
        for one in self._trackers:
            one.failed, one.ready = False, True  # whatever state it is in, it is to end
        self._each(lambda one: one.tracker.close())

    def _begin(self) -> None:
        try:
            told = read_told(self._store, self._prefix)
        except TrainerError as error:
            # Whoever does not know what was told would tell it twice, and write over what says so.
            log.warning("no tracker is told of this generation: %s", error)
            self._reporter.housekeeping("tracking", error)
            return
        self._kept = told.trackers if told is not None and told.uid == self._uid else {}
        for name in self._config.tracking.to:
            folder = self._scratch / name
            run = TrackedRun(
                uid=self._uid,
                name=self._config.run,
                config=self._config.to_wire(),
                folder=folder,
                tracking=self._config.tracking,
            )
            prefix, known = f"{self._prefix}/{name}", dict(self._kept.get(name, {}))
            self._trackers.append(_One(name, TRACKERS[name](run), folder, prefix, known))

    def _prepare(self, one: _One) -> None:
        """Bring back the files that it goes on with, and ask how far it is."""
        one.fetch(self._store)
        one.told[self._stage] = max(one.told.get(self._stage, 0), one.tracker.told(self._stage))
        one.ready = True

    def _scalars(self, values: _Values) -> None:
        for one in self._trackers:
            one.waiting.append(values)
        self._each(self._tell)

    def _tell(self, one: _One) -> None:
        while one.waiting:
            now = one.waiting[0]
            if now.step > one.told.get(now.curve, 0):
                one.tracker.scalars(self._stage, now.step, now.values, now.at)
                one.told[now.curve] = now.step
            one.waiting.popleft()

    def _videos(self, one: _One) -> None:
        place = layout.videos_index(self._config.paths.output)
        if not self._store.exists(place):
            return  # it was asked to stop before the last one
        index = read_checked(self._store, place, lambda data: VideosIndex.from_wire(unsealed_json(data)))
        curve = f"{self._stage}/videos"
        for number, video in enumerate(index.videos[:MOST_VIDEOS]):
            if number < one.told.get(curve, 0):
                continue
            path = self._scratch / f"{self._stage}-{number:04d}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self._store.get(video.uri))
            one.tracker.video(self._stage, number, f"video-{number:04d}", path, video.prompt)
            one.told[curve] = number + 1

    def _samples(self, one: _One, record: SamplesRecord) -> None:
        """Videos of fixed prompts after a step: of each prompt a row, as long as the stage trains."""
        curve = f"{self._stage}/samples"
        if record.step + 1 <= one.told.get(curve, 0):
            return  # counted from 1, since the first ones are of step 0
        index = read_checked(self._store, record.uri, lambda data: VideosIndex.from_wire(unsealed_json(data)))
        for video in index.videos:
            path = self._scratch / f"{self._stage}-step-{record.step:08d}-{video.number:04d}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self._store.get(video.uri))
            one.tracker.video(self._stage, record.step, f"sample-{video.number:04d}", path, video.prompt)
        one.told[curve] = record.step + 1

    def _store_all(self) -> None:
        """Tell what was missed, flush everything, store the files, and then how far they are."""
        if not self._trackers:
            return
        for one in self._trackers:
            one.failed = False
        self._each(self._store_one)
        try:
            write_told(self._store, self._prefix, self._uid, self._kept)
        except TrainerError as error:
            self._reporter.housekeeping("tracking", error)

    def _store_one(self, one: _One) -> None:
        self._tell(one)
        one.tracker.flush()
        one.store(self._store)
        self._kept[one.name] = dict(one.told)

    def _each(self, work: Callable[[_One], None]) -> None:
        """Do something with every tracker that has not failed since the last checkpoint."""
        for one in self._trackers:
            if one.failed:
                continue
            try:
                if not one.ready:
                    self._prepare(one)
                work(one)
            except Exception as error:  # whatever a package raises, training goes on
                one.failed = True
                log.warning("tracker %s is left alone until the next checkpoint", one.name, exc_info=True)
                self._reporter.housekeeping("tracking", error)


def step_values(record: StepRecord) -> dict[str, float]:
    """What curves show of a step."""
    seconds = max((record.finished_at - record.started_at).total_seconds(), 1e-9)
    found: dict[str, float | None] = {
        "loss": record.loss,
        "gradient_norm": record.gradient_norm,
        "learning_rate": record.learning_rate,
        "seconds": seconds,
        "samples_per_second": record.samples / seconds,
        "tokens_per_second": record.tokens / seconds if record.tokens else None,
        "flops_per_second": record.model_flops / seconds if record.model_flops else None,
        "data_stall_seconds": record.data_stall_us / 1e6,
        "memory_gigabytes": record.memory_bytes / 1e9 if record.memory_bytes is not None else None,
    }
    return {name: value for name, value in found.items() if value is not None}
