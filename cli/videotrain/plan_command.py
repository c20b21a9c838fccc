"""`videotrain plan`: what a manifest would cost, beside what the published run did."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from videotrain.cli_errors import UsageError
from videotrain.manifest_file import load_run
from videotrain.wording import compact, duration
from videotrain_api.cost import (
    PUBLISHED,
    PUBLISHED_COST,
    PUBLISHED_GPU_DAYS,
    CostForecast,
    StageForecast,
    forecast,
)

UNKNOWN = "-"
TABLE_WIDTH = 118
"""Columns of a table that is written to a file or a pipe."""


def print_plan(path: Path, mfu: float, seconds_per_step: dict[str, float], *, as_json: bool) -> int:
    """Print the cost of a manifest.

    Args:
        path: manifest.
        mfu: model FLOPs utilisation for what is modelled, above 0 and at most 1.
        seconds_per_step: measured step times by stage name, seconds.
        as_json: machine-readable output.

    Returns:
        Exit code.

    Raises:
        ManifestError, ManifestFileError: the manifest is refused.
        UsageError: a step time is given for a stage that the run does not have.
    """
    run = load_run(path)
    try:
        planned = forecast(run, mfu=mfu, seconds_per_step=seconds_per_step)
    except ValueError as error:
        raise UsageError(f"--seconds-per-step: {error}") from error
    modelled = forecast(run, mfu=mfu)
    if as_json:
        sys.stdout.write(json.dumps(_document(planned, modelled), indent=2, ensure_ascii=False) + "\n")
        return 0
    console = Console() if sys.stdout.isatty() else Console(width=TABLE_WIDTH)
    _print_tables(console, planned, modelled)
    return 0


def _document(planned: CostForecast, modelled: CostForecast) -> dict[str, object]:
    document = {"forecast": planned.to_wire(), "modelled": modelled.to_wire()}
    if any(stage.published for stage in planned.stages):
        document["published"] = {
            "gpuDays": PUBLISHED_GPU_DAYS,
            "cost": PUBLISHED_COST,
            "currency": "USD",
            "stages": [stage.to_wire() for stage in PUBLISHED],
        }
    return document


def _print_tables(console: Console, planned: CostForecast, modelled: CostForecast) -> None:
    console.print(_forecast_table(planned))
    given = any(stage.source == "given" for stage in planned.stages)
    if given or any(stage.published for stage in planned.stages):
        console.print(_comparison_table(planned, modelled, given=given))
    for note in _notes(planned):
        console.print(Text(note, style="dim"))


def _forecast_table(planned: CostForecast) -> Table:
    table = Table(title=f"{planned.run}: forecast", title_justify="left")
    table.add_column("stage", overflow="fold")
    table.add_column("task")
    for heading in ("steps", "GPUs", "tokens/step", "FLOPs/step", "s/step", "", "MFU", "GPU-days", planned.currency):
        table.add_column(heading, justify="left" if heading == "" else "right")
    for stage in planned.stages:
        table.add_row(stage.name, stage.task, *_work(stage), *_time(stage), _days(stage), _cost(stage))
    table.add_section()
    partial = "" if planned.complete else "at least "
    empty = [""] * 8
    table.add_row("total", *empty, f"{partial}{planned.gpu_days:,.2f}", _money(planned.cost), style="bold")
    return table


def _work(stage: StageForecast) -> tuple[str, str, str, str]:
    work = stage.work
    if work is None:
        return UNKNOWN, str(stage.gpus), UNKNOWN, UNKNOWN
    tokens = compact(work.tokens_per_step) if work.tokens_per_step else UNKNOWN
    return f"{work.steps:,}", str(stage.gpus), tokens, compact(work.flops_per_step)


def _time(stage: StageForecast) -> tuple[str, str, str]:
    if stage.seconds_per_step is None:
        return UNKNOWN, "", UNKNOWN
    return f"{stage.seconds_per_step:.3g}", stage.source or "", f"{100 * stage.mfu:.1f} %" if stage.mfu else UNKNOWN


def _days(stage: StageForecast) -> str:
    return UNKNOWN if stage.gpu_days is None else f"{stage.gpu_days:,.2f}"


def _cost(stage: StageForecast) -> str:
    return UNKNOWN if stage.cost is None else _money(stage.cost)


def _money(amount: str) -> str:
    whole, _, places = amount.partition(".")
    return f"{int(whole):,}.{places or '00'}"


def _comparison_table(planned: CostForecast, modelled: CostForecast, *, given: bool) -> Table:
    share = f"{100 * modelled.mfu:.0f} % MFU"
    table = Table(title="Beside the published run of Open-Sora 2.0", title_justify="left")
    table.add_column("stage", overflow="fold")
    first = "given times" if given else "forecast"
    columns = (f"{first}: GPU-days", planned.currency, "published: GPU-days", "USD", "difference")
    extra = (f"{share}, modelled: s/step", "GPU-days", modelled.currency)
    for heading in (*columns, *extra):
        table.add_column(heading, justify="right")
    for stage, other in zip(planned.stages, modelled.stages, strict=True):
        if stage.published or stage.source == "given":
            table.add_row(stage.name, *_beside(stage), *_modelled(other))
    table.add_section()
    table.add_row("total", *_total(planned), "", f"{modelled.gpu_days:,.0f}", _money(modelled.cost), style="bold")
    return table


def _beside(stage: StageForecast) -> tuple[str, ...]:
    row = stage.published
    if row is None:
        return _days(stage), _cost(stage), UNKNOWN, UNKNOWN, UNKNOWN
    return _days(stage), _cost(stage), f"{row.gpu_days:,.0f}", _money(row.cost), _difference(stage.gpu_days, row.gpu_days)


def _modelled(stage: StageForecast) -> tuple[str, str, str]:
    seconds = UNKNOWN if stage.seconds_per_step is None else f"{stage.seconds_per_step:.3g}"
    return seconds, _days(stage), _cost(stage)


def _total(planned: CostForecast) -> tuple[str, ...]:
    ours = f"{planned.gpu_days:,.0f}", _money(planned.cost)
    if sum(1 for stage in planned.stages if stage.published) < len(PUBLISHED):
        return *ours, UNKNOWN, UNKNOWN, UNKNOWN
    difference = _difference(planned.gpu_days, PUBLISHED_GPU_DAYS)
    return *ours, f"{PUBLISHED_GPU_DAYS:,}", _money(PUBLISHED_COST), difference


def _difference(ours: float | None, published: float) -> str:
    return UNKNOWN if ours is None else f"{100 * (ours / published - 1):+.1f} %"


def _notes(planned: CostForecast) -> list[str]:
    notes = [
        f"modelled: model FLOPs by formula (recomputation not counted) at {100 * planned.mfu:.0f} % of "
        f"{compact(planned.peak_flops)}FLOP/s per GPU, at the most nodes, without restarts.",
        f"price: {planned.price_per_gpu_hour} {planned.currency} per GPU-hour.",
    ]
    if not planned.complete:
        open_stages = ", ".join(stage.name for stage in planned.stages if stage.work is None)
        notes.append(f"not in the sum: {open_stages} (the work depends on the number of clips).")
    hours = [s for s in planned.stages if s.work and s.seconds_per_step]
    wall = sum(s.work.steps * s.seconds_per_step for s in hours if s.work and s.seconds_per_step)
    notes.append(f"wall time of these stages, one after another: {duration(wall)}.")
    return notes
