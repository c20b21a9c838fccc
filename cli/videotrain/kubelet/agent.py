"""Process nodes of a real API server: pods that its scheduler binds to them run as child processes of this one.

To the control plane they are nodes like any other: they register, renew Leases, report conditions and pod status, and
they are declared lost by the real controllers when they fall silent. There is no container runtime: a container's
command comes from this Python environment, its volumes are directories, and all pods share the machine's network.

    python -m videotrain.kubelet.agent --kubeconfig FILE --workdir DIR --nodes a,b --gpus-per-node 1 --env K=V
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import shutil
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from videotrain.kubelet.address_pool import address_pool
from videotrain.kubelet.container import Named
from videotrain.kubelet.events import Events
from videotrain.kubelet.node_object import Registration, keep_alive
from videotrain.kubelet.orders import obey
from videotrain.kubelet.pod import PodHost
from videotrain.kubelet.retry import retry_until_answered
from videotrain.kubelet.server import Credentials, serving
from videotrain.kubelet.site import Site, Timing
from videotrain.kubelet.usage import MetricsApi, UsageSampler
from videotrain.locks import DirectoryError, held
from videotrain.processes.devices import Found, Need, NodeDevices, share_devices
from videotrain.processes.leftovers import end_leftovers
from videotrain.tasks import end, end_all
from videotrain_api.schema import Json
from videotrain_operator.kube.client import connect
from videotrain_operator.kube.informer import Watch

_log = logging.getLogger(__name__)


class Front(NamedTuple):
    """How the API server asks the nodes about their pods."""

    credentials: Credentials
    publish: Callable[[str, int], Awaitable[None]]
    """Told an address and a port where the nodes' metrics are served."""


class KubeNodes:
    """All nodes of this process. No child outlives it."""

    def __init__(self, site: Site, gpus_per_node: int, front: Front | None = None) -> None:
        self._site, self._front = site, front
        self._nodes = {
            name: Registration(site.client, name, site.addresses.take(), gpus_per_node, site.workdir)
            for name in site.devices
        }
        self._pods: dict[str, Json] = {}
        self._hosts: dict[str, tuple[PodHost, asyncio.Task[None]]] = {}
        self._dying: dict[str, asyncio.Task[None]] = {}
        self._group: asyncio.TaskGroup | None = None

    async def run(self) -> None:
        """Register the nodes and serve their pods until cancelled."""
        if self._front is None:
            await self._serve()
            return
        addresses = [node.address for node in self._nodes.values()]
        sampler = UsageSampler(self._served)
        metrics = MetricsApi(sampler, self._served, list(self._nodes))
        async with serving(self._front.credentials, addresses, self._find, metrics) as ports:
            for node in self._nodes.values():
                node.port = ports[node.address]
            await self._front.publish(addresses[0], ports[addresses[0]])
            await self._serve(sampler.run())

    def _served(self) -> list[PodHost]:
        return [host for host, _ in self._hosts.values()]

    def _find(self, namespace: str, name: str) -> PodHost | None:
        heads = ((host, host.pod["metadata"]) for host in self._served())
        return next((host for host, head in heads if (head["namespace"], head["name"]) == (namespace, name)), None)

    async def _serve(self, *beside: Coroutine[Any, Any, None]) -> None:
        # What an earlier life left behind goes first: its processes hold the ports and GPUs of pods that are about to
        # be started once more.
        await asyncio.to_thread(end_leftovers, self._site.pods)
        # Nodes before pods: a pod that is bound to a node is served only while that node is registered.
        for node in self._nodes.values():
            await retry_until_answered(self._site.client, f"registering node {node.name}", node.power_on)
        orders = {
            "kill-node": self._order_kill_node,
            "restore-node": self._order_restore_node,
            "kill-pod": self._order_kill_pod,
            "status": self._order_status,
        }
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                group.create_task(self._site.events.write())
                for work in beside:
                    group.create_task(work)
                group.create_task(keep_alive(list(self._nodes.values()), self._site.timing.lease))
                group.create_task(Watch(self._site.client, "Node", _NodeFollower(self), starting=True).run())
                group.create_task(Watch(self._site.client, "Pod", _PodFollower(self), starting=True).run())
                group.create_task(obey(self._site.workdir, orders))
        finally:
            self._group = None

    async def kill_node(self, name: str) -> None:
        """Cut a node's power: its processes die at once, its Lease is renewed no more, nothing is reported.

        Raises:
            KeyError: there is no such node.
        """
        node = self._known(name)
        node.power_off()
        await self._cut(name)

    async def restore_node(self, name: str) -> None:
        """Switch a node on again. Its pods have lost their processes; a deleted Node object is registered anew.

        Raises:
            KeyError: there is no such node.
        """
        node = self._known(name)
        if name in self._dying:
            await self._dying[name]
        await retry_until_answered(self._site.client, f"registering node {name}", node.power_on)
        for uid in list(self._pods):
            self._attend(uid)

    async def kill_pod(self, namespace: str, name: str, exit_code: int, reason: str) -> None:
        """Kill a pod's processes and report that its container ended so, such as 137 and OOMKilled.

        Raises:
            KeyError: no such pod is served here.
            ValueError: none of its containers runs.
        """
        host = self._find(namespace, name)
        if host is None:
            raise KeyError(f"pod {namespace}/{name}: not on a node of this process that is switched on")
        await host.kill(Named(exit_code, reason))

    def pods_replaced(self, items: list[Json]) -> None:
        """All pods of the cluster were listed."""
        mine = {pod["metadata"]["uid"]: pod for pod in items if self._is_mine(pod)}
        if not self._hosts:
            # The first list: directories of pods that went while nobody was here.
            kept = {self._site.pod_root(pod) for pod in mine.values()}
            for folder in [folder for folder in self._site.pods.iterdir() if folder not in kept]:
                shutil.rmtree(folder, ignore_errors=True)
        # Forget before attending: a pod of the same name may have taken the place of one that is gone.
        for uid in self._pods.keys() - mine.keys():
            self._forget(uid)
        self._pods = mine
        for uid in mine:
            self._attend(uid)

    def pod_changed(self, pod: Json, deleted: bool) -> None:
        """A pod was made, changed or removed."""
        uid = pod["metadata"]["uid"]
        if not self._is_mine(pod):
            return
        if deleted:
            self._forget(uid)
        else:
            self._pods[uid] = pod
            self._attend(uid)

    def node_changed(self, body: Json) -> None:
        """A Node object was made or changed."""
        node = self._nodes.get(body["metadata"]["name"])
        if node is not None:
            node.observe(body)

    def node_removed(self, name: str, uid: str) -> None:
        """A Node object is gone: to the cluster that machine no longer exists, so its pods end too."""
        node = self._nodes.get(name)
        if node is not None and node.removed(uid):
            _log.warning("node %s was deleted: its processes are killed, and it stays away until restored", name)
            self._cut(name)

    def nodes_replaced(self, items: list[Json], version: int) -> None:
        """All nodes of the cluster were listed."""
        for body in items:
            self.node_changed(body)
        present = {body["metadata"]["uid"] for body in items}
        for node in self._nodes.values():
            if node.uid and node.uid not in present and version > node.version:
                self.node_removed(node.name, node.uid)

    def _known(self, name: str) -> Registration:
        if name not in self._nodes:
            raise KeyError(f"node {name!r}: the nodes are {', '.join(self._nodes)}")
        return self._nodes[name]

    def _is_mine(self, pod: Json) -> bool:
        return pod["spec"].get("nodeName") in self._nodes

    def _attend(self, uid: str) -> None:
        """Host a pod, or tell its host what has changed."""
        pod = self._pods[uid]
        node = self._nodes[pod["spec"]["nodeName"]]
        if uid in self._hosts:
            self._hosts[uid][0].observe(pod)
        elif node.serves:
            host = PodHost(self._site, pod, node.address)
            self._hosts[uid] = host, self._spawn(host.run())
            host.observe(pod)

    def _forget(self, uid: str) -> None:
        """A pod is gone from the cluster: end what is left of it."""
        pod = self._pods.pop(uid, None)
        held = self._hosts.pop(uid, None)
        if pod is not None:
            self._spawn(self._clear(pod, held[1] if held else None))

    async def _clear(self, pod: Json, task: asyncio.Task[None] | None) -> None:
        if task is not None:
            await end(task)
        await asyncio.to_thread(shutil.rmtree, self._site.pod_root(pod), ignore_errors=True)

    def _cut(self, name: str) -> asyncio.Task[None]:
        """Forget everything of a node; the task has ended when its processes have."""
        cut = [uid for uid, (host, _) in self._hosts.items() if host.node == name]
        self._dying[name] = self._spawn(end_all([self._hosts.pop(uid)[1] for uid in cut]))
        return self._dying[name]

    def _spawn(self, work: Any) -> asyncio.Task[None]:
        assert self._group is not None, "pods are served by run()"
        return self._group.create_task(work)

    async def _order_kill_node(self, order: Json) -> Json:
        await self.kill_node(order["node"])
        return {}

    async def _order_restore_node(self, order: Json) -> Json:
        await self.restore_node(order["node"])
        return {}

    async def _order_kill_pod(self, order: Json) -> Json:
        named = int(order.get("exitCode", 137)), str(order.get("reason", "Error"))
        await self.kill_pod(order["namespace"], order["pod"], *named)
        return {}

    async def _order_status(self, _order: Json) -> Json:
        hosts = [host for host, _ in self._hosts.values()]
        return {
            "nodes": {name: {"serves": node.serves, "address": node.address} for name, node in self._nodes.items()},
            "pods": [host.describe() for host in hosts],
        }


class _PodFollower:
    def __init__(self, nodes: KubeNodes) -> None:
        self._nodes = nodes

    def replaced(self, items: list[Json], _version: int) -> None:
        self._nodes.pods_replaced(items)

    def changed(self, body: Json, deleted: bool) -> None:
        self._nodes.pod_changed(body, deleted)


class _NodeFollower:
    def __init__(self, nodes: KubeNodes) -> None:
        self._nodes = nodes

    def replaced(self, items: list[Json], version: int) -> None:
        self._nodes.nodes_replaced(items, version)

    def changed(self, body: Json, deleted: bool) -> None:
        if deleted:
            self._nodes.node_removed(body["metadata"]["name"], body["metadata"]["uid"])
        else:
            self._nodes.node_changed(body)


async def serve(
    kubeconfig: Path,
    workdir: Path,
    nodes: Mapping[str, Sequence[str]],
    gpus_per_node: int,
    environment: Mapping[str, str],
    timing: Timing | None = None,
    front: Front | None = None,
) -> None:
    """Serve pods on process nodes until cancelled; then every process is killed.

    Args:
        kubeconfig: names the API server.
        workdir: for logs, volumes and orders; belongs to one such process at a time.
        nodes: names of the nodes, each with the GPUs that its pods share; none for pods on the CPU.
        gpus_per_node: how many `nvidia.com/gpu` each offers.
        environment: given to every container; the pod's own entries win.
        timing: a kubelet's if None.
        front: where logs, commands, ports and metrics of pods are asked for; nowhere if None.

    Raises:
        DirectoryError: another process uses the directory.
        ApiError: the API server refuses what a node has to do.
    """
    with held(workdir, "--workdir", "a node agent works", "end it or use another directory") as place:
        async with connect(str(kubeconfig)) as client, address_pool() as addresses:
            for folder in ("pods", "logs", "claims"):
                (place / folder).mkdir(exist_ok=True)
            site = Site(
                client=client,
                events=Events(client),
                workdir=place,
                environment=dict(environment),
                addresses=addresses,
                devices={name: NodeDevices(devices) for name, devices in nodes.items()},
                timing=timing or Timing(),
            )
            await KubeNodes(site, gpus_per_node, front).run()


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; ends with 0 after SIGTERM or SIGINT."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    timing = Timing(lease=options.lease_seconds, back_off=options.back_off_seconds, refresh=options.refresh_seconds)
    need = Need(nodes=len(options.nodes), per_node=options.gpus_per_node, fields="--nodes or --gpus-per-node")
    found = Found(names=tuple(options.devices), detail="--devices")
    shares = share_devices("cuda" if found.names else "cpu", need, found)
    nodes = dict(zip(options.nodes, shares.nodes, strict=True))
    work = serve(options.kubeconfig, options.workdir, nodes, options.gpus_per_node, dict(options.env), timing)
    try:
        asyncio.run(_until_signalled(work))
    except DirectoryError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


async def _until_signalled(work: Any) -> None:
    task = asyncio.create_task(work)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    try:
        await task
    except asyncio.CancelledError:
        _log.info("stopped: all processes of the nodes have ended")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m videotrain.kubelet.agent", description=__doc__)
    parser.add_argument("--kubeconfig", type=Path, required=True, help="names the API server")
    parser.add_argument("--workdir", type=Path, required=True, help="for logs, volumes and orders")
    parser.add_argument("--nodes", type=lambda text: text.split(","), required=True, help="names, separated by commas")
    parser.add_argument("--gpus-per-node", type=int, required=True, help="nvidia.com/gpu that each offers")
    shared = "GPUs for the nodes in turn, as CUDA_VISIBLE_DEVICES names them, separated by commas (none: the CPU)"
    parser.add_argument("--devices", type=lambda text: text.split(","), default=[], metavar="A,B", help=shared)
    parser.add_argument("--env", type=_pair, action="append", default=[], help="K=V, given to every container")
    parser.add_argument("--lease-seconds", type=float, default=Timing.lease, help="between renewals of a node's Lease")
    parser.add_argument(
        "--refresh-seconds", type=float, default=Timing.refresh, help="between looks at mounted ConfigMaps and Secrets"
    )
    parser.add_argument("--back-off-seconds", type=float, default=Timing.back_off, help="first pause before a restart")
    return parser


def _pair(text: str) -> tuple[str, str]:
    name, found, value = text.partition("=")
    if not found or not name:
        raise argparse.ArgumentTypeError(f"{text!r}: NAME=VALUE is needed")
    return name, value


if __name__ == "__main__":
    sys.exit(main())
