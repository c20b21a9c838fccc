"""The life of one pod on a process node beside a real API server."""

from __future__ import annotations

import asyncio
import logging
from datetime import datetime
from typing import Final

from videotrain.clock import parse_time, utc_now
from videotrain.embedded.podstatus import NODE_LOST
from videotrain.kubelet.container import Container, Named, Stop
from videotrain.kubelet.retry import retry_until_answered
from videotrain.kubelet.site import Site
from videotrain.kubelet.status import PodReport, Record, now
from videotrain.kubelet.status_writer import StatusWriter
from videotrain.kubelet.volumes import PodVolumes
from videotrain.processes.addresses import NoAddressError
from videotrain.processes.podfiles import ContainerConfigError, container_of
from videotrain.processes.process import Ending
from videotrain.tasks import end
from videotrain_api.schema import Json
from videotrain_operator.cluster.interface import Conflict, NotFound
from videotrain_operator.kube.client import ApiError

_log = logging.getLogger(__name__)

CONFIRM_SECONDS: Final = 1.0
"""How long a pod that was asked to go stays readable after its end: about what a kubelet needs to clean up."""
_OVER: Final = ("Succeeded", "Failed")


class PodHost:
    """Runs one pod. Cancelling `run()` is what a power cut or a forced deletion is: all dies, nothing is told."""

    def __init__(self, site: Site, pod: Json, host_address: str) -> None:
        self._site = site
        self._root = site.pod_root(pod)
        inits = [Record(spec) for spec in pod["spec"].get("initContainers", [])]
        self._report = PodReport(inits, Record(pod["spec"]["containers"][0]), host_address=host_address)
        self._writer = StatusWriter(site.client, pod, self._report)
        self._volumes = PodVolumes(site.client, self._root, site.claims)
        self._stop = Stop(self._deadline)
        self._inits = [self._container(record) for record in inits]
        self._main = self._container(self._report.main)

    @property
    def pod(self) -> Json:
        """The newest version of the pod, with the status that its node knows."""
        pod = self._writer.pod
        known = self._report.to_status(int(pod["metadata"].get("generation", 0)))
        return {**pod, "status": {**pod["status"], **known}}

    @property
    def node(self) -> str:
        """The node that it is bound to."""
        return str(self._writer.pod["spec"]["nodeName"])

    @property
    def address(self) -> str:
        """Of the pod; empty before it has one."""
        return self._report.address

    def container(self, name: str) -> Container | None:
        """One of its containers; None if there is none of that name."""
        found = {record.name: self._inits[n] for n, record in enumerate(self._report.inits)}
        return (found | {self._report.main.name: self._main}).get(name)

    def processes(self) -> list[int]:
        """Process ids of the commands of its containers that run."""
        running = [each.process.pid for each in (*self._inits, self._main) if each.process is not None]
        return [pid for pid in running if pid is not None]

    def describe(self) -> Json:
        """For people and tests: identity, process id of the container that runs, log."""
        pod = self._writer.pod
        running = [item for item in (*self._inits, self._main) if item.process is not None]
        return {
            "namespace": pod["metadata"]["namespace"],
            "pod": pod["metadata"]["name"],
            "node": self.node,
            "phase": self._report.phase,
            "address": self._report.address,
            "pid": running[0].process.pid if running and running[0].process else None,
            "log": str((running or [self._main])[0].log),
            "root": str(self._root),
        }

    def observe(self, pod: Json) -> None:
        """A version of the pod was seen."""
        self._writer.observe(pod)
        if "deletionTimestamp" in self._writer.pod["metadata"]:
            self._stop.asked.set()
        self._volumes.refresh_downward(self.pod)

    async def kill(self, named: Named) -> None:
        """Kill the container that runs and report its end as named.

        Raises:
            ValueError: none runs.
        """
        running = [item for item in (*self._inits, self._main) if item.process is not None]
        if not running:
            raise ValueError(f"pod {self._root.name}: no container runs")
        await running[0].kill(named)

    async def run(self) -> None:
        """Serve the pod until cancelled, which is what happens when the API server no longer has it."""
        try:
            if self._writer.pod["status"].get("phase") not in _OVER:
                await self._serve()
            await self._stop.asked.wait()
            await self._confirm_deletion()
            await asyncio.Event().wait()
        finally:
            if self._report.address:
                self._site.addresses.give_back(self._report.address)

    async def _serve(self) -> None:
        """From the first container to a recorded end."""
        writing = asyncio.create_task(self._writer.run())
        try:
            await self._live()
            await self._writer.settled()
        finally:
            await end(writing)

    def _container(self, record: Record) -> Container:
        root = self._root if record is self._report.main else self._root / ".init" / record.name
        return Container(self._site, record, root, self._volumes, self._stop, lambda: self.pod, self._writer.touch)

    def _deadline(self) -> datetime | None:
        text = self._writer.pod["metadata"].get("deletionTimestamp")
        return parse_time(text) if text else None

    async def _live(self) -> None:
        # First what an earlier life of the node reported and left behind: a container that ended then is not run again.
        self._root.mkdir(parents=True, exist_ok=True)
        self._report.adopt(self._writer.pod["status"])
        self._report.start_time = self._report.start_time or now()
        recovered = [container.recover() for container in (*self._inits, self._main)]
        self._writer.touch()
        await self._admit()
        refreshing = asyncio.create_task(self._refresh())
        try:
            policy = self._writer.pod["spec"].get("restartPolicy", "Always")
            if await self._run_inits(policy):
                await self._main.run(policy)
        finally:
            await end(refreshing)
            self._site.devices[self.node].give_back(self._writer.pod["metadata"]["uid"])
        self._finish(any(recovered))

    async def _admit(self) -> None:
        """Give it an address, and refuse what process nodes cannot run."""
        pause = 1.0
        while not self._stop.asked.is_set():
            try:
                self._report.address = self._place()
            except (ContainerConfigError, NoAddressError) as error:
                self._report.main.wait("CreateContainerConfigError", str(error))
                self._site.events.warn(self._writer.pod, "Failed", str(error))
                self._writer.touch()
                await self._stop.sleep(pause)
                pause = min(2 * pause, 60.0)
                continue
            self._writer.touch()
            return

    def _place(self) -> str:
        pod = self._writer.pod
        container_of(pod)
        sidecars = [item["name"] for item in pod["spec"].get("initContainers", []) if "restartPolicy" in item]
        if sidecars:
            raise ContainerConfigError(f"initContainers: {', '.join(sidecars)}: process nodes run no sidecars")
        return self._site.addresses.take(pod["status"].get("podIP"))

    async def _run_inits(self, policy: str) -> bool:
        """Run the init containers in order; whether the main container is next."""
        if self._report.inits:
            self._report.main.wait("PodInitializing")
        for container in self._inits:
            if self._stop.asked.is_set() or not await container.run("Never" if policy == "Never" else "OnFailure"):
                return False
        if self._report.inits and not self._report.main.ended:
            self._report.main.wait("ContainerCreating")
        return True

    def _finish(self, lost: bool) -> None:
        """No container will be started any more."""
        report = self._report
        failed = [record for record in report.inits if record.ended and record.ended["exitCode"]]
        if report.main.ended is None:
            at, why = utc_now(), "init container failed" if failed else "deleted before it was started"
            report.main.end(Ending(128, at, at, "NotStarted", why), why)
        report.over = True
        ended = (failed or [report.main])[0].ended or {}
        if ended.get("exitCode"):
            container = self._inits[report.inits.index(failed[0])] if failed else self._main
            report.message = f"container ended with exit code {ended['exitCode']}; its log is {container.log}"
        if lost and self._deadline() is None:
            report.reason, report.message = NODE_LOST, f"the node was lost while it ran; {report.message}"
        self._writer.touch()

    async def _refresh(self) -> None:
        """Follow the ConfigMaps, Secrets and tokens that running containers have mounted."""
        while True:
            await asyncio.sleep(self._site.timing.refresh)
            if all(container.process is None for container in (*self._inits, self._main)):
                continue
            try:
                await self._volumes.refresh(self.pod, await self._volumes.lookup(self.pod))
            except (ApiError, Conflict, ContainerConfigError) as error:
                _log.warning("volumes of %s are as they were, trying again: %s", self._root.name, error)

    async def _confirm_deletion(self) -> None:
        """Everything is over and recorded: the object may go."""
        await asyncio.sleep(CONFIRM_SECONDS)
        head = self._writer.pod["metadata"]

        async def delete() -> None:
            await self._site.client.delete("Pod", head["namespace"], head["name"], uid=head["uid"], grace_seconds=0)

        try:
            await retry_until_answered(self._site.client, f"deletion of pod {head['name']}", delete)
        except (Conflict, NotFound) as error:
            _log.debug("pod %s is gone already: %s", head["name"], error)
