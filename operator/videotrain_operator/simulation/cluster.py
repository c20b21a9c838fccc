"""The simulated cluster: an object store, nodes, a scheduler, kubelets, and what people and machines do to them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from videotrain_api.records import AgentProgress, GenerationProgress, Roster
from videotrain_api.vocabulary import ANNOTATION_ROSTER, ENV_REPLACEABLE, FIELD_MANAGER, KIND
from videotrain_operator.cluster.interface import Conflict, Json, NotFound
from videotrain_operator.simulation.queue import PodGroupQueue
from videotrain_operator.simulation.world import Agent, Pace, World

START: Final = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)
"""When simulated time begins, unless told otherwise."""
STEPS_OF_OTHER_TASKS: Final = 5
"""Steps of a stage that does not train."""


class OperatorCrash(Exception):
    """The operator died at this write; see SimulatedCluster.crash_at."""


def clone(data: Any) -> Any:
    """A deep copy of JSON data, many times faster than copy.deepcopy."""
    return json.loads(json.dumps(data))


def rfc3339(at: datetime) -> str:
    """A time as the API server writes it."""
    return at.isoformat().replace("+00:00", "Z")


class SimulatedCluster:
    """One run, its nodes and its time. Implements the operator's `Cluster` and `Agents`.

    Each node holds one pod. A copy of it by pickle tries another future.
    """

    def __init__(self, run: Json, nodes: int, *, pace: Pace | None = None, start: datetime = START) -> None:
        """Create the run; nothing has happened yet.

        Args:
            run: the VideoTrainingRun, with `metadata.generation`; it is stored, not copied.
            nodes: how many there are: node-0, node-1 and so on.
            pace: how fast workers are.
            start: the first second.
        """
        self.namespace: str = run["metadata"]["namespace"]
        self.name: str = run["metadata"]["name"]
        self.now = start
        """The simulated time; may be moved forward between passes, in which case nothing happens meanwhile."""
        self.pace = pace or Pace()
        self.version = 1
        """The newest resourceVersion."""
        self.objects: dict[tuple[str, str], Json] = {}
        """By kind and name."""
        self.agents: dict[str, Agent] = {}
        """By pod uid."""
        self.saved: dict[str, list[tuple[int, datetime]]] = {}
        """Checkpoints by stage: step and time."""
        self.worlds: dict[int, World] = {}
        """By generation."""
        self.nodes = {f"node-{number}": True for number in range(nodes)}
        """Whether each node is up."""
        self.draining: set[str] = set()
        """Nodes that are cordoned."""
        self.queue: PodGroupQueue | None = None
        """Admits pods; without one they go straight to the scheduler."""
        self.nodes_untrusted = ""
        """Why the operator is not to believe what it sees of nodes, if it is not."""
        self.writes = 0
        """Writes of the operator so far, Events apart."""
        self.crash_at: int | None = None
        """The write at which the operator dies: OperatorCrash."""
        self.crash_after = False
        """It dies after that write took effect, not before."""
        self.events: list[tuple[str, str]] = []
        """Reason and message of every Event."""
        self.alive_generations: list[set[int]] = []
        """Generations that trained, by second."""
        self._totals = {
            stage["name"]: (stage.get("train") or {}).get("steps", STEPS_OF_OTHER_TASKS)
            for stage in run["spec"]["stages"]
        }
        self._put(KIND, run)

    @property
    def run(self) -> Json:
        """The run's object as the simulated API server stores it; changing it changes the cluster."""
        return next(body for (kind, _), body in self.objects.items() if kind == KIND)

    def pods(self) -> list[Json]:
        """Every Pod object, as it is stored."""
        return [body for (kind, _), body in self.objects.items() if kind == "Pod"]

    def stamp(self) -> str:
        """Now, as the API server writes it."""
        return rfc3339(self.now)

    # The Cluster protocol.

    async def get(self, kind: str, namespace: str, name: str) -> Json:
        """The object; see Cluster.get."""
        if (kind, name) not in self.objects:
            raise NotFound(f"{kind} {namespace}/{name}")
        body: Json = clone(self.objects[kind, name])
        return body

    async def list(self, kind: str, namespace: str, labels: Mapping[str, str] | None = None) -> list[Json]:
        """All objects that carry the labels, of the one namespace that there is; see Cluster.list."""
        del namespace
        if kind == "Node":
            return [self._node(name) for name in self.nodes]
        found = [body for (k, _), body in self.objects.items() if k == kind]
        wanted = labels or {}
        fits = [b for b in found if all(b["metadata"].get("labels", {}).get(k) == v for k, v in wanted.items())]
        bodies: list[Json] = clone(fits)
        return bodies

    async def apply(self, manifest: Json, manager: str = FIELD_MANAGER) -> Json:
        """Create the object, or merge what the operator changes of it; see Cluster.apply."""
        del manager
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
            merged |= {key: clone(manifest[key]) for key in ("data", "spec") if key in manifest}
            self._put(kind, merged)
        self._after_write()
        body: Json = clone(self.objects[kind, head["name"]])
        return body

    async def delete(
        self, kind: str, namespace: str, name: str, *, uid: str | None = None, grace_seconds: int | None = None
    ) -> None:
        """Ask for deletion: a pod that runs has time to save; see Cluster.delete."""
        self._before_write()
        current = self.objects.get((kind, name))
        if current is not None:
            if uid is not None and current["metadata"]["uid"] != uid:
                raise Conflict(f"{kind} {namespace}/{name} has another uid")
            if kind == "Pod" and grace_seconds != 0 and current["status"]["phase"] == "Running":
                current["metadata"].setdefault("deletionTimestamp", self.stamp())
            else:
                self.remove(kind, name)
        self._after_write()

    async def delete_collection(self, kind: str, namespace: str, labels: Mapping[str, str]) -> None:
        """Ask for the deletion of all that carry the labels; see Cluster.delete_collection."""
        for body in await self.list(kind, namespace, labels):
            if "deletionTimestamp" not in body["metadata"]:
                await self.delete(kind, namespace, body["metadata"]["name"], uid=body["metadata"]["uid"])

    async def replace_status(self, kind: str, namespace: str, name: str, status: Json, resource_version: str) -> Json:
        """Write the status; see Cluster.replace_status."""
        self._before_write()
        current = self.objects.get((kind, name))
        if current is None:
            raise NotFound(f"{kind} {namespace}/{name}")
        if current["metadata"]["resourceVersion"] != resource_version:
            raise Conflict(f"{kind} {name} changed")
        self._put(kind, clone(current) | {"status": clone(status)})
        self._after_write()
        body: Json = clone(self.objects[kind, name])
        return body

    async def emit_event(self, regarding: Json, type_: str, reason: str, message: str) -> None:
        """Record an Event in `events`; see Cluster.emit_event."""
        del regarding, type_
        self.events.append((reason, message))

    # The Agents protocol.

    async def progress(self, address: str) -> AgentProgress | None:
        """What the agent at a pod IP tells; None if it is silent, or its node or pod is not up."""
        body = next((b for b in self.pods() if b["status"].get("podIP") == address), None)
        if body is None or body["status"]["phase"] != "Running":
            return None
        agent, name = self.agents[body["metadata"]["uid"]], body["metadata"]["name"]
        if agent.silent or not self.nodes.get(body["spec"].get("nodeName", ""), False):
            return None
        return AgentProgress(
            pod=name,
            pod_uid=agent.uid,
            at=self.now,
            roster_generation=agent.roster.generation if agent.roster else None,
            current=self._facts(agent.current, name),
            previous=self._facts(agent.previous, name),
        )

    def _facts(self, known: GenerationProgress | None, pod: str) -> GenerationProgress | None:
        return None if known is None else self.worlds[known.generation].facts(known, pod, self.now)

    # What happens by itself.

    def tick(self) -> None:
        """Let one second pass: scheduler, kubelets, workers and queue do what they do in a second."""
        self.now += timedelta(seconds=1)
        if self.queue is not None:
            self.queue.admit(self)
        self._schedule()
        for body in self.pods():
            self._kubelet(body)
        for world in self.worlds.values():
            members = [self.objects.get(("Pod", member.pod)) for member in world.roster.members]
            world.advance(self.now, [m is not None and self._hosts(m, world) for m in members], self.pace)
        self.alive_generations.append({number for number, world in self.worlds.items() if world.alive})

    def _schedule(self) -> None:
        used = {body["spec"].get("nodeName") for body in self.pods()}
        # By name: pods that are created at the same time arrive in any order.
        for body in sorted(self.pods(), key=lambda body: str(body["metadata"]["name"])):
            if body["spec"].get("nodeName") or body["spec"].get("schedulingGates"):
                continue
            if "deletionTimestamp" in body["metadata"]:
                continue
            shut = used | self.draining | _avoided(body)
            free = [name for name, up in self.nodes.items() if up and name not in shut]
            if not free:
                why = {"reason": "Unschedulable", "message": f"0/{len(self.nodes)} nodes fit"}
                body["status"]["conditions"] = [self._scheduled("False") | why]
                continue
            body["spec"]["nodeName"] = free[0]
            used.add(free[0])
            body["status"] = {"phase": "Pending", "conditions": [self._scheduled("True")]}

    def _scheduled(self, status: str) -> Json:
        return {"type": "PodScheduled", "status": status, "lastTransitionTime": self.stamp()}

    def _kubelet(self, body: Json) -> None:
        """What the node of a pod does with it in one second: start it, stop it, or show its agent the roster."""
        head, status = body["metadata"], body["status"]
        if not self.nodes.get(body["spec"].get("nodeName") or "", False):
            return
        if status["phase"] == "Pending":
            address = f"10.0.{len(self.agents) // 250}.{len(self.agents) % 250 + 1}"
            running = {"name": "worker", "state": {"running": {"startedAt": self.stamp()}}}
            status |= {"phase": "Running", "podIP": address, "containerStatuses": [running]}
            self.agents[head["uid"]] = Agent(head["uid"])
            return
        if status["phase"] != "Running":
            if "deletionTimestamp" in head:
                self.remove("Pod", head["name"])
            return
        agent = self.agents[head["uid"]]
        if "deletionTimestamp" in head:
            self._stop(agent, drain=True)
            self.finish_pod(head["name"], 143 if _is_replaceable(body) else 0)
            return
        text = (head.get("annotations") or {}).get(ANNOTATION_ROSTER)
        if text and not agent.silent:
            self._obey(agent, Roster.from_wire(json.loads(text)), head["name"])

    def _obey(self, agent: Agent, roster: Roster, pod: str) -> None:
        if agent.roster is not None and agent.roster.generation >= roster.generation:
            return
        self._stop(agent, drain=roster.drain)
        agent.roster = roster
        if pod not in {member.pod for member in roster.members}:
            return
        if roster.generation not in self.worlds:
            saved = self.saved.setdefault(roster.stage, [])
            total = self._totals[roster.stage]
            self.worlds[roster.generation] = World(roster=roster, launched=self.now, total=total, saved=saved)
        facts = GenerationProgress(
            generation=roster.generation, stage=roster.stage, state="starting", launched_at=self.now
        )
        agent.previous, agent.current = agent.current, facts

    def _stop(self, agent: Agent, *, drain: bool) -> None:
        if agent.current is not None:
            self.worlds[agent.current.generation].stop(self.now, drain=drain)

    def _hosts(self, body: Json, world: World) -> bool:
        agent = self.agents.get(body["metadata"]["uid"])
        up = self.nodes.get(body["spec"].get("nodeName") or "", False) and body["status"]["phase"] == "Running"
        here = agent is not None and agent.current is not None and agent.current.generation == world.roster.generation
        return bool(up and here)

    # What people and machines do to it.

    def lose_node(self, node: str) -> None:
        """Its processes die; it is not ready."""
        self.nodes[node] = False

    def restore_node(self, node: str) -> None:
        """It is ready again, or new."""
        self.nodes[node] = True

    def cordon(self, node: str) -> None:
        """Somebody is about to drain it: nothing new is placed there."""
        self.draining.add(node)

    def uncordon(self, node: str) -> None:
        """Pods may be placed there again."""
        self.draining.discard(node)

    def fail_worker(self, pod: str, code: int) -> None:
        """A worker of a pod exits; its peers lose it. The pod goes on."""
        for world in self.worlds.values():
            world.fail(self.now, pod, code)

    def finish_pod(self, name: str, code: int, reason: str = "Error") -> None:
        """A pod's container ends, with the reason that its kubelet gives."""
        body = self.objects["Pod", name]
        started = body["status"]["containerStatuses"][0]["state"].get("running", {}).get("startedAt")
        ended = {"exitCode": code, "startedAt": started, "finishedAt": self.stamp(), "reason": reason}
        body["status"]["containerStatuses"] = [{"name": "worker", "state": {"terminated": ended}}]
        body["status"]["phase"] = "Failed" if code else "Succeeded"

    def hang(self) -> None:
        """The step counter of whoever trains stands still."""
        for world in self.worlds.values():
            world.hung = world.hung or world.ended is None

    def delete_pod(self, name: str) -> None:
        """Somebody deletes a pod, which has time to save."""
        self.objects["Pod", name]["metadata"].setdefault("deletionTimestamp", self.stamp())

    def force_delete(self, name: str) -> None:
        """A pod's object is removed without asking its node, whose processes die a little later."""
        self.objects["Pod", name]["metadata"].pop("finalizers", None)
        self.remove("Pod", name)

    def spoil_roster(self, name: str, text: str | None) -> None:
        """Somebody removes or overwrites the roster of a pod."""
        annotations = self.objects["Pod", name]["metadata"].setdefault("annotations", {})
        annotations.pop(ANNOTATION_ROSTER, None)
        if text is not None:
            annotations[ANNOTATION_ROSTER] = text

    def drop(self, kind: str, part: str) -> None:
        """Somebody deletes all objects of a kind whose name contains `part`."""
        for key in [key for key in self.objects if key[0] == kind and part in key[1]]:
            del self.objects[key]

    def wipe_status(self) -> None:
        """Somebody empties the status of the run."""
        body = clone(self.run)
        body["status"] = {}
        self._put(KIND, body)

    def edit(self, **spec: Any) -> None:
        """A user edits the run: these fields of its spec, by their names on the wire."""
        body = clone(self.run)
        body["spec"] |= spec
        body["metadata"]["generation"] += 1
        self._put(KIND, body)

    def remove(self, kind: str, name: str) -> None:
        """An object goes, or is marked for deletion while it has finalizers."""
        head = self.objects[kind, name]["metadata"]
        if head.get("finalizers"):
            head.setdefault("deletionTimestamp", self.stamp())
            return
        if self.queue is not None and kind == "Pod":
            self.queue.known.discard(name)
        del self.objects[kind, name]

    # Inside.

    def _node(self, name: str) -> Json:
        ready = {"type": "Ready", "status": "True" if self.nodes[name] else "False"}
        spec = {"unschedulable": True} if name in self.draining else {}
        return {"kind": "Node", "metadata": {"name": name}, "spec": spec, "status": {"conditions": [ready]}}

    def _put(self, kind: str, body: Json) -> None:
        self.version += 1
        head = body["metadata"]
        head.setdefault("uid", f"{kind.lower()}-{head['name']}-{self.version}")
        head.setdefault("creationTimestamp", self.stamp())
        head["resourceVersion"] = str(self.version)
        if kind == "Pod":
            body.setdefault("status", {"phase": "Pending"})
            if self.queue is not None and head["name"] not in self.queue.known:
                self.queue.gate(body)
        self.objects[kind, head["name"]] = body

    def _before_write(self) -> None:
        self.writes += 1
        if self.crash_at == self.writes and not self.crash_after:
            raise OperatorCrash(f"before write {self.writes}")

    def _after_write(self) -> None:
        if self.crash_at == self.writes and self.crash_after:
            raise OperatorCrash(f"after write {self.writes}")


def _is_replaceable(body: Json) -> bool:
    """Its agent says by its exit code that it did not complete its work."""
    return {"name": ENV_REPLACEABLE, "value": "1"} in body["spec"]["containers"][0]["env"]


def _avoided(pod: Json) -> set[str]:
    """Names of nodes that a pod must not go to."""
    affinity = pod["spec"].get("affinity", {}).get("nodeAffinity", {})
    terms = affinity.get("requiredDuringSchedulingIgnoredDuringExecution", {}).get("nodeSelectorTerms", [])
    return {name for term in terms for field in term.get("matchFields", []) for name in field["values"]}
