"""The container that runs the agent, and under it the workers."""

from __future__ import annotations

from typing import Any, Final

from videotrain_api import vocabulary as names
from videotrain_api.render.volumes import mounts
from videotrain_api.resource.pool import Pool
from videotrain_api.resource.trainrun import TRAINER_IMAGE, VideoTrainingRun

COMMAND: Final = ["videotrain-trainer", "agent"]


def worker_container(run: VideoTrainingRun, pool: Pool, pod: str) -> dict[str, Any]:
    """The container of the pod of that name, fit for a namespace that enforces the restricted Pod Security Standard."""
    policy = run.spec.image_pull_policy
    return {
        "name": names.CONTAINER_WORKER,
        "image": run.spec.image or TRAINER_IMAGE,
        **({"imagePullPolicy": policy} if policy else {}),
        "command": list(COMMAND),
        "env": _environment(run, pool, pod),
        "ports": [{"name": "agent", "containerPort": names.PORT_AGENT, "protocol": "TCP"}],
        "resources": _resources(pool),
        # For people and queues only. Nothing here may kill: a late answer does not mean that the pod is dead.
        "readinessProbe": {
            "httpGet": {"path": "/healthz", "port": names.PORT_AGENT},
            "periodSeconds": 10,
            "timeoutSeconds": 5,
            "failureThreshold": 3,
        },
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": mounts(pool),
    }


def _resources(pool: Pool) -> dict[str, Any]:
    """Devices and memory are requested as they are limited; CPU is only requested."""
    limits = {pool.gpu_resource: str(pool.gpus_per_node)} if pool.gpus_per_node else {}
    if pool.rdma_resource:
        limits[pool.rdma_resource] = str(pool.rdma_count)
    if pool.memory:
        limits["memory"] = pool.memory
    return {"limits": limits, "requests": limits | ({"cpu": pool.cpu} if pool.cpu else {})}


def _environment(run: VideoTrainingRun, pool: Pool, pod: str) -> list[dict[str, Any]]:
    # What is known here is written out: every reference to a field makes each of a thousand pods 120 bytes larger.
    known = {
        names.ENV_RUN: run.metadata.name,
        names.ENV_POD_NAME: pod,
        names.ENV_NAMESPACE: run.metadata.namespace,
    }
    fields = {
        names.ENV_POD_UID: "metadata.uid",
        names.ENV_POD_IP: "status.podIP",
        names.ENV_NODE_NAME: "spec.nodeName",
    }
    environment: list[dict[str, Any]] = [{"name": name, "value": value} for name, value in known.items()]
    environment += [{"name": k, "valueFrom": {"fieldRef": {"fieldPath": path}}} for k, path in fields.items()]
    if run.spec.queue is not None:
        environment.append({"name": names.ENV_REPLACEABLE, "value": "1"})
    secret = run.spec.storage.credentials_secret
    for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY") if secret else ():
        environment.append({"name": key, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}})
    # Where the GPUs' runtime is that of all pods, one that asks for no GPU sees those of the node.
    hidden = {} if pool.gpus_per_node else {names.ENV_VISIBLE_GPUS: ""}
    return environment + [{"name": name, "value": value} for name, value in (hidden | pool.env).items()]
