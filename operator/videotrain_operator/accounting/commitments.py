"""What of reserved GPUs runs hold: commitments of the price list, and reserved nodes that none of them names.

Nothing of it is in the bill of a run, which pays for what it holds. What nobody holds is the administrator's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from videotrain_api.money import parse_micros
from videotrain_api.resource.prices import Commitment, PriceList, capacity_of
from videotrain_api.schema import Json

NO_COMMITMENT: Final = "none"
"""Name of what is reserved by its labels and counts towards no commitment."""


@dataclass(frozen=True, kw_only=True)
class ReservedUse:
    """GPUs of one commitment."""

    name: str
    committed: int
    """That are paid in any case; those that are there where nobody committed to a number."""
    present: int
    """On nodes that are there."""
    held: int
    """By pods of runs."""
    idle_micros_per_hour: int
    """What those cost that are paid and not held by a run; others' pods may use them."""


def reserved_use(
    prices: PriceList, nodes: Iterable[Json], held: Mapping[str, int], now: datetime
) -> Iterator[ReservedUse]:
    """What is reserved now, by commitment.

    Args:
        prices: of the cluster.
        nodes: all Node objects.
        held: GPUs that pods of runs hold, by node.
        now: the time, aware.
    """
    valid = [one for one in prices.commitments if _is_valid(one, now)]
    found: dict[str, list[tuple[Mapping[str, str], int, int]]] = {one.name: [] for one in valid}
    for node in nodes:
        labels = node["metadata"].get("labels") or {}
        name = next((one.name for one in valid if one.holds(labels)), None)
        if name is None and capacity_of(labels) == "reserved":
            name = NO_COMMITMENT
        if name is not None:
            there = gpus_of(node)
            found.setdefault(name, []).append((labels, there, min(there, held.get(node["metadata"]["name"], 0))))
    for one in valid:
        used = sum(gpus for _, _, gpus in found[one.name])
        yield ReservedUse(
            name=one.name,
            committed=one.gpus,
            present=sum(there for _, there, _ in found[one.name]),
            held=used,
            idle_micros_per_hour=max(0, one.gpus - used) * parse_micros(one.price_per_gpu_hour),
        )
    if others := found.get(NO_COMMITMENT):
        there = sum(count for _, count, _ in others)
        idle = sum((count - used) * _listed(prices, labels, now) for labels, count, used in others)
        used = sum(gpus for _, _, gpus in others)
        yield ReservedUse(name=NO_COMMITMENT, committed=there, present=there, held=used, idle_micros_per_hour=idle)


def gpus_of(body: Json) -> int:
    """GPUs that a node has, or that a pod asks for, by extended resources that are named `.../gpu`."""
    if "containers" in (body.get("spec") or {}):
        amounts = [(one.get("resources") or {}).get("limits") or {} for one in body["spec"]["containers"]]
    else:
        amounts = [(body.get("status") or {}).get("allocatable") or {}]
    return sum(int(count) for one in amounts for key, count in one.items() if key.endswith("/gpu") and count.isdigit())


def _is_valid(one: Commitment, now: datetime) -> bool:
    return (one.valid_from is None or one.valid_from <= now) and (one.valid_to is None or now < one.valid_to)


def _listed(prices: PriceList, labels: Mapping[str, str], now: datetime) -> int:
    """Micros per hour of a GPU of such a node by the list; 0 where runs say their own price."""
    own = f"0 {prices.currency}"
    schedule = prices.of_pod(labels, own, gpus=True, bound_at=now)
    return parse_micros(schedule[0][1].partition(" ")[0]) if schedule else 0
