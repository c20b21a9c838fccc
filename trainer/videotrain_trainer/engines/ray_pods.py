"""The pods of a stage as a Ray cluster of their own: one node in each, the head in the leader's.

A world that gains or loses a pod is another generation, and has another cluster; what was done is kept by the board.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator

from pydantic import TypeAdapter

from videotrain_api import vocabulary as names
from videotrain_trainer.checksums import read_checked, sealed_json, unsealed_json
from videotrain_trainer.engines.board import Board, wait_for
from videotrain_trainer.engines.interface import Member, UnitRange, Work
from videotrain_trainer.engines.ray_node import Cluster, RayNode, free_port, require_ray
from videotrain_trainer.engines.ray_run import RayRun
from videotrain_trainer.parallel.peers import WorldPeers
from videotrain_trainer.storage import ObjectStore

_CLUSTER = TypeAdapter(list[str])
STAY_SECONDS = 0.2
"""Between two looks for rank 0's end, by a node that is asked to leave and still has units under way."""


class RayPods:
    """One process's part of a stage.

    Args:
        member: this process.
        store: object store.
        work: does units.
        ranges: finds them; used by rank 0 alone.
        workers: of a pod.
        local_rank: of this process in its pod; the first one starts the pod's node.
        gpus: devices of the pod.
        board: keeps the results; by default those of a range together.
    """

    def __init__(
        self,
        member: Member,
        store: ObjectStore,
        work: Work,
        ranges: Iterator[UnitRange],
        workers: int,
        local_rank: int,
        gpus: int,
        board: Board | None = None,
    ) -> None:
        self._member, self._store, self._work, self._ranges = member, store, work, ranges
        self._workers, self._local_rank, self._gpus = workers, local_rank, gpus
        self._host = os.environ.get(names.ENV_POD_IP, "127.0.0.1")
        self.board = board or Board(store, member)
        self._names: list[str] = []

    def run(self) -> bool:
        """As LocalRun.run. Collective: every rank of the world calls it."""
        require_ray()
        return self._lead() if self._member.rank == 0 else self._follow()

    def names(self) -> list[str]:
        """Rank 0's: of all ranges, in their order."""
        return self._names

    def _lead(self) -> bool:
        cluster = Cluster(f"{self._host}:{free_port(self._host)}", secrets.token_hex(32))
        node = RayNode(cluster, self._host, True, self._workers, self._gpus)
        try:
            node.wait()
            if self._member.size > 1:
                WorldPeers().from_first(_CLUSTER, [cluster.address, cluster.token])
            engine = RayRun(self._member, self._store, self._work, self._ranges, cluster, self.board)
            finished = False
            try:
                finished = engine.run()
            finally:
                self._store.put(self._ended_uri(), sealed_json({"finished": finished}))
            self._names = engine.names()
            return finished
        finally:
            node.close()

    def _follow(self) -> bool:
        address, token = WorldPeers().from_first(_CLUSTER, None)
        if self._local_rank != 0:
            return self._wait()
        node = RayNode(Cluster(address, token), self._host, False, self._workers, self._gpus)
        try:
            node.wait()
            return self._wait()
        finally:
            node.close()

    def _wait(self) -> bool:
        """Until rank 0 has ended: what is under way here may be finished within the grace period."""
        uri = self._ended_uri()
        if not wait_for(self._member, self._store, uri):
            until = time.monotonic() + self._member.grace_seconds / 2
            while not self._store.exists(uri):
                if time.monotonic() > until:
                    return False
                time.sleep(STAY_SECONDS)
        return bool(read_checked(self._store, uri, unsealed_json)["finished"])

    def _ended_uri(self) -> str:
        return f"{self.board.folder}/ray-ended.json"
