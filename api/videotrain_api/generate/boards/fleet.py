"""All runs together: what they cost, and how they are."""

from __future__ import annotations

from typing import Final

from videotrain_api import metrics as m
from videotrain_api.generate import recordings as r
from videotrain_api.generate.boards.queries import (
    CLUSTER,
    EVENTS,
    FLEET,
    OF_CLUSTER,
    OF_FLEET,
    STEP,
    gpu_increase,
    money_increase,
    or_none,
)
from videotrain_api.generate.panels import Board, Panel

_PRODUCTIVE: Final = f'{FLEET}, bucket="productive"'
_TEAM: Final = f"on (namespace, run) group_left (team) {r.TEAM.name}{OF_FLEET}"
_SPENT_BY_RUN: Final = money_increase(m.COST_MICROS, m.COST_CORRECTED_MICROS, FLEET, "namespace, run, currency")
_BY_RUN: Final = "{{namespace}}/{{run}}"


def _by_run(metric: m.Metric) -> str:
    return f"max by (namespace, run) ({metric.name}{OF_FLEET})"


def _of_budget(metric: m.Metric) -> str:
    return f"{metric.name}{OF_CLUSTER} / {m.TRAINING_BUDGET_AMOUNT.name}{OF_CLUSTER}"


_NUMBERS: Final = (
    Panel(
        "Spent in the time shown",
        ((money_increase(m.COST_MICROS, m.COST_CORRECTED_MICROS, FLEET, "currency"), "{{currency}}"),),
        "money",
        "number",
        span=5,
    ),
    Panel(
        "An hour costs now",
        ((f"sum by (currency) ({m.COST_RATE_PER_HOUR.name}{OF_FLEET})", "{{currency}}"),),
        "money",
        "number",
        "Price of the nodes that are held at this moment.",
        5,
    ),
    Panel(
        "Expected at the runs' ends",
        ((f"sum by (currency) ({m.FORECAST_COST.name}{OF_FLEET})", "{{currency}}"),),
        "money",
        "number",
        span=5,
    ),
    Panel(
        "Budgets of the runs",
        ((f"sum by (currency) ({m.RUN_BUDGET.name}{OF_FLEET})", "{{currency}}"),),
        "money",
        "number",
        span=5,
    ),
    Panel(
        "Goodput in the time shown",
        ((f"sum({gpu_increase(_PRODUCTIVE, 'run')}) / sum({gpu_increase(FLEET, 'run')})", ""),),
        "percentunit",
        "number",
        "Productive share of the GPU time that was held.",
        4,
    ),
)

_MONEY: Final = (
    Panel(
        "An hour costs, by run",
        (
            (
                f"sum by (namespace, run, currency) ({m.COST_RATE_PER_HOUR.name}{OF_FLEET})",
                f"{_BY_RUN} {{{{currency}}}}",
            ),
        ),
        "money",
        "stack",
        span=12,
        opens="run",
    ),
    Panel(
        "An hour costs, by team",
        (
            (
                f"sum by (team, currency) ({m.COST_RATE_PER_HOUR.name}{OF_FLEET} * {_TEAM})",
                "{{team}} {{currency}}",
            ),
        ),
        "money",
        "stack",
        "Of the label videotrain.dev/team of each run.",
        12,
    ),
    Panel(
        "Spent by team in the time shown",
        (
            (
                f"sum by (team, currency) ({_SPENT_BY_RUN} * {_TEAM})",
                "{{team}} {{currency}}",
            ),
        ),
        "money",
        "number",
        help="Of runs that are still there; `videotrain bill --by team` also tells of those that are gone.",
        span=12,
    ),
    Panel(
        "Spent share of the budgets",
        ((_by_run(m.BUDGET_RATIO), _BY_RUN),),
        "percentunit",
        span=12,
        opens="run",
    ),
    Panel(
        "What the money buys, per hour",
        (
            (
                f"sum by (bucket, currency) ({r.MONEY.name}{OF_FLEET}) * 3600 / 1e6",
                "{{bucket}} {{currency}}",
            ),
        ),
        "money",
        "stack",
        "Everything but `productive` is what elasticity, data and checkpoints cost.",
        12,
    ),
    Panel(
        "Money without progress per hour, by cause",
        (
            (
                or_none(f"sum by (cause, currency) ({r.WASTE.name}{OF_FLEET}) * 3600 / 1e6 > 0", "cause", "currency"),
                "{{cause}} {{currency}}",
            ),
        ),
        "money",
        "stack",
        "`idle` is what is held and works for nobody.",
        12,
    ),
    Panel(
        "Budgets of teams this month",
        (
            (f"max by (budget) ({_of_budget(m.TRAINING_BUDGET_SPENT)})", "{{budget}}"),
            (f"max by (budget) ({_of_budget(m.TRAINING_BUDGET_EXPECTED)})", "{{budget}} at its end"),
        ),
        "percentunit",
        help="What was spent, and what will have been if nodes go on so, over the amount.",
        span=12,
    ),
    Panel(
        "Rules of team budgets that hold",
        (
            (
                f"max by (budget, action) ({m.TRAINING_BUDGET_ACTION.name}{OF_CLUSTER})",
                "{{budget}} {{action}}",
            ),
            (f"1 - max by (budget) ({m.TRAINING_BUDGET_JUDGED.name}{OF_CLUSTER})", "{{budget}} is not judged"),
        ),
        help="1: new runs wait, runs are small, or they have saved and wait for the next month.",
        span=12,
    ),
    Panel(
        "Reserved GPUs",
        (
            (
                f"max by (commitment, state) ({m.RESERVED_GPUS.name}{OF_CLUSTER})",
                "{{commitment}} {{state}}",
            ),
        ),
        help="Of each commitment of the price list, and of other reserved nodes (none).",
        span=12,
    ),
    Panel(
        "Reserved and held by no run, per hour",
        (
            (
                f"max by (commitment, currency) ({m.RESERVED_IDLE_COST.name}{OF_CLUSTER})",
                "{{commitment}} {{currency}}",
            ),
        ),
        "money",
        "stack",
        help="Is paid in any case, and in no run's bill. Pods that are not of runs may use it.",
        span=12,
    ),
    Panel(
        "GPUs held, by use",
        ((f"sum by (bucket) ({r.GPUS.name}{OF_FLEET})", "{{bucket}}"),),
        kind="stack",
        span=12,
    ),
    Panel(
        "Forecast over budget",
        ((f"{_by_run(m.FORECAST_COST)} / {_by_run(m.RUN_BUDGET)}", _BY_RUN),),
        "percentunit",
        help="Above 100 % a run will be stopped before it is complete.",
        span=12,
        opens="run",
    ),
)

_RUNS: Final = (
    Panel("Runs by phase", ((f"sum by (phase) ({m.RUN_PHASE.name}{OF_FLEET})", "{{phase}}"),), kind="stack"),
    Panel(
        "Goodput of the last hour, by run",
        ((f"max by (namespace, run) ({r.GOODPUT.name}{OF_FLEET})", _BY_RUN),),
        "percentunit",
        opens="run",
    ),
    Panel("Goodput since the start, by run", ((_by_run(m.GOODPUT_RATIO), _BY_RUN),), "percentunit", opens="run"),
    Panel(
        "MFU, by run",
        ((_by_run(m.RUN_MFU_RATIO), _BY_RUN),),
        "percentunit",
        help="Model FLOPs over the GPUs' dense bf16 peak; no series where the peak of a GPU is not known.",
        opens="run",
    ),
    Panel("Samples per second, by run", ((_by_run(m.RUN_SAMPLES_PER_SECOND), _BY_RUN),), opens="run"),
    Panel(
        "Step time, p99 by run",
        ((f"max by (namespace, run) ({r.STEP_P99.name}{OF_FLEET})", _BY_RUN),),
        "s",
        opens="run",
    ),
    Panel(
        "Restarts an hour, by cause",
        ((f"sum by (cause) (rate({m.RESTARTS.name}{OF_FLEET}{STEP})) * 3600", "{{cause}}"),),
        kind="stack",
    ),
    Panel(
        "Time from the last fault to the first step after it",
        ((_by_run(m.RECOVERY_SECONDS), _BY_RUN),),
        "s",
        opens="run",
    ),
    Panel(
        "Alerts",
        (
            (
                f'count by (alertname) (ALERTS{{{CLUSTER}, alertname=~"VideoTrain.*", alertstate="firing"}})',
                "{{alertname}}",
            ),
        ),
        kind="stack",
        help="A click opens the page that says what to do.",
        opens="runbook",
    ),
)

FLEET_AND_MONEY: Final = Board(
    "videotrain-fleet",
    "videotrain / fleet and money",
    ("cluster", "namespace", "team", "run"),
    (("Now", _NUMBERS), ("Money", _MONEY), ("Runs", _RUNS)),
    (EVENTS,),
)
