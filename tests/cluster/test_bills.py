"""Bills outlive runs and their namespaces on a real API server, and whoever leads when they go."""

import asyncio
import json
import signal
import subprocess
import sys

import boto3
import pytest
from moto.server import ThreadedMotoServer
from support.chaos_rig import until
from support.controlplane import environment
from support.operator_bench import PODS
from support.plane_objects import create_namespace

from videotrain.bills.sources import bills_in_bucket
from videotrain_api.billing.document import sealed
from videotrain_api.vocabulary import KIND, LABEL_BILL, LABEL_BILL_STORED

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def told(bench, run):
    """What `videotrain bill` says of a run; None if it knows no bill."""
    place = ("--operator-namespace", bench.namespace, "--kubeconfig", str(bench.plane.kubeconfig()))
    command = [sys.executable, "-m", "videotrain", "bill", run, *place, "--output", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment(bench.plane))
    assert done.returncode in (0, 1) and "Traceback" not in done.stderr, done.stderr
    return json.loads(done.stdout) if done.returncode == 0 else None


def stored_bill(bench, uid):
    """The config map with the bill of a run."""
    maps = bench.views["ConfigMap"].objects.values()
    return next((one for one in maps if (one["metadata"].get("labels") or {}).get(LABEL_BILL) == uid), None)


async def held(bench, namespace, run):
    """Make a run and wait until its pods have held nodes for a while; the run as it is then."""
    await bench.create(run, namespace=namespace)

    def costs():
        body = bench.views[KIND].objects.get((namespace, run)) or {}
        return ((body.get("status") or {}).get("cost") or {}).get("totalMicros") and body

    return await until(costs, "it costs", bench.operators.tail)


async def delete(bench, namespace, run):
    """The run, and at once the namespace with all that is in it."""
    await bench.client.delete(KIND, namespace, run)
    await bench.client.delete("Namespace", "", namespace)


async def closed_bill(bench, before):
    """What is told of a run that is gone when nobody will write its bill again."""
    head = before["metadata"]
    await until(
        lambda: (stored_bill(bench, head["uid"]) or {}).get("immutable"), "the bill is closed", bench.operators.tail
    )
    bill = await asyncio.to_thread(told, bench, head["name"])
    assert sum(sum(row["micros"].values()) for row in bill["rows"]) == bill["totalMicros"]
    assert (bill["uid"], bill["namespace"], bill["closed"]) == (head["uid"], head["namespace"], True)
    return bill


async def test_a_bill_is_told_after_its_run_and_namespace_and_whoever_led_are_gone(bench, control_plane):
    """The next leader saw the run go, while it waited for its turn."""
    theirs = f"{bench.namespace}-theirs"
    create_namespace(control_plane, theirs)
    await bench.start(replicas=2)
    before = await held(bench, theirs, "gone")
    leader = await bench.leads()
    await delete(bench, theirs, "gone")
    await asyncio.to_thread(bench.operators.end, leader, signal.SIGKILL)
    bill = await closed_bill(bench, before)
    assert bill["totalMicros"] >= before["status"]["cost"]["totalMicros"]
    assert len({row["pod"] for row in bill["rows"]} - {""}) == PODS or bill["estimated"], bill
    assert await bench.leads() != leader


async def test_a_run_that_went_while_no_operator_was_there_keeps_its_bill_as_an_estimate(bench, control_plane):
    theirs = f"{bench.namespace}-theirs"
    create_namespace(control_plane, theirs)
    await bench.start(replicas=1)
    before = await held(bench, theirs, "gone")
    uid = before["metadata"]["uid"]
    await until(lambda: stored_bill(bench, uid), "its bill is kept", bench.operators.tail)
    await asyncio.to_thread(bench.operators.end, await bench.leads(), signal.SIGKILL)
    await delete(bench, theirs, "gone")
    await until(lambda: not bench.left(theirs), "the namespace is empty", bench.operators.tail)
    kept = await asyncio.to_thread(told, bench, "gone")
    assert kept["totalMicros"] > 0 and not kept["closed"]
    bench.operators.start()
    bill = await closed_bill(bench, before)
    assert bill["estimated"] and bill["totalMicros"] == kept["totalMicros"]


async def test_bills_get_into_a_bucket_though_it_is_away_and_the_leader_dies(bench, control_plane, monkeypatch):
    """The bucket is there only after the run is gone and another replica leads."""
    keys = {"AWS_ACCESS_KEY_ID": "AK", "AWS_SECRET_ACCESS_KEY": "SK", "AWS_DEFAULT_REGION": "us-east-1"}
    for name, value in keys.items():
        monkeypatch.setenv(name, value)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    endpoint = "http://{}:{}".format(*server.get_host_and_port())
    place = {"uri": "s3://finance/bills", "endpointUrl": endpoint}
    theirs = f"{bench.namespace}-theirs"
    create_namespace(control_plane, theirs)
    try:
        await bench.start("--bill-storage", json.dumps(place), replicas=2)
        before = await held(bench, theirs, "gone")
        leader = await bench.leads()
        await delete(bench, theirs, "gone")
        kept = await closed_bill(bench, before)
        await asyncio.to_thread(bench.operators.end, leader, signal.SIGKILL)
        boto3.client("s3", endpoint_url=endpoint).create_bucket(Bucket="finance")
        uid = before["metadata"]["uid"]
        await until(
            lambda: LABEL_BILL_STORED in stored_bill(bench, uid)["metadata"]["labels"],
            "the bill is copied and marked",
            bench.operators.tail,
        )
        (copied,) = bills_in_bucket(place["uri"], endpoint)
        assert sealed(copied) == kept and stored_bill(bench, uid)["immutable"]
    finally:
        server.stop()
