"""What counts as a fault, and what follows from it.

Somebody's death makes every other worker fail too (a collective breaks), so the root is looked for first: a lost node
or a dead pod explains exits, an exit with a code of its own explains exits that only say "a peer is gone".
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal, NamedTuple

from videotrain_api.reasons import FaultReason, Message
from videotrain_api.records import WorkerExit
from videotrain_api.resource.trainrun import Cause, FailureRule
from videotrain_api.vocabulary import ExitCode, GenerationReason
from videotrain_operator.planner.observed import PodView
from videotrain_operator.planner.progress import CONSEQUENCES, Report

Action = Literal["Restart", "ReplaceNode", "Fail", "Ignore", "Wait"]
"""What is done about a fault. A rule of the user names one of the first four; `Wait` is another node, then a pause
without nodes."""


class Verdict(NamedTuple):
    """What a failure counts as and what is done."""

    cause: Cause
    action: Action


EXIT_CODES: Final[dict[int, Verdict]] = {
    ExitCode.OK: Verdict("preemption", "Restart"),  # an agent leaves in good order only when it is told to
    ExitCode.INTERNAL: Verdict("application", "Restart"),
    ExitCode.CONFIG: Verdict("application", "Fail"),
    ExitCode.DATA: Verdict("application", "Fail"),
    ExitCode.PERMISSION: Verdict("infrastructure", "Wait"),
    ExitCode.STORAGE: Verdict("infrastructure", "Restart"),
    ExitCode.DISK_FULL: Verdict("infrastructure", "ReplaceNode"),
    ExitCode.CHECKPOINT: Verdict("infrastructure", "ReplaceNode"),
    ExitCode.DIVERGED: Verdict("application", "Restart"),
    ExitCode.FENCED: Verdict("infrastructure", "Restart"),
    ExitCode.PEER_LOST: Verdict("infrastructure", "Restart"),
    ExitCode.HANG: Verdict("hang", "Restart"),
    ExitCode.CUDA: Verdict("infrastructure", "ReplaceNode"),
    ExitCode.GRADIENTS: Verdict("application", "Restart"),
    ExitCode.TERMINATED: Verdict("preemption", "Restart"),
    ExitCode.KILLED: Verdict("infrastructure", "Restart"),
}
"""By exit code of a worker or of the agent's container; others are faults of the application."""
REASONS: Final[dict[str, Verdict]] = {
    FaultReason.OOM_KILLED: Verdict("application", "Restart"),
    FaultReason.EVICTED: Verdict("infrastructure", "Restart"),
    FaultReason.NODE_LOST: Verdict("infrastructure", "Restart"),
    FaultReason.POD_GONE: Verdict("infrastructure", "Restart"),
    FaultReason.NODE_SHUTDOWN: Verdict("preemption", "Restart"),
    FaultReason.TERMINATED: Verdict("preemption", "Restart"),
    FaultReason.PREEMPTING: Verdict("preemption", "Restart"),
    FaultReason.STOPPED_BY_QUEUE: Verdict("preemption", "Restart"),
    FaultReason.DELETION_BY_TAINT_MANAGER: Verdict("preemption", "Restart"),
    FaultReason.EVICTION_BY_EVICTION_API: Verdict("preemption", "Restart"),
    FaultReason.PREEMPTION_BY_SCHEDULER: Verdict("preemption", "Restart"),
    FaultReason.TERMINATION_BY_KUBELET: Verdict("infrastructure", "Restart"),
    FaultReason.UNEXPECTED_ADMISSION_ERROR: Verdict("infrastructure", "ReplaceNode"),
    FaultReason.NODE_AFFINITY: Verdict("infrastructure", "Restart"),
    FaultReason.DEADLINE_EXCEEDED: Verdict("application", "Fail"),
    FaultReason.HANG: Verdict("hang", "Restart"),
}
"""By reason; it goes before the exit code, since it says more (137 may be the kernel or the node)."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One thing that went wrong."""

    pod: str
    reason: str
    message: str
    generation_reason: GenerationReason
    exit_code: int | None = None
    node: str | None = None
    consequence: bool = False
    """Somebody else's fault made it fail."""
    at: datetime | None = None

    def verdict(self, rules: list[FailureRule]) -> Verdict:
        """The user's first matching rule, else the built-in tables. The cause is always the built-in one."""
        # A pod that failed without running a container was refused or lost by its node.
        by_code = EXIT_CODES.get(self.exit_code, EXIT_CODES[ExitCode.INTERNAL]) if self.exit_code is not None else None
        known = REASONS.get(self.reason) or by_code or Verdict("infrastructure", "Restart")
        for rule in rules:
            code_fits = not rule.exit_codes or self.exit_code in rule.exit_codes
            if code_fits and (not rule.reasons or self.reason in rule.reasons):
                return Verdict(known.cause, rule.action)
        return known


def pod_fault(name: str, pod: PodView | None) -> Fault | None:
    """The fault of a pod: it is gone, its node is lost, or its container ended; None if none of that was seen."""
    if pod is None:
        message = Message.POD_GONE.text(pod=name)
        return Fault(
            pod=name, reason=FaultReason.POD_GONE, message=message, generation_reason=GenerationReason.POD_FAILED
        )
    if pod.node_lost:
        why = f": {pod.node_reason}" if pod.node_reason else ""
        return Fault(
            pod=name,
            reason=FaultReason.NODE_LOST,
            message=Message.NODE_LOST.text(node=pod.node, pod=name, why=why),
            generation_reason=GenerationReason.NODE_LOST,
            node=pod.node,
        )
    if pod.finished_at is None and pod.phase not in ("Succeeded", "Failed"):
        return None
    by = "somebody deleted the pod" if pod.deleting and not pod.reason else pod.reason
    details = ", ".join(filter(None, [by, f"exit code {pod.exit_code}" if pod.exit_code else "", pod.message]))
    return Fault(
        pod=name,
        reason=FaultReason.TERMINATED if pod.deleting else pod.reason or FaultReason.POD_FAILED,
        message=Message.POD_ENDED.text(pod=name, node=pod.node, why=details or "no reason given"),
        generation_reason=GenerationReason.NODE_LOST
        if pod.reason == FaultReason.NODE_LOST
        else GenerationReason.POD_FAILED,
        exit_code=pod.exit_code,
        node=pod.node,
        at=pod.finished_at,
    )


def gone_fault(name: str, last_seen: PodView | None) -> Fault:
    """A pod that is no longer there: how it ended if that was seen, else only that it is gone.

    Args:
        name: name of the pod.
        last_seen: the pod as it was when it was deleted, if a watch saw it.
    """
    ended = last_seen is not None and (last_seen.node_lost or last_seen.finished_at is not None)
    fault = pod_fault(name, last_seen if ended else None)
    assert fault is not None, "a pod that ended is a fault"
    return fault


def worker_fault(report: Report, pod: PodView | None) -> Fault | None:
    """A worker of a pod failed, as its agent tells."""
    if report.facts.state != "failed":
        return None
    end = report.facts.exit
    code = end.code if end else int(ExitCode.INTERNAL)
    return Fault(
        pod=report.pod,
        reason=_reason(code),
        message=Message.WORKER_FAILED.text(pod=report.pod, why=_describe(end, code)),
        generation_reason=GenerationReason.HANG if code == ExitCode.HANG else GenerationReason.WORKER_FAILED,
        exit_code=code,
        node=pod.node if pod else None,
        consequence=code in CONSEQUENCES,
        at=end.at if end else report.facts.ended_at,
    )


def root_of(faults: list[Fault]) -> Fault | None:
    """The fault that explains the others: a dead pod, else the earliest exit that blames nobody else."""
    pods = [fault for fault in faults if fault.generation_reason in _POD_REASONS]
    if pods:
        return min(pods, key=lambda f: (f.generation_reason != GenerationReason.NODE_LOST, f.exit_code is None, f.pod))
    own = [fault for fault in faults if not fault.consequence]
    return min(own, key=lambda fault: (fault.at.timestamp() if fault.at else 0.0, fault.pod), default=None)


_POD_REASONS: Final = (GenerationReason.NODE_LOST, GenerationReason.POD_FAILED)


def _reason(code: int) -> str:
    return ExitCode(code).name if code in set(ExitCode) else f"ExitCode{code}"


def _describe(end: WorkerExit | None, code: int) -> str:
    name = f"{_reason(code)} ({code})"
    return f"{name} after step {end.step}: {end.message}" if end else name
