"""Replays reading of samples without waiting: drawn delays, a clock that jumps, the reader's own code."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Any
from unittest.mock import patch

import google_crc32c

from videotrain_trainer.data import sample_reader
from videotrain_trainer.data.sample_reader import ReadingCounts, SampleReader
from videotrain_trainer.data.shards import Member

DATA = bytes(64)
MEMBER = Member(name="a", offset=0, length=len(DATA), crc32c=google_crc32c.value(DATA))
MEDIAN, SPREAD, STALL_SECONDS = 0.030, 0.52, 2.0
"""Of an object store's answers: half come within 30 ms, 99 of 100 within 100 ms; a stalled one after two seconds."""


class Store:
    """Nothing is asked of it: `Request` draws when the answer is there."""

    def reconnected(self) -> Store:
        return self


class Request:
    """An answer that is there once the clock says so; what `Future` is to the reader."""

    def __init__(self, due: float) -> None:
        self.due = due

    def exception(self) -> None:
        return None

    def result(self) -> bytes:
        return DATA


def waits(
    stalled: float, reads: int, seed: int, *, prepare: Callable[[SampleReader], None] = lambda _: None
) -> tuple[list[float], ReadingCounts]:
    """Seconds that each of so many samples is waited for, one after the other, and what was asked for them.

    Args:
        stalled: share of the requests that stall.
        reads: samples.
        seed: of the delays.
        prepare: changes the reader before.
    """
    draw = random.Random(seed)
    now = 0.0

    def ask(*_: Any) -> Request:
        reader._count(requests=1)
        # Two draws whatever comes of them, so that the same requests are alike with and without stalls.
        late, usual = draw.random() < stalled, MEDIAN * math.exp(draw.gauss(0, SPREAD))
        return Request(now + (STALL_SECONDS if late else usual))

    def wait(asked: Sequence[Request], timeout: float | None = None, return_when: str = "") -> Any:
        nonlocal now
        limit = math.inf if timeout is None else now + timeout
        now = max(now, min(limit, *(request.due for request in asked)))
        done = [request for request in asked if request.due <= now]
        return done, [request for request in asked if request.due > now]

    class Clock:
        @staticmethod
        def monotonic() -> float:
            return now

    found = []
    reader = SampleReader(Store())  # type: ignore[arg-type]
    prepare(reader)
    with (
        patch.object(sample_reader, "wait", wait),
        patch.object(sample_reader, "time", Clock),
        patch.object(reader, "_ask", ask),
    ):
        for _ in range(reads):
            began = now
            assert reader.read("s3://x", MEMBER) == DATA
            found.append(now - began)
    return found, reader.counts()


def percentile(seconds: Sequence[float], percent: float) -> float:
    """Of so many waits."""
    return sorted(seconds)[int(percent / 100 * len(seconds))]
