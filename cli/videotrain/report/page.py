"""The page itself: numbers from summary.json, curves from the workers' records, everything inside one file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from plotly.offline import get_plotlyjs

from videotrain.files import replace_file
from videotrain.report.curves import stage_curves
from videotrain.report.history import checkpoint_section, drop_section, restart_section
from videotrain.report.markup import Html, element, join, section, table, text
from videotrain.report.origin import origin_section, trouble_section
from videotrain.report.plan_and_reality import plan_section
from videotrain.report.sections import (
    bill_section,
    curve_section,
    evaluation_section,
    forecast_section,
    headline,
    page_head,
    samples_section,
    source_section,
    speed_section,
    stage_section,
    timeline_section,
    video_section,
)
from videotrain.report.summary import DROP_REPORT_FILE, SUMMARY_FILE
from videotrain.report.timeline import timeline
from videotrain.report.workdir import read_records
from videotrain_api.resource.stored_status import read_status
from videotrain_api.schema import Json
from videotrain_api.storage.artifacts import DropReport

REPORT_FILE = "report.html"
CONTENT_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "img-src data: blob:; media-src 'self' data: file:; font-src data:"
)
"""The browser itself refuses any fetch from elsewhere."""


def write_report(workdir: Path, run: Json, reload_seconds: int | None = None) -> Path:
    """Write W/report.html from W/summary.json and the workers' records; call it after write_summary.

    Args:
        workdir: working directory of the run.
        run: the VideoTrainingRun with its status, as the cluster holds it.
        reload_seconds: a browser loads the page again after so long; never if None.

    Returns:
        Path of the report.

    Raises:
        FileNotFoundError: there is no summary.json.
    """
    summary = json.loads((workdir / SUMMARY_FILE).read_text(encoding="utf-8"))
    path = workdir / REPORT_FILE
    replace_file(path, _document(workdir, run, summary, reload_seconds))
    return path


def _document(workdir: Path, run: Json, summary: Json, reload_seconds: int | None) -> str:
    status = read_status(run.get("status")).status
    records = read_records(workdir)
    seen = [generation.steps[-1].finished_at for generation in records.generations if generation.steps]
    end = status.completion_time or max(seen, default=None)
    curves = [found for stage in status.stages if (found := stage_curves(stage.name, records))]
    figures: Json = {"curves": curves, "timeline": timeline(run, status, records, end)}
    drops = workdir / DROP_REPORT_FILE
    report = DropReport.from_wire(json.loads(drops.read_text(encoding="utf-8"))) if drops.is_file() else None
    body = join(
        headline(run, summary),
        trouble_section(summary),
        stage_section(summary),
        evaluation_section(summary),
        source_section(summary),
        curve_section(figures["curves"]),
        speed_section(summary),
        timeline_section(summary, figures["timeline"]),
        bill_section(run, summary),
        plan_section(summary),
        forecast_section(summary),
        samples_section(workdir, summary),
        video_section(workdir, summary),
        restart_section(run, summary),
        drop_section(report),
        checkpoint_section(summary),
        origin_section(run, summary),
        _footer(summary),
    )
    return _page(summary["run"], body, figures, reload_seconds)


def chart_page(
    title: str,
    lead: str,
    cards: Sequence[tuple[str, str, str]],
    charts: Sequence[Json],
    tables: Sequence[tuple[str, Sequence[str], Sequence[Sequence[object]]]],
) -> str:
    """A page of charts and tables in the report's clothes, everything inside one file.

    Args:
        title: of the page.
        lead: a sentence below it.
        cards: label, value and note of the numbers that people ask for first.
        charts: title and either `lines` (name, x, y) with the names of the axes `x` and `y`, or `bars` (labels and
            values).
        tables: title, headings and rows; all columns but the first are numbers.
    """
    found = [
        section(heading, table(headings, rows, range(1, len(headings)))) for heading, headings, rows in tables if rows
    ]
    drawn = [section(each["title"], element("div", Html(""), id=f"chart-{i}")) for i, each in enumerate(charts)]
    body = join(page_head(title, Html(""), lead, cards), *drawn, *found)
    return _page(title, body, {"curves": [], "timeline": None, "charts": list(charts)})


def _footer(summary: Json) -> Html:
    version = summary["versions"]["videotrain"]
    torn = summary["records"]["torn_lines"]
    notes = [summary["note"], f"Written by videotrain {version} from summary.json and the workers' records."]
    if torn:
        notes.append(f"{torn} half-written record lines of killed workers were left out.")
    return element("footer", join(*(element("p", text(note)) for note in notes)))


def _page(title: str, body: Html, figures: Json, reload_seconds: int | None = None) -> str:
    draws = bool(figures["curves"] or figures["timeline"] or figures.get("charts"))
    plotly = element("script", Html(get_plotlyjs())) if draws else Html("")
    head = join(
        Html('<meta charset="utf-8">'),
        Html(f'<meta http-equiv="Content-Security-Policy" content="{CONTENT_POLICY}">'),
        Html('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        Html('<meta name="color-scheme" content="light dark">'),
        Html(f'<meta http-equiv="refresh" content="{reload_seconds}">' if reload_seconds else ""),
        element("title", text(f"{title} - videotrain report")),
        element("style", Html(_asset("report.css"))),
    )
    # "<" could let a text from the run close the script element.
    data = Html(json.dumps(figures, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c"))
    scripts = join(
        element("script", data, id="figures", type="application/json"),
        plotly,
        element("script", Html(_asset("report.js"))),
    )
    content = join(element("head", head), element("body", join(element("main", body), scripts)))
    return f"<!doctype html>\n{element('html', content, lang='en')}\n"


def _asset(name: str) -> str:
    return files("videotrain.report").joinpath(name).read_text(encoding="utf-8")
