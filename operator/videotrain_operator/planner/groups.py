"""Pod groups: pods that a Kueue queue admits together, all or none.

A group has a fixed total count, and its name is written into its pods when they are created. So the first pods of a run
are one group, pods by which the world may grow are a group of their own, and a replacement joins the group of the pod
that it replaces, so that it uses the quota which that pod left. Two facts shape the rest:

- A pod that still terminates counts for the queue, and a replacement made meanwhile would be deleted as surplus.
- The queue keeps a finalizer on a pod that is over until its replacement exists, so the name is not free by then and
  the replacement takes the next free index.
- A pod that ended with 0 is complete for the queue: its quota is free, and its replacement would be surplus. Agents of
  queued pods say by their exit code that they were only told to leave; where one did end with 0, its place is used up.

A group is put on record before its first pod is created: an operator that dies in between gives the rest of the pods
the same total count.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from videotrain_api.crd.wire import Manifest
from videotrain_api.reasons import FaultReason, Message, Reason
from videotrain_api.render.kueue import FINAL, PodGroup, pod_group
from videotrain_api.resource.status import PodGroupStatus
from videotrain_api.resource.trainrun import VideoTrainingRun
from videotrain_api.vocabulary import Condition, GenerationReason
from videotrain_operator.planner.conditions import find_condition, set_condition
from videotrain_operator.planner.draft import Draft
from videotrain_operator.planner.observed import PodView


def settle_groups(draft: Draft, wanted: int) -> list[tuple[int, PodGroup]]:
    """Put new groups on record, and say which pods to create now.

    Args:
        draft: the pass.
        wanted: how many pods there should be.

    Returns:
        Index and group of each pod to create.
    """
    _forget(draft)
    missing = wanted - sum(not pod.finalizing for pod in draft.in_pool(draft.observed.pods))
    places = list(_places(draft))  # of groups on record: one that is founded now has to wait
    if missing > len(places):
        _found(draft, missing - len(places))
    if missing > 0 and places:
        # Nothing happens to a pod that is held back, so no event would lead to the pass that tells of it.
        draft.look_again(0)
    taken = {pod.index for pod in draft.observed.pods}
    free = (index for index in range(len(taken) + 1 + 2 * max(1, draft.bounds().max)) if index not in taken)
    return [(next(free), group) for group in places[: max(0, missing)]]


def _forget(draft: Draft) -> None:
    """Note groups whose pods were seen, and drop those of which none is left."""
    there = {pod.group for pod in draft.observed.pods}
    kept = [g.model_copy(update={"seen": True}) if g.name in there else g for g in draft.status.pod_groups]
    kept = [group for group in kept if group.name in there or not group.seen]
    if kept != draft.status.pod_groups:
        draft.update(pod_groups=kept)


def _places(draft: Draft) -> Iterator[PodGroup]:
    """Every place that no pod takes, in a group of the present pool."""
    holders = [pod for pod in draft.observed.pods if not pod.finalizing or pod.phase == "Succeeded"]
    pool = draft.pool_mark()
    for group in (group for group in draft.status.pod_groups if group.pool == pool):
        held = [pod.place for pod in holders if pod.group == group.name]
        taken = set(held)
        free = [place for place in range(group.pods) if place not in taken]
        for place in free[: max(0, group.pods - len(held))]:
            yield PodGroup(name=group.name, size=group.pods, place=place)


def stopping_groups(draft: Draft) -> set[str | None]:
    """Groups that the queue is stopping: it deletes their pods one after another."""
    told = (pod for pod in draft.observed.pods if pod.reason == FaultReason.STOPPED_BY_QUEUE)
    return {pod.group for pod in told if pod.group and pod.deleting and not pod.finalizing}


def _found(draft: Draft, pods: int) -> None:
    """A new group; its pods are created once it is on record."""
    number = draft.status.pod_groups_made + 1
    pool = draft.pool_mark()
    group = PodGroupStatus(name=pod_group(draft.run, number, pods).name, pods=pods, pool=pool)
    draft.update(pod_groups=[*draft.status.pod_groups, group], pod_groups_made=number)
    draft.look_again(0)


def surplus(draft: Draft, wanted: int) -> set[str]:
    """Names of pods that are not wanted: those beyond the wanted number, and groups that can no longer be admitted."""
    fitting = draft.in_pool(draft.observed.pods)
    standing = sorted((pod for pod in fitting if not pod.finalizing), key=lambda pod: pod.index)
    rest, kept = standing[wanted:], standing[:wanted]
    names = {pod.name for pod in rest}
    counts = Counter(pod.group for pod in kept)
    for group in draft.status.pod_groups:
        members = [pod for pod in kept if pod.group == group.name]
        # Nobody would fill the places that surplus pods leave, and the queue admits whole groups only.
        broken = any(pod.group == group.name for pod in rest) and counts[group.name] < group.pods
        if broken and all(pod.gated for pod in members):
            names |= {pod.name for pod in members}
    return names


def render_final(run: VideoTrainingRun, pod: PodView) -> Manifest:
    """A patch by which the queue lets the group end: its pods are not replaced."""
    return _patch(run, pod, {"annotations": FINAL})


def render_without_finalizers(run: VideoTrainingRun, pod: PodView) -> Manifest:
    """A patch that takes a pod of a lost node from the queue.

    The queue counts a pod as running until a kubelet says how it ended, which nobody will; its replacement would be
    surplus.
    """
    return _patch(run, pod, {"finalizers": []})


def _patch(run: VideoTrainingRun, pod: PodView, metadata: dict[str, Any]) -> Manifest:
    """Of the very pod that was seen, by name and uid.

    It has no spec: `videotrain_operator.cluster.apply` patches such a pod instead of applying it.
    """
    head = {"name": pod.name, "namespace": run.metadata.namespace, "uid": pod.uid}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": head | metadata}


def report_quota(draft: Draft) -> None:
    """Whether the queue admitted enough pods: its word, apart from what user or budget want."""
    if draft.spec.queue is None or draft.finished():
        return
    name = draft.spec.queue.name
    gated = sum(pod.gated for pod in draft.observed.pods)
    admitted = sum(
        not pod.gated and not pod.deleting and not pod.finalizing for pod in draft.in_pool(draft.observed.pods)
    )
    enough = bool(draft.sizes()) and admitted >= draft.sizes()[0]
    if not draft.observed.pods:
        set_condition(draft, Condition.QUOTA_RESERVED, False, Reason.NO_PODS, Message.NO_PODS.text(queue=name))
        return
    old = find_condition(draft, Condition.QUOTA_RESERVED)
    if not any(pod.gated or pod.in_queue for pod in draft.observed.pods):
        message = Message.NOT_QUEUED.text(queue=name, pods=len(draft.observed.pods))
        set_condition(draft, Condition.QUOTA_RESERVED, False, Reason.NOT_QUEUED, message)
        if old is None or old.reason != Reason.NOT_QUEUED:
            draft.tell("Warning", Reason.NOT_QUEUED, message)
        return
    preempted = any(pod.reason == FaultReason.STOPPED_BY_QUEUE for pod in draft.observed.pods)
    reason = Reason.ADMITTED if enough else GenerationReason.PREEMPTED if preempted else Reason.QUEUED
    message = Message.QUEUE.text(queue=name, admitted=admitted, gated=gated)
    set_condition(draft, Condition.QUOTA_RESERVED, enough, reason, message)
    if old is None or old.reason != reason:
        draft.tell("Warning" if reason == GenerationReason.PREEMPTED else "Normal", reason, message)
