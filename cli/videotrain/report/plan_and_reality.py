"""Plan against reality: what each stage was to cost, what was expected when it began, what it cost, and why."""

from __future__ import annotations

from videotrain.report.markup import Html, element, join, section, table, text
from videotrain.wording import duration, exact
from videotrain_api.money import parse_micros
from videotrain_api.schema import Json

WHY = {
    "price": "another price per hour",
    "steps": "fewer steps were made",
    "rate": "a step took other node time",
    "start": "starts of the stage",
    "checkpoint": "waiting for checkpoints",
    "data": "waiting for data",
    "idle": "nodes without work",
    "failures": "ends of worlds: steps that were lost, the way out, the starts after them",
}
"""Words for the parts of a difference."""


def plan_section(summary: Json) -> Html:
    """A row for each stage that has a plan, and below it what the differences are made of."""
    cost = summary["cost"]
    seconds = {stage["name"]: stage["seconds"] for stage in summary["stages"]}
    planned = [stage for stage in cost["stages"] if stage.get("plan")]
    if not planned:
        return Html("")
    rows = [_row(stage, seconds.get(stage["name"])) for stage in planned]
    headings = (
        "stage",
        f"planned, {cost['currency']}",
        "expected when it began",
        "spent",
        "difference",
        "planned time",
        "time",
        "node-seconds per step, planned",
        "real",
    )
    lead = (
        "The plan is that of `videotrain plan`: by the work of the steps at the mid rates of GPUs, with a start, "
        "checkpoints and failures at the usual rate. It knows nothing of the machine that a local run uses."
    )
    shown = [table(headings, rows, range(1, 9)), *filter(None, [_reasons(planned, cost["currency"])])]
    return section("Plan and reality", *shown, lead=lead)


def _row(stage: Json, seconds: float | None) -> tuple[str, ...]:
    plan = stage["plan"]
    difference = stage["total_micros"] - parse_micros(plan["total"])
    real = plan["real_node_seconds_per_step"]
    return (
        stage["name"],
        plan["total"],
        plan["forecast"] or "",
        stage["total"],
        _signed(difference) if plan["difference_micros"] else "not over yet",
        duration(plan["seconds"]),
        "" if seconds is None else duration(seconds),
        f"{plan['node_seconds_per_step']:g}",
        "" if real is None else f"{real:g}",
    )


def _reasons(planned: list[Json], currency: str) -> Html | None:
    rows = [
        (stage["name"], WHY.get(name, name), _signed(micros))
        for stage in planned
        for name, micros in sorted(stage["plan"]["difference_micros"].items(), key=lambda item: -abs(item[1]))
    ]
    if not rows:
        return None
    heading = element("h3", text("Why they differ"))
    return join(heading, table(("stage", "because of", currency), rows, (2,)))


def _signed(micros: int) -> str:
    return f"{'+' if micros > 0 else '-' if micros < 0 else ''}{exact(abs(micros))}"
