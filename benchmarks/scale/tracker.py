"""What happens to the pods of the runs, and when: the driver's one watch.

Times are monotonic and taken when the event arrives, so on a saturated machine they include the way to the driver.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from videotrain_api.vocabulary import LABEL_INDEX, LABEL_RUN_UID
from videotrain_operator.cluster.interface import WatchEvent
from videotrain_operator.kube.client import ApiUnavailable, KubeClient

Json = dict[str, Any]
JOB_INDEX = "batch.kubernetes.io/job-completion-index"
ENDED = ("Succeeded", "Failed")


@dataclass
class PodSeen:
    """One pod, from its first event to its last."""

    uid: str
    name: str
    index: str
    seen: float
    node: str | None = None
    address: str | None = None
    phase: str = "Pending"
    running_at: float | None = None
    gone_at: float | None = None
    leaving: bool = False
    run_uid: str = ""
    order: tuple[int, bool] = (0, False)
    """Of the newest roster that its agent was told; see Roster.order."""
    roster_at: float | None = None
    """When it was told."""

    @property
    def live(self) -> bool:
        """There, and neither ended nor about to go."""
        return self.gone_at is None and not self.leaving and self.phase not in ENDED


@dataclass
class RunSeen:
    """One run and its pods."""

    name: str
    wanted: int
    sent: float
    """When its manifest was sent."""
    pods: dict[str, PodSeen] = field(default_factory=dict)
    exist_at: float | None = None
    """When all its pods were there for the first time."""
    running_at: float | None = None
    roster_at: float | None = None
    """When every pod's agent had been told a roster."""
    twins: int = 0
    """How often a second live pod of one index was seen."""

    def live(self) -> list[PodSeen]:
        """Its live pods by index."""
        return sorted((pod for pod in self.pods.values() if pod.live), key=lambda pod: pod.index)

    def whole(self) -> bool:
        """Whether all its pods live and run."""
        live = self.live()
        return len(live) >= self.wanted and all(pod.phase == "Running" for pod in live)


Marks = ("exist_at", "running_at", "roster_at")


class Tracker:
    """Follows the pods that carry a label with the name of their run."""

    def __init__(self, label: str, on_pod: Callable[[PodSeen], None] | None = None) -> None:
        """Begin with no pods; `note` takes what a watch tells.

        Args:
            label: its value is the name of the run.
            on_pod: told of every change.
        """
        self._label, self._on_pod = label, on_pod
        self.runs: dict[str, RunSeen] = {}
        self.reached: dict[str, int] = dict.fromkeys(Marks, 0)
        """How many runs reached each mark."""
        self.pods_there = 0
        self._changed = asyncio.Event()
        self._failure: BaseException | None = None

    def expect(self, name: str, wanted: int, now: float | None = None) -> RunSeen:
        """A run is about to be created."""
        self.runs[name] = RunSeen(name, wanted, sent=time.monotonic() if now is None else now)
        return self.runs[name]

    def forget(self) -> None:
        """Begin anew; nothing of the runs so far is left in the cluster."""
        assert self.pods_there == 0, f"{self.pods_there} pods are still there"
        self.runs.clear()
        self.reached = dict.fromkeys(Marks, 0)

    def note(self, event: WatchEvent, now: float) -> None:
        """Take in one event."""
        body = event.object
        run = self.runs.get((body["metadata"].get("labels") or {}).get(self._label, ""))
        if run is None:
            return
        pod = self._pod(run, body, now)
        _update(pod, body, now)
        if event.type == "DELETED" and pod.gone_at is None:
            pod.gone_at = now
            self.pods_there -= 1
        self._mark(run, now)
        if self._on_pod is not None:
            self._on_pod(pod)
        self._changed.set()

    def told(self, uid: str, order: tuple[int, bool], at: float) -> None:
        """The agent of a pod has taken a newer roster."""
        for run in self.runs.values():
            if (pod := run.pods.get(uid)) is not None and order > pod.order:
                pod.order, pod.roster_at = order, at
                self._mark(run, at)
                self._changed.set()

    def _pod(self, run: RunSeen, body: Json, now: float) -> PodSeen:
        head = body["metadata"]
        pod = run.pods.get(head["uid"])
        if pod is None:
            labels = head.get("labels") or {}
            index = str(labels.get(LABEL_INDEX) or labels.get(JOB_INDEX) or "")
            run.twins += sum(other.live and other.index == index for other in run.pods.values())
            pod = run.pods[head["uid"]] = PodSeen(head["uid"], head["name"], index, now)
            pod.run_uid = labels.get(LABEL_RUN_UID, "")
            self.pods_there += 1
        return pod

    def _mark(self, run: RunSeen, now: float) -> None:
        if run.roster_at is not None:
            return  # the last mark
        live = [pod for pod in run.pods.values() if pod.live]
        if len(live) < run.wanted:
            return
        marks = {
            "exist_at": True,
            "running_at": all(pod.phase == "Running" for pod in live),
            "roster_at": all(pod.order[0] for pod in live),
        }
        for mark, there in marks.items():
            if there and getattr(run, mark) is None:
                setattr(run, mark, now)
                self.reached[mark] += 1

    async def follow(self, client: KubeClient) -> None:
        """Watch until cancelled. A failure ends every wait: what was missed cannot be measured."""
        try:
            first = await client.list_page("Pod", labelSelector=self._label, limit="1")
            version = str(first["metadata"]["resourceVersion"])
            while True:
                version = await self._follow_once(client, version)
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self._failure = error
            self._changed.set()
            raise

    async def _follow_once(self, client: KubeClient, version: str) -> str:
        try:
            async for event in client.watch("Pod", labels=self._label, resource_version=version):
                if isinstance(event, str):
                    version = event
                    continue
                version = str(event.object["metadata"]["resourceVersion"])
                self.note(event, time.monotonic())
        except ApiUnavailable:
            await asyncio.sleep(0.2)  # taken up again where it broke
        return version

    async def until(self, there: Callable[[], bool], timeout: float, what: str) -> float:
        """Wait until something is true; the monotonic time at which it was seen.

        Raises:
            TimeoutError: it did not come.
        """
        try:
            async with asyncio.timeout(timeout):
                while not there():
                    if self._failure is not None:
                        raise RuntimeError("the watch of the pods broke") from self._failure
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise TimeoutError(f"after {timeout:.0f} s: {what}") from None
        return time.monotonic()

    def times(self, mark: str) -> Iterator[float]:
        """Seconds from sending a run to a mark, of the runs that reached it."""
        for run in self.runs.values():
            at = getattr(run, mark)
            if at is not None:
                yield at - run.sent

    def last(self, mark: str) -> float | None:
        """When the last run reached a mark; None if one did not."""
        found = [getattr(run, mark) for run in self.runs.values()]
        return None if None in found else max(found, default=None)


def _update(pod: PodSeen, body: Json, now: float) -> None:
    head, status = body["metadata"], body.get("status", {})
    pod.node = body.get("spec", {}).get("nodeName")
    pod.address, pod.phase = status.get("podIP"), status.get("phase", "Pending")
    pod.leaving = "deletionTimestamp" in head
    if pod.phase == "Running" and pod.running_at is None:
        pod.running_at = now
