"""A torchelastic rendezvous in which the roster has decided everything: members, ranks and the store's address.

Like torch's `static` one, but that the store listens on the loopback interface of the leader's pod: other members come
to it through their agents; see `agent/gate.py`.
"""

from __future__ import annotations

from datetime import timedelta

from torch._C._distributed_c10d import PrefixStore, TCPStore
from torch.distributed import DistError
from torch.distributed.elastic.rendezvous import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousStoreInfo,
)

from videotrain_trainer.errors import PeerLost


class RosterRendezvous(RendezvousHandler):
    """The world of one generation; node 0 hosts the store."""

    def __init__(
        self,
        store: tuple[str, int],
        descriptor: int | None,
        node_rank: int,
        nodes: int,
        run_id: str,
        timeout: timedelta,
    ) -> None:
        """Connect to nothing yet.

        Args:
            store: address and port of the store or of the way to it.
            descriptor: socket on which the store is to listen, if it is in this pod.
            node_rank: of this pod.
            nodes: pods of the world.
            run_id: the run's uid and the generation, joined by a dash.
            timeout: how long to wait for the others.
        """
        self._address, self._port = store
        self._descriptor = descriptor
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
            PeerLost: the leader's store did not answer in time, or members are missing.
        """
        try:
            store = TCPStore(
                self._address,
                self._port,
                self._nodes,
                is_master=self._descriptor is not None,
                timeout=self._timeout,
                multi_tenant=True,
                master_listen_fd=self._descriptor,
            )
        except DistError as error:
            raise PeerLost(f"the members of the world do not come together: {error}") from error
        info = RendezvousStoreInfo(self._address, self._port)
        return RendezvousInfo(PrefixStore(self._run_id, store), self._node_rank, self._nodes, info)

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
