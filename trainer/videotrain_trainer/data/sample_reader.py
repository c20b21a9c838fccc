"""Reads samples from the object store: one ranged GET each, and a second one for what is late.

A few answers of any object store take seconds where most take milliseconds, and a step waits for its slowest sample. A
request that takes longer than 95 of 100 like it is asked a second time over other connections, and a third time if that
is late too; whichever answer comes first whole and right is taken. A budget bounds what is asked beyond one request a
sample, so that a store that is slow as a whole is not asked twice for everything.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, replace
from typing import Final

from torch import Tensor

from videotrain_trainer.checksums import READINGS
from videotrain_trainer.data.sample_cache import CacheCounts, SampleCache
from videotrain_trainer.data.shards import DamagedSample, Member, check_member, tensors_of
from videotrain_trainer.errors import ObjectMissing
from videotrain_trainer.storage import ObjectStore

AT_ONCE: Final = 64
"""Requests of a process that may be on their way; most wait for nothing but a stalled answer."""
EXTRA_SHARE: Final = 0.1
"""Requests beyond one a sample, over the samples that were asked for."""
EXTRA_AT_ONCE: Final = 8
"""So many may come in a row, also before a share of that many has been saved up."""
PAUSE_SECONDS: Final = 1.0
"""Before a sample is read again without budget, times the reading."""
MOST_OF_A_SAMPLE: Final = 3
"""Requests that are waited for at a time: of the thousands of samples of a step some are unlucky twice."""
KNOWN: Final = 20
"""Answers by which it is known what is late."""
LATE_UNKNOWN_SECONDS: Final = 2.0
"""What is late before that."""
LEAST_LATE_SECONDS: Final = 0.02
RECENT: Final = 256
"""Answers of a size that are remembered."""
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ReadingCounts:
    """What was asked for samples so far, in this process."""

    samples: int = 0
    """Asked of the object store."""
    requests: int = 0
    """All of them, without those that the client of the object store repeats by itself."""
    second: int = 0
    """Requests beside ones that were late."""
    second_first: int = 0
    """Of those, how many were answered first."""
    again: int = 0
    """Requests for samples whose bytes did not fit or whose shard was not there."""
    slowest_us: int = 0
    """99th percentile of the time from asking for a sample until it is there, of the last RECENT, microseconds."""
    cache_hits: int = 0
    """Samples that the node's cache had; nothing was asked for them."""
    cache_misses: int = 0
    cache_bytes: int = 0
    """Of samples in the node's cache, of all its processes."""


class Budget:
    """Allows extra requests as a share of all. Safe to use from any thread."""

    def __init__(self, share: float = EXTRA_SHARE, at_once: float = EXTRA_AT_ONCE) -> None:
        self._share, self._most, self._saved = share, at_once, at_once
        self._lock = threading.Lock()

    def earn(self) -> None:
        """A sample is asked for."""
        with self._lock:
            self._saved = min(self._most, self._saved + self._share)

    def take(self) -> bool:
        """May one more request be made?"""
        with self._lock:
            if self._saved < 1:
                return False
            self._saved -= 1
            return True


class Latencies:
    """How long answers of about a size take. Safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_size: dict[int, deque[float]] = {}
        self._late: dict[int, float] = {}
        self._all: deque[float] = deque(maxlen=RECENT)

    def add(self, length: int, seconds: float) -> None:
        """Note an answer of `length` bytes."""
        size = length.bit_length()
        with self._lock:
            self._all.append(seconds)
            known = self._by_size.setdefault(size, deque(maxlen=RECENT))
            known.append(seconds)
            # Sorted anew now and then: what is late changes slowly.
            if len(known) >= KNOWN and (size not in self._late or len(self._all) % 16 == 0):
                self._late[size] = max(LEAST_LATE_SECONDS, sorted(known)[int(0.95 * len(known))])

    def late(self, length: int) -> float:
        """Seconds after which 95 of 100 such answers are there."""
        with self._lock:
            return self._late.get(length.bit_length(), LATE_UNKNOWN_SECONDS)

    def slowest(self) -> float:
        """99th percentile of the newest answers, seconds."""
        with self._lock:
            return sorted(self._all)[int(0.99 * len(self._all))] if self._all else 0.0


class SampleReader:
    """Reads members of shards, verified. Safe to use from any thread.

    Args:
        store: where shards lie.
        cache: of this node; what is read stays there, and is read from there.
    """

    def __init__(self, store: ObjectStore, cache: SampleCache | None = None) -> None:
        self._store, self._beside, self._cache = store, store.reconnected(), cache
        self._budget, self._latencies = Budget(), Latencies()
        self._lock = threading.Lock()
        self._counts = ReadingCounts()
        self._requests = _Threads(AT_ONCE)

    def counts(self) -> ReadingCounts:
        """So far."""
        with self._lock:
            found = self._counts
        kept = self._cache.counts() if self._cache is not None else CacheCounts()
        return replace(
            found,
            slowest_us=int(1e6 * self._latencies.slowest()),
            cache_hits=kept.hits,
            cache_misses=kept.misses,
            cache_bytes=kept.used_bytes,
        )

    def close(self) -> None:
        """Begin no request any more; one that is stalled is not waited for."""
        self._requests.close()

    def read(self, uri: str, member: Member) -> bytes:
        """The bytes of a sample.

        Raises:
            DamagedSample: READINGS times in a row the shard was missing or the bytes did not fit their checksum.
            StorageUnavailable: the object store keeps failing.
        """
        kept = self._cache.get(uri, member) if self._cache is not None else None
        if kept is not None:
            return kept
        self._budget.earn()
        self._count(samples=1)
        began, store = time.monotonic(), self._store
        for reading in range(1, READINGS + 1):
            try:
                data = self._first_answer(store, uri, member)
                break
            except (DamagedSample, ObjectMissing) as error:
                if reading == READINGS and isinstance(error, ObjectMissing):
                    raise DamagedSample(
                        f"{uri}: the shard of sample {member.name} is missing, as {READINGS} readings say"
                    ) from error
                if reading == READINGS:
                    raise
                log.info("read again: %s", error)
            if not self._budget.take():
                time.sleep(PAUSE_SECONDS * reading)
            self._count(again=1)
            store = store.reconnected()
        self._latencies.add(member.length, time.monotonic() - began)
        if self._cache is not None:
            self._cache.put(uri, member, data)
        return data

    def tensors(self, uri: str, member: Member) -> dict[str, Tensor]:
        """The tensors of a sample; the checksum was verified before a byte is interpreted. Raises as `read` does."""
        return tensors_of(uri, member, self.read(uri, member))

    def _first_answer(self, store: ObjectStore, uri: str, member: Member) -> bytes:
        asked = [self._ask(store, uri, member)]
        while True:
            done, waiting = wait(asked, self._latencies.late(member.length), FIRST_COMPLETED)
            answer = next((future for future in done if future.exception() is None), None)
            if answer is not None:
                self._count(second_first=int(answer is not asked[0]))
                return answer.result()
            if not waiting:
                return asked[0].result()
            # What one connection spoils another may give whole, so an answer that is no good leaves the others.
            if len(asked) == MOST_OF_A_SAMPLE or done or not self._budget.take():
                wait(waiting, return_when=FIRST_COMPLETED)
                continue
            self._count(second=1)
            asked.append(self._ask(self._beside, uri, member))

    def _ask(self, store: ObjectStore, uri: str, member: Member) -> Future[bytes]:
        self._count(requests=1)

        def ask() -> bytes:
            data = store.get_range(uri, member.offset, member.length)
            check_member(uri, member, data)
            return data

        return self._requests.submit(ask)

    def _count(self, **more: int) -> None:
        with self._lock:
            counts = {name: getattr(self._counts, name) + by for name, by in more.items()}
            self._counts = replace(self._counts, **counts)


class _Threads:
    """Runs calls in threads that no end of the process waits for: one may hang in a request for a minute."""

    def __init__(self, most: int) -> None:
        self._most, self._started, self._unfinished = most, 0, 0
        self._lock = threading.Lock()
        self._calls: queue.SimpleQueue[tuple[Future[bytes], Callable[[], bytes]] | None] = queue.SimpleQueue()

    def submit(self, call: Callable[[], bytes]) -> Future[bytes]:
        """Have a call made."""
        future: Future[bytes] = Future()
        with self._lock:
            self._calls.put((future, call))
            self._unfinished += 1
            if self._started < min(self._unfinished, self._most):
                self._started += 1
                threading.Thread(target=self._work, name=f"sample-{self._started}", daemon=True).start()
        return future

    def close(self) -> None:
        """Let the threads end, each after the call that it is in."""
        with self._lock:
            for _ in range(self._started):
                self._calls.put(None)

    def _work(self) -> None:
        while (found := self._calls.get()) is not None:
            future, call = found
            try:
                future.set_result(call())
            except BaseException as error:  # told by whoever asks for the result
                future.set_exception(error)
            with self._lock:
                self._unfinished -= 1
