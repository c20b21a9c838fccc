"""`videotrain bill`: what a run cost, or all runs by team, stage, node or cause."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Literal

from rich.console import Console

from videotrain.bills.samples import taken_in_bucket, taken_in_folder
from videotrain.bills.sources import bills_in_bucket, bills_in_cluster, bills_in_folder
from videotrain.bills.tables import LINE_COLUMNS, as_csv, bill_tables, line_rows, line_table, write_parquet
from videotrain.errors import UsageError
from videotrain.extras import brought_by
from videotrain_api.billing.document import RunBill, sealed
from videotrain_api.billing.focus import AMOUNTS, COLUMNS, focus_rows
from videotrain_api.billing.focus_estimates import estimate_rows
from videotrain_api.billing.sums import By, Taken, rows_within, shared_by_source, summed
from videotrain_api.resource.prices import PriceList


@dataclass(frozen=True, kw_only=True)
class BillOptions:
    """What the command line says."""

    run: str | None
    workdir: Path | None
    bucket: str | None
    endpoint_url: str | None
    kubeconfig: str | None
    context: str | None
    namespace: str | None
    operator_namespace: str
    since: datetime | None
    until: datetime | None
    by: By | None
    output: Literal["table", "json", "csv", "focus"]
    parquet: Path | None
    """File to write instead of printing."""
    prices: PriceList = field(default_factory=PriceList)
    """Of the object store."""


def print_bill(options: BillOptions) -> int:
    """Print or write bills.

    Returns:
        Exit code: 1 if there is no bill.

    Raises:
        UsageError: what was asked for cannot be read.
    """
    if options.since and options.until and options.since >= options.until:
        raise UsageError(f"--since {options.since} is not before --until {options.until}: nothing was held then")
    bills = _bills(options)
    if options.run is not None:
        bills = [bill for bill in bills if bill.run == options.run]
    if not bills:
        sys.stderr.write(f"videotrain: no bill of {options.run or 'any run'} is there\n")
        return 1
    if options.output == "focus":
        _print_focus(options, bills)
    elif options.by is not None or options.since or options.until or options.output == "csv" or options.parquet:
        _print_sums(options, bills)
    elif options.output == "json":
        documents = [sealed(bill) for bill in bills]
        answer = documents[0] if options.run is not None and len(documents) == 1 else documents
        sys.stdout.write(json.dumps(answer, indent=2, ensure_ascii=False) + "\n")
    elif options.run is not None or len(bills) == 1:
        for bill in bills:
            Console().print(bill_tables(bill, options.prices))
    else:
        _print_sums(options, bills)
    return 0


def _bills(options: BillOptions) -> list[RunBill]:
    if options.workdir is not None:
        return bills_in_folder(options.workdir)
    if options.bucket is not None:
        with brought_by("local"):
            return bills_in_bucket(options.bucket, options.endpoint_url)
    with brought_by("cluster"):
        from videotrain.commands.cluster_runs import ClusterChoice, ask
    where = ClusterChoice(options.namespace or "", options.kubeconfig, options.context)
    return ask(where, lambda client: bills_in_cluster(client, options.namespace, options.operator_namespace))


def _taken(options: BillOptions, bills: Sequence[RunBill]) -> Taken:
    if options.workdir is not None:
        return taken_in_folder(options.workdir, bills)
    if options.bucket is not None:
        return taken_in_bucket(options.bucket, options.endpoint_url, bills)
    raise UsageError("--by source: samples are counted in the run's storage; allowed: with --workdir or --bucket")


def _print_sums(options: BillOptions, bills: Sequence[RunBill]) -> None:
    by: By = options.by or "run"
    rows = rows_within(bills, options.since, options.until)
    if by == "source":
        rows = shared_by_source(rows, _taken(options, bills))
    lines = summed(rows, by)
    if options.parquet is not None:
        amounts = ("node_hours", "gpu_hours", "cost", "productive_cost")
        with brought_by("local"):
            write_parquet(options.parquet, LINE_COLUMNS, line_rows(lines), amounts)
    elif options.output == "csv":
        sys.stdout.write(as_csv(LINE_COLUMNS, line_rows(lines)))
    elif options.output == "json":
        sys.stdout.write(json.dumps([{"by": by, **row} for row in line_rows(lines)], indent=2) + "\n")
    else:
        Console().print(line_table(lines, by))


def _print_focus(options: BillOptions, bills: Sequence[RunBill]) -> None:
    account = options.context or options.bucket or "videotrain"
    exact = focus_rows(rows_within(bills, options.since, options.until), account)
    rows = chain(exact, estimate_rows(bills, options.prices, account, options.since, options.until))
    if options.parquet is not None:
        with brought_by("local"):
            write_parquet(options.parquet, COLUMNS, rows, AMOUNTS)
    else:
        sys.stdout.write(as_csv(COLUMNS, rows))


def moment(text: str) -> datetime:
    """A day or a moment, in UTC unless it says otherwise.

    Raises:
        UsageError: it is none.
    """
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        allowed = "2026-11-01, 2026-11-01T12:00:00Z, or with its offset from UTC 2026-11-01T12:00:00+01:00"
        raise UsageError(f"{text!r} is no time; allowed: {allowed}") from None
    return at if at.tzinfo else at.replace(tzinfo=UTC)
