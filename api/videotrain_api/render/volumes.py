"""Volumes of a worker pod and where they are mounted."""

from __future__ import annotations

from typing import Any, Final

from videotrain_api import vocabulary as names
from videotrain_api.render.names import roster_name, run_labels
from videotrain_api.resource.pool import Pool
from videotrain_api.resource.trainrun import VideoTrainingRun

_MOUNTS: Final = {
    names.FILES_VOLUME: f"/{names.DIR_FILES}",
    "run": f"/{names.DIR_RUN}",
    "cache": f"/{names.DIR_CACHE}",
    "tmp": "/tmp",  # noqa: S108  a mount point in the container, not a file of ours
    "shm": "/dev/shm",  # noqa: S108
}


_OWNER_READS: Final = 0o400
"""Where the pod has an fsGroup, the kubelet lets that group read too."""


def volumes(run: VideoTrainingRun, pool: Pool, config_map: str, key: str) -> list[dict[str, Any]]:
    """The volumes.

    Args:
        run: the run.
        pool: of the stage that the pod is made for.
        config_map: name of the ConfigMap with the frozen configuration.
        key: name of the Secret with the signing key.
    """
    return [
        {"name": names.FILES_VOLUME, "projected": {"sources": _sources(run, config_map, key)}},
        {"name": "run", "emptyDir": {}},
        {"name": "cache", **_cache(run, pool)},
        {"name": "tmp", "emptyDir": {}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": f"{pool.shm_gibibytes}Gi"}},
    ]


def mounts(pool: Pool) -> list[dict[str, Any]]:
    """Where the volumes are mounted; what the operator writes is read-only."""
    found: list[dict[str, Any]] = []
    for name, path in _MOUNTS.items():
        mount: dict[str, Any] = {"name": name, "mountPath": path}
        if name == names.FILES_VOLUME:
            mount["readOnly"] = True
        if name == "cache" and pool.cache.claim_name:
            # Pod names are stable and no two runs of a namespace share one, so workers never write to one file.
            mount["subPathExpr"] = f"$({names.ENV_POD_NAME})"
        found.append(mount)
    return found


def _sources(run: VideoTrainingRun, config_map: str, key: str) -> list[dict[str, Any]]:
    """One volume of three objects: each volume of its own makes the stored pod 300 bytes larger."""
    roster = [{"key": names.ROSTER_KEY, "path": _below(names.DIR_ROSTER, names.ROSTER_KEY)}]
    signing = [{"key": names.SIGNING_KEY, "path": _below(names.DIR_KEY, names.SIGNING_KEY), "mode": _OWNER_READS}]
    return [
        {"configMap": {"name": roster_name(run.metadata.name), "items": roster}},
        {"configMap": {"name": config_map}},
        {"secret": {"name": key, "items": signing}},
    ]


def _below(directory: str, file: str) -> str:
    return f"{directory.removeprefix(names.DIR_FILES + '/')}/{file}"


def _cache(run: VideoTrainingRun, pool: Pool) -> dict[str, Any]:
    cache = pool.cache
    size = {"sizeLimit": f"{cache.size_gibibytes}Gi"} if cache.size_gibibytes else {}
    if cache.claim_name:
        return {"persistentVolumeClaim": {"claimName": cache.claim_name}}
    if not cache.storage_class_name:
        return {"emptyDir": size}
    claim = {
        "accessModes": ["ReadWriteOnce"],
        "storageClassName": cache.storage_class_name,
        "resources": {"requests": {"storage": f"{cache.size_gibibytes}Gi"}},
    }
    template = {"metadata": {"labels": run_labels(run)}, "spec": claim}
    return {"ephemeral": {"volumeClaimTemplate": template}}
