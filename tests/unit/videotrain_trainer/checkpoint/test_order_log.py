from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from pathlib import Path

import pytest

from videotrain_api.resource.trainrun import Storage
from videotrain_api.storage.artifacts import CheckpointManifest, OrderLine, SourceIds
from videotrain_trainer.checkpoint.order_log import OrderLog
from videotrain_trainer.storage import ObjectStore
from videotrain_trainer.worker.stage_reporter import StageReporter

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def store():
    return ObjectStore.for_storage(Storage(uri="s3://unused-bucket"))


def lines(first, last):
    return [OrderLine(step=n, epoch=0, bucket="b", ids=[f"x{n}", f"y{n}"]) for n in range(first, last + 1)]


class Records:
    def __init__(self):
        self.all = []

    def write(self, record):
        self.all.append(record)


def order_log(store, prefix, resumed=None):
    records = Records()
    reporter = StageReporter(sink=records, generation=1, stage="s", config_hash="h")
    return OrderLog(store, prefix, resumed, reporter), records


def manifest(segments, digest, step):
    return CheckpointManifest(
        run="r",
        stage="s",
        config_hash="h",
        generation=1,
        step=step,
        world_size=1,
        captured_at=NOW,
        committed_at=NOW,
        files=[],
        data_cursor={},
        order=segments,
        order_sha256=digest,
        samples=0,
    )


def expected(last):
    text = "".join(f"{n} x{n} y{n}\n" for n in range(1, last + 1))
    return hashlib.sha256(text.encode()).hexdigest()


def test_the_hash_is_that_of_all_lines_however_they_are_cut_into_segments(store, tmp_path):
    whole, parts = (order_log(store, f"file://{tmp_path}/{name}")[0] for name in ("whole", "parts"))
    parts.append(lines(1, 2), 1)
    assert whole.append(lines(1, 5), 1)[1] == parts.append(lines(3, 5), 1)[1] == expected(5)


def test_a_restart_goes_on_with_the_hash_from_the_stored_segments(store, tmp_path):
    prefix = f"file://{tmp_path}"
    segments, digest = order_log(store, prefix)[0].append(lines(1, 3), 1)
    resumed = order_log(store, prefix, manifest(segments, digest, 3))[0]
    segments, digest = resumed.append(lines(4, 6), 2)
    assert digest == expected(6)
    assert [(s.first_step, s.last_step, s.generation) for s in segments] == [(1, 3, 1), (4, 6, 2)]


def drop_last_line(text):
    return "".join(text.splitlines(keepends=True)[:-1])


def change_a_sample(text):
    return text.replace("y2", "z2")


@pytest.mark.parametrize("harm", [drop_last_line, change_a_sample, None])
def test_an_old_segment_that_cannot_be_read_back_is_told_and_checkpoints_go_on(store, tmp_path, harm):
    prefix = f"file://{tmp_path}"
    segments, digest = order_log(store, prefix)[0].append(lines(1, 3), 1)
    path = Path(segments[0].uri.removeprefix("file://"))
    whole = path.read_text()
    path.write_text(harm(whole)) if harm else path.unlink()
    log, records = order_log(store, prefix, manifest(segments, digest, 3))
    segments, digest = log.append(lines(4, 5), 2)
    assert (digest, [s.last_step for s in segments]) == ("", [3, 5])
    assert [record.task for record in records.all] == ["order"]
    assert segments[0].uri in records.all[0].message
    path.write_text(whole)
    assert log.append(lines(6, 7), 2)[1] == expected(7)
    assert len(records.all) == 1


def test_segments_that_fit_their_checksums_and_not_the_hash_are_told(store, tmp_path):
    prefix = f"file://{tmp_path}"
    segments, _ = order_log(store, prefix)[0].append(lines(1, 3), 1)
    log, records = order_log(store, prefix, manifest(segments, "0" * 64, 3))
    assert log.append(lines(4, 4), 2)[1] == ""
    assert "do not give the hash" in records.all[0].message


def test_lines_that_cannot_be_written_go_into_the_next_segment(store, tmp_path):
    prefix = f"file://{tmp_path}"
    log, records = order_log(store, prefix)
    (tmp_path / "order").write_text("a file where a folder should be")
    assert log.append(lines(1, 2), 1) == ([], expected(2))
    (tmp_path / "order").unlink()
    segments, digest = log.append(lines(3, 4), 1)
    assert ([(s.first_step, s.last_step) for s in segments], digest) == ([(1, 4)], expected(4))
    assert [record.task for record in records.all] == ["order"]


def mixed(step):
    sources = [SourceIds(name="web", epoch=0, places=[1]), SourceIds(name="film", epoch=0, places=[0, 2])]
    return OrderLine(step=step, epoch=0, bucket="b", ids=["a", "b", "c"], sources=sources)


def test_samples_are_counted_by_source_over_restarts(store, tmp_path):
    prefix = f"file://{tmp_path}"
    log = order_log(store, prefix)[0]
    segments, digest = log.append([mixed(1), mixed(2)], 1)
    assert log.source_samples == {"film": 4, "web": 2}
    stored = manifest(segments, digest, 2).model_copy(update={"source_samples": log.source_samples})
    reporter = StageReporter(sink=Records(), generation=2, stage="s", config_hash="h")
    resumed = OrderLog(store, prefix, stored, reporter, [mixed(3)])  # what copies in memory had beyond it
    resumed.append([mixed(4)], 2)
    assert resumed.source_samples == {"film": 8, "web": 4}
    plain = order_log(store, f"{prefix}/plain")[0]
    plain.append(lines(1, 2), 1)
    assert plain.source_samples == {}


def test_a_checkpoint_of_a_version_that_did_not_count_is_counted_from_its_lines_or_told_nothing(store, tmp_path):
    prefix = f"file://{tmp_path}"
    segments, digest = order_log(store, prefix)[0].append([mixed(1), mixed(2)], 1)
    path = Path(segments[0].uri.removeprefix("file://"))
    whole = path.read_text()
    path.unlink()
    resumed, _ = order_log(store, prefix, manifest(segments, digest, 2))
    assert resumed.append([mixed(3)], 2)[1] == "" and resumed.source_samples == {}
    path.write_text(whole)
    assert resumed.append([mixed(4)], 2)[1] and resumed.source_samples == {"film": 8, "web": 4}
