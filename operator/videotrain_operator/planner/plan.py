"""plan(): everything that a run needs next, from what was seen and the time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any, Final

from videotrain_api.frozen_config import effective_run
from videotrain_api.reasons import Message, Reason
from videotrain_api.render.config import render_config_map
from videotrain_api.render.names import key_name
from videotrain_api.render.network import render_network_policy
from videotrain_api.resource.status import RunStatus
from videotrain_api.resource.stored_status import read_status
from videotrain_api.resource.trainrun import VideoTrainingRun, pool_name, pool_of
from videotrain_api.schema import Json, ManifestError
from videotrain_api.vocabulary import Condition, Phase
from videotrain_operator.planner.bill import settle_bill, store_ledger, write_cost
from videotrain_operator.planner.budget import check_budget, until_saved_micros
from videotrain_operator.planner.cluster_rules import ClusterRules
from videotrain_operator.planner.conditions import make_condition, reconciled, with_condition
from videotrain_operator.planner.configuration import accept, take_defaults
from videotrain_operator.planner.deadlines import check_deadlines, track_active_time
from videotrain_operator.planner.decision import Event, Plan
from videotrain_operator.planner.denial import wait_for_storage
from videotrain_operator.planner.draft import Draft
from videotrain_operator.planner.edits import take_edit
from videotrain_operator.planner.finish import expire_run
from videotrain_operator.planner.generations import (
    adopt_published,
    begin_generation,
    correct_stamp,
    create_roster,
    dismiss,
    publish_roster,
)
from videotrain_operator.planner.hangs import judge_hang
from videotrain_operator.planner.health import check_generation, check_standby
from videotrain_operator.planner.limits import overdue_pods
from videotrain_operator.planner.members import forgive_nodes, put_back, release_all, settle_pods
from videotrain_operator.planner.observed import Observed, PodView
from videotrain_operator.planner.outage import track_outage
from videotrain_operator.planner.profiles import follow_profile
from videotrain_operator.planner.progress import absorb_progress
from videotrain_operator.planner.report import write_report
from videotrain_operator.planner.resize import change_world
from videotrain_operator.planner.status_backup import kept_config_map, restore_generation_number, restore_status
from videotrain_operator.planner.suspension import suspend_or_resume
from videotrain_operator.planner.team_budget import check_team_budgets

_DEFAULT_RULES: Final = ClusterRules()
REFUSED_LOOK_SECONDS: Final = 30.0
"""Between looks at a run that cannot be parsed and holds pods: deadline and budget come without any change."""


def plan(run: VideoTrainingRun, observed: Observed, now: datetime, rules: ClusterRules = _DEFAULT_RULES) -> Plan:
    """Decide one pass. Pure: the same input gives the same plan, and nothing that is passed in is changed.

    Args:
        run: the run as the cluster holds it; `status` is what an earlier pass wrote.
        observed: a snapshot of everything that belongs to it.
        now: the time of this pass, aware.
        rules: what the operator was told to hold every run to.

    Returns:
        What to apply, delete, write and tell, and when to look again. Repeating a plan on its own result changes
        nothing once it no longer asks to be called again at once (`requeue_seconds == 0`).

    Raises:
        ManifestError: the frozen spec cannot be read.
    """
    draft = _open(run, observed, now, rules)
    draft.update(conditions=reconciled(draft.status.conditions, run.metadata.generation, now))
    if draft.being_deleted():
        release_all(draft)  # nothing is created: its namespace may be going, too
        return draft.plan()
    # 1. The configuration. Why here? Everything below reads the frozen spec and the stages that come of it; a run that
    # was never accepted has none. Late enough for an emptied status to have stages again, and early enough to have its
    # counters back before anything is counted.
    if not accept(draft, run.spec):
        draft.update(observed_generation=run.metadata.generation or 0, phase=Phase.INVALID.value)
        return draft.plan()
    restore_status(draft)
    # The cluster's defaults, after all that is frozen: they describe pods and limits, none of which is. What the run
    # holds of them stands in the status, which must be whole.
    take_defaults(draft)
    # 2. What is so by now: the world that an earlier pass published before it died, and what the agents say. Late
    # enough to know the stage that a roster names; early enough that no generation number is used twice. What pods
    # carry wins over the ledger, and answers are about generations that the status must know first.
    adopt_published(draft)
    correct_stamp(draft)
    restore_generation_number(draft)
    absorb_progress(draft)
    follow_profile(draft)
    # 3. What it cost so far. Late enough to know each step and save, which say where time went; early enough for 4.
    # Nothing decided below is in this bill: it is in the next one.
    track_active_time(draft)
    bill = settle_bill(draft)
    # 4. Deadlines and budget may fail, suspend or shrink the run. Early enough that no restart is counted of a run that
    # is over, and that 6 and 7 find `suspend_reason` and the sizes that are left.
    check_deadlines(draft)
    check_budget(draft, bill)
    check_team_budgets(draft)
    wait_for_storage(draft)
    # 5. The running generation may be complete, dead, hanging or about to lose a node. Suspicions are dropped before a
    # fault of this pass raises new ones; pods outside the world come last, since the world's own dead are counted with
    # it. Leaves `ended`: then 6 to 8 begin no world, and make and delete no pod.
    forgiven = forgive_nodes(draft)
    check_generation(draft)
    check_standby(draft)
    stacks_due = judge_hang(draft)
    # 6. Release the nodes, take an edit, or change the world's size. Late enough that a dead world is on record as
    # dead, not drained.
    suspend_or_resume(draft)
    waiting = ""
    if draft.suspend_reason is None:
        waiting = _next_world(draft, stacks_due=stacks_due)
    # 8. Objects. Late enough to know the world. Config maps come before the pods that mount them, replacements before
    # survivors are told, and the ledger last: it holds a copy of what the status says after all that.
    _settle_fixed_objects(draft)
    put_back(draft)
    settle_pods(draft, remake_unplaced=forgiven)
    dismiss(draft)
    publish_roster(draft)
    store_ledger(draft, bill)
    # 9. The status. The cost of an outage is read from the cost, and the report tells of both; the run itself may go
    # only when all of it is said.
    write_cost(draft, bill)
    recovered = track_outage(draft)
    write_report(draft, waiting=waiting, recovered=recovered)
    expire_run(draft)
    return replace(draft.plan(), until_saved_micros=until_saved_micros(draft, bill))


def _next_world(draft: Draft, *, stacks_due: bool) -> str:
    """Take an edit, or change the world's size, and begin the next generation; what that waits for."""
    taken = take_edit(draft)
    if not taken:
        change_world(draft)
    # 7. The next generation. If 5 or 6 ended one, or took an edit, it has to wait for the next pass: that must be
    # stored first, or an operator that dies in between would forget the restart, or count it twice.
    if stacks_due:
        return Message.STACKS.text()
    return "" if taken else begin_generation(draft)


def plan_refusal(run: Mapping[str, Any], observed: Observed, error: ManifestError, now: datetime) -> Plan:
    """The plan for a manifest that cannot even be parsed: a condition that says why, and the limits that can be read.

    Args:
        run: the object as the cluster holds it.
        observed: a snapshot of everything that belongs to it.
        error: what is wrong with it.
        now: the time of this pass, aware.
    """
    status = read_status(run.get("status")).status
    generation = run.get("metadata", {}).get("generation")
    new = make_condition(Condition.ACCEPTED, False, Reason.INVALID, str(error), generation=generation, now=now)
    conditions = reconciled(status.conditions, generation, now)
    known = any(c.type == new.type and c.message == new.message for c in conditions)
    events = () if known else (Event(type="Warning", reason=Reason.INVALID, message=new.message),)
    changes: dict[str, Any] = {"conditions": with_condition(conditions, new)}
    changes["observed_generation"] = generation or 0
    if status.config_map is None:
        changes["phase"] = Phase.INVALID.value  # one that was accepted before goes on as it is
    return Plan(
        status=status.model_copy(update=changes),
        events=events,
        delete=overdue_pods(run, observed.pods, now, observed.time_untrusted, observed.budgets or ()),
        requeue_seconds=REFUSED_LOOK_SECONDS if observed.pods else None,
    )


def settle_gone(run: VideoTrainingRun, observed: Observed, now: datetime) -> tuple[RunStatus, Json]:
    """The last bill of a run that does not exist any more.

    Args:
        run: as it was after its last pass.
        observed: its pods as they were when they went, and its ledger.
        now: the time, aware.

    Returns:
        Its status with the bill, and its ledger, all of it closed.
    """
    draft = _open(run, observed, now, _DEFAULT_RULES)
    bill = settle_bill(draft, gone=True)
    write_cost(draft, bill)
    return draft.status, bill.document


def _open(run: VideoTrainingRun, observed: Observed, now: datetime, rules: ClusterRules) -> Draft:
    stored = read_status(run.status)
    status = stored.status
    if status.config_map is None:
        # What was frozen outlives the status: an edit that was refused, or came since, must not take its place.
        status = status.model_copy(update={"config_map": kept_config_map(observed.ledger)})
    frozen = observed.frozen_spec if status.config_map else None
    if observed.nodes_untrusted:
        # A pod whose node looks lost is then no member of a new world, and not dead either.
        pods = (replace(p, node_lost=False, node_untrusted=True) if p.node_lost else p for p in observed.pods)
        observed = replace(observed, pods=tuple(pods))
    observed = replace(observed, pods=tuple(_on_cordon(run, pod) for pod in observed.pods))
    key = key_name(run, observed.signing_key)
    changed = (pod.key_secret is not None and pod.key_secret != key for pod in observed.pods)
    marked = (replace(pod, key_changed=True) if new else pod for pod, new in zip(observed.pods, changed, strict=True))
    return Draft(
        run=effective_run(run, frozen),
        observed=replace(observed, pods=tuple(marked)),
        now=now,
        rules=rules,
        before=stored.status,
        status=status.model_copy(update={"unconfirmed": None}),
        unreadable=stored.unreadable,
    )


def _on_cordon(run: VideoTrainingRun, pod: PodView) -> PodView:
    """A cordoned node is left only if the pod's pool says so."""
    if not pod.node_cordoned:
        return pod
    pools = {pool_name(run, stage): pool_of(run, stage) for stage in run.spec.stages}
    leaves = pools.get(pod.pool, run.spec.pool).on_cordon == "Leave"
    return replace(pod, node_draining=pod.node_draining or leaves)


def _settle_fixed_objects(draft: Draft) -> None:
    """Create config maps where they are missing, and the network policy where it is missing or another."""
    if draft.finished():
        return
    if draft.rules.network is not None and not draft.releases_all():
        policy = render_network_policy(draft.run, draft.rules.network)
        if policy["spec"] != draft.observed.network_policy:
            draft.apply.append(policy)
    create_roster(draft)
    name = draft.status.config_map
    if name is not None and name not in draft.observed.config_maps and draft.config_data is not None:
        draft.apply.append(render_config_map(draft.run, name, draft.config_data))
