from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from pathlib import Path

import pytest

from videotrain_api.resource.trainrun import Storage
from videotrain_api.storage.artifacts import CheckpointManifest, OrderLine
from videotrain_trainer.checkpoint.order_log import OrderLog
from videotrain_trainer.errors import DataError
from videotrain_trainer.storage import ObjectStore

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def store():
    return ObjectStore.for_storage(Storage(uri="s3://unused-bucket"))


def lines(first, last):
    return [OrderLine(step=n, epoch=0, bucket="b", ids=[f"x{n}", f"y{n}"]) for n in range(first, last + 1)]


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
    whole, parts = (OrderLog(store, f"file://{tmp_path}/{name}", None) for name in ("whole", "parts"))
    parts.append(lines(1, 2), 1)
    assert whole.append(lines(1, 5), 1)[1] == parts.append(lines(3, 5), 1)[1] == expected(5)


def test_a_restart_goes_on_with_the_hash_from_the_stored_segments(store, tmp_path):
    prefix = f"file://{tmp_path}"
    segments, digest = OrderLog(store, prefix, None).append(lines(1, 3), 1)
    resumed = OrderLog(store, prefix, manifest(segments, digest, 3))
    segments, digest = resumed.append(lines(4, 6), 2)
    assert digest == expected(6)
    assert [(s.first_step, s.last_step, s.generation) for s in segments] == [(1, 3, 1), (4, 6, 2)]


def test_a_changed_segment_is_refused(store, tmp_path):
    prefix = f"file://{tmp_path}"
    segments, digest = OrderLog(store, prefix, None).append(lines(1, 3), 1)
    path = Path(segments[0].uri.removeprefix("file://"))
    path.write_text(path.read_text().replace("y2", "z2"))
    with pytest.raises(DataError, match="do not give the hash"):
        OrderLog(store, prefix, manifest(segments, digest, 3)).append(lines(4, 4), 2)


def test_a_segment_with_a_missing_step_is_refused(store, tmp_path):
    prefix = f"file://{tmp_path}"
    segments, digest = OrderLog(store, prefix, None).append(lines(1, 3), 1)
    path = Path(segments[0].uri.removeprefix("file://"))
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(DataError, match="steps 1 to 3, each once"):
        OrderLog(store, prefix, manifest(segments, digest, 3)).append([], 2)
