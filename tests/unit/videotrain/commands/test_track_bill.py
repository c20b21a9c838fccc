"""`videotrain bill RUN --track`: what the trainer is given; trackers themselves are in tests/trackers."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import boto3
import pytest
from support.one_run import OneRun
from support.planner_lives import cluster_of, pass_seconds

from videotrain.bills import tracked
from videotrain.cli import main
from videotrain.commands import cluster_runs
from videotrain_api.billing.document import read_bill
from videotrain_api.render.names import ledger_name
from videotrain_operator.simulation.cluster import SimulatedCluster

SCRIPT = """#!{python}
import json, os, sys
told = {{"bill": json.load(open(sys.argv[2])), "config": json.load(open(sys.argv[4])),
         "keys": [os.environ[n] for n in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")]}}
open({given!r}, "w").write(json.dumps(told))
print({answer!r})
sys.stderr.write({trouble!r})
sys.exit({code})
"""


class OneEndedRun(OneRun):
    """An API server that has the ledger of its run, too."""

    def __init__(self, cluster: SimulatedCluster) -> None:
        super().__init__(cluster.run)
        self.ledger = cluster.objects["ConfigMap", ledger_name("demo")]

    async def get(self, kind: str, namespace: str, name: str) -> dict[str, Any]:
        return self.ledger if kind == "ConfigMap" else await super().get(kind, namespace, name)


@pytest.fixture
def lived(monkeypatch: pytest.MonkeyPatch):
    """The run after so many seconds, as the cluster has it."""

    def live(seconds: int, **tracking: object) -> None:
        async def life() -> SimulatedCluster:
            storage = {"uri": "s3://videotrain/demo", "credentialsSecret": "s3"}
            cluster = cluster_of(machines=1, steps=10, tracking=tracking, storage=storage)
            await pass_seconds(cluster, seconds)
            return cluster

        client = OneEndedRun(asyncio.run(life()))
        monkeypatch.setattr(cluster_runs, "connect", lambda *_: client)
        monkeypatch.setattr(boto3.Session, "get_credentials", lambda _: None)

    return live


@pytest.fixture
def trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A program in the trainer's place that keeps what it was given, and answers so."""

    def stand(answer: str, code: int = 0, trouble: str = "") -> Path:
        path, given = tmp_path / "trainer", tmp_path / "given.json"
        path.write_text(
            SCRIPT.format(python=sys.executable, given=str(given), answer=answer, code=code, trouble=trouble)
        )
        path.chmod(0o755)
        monkeypatch.setattr(tracked, "find_program", lambda _: str(path))
        return given

    return stand


def test_the_trainer_is_given_the_closed_bill_and_the_run_s_keys(lived, trainer, capsys):
    given = trainer("mlflow: bill attached")
    lived(90, to=["mlflow"], uri="http://mlflow:5000")
    there = ("--endpoint-url", "http://127.0.0.1:9000", "--tracking-uri", "http://127.0.0.1:5000")
    assert main(["bill", "demo", "--track", *there]) == 0
    assert capsys.readouterr().out == "mlflow: bill attached\n"
    told = json.loads(given.read_text())
    bill = read_bill(told["bill"])
    assert bill.closed and bill.run == "demo" and bill.total_micros > 0
    assert told["keys"] == ["testing", "testing"]
    assert told["config"]["storage"]["endpointUrl"] == "http://127.0.0.1:9000"
    assert told["config"]["tracking"] == {"to": ["mlflow"], "uri": "http://127.0.0.1:5000"} | told["config"]["tracking"]


@pytest.mark.parametrize(
    ("answer", "trouble", "told"),
    [("mlflow: no bill attached: away", "a warning", "mlflow: no bill attached: away\n"), ("", "refused", "refused\n")],
)
def test_trouble_is_told(lived, trainer, capsys, answer, trouble, told):
    trainer(answer, 1, trouble)
    lived(90, to=["mlflow"], uri="http://mlflow:5000")
    assert main(["bill", "demo", "--track"]) == 1
    assert capsys.readouterr().err.strip() == told.strip()


@pytest.mark.parametrize(
    ("seconds", "tracking", "told"),
    [
        (40, {"to": ["tensorboard"]}, "its bill is not closed: the run is Running"),
        (90, {}, "spec.tracking.to is empty"),
    ],
)
def test_what_cannot_be_attached_is_refused(lived, trainer, capsys, seconds, tracking, told):
    given = trainer("")
    lived(seconds, **tracking)
    assert main(["bill", "demo", "--track"]) == 2
    assert told in capsys.readouterr().err
    assert not given.exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--track"], "the bill of a run of a cluster"),
        (["demo", "--track", "--bucket", "s3://b"], "the bill of a run of a cluster"),
        (["demo", "--tracking-uri", "http://m"], "add --track"),
    ],
)
def test_it_is_one_run_of_a_cluster(capsys, arguments, told):
    assert main(["bill", *arguments]) == 2
    assert told in capsys.readouterr().err
