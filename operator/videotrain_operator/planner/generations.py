"""Generations: beginning the next one, and making every pod obey it.

The end of a generation is put on record in one pass and the next one is published in a later pass, so an operator
that dies in between neither forgets nor counts twice. A roster is published, in one config map that all pods mount,
before the status is written; `adopt_published` picks it up again from there if the status write never came.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Final

from videotrain_api.frozen_config import stage_configs
from videotrain_api.reasons import Message, Reason
from videotrain_api.records import Roster, RosterMember
from videotrain_api.render.roster import render_roster
from videotrain_api.resource.status import GenerationStatus, StageStatus
from videotrain_api.vocabulary import PORT_RENDEZVOUS, RENDEZVOUS_PORTS, GenerationReason
from videotrain_operator.planner.configuration import restore_hashes
from videotrain_operator.planner.draft import Draft
from videotrain_operator.planner.members import dead, eligible, ready_since, stays_readable, was_told
from videotrain_operator.planner.observed import PodView
from videotrain_operator.planner.profiles import due_request

GENERATIONS_KEPT: Final = 16
FRESH: Final = (GenerationReason.STARTED, GenerationReason.STAGE_STARTED, GenerationReason.RESUMED)
"""Reasons after which nothing is lost by waiting for more pods."""
_SAVES: Final = (None, "completed", "drained", "preemption")
"""Causes of ends after which workers may still save."""


def adopt_published(draft: Draft) -> None:
    """Take over a roster that was published and that the status does not know."""
    newest = draft.observed.roster
    if newest is None or newest.generation < draft.status.generation or draft.finished():
        return
    if newest.generation == draft.status.generation:
        if newest.action == "stop" and draft.live is not None:  # not by us: we stop what has ended
            draft.end_generation("drained", Reason.SUSPENDED, "")
        return
    _pass_stages(draft, newest)
    draft.look_again(0)  # agents were asked about the world that the status knew
    if newest.action == "run" and newest.stage in {stage.name for stage in draft.status.stages}:
        _record(draft, newest, newest.created_at or draft.now)
        # Whoever published it ended before the status told so, and perhaps before anybody was told.
        _tell(draft, newest, draft.status.generations[-1].message)
    else:
        _close_last(draft, newest.created_at or draft.now)
        draft.update(generation=newest.generation)


def correct_stamp(draft: Draft) -> None:
    """Take back the stamp of a roster that a wrong clock dated later than now.

    All of the world's time would count as starting. That it lies ahead is found twice, since the clock of this pass may
    be the wrong one; the time of the first finding takes its place.
    """
    last, decision = draft.last, "RosterStamp"
    if last is None or last.created_at <= draft.now or not draft.confirmed(decision):
        return
    found = (draft.before.unconfirmed or {})[decision]
    earlier = [generation.created_at for generation in draft.status.generations[:-1]]
    draft.update_last(created_at=max([found, *earlier]))


def _pass_stages(draft: Draft, roster: Roster) -> None:
    """Stages go one after another: those before the one that a roster names are complete, if the status forgot it."""
    names = [stage.name for stage in draft.status.stages]
    for name in names[: names.index(roster.stage)] if roster.stage in names else ():
        stage = next(s for s in draft.status.stages if s.name == name)
        if stage.state in ("Pending", "Running"):
            draft.update_stage(name, state="Succeeded", finished_at=roster.created_at)


def create_roster(draft: Draft) -> None:
    """Make the config map before the pods that mount it, if there is none and this pass publishes nothing."""
    if draft.observed.roster_resource_version is None and draft.published is None:
        draft.apply.append(render_roster(draft.run, _due(draft), None))


def publish_roster(draft: Draft) -> None:
    """Replace the roster by the new one, or by what the status knows if somebody spoiled it.

    The write holds only if nobody wrote the config map since it was read: two operators cannot both begin.
    """
    version = draft.observed.roster_resource_version
    if draft.published is not None:
        draft.apply.append(render_roster(draft.run, draft.published, version))
        return
    due = _due(draft)
    if version is not None and due is not None and _is_spoiled(draft, due):
        draft.apply.append(render_roster(draft.run, due, version))
        draft.published = due  # and sent: a request for a trace is not to wait until kubelets show it


def _is_spoiled(draft: Draft, due: Roster) -> bool:
    found = draft.observed.roster
    if found is None or found.order() < due.order():
        return True
    return found.order() == due.order() and found.members != due.members


def _due(draft: Draft) -> Roster | None:
    """What the status says that the roster should be; None before the first generation, or if that is not sure."""
    live = draft.live
    if draft.ended or draft.finished() or not draft.status.generation or draft.stage() is None:
        return None
    if live is None:
        found = draft.observed.roster
        return found if found is not None and found.generation >= draft.status.generation else _stop(draft)
    pods = [draft.pods.get(name) for name in live.members]
    if any(pod is None or not pod.alive for pod in pods):
        return None
    roster = _roster(draft, live.number, _members(draft, (pod for pod in pods if pod is not None)), live.reason)
    return roster.model_copy(update={"created_at": live.created_at})


def begin_generation(draft: Draft) -> str:
    """Publish the next roster, if there are enough pods and nothing better is worth waiting for.

    Returns:
        What the next generation waits for, for people; empty if it waits for nothing.
    """
    if draft.live is not None or draft.ended or draft.finished() or draft.stage() is None:
        return ""
    if draft.held:
        stop_workers(draft)
        return Message.HELD.text()
    reason, message = next_reason(draft)
    sizes = draft.sizes()
    pods = draft.in_bounds(eligible(draft))
    size = draft.fit(len(pods))
    if size is None:
        needed = sizes[0] if sizes else draft.bounds().min
        stop_workers(draft)
        return Message.WAITS_FOR_PODS.text(ready=len(pods), needed=needed)
    waiting = _wait_for_more(draft, reason, pods, size)
    if not waiting:
        _publish(draft, _choose(draft, pods, size), reason, message)
    return waiting


def next_reason(draft: Draft) -> tuple[GenerationReason, str]:
    """Why the next generation will be started, by how the last one ended."""
    last = draft.last
    if last is None:
        return GenerationReason.STARTED, ""
    if last.end_reason == Reason.COMPLETED:
        return GenerationReason.STAGE_STARTED, last.end_message
    if last.end_reason == Reason.SUSPENDED:
        return GenerationReason.RESUMED, ""
    # Another version may have had other reasons.
    reasons = (reason for reason in GenerationReason if reason == last.end_reason)
    return next(reasons, GenerationReason.RESUMED), last.end_message


def _wait_for_more(draft: Draft, reason: GenerationReason, pods: list[PodView], size: int) -> str:
    """A fresh start waits a while for the largest world; after a fault every second of the survivors counts."""
    sizes, stage = draft.sizes(), draft.stage()
    smallest, largest = sizes[0], sizes[-1]
    survivors = reason not in FRESH and any(was_told(draft, pod) for pod in pods)
    if survivors or size >= largest:
        return ""
    since = sorted(ready_since(pod) for pod in pods)[smallest - 1]
    if stage is not None and stage.started_at is not None and reason == GenerationReason.STAGE_STARTED:
        since = max(since, stage.started_at)
    until = since + timedelta(seconds=draft.spec.elasticity.wait_for_max_seconds)
    if until <= draft.now:
        return ""
    draft.look_again((until - draft.now).total_seconds())
    return Message.WAITS_FOR_MORE.text(ready=len(pods), largest=largest, size=size, time=f"{until:%H:%M:%S}")


def _choose(draft: Draft, pods: list[PodView], size: int) -> list[PodView]:
    """Survivors first, since their caches are warm; ranks go by index."""
    veterans = set(draft.last.members) if draft.last else set()
    chosen = sorted(pods, key=lambda pod: (pod.name not in veterans, pod.index))[:size]
    return sorted(chosen, key=lambda pod: pod.index)


def _publish(draft: Draft, pods: list[PodView], reason: GenerationReason, message: str) -> None:
    restore_hashes(draft)
    roster = _roster(draft, _next_number(draft), _members(draft, pods), str(reason))
    # The API server made and bound the members before now, whatever the clock of this pass says.
    at = max(draft.now, *(pod.bound_at or pod.created_at for pod in pods))
    roster = roster.model_copy(update={"created_at": at})
    # Every member of an older generation is dead or will obey the new roster, which all pods get.
    old = draft.observed.roster
    assert old is None or old.order() < roster.order(), f"generation {roster.generation} after {old.generation}"
    draft.published = roster
    _record(draft, roster, at, message)
    _tell(draft, roster, message)


def _tell(draft: Draft, roster: Roster, message: str) -> None:
    nodes = len(roster.members)
    text = Message.GENERATION.text(
        number=roster.generation,
        stage=roster.stage,
        nodes=nodes,
        workers=nodes * roster.processes_per_node,
        why=message,
    )
    draft.tell("Normal", roster.reason, text.rstrip())


def _next_number(draft: Draft) -> int:
    """Above every number that a roster had, also one that was published, not put on record, and then removed.

    There is at most one such: only agents know it.
    """
    last = draft.status.generation
    heard = {agent.roster_generation for agent in draft.observed.agents.values()}
    return last + 2 if last + 1 in heard else last + 1


def _members(draft: Draft, pods: Iterable[PodView]) -> list[RosterMember]:
    """As the roster that is there has them, where they are the same: each pass asks, and hardly ever one changes."""
    found = draft.observed.roster
    known = {member.uid: member for member in found.members} if found is not None else {}
    members = []
    for pod in pods:
        old, address = known.get(pod.uid), pod.address or ""
        same = old is not None and old.pod == pod.name and old.address == address
        members.append(old if same and old else RosterMember(pod=pod.name, address=address, uid=pod.uid))
    return members


def dismiss(draft: Draft) -> None:
    """Have the agents of a failed run end: pods whose containers are over hold no node, and their logs stay."""
    newest = draft.observed.roster
    if not draft.failed() or draft.ended or newest is None or newest.action == "leave" or draft.last is None:
        return
    if any(pod.running and not dead(pod) and stays_readable(draft, pod) for pod in draft.observed.pods):
        drain = draft.last.end_cause in _SAVES
        changes = {"action": "leave", "members": [], "drain": drain, "reason": draft.last.end_reason or Reason.FAILED}
        draft.published = newest.model_copy(update=changes | {"profile": None, "created_at": draft.now})


def stop_workers(draft: Draft) -> None:
    """End the newest generation in the eyes of its agents, unless they know or none can run.

    It keeps its number, so that a fault that costs one restart makes one generation.
    """
    newest = draft.observed.roster
    told = newest is None or newest.action == "stop" or draft.live is not None or draft.ended
    if told or (draft.last is not None and draft.last.end_cause == "completed"):
        return
    if not any(was_told(draft, pod) and not dead(pod) for pod in draft.observed.pods):
        return
    draft.published = _stop(draft)
    _close_last(draft, draft.now)


def _stop(draft: Draft) -> Roster:
    reason = draft.last.end_reason or Reason.SUSPENDED if draft.last else Reason.SUSPENDED
    return _roster(draft, draft.status.generation, [], reason)


def _roster(draft: Draft, number: int, members: list[RosterMember], reason: str) -> Roster:
    stage = draft.stage()
    assert stage is not None
    cause = draft.last.end_cause if draft.last else None
    return Roster(
        run_uid=draft.run.metadata.uid or "",
        generation=number,
        action="run" if members else "stop",
        stage=stage.name,
        config_hash=stage.config_hash,
        config=_edited_config(draft, stage, members),
        reason=reason,
        members=members,
        port=PORT_RENDEZVOUS + number % RENDEZVOUS_PORTS,
        processes_per_node=draft.pool().processes,
        saved_step=next(known.saved_step for known in draft.status.stages if known.name == stage.name),
        drain=cause in _SAVES,
        profile=due_request(draft) if members else None,
        created_at=draft.now,
    )


def _edited_config(draft: Draft, stage: StageStatus, members: list[RosterMember]) -> str | None:
    """The stage's configuration, if a member was made before the stages were edited and has another one mounted."""
    mounted = {draft.pods[member.pod].config_map for member in members if member.pod in draft.pods}
    if mounted <= {None, draft.status.config_map}:
        return None
    found = (config for config in stage_configs(draft.run) if config.stage.name == stage.name)
    return next((config.canonical_json() for config in found if config.hash() == stage.config_hash), None)


def _record(draft: Draft, roster: Roster, at: datetime, message: str = "") -> None:
    """Note a published generation in the status."""
    gpus = len(roster.members) * draft.pool().gpus_per_node
    if not message and draft.last is not None:
        message = draft.last.end_message if draft.last.end_reason == roster.reason else ""
    _close_last(draft, at)
    generation = GenerationStatus(
        number=roster.generation,
        stage=roster.stage,
        reason=roster.reason,
        message=message,
        members=[member.pod for member in roster.members],
        world_size=len(roster.members) * roster.processes_per_node,
        gpus=gpus,
        created_at=at,
    )
    kept = [*draft.status.generations, generation][-GENERATIONS_KEPT:]
    draft.update(generation=roster.generation, generations=kept)
    stage = next(s for s in draft.status.stages if s.name == roster.stage)
    draft.update_stage(stage.name, state="Running", started_at=stage.started_at or at)


def _close_last(draft: Draft, at: datetime) -> None:
    last = draft.last
    if last is not None and last.ended_at is None:
        draft.update_last(ended_at=at, end_cause=last.end_cause or "drained")
