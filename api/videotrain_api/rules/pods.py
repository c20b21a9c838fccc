"""Pools and pod template: what the worker pods may be told."""

from __future__ import annotations

from collections.abc import Iterator

from videotrain_api.capabilities import TASKS_WITHOUT_GPUS
from videotrain_api.resource.pool import ENV_ADVICE, CacheVolume, Pool, reserved_env
from videotrain_api.resource.trainrun import pool_of, pool_path, pools_of
from videotrain_api.rules.facts import Facts
from videotrain_api.rules.template import check_template
from videotrain_api.schema import Problem

_GIBIBYTES = {"Mi": 1 / 1024, "Gi": 1.0, "Ti": 1024.0}


def check_pods(facts: Facts) -> Iterator[Problem]:
    """Reserved names, volumes that contradict themselves, memory below what /dev/shm may take, nodes without GPUs, and
    samples without room in the cache.
    """
    spec = facts.run.spec
    for path, pool in pools_of(facts.run).items():
        yield from _pool(path, pool)
        yield from _kind(path, pool)
        yield from _cache(f"{path}.cache", pool.cache)
    for index, stage in enumerate(spec.stages):
        if not pool_of(facts.run, stage).gpus_per_node and stage.task not in TASKS_WITHOUT_GPUS:
            allowed = (
                f"stage {stage.name!r} computes on GPUs, as every task but {', '.join(TASKS_WITHOUT_GPUS)}; allowed: 1 "
                f"to 64, or another pool in spec.stages[{index}].pool"
            )
            yield Problem(f"{pool_path(facts.run, index)}.gpusPerNode", 0, allowed)
        if stage.train is not None:
            room, wanted = pool_of(facts.run, stage).cache.size_gibibytes, stage.train.sample_cache_gibibytes
            if room is not None and wanted is not None and wanted >= room:
                allowed = (
                    f"the cache volume has {room} GiB, and weights and indexes need room too: less, or raise "
                    f"{pool_path(facts.run, index)}.cache.sizeGibibytes"
                )
                yield Problem(f"spec.stages[{index}].train.sampleCacheGibibytes", wanted, allowed)
    if spec.pod_template is not None:
        yield from check_template("spec.podTemplate", spec.pod_template)


def _kind(path: str, pool: Pool) -> Iterator[Problem]:
    """Nodes with GPUs are priced by the GPU, others as a whole."""
    bare = pool.gpus_per_node == 0
    fields = {
        "pricePerGpuHour": (pool.price_per_gpu_hour, not bare),
        "pricePerNodeHour": (pool.price_per_node_hour, bare),
    }
    for name, (value, needed) in fields.items():
        if (value is not None) != needed:
            allowed = "required with" if needed else "leave it out with"
            yield Problem(f"{path}.{name}", value, f"{allowed} gpusPerNode {pool.gpus_per_node}")


def _pool(path: str, pool: Pool) -> Iterator[Problem]:
    for name, value in pool.env.items():
        if reserved_env(name):
            yield Problem(f"{path}.env.{name}", value, f"reserved; {ENV_ADVICE}")
    if len(set(pool.topology_keys)) != len(pool.topology_keys):
        yield Problem(f"{path}.topologyKeys", pool.topology_keys, "every key may appear once")
    gibibytes = int(pool.memory[:-2]) * _GIBIBYTES[pool.memory[-2:]] if pool.memory else None
    if gibibytes is not None and gibibytes <= pool.shm_gibibytes:
        allowed = f"shared memory may take {pool.shm_gibibytes}Gi of it: raise it, or lower {path}.shmGibibytes"
        yield Problem(f"{path}.memory", pool.memory, allowed)
    for number, toleration in enumerate(pool.tolerations):
        item = f"{path}.tolerations[{number}]"
        if toleration.key is None and toleration.operator != "Exists":
            yield Problem(f"{item}.key", None, "a toleration without key needs operator Exists")
        if toleration.operator == "Exists" and toleration.value:
            yield Problem(f"{item}.value", toleration.value, "operator Exists takes no value")
        if toleration.toleration_seconds is not None and toleration.effect != "NoExecute":
            yield Problem(f"{item}.tolerationSeconds", toleration.toleration_seconds, "needs effect NoExecute")


def _cache(path: str, cache: CacheVolume) -> Iterator[Problem]:
    if cache.claim_name and (cache.size_gibibytes or cache.storage_class_name):
        allowed = "a claim has a size and a class of its own: set claimName, or the other two"
        yield Problem(f"{path}.claimName", cache.claim_name, allowed)
    if cache.storage_class_name and not cache.size_gibibytes:
        yield Problem(f"{path}.storageClassName", cache.storage_class_name, "needs sizeGibibytes")
