"""How packages of trackers are called where their servers are needed; those that need none are in tests/trackers."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest

from videotrain_api.resource.tracking import Tracking
from videotrain_trainer.journal.trackers import Mlflow, TrackedRun, Wandb

AT = datetime(2026, 11, 30, tzinfo=UTC)


class MlflowException(Exception):
    pass


@pytest.fixture
def package(monkeypatch):
    """What `import wandb` and `import mlflow` give."""
    found = MagicMock(MlflowException=MlflowException)
    for name in ("wandb", "mlflow", "mlflow.entities"):
        monkeypatch.setitem(sys.modules, name, found)
    for name in ("MLFLOW_HTTP_REQUEST_TIMEOUT", "MLFLOW_HTTP_REQUEST_MAX_RETRIES"):
        monkeypatch.setenv(name, "1")
    return found


@pytest.fixture
def run(tmp_path):
    def make(**tracking):
        settings = Tracking(project="curves", **tracking)
        return TrackedRun(uid="uid", name="default/run", config={}, folder=tmp_path, tracking=settings)

    return make


@pytest.mark.parametrize(("mode", "flushed"), [("online", 0), ("offline", 1)])
def test_a_run_of_wandb_is_finished(package, run, mode, flushed):
    tracker = Wandb(run(to=["wandb"], wandb_mode=mode))
    tracker.scalars("train", 1, {"loss": 1.0}, AT)
    tracker.flush()
    assert package.init().finish.call_count == flushed
    tracker.close()
    assert package.init().finish.call_count == 1


def test_two_runs_may_make_an_experiment_at_the_same_time(package, run):
    client = package.MlflowClient()
    client.get_experiment_by_name.side_effect = [None, SimpleNamespace(experiment_id="of the other")]
    client.create_experiment.side_effect = MlflowException("RESOURCE_ALREADY_EXISTS")
    client.get_metric_history.return_value = []
    assert Mlflow(run(to=["mlflow"], uri="http://server")).told("train") == 0
    assert client.search_runs.call_args.args == (["of the other"],)


def test_an_experiment_that_cannot_be_made_is_told(package, run):
    client = package.MlflowClient()
    client.get_experiment_by_name.return_value = None
    client.create_experiment.side_effect = MlflowException("no right")
    with pytest.raises(MlflowException, match="no right"):
        Mlflow(run(to=["mlflow"], uri="http://server")).told("train")
