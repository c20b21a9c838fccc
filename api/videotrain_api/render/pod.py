"""The worker pod: one per node, it runs the agent."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any, Final

from videotrain_api import vocabulary as names
from videotrain_api.crd.wire import Manifest
from videotrain_api.render.container import worker_container
from videotrain_api.render.defaults import (
    NO_DEFAULTS,
    from_registry,
    templates,
    with_defaults,
    with_pool_defaults,
)
from videotrain_api.render.kueue import PodGroup, pod_group, queue_annotations, queue_labels
from videotrain_api.render.merge import strategic_merge
from videotrain_api.render.names import key_name, metadata, pod_name, worker_labels
from videotrain_api.render.placement import affinity, tolerations
from videotrain_api.render.volumes import volumes
from videotrain_api.resource.pool import Pool
from videotrain_api.resource.run_defaults import RunDefaults
from videotrain_api.resource.stages import Stage
from videotrain_api.resource.trainrun import VideoTrainingRun, pool_name, pool_of

GRACE_MARGIN_SECONDS: Final = 30
"""For the agent itself, beyond what the workers get."""


def render_pod(
    run: VideoTrainingRun,
    index: int,
    config_map: str,
    avoid: Collection[str] = (),
    group: PodGroup | None = None,
    key: bytes | None = None,
    stage: Stage | None = None,
    defaults: RunDefaults = NO_DEFAULTS,
) -> Manifest:
    """A worker pod with `podTemplate` and the cluster's defaults laid over it.

    Args:
        run: the run.
        index: index of the pod; part of its name.
        config_map: name of the frozen config map.
        avoid: names of nodes to stay away from.
        group: with which pods Kueue admits it, if the run has a queue; those of the first attempt if unset.
        key: the signing key of the run, whose Secret the pod mounts; unset where nobody has one, as in `render`.
        stage: for whose pool it is made; the first one if unset.
        defaults: of the cluster.
    """
    stage = stage or run.spec.stages[0]
    # Whose pods they are, and what they cost, goes by the pool as the run has it: defaults tell no two pools apart.
    name = pool_name(run, stage)
    run, pool = with_defaults(run, defaults), with_pool_defaults(pool_of(run, stage), defaults)
    group = group or replace(pod_group(run), place=index)
    head = metadata(run, pod_name(run.metadata.name, index), worker_labels(run, index) | queue_labels(run, group))
    head["labels"] |= {names.LABEL_POOL: name} if name else {}
    price = {names.ANNOTATION_PRICE: f"{pool.price} {run.spec.pool.currency}"}
    head["annotations"] = price | queue_annotations(run, group)
    spec = _spec(run, pool, index, config_map, key_name(run, key))
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    for template in templates(run, defaults):
        spec = strategic_merge(spec, template.spec)
        labels |= template.metadata.labels
        annotations |= template.metadata.annotations
    spec["affinity"] = affinity(run, pool, spec.get("affinity"), sorted(avoid))
    for container in (*spec["containers"], *(spec.get("initContainers") or [])):
        if "image" in container:
            container["image"] = from_registry(container["image"], defaults.registry)
    head["labels"], head["annotations"] = _beside(head["labels"], labels), _beside(head["annotations"], annotations)
    return {"apiVersion": "v1", "kind": "Pod", "metadata": head, "spec": spec}


def _beside(own: dict[str, str], more: dict[str, str]) -> dict[str, str]:
    """Labels or annotations of templates beside our own, which nothing may change."""
    return own | {k: v for k, v in more.items() if not k.startswith(f"{names.GROUP}/") and k not in own}


def _spec(run: VideoTrainingRun, pool: Pool, index: int, config_map: str, key: str) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": run.spec.failure_policy.grace_seconds + GRACE_MARGIN_SECONDS,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 1000,
            "runAsGroup": 1000,
            "fsGroup": 1000,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "tolerations": tolerations(pool),
        "containers": [worker_container(run, pool, pod_name(run.metadata.name, index))],
        "volumes": volumes(run, pool, config_map, key),
    }
    optional = {
        "nodeSelector": pool.node_selector,
        "priorityClassName": pool.priority_class_name,
        "runtimeClassName": pool.runtime_class_name,
        "schedulerName": pool.scheduler_name,
        "serviceAccountName": pool.service_account_name,
        "imagePullSecrets": [{"name": name} for name in pool.image_pull_secrets],
    }
    return spec | {key: value for key, value in optional.items() if value}
