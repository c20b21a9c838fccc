"""A process that is busy keeps its Lease, and one that hangs lets it go."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from itertools import count
from typing import Any

import pytest
from support.processes import SECONDS

from videotrain_operator.cluster.clock import Clock
from videotrain_operator.cluster.interface import NotFound
from videotrain_operator.manager.election import Election, NotLeader
from videotrain_operator.manager.election_thread import ElectionThread, RelayedClock

LEASE_SECONDS = 0.5


class Leases:
    """A Lease whose renewals are counted, whichever thread makes them."""

    def __init__(self) -> None:
        self.lease: Any = None
        self.versions = count(1)
        self.threads: set[str] = set()
        self.written = threading.Semaphore(0)

    async def get(self, kind: str, namespace: str, name: str) -> Any:
        if self.lease is None:
            raise NotFound(name)
        return self.lease

    async def create(self, manifest: Any, manager: str) -> None:
        self.threads.add(threading.current_thread().name)
        self.lease = manifest | {"metadata": manifest["metadata"] | {"resourceVersion": str(next(self.versions))}}
        self.written.release()

    replace = create


@asynccontextmanager
async def election(leases: Leases, alive: threading.Event) -> AsyncIterator[ElectionThread]:
    @asynccontextmanager
    async def connect() -> AsyncIterator[Any]:
        yield leases

    def elect(client: Any) -> Election:
        given = {"namespace": "ns", "name": "lease", "identity": "a", "seconds": LEASE_SECONDS}
        return Election(client, **given, alive=alive.is_set)

    async with ElectionThread(connect, elect) as found:
        yield found


@pytest.fixture
def alive() -> threading.Event:
    event = threading.Event()
    event.set()
    return event


async def test_a_loop_that_is_held_for_longer_than_the_lease_lasts_keeps_it(alive: threading.Event) -> None:
    leases = Leases()
    async with election(leases, alive) as lease:
        with pytest.raises(NotLeader):
            lease.fence()
        await lease.acquire()
        keeping = asyncio.create_task(lease.keep())
        await asyncio.sleep(0)
        begun = time.monotonic()
        while time.monotonic() - begun < 2 * LEASE_SECONDS:  # the loop does not turn: this thread waits for the other
            assert leases.written.acquire(timeout=SECONDS)
        lease.fence()
        assert not keeping.done()
        assert leases.threads == {"election"}
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
        await lease.release()
        with pytest.raises(NotLeader):
            lease.fence()
    assert leases.lease["spec"]["holderIdentity"] == ""


async def test_a_process_that_hangs_lets_its_lease_run_out_and_takes_none(alive: threading.Event) -> None:
    async with election(Leases(), alive) as lease:
        await lease.acquire()
        alive.clear()
        await asyncio.wait_for(lease.keep(), SECONDS)
        with pytest.raises(NotLeader):
            lease.fence()
        again = asyncio.create_task(lease.acquire())
        await asyncio.wait({again}, timeout=2 * LEASE_SECONDS)
        assert not again.done()
        alive.set()
        await asyncio.wait_for(again, SECONDS)
        lease.fence()


async def test_what_a_server_tells_the_election_of_the_time_is_known_to_the_process() -> None:
    clock = Clock(lambda: 100.0)
    relayed = RelayedClock(clock, asyncio.get_running_loop())
    await asyncio.to_thread(relayed.note, datetime(2026, 1, 1, tzinfo=UTC), 100.0, 100.0)
    await asyncio.sleep(0)
    assert clock.now() == datetime(2026, 1, 1, tzinfo=UTC)
