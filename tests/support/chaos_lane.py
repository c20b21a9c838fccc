"""A long-lived run of two nodes that is brought into one phase again and again, to be disturbed there."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
from support.chaos_records import Generation, RecordKeeper
from support.chaos_rig import PATIENCE, Rig, until
from support.training_worlds import make_latents

from videotrain_api.records import Roster
from videotrain_api.resource.name_ranges import spelled_out
from videotrain_api.times import rfc3339
from videotrain_api.vocabulary import API_VERSION, DIR_RUN, KIND, LABEL_RUN, ROSTER_KEY
from videotrain_operator.accounting.attribution import EPOCH
from videotrain_operator.accounting.stored_ledger import records_in
from videotrain_operator.kube.client import connect

PHASES = ("starting", "running", "checkpointing", "suspending")
EVERY_STEPS = 12
STEP_SECONDS = 0.25
HANG_SECONDS = 12
START_SECONDS = 90
GRACE_SECONDS = 25
LOSABLE_STEPS = 3
"""Steps without a checkpoint that a running lane has before it is disturbed, so that there is something to lose."""
USER = "chaos"
PACE = Path(__file__).with_name("chaos_pace")
PYTHONPATH = os.pathsep.join([str(PACE), *filter(None, [os.environ.get("PYTHONPATH")])])
"""Of worker pods, which shall run the code that the operators run."""
MODEL = {
    "hiddenSize": 32, "numHeads": 2, "doubleBlocks": 1, "singleBlocks": 1, "mlpRatio": 2.0, "ropeAxes": [4, 6, 6],
    "patchSize": 1, "condEmbed": True, "guidanceEmbed": False,
}  # fmt: skip


def remade(roster: Roster) -> dict[str, Any]:
    """What may be another in a roster that was deleted and made again: what is saved, and how and since when."""
    return {name: getattr(roster, name) for name in ("saved_step", "drain", "created_at")}


def manifest(name: str, namespace: str, latents: str, nodes: list[str], env: dict[str, str]) -> dict[str, Any]:
    """A run that only trains, on the latents of support.training_worlds."""
    hosts = {"key": "kubernetes.io/hostname", "operator": "In", "values": nodes}
    terms = {"nodeSelectorTerms": [{"matchExpressions": [hosts]}]}
    affinity = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}}
    train = {
        "steps": 1_000_000,
        "buckets": [{"resolution": "64px", "frames": f, "batchSize": b} for f, b in ((8, 2), (16, 1))],
        "optimizer": {"learningRate": [{"value": 1.0e-3}], "epsilon": 1.0e-8},
        "conditioning": {"t2v": 1, "i2vHead": 1},
        "precision": "fp32",
        "parallel": {"microBatchesPerStep": 2},
    }  # fmt: skip
    limits = {"application": 1000, "infrastructure": 1000, "preemption": 1000, "hang": 1000}
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "model": MODEL,
            "autoencoder": {"preset": "dc-ae-tiny", "latentChannels": 4},
            "textEncoder": {"maxTokens": 8, "contextDim": 16, "pooledDim": 8},
            "dataset": {"latents": latents},
            "storage": {"uri": "s3://chaos/runs"},
            "nodes": {"min": 1, "max": 2},
            "pool": {"gpusPerNode": 1, "pricePerGpuHour": "2.00", "env": {"PYTHONPATH": PYTHONPATH, **env}},
            "checkpoint": {"everySteps": EVERY_STEPS, "keepLast": 100_000},
            "elasticity": {"waitForMaxSeconds": 60, "minGainSeconds": 0},
            "failurePolicy": {
                "hangSeconds": HANG_SECONDS, "startSeconds": START_SECONDS, "graceSeconds": GRACE_SECONDS,
                "limits": limits, "sameStepLimit": 1000,
            },
            "podTemplate": {"spec": {"affinity": affinity}},
            "stages": [{"name": "train", "task": "train", "train": train}],
        },
    }  # fmt: skip


class Lane:
    """One run, its nodes and everything that was seen of it."""

    def __init__(self, rig: Rig, keeper: RecordKeeper, phase: str, latents: str) -> None:
        self.rig, self.keeper, self.phase, self.latents = rig, keeper, phase, latents
        self.nodes = [f"{phase}-{number}" for number in range(3)]
        """One more than it needs: a node that failed may be avoided for a while."""
        self.lives = 0
        self.changes: dict[str, dict[str, Any]] = {}
        """What of the spec's sections is other than in `manifest`."""
        self.node = ""
        """That of the follower when it was last disturbed; its pod may be gone since."""
        self.events: list[dict[str, Any]] = []
        self.rosters: list[Roster] = []
        self.pods: dict[str, dict[str, Any]] = {}
        self.entries: dict[tuple[str, int, str], dict[str, Any]] = {}
        self.ledger, self.roster_map = "", ""
        """UIDs of their config maps."""
        self.open_accounts: set[str] = set()
        """UIDs of pods whose end the ledger does not tell yet."""
        self.rebuilt: set[str] = set()
        """Times from which a ledger that was made again lists entries; what was before is in its totals."""
        self.problems: list[str] = []
        rig.views["Event"].listeners.append(self._see_event)
        rig.views["Pod"].listeners.append(self._see_pod)
        rig.views["ConfigMap"].listeners.append(self._see_config_map)
        rig.views[KIND].listeners.append(self._see_run)

    # Life

    @property
    def name(self) -> str:
        """Name of the run and of its namespace; another one after a failed cell."""
        return f"{self.phase}{self.lives}"

    @property
    def folder(self) -> Path:
        """Where its workers look for gates and leave marks."""
        return self.rig.folder / "lanes" / self.name

    async def create(self) -> None:
        """Create the run in a namespace of its own."""
        self.lives += 1
        for seen in (
            self.events,
            self.rosters,
            self.pods,
            self.entries,
            self.problems,
            self.rebuilt,
            self.open_accounts,
        ):
            seen.clear()
        self.ledger, self.roster_map = "", ""
        self.folder.mkdir(parents=True)
        (self.folder / "step-seconds").write_text(str(STEP_SECONDS))
        await self.rig.client.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.name}}, USER)
        env = {"CHAOS_FOLDER": str(self.folder)}
        run = manifest(self.name, self.name, self.latents, self.nodes, env)
        for section, change in self.changes.items():
            run["spec"][section] |= change
        await self.rig.client.create(run, USER)

    async def renew(self) -> None:
        """Start anew with another run, after a cell in which this one came to harm."""
        self.open_gates()
        await self.rig.client.delete("Namespace", "", self.name)
        await until(lambda: self.body is None, f"run {self.name} is gone", self.explain)
        await self.create()

    # What is seen

    def _see_event(self, body: dict[str, Any], deleted: bool) -> None:
        involved = body["involvedObject"]
        if not deleted and (involved.get("namespace"), involved["name"]) == (self.name, self.name):
            self.events.append(body)

    def _see_pod(self, body: dict[str, Any], deleted: bool) -> None:
        head = body["metadata"]
        if (head.get("labels") or {}).get(LABEL_RUN) != self.name or head["namespace"] != self.name:
            return
        self.pods[head["uid"]] = body | {"gone": deleted}

    def _see_roster(self, roster: Roster, uid: str) -> None:
        known = next((r for r in self.rosters if r.order() == roster.order()), None)
        if known is None:
            newest = max((r.order() for r in self.rosters), default=(0, False, 0))
            if roster.order() < newest:
                self.problems.append(f"roster {roster.order()} came up after {newest}")
            self.rosters.append(roster)
        elif self.roster_map not in ("", uid) and known.model_copy(update=remade(roster)) == roster:
            self.rosters[self.rosters.index(known)] = roster
        elif known != roster:
            self.problems.append(f"two rosters of generation {roster.generation}: {known} and {roster}")
        self.roster_map = uid

    def _see_config_map(self, body: dict[str, Any], deleted: bool) -> None:
        head = body["metadata"]
        if deleted or head.get("namespace") != self.name:
            return
        if text := (body.get("data") or {}).get(ROSTER_KEY):
            self._see_roster(Roster.from_wire(json.loads(text)), head["uid"])
        if head["name"] != f"{self.name}-ledger":
            return
        document = json.loads(body["data"]["ledger.json"])
        self.open_accounts = {uid for uid, record in records_in(document).items() if record.ended is None}
        if self.ledger not in ("", head["uid"]):
            ends = (record.closed_until for record in records_in(document).values())
            self.rebuilt |= {rfc3339(EPOCH + timedelta(microseconds=end)) for end in ends if end is not None}
            self.rebuilt |= {entry["from"] for entry in document["entries"]}
        self.ledger = head["uid"]
        for entry in document["entries"]:
            key = entry["uid"], entry["generation"], entry["from"]
            if self.entries.setdefault(key, entry) != entry:
                self.problems.append(f"the ledger's closed entry {key} was changed: {self.entries[key]} to {entry}")

    def _see_run(self, body: dict[str, Any], deleted: bool) -> None:
        head = body["metadata"]
        cost = (body.get("status") or {}).get("cost")
        if deleted or (head.get("namespace"), head["name"]) != (self.name, self.name) or not cost:
            return
        held, money = cost["heldGpuMicroseconds"], cost["totalMicros"]
        if sum(cost["gpuMicrosecondsByBucket"].values()) != held or sum(cost["microsByBucket"].values()) != money:
            self.problems.append(f"the bill does not add up: {cost}")

    @property
    def body(self) -> dict[str, Any] | None:
        """The run as it was last seen."""
        return self.rig.views[KIND].objects.get((self.name, self.name))

    @property
    def status(self) -> dict[str, Any]:
        """Its status."""
        return (self.body or {}).get("status") or {}

    @property
    def restarts(self) -> dict[str, int]:
        """Its restarts by cause."""
        return dict(self.status.get("restarts") or {})

    @property
    def live(self) -> dict[str, Any] | None:
        """The running generation."""
        newest = (self.status.get("generations") or [{}])[-1]
        return newest if newest and not newest.get("endCause") else None

    @property
    def generations(self) -> dict[int, Generation]:
        """What its workers wrote."""
        return self.keeper.run(self.name)

    @property
    def newest(self) -> Generation | None:
        """The newest generation that trained."""
        trained = [g for g in self.generations.values() if g.steps]
        return max(trained, key=lambda g: g.number, default=None)

    @property
    def saved(self) -> int:
        """Step of the newest checkpoint that workers told of."""
        return max((step for g in self.generations.values() for step in g.saved), default=0)

    def present(self) -> list[dict[str, Any]]:
        """Its pods that are there."""
        return [pod for pod in self.pods.values() if not pod["gone"]]

    def pod(self, name: str) -> dict[str, Any]:
        """A pod that is there."""
        return next(pod for pod in self.present() if pod["metadata"]["name"] == name)

    def root(self, name: str) -> Path:
        """Directory of a pod on its process node."""
        return self.rig.nodes.workdir / "pods" / f"{name}-{self.pod(name)['metadata']['uid'][:8]}"

    def worker(self, name: str) -> int:
        """Process id of the worker in a pod."""
        number = self.live["number"] if self.live is not None else self.newest.number
        return int((self.root(name) / DIR_RUN / f"worker-{number}-0.pid").read_text())

    def agent(self, name: str) -> int:
        """Process id of the agent in a pod."""
        root = str(self.root(name))
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                words = process.cmdline()
                mine = process.environ().get("VIDEOTRAIN_POD_ROOT") == root
                if mine and len(words) > 2 and words[1].endswith("videotrain-trainer") and words[2] == "agent":
                    return process.pid
        raise AssertionError(f"no agent runs below {root}")

    def told(self, since: datetime) -> list[str]:
        """Events since a time, as people see them."""
        found = [e for e in self.events if datetime.fromisoformat(e["lastTimestamp"]) >= since.replace(microsecond=0)]
        return [f"{event['type']} {event['reason']}: {event['message']}" for event in found]

    def explain(self) -> str:
        """Everything about it, for a failing cell."""
        status = {k: v for k, v in self.status.items() if k not in ("cost", "generations")}
        generations = (self.status.get("generations") or [])[-3:]
        lines = [f"run {self.name}:", json.dumps(status, indent=1), json.dumps(generations, indent=1)]
        for pod in self.present():
            head, state = pod["metadata"], pod["status"]
            where, containers = pod["spec"].get("nodeName"), json.dumps(state.get("containerStatuses"))
            lines.append(f"pod {head['name']} {head['uid'][:8]} {state.get('phase')} on {where}")
            lines.append(f"  deleted {head.get('deletionTimestamp')} {containers[:600]}")
        lines += [str(generation) for generation in list(self.generations.values())[-4:]]
        lines += ["events:", *self.told(datetime.now(UTC) - timedelta(seconds=180)), *self.problems]
        marks = sorted(mark.name for mark in self.folder.iterdir())
        lines += [f"marks: {marks}", self.rig.operators.tail()]
        return "\n".join(lines)

    async def wait(self, condition: Callable[[], object], what: str) -> Any:
        """The first true value of a condition; fails at once if the run has failed."""

        def holds() -> object:
            assert self.status.get("phase") != "Failed", f"{self.name} failed while waiting: {what}\n{self.explain()}"
            return condition()

        return await until(holds, f"{self.name}: {what}", self.explain)

    # Phases

    def close_gate(self, gate: str) -> None:
        """Hold up workers at a place of chaos_pace."""
        for mark in self.folder.glob(f"{gate}-*"):
            mark.unlink()
        (self.folder / f"hold-{gate}").touch()

    def open_gates(self) -> None:
        """Let all go on."""
        for gate in ("start", "save"):
            (self.folder / f"hold-{gate}").unlink(missing_ok=True)

    def held(self, gate: str) -> bool:
        """Both workers of the running generation stand at a gate."""
        return self.live is not None and self._marked(gate, self.live["number"])

    def _marked(self, gate: str, number: int) -> bool:
        return all((self.folder / f"{gate}-{number}-{self.name}-w{index}").exists() for index in (0, 1))

    def is_whole(self) -> bool:
        """Two nodes train, nobody else is there, and nothing is about to change."""
        live, newest = self.live, self.newest
        if live is None or newest is None or len(spelled_out(live["members"])) != 2 or newest.number != live["number"]:
            return False
        quiet = all("deletionTimestamp" not in pod["metadata"] for pod in self.present())
        return len(self.present()) == 2 and quiet and self.status["phase"] == "Running" and len(newest.steps) >= 2

    async def whole(self) -> None:
        """Wait until two nodes train."""
        await self.wait(self.is_whole, "two nodes train")

    async def suspend(self, value: bool) -> None:
        """Edit spec.suspend."""
        await self.rig.client.patch(KIND, self.name, self.name, {"spec": {"suspend": value}}, manager=USER)

    async def enter(self) -> None:
        """Come from two nodes that train into the lane's phase."""
        await getattr(self, f"_enter_{self.phase}")()

    async def _enter_running(self) -> None:
        def something_to_lose() -> bool:
            newest = self.newest
            return newest is not None and self.saved > 0 and (newest.last or 0) - self.saved >= LOSABLE_STEPS

        await self.wait(something_to_lose, "steps without a checkpoint")

    async def _enter_starting(self) -> None:
        self.close_gate("start")
        os.kill(self.worker(f"{self.name}-w1"), signal.SIGKILL)
        await self.wait(lambda: self.held("start"), "both workers are ready for their first step")

    async def _enter_checkpointing(self) -> None:
        self.close_gate("save")
        await self.wait(lambda: self.held("save"), "a checkpoint has begun")

    async def _enter_suspending(self) -> None:
        await self._enter_running()
        assert self.live is not None
        number = self.live["number"]
        self.close_gate("save")
        await self.suspend(True)
        await self.wait(
            lambda: self._marked("save", number) and self.status["phase"] == "Suspending",
            "workers save before they leave",
        )


@asynccontextmanager
async def one_lane(plane: Any, folder: Path, refresh_seconds: float | None = None) -> AsyncIterator[Lane]:
    """A lane of the phase `running` with a rig of its own; both end with it.

    However busy the machine is, none of its steps counts as a hang, and no world begins without its second node.

    Args:
        plane: the control plane.
        folder: for everything that is written.
        refresh_seconds: between a node's looks at what its pods have mounted; its default if None.
    """
    keeper = RecordKeeper(folder / "nodes" / "pods", folder / "records")
    async with connect(str(plane.kubeconfig())) as client:
        rig = Rig(plane, client, folder)
        lane = Lane(rig, keeper, "running", make_latents(folder))
        lane.changes = {"failurePolicy": {"hangSeconds": 1800, "startSeconds": 1800}, "nodes": {"min": 2}}
        try:
            await rig.start("chaos", lane.nodes, refresh_seconds=refresh_seconds)
            yield lane
            await client.delete("Namespace", "", lane.name)
            namespaces, key = rig.views["Namespace"].objects, ("", lane.name)
            await until(lambda: key not in namespaces, "the namespace is gone", lane.explain)
        finally:
            await rig.stop()
            keeper.close()


__all__ = ["PATIENCE", "PHASES", "Lane", "manifest", "one_lane"]
