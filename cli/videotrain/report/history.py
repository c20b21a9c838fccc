"""The parts of the report about what happened on the way: restarts, what curation dropped, checkpoints."""

from __future__ import annotations

from videotrain.report.markup import Html, clock, element, long_table, section, text
from videotrain.wording import compact, money
from videotrain_api.money import cost_micros, parse_micros
from videotrain_api.schema import Json
from videotrain_api.storage.artifacts import DropReport


def restart_section(run: Json, summary: Json) -> Html:
    """What every fault cost."""
    named = {stage["name"]: stage.get("pool") for stage in run["spec"]["stages"]}
    rows = [
        (
            r["generation"],
            r["stage"],
            r["cause"],
            clock(r["failed_at"]),
            "" if r["seconds"] is None else f"{r['seconds']:.1f} s",
            element("span", text(", ".join(f"{_PHASES[p]} {s:.1f} s" for p, s in r["phases"].items())), class_="dim"),
            r["lost_steps"],
            _recovery_cost(r, named.get(r["stage"]) or run["spec"]["pool"], summary["cost"]["currency"]),
        )
        for r in summary["recoveries"]
    ]
    if not rows:
        return Html("")
    headings = ("generation", "stage", "cause", "at", "back after", "of which", "steps lost", "cost, about")
    lead = "From the first sign of a fault to the end of the first step after it."
    return section("Restarts", long_table(headings, rows, (0, 4, 6, 7)), lead=lead)


def _recovery_cost(recovery: Json, pool: Json, currency: str) -> str:
    """Of the GPUs; nothing is told for nodes without."""
    price = pool.get("pricePerGpuHour")
    return (
        "" if price is None else money(cost_micros(round(recovery["gpu_seconds"] * 1e6), parse_micros(price)), currency)
    )


_PHASES = {"noticed": "new roster", "launched": "processes", "ready": "checkpoint loaded", "firstStep": "first step"}


def drop_section(report: DropReport | None) -> Html:
    """What curation dropped, and why."""
    if report is None:
        return Html("")
    lead = f"{report.videos:,} videos in, {report.clips:,} clips kept, {len(report.dropped):,} dropped."
    chips = element(
        "p",
        Html(" ".join(element("span", text(f"{k} {n:,}"), class_="chip") for k, n in sorted(report.counts.items()))),
    )
    rows = [
        (d.source, "-".join(f"{second:.1f}" for second in d.span) if d.span else "whole", d.reason, d.detail)
        for d in report.dropped
    ]
    listed = long_table(("video", "seconds", "reason", "measured"), rows, (1,)) if rows else Html("")
    return section("Curation", chips if report.counts else Html(""), listed, lead=lead)


def checkpoint_section(summary: Json) -> Html:
    """Table of the committed checkpoints: stage, step, generation and time."""
    rows = [
        (
            c["stage"],
            c["step"],
            c["generation"],
            clock(c["committed_at"]),
            f"{compact(c['bytes'])}B" if c.get("bytes") else "",
            f"{c['stall_seconds']:.2f} s" if c.get("stall_seconds") is not None else "",
            element("code", text(c["uri"])),
        )
        for c in summary["checkpoints"]
    ]
    if not rows:
        return Html("")
    headings = ("stage", "step", "generation", "at", "size", "stood still", "where")
    return section("Checkpoints", long_table(headings, rows, (1, 2, 4, 5)))
