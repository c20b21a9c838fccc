"""From Kubernetes JSON to what the planner needs to know about a pod and its node."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from datetime import UTC, datetime
from typing import Final

from videotrain_api.render.names import POD_SEPARATOR, roster_name
from videotrain_api.schema import Json
from videotrain_api.vocabulary import (
    ANNOTATION_PRICE,
    FILES_VOLUME,
    LABEL_GROUP_PLACE,
    LABEL_POD_GROUP,
    LABEL_POOL,
    LABEL_QUEUE_MANAGED,
    LABEL_RUN,
)
from videotrain_operator.accounting.money import parse_price
from videotrain_operator.planner.observed import PodView

LOST_TAINTS: Final = frozenset({"node.kubernetes.io/out-of-service", "node.cloudprovider.kubernetes.io/shutdown"})
LEAVING_TAINTS: Final = frozenset(
    {
        "aws-node-termination-handler/spot-itn",
        "aws-node-termination-handler/scheduled-maintenance",
        "cloud.google.com/impending-node-termination",
        "karpenter.sh/disrupted",
        "karpenter.sh/disruption",
        "kubernetes.azure.com/scalesetpriority-eviction",
        "ToBeDeletedByClusterAutoscaler",
    }
)
"""Taints by which autoscalers and spot handlers announce that a node will go."""
NOTICES: Final = ("TerminationTarget", "DisruptionTarget")
"""Pod conditions by which a queue or Kubernetes says why it ends a pod."""
STUCK: Final = frozenset(
    {
        "ErrImagePull",
        "ImagePullBackOff",
        "ErrImageNeverPull",
        "InvalidImageName",
        "ImageInspectError",
        "RegistryUnavailable",
        "CreateContainerConfigError",
        "CreateContainerError",
        "RunContainerError",
    }
)
"""Reasons for which a container waits and that do not pass by themselves."""
MEANINGLESS_REASONS: Final = frozenset({"Error", "Completed"})
"""Container reasons that only repeat whether the exit code is 0."""
LONGEST_NUMBER: Final = 9
"""Digits of an index, a place or a count of GPUs; what has more is none."""


def parse_time(text: str | None) -> datetime | None:
    """An RFC 3339 time with or without a fraction, as an aware datetime in UTC."""
    return datetime.fromisoformat(text).astimezone(UTC) if text else None


def gpu_resources(run: Json) -> frozenset[str]:
    """Extended resource names of the GPUs in all pools of a run, whose spec may hold anything."""
    spec = run.get("spec")
    spec = spec if isinstance(spec, Mapping) else {}
    stages = spec.get("stages")
    owners = [spec, *(stages if isinstance(stages, list) else ())]
    pools = [owner.get("pool") for owner in owners if isinstance(owner, Mapping)]
    return frozenset(str(pool.get("gpuResource", "nvidia.com/gpu")) for pool in pools if isinstance(pool, Mapping))


def pod_view(pod: Json, nodes: Mapping[str, Json], resources: Collection[str]) -> PodView:
    """A pod as the planner sees it.

    Args:
        pod: a Pod object.
        nodes: all Node objects by name.
        resources: extended resource names of GPUs, see `gpu_resources`.
    """
    head, spec, status = pod["metadata"], pod.get("spec", {}), pod.get("status", {})
    annotations = head.get("annotations") or {}
    conditions = {c["type"]: c for c in status.get("conditions") or []}
    container = _worker(status)
    state = container.get("state") or {}
    ended = state.get("terminated") or {}
    node_name = spec.get("nodeName")
    node = nodes.get(node_name) if node_name else None
    created = parse_time(head.get("creationTimestamp"))
    assert created is not None, f"pod {head['name']} has no creationTimestamp"
    return PodView(
        name=head["name"],
        uid=head["uid"],
        resource_version=head.get("resourceVersion", ""),
        index=_index(head["name"]),
        phase=status.get("phase", "Pending"),
        created_at=created,
        node=node_name,
        node_labels=((node or {}).get("metadata") or {}).get("labels") or {},
        address=status.get("podIP"),
        running="running" in state,
        deleting="deletionTimestamp" in head,
        bound_at=_bound(node_name, status, conditions),
        started_at=parse_time((state.get("running") or ended).get("startedAt")),
        finished_at=_finished(status, ended, conditions),
        exit_code=ended.get("exitCode"),
        reason=_reason(status, ended, conditions),
        message=_message(status, ended, conditions)[:500],
        unschedulable=_unschedulable(conditions) if node_name is None else "",
        image_problem=_image_problem(status),
        in_queue=LABEL_QUEUE_MANAGED in {*(head.get("labels") or {}), *(head.get("finalizers") or ())},
        gated=bool(spec.get("schedulingGates")),
        pool=(head.get("labels") or {}).get(LABEL_POOL),
        group=(head.get("labels") or {}).get(LABEL_POD_GROUP),
        place=_place((head.get("labels") or {}).get(LABEL_GROUP_PLACE)),
        finalizing=_is_finalizing(head, status, node_name),
        gpus=_gpus(spec, resources),
        price=_price(annotations.get(ANNOTATION_PRICE)),
        node_lost=node_name is not None and (node is None or node_is_lost(node)),
        node_reason=_node_reason(node) if node_name is not None else "",
        node_draining=node is not None and node_is_leaving(node),
        node_cordoned=node is not None and node_is_cordoned(node),
        config_map=_config_map(spec, (head.get("labels") or {}).get(LABEL_RUN)),
        key_secret=_key_secret(spec),
    )


def _key_secret(spec: Json) -> str | None:
    return next(_mounted(spec, "secret"), None)


def _config_map(spec: Json, run: str | None) -> str | None:
    """Beside the roster's."""
    return next((name for name in _mounted(spec, "configMap") if run is not None and name != roster_name(run)), None)


def _mounted(spec: Json, kind: str) -> Iterator[str]:
    """Names of the objects of a kind in the files that the operator gives to a pod."""
    for volume in spec.get("volumes") or []:
        if volume["name"] == FILES_VOLUME:
            for source in (volume.get("projected") or {}).get("sources") or []:
                if (source.get(kind) or {}).get("name"):
                    yield source[kind]["name"]


def node_is_lost(node: Json) -> bool:
    """Not ready, or marked as out of service."""
    if _taints(node) & LOST_TAINTS:
        return True
    ready = [c for c in node.get("status", {}).get("conditions") or [] if c["type"] == "Ready"]
    return bool(ready) and ready[0]["status"] != "True"


def node_is_leaving(node: Json) -> bool:
    """Announced to go."""
    return bool(_taints(node) & LEAVING_TAINTS)


def node_is_cordoned(node: Json) -> bool:
    """Nothing new is to be placed there."""
    return bool(node.get("spec", {}).get("unschedulable"))


def _taints(node: Json) -> set[str]:
    return {taint["key"] for taint in node.get("spec", {}).get("taints") or []}


def _worker(status: Json) -> Json:
    containers: list[Json] = status.get("containerStatuses") or []
    named = [c for c in containers if c.get("name") == "worker"]
    return next(iter(named or containers), {})


def _bound(node: str | None, status: Json, conditions: Mapping[str, Json]) -> datetime | None:
    if node is None:
        return None
    scheduled = conditions.get("PodScheduled", {})
    at = scheduled.get("lastTransitionTime") if scheduled.get("status") == "True" else None
    return parse_time(at or status.get("startTime"))


def _finished(status: Json, ended: Json, conditions: Mapping[str, Json]) -> datetime | None:
    """When the container ended; for a pod that never ran one, when its conditions last changed."""
    if ended.get("finishedAt"):
        return parse_time(ended["finishedAt"])
    if status.get("phase") not in ("Succeeded", "Failed"):
        return None
    times = [parse_time(c.get("lastTransitionTime")) for c in conditions.values()]
    return max((at for at in times if at is not None), default=parse_time(status.get("startTime")))


def _reason(status: Json, ended: Json, conditions: Mapping[str, Json]) -> str | None:
    scheduled = conditions.get("PodScheduled", {})
    notice = _notice(conditions)
    candidates = (
        "StoppedByQueue" if notice.get("type") == "TerminationTarget" else notice.get("reason"),
        ended.get("reason"),
        status.get("reason"),
        scheduled.get("reason") if scheduled.get("status") == "False" else None,
    )
    return next((reason for reason in candidates if reason and reason not in MEANINGLESS_REASONS), None)


def _notice(conditions: Mapping[str, Json]) -> Json:
    """Who ends the pod and why, as announced in a condition."""
    told = (conditions.get(kind, {}) for kind in NOTICES)
    return next((condition for condition in told if condition.get("status") == "True"), {})


def _message(status: Json, ended: Json, conditions: Mapping[str, Json]) -> str:
    """The words of whoever knows best. Of the end of a log, the last line: an error is named there."""
    text = str(ended.get("message") or status.get("message") or _notice(conditions).get("message") or "")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return f"the log ends with: {lines[-1]}" if len(lines) > 1 else "".join(lines)


def _unschedulable(conditions: Mapping[str, Json]) -> str:
    """The scheduler's words without what it considered to preempt, which repeats them."""
    scheduled = conditions.get("PodScheduled", {})
    if scheduled.get("status") != "False" or scheduled.get("reason") != "Unschedulable":
        return ""
    return str(scheduled.get("message") or "no node fits").partition(" preemption:")[0].strip()


def _image_problem(status: Json) -> str:
    """Pulling and backing off alternate; both are told as the same."""
    containers = [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]
    for waiting in ((item.get("state") or {}).get("waiting") or {} for item in containers):
        reason = waiting.get("reason")
        if reason in STUCK:
            name = "ImagePullBackOff" if reason == "ErrImagePull" else reason
            return f"{name}: {waiting.get('message') or 'no message'}"[:500]
    return ""


def _index(name: str) -> int:
    """From the pod's name, which nobody can change as they can a label; -1 for a name that no run gives."""
    number = name.rpartition(POD_SEPARATOR)[2]
    return int(number) if _is_number(number) else -1


def _place(text: str | None) -> int | None:
    return int(text) if text is not None and _is_number(text) else None


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= LONGEST_NUMBER


def _price(text: str | None) -> str | None:
    """The annotation; one that is no price counts as none, and the pod costs what the pool says."""
    try:
        return text if text is None or parse_price(text) else None
    except ValueError:
        return None


def unreadable(pod: Json) -> Iterator[str]:
    """What is written on a pod and cannot be read, such as `pod demo-w0: annotation videotrain.dev/price`."""
    head = pod["metadata"]
    labels, annotations = head.get("labels") or {}, head.get("annotations") or {}
    price = annotations.get(ANNOTATION_PRICE)
    if price is not None and _price(price) is None:
        yield f"pod {head['name']}: annotation {ANNOTATION_PRICE}"
    if LABEL_GROUP_PLACE in labels and _place(labels[LABEL_GROUP_PLACE]) is None:
        yield f"pod {head['name']}: label {LABEL_GROUP_PLACE}"


def _is_finalizing(head: Json, status: Json, node: str | None) -> bool:
    over = node is None or status.get("phase") in ("Succeeded", "Failed")
    return over and "deletionTimestamp" in head and bool(head.get("finalizers"))


def _node_reason(node: Json | None) -> str:
    """What is known about a node that is lost or leaves; no numbers that change from look to look."""
    if node is None:
        return "the node was deleted"
    marks = _taints(node) & (LOST_TAINTS | LEAVING_TAINTS)
    if marks:
        return f"the node has the taint {', '.join(sorted(marks))}"
    ready = [c for c in node.get("status", {}).get("conditions") or [] if c["type"] == "Ready"]
    if ready and ready[0]["status"] != "True":
        since = ready[0].get("lastTransitionTime")
        why = ready[0].get("reason") or ready[0].get("message") or "no reason given"
        return f"the node is not ready{f' since {since}' if since else ''}: {why}"
    return "the node is cordoned" if node_is_cordoned(node) else ""


def _gpus(spec: Json, resources: Collection[str]) -> int:
    limits = [(c.get("resources") or {}).get("limits") or {} for c in spec.get("containers") or []]
    counts = [str(limit.get(resource, 0)) for limit in limits for resource in resources]
    return sum(int(count) for count in counts if _is_number(count))
