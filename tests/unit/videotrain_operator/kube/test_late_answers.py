"""An answer to a write that comes after the watch has told what happened since."""

from __future__ import annotations

from typing import Any

import pytest

from videotrain_operator.kube.cache import Key, Store
from videotrain_operator.kube.cached_cluster import CACHED, KubeCluster
from videotrain_operator.kube.informer import Informer

Json = dict[str, Any]
POD = Key("team", "demo-w0")


def pod(version: int, **head: Any) -> Json:
    metadata = {"name": POD.name, "namespace": POD.namespace, "uid": "u0", "resourceVersion": str(version)}
    labels = {"videotrain.dev/run": "demo", "videotrain.dev/run-uid": "r0"}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata | {"labels": labels} | head, "spec": {}}


class SlowServer:
    """Its answers come when the pod that they are about has gone, and the watch has told so."""

    def __init__(self, store: Store) -> None:
        self.informer = Informer(self, "Pod", store, lambda event: None)  # type: ignore[arg-type]

    def fenced(self, fence: Any) -> SlowServer:
        return self

    async def delete(self, *names: str, **options: Any) -> Json:
        leaving = pod(2, deletionTimestamp="2026-01-01T12:00:00Z", deletionGracePeriodSeconds=30)
        self.informer.changed(leaving, False)
        self.informer.changed(pod(3), True)
        return leaving

    async def create(self, manifest: Json, *options: Any, **more: Any) -> Json:
        self.informer.changed(pod(1), False)
        self.informer.changed(pod(3), True)
        return pod(1)


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def cluster(store: Store) -> KubeCluster:
    stores = {kind: Store() for kind in CACHED} | {"Pod": store}
    return KubeCluster(SlowServer(store), stores, lambda: None, "host")  # type: ignore[arg-type]


async def test_a_pod_that_went_before_its_deletion_was_answered_is_gone(store: Store, cluster: KubeCluster) -> None:
    """It would be billed for ever, and nothing could take its name."""
    store.put(pod(1))
    await cluster.delete("Pod", *POD, uid="u0", grace_seconds=30)
    assert store.get(POD) is None


async def test_a_pod_that_went_before_its_creation_was_answered_is_gone(store: Store, cluster: KubeCluster) -> None:
    wanted = pod(0)
    del wanted["metadata"]["uid"], wanted["metadata"]["resourceVersion"]
    await cluster.apply(wanted)
    assert store.get(POD) is None
