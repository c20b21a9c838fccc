"""What a process node reports about its pods to a real API server: valid PodStatus, as a kubelet writes it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from videotrain.clock import utc_now
from videotrain.processes.process import Ending
from videotrain_api.schema import Json

CONDITIONS: Final = ("PodReadyToStartContainers", "Initialized", "ContainersReady", "Ready")
"""Those that a node writes; PodScheduled is the scheduler's, DisruptionTarget belongs to whoever disrupts."""


def now() -> str:
    """This moment to the second, which is all that a pod's status can hold."""
    return utc_now("seconds")


def to_second(moment: str) -> str:
    """An RFC 3339 time in UTC without its fraction."""
    return moment[:19] + "Z"


@dataclass
class Record:
    """One container as the node knows it."""

    spec: Json
    state: Json = field(default_factory=lambda: {"waiting": {"reason": "ContainerCreating"}})
    last_state: Json = field(default_factory=dict)
    restarts: int = 0
    attempts: int = 0
    started: bool = False
    """It runs and its startup probe, if any, has succeeded."""
    ready: bool = False

    @property
    def name(self) -> str:
        """Name of the container."""
        return str(self.spec["name"])

    @property
    def ended(self) -> Json | None:
        """How it ended, if it has and is not to be started again now."""
        return self.state.get("terminated")

    def wait(self, reason: str, message: str = "") -> None:
        """It cannot run yet."""
        if self.ended:
            self.last_state = self.state
        self.state = {"waiting": {"reason": reason} | ({"message": message} if message else {})}
        self.started = self.ready = False

    def run(self, started_at: str, started: bool, ready: bool) -> None:
        """Note that the container was started, for the first time or again."""
        if self.ended:
            self.last_state = self.state
        if self.attempts:
            self.restarts += 1
        self.attempts += 1
        self.state = {"running": {"startedAt": to_second(started_at)}}
        self.started, self.ready = started, ready

    def end(self, ending: Ending, message: str) -> None:
        """Note that the container ended; its state is kept until `run` starts it again."""
        start, finish = to_second(ending.started_at), to_second(ending.finished_at)
        reason = "Error" if ending.reason == "Killed" else ending.reason
        ended = {"exitCode": ending.exit_code, "reason": reason, "startedAt": start, "finishedAt": max(start, finish)}
        ended |= {"containerID": self.container_id} | ({"message": message} if message else {})
        self.state = {"terminated": ended}
        self.started = self.ready = False

    def adopt(self, status: Json) -> None:
        """Take over what an earlier life of the node reported."""
        self.state = status.get("state") or self.state
        self.last_state = status.get("lastState") or {}
        self.restarts = int(status.get("restartCount", 0))
        self.started, self.ready = bool(status.get("started")), bool(status.get("ready"))
        self.attempts = self.restarts + (0 if "waiting" in self.state and not self.last_state else 1)

    @property
    def container_id(self) -> str:
        """What tells this attempt from earlier ones of the same container."""
        return f"process://{self.name}-{self.restarts}"

    def to_status(self) -> Json:
        """The container's entry in `status.containerStatuses` of its pod."""
        image = self.spec.get("image", "")
        body = {"name": self.name, "image": image, "imageID": image and f"process://{image}", "state": self.state}
        body |= {"ready": self.ready, "started": self.started, "restartCount": self.restarts}
        body |= {"lastState": self.last_state}
        return body | ({"containerID": self.container_id} if self.attempts else {})


@dataclass
class PodReport:
    """Everything that a node says about one pod."""

    inits: list[Record]
    main: Record
    address: str = ""
    host_address: str = ""
    start_time: str = ""
    over: bool = False
    """No container will be started any more."""
    reason: str = ""
    message: str = ""
    _conditions: dict[str, Json] = field(default_factory=dict)

    @property
    def phase(self) -> str:
        """Pending, Running, Succeeded or Failed."""
        if self.over:
            endings = [record.ended for record in [*self.inits, self.main]]
            clean = all(ended is not None and ended["exitCode"] == 0 for ended in endings)
            return "Succeeded" if clean and not self.reason else "Failed"
        return "Running" if self.main.attempts else "Pending"

    def to_status(self, generation: int) -> Json:
        """The PodStatus fields that belong to the node."""
        body: Json = {"phase": self.phase, "observedGeneration": generation}
        body["conditions"] = self._current_conditions(generation)
        body["containerStatuses"] = [self.main.to_status()]
        if self.inits:
            body["initContainerStatuses"] = [
                record.to_status() | {"ready": _succeeded(record)} for record in self.inits
            ]
        if self.host_address:
            body |= {"hostIP": self.host_address, "hostIPs": [{"ip": self.host_address}]}
        if self.address:
            body |= {"podIP": self.address, "podIPs": [{"ip": self.address}]}
        optional = {"startTime": self.start_time, "reason": self.reason, "message": self.message}
        return body | {name: value for name, value in optional.items() if value}

    def _current_conditions(self, generation: int) -> list[Json]:
        initialized = all(_succeeded(record) for record in self.inits)
        ready, reason, message = self._readiness()
        waits = [record.name for record in self.inits if not _succeeded(record)]
        incomplete = f"containers with incomplete status: [{' '.join(waits)}]"
        self._set("PodReadyToStartContainers", bool(self.address) and not self.over, "", "")
        self._set("Initialized", initialized, "ContainersNotInitialized", incomplete)
        self._set("ContainersReady", ready, reason, message)
        self._set("Ready", ready, reason, message)
        return [self._conditions[name] | {"observedGeneration": generation} for name in CONDITIONS]

    def _readiness(self) -> tuple[bool, str, str]:
        if self.over:
            return False, "PodCompleted" if self.phase == "Succeeded" else "PodFailed", ""
        if self.main.ready:
            return True, "", ""
        return False, "ContainersNotReady", f"containers with unready status: [{self.main.name}]"

    def _set(self, type_: str, holds: bool, reason: str, message: str) -> None:
        status = "True" if holds else "False"
        before = self._conditions.get(type_, {})
        since = before["lastTransitionTime"] if before.get("status") == status else now()
        # Merge patches keep what is not named, so an outdated reason is taken away by naming it empty.
        why = {"reason": "" if holds else reason, "message": "" if holds else message}
        self._conditions[type_] = {"type": type_, "status": status, "lastTransitionTime": since} | why

    def adopt(self, status: Json) -> None:
        """Take over what an earlier life of the node reported."""
        self.start_time = status.get("startTime", "")
        self._conditions = {item["type"]: item for item in status.get("conditions", []) if item["type"] in CONDITIONS}
        reported = [*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])]
        by_name = {item["name"]: item for item in reported}
        for record in [*self.inits, self.main]:
            if record.name in by_name:
                record.adopt(by_name[record.name])


def _succeeded(record: Record) -> bool:
    return record.ended is not None and record.ended["exitCode"] == 0


def contains(actual: Any, wanted: Any) -> bool:
    """Whether the API server already holds what is wanted; absent and empty are the same, as in Go's types."""
    if isinstance(wanted, dict):
        held = actual if isinstance(actual, dict) else {}
        return all(contains(held.get(key), value) for key, value in wanted.items())
    if isinstance(wanted, list) and wanted and isinstance(wanted[0], dict) and "type" in wanted[0]:
        held_types = {item["type"]: item for item in actual or []}
        return all(contains(held_types.get(item["type"]), item) for item in wanted)
    if isinstance(wanted, list):
        held_list: Sequence[Any] = actual or []
        return len(held_list) == len(wanted) and all(map(contains, held_list, wanted))
    return (actual or None) == (wanted or None)
