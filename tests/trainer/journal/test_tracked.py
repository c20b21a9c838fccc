"""What trackers are told when a store or a tracker fails; the packages themselves are in tests/trackers."""

from __future__ import annotations

import shutil
import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from videotrain_api.records import CheckpointRecord, StartedRecord, StepRecord
from videotrain_api.resource.stages import Bucket, Prompt, SampleTask, Stage
from videotrain_api.resource.tracking import Tracking
from videotrain_api.storage import layout
from videotrain_api.storage.artifacts import SampledVideo, VideosIndex
from videotrain_trainer.checksums import sealed_json
from videotrain_trainer.errors import StorageUnavailable
from videotrain_trainer.journal import tracked
from videotrain_trainer.journal.tracked import TrackerSink
from videotrain_trainer.worker.stage_reporter import StageReporter

AT = datetime(2026, 11, 30, tzinfo=UTC)
ORIGIN = {"generation": 1, "stage": "train", "config_hash": "ab"}


@dataclass
class Kept:
    """A tracker that keeps what it is told, and raises what it is given."""

    steps: list = field(default_factory=list)
    videos: list = field(default_factory=list)
    trouble: list = field(default_factory=list)
    closed: int = 0
    CONTINUES = False

    def told(self, stage):
        return 0

    def scalars(self, stage, step, values, at):
        if self.trouble:
            raise self.trouble.pop()
        self.steps.append(step)

    def video(self, stage, step, name, path, caption):
        self.videos.append((path.read_bytes(), caption))

    def flush(self):
        pass

    def close(self):
        self.closed += 1


@pytest.fixture
def tracker(monkeypatch):
    kept = Kept()
    monkeypatch.setitem(tracked.TRACKERS, "tensorboard", lambda _: kept)
    return kept


@pytest.fixture
def live(make_context, make_config, train_task, store, tmp_path):
    """A generation of a run: its steps, with a checkpoint behind the last one; what it reported."""
    config = make_config(train_task([Bucket(resolution="64px", frames=8, batch_size=1)]))
    tracking = Tracking(to=["tensorboard"], every_steps=1)
    sample = Stage(
        name="train", task="sample", sample=SampleTask(resolution="64px", frames=8, prompts=[Prompt(text="x")])
    )

    def one(steps, uid="uid", seconds=60.0, completed=False):
        context = make_context(config)
        reporter = StageReporter(sink=context.records, generation=1, stage="train", config_hash="ab")
        settings = config.model_copy(update={"tracking": tracking, "stage": sample})
        sink = TrackerSink(store, settings, uid, tmp_path / "scratch", reporter)
        sink.write(StartedRecord(**ORIGIN, at=AT, world_size=1, resumed_step=0, total_steps=100))
        for number in steps:
            facts = {"data_stall_us": 0, "checkpoint_us": 0, "samples": 4, "tokens": 100, "model_flops": 1.0}
            end = AT + timedelta(seconds=number)
            sink.write(StepRecord(**ORIGIN, step=number, started_at=AT, finished_at=end, loss=1.0, **facts))
            if number % 2 == 0:
                saved = {"captured_at": AT, "committed_at": AT, "uri": "s3://bucket/c", "bytes": 1, "stall_us": 0}
                sink.write(CheckpointRecord(**ORIGIN, step=number, **saved))
        sink.close(seconds, completed)
        return [record.task for record in context.records.all]

    one.config = config
    return one


def told_json(storage) -> str:
    return f"{layout.tracking_prefix(storage.uri, 'test')}/told.json"


def test_videos_of_the_sealed_index_are_told(live, tracker, store):
    output = live.config.paths.output
    size = {"width": 64, "height": 64, "frames": 8, "fps": 8}
    uri = f"{output}/videos/0000.mp4"
    drawn = SampledVideo(number=0, uri=uri, prompt="a red ball", condition="t2v", seed=1, settings={}, **size)
    store.put(uri, b"video")
    store.put(layout.videos_index(output), sealed_json(VideosIndex(videos=[drawn]).to_wire()))
    assert live([1], completed=True) == []
    assert tracker.videos == [(b"video", "a red ball")]
    assert tracker.closed == 1


def test_a_tracker_that_hangs_holds_no_stage(live, tracker, monkeypatch):
    answered = threading.Event()
    monkeypatch.setattr(tracker, "scalars", lambda *_: answered.wait())
    assert live([1], seconds=0.1) == ["tracking"]
    answered.set()
    for thread in threading.enumerate():
        if thread.name == "trackers":
            thread.join()


def test_a_tracker_that_fails_is_told_what_it_missed_with_the_next_checkpoint(live, tracker):
    tracker.trouble = [OSError("cut")]
    assert live([1, 2, 3]) == ["tracking"]
    assert tracker.steps == [1, 2, 3]
    assert tracker.closed == 1


def test_what_was_not_stored_is_told_again(live, tracker, store, monkeypatch):
    assert live([1]) == []

    def refuse():
        raise StorageUnavailable("cut")

    with monkeypatch.context() as patched:
        patched.setattr(tracker, "flush", refuse)
        assert set(live([2, 3])) == {"tracking"}
    tracker.steps.clear()
    assert live([1, 2, 3]) == []
    assert tracker.steps == [2, 3]


def test_another_run_under_this_name_is_told_from_its_first_step(live, tracker):
    for uid in ("uid", "another"):
        live([1, 2], uid)
    assert tracker.steps == [1, 2, 1, 2]


def test_an_unreadable_account_of_what_was_told_is_left_and_nothing_is_told(live, tracker, store, storage):
    store.put(told_json(storage), b"{}")
    assert live([1, 2]) == ["tracking"]
    assert tracker.steps == []
    assert store.get(told_json(storage)) == b"{}"


@dataclass
class Filed(Kept):
    """A tracker that keeps a database, and a log beside it until that is taken over."""

    folder: Path = Path()
    log: bool = True
    CONTINUES = True

    def flush(self):
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "runs.db").write_text(f"{self.steps}")
        if self.log:
            (self.folder / "runs.db-wal").write_text("log")
        else:
            (self.folder / "runs.db-wal").unlink(missing_ok=True)


def test_files_that_are_gone_do_not_come_back(live, store, storage, tmp_path, monkeypatch):
    kept = Filed(folder=tmp_path / "scratch/tracking/tensorboard")
    monkeypatch.setitem(tracked.TRACKERS, "tensorboard", lambda _: kept)
    prefix = f"{layout.tracking_prefix(storage.uri, 'test')}/tensorboard"
    for log, names in ((True, ["runs.db", "runs.db-wal"]), (False, ["runs.db"])):
        kept.log = log
        assert live([len(names)]) == []
        assert [found.uri.removeprefix(f"{prefix}/") for found in store.list(prefix)] == names
        shutil.rmtree(kept.folder)
