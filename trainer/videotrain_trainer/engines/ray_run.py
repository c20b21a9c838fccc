"""The ray engine: the pods of a stage are a Ray cluster, or an existing one does the units.

Rank 0 finds units, hands them to a stream of Ray Data and stores their results as the local engine does, so that either
goes on where the other was. What is under way on a node that is lost is done again by another; a node that joins is
used at once.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import signal
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from videotrain_trainer import errors
from videotrain_trainer.engines.board import Board, Listing, OpenRange
from videotrain_trainer.engines.interface import SHARE_SECONDS, Member, Unit, UnitRange, Work
from videotrain_trainer.engines.progress import UnitReporter
from videotrain_trainer.engines.ray_node import Cluster, require_ray
from videotrain_trainer.errors import ConfigError, TrainerError
from videotrain_trainer.storage import ObjectStore

AHEAD = 4
"""Units for each CPU of the cluster that are handed out before their turn."""
RANGES_AHEAD = 64
"""Ranges that the listing may be ahead of the cluster."""
DRIVES = 10
"""Drives that may be lost, each with its node, before a stage fails."""
ANSWER_SECONDS = 30.0
"""In which a cluster answers at its address."""
POLL_SECONDS = 0.5
ON_HEAD = {"node:__internal_head__": 0.001}
"""Where a drive runs. Ray Data pins two actors of the cluster to the node of the first drive and never moves them: were
that another node, all drives after its loss would wait for them."""

log = logging.getLogger(__name__)


class RayRun:
    """Rank 0's part of a stage.

    Args:
        member: this process.
        store: object store.
        work: does units.
        ranges: finds them.
        cluster: does them.
        board: keeps the results; by default those of a range together.
    """

    def __init__(
        self,
        member: Member,
        store: ObjectStore,
        work: Work,
        ranges: Iterator[UnitRange],
        cluster: Cluster,
        board: Board | None = None,
    ) -> None:
        self._member, self._work, self._cluster = member, work, cluster
        self.board = board or Board(store, member)
        self._ranges: queue.Queue[tuple[int, UnitRange | None]] = queue.Queue(RANGES_AHEAD)
        self._listing = Listing(self.board, ranges, lambda number, units: self._ranges.put((number, units)))
        self._reporter = UnitReporter(member, self._listing)
        self._listed = False
        self._waiting: deque[Unit] = deque()
        self._under_way: dict[str, Unit] = {}
        self._open: dict[str, OpenRange] = {}
        """By the names of units that have no result."""
        self._done = self._kept = 0
        self._parts: dict[str, int] = {}
        self._used, self._used_before = Counter[str](), Counter[str]()
        """By actors of this drive, and of those that were lost."""
        self._shared_at = time.monotonic()
        self._cpus = 1.0

    def run(self) -> bool:
        """Do all units.

        Returns:
            Whether they are done; False if the world is asked to leave, and what is done is stored.

        Raises:
            TrainerError: a unit ends the stage, or DRIVES drives were lost.
        """
        with connected(self._cluster) as start:
            for number in range(DRIVES):
                try:
                    finished = self._drive(start(self._work))
                    break
                except _Lost as error:
                    log.warning("drive %d was lost with %d units under way: %s", number, len(self._under_way), error)
                    self._waiting.extendleft(self._under_way.values())
                    self._under_way.clear()
                    self._used_before += self._used
                    self._used.clear()
            else:
                raise TrainerError(f"the Ray cluster at {self._cluster.address} lost {DRIVES} drives")
        self._share()
        self._report(ended=True)
        return finished

    def names(self) -> list[str]:
        """Of all ranges, in their order."""
        return self._listing.found.names

    def _drive(self, drive: _Remote) -> bool:
        told_last, leaving_at = False, None
        while True:
            self._listing.wait(0)
            if self._member.asked_to_leave():
                leaving_at = leaving_at or time.monotonic() + self._member.grace_seconds / 2
                if time.monotonic() >= leaving_at or not self._under_way:
                    return False
            elif not told_last:
                units = self._next_units()
                told_last = self._listed and not self._waiting
                drive.offer(units, told_last)
            told = drive.poll(POLL_SECONDS)
            self._take(told)
            if time.monotonic() - self._shared_at >= SHARE_SECONDS:
                self._share()
            self._report()
            if told["trouble"]:
                raise TrainerError(f"the Ray cluster at {self._cluster.address} gives up: {told['trouble']}")
            if told["ended"] and self._under_way:
                raise _Lost("the stream ended without them")
            if told["ended"]:
                return True

    def _next_units(self) -> list[Unit]:
        """As many as the cluster should have beside what is under way."""
        most = AHEAD * max(1, int(self._cpus))
        while len(self._waiting) + len(self._under_way) < most and not self._listed:
            try:
                number, units = self._ranges.get_nowait()
            except queue.Empty:
                break
            self._listed = units is None
            if units is not None:
                self._begin(number, units)
        found = [self._waiting.popleft() for _ in range(min(len(self._waiting), most - len(self._under_way)))]
        self._under_way |= {unit.name: unit for unit in found}
        return found

    def _begin(self, number: int, units: UnitRange) -> None:
        held = self.board.open(number, units)
        missing = [unit for unit in units.units if unit.name not in held.results]
        self._open |= dict.fromkeys((unit.name for unit in missing), held)
        self._waiting += missing
        if not missing:
            self.board.finish(held)

    def _take(self, told: dict[str, Any]) -> None:
        self._parts, self._cpus = told["parts"], told["cpus"] or self._cpus
        self._used = Counter(told["used"])
        for name, text in told["results"]:
            answer, unit = json.loads(text), self._under_way.pop(name, None)
            if "error" in answer:
                raise _error(answer["error"], answer["text"])
            if unit is None:
                continue  # done twice: a node was lost after it had told
            held = self._open.pop(name)
            held.results[name] = answer["result"]
            self._done += unit.weight
            if held.done:
                self.board.finish(held)

    def _share(self) -> None:
        """Store what is done of open ranges; all that is done is kept then."""
        self._shared_at = time.monotonic()
        for held in {id(held): held for held in self._open.values()}.values():
            self.board.keep(held, held.results)
        self._kept = self._done

    def _report(self, ended: bool = False) -> None:
        parts, used = sum(self._parts.values()), self._used + self._used_before
        self._reporter.write(self._kept, self._done - self._kept + parts, ended, used)


def _error(name: str, text: str) -> TrainerError:
    """What a worker raised, as the class that decides how the stage ends."""
    found = getattr(errors, name, TrainerError)
    return found(text) if isinstance(found, type) and issubclass(found, TrainerError) else TrainerError(text)


class _Lost(Exception):
    """The drive is gone with its node; what was under way is done again."""


class _Remote:
    """A drive in the cluster, seen from here."""

    def __init__(self, ray: Any, actor: Any) -> None:
        self._ray, self._actor = ray, actor

    def offer(self, units: list[Unit], last: bool) -> None:
        if units or last:
            self._get(self._actor.offer.remote([(unit.name, unit.weight, dict(unit.facts)) for unit in units], last))

    def poll(self, seconds: float) -> dict[str, Any]:
        told: dict[str, Any] = self._get(self._actor.poll.remote(seconds))
        return told

    def _get(self, reference: Any) -> Any:
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.RayActorError as error:
            if error.actor_init_failed:
                raise ConfigError(
                    "engine ray: the work does not begin there; nodes of a cluster that exists already need this "
                    f"version of the trainer with its extra `ray`: {error}"
                ) from error
            raise _Lost(str(error).splitlines()[0]) from error


@contextmanager
def connected(cluster: Cluster) -> Iterator[Callable[[Work], _Remote]]:
    """A connection to a cluster; gives what begins a drive there.

    Raises:
        ConfigError: Ray is not installed here, or there is no such cluster.
    """
    require_ray()
    os.environ.update(cluster.environment())
    import ray

    before = signal.getsignal(signal.SIGTERM)
    try:
        if not cluster.address.startswith("ray://"):  # where nobody answers, Ray would try for minutes
            host, _, port = cluster.address.rpartition(":")
            socket.create_connection((host, int(port)), ANSWER_SECONDS).close()
        ray.init(address=cluster.address, namespace="videotrain", logging_level=logging.WARNING, log_to_driver=False)
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigError(f"engine ray: no cluster at {cluster.address}: {error}") from error
    signal.signal(signal.SIGTERM, before)  # Ray's would end this process, which has to store what is done
    try:
        yield lambda work: _begin(ray, work)
    finally:
        ray.shutdown()


def _begin(ray: Any, work: Work) -> _Remote:
    from videotrain_trainer.engines.ray_drive import Drive

    actor = ray.remote(Drive).options(num_cpus=0, resources=ON_HEAD, max_concurrency=16, max_restarts=0)
    return _Remote(ray, actor.remote(work))
