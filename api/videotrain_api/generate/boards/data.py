"""The data of one run: what it waits for, what curation keeps, and what clips cost."""

from __future__ import annotations

from typing import Final

from videotrain_api import metrics as m
from videotrain_api.generate.boards.queries import OF_STAGE, ONE_RUN, RESTARTS, STEP, of_leader, spent
from videotrain_api.generate.panels import Board, Panel

_BY_STAGE: Final = f"max by (stage) (rate({m.SAMPLES.name}{OF_STAGE}{STEP}))"

_WAITING: Final = (
    Panel(
        "Exposed data time",
        ((f"max by (stage) (rate({m.DATA_STALL_SECONDS.name}{OF_STAGE}{STEP}))", "{{stage}}"),),
        "percentunit",
        help="Share of the time in which steps waited for input that nothing hid.",
    ),
    Panel(
        "Exposed data time by pod",
        ((f"max by (pod) (rate({m.DATA_STALL_SECONDS.name}{OF_STAGE}{STEP}))", "{{pod}}"),),
        "percentunit",
        opens="node",
    ),
    Panel(
        "Arrival of a sample, p99 of the slowest rank",
        ((of_leader(m.SLOWEST_SAMPLE_SECONDS), "{{stage}}"),),
        "s",
    ),
    Panel(
        "Requests for samples per second",
        ((f"sum by (kind) (rate({m.SAMPLE_REQUESTS.name}{OF_STAGE}{STEP}))", "{{kind}}"),),
        help="Second ones go out beside first ones that are late; others follow damage.",
    ),
    Panel(
        "Samples from the nodes' caches per second",
        ((f"sum by (outcome) (rate({m.SAMPLE_CACHE_READS.name}{OF_STAGE}{STEP}))", "{{outcome}}"),),
        help="Where train.sampleCacheGibibytes is set; what a node reads first is a miss.",
    ),
    Panel("Samples in the fullest node's cache", ((of_leader(m.SAMPLE_CACHE_BYTES), "{{stage}}"),), "bytes"),
)

_MAKING: Final = (
    Panel("Clips kept", ((f"max by (stage) ({m.CURATION_CLIPS.name}{OF_STAGE})", "{{stage}}"),)),
    Panel(
        "Dropped, by reason",
        ((f"sum by (reason) ({m.CURATION_DROPPED.name}{OF_STAGE})", "{{reason}}"),),
        kind="stack",
    ),
    Panel(
        "Samples per second, by stage",
        ((_BY_STAGE, "{{stage}}"),),
        help="Videos of curation, clips of encoding, clips and pictures of training.",
    ),
    Panel(
        "Stored by encoding per second",
        ((f"max by (stage) (rate({m.STORED_SAMPLE_BYTES.name}{OF_STAGE}{STEP}))", "{{stage}}"),),
        "Bps",
    ),
    Panel(
        "Stored by encoding per clip",
        (
            (
                f"max by (stage) (rate({m.STORED_SAMPLE_BYTES.name}{OF_STAGE}{STEP})) / {_BY_STAGE}",
                "{{stage}}",
            ),
        ),
        "bytes",
        help="Its device is busy in forward passes, and idle while it waits for data.",
    ),
    Panel(
        "Units of work or steps done",
        (
            (f"max by (stage) ({m.RUN_STEP.name}{OF_STAGE})", "{{stage}}"),
            (f"max by (stage) ({m.RUN_STEPS_PLANNED.name}{OF_STAGE})", "planned, {{stage}}"),
        ),
    ),
)

_COSTS: Final = (
    Panel(
        "Cost of a million clips that curation keeps",
        (
            (
                f"{spent(m.STAGE_COST_MICROS, m.STAGE_COST_CORRECTED_MICROS, 'stage, currency')} * 1e6"
                f" / on (stage) group_left max by (stage) ({m.CURATION_CLIPS.name}{OF_STAGE})",
                "{{stage}} {{currency}}",
            ),
        ),
        "money",
        help="Everything that the stage cost, also what was dropped and waited for.",
        span=12,
    ),
    Panel(
        "Cost of a million samples at the pace of now",
        (
            (
                f"max by (stage, currency) (rate({m.STAGE_COST_MICROS.name}{{{ONE_RUN}}}{STEP}))"
                f" / on (stage) group_left {_BY_STAGE}",
                "{{stage}} {{currency}}",
            ),
        ),
        "money",
        span=12,
    ),
)

DATA: Final = Board(
    "videotrain-data",
    "videotrain / data",
    ("cluster", "namespace", "run", "stage"),
    (("Waiting for data", _WAITING), ("Curation and encoding", _MAKING), ("What it costs", _COSTS)),
    (RESTARTS,),
    one_run=True,
)
