"""`videotrain report`: the page of a run in a cluster, and that of a working directory again."""

from __future__ import annotations

import json
import re
from pathlib import Path

import boto3
import pytest
from moto import mock_aws
from support.one_run import OneRun
from support.planner_builders import manifest, train_stage

from videotrain.cli import main
from videotrain.commands import cluster_runs
from videotrain.commands import report as command
from videotrain.embedded.database import DATABASE_FILE, Database, Key, Row
from videotrain.report.summary import SUMMARY_FILE
from videotrain_api.storage.layout import records_part
from videotrain_api.vocabulary import KIND


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> OneRun:
    run = manifest(stages=[train_stage("train", 200)])
    run["spec"]["storage"] = {"uri": "s3://videotrain/runs"}
    run["metadata"] |= {"namespace": "lab", "uid": "u"}
    stage = {"name": "train", "task": "train", "state": "Running", "configHash": "0" * 16}
    run["status"] = {"phase": "Running", "stage": "train", "stages": [stage]}
    client = OneRun(run)
    monkeypatch.setattr(cluster_runs, "connect", lambda *_: client)
    return client


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    with mock_aws():
        boto3.client("s3", region_name="us-east-1").create_bucket(Bucket="videotrain")
        yield


def test_the_page_of_a_run_in_a_cluster(
    client: OneRun, bucket: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", "lab/demo", "--to", str(tmp_path / "page")]) == 0
    page = tmp_path / "page/report.html"
    assert capsys.readouterr().out == f"{page}\n"
    assert "Running" in page.read_text() and 'http-equiv="refresh"' not in page.read_text()
    assert (tmp_path / "page" / SUMMARY_FILE).is_file()


def step(number: int, generation: int) -> str:
    times = {"startedAt": f"2026-11-23T10:00:{number:02d}Z", "finishedAt": f"2026-11-23T10:00:{number + 1:02d}Z"}
    counts = {"dataStallUs": 0, "checkpointUs": 0, "samples": 4, "tokens": 512, "modelFlops": 1e9}
    head = {"kind": "step", "generation": generation, "stage": "train", "step": number}
    return json.dumps(head | times | counts | {"loss": 2 / number}) + "\n"


def test_curves_come_from_the_records_that_the_run_stored(client: OneRun, bucket: None, tmp_path: Path) -> None:
    store = boto3.client("s3", region_name="us-east-1")
    stored = (
        ("u", 1, 0, (1, 2)),
        ("u", 1, 1, (3,)),
        ("u", 2, 0, (4, 5)),
        ("earlier", 1, 2, (6,)),
        ("earlier", 3, 0, (7,)),
    )
    for uid, generation, part, steps in stored:
        uri = records_part("s3://videotrain/runs", "demo", uid, generation, part)
        body = "".join(step(number, generation) for number in steps).encode()
        store.put_object(Bucket="videotrain", Key=uri.removeprefix("s3://videotrain/"), Body=body)
    stale = tmp_path / "pods/demo-w0-00000000/run/records-3-0.jsonl"  # of a page of the earlier run
    stale.parent.mkdir(parents=True)
    stale.write_text(step(7, 3))
    assert main(["report", "demo", "--to", str(tmp_path)]) == 0
    figures = re.search(r'<script id="figures"[^>]*>(.*?)</script>', (tmp_path / "report.html").read_text(), re.S)
    assert figures is not None
    assert json.loads(figures[1])["curves"][0]["loss"]["x"] == [1, 2, 3, 4, 5]


def test_a_watched_page_reloads_until_the_run_rests(
    client: OneRun, bucket: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages: list[str] = []

    def wait(_: float) -> None:
        pages.append((tmp_path / "report.html").read_text())
        client.run["status"]["phase"] = "Succeeded" if len(pages) == 2 else "Running"

    monkeypatch.setattr(command.time, "sleep", wait)
    assert main(["report", "demo", "--watch", "--to", str(tmp_path)]) == 0
    assert ['content="10"' in page for page in pages] == [True, True]
    assert 'http-equiv="refresh"' not in (tmp_path / "report.html").read_text()


def test_a_store_that_refuses_is_told(client: OneRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    client.run["status"]["stages"][0] |= {"savedStep": 10, "state": "Succeeded"}
    with mock_aws():
        assert main(["report", "demo", "--to", str(tmp_path)]) == 2
    assert "the run's object store was not read" in capsys.readouterr().err


def test_a_working_directory_where_nothing_goes_on_has_its_page_made_again(
    client: OneRun, bucket: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    database = Database(tmp_path / DATABASE_FILE)
    database.commit({Key(KIND, "lab", "demo"): Row(1, client.run)}, 1)
    database.close()
    (tmp_path / "s3").mkdir()
    assert main(["report", "--workdir", str(tmp_path)]) == 2
    assert "none has left summary.json" in capsys.readouterr().err
    (tmp_path / "s3").rmdir()  # as if it had an object store of its own, which answers
    assert main(["report", "--workdir", str(tmp_path)]) == 0
    (tmp_path / "s3").mkdir()
    (tmp_path / "report.html").unlink()
    assert main(["report", "--workdir", str(tmp_path)]) == 0
    assert "demo" in (tmp_path / "report.html").read_text()


def test_a_folder_is_made_for_a_run_that_is_there_only(
    client: OneRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["report", "other"]) == 2
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_told(
    client: OneRun, bucket: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        assert main(["report", "demo", "--to", str(folder)]) == 2
        assert f"{folder}: cannot be written: " in capsys.readouterr().err
