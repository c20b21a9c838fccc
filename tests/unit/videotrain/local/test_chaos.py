"""When requested faults hit, and whom; with real nodes and processes."""

import asyncio
import contextlib
import ctypes
import sys
from datetime import UTC, datetime

import psutil
import pytest

from videotrain.embedded.process_nodes import NodeShape, ProcessNodes
from videotrain.embedded.scheduler import is_ready
from videotrain.embedded.store import EmbeddedCluster
from videotrain.local.chaos import FaultInjector
from videotrain.local.chaos_spec import FiredFaults, parse_faults
from videotrain_api.records import AgentProgress, GenerationProgress
from videotrain_operator.cluster.podview import pod_view
from videotrain_operator.planner.observed import Observed

NOW = datetime(2026, 1, 1, tzinfo=UTC)
WORKER = """
import ctypes, os, time
for rank in range(2):
    if os.fork() == 0:
        ctypes.CDLL(None).prctl(15, f"vt-worker-{rank}".encode(), 0, 0, 0)
        time.sleep(1000)
time.sleep(1000)
"""


class Scene:
    """Two pods with workers, and a run whose progress a test can set."""

    def __init__(self, workdir, cluster, nodes):
        self.workdir, self.cluster, self.nodes, self.told = workdir, cluster, nodes, []
        self.number = 1

    def injector(self, *texts):
        faults = parse_faults(texts, {"train": 60, "later": 60})
        return FaultInjector(faults, FiredFaults(self.workdir / "chaos.json"), self.nodes, self.told.append)

    async def look(self, injector, step, *, number=1, stage="train", state="running", resumed=0):
        members = ["p0", "p1"] if number != 2 else ["p0"]
        progress = GenerationProgress(
            generation=number,
            stage=stage,
            state=state,
            step=step,
            resumed_step=resumed,
            launched_at=NOW,
            first_step_at=NOW,
        )
        generation = {
            "number": number, "stage": stage, "reason": "Started", "members": members, "worldSize": 2, "gpus": 2,
            "createdAt": NOW.isoformat(),
        }  # fmt: skip
        agent = AgentProgress(pod="p0", pod_uid="u", at=NOW, current=progress)
        nodes = {node["metadata"]["name"]: node for node in await self.cluster.list("Node", "")}
        pods = [pod_view(pod, nodes, ["nvidia.com/gpu"]) for pod in await self.cluster.list("Pod", "default")]
        run = {"metadata": {"name": "r"}, "status": {"generations": [generation]}}
        await injector.look(run, Observed(pods=tuple(pods), agents={"p0": agent}, signing_key=bytes(32)))

    def workers(self, pod):
        tree = psutil.Process(self.nodes.process_of(pod).supervisor_pid).children(recursive=True)
        return [p for p in tree if p.name().startswith("vt-worker-") and p.status() != psutil.STATUS_ZOMBIE]

    async def ready_nodes(self):
        return [node["metadata"]["name"] for node in await self.cluster.list("Node", "") if is_ready(node)]


async def until(condition):
    while not (found := condition()):
        await asyncio.sleep(0.01)
    return found


SHAPES = dict.fromkeys(("node-0", "node-1"), NodeShape(allocatable={}))


@pytest.fixture
async def scene(tmp_path):
    assert ctypes.CDLL(None).prctl is not None
    cluster = EmbeddedCluster(tmp_path / "cluster.db")
    nodes = ProcessNodes(cluster, tmp_path, dict.fromkeys(SHAPES, ()), SHAPES, "default")
    await nodes.recover()
    task = asyncio.create_task(nodes.run())
    for name, index in (("p0", "0"), ("p1", "1")):
        labels = {"videotrain.dev/run": "r", "videotrain.dev/index": index}
        container = {"name": "worker", "command": [sys.executable, "-S", "-c", WORKER]}
        head = {"name": name, "namespace": "default", "labels": labels}
        await cluster.apply({"apiVersion": "v1", "kind": "Pod", "metadata": head, "spec": {"containers": [container]}})
    scene = Scene(tmp_path, cluster, nodes)
    for name in ("p0", "p1"):
        await until(lambda name=name: nodes.process_of(name))
        await until(lambda name=name: len(scene.workers(name)) == 2)
    yield scene
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    cluster.close()


async def test_nothing_happens_before_the_step_in_another_stage_or_while_draining(scene):
    injector = scene.injector("kill-node@stage=train,step=5")
    await scene.look(injector, 4)
    await scene.look(injector, 9, stage="later")
    await scene.look(injector, 9, state="draining")
    assert injector.never_fired() == ["kill-node@stage=train,step=5"]
    assert await scene.ready_nodes() == ["node-0", "node-1"]


async def test_a_node_without_the_leader_dies_and_comes_back_after_steps_of_the_next_generation(scene):
    injector = scene.injector("kill-node@stage=train,step=5")
    await scene.look(injector, 6)
    assert await scene.ready_nodes() == ["node-0"]
    assert injector.never_fired() == []
    await scene.look(injector, 5, number=2, resumed=4)
    assert await scene.ready_nodes() == ["node-0"]
    await scene.look(injector, 7, number=2, resumed=4)
    assert await scene.ready_nodes() == ["node-0", "node-1"]
    assert [line.split(":")[0] for line in scene.told] == ["chaos", "chaos"]


async def test_a_node_comes_back_when_the_stage_is_over(scene):
    injector = scene.injector("kill-node@stage=train,step=5,leader=true")
    await scene.look(injector, 6)
    assert await scene.ready_nodes() == ["node-1"]
    await scene.look(injector, 0, number=3, stage="later")
    assert await scene.ready_nodes() == ["node-0", "node-1"]


async def test_one_worker_of_the_last_pod_is_killed_once_even_by_a_resumed_run(scene):
    await scene.look(scene.injector("kill-worker@stage=train,step=5"), 6)
    await until(lambda: len(scene.workers("p1")) == 1)
    await scene.look(scene.injector("kill-worker@stage=train,step=5"), 7)
    assert [len(scene.workers(name)) for name in ("p0", "p1")] == [2, 1]


async def test_a_hanging_worker_is_stopped_and_still_dies_with_its_pod(scene):
    await scene.look(scene.injector("hang@stage=train,step=5"), 6)
    stopped = await until(lambda: [p for p in scene.workers("p1") if p.status() == psutil.STATUS_STOPPED])
    assert len(stopped) == 1
    await scene.nodes.kill_node("node-1")
    assert not stopped[0].is_running()
