"""Who made a world hang: the rank that stands in no collective while the others wait in theirs.

Agents read the stacks of their workers before they kill them, so a world that hung is stopped first and the next one
begins when they have told: that is when its members are chosen, and the node of the culprit is to be none of them.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from videotrain_api.reasons import Message, Reason
from videotrain_api.resource.status import GenerationStatus
from videotrain_api.stacks import calls_of, stuck_ranks, waiting_ranks
from videotrain_operator.planner.draft import Draft
from videotrain_operator.planner.generations import stop_workers
from videotrain_operator.planner.members import suspect
from videotrain_operator.planner.progress import Report, reports_of

STACKS_SECONDS: Final = 10.0
"""How long the next world waits for the stacks of the one that hung; those of a worker take a second or two."""
RANKS_NAMED: Final = 4
"""Culprits that a message names."""
_LOOK_SECONDS: Final = 0.5


def judge_hang(draft: Draft) -> bool:
    """Name who made the last generation hang, and avoid his node.

    Returns:
        Whether the next generation waits for it.
    """
    last = draft.last
    if last is None or last.end_cause != "hang" or last.culprit is not None:
        return False
    if draft.live is not None or draft.ended or draft.finished():
        return False
    stop_workers(draft)
    reports = reports_of(draft, last)
    if _may_still_tell(draft, reports):
        draft.look_again(_LOOK_SECONDS)
        return True
    told = {report.pod: report.facts.stacks for report in reports if report.facts.stacks}
    draft.update_last(culprit=_name(draft, last, told))
    return False


def _may_still_tell(draft: Draft, reports: list[Report]) -> bool:
    """A member that runs has not told yet how its workers ended, and was asked to only now."""
    last = draft.last
    assert last is not None
    if last.ended_at is None or draft.now - last.ended_at >= timedelta(seconds=STACKS_SECONDS):
        return False  # nobody had to be asked, or whoever is silent has been so for too long
    over = {report.pod for report in reports if report.facts.ended_at is not None}
    pods = (draft.pods.get(name) for name in last.members if name not in over)
    return any(pod is not None and pod.alive for pod in pods)


def _name(draft: Draft, last: GenerationStatus, told: dict[str, str]) -> str:
    """The culprits; tells of them, and avoids the node if it is one and others wait elsewhere."""
    stuck = [(pod, rank) for pod, text in told.items() for rank in stuck_ranks(text)]
    waiting = [(pod, rank) for pod, text in told.items() for rank in waiting_ranks(text)]
    if not stuck or not waiting:
        return ""
    node_of = {pod: view.node for pod in told if (view := draft.pods.get(pod)) is not None}
    processes = last.world_size // len(last.members)
    named = [
        f"rank {last.members.index(pod) * processes + rank} (pod {pod}, node {node_of.get(pod)})"
        for pod, rank in stuck[:RANKS_NAMED]
    ]
    more = [f"{len(stuck) - RANKS_NAMED} more"] if len(stuck) > RANKS_NAMED else []
    culprit, (pod, rank) = ", ".join([*named, *more]), stuck[0]
    calls = calls_of(told[pod], rank)
    text = Message.HANG_CULPRIT.text(number=last.number, culprit=culprit, waiting=len(waiting), calls=calls)
    draft.tell("Warning", Reason.HANG_CULPRIT, text)
    nodes = {node_of.get(name) for name, _ in stuck}
    (node, *others) = nodes
    if node is not None and not others and any(node_of.get(name) != node for name, _ in waiting):
        suspect(draft, node, text[:200])
    return culprit
