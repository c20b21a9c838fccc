"""What each stage cost, what it was to cost, and why that is not the same."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

from videotrain_api.cost.plan_against_real import PRODUCTIVE, UNKNOWN, PlannedStage, differences
from videotrain_api.money import format_micros, round_half_up
from videotrain_api.resource.sampling import FPS
from videotrain_api.resource.status import StageCost, StagePlan, StageStatus
from videotrain_operator.accounting.ledger import Bill
from videotrain_operator.accounting.stored_ledger import StageTotals
from videotrain_operator.planner.draft import Draft
from videotrain_operator.planner.forecast import Forecast, planned

OVER = ("Succeeded", "Failed")


def stage_costs(draft: Draft, bill: Bill, expected: Forecast | None) -> list[StageCost]:
    """Of every stage that cost something.

    Args:
        draft: of the pass.
        bill: up to now.
        expected: what the run is expected to cost; what it says of a stage when that begins is kept.
    """
    plans, found = planned(draft), []
    for stage in draft.status.stages:
        totals = bill.stages.get(stage.name)
        if totals is None:
            continue
        causes = _causes(bill, stage.name, totals)
        plan = plans.get(stage.name)
        frames, tokens = stage.frames_per_step, stage.tokens_per_step
        found.append(
            StageCost(
                name=stage.name,
                total_micros=totals.micros,
                total=format_micros(totals.micros),
                held_gpu_microseconds=totals.gpu_microseconds,
                held_node_microseconds=totals.node_microseconds,
                micros_by_cause=causes,
                plan=None if plan is None else _plan(draft, stage, totals, causes, plan, expected),
                per_thousand_steps=_per(totals.micros, stage.step, 1000),
                per_thousand_video_seconds=_per(totals.micros, stage.step * (frames or 0) / FPS, 1000),
                per_billion_tokens=_per(totals.micros, stage.step * (tokens or 0), 1_000_000_000),
            )
        )
    return found


def _causes(bill: Bill, stage: str, totals: StageTotals) -> dict[str, int]:
    """What is in no cause is of windows that were closed before causes were noted by stage."""
    causes = {name: micros for name, micros in sorted(bill.totals.causes.get(stage, {}).items()) if micros}
    untold = totals.micros - sum(causes.values())
    return causes | ({UNKNOWN: causes.get(UNKNOWN, 0) + untold} if untold else {})


def _plan(
    draft: Draft,
    stage: StageStatus,
    totals: StageTotals,
    causes: Mapping[str, int],
    plan: PlannedStage,
    expected: Forecast | None,
) -> StagePlan:
    known = draft.before.cost.stages if draft.before.cost else []
    before = next((one.plan for one in known if one.name == stage.name), None)
    forecast = before.forecast if before is not None else None
    if forecast is None and expected is not None and stage.state not in OVER:
        forecast = next((one.total for one in expected.stages if one.name == stage.name), None)
    held = totals.gpu_microseconds or totals.node_microseconds
    why = differences(plan, totals.micros, held, causes, stage.step) if stage.state in OVER else {}
    # By money, which is told by cause: nodes that cost nothing tell nothing.
    productive = Fraction(causes.get(PRODUCTIVE, 0), max(1, totals.micros)) * totals.node_microseconds
    return StagePlan(
        total=format_micros(plan.total),
        seconds=round(plan.seconds, 1),
        node_seconds_per_step=round(plan.node_seconds_per_step, 4),
        forecast=forecast,
        real_node_seconds_per_step=round(float(productive) / stage.step / 1e6, 4)
        if stage.step and totals.micros
        else None,
        difference_micros=why,
    )


def _per(micros: int, done: float, many: int) -> str | None:
    """What so many cost if `done` of them cost that; None if none is done."""
    return format_micros(round_half_up(Fraction(micros * many) / Fraction(done))) if done else None
