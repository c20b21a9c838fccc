"""One pass and the loop around it: observe, plan, apply; look again when woken or when the plan asks for it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Final

from videotrain_api.resource.stored_status import with_unknown_fields
from videotrain_api.resource.training_budgets import TrainingBudget
from videotrain_api.resource.trainrun import VideoTrainingRun
from videotrain_api.schema import Json, ManifestError
from videotrain_api.vocabulary import ANNOTATION_PROFILE, KIND, Phase
from videotrain_operator.cluster.agents import Agents
from videotrain_operator.cluster.apply import apply, tell_nobody, whenever_changed
from videotrain_operator.cluster.arrivals import ARRIVAL_SECONDS, Arrivals
from videotrain_operator.cluster.interface import Cluster, Conflict, NamespaceGoing, NotFound, WatchEvent
from videotrain_operator.cluster.observe import observe
from videotrain_operator.cluster.orphans import release_orphans
from videotrain_operator.cluster.recent_events import record_recent, with_events
from videotrain_operator.cluster.status_writes import Memory
from videotrain_operator.cluster.unreconciled import FAILED_PASSES, hold_to_limits, tell_unreconciled, warn_unreconciled
from videotrain_operator.planner.cluster_rules import ClusterRules
from videotrain_operator.planner.decision import Plan
from videotrain_operator.planner.observed import Observed
from videotrain_operator.planner.plan import plan, plan_refusal

FIRST_BACKOFF_SECONDS: Final = 0.5
LONGEST_BACKOFF_SECONDS: Final = 30.0
RESYNC_SECONDS: Final = 300.0
"""Look again after so long even if nothing seems to have changed: a watch may have lost an event."""
RESTING_SETTLE_SECONDS: Final = 2.0
"""Least time between passes over a run that is over or suspended: its pods leave one after another, without haste."""
_RESTING: Final = (Phase.SUCCEEDED, Phase.FAILED, Phase.SUSPENDED)
_DEFAULT_RULES: Final = ClusterRules()
Clock = Callable[[], datetime]
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RunKey:
    """The namespace and name of a run; another run may have them later."""

    namespace: str
    name: str


@dataclass(frozen=True)
class Following:
    """How well the pods of a run are followed."""

    since: datetime | None = None
    """Since when every pod that went is told of; always if None."""
    unheard_seconds: float = 0.0
    """How long ago the server told anything about pods."""


_FOLLOWED: Final = Following()


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one pass saw and did."""

    run: Json
    observed: Observed
    plan: Plan
    status: Json
    """The plan's status as it is stored."""
    at: datetime
    seconds: float
    """How long the pass took."""

    @property
    def requeue_seconds(self) -> float | None:
        """When to look again; None when only a change matters."""
        return self.plan.requeue_seconds


async def reconcile(
    cluster: Cluster,
    key: RunKey,
    clock: Clock,
    agents: Agents,
    departed: tuple[Json, ...] = (),
    memory: Memory | None = None,
    nodes_untrusted: str = "",
    time_untrusted: str = "",
    rules: ClusterRules = _DEFAULT_RULES,
    following: Following = _FOLLOWED,
    on_roster: Callable[[Observed, Plan], None] | None = None,
    while_asking: Callable[[], AbstractAsyncContextManager[object]] = nullcontext,
    budgets: tuple[TrainingBudget, ...] | None = (),
) -> Outcome:
    """One pass over one run.

    Args:
        cluster: where the run lives.
        key: which run.
        clock: tells the time, aware.
        agents: asks the worker pods.
        departed: Pod objects as they were when they were deleted, if a watch saw it.
        memory: what the pass before left unwritten; without it every change of the status is written.
        nodes_untrusted: why nodes are not trusted; empty while they are.
        time_untrusted: why the clock may be wrong; empty if it is not.
        rules: what every run is held to.
        following: how well pods are followed.
        on_roster: told as soon as a roster is stored, while the pass goes on.
        while_asking: entered while agents are asked.
        budgets: those of teams, as they are stored; None if nobody knows them yet.

    Raises:
        NotFound: the run is gone.
        Conflict: something changed meanwhile; do it again.
    """
    begun = time.monotonic()
    # Before the look: asking agents takes a while, and a pod may go meanwhile.
    looked_at = clock() - timedelta(seconds=following.unheard_seconds)
    newest = memory.with_unwritten_status if memory else _as_stored
    run, observed = await observe(
        cluster, key.namespace, key.name, agents, departed, following.since, newest, while_asking
    )
    observed = replace(
        observed,
        looked_at=looked_at,
        nodes_untrusted=nodes_untrusted,
        time_untrusted=time_untrusted,
        budgets=budgets,
    )
    now = clock()
    parse = memory.parse if memory else VideoTrainingRun.from_wire
    decided = _decide(newest(run), observed, now, parse, rules)
    status = with_unknown_fields(run.get("status"), decided.status.to_wire())
    status = with_events(status, decided.events, now)
    due = memory.due if memory else whenever_changed
    tell = partial(on_roster, observed) if on_roster else tell_nobody
    written = await apply(cluster, run, decided, status, now, due, tell)
    if memory is None or memory.is_new:
        await record_recent(cluster, run, now)
    if written and written.get("status") == status:
        status = written["status"]  # the cache has it too: once in memory
    if memory:
        memory.keep(written or run, status, written=written is not None)
        decided = _look_earlier(decided, None if written else memory.look_seconds)
    return Outcome(run=run, observed=observed, plan=decided, status=status, at=now, seconds=time.monotonic() - begun)


def _as_stored(run: Json) -> Json:
    return run


def _look_earlier(decided: Plan, seconds: float | None) -> Plan:
    if seconds is None or (decided.requeue_seconds is not None and decided.requeue_seconds <= seconds):
        return decided
    return replace(decided, requeue_seconds=max(seconds, 0.1))


def _decide(
    run: Json, observed: Observed, now: datetime, parse: Callable[[Json], VideoTrainingRun], rules: ClusterRules
) -> Plan:
    try:
        parsed = parse(run)
    except ManifestError as error:
        return plan_refusal(run, observed, error, now)
    return plan(parsed, observed, now, rules)


class RunLoop:
    """Runs the passes of one run, one after another, until the run is gone or the task is cancelled."""

    def __init__(
        self,
        cluster: Cluster,
        key: RunKey,
        agents: Agents,
        *,
        clock: Clock,
        memory: Memory | None = None,
        turns: AbstractAsyncContextManager[object] | None = None,
        while_asking: Callable[[], AbstractAsyncContextManager[object]] = nullcontext,
        settle_seconds: float = 0.0,
        nodes_untrusted: Callable[[], str] = lambda: "",
        time_untrusted: Callable[[], str] = lambda: "",
        rules: Callable[[], ClusterRules] = lambda: _DEFAULT_RULES,
        budgets: Callable[[], tuple[TrainingBudget, ...] | None] = tuple,
        unheard_seconds: Callable[[], float] = lambda: 0.0,
        on_roster: Callable[[Observed, Plan], None] | None = None,
        on_outcome: Callable[[Outcome], None] | None = None,
        on_error: Callable[[Exception], None] | None = None,
    ) -> None:
        """Begin without a task: `run` is to be awaited or made one.

        Args:
            cluster: where the run lives.
            key: which run.
            agents: asks the worker pods.
            clock: tells the time, aware.
            memory: what passes leave unwritten; without it every change of the status is written.
            turns: entered around each pass; bounds how many runs are worked on at the same time.
            while_asking: entered within a pass while agents are asked, of which thousands may do so at the same time.
            settle_seconds: least time between passes, so that changes that come together make one pass. A first
                change after a calm is acted on at once.
            nodes_untrusted: tells why nodes are not trusted; empty while they are.
            time_untrusted: tells why the clock may be wrong; empty if it is not.
            rules: tells what every run is held to.
            budgets: tells those of teams.
            unheard_seconds: tells how long ago the server told anything about pods.
            on_roster: told of a roster as soon as it is stored.
            on_outcome: told of every pass.
            on_error: told of every pass that failed.
        """
        self._cluster, self._key, self._agents, self._clock = cluster, key, agents, clock
        self._memory, self._turns, self._nodes_untrusted = memory, turns or nullcontext(), nodes_untrusted
        self._settle_seconds, self._time_untrusted, self._rules = settle_seconds, time_untrusted, rules
        self._budgets = budgets
        self._on_roster, self._on_outcome, self._on_error = on_roster, on_outcome, on_error
        self._while_asking = while_asking
        self._unheard_seconds = unheard_seconds
        self._followed_since: datetime | None = None
        self._woken = asyncio.Event()
        self._departed: dict[str, Json] = {}
        self._desired: object = None
        self._arrivals = Arrivals()
        self._later: asyncio.TimerHandle | None = None
        self._may_have_orphans = False
        self.failures = 0
        """Passes that failed in a row, conflicts not counted."""
        self._warned, self._told = False, False
        """Of passes that fail an event was told, and the status tells."""

    def wake(self) -> None:
        """Make the next pass now, or right after the one that goes on."""
        self._woken.set()

    def notice(self, event: WatchEvent) -> None:
        """Take note of a change; wakes unless it is the loop's own status write.

        Args:
            event: a change of the run or of an object that carries its labels.
        """
        body = event.object
        if body["kind"] == KIND:
            head = body["metadata"]
            asked = (head.get("annotations") or {}).get(ANNOTATION_PROFILE)
            desired = (event.type == "DELETED", head.get("generation"), head.get("deletionTimestamp"), asked)
            if desired == self._desired:
                return
            self._desired = desired
            self._may_have_orphans = self._may_have_orphans or event.type == "DELETED"
        if body["kind"] == "Pod" and event.type == "DELETED":
            self._departed[body["metadata"]["uid"]] = body
        elif body["kind"] == "Pod" and self._arrivals.can_wait(body):
            if self._later is None:
                self._later = asyncio.get_running_loop().call_later(ARRIVAL_SECONDS, self.wake)
            return
        if body["kind"] in ("ConfigMap", "NetworkPolicy") and event.type != "DELETED":
            return
        self.wake()

    async def run(self) -> None:
        """Make pass after pass until the run is gone. What a pass raises is reported and tried again later.

        Returns when the run does not exist any more; cancel it to stop earlier.
        """
        backoff = FIRST_BACKOFF_SECONDS
        while True:
            # Before anything is read: what changes from here on wakes the next pass. Cleared after the reading, a
            # change in between would be lost until the resync.
            self._woken.clear()
            self._look_now()
            begun = time.monotonic()
            try:
                outcome = await self._pass()
            except NotFound:
                # Late enough: _pass has released the pods that a queue would hold for ever.
                _log.info("run=%s/%s gone", self._key.namespace, self._key.name)
                return
            except Conflict as conflict:
                # Somebody wrote meanwhile, which is no failure: again soon, from what is there then.
                self._report(conflict)
                await self._pause(backoff / 10)
                backoff = min(2 * backoff, LONGEST_BACKOFF_SECONDS)
                continue
            except Exception as error:
                # Whatever it is: the trouble of one pass must end neither this loop nor, through its group, the others.
                _log.exception("run=%s/%s pass=failed", self._key.namespace, self._key.name)
                self.failures += 1
                self._report(error)
                if self.failures >= FAILED_PASSES:
                    await self._look_after(error)
                await self._pause(backoff)
                backoff = min(2 * backoff, LONGEST_BACKOFF_SECONDS)
                continue
            # Only a whole pass, with all its writes, makes good for those that failed.
            backoff = FIRST_BACKOFF_SECONDS
            self.failures, self._warned, self._told = 0, False, False
            self._expect_arrivals(outcome)
            # Late enough that the status is stored, early enough to listen to the agents of a new world before resting.
            if self._on_outcome is not None:
                self._on_outcome(outcome)
            settle = self._settle_seconds
            if settle > 0 and outcome.plan.status.phase in _RESTING:
                settle = max(settle, RESTING_SETTLE_SECONDS)
            seconds = outcome.requeue_seconds
            del outcome  # thousands of loops rest here
            # The plan goes on at once, for instance after an end that is on record now: every second of it is paid for.
            if seconds == 0:
                continue
            # Two rests, since being woken ends only the first: changes that come together make one pass.
            await self._pause(RESYNC_SECONDS if seconds is None else seconds)
            await asyncio.sleep(max(0.0, begun + settle - time.monotonic()))

    def _look_now(self) -> None:
        """A pass begins: it sees what could wait."""
        if self._later is not None:
            self._later.cancel()
            self._later = None

    def _expect_arrivals(self, outcome: Outcome) -> None:
        status = outcome.plan.status
        gathering = status.generation == 0 and status.phase in (Phase.PENDING, Phase.STARTING)
        running = (pod.uid for pod in outcome.observed.pods if pod.running)
        self._arrivals.expect(status.nodes.max if gathering and status.nodes else 0, running)

    def expect_orphans(self) -> None:
        """There may be pods of an earlier run of this name: the next pass releases them first."""
        self._may_have_orphans = True
        self.wake()

    async def _pass(self) -> Outcome:
        # A copy: what departs while the pass goes on is for the next one. It is forgotten only after a pass that
        # succeeded, or the bill of a pod that left during a failed one would be a guess.
        departed, key = dict(self._departed), self._key
        self._followed_since = self._followed_since or self._clock()
        try:
            # Before the run's own pods are made: they would wait for the quota that those of an earlier run hold.
            if self._may_have_orphans:
                run = await self._cluster.get(KIND, key.namespace, key.name)
                await release_orphans(self._cluster, key.namespace, key.name, but=run["metadata"]["uid"])
                self._may_have_orphans = False
            async with self._turns:
                outcome = await reconcile(
                    self._cluster,
                    key,
                    self._clock,
                    self._agents,
                    tuple(departed.values()),
                    self._memory,
                    self._nodes_untrusted(),
                    self._time_untrusted(),
                    self._rules(),
                    Following(self._followed_since, self._unheard_seconds()),
                    self._on_roster,
                    self._while_asking,
                    self._budgets(),
                )
        except (NotFound, NamespaceGoing):
            await release_orphans(self._cluster, key.namespace, key.name)
            raise
        for uid in departed:
            self._departed.pop(uid, None)
        return outcome

    async def _look_after(self, error: Exception) -> None:
        """What can be done for a run whose passes fail: keep its limits, and say so once."""
        key, now = self._key, self._clock()
        try:
            untrusted, budgets = self._time_untrusted(), self._budgets() or ()
            await hold_to_limits(self._cluster, key.namespace, key.name, now, untrusted, budgets)
            if not self._warned:
                await warn_unreconciled(self._cluster, key.namespace, key.name, error, self.failures)
                self._warned = True
            if not self._told:
                await tell_unreconciled(self._cluster, key.namespace, key.name, error, self.failures, now)
                self._told = True
        except Exception as trouble:  # the next pass tries again, and its own trouble is what is to be mended
            _log.warning("run=%s/%s limits or Reconciled could not be written: %s", key.namespace, key.name, trouble)

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
