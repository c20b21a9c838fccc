"""The closed bill of a run with three generations in each tracker, read back by its own reader: there once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from trackers.generations import AT, UID, live_all
from trackers.reading import SHOWN, fetched, mlflow_server, wandb_records

from videotrain.bills.tracked import attach_bill
from videotrain.objectstore.s3_client import Credentials
from videotrain_api.billing.document import BillRow, RunBill, bill_text
from videotrain_api.resource.status import StageCost
from videotrain_api.resource.tracking import Tracking
from videotrain_api.storage import layout
from videotrain_trainer.storage import ObjectStore

pytestmark = pytest.mark.timeout(1200)
HOUR = 3_600_000_000
KEYS = Credentials("AK", "SK")


@pytest.fixture
def bill() -> RunBill:
    """Two GPU-hours at 1.75 USD, half an hour of them lost."""
    used, micros = {"productive": 3 * HOUR // 2, "lost": HOUR // 2}, {"productive": 2_625_000, "lost": 875_000}
    amounts = {"gpu_microseconds": used, "micros": micros, "waste": {"nodeLost": 875_000}}
    return RunBill(
        run="curves",
        namespace="default",
        uid=UID,
        phase="Succeeded",
        closed=True,
        as_of=AT + timedelta(hours=1),
        currency="USD",
        total="3.50",
        total_micros=3_500_000,
        estimated=False,
        gpu_microseconds_by_bucket=used,
        micros_by_bucket=micros,
        waste_micros_by_cause={"nodeLost": 875_000},
        stages=[
            StageCost(
                name="train", total="3.50", total_micros=3_500_000,
                held_node_microseconds=HOUR, held_gpu_microseconds=2 * HOUR,
            )
        ],
        rows=[BillRow(from_=AT, to=AT + timedelta(hours=1), stage="train", gpus=2, node_microseconds=HOUR, **amounts)],
    )  # fmt: skip


def attach_twice(bill, tracking, storage):
    """As a command does that is given again."""
    name = tracking.to[0]
    assert attach_bill(bill, tracking, storage, KEYS) == (True, [f"{name}: bill attached"])
    assert attach_bill(bill, tracking, storage, KEYS) == (True, [f"{name}: had the bill already"])


def forget(storage) -> None:
    """As if the process had been killed before it could say that it was done."""
    store, place = ObjectStore.for_storage(storage), f"{layout.tracking_prefix(storage.uri, 'curves')}/told.json"
    told = json.loads(store.get(place))
    assert told["uid"] == UID
    store.delete(place)


def test_tensorboard(storage, tmp_path, bill):
    from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer

    tracking = Tracking(to=["tensorboard"], every_steps=5)
    live_all(storage, tracking, tmp_path)
    attach_twice(bill, tracking, storage)
    forget(storage)
    attach_twice(bill, tracking, storage)
    folder = fetched(storage, "tensorboard", tmp_path / "read")
    runs = EventMultiplexer().AddRunsFromDirectory(str(folder)).Reload()
    assert set(runs.Runs()) == {"train", "run/bill"}
    (event,) = runs.Tensors("run/bill", "bill/text_summary")
    (text,) = event.tensor_proto.string_val
    assert b"cost **3.50 USD**" in text and b"| train | 2.0000 | 3.50 |" in text and b"| nodeLost | 0.875 |" in text
    assert len(list((folder / "run/bill").glob("events.*"))) == 1
    assert (folder / "run/bill/bill.json").read_text().strip() == bill_text(bill)
    assert [each.step for each in runs.Scalars("train", "loss")] == SHOWN


def test_wandb_offline(storage, tmp_path, bill):
    tracking = Tracking(to=["wandb"], every_steps=5, project="curves")
    live_all(storage, tracking, tmp_path)
    attach_twice(bill, tracking, storage)
    folder = fetched(storage, "wandb", tmp_path / "read")
    ids, summary, saved = set(), {}, []
    for path, record in wandb_records(folder):
        if record.HasField("run"):
            ids.add(record.run.run_id)
        if record.HasField("summary"):
            told = {item.key or "/".join(item.nested_key): item.value_json for item in record.summary.update}
            summary |= {key: json.loads(value) for key, value in told.items() if key in ("cost", "currency")}
        if record.HasField("files"):
            saved += [(path.parent, each.path) for each in record.files.files if each.path == "bill.json"]
    assert ids == {UID}
    assert summary == {"cost": 3.5, "currency": "USD"}
    ((run, name),) = saved
    assert (run / "files" / name).read_text().strip() == bill_text(bill)


def test_trackio(storage, tmp_path, bill):
    tracking = Tracking(to=["trackio"], every_steps=5, project="curves")
    live_all(storage, tracking, tmp_path)
    attach_twice(bill, tracking, storage)
    forget(storage)
    attach_twice(bill, tracking, storage)
    folder = fetched(storage, "trackio", tmp_path / "read")
    read = (
        "import json, sys, trackio; from trackio.sqlite_storage import SQLiteStorage as s;"
        "trackio.init(project='curves', name='reader', embed=False, auto_log_gpu=False, auto_log_cpu=False);"
        "found = trackio.use_artifact('bill-' + sys.argv[1]); place = found.download(sys.argv[2]);"
        "print(json.dumps([s.get_logs('curves', sys.argv[1]), str(place), found.version, found.metadata], default=str))"
    )
    done = subprocess.run(
        [sys.executable, "-c", read, UID, str(tmp_path / "artifact")],
        env={**os.environ, "TRACKIO_DIR": str(folder)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    logs, place, version, facts = json.loads(next(x for x in done.stdout.splitlines() if x.startswith("[[")))
    assert [row["step"] for row in logs if "train/loss" in row] == SHOWN
    assert (Path(place) / "bill.json").read_text().strip() == bill_text(bill)
    assert (version, facts) == ("v0", {"total": "3.50", "currency": "USD"})


def test_mlflow(storage, tmp_path, bill):
    from mlflow import MlflowClient

    with mlflow_server(tmp_path) as server:
        tracking = Tracking(to=["mlflow"], every_steps=5, project="curves", uri=server)
        live_all(storage, tracking, tmp_path)
        attach_twice(bill, tracking, storage)
        client = MlflowClient(tracking_uri=server)
        (run,) = client.search_runs([client.get_experiment_by_name("curves").experiment_id])
        assert (run.data.metrics["cost"], run.data.tags["currency"]) == (3.5, "USD")
        assert [one.path for one in client.list_artifacts(run.info.run_id) if not one.is_dir] == ["bill.json"]
        place = client.download_artifacts(run.info.run_id, "bill.json", str(tmp_path))
        assert Path(place).read_text().strip() == bill_text(bill)


def test_one_that_is_away_leaves_the_others_theirs_and_gets_it_later(storage, tmp_path, bill, nobody):
    tracking = Tracking(to=["mlflow", "tensorboard"], every_steps=5, uri=nobody)
    done, lines = attach_bill(bill, tracking, storage, KEYS)
    assert not done and lines[0].startswith("mlflow: no bill attached: ") and lines[1] == "tensorboard: bill attached"
    done, lines = attach_bill(bill, tracking, storage, KEYS)
    assert not done and lines[1] == "tensorboard: had the bill already"
