"""The live screen of a local run, drawn from the run's status alone."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from videotrain.wording import BUCKET_LABELS, GPU_NOTE, duration, exact, money
from videotrain_api.money import parse_micros
from videotrain_api.resource.name_ranges import short_names
from videotrain_api.resource.status import CostStatus, GenerationStatus, RunStatus, StageStatus
from videotrain_api.resource.stored_status import read_status

PHASE_STYLES = {
    "Running": "green",
    "Succeeded": "bold green",
    "Failed": "bold red",
    "Invalid": "bold red",
    "Suspended": "yellow",
}
STATE_MARKS = {"Pending": "·", "Running": "▶", "Succeeded": "✔", "Failed": "✘"}
BUCKET_STYLES = {
    "productive": "green",
    "starting": "blue",
    "restarting": "magenta",
    "checkpoint": "cyan",
    "dataStall": "yellow",
    "stalled": "bright_yellow",
    "lost": "red",
    "draining": "bright_blue",
    "idle": "bright_black",
}
BAR_WIDTH = 40


def render_screen(
    run: dict[str, Any], alive: Collection[str], events: list[tuple[datetime, str]], now: datetime
) -> RenderableType:
    """Draw one picture of a run.

    Args:
        run: the VideoTrainingRun with its status.
        alive: names of the pods that are, or could be, members of the world.
        events: what happened last, with its time.
        now: the end of what still goes on.
    """
    status = read_status(run.get("status")).status
    parts: list[RenderableType] = [_headline(run, status, now), _stages(status, now)]
    if status.generations:
        parts.append(_world(status.generations[-1], alive))
    if status.cost:
        parts.append(_bill(status.cost))
    parts += [_event(at, text) for at, text in events]
    return Panel(Group(*parts), title="videotrain local", title_align="left", border_style="bright_black")


def _headline(run: dict[str, Any], status: RunStatus, now: datetime) -> Text:
    text = Text()
    text.append(run["metadata"]["name"], style="bold")
    text.append("  ")
    text.append(status.phase, style=PHASE_STYLES.get(status.phase, "cyan"))
    if status.start_time:
        text.append(f"  {duration(((status.completion_time or now) - status.start_time).total_seconds())}")
    counts = {cause: n for cause, n in status.restarts.model_dump().items() if n}
    if counts:
        text.append("  restarts: " + ", ".join(f"{n} {cause}" for cause, n in counts.items()), style="yellow")
    return text


def _stages(status: RunStatus, now: datetime) -> Table:
    table = Table.grid(padding=(0, 1))
    for stage in status.stages:
        current = stage.name == status.stage and stage.state == "Running"
        style = "bold" if current else "" if stage.state == "Succeeded" else "dim"
        total = stage.total_steps or (work_units(status) if current else None)
        # Between two generations nobody tells a step; the stage remembers where it is.
        done = (status.step or max(stage.step, stage.saved_step)) if current else stage.step
        count = f"{done}/{total}" if total else str(done or "")
        if stage.state == "Succeeded" and not total:
            total = done = max(done, 1)
        table.add_row(
            Text(f"{STATE_MARKS.get(stage.state, '?')} {stage.name}", style=style),
            Text(stage.task, style="dim"),
            ProgressBar(total=total or 1, completed=min(done, total or 0), width=24),
            Text(count, style=style),
            Text(_stage_time(stage, status, current, now), style="dim"),
        )
    return table


def work_units(status: RunStatus) -> int | None:
    """Steps of the current stage as its workers count them, if they have told."""
    progress = status.generations[-1].progress if status.generations else None
    return progress.total_steps if progress and progress.stage == status.stage else None


def _stage_time(stage: StageStatus, status: RunStatus, current: bool, now: datetime) -> str:
    if stage.started_at is None:
        return ""
    passed = duration(((stage.finished_at or now) - stage.started_at).total_seconds())
    left = remaining_seconds(stage, status) if current else None
    return f"{passed}, {duration(left)} left" if left is not None else passed


def remaining_seconds(stage: StageStatus, status: RunStatus) -> float | None:
    """Seconds to the stage's last step at the rate of the current generation; None before its second step."""
    progress = status.generations[-1].progress if status.generations else None
    total = stage.total_steps or (progress.total_steps if progress else None)
    if not progress or not total or progress.stage != stage.name:
        return None
    per_step = progress.seconds_per_step(least=1)
    return None if per_step is None else max(0.0, (total - progress.step) * per_step)


def _world(generation: GenerationStatus, alive: Collection[str]) -> Text:
    progress = generation.progress
    text = Text("world  ", style="dim")
    text.append(f"generation {generation.number}", style="bold")
    text.append(f"  {generation.world_size} workers on {short_names(generation.members)}  ")
    text.append(f"({generation.reason})", style="dim")
    waiting = len(set(alive) - set(generation.members))
    text.append(f"  +{waiting} waiting" if waiting else "", style="yellow")
    if progress and progress.state != "running":
        text.append(f"  {progress.state}", style="cyan")
    if progress and progress.loss is not None:
        text.append(f"\nloss   {progress.loss:.4f}", style="bold")
        if progress.samples_per_second is not None:
            text.append(f"   {progress.samples_per_second:.2f} samples/s")
        if progress.tokens_per_second:
            text.append(f"   {progress.tokens_per_second:,.0f} tokens/s")
        shares = (("MFU", progress.mfu), ("HFU", progress.hfu), ("useful MFU", progress.useful_mfu))
        text.append("".join(f"   {name} {share:.1%}" for name, share in shares if share is not None))
        if progress.memory_bytes:
            text.append(f"   {progress.memory_bytes / 1e9:.1f} GB")
        if progress.stragglers:
            slowest = progress.stragglers[0]
            text.append(f"   rank {slowest.rank} slowest in {slowest.share:.0%} of steps", style="dim")
    return text


def _bill(cost: CostStatus) -> Group:
    held = cost.held_gpu_microseconds
    line = Text("bill   ", style="dim")
    line.append(money(cost.total_micros, cost.currency), style="bold")
    line.append(f" for {duration(held / 1e6)} GPU time")
    if cost.goodput_percent is not None:
        line.append(f", {cost.goodput_percent:.0f}% productive")
    if cost.forecast:
        line.append(f", forecast {forecast_words(cost)}", style="dim")
    return Group(line, _bucket_bar(cost), Text(GPU_NOTE, style="dim italic"))


def forecast_words(cost: CostStatus) -> str:
    """The expected total and its interval, such as `9.10 USD (8.20 to 10.40)`; empty if there is none."""
    if cost.forecast is None:
        return ""
    text = money(parse_micros(cost.forecast), cost.currency)
    bounds = [money(parse_micros(b), "").strip() for b in (cost.forecast_low, cost.forecast_high) if b is not None]
    return f"{text} ({' to '.join(bounds)})" if len(set(bounds)) > 1 else text


def _bucket_bar(cost: CostStatus) -> Text:
    held = max(1, cost.held_gpu_microseconds)
    parts = [(b, cost.gpu_microseconds_by_bucket.get(b, 0)) for b in BUCKET_LABELS]
    bar, legend = Text("       "), Text("       ")
    for bucket, micros in parts:
        bar.append("█" * round(BAR_WIDTH * micros / held), style=BUCKET_STYLES[bucket])
        if micros:
            legend.append(f"■ {BUCKET_LABELS[bucket]} {duration(micros / 1e6)}  ", style=BUCKET_STYLES[bucket])
    return Text("\n").join([bar, legend])


def _event(at: datetime, text: str) -> Text:
    return Text(f"{at:%H:%M:%S}  ", style="dim").append(text, style="default")


def cost_table(cost: CostStatus) -> Table:
    """The bill by bucket; its rows sum to its last line exactly."""
    table = Table(title="Where the GPU time went", title_justify="left", caption=GPU_NOTE, caption_justify="left")
    for heading in ("bucket", "GPU-seconds", "share", cost.currency):
        table.add_column(heading, justify="left" if heading == "bucket" else "right")
    held = max(1, cost.held_gpu_microseconds)
    for bucket, label in BUCKET_LABELS.items():
        micros, spent = cost.gpu_microseconds_by_bucket.get(bucket, 0), cost.micros_by_bucket.get(bucket, 0)
        if micros or spent:
            table.add_row(label, *_amounts(micros, held, spent), style=BUCKET_STYLES[bucket])
    table.add_section()
    table.add_row("held", *_amounts(cost.held_gpu_microseconds, held, cost.total_micros), style="bold")
    return table


def stage_table(cost: CostStatus) -> Table:
    """The bill by stage; its amounts sum to its last line exactly."""
    table = Table(title="What each stage cost", title_justify="left")
    for heading in ("stage", "node-seconds", "GPU-seconds", cost.currency):
        table.add_column(heading, justify="left" if heading == "stage" else "right")
    for stage in cost.stages:
        held = (stage.held_node_microseconds, stage.held_gpu_microseconds, stage.total_micros)
        table.add_row(stage.name, *map(exact, held))
    table.add_section()
    nodes = sum(stage.held_node_microseconds for stage in cost.stages)
    table.add_row("all", *map(exact, (nodes, cost.held_gpu_microseconds, cost.total_micros)), style="bold")
    return table


def _amounts(gpu_micros: int, held: int, money_micros: int) -> tuple[str, str, str]:
    return exact(gpu_micros), f"{100 * gpu_micros / held:.1f} %", exact(money_micros)
