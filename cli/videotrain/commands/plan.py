"""`videotrain plan`: what a manifest would cost, beside what the published run did."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.text import Text

from videotrain.bills.tables import estimate_table
from videotrain.commands import plan_memory, plan_tables
from videotrain.errors import UsageError
from videotrain.manifest_file import Source, load_run
from videotrain.wording import compact, duration
from videotrain_api.billing.estimates import StorageEstimate
from videotrain_api.cost.forecast import CostForecast, forecast
from videotrain_api.cost.overheads import FAILURES_PER_1000_GPU_DAYS, Interruptions
from videotrain_api.cost.published import OTHER_RUNS, PUBLISHED, PUBLISHED_COST, PUBLISHED_GPU_DAYS
from videotrain_api.cost.sensitivity import Change, sensitivity
from videotrain_api.cost.source_shares import source_shares
from videotrain_api.cost.stage_data_wait import SECOND_REQUEST, STORE, StageDataWait, stage_data_wait
from videotrain_api.cost.storage import planned_storage
from videotrain_api.money import format_micros
from videotrain_api.resource.prices import PriceList
from videotrain_api.resource.run_defaults import RunDefaults
from videotrain_api.resource.stages import node_counts
from videotrain_api.resource.trainrun import VideoTrainingRun, node_bounds
from videotrain_api.rules.pod_security import PodPolicy

TABLE_WIDTH = 130
"""Columns of a table that is written to a file or a pipe."""


@dataclass(frozen=True, kw_only=True)
class Assumptions:
    """What a plan takes for granted."""

    mfu: float | None = None
    """Model FLOPs utilisation for what is modelled, above 0 and at most 1; modelled from rates if None."""
    seconds_per_step: dict[str, float] = field(default_factory=dict)
    """Measured step times by stage name, seconds."""
    failures: float = FAILURES_PER_1000_GPU_DAYS
    """Unexpected interruptions per 1,000 GPU-days."""
    hours_of_video: float | None = None
    """Raw videos for curate and encode stages."""
    gpus: frozenset[int] = frozenset()
    """Further worlds to tell the memory of, GPUs."""
    data_wait: bool = False
    """Replay what the train stages wait for their data, which takes seconds."""
    prices: PriceList = field(default_factory=PriceList)
    """Of the object store."""


def print_plan(
    source: Path | Source, assumptions: Assumptions, pod_policy: PodPolicy, defaults: RunDefaults, *, as_json: bool
) -> int:
    """Print the cost of a manifest.

    Args:
        source: manifest.
        assumptions: what the plan takes for granted.
        pod_policy: what the worker pods have to keep to.
        defaults: of the cluster, which the run may not override where they are enforced.
        as_json: machine-readable output.

    Returns:
        Exit code.

    Raises:
        ManifestError, ManifestFileError: the manifest is refused.
        UsageError: a step time is given for a stage that the run does not have, or no hours of video.
    """
    run = load_run(source, pod_policy, defaults)
    interruptions, hours = Interruptions(per_1000_gpu_days=assumptions.failures), assumptions.hours_of_video
    try:
        modelled = forecast(run, mfu=assumptions.mfu, interruptions=interruptions, hours_of_video=hours)
        planned = modelled
        if assumptions.seconds_per_step:
            planned = forecast(
                run,
                mfu=assumptions.mfu,
                seconds_per_step=assumptions.seconds_per_step,
                interruptions=interruptions,
                hours_of_video=hours,
            )
    except ValueError as error:
        raise UsageError(f"--seconds-per-step, --hours-of-video: {error}") from error
    changes = sensitivity(run) if any(stage.task == "train" and stage.bands for stage in planned.stages) else []
    rows = list(plan_memory.planned_rows(run, plan_memory.usual_worlds(run) | assumptions.gpus))
    coding, host = list(plan_memory.coding_rows(run)), plan_memory.host_rows(run)
    waits = list(_data_waits(run)) if assumptions.data_wait else []
    stored = planned_storage(run, planned)
    if as_json:
        document = _document(planned, modelled, changes, assumptions)
        document |= {"memory": plan_memory.memory_document(rows), "hostMemory": plan_memory.host_document(host)}
        document["codingMemory"] = plan_memory.coding_document(coding)
        document["objectStore"] = _store_document(stored, assumptions.prices, planned.currency)
        document["sources"] = [share.to_wire() for share in source_shares(run, planned)]
        if waits:
            document["dataWait"] = [{"asked": once.to_wire(), "askedTwice": twice.to_wire()} for once, twice in waits]
        sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
        return 0
    console = Console() if sys.stdout.isatty() else Console(width=TABLE_WIDTH)
    _print_tables(console, run, planned, modelled, changes, assumptions)
    if waits:
        console.print(plan_tables.data_table(waits, planned.currency))
        console.print(Text(_STORE_NOTE, style="dim"))
    if stored:
        console.print(estimate_table(stored, assumptions.prices, planned.currency))
    for table in plan_memory.memory_tables(rows):
        console.print(table)
    if coding:
        console.print(plan_memory.coding_table(coding))
    if host:
        console.print(plan_memory.host_table(host))
    return 0


def _store_document(stored: Sequence[StorageEstimate], prices: PriceList, currency: str) -> list[dict[str, object]]:
    """Amounts are None without prices in the currency."""
    listed = prices.storage if prices.currency == currency else None
    return [
        one.to_wire() | {"cost": None if listed is None else format_micros(one.total_micros(listed))} for one in stored
    ]


def _data_waits(run: VideoTrainingRun) -> Iterator[tuple[StageDataWait, StageDataWait]]:
    """What train stages wait for data in their smallest and largest worlds, without and with second requests."""
    for index, stage in enumerate(run.spec.stages):
        if stage.train is not None:
            counts = node_counts(node_bounds(run, stage))
            for nodes in dict.fromkeys((counts[0], counts[-1])):
                yield stage_data_wait(run, index, nodes), stage_data_wait(run, index, nodes, SECOND_REQUEST)


_STORE_NOTE = (
    f"data: answers of the object store assumed as {1000 * STORE.p50_seconds:g} ms at the median and "
    f"{1000 * STORE.p99_seconds:g} ms at the p99, {100 * STORE.stalled_share:g} % of them stalled for "
    f"{STORE.stall_seconds:g} s; asked twice: a second request after the p95."
)


def _document(
    planned: CostForecast, modelled: CostForecast, changes: list[Change], assumptions: Assumptions
) -> dict[str, object]:
    document: dict[str, object] = {
        "forecast": planned.to_wire(),
        "modelled": modelled.to_wire(),
        "sensitivity": [change.to_wire() for change in changes],
        "failuresPer1000GpuDays": assumptions.failures,
    }
    if any(stage.published for stage in planned.stages):
        document["published"] = {
            "gpuDays": PUBLISHED_GPU_DAYS,
            "cost": PUBLISHED_COST,
            "currency": "USD",
            "stages": [stage.to_wire() for stage in PUBLISHED],
            "otherModels": [run.to_wire() for run in OTHER_RUNS],
        }
    return document


def _print_tables(
    console: Console,
    run: VideoTrainingRun,
    planned: CostForecast,
    modelled: CostForecast,
    changes: list[Change],
    assumptions: Assumptions,
) -> None:
    console.print(plan_tables.forecast_table(planned))
    if any(stage.pool for stage in run.spec.stages):
        console.print(plan_tables.pool_table(run, planned))
    if shares := list(source_shares(run, planned)):
        console.print(plan_tables.source_table(shares, planned.currency))
    if any(stage.bands for stage in planned.stages):
        console.print(plan_tables.band_table(planned))
    if any(stage.overheads for stage in planned.stages):
        console.print(plan_tables.overhead_table(planned))
    published = any(stage.published for stage in planned.stages)
    given = any(stage.source == "given" for stage in planned.stages)
    if given or published:
        console.print(plan_tables.comparison_table(planned, modelled, given=given))
    if published:
        console.print(plan_tables.other_runs_table(planned))
    if planned.preparation:
        console.print(plan_tables.preparation_table(run, planned, planned.preparation))
    if changes:
        console.print(plan_tables.sensitivity_table(changes, planned.currency))
    for note in _notes(planned, assumptions):
        console.print(Text(note, style="dim"))


def _notes(planned: CostForecast, assumptions: Assumptions) -> list[str]:
    peak = f"{compact(planned.peak_flops)}FLOP/s per GPU, at the most nodes."
    if planned.mfu is None:
        notes = [
            "modelled: work by formula (recomputation not counted in MFU), time from assumed and quoted rates of one "
            f"H200; no GPU measured it. MFU is of {peak}"
        ]
    else:
        notes = [
            f"modelled: model FLOPs by formula (recomputation not counted) at {100 * planned.mfu:.0f} % of {peak}",
        ]
    notes += [
        f"failures: {assumptions.failures:g} per 1,000 GPU-days (--failures).",
        f"price: {planned.price_per_gpu_hour} {planned.currency} per GPU-hour.",
    ]
    if not planned.complete:
        left_out = [stage for stage in planned.stages if stage.cost is None]
        names = ", ".join(stage.name for stage in left_out)
        advice = "; give --hours-of-video" if any(stage.task != "evaluate" for stage in left_out) else ""
        notes.append(f"not in the sum: {names} (the work depends on the data{advice}).")
    captions = {s.work.assumed_caption_tokens for s in planned.stages if s.work} - {None}
    notes += [f"text: captions of {count} tokens are assumed where train.attendPadding is false." for count in captions]
    wall = sum(s.work.steps * s.seconds_per_step for s in planned.stages if s.work and s.seconds_per_step)
    notes.append(f"wall time of the steps of these stages, one after another: {duration(wall)}.")
    return notes
