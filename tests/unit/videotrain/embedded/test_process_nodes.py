"""Process nodes with real child processes."""

import asyncio
import base64
import contextlib
import json
import os
import signal
import sys
from pathlib import Path

import psutil
import pytest

from videotrain.clock import utc_now
from videotrain.embedded.process_nodes import NodeShape, ProcessNodes
from videotrain.embedded.store import EmbeddedCluster

GPU = "nvidia.com/gpu"


class Site:
    """A cluster in a directory, whose nodes can be stopped and started again like a killed process."""

    def __init__(self, workdir, nodes, devices=()):
        """Two devices for each node as far as there are any."""
        self.workdir = workdir
        self.devices = {f"node-{n}": tuple(devices[2 * n : 2 * n + 2]) for n in range(nodes)}
        self.cluster = self.nodes = self.task = None

    async def open(self):
        self.cluster = EmbeddedCluster(self.workdir / "cluster.db")
        shapes = dict.fromkeys(self.devices, NodeShape(allocatable={GPU: 2}))
        self.nodes = ProcessNodes(self.cluster, self.workdir, self.devices, shapes, "default")
        await self.nodes.recover()
        self.task = asyncio.create_task(self.nodes.run())

    async def close(self):
        self.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.task
        self.cluster.close()

    async def pod(self, name, code="import time; time.sleep(1000)", *, spec=None, container=None, metadata=None):
        container = {"name": "main", "command": [sys.executable, "-S", "-c", code], **(container or {})}
        container.setdefault("resources", {"limits": {GPU: "2"}})
        head = {"name": name, "namespace": "default", "labels": {"videotrain.dev/run": "r"}, **(metadata or {})}
        body = {"containers": [container], "terminationGracePeriodSeconds": 20, **(spec or {})}
        return await self.cluster.apply({"apiVersion": "v1", "kind": "Pod", "metadata": head, "spec": body})

    async def wait(self, name, condition):
        """The pod as soon as it fits; condition gets None when it is gone."""
        watch = self.cluster.watch("Pod", "default")
        found = [pod for pod in await self.cluster.list("Pod", "default") if pod["metadata"]["name"] == name]
        pod = found[0] if found else None
        while not condition(pod):
            event = await anext(watch)
            if event.object["metadata"]["name"] == name:
                pod = None if event.type == "DELETED" else event.object
        return pod

    def log(self, pod):
        return self.workdir / "logs" / f"{pod['metadata']['name']}-{pod['metadata']['uid'][:8]}.log"

    def root(self, pod):
        return self.workdir / "pods" / f"{pod['metadata']['name']}-{pod['metadata']['uid'][:8]}"


@pytest.fixture
async def site(tmp_path):
    site = Site(tmp_path, 2)
    await site.open()
    yield site
    await site.close()


def phase(*names):
    return lambda pod: pod is not None and pod["status"]["phase"] in names


def terminated(pod):
    return pod["status"]["containerStatuses"][0]["state"]["terminated"]


async def until(condition):
    while not (found := condition()):
        await asyncio.sleep(0.01)
    return found


def alive(pid):
    """An orphan that was killed is a zombie until the first process of the machine asks for its end."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


NOTE = "example.com/note"
IGNORES_SIGTERM = "import signal,time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(1000)"
ENDS_ON_SIGTERM = (
    "import signal,sys,time; signal.signal(15, lambda *_: sys.exit(0)); print('up', flush=True); time.sleep(1000)"
)


@pytest.mark.parametrize(("code", "name", "reason"), [(0, "Succeeded", "Completed"), (80, "Failed", "Error")])
async def test_a_pod_runs_to_its_end_and_its_times_are_recorded_in_order(site, code, name, reason):
    await site.pod("p", f"raise SystemExit({code})")
    pod = await site.wait("p", phase("Succeeded", "Failed"))
    state = terminated(pod)
    assert (pod["status"]["phase"], state["exitCode"], state["reason"]) == (name, code, reason)
    scheduled = next(c for c in pod["status"]["conditions"] if c["type"] == "PodScheduled")
    assert scheduled["lastTransitionTime"] <= state["startedAt"] <= state["finishedAt"]


async def test_a_pod_gets_its_fields_secrets_and_config_as_environment(site):
    await site.cluster.apply({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"},
        "data": {"key": base64.b64encode(b"hidden").decode()},
    })  # fmt: skip
    await site.cluster.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"a": "1"}})

    def field(path):
        return {"valueFrom": {"fieldRef": {"fieldPath": path}}}

    env = [
        {"name": "NAME"} | field("metadata.name"), {"name": "UID_"} | field("metadata.uid"),
        {"name": "IP"} | field("status.podIP"), {"name": "NODE"} | field("spec.nodeName"),
        {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "s", "key": "key"}}},
        {"name": "A", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "a"}}},
        {"name": "BOTH", "value": "$(NAME)/$(A) $$(A) $(UNKNOWN)"},
    ]  # fmt: skip
    os.environ["VIDEOTRAIN_TEST_STRANGER"] = "1"
    await site.pod("p", "import json,os; print(json.dumps(dict(os.environ)))", container={"env": env})
    pod = await site.wait("p", phase("Succeeded", "Failed"))
    del os.environ["VIDEOTRAIN_TEST_STRANGER"]
    seen = json.loads(site.log(pod).read_text())
    expected = {
        "NAME": "p", "UID_": pod["metadata"]["uid"], "IP": pod["status"]["podIP"], "NODE": "node-0", "KEY": "hidden",
        "A": "1", "BOTH": "p/1 $(A) $(UNKNOWN)", "VIDEOTRAIN_POD_ROOT": str(site.root(pod)), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    assert {name: seen[name] for name in expected} == expected
    assert "VIDEOTRAIN_TEST_STRANGER" not in seen
    assert pod["status"]["podIP"].startswith("127.") and pod["status"]["podIP"] != "127.0.0.1"


def volumes():
    note = {"path": "note", "fieldRef": {"fieldPath": f"metadata.annotations['{NOTE}']"}}
    spec = {
        "volumes": [{"name": "pod", "downwardAPI": {"items": [note]}}, {"name": "config", "configMap": {"name": "c"}}]
    }
    mounts = {"pod": "/etc/pod", "config": "/etc/videotrain/config"}
    return spec, {"volumeMounts": [{"name": name, "mountPath": path} for name, path in mounts.items()]}


async def test_volumes_are_files_that_follow_their_sources(site):
    await site.cluster.apply(
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"a.json": "{}"}}
    )
    spec, container = volumes()
    await site.pod("p", spec=spec, container=container)
    pod = await site.wait("p", phase("Running"))
    note, config = site.root(pod) / "etc/pod/note", site.root(pod) / "etc/videotrain/config/a.json"
    assert (note.read_text(), config.read_text()) == ("", "{}")
    await site.cluster.patch("Pod", "default", "p", {"metadata": {"annotations": {NOTE: "first"}}})
    await until(lambda: note.read_text() == "first")
    changed = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"a.json": "[1]"}}
    await site.cluster.apply(changed)
    await until(lambda: config.read_text() == "[1]")
    await site.cluster.delete("ConfigMap", "default", "c")
    await site.cluster.patch("Pod", "default", "p", {"metadata": {"annotations": {NOTE: "second"}}})
    await until(lambda: note.read_text() == "second")
    assert config.read_text() == "[1]"


async def test_a_pod_waits_for_its_config_map_and_says_so(site):
    spec, container = volumes()
    await site.pod("p", "pass", spec=spec, container=container)

    def waits(pod):
        return pod and pod["status"].get("containerStatuses", [{}])[0].get("state", {}).get("waiting")

    state = waits(await site.wait("p", waits))
    assert state == {"reason": "CreateContainerConfigError", "message": "ConfigMap 'c' does not exist"}
    await site.cluster.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": {}})
    await site.wait("p", phase("Succeeded"))


async def test_each_node_holds_one_pod_of_a_run_and_the_third_waits_for_a_place(site):
    for name in ("p0", "p1", "p2"):
        await site.pod(name)
    running = [await site.wait(name, phase("Running")) for name in ("p0", "p1")]
    assert {pod["spec"]["nodeName"] for pod in running} == {"node-0", "node-1"}
    assert len({pod["status"]["podIP"] for pod in running}) == 2

    def unschedulable(pod):
        return any(c.get("reason") == "Unschedulable" for c in pod["status"].get("conditions", []))

    await site.wait("p2", unschedulable)
    await site.cluster.delete("Pod", "default", "p0", grace_seconds=0)
    assert (await site.wait("p2", phase("Running")))["spec"]["nodeName"] == "node-0"


async def test_pods_of_different_runs_share_a_node_as_far_as_its_gpus_go(site):
    for number, gpus in enumerate((1, 1, 2)):
        limits = {"resources": {"limits": {GPU: str(gpus)}}}
        await site.pod(f"p{number}", container=limits, metadata={"labels": {"videotrain.dev/run": f"r{number}"}})
    nodes = [(await site.wait(f"p{n}", phase("Running")))["spec"]["nodeName"] for n in range(3)]
    assert nodes == ["node-0", "node-0", "node-1"]


SEEN = "import os; print(os.environ.get('CUDA_VISIBLE_DEVICES'), flush=True); import time; time.sleep(1000)"


async def visible(site, name):
    """What the pod's process finds in CUDA_VISIBLE_DEVICES."""
    pod = await site.wait(name, phase("Running"))
    return (await until(lambda: site.log(pod).read_text().strip())), pod["spec"]["nodeName"]


async def test_each_pod_sees_gpus_of_its_own(tmp_path):
    site = Site(tmp_path, 2, devices=("4", "5", "6", "7"))
    await site.open()
    for number, gpus in enumerate((1, 1, 2)):
        limits = {"resources": {"limits": {GPU: str(gpus)}}}
        await site.pod(f"p{number}", SEEN, container=limits, metadata={"labels": {"videotrain.dev/run": f"r{number}"}})
    assert [await visible(site, f"p{number}") for number in range(3)] == [
        ("4", "node-0"), ("5", "node-0"), ("6,7", "node-1")
    ]  # fmt: skip
    await site.cluster.delete("Pod", "default", "p0", grace_seconds=0)
    await site.pod("next", SEEN, container={"resources": {"limits": {GPU: "1"}}})
    assert await visible(site, "next") == ("4", "node-0"), "what an ended pod had is free again"
    await site.close()


async def test_a_pod_that_asks_for_no_gpu_sees_none_and_its_own_wish_wins(tmp_path):
    site = Site(tmp_path, 1, devices=("0", "1"))
    await site.open()
    own = {"env": [{"name": "CUDA_VISIBLE_DEVICES", "value": "-1"}]}
    await site.pod(
        "none", f"import os; assert os.environ['CUDA_VISIBLE_DEVICES'] == ''; {SEEN}", container={"resources": {}}
    )
    await site.pod("own", SEEN, container=own, metadata={"labels": {"videotrain.dev/run": "other"}})
    await site.wait("none", phase("Running"))
    assert (await visible(site, "own"))[0] == "-1"
    await site.close()


async def test_nodes_without_devices_only_count_gpus(site):
    await site.pod("p", "import os; assert os.environ['CUDA_VISIBLE_DEVICES'] == ''; raise SystemExit(0)")
    assert (await site.wait("p", phase("Succeeded", "Failed")))["status"]["phase"] == "Succeeded"


async def test_deletion_asks_with_sigterm_and_a_willing_pod_ends_in_its_own_way(site):
    pod = await site.pod("p", ENDS_ON_SIGTERM)
    pod = await site.wait("p", phase("Running"))
    await until(lambda: "up" in site.log(pod).read_text())
    endings = []
    await site.cluster.delete("Pod", "default", "p")
    await site.wait("p", lambda pod: pod is None or endings.append(pod))
    assert terminated(endings[-1])["exitCode"] == 0


async def test_deletion_kills_after_the_grace_period_what_does_not_listen(site):
    await site.pod("p", IGNORES_SIGTERM)
    pod = await site.wait("p", phase("Running"))
    await until(lambda: "up" in site.log(pod).read_text())
    pid = site.nodes.process_of("p").pid
    endings = []
    await site.cluster.delete("Pod", "default", "p", grace_seconds=1)
    await site.wait("p", lambda pod: pod is None or endings.append(pod))
    assert terminated(endings[-1])["exitCode"] == 128 + signal.SIGKILL
    assert not alive(pid)


async def test_a_finalizer_keeps_the_ended_pod_readable(site):
    await site.pod("p", metadata={"finalizers": ["videotrain.dev/bill"]})
    await site.wait("p", phase("Running"))
    await site.cluster.delete("Pod", "default", "p", grace_seconds=0)
    pod = await site.wait("p", phase("Failed"))
    assert terminated(pod)["finishedAt"] > pod["metadata"]["creationTimestamp"]
    await site.cluster.patch("Pod", "default", "p", {"metadata": {"finalizers": None}})
    await site.wait("p", lambda pod: pod is None)


def is_ready(node):
    return [c["status"] for c in node["status"]["conditions"] if c["type"] == "Ready"]


async def test_a_killed_node_fails_its_pods_and_takes_none_until_it_is_restored(site):
    await site.pod("p0")
    pod = await site.wait("p0", phase("Running"))
    pid = site.nodes.process_of("p0").pid
    before = utc_now()
    await site.nodes.kill_node("node-0")
    pod = await site.wait("p0", phase("Failed"))
    assert (pod["status"]["reason"], terminated(pod)["exitCode"]) == ("NodeLost", 137)
    assert before <= terminated(pod)["finishedAt"] <= utc_now()
    assert not alive(pid)
    assert is_ready(await site.cluster.get("Node", "", "node-0")) == ["False"]
    await site.pod("p1")
    assert (await site.wait("p1", phase("Running")))["spec"]["nodeName"] == "node-1"
    await site.pod("p2")
    await site.wait("p2", lambda pod: pod["status"].get("conditions"))
    await site.nodes.restore_node("node-0")
    assert (await site.wait("p2", phase("Running")))["spec"]["nodeName"] == "node-0"


async def test_an_unknown_node_cannot_be_killed(site):
    with pytest.raises(KeyError, match="node-0, node-1"):
        await site.nodes.kill_node("node-9")


async def test_stopping_the_nodes_kills_every_process_and_records_its_end(site):
    await site.pod("p")
    await site.wait("p", phase("Running"))
    pid = site.nodes.process_of("p").pid
    site.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await site.task
    pod = await site.cluster.get("Pod", "default", "p")
    assert (pod["status"]["phase"], pod["status"]["reason"]) == ("Failed", "NodeLost")
    assert not alive(pid)


async def test_a_missing_program_fails_the_pod_and_names_it(site):
    await site.pod("p", container={"command": ["no-such-program"]})
    assert "no-such-program" in terminated(await site.wait("p", phase("Failed")))["message"]


SITE = """
import asyncio, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from test_process_nodes import Site, phase
async def main():
    site = Site(Path(sys.argv[2]), 1)
    await site.open()
    await site.pod("p", "import time; time.sleep(1000)")
    await site.wait("p", phase("Running"))
    print(site.nodes.process_of("p").pid, flush=True)
    await asyncio.sleep(1000)
asyncio.run(main())
"""


async def test_after_a_kill_of_everything_the_pod_is_lost_at_the_time_when_it_really_ended(tmp_path):
    code = [sys.executable, "-c", SITE, str(Path(__file__).parent), str(tmp_path)]
    process = await asyncio.create_subprocess_exec(*code, stdout=asyncio.subprocess.PIPE)
    pid = int(await process.stdout.readline())
    killed_at = utc_now()
    process.kill()
    await process.wait()
    await until(lambda: not alive(pid))
    site = Site(tmp_path, 1)
    await site.open()
    recovered_at = utc_now()
    pod = await site.cluster.get("Pod", "default", "p")
    assert (pod["status"]["phase"], pod["status"]["reason"]) == ("Failed", "NodeLost")
    assert killed_at <= terminated(pod)["finishedAt"] <= recovered_at
    before = pod
    await site.close()
    await site.open()
    assert await site.cluster.get("Pod", "default", "p") == before
    await site.close()


async def test_a_pod_whose_supervisor_was_killed_has_failed_and_left_nothing(site):
    await site.pod("p")
    await site.wait("p", phase("Running"))
    process = site.nodes.process_of("p")
    os.kill(process.supervisor_pid, signal.SIGKILL)
    pod = await site.wait("p", phase("Failed"))
    assert terminated(pod)["reason"] == "SupervisorLost"
    assert not alive(process.pid)


async def test_what_an_earlier_life_left_running_is_killed_before_anything_starts(tmp_path):
    root = tmp_path / "pods" / "p-12345678"
    code = "import time; print('up', flush=True); time.sleep(1000)"
    stray = await asyncio.create_subprocess_exec(
        sys.executable, "-S", "-c", code, env={"VIDEOTRAIN_POD_ROOT": str(root)}, stdout=asyncio.subprocess.PIPE
    )
    await stray.stdout.readline()
    os.kill(stray.pid, signal.SIGSTOP)
    cluster = EmbeddedCluster(tmp_path / "cluster.db")
    nodes = ProcessNodes(cluster, tmp_path, {"node-0": ()}, {"node-0": NodeShape(allocatable={})}, "default")
    await nodes.recover()
    assert not alive(stray.pid)
    cluster.close()
