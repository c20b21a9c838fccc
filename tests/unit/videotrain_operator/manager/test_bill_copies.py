"""Copies of kept bills on a real S3 server: once and whole, whoever dies when and whatever the server does."""

from __future__ import annotations

import asyncio
import copy
import csv
import io
import json
import math
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from datetime import datetime, timedelta
from typing import Any

import boto3
import obstore
import pytest
from moto.server import ThreadedMotoServer
from support.kept_bills import NAMESPACE, Maps, seen_in
from support.planner_lives import cluster_of, pass_seconds

from videotrain.bills.sources import bills_in_bucket, store_bill
from videotrain.cli import main
from videotrain_api.billing.document import RunBill, sealed
from videotrain_api.metrics import BILL_COPY_FAILURES, BILLS_WAITING
from videotrain_api.resource.bill_storage import BillStorage
from videotrain_api.vocabulary import BILL_KEY, LABEL_BILL, LABEL_BILL_OPEN, LABEL_BILL_STORED
from videotrain_operator.manager import bill_copies as module
from videotrain_operator.manager.bill_copies import BillCopies
from videotrain_operator.manager.bills import BillKeeper, LastSeen
from videotrain_operator.simulation.objects import OperatorCrash

URI = "s3://finance/bills"
KEYS = {"AWS_ACCESS_KEY_ID": "AK", "AWS_SECRET_ACCESS_KEY": "SK", "AWS_DEFAULT_REGION": "us-east-1"}


class Store:
    """An S3 server that can be away, and ask for credentials that it knows."""

    def __init__(self) -> None:
        self.server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self.server.start()
        host, port = self.server.get_host_and_port()
        self.endpoint = f"http://{host}:{port}"
        self._tell("reset")  # all servers of a process are one
        self.client = boto3.client("s3", endpoint_url=self.endpoint)
        self.client.create_bucket(Bucket="finance")

    @property
    def place(self) -> BillStorage:
        return BillStorage(uri=URI, endpoint_url=self.endpoint)

    def bills(self) -> list[RunBill]:
        return bills_in_bucket(URI, self.endpoint)

    def know_keys_after(self, requests: float) -> None:
        """So many requests are answered whatever their keys."""
        self._tell("reset-auth", str(requests))

    def _tell(self, what: str, text: str = "") -> None:
        head = {"Content-Type": "text/plain"}
        request = urllib.request.Request(f"{self.endpoint}/moto-api/{what}", text.encode(), head)
        urllib.request.urlopen(request).close()


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(module, "PAUSES", (0.02,))
    found = Store()
    yield found
    found.know_keys_after(math.inf)
    found.server.stop()


def keep(maps: Maps, bill: RunBill) -> RunBill:
    """As the keeper writes it."""
    labels = {LABEL_BILL: bill.uid} | ({} if bill.closed else {LABEL_BILL_OPEN: "true"})
    name = f"videotrain-bill-{bill.uid}"
    head = {"name": name, "namespace": NAMESPACE, "labels": labels, "resourceVersion": "1"}
    maps.stored[name] = {"metadata": head, "immutable": bill.closed, "data": {BILL_KEY: json.dumps(sealed(bill))}}
    return bill


@asynccontextmanager
async def leading(maps: Maps, place: BillStorage) -> AsyncIterator[BillCopies]:
    copies = BillCopies(maps, NAMESPACE, place)
    task = asyncio.create_task(copies.run())
    try:
        yield copies
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not holds():
            await asyncio.sleep(0.01)


def told(copies: BillCopies) -> tuple[float, float]:
    """How many wait, and how many attempts failed."""
    values = {metric: value for metric, _, value in copies.samples()}
    return values[BILLS_WAITING], values[BILL_COPY_FAILURES]


def marked(maps: Maps) -> int:
    return sum(LABEL_BILL_STORED in body["metadata"]["labels"] for body in maps.stored.values())


Life = list[tuple[datetime, LastSeen]]
"""A run as it was after each second."""


@pytest.fixture(scope="module")
def life() -> Life:
    """Long enough for a bill that is kept before the last one."""

    async def lived() -> Life:
        cluster, found = cluster_of(machines=2, steps=100), []
        for _ in range(150):
            await pass_seconds(cluster, 1)
            found.append((cluster.now, copy.deepcopy(seen_in(cluster))))
        return found

    return asyncio.run(lived())


@pytest.fixture(scope="module")
def bill(life: Life) -> RunBill:
    """Of a run that is over."""
    (at, seen), maps = life[-1], Maps()
    asyncio.run(BillKeeper(maps, NAMESPACE, lambda: at).keep(seen))
    assert maps.bill().closed and maps.bill().total_micros
    return maps.bill()


def others(bill: RunBill, count: int, **changes: Any) -> list[RunBill]:
    return [bill.model_copy(update={"run": f"run-{n}", "uid": f"uid-{n}", **changes}) for n in range(count)]


async def test_bills_of_a_cluster_and_of_local_runs_are_told_alike(
    store: Store, bill: RunBill, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "PAGE", 2)
    maps = Maps()
    kept = [keep(maps, one) for one in others(bill, 5)]
    keep(maps, kept[0].model_copy(update={"closed": False}))
    async with leading(maps, store.place) as copies:
        await until(lambda: len(store.bills()) == 5 and marked(maps) == 4)
        assert told(copies) == (0, 0)
        copies.note(keep(maps, kept[0]))
        await until(lambda: marked(maps) == 5)
    assert store.bills() == kept, "each as its config map has it"
    local = bill.model_copy(update={"run": "local", "uid": "local-uid", "team": "home"})
    store_bill(store.client, URI, local)
    place = ("--bucket", URI, "--endpoint-url", store.endpoint)
    assert main(["bill", *place, "--by", "run", "-o", "json"]) == 0
    assert {row["name"] for row in json.loads(capsys.readouterr().out)} == {
        f"default/{one.run}" for one in (local, *kept)
    }
    assert main(["bill", *place, "--focus"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert round(sum(float(row["BilledCost"]) for row in rows) * 1e6) == 6 * bill.total_micros


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_an_operator_that_dies_at_any_write_leaves_one_bill_in_both_places(
    store: Store, life: Life, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    monkeypatch.setattr(module, "PAUSES", (1000.0,))
    write = obstore.put_async
    maps = Maps()

    async def counted(*arguments: Any, **options: Any) -> Any:
        maps.before()
        answer = await write(*arguments, **options)
        maps.after()
        return answer

    monkeypatch.setattr(obstore, "put_async", counted)
    died, crash_at = True, 0
    while died:
        crash_at += 1
        maps.stored.clear()
        store.client.delete_object(Bucket="finance", Key=f"bills/{life[0][1].run['metadata']['uid']}/bill.json")
        maps.writes, maps.crash_at, maps.crash_after = 0, crash_at, after
        died = await live_and_die(store, maps, life)
        (stored,) = store.bills()
        assert stored == maps.bill() and stored.closed and marked(maps) == 1
    assert crash_at > 4, "an open bill, its copy, the last one, its copy and the mark were each a write"


async def live_and_die(store: Store, maps: Maps, life: Life) -> bool:
    """A run to its end, with another operator after a death; whether one died."""
    second = operators = 0
    while not marked(maps):
        second = await led(store, maps, life, second)
        operators += 1
    return operators > 1


async def led(store: Store, maps: Maps, life: Life, second: int) -> int:
    """By one operator from a second on, until the bill is closed in both places or it dies; in which second."""
    at = [second]
    async with leading(maps, store.place) as copies:
        keeper = BillKeeper(maps, NAMESPACE, lambda: life[at[0]][0], copies=copies)
        with suppress(OperatorCrash):
            while not marked(maps) and not told(copies)[1]:
                seen = life[at[0]][1]
                if keeper.due(seen.run):
                    await keeper.keep(seen)
                await until(lambda: not told(copies)[0] or bool(told(copies)[1]))
                at[0] = min(at[0] + 1, len(life) - 1)
    return at[0]


async def test_a_store_that_is_away_holds_nobody_up_and_gets_everything_when_it_is_back(
    store: Store, bill: RunBill, caplog: pytest.LogCaptureFixture
) -> None:
    maps = Maps()
    host, port = store.server.get_host_and_port()
    store.server.stop()
    async with leading(maps, store.place) as copies:
        for one in others(bill, 3):
            copies.note(keep(maps, one))
        await until(lambda: told(copies)[1] >= 4)
        assert told(copies)[0] == 3 and marked(maps) == 0
        assert f"{URI} at {store.endpoint}" in caplog.text and "3 bills wait" in caplog.text
        store.server = ThreadedMotoServer(ip_address=host, port=port, verbose=False)
        store.server.start()
        await until(lambda: marked(maps) == 3)
    assert store.bills() == others(bill, 3)


async def test_wrong_credentials_are_told_and_right_ones_are_enough(
    store: Store, bill: RunBill, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    iam = boto3.client("iam", endpoint_url=store.endpoint)
    iam.create_user(UserName="operator")
    rights = {"Effect": "Allow", "Action": ["s3:GetObject", "s3:PutObject", "s3:ListBucket"], "Resource": "*"}
    text = json.dumps({"Version": "2012-10-17", "Statement": [rights]})
    iam.put_user_policy(UserName="operator", PolicyName="bills", PolicyDocument=text)
    keys = iam.create_access_key(UserName="operator")["AccessKey"]
    maps = Maps()
    keep(maps, bill)
    store.know_keys_after(0)
    async with leading(maps, store.place) as copies:
        await until(lambda: told(copies)[1] >= 2)
        assert told(copies)[0] == 1 and "credentials" in caplog.text and "403" in caplog.text
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", keys["AccessKeyId"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", keys["SecretAccessKey"])
    async with leading(maps, store.place) as copies:
        await until(lambda: marked(maps) == 1)
        assert told(copies) == (0, 0)
    store.know_keys_after(math.inf)  # those of this test
    assert store.bills() == [bill]


@pytest.mark.parametrize("earlier", [False, True], ids=["first", "replaced"])
async def test_a_leader_that_is_late_does_not_bring_an_older_bill(
    store: Store, bill: RunBill, monkeypatch: pytest.MonkeyPatch, earlier: bool
) -> None:
    maps, write = Maps(), obstore.put_async
    long_ago = bill.as_of - timedelta(hours=1) if bill.as_of else None
    if earlier:
        store_bill(store.client, URI, bill.model_copy(update={"run": bill.uid, "closed": False, "as_of": long_ago}))
    held, goes_on = asyncio.Event(), asyncio.Event()

    async def waits(*arguments: Any, **options: Any) -> Any:
        held.set()
        await goes_on.wait()
        return await write(*arguments, **options)

    monkeypatch.setattr(obstore, "put_async", waits)
    keep(maps, bill.model_copy(update={"closed": False, "total": "1"}))
    async with leading(maps, store.place) as late:
        await held.wait()
        monkeypatch.setattr(obstore, "put_async", write)
        keep(maps, bill)
        async with leading(maps, store.place):
            await until(lambda: marked(maps) == 1)
        goes_on.set()
        await until(lambda: told(late) == (0, 1))
    assert store.bills() == [bill]


async def test_a_bill_that_was_edited_by_hand_is_left_and_a_damaged_copy_is_written_anew(
    store: Store, bill: RunBill
) -> None:
    maps = Maps()
    first, second = (keep(maps, one) for one in others(bill, 2))
    store.client.put_object(Bucket="finance", Key=f"bills/{second.uid}/bill.json", Body=b"{")
    changed = maps.stored[f"videotrain-bill-{first.uid}"]["data"]
    changed[BILL_KEY] = changed[BILL_KEY].replace('"team": "', '"team": "x')
    async with leading(maps, store.place) as copies:
        await until(lambda: marked(maps) == 1 and told(copies) == (0, 1))
    assert store.bills() == [second]


async def test_another_place_gets_all_bills_too(store: Store, bill: RunBill) -> None:
    maps = Maps()
    keep(maps, bill)
    for uri in (URI, "s3://finance"):
        async with leading(maps, BillStorage(uri=uri, endpoint_url=store.endpoint)) as copies:
            await until(lambda: told(copies) == (0, 0) and bool(bills_in_bucket(uri, store.endpoint)))  # noqa: B023
    assert bills_in_bucket("s3://finance", store.endpoint) == [bill]
