"""The record sink that tells experiment trackers, each step once in the life of a run."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from pydantic import TypeAdapter

from videotrain_api.config.stage_config import StageConfig
from videotrain_api.records import CheckpointRecord, StartedRecord, StepRecord, TrainerRecord, ValidationRecord
from videotrain_api.resource.tracking import Tracker as Name
from videotrain_api.storage import layout
from videotrain_api.storage.artifacts import VideosIndex
from videotrain_trainer.errors import ObjectMissing, TrainerError
from videotrain_trainer.journal.trackers import TRACKERS, TrackedRun, Tracker
from videotrain_trainer.storage import ObjectStore
from videotrain_trainer.worker.stage_reporter import StageReporter

log = logging.getLogger(__name__)

MOST_VIDEOS: Final = 16
"""Of a sample stage."""
_TOLD: Final = TypeAdapter(dict[str, dict[str, int]])
_END: Final = None


@dataclass
class _One:
    """A tracker, and how far it is."""

    name: Name
    tracker: Tracker
    folder: Path
    stored: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Size and time of the files that are stored, by their path in the folder."""
    failed: bool = False


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
        self._told: dict[str, dict[str, int]] = {}
        self._trackers: list[_One] = []
        self._queue: queue.SimpleQueue[TrainerRecord | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="trackers", daemon=True)
        self._thread.start()

    def write(self, record: TrainerRecord) -> None:
        """Tell of it soon."""
        if isinstance(record, StartedRecord | StepRecord | ValidationRecord | CheckpointRecord):
            self._queue.put(record)

    def close(self, completed: bool = False) -> None:
        """Tell what is left, and of the videos of a stage that drew some and is complete."""
        self._queue.put(_END)
        self._thread.join()
        if completed and self._task == "sample":
            self._each(self._videos)
            self._store_all()

    def _work(self) -> None:
        self._begin()
        while (record := self._queue.get()) is not _END:
            if isinstance(record, StartedRecord):
                self._total = record.total_steps
            elif isinstance(record, StepRecord):
                due = record.step % self._config.tracking.every_steps == 0 or record.step in (1, self._total)
                if due:
                    self._scalars(record.step, "", step_values(record), record)
            elif isinstance(record, ValidationRecord):
                self._scalars(record.step, "/validation", {"validation_loss": record.loss}, record)
            else:
                self._store_all()
        self._store_all()

    def _begin(self) -> None:
        for name in self._config.tracking.to:
            folder = self._scratch / name
            run = TrackedRun(
                uid=self._uid,
                name=self._config.run,
                config=self._config.to_wire(),
                folder=folder,
                tracking=self._config.tracking,
            )
            one = _One(name, TRACKERS[name](run), folder)
            self._trackers.append(one)
        try:
            self._told = _TOLD.validate_json(self._store.get(f"{self._prefix}/told.json"))
        except ObjectMissing:
            pass
        except (TrainerError, ValueError) as error:
            self._reporter.housekeeping("tracking", error)
        self._each(self._fetch)
        self._each(self._ask)

    def _fetch(self, one: _One) -> None:
        """Bring back the files that it goes on with."""
        if not one.tracker.CONTINUES:
            return
        prefix = f"{self._prefix}/{one.name}"
        for found in self._store.list(prefix):
            path = one.folder / found.uri.removeprefix(f"{prefix}/")
            path.parent.mkdir(parents=True, exist_ok=True)
            self._store.fetch(found, path)

    def _ask(self, one: _One) -> None:
        told = self._told.setdefault(one.name, {})
        told[self._stage] = max(told.get(self._stage, 0), one.tracker.told(self._stage))

    def _scalars(self, step: int, of: str, values: Mapping[str, float], record: StepRecord | ValidationRecord) -> None:
        at = record.finished_at if isinstance(record, StepRecord) else record.at

        def tell(one: _One) -> None:
            told = self._told.setdefault(one.name, {})
            if step > told.get(self._stage + of, 0):
                one.tracker.scalars(self._stage, step, values, at)
                told[self._stage + of] = step

        self._each(tell)

    def _videos(self, one: _One) -> None:
        if not self._store.exists(layout.videos_index(self._config.paths.output)):
            return  # it was asked to stop before the last one
        index = VideosIndex.model_validate_json(self._store.get(layout.videos_index(self._config.paths.output)))
        told = self._told.setdefault(one.name, {})
        for number, video in enumerate(index.videos[:MOST_VIDEOS]):
            if number < told.get(f"{self._stage}/videos", 0):
                continue
            path = self._scratch / f"{self._stage}-{number:04d}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self._store.get(video.uri))
            one.tracker.video(self._stage, number, f"video-{number:04d}", path, video.prompt)
            told[f"{self._stage}/videos"] = number + 1

    def _store_all(self) -> None:
        """Flush everything, store the files, and then how far they are."""
        self._each(self._store_one)
        try:
            self._store.put(f"{self._prefix}/told.json", _TOLD.dump_json(self._told))
        except TrainerError as error:
            self._reporter.housekeeping("tracking", error)

    def _store_one(self, one: _One) -> None:
        one.tracker.flush()
        for path, name, state in files_below(one.folder):
            if one.stored.get(name) != state:
                self._store.put(f"{self._prefix}/{one.name}/{name}", path.read_bytes())
                one.stored[name] = state

    def _each(self, work: Callable[[_One], None]) -> None:
        """Do something with every tracker that has not failed; one that fails is left alone from then on."""
        for one in self._trackers:
            if one.failed:
                continue
            try:
                work(one)
            except Exception as error:  # whatever a package raises, training goes on
                one.failed = True
                log.warning("tracker %s is left alone from now on", one.name, exc_info=True)
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


def files_below(folder: Path) -> Iterator[tuple[Path, str, tuple[int, int]]]:
    """Files at any depth with their path in the folder, size and time; links are left out."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            facts = path.stat()
            yield path, path.relative_to(folder).as_posix(), (facts.st_size, facts.st_mtime_ns)
