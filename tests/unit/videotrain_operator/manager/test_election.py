"""The Lease, with clocks of one's own and a store that refuses stale versions as an API server does."""

import asyncio
import copy
from itertools import count

import pytest

from videotrain_operator.cluster.interface import Conflict, NotFound
from videotrain_operator.kube.client import ApiUnavailable
from videotrain_operator.manager.election import Election, NotLeader


class Leases:
    """One Lease as an API server keeps it."""

    def __init__(self):
        self.lease = None
        self.versions = count(1)
        self.down = False

    def _answer(self):
        if self.down:
            raise ApiUnavailable(0, "ConnectionLost", "down")

    async def get(self, kind, namespace, name):
        self._answer()
        if self.lease is None:
            raise NotFound(name)
        return copy.deepcopy(self.lease)

    async def create(self, manifest, manager):
        self._answer()
        if self.lease is not None:
            raise Conflict("exists")
        self._store(manifest)

    async def replace(self, manifest, manager):
        self._answer()
        if manifest["metadata"]["resourceVersion"] != self.lease["metadata"]["resourceVersion"]:
            raise Conflict("stale")
        self._store(manifest)

    def _store(self, manifest):
        self.lease = copy.deepcopy(manifest)
        self.lease["metadata"]["resourceVersion"] = str(next(self.versions))


class Clock:
    def __init__(self, now=0.0):
        self.now = now

    def __call__(self):
        return self.now


def candidate(leases, name, clock):
    return Election(leases, namespace="ns", name="lease", identity=name, seconds=10, monotonic=clock)


@pytest.fixture
def leases():
    return Leases()


async def test_the_first_one_leads_and_the_second_waits_for_the_whole_duration(leases):
    first_clock, second_clock = Clock(), Clock(1000)
    first, second = candidate(leases, "first", first_clock), candidate(leases, "second", second_clock)
    assert await first._attempt()
    assert not await second._attempt()
    second_clock.now += 9.9
    assert not await second._attempt()
    second_clock.now += 0.2
    assert await second._attempt()
    assert leases.lease["spec"]["holderIdentity"] == "second"
    assert leases.lease["spec"]["leaseTransitions"] == 1


async def test_a_renewal_starts_the_wait_again(leases):
    clock = Clock()
    first, second = candidate(leases, "first", clock), candidate(leases, "second", clock)
    await first._attempt()
    await second._attempt()
    clock.now += 7
    await first._attempt()
    clock.now += 7
    assert not await second._attempt()


async def test_the_holder_stops_writing_before_anybody_may_take_the_lease(leases):
    clock = Clock()
    first, second = candidate(leases, "first", clock), candidate(leases, "second", clock)
    await first._attempt()
    await second._attempt()
    leases.down = True
    moments = []
    for _ in range(120):
        clock.now += 0.1
        await first._attempt()
        if not first.leading:
            moments.append(clock.now)
    leases.down = False
    assert moments[0] < 10, "by its own clock, without an answer from the server"
    with pytest.raises(NotLeader):
        first.fence()


async def test_a_wall_clock_that_is_wrong_changes_nothing(leases):
    clock = Clock()
    first, second = candidate(leases, "first", clock), candidate(leases, "second", clock)
    await first._attempt()
    leases.lease["spec"]["renewTime"] = "1999-01-01T00:00:00.000000Z"
    assert not await second._attempt()


async def test_release_lets_the_next_one_lead_at_once(leases):
    clock = Clock()
    first, second = candidate(leases, "first", clock), candidate(leases, "second", clock)
    await first._attempt()
    await second._attempt()
    await first.release()
    assert not first.leading
    assert await second._attempt()


async def test_release_leaves_a_lease_that_somebody_else_has_taken(leases):
    clock = Clock()
    first = candidate(leases, "first", clock)
    await first._attempt()
    leases.lease["spec"]["holderIdentity"] = "second"
    await first.release()
    assert leases.lease["spec"]["holderIdentity"] == "second"


async def test_of_two_that_take_an_expired_lease_at_once_one_wins(leases):
    clock = Clock()
    await candidate(leases, "gone", clock)._attempt()
    rivals = [candidate(leases, name, clock) for name in ("a", "b")]
    for rival in rivals:
        await rival._attempt()
    clock.now += 20
    won = await asyncio.gather(*(rival._attempt() for rival in rivals))
    assert sorted(won) == [False, True]


async def test_a_process_that_comes_again_under_its_name_takes_its_lease_over_at_once(leases):
    assert await candidate(leases, "pod_uid", Clock())._attempt()
    again = candidate(leases, "pod_uid", Clock(5000))
    assert await again._attempt()
    again.fence()
    assert leases.lease["spec"]["leaseTransitions"] == 0, "the same holder"
