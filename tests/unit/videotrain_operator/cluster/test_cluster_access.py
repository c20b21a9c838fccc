"""From Kubernetes JSON to the planner and back: observing, applying, and the loop around them."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest
from aiohttp import web
from prometheus_client.parser import text_string_to_metric_families
from support.planner_builders import SIGNING_KEY, at, manifest, progress, run_of, train_stage

from videotrain_api import metrics as catalogue
from videotrain_api.records import AgentProgress
from videotrain_api.render.objects import render_objects
from videotrain_api.signing import Answer, Nonces, Request
from videotrain_operator.cluster import agents as agents_module
from videotrain_operator.cluster.agents import AgentClient
from videotrain_operator.cluster.apply import QUEUE_MANAGER, manager_of
from videotrain_operator.cluster.interface import WatchEvent
from videotrain_operator.cluster.observe import observe
from videotrain_operator.cluster.podview import parse_time, pod_view
from videotrain_operator.reconcile import RunKey, RunLoop, reconcile
from videotrain_operator.simulation.cluster import MASTER_KEY, SimulatedCluster
from videotrain_operator.telemetry import OperatorMetrics

KEY = RunKey(namespace="default", name="demo")
NODES = {"node-0": {"metadata": {"name": "node-0"}, "status": {"conditions": [{"type": "Ready", "status": "True"}]}}}


def kubernetes_pod(**status: Any) -> dict[str, Any]:
    return {
        "metadata": {
            "name": "demo-w0",
            "uid": "u0",
            "creationTimestamp": "2026-01-01T12:00:00Z",
            "labels": {"videotrain.dev/index": "0"},
            "annotations": {"videotrain.dev/price": "2.00 USD"},
        },
        "spec": {
            "nodeName": "node-0",
            "containers": [{"name": "worker", "resources": {"limits": {"nvidia.com/gpu": "8"}}}],
        },
        "status": {
            "phase": "Running",
            "podIP": "10.0.0.1",
            "conditions": [{"type": "PodScheduled", "status": "True", "lastTransitionTime": "2026-01-01T12:00:01Z"}],
            "containerStatuses": [{"name": "worker", "state": {"running": {"startedAt": "2026-01-01T12:00:05Z"}}}],
        }
        | status,
    }


def view(pod: dict[str, Any], nodes: dict[str, Any] | None = None) -> Any:
    return pod_view(pod, NODES if nodes is None else nodes, ["nvidia.com/gpu"])


def ended(**terminated: Any) -> list[dict[str, Any]]:
    facts = {"exitCode": 137, "finishedAt": "2026-01-01T12:01:00Z", "startedAt": "2026-01-01T12:00:05Z"}
    return [{"name": "worker", "state": {"terminated": facts | terminated}}]


# Pods and nodes.


@pytest.mark.parametrize("text", ["2026-01-01T12:00:01Z", "2026-01-01T12:00:01.000000Z", "2026-01-01T13:00:01+01:00"])
def test_times_are_read_with_or_without_a_fraction(text: str) -> None:
    assert parse_time(text) == at(1)


def test_a_running_pod_is_alive_and_costs_since_it_was_bound() -> None:
    pod = view(kubernetes_pod())
    assert pod.alive and pod.gpus == 8 and pod.price == "2.00 USD"
    assert (pod.bound_at, pod.started_at, pod.finished_at) == (at(1), at(5), None)


def test_a_killed_container_tells_when_why_and_with_which_code() -> None:
    pod = view(kubernetes_pod(phase="Failed", containerStatuses=ended(reason="OOMKilled")))
    assert (pod.finished_at, pod.exit_code, pod.reason, pod.alive) == (at(60), 137, "OOMKilled", False)


def test_the_reason_error_says_nothing() -> None:
    assert view(kubernetes_pod(phase="Failed", containerStatuses=ended(reason="Error"))).reason is None


def test_an_evicted_pod_that_ran_no_container_ended_when_its_conditions_changed() -> None:
    conditions = [
        {"type": "PodScheduled", "status": "True", "lastTransitionTime": "2026-01-01T12:00:01Z"},
        {
            "type": "DisruptionTarget",
            "status": "True",
            "lastTransitionTime": "2026-01-01T12:00:30Z",
            "reason": "Evicted",
        },
    ]
    pod = view(kubernetes_pod(phase="Failed", containerStatuses=[], conditions=conditions, reason="NodeShutdown"))
    assert pod.finished_at == at(30) and pod.reason == "Evicted"


def test_an_unscheduled_pod_costs_nothing_and_says_why() -> None:
    waiting = kubernetes_pod(
        phase="Pending",
        containerStatuses=[],
        conditions=[{"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}],
    )
    del waiting["spec"]["nodeName"]
    pod = view(waiting)
    assert pod.bound_at is None and pod.reason == "Unschedulable" and not pod.node_lost


@pytest.mark.parametrize(
    ("node", "lost", "leaving"),
    [
        (None, True, False),
        ({"status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}}, True, False),
        ({"status": {"conditions": [{"type": "Ready", "status": "True"}]}}, False, False),
        ({"spec": {"unschedulable": True}}, False, False),
        ({"spec": {"taints": [{"key": "cloud.google.com/impending-node-termination"}]}}, False, True),
        ({"spec": {"taints": [{"key": "node.kubernetes.io/out-of-service"}]}}, True, False),
    ],
)
def test_nodes_are_lost_or_leaving_only_if_something_says_so(node: Any, lost: bool, leaving: bool) -> None:
    pod = view(kubernetes_pod(), {"node-0": node} if node else {})
    assert (pod.node_lost, pod.node_draining) == (lost, leaving)
    assert pod.node_cordoned is bool(node and "unschedulable" in node.get("spec", {}))


def test_a_lost_node_is_described_by_its_own_words() -> None:
    since = {
        "type": "Ready",
        "status": "Unknown",
        "reason": "NodeStatusUnknown",
        "lastTransitionTime": "2026-01-01T12:00:00Z",
    }
    node = {"status": {"conditions": [since]}}
    assert view(kubernetes_pod(), {"node-0": node}).node_reason == (
        "the node is not ready since 2026-01-01T12:00:00Z: NodeStatusUnknown"
    )
    assert view(kubernetes_pod(), {}).node_reason == "the node was deleted"


@pytest.mark.parametrize("reason", ["ErrImagePull", "ImagePullBackOff"])
def test_pulling_and_backing_off_are_the_same_trouble(reason: str) -> None:
    waiting = {"reason": reason, "message": "no such tag"}
    pod = kubernetes_pod(phase="Pending", containerStatuses=[{"name": "worker", "state": {"waiting": waiting}}])
    assert view(pod).image_problem == "ImagePullBackOff: no such tag"
    creating = {"reason": "ContainerCreating"}
    pod = kubernetes_pod(phase="Pending", containerStatuses=[{"name": "worker", "state": {"waiting": creating}}])
    assert view(pod).image_problem == ""


def test_the_schedulers_words_are_kept_without_its_thoughts_on_preemption() -> None:
    message = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu. preemption: 0/3 nodes are available."
    said = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    waiting = kubernetes_pod(phase="Pending", containerStatuses=[], conditions=[said])
    del waiting["spec"]["nodeName"]
    assert view(waiting).unschedulable == "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."


def test_of_the_end_of_a_log_the_last_line_is_told() -> None:
    log = 'INFO step 11\nTraceback (most recent call last):\n  File "train.py", line 3\nValueError: no data\n\n'
    ended = {"exitCode": 1, "reason": "Error", "message": log, "finishedAt": "2026-01-01T12:00:00Z"}
    pod = kubernetes_pod(phase="Failed", containerStatuses=[{"name": "worker", "state": {"terminated": ended}}])
    assert view(pod).message == "the log ends with: ValueError: no data"
    ended["message"] = "no space left on device\n"
    assert view(pod).message == "no space left on device"


def test_what_a_queue_does_to_a_pod_is_seen() -> None:
    told = {"type": "TerminationTarget", "status": "True", "reason": "StoppedByKueue", "message": "preempted"}
    pod = kubernetes_pod(phase="Succeeded", conditions=[told])
    pod["metadata"] |= {"deletionTimestamp": "2026-01-01T12:00:00Z", "finalizers": ["kueue.x-k8s.io/managed"]}
    pod["metadata"]["labels"]["kueue.x-k8s.io/pod-group-name"] = "demo-a1"
    pod["spec"]["schedulingGates"] = [{"name": "kueue.x-k8s.io/admission"}]
    seen = view(pod)
    assert (seen.reason, seen.message, seen.group) == ("StoppedByQueue", "preempted", "demo-a1")
    assert seen.finalizing
    assert seen.gated


# Observing.


@pytest.mark.parametrize(
    ("change", "counts"), [({}, True), ({"runUid": "other"}, False), ({"generation": "many"}, False)]
)
async def test_a_roster_that_is_spoiled_or_another_runs_counts_as_none(change: dict[str, Any], counts: bool) -> None:
    cluster = SimulatedCluster(manifest(), nodes=3)
    for _ in range(8):
        await reconcile(cluster, KEY, lambda: cluster.now, cluster)
        cluster.tick()
    roster = json.loads(cluster.objects["ConfigMap", "demo-roster"]["data"]["roster.json"])
    cluster.spoil_roster(json.dumps(roster | change))
    _, observed = await observe(cluster, "default", "demo", cluster)
    assert (observed.roster is not None) is counts
    assert observed.roster_resource_version is not None


async def test_beyond_eight_pods_only_the_leader_is_asked_while_steps_go_on() -> None:
    stage = train_stage(steps=500)
    stage["train"]["parallel"] = {"microBatchesPerStep": 20}
    cluster = SimulatedCluster(manifest(stages=[stage], nodes={"min": 1, "max": 10}), nodes=10)
    for _ in range(40):
        await reconcile(cluster, KEY, lambda: cluster.now, cluster)
        cluster.tick()
    _, observed = await observe(cluster, "default", "demo", cluster)
    assert set(observed.agents) == {"demo-w0"}
    cluster.agents[cluster.objects["Pod", "demo-w0"]["metadata"]["uid"]].silent = True
    _, observed = await observe(cluster, "default", "demo", cluster)
    assert set(observed.agents) == {f"demo-w{i}" for i in range(1, 10)}


async def test_a_ledger_that_is_no_json_counts_as_none_and_is_named() -> None:
    cluster = SimulatedCluster(manifest(), nodes=1)
    labels = {"videotrain.dev/run": "demo", "videotrain.dev/run-uid": cluster.run["metadata"]["uid"]}
    await cluster.apply(
        {"kind": "ConfigMap", "metadata": {"name": "demo-ledger", "labels": labels}, "data": {"ledger.json": "{"}}
    )
    _, observed = await observe(cluster, "default", "demo", cluster)
    assert observed.ledger is None
    assert observed.unreadable == ("config map demo-ledger: ledger.json",)


async def test_a_deleted_pod_of_another_run_is_not_ours() -> None:
    cluster = SimulatedCluster(manifest(), nodes=1)
    _, observed = await observe(cluster, "default", "demo", cluster, [kubernetes_pod()])
    assert observed.departed == ()


async def test_the_frozen_spec_comes_back_from_its_config_map() -> None:
    cluster = SimulatedCluster(manifest(seed=7), nodes=1)
    for _ in range(3):
        await reconcile(cluster, KEY, lambda: cluster.now, cluster)
    _, observed = await observe(cluster, "default", "demo", cluster)
    assert observed.frozen_spec is not None and observed.frozen_spec["seed"] == 7


# Agents.


async def agent_server(body: object, port: int, key: bytes = SIGNING_KEY) -> web.AppRunner:
    async def progress_of(request: web.Request) -> web.Response:
        asked = Request(recipient="127.0.0.1", method="GET", target=request.raw_path)
        nonce = asked.verify(SIGNING_KEY, request.headers, now_us=time.time_ns() // 1000, nonces=Nonces())
        answer = Answer(status=200, body=json.dumps(body).encode())
        return web.Response(body=answer.body, headers=answer.sign(key, nonce, time_us=0))

    app = web.Application()
    app.add_routes([web.get("/progress", progress_of)])
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    return runner


@pytest.mark.parametrize("good", [True, False])
async def test_an_agent_answers_or_does_not(good: bool, monkeypatch: pytest.MonkeyPatch, unused_tcp_port: int) -> None:
    monkeypatch.setattr(agents_module, "PORT_AGENT", unused_tcp_port)
    want = AgentProgress(pod="demo-w0", pod_uid="u0", at=at(9), current=progress(1, 5))
    body = want.to_wire() if good else {"what": "is this"}
    runner = await agent_server(body, unused_tcp_port)
    try:
        async with AgentClient(MASTER_KEY) as client:
            assert await client.progress("127.0.0.1", SIGNING_KEY) == (want if good else None)
            assert client.refused == {"unsigned": 0, "unreadable": 0 if good else 1}
    finally:
        await runner.cleanup()


async def test_nobody_at_the_address_is_no_answer(monkeypatch: pytest.MonkeyPatch, unused_tcp_port: int) -> None:
    monkeypatch.setattr(agents_module, "PORT_AGENT", unused_tcp_port)
    async with AgentClient(timeout_seconds=0.5) as client:
        assert await client.progress("127.0.0.1", SIGNING_KEY) is None


async def test_what_is_signed_with_another_key_is_silence_and_counted(
    monkeypatch: pytest.MonkeyPatch, unused_tcp_port: int
) -> None:
    monkeypatch.setattr(agents_module, "PORT_AGENT", unused_tcp_port)
    body = AgentProgress(pod="demo-w0", pod_uid="u0", at=at(9)).to_wire()
    runner = await agent_server(body, unused_tcp_port, key=bytes(32))
    try:
        async with AgentClient(MASTER_KEY) as client:
            assert await client.progress("127.0.0.1", SIGNING_KEY) is None
            assert client.refused == {"unsigned": 1, "unreadable": 0}
            assert client.silent_seconds("127.0.0.1") > 0
    finally:
        await runner.cleanup()


# Applying.


def test_what_a_queue_is_told_has_a_field_manager_of_its_own() -> None:
    objects = render_objects(run_of(manifest()))
    assert {manager_of(item) for item in objects} == {"videotrain-operator"}
    assert manager_of({"kind": "Pod", "metadata": {}}) == QUEUE_MANAGER


async def test_a_pass_without_news_writes_nothing() -> None:
    cluster = SimulatedCluster(manifest(), nodes=0)
    for _ in range(3):
        await reconcile(cluster, KEY, lambda: cluster.now, cluster)
    writes = cluster.writes
    await reconcile(cluster, KEY, lambda: cluster.now, cluster)
    assert cluster.writes == writes


# The loop.


async def test_the_loop_ends_with_its_run_and_tells_every_pass() -> None:
    cluster = SimulatedCluster(manifest(stages=[train_stage(steps=3)], ttlSecondsAfterFinished=0), nodes=3)
    seen: list[str] = []

    def note(outcome: Any) -> None:
        seen.append(outcome.plan.status.phase)
        cluster.tick()
        loop.wake()

    loop = RunLoop(cluster, KEY, cluster, clock=lambda: cluster.now, on_outcome=note)
    await asyncio.wait_for(loop.run(), 30)
    assert list(dict.fromkeys(seen)) == ["Pending", "Starting", "Running", "Succeeded"]


async def test_an_error_is_told_and_the_loop_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = SimulatedCluster(manifest(), nodes=1)
    errors: list[Exception] = []
    passed = asyncio.Event()
    original, calls = cluster.get, 0

    async def flaky(kind: str, namespace: str, name: str) -> Any:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise OSError("the API server is away")
        return await original(kind, namespace, name)

    monkeypatch.setattr(cluster, "get", flaky)

    def failed(error: Exception) -> None:
        errors.append(error)
        loop.wake()

    loop = RunLoop(cluster, KEY, cluster, clock=lambda: cluster.now, on_outcome=lambda _: passed.set(), on_error=failed)
    task = asyncio.create_task(loop.run())
    await asyncio.wait_for(passed.wait(), 10)
    task.cancel()
    assert [type(error) for error in errors] == [OSError]


async def test_the_loops_own_status_write_does_not_wake_it() -> None:
    cluster = SimulatedCluster(manifest(), nodes=1)
    loop = RunLoop(cluster, KEY, cluster, clock=lambda: cluster.now)
    run = cluster.run
    loop.notice(WatchEvent("MODIFIED", run))
    loop._woken.clear()
    loop.notice(WatchEvent("MODIFIED", run | {"status": {"phase": "Running"}}))
    assert not loop._woken.is_set()
    head = run["metadata"] | {"generation": 2}
    loop.notice(WatchEvent("MODIFIED", run | {"metadata": head}))
    assert loop._woken.is_set()


# Metrics.


async def test_every_run_series_is_in_the_catalogue_and_a_new_operator_shows_the_same() -> None:
    cluster = SimulatedCluster(manifest(stages=[train_stage(steps=20)], budget={"maxCost": "9"}), nodes=3)
    for second in range(40):
        if second == 15:
            cluster.fail_worker("demo-w1", 1)
        await reconcile(cluster, KEY, lambda: cluster.now, cluster)
        cluster.tick()
    run = cluster.run
    metrics = OperatorMetrics()
    metrics.note_pass(run, run["status"], 0.004, ["Started"])
    metrics.note_conflict()
    metrics.note_error(OSError())
    text = metrics.text().decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    known = {name.removesuffix("_total") for name in catalogue.CATALOGUE}
    assert set(families) <= known
    assert {"videotrain_restarts", "videotrain_gpu_seconds", "videotrain_recovery_seconds"} <= set(families)
    gpu_seconds = sum(sample.value for sample in families["videotrain_gpu_seconds"].samples)
    assert gpu_seconds == pytest.approx(run["status"]["cost"]["heldGpuMicroseconds"] / 1e6)
    again = OperatorMetrics()
    again.note_pass(run, run["status"], 0.004, ["Started"])
    for name in ("videotrain_restarts", "videotrain_cost_micros"):
        other = {f.name: f for f in text_string_to_metric_families(again.text().decode())}[name]
        assert other.samples == families[name].samples
    again.forget("default", "demo")
    assert b"videotrain_run_phase" not in again.text()
