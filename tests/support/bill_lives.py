"""Lives of a run in which nobody can be relied on, and what they cost by the clock on the wall.

Every second of the simulated cluster something may happen: lists lack pods or are old, labels and prices are edited,
pods go by force, nodes fail and have clocks of their own, the operator dies at a write or does not hear an answer. The
oracle knows nothing of ledgers: it walks through the seconds and asks of each pod whether it was held then.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

from support.bills import ledger_in
from support.planner_builders import manifest, train_stage

from videotrain_api.billing.document import RunBill, bill_of
from videotrain_api.billing.focus import focus_rows
from videotrain_api.billing.sums import rows_within
from videotrain_api.money import parse_micros
from videotrain_api.resource.status import CostStatus
from videotrain_api.schema import Json
from videotrain_api.times import rfc3339
from videotrain_api.vocabulary import (
    ANNOTATION_PRICE,
    FIELD_MANAGER,
    LABEL_INDEX,
    LABEL_POOL,
    LABEL_RUN,
    LABEL_RUN_UID,
)
from videotrain_operator.cluster.interface import Conflict, NotFound
from videotrain_operator.cluster.status_writes import Memory
from videotrain_operator.manager.traces import Traces
from videotrain_operator.reconcile import Following, Outcome, RunKey, reconcile
from videotrain_operator.simulation.cluster import SimulatedCluster
from videotrain_operator.simulation.objects import OperatorCrash, clone
from videotrain_operator.simulation.world import Pace
from videotrain_operator.telemetry import OperatorMetrics

KEY: Final = RunKey(namespace="default", name="demo")
GPUS: Final = 2
SECONDS: Final = (12, 32)
"""Least and most of a life, before the run is suspended."""
PRICES: Final = ("3.60", "7.20", "1.80")
"""Each a whole number of micros per GPU-second, so that nothing is rounded."""
SECOND: Final = timedelta(seconds=1)
BARE: Final = {"gpusPerNode": 0, "pricePerNodeHour": "3.60"}
"""Nodes without GPUs."""
STAGES: Final = {
    "curate": "curate",
    "train": "",
    "curate-more": "curate",
    "train-more": "train-more",
}
"""Stages of a life with several pools, and by which the pods of each are marked."""


def stages_of(dice: random.Random) -> list[Json]:
    """Two that curate on the same nodes without GPUs, one that trains in the run's pool, and one on other GPUs."""
    curate = {"task": "curate", "curate": {}, "pool": BARE, "nodes": {"min": 1, "max": dice.choice([1, 3])}}
    others = {"gpusPerNode": 1, "pricePerGpuHour": "1.80"}
    return [
        {"name": "curate", **curate},
        train_stage(steps=dice.randint(2, 6)),
        {"name": "curate-more", **curate},
        train_stage("train-more", steps=dice.choice([4, 500]), pool=others),
    ]


@dataclass
class Fate:
    """What really became of a pod."""

    price: str
    """Per hour of a GPU, or of a node without GPUs, when it was made."""
    pool: str
    """As it was marked when it was made."""
    priced: int
    """How many times it costs that."""
    bound: datetime | None = None
    told_end: datetime | None = None
    """When its container ended, by the clock of its node."""
    end: datetime | None = None
    """When its container ended or its object was removed, whatever came first."""

    def held_at(self, moment: datetime, end: datetime | None) -> bool:
        return self.bound is not None and self.bound <= moment and (end is None or moment < end)


class UnreliableCluster(SimulatedCluster):
    """Keeps account of what really happens, and shows the operator less."""

    def __init__(self, seed: int, *, pools: bool) -> None:
        self.random = random.Random(seed)
        self.fates: dict[str, Fate] = {}
        self.hidden: set[str] = set()
        """Names of pods that the list lacks."""
        self.frozen: dict[str, Json] | None = None
        """Pods as the watch told last, while it is late."""
        self.frozen_at: datetime | None = None
        self.skew = {f"node-{number}": self.random.choice([0, 0, 0, -2, -1, 1]) for number in range(3)}
        spec: dict[str, Any] = {
            "stages": stages_of(self.random) if pools else [train_stage(steps=500)],
            "dataset": {"videos": "s3://videotrain/raw", "latents": "s3://videotrain/latents"},
            "nodes": {"min": 1, "max": self.random.choice([1, 2])},
            "elasticity": {"waitForMaxSeconds": self.random.choice([1, 4, 30]), "minGainSeconds": 0},
            "failurePolicy": {"hangSeconds": 8, "startSeconds": 30, "graceSeconds": 3},
            "pool": {"gpusPerNode": GPUS, "pricePerGpuHour": self.random.choice(PRICES)},
        }
        super().__init__(manifest(**spec), nodes=self.random.choice([2, 3]), pace=Pace(every_steps=5))

    def put(self, kind: str, body: Json) -> None:
        """Store it; the price of a pod is that of its making."""
        super().put(kind, body)
        if kind == "Pod":
            price = body["metadata"]["annotations"][ANNOTATION_PRICE].split()[0]
            pool = body["metadata"]["labels"].get(LABEL_POOL, "")
            limits = body["spec"]["containers"][0]["resources"]["limits"]
            priced = int(limits.get("nvidia.com/gpu", 1))
            self.fates.setdefault(body["metadata"]["uid"], Fate(price, pool, priced))

    def remove(self, kind: str, name: str) -> None:
        """The object goes; a container that ran ends with it."""
        uid = self.objects[kind, name]["metadata"]["uid"]
        super().remove(kind, name)
        if kind == "Pod" and self.fates[uid].end is None:
            self.fates[uid].end = self.now

    def finish_pod(self, name: str, code: int, reason: str = "Error") -> None:
        """Its container ends, at a time that its node tells by its own clock."""
        super().finish_pod(name, code, reason)
        body = self.objects["Pod", name]
        told = self.now + timedelta(seconds=self.skew[body["spec"]["nodeName"]])
        body["status"]["containerStatuses"][0]["state"]["terminated"]["finishedAt"] = rfc3339(told)
        fate = self.fates[body["metadata"]["uid"]]
        fate.told_end, fate.end = told, self.now

    def tick(self) -> None:
        """A second passes."""
        super().tick()
        for body in self.pods():
            fate = self.fates[body["metadata"]["uid"]]
            if fate.bound is None and body["spec"].get("nodeName"):
                fate.bound = self.now

    def freeze(self) -> None:
        """From now on the watch tells nothing, until `thaw`."""
        self.frozen = {body["metadata"]["name"]: clone(body) for body in self.pods()}
        self.frozen_at = self.now

    def thaw(self) -> None:
        """The watch has told everything."""
        self.frozen = self.frozen_at = None

    async def list(self, kind: str, namespace: str, labels: Any = None) -> list[Json]:
        """What a cache would say."""
        if kind != "Pod":
            return await super().list(kind, namespace, labels)
        bodies = self.pods() if self.frozen is None else list(self.frozen.values())
        fits = [b for b in bodies if (labels or {}).items() <= b["metadata"].get("labels", {}).items()]
        found: list[Json] = clone([body for body in fits if body["metadata"]["name"] not in self.hidden])
        return found

    async def apply(self, manifest: Json, manager: str = FIELD_MANAGER) -> Json:
        """Write; the cache has the answer at once. A name that is taken is a conflict, and the pod of ours put back."""
        taken = self.objects.get((manifest["kind"], manifest["metadata"]["name"]))
        if manifest["kind"] == "Pod" and "spec" in manifest and taken is not None:
            if taken["metadata"].get("ownerReferences"):
                taken["metadata"]["labels"] |= manifest["metadata"]["labels"]
            raise Conflict("the name is taken")
        body = await super().apply(manifest, manager)
        if self.frozen is not None and manifest["kind"] == "Pod":
            self.frozen[manifest["metadata"]["name"]] = body
        return body

    async def delete(self, kind: str, namespace: str, name: str, *, uid: str, grace_seconds: int | None = None) -> None:
        """Delete; the cache has the answer at once."""
        await super().delete(kind, namespace, name, uid=uid, grace_seconds=grace_seconds)
        if self.frozen is not None and kind == "Pod":
            left = self.objects.get(("Pod", name))
            if left is not None and left["metadata"]["uid"] == uid:
                self.frozen[name] = clone(left)
            else:
                self.frozen.pop(name, None)


@dataclass
class Process:
    """The operator, which forgets everything when it dies."""

    cluster: UnreliableCluster
    answers_lost: bool = False
    """What looks like its death is an answer that it did not get."""
    departed: dict[str, Json] = field(default_factory=dict)
    monitor: Monitor = field(default_factory=lambda: Monitor())
    since: datetime = field(init=False)
    memory: Memory = field(init=False)

    def __post_init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """A new process: its cache is full, and what went before was told to nobody."""
        self.departed.clear()
        self.monitor.restart()
        self.cluster.departed.clear()
        self.cluster.thaw()
        self.since = self.cluster.now
        start = self.cluster.now
        self.memory = Memory(lambda: (self.cluster.now - start).total_seconds())

    async def look(self) -> Outcome | None:
        """Passes until none asks for another at once; the last that succeeded."""
        cluster, outcome = self.cluster, None
        if cluster.frozen is None:
            self.departed |= cluster.departed
            cluster.departed.clear()
        for _ in range(8):
            unheard = (cluster.now - (cluster.frozen_at or cluster.now)).total_seconds()
            told = dict(self.departed)
            following = Following(self.since, unheard)
            try:
                outcome = await reconcile(
                    cluster, KEY, lambda: cluster.now, cluster, tuple(told.values()), self.memory, following=following
                )
            except OperatorCrash:
                if not self.answers_lost:
                    self.restart()
                continue
            except (Conflict, NotFound):
                continue
            for uid in told:
                self.departed.pop(uid, None)
            if outcome.requeue_seconds != 0:
                break
        return outcome


class Monitor:
    """What Prometheus shows of a run: the counters of the process, of which none may fall."""

    def __init__(self) -> None:
        self.metrics = OperatorMetrics()
        self.status: Json = {}
        self.shown: dict[tuple[str, ...], int] = {}

    def note(self, outcome: Outcome | None) -> None:
        if outcome is not None:
            self.status = outcome.status
            self.metrics.note_pass(outcome.run, outcome.status, 0.0, ())
            self.scrape()

    def restart(self) -> None:
        """Another process goes on from the stored status, which knows less than the one before may have told."""
        self.metrics = OperatorMetrics()
        self.shown.clear()

    def scrape(self) -> None:
        """Micros by bucket, stage and cause, and their corrections."""
        for family in self.metrics.collect():  # as text it would be two thirds of a life's time
            if family.type == "counter" and "micros" in family.name:
                for sample in family.samples:
                    key = (sample.name, *(f"{name}={value}" for name, value in sorted(sample.labels.items())))
                    value = round(sample.value)
                    assert value >= self.shown.get(key, 0), f"{key} fell from {self.shown[key]} to {value}"
                    self.shown[key] = value

    def counted(self) -> int:
        """Micros by bucket with their corrections, together; those by stage and by cause must fit."""
        found = dict.fromkeys(("cost", "stage_cost", "waste"), 0)
        productive = 0
        for (series, *labels), value in self.shown.items():
            signed = -value if "direction=out" in labels else value
            name = series.removeprefix("videotrain_").removesuffix("_micros_total").removesuffix("_corrected")
            found[name] += signed
            productive += signed if "bucket=productive" in labels else 0
        assert found["stage_cost"] == found["cost"] == found["waste"] + productive, found
        return found["cost"]


def focus_micros(bill: RunBill) -> int:
    """What the FOCUS rows of a bill sum to."""
    rows = focus_rows(rows_within([bill], None, None), "cluster")
    return sum(parse_micros(row["BilledCost"] or "") for row in rows)


def disturb(process: Process) -> None:
    """Something happens, or nothing."""
    cluster, dice = process.cluster, process.cluster.random
    cluster.hidden.clear()
    pods = cluster.pods()
    kind = dice.choice([*EVENTS, "nothing", "nothing", "nothing"])
    if kind == "restart":
        process.restart()
    elif kind == "crash":
        cluster.crash_at, cluster.crash_after = cluster.writes + dice.randint(1, 4), dice.random() < 0.5
        process.answers_lost = False
    elif kind == "lost answer":
        cluster.crash_at, cluster.crash_after, process.answers_lost = cluster.writes + dice.randint(1, 4), True, True
    elif kind == "late watch":
        cluster.freeze()
    elif kind == "price":
        cluster.edit(pool=cluster.run["spec"]["pool"] | {"pricePerGpuHour": dice.choice(PRICES)})
    elif kind == "suspend":
        cluster.edit(suspend=not cluster.run["spec"].get("suspend", False))
    elif kind == "lose node":
        cluster.lose_node(dice.choice(list(cluster.nodes)))
    elif kind == "nodes back":
        for node in cluster.nodes:
            cluster.restore_node(node)
    elif pods and kind != "nothing":
        _disturb_pod(process, dice.choice(pods), kind)


EVENTS: Final = (
    "restart", "crash", "crash", "lost answer", "late watch", "price", "suspend", "lose node", "nodes back", "flicker",
    "flicker", "relabel", "relabel", "told as deleted", "owner", "price of a pod", "force delete", "delete", "fail",
    "pod ends",
)  # fmt: skip


def _disturb_pod(process: Process, body: Json, kind: str) -> None:
    cluster, dice, head = process.cluster, process.cluster.random, body["metadata"]
    name = head["name"]
    if kind == "flicker":
        cluster.hidden |= {other["metadata"]["name"] for other in cluster.pods() if dice.random() < 0.6}
    elif kind in ("relabel", "told as deleted"):
        was = clone(body)
        head["labels"][dice.choice([LABEL_RUN, LABEL_RUN_UID, LABEL_INDEX])] = "x"
        head["resourceVersion"] = str(int(head["resourceVersion"]) + 1000)
        if kind == "told as deleted":
            process.departed[head["uid"]] = was
    elif kind == "owner":
        head.pop("ownerReferences", None)
    elif kind == "price of a pod":
        head["annotations"][ANNOTATION_PRICE] = dice.choice(["0 USD", "99 USD", "free"])
    elif kind == "force delete":
        cluster.force_delete(name)
    elif kind == "delete" and body["spec"].get("nodeName"):
        cluster.delete_pod(name)
    elif kind == "fail":
        cluster.fail_worker(name, 1)
    elif kind == "pod ends" and body["status"]["phase"] == "Running":
        cluster.finish_pod(name, dice.choice([0, 1, 137]))


@dataclass(frozen=True)
class Verdict:
    """A bill beside what was held."""

    seed: int
    cost: CostStatus | None
    told: int
    """Micros by what nodes told, where they told it."""
    most: int
    """Micros by the later of what nodes told and what happened."""
    silent: int
    """Pods that were held and of whose end nothing was told."""
    told_by_pool: dict[str, int]
    """`told` by what the pods were marked with."""
    booked: int
    """Micros of the rows of the bill, which are of the ledger."""
    focus: int
    """Micros of its FOCUS rows."""
    counted: int
    """What the operator's counters by bucket show, with their corrections."""

    @property
    def billed(self) -> int:
        return self.cost.total_micros if self.cost else 0

    @property
    def estimated(self) -> bool:
        return self.cost is not None and self.cost.estimated

    def billed_by_pool(self) -> dict[str, int]:
        """What the stages of a pool cost, of pools that cost anything."""
        found: dict[str, int] = {}
        for stage in self.cost.stages if self.cost else ():
            pool = STAGES[stage.name]
            found[pool] = found.get(pool, 0) + stage.total_micros
        return {pool: micros for pool, micros in found.items() if micros}

    def _productive(self) -> int:
        return self.cost.micros_by_bucket["productive"] if self.cost else 0

    def problem(self) -> str:
        """What is wrong with the bill; empty if nothing is."""
        if self.cost is not None and sum(self.cost.micros_by_bucket.values()) != self.billed:
            return f"life {self.seed}: the buckets do not sum to the bill"
        if self.cost is not None and sum(stage.total_micros for stage in self.cost.stages) != self.billed:
            return f"life {self.seed}: the stages do not sum to the bill"
        if self.cost is not None and sum(month.total_micros for month in self.cost.months) != self.billed:
            return f"life {self.seed}: the months do not sum to the bill"
        if self.cost is not None and sum(self.cost.waste_micros_by_cause.values()) != self.billed - self._productive():
            return f"life {self.seed}: the waste by cause is not what was not productive"
        if not self.booked == self.focus == self.billed:
            return f"life {self.seed}: {self.booked} micros in rows, {self.focus} in FOCUS, {self.billed} billed"
        if self.counted != self.billed:
            return f"life {self.seed}: counters show {self.counted} micros of {self.billed} that were billed"
        if self.billed > self.most:
            return f"life {self.seed}: {self.billed} micros are billed, {self.most} were held"
        if not self.estimated and (self.billed != self.told or self.silent):
            return f"life {self.seed}: {self.billed} micros are billed as exact, {self.told} were held ({self.silent})"
        if not self.estimated and self.billed_by_pool() != self.told_by_pool:
            return f"life {self.seed}: {self.billed_by_pool()} are billed by pool, {self.told_by_pool} were held"
        return ""


async def live(seed: int, *, pools: bool = False) -> Verdict:
    """One life, and its bill when the run rests.

    Args:
        seed: of everything that happens.
        pools: the run has four stages with three pools, and goes from one to the next.
    """
    cluster = UnreliableCluster(seed, pools=pools)
    process, dice = Process(cluster), cluster.random
    monitor = process.monitor
    for _ in range(dice.randint(*SECONDS)):
        if dice.random() < 0.25:
            disturb(process)
        if dice.random() < 0.45:
            monitor.note(await process.look())
        if cluster.frozen is not None and dice.random() < 0.3:
            cluster.thaw()
        cluster.tick()
    cluster.thaw()
    cluster.hidden.clear()
    for node in cluster.nodes:
        cluster.restore_node(node)
    cluster.edit(suspend=True)
    for _ in range(60):
        outcome = await process.look()
        monitor.note(outcome)
        if outcome is not None and outcome.plan.status.phase == "Suspended" and not _holding(cluster):
            break
        cluster.tick()
    for _ in range(3):
        outcome = await process.look()
        monitor.note(outcome)
        cluster.tick()
    assert outcome is not None and not _holding(cluster), f"life {seed} does not come to rest"
    return _judge(seed, cluster, outcome.plan.status.cost, monitor)


def _holding(cluster: UnreliableCluster) -> list[Json]:
    """Pods that hold a node; one that ended and lost its labels may stay until the run goes or needs its name."""
    return [body for body in cluster.pods() if body["status"]["phase"] not in ("Succeeded", "Failed")]


def _judge(seed: int, cluster: UnreliableCluster, cost: CostStatus | None, monitor: Monitor) -> Verdict:
    most = silent = 0
    told: dict[str, int] = {}
    moment = min(fate.bound for fate in cluster.fates.values() if fate.bound) if _held(cluster) else cluster.now
    while moment <= cluster.now:
        for fate in _held(cluster):
            a_second = round(float(fate.price) * 1_000_000) * fate.priced // 3600
            told[fate.pool] = told.get(fate.pool, 0) + a_second * fate.held_at(moment, fate.told_end or fate.end)
            most += a_second * fate.held_at(moment, max(filter(None, (fate.told_end, fate.end)), default=None))
        moment += SECOND
    silent = sum(fate.told_end is None for fate in _held(cluster))
    by_pool = {pool: micros for pool, micros in told.items() if micros}
    # With the newest status: what is in memory may not be written yet.
    bill = bill_of(cluster.run | {"status": monitor.status}, ledger_in(cluster))
    return Verdict(
        seed,
        cost,
        sum(told.values()),
        most,
        silent,
        by_pool,
        booked=sum(row.total for row in bill.rows) if bill else 0,
        focus=focus_micros(bill) if bill else 0,
        counted=monitor.counted(),
    )


def _held(cluster: UnreliableCluster) -> list[Fate]:
    return [fate for fate in cluster.fates.values() if fate.bound is not None]


async def told_passes(process: Process, told_to: Traces, seconds: int) -> int:
    """Live so many seconds with a pass in each, which `told_to` is told of; how many succeeded."""
    passes = 0
    for _ in range(seconds):
        outcome = await process.look()
        if outcome is not None:
            told_to.passed(outcome)
            passes += 1
        process.cluster.tick()
    return passes
