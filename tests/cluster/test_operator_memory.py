"""What the operator must not forget or do again: counters, deadlines, and what users wrote on their runs."""

import asyncio
import signal
from datetime import UTC, datetime, timedelta

import pytest
from support.chaos_rig import until
from support.operator_bench import BENCH_LABEL, PODS

from videotrain_api.vocabulary import KIND

TTL = 10
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def now():
    return datetime.now(UTC)


async def fail(bench, pod, code=1):
    """The worker container of a pod ends with an exit code, as a kubelet reports it."""
    at = now().strftime("%Y-%m-%dT%H:%M:%SZ")
    ended = {"exitCode": code, "reason": "Error", "startedAt": at, "finishedAt": at}
    container = {"name": "worker", "image": "i", "imageID": "i", "ready": False, "restartCount": 0}
    status = {"phase": "Failed", "containerStatuses": [container | {"state": {"terminated": ended}}]}
    await bench.client.patch("Pod", bench.namespace, pod, {"status": status}, subresource="status")


async def test_restart_counters_survive_the_operator_and_their_limit_holds(bench):
    await bench.start(replicas=1)
    policy = {"sameStepLimit": 50, "limits": {"application": 2}}
    await bench.create("fails", failurePolicy=policy)
    await bench.rosters(["fails"])
    for count in (1, 2):
        before = bench.status("fails")["generation"]
        await fail(bench, "fails-w1")
        await bench.rosters(["fails"], least=before + 1)
        assert bench.status("fails")["restarts"]["application"] == count
        await asyncio.to_thread(bench.operators.end, await bench.leads(), signal.SIGKILL)
        bench.operators.start()
        await bench.all_ready()
    await fail(bench, "fails-w0")
    failed = await until(lambda: bench.condition("fails", "Failed"), "the run fails", bench.operators.tail)
    assert failed["status"] == "True" and "application" in failed["message"], failed


async def test_a_ttl_that_passes_while_nobody_leads_fires_later_and_nothing_is_made_again(bench):
    await bench.start(replicas=1)
    nowhere = {"gpusPerNode": 1, "pricePerGpuHour": "2.00", "nodeSelector": {"no": "node"}}
    await bench.create("over", pool=nowhere, startDeadlineSeconds=1, ttlSecondsAfterFinished=TTL)
    await bench.becomes("over", "Failed", "True", "StartDeadlineExceeded")
    bench.operators.end_all()
    finished = datetime.fromisoformat(bench.status("over")["completionTime"])
    await until(lambda: now() > finished + timedelta(seconds=TTL + 1), "the TTL is over")
    assert bench.run("over")
    made = bench.pods_made()
    bench.operators.start()
    await until(lambda: not bench.run("over"), "the run is deleted", bench.operators.tail)
    await bench.create("next")
    await bench.rosters(["next"])
    await until(lambda: not left_of(bench, "over"), "its objects follow", lambda: f"{left_of(bench, 'over')}")
    assert {name: count for name, count in bench.pods_made().items() if name.startswith("over-")} == dict(made)


def left_of(bench, name):
    return [key for kind, key in bench.left() if kind != "Event" and f"{key[1]}-".startswith(f"{name}-")]


async def test_nothing_is_written_on_a_run_so_one_that_is_as_large_as_allowed_can_be_deleted(bench):
    await bench.start(replicas=1)
    await bench.create("large")
    note = {"note": "x" * 260_000}
    await bench.client.patch(KIND, bench.namespace, "large", {"metadata": {"annotations": note}}, manager="test")
    await bench.rosters(["large"])
    await bench.edit("large", suspend=True)
    await until(lambda: bench.status("large").get("phase") == "Suspended", "suspended", bench.operators.tail)
    head = bench.run("large")["metadata"]
    assert head["annotations"] == note and "finalizers" not in head and "labels" not in head
    await bench.client.delete(KIND, bench.namespace, "large")
    await until(lambda: not left_of(bench, "large"), "all of it is gone", lambda: f"{left_of(bench, 'large')}")


async def test_a_resumed_run_gets_no_roster_before_all_its_pods_run(bench):
    await bench.start(replicas=1)
    ours = {"gpusPerNode": 1, "pricePerGpuHour": "2.00", "nodeSelector": {BENCH_LABEL: bench.namespace}}
    await bench.create("resumes", pool=ours)
    await bench.rosters(["resumes"])
    await bench.edit("resumes", suspend=True)
    await until(lambda: not bench.pods("resumes"), "it holds no pods", bench.operators.tail)
    for node in bench.nodes[1:]:
        await bench.client.patch("Node", "", node, {"spec": {"unschedulable": True}}, manager="test")
    before = bench.status("resumes")["generation"]
    await bench.edit("resumes", suspend=False)
    await bench.becomes("resumes", "Scheduled", "False", "Unschedulable")
    phases = await until(lambda: one_runs(bench, "resumes"), "one of its pods runs", bench.operators.tail)
    assert phases == ["Pending", "Running"]
    assert bench.roster("resumes")["action"] == "stop"
    assert bench.status("resumes")["generation"] == before
    for node in bench.nodes[1:]:
        await bench.client.patch("Node", "", node, {"spec": {"unschedulable": None}}, manager="test")
    await bench.rosters(["resumes"], least=before + 1)


def one_runs(bench, name):
    phases = sorted(pod["status"]["phase"] for pod in bench.pods(name))
    return phases if len(phases) == PODS and "Running" in phases else None
