"""One pass and the loop around it: observe, plan, apply; look again when woken or when the plan asks for it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from videotrain_api.schema import ManifestError
from videotrain_api.trainrun import VideoTrainingRun
from videotrain_api.vocabulary import KIND
from videotrain_operator.cluster.agents import Agents
from videotrain_operator.cluster.apply import apply
from videotrain_operator.cluster.interface import Cluster, Conflict, Json, NotFound, WatchEvent
from videotrain_operator.cluster.observe import observe
from videotrain_operator.planner.decision import Plan
from videotrain_operator.planner.observed import Observed
from videotrain_operator.planner.plan import plan, plan_refusal

FIRST_BACKOFF_SECONDS: Final = 0.5
LONGEST_BACKOFF_SECONDS: Final = 30.0
RESYNC_SECONDS: Final = 60.0
"""Look again after so long even if nothing seems to have changed: a watch may have lost an event."""
Clock = Callable[[], datetime]
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RunKey:
    """Which run."""

    namespace: str
    name: str


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one pass saw and did."""

    run: Json
    observed: Observed
    plan: Plan
    at: datetime
    seconds: float
    """How long the pass took."""

    @property
    def requeue_seconds(self) -> float | None:
        """When to look again; None when only a change matters."""
        return self.plan.requeue_seconds


def utc_now() -> datetime:
    """The wall clock."""
    return datetime.now(UTC)


async def reconcile(
    cluster: Cluster, key: RunKey, clock: Clock, agents: Agents, departed: tuple[Json, ...] = ()
) -> Outcome:
    """One pass over one run.

    Args:
        cluster: where the run lives.
        key: which run.
        clock: tells the time, aware.
        agents: asks the worker pods.
        departed: Pod objects as they were when they were deleted, if a watch saw it.

    Raises:
        NotFound: the run is gone.
        Conflict: something changed meanwhile; do it again.
    """
    begun = time.monotonic()
    run, observed = await observe(cluster, key.namespace, key.name, agents, departed)
    now = clock()
    decided = _decide(run, observed, now)
    await apply(cluster, run, decided)
    return Outcome(run=run, observed=observed, plan=decided, at=now, seconds=time.monotonic() - begun)


def _decide(run: Json, observed: Observed, now: datetime) -> Plan:
    try:
        parsed = VideoTrainingRun.from_wire(run)
    except ManifestError as error:
        return plan_refusal(run, error, now)
    return plan(parsed, observed, now)


class RunLoop:
    """Runs the passes of one run, one after another, until the run is gone or the task is cancelled."""

    def __init__(
        self,
        cluster: Cluster,
        key: RunKey,
        agents: Agents,
        *,
        clock: Clock = utc_now,
        on_outcome: Callable[[Outcome], None] | None = None,
        on_error: Callable[[Exception], None] | None = None,
    ) -> None:
        self._cluster, self._key, self._agents, self._clock = cluster, key, agents, clock
        self._on_outcome, self._on_error = on_outcome, on_error
        self._woken = asyncio.Event()
        self._departed: dict[str, Json] = {}
        self._desired: object = None

    def wake(self) -> None:
        """Look now."""
        self._woken.set()

    def notice(self, event: WatchEvent) -> None:
        """Take note of a change; wakes unless it is the loop's own status write.

        Args:
            event: a change of the run or of an object that carries its labels.
        """
        body = event.object
        if body["kind"] == KIND:
            head = body["metadata"]
            desired = (event.type == "DELETED", head.get("generation"), head.get("deletionTimestamp"))
            if desired == self._desired:
                return
            self._desired = desired
        if body["kind"] == "Pod" and event.type == "DELETED":
            self._departed[body["metadata"]["uid"]] = body
        if body["kind"] in ("ConfigMap", "Service") and event.type != "DELETED":
            return
        self.wake()

    async def run(self) -> None:
        """Pass after pass."""
        backoff = FIRST_BACKOFF_SECONDS
        while True:
            self._woken.clear()
            departed = dict(self._departed)
            try:
                outcome = await reconcile(self._cluster, self._key, self._clock, self._agents, tuple(departed.values()))
            except NotFound:
                _log.info("run=%s/%s gone", self._key.namespace, self._key.name)
                return
            except Conflict as conflict:
                self._report(conflict)
                await self._pause(FIRST_BACKOFF_SECONDS / 10)
                continue
            except Exception as error:
                _log.exception("run=%s/%s pass=failed", self._key.namespace, self._key.name)
                self._report(error)
                await self._pause(backoff)
                backoff = min(2 * backoff, LONGEST_BACKOFF_SECONDS)
                continue
            backoff = FIRST_BACKOFF_SECONDS
            for uid in departed:
                self._departed.pop(uid, None)
            if self._on_outcome is not None:
                self._on_outcome(outcome)
            await self._pause(RESYNC_SECONDS if outcome.requeue_seconds is None else outcome.requeue_seconds)

    def _report(self, error: Exception) -> None:
        if self._on_error is not None:
            self._on_error(error)

    async def _pause(self, seconds: float) -> None:
        """Until woken, at most so long."""
        try:
            async with asyncio.timeout(max(0.0, seconds)):
                await self._woken.wait()
        except TimeoutError:
            return
