"""The simulated cluster: nodes, a scheduler, kubelets, and what people and machines do to them."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from videotrain_api.records import AgentProgress, GenerationProgress, Roster
from videotrain_api.render.names import roster_name
from videotrain_api.resource.training_budgets import TrainingBudget
from videotrain_api.schema import Json, ManifestError
from videotrain_api.signing import KEY_BYTES, derive_signing_key
from videotrain_api.vocabulary import ENV_REPLACEABLE, FILES_VOLUME, KIND, ROSTER_KEY, SIGNING_KEY
from videotrain_operator.planner.cluster_rules import ClusterRules
from videotrain_operator.simulation.objects import Objects, clone
from videotrain_operator.simulation.world import Agent, Pace, World

START: Final = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)
"""When simulated time begins, unless told otherwise."""
MASTER_KEY: Final = bytes(range(KEY_BYTES))
"""The operator's, of which the signing keys of runs are made."""
STEPS_OF_OTHER_TASKS: Final = 5
"""Steps of a stage that does not train."""


class SimulatedCluster(Objects):
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
        super().__init__(start)
        self.namespace: str = run["metadata"]["namespace"]
        self.name: str = run["metadata"]["name"]
        self.pace = pace or Pace()
        self.agents: dict[str, Agent] = {}
        """By pod uid."""
        self._names: dict[str, str] = {}
        """Of pods, by address."""
        self.saved: dict[str, list[tuple[int, datetime]]] = {}
        """Checkpoints by stage: step and time."""
        self.worlds: dict[int, World] = {}
        """By generation."""
        self.nodes = {f"node-{number}": True for number in range(nodes)}
        """Whether each node is up."""
        self.draining: set[str] = set()
        """Nodes that are about to be reclaimed."""
        self.cordoned: set[str] = set()
        """Nodes on which nothing new is placed."""
        self.nodes_untrusted = ""
        """Why the operator is not to believe what it sees of nodes, if it is not."""
        self.rules = ClusterRules()
        """What the operator holds every run to."""
        self.budgets: tuple[TrainingBudget, ...] = ()
        """Those of teams, as they are stored."""
        self.master_key = MASTER_KEY
        self.alive_generations: list[set[int]] = []
        """Generations that trained, by second."""
        self.put(KIND, run)

    async def list(self, kind: str, namespace: str, labels: Mapping[str, str] | None = None) -> list[Json]:
        """All objects that carry the labels, and the nodes as they are now; see Cluster.list."""
        if kind == "Node":
            return [self._node(name) for name in self.nodes]
        return await super().list(kind, namespace, labels)

    # The Agents protocol.

    def signing_key(self, run_uid: str) -> bytes:
        """The key by which the agents of a run know the operator."""
        return derive_signing_key(self.master_key, run_uid)

    async def progress(self, address: str, key: bytes) -> AgentProgress | None:
        """What the agent at a pod IP tells; None if it is silent or has another key, or its node or pod is not up."""
        body = self.objects.get(("Pod", self._names.get(address, "")))
        if body is None or body["status"].get("podIP") != address or body["status"]["phase"] != "Running":
            return None
        agent, name = self.agents[body["metadata"]["uid"]], body["metadata"]["name"]
        if agent.silent or not self.nodes.get(body["spec"].get("nodeName", ""), False) or agent.key != key:
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
        used = {body["spec"].get("nodeName") for body in self.held_pods()} | self.draining | self.cordoned
        free = [name for name, up in self.nodes.items() if up and name not in used]
        # By name: pods that are created at the same time arrive in any order.
        for body in sorted(self.pods(), key=lambda body: str(body["metadata"]["name"])):
            if body["spec"].get("nodeName") or body["spec"].get("schedulingGates"):
                continue
            if "deletionTimestamp" in body["metadata"]:
                continue
            avoided = _avoided(body)
            node = next((name for name in free if name not in avoided), None)
            if node is None:
                why = {"reason": "Unschedulable", "message": f"0/{len(self.nodes)} nodes fit"}
                body["status"]["conditions"] = [self._scheduled("False") | why]
                continue
            body["spec"]["nodeName"] = node
            free.remove(node)
            body["status"] = {"phase": "Pending", "conditions": [self._scheduled("True")]}

    def _scheduled(self, status: str) -> Json:
        return {"type": "PodScheduled", "status": status, "lastTransitionTime": self.stamp()}

    def _kubelet(self, body: Json) -> None:
        """What the node of a pod does with it in one second: start it, stop it, or show its agent the roster."""
        head, status = body["metadata"], body["status"]
        if not self.nodes.get(body["spec"].get("nodeName") or "", False):
            return
        if status["phase"] == "Pending":
            key = self._mounted_key(body)
            if key is None:
                return  # the container is not made without what it mounts
            address = f"10.0.{len(self.agents) // 250}.{len(self.agents) % 250 + 1}"
            running = {"name": "worker", "state": {"running": {"startedAt": self.stamp()}}}
            self._names[address] = head["name"]
            status |= {"phase": "Running", "podIP": address, "containerStatuses": [running]}
            self.agents[head["uid"]] = Agent(head["uid"], key, self._mounted_configs(body))
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
        roster = self._mounted()
        if roster is not None and not agent.silent:
            self._obey(agent, roster)
            if roster.action == "leave":
                self.finish_pod(head["name"], 143)

    def held_pods(self) -> Sequence[Json]:
        """Pods that are not over: they hold a node, or wait for one."""
        return [body for body in self.pods() if body["status"]["phase"] not in ("Succeeded", "Failed")]

    def _mounted_key(self, body: Json) -> bytes | None:
        files = next(volume["projected"] for volume in body["spec"]["volumes"] if volume["name"] == FILES_VOLUME)
        name = next(source["secret"]["name"] for source in files["sources"] if "secret" in source)
        secret = self.objects.get(("Secret", name))
        return None if secret is None else base64.b64decode(secret["data"][SIGNING_KEY])

    def _mounted_configs(self, body: Json) -> Mapping[str, str]:
        files = next(volume["projected"] for volume in body["spec"]["volumes"] if volume["name"] == FILES_VOLUME)
        names = [source["configMap"]["name"] for source in files["sources"] if "configMap" in source]
        maps = [self.objects.get(("ConfigMap", name)) or {} for name in names if name != roster_name(self.name)]
        return maps[0].get("data") or {} if maps else {}

    def _mounted(self) -> Roster | None:
        """What pods see of the roster; what is no roster changes nothing for them."""
        text = self.objects.get(("ConfigMap", roster_name(self.name)), {}).get("data", {}).get(ROSTER_KEY)
        try:
            roster = Roster.from_wire(json.loads(text)) if text else None
        except (ManifestError, json.JSONDecodeError):
            return None
        return roster if roster is not None and roster.run_uid == self.run["metadata"]["uid"] else None

    def _obey(self, agent: Agent, roster: Roster) -> None:
        if agent.roster is not None and agent.roster.order() >= roster.order():
            return
        self._stop(agent, drain=roster.drain)
        agent.roster = roster
        if roster.rank(agent.uid) is None:
            return
        if roster.generation not in self.worlds:
            saved = self.saved.setdefault(roster.stage, [])
            total = _steps(agent, roster)
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

    def reclaim(self, node: str) -> None:
        """Its owner announces that he takes it back: nothing new is placed there."""
        self.draining.add(node)

    def cordon(self, node: str) -> None:
        """Somebody wants nothing new to be placed there."""
        self.cordoned.add(node)

    def uncordon(self, node: str) -> None:
        """Pods may be placed there again."""
        self.draining.discard(node)
        self.cordoned.discard(node)

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

    def hang(self, stacks: Mapping[str, str] | None = None) -> None:
        """The step counter of whoever trains stands still; `stacks` are those of its workers, by pod."""
        for world in self.worlds.values():
            if world.ended is None:
                world.hung, world.stacks = True, stacks or {}

    def delete_pod(self, name: str) -> None:
        """Somebody deletes a pod, which has time to save."""
        self.objects["Pod", name]["metadata"].setdefault("deletionTimestamp", self.stamp())

    def force_delete(self, name: str) -> None:
        """A pod's object is removed without asking its node, whose processes die a little later."""
        self.objects["Pod", name]["metadata"].pop("finalizers", None)
        self.remove("Pod", name)

    def spoil_roster(self, text: str | None) -> None:
        """Somebody overwrites the roster, or removes its object."""
        key = ("ConfigMap", roster_name(self.name))
        if text is None:
            self.objects.pop(key, None)
        elif key in self.objects:
            self.put("ConfigMap", clone(self.objects[key]) | {"data": {ROSTER_KEY: text}})

    def drop(self, kind: str, part: str) -> None:
        """Somebody deletes all objects of a kind whose name contains `part`."""
        for key in [key for key in self.objects if key[0] == kind and part in key[1]]:
            del self.objects[key]

    def wipe_status(self) -> None:
        """Somebody empties the status of the run."""
        body = clone(self.run)
        body["status"] = {}
        self.put(KIND, body)

    def edit(self, **spec: Any) -> None:
        """A user edits the run: these fields of its spec, by their names on the wire."""
        body = clone(self.run)
        body["spec"] |= spec
        body["metadata"]["generation"] += 1
        self.put(KIND, body)

    # Inside.

    def _node(self, name: str) -> Json:
        ready = {"type": "Ready", "status": "True" if self.nodes[name] else "False"}
        spec: Json = {"unschedulable": True} if name in self.cordoned else {}
        if name in self.draining:
            spec["taints"] = [{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]
        return {"kind": "Node", "metadata": {"name": name}, "spec": spec, "status": {"conditions": [ready]}}


def _steps(agent: Agent, roster: Roster) -> int:
    """Of the stage that a roster names, as the agent has it mounted; it refuses a roster of another configuration."""
    text = roster.config or agent.configs[f"{roster.stage}.json"]
    found = hashlib.sha256(text.encode()).hexdigest()[:16]
    assert found == roster.config_hash, f"the roster names {roster.config_hash}, and the pod has {found}"
    task = json.loads(text)["stage"].get("train") or {}
    return int(task.get("steps", STEPS_OF_OTHER_TASKS))


def _is_replaceable(body: Json) -> bool:
    """Its agent says by its exit code that it did not complete its work."""
    return {"name": ENV_REPLACEABLE, "value": "1"} in body["spec"]["containers"][0]["env"]


def _avoided(pod: Json) -> set[str]:
    """Names of nodes that a pod must not go to."""
    affinity = pod["spec"].get("affinity", {}).get("nodeAffinity", {})
    terms = affinity.get("requiredDuringSchedulingIgnoredDuringExecution", {}).get("nodeSelectorTerms", [])
    return {name for term in terms for field in term.get("matchFields", []) for name in field["values"]}
