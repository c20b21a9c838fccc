"""Pool and pod template: what the worker pods may be told."""

from __future__ import annotations

from collections.abc import Iterator

from videotrain_api.resource.pool import ENV_ADVICE, CacheVolume, Pool, reserved_env
from videotrain_api.rules.facts import Facts
from videotrain_api.rules.template import check_template
from videotrain_api.schema import Problem

_GIBIBYTES = {"Mi": 1 / 1024, "Gi": 1.0, "Ti": 1024.0}


def check_pods(facts: Facts) -> Iterator[Problem]:
    """Reserved names, volumes that contradict themselves, memory below what /dev/shm may take."""
    spec = facts.run.spec
    yield from _pool(spec.pool)
    yield from _cache("spec.pool.cache", spec.pool.cache)
    if spec.pod_template is not None:
        yield from check_template("spec.podTemplate", spec.pod_template)


def _pool(pool: Pool) -> Iterator[Problem]:
    for name, value in pool.env.items():
        if reserved_env(name):
            yield Problem(f"spec.pool.env.{name}", value, f"reserved; {ENV_ADVICE}")
    if len(set(pool.topology_keys)) != len(pool.topology_keys):
        yield Problem("spec.pool.topologyKeys", pool.topology_keys, "every key may appear once")
    gibibytes = int(pool.memory[:-2]) * _GIBIBYTES[pool.memory[-2:]] if pool.memory else None
    if gibibytes is not None and gibibytes <= pool.shm_gibibytes:
        allowed = f"shared memory may take {pool.shm_gibibytes}Gi of it: raise it, or lower spec.pool.shmGibibytes"
        yield Problem("spec.pool.memory", pool.memory, allowed)
    for number, toleration in enumerate(pool.tolerations):
        path = f"spec.pool.tolerations[{number}]"
        if toleration.key is None and toleration.operator != "Exists":
            yield Problem(f"{path}.key", None, "a toleration without key needs operator Exists")
        if toleration.operator == "Exists" and toleration.value:
            yield Problem(f"{path}.value", toleration.value, "operator Exists takes no value")
        if toleration.toleration_seconds is not None and toleration.effect != "NoExecute":
            yield Problem(f"{path}.tolerationSeconds", toleration.toleration_seconds, "needs effect NoExecute")


def _cache(path: str, cache: CacheVolume) -> Iterator[Problem]:
    if cache.claim_name and (cache.size_gibibytes or cache.storage_class_name):
        allowed = "a claim has a size and a class of its own: set claimName, or the other two"
        yield Problem(f"{path}.claimName", cache.claim_name, allowed)
    if cache.storage_class_name and not cache.size_gibibytes:
        yield Problem(f"{path}.storageClassName", cache.storage_class_name, "needs sizeGibibytes")
