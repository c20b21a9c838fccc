"""One loop per run, woken by what informers see."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final

from videotrain_api.reasons import Reason
from videotrain_api.render.names import POD_SEPARATOR, ledger_name
from videotrain_api.resource.run_defaults import RunDefaults
from videotrain_api.resource.stored_status import read_status
from videotrain_api.schema import Json, ManifestError
from videotrain_api.vocabulary import BUDGET_KIND, KIND, LABEL_RUN, LABEL_RUN_UID, Condition
from videotrain_operator.cluster.agents import AgentClient
from videotrain_operator.cluster.clock import Clock
from videotrain_operator.cluster.interface import Cluster, Conflict, NotFound, WatchEvent
from videotrain_operator.cluster.podview import node_is_cordoned, node_is_leaving
from videotrain_operator.cluster.status_writes import Memory
from videotrain_operator.cluster.unreconciled import FAILED_PASSES
from videotrain_operator.kube.cache import Key, Store, key_of
from videotrain_operator.kube.client import ApiError, ApiUnavailable
from videotrain_operator.kube.turns import Turn, Turns
from videotrain_operator.manager.agent_watch import Listening
from videotrain_operator.manager.announcement import Announcement
from videotrain_operator.manager.bills import LEAVE_SECONDS, BillKeeper, LastSeen, tell_trouble
from videotrain_operator.manager.node_trust import NodeTrust
from videotrain_operator.manager.settings import Settings
from videotrain_operator.manager.team_budgets import BudgetKeeper
from videotrain_operator.manager.traces import NoTraces, Traces
from videotrain_operator.planner.conditions import stored_with_condition
from videotrain_operator.reconcile import Outcome, RunKey, RunLoop
from videotrain_operator.telemetry import OperatorMetrics

REPEAT_SECONDS: Final = 600.0
"""The same refusal of the API server is told again as an event after so long."""
FIRST_PATIENCE_SECONDS: Final = 120.0
"""How long a run that was not looked at yet lets others go first, at most twice that. Beyond it such a run goes before
rosters, so a burst that takes longer to begin has pods that run, and cost, without a world."""
YOUNG_SECONDS: Final = 600.0
"""Age of a world at which half of the second is reached."""
MOMENT_SECONDS: Final = 0.1
"""So long a pass waits for answers of agents before others have its turn."""
GONE_SECONDS: Final = 0.5
"""How long a run that the server does not know and the cache does is left alone."""
FORGET_AFTER: Final = timedelta(seconds=LEAVE_SECONDS)
"""After so long it counts as closed by whoever led what went while this process did not."""
_log = logging.getLogger(__name__)


@dataclass
class _Departed:
    """What went of a run while this process did not lead."""

    at: datetime = datetime.max
    """When the newest of it was told."""
    run: LastSeen | None = None
    """If the run itself went."""
    pods: dict[str, tuple[Json, datetime]] = field(default_factory=dict)
    """See LastSeen.departed."""


class _ManagedRun:
    """A run, its loop, and what was told of it."""

    def __init__(self, loop: RunLoop, listening: Listening, announcement: Announcement) -> None:
        self.loop = loop
        self.listening = listening
        self.announcement = announcement
        self.task: asyncio.Task[None] | None = None
        self.told: dict[str, float] = {}
        self.seen = False
        """A pass over it succeeded."""
        self.last: LastSeen | None = None
        """As it was after its newest pass."""

    def close(self) -> None:
        """Speak with no agent any more."""
        self.listening.close()
        self.announcement.close()


class _Turn:
    """A turn for one pass of a run: so many passes at the same time, none while it is open how many nodes are lost.

    While agents are asked, which may take seconds, others have the turn: at once if this run's agents ever took long,
    else after a moment, so that most runs need one turn for a pass.

    Runs that were looked at since this process leads go first: one whose pods run and have no roster yet, or that lost
    one, pays for each second. Of the others, as many as there may be on a takeover, those go first whose world is
    young, since it is most likely not complete.
    """

    def __init__(self, turns: Turns, node_trust: NodeTrust, patience: Callable[[], float]) -> None:
        self._turns, self._node_trust, self._patience = turns, node_trust, patience
        self._held = AsyncExitStack()
        self._turn: Turn
        self._moment = MOMENT_SECONDS

    async def __aenter__(self) -> None:
        # Settled first: whoever waits for that holds no turn, and its pass then reads the nodes as they are.
        await self._node_trust.settled()
        self._turn = await self._held.enter_async_context(self._turns.taken(self._patience()))

    @asynccontextmanager
    async def while_asking(self) -> AsyncIterator[None]:
        """Entered while agents are asked."""
        begun = time.monotonic()
        async with self._turn.lent(self._moment):
            yield
            if time.monotonic() - begun >= MOMENT_SECONDS:
                self._moment = 0.0

    async def __aexit__(self, *_: object) -> None:
        await self._held.aclose()


def first_patience(run: Json | None, now: datetime) -> float:
    """How long the first pass over a run lets others go first, seconds: longer if its newest world is old."""
    generations = (read_status((run or {}).get("status")).status).generations
    if not generations or generations[-1].end_cause is not None:
        return FIRST_PATIENCE_SECONDS
    age = max(0.0, (now - generations[-1].created_at).total_seconds())
    return FIRST_PATIENCE_SECONDS * (1 + age / (age + YOUNG_SECONDS))


class Controller:
    """Looks after every run while this process leads."""

    def __init__(
        self,
        cluster: Cluster,
        stores: dict[str, Store],
        agents: AgentClient,
        metrics: OperatorMetrics,
        settings: Settings,
        nodes_heard_at: Callable[[], float],
        clock: Clock,
        pods_heard_at: Callable[[str], float] = lambda _: time.monotonic(),
        requests_wait: Callable[[], bool] = lambda: False,
        bills: BillKeeper | None = None,
        nodes_returned_at: Callable[[], float] = lambda: -math.inf,
        budgets: BudgetKeeper | None = None,
        traces: Traces | None = None,
    ) -> None:
        """Begin without loops; `lead` starts one for each run.

        Args:
            cluster: where runs live.
            stores: the caches behind it.
            agents: asks worker pods.
            metrics: is told of every pass.
            settings: of the process.
            nodes_heard_at: monotonic time of the last sign of the API server about nodes.
            clock: the API server's.
            pods_heard_at: monotonic time of its last sign about pods of a namespace.
            requests_wait: tells whether requests wait to be sent to it.
            bills: keeps the bills of runs that go; none are kept if None.
            nodes_returned_at: monotonic time at which it told of nodes again after its last outage.
            budgets: judges those of teams; there are none if None.
            traces: is told of every pass, too; nobody is if None.
        """
        self._traces = traces or NoTraces()
        self._clock, self._bills, self._bills_known, self._budgets = clock, bills, False, budgets
        self._departed: dict[str, _Departed] = {}
        """By uid of the run, what went lately while this process did not lead, oldest first."""
        self._cluster, self._stores, self._agents = cluster, stores, agents
        self._metrics, self._settings = metrics, settings
        self._nodes_heard_at, self._pods_heard_at = nodes_heard_at, pods_heard_at
        self._requests_wait, self._nodes_returned_at = requests_wait, nodes_returned_at
        self._node_trust = NodeTrust(settings.node_trust_max_lost_percent)
        self._rules = settings.cluster_rules()
        self._turns = Turns(settings.concurrent_passes)
        self._managed: dict[Key, _ManagedRun] = {}
        self._leaving: set[str] = set()
        self._group: asyncio.TaskGroup | None = None

    async def lead(self) -> None:
        """Look after all runs until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                try:
                    # Set first, with no await below: from now on `notice` manages the runs that come, each once.
                    self._group = group
                    orphaned = self._runs_with_orphans()
                    for key in {*self._stores[KIND].names(), *orphaned}:
                        self._manage(key)
                    for key in orphaned:
                        self._managed[key].loop.expect_orphans()
                    group.create_task(self._take_over_bills())
                    if self._bills is not None:
                        group.create_task(self._bills.copy())
                    if self._budgets is not None:
                        group.create_task(self._budgets.keep(), name="team budgets")
                    await asyncio.Event().wait()
                finally:
                    # Before the loops are waited for: what is noticed meanwhile is the next term's.
                    self._group = None
        finally:
            self._metrics.forget_runs()
            for managed in self._managed.values():
                managed.close()
            self._managed.clear()

    @property
    def passes_waiting(self) -> int:
        """Runs whose next pass waits for its turn."""
        return self._turns.waiting

    def take_defaults(self, defaults: RunDefaults) -> None:
        """Go on with other defaults for runs; wakes every run, since one may wait for what they allow."""
        self._rules = replace(self._rules, defaults=defaults)
        self.wake_all()

    def _runs_with_orphans(self) -> set[Key]:
        """Runs of which there are pods although they were deleted while nobody led, perhaps to be made again."""
        found = set()
        for head in (pod["metadata"] for pod in self._stores["Pod"].all()):
            labels = head.get("labels") or {}
            key = Key(head["namespace"], labels.get(LABEL_RUN, ""))
            run = self._stores[KIND].get(key)
            if key.name and (run is None or run["metadata"]["uid"] != labels.get(LABEL_RUN_UID)):
                found.add(key)
        return found

    def notice(self, event: WatchEvent) -> None:
        """Something changed: wake whom it concerns."""
        kind = event.object["kind"]
        if kind == KIND:
            self._notice_run(event)
        elif kind == "Node":
            self._notice_node(event)
        elif kind == BUDGET_KIND:
            if self._budgets is not None:
                self._budgets.wake()
            self.wake_all()
        else:
            head = event.object["metadata"]
            if kind == "Pod" and event.type == "DELETED" and self._group is None:
                uid = (head.get("labels") or {}).get(LABEL_RUN_UID, "")
                self._remember(uid).pods[head["uid"]] = event.object, self._clock.now()
            # A pod whose labels somebody changed still has its name.
            run = (head.get("labels") or {}).get(LABEL_RUN) or head["name"].rpartition(POD_SEPARATOR)[0]
            managed = self._managed.get(Key(head.get("namespace", ""), run))
            if managed is not None:
                managed.loop.notice(event)

    def _notice_run(self, event: WatchEvent) -> None:
        key = key_of(event.object)
        if event.type == "DELETED":
            self._metrics.forget(key.namespace, key.name)
            self._traces.forget(key.namespace, key.name)
            if self._group is None:
                departed = self._remember(event.object["metadata"]["uid"])
                departed.run = replace(self._last_seen(key, event.object), departed=departed.pods)
        if key in self._managed:
            self._managed[key].loop.notice(event)
        elif event.type != "DELETED" and self._group is not None:
            self._manage(key)

    def _notice_node(self, event: WatchEvent) -> None:
        """Wake the runs on a node that is lost, back, leaving or staying; its heartbeats are no news."""
        name = event.object["metadata"]["name"]
        node = None if event.type == "DELETED" else event.object
        news = self._node_trust.notice(name, node)
        leaving = node is not None and (node_is_leaving(node) or node_is_cordoned(node))
        if not news and leaving == (name in self._leaving):
            return
        (self._leaving.add if leaving else self._leaving.discard)(name)
        if news:
            self.look_at_nodes()
        for pod in self._stores["Pod"].on_node(name):
            run = (pod["metadata"].get("labels") or {}).get(LABEL_RUN, "")
            managed = self._managed.get(Key(pod["metadata"]["namespace"], run))
            if managed is not None:
                managed.loop.wake()

    def _manage(self, key: Key) -> None:
        assert self._group is not None
        announcement = Announcement(self._agents)

        def patience() -> float:
            return 0.0 if managed.seen else first_patience(self._stores[KIND].get(key), self._clock.now())

        turn = _Turn(self._turns, self._node_trust, patience)
        loop = RunLoop(
            self._cluster,
            RunKey(namespace=key.namespace, name=key.name),
            self._agents,
            clock=self._clock.now,
            memory=Memory(crowded=lambda: self._turns.crowded or self._requests_wait()),
            turns=turn,
            while_asking=turn.while_asking,
            settle_seconds=self._settings.settle_seconds,
            nodes_untrusted=lambda: self._node_trust.reason,
            time_untrusted=lambda: self._clock.untrusted,
            rules=lambda: self._rules,
            budgets=self._budgets.budgets if self._budgets is not None else tuple,
            unheard_seconds=lambda: time.monotonic() - self._pods_heard_at(key.namespace),
            on_roster=lambda observed, plan: announcement.spread(plan.roster, observed),
            on_outcome=lambda outcome: self._note(key, outcome),
            on_error=lambda error: self._note_error(key, error),
        )
        managed = self._managed[key] = _ManagedRun(loop, Listening(self._agents, loop.wake), announcement)
        managed.task = self._group.create_task(self._run_loop(key, managed), name=f"run {key.namespace}/{key.name}")

    async def _run_loop(self, key: Key, managed: _ManagedRun) -> None:
        try:
            await managed.loop.run()
        finally:
            managed.close()
            if self._managed.get(key) is managed:
                del self._managed[key]
        if managed.last is not None:
            self._close_bill(key, managed.last)
        # A run of the same name may have been created while this one's last pass went on. Or the server does not know a
        # run of which the watch tells no end: it has gone just now, or the server has just started.
        if self._stores[KIND].get(key) is None:
            return
        await asyncio.sleep(GONE_SECONDS)
        if self._group is not None and key not in self._managed and self._stores[KIND].get(key) is not None:
            self._manage(key)

    def look_at_nodes(self) -> None:
        """Decide again whether nodes are trusted; wakes every run when that changes."""
        names = {pod["spec"].get("nodeName") for pod in self._stores["Pod"].all()} - {None}
        before = self._node_trust.reason
        nodes = (self._stores["Node"].get(Key("", name)) for name in names)
        self._node_trust.assess(nodes, self._nodes_heard_at(), self._nodes_returned_at())
        if self._group is not None:
            self._metrics.note_node_trust(self._node_trust.reason)
        if bool(before) != bool(self._node_trust.reason):
            self.wake_all()

    def wake_all(self) -> None:
        """Look at every run again."""
        for managed in self._managed.values():
            managed.loop.wake()

    def _note(self, key: Key, outcome: Outcome) -> None:
        reasons = [event.reason for event in outcome.plan.events]
        self._metrics.note_pass(outcome.run, outcome.status, outcome.seconds, reasons, len(outcome.plan.unreadable))
        self._observe(key, lambda: self._traces.passed(outcome))
        managed = self._managed.get(key)
        if managed is None:
            return
        managed.seen = True
        seen = dict(outcome.run) | {"status": outcome.status}
        self._observe(key, lambda: self._keep_bill(key, managed, seen))
        if (budgets := self._budgets) is not None:
            self._observe(key, lambda: budgets.note(seen, outcome.plan.until_saved_micros))
        managed.told.clear()  # it works again: the next refusal is news
        generations = outcome.plan.status.generations
        live = generations and generations[-1].end_cause is None
        managed.listening.attend(outcome.observed, generations[-1].members if live else ())
        managed.announcement.spread(outcome.plan.roster, outcome.observed)

    def _observe(self, key: Key, told: Callable[[], object]) -> None:
        """The pass is done: trouble of whoever is told of it must not end the run's loop, and with it all others."""
        try:
            told()
        except Exception as error:
            _log.exception("run=%s/%s was not told to all", key.namespace, key.name)
            self._metrics.note_error(error)

    def _remember(self, uid: str) -> _Departed:
        """Who leads closes the bill of a run that is gone, unless it ends before its pods have gone."""
        now = self._clock.now()
        departed = self._departed.pop(uid, None) or _Departed()
        departed.at = now
        self._departed[uid] = departed
        while now - self._departed[first := next(iter(self._departed))].at > FORGET_AFTER:
            del self._departed[first]
        while departed.pods and now - departed.pods[oldest := next(iter(departed.pods))][1] > FORGET_AFTER:
            del departed.pods[oldest]
        return departed

    async def _take_over_bills(self) -> None:
        """Of runs that went while nobody led, and of those that go on."""
        if self._bills is None:
            return
        departed, self._departed = self._departed, {}
        for seen in (one.run for one in departed.values() if one.run is not None):
            self._close_bill(key_of(seen.run), seen)
        living, ours = {run["metadata"]["uid"] for run in self._stores[KIND].all()}, self._settings.namespaces
        await self._bills.take_over(lambda bill: bill.uid in living or (bool(ours) and bill.namespace not in ours))
        self._bills_known = True

    def _last_seen(self, key: Key, run: Json) -> LastSeen:
        return LastSeen(run, self._stores["ConfigMap"].get(Key(key.namespace, ledger_name(key.name))))

    def _keep_bill(self, key: Key, managed: _ManagedRun, run: Json) -> None:
        seen = managed.last = self._last_seen(key, run)
        if self._bills is not None and self._group is not None and self._bills_known and self._bills.due(run):
            self._group.create_task(tell_trouble(self._bills.keep(seen), run, self._metrics.note_error))

    def _close_bill(self, key: Key, seen: LastSeen) -> None:
        """The run seems to be gone; its pods may take a while."""
        if self._bills is None or self._group is None:
            return
        uid = seen.run["metadata"]["uid"]

        def lives() -> bool:
            known = self._stores[KIND].get(key)
            return known is not None and known["metadata"]["uid"] == uid

        work = self._bills.close(seen, lambda: self._stores["Pod"].of_run(uid), lives)
        self._group.create_task(tell_trouble(work, seen.run, self._metrics.note_error))

    def _note_error(self, key: Key, error: Exception) -> None:
        if isinstance(error, Conflict):
            self._metrics.note_conflict()
            return
        self._metrics.note_error(error)
        self._traces.failed(key.namespace, key.name, error, self._clock.now())
        managed = self._managed.get(key)
        if managed is not None and managed.loop.failures >= FAILED_PASSES:
            self._metrics.note_unreconciled(key.namespace, key.name)
        if managed is None or not isinstance(error, ApiError) or isinstance(error, ApiUnavailable):
            return
        now = time.monotonic()
        if now - managed.told.get(str(error), -REPEAT_SECONDS) < REPEAT_SECONDS:
            return
        managed.told[str(error)] = now
        run = self._stores[KIND].get(key)
        if run is not None and self._group is not None:
            self._group.create_task(self._tell(run, error))

    async def _tell(self, run: Json, error: ApiError) -> None:
        """What is refused for good is an event and a condition; nobody reads the operator's log for it."""
        head = run["metadata"]
        try:
            # The event first: the status is refused if the run has changed, and the event is worth having all the same.
            await self._cluster.emit_event(run, "Warning", error.reason or Reason.REFUSED, str(error))
            why = (error.reason or Reason.REFUSED, str(error))
            status = stored_with_condition(run, Condition.SCHEDULED, False, *why, self._clock.now())
            await self._cluster.replace_status(KIND, head["namespace"], head["name"], status, head["resourceVersion"])
        except (ApiError, Conflict, NotFound, ManifestError) as trouble:
            _log.warning("run=%s/%s refusal was not put on record: %s", head["namespace"], head["name"], trouble)
