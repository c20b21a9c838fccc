"""Worker pods: who can be a member, who is wanted, who may go."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

from videotrain_api.reasons import Message, Reason
from videotrain_api.render.key import render_key
from videotrain_api.render.kueue import PodGroup
from videotrain_api.render.names import metadata, pod_name, worker_labels
from videotrain_api.render.pod import render_pod
from videotrain_api.resource.status import SuspectNode
from videotrain_operator.planner.decision import Deletion
from videotrain_operator.planner.draft import Draft
from videotrain_operator.planner.finish import seconds_left
from videotrain_operator.planner.groups import (
    render_final,
    render_without_finalizers,
    settle_groups,
    stopping_groups,
    surplus,
)
from videotrain_operator.planner.observed import PodView

SUSPECT_SECONDS: Final = 3600
SUSPECTS_KEPT: Final = 8
SUSPECTS_SHARE: Final = 4
"""At most so many nodes are avoided, and at most a fourth of the largest world, but one in any case: more bad nodes are
a bad pool."""
PODS_NAMED: Final = 5
"""Pods that a message names."""
MISSING_SECONDS: Final = 1.0
"""Until the next look for pods that are missing and could not be read yet."""
DRAIN_MARGIN_SECONDS: Final = 10
"""Beyond graceSeconds, before a silent pod is deleted: the agent kills what does not stop."""


def eligible(draft: Draft) -> list[PodView]:
    """Pods that could be members of a new generation, by index."""
    suspects, stopping = suspect_names(draft), stopping_groups(draft)
    there = (pod for pod in draft.in_pool(draft.observed.pods) if pod.alive and pod.address and not pod.leaving)
    stays = (pod for pod in there if pod.node not in suspects and pod.group not in stopping)
    return sorted(stays, key=lambda pod: pod.index)


def dead(pod: PodView) -> bool:
    """Known to run nothing any more: its container ended, or its node is lost."""
    return pod.finished_at is not None or pod.phase in ("Succeeded", "Failed") or pod.node_lost


def ready_since(pod: PodView) -> datetime:
    """Since when it could be a member."""
    return pod.started_at or pod.bound_at or pod.created_at


def was_told(draft: Draft, pod: PodView) -> bool:
    """It was there when the newest roster was written, so its workers may run, or have run, in a generation."""
    roster = draft.observed.roster
    if roster is None:
        return False
    return roster.created_at is None or pod.created_at <= roster.created_at or roster.rank(pod.uid) is not None


def idle(draft: Draft, pod: PodView) -> bool:
    """No worker runs in it: its agent said so after it read the newest roster, or had time enough to stop them."""
    if dead(pod) or not pod.running or not draft.status.generation:
        return True
    roster = draft.observed.roster
    if roster is not None and not was_told(draft, pod):
        return True
    agent = draft.observed.agents.get(pod.name)
    if agent is not None and agent.pod_uid == pod.uid and (agent.roster_generation or 0) >= draft.status.generation:
        return agent.current is None or agent.current.ended_at is not None
    asked = (roster.created_at if roster is not None else None) or draft.now
    limit = timedelta(seconds=draft.spec.failure_policy.grace_seconds + DRAIN_MARGIN_SECONDS)
    if draft.now - asked >= limit:
        return True
    draft.look_again((asked + limit - draft.now).total_seconds())
    return False


def stays_readable(draft: Draft, pod: PodView) -> bool:
    """A pod of a failed run stays until the run's TTL, for whoever reads its log; it ends, so it holds nothing.

    Not where a queue admits pods: it would wait for a replacement. One that does not end by itself is deleted.
    """
    if not draft.failed() or draft.being_deleted() or draft.queued or pod.node_lost or pod.deleting:
        return False
    left = seconds_left(draft)
    if left is not None and left <= 0:
        return False
    if dead(pod):
        return True
    over, roster = draft.status.completion_time, draft.observed.roster
    if not pod.running or over is None or roster is None:
        return False
    limit = timedelta(seconds=draft.spec.failure_policy.grace_seconds + DRAIN_MARGIN_SECONDS)
    draft.look_again(max(0.0, (over + limit - draft.now).total_seconds()))
    return draft.now - over < limit


def suspect_names(draft: Draft) -> set[str]:
    """Nodes that new pods avoid."""
    return {suspect.name for suspect in draft.status.suspect_nodes}


def suspect(draft: Draft, node: str, reason: str) -> None:
    """Avoid a node for a while."""
    others = [s for s in draft.status.suspect_nodes if s.name != node]
    new = SuspectNode(name=node, reason=reason, since=draft.now)
    limit = min(SUSPECTS_KEPT, max(1, draft.bounds().max // SUSPECTS_SHARE))
    draft.update(suspect_nodes=[*others, new][-limit:])


def forgive_nodes(draft: Draft) -> bool:
    """Forget suspicions that are old, and all of them if they keep the run from having its fewest nodes.

    Returns:
        Whether one was forgotten: pods that were made to avoid the node, and found no other, are to be made anew.
    """
    limit = timedelta(seconds=SUSPECT_SECONDS)
    kept = [s for s in draft.status.suspect_nodes if draft.now - s.since < limit]
    # Nothing runs, and the scheduler finds no node for pods of the smallest world.
    placed = [pod for pod in draft.observed.pods if pod.node is not None and not dead(pod) and not pod.deleting]
    stuck = draft.live is None and any(pod.unschedulable for pod in draft.observed.pods)
    if kept and stuck and draft.sizes() and len(placed) < draft.sizes()[0]:
        names = ", ".join(s.name for s in kept)
        draft.tell("Normal", Reason.NODES_FORGIVEN, Message.NODES_FORGIVEN.text(nodes=names))
        kept = []
    forgiven = len(kept) != len(draft.status.suspect_nodes)
    if forgiven:
        draft.look_again(0)
        draft.update(suspect_nodes=kept)
    for item in kept:
        draft.look_again((item.since + limit - draft.now).total_seconds())
    return forgiven


def settle_pods(draft: Draft, *, remake_unplaced: bool) -> None:
    """Create missing pods, delete dead and surplus ones.

    Args:
        draft: the pass.
        remake_unplaced: delete pods for which no node was found, since they avoid nodes that are forgiven now.
    """
    sizes = draft.sizes()
    wanted = 0 if draft.releases_all() or not sizes or not draft.stage() else sizes[-1]
    if draft.held and not draft.releases_all():
        return
    members = set(draft.live.members) if draft.live else set()
    if draft.published:
        members = {member.pod for member in draft.published.members}
    keep = set() if draft.live is None or draft.finished() else members
    suspects = suspect_names(draft)
    fitting = draft.in_pool(draft.observed.pods)
    unwanted = surplus(draft, wanted) if draft.queued else {pod.name for pod in fitting if pod.index >= wanted}
    unwanted |= {pod.name for pod in draft.observed.pods} - {pod.name for pod in fitting}
    freed: set[str] = set()
    # What a generation was ended for stays visible until its end is on record.
    for pod in () if draft.ended else draft.observed.pods:
        if pod.name in keep or (pod.deleting and not pod.node_lost):
            continue  # a member's death is dealt with, and on record, before its pod goes
        if stays_readable(draft, pod):
            continue
        if dead(pod):
            freed |= _remove_dead(draft, pod)
        elif remake_unplaced and pod.unschedulable:
            _delete(draft, pod, grace_seconds=None)
        elif pod.leaving or pod.node in suspects or pod.name in unwanted:
            _release(draft, pod)
    forget_failed_pods(draft)
    # A replacement is created when the end of the world is on record, or it would be taken for the member that died.
    # Pods mount the frozen config map: there must be one, or what it is made of.
    mountable = draft.config_data is not None or draft.status.config_map in draft.observed.config_maps
    # One that was frozen anew is on record first, and so are other defaults: an operator that dies in between would not
    # know what pods have.
    before, now = draft.before, draft.status
    if before.config_map is not None and (before.config_map, before.defaults) != (now.config_map, now.defaults):
        mountable = False
        draft.look_again(0)
    if (mountable or draft.finished()) and not draft.ended:
        _create_missing(draft, wanted, freed)


def put_back(draft: Draft) -> None:
    """Give pods on record the labels and the owner again that somebody changed, or nobody would find or delete them."""
    for pod in draft.observed.pods:
        if pod.name in draft.observed.misplaced:
            precondition = {"uid": pod.uid, "resourceVersion": pod.resource_version}
            head = metadata(draft.run, pod.name, worker_labels(draft.run, pod.index)) | precondition
            draft.apply.append({"apiVersion": "v1", "kind": "Pod", "metadata": head})
    if draft.observed.misplaced:
        names = ", ".join(sorted(draft.observed.misplaced)[:PODS_NAMED])
        message = Message.POD_PUT_BACK.text(count=len(draft.observed.misplaced), pods=names)
        draft.tell("Warning", Reason.POD_PUT_BACK, message)
    if draft.observed.missing:
        draft.look_again(MISSING_SECONDS)


def release_all(draft: Draft) -> None:
    """Ask for the deletion of every pod; agents save on their way out."""
    for pod in draft.observed.pods:
        if not pod.deleting or pod.node_lost:
            _delete(draft, pod, grace_seconds=0 if pod.node_lost else None)


def _remove_dead(draft: Draft, pod: PodView) -> set[str]:
    """A failed pod goes once it is counted on record.

    Returns:
        Its name, if that is free as soon as the deletion was asked for: no kubelet has to confirm it.
    """
    if pod.node_lost:
        # The kubelet of a lost node cannot confirm a deletion, so the object is removed without asking it.
        _delete(draft, pod, grace_seconds=0)
        return {pod.name}
    if pod.uid in draft.before.failed_pods or not _failed(pod) or draft.finished():
        _delete(draft, pod, grace_seconds=None)
        return {pod.name} if pod.phase in ("Succeeded", "Failed") else set()
    return set()


def _release(draft: Draft, pod: PodView) -> None:
    """A pod that is not wanted goes when its workers have stopped."""
    if draft.finished() or (draft.published is None and idle(draft, pod)):
        _delete(draft, pod, grace_seconds=None)


def _failed(pod: PodView) -> bool:
    return pod.phase == "Failed" or bool(pod.exit_code)


def _delete(draft: Draft, pod: PodView, grace_seconds: int | None) -> None:
    draft.delete.append(Deletion(kind="Pod", name=pod.name, uid=pod.uid, grace_seconds=grace_seconds))
    given_up = draft.releases_all() or pod.gated or pod.pool != draft.pool_mark()
    if pod.group is not None and pod.node_lost:
        draft.apply.append(render_without_finalizers(draft.run, pod))
    elif pod.group is not None and given_up:
        draft.apply.append(render_final(draft.run, pod))


def forget_failed_pods(draft: Draft) -> None:
    """Forget counted pods that are gone."""
    there = {pod.uid for pod in draft.observed.pods}
    kept = [uid for uid in draft.status.failed_pods if uid in there]
    if len(kept) != len(draft.status.failed_pods):
        draft.update(failed_pods=kept)


def _create_missing(draft: Draft, wanted: int, freed: set[str]) -> None:
    assert draft.status.config_map is not None or wanted == 0
    missing: list[tuple[int, PodGroup | None]]
    if draft.queued:
        missing = list(settle_groups(draft, wanted))
    else:
        taken = {pod.index for pod in draft.observed.pods if pod.name not in freed}
        # Members that are gone without proof enough to act keep their names.
        names = {pod.name for pod in draft.observed.pods} - freed | set(draft.live.members if draft.live else ())
        free = (index for index in range(wanted) if index not in taken)
        missing = [(index, None) for index in free if pod_name(draft.run.metadata.name, index) not in names]
    missing = [item for item in missing if pod_name(draft.run.metadata.name, item[0]) not in draft.observed.missing]
    config_map, avoid, key = draft.status.config_map or "", suspect_names(draft), draft.observed.signing_key
    if missing:
        # Before the pods that mount it, and each time: the operator has no right to look whether it is there.
        draft.apply.append(render_key(draft.run, key))
    for index, group in missing:
        pod = render_pod(draft.run, index, config_map, avoid, group, key, draft.present(), draft.rules.defaults)
        draft.apply.append(pod)
