"""Work of threads that goes ahead of whoever takes its results, as far as bytes allow."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, NamedTuple, TypeVar

Result = TypeVar("Result")


class _Waiting(NamedTuple, Generic[Result]):
    size: int
    work: Callable[[], Result]


class DecodeAhead(Generic[Result]):
    """Results in the order in which their work was put, made by threads meanwhile.

    For one thread that takes at a time, and others that put. Decoders release Python's lock while they decode and
    resize, so threads do.

    Args:
        threads: pieces of work at the same time.
        budget: bytes of results that are being made or wait to be taken. One piece of work may be larger; it then is
            the only one.
    """

    def __init__(self, threads: int, budget: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        self._most, self._budget = 4 * threads, budget
        self._waiting: deque[_Waiting[Result]] = deque()
        self._begun: deque[tuple[int, Future[Result]]] = deque()
        self._lock = threading.Lock()
        self.held = 0
        """Bytes of results that are being made or wait to be taken."""

    def put(self, size: int, work: Callable[[], Result]) -> None:
        """Have a result made.

        Args:
            size: of the result, bytes.
            work: makes it, in a thread.
        """
        with self._lock:
            self._waiting.append(_Waiting(size, work))
            self._begin()

    def take(self) -> Result:
        """The next result, waited for; what its work raised is raised here."""
        size, result = self._begun[0]
        try:
            return result.result()
        finally:
            with self._lock:
                self._begun.popleft()
                self.held -= size
                self._begin()

    def close(self) -> None:
        """Give up what has not begun, and wait for the rest."""
        with self._lock:
            self._waiting.clear()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _begin(self) -> None:
        while self._waiting and len(self._begun) < self._most:
            size, work = self._waiting[0]
            if self._begun and self.held + size > self._budget:
                return
            self._waiting.popleft()
            self.held += size
            self._begun.append((size, self._pool.submit(work)))
