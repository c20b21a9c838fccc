"""What TorchX says of a run: pure functions of objects that the API server gave."""

from __future__ import annotations

from typing import Any, Final

from torchx.schedulers.api import DescribeAppResponse
from torchx.specs import AppState, ReplicaState, ReplicaStatus, RoleStatus

from videotrain.torchx.app import worker_role
from videotrain_api.resource.status import RunStatus
from videotrain_api.resource.stored_status import read_status
from videotrain_api.resource.trainrun import VideoTrainingRun
from videotrain_api.schema import Json, ManifestError
from videotrain_api.validation import parse_run
from videotrain_api.vocabulary import CONTAINER_WORKER, LABEL_INDEX, Condition, Phase

_STATES: Final = {
    Phase.INVALID: AppState.FAILED,
    Phase.PENDING: AppState.PENDING,
    Phase.STARTING: AppState.PENDING,
    Phase.RUNNING: AppState.RUNNING,
    Phase.RESTARTING: AppState.RUNNING,
    Phase.RESIZING: AppState.RUNNING,
    Phase.SUSPENDING: AppState.RUNNING,
    Phase.SUSPENDED: AppState.PENDING,
    Phase.SUCCEEDED: AppState.SUCCEEDED,
    Phase.FAILED: AppState.FAILED,
}
_POD_STATES: Final = {
    "Pending": ReplicaState.PENDING,
    "Running": ReplicaState.RUNNING,
    "Succeeded": ReplicaState.SUCCEEDED,
    "Failed": ReplicaState.FAILED,
}


def app_state(run: Json) -> AppState:
    """State of a run.

    One that its user suspended is cancelled for TorchX, since it will not go on by itself; one that its budget or its
    storage holds back is pending.
    """
    status = run.get("status")
    if not status:
        return AppState.SUBMITTED
    phase = read_status(status).status.phase
    if phase == Phase.SUSPENDED and (run.get("spec") or {}).get("suspend"):
        return AppState.CANCELLED
    return _STATES.get(Phase(phase), AppState.UNKNOWN) if phase in set(Phase) else AppState.UNKNOWN


def described(app_id: str, run: Json, pods: list[Json]) -> DescribeAppResponse:
    """A run and its worker pods."""
    status = read_status(run.get("status")).status
    restarts = status.restarts
    return DescribeAppResponse(
        app_id=app_id,
        state=app_state(run),
        num_restarts=restarts.application + restarts.infrastructure + restarts.preemption + restarts.hang,
        msg=_message(status),
        roles_statuses=[RoleStatus(CONTAINER_WORKER, [replica_status(pod) for pod in by_index(pods)])],
        roles=_roles(run),
    )


def replica_status(pod: Json) -> ReplicaStatus:
    """A worker pod."""
    phase = (pod.get("status") or {}).get("phase")
    return ReplicaStatus(
        id=pod_index(pod),
        role=CONTAINER_WORKER,
        state=_POD_STATES.get(str(phase), ReplicaState.UNKNOWN),
        hostname=(pod.get("spec") or {}).get("nodeName") or "",
    )


def by_index(pods: list[Json]) -> list[Json]:
    """The newest pod of every index: a pod that was replaced may still be there."""
    newest: dict[int, Json] = {}
    for pod in sorted(pods, key=lambda pod: str(pod["metadata"].get("creationTimestamp") or "")):
        newest[pod_index(pod)] = pod
    return [newest[index] for index in sorted(newest)]


def pod_index(pod: Json) -> int:
    """Replica number of a worker pod; -1 if its label is gone."""
    text = str((pod["metadata"].get("labels") or {}).get(LABEL_INDEX, ""))
    return int(text) if text.isdecimal() else -1


def _message(status: RunStatus) -> str:
    """Phase, progress, and why it is so: the first condition that explains the phase."""
    told = {condition.type: condition for condition in status.conditions if condition.status == "True"}
    refused = [one for one in status.conditions if (one.type, one.status) == (Condition.ACCEPTED, "False")]
    reasons = (
        Condition.FAILED,
        Condition.SUSPENDED,
        Condition.RESTARTING,
        Condition.RESIZING,
        Condition.COMPLETE,
        Condition.RUNNING,
    )
    why = next(iter([*refused, *(told[type_] for type_ in reasons if type_ in told)]), None)
    return "; ".join(part for part in (status.phase, status.progress, why.message if why else "") if part)


def _roles(run: Json) -> list[Any]:
    try:
        parsed: VideoTrainingRun = parse_run({key: run[key] for key in run if key != "status"}, fitting=False)
    except ManifestError:
        return []  # by another version's rules; its state is known all the same
    return [worker_role(parsed)]
