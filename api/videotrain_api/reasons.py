"""What a run tells: the reasons of its conditions and events, the form of each message, and what to do about it.

The planner takes every reason and message from here; docs/reference/reasons.md is made of it. Reasons that Kubernetes
gives (of a pod that ended, of an image that cannot be pulled, of a write that the API server refuses) are passed on as
they are and are not listed, but for those that decide what a fault counts as.
"""

from __future__ import annotations

import string
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Literal

from videotrain_api.vocabulary import PLANNED, BudgetCondition, Condition, ExitCode, GenerationReason

EventType = Literal["Normal", "Warning"]


class Reason(StrEnum):
    """Reasons of conditions and events, and of how a run or a generation ended; GenerationReason has the others."""

    ACCEPTED = "Accepted"
    ADMITTED = "Admitted"
    ALL_STAGES_SUCCEEDED = "AllStagesSucceeded"
    BUDGET_EXCEEDED = "BudgetExceeded"
    BUDGET_WARNING = "BudgetWarning"
    COMPLETED = "Completed"
    """Of the end of a generation whose stage is complete."""
    DEADLINE_EXCEEDED = "DeadlineExceeded"
    EDIT_IGNORED = "EditIgnored"
    EDIT_REFUSED = "EditRefused"
    FAILED = "Failed"
    FAILURE_POLICY = "FailurePolicy"
    FAULT_IGNORED = "FaultIgnored"
    FROZEN_CONFIG_LOST = "FrozenConfigLost"
    HANG_CULPRIT = "HangCulprit"
    INVALID = "Invalid"
    LEDGER_REBUILT = "LedgerRebuilt"
    NODES_FORGIVEN = "NodesForgiven"
    NODES_TRUSTED = "NodesTrusted"
    NODES_UNTRUSTED = "NodesUntrusted"
    NOT_QUEUED = "NotQueued"
    NO_ANSWER = "NoAnswer"
    NO_LIMIT = "NoLimit"
    NO_PODS = "NoPods"
    NO_PROGRESS = "NoProgress"
    NO_WORLD = "NoWorld"
    PODS_READY = "PodsReady"
    POD_PUT_BACK = "PodPutBack"
    POD_NOT_ALLOWED = "PodNotAllowed"
    DEFAULT_ENFORCED = "DefaultEnforced"
    DEFAULTS_UNREADABLE = "DefaultsUnreadable"
    PROFILE_FAILED = "ProfileFailed"
    PROFILE_REFUSED = "ProfileRefused"
    PROFILE_STORED = "ProfileStored"
    QUEUED = "Queued"
    PASSES_FAIL = "PassesFail"
    PASSES_SUCCEED = "PassesSucceed"
    RECOVERED = "Recovered"
    REFUSED = "Refused"
    """For what the API server refuses without a reason of its own."""
    RESIZED = "Resized"
    RESTART_LIMIT = "RestartLimit"
    STAGES_EDITED = "StagesEdited"
    STAGE_SUCCEEDED = "StageSucceeded"
    STARTING = "Starting"
    START_DEADLINE_EXCEEDED = "StartDeadlineExceeded"
    START_TIMEOUT = "StartTimeout"
    STATUS_LOST = "StatusLost"
    STEPS_ADVANCE = "StepsAdvance"
    STORAGE_DENIED = "StorageDenied"
    SUCCEEDED = "Succeeded"
    SUSPENDED = "Suspended"
    SUSPENDED_BY_USER = "SuspendedByUser"
    TEAM_BUDGET = "TeamBudget"
    TEAM_BUDGET_SHRINK = "TeamBudgetShrink"
    UNSCHEDULABLE = "Unschedulable"
    WAITING_FOR_PODS = "WaitingForPods"
    WITHIN_BUDGET = "WithinBudget"


class FaultReason(StrEnum):
    """Reasons of pods and workers that decide what a fault counts as; `failurePolicy.rules[].reasons` may name them."""

    OOM_KILLED = "OOMKilled"
    """The kernel killed a container for its memory."""
    EVICTED = "Evicted"
    """The kubelet evicted the pod, for instance because a disk was full."""
    NODE_LOST = "NodeLost"
    """The node is gone or not ready."""
    POD_GONE = "PodGone"
    """The pod object is gone, and how it ended was not seen."""
    POD_FAILED = "PodFailed"
    """The pod ended, and nothing says why."""
    NODE_SHUTDOWN = "NodeShutdown"
    """The node shuts down in good order."""
    TERMINATED = "Terminated"
    """The pod was deleted and ended."""
    PREEMPTING = "Preempting"
    """A member leaves in good order: its node is drained or reclaimed, or it is being deleted."""
    STOPPED_BY_QUEUE = "StoppedByQueue"
    """The queue takes the pod's quota back."""
    DELETION_BY_TAINT_MANAGER = "DeletionByTaintManager"
    """The pod does not tolerate a taint of its node."""
    EVICTION_BY_EVICTION_API = "EvictionByEvictionAPI"
    """Somebody evicted the pod, for instance `kubectl drain`."""
    PREEMPTION_BY_SCHEDULER = "PreemptionByScheduler"
    """The scheduler made room for a pod of a higher priority."""
    TERMINATION_BY_KUBELET = "TerminationByKubelet"
    """The kubelet ended the pod for pressure on its node, or as the node shut down."""
    UNEXPECTED_ADMISSION_ERROR = "UnexpectedAdmissionError"
    """The kubelet could not give the pod its devices."""
    NODE_AFFINITY = "NodeAffinity"
    """The node no longer has the labels that the pod asks for."""
    DEADLINE_EXCEEDED = "DeadlineExceeded"
    """The pod's own activeDeadlineSeconds, from a podTemplate, is over."""
    HANG = "Hang"
    """No step came for hangSeconds, or no first one within startSeconds."""


class Message(StrEnum):
    """Forms of messages; `text` fills the braces. A form that ends with a brace may end with what others said."""

    ACTIVE_DEADLINE = "nodes were held for {seconds} s (spec.activeDeadlineSeconds is {limit})"
    ALL_STAGES = "stage {stage} is complete after step {step}: {output}; it was the last of {count}"
    BUDGET_EXCEEDED = (
        "{money} {currency} and {hours} GPU-hours are spent; the next checkpoint would pass the limit ({limits})"
    )
    BUDGET_MARK = "{percent} % of the budget is spent, over the mark at {mark} % ({limits})"
    EDITED = "stage {stage} was edited, and a checkpoint was completed since"
    EDIT_REFUSED = "the run goes on with what its stages did before, since the edit cannot be taken: {why}"
    EDIT_IGNORED = "{fields} cannot change while the run exists; it goes on with what it was accepted with"
    FAILED = "{reason}: {message}"
    FROZEN_CONFIG_LOST = (
        "config map {name} is gone and the spec was edited since it was made, so it cannot be made again; undo the "
        "edits, or delete the run and create it anew"
    )
    GENERATION = "generation {number}: {stage}, {nodes} nodes, {workers} workers. {why}"
    GROWN = "{old} -> {new} nodes: {pods} joined"
    HELD = "the spec was edited and cannot be run; see the condition Accepted"
    HANG = "step {step} was the last for {seconds} s (spec.failurePolicy.hangSeconds is {limit})"
    HANG_CULPRIT = (
        "generation {number} hung: {culprit} stands in no collective, and {waiting} other ranks wait in theirs. "
        "It does: {calls}"
    )
    LEAVING = "leaving: {pods}"
    LEDGER_REBUILT = (
        "config map {name} was deleted or cannot be read; it is made again from the totals in the status "
        "({total} {currency}), and from "
        "now on the bill counts as estimated"
    )
    MEMBERS_SILENT = "some members do not answer"
    NODES_FORGIVEN = "{nodes}: other nodes are not enough for the smallest world"
    NODES_UNTRUSTED = "{why}; nothing is done about {pods} until that is certain"
    NODE_LOST = "node {node} of pod {pod} is lost{why}"
    NOBODY_ANSWERS = "no agent answers; that alone ends nothing"
    NO_FIRST_STEP = "no step was finished yet"
    NO_PODS = "no pod is in queue {queue}"
    NO_PROGRESS = (
        "{deaths} generations in a row died after step {step} (spec.failurePolicy.sameStepLimit is {limit}): {fault}"
    )
    NO_STEP_KNOWN = "nobody who knows the step answers"
    PASSES_FAIL = (
        "{count} passes in a row failed; suspension, deadline and budget are held by the pods alone. The last: {why}"
    )
    PODS = "{ready} pods are ready, at least {needed} are needed"
    PODS_STUCK = "; the container of {pods} cannot be made: {why}"
    PODS_UNPLACED = "; no node takes {pods}: {why}"
    POD_ENDED = "pod {pod} on node {node} ended: {why}"
    POD_GONE = "pod {pod} is gone"
    POD_PUT_BACK = (
        "somebody changed the labels or the owner of {count} pods of this run ({pods}); they are put back, and the "
        "pods are billed all the same"
    )
    POD_SILENT = "pod {pod} does not answer and its peers lost it"
    PROFILE_FAILED = "trace {number}: {stored} stored. {why}"
    PROFILE_REFUSED = "annotation {annotation}: {why}"
    PROFILE_STORED = "trace {number}: {stored} stored in {folder}"
    NOT_QUEUED = (
        "queue {queue}: nothing held {pods} pods back, so no quota counts them: Kueue is not installed, or does not "
        "look after this namespace"
    )
    QUEUE = "queue {queue}: {admitted} pods are admitted, {gated} wait"
    RECOVERED = (
        "generation {number} trains with {nodes} nodes from step {step} on; {lost} steps were lost, and it took "
        "{seconds} s, {minutes} GPU-minutes and {money} {currency} ({reason}: {why})"
    )
    RESIZED = (
        "generation {number} trains with {nodes} nodes from step {step} on, as planned; {lost} steps were lost, and it "
        "took {seconds} s, {minutes} GPU-minutes and {money} {currency} ({reason}: {why})"
    )
    RESTART_LIMIT = "{limit} {cause} restarts are used up (spec.failurePolicy.limits): {fault}"
    RESUMED = "{reason} no longer holds"
    SHRUNK = "{old} -> {new} nodes: {why}"
    STAGES_EDITED = "stages were edited, and their configurations have other hashes: {hashes}"
    STAGE_SUCCEEDED = "stage {stage} is complete after step {step}: {output}"
    START_DEADLINE = "no step within {limit} s of the first pod (spec.startDeadlineSeconds)"
    START_TIMEOUT = "no step within {seconds} s of its roster (spec.failurePolicy.startSeconds){errors}"
    STATUS_LOST = (
        "the status was emptied; counters and finished stages are taken from the ledger, the world from the pods"
    )
    STACKS = "the workers of the world that hung tell where they stand"
    STORAGE_DENIED = (
        "the object store denies access; the run holds no nodes, goes on from its newest checkpoint and tries again at "
        "{time} UTC: {why}"
    )
    STATUS_UNREADABLE = (
        "{fields} cannot be read; what the ledger knows of it is taken from there, and the rest begins anew"
    )
    SUSPENDING = "{reason}: saving and releasing all nodes"
    TEAM_BUDGET = (
        "TrainingBudget {budget} ({amount} {currency} a month): {action} at {percent} % holds for this run until "
        "{until}; raise its spec.amount, or spec.priority of this run"
    )
    TEAM_CURRENCY = (
        "spec.pool.currency {own}: TrainingBudget {budget} counts {currency} and lets no run in another currency "
        "begin; create the run anew with prices in {currency}"
    )
    WAITS_FOR_MORE = "{ready} of {largest} pods are ready; starts with {size} at {time} UTC"
    WAITS_FOR_PODS = "{ready} of at least {needed} pods are ready"
    WAY_ON = "; generation {number} of {stage} ended after step {step}, the next one goes on {where}"
    WORKER_FAILED = "worker of pod {pod} failed: {why}"

    def text(self, **values: object) -> str:
        """The message.

        Args:
            values: one for each brace.

        Raises:
            KeyError: a brace has no value.
        """
        return self.value.format(**values)

    @property
    def braces(self) -> set[str]:
        """Names of what `text` has to be given."""
        return {name for _, name, _, _ in string.Formatter().parse(self.value) if name}


@dataclass(frozen=True, kw_only=True)
class Notice:
    """One thing that a run can tell: where it stands, in which form, and what its reader should do."""

    where: Condition | BudgetCondition | Literal["event"]
    type: str
    """Normal or Warning of an event; True, False or Unknown of a condition."""
    reason: StrEnum
    message: str
    """Its form; empty if it has none, `{message}` if it is what somebody else said. `{way_on}` is Message.WAY_ON if a
    generation ended, else empty."""
    advice: str
    """For the user."""


def _told(
    type_: EventType, reason: Reason | GenerationReason, message: str, advice: str, *also: tuple[Condition, str]
) -> list[Notice]:
    """An event, and the conditions that say the same with the same reason, each with its status."""
    event = Notice(where="event", type=type_, reason=reason, message=message, advice=advice)
    return [event, *(_held(kind, status, reason, message, advice) for kind, status in also)]


def _held(
    kind: Condition, status: str, reason: Reason | GenerationReason, message: str = "", advice: str = ""
) -> Notice:
    return Notice(where=kind, type=status, reason=reason, message=message, advice=advice or NOTHING)


NOTHING: Final = "Nothing."
_LOOK: Final = "Nothing; the run goes on by itself. Look at the pod or node that is named if it comes again."
_FAULTS: Final = (
    (GenerationReason.NODE_LOST, Message.NODE_LOST),
    (GenerationReason.POD_FAILED, Message.POD_GONE),
    (GenerationReason.POD_FAILED, Message.POD_ENDED),
    (GenerationReason.WORKER_FAILED, Message.WORKER_FAILED),
    (GenerationReason.WORKER_FAILED, Message.POD_SILENT),
    (GenerationReason.HANG, Message.WORKER_FAILED),
    (GenerationReason.HANG, Message.HANG),
    (GenerationReason.HANG, Message.START_TIMEOUT),
    (GenerationReason.PREEMPTED, Message.LEAVING),
)
"""Faults by which a generation ends, and the form of what is told of each."""
_FAILURES: Final = (
    (Reason.FAILURE_POLICY, "{message}", "Read what ended it, and the rule of spec.failurePolicy.rules that matched."),
    (Reason.RESTART_LIMIT, Message.RESTART_LIMIT, "Mend the fault that is named, or raise spec.failurePolicy.limits."),
    (Reason.NO_PROGRESS, Message.NO_PROGRESS, "Mend the fault: going on from the same step meets it again."),
    (Reason.DEADLINE_EXCEEDED, Message.ACTIVE_DEADLINE, "Raise spec.activeDeadlineSeconds in a new run."),
    (Reason.START_DEADLINE_EXCEEDED, Message.START_DEADLINE, "See Scheduled for what kept the pods from coming."),
    (Reason.BUDGET_EXCEEDED, Message.BUDGET_EXCEEDED, "Create a new run with a larger spec.budget."),
)
"""Why a run fails. Exit codes that retrying cannot help are reasons as well: see the page of exit codes."""
NOTICES: Final[tuple[Notice, ...]] = (
    _held(Condition.ACCEPTED, "True", Reason.ACCEPTED),
    *_told(
        "Warning",
        Reason.EDIT_IGNORED,
        Message.EDIT_IGNORED,
        "Undo the edit, or create a new run. Which fields may change is in docs/decisions/0521-what-may-change.md.",
        (Condition.ACCEPTED, "True"),
    ),
    *_told(
        "Warning",
        Reason.EDIT_REFUSED,
        Message.EDIT_REFUSED,
        "Undo the edit, or fork the run with it. The message names the field.",
        (Condition.ACCEPTED, "True"),
    ),
    *_told("Warning", Reason.INVALID, "{message}", "Correct the field that is named.", (Condition.ACCEPTED, "False")),
    *_told(
        "Warning",
        Reason.POD_NOT_ALLOWED,
        "{message}",
        "Correct the field that is named, or have the chart's value podTemplate.policy changed. Nothing is lost.",
        (Condition.ACCEPTED, "False"),
    ),
    *_told(
        "Warning",
        Reason.DEFAULT_ENFORCED,
        "{message}",
        "Leave out the field that is named, or have the chart's value runDefaults.enforced changed. Nothing is lost.",
        (Condition.ACCEPTED, "False"),
    ),
    *_told(
        "Warning",
        Reason.DEFAULTS_UNREADABLE,
        "{message}",
        "On the ConfigMap of the chart's runDefaults: correct it, or run `helm upgrade` again. The last readable ones "
        "stay.",
    ),
    *_told(
        "Warning",
        Reason.FROZEN_CONFIG_LOST,
        Message.FROZEN_CONFIG_LOST,
        "Undo the edits, or delete the run and create it anew.",
        (Condition.ACCEPTED, "False"),
    ),
    *_told("Normal", Reason.QUEUED, Message.QUEUE, "Wait for quota.", (Condition.QUOTA_RESERVED, "False")),
    *_told("Normal", Reason.ADMITTED, Message.QUEUE, NOTHING, (Condition.QUOTA_RESERVED, "True")),
    *_told(
        "Warning",
        Reason.NOT_QUEUED,
        Message.NOT_QUEUED,
        "Install Kueue or have it look after this namespace, or take spec.queue away; the run does not wait for it.",
        (Condition.QUOTA_RESERVED, "False"),
    ),
    *_told(
        "Warning",
        GenerationReason.PREEMPTED,
        Message.QUEUE,
        "Nothing; workers have saved, and the run goes on when the queue admits it again.",
        (Condition.QUOTA_RESERVED, "False"),
    ),
    _held(Condition.QUOTA_RESERVED, "False", Reason.NO_PODS, Message.NO_PODS, "Nothing; pods are made when needed."),
    _held(Condition.SCHEDULED, "True", Reason.PODS_READY, Message.PODS),
    *(
        _held(Condition.SCHEDULED, "True", Reason.PODS_READY, Message.PODS + why, "Nothing; the run uses those it has.")
        for why in (Message.PODS_STUCK, Message.PODS_UNPLACED)
    ),
    _held(Condition.SCHEDULED, "False", Reason.WAITING_FOR_PODS, Message.PODS),
    *_told(
        "Warning",
        Reason.UNSCHEDULABLE,
        Message.PODS + Message.PODS_UNPLACED,
        "Compare what the pods ask for with the nodes: spec.pool, and the words of the scheduler.",
        (Condition.SCHEDULED, "False"),
    ),
    *_told(
        "Warning",
        Reason.REFUSED,
        "{message}",
        "The API server refused a write: a quota, an admission webhook or a missing right. It says which.",
        (Condition.SCHEDULED, "False"),
    ),
    _held(Condition.RUNNING, "True", Reason.STEPS_ADVANCE),
    *(
        _held(Condition.RUNNING, "False", Reason.NO_WORLD, form, "See Scheduled, Restarting and Resizing.")
        for form in ("", Message.STACKS, Message.WAITS_FOR_PODS, Message.WAITS_FOR_MORE)
    ),
    _held(Condition.RUNNING, "False", Reason.NO_WORLD, Message.HELD, "Correct the spec, or undo the edit."),
    _held(Condition.PROGRESS_OBSERVED, "True", Reason.STEPS_ADVANCE),
    _held(Condition.PROGRESS_OBSERVED, "Unknown", Reason.STARTING, Message.NO_FIRST_STEP),
    *(
        _held(Condition.PROGRESS_OBSERVED, "Unknown", Reason.NO_ANSWER, message, "Look at the network of the pods.")
        for message in (Message.NOBODY_ANSWERS, Message.NO_STEP_KNOWN, Message.MEMBERS_SILENT)
    ),
    _held(Condition.PROGRESS_OBSERVED, "Unknown", Reason.NO_WORLD),
    _held(Condition.PROGRESS_OBSERVED, "False", GenerationReason.HANG, Message.HANG, "Read the stacks in the logs."),
    _held(
        Condition.PROGRESS_OBSERVED,
        "False",
        Reason.START_TIMEOUT,
        Message.START_TIMEOUT,
        "Read the logs of the pods; raise spec.failurePolicy.startSeconds if loading takes so long.",
    ),
    *(
        notice
        for reason in (GenerationReason.STARTED, GenerationReason.STAGE_STARTED, GenerationReason.RESUMED)
        for notice in _told("Normal", reason, Message.GENERATION, NOTHING)
    ),
    *(
        notice
        for reason in (*PLANNED, *dict(_FAULTS))
        for notice in (
            *_told("Normal", reason, Message.GENERATION, NOTHING),
            _held(Condition.RESIZING if reason in PLANNED else Condition.RESTARTING, "True", reason, "{message}"),
        )
    ),
    *(notice for reason, form in _FAULTS for notice in _told("Warning", reason, form + "{way_on}", _LOOK)),
    *_told(
        "Warning",
        Reason.HANG_CULPRIT,
        Message.HANG_CULPRIT,
        "Nothing; new pods avoid the node for an hour. Look at the calls that are named if the hang comes again.",
    ),
    *_told("Warning", Reason.FAULT_IGNORED, "{message}", "Nothing; a rule of spec.failurePolicy.rules says so."),
    *_told("Normal", Reason.RECOVERED, Message.RECOVERED, NOTHING, (Condition.RESTARTING, "False")),
    _held(Condition.RESTARTING, "False", Reason.RECOVERED),
    *_told("Normal", Reason.RESIZED, Message.RESIZED, NOTHING, (Condition.RESIZING, "False")),
    _held(Condition.RESIZING, "False", Reason.RESIZED),
    *_told(
        "Normal",
        Reason.NODES_FORGIVEN,
        Message.NODES_FORGIVEN,
        "Give the pool more good nodes, or look at those that are named.",
    ),
    *_told(
        "Warning",
        Reason.NODES_UNTRUSTED,
        Message.NODES_UNTRUSTED,
        "Look whether so many nodes are really lost, or the control plane's view is wrong.",
        (Condition.NODES_TRUSTED, "False"),
    ),
    _held(Condition.NODES_TRUSTED, "True", Reason.NODES_TRUSTED),
    *_told("Warning", Reason.BUDGET_WARNING, Message.BUDGET_MARK, "Raise spec.budget in time, or let it stop there."),
    *_told(
        "Warning",
        Reason.BUDGET_EXCEEDED,
        Message.BUDGET_EXCEEDED,
        "Raise spec.budget; the run goes on at once, unless its action is Fail.",
        (Condition.BUDGET_OK, "False"),
    ),
    _held(Condition.BUDGET_OK, "True", Reason.WITHIN_BUDGET, "{limits}"),
    _held(Condition.BUDGET_OK, "True", Reason.NO_LIMIT),
    *(
        notice
        for reason, form, advice in (
            (
                Reason.TEAM_BUDGET,
                Message.TEAM_BUDGET,
                "Wait for the next month, or ask who owns the TrainingBudget to raise it.",
            ),
            (Reason.TEAM_BUDGET, Message.TEAM_CURRENCY, "Give the run's prices in the currency of the budget."),
            (
                Reason.TEAM_BUDGET_SHRINK,
                Message.TEAM_BUDGET,
                "It goes on with the fewest nodes; ask who owns the TrainingBudget to raise it.",
            ),
        )
        for notice in _told("Warning", reason, form, advice, (Condition.TEAM_BUDGET_OK, "False"))
    ),
    _held(Condition.TEAM_BUDGET_OK, "True", Reason.WITHIN_BUDGET, "{limits}"),
    _held(Condition.TEAM_BUDGET_OK, "True", Reason.NO_LIMIT),
    _held(Condition.SUSPENDED, "True", Reason.TEAM_BUDGET, advice="See TeamBudgetOK."),
    *_told("Normal", Reason.SUSPENDED, Message.SUSPENDING, NOTHING),
    _held(Condition.SUSPENDED, "True", Reason.SUSPENDED_BY_USER, advice="Set spec.suspend to false to go on."),
    _held(Condition.SUSPENDED, "True", Reason.BUDGET_EXCEEDED, advice="Raise spec.budget to go on."),
    *_told(
        "Warning",
        Reason.STORAGE_DENIED,
        Message.STORAGE_DENIED,
        "Mend the keys of spec.storage.credentialsSecret, what they may do in the bucket, the bucket itself, or the "
        "clocks of the nodes. The run tries again by itself, after at most an hour; setting spec.suspend to true and "
        "back to false makes it try at once.",
        (Condition.SUSPENDED, "True"),
    ),
    *_told("Normal", GenerationReason.RESUMED, Message.RESUMED, NOTHING),
    _held(Condition.SUSPENDED, "False", GenerationReason.RESUMED),
    *_told("Normal", Reason.STAGE_SUCCEEDED, Message.STAGE_SUCCEEDED, NOTHING),
    *_told("Normal", Reason.STAGES_EDITED, Message.STAGES_EDITED, NOTHING),
    *_told("Normal", Reason.PROFILE_STORED, Message.PROFILE_STORED, "Open the traces in ui.perfetto.dev."),
    *_told("Warning", Reason.PROFILE_FAILED, Message.PROFILE_FAILED, "Ask again; training was not disturbed."),
    *_told("Warning", Reason.PROFILE_REFUSED, Message.PROFILE_REFUSED, "Correct the annotation."),
    *_told("Normal", Reason.SUCCEEDED, Message.ALL_STAGES, NOTHING),
    _held(Condition.COMPLETE, "True", Reason.ALL_STAGES_SUCCEEDED),
    *_told("Warning", Reason.FAILED, Message.FAILED, "See the reason, which is that of the condition Failed."),
    *(_held(Condition.FAILED, "True", reason, form, advice) for reason, form, advice in _FAILURES),
    *_told(
        "Warning",
        Reason.STATUS_LOST,
        Message.STATUS_LOST,
        "Find out who writes the status of runs; it belongs to the operator.",
    ),
    *_told(
        "Warning",
        Reason.STATUS_LOST,
        Message.STATUS_UNREADABLE,
        "Find out who writes the status of runs; it belongs to the operator. After an undone upgrade: nothing.",
    ),
    *_told(
        "Warning",
        Reason.POD_PUT_BACK,
        Message.POD_PUT_BACK,
        "Find out who edits worker pods; they belong to the operator.",
    ),
    *_told(
        "Warning",
        Reason.PASSES_FAIL,
        Message.PASSES_FAIL,
        "Read why. What the API server refuses is a quota, a policy or a right; anything else is a fault of the "
        "operator: its log has the whole of it.",
        (Condition.RECONCILED, "False"),
    ),
    _held(Condition.RECONCILED, "True", Reason.PASSES_SUCCEED),
    *_told(
        "Warning",
        Reason.LEDGER_REBUILT,
        Message.LEDGER_REBUILT,
        "Find out who deletes config maps of runs; the bill is an estimate from here on.",
    ),
)
"""All that a run can tell."""
_EXIT_ADVICE: Final = {
    ExitCode.CONFIG: "Correct the field that is named in a new run; the same one would end in the same way.",
    ExitCode.DATA: "Mend the data that are named, or let more of them be skipped, and begin a new run.",
    ExitCode.DIVERGED: "Lower the learning rate or warm up longer in a new run, which may start from earlier weights.",
    ExitCode.GRADIENTS: "Report it with the log: it is a fault of the engine, not of the manifest.",
}


def advice_for(condition: Condition, reason: str) -> str:
    """What to do about a condition that holds for a reason; a way to look where nothing better is known."""
    for notice in NOTICES:
        if (notice.where, notice.reason) == (condition, reason) and notice.advice != NOTHING:
            return notice.advice
    codes = {code.name: advice for code, advice in _EXIT_ADVICE.items()}
    return codes.get(reason, "Read the end of the log of the worker that is named.")
