"""The worker pod: one per node, it runs the agent."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

from videotrain_api import vocabulary as names
from videotrain_api.trainrun import Toleration, VideoTrainingRun
from videotrain_operator.planner.decision import Manifest
from videotrain_operator.planner.render.merge import strategic_merge
from videotrain_operator.planner.render.names import metadata, pod_name, selector, service_name, worker_labels

COMMAND: Final = ["videotrain-trainer", "agent"]
LOST_NODE_SECONDS: Final = 45
"""How long a node may be away before its pods are evicted; longer than a kubelet restart, far below the default 300."""
GRACE_MARGIN_SECONDS: Final = 30
"""For the agent itself, beyond what the workers get."""
CONTAINER: Final = "worker"
_MOUNTS: Final = {
    "roster": "/etc/videotrain/pod",
    "config": f"/{names.DIR_CONFIG}",
    "run": f"/{names.DIR_RUN}",
    "cache": f"/{names.DIR_CACHE}",
    "tmp": "/tmp",  # noqa: S108  a mount point in the container, not a file of ours
    "shm": "/dev/shm",  # noqa: S108
}


def render_pod(run: VideoTrainingRun, index: int, config_map: str, avoid: Collection[str] = ()) -> Manifest:
    """A worker pod with `podTemplate` laid over it.

    Args:
        run: the run.
        index: index of the pod; part of its name.
        config_map: name of the frozen config map.
        avoid: names of nodes to stay away from.
    """
    pool = run.spec.pool
    head = metadata(run, pod_name(run, index), worker_labels(run, index))
    head["annotations"] = {names.ANNOTATION_PRICE: f"{pool.price_per_gpu_hour} {pool.currency}"}
    template = {"metadata": head, "spec": _spec(run, index, config_map, sorted(avoid))}
    merged = strategic_merge(template, _safe_patch(run.spec.pod_template or {}))
    return {"apiVersion": "v1", "kind": "Pod", "metadata": merged["metadata"], "spec": merged["spec"]}


def _safe_patch(patch: dict[str, Any]) -> dict[str, Any]:
    """The patch without identity: names, owners and our own labels belong to the operator."""
    head = patch.get("metadata") or {}
    labels = {k: v for k, v in (head.get("labels") or {}).items() if not k.startswith(f"{names.GROUP}/")}
    annotations = {k: v for k, v in (head.get("annotations") or {}).items() if not k.startswith(f"{names.GROUP}/")}
    return {"metadata": {"labels": labels, "annotations": annotations}, "spec": patch.get("spec") or {}}


def _spec(run: VideoTrainingRun, index: int, config_map: str, avoid: list[str]) -> dict[str, Any]:
    pool = run.spec.pool
    spec: dict[str, Any] = {
        "restartPolicy": "Never",
        "hostname": pod_name(run, index),
        "subdomain": service_name(run),
        "terminationGracePeriodSeconds": run.spec.failure_policy.grace_seconds + GRACE_MARGIN_SECONDS,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 1000,
            "runAsGroup": 1000,
            "fsGroup": 1000,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "affinity": _affinity(run, avoid),
        "tolerations": [_toleration(item) for item in pool.tolerations] + _lost_node_tolerations(),
        "containers": [_container(run)],
        "volumes": _volumes(run, config_map),
    }
    optional = {
        "nodeSelector": pool.node_selector,
        "priorityClassName": pool.priority_class_name,
        "serviceAccountName": pool.service_account_name,
        "imagePullSecrets": [{"name": name} for name in pool.image_pull_secrets],
    }
    return spec | {key: value for key, value in optional.items() if value}


def _affinity(run: VideoTrainingRun, avoid: list[str]) -> dict[str, Any]:
    """One worker of a run per node; not on nodes where something failed lately."""
    term = {"labelSelector": {"matchLabels": selector(run)}, "topologyKey": "kubernetes.io/hostname"}
    affinity: dict[str, Any] = {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}
    if avoid:
        # One requirement per node: the API server allows a single value in matchFields.
        fields = [{"key": "metadata.name", "operator": "NotIn", "values": [name]} for name in avoid]
        terms = {"nodeSelectorTerms": [{"matchFields": fields}]}
        affinity["nodeAffinity"] = {"requiredDuringSchedulingIgnoredDuringExecution": terms}
    return affinity


def _toleration(item: Toleration) -> dict[str, Any]:
    return item.to_wire()


def _lost_node_tolerations() -> list[dict[str, Any]]:
    keys = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")
    base = {"operator": "Exists", "effect": "NoExecute", "tolerationSeconds": LOST_NODE_SECONDS}
    return [{"key": key} | base for key in keys]


def _container(run: VideoTrainingRun) -> dict[str, Any]:
    return {
        "name": CONTAINER,
        "image": run.spec.image,
        "command": list(COMMAND),
        "env": _environment(run),
        "ports": [
            {"name": "agent", "containerPort": names.PORT_AGENT, "protocol": "TCP"},
        ],
        "resources": {"limits": _devices(run), "requests": _devices(run)},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            # RDMA memory registration pins pages.
            "capabilities": {"drop": ["ALL"]} | ({"add": ["IPC_LOCK"]} if run.spec.pool.rdma_resource else {}),
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            {"name": name, "mountPath": path} | ({"readOnly": True} if name in ("roster", "config") else {})
            for name, path in _MOUNTS.items()
        ],
    }


def _devices(run: VideoTrainingRun) -> dict[str, str]:
    pool = run.spec.pool
    devices = {pool.gpu_resource: str(pool.gpus_per_node)}
    return devices | ({pool.rdma_resource: "1"} if pool.rdma_resource else {})


def _environment(run: VideoTrainingRun) -> list[dict[str, Any]]:
    fields = {
        names.ENV_POD_NAME: "metadata.name",
        names.ENV_POD_UID: "metadata.uid",
        names.ENV_POD_IP: "status.podIP",
        names.ENV_NODE_NAME: "spec.nodeName",
        names.ENV_NAMESPACE: "metadata.namespace",
    }
    environment: list[dict[str, Any]] = [{"name": names.ENV_RUN, "value": run.metadata.name}]
    environment += [{"name": k, "valueFrom": {"fieldRef": {"fieldPath": path}}} for k, path in fields.items()]
    secret = run.spec.storage.credentials_secret
    for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY") if secret else ():
        environment.append({"name": key, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}})
    return environment


def _volumes(run: VideoTrainingRun, config_map: str) -> list[dict[str, Any]]:
    annotation = {"fieldPath": f"metadata.annotations['{names.ANNOTATION_ROSTER}']"}
    return [
        {"name": "roster", "downwardAPI": {"items": [{"path": "roster", "fieldRef": annotation}]}},
        {"name": "config", "configMap": {"name": config_map}},
        {"name": "run", "emptyDir": {}},
        {"name": "cache", "emptyDir": {}},
        {"name": "tmp", "emptyDir": {}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": f"{run.spec.pool.shm_gibibytes}Gi"}},
    ]
