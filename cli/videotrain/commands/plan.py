"""`videotrain plan`: what a manifest would cost, beside what the published run did."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from videotrain.errors import UsageError
from videotrain.manifest_file import load_run
from videotrain.wording import compact, duration
from videotrain_api.cost.forecast import (
    PUBLISHED,
    PUBLISHED_COST,
    PUBLISHED_GPU_DAYS,
    CostForecast,
    StageForecast,
    forecast,
)
from videotrain_api.money import MICROS, parse_micros
from videotrain_api.rules.pod_security import PodPolicy

UNKNOWN = "-"
TABLE_WIDTH = 130
"""Columns of a table that is written to a file or a pipe."""


def print_plan(
    path: Path, mfu: float, seconds_per_step: dict[str, float], pod_policy: PodPolicy, *, as_json: bool
) -> int:
    """Print the cost of a manifest.

    Args:
        path: manifest.
        mfu: model FLOPs utilisation for what is modelled, above 0 and at most 1.
        seconds_per_step: measured step times by stage name, seconds.
        pod_policy: what the worker pods have to keep to.
        as_json: machine-readable output.

    Returns:
        Exit code.

    Raises:
        ManifestError, ManifestFileError: the manifest is refused.
        UsageError: a step time is given for a stage that the run does not have.
    """
    run = load_run(path, pod_policy)
    try:
        planned = forecast(run, mfu=mfu, seconds_per_step=seconds_per_step)
    except ValueError as error:
        raise UsageError(f"--seconds-per-step or --mfu: {error}") from error
    modelled = forecast(run, mfu=mfu)
    if as_json:
        sys.stdout.write(json.dumps(_document(planned, modelled), indent=2, ensure_ascii=False) + "\n")
        return 0
    console = Console() if sys.stdout.isatty() else Console(width=TABLE_WIDTH)
    _print_tables(console, planned, modelled)
    return 0


def _document(planned: CostForecast, modelled: CostForecast) -> dict[str, object]:
    document: dict[str, object] = {"forecast": planned.to_wire(), "modelled": modelled.to_wire()}
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


def _table(title: str, words: Sequence[str], numbers: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for heading in words:
        table.add_column(heading, overflow="fold")
    for heading in numbers:
        table.add_column(heading, justify="right", overflow="fold")
    return table


def _forecast_table(planned: CostForecast) -> Table:
    numbers = ("steps", "GPUs", "tokens/step", "FLOPs/step", "s/step", "", "MFU", "GPU-days", planned.currency)
    table = _table(f"{planned.run}: forecast", ("stage", "task"), numbers)
    for stage in planned.stages:
        table.add_row(stage.name, stage.task, *_work(stage), *_time(stage), _days(stage.gpu_days), _cost(stage))
    table.add_section()
    label = "total" if planned.complete else "total, at least"
    table.add_row(label, *[""] * 8, _days(planned.gpu_days), _money(planned.cost_micros), style="bold")
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


def _days(days: float | None) -> str:
    if days is None:
        return UNKNOWN
    return f"{days:,.2f}" if days >= 1 or days == 0 else f"{days:.2g}"


def _cost(stage: StageForecast) -> str:
    return UNKNOWN if stage.cost_micros is None else _money(stage.cost_micros)


def _money(micros: int) -> str:
    """Cents where the amount is large enough for them."""
    return f"{Decimal(micros) / MICROS:,.{2 if micros >= MICROS else 6}f}"


def _comparison_table(planned: CostForecast, modelled: CostForecast, *, given: bool) -> Table:
    """Per stage up to three lines: the given step time, the published run, and the model at the stated MFU."""
    table = _table(
        "Beside the published run of Open-Sora 2.0",
        ("stage", ""),
        ("s/step", "GPU-days", f"cost, {planned.currency}", "against published"),
    )
    for stage, other in zip(planned.stages, modelled.stages, strict=True):
        if stage.published or stage.source == "given":
            for number, row in enumerate(_lines(stage, other, planned)):
                table.add_row("" if number else stage.name, *row)
            table.add_section()
    for number, row in enumerate(_total_lines(planned, modelled, given=given)):
        table.add_row("" if number else "total", *row, style="bold")
    return table


def _lines(stage: StageForecast, other: StageForecast, planned: CostForecast) -> list[tuple[str, ...]]:
    row = stage.published
    published_days = row.gpu_days if row else None
    shown: list[tuple[str, ...]] = []
    if stage.source == "given":
        shown.append(("given", *_figures(stage), _difference(stage.gpu_days, published_days)))
    if row:
        cost = _published_cost(row.cost, planned.currency)
        shown.append(("published", f"{row.seconds_per_step:.4g}", _days(row.gpu_days), cost, ""))
    return [*shown, (_modelled(planned.mfu), *_figures(other), _difference(other.gpu_days, published_days))]


def _total_lines(planned: CostForecast, modelled: CostForecast, *, given: bool) -> list[tuple[str, ...]]:
    # The published total is that of three stages; beside fewer it would mislead.
    whole = sum(1 for stage in planned.stages if stage.published) == len(PUBLISHED)
    published = PUBLISHED_GPU_DAYS if whole else None
    rows = [("given", planned)] if given else []
    rows.append((_modelled(modelled.mfu), modelled))
    lines: list[tuple[str, ...]] = [
        (label, "", _days(f.gpu_days), _money(f.cost_micros), _difference(f.gpu_days, published)) for label, f in rows
    ]
    if whole:
        cost = _published_cost(PUBLISHED_COST, planned.currency)
        lines.insert(len(lines) - 1, ("published", "", _days(PUBLISHED_GPU_DAYS), cost, ""))
    return lines


def _modelled(mfu: float) -> str:
    return f"modelled at {100 * mfu:.0f} % MFU"


def _published_cost(amount: str, currency: str) -> str:
    return _money(parse_micros(amount)) + ("" if currency == "USD" else " USD")


def _figures(stage: StageForecast) -> tuple[str, str, str]:
    seconds = UNKNOWN if stage.seconds_per_step is None else f"{stage.seconds_per_step:.4g}"
    return seconds, _days(stage.gpu_days), _cost(stage)


def _difference(ours: float | None, published: float | None) -> str:
    return UNKNOWN if ours is None or published is None else f"{100 * (ours / published - 1):+.1f} %"


def _notes(planned: CostForecast) -> list[str]:
    notes = [
        f"modelled: model FLOPs by formula (recomputation not counted) at {100 * planned.mfu:.0f} % of "
        f"{compact(planned.peak_flops)}FLOP/s per GPU, at the most nodes, without restarts.",
        f"price: {planned.price_per_gpu_hour} {planned.currency} per GPU-hour.",
    ]
    if not planned.complete:
        open_stages = ", ".join(stage.name for stage in planned.stages if stage.work is None)
        notes.append(f"not in the sum: {open_stages} (the work depends on the number of clips).")
    wall = sum(s.work.steps * s.seconds_per_step for s in planned.stages if s.work and s.seconds_per_step)
    notes.append(f"wall time of these stages, one after another: {duration(wall)}.")
    return notes
