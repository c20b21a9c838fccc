"""A run on nodes that the cluster's list prices: the list wins, and where it changes the bill is cut."""

from __future__ import annotations

from datetime import timedelta

from support.bills import bill_in, ledger_in
from support.planner_lives import KEY, cluster_of

from videotrain_api.resource.prices import PriceList
from videotrain_api.schema import Json
from videotrain_operator.planner.cluster_rules import ClusterRules
from videotrain_operator.reconcile import reconcile
from videotrain_operator.simulation.cluster import SimulatedCluster


class Labelled(SimulatedCluster):
    """Its nodes are spot nodes."""

    async def list(self, kind: str, namespace: str, labels: object = None) -> list[Json]:
        found = await super().list(kind, namespace, labels)
        if kind != "Node":
            return found
        return [n | {"metadata": n["metadata"] | {"labels": {"karpenter.sh/capacity-type": "spot"}}} for n in found]


async def seconds_under(cluster: SimulatedCluster, prices: PriceList, seconds: int) -> None:
    for _ in range(seconds):
        for _ in range(6):
            rules = ClusterRules(prices=prices)
            outcome = await reconcile(cluster, KEY, lambda: cluster.now, cluster, rules=rules)
            if outcome.requeue_seconds != 0:
                break
        cluster.tick()


async def test_the_list_wins_and_another_list_holds_from_its_time_on() -> None:
    cluster = cluster_of(machines=3, steps=20)
    cluster.__class__ = Labelled
    spot = {"capacity": "spot", "pricePerGpuHour": "3.60"}
    await seconds_under(cluster, PriceList.from_wire({"prices": [spot]}), 14)
    assert (ledger_in(cluster) or {})["kinds"][-1][1] == "3.60 USD"
    change = cluster.now + timedelta(seconds=5)
    later = {"prices": [spot | {"validTo": change.isoformat()}, spot | {"pricePerGpuHour": "36"}]}
    await seconds_under(cluster, PriceList.from_wire(later), 40)
    bill = bill_in(cluster)
    assert bill.closed
    gpus = cluster.run["spec"]["pool"]["gpusPerNode"]
    for row in bill.rows:
        if row.price:
            rate = {"3.60 USD": 1_000, "36 USD": 10_000}[row.price] * gpus
            assert row.total == rate * round((row.to - row.from_).total_seconds())
            assert (row.to <= change) if row.price == "3.60 USD" else (row.from_ >= change)
    assert {row.price for row in bill.rows if row.price} == {"3.60 USD", "36 USD"}
    assert sum(row.total for row in bill.rows) == bill.total_micros
