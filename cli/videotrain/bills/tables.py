"""Bills as tables for people, CSV and Parquet."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from decimal import Decimal
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from videotrain.wording import BUCKET_LABELS, CAUSE_MEANINGS, exact, money
from videotrain_api.billing.document import RunBill
from videotrain_api.billing.estimates import GIBIBYTE, StorageEstimate
from videotrain_api.billing.sums import By, Line
from videotrain_api.money import format_micros
from videotrain_api.resource.prices import PriceList

LINE_COLUMNS = ("currency", "name", "runs", "node_hours", "gpu_hours", "cost", "productive_cost", "estimated")


def bill_tables(bill: RunBill, prices: PriceList) -> RenderableType:
    """One run's bill, and what is estimated beside it.

    Args:
        bill: of the run.
        prices: of the object store.
    """
    state = "closed" if bill.closed else f"up to {bill.as_of:%Y-%m-%d %H:%M:%S} UTC" if bill.as_of else "open"
    team = f", team {bill.team}" if bill.team else ""
    title = Text(f"{bill.namespace}/{bill.run}  {bill.phase}  {money(bill.total_micros, bill.currency)}", style="bold")
    title.append(f"  {state}{team}{', estimated' if bill.estimated else ''}", style="dim")
    tables = (_stages(bill), _buckets(bill), _causes(bill), _ends(bill))
    estimated = estimate_table(bill.estimates, prices, bill.currency) if bill.estimates else None
    return Group(title, *filter(None, (*tables, estimated)))


def estimate_table(estimates: Sequence[StorageEstimate], prices: PriceList, currency: str) -> Table:
    """What lies in the object store, counted, and what it would cost where a price list of this currency says so."""
    listed = prices.storage if prices.currency == currency else None
    money_heading = f"{currency}, estimated" if listed else "not priced (--price-list)"
    headings = ("stage", "what", "GiB in the end", "GiB-months", "writes", "reads", money_heading)
    table = _table("Object store: estimated from steps and policy, in no total", headings, 2)
    total = 0
    for one in estimates:
        if not (one.bytes or one.writes or one.reads):
            continue
        micros = one.total_micros(listed) if listed else 0
        total += micros
        sizes = (f"{one.bytes / GIBIBYTE:,.1f}", f"{float(one.amount('storage')):,.3f}")
        table.add_row(one.stage, one.kept, *sizes, f"{one.writes:,}", f"{one.reads:,}", exact(micros) if listed else "")
    if listed:
        table.add_section()
        table.add_row("all", *[""] * 5, exact(total), style="bold")
    return table


def _table(title: str, headings: Sequence[str], texts: int = 1) -> Table:
    table = Table(title=title, title_justify="left")
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="left" if index < texts or not heading else "right")
    return table


def _stages(bill: RunBill) -> Table:
    units = ("per 1,000 steps", "per 1,000 s of video", "per billion tokens")
    table = _table("What each stage cost", ("stage", "node-seconds", "GPU-seconds", bill.currency, *units))
    for stage in bill.stages:
        held = (stage.held_node_microseconds, stage.held_gpu_microseconds, stage.total_micros)
        prices = (stage.per_thousand_steps, stage.per_thousand_video_seconds, stage.per_billion_tokens)
        table.add_row(stage.name, *map(exact, held), *(price or "" for price in prices))
    table.add_section()
    nodes = sum(stage.held_node_microseconds for stage in bill.stages)
    held = (nodes, sum(bill.gpu_microseconds_by_bucket.values()), bill.total_micros)
    table.add_row("all", *map(exact, held), style="bold")
    return table


def _buckets(bill: RunBill) -> Table:
    table = _table("What the time was used for", ("bucket", "GPU-seconds", bill.currency))
    for bucket, label in BUCKET_LABELS.items():
        held, micros = bill.gpu_microseconds_by_bucket.get(bucket, 0), bill.micros_by_bucket.get(bucket, 0)
        if held or micros:
            table.add_row(label, exact(held), exact(micros))
    return table


def _causes(bill: RunBill) -> Table | None:
    if not bill.waste_micros_by_cause:
        return None
    table = _table("Why money bought no progress", ("cause", bill.currency, ""))
    for cause, micros in sorted(bill.waste_micros_by_cause.items(), key=lambda item: (-item[1], item[0])):
        table.add_row(cause, exact(micros), Text(CAUSE_MEANINGS.get(cause, ""), style="dim"))
    return table


def _ends(bill: RunBill) -> Table | None:
    if not bill.ends:
        return None
    headings = ("generation", "stage", "ended by", "why", "at", f"{bill.currency} in all", "of it, by its end")
    table = _table("What ended the generations, and what that cost", headings, 5)
    for end in bill.ends:
        at = f"{end.at:%b %d %H:%M:%S}" if end.at else ""
        why = " ".join(filter(None, (end.reason, end.message)))
        amounts = (exact(end.total_micros), exact(end.wasted_micros))
        table.add_row(str(end.generation), end.stage, end.cause, Text(why), at, *amounts)
    return table


def line_table(lines: Sequence[Line], by: By) -> Table:
    """Sums of many bills; the lines of a currency sum to its total exactly."""
    table = _table("", (by, "runs", "node-hours", "GPU-hours", "cost", "currency", "productive"))
    for line in lines:
        share = f"{100 * line.productive_micros / line.micros:.0f} %" if line.productive_micros and line.micros else ""
        nodes, gpus = (f"{us / 3.6e9:.3f}" if us else "" for us in (line.node_microseconds, line.gpu_microseconds))
        name = line.name or "(not known)"
        table.add_row(name, str(len(line.runs)), nodes, gpus, exact(line.micros), line.currency, share)
    for currency in dict.fromkeys(line.currency for line in lines):
        table.add_section()
        total = sum(line.micros for line in lines if line.currency == currency)
        table.add_row("all", "", "", "", exact(total), currency, "", style="bold")
    return table


def line_rows(lines: Iterable[Line]) -> list[dict[str, str | None]]:
    """The same for machines: LINE_COLUMNS."""
    return [
        {
            "currency": line.currency,
            "name": line.name,
            "runs": str(len(line.runs)),
            "node_hours": f"{line.node_microseconds / 3.6e9:.6f}",
            "gpu_hours": f"{line.gpu_microseconds / 3.6e9:.6f}",
            "cost": format_micros(line.micros),
            "productive_cost": format_micros(line.productive_micros),
            "estimated": str(line.estimated).lower(),
        }
        for line in lines
    ]


def as_csv(columns: Sequence[str], rows: Iterable[dict[str, str | None]]) -> str:
    """With a header; an empty cell for None."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def write_parquet(
    path: Path, columns: Sequence[str], rows: Iterable[dict[str, str | None]], amounts: Iterable[str]
) -> None:
    """A Parquet file; columns of amounts are decimals, the others texts."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = dict.fromkeys(columns, pa.string()) | dict.fromkeys(amounts, pa.decimal128(38, 13))
    kept = list(rows)
    found = {}
    for name, kind in kinds.items():
        values = [row[name] for row in kept]
        texts = kind == pa.string()
        found[name] = pa.array([v if texts or v is None else Decimal(v) for v in values], kind)
    pq.write_table(pa.table(found), path)
