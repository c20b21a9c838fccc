"""Traces of training steps, asked for by an annotation on the run: from the wish to the roster, and what came of it."""

from __future__ import annotations

from typing import Final

from videotrain_api.reasons import Message, Reason
from videotrain_api.records import ProfileRequest, Roster
from videotrain_api.resource.profiles import parse_profile
from videotrain_api.resource.status import ProfileStatus, TraceStatus
from videotrain_api.resource.stored_size import cut
from videotrain_api.vocabulary import ANNOTATION_PROFILE, ProfileState
from videotrain_operator.planner.draft import LONGEST_MESSAGE, Draft

LOOK_SECONDS: Final = 5.0
"""Between looks while traces are awaited."""


def follow_profile(draft: Draft) -> None:
    """Take up a new request, and put on record what the workers have stored of the newest one."""
    known, text = draft.status.profile, draft.run.metadata.annotations.get(ANNOTATION_PROFILE, "").strip()
    if not text:
        if known is not None and known.request and known.state != ProfileState.REQUESTED:
            draft.update(profile=known.model_copy(update={"request": ""}))
        return
    if known is None or known.request != text:
        _begin(draft, text, known.number if known else 0)
    elif known.state == ProfileState.REQUESTED:
        _collect(draft, known)


def due_request(draft: Draft) -> ProfileRequest | None:
    """What a roster says of the newest request: whom it is for, or that it is over."""
    known = draft.status.profile
    if known is None or known.steps is None:
        return None
    ranks = known.ranks if known.state == ProfileState.REQUESTED else []
    return ProfileRequest(number=known.number, steps=known.steps, ranks=ranks)


def _begin(draft: Draft, text: str, number: int) -> None:
    # Agents may know a request that the status forgot.
    published = draft.observed.roster.profile if draft.observed.roster else None
    number = max(number, published.number if published else 0) + 1
    try:
        wish = parse_profile(text)
    except ValueError as error:
        message = Message.PROFILE_REFUSED.text(annotation=ANNOTATION_PROFILE, why=str(error))
        draft.update(
            profile=ProfileStatus(
                request=text, number=number, state=ProfileState.REFUSED, message=cut(message, LONGEST_MESSAGE)
            )
        )
        draft.tell("Warning", Reason.PROFILE_REFUSED, message)
        return
    draft.update(
        profile=ProfileStatus(
            request=text, number=number, state=ProfileState.REQUESTED, steps=wish.steps, ranks=list(wish.ranks)
        )
    )
    draft.look_again(LOOK_SECONDS)


def _collect(draft: Draft, known: ProfileStatus) -> None:
    facts = [one.progress for one in draft.status.generations if one.progress is not None]
    stored = {trace.rank: trace for one in facts for trace in one.profiles if trace.number == known.number}
    traces = [
        TraceStatus(rank=t.rank, first_step=t.first_step, last_step=t.last_step, uri=t.uri, error=t.error)
        for t in sorted(stored.values(), key=lambda trace: trace.rank)
    ]
    draft.update(profile=known.model_copy(update={"traces": traces}))
    live = draft.live
    # A rank that the world of now does not have is not waited for.
    missing = [rank for rank in known.ranks if rank not in stored and (live is None or rank < live.world_size)]
    if draft.finished():
        _end(draft, ProfileState.FAILED if missing or not traces else ProfileState.STORED)
    elif live is not None and not missing:
        _end(draft, ProfileState.STORED if traces else ProfileState.FAILED)
    else:
        draft.look_again(LOOK_SECONDS)


def _end(draft: Draft, state: ProfileState) -> None:
    known = draft.status.profile
    assert known is not None, "a request is ended that was made"
    errors = [f"rank {trace.rank}: {trace.error}" for trace in known.traces if trace.error]
    good = [trace for trace in known.traces if not trace.error]
    if errors or state == ProfileState.FAILED:
        why = "; ".join(errors) or f"ranks {known.ranks} of the world made none before it ended"
        message = Message.PROFILE_FAILED.text(number=known.number, stored=len(good), why=why)
        state = ProfileState.FAILED
        draft.tell("Warning", Reason.PROFILE_FAILED, message)
    else:
        folder = good[0].uri.rsplit("/", 1)[0]
        message = Message.PROFILE_STORED.text(number=known.number, stored=len(good), folder=folder)
        draft.tell("Normal", Reason.PROFILE_STORED, message)
    draft.update(profile=known.model_copy(update={"state": state, "message": cut(message, LONGEST_MESSAGE)}))


def asked_members(roster: Roster | None, members: list[str]) -> set[str]:
    """Pods whose ranks are to trace steps.

    Args:
        roster: of the run.
        members: of the newest generation, by node rank.
    """
    if roster is None or roster.profile is None:
        return set()
    nodes = {rank // roster.processes_per_node for rank in roster.profile.ranks}
    return {members[node] for node in nodes if node < len(members)}
