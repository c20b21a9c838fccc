"""The page by which a person tunes curation: histograms of all scores with their bounds, and sample frames by reason.

It is one file of HTML without scripts, that needs nothing else.
"""

from __future__ import annotations

import base64
import html
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from videotrain_api.resource.stages import CurateTask
from videotrain_api.storage.artifacts import DropReport
from videotrain_trainer.curation.bounds import BOUNDS
from videotrain_trainer.curation.merge import DUPLICATE
from videotrain_trainer.data.manifest import SCORES

Row = Mapping[str, Any]
Picture = Callable[[Row], bytes | None]
"""A JPEG of a clip, None if it has no file."""
SAMPLES = 12
"""Clips that are shown of each reason."""
BARS = 48
WIDTH, HEIGHT = 560, 150
_STYLE = """body{font:14px/1.45 system-ui,sans-serif;margin:2em auto;max-width:1180px;padding:0 1em;color:#1b1f24}
h1{font-size:22px}h2{font-size:17px;margin-top:2em}
table{border-collapse:collapse}td,th{padding:3px 12px 3px 0;text-align:left}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}.row{display:flex;flex-wrap:wrap;gap:10px}
figure{margin:0;width:184px;font-size:12px;overflow-wrap:anywhere}figure img{width:184px;height:auto;display:block}
figure img+img{margin-top:3px}svg{max-width:100%;height:auto}
.plots{display:flex;flex-wrap:wrap;gap:24px}.plot{width:560px;max-width:100%}.kept{fill:#2f7d4f}.gone{fill:#c9cdd2}
.bound{stroke:#c0392b;stroke-width:2}.axis{font-size:11px;fill:#57606a}
@media(max-width:600px){.axis{font-size:15px}}.note{color:#57606a}"""


def page(uri: str, rows: Sequence[Row], report: DropReport, picture: Picture) -> str:
    """The page's HTML.

    Args:
        uri: of the curated set, for the title.
        rows: of its catalogue.
        report: what was dropped, and by which bounds.
        picture: gives sample frames.
    """
    task = CurateTask.model_validate(report.curate)
    by_reason: defaultdict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_reason[row["reason"]].append(row)
    seconds = sum(row["duration"] for row in by_reason[""])
    length = f"{seconds / 3600:,.2f} h" if seconds >= 3600 else f"{seconds:,.0f} s"
    lead = (
        f"{report.videos:,} raw videos gave {len(rows):,} clips, of which {report.clips:,} are kept ({length}). "
        "Bounds on scores change without a video being read again: try others with --set, keep them with curate retune."
    )
    parts = [f"<h1>Curation of {_text(uri)}</h1><p>{lead}</p>", _reasons(report, rows, task)]
    parts.append('<h2>Scores</h2><p class="note">Green: kept clips; grey: dropped ones; red: bounds.</p>')
    parts.append(f'<div class="plots">{"".join(_histogram(name, rows, task) for name in SCORES)}</div>')
    twins = {row["uid"]: row for row in rows}
    for reason in ["", *sorted(name for name in by_reason if name)]:
        parts.append(_samples(reason, by_reason[reason], twins, picture))
    parts.append(_whole_videos(report))
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content=width=device-width>"
        f"<title>Curation of {_text(uri)}</title>"
        f"<style>{_STYLE}</style><body>{''.join(parts)}</body></html>"
    )


def _reasons(report: DropReport, rows: Sequence[Row], task: CurateTask) -> str:
    """Every reason with how many it dropped, and for bounds how many it alone drops."""
    total = max(1, len(report.dropped) + report.clips)
    lines = []
    for reason, count in sorted(report.counts.items(), key=lambda item: -item[1]):
        bounds = [bound for bound in BOUNDS if bound.reason == reason]
        limit = ", ".join(f"{bound.score} at {bound.side} {bound.value(task):g}" for bound in bounds)
        alone = f"{_alone(reason, rows, task):,}" if bounds else ""
        lines.append(
            f"<tr><td>{_text(reason)}<td class=n>{count:,}<td class=n>{count / total:.1%}<td>{limit}<td class=n>{alone}"
        )
    return (
        "<h2>Dropped</h2><table><tr><th>reason<th class=n>items<th class=n>share<th>bound<th class=n>by it alone"
        f"{''.join(lines)}</table>"
    )


def _alone(reason: str, rows: Sequence[Row], task: CurateTask) -> int:
    """Clips that no bound of another reason drops."""
    others = [bound for bound in BOUNDS if bound.reason != reason]
    return sum(row["reason"] == reason and all(other.holds(row, task) for other in others) for row in rows)


def _histogram(name: str, rows: Sequence[Row], task: CurateTask) -> str:
    """Kept and dropped clips by a score; the highest hundredth is put into the last bar."""
    measured = [(row[name], row["kept"]) for row in rows if row[name] is not None]
    if not measured:
        return f'<div class="plot"><b>{name}</b><p class="note">not measured</p></div>'
    scores, kept = np.array([score for score, _ in measured]), np.array([stays for _, stays in measured])
    limits = [(bound, limit) for bound in BOUNDS if bound.score == name and (limit := bound.value(task)) is not None]
    inside = [limit for _, limit in limits if limit <= 1.5 * scores.max()]
    low = float(min(scores.min(), *inside, np.inf))
    high = float(max(np.quantile(scores, 0.99), *inside, -np.inf))
    high = high if high > low else low + (abs(low) or 1.0)
    edges = np.linspace(low, high, BARS + 1)
    clipped = np.clip(scores, low, high)
    stays, goes = (np.histogram(clipped[which], edges)[0] for which in (kept, ~kept))
    top, wide = max(1, int((stays + goes).max())), WIDTH / BARS
    bars = []
    for at, (green, grey) in enumerate(zip(stays, goes, strict=True)):
        for kind, count, below in (("kept", green, 0), ("gone", grey, green)):
            if count:
                tall, y = HEIGHT * count / top, HEIGHT * (1 - (below + count) / top)
                place = f'x="{at * wide:.1f}" y="{y:.1f}" width="{wide - 1:.1f}" height="{tall:.1f}"'
                bars.append(f'<rect class="{kind}" {place}/>')
    marks = []
    for bound, limit in limits:
        x = np.clip((limit - low) / (high - low), 0, 1) * WIDTH
        side, anchor = (-4, "end") if x > WIDTH / 2 else (4, "start")
        words = f"at {bound.side} {limit:g}"
        if low <= limit <= high:
            marks.append(f'<line class="bound" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{HEIGHT}"/>')
        else:
            words += ", beyond all of these"
        marks.append(f'<text class="axis" x="{x + side:.1f}" y="11" text-anchor="{anchor}">{words}</text>')
    more = " and more" if scores.max() > high else ""
    scale = (
        f'<text class="axis" x="0" y="{HEIGHT + 14}">{low:.3g}</text>'
        f'<text class="axis" x="{WIDTH}" y="{HEIGHT + 14}" text-anchor="end">{high:.3g}{more}</text>'
    )
    middle = f"median {np.median(scores):.3g}, highest bar {top:,} clips"
    return (
        f'<div class="plot"><b>{name}</b> <span class="note">{middle}</span>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT + 18}" width="{WIDTH}">{"".join(bars)}{"".join(marks)}{scale}</svg></div>'
    )


def _samples(reason: str, rows: Sequence[Row], twins: Mapping[str, Row], picture: Picture) -> str:
    """Frames of clips that are spread over those of a reason, from the least to the largest value."""
    if not rows:
        return ""
    ordered = sorted(rows, key=lambda row: (row["value"] or 0.0, row["uid"]))
    chosen = [ordered[len(ordered) * (2 * at + 1) // (2 * SAMPLES)] for at in range(SAMPLES)]
    figures = []
    for row in {row["uid"]: row for row in chosen}.values():
        words = f"{row['source']} {row['start']:.1f}-{row['end']:.1f} s"
        shown = [_image(row, picture)]
        if reason == DUPLICATE and (twin := next((uid for uid in row["detail"].split() if uid in twins), None)):
            shown.append(_image(twins[twin], picture))
        detail = row["detail"] or _worth(row)
        figures.append(f"<figure>{''.join(shown)}<figcaption>{_text(words)}<br>{_text(detail)}</figcaption></figure>")
    count = "1 clip" if len(rows) == 1 else f"{len(rows):,} clips"
    return f"<h2>{_text(reason or 'kept')}: {count}</h2><div class=row>{''.join(figures)}</div>"


def _worth(row: Row) -> str:
    """Scores by which a person looks at a clip that is kept."""
    shown = {"motion": row["motion"], "sharpness": row["blur"], "aesthetic": row["aesthetic"]}
    return ", ".join(f"{noun} {score:.3g}" for noun, score in shown.items() if score is not None)


def _image(row: Row, picture: Picture) -> str:
    data = picture(row)
    if data is None:
        return '<p class="note">no file was written</p>'
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(data).decode()}">'


def _whole_videos(report: DropReport) -> str:
    """Raw videos that gave no clip at all."""
    items = [item for item in report.dropped if item.span is None]
    if not items:
        return ""
    lines = [
        f"<tr><td>{_text(item.source)}<td>{_text(item.reason)}<td>{_text(item.detail)}"
        for item in items[: 20 * SAMPLES]
    ]
    more = f'<p class="note">and {len(items) - len(lines):,} more</p>' if len(items) > len(lines) else ""
    return f"<h2>Videos dropped whole: {len(items):,}</h2><table>{''.join(lines)}</table>{more}"


def _text(words: str) -> str:
    return html.escape(words)
