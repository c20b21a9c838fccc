"""What rank 0 tells of records: lines of the log, and the records themselves in the run's storage."""

from __future__ import annotations

import logging
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from videotrain_api.records import TRAINER_RECORD, CheckpointRecord, StartedRecord, StepRecord, ValidationRecord
from videotrain_api.resource.stages import Bucket
from videotrain_api.storage import layout
from videotrain_trainer.errors import StorageUnavailable
from videotrain_trainer.journal import stored_records
from videotrain_trainer.journal.open import LAST_SECONDS, LEAVING_SECONDS, journal
from videotrain_trainer.journal.step_log import StepLog
from videotrain_trainer.journal.stored_records import StoredRecords
from videotrain_trainer.worker.stage_reporter import StageReporter

AT = datetime(2026, 11, 30, tzinfo=UTC)
ORIGIN = {"generation": 2, "stage": "train", "config_hash": "ab"}


@pytest.fixture(autouse=True)
def no_clock(monkeypatch):
    monkeypatch.setattr(stored_records, "EVERY_SECONDS", 3600.0)


def started(resumed: int = 0, total: int = 25) -> StartedRecord:
    return StartedRecord(**ORIGIN, at=AT, world_size=1, resumed_step=resumed, total_steps=total)


def step(number: int, **facts: object) -> StepRecord:
    begin = AT + timedelta(seconds=2 * number)
    usual = {"data_stall_us": 0, "checkpoint_us": 0, "samples": 4, "tokens": 100, "model_flops": 1.0}
    end = begin + timedelta(seconds=2)
    return StepRecord(**ORIGIN, step=number, started_at=begin, finished_at=end, **(usual | facts))


def lines(caplog, records) -> list[str]:
    caplog.set_level(logging.INFO)
    sink = StepLog(10)
    for record in records:
        sink.write(record)
    return [record.getMessage() for record in caplog.records]


def test_a_line_every_so_many_steps_and_for_the_first_and_the_last(caplog):
    told = lines(caplog, [started(), *(step(number, loss=0.5) for number in range(1, 26))])
    assert [line.split(":")[0] for line in told[1:]] == [f"step {number} of 25" for number in (1, 10, 20, 25)]
    assert "loss 0.5000, 2.00 s, 2.00 samples/s, 50 tokens/s" in told[2]


def test_what_was_not_measured_is_not_told(caplog):
    (_, told) = lines(caplog, [started(), step(1, tokens=0)])
    assert told == "step 1 of 25: 2.00 s, 2.00 samples/s"


def test_all_that_was_measured(caplog):
    facts = {"loss": 1.0, "gradient_norm": 0.25, "learning_rate": 3e-4, "memory_bytes": 71_200_000_000}
    told = lines(caplog, [started(7), step(8, **facts, bucket="256px/33f/16:9", data_stall_us=500_000)])[-1]
    for part in ("gradient norm 0.25", "learning rate 0.0003", "memory 71.2 GB", "0.50 s waited", "256px/33f/16:9"):
        assert part in told


def test_validations_are_told(caplog):
    losses = {"loss": 0.25, "samples": 3, "bucket_losses": {}, "times": [], "time_losses": []}
    record = ValidationRecord(**ORIGIN, step=4, at=AT, duration_us=1, **losses)
    assert lines(caplog, [record]) == ["validation after step 4: loss 0.2500 on 3 samples"]


@pytest.fixture
def reporter(make_context, make_config, train_task):
    """Of a context whose records are kept."""
    row = Bucket(resolution="64px", frames=8, batch_size=1)
    context = make_context(make_config(train_task([row])), generation=2)
    return StageReporter(sink=context.records, generation=2, stage="train", config_hash="ab")


def stored(store, storage) -> list[object]:
    found = store.list(layout.records_prefix(storage.uri, "run", "uid"))
    return [TRAINER_RECORD.validate_json(line) for each in found for line in store.get(each.uri).splitlines()]


def test_records_are_stored_when_the_sink_is_closed(store, storage, reporter):
    sink = StoredRecords(store, storage.uri, "run", "uid", reporter)
    records = [started(), step(1), step(2)]
    for record in records:
        sink.write(record)
    sink.close(60)
    assert stored(store, storage) == records


def test_a_checkpoint_is_stored_at_once(store, storage, reporter, monkeypatch):
    """Long before the usual time, for another generation may go on from it."""
    seen = []
    put = store.put
    done = threading.Event()

    def watched(uri, data, *rest):
        put(uri, data, *rest)
        seen.append(uri)
        done.set()

    monkeypatch.setattr(store, "put", watched)
    sink = StoredRecords(store, storage.uri, "run", "uid", reporter)
    sink.write(step(1))
    saved = CheckpointRecord(
        **ORIGIN, step=1, captured_at=AT, committed_at=AT, uri="s3://bucket/c", bytes=1, stall_us=0
    )
    sink.write(saved)
    assert done.wait(60)
    assert stored(store, storage) == [step(1), saved]
    sink.close(60)
    assert len(seen) == 1


def test_long_generations_are_stored_in_parts(store, storage, reporter, monkeypatch):
    monkeypatch.setattr(stored_records, "PART_BYTES", 400)
    records = [step(number) for number in range(1, 8)]
    sink = StoredRecords(store, storage.uri, "run", "uid", reporter)
    for part in (records[:4], records[4:]):
        for record in part:
            sink.write(record)
        sink._put()
    sink.close(60)
    assert sorted(stored(store, storage), key=lambda record: record.step) == records
    assert len(store.list(layout.records_prefix(storage.uri, "run", "uid"))) == 2


def test_a_store_that_fails_is_told_once_and_asked_again(store, storage, reporter, monkeypatch):
    put, answers = store.put, [StorageUnavailable("cut"), StorageUnavailable("cut"), None]

    def failing(*arguments):
        if error := answers.pop(0) if answers else None:
            raise error
        return put(*arguments)

    monkeypatch.setattr(store, "put", failing)
    sink = StoredRecords(store, storage.uri, "run", "uid", reporter)
    for number in (1, 2, 3):
        sink.write(step(number))
        sink._put()
    sink.close(60)
    assert stored(store, storage) == [step(1), step(2), step(3)]
    assert [(record.kind, record.task) for record in reporter.sink.all] == [("housekeeping", "records")]


def test_only_rank_0_keeps_a_journal(make_context, make_config, train_task, store, storage):
    config = make_config(train_task([Bucket(resolution="64px", frames=8, batch_size=1)]))
    other = make_context(config, rank=1, size=2)
    with journal(other, "uid") as told:
        assert told is other
    context = make_context(config)
    with journal(context, "uid") as told:
        told.reporter.started(1, 0, 5)
    assert [record.kind for record in context.records.all] == ["started"]
    assert len(store.list(layout.records_prefix(storage.uri, "test", "uid"))) == 1


def test_the_journal_is_closed_when_the_stage_fails(make_context, make_config, train_task, store, storage):
    context = make_context(make_config(train_task([Bucket(resolution="64px", frames=8, batch_size=1)])))

    def work() -> None:
        with journal(context, "uid") as told:
            told.reporter.started(1, 0, 5)
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        work()
    assert store.list(layout.records_prefix(storage.uri, "test", "uid"))


def test_a_store_that_hangs_holds_no_stage(store, storage, reporter, monkeypatch):
    answered = threading.Event()
    monkeypatch.setattr(store, "put", lambda *_: answered.wait())
    sink = StoredRecords(store, storage.uri, "run", "uid", reporter)
    sink.write(step(1))
    sink.close(0.1)
    assert [(record.kind, record.task) for record in reporter.sink.all] == [("housekeeping", "records")]
    answered.set()
    sink._thread.join()


def test_records_of_another_run_under_this_name_are_kept(store, storage, reporter):
    for uid in ("first", "second"):
        sink = StoredRecords(store, storage.uri, "run", uid, reporter)
        sink.write(step(1))
        sink.close(60)
    assert all(len(store.list(layout.records_prefix(storage.uri, "run", uid))) == 1 for uid in ("first", "second"))


@pytest.mark.parametrize(
    ("after", "hang", "grace", "seconds"),
    [
        (0, 600, 120, LEAVING_SECONDS),
        (0, 600, 8, 2.0),
        (10, 600, 120, LAST_SECONDS),
        (10, 8, 120, 2.0),
    ],
)
def test_the_journal_takes_neither_the_grace_of_who_is_to_stop_nor_as_long_as_a_hang(
    make_context, make_config, train_task, drain_after, monkeypatch, after, hang, grace, seconds
):
    config = make_config(train_task([Bucket(resolution="64px", frames=8, batch_size=1)]))
    config = config.model_copy(update={"hang_seconds": hang, "grace_seconds": grace})
    context = replace(make_context(config), drain=drain_after(after))
    given = []
    monkeypatch.setattr(StoredRecords, "close", lambda _, seconds: given.append(seconds))
    with journal(context, "uid"):
        pass
    assert given == [seconds]
