"""The status that a node writes for its pods."""

from __future__ import annotations

from videotrain.clock import utc_now
from videotrain.embedded.store import set_condition
from videotrain.processes.process import Ending
from videotrain_api.schema import Json

NODE_LOST = "NodeLost"


def admitted(pod: Json, address: str) -> None:
    """The node has accepted the pod and given it an address."""
    pod["status"] |= {"podIP": address, "podIPs": [{"ip": address}], "hostIP": address, "startTime": utc_now()}
    set_condition(pod, "Initialized", "True")


def waiting(pod: Json, reason: str, message: str) -> None:
    """The container cannot be made yet."""
    pod["status"]["containerStatuses"] = [_container(pod, {"waiting": {"reason": reason, "message": message}})]
    _ready(pod, "False", reason)


def running(pod: Json, started_at: str) -> None:
    """Write into the pod's status that its container runs and is ready."""
    pod["status"]["phase"] = "Running"
    pod["status"]["containerStatuses"] = [_container(pod, {"running": {"startedAt": started_at}})]
    _ready(pod, "True", "")


def terminated(pod: Json, ending: Ending, pod_reason: str | None = None) -> None:
    """The container has ended, and with it the pod."""
    state = {"exitCode": ending.exit_code, "reason": pod_reason or ending.reason}
    state |= {"startedAt": ending.started_at, "finishedAt": max(ending.finished_at, ending.started_at)}
    state |= {"message": ending.message} if ending.message else {}
    pod["status"]["phase"] = "Failed" if ending.exit_code or pod_reason else "Succeeded"
    pod["status"]["containerStatuses"] = [_container(pod, {"terminated": state})]
    if pod_reason:
        pod["status"] |= {"reason": pod_reason, "message": ending.message}
    _ready(pod, "False", "PodFailed" if pod["status"]["phase"] == "Failed" else "PodCompleted")


def bound_at(pod: Json) -> str:
    """When the pod got its node."""
    conditions = pod["status"].get("conditions", [])
    times = [item["lastTransitionTime"] for item in conditions if item["type"] == "PodScheduled"]
    return str(times[0] if times else pod["metadata"]["creationTimestamp"])


def started_at(pod: Json) -> str | None:
    """When its container was started, if it runs."""
    for status in pod["status"].get("containerStatuses", []):
        if "running" in status["state"]:
            return str(status["state"]["running"]["startedAt"])
    return None


def _container(pod: Json, state: Json) -> Json:
    container = pod["spec"]["containers"][0]
    up = "running" in state
    image = container.get("image", "")
    return {"name": container["name"], "image": image, "ready": up, "started": up, "restartCount": 0, "state": state}


def _ready(pod: Json, status: str, reason: str) -> None:
    set_condition(pod, "ContainersReady", status, reason)
    set_condition(pod, "Ready", status, reason)
