"""Two operators, one after the other: what the former one sent reaches the API server whenever it likes, or never.

Its last passes read what was there then. Each of their writes is under way for some seconds, in any order, while the
next operator acts and users and machines go on. What is not there is created by POST, what is there is changed by its
uid, as `KubeCluster` does. VIDEOTRAIN_LATE_SEEDS says how many histories are tried (20 if unset).
"""

from __future__ import annotations

import os
import pickle
import random
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import pytest
from support.planner_lives import KEY, cluster_of

from videotrain_api.records import AgentProgress
from videotrain_api.schema import Json
from videotrain_operator.cluster.interface import Conflict, NotFound
from videotrain_operator.reconcile import reconcile
from videotrain_operator.simulation.cluster import SimulatedCluster
from videotrain_operator.simulation.replay import replay, settle

SEEDS = range(int(os.environ.get("VIDEOTRAIN_LATE_SEEDS", "20")))
LONGEST_SECONDS = 15


class Unanswered(Exception):
    """The former operator hears nothing of its write; it leads no more before it does."""


class FormerOperator:
    """A cluster as the former operator has it: from its last writes on, all are under way."""

    def __init__(self, cluster: SimulatedCluster, dice: random.Random, writes: int) -> None:
        self.cluster, self.dice = cluster, dice
        self.writes = writes
        """Of its writes, so many are carried out at once."""
        self.seen = cluster
        """What it reads: the cluster, and what that was when the first write was under way."""
        self.under_way: list[tuple[int, Callable[[], Awaitable[object]]]] = []
        self.second = 0
        self.deleted: list[str] = []
        """Uids of what its writes deleted late."""

    async def get(self, kind: str, namespace: str, name: str) -> Json:
        return await self.seen.get(kind, namespace, name)

    async def list(self, kind: str, namespace: str, labels: Mapping[str, str] | None = None) -> list[Json]:
        return await self.seen.list(kind, namespace, labels)

    def signing_key(self, run_uid: str) -> bytes:
        return self.seen.signing_key(run_uid)

    async def progress(self, address: str, key: bytes) -> AgentProgress | None:
        return await self.seen.progress(address, key)

    async def emit_event(self, regarding: Json, type_: str, reason: str, message: str, **_: Any) -> None:
        """Events do no harm."""

    async def apply(self, manifest: Json, manager: str = "") -> Json:
        kind, head = manifest["kind"], manifest["metadata"]
        known = self.seen.objects.get((kind, head["name"]))
        uid = {} if known is None else {"uid": known["metadata"]["uid"]}

        async def arrive() -> Json:
            if known is None and (kind, head["name"]) in self.cluster.objects:
                raise Conflict("exists")
            return await self.cluster.apply(manifest | {"metadata": head | uid})

        return await self._send(arrive, manifest)

    async def delete(self, kind: str, namespace: str, name: str, *, uid: str, grace_seconds: int | None = None) -> None:
        async def arrive() -> Json:
            before = self.cluster.objects.get((kind, name), {}).get("metadata", {})
            await self.cluster.delete(kind, namespace, name, uid=uid, grace_seconds=grace_seconds)
            if self.seen is not self.cluster:
                self.deleted.append(before.get("uid", uid))
            return {}

        await self._send(arrive, {})

    async def replace_status(self, kind: str, namespace: str, name: str, status: Json, resource_version: str) -> Json:
        async def arrive() -> Json:
            return await self.cluster.replace_status(kind, namespace, name, status, resource_version)

        return await self._send(arrive, self.seen.run | {"status": status})

    async def _send(self, arrive: Callable[[], Awaitable[Json]], answer: Json) -> Json:
        """Of late writes most are answered in time for the pass to go on to its next; one in a while is not."""
        self.writes -= 1
        if self.writes >= 0:
            return await arrive()
        if self.seen is self.cluster:
            self.seen = pickle.loads(pickle.dumps(self.cluster))
        self.under_way.append((self.second + self.dice.randint(1, LONGEST_SECONDS), arrive))
        if self.dice.random() < 0.1:
            raise Unanswered
        return answer

    async def lead(self) -> None:
        """Look after the run until writes stay under way, for some seconds at most."""
        for _ in range(12):
            requeue: float | None = 0
            while requeue == 0 and self.seen is self.cluster:
                try:
                    requeue = (await reconcile(self, KEY, lambda: self.seen.now, self)).requeue_seconds
                except (Unanswered, Conflict, NotFound):
                    continue
            if self.seen is not self.cluster:
                return
            self.cluster.tick()
            assert len(self.cluster.alive_generations[-1]) <= 1
        self.seen = pickle.loads(pickle.dumps(self.cluster))

    async def deliver(self) -> None:
        """One second goes by on the way."""
        self.second += 1
        due = [arrive for at, arrive in self.under_way if at <= self.second]
        self.under_way = [item for item in self.under_way if item[0] > self.second]
        self.dice.shuffle(due)
        for arrive in due:
            try:
                await arrive()
            except (Conflict, NotFound):
                continue


def happen(cluster: SimulatedCluster, dice: random.Random) -> None:
    """Something that makes an operator write."""
    pods = [body["metadata"]["name"] for body in cluster.pods() if body["status"]["phase"] == "Running"]
    kinds: list[Callable[[], Any]] = [
        lambda: cluster.edit(suspend=not cluster.run["spec"].get("suspend", False)),
        lambda: cluster.edit(suspend=not cluster.run["spec"].get("suspend", False)),
        lambda: cluster.edit(nodes={"min": 1, "max": dice.randint(1, 3)}),
        lambda: cluster.reclaim(dice.choice(list(cluster.nodes))),
        lambda: pods and cluster.finish_pod(dice.choice(pods), 1),
        lambda: pods and cluster.fail_worker(dice.choice(pods), 1),
        lambda: cluster.lose_node(dice.choice(list(cluster.nodes))),
    ]
    dice.choice(kinds)()


async def lived(cluster: SimulatedCluster, seconds: int) -> None:
    """What one operator does in so many seconds."""
    for _ in range(seconds):
        await settle(cluster)
        cluster.tick()
        assert len(cluster.alive_generations[-1]) <= 1


@pytest.mark.parametrize("seed", SEEDS)
async def test_writes_of_a_former_operator_never_make_two_worlds_and_touch_nothing_made_since(seed: int) -> None:
    dice = random.Random(seed)
    patient = {
        "hangSeconds": 8,
        "startSeconds": 30,
        "graceSeconds": 3,
        "sameStepLimit": 50,
        "limits": {"application": 50},
    }
    cluster = cluster_of(machines=4, steps=40, failurePolicy=patient)
    await lived(cluster, 9)
    happen(cluster, dice)
    former = FormerOperator(cluster, dice, writes=dice.randint(0, 12))
    await former.lead()
    there = {body["metadata"]["uid"] for body in cluster.objects.values()}
    number = int(cluster.run["status"]["generation"])
    for second in range(LONGEST_SECONDS + 1):
        await former.deliver()
        if second in (3, 7):
            happen(cluster, dice)
        await lived(cluster, 1)
        number, before = int(cluster.run["status"]["generation"]), number
        assert number >= before
    assert not former.under_way
    assert set(former.deleted) <= there, "nothing that was made after the takeover is deleted by who led before"
    cluster.edit(suspend=False, nodes={"min": 1, "max": 3})
    for node in list(cluster.nodes):
        cluster.uncordon(node)
        cluster.restore_node(node)
    status = await replay(cluster, {}, seconds=150)
    assert status.phase == "Succeeded", status.conditions
