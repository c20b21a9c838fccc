"""Bills that outlive their runs: kept as they grow and when nothing can change, once, and after a deletion."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from support.kept_bills import NAMESPACE, Maps, live, seen_in
from support.planner_lives import cluster_of, running

from videotrain_api.billing.document import RunBill
from videotrain_api.money import parse_micros
from videotrain_api.schema import Json
from videotrain_api.times import rfc3339
from videotrain_api.vocabulary import LABEL_BILL_OPEN
from videotrain_operator.cluster.interface import Conflict
from videotrain_operator.manager import bills as module
from videotrain_operator.manager.bills import BillKeeper, LastSeen
from videotrain_operator.simulation.cluster import SimulatedCluster
from videotrain_operator.simulation.objects import OperatorCrash


async def test_a_bill_is_kept_a_minute_after_its_pods_came_and_once_for_ever_when_the_run_is_over() -> None:
    cluster, maps = cluster_of(machines=2, steps=100), Maps()
    keeper = BillKeeper(maps, NAMESPACE, lambda: cluster.now)
    await live(cluster, keeper, 55)
    assert maps.writes == 0 and cluster.run["status"]["cost"]["totalMicros"]
    await live(cluster, keeper, 45)
    assert maps.writes == 1 and not maps.bill().closed
    assert maps.bill().team == "vision"
    await live(cluster, keeper, 120)
    cost = cluster.run["status"]["cost"]
    assert cluster.run["status"]["phase"] == "Succeeded"
    assert maps.bill().closed and maps.bill().total_micros == cost["totalMicros"] > 0
    assert maps.writes <= 3 and next(iter(maps.stored.values()))["immutable"]
    writes, again = maps.writes, BillKeeper(maps, NAMESPACE, lambda: cluster.now)
    await again.keep(seen_in(cluster))
    assert maps.writes == writes and not again.due(seen_in(cluster).run), "another process finds it closed"


async def test_a_bill_is_kept_when_it_is_twice_as_old_and_every_hour_and_not_for_every_world() -> None:
    cluster, maps = cluster_of(machines=2, steps=500), Maps()
    late = timedelta(0)
    keeper = BillKeeper(maps, NAMESPACE, lambda: cluster.now + late)
    await live(cluster, keeper, 70)
    begun = datetime.fromisoformat(cluster.run["metadata"]["creationTimestamp"])
    status = cluster.run["status"]
    next_world = cluster.run | {"status": status | {"generation": status["generation"] + 1}}
    assert maps.writes == 1 and not keeper.due(next_world)
    ages = []
    for minute in range(2, 5 * 60):
        late = begun + timedelta(minutes=minute, seconds=30) - cluster.now
        seen = with_cost(seen_in(cluster), minute)
        if ages:
            assert not keeper.due(with_cost(seen, ages[-1]).run), "it cost nothing since then"
        if keeper.due(seen.run):
            await keeper.keep(seen)
            ages.append(minute)
    assert ages == [2, 5, 11, 23, 47, 95, 155, 215, 275]


def with_cost(seen: LastSeen, more: int) -> LastSeen:
    """So many micros later."""
    status = seen.run["status"]
    cost = status["cost"] | {"totalMicros": 1_000_000 + more}
    return LastSeen(seen.run | {"status": status | {"cost": cost}}, seen.ledger)


async def kept_open(cluster: SimulatedCluster, maps: Maps) -> RunBill:
    await live(cluster, BillKeeper(maps, NAMESPACE, lambda: cluster.now), 70)
    bill = maps.bill()
    assert not bill.closed and not bill.estimated
    return bill


async def test_who_leads_next_closes_bills_of_runs_that_are_gone_as_estimates() -> None:
    cluster, maps = cluster_of(machines=2, steps=500), Maps()
    before = await kept_open(cluster, maps)
    maps.stored["damaged"] = {"metadata": {"name": "damaged", "labels": {LABEL_BILL_OPEN: "true"}}, "data": {}}
    await BillKeeper(maps, NAMESPACE, lambda: cluster.now).take_over(lambda _: False)
    del maps.stored["damaged"]
    assert maps.bill() == before.model_copy(update={"closed": True, "estimated": True})
    assert await maps.list("ConfigMap", NAMESPACE, LABEL_BILL_OPEN) == [], "the next one has nothing to read"


async def test_who_leads_next_closes_no_bill_of_a_run_that_server_or_cache_know_and_writes_nothing() -> None:
    cluster, maps = cluster_of(machines=2, steps=500), Maps()
    before = await kept_open(cluster, maps)
    for known, runs in ((True, []), (False, [cluster.run])):
        maps.runs = runs
        keeper = BillKeeper(maps, NAMESPACE, lambda: cluster.now)
        await keeper.take_over(lambda _, known=known: known)  # type: ignore[misc]
        assert maps.writes == 1 and maps.bill() == before
        assert keeper.due(seen_in(cluster).run) is not known, "one that the cache knows was kept a moment ago"


async def test_open_bills_are_read_again_until_the_server_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSES", (0.0,))
    cluster, maps = cluster_of(machines=2, steps=500), Maps()
    await kept_open(cluster, maps)
    read, refused = maps.list, iter([Conflict("busy")] * 3)

    async def refusing(kind: str, namespace: str = "", labels: str = "") -> list[Json]:
        for error in refused:
            raise error
        return await read(kind, namespace, labels)

    monkeypatch.setattr(maps, "list", refusing)
    await BillKeeper(maps, NAMESPACE, lambda: cluster.now).take_over(lambda _: False)
    assert maps.bill().closed


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("write", [1, 2])
async def test_an_operator_that_dies_at_any_write_leaves_one_whole_bill(write: int, after: bool) -> None:
    cluster, maps = cluster_of(machines=2, steps=100), Maps()
    maps.crash_at, maps.crash_after = write, after
    keeper = BillKeeper(maps, NAMESPACE, lambda: cluster.now)
    for _ in range(150):
        try:
            await live(cluster, keeper, 1)
        except OperatorCrash:
            keeper = BillKeeper(maps, NAMESPACE, lambda: cluster.now)
    assert maps.bill().closed and maps.bill().total_micros == cluster.run["status"]["cost"]["totalMicros"]


async def test_a_run_that_is_deleted_is_billed_until_its_pods_have_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.0)
    cluster, maps = cluster_of(machines=3, steps=500), Maps()
    keeper = BillKeeper(maps, NAMESPACE, lambda: cluster.now)
    await running(cluster, 20)
    seen, bodies = seen_in(cluster), cluster.pods()
    bound = {pod["metadata"]["uid"]: pod["status"]["conditions"] for pod in bodies}
    assert len(bound) == 3
    ends = [cluster.now + timedelta(seconds=7 + 4 * index) for index, _ in enumerate(bodies)]
    end_of = dict(zip(bound, ends, strict=True))

    def pods() -> list[Json]:
        """They end one after another, and a second later their objects go."""
        cluster.now += timedelta(seconds=1)
        found = []
        for pod in bodies:
            end = end_of[pod["metadata"]["uid"]]
            if cluster.now >= end:
                terminated = {"exitCode": 0, "finishedAt": rfc3339(end)}
                status = pod["status"] | {
                    "containerStatuses": [{"name": "worker", "state": {"terminated": terminated}}]
                }
                pod = pod | {"status": status | {"phase": "Succeeded"}}
            if cluster.now < end + timedelta(seconds=2):
                found.append(pod)
        return found

    before = seen.run["status"]["cost"]["totalMicros"]
    looked = cluster.now
    await keeper.close(seen, pods, lambda: False)
    price = parse_micros(seen.run["spec"]["pool"]["pricePerGpuHour"]) * seen.run["spec"]["pool"]["gpusPerNode"]
    more = sum(price * ((end - looked) // timedelta(microseconds=1)) // 3_600_000_000 for end in ends)
    bill = maps.bill()
    assert bill.closed and not bill.estimated and abs(bill.total_micros - before - more) <= 3
    assert sum(row.total for row in bill.rows) == bill.total_micros
    assert {row.node for row in bill.rows} == {"node-0", "node-1", "node-2"}


async def test_a_run_that_a_server_denied_for_a_moment_has_no_last_bill(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.0)
    cluster, maps = cluster_of(machines=3, steps=500), Maps()
    await running(cluster, 20)

    def pods() -> list[Json]:
        cluster.now += timedelta(seconds=1)
        return cluster.pods()

    await BillKeeper(maps, NAMESPACE, lambda: cluster.now).close(seen_in(cluster), pods, lambda: True)
    assert not maps.bill().closed and not next(iter(maps.stored.values()))["immutable"]


async def test_a_last_bill_is_written_again_and_a_pod_of_unknown_end_is_billed_to_when_it_was_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(module, "PAUSES", (0.0,) * 4)
    cluster, maps = cluster_of(machines=3, steps=500), Maps()
    await running(cluster, 20)
    seen, bodies = seen_in(cluster), cluster.pods()
    looked = cluster.now
    refused = iter([Conflict("the server is busy")] * 4)

    def pods() -> list[Json]:
        cluster.now += timedelta(seconds=1)
        return bodies if cluster.now <= looked + timedelta(seconds=90) else []

    write = maps.apply

    async def refusing(manifest: Json, manager: str, *, force: bool = True) -> Json:
        for error in refused:
            raise error
        return await write(manifest, manager, force=force)

    monkeypatch.setattr(maps, "apply", refusing)
    before = seen.run["status"]["cost"]["totalMicros"]
    await BillKeeper(maps, NAMESPACE, lambda: cluster.now).close(seen, pods, lambda: False)
    price = parse_micros(seen.run["spec"]["pool"]["pricePerGpuHour"]) * seen.run["spec"]["pool"]["gpusPerNode"]
    bill = maps.bill()
    assert bill.closed and bill.estimated and abs(bill.total_micros - before - 3 * price * 90 // 3600) <= 3


def test_a_bill_is_due_whatever_a_hand_wrote_as_the_rate_of_a_run_that_is_over() -> None:
    cluster = cluster_of()
    keeper = BillKeeper(Maps(), NAMESPACE, lambda: cluster.now)
    status = {"completionTime": rfc3339(cluster.now), "cost": {"totalMicros": 5, "ratePerHour": "abc"}}
    assert keeper.due(cluster.run | {"status": status})
