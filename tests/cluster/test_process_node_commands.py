"""`kubectl logs`, `exec`, `cp`, `port-forward`, `top` and `describe node` on the nodes of `videotrain cluster up`."""

import json
import os
import re
import subprocess
import urllib.request

import psutil
import pytest
from support.cluster_command import ClusterCommand
from support.controlplane import pod_manifest
from support.processes import processes_below, until

from videotrain.controlplane.tools import kubectl as kubectl_program

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
SERVER = """
import functools, http.server, os, pathlib
from videotrain_api.vocabulary import ENV_POD_IP
print("line 1", "line 2", "serving", sep=chr(10), flush=True)
handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(pathlib.Path.cwd()))
http.server.ThreadingHTTPServer((os.environ[ENV_POD_IP], 8123), handler).serve_forever()
"""
COUNTER = """
import pathlib, time
print("begins", flush=True)
while not pathlib.Path("go").exists():
    time.sleep(0.05)
print("ends", flush=True)
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    command = ClusterCommand(tmp_path_factory.mktemp("cluster"))
    came = command("up", "--detach", "--nodes", "1")
    assert came.returncode == 0, came.stderr
    yield command
    command("down")
    assert processes_below(command.directory) == []


@pytest.fixture(scope="module")
def kubectl(cluster):
    run = cluster.kubectl()
    for name, code in (("server", SERVER), ("counter", COUNTER)):
        pod = pod_manifest(name, "default", restartPolicy="Never", container={"command": ["python", "-c", code]})
        run("apply", "-f", "-", stdin=json.dumps(pod))
        run("wait", f"pod/{name}", "--for=jsonpath={.status.phase}=Running", "--timeout=120s")
    until(lambda: "serving" in run("logs", "server").stdout, "the server has begun")
    return run


def test_logs_are_told_whole_and_by_their_last_lines(kubectl):
    assert kubectl("logs", "server").stdout.startswith("line 1\nline 2\nserving\n")
    assert kubectl("logs", "counter", "--tail=1").stdout == "begins\n"
    done = kubectl("logs", "server", "-c", "other", check=False)
    assert done.returncode != 0 and "other" in done.stderr


def test_logs_are_followed_to_the_end_of_the_container(cluster, kubectl):
    command = [kubectl_program(), "logs", "-f", "counter"]
    env = {**os.environ, "KUBECONFIG": cluster.status()["cluster"]["kubeconfig"]}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as following:
        assert following.stdout.readline() == "begins\n"
        kubectl("exec", "counter", "--", "touch", "go")
        assert following.stdout.read() == "ends\n"
    assert following.returncode == 0


def test_a_command_runs_beside_the_container(kubectl):
    done = kubectl("exec", "server", "--", "sh", "-c", "echo out; echo err >&2; exit 7", check=False)
    assert (done.returncode, done.stdout) == (7, "out\n")
    assert done.stderr.startswith("err\n")
    assert kubectl("exec", "-i", "server", "--", "cat", stdin="through the pipe").stdout == "through the pipe"
    assert kubectl("exec", "server", "--", "sh", "-c", "echo $HOSTNAME").stdout == "server\n"
    missing = kubectl("exec", "server", "--", "no-such-program", check=False)
    assert missing.returncode == 126 and "no-such-program" in missing.stderr


def test_a_command_has_a_terminal_if_it_is_asked_for(cluster, kubectl):
    words = f"{kubectl_program()} exec -it server -- sh -c 'test -t 0 && echo it is a terminal'"
    env = {**os.environ, "KUBECONFIG": cluster.status()["cluster"]["kubeconfig"]}
    done = subprocess.run(["script", "-qec", words, "/dev/null"], capture_output=True, text=True, env=env, timeout=100)
    assert (done.returncode, "it is a terminal" in done.stdout) == (0, True), done


def test_a_command_ends_with_kubectl(cluster, kubectl):
    command = [kubectl_program(), "exec", "server", "--", "sh", "-c", "echo began; exec sleep 987654"]
    env = {**os.environ, "KUBECONFIG": cluster.status()["cluster"]["kubeconfig"]}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as going:
        assert going.stdout.readline() == "began\n"
        going.kill()
    left = lambda: [each for each in psutil.process_iter(["cmdline"]) if each.info["cmdline"] == ["sleep", "987654"]]  # noqa: E731
    until(lambda: not left(), "it is gone with kubectl")


def test_files_are_copied_both_ways(kubectl, tmp_path):
    content = os.urandom(300_000)
    (tmp_path / "there").write_bytes(content)
    kubectl("cp", str(tmp_path / "there"), "server:copied")
    kubectl("cp", "server:copied", str(tmp_path / "back"))
    assert (tmp_path / "back").read_bytes() == content


def test_a_port_is_forwarded_for_several_connections(cluster, kubectl):
    kubectl("exec", "server", "--", "sh", "-c", "head -c 400000 /dev/zero > zeros")
    command = [kubectl_program(), "port-forward", "pod/server", ":8123"]
    env = {**os.environ, "KUBECONFIG": cluster.status()["cluster"]["kubeconfig"]}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env) as forwarding:
        port = re.search(r"127\.0\.0\.1:(\d+) -> 8123", forwarding.stdout.readline())[1]
        for _ in range(3):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/zeros", timeout=60) as answer:
                assert answer.read() == bytes(400_000)
        forwarding.kill()


def test_usage_is_told_of_pods_and_nodes(kubectl):
    if os.geteuid() != 0:
        pytest.skip("nodes have addresses that Services can lead to for root only")
    until(lambda: kubectl("top", "pods", check=False).returncode == 0, "pods were looked at twice", seconds=120)
    rows = [line.split() for line in kubectl("top", "pods", "--no-headers").stdout.splitlines()]
    server = next(row for row in rows if row[0] == "server")
    assert re.fullmatch(r"\d+m", server[1]) and int(server[2].removesuffix("Mi")) > 5
    node = kubectl("top", "nodes", "--no-headers").stdout.split()
    assert node[0] == "node-0" and node[3].endswith("Mi")


def test_a_node_is_described(kubectl):
    told = kubectl("describe", "node", "node-0").stdout
    assert "nvidia.com/gpu" in told and re.search(r"^ *default +server ", told, re.M)


def test_nobody_but_the_api_server_is_answered(cluster, kubectl):
    node = json.loads(kubectl("get", "node", "node-0", "-o", "json").stdout)["status"]
    address = next(each["address"] for each in node["addresses"] if each["type"] == "InternalIP")
    url = f"https://{address}:{node['daemonEndpoints']['kubeletEndpoint']['Port']}/containerLogs/default/server/main"
    pki = cluster.directory / "control-plane/pki"
    for files in ((), ("--cert", str(pki / "admin.crt"), "--key", str(pki / "admin.key"))):
        done = subprocess.run(["curl", "-sk", "-w", "%{http_code}", url, *files], capture_output=True, text=True)
        assert "line 1" not in done.stdout
        assert done.returncode != 0 or done.stdout.endswith("403")
