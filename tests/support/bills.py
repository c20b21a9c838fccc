"""Bills of simulated runs, for whoever shows, sums or stores them."""

from __future__ import annotations

import json
from typing import Any

from videotrain_api.billing.document import RunBill, bill_of
from videotrain_api.cost.storage import estimates_of
from videotrain_api.schema import Json
from videotrain_api.vocabulary import LEDGER_KEY
from videotrain_operator.simulation.cluster import SimulatedCluster


def ledger_in(cluster: SimulatedCluster) -> Json | None:
    """As it is stored."""
    body = cluster.objects.get(("ConfigMap", f"{cluster.name}-ledger"))
    return None if body is None else json.loads(body["data"][LEDGER_KEY])


def bill_in(cluster: SimulatedCluster, **labels: str) -> RunBill:
    """Of the cluster's run as it is now."""
    head = cluster.run["metadata"]
    run: dict[str, Any] = cluster.run | {"metadata": head | {"labels": head.get("labels", {}) | labels}}
    bill = bill_of(run, ledger_in(cluster), estimates_of(run))
    assert bill is not None
    return bill
