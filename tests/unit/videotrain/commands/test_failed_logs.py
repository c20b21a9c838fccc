"""`videotrain logs --failed`: what the newest failed generation stored, from a real folder of objects."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto import mock_aws
from support.planner_builders import at, manifest, progress

from videotrain.cli import main
from videotrain.embedded.database import DATABASE_FILE, Database, Key, Row
from videotrain_api.resource.status import GenerationStatus, RunStatus
from videotrain_api.storage.layout import failure_log
from videotrain_api.vocabulary import KIND

URI = "s3://videotrain/runs"


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AK")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "SK")
    with mock_aws():
        client = boto3.client("s3", region_name="us-east-1")
        client.create_bucket(Bucket="videotrain")
        yield client


def put(store: Any, name: str, uid: str, generation: int, pod: str, text: str) -> None:
    key = failure_log(URI, name, uid, generation, pod).removeprefix("s3://videotrain/")
    store.put_object(Bucket="videotrain", Key=key, Body=gzip.compress(text.encode()))


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    return made(tmp_path, end_cause="application")


def made(folder: Path, end_cause: str) -> Path:
    run = manifest()
    run["metadata"] |= {"name": "demo", "namespace": "default", "uid": "u1"}
    run["spec"]["storage"] = {"uri": URI}
    generation = GenerationStatus(
        number=3, stage="train", reason="Started", members=["demo-w0"], world_size=1, gpus=1, created_at=at(1),
        ended_at=at(2), end_cause=end_cause, progress=progress(3, 40),
    )  # fmt: skip
    run |= {"status": RunStatus(phase="Running", stage="train", generations=[generation]).to_wire()}
    database = Database(folder / DATABASE_FILE)
    database.commit({Key(KIND, "default", "demo"): Row(1, run)}, 1)
    database.close()
    return folder


def said(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> str:
    assert (main([str(each) for each in arguments]) == 0) is (code == 0)
    told = capsys.readouterr()
    return told.out if code == 0 else told.err


def test_the_newest_generation_that_failed_is_printed(
    capsys: pytest.CaptureFixture[str], store: Any, workdir: Path
) -> None:
    put(store, "demo", "u1", 9, "demo-w1", "old")
    put(store, "demo", "u1", 12, "demo-w0", "of w0")
    put(store, "demo", "u1", 12, "demo-w1", "of w1")
    put(store, "demo", "another-run", 99, "demo-w0", "foreign")
    out = said(capsys, "logs", "--failed", "--workdir", workdir)
    uri = f"{URI}/demo/failures/u1/g000012"
    assert out == f"{uri}-demo-w0.txt.gz\nof w0\n{uri}-demo-w1.txt.gz\nof w1\n"
    assert said(capsys, "logs", "--failed", "--workdir", workdir, "--pod", "demo-w1").endswith("of w1\n")
    told = said(capsys, "logs", "--failed", "--workdir", workdir, "--pod", "demo-w7", code=1)
    assert "--pod demo-w7: it stored nothing; allowed: demo-w1, demo-w0" in told


def test_a_run_of_which_nothing_is_stored_says_so(
    capsys: pytest.CaptureFixture[str], store: Any, workdir: Path
) -> None:
    told = said(capsys, "logs", "--failed", "--workdir", workdir, code=1)
    assert f"{URI}/demo/failures/u1: no worker of the run has failed" in told
    assert store


def test_what_is_for_live_logs_alone_is_refused(capsys: pytest.CaptureFixture[str], workdir: Path) -> None:
    told = said(capsys, "logs", "--failed", "--workdir", workdir, "--follow", "--tail", "3", code=1)
    assert "--failed: prints what is stored, whole; leave out --follow, --tail" in told


def test_an_object_store_that_nobody_serves_is_told(capsys: pytest.CaptureFixture[str], workdir: Path) -> None:
    (workdir / "s3").mkdir()
    assert "videotrain serve" in said(capsys, "logs", "--failed", "--workdir", workdir, code=1)


def test_describe_names_the_folder_of_a_run_that_failed(
    capsys: pytest.CaptureFixture[str], workdir: Path, tmp_path: Path
) -> None:
    assert f"{URI}/demo/failures/u1 (videotrain logs --failed)" in said(capsys, "describe", "--workdir", workdir)
    calm = tmp_path / "calm"
    calm.mkdir()
    assert "failures" not in said(capsys, "describe", "--workdir", made(calm, end_cause="completed"))
