"""Pods whose run is gone or about to go, as far as a queue holds on to them."""

from __future__ import annotations

from contextlib import suppress

from videotrain_api.render.kueue import FINAL
from videotrain_api.vocabulary import LABEL_POD_GROUP, LABEL_RUN, LABEL_RUN_UID
from videotrain_operator.cluster.apply import QUEUE_MANAGER
from videotrain_operator.cluster.interface import Cluster, Conflict, NotFound


async def release_orphans(cluster: Cluster, namespace: str, run: str, but: str = "") -> None:
    """Tell the queue that nobody replaces the pods of a run that is gone, or whose namespace is being deleted.

    Kubernetes deletes the pods. The queue would keep those that failed, and their quota, until they are replaced, and
    a namespace goes on to its runs only when its pods are gone.

    Args:
        cluster: where the pods are.
        namespace: of the run.
        run: name of the run.
        but: uid of the run that has the name now; its own pods are left alone.
    """
    for pod in await cluster.list("Pod", namespace, {LABEL_RUN: run}):
        labels = pod["metadata"]["labels"]
        if LABEL_POD_GROUP in labels and labels.get(LABEL_RUN_UID) != but:
            head = {key: pod["metadata"][key] for key in ("name", "namespace", "uid")} | {"annotations": dict(FINAL)}
            with suppress(Conflict, NotFound):  # it is gone, which is all that is wanted
                await cluster.apply({"apiVersion": "v1", "kind": "Pod", "metadata": head}, QUEUE_MANAGER)
