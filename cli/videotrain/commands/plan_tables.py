"""The tables of `videotrain plan`."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

from rich.box import SIMPLE_HEAD
from rich.table import Table

from videotrain.wording import compact
from videotrain_api.cost.forecast import CostForecast, StageForecast, gpu_cost_micros, node_cost_micros
from videotrain_api.cost.preparation import Preparation
from videotrain_api.cost.published import OTHER_RUNS, PUBLISHED, PUBLISHED_COST, PUBLISHED_GPU_DAYS
from videotrain_api.cost.sensitivity import Change
from videotrain_api.cost.source_shares import SourceShare
from videotrain_api.cost.stage_data_wait import StageDataWait
from videotrain_api.money import MICROS, parse_micros
from videotrain_api.resource.trainrun import VideoTrainingRun, pool_of

UNKNOWN = "-"


def forecast_table(planned: CostForecast) -> Table:
    """Work, time and money of every stage."""
    numbers = ("steps", "GPUs", "tokens/step", "FLOPs/step", "s/step", "", "MFU", "GPU-days", planned.currency)
    table = new_table(f"{planned.run}: forecast", ("stage", "task"), numbers)
    for stage in planned.stages:
        days = _days(stage.gpu_days) if stage.node_days is None else f"{_days(stage.node_days)} of nodes"
        table.add_row(stage.name, stage.task, *_work(stage), *_time(stage), days, _cost(stage))
    table.add_section()
    label = "total" if planned.complete else "total, at least"
    table.add_row(label, *[""] * 8, _days(planned.gpu_days), _money(planned.cost_micros), style="bold")
    return table


def band_table(planned: CostForecast) -> Table:
    """The modelled stages at low, mid and high rates."""
    title = "Modelled at low, mid and high rates of GEMM, attention, memory and network"
    table = new_table(title, ("stage", "with"), ("s/step", "MFU, %", f"cost, {planned.currency}"))
    for stage in planned.stages:
        if stage.bands:
            bands = stage.bands.values()
            table.add_row(
                stage.name,
                "; ".join(stage.assumes),
                " / ".join(f"{band.seconds_per_step:.3g}" for band in bands),
                " / ".join(f"{100 * band.mfu:.1f}" for band in bands),
                " / ".join(_money(parse_micros(band.cost)) for band in bands),
            )
    table.add_section()
    costs = " / ".join(_money(parse_micros(cost)) for cost in planned.cost_by_band.values())
    table.add_row("total", "", "", "", costs, style="bold")
    return table


def pool_table(run: VideoTrainingRun, planned: CostForecast) -> Table:
    """What the stages with a pool of their own cost there, and would cost on the nodes of the others."""
    numbers = ("nodes", "GPUs", "price", f"cost, {planned.currency}", "in spec.pool")
    table = new_table("Pools of their own (modelled)", ("stage",), numbers)
    for stage, planned_stage in zip(run.spec.stages, planned.stages, strict=True):
        if stage.pool is not None:
            price = f"{planned_stage.price} per {'GPU' if stage.pool.gpus_per_node else 'node'}-hour"
            usual = planned_stage.cost_on_run_pool
            table.add_row(
                stage.name,
                str(planned_stage.nodes),
                str(planned_stage.gpus),
                price,
                _cost(planned_stage),
                UNKNOWN if usual is None else _money(parse_micros(usual)),
            )
    return table


def source_table(shares: Sequence[SourceShare], currency: str) -> Table:
    """What each train stage takes of each source, and the cost of its steps by that."""
    table = new_table("Samples by source", ("stage", "source", "form"), ("weight", "samples", f"cost, {currency}"))
    for share in shares:
        table.add_row(
            share.stage,
            share.source,
            share.form,
            " then ".join(f"{weight:g}" for weight in share.weights) or UNKNOWN,
            "as many as it has" if share.share is None else f"{100 * share.share:.1f} %",
            UNKNOWN if share.cost is None else _money(parse_micros(share.cost)),
        )
    return table


def data_table(waits: Sequence[tuple[StageDataWait, StageDataWait]], currency: str) -> Table:
    """What each stage waits for data in its smallest and its largest world; each also with second requests."""
    numbers = ("nodes", "samples/s", "MB/s of a node", "waits", "GPU-hours", f"cost, {currency}", "asked twice")
    table = new_table("Waiting for data (modelled, on top of the steps)", ("stage",), numbers)
    for wait, asked_twice in waits:
        table.add_row(
            wait.stage,
            str(wait.nodes),
            f"{wait.reads_per_second:,.0f}",
            f"{wait.node_bytes_per_second / 1e6:,.0f}",
            f"{100 * wait.share:.1f} %",
            f"{wait.gpu_hours:,.0f}",
            _money(parse_micros(wait.cost)),
            _money(parse_micros(asked_twice.cost)),
        )
    return table


def overhead_table(planned: CostForecast) -> Table:
    """What each stage costs beside its steps."""
    numbers = ("start", "checkpoints", "failures", "failures expected", f"cost, {planned.currency}")
    table = new_table("Beside the steps, GPU-hours (modelled)", ("stage",), numbers)
    for stage in planned.stages:
        beside = stage.overheads
        if beside:
            hours = (beside.starts, beside.checkpoints, beside.failures)
            micros = gpu_cost_micros(3600 * beside.gpu_hours, 1, stage.price)
            shown = (f"{value:,.3g}" for value in hours)
            table.add_row(stage.name, *shown, f"{beside.expected_failures:.2g}", _money(micros))
    table.add_section()
    table.add_row("total", *[""] * 4, _money(parse_micros(planned.overhead_cost)), style="bold")
    total = _money(parse_micros(planned.total_cost))
    table.add_row("steps and what is beside them", *[""] * 4, total, style="bold")
    return table


def comparison_table(planned: CostForecast, modelled: CostForecast, *, given: bool) -> Table:
    """Per stage up to three lines: the given step time, the published run, and the model."""
    table = new_table(
        "Beside the published run of Open-Sora 2.0",
        ("stage", ""),
        ("s/step", "MFU", "GPU-days", f"cost, {planned.currency}", "against published"),
    )
    for stage, other in zip(planned.stages, modelled.stages, strict=True):
        if stage.published or stage.source == "given":
            for number, row in enumerate(_lines(stage, other, planned)):
                table.add_row("" if number else stage.name, *row)
            table.add_section()
    for number, row in enumerate(_total_lines(planned, modelled, given=given)):
        table.add_row("" if number else "total", *row, style="bold")
    return table


def other_runs_table(planned: CostForecast) -> Table:
    """Table 4 of the report: other models, at the price of the plan, beside this run."""
    table = new_table(
        f"Training of other models: published hours, at {planned.price_per_gpu_hour} {planned.currency} per GPU-hour",
        ("model",),
        ("GPUs", "GPU-hours", f"cost, {planned.currency}", "times this run"),
    )
    for run in OTHER_RUNS:
        micros = gpu_cost_micros(3600 * run.gpu_hours, 1, planned.price_per_gpu_hour)
        times = f"{run.gpu_hours / (24 * planned.gpu_days):.1f}" if planned.gpu_days else UNKNOWN
        table.add_row(run.model, f"{run.gpus:,} {run.gpu}", f"{run.gpu_hours:,.0f}", _money(micros), times)
    table.add_row("this run, as forecast", "", f"{24 * planned.gpu_days:,.0f}", _money(planned.cost_micros), "1.0")
    return table


def preparation_table(run: VideoTrainingRun, planned: CostForecast, preparation: Preparation) -> Table:
    """What making the data from raw videos costs, each task in the pool of its stage, if there is one."""
    title = f"Preparing {preparation.hours_of_video:,g} hours of video (modelled)"
    table = new_table(title, ("task",), ("clips", "encoded per clip", "GPU-hours", f"cost, {planned.currency}"))
    clips, samples = f"{preparation.clips:,.0f}", f"{preparation.samples_per_clip:.1f}"
    for task, shown in (("curate", (clips, "")), ("encode", (clips, samples))):
        pool = pool_of(run, next((stage for stage in run.spec.stages if stage.task == task), None))
        hours = preparation.node_hours(task, pool)
        if hours is None:
            table.add_row(task, *shown, UNKNOWN, UNKNOWN)
            continue
        held = f"{hours * pool.gpus_per_node:,.0f}" if pool.gpus_per_node else f"{hours:,.0f} of nodes"
        table.add_row(task, *shown, held, _money(node_cost_micros(hours, pool)))
    return table


def sensitivity_table(changes: Sequence[Change], currency: str) -> Table:
    """What one changed rate does to the modelled cost."""
    table = new_table(
        "If one rate is another (modelled)", ("instead of the mid rates",), (f"cost, {currency}", "change")
    )
    for change in changes:
        table.add_row(change.what, _money(parse_micros(change.cost)), f"{100 * (change.ratio - 1):+.1f} %")
    return table


def new_table(title: str, words: Sequence[str], numbers: Sequence[str]) -> Table:
    """An empty table of columns with words, then with numbers."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for heading in words:
        table.add_column(heading, overflow="fold")
    for heading in numbers:
        table.add_column(heading, justify="right", overflow="fold")
    return table


def _work(stage: StageForecast) -> tuple[str, str, str, str]:
    work = stage.work
    if work is None:
        return UNKNOWN, str(stage.gpus or f"{stage.nodes} nodes"), UNKNOWN, UNKNOWN
    tokens = compact(work.tokens_per_step) if work.tokens_per_step else UNKNOWN
    return f"{work.steps:,}", str(stage.gpus), tokens, compact(work.flops_per_step)


def _time(stage: StageForecast) -> tuple[str, str, str]:
    mfu = f"{100 * stage.mfu:.1f} %" if stage.mfu else UNKNOWN
    if stage.seconds_per_step is None:
        return UNKNOWN, stage.source or "", mfu
    return f"{stage.seconds_per_step:.3g}", stage.source or "", mfu


def _days(days: float | None) -> str:
    if days is None:
        return UNKNOWN
    return f"{days:,.2f}" if days >= 1 or days == 0 else f"{days:.2g}"


def _cost(stage: StageForecast) -> str:
    return UNKNOWN if stage.cost_micros is None else _money(stage.cost_micros)


def _money(micros: int) -> str:
    """Cents where the amount is large enough for them."""
    return f"{Decimal(micros) / MICROS:,.{2 if micros >= MICROS else 6}f}"


def _lines(stage: StageForecast, other: StageForecast, planned: CostForecast) -> list[tuple[str, ...]]:
    row = stage.published
    published_days = row.gpu_days if row else None
    shown: list[tuple[str, ...]] = []
    if stage.source == "given":
        shown.append(("given", *_figures(stage), _difference(stage.gpu_days, published_days)))
    if row:
        cost, mfu = _published_cost(row.cost, planned.currency), f"{100 * row.implied_mfu:.1f} %"
        shown.append(("published", f"{row.seconds_per_step:.4g}", mfu, _days(row.gpu_days), cost, ""))
    return [*shown, (_modelled(planned.mfu), *_figures(other), _difference(other.gpu_days, published_days))]


def _total_lines(planned: CostForecast, modelled: CostForecast, *, given: bool) -> list[tuple[str, ...]]:
    # The published total is that of three stages; beside fewer it would mislead.
    whole = sum(1 for stage in planned.stages if stage.published) == len(PUBLISHED)
    published = PUBLISHED_GPU_DAYS if whole else None
    rows = [("given", planned)] if given else []
    rows.append((_modelled(modelled.mfu), modelled))
    lines: list[tuple[str, ...]] = [
        (label, "", "", _days(f.gpu_days), _money(f.cost_micros), _difference(f.gpu_days, published))
        for label, f in rows
    ]
    if whole:
        cost = _published_cost(PUBLISHED_COST, planned.currency)
        lines.insert(len(lines) - 1, ("published", "", "", _days(PUBLISHED_GPU_DAYS), cost, ""))
    return lines


def _modelled(mfu: float | None) -> str:
    return "modelled, mid rates" if mfu is None else f"modelled at {100 * mfu:.0f} % MFU"


def _published_cost(amount: str, currency: str) -> str:
    return _money(parse_micros(amount)) + ("" if currency == "USD" else " USD")


def _figures(stage: StageForecast) -> tuple[str, str, str, str]:
    seconds = UNKNOWN if stage.seconds_per_step is None else f"{stage.seconds_per_step:.4g}"
    mfu = f"{100 * stage.mfu:.1f} %" if stage.mfu else UNKNOWN
    return seconds, mfu, _days(stage.gpu_days), _cost(stage)


def _difference(ours: float | None, published: float | None) -> str:
    return UNKNOWN if ours is None or published is None else f"{100 * (ours / published - 1):+.1f} %"
