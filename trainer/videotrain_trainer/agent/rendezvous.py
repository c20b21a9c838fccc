"""A torchelastic rendezvous in which the roster has decided everything: members, ranks and the store's address.

Like torch's `static` one, with two differences: the store listens on the leader's own address only, so that worlds on
one machine do not meet; and followers look for it every 20 ms instead of once a second.
"""

from __future__ import annotations

import contextlib
import socket
import time
from datetime import timedelta

from torch._C._distributed_c10d import PrefixStore, TCPStore
from torch.distributed.elastic.rendezvous import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousStoreInfo,
)

from videotrain_trainer.errors import PeerLost


class RosterRendezvous(RendezvousHandler):
    """The world of one generation; node 0 hosts the store."""

    def __init__(self, endpoint: str, node_rank: int, nodes: int, run_id: str, timeout: timedelta) -> None:
        address, _, port = endpoint.rpartition(":")
        self._address = address.strip("[]")
        self._port = int(port)
        self._node_rank = node_rank
        self._nodes = nodes
        self._run_id = run_id
        self._timeout = timeout

    def get_backend(self) -> str:
        """Name of the backend."""
        return "roster"

    @property
    def use_agent_store(self) -> bool:
        """Workers use this store and make none of their own."""
        return True

    def next_rendezvous(self) -> RendezvousInfo:
        """Wait until every member is there.

        Raises:
            PeerLost: the leader's store did not answer in time.
        """
        descriptor = self._listen() if self._node_rank == 0 else None
        if descriptor is None:
            self._await_leader()
        store = TCPStore(
            self._address,
            self._port,
            self._nodes,
            is_master=descriptor is not None,
            timeout=self._timeout,
            multi_tenant=True,
            master_listen_fd=descriptor,
        )
        info = RendezvousStoreInfo(self._address, self._port)
        return RendezvousInfo(PrefixStore(self._run_id, store), self._node_rank, self._nodes, info)

    def _listen(self) -> int:
        family = socket.AF_INET6 if ":" in self._address else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((self._address, self._port))
        return listener.detach()

    def _await_leader(self) -> None:
        deadline = time.monotonic() + self._timeout.total_seconds()
        while True:
            with contextlib.suppress(OSError), socket.create_connection((self._address, self._port), timeout=1.0):
                return
            if time.monotonic() > deadline:
                raise PeerLost(f"the leader's store {self._address}:{self._port} does not answer")
            time.sleep(0.02)

    def is_closed(self) -> bool:
        """Membership never changes within a generation."""
        return False

    def set_closed(self) -> None:
        """Nothing to close: the store ends with the leader's launcher."""

    def num_nodes_waiting(self) -> int:
        """Nobody can wait to join: a newcomer gets a roster of a later generation."""
        return 0

    def get_run_id(self) -> str:
        """The run's uid and the generation, joined by a dash: the name under which members meet."""
        return self._run_id

    def shutdown(self) -> bool:
        """Nothing to shut down."""
        return True
