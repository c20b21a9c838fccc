"""All runs together: what they cost, and how they are."""

from __future__ import annotations

from typing import Final

from videotrain_api import metrics as m
from videotrain_api.generate.boards.queries import OF_FLEET, PRODUCTIVE, SHOWN, STEP
from videotrain_api.generate.panels import Board, Panel

FLEET: Final = Board(
    "videotrain-fleet",
    "videotrain / fleet and money",
    ("namespace",),
    (
        (
            "Money",
            (
                Panel(
                    "Spent in the time shown",
                    ((f"sum by (currency) (increase({m.COST_MICROS.name}{OF_FLEET}{SHOWN})) / 1e6", "{{currency}}"),),
                    kind="number",
                    span=6,
                ),
                Panel(
                    "An hour costs now",
                    ((f"sum by (currency) ({m.COST_RATE_PER_HOUR.name}{OF_FLEET})", "{{currency}}"),),
                    kind="number",
                    span=6,
                    help="Price of the GPUs that are held at this moment.",
                ),
                Panel(
                    "Expected at the runs' ends",
                    ((f"sum by (currency) ({m.FORECAST_COST.name}{OF_FLEET})", "{{currency}}"),),
                    kind="number",
                    span=6,
                ),
                Panel(
                    "Goodput in the time shown",
                    (
                        (
                            f"sum(increase({m.GPU_SECONDS.name}{PRODUCTIVE}{SHOWN}))"
                            f" / sum(increase({m.GPU_SECONDS.name}{OF_FLEET}{SHOWN}))",
                            "",
                        ),
                    ),
                    "percentunit",
                    "number",
                    span=6,
                    help="Productive share of the GPU time that was held.",
                ),
                Panel(
                    "An hour costs, by run",
                    (
                        (
                            f"sum by (namespace, run, currency) ({m.COST_RATE_PER_HOUR.name}{OF_FLEET})",
                            "{{namespace}}/{{run}} {{currency}}",
                        ),
                    ),
                    kind="stack",
                    span=12,
                    links_to_run=True,
                ),
                Panel(
                    "What the money buys, per hour",
                    (
                        (
                            f"sum by (bucket, currency) (rate({m.COST_MICROS.name}{OF_FLEET}{STEP})) * 3600 / 1e6",
                            "{{bucket}} {{currency}}",
                        ),
                    ),
                    kind="stack",
                    span=12,
                    help="Everything but `productive` is what elasticity, data and checkpoints cost.",
                ),
                Panel(
                    "Money without progress per hour, by cause",
                    (
                        (
                            f"sum by (cause, currency) (rate({m.WASTE_MICROS.name}{OF_FLEET}{STEP})) * 3600 / 1e6",
                            "{{cause}} {{currency}}",
                        ),
                    ),
                    kind="stack",
                    span=12,
                ),
                Panel(
                    "Spent share of the budgets",
                    ((f"max by (namespace, run) ({m.BUDGET_RATIO.name}{OF_FLEET})", "{{namespace}}/{{run}}"),),
                    "percentunit",
                    span=12,
                    links_to_run=True,
                ),
                Panel(
                    "GPUs held, by use",
                    ((f"sum by (bucket) (rate({m.GPU_SECONDS.name}{OF_FLEET}{STEP}))", "{{bucket}}"),),
                    kind="stack",
                    span=12,
                ),
            ),
        ),
        (
            "Runs",
            (
                Panel(
                    "Runs by phase", ((f"sum by (phase) ({m.RUN_PHASE.name}{OF_FLEET})", "{{phase}}"),), kind="stack"
                ),
                Panel(
                    "Goodput since the start, by run",
                    ((f"max by (namespace, run) ({m.GOODPUT_RATIO.name}{OF_FLEET})", "{{namespace}}/{{run}}"),),
                    "percentunit",
                    links_to_run=True,
                ),
                Panel(
                    "MFU, by run",
                    ((f"max by (namespace, run) ({m.RUN_MFU_RATIO.name}{OF_FLEET})", "{{namespace}}/{{run}}"),),
                    "percentunit",
                    links_to_run=True,
                    help="Model FLOPs over the GPUs' dense bf16 peak; no series where the peak of a GPU is not known.",
                ),
                Panel(
                    "Samples per second, by run",
                    (
                        (
                            f"max by (namespace, run) ({m.RUN_SAMPLES_PER_SECOND.name}{OF_FLEET})",
                            "{{namespace}}/{{run}}",
                        ),
                    ),
                    links_to_run=True,
                ),
                Panel(
                    "Restarts an hour, by cause",
                    ((f"sum by (cause) (rate({m.RESTARTS.name}{OF_FLEET}{STEP})) * 3600", "{{cause}}"),),
                    kind="stack",
                ),
                Panel(
                    "Time from the last fault to the first step after it",
                    ((f"max by (namespace, run) ({m.RECOVERY_SECONDS.name}{OF_FLEET})", "{{namespace}}/{{run}}"),),
                    "s",
                    links_to_run=True,
                ),
            ),
        ),
    ),
)
