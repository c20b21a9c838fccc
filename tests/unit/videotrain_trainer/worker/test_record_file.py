"""Record files: written by workers that may die at any moment, read while they grow."""

import itertools
import threading
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from videotrain_api.records import (
    CheckpointRecord,
    CurationCounts,
    CurationRecord,
    StartedRecord,
    StepRecord,
    WorkerExit,
)
from videotrain_trainer.agent.tail import RecordTail
from videotrain_trainer.worker.pod import RunFiles
from videotrain_trainer.worker.record_file import RecordFile

START = datetime(2026, 1, 1, tzinfo=UTC)


def step(number, **changes):
    values = {
        "generation": 1,
        "stage": "one",
        "step": number,
        "started_at": START + timedelta(seconds=number - 1),
        "finished_at": START + timedelta(seconds=number),
        "data_stall_us": 100,
        "checkpoint_us": 10,
        "samples": 8,
        "tokens": 80,
        "model_flops": 1e9,
    }
    return StepRecord(**values | changes)


def started(resumed_step=0):
    return StartedRecord(generation=1, stage="one", at=START, world_size=4, resumed_step=resumed_step, total_steps=100)


def curation():
    counts = CurationCounts(clips=3, dropped={"still": 2})
    return CurationRecord(generation=1, stage="one", at=START, counts=counts)


def checkpoint(number):
    return CheckpointRecord(
        generation=1,
        stage="one",
        step=number,
        captured_at=START,
        committed_at=START,
        uri="s3://b/c",
        bytes=1,
        stall_us=0,
    )


@given(st.lists(st.integers(0, 2000), max_size=6))
def test_records_are_read_the_same_however_the_writing_is_cut(tmp_path_factory, cuts):
    path = tmp_path_factory.mktemp("run") / "records"
    written = [started(), step(1), checkpoint(1), step(2), curation()]
    data = b"".join(record.model_dump_json(by_alias=True).encode() + b"\n" for record in written)
    tail, found = RecordTail(path), []
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    for begin, end in itertools.pairwise(edges):
        with path.open("ab") as file:
            file.write(data[begin:end])
        records, errors = tail.read()
        assert errors == []
        found += records
    assert found == written
    assert tail.torn == b""


def test_a_line_without_an_end_is_not_read(tmp_path):
    path = tmp_path / "records"
    path.write_bytes(step(1).model_dump_json().encode() + b"\n" + b'{"kind":"step","gen')
    tail = RecordTail(path)
    assert tail.read() == ([step(1)], [])
    assert tail.torn == b'{"kind":"step","gen'


def test_a_damaged_line_is_told_and_the_lines_behind_it_are_read(tmp_path):
    path = tmp_path / "records"
    path.write_bytes(b'{"kind":"step","gen\n' + step(2).model_dump_json().encode() + b"\n")
    records, errors = RecordTail(path).read()
    assert records == [step(2)]
    assert "line 1" in str(errors[0])
    assert str(path) in str(errors[0])


def test_a_file_that_does_not_exist_yet_has_no_records(tmp_path):
    assert RecordTail(tmp_path / "records").read() == ([], [])


def test_threads_write_whole_lines(tmp_path):
    files = RunFiles(tmp_path)
    sink = RecordFile(files, 1, 0)

    def write(first):
        for number in range(first, first + 200):
            sink.write(step(number))

    threads = [threading.Thread(target=write, args=(1000 * k,)) for k in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    records, errors = RecordTail(files.records(1, 0)).read()
    assert errors == []
    assert sorted(record.step for record in records) == [1000 * k + n for k in range(1, 5) for n in range(200)]


@pytest.mark.parametrize(("local_rank", "lines"), [(0, 2), (1, 0)])
def test_only_local_rank_0_keeps_records_and_every_rank_knows_its_step(tmp_path, local_rank, lines):
    files = RunFiles(tmp_path)
    sink = RecordFile(files, 3, local_rank)
    sink.write(started(resumed_step=40))
    assert sink.step == 40
    sink.write(step(41))
    assert sink.step == 41
    records, _ = RecordTail(files.records(3, local_rank)).read()
    assert len(records) == lines


def test_an_exit_record_has_a_file_of_its_own(tmp_path):
    files = RunFiles(tmp_path)
    record = WorkerExit(
        generation=3, stage="one", local_rank=1, at=START, code=65, outcome="failed", step=7, message="gone"
    )
    RecordFile(files, 3, 1).write(record)
    assert WorkerExit.model_validate_json(files.exit(3, 1).read_text()) == record
    assert [path.name for path in tmp_path.iterdir()] == ["exit-3-1.json"]
