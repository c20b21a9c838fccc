"""A team's runs under one budget: each in a simulated cluster of its own, one clock, one operator that may die.

The oracle knows neither ledgers nor budgets: it notes when each pod got its node and when it let go of it.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Final

from support.bills import ledger_in
from support.planner_builders import manifest, train_stage

from videotrain_api.billing.document import RunBill, bill_of, sealed
from videotrain_api.metrics import TRAINING_BUDGET_SPENT
from videotrain_api.render.names import bill_name
from videotrain_api.resource.status import RunStatus
from videotrain_api.resource.training_budgets import TrainingBudget, TrainingBudgetStatus
from videotrain_api.resource.trainrun import VideoTrainingRun
from videotrain_api.schema import Json
from videotrain_api.times import month_name
from videotrain_api.vocabulary import API_VERSION, BILL_KEY, BUDGET_KIND, LABEL_TEAM
from videotrain_operator.cluster.interface import Conflict
from videotrain_operator.cluster.podview import gpu_resources, pod_view
from videotrain_operator.cluster.status_writes import Memory
from videotrain_operator.manager.team_budgets import BudgetKeeper
from videotrain_operator.planner.observed import Observed
from videotrain_operator.planner.plan import settle_gone
from videotrain_operator.reconcile import Outcome, RunKey, reconcile
from videotrain_operator.simulation.cluster import START, SimulatedCluster
from videotrain_operator.simulation.objects import OperatorCrash, clone
from videotrain_operator.simulation.world import Pace

TEAM: Final = "video"
GPU_SECOND: Final = 1_000
"""Micros: 3.60 an hour."""
SECOND: Final = timedelta(seconds=1)
EVERY_STEPS: Final = 5
"""Steps between two checkpoints, a second each."""


@dataclass
class Writes:
    """Counts the writes of the operator everywhere, and lets it die at one."""

    count: int = 0
    crash_at: int | None = None
    crash_after: bool = False

    def before(self) -> None:
        self.count += 1
        if self.crash_at == self.count and not self.crash_after:
            raise OperatorCrash(f"before write {self.count}")

    def after(self) -> None:
        if self.crash_at == self.count and self.crash_after:
            raise OperatorCrash(f"after write {self.count}")


class MemberCluster(SimulatedCluster):
    """Of one run; notes when its pods hold nodes."""

    def __init__(self, run: Json, nodes: int, start: datetime, shared: Writes) -> None:
        self.shared = shared
        self.held: dict[str, list[Any]] = {}
        """By pod uid: since when, until when if it has ended, and GPUs."""
        super().__init__(run, nodes, pace=Pace(every_steps=EVERY_STEPS), start=start)

    def _before_write(self) -> None:
        self.shared.before()

    def _after_write(self) -> None:
        self.shared.after()

    def tick(self) -> None:
        """A second passes."""
        super().tick()
        for body in self.pods():
            uid, node = body["metadata"]["uid"], body["spec"].get("nodeName")
            if node and uid not in self.held:
                gpus = int(body["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"])
                self.held[uid] = [self.now, None, gpus]

    def finish_pod(self, name: str, code: int, reason: str = "Error") -> None:
        """Its container ends."""
        super().finish_pod(name, code, reason)
        self._end(self.objects["Pod", name]["metadata"]["uid"])

    def remove(self, kind: str, name: str) -> None:
        """An object goes; a pod's container ends with it."""
        uid = self.objects[kind, name]["metadata"]["uid"]
        super().remove(kind, name)
        if kind == "Pod":
            self._end(uid)

    def _end(self, uid: str) -> None:
        if uid in self.held and self.held[uid][1] is None:
            self.held[uid][1] = self.now

    def cost(self, month: str | None = None) -> int:
        """Micros up to now, second by second; of a calendar month if one is given."""
        total = 0
        for bound, end, gpus in self.held.values():
            moment = bound
            while moment < (end or self.now):
                total += gpus * GPU_SECOND * (month in (None, month_name(moment)))
                moment += SECOND
        return total

    def rate(self) -> int:
        """Micros that a second costs now."""
        return sum(gpus * GPU_SECOND for _, end, gpus in self.held.values() if end is None)


class Board:
    """The budget as an API server has it."""

    def __init__(self, body: Json, shared: Writes) -> None:
        self.body, self.shared, self.version = body, shared, 1
        self.events: list[tuple[str, str]] = []
        body["metadata"] |= {"uid": "budget-1", "generation": 1, "resourceVersion": "1"}

    async def replace_status(self, kind: str, namespace: str, name: str, status: Json, resource_version: str) -> Json:
        """Write its status."""
        assert (kind, namespace, name) == (BUDGET_KIND, "", self.body["metadata"]["name"])
        self.shared.before()
        if resource_version != self.body["metadata"]["resourceVersion"]:
            raise Conflict("it changed")
        self._store(self.body | {"status": clone(status)})
        self.shared.after()
        return clone(self.body)

    async def emit_event(self, regarding: Json, type_: str, reason: str, message: str) -> None:
        """Tell."""
        del regarding, type_
        self.events.append((reason, message))

    def edit(self, **spec: Any) -> None:
        """Somebody edits the spec."""
        body = clone(self.body)
        body["spec"] |= spec
        body["metadata"]["generation"] += 1
        self._store(body)

    def _store(self, body: Json) -> None:
        self.version += 1
        body["metadata"] |= {"resourceVersion": str(self.version)}
        self.body = body

    @property
    def status(self) -> TrainingBudgetStatus:
        found = TrainingBudget.from_wire(self.body).status
        assert found is not None
        return found


def budget_body(amount: str, rules: list[Json] | None = None, **spec: Any) -> Json:
    spec = {"team": TEAM, "amount": amount} | ({"rules": rules} if rules is not None else {}) | spec
    return {"apiVersion": API_VERSION, "kind": BUDGET_KIND, "metadata": {"name": "video-month"}, "spec": spec}


@dataclass
class Team:
    """Everything of one history. A pickle of it goes on another way."""

    budget: Json
    start: datetime = START
    writes: Writes = field(default_factory=Writes)
    members: dict[str, MemberCluster] = field(default_factory=dict)
    gone: list[MemberCluster] = field(default_factory=list)
    bills: list[Json] = field(default_factory=list)
    """Config maps with kept bills."""

    def __post_init__(self) -> None:
        self.board = Board(self.budget, self.writes)
        self.now = self.start

    def add(self, name: str, priority: int = 0, *, nodes: int = 1, steps: int = 500, **spec: Any) -> MemberCluster:
        """Somebody creates a run of the team."""
        run = manifest(
            priority=priority,
            stages=[train_stage(steps=steps)],
            nodes={"min": 1, "max": nodes},
            checkpoint={"everySteps": EVERY_STEPS},
            **spec,
        )
        run["metadata"] |= {"name": name, "uid": f"uid-{name}", "labels": {LABEL_TEAM: TEAM}}
        self.members[name] = MemberCluster(copy.deepcopy(run), nodes, self.now, self.writes)
        return self.members[name]

    def delete(self, name: str) -> None:
        """Somebody deletes a run; its pods are gone at once, and its bill is kept."""
        cluster = self.members.pop(name)
        self.gone.append(cluster)
        run, ledger = clone(cluster.run), ledger_in(cluster)
        pods = clone(cluster.pods())
        for pod in cluster.pods():
            cluster.remove("Pod", pod["metadata"]["name"])
        bill = _last_bill(run, ledger, pods, self.now)
        if bill is not None:
            head = {"name": bill_name(bill.uid), "resourceVersion": "1"}
            self.bills.append({"metadata": head, "data": {BILL_KEY: json.dumps(sealed(bill))}})

    def all(self) -> list[MemberCluster]:
        """With those of runs that are gone."""
        return [*self.members.values(), *self.gone]

    def spent(self, month: str) -> int:
        """Micros of all runs in a month, by the oracle."""
        return sum(cluster.cost(month) for cluster in self.all())

    def status(self, name: str) -> RunStatus:
        return RunStatus.from_wire(self.members[name].run["status"])

    def phases(self) -> dict[str, str]:
        return {name: self.status(name).phase for name in self.members}

    def jump(self, at: datetime) -> None:
        """Time passes in which nothing happens."""
        self.now = at
        for cluster in self.members.values():
            cluster.now = at


def _last_bill(run: Json, ledger: Json | None, pods: list[Json], now: datetime) -> RunBill | None:
    views = [pod_view(pod, {}, gpu_resources(run)) for pod in pods]
    ended = tuple(_ended(view, now) for view in views if view.bound_at is not None)
    observed = Observed(departed=ended, ledger=ledger, signing_key=b"")
    status, document = settle_gone(VideoTrainingRun.from_wire(run), observed, now)
    bill = bill_of(run | {"status": status.to_wire()}, document)
    return None if bill is None else bill.model_copy(update={"closed": True})


def _ended(view: Any, now: datetime) -> Any:
    return replace(view, finished_at=view.finished_at or now)


class Operator:
    """One process: what it remembers goes with it."""

    def __init__(self, team: Team) -> None:
        self.team = team
        self.memories: dict[str, Memory] = {}
        self.begun = team.now
        self.keeper = BudgetKeeper(
            team.board,
            lambda: team.now,
            lambda: [team.board.body],
            lambda: [cluster.run for cluster in team.members.values()],
            self._holds_nodes,
            self._bills,
            on_error=_dies,
        )

    def _holds_nodes(self, uid: str) -> bool:
        here = [cluster for cluster in self.team.members.values() if cluster.run["metadata"]["uid"] == uid]
        return any(pod["spec"].get("nodeName") for cluster in here for pod in cluster.pods())

    async def _bills(self) -> list[Json]:
        return self.team.bills

    def spent(self) -> int:
        """Micros of the month that the metrics tell."""
        (value,) = [value for metric, _, value in self.keeper.samples() if metric is TRAINING_BUDGET_SPENT]
        return round(value * 1_000_000)

    async def second(self) -> None:
        """Look at every run and at the budget, until nothing new is decided."""
        for _ in range(6):
            before = self.team.writes.count
            for name in list(self.team.members):
                await self._settle(name)
            await self.keeper.look()
            if self.team.writes.count == before:
                return
        raise RuntimeError("the operator does not come to rest")

    async def _settle(self, name: str) -> None:
        for _ in range(12):
            outcome = await self._look(name)
            if outcome is not None and outcome.requeue_seconds != 0:
                self.keeper.note(dict(outcome.run) | {"status": outcome.status}, outcome.plan.until_saved_micros)
                return
        raise RuntimeError(f"{name} does not come to rest")

    async def _look(self, name: str) -> Outcome | None:
        cluster, team = self.team.members[name], self.team
        memory = self.memories.setdefault(name, Memory(lambda: (team.now - self.begun).total_seconds()))
        departed = tuple(cluster.departed.values())
        try:
            outcome = await reconcile(
                cluster,
                RunKey(namespace=cluster.namespace, name=name),
                lambda: cluster.now,
                cluster,
                departed,
                memory,
                budgets=self.keeper.budgets(),
            )
        except Conflict:
            return None
        cluster.departed.clear()
        return outcome


def _dies(error: Exception) -> None:
    if isinstance(error, OperatorCrash):
        raise error


async def live(team: Team, seconds: int, script: dict[int, Callable[[Team], object]] | None = None) -> Operator:
    """So many seconds with one operator after another."""
    operator = Operator(team)
    for second in range(seconds):
        operator = await a_second(team, operator, (script or {}).get(second))
    return operator


async def a_second(team: Team, operator: Operator, event: Callable[[Team], object] | None = None) -> Operator:
    """What happens, what the operator does about it, and time. An operator that died is replaced at once."""
    if event is not None:
        event(team)
    while True:
        try:
            await operator.second()
            break
        except OperatorCrash:
            operator = Operator(team)
    for cluster in team.members.values():
        cluster.tick()
    team.now += SECOND
    return operator


def rules(*given: tuple[int, str, int | None]) -> list[Json]:
    """Rules of percent, action and the priority below which they hold."""
    return [
        {"atPercent": percent, "action": action} | ({} if below is None else {"belowPriority": below})
        for percent, action, below in given
    ]


def reached(team: Team) -> Iterator[tuple[str, int | None]]:
    for rule in team.board.status.reached:
        yield rule.action, rule.up_to_priority
