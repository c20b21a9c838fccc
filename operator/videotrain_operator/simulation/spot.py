"""Histories of spot markets: what a node cost, and how many there were, from when on."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from datetime import datetime
from typing import Final, NamedTuple

from videotrain_api.money import parse_micros
from videotrain_operator.simulation.failures import DAY, Failure, TraceError

COLUMNS: Final = "columns hours, price_per_gpu_hour (at most six decimal places), nodes (may be missing)"


class PricePoint(NamedTuple):
    """From here on."""

    at: float
    """Seconds since the simulation began."""
    price: str
    """Of an hour of a GPU, decimal string."""
    nodes: int | None = None
    """How many there are; all of them if None."""


def read_prices(name: str, text: str, gpus_per_node: int) -> list[PricePoint]:
    """A history: CSV, or the JSON that `aws ec2 describe-spot-price-history` prints, whose prices are those of nodes.

    Args:
        name: of its file, for messages.
        text: of the file.
        gpus_per_node: of the run's pool.

    Raises:
        TraceError: it is no such file.
    """
    if text.lstrip().startswith("{"):
        return _of_aws(name, text, gpus_per_node)
    found = []
    for line, row in enumerate(csv.DictReader(text.splitlines()), start=2):
        try:
            nodes = row.get("nodes")
            parse_micros(row["price_per_gpu_hour"])
            point = PricePoint(float(row["hours"]) * 3600, row["price_per_gpu_hour"], int(nodes) if nodes else None)
        except (KeyError, TypeError, ValueError):
            raise TraceError(f"{name}: line {line}: {dict(row)}: allowed: {COLUMNS}") from None
        found.append(point)
    return sorted(found, key=lambda point: point.at)


def _of_aws(name: str, text: str, gpus_per_node: int) -> list[PricePoint]:
    try:
        rows = json.loads(text)["SpotPriceHistory"]
        told = sorted((datetime.fromisoformat(row["Timestamp"]), float(row["SpotPrice"])) for row in rows)
    except (KeyError, TypeError, ValueError):
        wanted = "SpotPriceHistory with Timestamp and SpotPrice, of one zone and type"
        raise TraceError(f"{name}: allowed: a JSON object with {wanted}") from None
    each = max(1, gpus_per_node)
    return [PricePoint((at - told[0][0]).total_seconds(), f"{price / each:.6f}") for at, price in told]


def reclaims(prices: Sequence[PricePoint], *, nodes: int, days: float, notice: float) -> list[Failure]:
    """Nodes that are taken when there are fewer, those with the highest numbers first, until there are more again."""
    known = [point for point in prices if point.nodes is not None]
    found, since = [], dict[int, float]()
    for point in known:
        there = min(nodes, point.nodes or 0)
        for node in range(nodes):
            if node >= there:
                since.setdefault(node, point.at)
            elif node in since:
                found.append(_reclaim(node, since.pop(node), point.at, notice))
    found += [_reclaim(node, at, days * DAY, notice) for node, at in since.items()]
    return sorted(found)


def _reclaim(node: int, start: float, end: float, notice: float) -> Failure:
    """It is announced so early that the node goes when the history says."""
    announced = max(0.0, start - notice)
    return Failure(announced, node, "preempt", max(0.0, end - announced - notice))
