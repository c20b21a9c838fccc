"""The operator process beside a real API server: takeovers, restarts, scopes, and objects that are in its way.

VIDEOTRAIN_KILLS says how often the leader is killed under load (3 if unset).
"""

import asyncio
import json
import os
import re
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
import yaml
from support.chaos_rig import until
from support.operator_bench import PODS, small_run
from support.plane_objects import create_namespace

from videotrain_api.render.names import roster_name
from videotrain_api.render.network import NetworkRules, render_network_policy
from videotrain_api.resource.trainrun import VideoTrainingRun
from videotrain_api.vocabulary import KIND, LABEL_RUN, LABEL_RUN_UID
from videotrain_operator.cluster.interface import NotFound
from videotrain_operator.kube.kinds import KINDS

KILLS = int(os.environ.get("VIDEOTRAIN_KILLS", "3"))
RUNS_PER_KILL = 4
LONGEST_TAKEOVER = 20.0
BAD = Path(__file__).parents[1] / "unit" / "videotrain_api" / "bad"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600 + 60 * KILLS)]


class Edits:
    """What users do to runs while nobody leads: one of each kind in every round."""

    def __init__(self, bench):
        self.bench = bench
        self.live, self.suspended, self.resumed, self.deleted = [], [], [], []

    async def make(self):
        """Delete a run, wake one up and put another to sleep."""
        if len(self.live) >= 2:
            self.deleted.append(self.live.pop(0))
            await self.bench.client.delete(KIND, self.bench.namespace, self.deleted[-1])
        if self.suspended:
            self.resumed.append(self.suspended.pop())
            await self.bench.edit(self.resumed[-1], suspend=False)
        if self.live:
            self.suspended.append(self.live.pop(0))
            await self.bench.edit(self.suspended[-1], suspend=True)

    async def carried_out(self):
        """Wait until each has its effect."""
        await self.bench.rosters(self.resumed[-1:], least=2)
        await until(lambda: not self.not_stopped(), "runs are stopped", self.explain)

    def explain(self):
        runs = {name: (self.bench.status(name), self.bench.pods(name)) for name in self.not_stopped()}
        return f"{json.dumps(runs, indent=1)}\n{self.bench.operators.tail()}"

    def not_stopped(self):
        bench = self.bench
        awake = [name for name in self.suspended if bench.status(name).get("phase") != "Suspended"]
        kept = [name for name in self.deleted if bench.run(name)]
        return [name for name in (*self.suspended, *self.deleted) if bench.pods(name)] + awake + kept


async def test_leaders_killed_under_load_are_replaced_in_time_make_no_pod_twice_and_lose_no_edit(bench):
    await bench.start()
    edits, made, took = Edits(bench), [], []
    for number in range(KILLS):
        leader = await bench.leads()
        names = [f"r{number}-{i}" for i in range(RUNS_PER_KILL)]
        await bench.create(*names[:2])
        await until(lambda new=names: any(map(bench.pods, new)), "the first pod of a burst", bench.operators.tail)
        await asyncio.to_thread(bench.operators.end, leader, signal.SIGKILL)
        killed = time.monotonic()
        await edits.make()
        await bench.create(*names[2:])
        await until(lambda old=leader: bench.operators.leader() not in (None, old), "takeover", bench.operators.tail)
        took.append(time.monotonic() - killed)
        bench.operators.start()
        await edits.carried_out()
        await bench.rosters(names)
        await bench.all_ready()
        edits.live += names
        made += names
    print(f"{KILLS} takeovers took {min(took):.1f} to {max(took):.1f} s")
    assert max(took) < LONGEST_TAKEOVER
    lives = {name: 2 if name in edits.resumed else 1 for name in made}
    undisturbed = {*made} - {*edits.resumed, *edits.suspended}
    assert {name: bench.generations[name] for name in undisturbed} == {name: {1} for name in undisturbed}
    expected = {f"{name}-w{index}": lives[name] for name in made for index in range(PODS)}
    certain = bench.pods_made()
    assert certain <= Counter(expected) <= certain + bench.pods_perhaps_made()
    assert {f"{run}-w{index}": len(uids) for (run, index), uids in bench.lives.items()} == expected


async def test_a_leader_that_is_told_to_end_gives_the_lease_back(bench):
    await bench.start()
    leader = await bench.leads()
    process = bench.operators.processes[leader]
    await asyncio.to_thread(bench.operators.end, leader, signal.SIGTERM)
    assert process.returncode == 0
    assert "released the lease" in bench.operators.log(leader).read_text()
    assert await bench.leads() != leader


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
async def test_a_restart_writes_nothing_for_live_runs_and_serves_the_next_one(bench, how):
    await bench.start(replicas=1)
    names = [f"live{number}" for number in range(8)]
    await bench.create(*names)
    await bench.rosters(names)
    await bench.settled(names)
    before = bench.now()
    await asyncio.to_thread(bench.operators.end, await bench.leads(), how)
    bench.operators.start()
    await bench.all_ready()
    await bench.looked_at(len(names))
    assert bench.written(before) == []
    await bench.create("new")
    await bench.rosters(["new"])
    written = bench.written(before)
    assert written and [line for line in written if f"{bench.namespace}/new" not in line] == []


async def test_a_namespaced_operator_needs_no_more_and_touches_nothing_else(bench, control_plane):
    other = f"{bench.namespace}-other"
    create_namespace(control_plane, other)
    await bench.start("--namespaces", bench.namespace, replicas=1, namespaces=(bench.namespace,))
    await bench.create("theirs", namespace=other)
    await bench.create("ours")
    await bench.rosters(["ours"])
    await bench.edit("ours", suspend=True)
    await until(lambda: bench.status("ours").get("phase") == "Suspended", "suspended", bench.operators.tail)
    assert "status" not in await bench.client.get(KIND, other, "theirs")
    assert await bench.client.list("Pod", other) == []
    asked = [entry["objectRef"] for entry in bench.requests() if "objectRef" in entry]
    elsewhere = {(about.get("namespace", ""), about["resource"]) for about in asked}
    assert {place for place in elsewhere if place[0] != bench.namespace} == {("", "nodes"), ("", "trainingbudgets")}
    assert [entry for entry in bench.requests() if (entry.get("responseStatus") or {}).get("code") == 403] == []
    await bench.client.delete("Namespace", "", other)


@pytest.mark.parametrize(
    "file",
    [
        "12-unknown-preset",
        "15-rope-axes-do-not-sum-to-the-head",
        "33-clips-given-and-made",
        "53-captions-of-one-set-differ",
        "76-restart-policy-in-the-template",
    ],
)
async def test_what_the_models_refuse_is_marked_invalid_with_the_reason_and_gets_nothing(bench, file):
    text = (BAD / f"{file}.yaml").read_text()
    field = re.search(r"^# refused: (.*)$", text, re.M)[1]
    body = yaml.safe_load(text)
    name = body["metadata"]["name"]
    body["metadata"]["namespace"] = bench.namespace
    await bench.start(replicas=1)
    await bench.create("before")
    await bench.client.create(body, "test")
    await bench.create("after")
    accepted = await bench.becomes(name, "Accepted", "False", "Invalid")
    assert field in accepted["message"]
    assert field in await bench.message(name, r"Warning Invalid: ")
    assert bench.status(name)["phase"] == "Invalid"
    await bench.rosters(["before", "after"])
    owned = [key for kind, (_, key) in bench.left() if kind in ("Pod", "ConfigMap", "NetworkPolicy")]
    assert [key for key in owned if key.startswith(f"{name}-")] == []
    assert bench.nobody_ended()


TEMPLATE = {"podTemplate": {"spec": {"restartPolicy": "Always"}}}
LITTLE_MEMORY = {"pool": {"gpusPerNode": 1, "pricePerGpuHour": "2.00", "memory": "1Gi", "sharedMemory": "64Gi"}}
MENDED = {"gpusPerNode": 1, "pricePerGpuHour": "2.00", "memory": "128Gi", "sharedMemory": "64Gi"}


@pytest.mark.parametrize(
    ("wrong", "mend", "field"),
    [
        (TEMPLATE, {"podTemplate": {"spec": {"restartPolicy": None}}}, "spec.podTemplate.spec.restartPolicy"),
        (LITTLE_MEMORY, {"pool": MENDED}, "spec.pool.memory"),
        (
            {"nodes": {"min": 2, "max": 4, "allowed": [4, 2]}},
            {"nodes": {"max": 2, "allowed": None}},
            "spec.nodes.allowed",
        ),
    ],
    ids=["pod template", "pool", "nodes"],
)
async def test_an_invalid_run_runs_once_it_is_mended(bench, wrong, mend, field):
    await bench.start(replicas=1)
    await bench.create("mended", **wrong)
    assert field in (await bench.becomes("mended", "Accepted", "False", "Invalid"))["message"]
    await bench.edit("mended", **mend)
    await bench.rosters(["mended"])
    assert bench.condition("mended", "Accepted")["status"] == "True"
    assert bench.status("mended")["phase"] == "Starting"


STRANGERS = [
    ("Pod", "w0", {"spec": {"containers": [{"name": "c", "image": "i"}]}}),
    ("ConfigMap", "ledger", {"data": {"ledger.json": "precious"}}),
    ("ConfigMap", "roster", {"data": {"roster.json": "precious"}}),
    ("NetworkPolicy", "workers", {"spec": {"podSelector": {}}}),
]
LEFT = {"app.kubernetes.io/managed-by": "videotrain-operator", LABEL_RUN_UID: "of-a-run-that-owns-it-no-more"}


@pytest.mark.parametrize(
    "labels", [{}, {"app.kubernetes.io/managed-by": "videotrain-operator"}, LEFT], ids=["plain", "labelled", "left"]
)
@pytest.mark.parametrize(("kind", "suffix", "more"), STRANGERS, ids=[f"{kind}-{name}" for kind, name, _ in STRANGERS])
async def test_a_strangers_object_is_named_and_kept_and_the_run_goes_on_when_it_is_gone(
    bench, kind, suffix, more, labels
):
    name = f"blocked-{suffix}"
    head = {"name": name, "namespace": bench.namespace, "labels": labels}
    body = {"apiVersion": KINDS[kind].group_version, "kind": kind, "metadata": head, **more}
    made = await bench.client.create(body, "test")
    await bench.start(replicas=1)
    await bench.create("blocked")
    told = await bench.message("blocked", r"Warning NameTaken: ")
    assert f"{kind} {bench.namespace}/{name} exists and belongs to no run" in told
    condition = await bench.becomes("blocked", "Scheduled", "False", "NameTaken")
    assert condition["message"] in told
    await bench.create("free")
    await bench.rosters(["free"])
    kept = await bench.client.get(kind, bench.namespace, name)
    assert kept["metadata"]["uid"] == made["metadata"]["uid"]
    assert (kept["metadata"].get("labels") or {}) == labels
    assert "ownerReferences" not in kept["metadata"]
    assert kept.get("data") == more.get("data")
    await bench.client.delete(kind, bench.namespace, name)
    await bench.rosters(["blocked"])
    assert bench.condition("blocked", "Scheduled")["status"] == "True"


async def test_a_runs_network_policy_is_taken_as_written_once_and_goes_with_the_run(bench):
    await bench.start(replicas=1)
    await bench.create("walled")
    await bench.rosters(["walled"])
    stored = await bench.client.get("NetworkPolicy", bench.namespace, "walled-workers")
    run = VideoTrainingRun.from_wire(await bench.client.get(KIND, bench.namespace, "walled"))
    wanted = render_network_policy(run, NetworkRules())
    assert stored["spec"] == wanted["spec"], "what the server adds would be written over again and again"
    assert stored["metadata"]["ownerReferences"] == wanted["metadata"]["ownerReferences"]
    assert stored["metadata"]["generation"] == 1
    for pod in bench.pods("walled"):
        assert wanted["spec"]["podSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
    await bench.client.patch("NetworkPolicy", bench.namespace, "walled-workers", {"spec": {"ingress": [{}]}})
    await bench.edit("walled", activeDeadlineSeconds=86_400)
    policies, key = bench.views["NetworkPolicy"].objects, (bench.namespace, "walled-workers")
    await until(lambda: policies[key]["spec"] == wanted["spec"], "the edit is undone", bench.operators.tail)
    await bench.client.delete(KIND, bench.namespace, "walled", propagation="Background")
    await until(lambda: key not in policies, "it goes, too", bench.operators.tail)


async def test_a_roster_whose_labels_were_taken_away_gets_them_back_and_the_world_goes_on(bench):
    await bench.start(replicas=1)
    await bench.create("bare")
    await bench.rosters(["bare"])
    await bench.settled(["bare"])
    name, world = roster_name("bare"), [pod["metadata"]["uid"] for pod in bench.pods("bare")]
    before = await bench.client.get("ConfigMap", bench.namespace, name)
    gone = {"metadata": {"labels": dict.fromkeys(before["metadata"]["labels"])}}
    bare = await bench.client.patch("ConfigMap", bench.namespace, name, gone, manager="test")
    assert "labels" not in bare["metadata"]
    maps, version = bench.views["ConfigMap"].objects, int(bare["metadata"]["resourceVersion"])

    def labelled():
        head = maps[bench.namespace, name]["metadata"]
        return head if int(head["resourceVersion"]) > version and "labels" in head else None

    after = await until(labelled, "the labels are back", bench.operators.tail)
    assert after["uid"] == before["metadata"]["uid"]
    assert after["labels"] == before["metadata"]["labels"]
    await bench.rosters(["bare"])
    assert [pod["metadata"]["uid"] for pod in bench.pods("bare")] == world
    assert bench.generations["bare"] == {1}


async def test_a_run_that_goes_leaves_a_strangers_object_alone(bench):
    await bench.start(replicas=1)
    head = {"name": "going-w7", "namespace": bench.namespace, "labels": {LABEL_RUN: "going"}}
    spec = {"containers": [{"name": "c", "image": "i"}]}
    made = await bench.client.create({"apiVersion": "v1", "kind": "Pod", "metadata": head, "spec": spec}, "test")
    await bench.create("going")
    await until(lambda: len(bench.pods("going")) == PODS + 1, "its own pods and the stranger", bench.operators.tail)
    await bench.client.delete(KIND, bench.namespace, "going")
    await until(lambda: len(bench.pods("going")) == 1, "its own pods are gone", bench.operators.tail)
    (kept,) = bench.pods("going")
    assert kept["metadata"]["uid"] == made["metadata"]["uid"] and "deletionTimestamp" not in kept["metadata"]


async def test_a_new_run_of_an_old_name_gets_pods_of_its_own(bench):
    await bench.start(replicas=1)
    await bench.create("again")
    await bench.rosters(["again"])
    old = {pod["metadata"]["uid"] for pod in bench.pods("again")}
    await bench.client.delete(KIND, bench.namespace, "again")
    await until(lambda: not bench.run("again"), "the old run is gone", bench.operators.tail)
    await bench.create("again")
    uid = (await bench.client.get(KIND, bench.namespace, "again"))["metadata"]["uid"]

    def has_its_own():
        owners = {pod["metadata"]["ownerReferences"][0]["uid"] for pod in bench.pods("again")}
        return owners == {uid} and bench.has_roster("again")

    await until(has_its_own, "the new run has its roster", bench.operators.tail)
    assert not old & {pod["metadata"]["uid"] for pod in bench.pods("again")}


@pytest.mark.parametrize("operators", ["up", "down"])
async def test_a_namespace_with_live_runs_can_be_deleted(bench, operators):
    await bench.start()
    names = [f"live{number}" for number in range(6)]
    await bench.create(*names)
    await bench.create("asleep", suspend=True)
    await bench.rosters(names)
    assert all("finalizers" not in bench.run(name)["metadata"] for name in names)
    if operators == "down":
        bench.operators.end_all()
    await bench.client.delete("Namespace", "", bench.namespace)
    await until(lambda: not bench.left(), "nothing is left", lambda: f"{bench.left()}\n{bench.operators.tail()}")

    async def gone():
        try:
            await bench.client.get("Namespace", "", bench.namespace)
        except NotFound:
            return True
        return False

    async with asyncio.timeout(240):
        while not await gone():
            await asyncio.sleep(0.2)
    if operators == "up":
        assert bench.nobody_ended()


async def test_a_run_is_served_although_another_cannot_be_parsed_at_all(bench):
    """A podTemplate keeps unknown fields, so anything may stand in it."""
    deep = {"podTemplate": {"spec": {}}}
    place = deep["podTemplate"]["spec"]
    for _ in range(200):
        place["x"] = {}
        place = place["x"]
    await bench.start(replicas=1)
    await bench.client.create(small_run("deep", bench.namespace, **deep), "test")
    await bench.create("good")
    await bench.becomes("deep", "Accepted", "False", "Invalid")
    await bench.rosters(["good"])
    assert bench.nobody_ended()
