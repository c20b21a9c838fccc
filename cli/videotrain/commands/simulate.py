"""`videotrain simulate`: what may become of a run, by the real planner in virtual time."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from statistics import fmean

from rich.console import Console
from rich.progress import track

from videotrain.commands.plan_tables import new_table
from videotrain.errors import UsageError
from videotrain.files import replace_file
from videotrain.manifest_file import Source, load_run
from videotrain.report.page import chart_page
from videotrain.wording import BUCKET_LABELS, duration, money
from videotrain_api.money import MICROSECONDS_PER_HOUR
from videotrain_api.resource.stages import node_counts
from videotrain_api.resource.trainrun import VideoTrainingRun, node_bounds
from videotrain_api.rules.pod_security import PodPolicy
from videotrain_api.schema import Json
from videotrain_operator.simulation.failures import DAY, Failure, Rate, TraceError, llama3_rate, read_trace
from videotrain_operator.simulation.futures import Future, best_interval, live_future, quantiles, timing_of, young_daly
from videotrain_operator.simulation.futures import waste as wasted
from videotrain_operator.simulation.spot import PricePoint, read_prices
from videotrain_operator.simulation.virtual_run import Timing

NOTE = "Decided by the real planner; how long steps, starts and saves take is modelled or given."


@dataclass(frozen=True, kw_only=True)
class SimulateOptions:
    """What the user asked for."""

    manifest: Path | Source
    gpus: int
    days: float
    failures: str
    """`llama3`, interruptions per 1,000 GPU-days, or the path of a trace."""
    spot: Path | None
    runs: int
    seed: int
    intervals: tuple[int, ...]
    """Steps between checkpoints to compare."""
    repair_hours: float
    save_seconds: float | None
    start_seconds: float
    mfu: float | None
    hours_of_video: float | None
    seconds_per_step: dict[str, float] = field(default_factory=dict)
    page: Path | None
    json: bool


def simulate(options: SimulateOptions, pod_policy: PodPolicy) -> int:
    """Live the futures of a manifest and print what became of them.

    Raises:
        ManifestError, ManifestFileError: the manifest is refused.
        UsageError: an option or a trace is wrong.
    """
    run = load_run(options.manifest, pod_policy)
    nodes = options.gpus // max(1, run.spec.pool.gpus_per_node)
    if nodes < 1:
        raise UsageError(f"--gpus {options.gpus}: a node of spec.pool has {run.spec.pool.gpus_per_node}; give as many")
    begun = time.process_time()
    try:
        timing = timing_of(
            run,
            mfu=options.mfu,
            seconds_per_step=options.seconds_per_step,
            save_seconds=options.save_seconds,
            hours_of_video=options.hours_of_video,
            start=options.start_seconds,
        )
        prices = (
            read_prices(str(options.spot), options.spot.read_text(encoding="utf-8"), run.spec.pool.gpus_per_node)
            if options.spot
            else []
        )
        source = _source(options)
    except (OSError, TraceError, ValueError) as error:
        raise UsageError(str(error)) from error
    lived = _live(run, timing, source, options, nodes, prices)
    sweep = [
        (every, fmean(map(wasted, _live(_every(run, every), timing, source, options, nodes, prices))))
        for every in options.intervals
    ]
    document = _document(run, options, timing, lived, sweep)
    document["cpuSeconds"] = round(time.process_time() - begun, 2)
    document["peakMebibytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    if options.page is not None:
        replace_file(options.page, _page(document, lived, sweep))
    if options.json:
        sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    else:
        _print(Console() if sys.stdout.isatty() else Console(width=110), document)
    return 0


def _source(options: SimulateOptions) -> Rate | list[Failure]:
    repair = options.repair_hours * 3600
    if options.failures == "llama3":
        return llama3_rate(repair)
    try:
        rate = float(options.failures)
    except ValueError:
        path = Path(options.failures)
        if not path.is_file():
            wanted = "llama3, interruptions per 1,000 GPU-days such as 0.47, or a CSV file"
            raise UsageError(f"--failures {options.failures}: allowed: {wanted}") from None
        return read_trace(str(path), path.read_text(encoding="utf-8"))
    if not 0 <= rate < float("inf"):
        raise UsageError(f"--failures {options.failures}: allowed: 0 or more interruptions per 1,000 GPU-days")
    return Rate(rate, repair)


def _live(
    run: VideoTrainingRun,
    timing: Timing,
    source: Rate | list[Failure],
    options: SimulateOptions,
    nodes: int,
    prices: Sequence[PricePoint],
) -> list[Future]:
    """Every future of a rate is another draw; the same ones for every interval. A trace has one."""

    def drawn(number: int) -> Iterable[Failure]:
        if not isinstance(source, Rate):
            return source
        random = Random(f"{options.seed}/{number}")
        return source.draw(random, nodes=nodes, gpus=run.spec.pool.gpus_per_node, days=options.days)

    count = options.runs if isinstance(source, Rate) else 1
    return [
        live_future(run, timing, drawn(number), nodes=nodes, days=options.days, prices=prices)
        for number in _told(count)
    ]


def _told(count: int) -> Iterable[int]:
    """The numbers of futures, with how many are done on a terminal: a thousand take minutes."""
    console = Console(stderr=True)
    return track(range(count), "futures", console=console, transient=True, disable=not console.is_terminal)


def _every(run: VideoTrainingRun, steps: int) -> VideoTrainingRun:
    policy = run.spec.checkpoint.model_copy(update={"every_steps": steps, "every_seconds": None})
    return run.model_copy(update={"spec": run.spec.model_copy(update={"checkpoint": policy})})


def _document(
    run: VideoTrainingRun,
    options: SimulateOptions,
    timing: Timing,
    lived: Sequence[Future],
    sweep: Sequence[tuple[int, float]],
) -> Json:
    phases = sorted({future.phase for future in lived})
    buckets = {name: fmean(f.micros_by_bucket.get(name, 0) for f in lived) for name in BUCKET_LABELS}
    causes = sorted({cause for future in lived for cause in future.restarts})
    return {
        "run": run.metadata.name,
        "currency": run.spec.pool.currency,
        "gpus": options.gpus,
        "days": options.days,
        "futures": len(lived),
        "phases": {phase: sum(future.phase == phase for future in lived) for phase in phases},
        "failed": sorted({future.message for future in lived if future.message})[:5],
        "daysUsed": _spread(future.days for future in lived),
        "cost": _spread(future.micros / 1e6 for future in lived),
        "goodput": _spread(future.goodput for future in lived),
        "costByBucket": {name: micros / 1e6 for name, micros in buckets.items()},
        "restarts": {cause: fmean(f.restarts.get(cause, 0) for f in lived) for cause in causes},
        "interruptions": _spread(sum(future.interruptions.values()) for future in lived),
        "forecast": _forecasts(lived),
        "checkpointInterval": _intervals(run, timing, lived, sweep),
        "passes": sum(future.passes for future in lived),
        "note": NOTE,
    }


def _spread(values: Iterable[float]) -> Json:
    found = list(values)
    low, mid, high = quantiles(found)
    return {"mean": fmean(found), "p10": low, "p50": mid, "p90": high}


def _forecasts(lived: Sequence[Future]) -> list[Json]:
    """By share of the bill: how far the forecast was off, and how often the bill was in its interval."""
    done = [future for future in lived if future.told and future.micros]
    found = []
    for index, told in enumerate(done[0].told if done else ()):
        rows = [(future.told[index], future.micros) for future in done]
        errors = [abs(each.micros / micros - 1) for each, micros in rows]
        inside = fmean(each.low <= micros <= each.high for each, micros in rows)
        found.append({"share": told.share, "error": fmean(errors), "worst": max(errors), "coverage": inside})
    return found


def _intervals(
    run: VideoTrainingRun, timing: Timing, lived: Sequence[Future], sweep: Sequence[tuple[int, float]]
) -> Json:
    """By the formula of Young and Daly from the failures that came, and by the sweep if there was one.

    Of the stage that trains longest, on as many nodes as it may have.
    """
    trains = [stage for stage in run.spec.stages if stage.train or stage.autoencoder]
    if not trains:
        return {}
    stage = max(trains, key=lambda stage: timing.node_seconds[stage.name] * timing.steps[stage.name])
    nodes = node_counts(node_bounds(run, stage))[-1]
    each, save = timing.node_seconds[stage.name] / nodes, timing.save_seconds[stage.name]
    hit = sum(sum(future.interruptions.values()) for future in lived)
    document: Json = {"stage": stage.name, "everySteps": run.spec.checkpoint.every_steps, "saveSeconds": save}
    if hit and save:
        mean = sum(future.days for future in lived) * DAY / hit
        seconds = young_daly(mean, save)
        document |= {"youngDalySeconds": seconds, "youngDalySteps": max(1, round((seconds - save) / each))}
    if sweep:
        best = best_interval([(every * each + save, share) for every, share in sweep])
        document["swept"] = [{"everySteps": every, "waste": share} for every, share in sweep]
        document |= {} if best is None else {"bestSeconds": best, "bestSteps": max(1, round((best - save) / each))}
    return document


def _print(console: Console, document: Json) -> None:
    currency = document["currency"]
    title = f"{document['run']}: {document['futures']} futures on {document['gpus']:,} GPUs, {document['days']:g} days"
    table = new_table(title, ("",), ("mean", "p10", "p50", "p90"))
    for name, label, shown in (
        ("cost", f"cost, {currency}", ",.2f"),
        ("goodput", "goodput", ".2%"),
        ("daysUsed", "days until it was over", ",.2f"),
        ("interruptions", "interruptions", ",.1f"),
    ):
        table.add_row(label, *(format(document[name][key], shown) for key in ("mean", "p10", "p50", "p90")))
    console.print(table)
    bought = new_table("Where the money went, mean", ("bucket",), ("cost", "share"))
    whole = sum(document["costByBucket"].values()) or 1.0
    for name, amount in document["costByBucket"].items():
        bought.add_row(BUCKET_LABELS[name], money(round(amount * 1e6), currency), f"{amount / whole:.2%}")
    console.print(bought)
    restarts = ", ".join(f"{count:g} {cause}" for cause, count in document["restarts"].items())
    ended = ", ".join(f"{count} {phase}" for phase, count in document["phases"].items())
    console.print(f"restarts, mean: {restarts}; ended: {ended}", markup=False)
    for message in document["failed"]:
        console.print(f"  failed: {message}", markup=False)
    for row in document["forecast"]:
        console.print(
            f"forecast at {row['share']:.0%} of the bill: off by {row['error']:.1%}, at worst {row['worst']:.1%}; "
            f"in its interval {row['coverage']:.0%}"
        )
    _print_intervals(console, document["checkpointInterval"])
    took = f"{document['cpuSeconds']:g} s of CPU and at most {document['peakMebibytes']:,} MiB"
    console.print(f"{document['passes']:,} passes in {took}. {NOTE}", style="dim")


def _print_intervals(console: Console, found: Json) -> None:
    if "youngDalySteps" in found:
        console.print(
            f"checkpoints of {found['stage']}: now every {found['everySteps']} steps; best by Young and Daly every "
            f"{found['youngDalySteps']} ({duration(found['youngDalySeconds'])})"
        )
    for row in found.get("swept", ()):
        console.print(f"  every {row['everySteps']} steps: {row['waste']:.3%} wasted")
    if "bestSteps" in found:
        console.print(f"  best by the sweep: every {found['bestSteps']} steps ({duration(found['bestSeconds'])})")


def _page(document: Json, lived: Sequence[Future], sweep: Sequence[tuple[int, float]]) -> str:
    currency, cost = document["currency"], document["cost"]
    ranked = [sorted(values) for values in ([f.micros / 1e6 for f in lived], [100 * f.goodput for f in lived])]
    shares = [100 * (index + 0.5) / len(lived) for index in range(len(lived))]
    bought = {BUCKET_LABELS[name]: amount for name, amount in document["costByBucket"].items() if amount}
    charts = [
        _lines("Cost", "% of the futures", currency, [("cost", shares, ranked[0])]),
        _lines("Goodput", "% of the futures", "%", [("goodput", shares, ranked[1])]),
        {"title": "Where the money went, mean", "x": currency, "bars": [list(bought), list(bought.values())]},
    ]
    if sweep:
        points = ([every for every, _ in sweep], [100 * share for _, share in sweep])
        charts.append(_lines("Wasted, by steps between checkpoints", "steps", "%", [("wasted", *points)]))
    cards = [
        ("cost", money(round(cost["p50"] * 1e6), currency), f"{cost['p10']:,.0f} to {cost['p90']:,.0f}, 80 %"),
        ("goodput", f"{document['goodput']['p50']:.1%}", "median"),
        ("time", f"{document['daysUsed']['p50']:.1f} days", "median"),
        ("interruptions", f"{document['interruptions']['mean']:.1f}", "mean"),
    ]
    hours = sum(sum(f.gpu_microseconds_by_bucket.values()) for f in lived) / len(lived) / MICROSECONDS_PER_HOUR
    rows = [
        (f"{row['share']:.0%}", f"{row['error']:.1%}", f"{row['worst']:.1%}", f"{row['coverage']:.0%}")
        for row in document["forecast"]
    ]
    headings = ("share of the bill", "error, mean", "error, worst", "in the interval")
    lead = f"{document['futures']} futures on {document['gpus']:,} GPUs, {hours:,.0f} GPU-hours each. {NOTE}"
    return chart_page(
        f"{document['run']}, simulated", lead, cards, charts, [("How good the forecast was", headings, rows)]
    )


def _lines(title: str, x: str, y: str, lines: Sequence[tuple[str, Sequence[float], Sequence[float]]]) -> Json:
    return {"title": title, "x": x, "y": y, "lines": [{"name": n, "x": list(a), "y": list(b)} for n, a, b in lines]}
