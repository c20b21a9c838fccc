"""Should the running world change its size?

Shrinking obeys the user or the budget at once and in good order. Growing has to pay: a world of `new` nodes instead of
`old` saves `remaining * (1 - old / new)` and costs one restart. It happens when a checkpoint was completed after the
newcomer came (it is the moment at which least would be lost if the restart went wrong), or when nothing was trained
since the roster. Stages that do not train (curate, encode, sample) save no checkpoints; they never grow on the way, and
newcomers join the next stage.
"""

from __future__ import annotations

from typing import Final

from videotrain_api.reasons import Message
from videotrain_api.resource.status import GenerationStatus
from videotrain_api.vocabulary import GenerationReason
from videotrain_operator.planner.draft import Draft
from videotrain_operator.planner.members import eligible, ready_since
from videotrain_operator.planner.observed import PodView
from videotrain_operator.planner.rates import remaining_seconds, restart_seconds

TRAINING_TASKS: Final = ("train", "autoencoder")


def change_world(draft: Draft) -> None:
    """End the running generation if another size is wanted."""
    live = draft.live
    if live is None or draft.ended or draft.finished() or draft.held:
        return
    size = draft.fit(len(live.members))
    if size is not None and size < len(live.members):
        why = "the budget allows only the smallest world" if draft.smallest else "spec.nodes was changed"
        message = Message.SHRUNK.text(old=len(live.members), new=size, why=why)
        draft.end_generation("drained", GenerationReason.SHRINK, message)
        return
    _grow(draft, live)


def _grow(draft: Draft, live: GenerationStatus) -> None:
    sizes, members = draft.sizes(), set(live.members)
    pods = [p for p in draft.in_bounds(eligible(draft)) if p.name in members or _warm(draft, p)]
    newcomers = [pod for pod in pods if pod.name not in members]
    present = [pod for pod in pods if pod.name in members]
    size = draft.fit(len(pods))
    if not newcomers or size is None or size <= len(live.members) or len(present) < len(live.members):
        return
    forced = len(live.members) < sizes[0]
    stage = draft.stage()
    trains = stage is not None and stage.task in TRAINING_TASKS
    if not forced and (not trains or not _good_moment(live, newcomers) or not _pays(draft, live, size)):
        return
    names = ", ".join(pod.name for pod in newcomers)
    message = Message.GROWN.text(old=len(live.members), new=size, pods=names)
    draft.end_generation("drained", GenerationReason.GROW, message)


def _warm(draft: Draft, pod: PodView) -> bool:
    """Its agent can start workers at once. Stopping a world for one that still imports would leave its GPUs idle."""
    agent = draft.observed.agents.get(pod.name)
    return agent is not None and agent.pod_uid == pod.uid and agent.ready


def _good_moment(live: GenerationStatus, newcomers: list[PodView]) -> bool:
    facts = live.progress
    if facts is None or facts.first_step_at is None:
        return True
    came = min(ready_since(pod) for pod in newcomers)
    return any(point.committed_at > came for point in facts.saved)


def _pays(draft: Draft, live: GenerationStatus, size: int) -> bool:
    """Whether the remaining time shrinks by more than a restart and the wanted gain."""
    old = len(live.members)
    remaining = remaining_seconds(draft, old)
    if remaining is None:
        return False
    gain = remaining * (1 - old / size) - restart_seconds(draft)
    return gain >= draft.spec.elasticity.min_gain_seconds
