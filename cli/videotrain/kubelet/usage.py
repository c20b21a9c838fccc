"""What the pods of the process nodes use, as `kubectl top` asks for it: the API metrics.k8s.io/v1beta1."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Final, NamedTuple

import psutil
from aiohttp import web

from videotrain.clock import utc_now
from videotrain.kubelet.pod import PodHost
from videotrain_api.schema import Json

GROUP_VERSION: Final = "metrics.k8s.io/v1beta1"
SAMPLE_SECONDS: Final = 5.0
_ROOT: Final = f"/apis/{GROUP_VERSION}"


class Usage(NamedTuple):
    """Of a pod, over the time between the last two looks at its processes."""

    cores: float
    bytes: int


class _Look(NamedTuple):
    at: float
    cpu_seconds: Mapping[int, float]
    """By process."""


class UsageSampler:
    """Looks at the process trees of pods."""

    def __init__(self, pods: Callable[[], Sequence[PodHost]]) -> None:
        self._pods = pods
        self._looks: dict[str, _Look] = {}
        self.usage: dict[str, Usage] = {}
        """By uid of the pods that were looked at twice."""

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            pids = {host.pod["metadata"]["uid"]: host.processes() for host in self._pods()}
            at = asyncio.get_running_loop().time()
            self.take(at, await asyncio.to_thread(_looked_at, pids))
            await asyncio.sleep(SAMPLE_SECONDS)

    def take(self, at: float, found: Mapping[str, Mapping[int, tuple[float, int]]]) -> None:
        """Take note of a look: seconds of CPU and bytes of memory of each process, by uid of its pod."""
        usage = {}
        for uid, processes in found.items():
            before = self._looks.get(uid)
            if before is not None and at > before.at:
                # A process that began since has used all of its time since.
                spent = sum(max(0.0, cpu - before.cpu_seconds.get(pid, 0.0)) for pid, (cpu, _) in processes.items())
                usage[uid] = Usage(spent / (at - before.at), sum(memory for _, memory in processes.values()))
        self._looks = {uid: _Look(at, {pid: cpu for pid, (cpu, _) in each.items()}) for uid, each in found.items()}
        self.usage = usage


def _looked_at(pids: Mapping[str, Sequence[int]]) -> dict[str, dict[int, tuple[float, int]]]:
    return {uid: _trees(roots) for uid, roots in pids.items()}


def _trees(roots: Iterable[int]) -> dict[int, tuple[float, int]]:
    found = {}
    for root in roots:
        with suppress(psutil.NoSuchProcess):
            top = psutil.Process(root)
            for process in [top, *top.children(recursive=True)]:
                with suppress(psutil.NoSuchProcess):
                    times = process.cpu_times()
                    found[process.pid] = times.user + times.system, process.memory_info().rss
    return found


class MetricsApi:
    """Serves what was sampled."""

    def __init__(self, sampler: UsageSampler, pods: Callable[[], Sequence[PodHost]], nodes: Sequence[str]) -> None:
        self._sampler, self._pods, self._nodes = sampler, pods, nodes

    def add_to(self, app: web.Application) -> None:
        """Add its paths to a server."""
        app.router.add_get(_ROOT, self._resources)
        app.router.add_get(f"{_ROOT}/nodes", self._list_nodes)
        app.router.add_get(f"{_ROOT}/nodes/{{name}}", self._get_node)
        app.router.add_get(f"{_ROOT}/pods", self._list_pods)
        app.router.add_get(f"{_ROOT}/namespaces/{{namespace}}/pods", self._list_pods)
        app.router.add_get(f"{_ROOT}/namespaces/{{namespace}}/pods/{{name}}", self._get_pod)

    async def _resources(self, _: web.Request) -> web.Response:
        found = [
            {"name": name, "singularName": "", "namespaced": name == "pods", "kind": kind, "verbs": ["get", "list"]}
            for name, kind in (("nodes", "NodeMetrics"), ("pods", "PodMetrics"))
        ]
        head = {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": GROUP_VERSION}
        return web.json_response(head | {"resources": found})

    async def _list_nodes(self, _: web.Request) -> web.Response:
        return _answer("NodeMetricsList", items=[self._node(name) for name in self._nodes])

    async def _get_node(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        if name not in self._nodes:
            raise web.HTTPNotFound(text=f"node {name!r} is not one of {', '.join(self._nodes)}")
        return _answer("NodeMetrics", **self._node(name))

    async def _list_pods(self, request: web.Request) -> web.Response:
        namespace, selector = request.match_info.get("namespace"), request.query.get("labelSelector", "")
        found = [each for each in self._pods() if namespace in (None, each.pod["metadata"]["namespace"])]
        found = [each for each in found if _carries(each.pod["metadata"].get("labels", {}), selector)]
        return _answer("PodMetricsList", items=[pod for each in found if (pod := self._pod(each))])

    async def _get_pod(self, request: web.Request) -> web.Response:
        wanted = request.match_info["namespace"], request.match_info["name"]
        for host in self._pods():
            head = host.pod["metadata"]
            if (head["namespace"], head["name"]) == wanted and (pod := self._pod(host)):
                return _answer("PodMetrics", **pod)
        raise web.HTTPNotFound(text=f"of pod {wanted[1]} nothing is known yet")

    def _node(self, name: str) -> Json:
        uids = [host.pod["metadata"]["uid"] for host in self._pods() if host.node == name]
        found = [self._sampler.usage[uid] for uid in uids if uid in self._sampler.usage]
        total = Usage(sum(each.cores for each in found), sum(each.bytes for each in found))
        return _metrics({"name": name}) | {"usage": _amounts(total)}

    def _pod(self, host: PodHost) -> Json | None:
        pod = host.pod
        used = self._sampler.usage.get(pod["metadata"]["uid"])
        if used is None:
            return None
        head = {name: pod["metadata"][name] for name in ("name", "namespace")}
        container = {"name": pod["spec"]["containers"][0]["name"], "usage": _amounts(used)}
        return _metrics(head | {"labels": pod["metadata"].get("labels", {})}) | {"containers": [container]}


def _answer(kind: str, **fields: object) -> web.Response:
    return web.json_response({"kind": kind, "apiVersion": GROUP_VERSION, "metadata": {}} | fields)


def _metrics(head: Json) -> Json:
    return {"metadata": head, "timestamp": utc_now("seconds"), "window": f"{SAMPLE_SECONDS:g}s"}


def _amounts(usage: Usage) -> Json:
    return {"cpu": f"{round(usage.cores * 1e9)}n", "memory": f"{usage.bytes // 1024}Ki"}


def _carries(labels: Mapping[str, str], selector: str) -> bool:
    """Whether labels fit a selector of equalities, which is what `kubectl top -l` sends for most."""
    for term in filter(None, selector.split(",")):
        key, equals, value = term.replace("==", "=").partition("=")
        if not equals or key.endswith("!"):
            raise web.HTTPBadRequest(text=f"labelSelector {term!r}: only KEY=VALUE is understood here")
        if labels.get(key) != value:
            return False
    return True
