"""`videotrain top`: what it tells of the runs that an API server has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from support.planner_builders import at, manifest, progress
from support.small_api import SmallApi

from videotrain.commands.cluster_runs import ClusterChoice, read_runs
from videotrain.commands.top import Screen, row_of
from videotrain.commands.top_table import View, print_runs_table, runs_table
from videotrain.errors import UsageError
from videotrain_api.resource.status import (
    ConditionStatus,
    CostStatus,
    GenerationStatus,
    NodesStatus,
    RunStatus,
    StageStatus,
    ThroughputStatus,
)
from videotrain_api.vocabulary import PLURAL


def run(name: str, **changes: Any) -> dict[str, Any]:
    """A run that trains, forty steps in."""
    generation = {
        "number": 1,
        "stage": "train",
        "reason": "Started",
        "members": ["demo-w0"],
        "world_size": 2,
        "gpus": 2,
    }
    status = RunStatus(
        phase="Running",
        stage="train",
        step=40,
        nodes=NodesStatus(current=2, max=3),
        stages=[StageStatus(name="train", task="train", state="Running", config_hash="0" * 16, total_steps=100)],
        generations=[GenerationStatus(**generation, created_at=at(1), progress=progress(1, 40))],
        throughput=ThroughputStatus(mfu_percent=41.0),
        cost=CostStatus(
            currency="USD",
            total_micros=2_000_000,
            total="2.00",
            rate_per_hour="14.40",
            forecast="5.00",
            forecast_low="4.00",
            forecast_high="6.00",
            goodput_percent=93.0,
        ),
    )
    body = manifest(budget={"maxCost": "4.50"})
    body["metadata"]["name"] = name
    return body | {"status": status.model_copy(update=changes).to_wire()}


async def test_runs_are_read_through_the_api_server(tmp_path: Path) -> None:
    async with SmallApi() as api:
        api.objects[PLURAL] = [run("second"), run("first")]
        found = await read_runs(ClusterChoice(kubeconfig=str(api.kubeconfig(tmp_path))))
    assert [each["metadata"]["name"] for each in found] == ["first", "second"]
    assert not api.written, "it only looks"


async def test_a_cluster_that_refuses_is_told(tmp_path: Path) -> None:
    async with SmallApi() as api:
        api.refused[PLURAL] = 403
        with pytest.raises(UsageError, match="the cluster refuses: list VideoTrainingRun: refused"):
            await read_runs(ClusterChoice(kubeconfig=str(api.kubeconfig(tmp_path))))


def test_a_row_has_speed_money_and_what_to_look_at() -> None:
    row = row_of(run("demo"))
    assert (row["phase"], row["step"], row["totalSteps"], row["nodes"]) == ("Running", 40, 100, 2)
    assert row["secondsPerStep"] == pytest.approx(1.0)
    assert (row["spent"], row["ratePerHour"], row["forecast"], row["forecastHigh"]) == ("2.00", "14.40", "5.00", "6.00")
    assert row["alerts"] == ["forecast above the budget of 4.50"]
    assert json.loads(json.dumps(row)) == row
    condition = ConditionStatus(type="Scheduled", status="False", reason="Unschedulable", last_transition_time=at(0))
    assert "Scheduled: Unschedulable" in row_of(run("demo", conditions=[condition]))["alerts"]


def test_a_run_without_a_status_has_a_row() -> None:
    body = run("demo")
    del body["status"]
    assert row_of(body)["spent"] is None
    console = Console(width=160)
    with console.capture() as captured:
        console.print(runs_table([row_of(body)], View()))
    assert "demo" in captured.get()


def test_keys_choose_open_close_and_quit() -> None:
    screen = Screen()
    screen.renew([run("first"), run("second")])
    assert screen.press("\x1b[B") and screen.chosen == 1
    assert screen.press("j") and screen.chosen == 1, "there are no more"
    assert screen.press("\r") and screen.open
    assert screen.press("x") and screen.open
    assert screen.press("\x1b") and not screen.open
    assert screen.press("k") and screen.chosen == 0
    assert not screen.press("q")


def test_keys_that_come_together_are_each_pressed() -> None:
    """Whoever holds a key down sends several at once, and terminals have two words for an arrow."""
    screen = Screen()
    screen.renew([run(f"run-{number}") for number in range(40)])
    assert screen.press("\x1b[B\x1bOB\x1b[Bj") and screen.chosen == 4
    assert screen.press("\x1b[6~") and screen.chosen == 14
    assert screen.press("G\x1b[A") and screen.chosen == 38
    assert screen.press("\x1b[H") and screen.chosen == 0
    assert screen.press("\x1b[5~") and screen.chosen == 0
    assert screen.press("") and not screen.press("jq")


def test_the_chosen_run_stays_chosen_while_others_come_and_go() -> None:
    runs = [run(name) for name in "abc"]
    for body in runs:
        body["metadata"]["uid"] = body["metadata"]["name"]
    screen = Screen()
    screen.renew(runs[1:])
    screen.press("j\r")
    screen.renew(runs)
    assert (screen.chosen, screen.open) == (2, True)
    screen.renew(runs[:2])
    assert (screen.chosen, screen.open) == (1, False), "it is gone"
    screen.renew([])
    assert screen.press("\r") and not screen.open
    screen.show(at(60))


@pytest.mark.parametrize("width", [60, 80, 100, 120, 200])
def test_a_run_has_one_line_at_any_width_and_the_chosen_one_is_seen(width: int) -> None:
    screen, lines = Screen(), 24
    screen.renew([run(f"run-with-a-rather-long-name-{number}") for number in range(100)])
    console = Console(width=width)
    for chosen in (0, 50, 99):
        screen.chosen = chosen
        with console.capture() as captured:
            console.print(screen.show(at(60), width, lines))
        shown = captured.get().splitlines()
        assert lines - 3 <= len(shown) <= lines and all(len(line) <= width for line in shown)
        assert any(f"name-{chosen} " in line and "5.00 USD" in line for line in shown)
        assert "forecast above the budget of 4.50" in captured.get(), "what is cut in its line is told below"
    assert "100 runs" in shown[0] and "1,440 USD an hour" in shown[0]


def test_what_goes_to_no_screen_is_not_cut(capsys: pytest.CaptureFixture[str]) -> None:
    names = ["run-" + "x" * 50, "other"]
    print_runs_table([row_of(run(name)) for name in names])
    told = capsys.readouterr().out
    assert all(name in told for name in names) and "…" not in told
    assert told.count("forecast above the budget of 4.50") == 2


def test_a_run_that_rests_because_of_a_budget_says_so() -> None:
    def condition(kind: str, reason: str) -> ConditionStatus:
        return ConditionStatus(type=kind, status="False", reason=reason, last_transition_time=at(0))

    conditions = [condition("Scheduled", "Suspended"), condition("TeamBudgetOK", "TeamBudget")]
    rests = run("demo", phase="Suspended", conditions=conditions)
    assert row_of(rests)["alerts"][0] == "TeamBudgetOK: TeamBudget"
    done = run("demo", phase="Succeeded", conditions=conditions)
    assert "TeamBudgetOK: TeamBudget" not in row_of(done)["alerts"]


def test_the_open_run_is_shown_with_its_forecast_and_interval() -> None:
    screen = Screen()
    screen.renew([run("first")])
    screen.press("\r")
    console = Console(width=180, record=True)
    with console.capture() as captured:
        console.print(screen.show(at(60)))
    assert "5.00 USD (4.00 to 6.00)" in captured.get()
