"""Worker pods: who can be a member, who is wanted, who may go."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

from videotrain_api.status import SuspectNode
from videotrain_operator.planner.decision import Deletion
from videotrain_operator.planner.draft import Draft
from videotrain_operator.planner.observed import PodView
from videotrain_operator.planner.render.names import pod_name
from videotrain_operator.planner.render.pod import render_pod

SUSPECT_SECONDS: Final = 3600
SUSPECTS_KEPT: Final = 8
"""More bad nodes than that are a bad pool, and avoiding them all would stop the run."""
DRAIN_MARGIN_SECONDS: Final = 10
"""Beyond graceSeconds, before a silent pod is deleted: the agent kills what does not stop."""


def eligible(draft: Draft) -> list[PodView]:
    """Pods that could be members of a new generation, by index."""
    suspects = suspect_names(draft)
    return sorted(
        (p for p in draft.observed.pods if p.alive and p.address and not p.node_draining and p.node not in suspects),
        key=lambda pod: pod.index,
    )


def dead(pod: PodView) -> bool:
    """Known to run nothing any more: its container ended, or its node is lost."""
    return pod.finished_at is not None or pod.phase in ("Succeeded", "Failed") or pod.node_lost


def ready_since(pod: PodView) -> datetime:
    """Since when it could be a member."""
    return pod.started_at or pod.bound_at or pod.created_at


def idle(draft: Draft, pod: PodView) -> bool:
    """No worker runs in it: its agent said so after it read the newest roster, or had time enough to stop them."""
    if dead(pod) or pod.roster is None or not pod.running:
        return True
    agent = draft.observed.agents.get(pod.name)
    if agent is not None and agent.pod_uid == pod.uid and (agent.roster_generation or 0) >= draft.status.generation:
        return agent.current is None or agent.current.ended_at is not None
    asked = pod.roster.created_at or draft.now
    limit = timedelta(seconds=draft.spec.failure_policy.grace_seconds + DRAIN_MARGIN_SECONDS)
    if draft.now - asked >= limit:
        return True
    draft.look_again((asked + limit - draft.now).total_seconds())
    return False


def suspect_names(draft: Draft) -> set[str]:
    """Nodes that new pods avoid."""
    return {suspect.name for suspect in draft.status.suspect_nodes}


def suspect(draft: Draft, node: str, reason: str) -> None:
    """Avoid a node for a while."""
    others = [s for s in draft.status.suspect_nodes if s.name != node]
    new = SuspectNode(name=node, reason=reason, since=draft.now)
    draft.update(suspect_nodes=[*others, new][-SUSPECTS_KEPT:])


def forgive_nodes(draft: Draft) -> None:
    """Forget suspicions that are old."""
    limit = timedelta(seconds=SUSPECT_SECONDS)
    kept = [s for s in draft.status.suspect_nodes if draft.now - s.since < limit]
    if len(kept) != len(draft.status.suspect_nodes):
        draft.update(suspect_nodes=kept)
    for item in kept:
        draft.look_again((item.since + limit - draft.now).total_seconds())


def settle_pods(draft: Draft) -> None:
    """Create missing pods, delete dead and surplus ones."""
    sizes = draft.sizes
    wanted = 0 if draft.finished or draft.suspend_reason or not sizes or not draft.stage else sizes[-1]
    if draft.held and not draft.finished and draft.suspend_reason is None:
        return
    members = set(draft.live.members) if draft.live else set()
    if draft.published:
        members = {member.pod for member in draft.published.members}
    keep = set() if draft.live is None or draft.finished else members
    suspects = suspect_names(draft)
    # What a generation was ended for stays visible until its end is on record.
    for pod in () if draft.ended else draft.observed.pods:
        if pod.name in keep or (pod.deleting and not pod.node_lost):
            continue  # a member's death is judged, and on record, before its pod goes
        if dead(pod):
            _remove_dead(draft, pod)
        elif pod.node_draining or pod.node in suspects or pod.index >= wanted:
            _release(draft, pod)
    forget_failed_pods(draft)
    if draft.can_create_pods:
        _create_missing(draft, wanted)


def _remove_dead(draft: Draft, pod: PodView) -> None:
    """A failed pod goes once it is counted on record."""
    if pod.node_lost:
        # The kubelet of a lost node cannot confirm a deletion, so the object is removed without asking it.
        _delete(draft, pod, grace_seconds=0)
    elif pod.uid in draft.before.failed_pods or not _failed(pod) or draft.finished:
        _delete(draft, pod, grace_seconds=None)


def _release(draft: Draft, pod: PodView) -> None:
    """A pod that is not wanted goes when its workers have stopped."""
    if draft.finished or (draft.published is None and idle(draft, pod)):
        _delete(draft, pod, grace_seconds=None)


def _failed(pod: PodView) -> bool:
    return pod.phase == "Failed" or bool(pod.exit_code)


def _delete(draft: Draft, pod: PodView, grace_seconds: int | None) -> None:
    draft.delete.append(Deletion(kind="Pod", name=pod.name, uid=pod.uid, grace_seconds=grace_seconds))


def forget_failed_pods(draft: Draft) -> None:
    """Forget counted pods that are gone."""
    there = {pod.uid for pod in draft.observed.pods}
    kept = [uid for uid in draft.status.failed_pods if uid in there]
    if len(kept) != len(draft.status.failed_pods):
        draft.update(failed_pods=kept)


def _create_missing(draft: Draft, wanted: int) -> None:
    taken = {pod.index for pod in draft.observed.pods}
    names = {pod.name for pod in draft.observed.pods}
    assert draft.status.config_map is not None or wanted == 0
    for index in range(wanted):
        if index not in taken and pod_name(draft.run, index) not in names:
            draft.apply.append(render_pod(draft.run, index, draft.status.config_map or "", suspect_names(draft)))
