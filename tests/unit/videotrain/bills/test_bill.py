"""`videotrain bill`: one run's bill and sums of many, from a working directory."""

from __future__ import annotations

import asyncio
import csv
import io
import json
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal

import boto3
import google_crc32c
import pyarrow.parquet as pq
import pytest
from moto import mock_aws
from support.planner_lives import cluster_of, pass_seconds

from videotrain.bills.sources import newest, store_bill
from videotrain.cli import main
from videotrain.embedded.database import Database, Key, Row
from videotrain_api.billing.document import bill_of, read_bill
from videotrain_api.schema import Json
from videotrain_api.storage import layout
from videotrain_api.storage.seals import content


@pytest.fixture(scope="module")
def life() -> tuple[Json, list[Json]]:
    """A run that lost a node, and its config maps."""

    async def live() -> tuple[Json, list[Json]]:
        cluster = cluster_of(machines=3, steps=60)
        await pass_seconds(cluster, 30)
        cluster.lose_node("node-0")
        await pass_seconds(cluster, 30)
        return cluster.run, [body for (kind, _), body in cluster.objects.items() if kind == "ConfigMap"]

    return asyncio.run(live())


@pytest.fixture
def workdir(tmp_path, life):
    run, maps = life
    database = Database(tmp_path / "cluster.db")
    rows = {}
    for number, body in enumerate([run, *maps], 1):
        head = body["metadata"]
        rows[Key(body["kind"], head["namespace"], head["name"])] = Row(number, body)
    database.commit(rows, 7)
    database.close()
    return tmp_path


def output(capsys, *arguments: str) -> str:
    assert main(["bill", *arguments]) == 0
    return capsys.readouterr().out


def test_a_run_s_bill_tells_stages_causes_and_what_ended_its_generations(workdir, life, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    told = output(capsys, "demo", "--workdir", str(workdir))
    cost = life[0]["status"]["cost"]
    for text in ("What each stage cost", "infrastructure", "node-0", cost["stages"][0]["perThousandSteps"]):
        assert text in told, text


def test_the_same_as_json_is_a_bill_with_its_checksum(workdir, life, capsys):
    document = json.loads(output(capsys, "demo", "--workdir", str(workdir), "-o", "json"))
    assert read_bill(document).total_micros == life[0]["status"]["cost"]["totalMicros"]


@pytest.mark.parametrize("by", ["team", "stage", "node", "cause", "bucket", "run", "namespace"])
def test_lines_of_csv_sum_to_the_bill(workdir, life, capsys, by):
    lines = list(csv.DictReader(io.StringIO(output(capsys, "--workdir", str(workdir), "--by", by, "--csv"))))
    assert sum(Decimal(line["cost"]) for line in lines) * 10**6 == life[0]["status"]["cost"]["totalMicros"]
    assert len(lines) == 1 or by not in ("team", "stage", "run", "namespace")


def test_focus_rows_and_parquet_files_have_the_same_money(workdir, life, capsys, tmp_path):
    total = life[0]["status"]["cost"]["totalMicros"]
    rows = list(csv.DictReader(io.StringIO(output(capsys, "--workdir", str(workdir), "--focus"))))
    assert sum(Decimal(row["BilledCost"]) for row in rows) * 10**6 == total
    for arguments, column in ((["--focus"], "BilledCost"), (["--by", "node"], "cost")):
        file = tmp_path / f"{column}.parquet"
        assert output(capsys, "--workdir", str(workdir), *arguments, "--parquet", str(file)) == ""
        assert sum(pq.read_table(file).column(column).to_pylist()) * 10**6 == total


PRICES = """
operator: {}
priceList:
  storage: {pricePerGibibyteMonth: "23", pricePerThousandWrites: "5", pricePerThousandReads: "0.4"}
"""


def test_the_object_store_is_estimated_beside_the_bill_and_never_in_it(workdir, life, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "values.yaml").write_text(PRICES)
    prices = ("--price-list", str(tmp_path / "values.yaml"))
    told = output(capsys, "demo", "--workdir", str(workdir), *prices)
    assert "Object store: estimated from steps and policy, in no total" in told and "checkpoints" in told
    document = json.loads(output(capsys, "demo", "--workdir", str(workdir), "-o", "json", *prices))
    total = life[0]["status"]["cost"]["totalMicros"]
    assert document["totalMicros"] == total and {one["kept"] for one in document["estimates"]} >= {"checkpoints"}
    rows = list(csv.DictReader(io.StringIO(output(capsys, "--workdir", str(workdir), "--focus", *prices))))
    exact = [row for row in rows if row["ServiceCategory"] == "Compute"]
    assert sum(Decimal(row["BilledCost"]) for row in exact) * 10**6 == total
    assert len(rows) > len(exact) and {row["x_Estimated"] for row in rows if row not in exact} == {"true"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{}", "no priceList"),
        ("priceList: {storage: {pricePerGibibyteMonth: '-1'}}", "storage.pricePerGibibyteMonth"),
        ("priceList: {storage: {perMonth: '1'}}", "perMonth"),
    ],
)
def test_prices_that_nobody_can_read_are_refused_and_named(workdir, capsys, tmp_path, text, words):
    (tmp_path / "values.yaml").write_text(text)
    assert main(["bill", "--workdir", str(workdir), "--price-list", str(tmp_path / "values.yaml")]) == 2
    assert words in capsys.readouterr().err


def test_a_day_without_pods_costs_nothing_and_a_cut_day_is_its_part(workdir, life, capsys):
    total = life[0]["status"]["cost"]["totalMicros"]
    middle = life[0]["status"]["generations"][0]["endedAt"]
    halves = []
    for cut in (["--until", middle], ["--since", middle]):
        lines = csv.DictReader(io.StringIO(output(capsys, "--workdir", str(workdir), "--csv", *cut)))
        halves.append(sum(Decimal(line["cost"]) for line in lines) * 10**6)
    assert sum(halves) == total and min(halves) > 0
    assert output(capsys, "--workdir", str(workdir), "--csv", "--until", "2020-01-01").count("\n") == 1


def test_a_moment_is_the_same_in_every_zone(workdir, life, capsys):
    """Also in one that sets its clocks: an offset says which of two equal hours is meant."""
    middle = datetime.fromisoformat(life[0]["status"]["generations"][0]["endedAt"])
    told = set()
    for hours in (-11, -5, 0, 1, 2, 5.75, 14):
        there = middle.astimezone(timezone(timedelta(hours=hours)))
        told.add(output(capsys, "--workdir", str(workdir), "--csv", "--until", there.isoformat()))
    assert len(told) == 1 and "0.00" not in told
    naive = middle.astimezone(UTC).replace(tzinfo=None).isoformat()
    assert output(capsys, "--workdir", str(workdir), "--csv", "--until", naive) in told, "UTC unless it says otherwise"


def test_what_is_not_there_or_no_time_is_said(workdir, capsys, tmp_path):
    assert main(["bill", "other", "--workdir", str(workdir)]) == 1
    assert "no bill of other" in capsys.readouterr().err
    assert main(["bill", "--workdir", str(workdir), "--since", "yesterday"]) == 2
    assert "2026-11-01" in capsys.readouterr().err
    assert main(["bill", "--workdir", str(workdir), "--since", "2026-11-02", "--until", "2026-11-01"]) == 2
    assert "is not before --until 2026-11-01" in capsys.readouterr().err
    assert main(["bill", "--workdir", str(tmp_path / "nothing")]) == 2
    assert "there is no cluster.db here" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["just text", "a: [b", "clusters: 5"])
def test_a_kubeconfig_that_is_none_is_said_in_a_line(capsys, tmp_path, text):
    (tmp_path / "config").write_text(text)
    assert main(["bill", "--kubeconfig", str(tmp_path / "config")]) == 2
    told = capsys.readouterr().err
    assert str(tmp_path / "config") in told and "Traceback" not in told


def test_of_a_run_s_bills_the_closed_one_counts_else_the_newest(life):
    run, _ = life
    bill = bill_of(run, None)
    assert bill is not None
    older = bill.model_copy(update={"as_of": bill.created_at})
    closed = older.model_copy(update={"closed": True})
    assert newest([bill, older]) == [bill] and newest([bill, closed, older]) == [closed]


def test_the_cost_of_stages_is_shared_out_by_the_samples_of_each_source(workdir, life, capsys):
    stages = [stage["name"] for stage in life[0]["status"]["cost"]["stages"]]
    told = {"run": "demo", "samples": {"stages": [{"name": stages[0], "sources": {"film": 3, "web": 1, "web+1": 3}}]}}
    (workdir / "summary.json").write_text(json.dumps(told))
    arguments = ("--workdir", str(workdir), "-o", "json")
    by_stage = {row["name"]: row for row in json.loads(output(capsys, *arguments, "--by", "stage"))}
    by_source = {row["name"]: row for row in json.loads(output(capsys, *arguments, "--by", "source"))}
    whole = Decimal(by_stage[stages[0]]["cost"])
    parts = [Decimal(by_source[name]["cost"]) for name in ("film", "web", "web+1")]
    assert sum(parts) == whole
    for part, share in zip(parts, (3, 1, 3), strict=True):
        # Each row of the bill is rounded by itself.
        assert abs(part - whole * share / 7) < Decimal("0.001")
    for field in ("node_hours", "gpu_hours"):
        total = sum(Decimal(row[field]) for row in by_source.values())
        assert abs(total - sum(Decimal(row[field]) for row in by_stage.values())) < Decimal("0.00001")


def test_where_samples_are_not_counted_the_way_to_count_them_is_told(workdir, capsys):
    assert main(["bill", "--by", "source", "--workdir", str(workdir)]) == 2
    assert f"`videotrain report {workdir}` writes it" in capsys.readouterr().err
    assert main(["bill", "--by", "source", "--kubeconfig", str(workdir / "none")]) == 2


def test_a_bucket_tells_the_samples_by_its_newest_checkpoints(workdir, life, capsys, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with mock_aws():  # within what is patched here, or its own keys would stay in the environment
        client = boto3.client("s3")
        client.create_bucket(Bucket="runs")
        run, maps = life
        ledger = next(
            json.loads(text) for one in maps for key, text in (one.get("data") or {}).items() if "ledger" in key
        )
        bill = bill_of(run, ledger)
        store_bill(client, "s3://runs/all", bill)
        stage = bill.stages[0].name
        prefix = layout.stage_prefix("s3://runs/all", bill.run, stage)
        objects = {
            layout.latest_checkpoint(prefix): {"step": 40, "generation": 1},
            layout.checkpoint_commit(prefix, 40): {"sourceSamples": {"film": 1, "web": 1}},
        }
        for uri, fields in objects.items():
            sealed = fields | {"crc32c": f"{google_crc32c.value(content(fields)):08x}"}
            client.put_object(Bucket="runs", Key=uri.removeprefix("s3://runs/"), Body=json.dumps(sealed).encode())
        found = json.loads(output(capsys, "--bucket", "s3://runs/all", "--by", "source", "-o", "json"))
        assert {row["name"] for row in found} >= {"film", "web"}
        costs = {row["name"]: Decimal(row["cost"]) for row in found}
        assert abs(costs["film"] - costs["web"]) < Decimal("0.001") and costs["film"] > 0
