"""The rest of the status: conditions, numbers for printer columns, and the one word for people."""

from __future__ import annotations

from typing import Final

from videotrain_api.cost import PEAK_FLOPS
from videotrain_api.status import GenerationStatus, NodesStatus, StageStatus, ThroughputStatus
from videotrain_api.vocabulary import Condition, GenerationReason, Phase
from videotrain_operator.planner.conditions import find_condition, set_condition
from videotrain_operator.planner.draft import Draft
from videotrain_operator.planner.generations import FRESH, next_reason
from videotrain_operator.planner.members import eligible

WATCH_SECONDS: Final = 1.0
"""Between looks while something starts, stops or drains."""
LONGEST_LOOK_SECONDS: Final = 5.0
"""Between looks while steps go on; a tenth of hangSeconds if that is less."""


def write_report(draft: Draft) -> None:
    """Fill the status from what was decided."""
    live = draft.live
    ready = len(eligible(draft))
    bounds = draft.bounds
    stage = _shown_stage(draft)
    draft.update(
        observed_generation=draft.run.metadata.generation or 0,
        nodes=NodesStatus(current=len(live.members) if live else 0, ready=ready, min=bounds.min, max=bounds.max),
        stage=stage.name if stage else None,
        step=stage.step if stage else 0,
        progress=_progress(stage),
        throughput=_throughput(live),
    )
    _write_conditions(draft, live, ready)
    draft.update(phase=phase_of(draft).value)
    _ask_for_next_look(draft, live)


def phase_of(draft: Draft) -> Phase:
    """One word; derived from everything else and never read back."""
    if draft.is_true(Condition.FAILED):
        return Phase.FAILED
    if draft.is_true(Condition.COMPLETE):
        return Phase.SUCCEEDED
    if draft.is_true(Condition.SUSPENDED):
        return Phase.SUSPENDING if draft.observed.pods else Phase.SUSPENDED
    live = draft.live
    if live is not None:
        if live.progress is not None and live.progress.first_step_at is not None:
            return Phase.RUNNING
        return Phase.STARTING if live.reason in FRESH else Phase.RESTARTING
    if draft.last is not None and next_reason(draft)[0] not in FRESH:
        return Phase.RESTARTING
    return Phase.STARTING if any(pod.running for pod in draft.observed.pods) else Phase.PENDING


def _shown_stage(draft: Draft) -> StageStatus | None:
    stages = draft.status.stages
    shown = [s for s in stages if s.state in ("Running", "Failed")] or [s for s in stages if s.state == "Pending"]
    return shown[0] if shown else stages[-1] if stages else None


def _progress(stage: StageStatus | None) -> str:
    if stage is None:
        return ""
    return f"{stage.name} {stage.step}/{stage.total_steps}" if stage.total_steps else f"{stage.name} {stage.step}"


def _throughput(live: GenerationStatus | None) -> ThroughputStatus:
    facts = live.progress if live else None
    if facts is None or live is None:
        return ThroughputStatus()
    mfu = None
    if facts.model_flops_per_second is not None and live.gpus:
        mfu = round(100 * facts.model_flops_per_second / (live.gpus * PEAK_FLOPS), 4)
    return ThroughputStatus(
        samples_per_second=facts.samples_per_second, tokens_per_second=facts.tokens_per_second, mfu_percent=mfu
    )


def _write_conditions(draft: Draft, live: GenerationStatus | None, ready: int) -> None:
    sizes = draft.sizes
    needed = sizes[0] if sizes else draft.bounds.min
    released = draft.finished or draft.suspend_reason is not None
    enough = ready >= needed
    message = f"{ready} pods are ready, at least {needed} are needed"
    if not released:
        set_condition(draft, Condition.SCHEDULED, enough, "PodsReady" if enough else "WaitingForPods", message)
    running = live is not None and live.progress is not None and live.progress.first_step_at is not None
    set_condition(draft, Condition.RUNNING, running, "StepsAdvance" if running else "NoWorld", draft.waiting)
    again = not released and _restarting(draft, live, running=running)
    if again or find_condition(draft, Condition.RESTARTING):
        reason = next_reason(draft)[0] if live is None else GenerationReason(live.reason)
        set_condition(draft, Condition.RESTARTING, again, str(reason) if again else "Recovered", draft.waiting)
    if live is None and find_condition(draft, Condition.PROGRESS_OBSERVED):
        set_condition(draft, Condition.PROGRESS_OBSERVED, None, "NoWorld")


def _restarting(draft: Draft, live: GenerationStatus | None, *, running: bool) -> bool:
    if live is not None:
        return not running and live.reason not in FRESH
    return draft.last is not None and next_reason(draft)[0] not in FRESH


def _ask_for_next_look(draft: Draft, live: GenerationStatus | None) -> None:
    """Agents cannot call; their answers have to be fetched."""
    calm = live is not None and live.progress is not None and live.progress.state == "running"
    if calm:
        draft.look_again(min(LONGEST_LOOK_SECONDS, max(1.0, draft.spec.failure_policy.hang_seconds / 10)))
    elif draft.observed.pods or draft.apply or (not draft.finished and draft.suspend_reason is None):
        draft.look_again(WATCH_SECONDS)
