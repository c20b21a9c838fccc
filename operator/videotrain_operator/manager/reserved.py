"""Metrics of what is reserved in the cluster, and of what of it no run holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import datetime

from videotrain_api import metrics as catalogue
from videotrain_api.money import MICROS
from videotrain_api.resource.prices import PriceList
from videotrain_api.schema import Json
from videotrain_operator.accounting.commitments import gpus_of, reserved_use
from videotrain_operator.telemetry import Sample


def reserved_samples(prices: PriceList, nodes: Iterable[Json], pods: Iterable[Json], now: datetime) -> Iterator[Sample]:
    """Metrics of what is reserved.

    Args:
        prices: of the cluster.
        nodes: all Node objects.
        pods: of all runs that are served here.
        now: the time, aware.
    """
    held: Counter[str] = Counter()
    for pod in pods:
        node = (pod.get("spec") or {}).get("nodeName")
        if node and (pod.get("status") or {}).get("phase") not in ("Succeeded", "Failed"):
            held[node] += gpus_of(pod)
    for one in reserved_use(prices, nodes, held, now):
        for state, gpus in (("committed", one.committed), ("present", one.present), ("held", one.held)):
            yield catalogue.RESERVED_GPUS, (one.name, state), float(gpus)
        yield catalogue.RESERVED_IDLE_COST, (one.name, prices.currency), one.idle_micros_per_hour / MICROS
