"""The bill in the status, and the ledger behind it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from videotrain_api.billing.document import without_numbers
from videotrain_api.money import format_micros
from videotrain_api.reasons import Message, Reason
from videotrain_api.render.config import render_ledger
from videotrain_api.render.names import ledger_name, pod_name
from videotrain_api.resource.pool import Pool
from videotrain_api.resource.status import Corrections, CostStatus, GenerationCost, MonthCost, amounts_of
from videotrain_api.resource.trainrun import pool_name, pool_of
from videotrain_api.schema import Json
from videotrain_api.vocabulary import Bucket
from videotrain_operator.accounting.attribution import microseconds
from videotrain_operator.accounting.corrections import corrected
from videotrain_operator.accounting.entries import Totals
from videotrain_operator.accounting.ledger import Bill, Holding, rebuild, settle
from videotrain_operator.accounting.money import schedule_text
from videotrain_operator.accounting.stored_ledger import (
    BOUND,
    ENDED,
    RECOMPUTED,
    Awaited,
    StageTotals,
    awaited_in,
    with_awaited,
)
from videotrain_operator.planner.awaited import resolve_awaited, with_new_pods
from videotrain_operator.planner.budget import spent_percent
from videotrain_operator.planner.draft import Draft
from videotrain_operator.planner.forecast import forecast_bill
from videotrain_operator.planner.observed import PodView
from videotrain_operator.planner.stage_costs import stage_costs
from videotrain_operator.planner.status_backup import status_backup

MONTHS_LISTED: Final = 12
"""Newest calendar months of which the status tells what each cost."""
PATIENCE_SECONDS: Final = 10.0
"""How long the ledger of a run without a world may lag behind pods that were bound; it says that they are awaited."""


def settle_bill(draft: Draft, *, gone: bool = False) -> Bill:
    """What is held and spent up to now, from the stored ledger and the pods that are there or were seen to go.

    Args:
        draft: of the pass.
        gone: the run does not exist any more.
    """
    present = {pod.uid for pod in draft.observed.pods}
    departed = [pod for pod in draft.observed.departed if pod.uid not in present]
    holdings = [*_holdings(draft, draft.observed.pods, gone=False), *_holdings(draft, departed, gone=True)]
    ledger = _rebuilt(draft, holdings) or draft.observed.ledger
    incomplete = resolve_awaited(draft, ledger or {})
    return settle(
        ledger,
        holdings,
        draft.status.generations,
        now=draft.now,
        observed_at=draft.before.observed_at,
        run_over=gone or draft.finished(),
        stage=_current_stage(draft),
        pools={stage.name: pool_name(draft.run, stage) or "" for stage in draft.spec.stages},
        missing=frozenset(draft.observed.missing.values()),
        incomplete=incomplete,
    )


def _current_stage(draft: Draft) -> str:
    """The last one, once all are complete."""
    stage = draft.stage() or (draft.status.stages[-1] if draft.status.stages else None)
    return stage.name if stage is not None else ""


def _rebuilt(draft: Draft, holdings: list[Holding]) -> Json | None:
    """The ledger, made from the totals in the status if somebody deleted it; None if it is there or never was."""
    cost = draft.before.cost
    if draft.observed.ledger is not None or draft.before.ledger is None or cost is None:
        return None
    # Pods were last seen earlier than the totals count to: where a watch is idle, up to a minute.
    until = cost.counted_until or draft.before.observed_at or draft.now
    message = Message.LEDGER_REBUILT.text(name=draft.before.ledger, total=cost.total, currency=cost.currency)
    draft.tell("Warning", Reason.LEDGER_REBUILT, message)
    stages = {
        stage.name: StageTotals(
            node_microseconds=stage.held_node_microseconds,
            gpu_microseconds=stage.held_gpu_microseconds,
            micros=stage.total_micros,
        )
        for stage in cost.stages
    }
    folded = Totals(
        cost.gpu_microseconds_by_bucket,
        cost.micros_by_bucket,
        cost.waste_micros_by_cause,
        stages=stages,
        months={one.month: one.total_micros for one in cost.months},
        causes={stage.name: stage.micros_by_cause for stage in cost.stages},
    )
    return rebuild(folded, holdings, until)


def store_ledger(draft: Draft, bill: Bill) -> None:
    """Apply the ledger if it changed: before the pods that this pass makes, else as the last object."""
    stored = draft.observed.ledger or {}
    pods = [index for index, item in enumerate(draft.apply) if item["kind"] == "Pod" and "spec" in item]
    awaited = with_new_pods(draft, [draft.apply[index] for index in pods])
    document = with_awaited(bill.document, awaited) | {"run": status_backup(draft)}
    if not (stored or document["pods"] or awaited or document["entries"] or document["folded"]["gpuMicroseconds"]):
        return
    otherwise = _awaits_otherwise(draft, stored, awaited)
    wait = 0.0 if otherwise else _can_wait(document, stored, draft.now, over=draft.finished())
    if 0 < wait < math.inf:
        draft.look_again(wait)
    elif wait == 0:
        ledger = render_ledger(draft.run, document, draft.observed.ledger_resource_version)
        draft.apply.insert(pods[0] if pods else len(draft.apply), ledger)
        draft.update(ledger=ledger_name(draft.run.metadata.name))


def _awaits_otherwise(draft: Draft, stored: Mapping[str, Any], awaited: Mapping[int, Awaited]) -> bool:
    """Another pod is awaited than the stored ledger says, or one no more that is not about to be in it."""
    before = awaited_in(stored)
    if before == awaited:
        return False
    bound = {pod.name for pod in draft.observed.pods if pod.bound_at is not None}
    left = (pod_name(draft.run.metadata.name, number) for number in before.keys() - awaited.keys())
    return any(before.get(number) != note for number, note in awaited.items()) or not bound.issuperset(left)


def _can_wait(document: Json, stored: Mapping[str, Any], now: datetime, *, over: bool) -> float:
    """Seconds until the ledger must be written; 0 for now, infinity for never.

    What can be computed again from what is still there waits for the next write: a window that was closed (its
    generation is in the status), and when a container started. The first pods are bound one after another, and a
    moment's delay makes one write of it; until then it is on record that they are awaited. What ended may be gone at
    the next look; so may a pod that joins a world, if it is deleted by force, and nobody else would know that its node
    was held.
    """
    known, pods = stored.get("pods", {}), document["pods"]
    # One that is made again from the status has folded totals, which nothing else would tell once the status is gone.
    young = document["run"]["generation"] == 0 and not document["folded"]["gpuMicroseconds"]
    keys = ("folded", "run", "entries") if over else () if young else ("folded", "run")
    closed = {entry["uid"] for entry in document["entries"]} - {entry["uid"] for entry in stored.get("entries", ())}
    if closed - pods.keys() - known.keys():  # it came and went, and nothing else tells of it
        return 0.0
    marked = document["folded"]["estimated"] and not stored.get("folded", {}).get("estimated")
    if marked or any(document[key] != stored.get(key) for key in keys) or known.keys() - pods.keys():
        return 0.0
    other = ((uid, row) for uid, row in pods.items() if row != known.get(uid))  # most are the same, and soon told so
    changed = {uid: row for uid, row in other if _facts(row) != _facts(known.get(uid))}
    if not changed:
        return math.inf
    begun = document["run"]["generation"] > 0
    if begun or any(uid in known or row[ENDED] is not None for uid, row in changed.items()):
        return 0.0
    since: int = min(row[BOUND] for row in changed.values())
    return max(0.0, PATIENCE_SECONDS - (microseconds(now) - since) / 1_000_000)


def _facts(row: list[Any] | None) -> list[Any]:
    """Of a pod's row what cannot be computed again."""
    return [value for column, value in enumerate(row or ()) if column not in RECOMPUTED]


def write_cost(draft: Draft, bill: Bill) -> None:
    """Put the bill into the status, for people and dashboards."""
    gpu_us = {bucket.value: bill.gpu_microseconds.get(bucket.value, 0) for bucket in Bucket}
    productive = gpu_us[Bucket.PRODUCTIVE.value]
    expected = forecast_bill(draft, bill)
    cost = CostStatus(
        currency=draft.spec.pool.currency,
        total_micros=bill.total,
        total=format_micros(bill.total),
        counted_until=_counted_until(draft, bill),
        held_gpu_microseconds=bill.held,
        gpu_microseconds_by_bucket=gpu_us,
        micros_by_bucket={bucket.value: bill.micros.get(bucket.value, 0) for bucket in Bucket},
        stages=stage_costs(draft, bill, expected),
        generations=_generation_costs(draft, bill),
        waste_micros_by_cause=without_numbers(bill.totals.waste),
        months=[
            MonthCost(month=month, total_micros=micros, total=format_micros(micros))
            for month, micros in sorted(bill.totals.months.items())[-MONTHS_LISTED:]
        ],
        rate_per_hour=format_micros(bill.rate_micros_per_hour),
        forecast=format_micros(expected.micros) if expected else None,
        forecast_low=format_micros(expected.low) if expected else None,
        forecast_high=format_micros(expected.high) if expected else None,
        expected_stages=expected.stages if expected else [],
        budget_percent=spent_percent(draft.spec.budget, bill),
        goodput_percent=round(productive * 100 / bill.held, 2) if bill.held else None,
        estimated=bill.estimated,
    )
    draft.update(cost=cost.model_copy(update={"corrections": _corrections(draft.before.cost, cost)}))


def _counted_until(draft: Draft, bill: Bill) -> datetime:
    """Now, or as long ago as the bill has been what it is: a run that holds nothing has no news to write."""
    before = draft.before.cost
    same = before is not None and (before.total_micros, before.held_gpu_microseconds) == (bill.total, bill.held)
    return (before.counted_until if before is not None and same else None) or draft.now


def _corrections(before: CostStatus | None, cost: CostStatus) -> Corrections | None:
    if before is None:
        return None
    known, was = before.corrections or Corrections(), amounts_of(before)
    found = {name: corrected(getattr(known, name), was[name], now) for name, now in amounts_of(cost).items()}
    return Corrections(**found) if any(found.values()) else None


def _generation_costs(draft: Draft, bill: Bill) -> list[GenerationCost]:
    wasted: dict[int, int] = {}
    for cause, micros in bill.totals.waste.items():
        number = cause.partition("/")[2]
        if number:
            wasted[int(number)] = wasted.get(int(number), 0) + micros
    totals = bill.totals.generations
    return [
        GenerationCost(
            number=number,
            total_micros=totals.get(number, 0),
            total=format_micros(totals.get(number, 0)),
            wasted_micros=wasted.get(number, 0),
            wasted=format_micros(wasted.get(number, 0)),
        )
        for number in (generation.number for generation in draft.status.generations)
    ]


def _listed(draft: Draft, pod: PodView, pool: Pool) -> str:
    """Schedule of prices of the cluster's list; empty if it has none for the pod."""
    if pod.bound_at is None or not pod.node_labels or not draft.rules.prices.prices:
        return ""
    own = pod.price or draft.price(pool)
    gpus = bool(pod.gpus or pool.gpus_per_node)
    found = draft.rules.prices.of_pod(pod.node_labels, own, gpus=gpus, bound_at=pod.bound_at)
    return schedule_text([(microseconds(at), price) for at, price in found]) if found else ""


def _holdings(draft: Draft, pods: list[PodView] | tuple[PodView, ...], *, gone: bool) -> list[Holding]:
    pools = {pool_name(draft.run, stage): pool_of(draft.run, stage) for stage in draft.spec.stages}
    made_for = [(pod, pools.get(pod.pool, draft.spec.pool)) for pod in pods]
    return [
        Holding(
            uid=pod.uid,
            pod=pod.name,
            gpus=pod.gpus or pool.gpus_per_node,
            price=pod.price or draft.price(pool),
            pool=pod.pool or "",
            node=pod.node or "",
            listed=_listed(draft, pod, pool),
            created_at=pod.created_at,
            bound_at=pod.bound_at,
            started_at=pod.started_at,
            finished_at=pod.finished_at,
            gone=gone,
        )
        for pod, pool in made_for
        if pod.bound_at is not None
    ]
