"""What training will wait for its data: a replay of the loaders of a world, step by step, with modelled answers.

A rank's loader is a queue. Samples are asked for in the order in which they are trained on, by so many threads; so many
micro-batches are made ready ahead of the one that is trained on. What a request takes is decided by its place in the
order, never by the time. A step ends when the slowest rank has computed it. All of that is sums and maxima of times, so
what is asked for earlier is never there later: reading further ahead, faster answers and more bandwidth never make a
world wait longer.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b
from statistics import NormalDist
from typing import Final, Protocol

LOADER_THREADS: Final = 8
"""Samples that a rank of a train stage reads at the same time."""
MICRO_BATCHES_AHEAD: Final = 4
"""Micro-batches that a rank makes ready while one is trained on."""
_NORMAL: Final = NormalDist()
_P99: Final = _NORMAL.inv_cdf(0.99)
_BITS: Final = 53
"""Of a number between 0 and 1."""


class Answers(Protocol):
    """How long an object store takes from a request to the first byte of its answer."""

    def seconds(self, rank: int, number: int) -> float:
        """For a rank's request of that number in its order; the same whenever it is asked."""


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Answers that are spread log-normally, with stalls among them."""

    p50_seconds: float
    """Half of the answers come within it."""
    p99_seconds: float
    """99 of 100 do, of those that do not stall."""
    stalled_share: float = 0.0
    """Share of the requests that stall."""
    stall_seconds: float = 0.0
    """What such a request takes."""
    hedge_quantile: float | None = None
    """A second request is sent once this share of the answers would have come, and the first answer counts; no second
    one if None."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.p50_seconds <= self.p99_seconds or (self.p99_seconds and not self.p50_seconds):
            raise ValueError(
                f"latency: p50 {self.p50_seconds}, p99 {self.p99_seconds}; allowed: 0 < p50 <= p99, or both 0"
            )
        if not 0 <= self.stalled_share <= 1 or self.stall_seconds < 0:
            raise ValueError(
                f"latency: a share of {self.stalled_share} stalls for {self.stall_seconds} s; allowed: 0 to 1, and 0 "
                "or more"
            )
        if self.hedge_quantile is not None and not 0 < self.hedge_quantile < 1:
            raise ValueError(f"latency: a second request after {self.hedge_quantile}; allowed: between 0 and 1")

    def quantile(self, share: float) -> float:
        """Seconds within which so large a share of the answers come that do not stall."""
        if not self.p50_seconds:
            return 0.0
        spread = self.p99_seconds / self.p50_seconds
        return float(self.p50_seconds * spread ** (_NORMAL.inv_cdf(share) / _P99))

    def seconds(self, rank: int, number: int) -> float:
        """Until the first answer to a request, or to its second one."""
        bits = blake2b(b"%d %d %d" % (self.seed, rank, number), digest_size=32).digest()
        first = self._one(bits[:16])
        if self.hedge_quantile is None:
            return first
        after = self.quantile(self.hedge_quantile)
        return first if first <= after else min(first, after + self._one(bits[16:]))

    def _one(self, bits: bytes) -> float:
        stalls, place = (int.from_bytes(part, "big") >> 64 - _BITS for part in (bits[:8], bits[8:]))
        if stalls < self.stalled_share * 2**_BITS:
            return self.stall_seconds
        return self.quantile((place + 0.5) / 2**_BITS)


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How a rank's loader reads."""

    threads: int
    """Requests of a rank at the same time."""
    ahead: int
    """Micro-batches that are asked for while one is trained on."""
    answers: Answers
    rank_bytes_per_second: float
    """Its share of what the node's network and the store give; may be infinite."""
    cpu_seconds: float = 0.0
    """Of a thread for each sample beside waiting: checksum, decoding."""


@dataclass(frozen=True, kw_only=True)
class StepLoad:
    """One optimizer step of the order, on one rank."""

    micro_batches: int
    """That a rank runs; those with fewer are not the slowest."""
    samples: int
    """Of a micro-batch."""
    sample_bytes: float
    seconds: float
    """Of computing one micro-batch."""


@dataclass(frozen=True)
class DataWait:
    """What a replay tells, from the end of its first step on: what that waits for is part of the start."""

    steps: int
    seconds: float
    """Of these steps, waiting included."""
    waited: float
    """Seconds of them in which the world did not compute, since a rank had no batch."""

    @property
    def share(self) -> float:
        """Of the time."""
        return self.waited / self.seconds if self.seconds else 0.0


class RankLoader:
    """The loader of one rank: when is each micro-batch ready?"""

    def __init__(self, rank: int, reading: Reading) -> None:
        self._rank, self._reading = rank, reading
        self._threads = [0.0] * reading.threads
        """When each is free."""
        self._wanted = deque([0.0] * reading.ahead, maxlen=reading.ahead)
        """When the last micro-batches were wanted, as many as are asked for ahead."""
        self._line = 0.0
        """When the network has given all bytes that were asked for."""
        self._number = 0

    def step(self, load: StepLoad, clock: float) -> float:
        """Seconds that the rank waits in a step that the world begins at `clock`."""
        waited = 0.0
        for _ in range(load.micro_batches):
            wait = max(0.0, self.ready(load, clock) - clock)
            waited, clock = waited + wait, clock + wait + load.seconds
        return waited

    def ready(self, load: StepLoad, wanted: float) -> float:
        """When the next micro-batch is ready.

        Args:
            load: whose micro-batch it is.
            wanted: when the rank has computed all before it.
        """
        # It was asked for when the one that is `ahead` before it was wanted.
        asked = self._wanted[0] if self._wanted else wanted
        self._wanted.append(wanted)
        reading, moves, latest = self._reading, load.sample_bytes / self._reading.rank_bytes_per_second, 0.0
        for _ in range(load.samples):
            start = max(asked, heapq.heappop(self._threads))
            answered = start + reading.answers.seconds(self._rank, self._number)
            self._line = max(self._line, start) + moves
            done = max(answered + moves, self._line) + reading.cpu_seconds
            heapq.heappush(self._threads, done)
            self._number += 1
            latest = max(latest, done)
        return latest


def data_wait(steps: Iterable[StepLoad], ranks: int, reading: Reading) -> DataWait:
    """Replay the loaders of a world.

    Args:
        steps: in the order in which they are trained, as many as are to be replayed.
        ranks: that read.
        reading: how each reads.
    """
    loaders = [RankLoader(rank, reading) for rank in range(ranks)]
    clock = seconds = waited = 0.0
    count = 0
    for load in steps:
        # All ranks compute for as long, so the slowest is the one that waits most.
        wait = max(loader.step(load, clock) for loader in loaders)
        took = wait + load.micro_batches * load.seconds
        clock += took
        if count:
            waited, seconds = waited + wait, seconds + took
        count += 1
    return DataWait(max(0, count - 1), seconds, waited)
