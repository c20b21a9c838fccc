"""A small cluster in memory, in simulated time: an object store, nodes, pods with agents, and trainers that step.

It implements the operator's `Cluster` and `Agents` protocols, so the real observe, plan and apply run against it. A
write can be made to crash the operator, before or after it took effect.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import AsyncIterator, Mapping
from datetime import datetime, timedelta
from typing import Any

from support.planner_builders import START
from support.planner_queue import SimQueue
from support.planner_worlds import SimAgent, SimStage, SimWorld

from videotrain_api.records import AgentProgress, GenerationProgress, Roster, SavedPoint, WorkerExit
from videotrain_api.vocabulary import ANNOTATION_ROSTER, ENV_REPLACEABLE, KIND
from videotrain_operator.cluster.interface import Conflict, Json, NotFound, WatchEvent


class OperatorCrashError(Exception):
    """The operator died at this write."""


def clone(data: Any) -> Any:
    """A deep copy of JSON data, many times faster than copy.deepcopy."""
    return pickle.loads(pickle.dumps(data))


def rfc3339(at: datetime) -> str:
    return at.isoformat().replace("+00:00", "Z")


UNSCHEDULABLE = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/4 nodes fit"}


def _is_replaceable(body: Json) -> bool:
    """Its agent says by its exit code that it did not complete its work."""
    return {"name": ENV_REPLACEABLE, "value": "1"} in body["spec"]["containers"][0]["env"]


def _avoided(pod: Json) -> set[str]:
    """Names of nodes that a pod must not go to."""
    affinity = pod["spec"].get("affinity", {}).get("nodeAffinity", {})
    terms = affinity.get("requiredDuringSchedulingIgnoredDuringExecution", {}).get("nodeSelectorTerms", [])
    return {name for term in terms for field in term.get("matchFields", []) for name in field["values"]}


class SimCluster:
    """Objects, nodes and time."""

    START_SECONDS = 2

    def __init__(self, run: Json, nodes: int, *, every_steps: int = 10) -> None:
        self.now = START
        self.version = 1
        self.objects: dict[tuple[str, str], Json] = {}
        self.agents: dict[str, SimAgent] = {}
        self.stages: dict[str, SimStage] = {}
        self.worlds: dict[int, SimWorld] = {}
        self.nodes = {f"node-{n}": True for n in range(nodes)}
        self.draining: set[str] = set()
        self.quota: SimQueue | None = None
        self.nodes_untrusted = ""
        self.writes = 0
        self.crash_at: int | None = None
        self.crash_after = False
        self.events: list[tuple[str, str]] = []
        self.every_steps = every_steps
        self.totals = {s["name"]: (s.get("train") or {}).get("steps", 5) for s in run["spec"]["stages"]}
        self.held_us = 0
        self.alive_generations: list[set[int]] = []
        self._put(KIND, run)

    # The Cluster protocol.

    async def get(self, kind: str, namespace: str, name: str) -> Json:
        if (kind, name) not in self.objects:
            raise NotFound(f"{kind} {name}")
        return clone(self.objects[kind, name])

    async def list(self, kind: str, namespace: str, labels: Mapping[str, str] | None = None) -> list[Json]:
        if kind == "Node":
            return [self._node(name) for name in self.nodes]
        found = [body for (k, _), body in self.objects.items() if k == kind]
        wanted = labels or {}
        fits = [b for b in found if all(b["metadata"].get("labels", {}).get(k) == v for k, v in wanted.items())]
        return clone(fits)

    async def apply(self, manifest: Json, manager: str = "videotrain-operator") -> Json:
        self._before_write()
        kind, head = manifest["kind"], manifest["metadata"]
        current = self.objects.get((kind, head["name"]))
        for name in ("uid", "resourceVersion"):
            if name in head and (current is None or current["metadata"][name] != head[name]):
                raise Conflict(f"{kind} {head['name']} {name}")
        if current is None:
            assert kind != "Pod" or "spec" in manifest, "a roster never creates a pod"
            self._put(kind, clone(manifest))
        else:
            assert not current.get("immutable") or current.get("data") == manifest.get("data")
            assert kind != "Pod" or "spec" not in manifest, "a pod is created once"
            merged = clone(current)
            merged["metadata"].setdefault("annotations", {}).update(head.get("annotations", {}))
            merged["metadata"] |= {"finalizers": head["finalizers"]} if "finalizers" in head else {}
            for key in ("data", "spec"):
                if key in manifest:
                    merged[key] = clone(manifest[key])
            self._put(kind, merged)
        self._after_write()
        return clone(self.objects[kind, head["name"]])

    async def delete(
        self, kind: str, namespace: str, name: str, *, uid: str | None = None, grace_seconds: int | None = None
    ) -> None:
        self._before_write()
        current = self.objects.get((kind, name))
        if current is not None:
            if uid is not None and current["metadata"]["uid"] != uid:
                raise Conflict(f"{kind} {name} has another uid")
            if kind == "Pod" and grace_seconds != 0 and current["status"]["phase"] == "Running":
                current["metadata"].setdefault("deletionTimestamp", rfc3339(self.now))
            else:
                self._remove(kind, name)
        self._after_write()

    async def delete_collection(self, kind: str, namespace: str, labels: Mapping[str, str]) -> None:
        for body in await self.list(kind, namespace, labels):
            if "deletionTimestamp" not in body["metadata"]:
                await self.delete(kind, namespace, body["metadata"]["name"], uid=body["metadata"]["uid"])

    async def replace_status(self, kind: str, namespace: str, name: str, status: Json, resource_version: str) -> Json:
        self._before_write()
        current = self.objects.get((kind, name))
        if current is None:
            raise NotFound(name)
        if current["metadata"]["resourceVersion"] != resource_version:
            raise Conflict(f"{kind} {name} changed")
        self._put(kind, clone(current) | {"status": json.loads(json.dumps(status))})
        self._after_write()
        return clone(self.objects[kind, name])

    async def emit_event(self, regarding: Json, type_: str, reason: str, message: str) -> None:
        self.events.append((reason, message))

    def watch(self, kind: str, namespace: str) -> AsyncIterator[WatchEvent]:
        raise NotImplementedError

    # The Agents protocol.

    async def progress(self, address: str) -> AgentProgress | None:
        body = next((b for b in self._pods() if b["status"].get("podIP") == address), None)
        if body is None or body["status"]["phase"] != "Running":
            return None
        sim = self.agents[body["metadata"]["uid"]]
        if sim.silent or not self.nodes.get(body["spec"].get("nodeName", ""), False):
            return None
        name = body["metadata"]["name"]
        generation = sim.roster.generation if sim.roster else None
        facts = self._facts(sim.current, name) if sim.current else None
        before = self._facts(sim.previous, name) if sim.previous else None
        return AgentProgress(
            pod=name,
            pod_uid=sim.uid,
            at=self.now,
            roster_generation=generation,
            current=facts,
            previous=before,
        )

    def _facts(self, known: GenerationProgress, pod: str) -> GenerationProgress:
        world = self.worlds[known.generation]
        failed = pod in world.exits
        state = "failed" if failed else world.state
        end = None
        if world.ended is not None or failed:
            outcome = "failed" if failed else "completed" if world.state == "succeeded" else "drained"
            end = WorkerExit(
                generation=known.generation,
                stage=world.stage,
                local_rank=0,
                at=world.ended or self.now,
                code=world.exits.get(pod, 0),
                outcome=outcome,
                step=world.step,
            )
        return known.model_copy(
            update={
                "state": state,
                "world_size": len(world.roster.members) * world.roster.processes_per_node,
                "resumed_step": world.resumed if world.started else None,
                "total_steps": world.total,
                "step": world.step,
                "launched_at": world.launched,
                "started_at": world.started,
                "first_step_at": world.first,
                "last_step_at": world.last,
                "ended_at": world.ended,
                "saved": world.points[-8:],
                "exit": end,
            }
        )

    # What happens by itself.

    def tick(self) -> None:
        """One second passes."""
        self.now += timedelta(seconds=1)
        if self.quota is not None:
            self.quota.admit(self)
        self._schedule()
        for body in self._pods():
            self._kubelet(body)
        for world in self.worlds.values():
            self._train(world)
        alive = {
            g for g, w in self.worlds.items() if w.ended is None and w.state in ("running", "draining") and w.started
        }
        self.alive_generations.append(alive)

    def _pods(self) -> list[Json]:
        return [body for (kind, _), body in self.objects.items() if kind == "Pod"]

    def _schedule(self) -> None:
        used = {body["spec"].get("nodeName") for body in self._pods()}
        # By name: pods that are created at the same time arrive in any order.
        for body in sorted(self._pods(), key=lambda body: str(body["metadata"]["name"])):
            if body["spec"].get("nodeName") or body["spec"].get("schedulingGates"):
                continue
            free = [n for n, up in self.nodes.items() if up and n not in used and n not in self.draining]
            free = [n for n in free if n not in _avoided(body)]
            if "deletionTimestamp" in body["metadata"]:
                continue
            if not free:
                body["status"]["conditions"] = [UNSCHEDULABLE | {"lastTransitionTime": rfc3339(self.now)}]
                continue
            body["spec"]["nodeName"] = free[0]
            used.add(free[0])
            when = rfc3339(self.now)
            scheduled = {"type": "PodScheduled", "status": "True", "lastTransitionTime": when}
            body["status"] = {"phase": "Pending", "conditions": [scheduled]}

    def _kubelet(self, body: Json) -> None:
        head, status = body["metadata"], body["status"]
        node = body["spec"].get("nodeName")
        if node is None or not self.nodes.get(node, False):
            return
        if status["phase"] == "Pending":
            address = f"10.0.{len(self.agents) // 250}.{len(self.agents) % 250 + 1}"
            running = {"name": "worker", "state": {"running": {"startedAt": rfc3339(self.now)}}}
            status |= {"phase": "Running", "podIP": address, "containerStatuses": [running]}
            self.agents[head["uid"]] = SimAgent(head["uid"])
            return
        if status["phase"] != "Running":
            if "deletionTimestamp" in head:
                self._remove("Pod", head["name"])
            return
        sim = self.agents[head["uid"]]
        if "deletionTimestamp" in head:
            self._stop(sim, drain=True, pod=head["name"])
            self.finish_pod(head["name"], 143 if _is_replaceable(body) else 0)
            return
        text = (head.get("annotations") or {}).get(ANNOTATION_ROSTER)
        if text and not sim.silent:
            self._obey(sim, Roster.from_wire(json.loads(text)), head["name"])

    def _obey(self, sim: SimAgent, roster: Roster, pod: str) -> None:
        if sim.roster is not None and sim.roster.generation >= roster.generation:
            return
        self._stop(sim, drain=roster.drain, pod=pod)
        sim.roster = roster
        if pod not in {member.pod for member in roster.members}:
            return
        world = self.worlds.get(roster.generation)
        if world is None:
            saved = self.stages.setdefault(roster.stage, SimStage()).saved
            step = saved[-1][0] if saved else 0
            world = SimWorld(roster, self.now, roster.stage, step, self.totals[roster.stage], step)
            self.worlds[roster.generation] = world
        facts = GenerationProgress(
            generation=roster.generation, stage=roster.stage, state="starting", launched_at=self.now
        )
        sim.previous, sim.current = sim.current, facts

    def _stop(self, sim: SimAgent, *, drain: bool, pod: str) -> None:
        if sim.current is None:
            return
        world = self.worlds[sim.current.generation]
        if world.ended is not None:
            return
        if drain and world.started is not None and world.state == "running" and not world.hung:
            self._save(world)
            world.state = "drained"
        elif world.state != "succeeded":
            world.state = "drained" if drain else "failed"
        world.ended = self.now

    def _train(self, world: SimWorld) -> None:
        if world.ended is not None or world.state in ("failed", "drained", "succeeded"):
            return
        members = [self.objects.get(("Pod", m.pod)) for m in world.roster.members]
        present = [m is not None and self._hosts(m, world) for m in members]
        if not all(present):
            if world.started is not None and not world.hung:
                for member, here in zip(world.roster.members, present, strict=True):
                    if here:
                        world.exits.setdefault(member.pod, 82)
                world.state, world.ended = "failed", self.now
            return
        if world.started is None:
            if self.now - world.launched >= timedelta(seconds=self.START_SECONDS):
                world.started, world.state = self.now, "running"
            return
        if world.hung:
            return
        if world.step < world.total:
            world.step += 1
            world.first = world.first or self.now
            world.last = self.now
            if world.step % self.every_steps == 0:
                self._save(world)
        if world.step >= world.total:
            self._save(world)
            world.state, world.ended = "succeeded", self.now

    def _hosts(self, body: Json, world: SimWorld) -> bool:
        sim = self.agents.get(body["metadata"]["uid"])
        up = self.nodes.get(body["spec"].get("nodeName") or "", False) and body["status"]["phase"] == "Running"
        here = sim is not None and sim.current is not None and sim.current.generation == world.roster.generation
        return bool(up and here)

    def _save(self, world: SimWorld) -> None:
        saved = self.stages[world.stage].saved
        if saved and saved[-1][0] >= world.step:
            return
        saved.append((world.step, self.now))
        point = SavedPoint(
            step=world.step,
            captured_at=world.last or self.now,
            committed_at=self.now,
            uri=f"s3://videotrain/{world.stage}/{world.step}",
            data_stall_us=0,
            checkpoint_us=0,
        )
        world.points.append(point)

    # What people and machines do to it.

    def fail_worker(self, pod: str, code: int) -> None:
        """A worker of a pod exits; its peers lose it."""
        for world in self.worlds.values():
            if world.ended is None and pod in {m.pod for m in world.roster.members} and world.started:
                world.exits = {m.pod: 82 for m in world.roster.members} | {pod: code}
                world.state, world.ended = "failed", self.now

    def finish_pod(self, name: str, code: int, reason: str = "") -> None:
        """A pod's container ends."""
        body = self.objects["Pod", name]
        started = body["status"]["containerStatuses"][0]["state"].get("running", {}).get("startedAt")
        ended = {"exitCode": code, "startedAt": started, "finishedAt": rfc3339(self.now), "reason": reason or "Error"}
        body["status"]["containerStatuses"] = [{"name": "worker", "state": {"terminated": ended}}]
        body["status"]["phase"] = "Failed" if code else "Succeeded"

    def stamp(self) -> str:
        """Now, as the API server writes it."""
        return rfc3339(self.now)

    def force_delete(self, name: str) -> None:
        """A pod's object is removed without asking its node, whose processes die a little later."""
        self.objects["Pod", name]["metadata"].pop("finalizers", None)
        self._remove("Pod", name)

    def ask_to_leave(self, name: str) -> None:
        """Somebody deletes a pod, which has time to save."""
        self.objects["Pod", name]["metadata"].setdefault("deletionTimestamp", rfc3339(self.now))

    def wipe_status(self) -> None:
        """Somebody empties the status."""
        body = clone(self.run)
        body["status"] = {}
        self._put(KIND, body)

    def drop(self, kind: str, part: str) -> None:
        """Somebody deletes objects by hand."""
        for key in [key for key in self.objects if key[0] == kind and part in key[1]]:
            del self.objects[key]

    def spoil_roster(self, name: str, text: str | None) -> None:
        """Somebody removes or overwrites the roster of a pod."""
        annotations = self.objects["Pod", name]["metadata"].setdefault("annotations", {})
        annotations.pop(ANNOTATION_ROSTER, None)
        if text is not None:
            annotations[ANNOTATION_ROSTER] = text

    def lose_node(self, node: str) -> None:
        """Its processes die; it is not ready."""
        self.nodes[node] = False

    def hang(self) -> None:
        """The step counter of whoever trains stands still."""
        for world in self.worlds.values():
            world.hung = world.hung or world.ended is None

    def edit(self, **spec: Any) -> None:
        """A user edits the run."""
        body = clone(next(b for (k, _), b in self.objects.items() if k == KIND))
        body["spec"] |= spec
        body["metadata"]["generation"] += 1
        self._put(KIND, body)

    @property
    def run(self) -> Json:
        """The run object."""
        return next(b for (k, _), b in self.objects.items() if k == KIND)

    # Inside.

    def _node(self, name: str) -> Json:
        ready = {"type": "Ready", "status": "True" if self.nodes[name] else "False"}
        spec = {"unschedulable": True} if name in self.draining else {}
        return {"kind": "Node", "metadata": {"name": name}, "spec": spec, "status": {"conditions": [ready]}}

    def _put(self, kind: str, body: Json) -> None:
        self.version += 1
        head = body["metadata"]
        head.setdefault("uid", f"{kind.lower()}-{head['name']}-{self.version}")
        head.setdefault("creationTimestamp", rfc3339(self.now))
        head["resourceVersion"] = str(self.version)
        if kind == "Pod":
            body.setdefault("status", {"phase": "Pending"})
            if self.quota is not None and head["name"] not in self.quota.known:
                self.quota.gate(body)
        self.objects[kind, head["name"]] = body

    def _remove(self, kind: str, name: str) -> None:
        head = self.objects[kind, name]["metadata"]
        if head.get("finalizers"):
            head.setdefault("deletionTimestamp", rfc3339(self.now))
            return
        if self.quota is not None and kind == "Pod":
            self.quota.known.discard(name)
        del self.objects[kind, name]

    def _before_write(self) -> None:
        self.writes += 1
        if self.crash_at == self.writes and not self.crash_after:
            raise OperatorCrashError

    def _after_write(self) -> None:
        if self.crash_at == self.writes and self.crash_after:
            raise OperatorCrashError
