"""`videotrain compare`: what two runs have in common and what not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.planner_builders import manifest, train_stage

from videotrain.commands import compare as command
from videotrain.commands.cluster_runs import ClusterChoice
from videotrain.errors import UsageError
from videotrain_api.resource.status import CostStatus, RestartCounts, RunStatus, StageCost

WHERE = ClusterChoice()


def run(name: str, total: int, **spec: Any) -> dict[str, Any]:
    body = manifest(**spec)
    body["metadata"]["name"] = name
    stage = StageCost(name="train", total_micros=total, total="1", held_gpu_microseconds=1, held_node_microseconds=1)
    cost = CostStatus(
        currency="USD", total_micros=total, goodput_percent=90.0, micros_by_bucket={"productive": total}, stages=[stage]
    )
    status = RunStatus(phase="Succeeded", cost=cost, restarts=RestartCounts(preemption=2))
    return body | {"status": status.to_wire()}


@pytest.fixture(autouse=True)
def two_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [run("first", 2_000_000), run("second", 3_000_000, stages=[train_stage("train", 200)])]

    async def read(_: ClusterChoice) -> list[dict[str, Any]]:
        return runs

    monkeypatch.setattr(command, "read_runs", read)


def test_fields_plans_and_bills_stand_side_by_side(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.compare(("first", "default/second"), WHERE, None, as_json=True) == 0
    document = json.loads(capsys.readouterr().out)
    rows = {(row["group"], row["what"]): (row["a"], row["b"]) for row in document["rows"]}
    differ = [what for group, what in rows if group == "Fields that differ"]
    assert differ == ["spec.stages[train].train.steps"]
    assert rows["Fields that differ", differ[0]] == (100, 200)
    assert rows["Bill", "total"] == rows["Bill", "productive"] == rows["Bill", "stage train"] == (2.0, 3.0)
    assert rows["Bill", "restarts, preemption"] == (2, 2)
    planned = rows["Plan, modelled", "train: gpu days"]
    assert planned[1] == pytest.approx(2 * planned[0])


def test_a_table_and_a_page(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    page = tmp_path / "out.html"
    assert command.compare(("first", "second"), WHERE, page, as_json=False) == 0
    assert "+50.0%" in capsys.readouterr().out
    assert "first and second" in page.read_text()


def test_a_run_that_is_not_there_is_named_with_those_that_are() -> None:
    with pytest.raises(UsageError, match="third: no such folder, and 0 runs of that name; allowed: default/first"):
        command.compare(("first", "third"), WHERE, None, as_json=False)
