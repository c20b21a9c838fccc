"""Bills of local runs in their object store: each run's own, whatever other runs are called."""

from __future__ import annotations

import asyncio
import csv
import io
from datetime import timedelta
from decimal import Decimal

import boto3
import pytest
from moto import mock_aws
from support.planner_lives import cluster_of, pass_seconds

from videotrain.bills.sources import bills_in_bucket, store_bill
from videotrain.cli import main
from videotrain_api.billing.document import RunBill, bill_of, bill_text

RUNS = "s3://runs/videos"


@pytest.fixture(scope="module")
def bill() -> RunBill:
    """Of a run that goes on."""

    async def live() -> RunBill | None:
        cluster = cluster_of(machines=2, steps=60)
        await pass_seconds(cluster, 30)
        return bill_of(cluster.run, None)

    found = asyncio.run(live())
    assert found is not None and found.total_micros > 0 and not found.closed
    return found


@pytest.fixture
def client(monkeypatch):
    """Of an object store with the bucket `runs`."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.setenv(name, "us-east-1")
    with mock_aws():
        found = boto3.client("s3")
        found.create_bucket(Bucket="runs")
        yield found


def changed(bill: RunBill, **fields) -> RunBill:
    return bill.model_copy(update=fields)


def test_they_are_found_and_a_changed_one_is_refused(client, bill, capsys):
    client.put_object(Bucket="runs", Key="videos/no-run/other.json", Body=b"{}")
    for number in range(2):
        other = changed(bill, run=f"run-{number}", uid=f"uid-{number}", closed=True)
        assert store_bill(client, f"{RUNS}/", other) == f"{RUNS}/uid-{number}/bill.json"
    assert main(["bill", "--bucket", RUNS, "--csv"]) == 0
    lines = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [Decimal(line["cost"]) * 10**6 for line in lines] == [bill.total_micros] * 2
    text = client.get_object(Bucket="runs", Key="videos/uid-1/bill.json")["Body"].read().decode()
    other = text.replace('"team": ""', '"team": "others"')
    assert other != text
    client.put_object(Bucket="runs", Key="videos/uid-1/bill.json", Body=other.encode())
    assert main(["bill", "--bucket", RUNS]) == 2
    assert "was changed" in capsys.readouterr().err


def test_a_later_run_of_the_same_name_leaves_the_first_ones(client, bill, capsys):
    first, second = (changed(bill, uid=uid, closed=True) for uid in ("first", "second"))
    store_bill(client, RUNS, first)
    store_bill(client, RUNS, second)
    assert {each.uid for each in bills_in_bucket(RUNS, None)} == {"first", "second"}
    assert main(["bill", "--bucket", RUNS, "--by", "team", "--csv"]) == 0
    (line,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert Decimal(line["cost"]) * 10**6 == 2 * bill.total_micros


def test_bills_that_were_stored_by_the_names_of_their_runs_are_read(client, bill):
    older = changed(bill, uid="older", closed=True)
    client.put_object(Bucket="runs", Key=f"videos/{bill.run}/bill.json", Body=bill_text(older).encode())
    store_bill(client, RUNS, changed(bill, uid="newer", closed=True))
    assert {each.uid for each in bills_in_bucket(RUNS, None)} == {"older", "newer"}
    store_bill(client, RUNS, older)  # its command is given again
    assert {each.uid for each in bills_in_bucket(RUNS, None)} == {"older", "newer"}


def test_only_what_goes_further_replaces_a_bill(client, bill):
    open_bill, closed = changed(bill, uid="one"), changed(bill, uid="one", closed=True)
    later = changed(open_bill, as_of=bill.as_of + timedelta(hours=1))
    for written, expected in ((open_bill, open_bill), (later, later), (closed, closed), (later, closed)):
        store_bill(client, RUNS, written)
        assert bills_in_bucket(RUNS, None) == [expected]


def test_one_that_was_cut_is_written_anew(client, bill):
    uri = store_bill(client, RUNS, bill)
    client.put_object(Bucket="runs", Key=uri.removeprefix("s3://runs/"), Body=b'{"run": ')
    store_bill(client, RUNS, bill)
    assert bills_in_bucket(RUNS, None) == [bill]
