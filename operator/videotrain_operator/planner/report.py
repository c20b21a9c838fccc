"""The rest of the status: conditions, numbers for printer columns, and the one word for people."""

from __future__ import annotations

from typing import Final

from videotrain_api.cost import gpus
from videotrain_api.reasons import Message, Reason
from videotrain_api.resource.status import GenerationStatus, NodesStatus, StageStatus, ThroughputStatus, columns_of
from videotrain_api.vocabulary import PLANNED, Condition, Phase
from videotrain_operator.planner.conditions import find_condition, set_condition
from videotrain_operator.planner.draft import Draft
from videotrain_operator.planner.generations import FRESH, next_reason
from videotrain_operator.planner.groups import report_quota
from videotrain_operator.planner.members import eligible
from videotrain_operator.planner.observed import PodView
from videotrain_operator.planner.outage import Ended

WATCH_SECONDS: Final = 5.0
"""Between looks while a world starts, stops or drains, in case an agent's news did not wake the run."""
LONGEST_LOOK_SECONDS: Final = 30.0
"""Between looks while steps go on; a tenth of hangSeconds if that is less."""
PODS_NAMED: Final = 3
"""Pods that a message lists."""


def write_report(draft: Draft, *, waiting: str, recovered: Ended | None) -> None:
    """Fill the status from what was decided.

    Args:
        draft: the pass, with everything decided but whether the run itself is deleted.
        waiting: what the next generation waits for; empty if it waits for nothing.
        recovered: the outage that ended in this pass; None if none did.
    """
    live = draft.live
    for done in (stage for stage in draft.status.stages if stage.state == "Succeeded" and stage.output is None):
        draft.update_stage(done.name, output=draft.output_of(done))
    ready = len(eligible(draft))
    bounds = draft.bounds()
    stage = _shown_stage(draft)
    draft.update(
        observed_generation=draft.run.metadata.generation or 0,
        nodes=NodesStatus(current=len(live.members) if live else 0, ready=ready, min=bounds.min, max=bounds.max),
        stage=stage.name if stage else None,
        step=stage.step if stage else 0,
        progress=_progress(stage),
        throughput=_throughput(live),
    )
    _write_conditions(draft, live, ready, waiting, recovered)
    draft.update(phase=phase_of(draft).value, columns=columns_of(draft.status))
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
        return Phase.STARTING if live.reason in FRESH else _phase_between(draft)
    if draft.last is not None and next_reason(draft)[0] not in FRESH:
        return _phase_between(draft)
    return Phase.STARTING if any(pod.running for pod in draft.observed.pods) else Phase.PENDING


def _phase_between(draft: Draft) -> Phase:
    return Phase.RESIZING if _is_planned(draft) else Phase.RESTARTING


def _is_planned(draft: Draft) -> bool:
    """What stands between two worlds is no fault, nor has one come since."""
    outage = draft.status.outage
    if outage is not None:
        return outage.reason in PLANNED
    reason = draft.live.reason if draft.live is not None else next_reason(draft)[0]
    return reason in PLANNED


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
    if facts is None:
        return ThroughputStatus()
    return ThroughputStatus(
        samples_per_second=facts.samples_per_second,
        tokens_per_second=facts.tokens_per_second,
        mfu_percent=_percent(facts.mfu),
        hfu_percent=_percent(facts.hfu),
        useful_mfu_percent=_percent(facts.useful_mfu),
        mfu_unknown=", ".join(gpus.unknown(facts.gpu_kinds or [])) or None,
    )


def _percent(share: float | None) -> float | None:
    return None if share is None else round(100 * share, 4)


def report_pods(draft: Draft, ready: int, needed: int) -> None:
    """Whether there are pods enough, and what keeps the others from coming. Told once, however it is worded later."""
    stuck = [pod for pod in draft.observed.pods if pod.image_problem]
    unplaced = [pod for pod in draft.observed.pods if pod.unschedulable]
    reason, why = str(Reason.WAITING_FOR_PODS), ""
    if stuck:
        reason, text = stuck[0].image_problem.split(": ", 1)
        why = Message.PODS_STUCK.text(pods=_names(stuck), why=text)
    elif unplaced:
        reason = Reason.UNSCHEDULABLE
        why = Message.PODS_UNPLACED.text(pods=_names(unplaced), why=unplaced[0].unschedulable)
    old = find_condition(draft, Condition.SCHEDULED)
    enough = ready >= needed
    message = Message.PODS.text(ready=ready, needed=needed)
    if why and old is not None and old.message.startswith(message + why.split(": ", 1)[0]):
        message = old.message  # the scheduler and the kubelet word the same trouble anew at every try
    else:
        message += why
    known = old is not None and why.split(": ", 1)[0] in old.message
    set_condition(draft, Condition.SCHEDULED, enough, Reason.PODS_READY if enough else reason, message)
    if why and not known:
        draft.tell("Warning", reason, message)


def _names(pods: list[PodView]) -> str:
    names = sorted(pod.name for pod in pods)
    more = f" and {len(names) - PODS_NAMED} more" if len(names) > PODS_NAMED else ""
    return ", ".join(names[:PODS_NAMED]) + more


def report_node_trust(draft: Draft) -> None:
    """Say so if something is not done because nodes are not trusted."""
    untrusted = [pod for pod in draft.observed.pods if pod.node_untrusted]
    old = find_condition(draft, Condition.NODES_TRUSTED)
    if untrusted and (old is None or old.status != "False"):
        message = Message.NODES_UNTRUSTED.text(why=draft.observed.nodes_untrusted, pods=_names(untrusted))
        set_condition(draft, Condition.NODES_TRUSTED, False, Reason.NODES_UNTRUSTED, message)
        draft.tell("Warning", Reason.NODES_UNTRUSTED, message)
    elif old is not None and old.status == "False" and not untrusted:
        set_condition(draft, Condition.NODES_TRUSTED, True, Reason.NODES_TRUSTED)


def _write_conditions(
    draft: Draft, live: GenerationStatus | None, ready: int, waiting: str, recovered: Ended | None
) -> None:
    sizes = draft.sizes()
    needed = sizes[0] if sizes else draft.bounds().min
    if not draft.releases_all():
        report_pods(draft, ready, needed)
    report_quota(draft)
    report_node_trust(draft)
    running = live is not None and live.progress is not None and live.progress.first_step_at is not None
    set_condition(draft, Condition.RUNNING, running, Reason.STEPS_ADVANCE if running else Reason.NO_WORLD, waiting)
    again = not draft.releases_all() and _restarting(draft, live, running=running)
    planned = _is_planned(draft)
    for kind, over, mine in (
        (Condition.RESTARTING, Reason.RECOVERED, not planned),
        (Condition.RESIZING, Reason.RESIZED, planned),
    ):
        if (again and mine) or find_condition(draft, kind):
            told = recovered.message if recovered is not None and recovered.reason == over else ""
            _write_between(draft, kind, over, waiting, told, again=again and mine)
    if live is None and find_condition(draft, Condition.PROGRESS_OBSERVED):
        set_condition(draft, Condition.PROGRESS_OBSERVED, None, Reason.NO_WORLD)


def _write_between(draft: Draft, kind: Condition, over: Reason, waiting: str, told: str, *, again: bool) -> None:
    """Restarting or Resizing: what is told while it lasts, and what it cost."""
    old, live = find_condition(draft, kind), draft.live
    if again:
        outage = draft.status.outage
        why = "; ".join(filter(None, [outage.message if outage else "", waiting]))
        # Only of a run that goes on: what ended a failed one is no reason of a next generation.
        reason = next_reason(draft)[0] if live is None else live.reason
        if outage is not None and kind == Condition.RESTARTING and reason in PLANNED:
            reason = outage.reason  # a fault came while the world was changed as planned
        set_condition(draft, kind, True, reason, why)
        return
    kept = old.message if old is not None and old.status == "False" else ""
    set_condition(draft, kind, False, over, told or kept)


def _restarting(draft: Draft, live: GenerationStatus | None, *, running: bool) -> bool:
    if live is not None:
        return not running and live.reason not in FRESH
    return draft.last is not None and next_reason(draft)[0] not in FRESH


def _ask_for_next_look(draft: Draft, live: GenerationStatus | None) -> None:
    """Changes of objects wake a run by themselves; what agents know has to be fetched. Deadlines ask for themselves."""
    calm = live is not None and live.progress is not None and live.progress.state == "running"
    if calm:
        draft.look_again(min(LONGEST_LOOK_SECONDS, max(1.0, draft.spec.failure_policy.hang_seconds / 10)))
    elif live is not None or (draft.status.generation and any(pod.running for pod in draft.observed.pods)):
        draft.look_again(WATCH_SECONDS)  # also where somebody deleted the roster: it is there again after this pass
