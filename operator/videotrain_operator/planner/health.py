"""Is the running generation complete, dead, hanging, or about to lose a node? One answer per pass, strongest first."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

from videotrain_api.reasons import FaultReason, Message, Reason
from videotrain_api.records import GenerationProgress
from videotrain_api.resource.status import GenerationStatus, RestartCounts
from videotrain_api.resource.trainrun import Cause
from videotrain_api.vocabulary import Condition, ExitCode, GenerationReason
from videotrain_operator.planner.conditions import set_condition
from videotrain_operator.planner.denial import note_denial
from videotrain_operator.planner.draft import Draft
from videotrain_operator.planner.faults import Fault, Verdict, gone_fault, pod_fault, root_of, worker_fault
from videotrain_operator.planner.finish import fail_run, succeed_run
from videotrain_operator.planner.members import dead, suspect
from videotrain_operator.planner.observed import PodView
from videotrain_operator.planner.progress import Report, reports_of

ROOT_CAUSE_SECONDS: Final = 5.0
"""How long exits that blame a peer wait for news of that peer."""
BLAMELESS: Final = frozenset({FaultReason.NODE_LOST, FaultReason.POD_GONE, FaultReason.EVICTED})
"""Reasons of deaths that no step brought about, so that they say nothing about progress."""


def check_generation(draft: Draft) -> None:
    """End the running generation if it is complete, failed, hangs or loses a member."""
    live = draft.live
    if live is None or draft.finished():
        return
    reports = reports_of(draft, live)
    if _completed(draft, live, reports):
        _complete_stage(draft, live)
        return
    of_pods = [_member_fault(draft, live, name) for name in live.members]
    of_workers = [worker_fault(report, draft.pods.get(report.pod)) for report in reports]
    faults = [fault for fault in (*of_pods, *of_workers) if fault is not None]
    if faults:
        _end_for_faults(draft, live, faults, reports)
        return
    hang = _hang(draft, live, reports)
    if hang is not None:
        _end_for_fault(draft, live, hang)
        return
    _check_leaving(draft, live)


def check_standby(draft: Draft) -> None:
    """Count pods that failed outside any generation, so that a pod that cannot start does not start for ever.

    A pod that somebody deleted did start; however it ends, it was told to.
    """
    members = set(draft.live.members) if draft.live else set()
    for pod in draft.observed.pods:
        failed = dead(pod) and _pod_failed(pod) and not pod.deleting
        if not failed or pod.name in members or pod.uid in draft.status.failed_pods or draft.finished() or draft.ended:
            continue
        fault = pod_fault(pod.name, pod)
        assert fault is not None
        draft.update(failed_pods=[*draft.status.failed_pods, pod.uid])
        draft.look_again(0)
        # Whoever dies while the nodes are released anyway costs the run no restart.
        if not (draft.suspend_reason or draft.spec.suspend):
            _count(draft, fault, fault.verdict(draft.spec.failure_policy.rules))


def _completed(draft: Draft, live: GenerationStatus, reports: list[Report]) -> bool:
    """All members succeeded. One that is gone counts as such when every other one said so; one that failed never."""
    succeeded = {report.pod for report in reports if report.facts.state == "succeeded"}
    missing = [name for name in live.members if name not in succeeded]
    pods = [draft.pods.get(name) for name in missing]
    if not draft.observed.missing.keys().isdisjoint(missing):
        return False
    return bool(succeeded) and all(pod is None or (dead(pod) and not _pod_failed(pod)) for pod in pods)


def _pod_failed(pod: PodView) -> bool:
    return not pod.node_lost and (pod.phase == "Failed" or bool(pod.exit_code))


def _complete_stage(draft: Draft, live: GenerationStatus) -> None:
    step = live.progress.step if live.progress else 0
    draft.end_generation("completed", Reason.COMPLETED, "")
    draft.update_stage(live.stage, state="Succeeded", finished_at=draft.now, step=step)
    draft.update(restarts_in_stage=RestartCounts(), same_step_deaths=0, last_death_step=None)
    output = draft.output_of(next(stage for stage in draft.status.stages if stage.name == live.stage))
    following = draft.stage()
    if following is None:
        count = len(draft.status.stages)
        succeed_run(draft, Message.ALL_STAGES.text(stage=live.stage, step=step, output=output, count=count))
    else:
        told = Message.STAGE_SUCCEEDED.text(stage=live.stage, step=step, output=output)
        draft.tell("Normal", Reason.STAGE_SUCCEEDED, told)
        draft.update_stage(following.name, state="Running", started_at=draft.now)


def _member_fault(draft: Draft, live: GenerationStatus, name: str) -> Fault | None:
    pod = draft.pods.get(name)
    if pod is not None:
        return pod_fault(name, pod)
    last = [seen for seen in draft.observed.departed if seen.name == name and seen.created_at <= live.created_at]
    if name in draft.observed.missing or (not last and draft.observed.nodes_untrusted):
        return None  # a list without the pod is a view like any other; that the pod was deleted was not seen
    return gone_fault(name, last[-1] if last else None)


def _end_for_faults(draft: Draft, live: GenerationStatus, faults: list[Fault], reports: list[Report]) -> None:
    root = root_of(faults)
    if root is None:
        first = min((fault.at for fault in faults if fault.at is not None), default=draft.now)
        left = ROOT_CAUSE_SECONDS - (draft.now - first).total_seconds()
        if left > 0:
            draft.look_again(min(left, 1.0))
            return
        root = _silent(draft, live, reports) or faults[0]
    _note_counted(draft, [pod for pod in _member_pods(draft, live) if dead(pod)])
    everybody = len(faults) == len(live.members) > 1 and all(f.exit_code == ExitCode.PERMISSION for f in faults)
    _end_for_fault(draft, live, root, everybody=everybody)


def _silent(draft: Draft, live: GenerationStatus, reports: list[Report]) -> Fault | None:
    """Peers were lost and one member does not answer: together that is proof, though neither is alone."""
    answered = {report.pod for report in reports}
    silent = [pod for pod in _member_pods(draft, live) if pod.name not in answered]
    if not silent or not answered or draft.observed.nodes_untrusted:
        return None
    message = Message.POD_SILENT.text(pod=silent[0].name)
    _avoid(draft, silent, message)
    reason, node = GenerationReason.WORKER_FAILED, silent[0].node
    code = int(ExitCode.PEER_LOST)
    return Fault(
        pod=silent[0].name,
        reason=ExitCode.PEER_LOST.name,
        message=message,
        generation_reason=reason,
        exit_code=code,
        node=node,
    )


def _avoid(draft: Draft, silent: list[PodView], message: str) -> None:
    """Avoid the nodes of pods that were taken for dead. When those pods are seen to end, that is no second fault."""
    for pod in silent:
        if pod.node:
            suspect(draft, pod.node, message)
    _note_counted(draft, silent)


def _note_counted(draft: Draft, pods: list[PodView]) -> None:
    """What became of these pods is, or is about to be, on record as a restart."""
    draft.update(failed_pods=sorted({*draft.status.failed_pods, *(pod.uid for pod in pods)}))


def _member_pods(draft: Draft, live: GenerationStatus) -> list[PodView]:
    return [draft.pods[name] for name in live.members if name in draft.pods]


def _end_for_fault(draft: Draft, live: GenerationStatus, fault: Fault, *, everybody: bool = False) -> None:
    """End the generation for a fault, or the run if that was one too many.

    Args:
        draft: the pass.
        live: the running generation.
        fault: what is blamed.
        everybody: every member was denied access to the object store.
    """
    verdict = fault.verdict(draft.spec.failure_policy.rules)
    draft.end_generation(verdict.cause, fault.generation_reason, fault.message)
    policy = draft.spec.failure_policy
    spent = draft.status.restarts_in_stage.infrastructure >= policy.limits.infrastructure
    if verdict.action == "Wait" and note_denial(draft, fault.message, everybody=everybody or spent):
        return
    _count(draft, fault, verdict, _death_step(live, fault, verdict), _way_on(draft, live, verdict))


def _way_on(draft: Draft, live: GenerationStatus, verdict: Verdict) -> str:
    """What ended, and from which step it goes on, for people."""
    step = live.progress.step if live.progress else 0
    stage = draft.stage()
    saved = stage.saved_step if stage else 0
    where = f"from the checkpoint of step {saved}" if saved else "from the beginning of the stage, nothing is saved yet"
    if verdict.cause == "preemption":
        where = f"from where its workers save now, or else {where}"
    elif draft.spec.checkpoint.peer_copies is not None:
        where = f"from copies in memory, or else {where}"
    return Message.WAY_ON.text(number=live.number, stage=live.stage, step=step, where=where)


def _count(draft: Draft, fault: Fault, verdict: Verdict, step: int | None = None, way_on: str = "") -> None:
    if verdict.action == "Fail":
        fail_run(draft, Reason.FAILURE_POLICY if fault.exit_code is None else fault.reason, fault.message)
        return
    if verdict.action in ("ReplaceNode", "Wait") and fault.node:
        suspect(draft, fault.node, fault.message[:200])
    if verdict.action == "Ignore":
        draft.tell("Warning", Reason.FAULT_IGNORED, fault.message)
        return
    draft.tell("Warning", fault.generation_reason, fault.message + way_on)
    if step is not None and _no_progress(draft, step, fault):
        return
    spent = getattr(draft.status.restarts_in_stage, verdict.cause)
    limit = getattr(draft.spec.failure_policy.limits, verdict.cause)
    if spent >= limit:
        message = Message.RESTART_LIMIT.text(limit=limit, cause=verdict.cause, fault=fault.message)
        fail_run(draft, Reason.RESTART_LIMIT, message)
        return
    draft.update(restarts=_plus_one(draft.status.restarts, verdict.cause))
    draft.update(restarts_in_stage=_plus_one(draft.status.restarts_in_stage, verdict.cause))


def _death_step(live: GenerationStatus, fault: Fault, verdict: Verdict) -> int | None:
    """The step that a death can be blamed on: none for a lost node, an outage or a preemption."""
    blameless = fault.reason in BLAMELESS or fault.exit_code in (ExitCode.STORAGE, ExitCode.PERMISSION)
    if blameless or verdict.cause == "preemption" or verdict.action in ("Ignore", "Fail"):
        return None
    facts = live.progress
    return facts.step if facts is not None and facts.started_at is not None else 0


def _no_progress(draft: Draft, step: int, fault: Fault) -> bool:
    """Count deaths at one step; True if they were too many."""
    deaths = draft.status.same_step_deaths + 1 if draft.status.last_death_step == step else 1
    draft.update(same_step_deaths=deaths, last_death_step=step)
    limit = draft.spec.failure_policy.same_step_limit
    if deaths < limit:
        return False
    message = Message.NO_PROGRESS.text(deaths=deaths, step=step, limit=limit, fault=fault.message)
    fail_run(draft, Reason.NO_PROGRESS, message)
    return True


def _plus_one(counts: RestartCounts, cause: Cause) -> RestartCounts:
    return counts.model_copy(update={cause: getattr(counts, cause) + 1})


def _hang(draft: Draft, live: GenerationStatus, reports: list[Report]) -> Fault | None:
    """The step counter stands still, or the first step never comes, while agents answer. Silence proves nothing."""
    facts, policy = live.progress, draft.spec.failure_policy
    if not draft.observed.agents:
        set_condition(
            draft,
            Condition.PROGRESS_OBSERVED,
            None,
            Reason.NO_ANSWER,
            Message.NOBODY_ANSWERS,
        )
        return None
    # A world whose steps were all done before it makes none: it shows by other signs that it gets on.
    if facts is None or (facts.first_step_at is None and facts.last_sign_at is None):
        return _late(draft, live)
    witnesses = [(report.at, _last_sign(report.facts)) for report in reports if report.facts.step == facts.step]
    waits = [(at - sign).total_seconds() for at, sign in witnesses if sign is not None]
    if not waits:
        set_condition(draft, Condition.PROGRESS_OBSERVED, None, Reason.NO_ANSWER, Message.NO_STEP_KNOWN)
        return None
    still = max(waits)
    if still < policy.hang_seconds:
        draft.look_again(policy.hang_seconds - still)
        set_condition(draft, Condition.PROGRESS_OBSERVED, status=True, reason=Reason.STEPS_ADVANCE)
        return None
    if not draft.confirmed(GenerationReason.HANG):
        return None
    message = Message.HANG.text(step=facts.step, seconds=f"{still:.0f}", limit=policy.hang_seconds)
    set_condition(draft, Condition.PROGRESS_OBSERVED, status=False, reason=GenerationReason.HANG, message=message)
    return Fault(pod=live.members[0], reason=FaultReason.HANG, message=message, generation_reason=GenerationReason.HANG)


def _last_sign(facts: GenerationProgress) -> datetime | None:
    """When a member's workers last got anywhere, once they have."""
    return max((at for at in (facts.last_step_at, facts.last_sign_at) if at is not None), default=None)


def _late(draft: Draft, live: GenerationStatus) -> Fault | None:
    limit = timedelta(seconds=draft.spec.failure_policy.start_seconds)
    # No roster is older than the pods that got it, except by a clock that was wrong.
    begun = max([live.created_at, *(pod.started_at for pod in _member_pods(draft, live) if pod.started_at)])
    left = (begun + limit - draft.now).total_seconds()
    if left > 0:
        draft.look_again(left)
        set_condition(draft, Condition.PROGRESS_OBSERVED, None, Reason.STARTING, Message.NO_FIRST_STEP)
        return None
    if not draft.confirmed(Reason.START_TIMEOUT):
        return None
    silent = _blame_silent(draft, live)
    if silent and draft.observed.nodes_untrusted:
        set_condition(draft, Condition.PROGRESS_OBSERVED, None, Reason.NO_ANSWER, Message.MEMBERS_SILENT)
        return None
    errors = [f"{agent.pod}: {agent.error}" for agent in draft.observed.agents.values() if agent.error]
    message = Message.START_TIMEOUT.text(
        seconds=f"{limit.total_seconds():.0f}", errors="".join(f"; {error}" for error in sorted(errors)[:3])
    )
    set_condition(draft, Condition.PROGRESS_OBSERVED, status=False, reason=Reason.START_TIMEOUT, message=message)
    return Fault(pod=live.members[0], reason=FaultReason.HANG, message=message, generation_reason=GenerationReason.HANG)


def _blame_silent(draft: Draft, live: GenerationStatus) -> bool:
    """A world that does not start while some members do not answer: go on without those. True if there are such."""
    silent = [pod for pod in _member_pods(draft, live) if pod.name not in draft.observed.agents]
    if silent and len(silent) < len(live.members) and not draft.observed.nodes_untrusted:
        names = ", ".join(pod.name for pod in silent)
        _avoid(draft, silent, f"no answer from {names}, and the world does not start")
    return bool(silent)


def _check_leaving(draft: Draft, live: GenerationStatus) -> None:
    """Members whose node is drained, that somebody deletes or that nobody can ask leave in good order."""
    leaving = [pod for pod in _member_pods(draft, live) if pod.leaving or pod.deleting]
    if not leaving:
        return
    names: dict[str, list[str]] = {}
    for pod in leaving:
        names.setdefault(_why_leaving(pod), []).append(pod.name)
    reasons = [f"{', '.join(pods)} ({why})" for why, pods in names.items()]
    fault = Fault(
        pod=leaving[0].name,
        reason=FaultReason.PREEMPTING,
        message=Message.LEAVING.text(pods=", ".join(reasons)),
        generation_reason=GenerationReason.PREEMPTED,
    )
    _end_for_fault(draft, live, fault)


def _why_leaving(pod: PodView) -> str:
    if pod.deleting:
        told = ": ".join(filter(None, [pod.reason, pod.message]))
        return f"it is being deleted: {told or 'by hand or by a controller'}"
    if pod.key_changed:
        return "it mounts another signing key than the operator has: the master key was changed or lost"
    return pod.node_reason or "its node is drained"
