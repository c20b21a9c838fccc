"""Keeps the status that the API server holds for a pod at what its node knows."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from videotrain.kubelet.events import COMPONENT
from videotrain.kubelet.retry import RETRY_SECONDS
from videotrain.kubelet.status import PodReport, contains
from videotrain_api.schema import Json
from videotrain_operator.cluster.interface import Conflict, NotFound
from videotrain_operator.kube.client import ApiError, KubeClient

_log = logging.getLogger(__name__)

STRATEGIC: Final = "application/strategic-merge-patch+json"
"""Merges conditions by type, so that those of the scheduler and of whoever evicts stay."""


class StatusWriter:
    """Writes one pod's status. Nothing that was reported is lost: it is written again until the server holds it."""

    def __init__(self, client: KubeClient, pod: Json, report: PodReport) -> None:
        self._client = client
        self._report = report
        self.pod = pod
        """The newest version that is known."""
        self._changed = asyncio.Event()
        self._settled = asyncio.Event()

    def observe(self, pod: Json) -> None:
        """A version of the pod was seen."""
        if _version(pod) > _version(self.pod):
            self.pod = pod
            self.touch()

    def touch(self) -> None:
        """The report or the pod has changed."""
        self._settled.clear()
        self._changed.set()

    async def settled(self) -> None:
        """Wait until the server holds the report as it is now."""
        await self._settled.wait()

    async def run(self) -> None:
        """Write the status after each change, until cancelled; a failed write is tried again, ever more slowly."""
        pause = RETRY_SECONDS[0]
        while True:
            await self._changed.wait()
            self._changed.clear()  # before the write: what changes during it is written next
            try:
                await self._write()
            except (ApiError, Conflict, NotFound) as error:
                # A pod that is gone, or whose name another one has, ends this by the watch, which cancels it.
                pod = "{namespace}/{name}".format_map(self.pod["metadata"])
                _log.warning("status of %s not written, again in %.1f s: %s", pod, pause, error)
                await asyncio.sleep(pause)
                pause = min(pause * 2, RETRY_SECONDS[1])
                self._changed.set()
                continue
            pause = RETRY_SECONDS[0]
            if not self._changed.is_set():
                self._settled.set()

    async def _write(self) -> None:
        head = self.pod["metadata"]
        status = self._report.to_status(int(head.get("generation", 0)))
        if contains(self.pod["status"], status):
            return
        # Lists of addresses replace those of an earlier life; a strategic merge would join them.
        addresses = {key: [{"$patch": "replace"}, *status[key]] for key in ("podIPs", "hostIPs") if key in status}
        # Only the node writes these fields and only one writer exists per pod, so the uid is all that must hold.
        patch = {"metadata": {"uid": head["uid"]}, "status": status | addresses}
        written = await self._client.patch(
            "Pod", head["namespace"], head["name"], patch,
            content=STRATEGIC, subresource="status", manager=COMPONENT,
        )  # fmt: skip
        if _version(written) > _version(self.pod):
            self.pod = written


def _version(pod: Json) -> int:
    return int(pod["metadata"]["resourceVersion"])
