"""plan(): everything that a run needs next, from what was seen and the time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from videotrain_api.frozen_config import effective_run
from videotrain_api.reasons import Reason
from videotrain_api.render.config import render_config_map
from videotrain_api.render.names import service_name
from videotrain_api.render.service import render_service
from videotrain_api.resource.status import RunStatus
from videotrain_api.resource.trainrun import VideoTrainingRun
from videotrain_api.schema import ManifestError
from videotrain_api.vocabulary import Condition, Phase
from videotrain_operator.planner.bill import settle_bill, store_ledger, write_cost
from videotrain_operator.planner.budget import check_budget
from videotrain_operator.planner.conditions import make_condition, with_condition
from videotrain_operator.planner.configuration import accept
from videotrain_operator.planner.deadlines import check_deadlines, track_active_time
from videotrain_operator.planner.decision import Deletion, Event, Plan
from videotrain_operator.planner.draft import Draft
from videotrain_operator.planner.finish import expire_run
from videotrain_operator.planner.generations import adopt_published, begin_generation, spread_roster
from videotrain_operator.planner.health import judge_generation, judge_standby
from videotrain_operator.planner.members import forgive_nodes, release_all, settle_pods
from videotrain_operator.planner.observed import Observed, PodView
from videotrain_operator.planner.outage import track_outage
from videotrain_operator.planner.progress import absorb_progress
from videotrain_operator.planner.report import write_report
from videotrain_operator.planner.resize import change_world
from videotrain_operator.planner.status_backup import restore_generation_number, restore_status
from videotrain_operator.planner.suspension import suspend_or_resume


def plan(run: VideoTrainingRun, observed: Observed, now: datetime) -> Plan:
    """Decide one pass. Pure: the same input gives the same plan, and nothing that is passed in is changed.

    Args:
        run: the run as the cluster holds it; `status` is what an earlier pass wrote.
        observed: a snapshot of everything that belongs to it.
        now: the time of this pass, aware.

    Returns:
        What to apply, delete, write and tell, and when to look again. Repeating a plan on its own result changes
        nothing once it no longer asks to be called again at once (`requeue_seconds == 0`).

    Raises:
        ManifestError: the stored status or frozen spec cannot be read.
    """
    draft = _open(run, observed, now)
    if draft.being_deleted():
        return _plan_deletion(draft)
    # 1. A manifest that cannot be resolved gets a condition and nothing else.
    if not accept(draft, run.spec):
        return _refusal(draft)
    restore_status(draft)
    # 2. What an earlier pass published before it died, and what the agents say.
    adopt_published(draft)
    restore_generation_number(draft)
    absorb_progress(draft)
    # 3. What it cost so far.
    track_active_time(draft)
    settle_bill(draft)
    # 4. Deadlines and the budget may end or pause the run.
    check_deadlines(draft)
    check_budget(draft)
    # 5. The running generation may be complete, dead, hanging or about to lose a node.
    forgive_nodes(draft)
    judge_generation(draft)
    judge_standby(draft)
    # 6. Nodes may have to be released, or the world changed.
    suspend_or_resume(draft)
    if draft.suspend_reason is None:
        change_world(draft)
        # 7. The next generation, if none runs and its predecessor's end is on record.
        begin_generation(draft)
    # 8. Objects: service, configuration, pods, rosters, ledger.
    _settle_fixed_objects(draft)
    settle_pods(draft)
    _retire_service(draft)
    spread_roster(draft)
    store_ledger(draft)
    # 9. The status, and the end of a finished run.
    write_cost(draft)
    track_outage(draft)
    write_report(draft)
    expire_run(draft)
    return draft.plan()


def plan_refusal(run: Mapping[str, Any], error: ManifestError, now: datetime) -> Plan:
    """The plan for a manifest that cannot even be parsed: a condition that says why, and nothing else.

    Args:
        run: the object as the cluster holds it.
        error: what is wrong with it.
        now: the time of this pass, aware.
    """
    status = RunStatus.from_wire(run.get("status") or {})
    generation = run.get("metadata", {}).get("generation")
    new = make_condition(Condition.ACCEPTED, False, Reason.INVALID, str(error), generation=generation, now=now)
    known = any(c.type == new.type and c.message == new.message for c in status.conditions)
    events = () if known else (Event(type="Warning", reason=Reason.INVALID, message=new.message),)
    changes: dict[str, Any] = {"conditions": with_condition(status.conditions, new)}
    changes["observed_generation"] = generation or 0
    if status.config_map is None:
        changes["phase"] = Phase.INVALID.value  # one that was accepted before goes on as it is
    return Plan(status=status.model_copy(update=changes), events=events)


def _plan_deletion(draft: Draft) -> Plan:
    """Release the pods of a run that is being deleted. Nothing is created: its namespace may be going, too."""
    release_all(draft)
    return draft.plan()


def _open(run: VideoTrainingRun, observed: Observed, now: datetime) -> Draft:
    status = RunStatus.from_wire(run.status or {})
    frozen = dict(observed.frozen_spec) if observed.frozen_spec is not None and status.config_map else None
    if observed.nodes_untrusted:
        observed = replace(observed, pods=tuple(_of_untrusted_node(pod) for pod in observed.pods))
    return Draft(run=effective_run(run, frozen), observed=observed, now=now, before=status, status=status)


def _of_untrusted_node(pod: PodView) -> PodView:
    """A pod whose node looks lost while nodes are not trusted is no member of a new world, and not dead either."""
    return replace(pod, node_lost=False, node_untrusted=True) if pod.node_lost else pod


def _refusal(draft: Draft) -> Plan:
    draft.update(observed_generation=draft.run.metadata.generation or 0, phase=Phase.INVALID.value)
    return draft.plan()


def _retire_service(draft: Draft) -> None:
    """Where all pods go the service goes first, or each pod that leaves costs its endpoints two writes."""
    if draft.deletes_all_pods() and draft.observed.service_uid is not None:
        name = service_name(draft.run)
        draft.delete.insert(0, Deletion(kind="Service", name=name, uid=draft.observed.service_uid))


def _settle_fixed_objects(draft: Draft) -> None:
    """Create the frozen config map where it is missing, and the service from the first roster on.

    A roster carries addresses, so no world waits for names, and a service that is made when all its pods run costs its
    endpoints one write instead of one for each pod.
    """
    if draft.finished():
        return
    if draft.live is not None and draft.observed.service_uid is None:
        draft.apply.append(render_service(draft.run))
    name = draft.status.config_map
    if name is not None and name not in draft.observed.config_maps and draft.config_data is not None:
        draft.apply.append(render_config_map(draft.run, name, draft.config_data))
