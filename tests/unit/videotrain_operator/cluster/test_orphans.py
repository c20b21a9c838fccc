"""Pods of runs that were deleted while nobody led."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from support.manifests_strategy import training_run
from support.server_clock import server_clock

from videotrain_api.vocabulary import KIND, LABEL_RUN
from videotrain_operator.cluster.interface import NotFound
from videotrain_operator.kube.cache import Store
from videotrain_operator.kube.cached_cluster import CACHED
from videotrain_operator.manager.controller import Controller
from videotrain_operator.manager.settings import Settings
from videotrain_operator.telemetry import OperatorMetrics

Json = dict[str, Any]


class ClusterWithOrphans:
    """A cluster that knows pods and no run."""

    def __init__(self, *pods: Json) -> None:
        self.stores = {kind: Store() for kind in CACHED}
        for pod in pods:
            self.stores["Pod"].put(pod)
        self.applied: asyncio.Queue[Json] = asyncio.Queue()

    async def get(self, kind: str, namespace: str, name: str) -> Json:
        raise NotFound(name)

    async def list(self, kind: str, namespace: str, labels: dict[str, str]) -> list[Json]:
        pods = self.stores[kind].all(namespace)
        return [pod for pod in pods if labels.items() <= pod["metadata"]["labels"].items()]

    async def apply(self, manifest: Json, manager: str) -> Json:
        self.applied.put_nowait(manifest)
        return manifest


def pod(name: str, run: str, **labels: str) -> Json:
    head = {"name": name, "namespace": "team", "uid": f"uid-{name}", "resourceVersion": "1"}
    head["creationTimestamp"] = "2026-01-01T12:00:00Z"
    return {"kind": "Pod", "metadata": head | {"labels": {LABEL_RUN: run} | labels}, "spec": {}, "status": {}}


@pytest.mark.parametrize("run_is_there", [False, True])
async def test_a_new_leader_lets_go_of_the_queued_pods_of_runs_that_are_gone(run_is_there: bool) -> None:
    group = {"kueue.x-k8s.io/pod-group-name": "old-a1"}
    cluster = ClusterWithOrphans(pod("free-w0", "free"), pod("old-w0", "old", **group))
    if run_is_there:
        other = training_run("other")
        other["metadata"] |= {"namespace": "team", "uid": "u-1", "resourceVersion": "5", "generation": 1}
        cluster.stores[KIND].put(other)
    metrics = OperatorMetrics()
    controller = Controller(cluster, cluster.stores, object(), metrics, Settings(), lambda: 0.0, server_clock())  # type: ignore[arg-type]
    leading = asyncio.create_task(controller.lead())
    try:
        told = await asyncio.wait_for(cluster.applied.get(), 60)
    finally:
        leading.cancel()
        await asyncio.gather(leading, return_exceptions=True)
    assert told["metadata"] == {
        "name": "old-w0",
        "namespace": "team",
        "uid": "uid-old-w0",
        "annotations": {"kueue.x-k8s.io/retriable-in-group": "false"},
    }
    assert cluster.applied.empty()
