"""What the agents tell about a generation, merged over its members and never taken back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal

from videotrain_api.records import GenerationProgress, SavedPoint, StoredProfile, WorkerExit
from videotrain_api.resource.status import GenerationStatus, StageStatus
from videotrain_api.stacks import stuck_ranks
from videotrain_api.vocabulary import ExitCode
from videotrain_operator.planner.draft import Draft

SAVED_KEPT: Final = 8
PROFILES_KEPT: Final = 16
"""Traces of a generation; as many as one request may ask for."""
CONSEQUENCES: Final = frozenset({int(ExitCode.FENCED), int(ExitCode.PEER_LOST)})
"""Exit codes of workers that stopped because of somebody else."""
State = Literal["starting", "running", "draining", "drained", "failed", "succeeded"]


@dataclass(frozen=True)
class Report:
    """What one member tells about one generation."""

    pod: str
    at: datetime
    """The agent's clock."""
    facts: GenerationProgress


def reports_of(draft: Draft, generation: GenerationStatus) -> list[Report]:
    """Answers of this pass about a generation."""
    found, members = [], set(generation.members)
    for name, agent in draft.observed.agents.items():
        pod = draft.pods.get(name)
        if name not in members or pod is None or agent.pod_uid != pod.uid:
            continue
        for facts in (agent.current, agent.previous):
            if facts is not None and facts.generation == generation.number:
                found.append(Report(name, agent.at, facts))
    return found


def absorb_progress(draft: Draft) -> None:
    """Put the newest facts of every remembered generation into the status."""
    numbers = {
        facts.generation
        for agent in draft.observed.agents.values()
        for facts in (agent.current, agent.previous)
        if facts is not None
    }
    generations = []
    for generation in draft.status.generations:
        reports = reports_of(draft, generation) if generation.number in numbers else []
        facts = merge(generation.progress, reports, len(generation.members))
        generations.append(generation.model_copy(update={"progress": facts}) if reports else generation)
    draft.update(generations=_note_losses(generations))
    for stage in draft.status.stages:
        _note_stage(draft, stage)


def merge(known: GenerationProgress | None, reports: Sequence[Report], members: int) -> GenerationProgress | None:
    """The most advanced member's facts, completed by the others'."""
    all_facts = [report.facts for report in reports] + ([known] if known else [])
    if not all_facts:
        return None
    ahead = max(all_facts, key=lambda facts: (facts.step, facts.last_step_at is not None))
    if not reports:
        return known
    changes: dict[str, Any] = {
        "state": _state(known, reports, members),
        "launched_at": min(facts.launched_at for facts in all_facts),
        "started_at": _earliest(facts.started_at for facts in all_facts),
        "first_step_at": _earliest(facts.first_step_at for facts in all_facts),
        "last_step_at": _latest(facts.last_step_at for facts in all_facts),
        "last_sign_at": _latest(facts.last_sign_at for facts in all_facts),
        "ended_at": _ended(known, reports),
        "data_stall_us": max(facts.data_stall_us for facts in all_facts),
        "checkpoint_us": max(facts.checkpoint_us for facts in all_facts),
        "saved": _saved(all_facts),
        "exit": _exit(all_facts),
        "stacks": _stacks(all_facts),
        "skipped_checkpoints": max((facts.skipped_checkpoints for facts in all_facts), key=len),
    }
    changes["profiles"] = _profiles(all_facts)
    for name in ("world_size", "resumed_step", "total_steps", "curation", "attention", "gradient_check"):
        changes[name] = _first(getattr(facts, name) for facts in all_facts)
    return ahead.model_copy(update=changes)


def _stacks(all_facts: Sequence[GenerationProgress]) -> str | None:
    """Those of the member with a worker that stands in no collective, for which the others wait; else the first."""
    told = [facts.stacks for facts in all_facts if facts.stacks]
    return next((text for text in told if stuck_ranks(text)), told[0] if told else None)


def _state(known: GenerationProgress | None, reports: Sequence[Report], members: int) -> State:
    states = [report.facts.state for report in reports]
    if "failed" in states:
        return "failed"
    if all(state == "succeeded" for state in states):
        finished = len(states) >= members or (known is not None and known.state == "succeeded")
        return "succeeded" if finished else "running"
    order: list[State] = ["starting", "running", "draining", "drained"]
    return next((state for state in order if state in states), "running")


def _ended(known: GenerationProgress | None, reports: Sequence[Report]) -> datetime | None:
    """When the last answering member's workers were gone; None while some run."""
    ends = [report.facts.ended_at for report in reports]
    if any(end is None for end in ends):
        return None
    return _latest([*ends, known.ended_at if known else None])


def _saved(all_facts: Iterable[GenerationProgress]) -> list[SavedPoint]:
    points = {point.step: point for facts in all_facts for point in facts.saved}
    return [points[step] for step in sorted(points)][-SAVED_KEPT:]


def _profiles(all_facts: Iterable[GenerationProgress]) -> list[StoredProfile]:
    traces = {(trace.number, trace.rank): trace for facts in all_facts for trace in facts.profiles}
    return [traces[key] for key in sorted(traces)][-PROFILES_KEPT:]


def _exit(all_facts: Iterable[GenerationProgress]) -> WorkerExit | None:
    """The first failure that is nobody else's consequence; else the first failure, else the last regular end."""
    exits = [facts.exit for facts in all_facts if facts.exit is not None]
    failures = [end for end in exits if end.outcome == "failed"]
    if failures:
        return min(failures, key=lambda end: (end.code in CONSEQUENCES, end.at))
    return max(exits, key=lambda end: end.at, default=None)


def _earliest(times: Iterable[datetime | None]) -> datetime | None:
    return min((at for at in times if at is not None), default=None)


def _latest(times: Iterable[datetime | None]) -> datetime | None:
    return max((at for at in times if at is not None), default=None)


def _first(values: Iterable[Any]) -> Any:
    return next((value for value in values if value is not None), None)


def _note_losses(generations: list[GenerationStatus]) -> list[GenerationStatus]:
    """Where a later generation of the same stage resumed decides what of an earlier one was lost."""
    return [
        generation
        if generation.lost_from_step is not None or generation.end_cause in (None, "completed")
        else generation.model_copy(update={"lost_from_step": _resumed_after(generation, generations[index + 1 :])})
        for index, generation in enumerate(generations)
    ]


def _resumed_after(generation: GenerationStatus, later: Iterable[GenerationStatus]) -> int | None:
    facts = [g.progress for g in later if g.stage == generation.stage and g.progress is not None]
    step: int | None = _first(f.resumed_step for f in facts)
    return step


def _note_stage(draft: Draft, stage: StageStatus) -> None:
    facts = [g.progress for g in draft.status.generations if g.stage == stage.name and g.progress is not None]
    if not facts or stage.state in ("Succeeded", "Failed"):
        return
    saved = max([stage.saved_step, *(point.step for f in facts for point in f.saved)])
    resumed = max(f.resumed_step or 0 for f in facts)
    newest = draft.last
    running = newest.progress if newest is not None and newest.stage == stage.name else None
    optimizer_steps = stage.task in ("train", "autoencoder")
    kept = max(saved, resumed) if optimizer_steps else stage.step
    counts = running is not None and newest is not None and newest.end_cause in (None, "completed")
    step = max(kept, running.step) if counts and running is not None else kept
    total = _first([f.total_steps for f in reversed(facts)]) or stage.total_steps
    if optimizer_steps:
        total = stage.total_steps or total
    curation = _first([f.curation for f in reversed(facts)]) or stage.curation
    evaluation = _first([f.evaluation for f in reversed(facts)]) or stage.evaluation
    changes: dict[str, Any] = {"saved_step": saved, "step": step, "total_steps": total}
    changes |= {"curation": curation, "evaluation": evaluation}
    steps = sum(f.step - (f.resumed_step or 0) for f in facts)
    for name in ("tokens", "frames"):
        done = sum(getattr(f, name) for f in facts)
        changes[f"{name}_per_step"] = done / steps if done and steps > 0 else getattr(stage, f"{name}_per_step")
    draft.update_stage(stage.name, **changes)
