"""Applying: the only writer of the cluster."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator
from datetime import datetime
from itertools import groupby
from typing import Final

from videotrain_api.crd.wire import Manifest
from videotrain_api.schema import Json
from videotrain_api.vocabulary import FIELD_MANAGER, KIND, LABEL_RUN, LABEL_RUN_UID, ROSTER_KEY
from videotrain_operator.cluster.interface import Cluster
from videotrain_operator.cluster.recent_events import record, told_at
from videotrain_operator.planner.decision import Deletion, Plan

QUEUE_MANAGER: Final = f"{FIELD_MANAGER}-queue"
"""Owns what a queue is told on a pod, apart from the pod, which its creator applies whole and once."""
PLACE_MANAGER: Final = f"{FIELD_MANAGER}-place"
"""Owns labels and owner of a pod that were put back."""
StatusDue = Callable[[Json, Json], bool]
"""Takes the stored and the wanted status."""


def whenever_changed(stored: Json, wanted: Json) -> bool:
    """Write a status whenever it differs."""
    return wanted != stored


def tell_nobody(_: Plan) -> None:
    """Tell nobody of a roster: its agents read the file."""


async def apply(
    cluster: Cluster,
    run: Json,
    plan: Plan,
    status: Json,
    now: datetime,
    due: StatusDue = whenever_changed,
    on_roster: Callable[[Plan], None] = tell_nobody,
) -> Json | None:
    """Carry out a plan: objects, deletions, status, events, and at last the end of the run.

    Args:
        cluster: where to write.
        run: the object that the plan was made for; its resourceVersion guards the status.
        plan: what to do.
        status: the plan's status as it is stored.
        now: the time of the pass.
        due: whether a status is to be written now.
        on_roster: told of the plan as soon as its roster is stored, before anything that no worker waits for.

    Returns:
        The run as it is after the status write; None if the status was not written.

    Raises:
        Conflict: something changed since it was observed; observe and plan again.
        NotFound: the run is gone.
    """
    head = run["metadata"]
    namespace, name = head.get("namespace", "default"), head["name"]
    # What the run needs before what it needs no more: who dies in between leaves too much, never too little.
    manifests, deletions = await _free_names(cluster, head, plan)
    for batch in batches(manifests):
        await _together(cluster.apply(manifest, manager_of(manifest)) for manifest in batch)
        if _batch_of(batch[0]) == "roster":
            on_roster(plan)
    await delete_seen(cluster, namespace, deletions)
    # The status after what it tells of: whoever dies in between does those writes again, which changes nothing.
    written: Json | None = None
    if due(run.get("status") or {}, status):
        written = await cluster.replace_status(KIND, namespace, name, status, head["resourceVersion"])
    # After the status: a conflict there means planning again, and the same event would be told twice.
    for event in told_at(plan.events, now):
        await record(cluster, run, event)
    if plan.delete_run:
        await cluster.delete(KIND, namespace, name, uid=head["uid"])
    return written


async def _free_names(cluster: Cluster, head: Json, plan: Plan) -> tuple[list[Manifest], list[Deletion]]:
    """Delete dead pods whose names the plan uses again; what is left to apply and to delete.

    A pod of which something holds on to the object is replaced by the pass that its end wakes.
    """
    created = {item["metadata"]["name"] for item in plan.apply if _is_new_pod(item)}
    dead = [item for item in plan.delete if item.kind == "Pod" and item.name in created]
    if not dead:
        return list(plan.apply), list(plan.delete)
    namespace, labels = head.get("namespace", "default"), {LABEL_RUN: head["name"], LABEL_RUN_UID: head["uid"]}
    await delete_seen(cluster, namespace, dead)
    there = {pod["metadata"]["name"] for pod in await cluster.list("Pod", namespace, labels)}
    manifests = [item for item in plan.apply if not (_is_new_pod(item) and item["metadata"]["name"] in there)]
    return manifests, [item for item in plan.delete if item not in dead]


async def delete_seen(cluster: Cluster, namespace: str, items: Iterable[Deletion]) -> None:
    """Delete objects, each if it still is the one that was seen.

    Never all that carry a label in one request: one of an operator that leads no more, arriving late, would take the
    pods that the next one has made.
    """
    await _together(
        cluster.delete(item.kind, namespace, item.name, uid=item.uid, grace_seconds=item.grace_seconds)
        for item in items
    )


def batches(manifests: Iterable[Manifest]) -> Iterator[list[Manifest]]:
    """Neighbours that may be written at the same time.

    The roster goes alone. It carries the resourceVersion of its config map, so of two operators that both believe to
    lead only one gets beyond it.
    """
    for _, batch in groupby(manifests, key=_batch_of):
        yield list(batch)


def _batch_of(manifest: Manifest) -> str:
    if manifest["kind"] == "Pod":
        return "pods" if "spec" in manifest else "patches"
    return "roster" if ROSTER_KEY in manifest.get("data", {}) else "fixed"


def _is_new_pod(manifest: Manifest) -> bool:
    return manifest["kind"] == "Pod" and "spec" in manifest


async def _together(writes: Iterable[Awaitable[object]]) -> None:
    """Wait for all of them, also when one fails: a write that goes on alone would surprise the next pass."""
    results = await asyncio.gather(*writes, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result


def manager_of(manifest: Manifest) -> str:
    """Field manager under which a manifest is applied: a pod without a spec is a word to the queue, or is put back."""
    if manifest["kind"] != "Pod" or "spec" in manifest:
        return FIELD_MANAGER
    return PLACE_MANAGER if "labels" in manifest["metadata"] else QUEUE_MANAGER
