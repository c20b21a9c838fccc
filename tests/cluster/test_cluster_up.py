"""`videotrain cluster` as a user runs it."""

import json
import os
import signal
import subprocess
import sys

import pytest
from support.cluster_command import ClusterCommand
from support.controlplane import pod_manifest
from support.processes import processes_below, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def cluster(tmp_path):
    command = ClusterCommand(tmp_path / "cluster")
    yield command
    command("down")
    assert processes_below(command.directory) == []


def test_a_cluster_comes_stays_and_goes(cluster):
    came = cluster("up", "--detach", "--nodes", "2", "--gpus-per-node", "3")
    assert came.returncode == 0, came.stderr
    status = cluster.status()
    assert f"export KUBECONFIG={status['cluster']['kubeconfig']}" in came.stdout
    assert "devices: the CPU (CUDA_VISIBLE_DEVICES names no GPU)\n" in came.stdout
    assert [(node["ready"], node["gpus"]) for node in status["state"]["nodes"]] == [(True, 3), (True, 3)]
    assert all(status["state"]["components"].values())
    again = cluster("up", "--detach")
    assert (again.returncode, again.stderr) == (0, "")
    assert again.stdout.startswith(f"It runs already (process {status['process']}). The cluster is ready. Type:\n")
    other = cluster("up", "--detach", "--nodes", "3")
    assert other.returncode == 2
    assert f"--nodes 3: the cluster of {cluster.directory} runs with 2" in other.stderr
    a_pod_reaches_the_object_store(cluster.kubectl())

    os.kill(status["process"], signal.SIGKILL)
    until(lambda: not processes_below(cluster.directory), "everything of a killed cluster ends by itself")
    assert cluster("status").returncode == 1

    assert cluster("up", "--detach", "--nodes", "1").returncode == 0
    assert cluster.kubectl()("get", "configmap", "note", "-o", "jsonpath={.data.kept}").stdout == "yes"
    gone = cluster("down")
    assert gone.stdout == f"The cluster of {cluster.directory} is down.\n"
    assert processes_below(cluster.directory) == []


def a_pod_reaches_the_object_store(kubectl):
    code = "import boto3; boto3.client('s3').put_object(Bucket='videotrain', Key='greeting', Body=b'hello')"
    container = {"command": ["python", "-c", code], "resources": {"limits": {"nvidia.com/gpu": "1"}}}
    pod = pod_manifest("writer", "default", restartPolicy="Never", container=container)
    kubectl("apply", "-f", "-", stdin=json.dumps(pod))
    kubectl("wait", "pod/writer", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=120s")
    kubectl("create", "configmap", "note", "--from-literal=kept=yes")


def test_ctrl_c_ends_a_cluster_in_the_foreground(cluster):
    command = [
        sys.executable,
        "-m",
        "videotrain",
        "cluster",
        "up",
        "--nodes",
        "1",
        "--directory",
        str(cluster.directory),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "The cluster is ready. Type:\n", process.stderr.read()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=200)
    assert (process.returncode, errors) == (0, "")
    assert processes_below(cluster.directory) == []
