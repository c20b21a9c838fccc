"""Operator processes beside a real API server, small runs on fake nodes, and what is seen of both.

No agent answers on fake nodes: a run comes as far as its first roster.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest_asyncio
from support.audit import DONE, UNKNOWN, AuditedControlPlane, Json, in_words, writes
from support.chaos_rig import Operators, View, until
from support.controlplane import OPERATOR
from support.plane_objects import delete_nodes
from support.planner_builders import manifest
from support.rights import KEY_SECRET, LEASE, grant_operator

from videotrain.controlplane.kwok import H200_NODE, create_nodes
from videotrain_api.render.names import bill_name, roster_name
from videotrain_api.vocabulary import KIND, LABEL_INDEX, LABEL_RUN, ROSTER_KEY
from videotrain_operator.kube.client import KubeClient
from videotrain_operator.kube.informer import Watch

PODS = 2
"""Of each run."""
NODES = 6
BENCH_LABEL = "bench"
"""Label of a bench's nodes; its value is the namespace."""
LEASE_SECONDS = "5"
KINDS = (KIND, "Pod", "ConfigMap", "NetworkPolicy", "Event")


class Bench:
    """One namespace, the operators that serve it, and views of its objects."""

    def __init__(self, plane: AuditedControlPlane, client: KubeClient, namespace: str, folder: Path) -> None:
        self.plane, self.client, self.namespace, self.folder = plane, client, namespace, folder
        self.views = {kind: View(kind) for kind in KINDS}
        self.views["Pod"].listeners.append(self._see_pod)
        self.views["ConfigMap"].listeners.append(self._see_config_map)
        self.generations: dict[str, set[int]] = {}
        """Numbers in the rosters that a run had at any time."""
        self.lives: dict[tuple[str, str], set[str]] = {}
        """Uids of the pods that a run had at an index at any time."""
        self.nodes = [f"{namespace}-{number}" for number in range(NODES)]
        self.operators: Operators
        self._since = len(plane.requests())

    def _see_pod(self, body: Json, deleted: bool) -> None:
        head = body["metadata"]
        labels = head.get("labels") or {}
        if head["namespace"] != self.namespace or LABEL_RUN not in labels:
            return
        self.lives.setdefault((labels[LABEL_RUN], labels.get(LABEL_INDEX, "")), set()).add(head["uid"])

    def _see_config_map(self, body: Json, deleted: bool) -> None:
        text, run = (body.get("data") or {}).get(ROSTER_KEY), (body["metadata"].get("labels") or {}).get(LABEL_RUN)
        if text and run and body["metadata"]["namespace"] == self.namespace:
            self.generations.setdefault(run, set()).add(json.loads(text)["generation"])

    async def start(
        self, *flags: str, replicas: int = 2, kubeconfig: Path | None = None, namespaces: tuple[str, ...] = ()
    ) -> None:
        """Start operators with the documented rights, and wait until one leads and all are ready."""
        await asyncio.to_thread(grant_operator, self.plane.api(), OPERATOR, self.namespace, namespaces)
        user = kubeconfig or self.plane.kubeconfig(OPERATOR, ())
        ours = ("--lease-name", LEASE, "--lease-namespace", self.namespace, "--lease-seconds", LEASE_SECONDS)
        ours += ("--key-secret", KEY_SECRET, "--network-policy", "{}")
        self.operators = Operators(user, self.folder / "operators", replicas, (*ours, *flags))
        self.operators.start()
        await self.all_ready()

    async def all_ready(self) -> None:
        """Every replica that is wanted is ready, and one of them leads."""
        await until(self.operators.ready, "all replicas are ready", self.operators.tail)
        await self.leads()

    async def leads(self) -> int:
        """The replica that leads, once there is one."""
        return int(await until(self.operators.leader, "a replica leads", self.operators.tail))

    def nobody_ended(self) -> bool:
        """No replica has ended by itself."""
        return all(process.poll() is None for process in self.operators.processes.values())

    async def create(self, *names: str, namespace: str = "", **spec: Any) -> None:
        """Create small runs of PODS pods each."""
        for name in names:
            body = small_run(name, namespace or self.namespace, **spec)
            await self.client.create(body, "test")

    async def edit(self, name: str, **spec: Any) -> None:
        """Change fields of a run's spec, as `kubectl patch` does."""
        await self.client.patch(KIND, self.namespace, name, {"spec": spec}, manager="test")

    def run(self, name: str) -> Json:
        """A run as it is; empty if there is none."""
        return self.views[KIND].objects.get((self.namespace, name)) or {}

    def status(self, name: str) -> Json:
        """Its status."""
        return self.run(name).get("status") or {}

    def condition(self, name: str, type_: str) -> Json | None:
        """One of its conditions."""
        return next((c for c in self.status(name).get("conditions") or [] if c["type"] == type_), None)

    def pods(self, name: str) -> list[Json]:
        """Its pods as they are."""
        ours = [body for (place, _), body in self.views["Pod"].objects.items() if place == self.namespace]
        return [body for body in ours if (body["metadata"].get("labels") or {}).get(LABEL_RUN) == name]

    def roster(self, name: str) -> Json:
        """The roster of a run; empty before the first, and where a stranger's object has its name."""
        body = self.views["ConfigMap"].objects.get((self.namespace, roster_name(name))) or {}
        owned = (body.get("metadata") or {}).get("ownerReferences")
        text = (body.get("data") or {}).get(ROSTER_KEY) if owned else None
        return dict(json.loads(text)) if text else {}

    def has_roster(self, name: str, least: int = 1) -> bool:
        """All its pods are in a roster of at least that number, and the status tells of it."""
        roster, newest = self.roster(name), self.status(name).get("generation", 0)
        members = {member["uid"] for member in roster.get("members", [])}
        there = {pod["metadata"]["uid"] for pod in self.pods(name)}
        return newest >= least and roster.get("generation") == newest and members == there and len(there) == PODS

    async def rosters(self, names: Iterable[str], least: int = 1) -> None:
        """Wait until every run has its roster, of a generation of at least that number."""
        wanted = list(names)

        def missing() -> list[str]:
            return [name for name in wanted if not self.has_roster(name, least)]

        def explain() -> str:
            states = {name: self.status(name) for name in missing()[:2]}
            return f"missing: {missing()}\n{json.dumps(states, indent=1)}\n{self.operators.tail()}"

        await until(lambda: not missing(), "every run has its roster", explain)

    async def settled(self, names: Iterable[str]) -> None:
        """Wait for the last that is written for runs whose agents say nothing."""

        def settled(name: str) -> bool:
            ledger = self.views["ConfigMap"].objects.get((self.namespace, f"{name}-ledger"))
            pods = json.loads(ledger["data"]["ledger.json"])["pods"] if ledger else {}
            known = "ledger" in self.status(name) and self.condition(name, "ProgressObserved")
            return len(pods) == PODS and bool(known)

        wanted = list(names)
        await until(lambda: all(map(settled, wanted)), "nothing more is to be written", self.operators.tail)

    async def looked_at(self, count: int) -> None:
        """Wait until the leader has looked at so many runs."""
        number = await self.leads()
        pattern = re.compile(r"^videotrain_reconcile_duration_seconds_count ([\d.]+)$", re.M)

        def passes() -> float:
            found = pattern.search(self.operators.metrics(number))
            return float(found[1]) if found else 0.0

        await until(lambda: passes() >= count, "it has looked at every run", self.operators.tail)

    def messages(self, name: str) -> list[str]:
        """Events about a run."""
        events = [event for (place, _), event in self.views["Event"].objects.items() if place == self.namespace]
        mine = [event for event in events if event["involvedObject"].get("name") == name]
        return [f"{event['type']} {event['reason']}: {event['message']}" for event in mine]

    async def message(self, name: str, pattern: str) -> str:
        """Wait for an event about a run."""

        def found() -> str | None:
            return next((line for line in self.messages(name) if re.search(pattern, line)), None)

        def explain() -> str:
            return f"{self.messages(name)}\n{self.operators.tail()}"

        return str(await until(found, f"an event like {pattern}", explain))

    async def becomes(self, name: str, type_: str, status: str, reason: str) -> Json:
        """Wait for a condition of a run; returns it."""

        def found() -> Json | None:
            condition = self.condition(name, type_)
            return condition if condition and (condition["status"], condition["reason"]) == (status, reason) else None

        def explain() -> str:
            return f"{json.dumps(self.status(name), indent=1)}\n{self.operators.tail()}"

        return dict(await until(found, f"{name}: {type_} is {status}, {reason}", explain))

    def left(self, namespace: str = "") -> list[tuple[str, tuple[str, str]]]:
        """Every object that is in the namespace."""
        place = namespace or self.namespace
        return [(kind, key) for kind, view in self.views.items() for key in view.objects if key[0] == place]

    def requests(self, since: int | None = None) -> list[Json]:
        """What the operators asked, from the audit log of the API server."""
        return self.plane.requests()[self._since if since is None else since :]

    def now(self) -> int:
        """A point in the audit log, for `requests`."""
        return len(self.plane.requests())

    def written(self, since: int) -> list[str]:
        """Writes of the operators into the namespace since then; other tests' namespaces may be on their way out.

        Without bills, which lie here as the operators do, and grow with time, and without events that are there: who
        takes over tries to record what its predecessor may have lost.
        """
        refs = [(entry, entry["objectRef"]) for entry in writes(self.requests(since))]
        ours = [(entry, about) for entry, about in refs if about.get("namespace") == self.namespace]
        news = (entry for entry, about in ours if not (about["resource"] == "events" and _is_there(entry)))
        return [in_words(entry) for entry in news if not entry["objectRef"].get("name", "").startswith(bill_name(""))]

    def pods_made(self) -> Counter[str]:
        """How often a pod of a name was created, by the API server's account."""
        return self._created(lambda code: code < DONE)

    def pods_perhaps_made(self) -> Counter[str]:
        """How often the server itself does not say whether it created one, since whoever had asked was killed."""
        return self._created(lambda code: code >= UNKNOWN)

    def _created(self, counts: Callable[[int], bool]) -> Counter[str]:
        asked = [entry for entry in writes(self.requests()) if entry["verb"] == "create"]
        found = [e["objectRef"] for e in asked if counts(e["responseStatus"]["code"])]
        pods = [about for about in found if about["resource"] == "pods" and about["namespace"] == self.namespace]
        return Counter(about["name"] for about in pods)


def _is_there(entry: Json) -> bool:
    return (entry.get("responseStatus") or {}).get("code") == HTTPStatus.CONFLICT


def small_run(name: str, namespace: str, **spec: Any) -> Json:
    """A run of PODS pods that waits long for its first step."""
    fixed = {
        "nodes": {"min": PODS, "max": PODS},
        "pool": {"gpusPerNode": 1, "pricePerGpuHour": "2.00"},
        "failurePolicy": {"hangSeconds": 80_000, "startSeconds": 80_000, "graceSeconds": 1},
    }
    body = manifest(**(fixed | spec))
    body["metadata"] = {"name": name, "namespace": namespace}
    return body


@pytest_asyncio.fixture
async def bench(
    control_plane: AuditedControlPlane, admin: KubeClient, namespace: str, tmp_path: Path
) -> AsyncIterator[Bench]:
    """A bench on nodes of its own; its operators end with the test."""
    bench = Bench(control_plane, admin, namespace, tmp_path)
    roomy = dict(H200_NODE) | {"nvidia.com/gpu": "96"}
    labels = {BENCH_LABEL: namespace}
    await asyncio.to_thread(lambda: create_nodes(control_plane.api(), bench.nodes, capacity=roomy, labels=labels))
    watching = [
        asyncio.create_task(Watch(admin, kind, view, starting=True).run()) for kind, view in bench.views.items()
    ]
    yield bench
    if hasattr(bench, "operators"):
        bench.operators.end_all()
    ended = [task for task in watching if task.done()]
    for task in watching:
        task.cancel()
    await asyncio.gather(*watching, return_exceptions=True)
    await asyncio.to_thread(delete_nodes, control_plane, bench.nodes)
    assert [task.exception() for task in ended] == []
