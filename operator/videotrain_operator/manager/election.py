"""Leader election by a Lease, with a fence for every write and a release at the end.

Nobody compares clocks: a candidate measures on its own monotonic clock how long the Lease has not been renewed, and the
holder stops writing, by its own, before anybody may think so. `kubernetes.aio.leaderelection` compares wall clocks and
keeps the Lease when it goes, which costs the next leader its whole duration.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Final

from videotrain_api.schema import Json
from videotrain_api.times import rfc3339
from videotrain_operator.cluster.interface import Conflict, NotFound
from videotrain_operator.kube.client import ApiError, KubeClient

MANAGER: Final = "videotrain-operator-election"
_log = logging.getLogger(__name__)


class NotLeader(Conflict):
    """This process does not hold the Lease, or cannot be sure of it: it must not write."""


class Election:
    """Campaigns for a Lease and keeps it."""

    def __init__(
        self,
        client: KubeClient,
        *,
        namespace: str,
        name: str,
        identity: str,
        seconds: float,
        monotonic: Callable[[], float] = time.monotonic,
        alive: Callable[[], bool] = lambda: True,
    ) -> None:
        """Begin as a standby; `acquire` campaigns for the Lease.

        Args:
            client: where the Lease is.
            namespace: its namespace.
            name: its name.
            identity: who campaigns; unlike any other process.
            seconds: duration of the Lease.
            monotonic: this process's clock.
            alive: whether the process still does what a leader is for. One that hangs neither takes the Lease nor
                renews it.
        """
        self._client = client
        self._namespace, self._name, self._identity = namespace, name, identity
        self._seconds = seconds
        self._monotonic = monotonic
        self._alive = alive
        self._renewed_at: float | None = None
        self._seen: tuple[str, float] = ("", 0.0)
        self.transitions = 0
        """How often this process became leader."""

    @property
    def renew_seconds(self) -> float:
        """Between renewals; three may fail before the Lease is lost."""
        return self._seconds / 5

    @property
    def leading(self) -> bool:
        """The Lease is held, for certain."""
        # Written off a fifth before anybody else may take it: a write that starts now has time to arrive.
        held = self._renewed_at
        return held is not None and self._monotonic() - held < 0.8 * self._seconds

    def fence(self) -> None:
        """Stand before every write.

        Raises:
            NotLeader: this process must not write.
        """
        if not self.leading:
            raise NotLeader(f"{self._identity} does not hold the lease {self._namespace}/{self._name}")

    async def acquire(self) -> None:
        """Return when the Lease is held."""
        while not (self._alive() and await self._attempt()):
            await asyncio.sleep(min(1.0, self.renew_seconds))
        self.transitions += 1
        _log.info("leading: %s holds the lease %s/%s", self._identity, self._namespace, self._name)

    async def keep(self) -> None:
        """Renew; return when the Lease is lost."""
        while self.leading:
            await asyncio.sleep(self.renew_seconds)
            if self._alive():
                await self._attempt()
        self._renewed_at = None
        _log.warning("not leading any more: the lease %s/%s could not be renewed", self._namespace, self._name)

    async def release(self) -> None:
        """Give the Lease back, so that the next leader need not wait."""
        if not self.leading:
            return
        # First, whatever comes of the request: no write of ours may follow one that gives the Lease away.
        self._renewed_at = None
        with suppress(ApiError, Conflict, NotFound):
            lease = await self._client.get("Lease", self._namespace, self._name)
            if lease["spec"].get("holderIdentity") == self._identity:
                await self._client.replace(lease | {"spec": lease["spec"] | {"holderIdentity": ""}}, manager=MANAGER)
                _log.info("released the lease %s/%s", self._namespace, self._name)

    async def _attempt(self) -> bool:
        """Take or renew the Lease; whether it is held now."""
        # Before the request: the others count from the moment at which the server stored it, which is later.
        asked_at = self._monotonic()
        try:
            async with asyncio.timeout(self._seconds / 2):
                lease = await self._read()
                if not self._may_take(lease):
                    self._renewed_at = None
                    return False
                await self._write(lease)
        except Conflict:
            return False
        except (ApiError, NotFound, TimeoutError) as error:
            _log.warning("lease %s/%s: %s", self._namespace, self._name, str(error) or "no answer in time")
            return False
        self._renewed_at = asked_at
        return True

    async def _read(self) -> Json | None:
        try:
            return await self._client.get("Lease", self._namespace, self._name)
        except NotFound:
            return None

    def _may_take(self, lease: Json | None) -> bool:
        if lease is None:
            return True
        spec = lease.get("spec") or {}
        holder = spec.get("holderIdentity")
        if not holder or holder == self._identity:
            return True
        version = lease["metadata"]["resourceVersion"]
        now = self._monotonic()
        if self._seen[0] != version:
            self._seen = (version, now)
        duration = float(spec.get("leaseDurationSeconds") or self._seconds)
        return now - self._seen[1] >= duration

    async def _write(self, lease: Json | None) -> None:
        now = rfc3339(datetime.now(UTC), "microseconds")
        old: Json = (lease or {}).get("spec") or {}
        taken_over = old.get("holderIdentity") != self._identity
        spec = old | {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": max(1, round(self._seconds)),
            "renewTime": now,
            "acquireTime": now if taken_over else old.get("acquireTime", now),
            "leaseTransitions": int(old.get("leaseTransitions") or 0) + (1 if taken_over and lease else 0),
        }
        if lease is None:
            metadata = {"name": self._name, "namespace": self._namespace}
            manifest = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": spec}
            await self._client.create(manifest, MANAGER)
        else:
            await self._client.replace(lease | {"spec": spec}, manager=MANAGER)
