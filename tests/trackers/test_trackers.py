"""Curves and videos of a run with three generations, read back by the trackers' own readers: one curve each."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from trackers.generations import AT, EVERY, UID, Records, config, live_all, loss
from trackers.reading import SHOWN, fetched, mlflow_server, wandb_records

from videotrain_api.records import StartedRecord
from videotrain_api.resource.tracking import Tracking
from videotrain_trainer.journal.tracked import TrackerSink
from videotrain_trainer.storage import ObjectStore
from videotrain_trainer.worker.stage_reporter import StageReporter

pytestmark = pytest.mark.timeout(1200)


def test_tensorboard(storage, tmp_path):
    from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer

    live_all(storage, Tracking(to=["tensorboard"], every_steps=EVERY), tmp_path)
    runs = EventMultiplexer().AddRunsFromDirectory(str(fetched(storage, "tensorboard", tmp_path / "read"))).Reload()
    assert list(runs.Runs()) == ["train"]
    scalars = runs.Scalars("train", "loss")
    assert [each.step for each in scalars] == SHOWN
    assert [each.value for each in scalars] == pytest.approx([loss(step) for step in SHOWN], rel=1e-6)
    assert [each.step for each in runs.Scalars("train", "validation_loss")] == [20, 40, 60]


def test_wandb_offline(storage, tmp_path):
    live_all(storage, Tracking(to=["wandb"], every_steps=EVERY, project="curves"), tmp_path)
    rows, ids, videos = {}, set(), 0
    for _, record in wandb_records(fetched(storage, "wandb", tmp_path / "read")):
        if record.HasField("run"):
            ids.add((record.run.project, record.run.run_id))
        if record.HasField("history"):
            row = {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in record.history.item}
            videos += any(key.startswith("train/video-0000") for key in row)
            if "train/loss" in row:
                assert row["train/step"] not in rows, "told twice"
                rows[row["train/step"]] = row["train/loss"]
    assert ids == {("curves", UID)}
    assert rows == pytest.approx({step: loss(step) for step in SHOWN})
    assert videos == 1


def test_trackio(storage, tmp_path):
    live_all(storage, Tracking(to=["trackio"], every_steps=EVERY, project="curves"), tmp_path)
    folder = fetched(storage, "trackio", tmp_path / "read")
    read = (
        "import json, sys; from trackio.sqlite_storage import SQLiteStorage as s;"
        "print(json.dumps([s.get_runs('curves'), s.get_logs('curves', sys.argv[1])], default=str))"
    )
    environment = {**os.environ, "TRACKIO_DIR": str(folder)}
    done = subprocess.run(
        [sys.executable, "-c", read, UID], env=environment, capture_output=True, text=True, check=True
    )
    runs, logs = json.loads(done.stdout.splitlines()[-1])
    assert runs == [UID]
    curve = [(row["step"], row["train/loss"]) for row in logs if "train/loss" in row]
    assert [step for step, _ in curve] == SHOWN
    assert [value for _, value in curve] == pytest.approx([loss(step) for step in SHOWN])
    assert sum("train/video-0000" in row for row in logs) == 1


def test_mlflow(storage, tmp_path):
    from mlflow import MlflowClient

    with mlflow_server(tmp_path) as server:
        live_all(storage, Tracking(to=["mlflow"], every_steps=EVERY, project="curves", uri=server), tmp_path)
        client = MlflowClient(tracking_uri=server)
        experiment = client.get_experiment_by_name("curves")
        (run,) = client.search_runs([experiment.experiment_id])
        assert run.data.tags["videotrain.dev/run-uid"] == UID
        history = client.get_metric_history(run.info.run_id, "train/loss")
        assert [each.step for each in history] == SHOWN
        assert [each.value for each in history] == pytest.approx([loss(step) for step in SHOWN])
        drawn = [found.path for found in client.list_artifacts(run.info.run_id, "train/step-0")]
        assert drawn == ["train/step-0/train-0000.mp4"]


def test_a_tracker_that_cannot_be_reached_costs_no_training(storage, tmp_path, monkeypatch, nobody):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    reporter = StageReporter(sink=Records(), generation=1, stage="train", config_hash="ab")
    settings = config(storage, Tracking(to=["mlflow", "tensorboard"], uri=nobody, every_steps=EVERY))
    sink = TrackerSink(ObjectStore.for_storage(storage), settings, UID, tmp_path, reporter)
    origin = {"generation": 1, "stage": "train", "config_hash": "ab"}
    sink.write(StartedRecord(**origin, at=AT, world_size=1, resumed_step=0, total_steps=5))
    sink.close(600)
    assert [(record.kind, record.task) for record in reporter.sink.all] == [("housekeeping", "tracking")]
