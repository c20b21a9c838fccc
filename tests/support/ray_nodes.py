"""Ray nodes of a test, and what happens to them while a stage runs."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from videotrain_trainer.engines.interface import Member, Tick, Unit, Used
from videotrain_trainer.engines.ray_node import Cluster, RayNode, free_port

HOST = "127.0.0.1"
STORE_BYTES = 100 * 1024**2
TOKEN = "a token that only this cluster knows"


class Records:
    """A record sink that keeps what it gets."""

    def __init__(self) -> None:
        self.all: list[Any] = []

    def write(self, record: Any) -> None:
        self.all.append(record)

    def steps(self) -> list[int]:
        return [record.step for record in self.all if record.kind == "step"]


class Nodes:
    """The nodes of one cluster on this machine."""

    def __init__(self) -> None:
        self.cluster = Cluster(f"{HOST}:{free_port(HOST)}", TOKEN)
        self._nodes: list[RayNode] = []
        self._seen: set[psutil.Process] = set()

    def start(self, cpus: int = 1, wait: bool = True) -> None:
        """One more; the first is the head."""
        node = RayNode(self.cluster, HOST, not self._nodes, cpus, store_bytes=STORE_BYTES)
        self._nodes.append(node)
        if wait:
            node.wait()

    @property
    def client(self) -> Cluster:
        """The cluster as clients know it that run on no node of it."""
        return Cluster(f"ray://{HOST}:{self._nodes[0].client_port}", TOKEN)

    def kill(self, number: int) -> None:
        """All processes of a node at once, as a machine dies."""
        self.note()
        for process in self._nodes[number].processes():
            process.kill()

    def workers(self) -> list[psutil.Process]:
        """Actors of the pool; those that have not named themselves yet count by their decoders."""
        processes = [process for node in self._nodes for process in node.processes()]
        return named(processes, "Doer") or decoders()

    def holding(self, name: str) -> list[int]:
        """The number of its node for each process that has this in its name."""
        return [number for number, node in enumerate(self._nodes) for _ in named(node.processes(), name)]

    def note(self) -> None:
        """Remember all processes, for `left`."""
        self._seen.update(process for node in self._nodes for process in node.processes())

    def close(self) -> None:
        """End all nodes."""
        self.note()
        for node in self._nodes:
            node.close()

    def left(self) -> list[psutil.Process]:
        """Processes of closed nodes that still run."""
        return [one for one in self._seen if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]


class Squares:
    """Work whose results are the squares of numbers."""

    units_at_once, gpus = 1, 0

    def open(self, _: Path) -> Squares:
        return self

    def do(self, unit: Unit, tick: Tick) -> dict[str, Any]:
        tick(0)
        return {"square": unit.facts["number"] ** 2}

    def used(self) -> Used:
        return {}

    def close(self) -> None:
        pass


def named(processes: list[psutil.Process], name: str) -> list[psutil.Process]:
    """Those that live and have this in their names."""
    found = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            if name in process.name():
                found.append(process)
    return found


def decoders() -> list[psutil.Process]:
    """Decoder processes below this one."""
    return named(psutil.Process().children(recursive=True), "vt-decoder")


@contextlib.contextmanager
def disturbed(member: Member, *deeds: tuple[int, Callable[[], object]]) -> Iterator[list[int]]:
    """Does things to a run once it is so far, by its own records, from a thread; gives the steps of what was done."""
    steps, done, over = member.reporter.sink.steps, list[int](), threading.Event()

    def run() -> None:
        left = list(deeds)
        while left and not over.wait(0.05):
            if steps() and steps()[-1] >= left[0][0]:
                at, deed = left.pop(0)
                deed()
                done.append(at)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield done
    finally:
        over.set()
        thread.join()
