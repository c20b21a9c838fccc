"""Generations: beginning the next one, and making every pod obey it.

The end of a generation is put on record in one pass and the next one is published in a later pass, so an operator
that dies in between neither forgets nor counts twice. A roster is published to the pods before the status is written;
`adopt_published` picks it up again from the pods if the status write never came.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

from videotrain_api.reasons import Message, Reason
from videotrain_api.records import Roster, RosterMember
from videotrain_api.render.roster import render_roster, roster_text
from videotrain_api.resource.status import GenerationStatus
from videotrain_api.vocabulary import PORT_RENDEZVOUS, RENDEZVOUS_PORTS, GenerationReason
from videotrain_operator.planner.draft import Draft
from videotrain_operator.planner.members import dead, eligible, ready_since
from videotrain_operator.planner.observed import PodView

GENERATIONS_KEPT: Final = 16
FRESH: Final = (GenerationReason.STARTED, GenerationReason.STAGE_STARTED, GenerationReason.RESUMED)
"""Reasons after which nothing is lost by waiting for more pods."""


def adopt_published(draft: Draft) -> None:
    """Take over a roster that pods carry and the status does not know."""
    newest = _newest_roster(draft)
    if newest is None or newest.generation <= draft.status.generation or draft.finished():
        return
    _pass_stages(draft, newest)
    draft.look_again(0)  # agents were asked about the world that the status knew
    if newest.action == "run" and newest.stage in {stage.name for stage in draft.status.stages}:
        _record(draft, newest, newest.created_at or draft.now)
    else:
        _close_last(draft, newest.created_at or draft.now)
        draft.update(generation=newest.generation)


def _pass_stages(draft: Draft, roster: Roster) -> None:
    """Stages go one after another: those before the one that a roster names are complete, if the status forgot it."""
    names = [stage.name for stage in draft.status.stages]
    for name in names[: names.index(roster.stage)] if roster.stage in names else ():
        stage = next(s for s in draft.status.stages if s.name == name)
        if stage.state in ("Pending", "Running"):
            draft.update_stage(name, state="Succeeded", finished_at=roster.created_at)


def spread_roster(draft: Draft) -> None:
    """Give the newest roster to pods that should have it and do not: an older one must not stay in force."""
    newest = draft.published or _newest_roster(draft) or _rebuilt(draft)
    if newest is None:
        return
    members = {member.pod for member in newest.members}
    behind = [pod for pod in draft.observed.pods if _is_behind(draft, pod, newest, members)]
    text = roster_text(newest) if behind else ""
    # Those who must leave hear of it first.
    for pod in sorted(behind, key=lambda pod: (pod.name in members, pod.index)):
        draft.apply.append(render_roster(draft.run, pod.name, pod.uid, text))
    if draft.published and behind:
        _fence(draft, behind)


def _fence(draft: Draft, behind: list[PodView]) -> None:
    """The first write of a new roster holds only if nobody wrote that pod since: two operators cannot both begin."""
    versions = {pod.name: pod.resource_version for pod in behind}
    # Not always a roster: the queue may have to hear something about the same pod first.
    patches = [i for i, item in enumerate(draft.apply) if item["kind"] == "Pod" and "spec" not in item]
    first = next(i for i in patches if draft.apply[i]["metadata"]["name"] in versions)
    head = draft.apply[first]["metadata"]
    if versions.get(head["name"]):
        fenced = head | {"resourceVersion": versions[head["name"]]}
        draft.apply[first] = draft.apply[first] | {"metadata": fenced}


def _is_behind(draft: Draft, pod: PodView, newest: Roster, members: set[str]) -> bool:
    if pod.finished_at is not None or pod.phase in ("Succeeded", "Failed"):
        return False
    if pod.roster is not None:
        return pod.roster.generation < newest.generation
    if pod.name in members and draft.live is not None and draft.live.number == newest.generation:
        return True  # no pod of a member's name is created while its generation lives, so this is the member
    early = newest.created_at is None or pod.created_at <= newest.created_at
    return early and (pod.name in members or _worked(draft, pod))


def _worked(draft: Draft, pod: PodView) -> bool:
    """It was a member whose roster somebody removed: it has to hear that its world is over."""
    return any(pod.name in g.members and pod.created_at <= g.created_at for g in draft.status.generations)


def _rebuilt(draft: Draft) -> Roster | None:
    """The roster of the running generation from the status, if somebody removed it from every pod."""
    live = draft.live
    pods = [draft.pods.get(name) for name in live.members] if live else []
    if live is None or draft.ended or any(pod is None or not pod.alive for pod in pods):
        return None
    members = [RosterMember(pod=pod.name, address=pod.address or "") for pod in pods if pod is not None]
    roster = _roster(draft, members, live.reason)
    port = PORT_RENDEZVOUS + live.number % RENDEZVOUS_PORTS
    return roster.model_copy(update={"generation": live.number, "port": port, "created_at": live.created_at})


def _newest_roster(draft: Draft) -> Roster | None:
    rosters = [pod.roster for pod in draft.observed.pods if pod.roster is not None]
    return max(rosters, key=lambda roster: roster.generation, default=None)


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
    survivors = reason not in FRESH and any(pod.roster is not None for pod in pods)
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
    members = [RosterMember(pod=pod.name, address=pod.address or "") for pod in pods]
    roster = _roster(draft, members, str(reason))
    for pod in draft.observed.pods:
        # Every member of an older generation is dead or will obey the new roster, which all pods get.
        obeys = pod.roster is None or pod.roster.generation < roster.generation or dead(pod)
        assert obeys, f"pod {pod.name} carries generation {pod.roster and pod.roster.generation}"
    draft.published = roster
    _record(draft, roster, draft.now, message)
    text = Message.GENERATION.text(
        number=roster.generation,
        stage=roster.stage,
        nodes=len(members),
        workers=len(members) * roster.processes_per_node,
        why=message,
    )
    draft.tell("Normal", reason, text.rstrip())


def stop_workers(draft: Draft) -> None:
    """Publish a roster that stops the workers, unless none can run."""
    newest = _newest_roster(draft)
    told = newest is None or newest.action == "stop" or draft.live is not None or draft.ended
    if told or (draft.last is not None and draft.last.end_cause == "completed"):
        return
    if all(pod.roster is None or dead(pod) for pod in draft.observed.pods):
        return
    roster = _roster(draft, [], draft.last.end_reason or Reason.SUSPENDED if draft.last else Reason.SUSPENDED)
    draft.published = roster
    _close_last(draft, draft.now)
    draft.update(generation=roster.generation)


def _roster(draft: Draft, members: list[RosterMember], reason: str) -> Roster:
    stage = draft.stage()
    assert stage is not None
    number = draft.status.generation + 1
    cause = draft.last.end_cause if draft.last else None
    return Roster(
        run_uid=draft.run.metadata.uid or "",
        generation=number,
        action="run" if members else "stop",
        stage=stage.name,
        config_hash=stage.config_hash,
        reason=reason,
        members=members,
        port=PORT_RENDEZVOUS + number % RENDEZVOUS_PORTS,
        processes_per_node=draft.spec.pool.gpus_per_node,
        saved_step=next(known.saved_step for known in draft.status.stages if known.name == stage.name),
        drain=cause in (None, "completed", "drained", "preemption"),
        created_at=draft.now,
    )


def _record(draft: Draft, roster: Roster, at: datetime, message: str = "") -> None:
    """Note a published generation in the status."""
    gpus = len(roster.members) * draft.spec.pool.gpus_per_node
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
