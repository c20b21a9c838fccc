import io
import json
from datetime import timedelta
from types import SimpleNamespace

import pytest
from rich.console import Console

from videotrain.local.display import JsonDisplay, LiveDisplay, PlainDisplay, make_display
from videotrain.local.screen import cost_table, remaining_seconds, render_screen
from videotrain.wording import GPU_NOTE
from videotrain_api.resource.status import CostStatus, RunStatus, StageStatus


def running(finished, upto, step):
    """The finished run as it was while generation `upto` was at a step."""
    run = finished.run()
    status = run["status"]
    status["generations"] = status["generations"][:upto]
    current = status["generations"][-1]
    names = [s["name"] for s in status["stages"]]
    at = names.index(current["stage"])
    for n, stage in enumerate(status["stages"]):
        stage["state"] = "Succeeded" if n < at else "Running" if n == at else "Pending"
    current["progress"] |= {"step": step, "state": "running", "loss": 0.5, "samplesPerSecond": 8.0}
    status |= {"phase": "Running", "stage": current["stage"], "step": step}
    return run


def plain(*states, events=()):
    stream = io.StringIO()
    with PlainDisplay(stream) as display:
        for state in states:
            display.update(state)
        for event in events:
            display.event(event)
    return [line.split("  ", 1)[1] for line in stream.getvalue().splitlines()]


def test_logs_say_first_what_a_worker_process_stands_for():
    assert plain() == [GPU_NOTE]


def test_logs_tell_each_change_once(finished):
    state = running(finished, 3, 10)
    lines = plain(state, state, state)
    assert len(lines) == len(set(lines))
    assert "phase Running" in lines
    assert "stage 3/4 train-64px (train): Running" in lines
    assert "generation 3 of train-64px: 4 workers on demo-w0, demo-w1 (StageStarted)" in lines
    assert lines[-1].startswith("train-64px step 10/120  loss 0.5000  8.0 samples/s")


def test_logs_tell_about_twenty_steps_of_a_stage_and_the_last(finished):
    lines = plain(*(running(finished, 5, step) for step in range(1, 121)))
    told = [line for line in lines if " step " in line]
    assert 18 <= len(told) <= 23
    assert "step 120/120" in told[-1]


def test_logs_tell_steps_again_after_a_fall_back(finished):
    lines = plain(running(finished, 3, 47), running(finished, 4, 41))
    assert [line.split("  ")[0] for line in lines if " step " in line] == [
        "train-64px step 47/120",
        "train-64px step 41/120",
    ]
    assert "generation 4 of train-64px: 2 workers on demo-w0 (NodeLost: node n1 of demo-w1 is gone)" in lines


def test_json_lines_are_objects_and_repeat_no_state(finished):
    stream = io.StringIO()
    with JsonDisplay(stream) as display:
        for step in (10, 10, 11):
            display.update(running(finished, 3, step))
        display.event('said "so"')
        display.result(finished.run(), {"report": finished.workdir / "report.html"})
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["type"] for line in lines] == ["note", "status", "status", "event", "result"]
    assert lines[2]["status"]["step"] == 11
    assert lines[-1]["files"] == {"report": str(finished.workdir / "report.html")}


def drawn(*renderables):
    console = Console(file=io.StringIO(), width=110, color_system=None)
    console.print(*renderables)
    return console.file.getvalue()


def test_the_screen_shows_stages_world_bill_and_events(finished):
    run = running(finished, 3, 30)
    shown = drawn(render_screen(run, (), [(finished.now, "node n1 [red]killed[/red]")], finished.now))
    for expected in ("train-64px", "30/120", "left", "generation 3", "4 workers", "loss   0.5000", "8.00 samples/s"):
        assert expected in shown
    assert "restarts: 1 infrastructure" in shown
    assert "0.0980 USD" in shown
    assert GPU_NOTE in shown
    assert "node n1 [red]killed[/red]" in shown  # told as it is, never read as markup


@pytest.mark.parametrize("status", [{}, {"phase": "Pending", "cost": {"currency": "EUR"}}])
def test_the_screen_of_a_run_that_has_nothing_yet_is_drawn(finished, status):
    run = finished.run() | {"status": status}
    assert "demo" in drawn(render_screen(run, (), [], finished.now))


def test_remaining_time_follows_the_rate_of_the_current_world(finished):
    status = RunStatus.from_wire(running(finished, 4, 80)["status"])
    stage = status.stages[2]
    assert remaining_seconds(stage, status) == pytest.approx(40 * 0.8)
    assert remaining_seconds(StageStatus(name="other", task="train", state="Running", config_hash=""), status) is None


def test_the_bill_adds_up_to_its_last_line(finished):
    cost = CostStatus.from_wire(finished.run()["status"]["cost"])
    shown = drawn(cost_table(cost))
    assert "176.469136" in shown
    assert "100.0 %" in shown


def test_the_live_screen_draws_the_newest_state_and_leaves_it(finished):
    console = Console(file=io.StringIO(), width=110, force_terminal=True, color_system=None)
    with LiveDisplay(console, lambda: finished.now + timedelta(seconds=1)) as display:
        display.event("began")
        display.update(running(finished, 3, 30))
    display.result(finished.run(), {"report": finished.workdir / "report.html"})
    shown = console.file.getvalue()
    assert "30/120" in shown
    assert "began" in shown
    assert "report.html" in shown


def test_the_display_fits_where_it_writes():
    assert isinstance(make_display(SimpleNamespace(json=True)), JsonDisplay)
    assert isinstance(make_display(SimpleNamespace(json=False)), PlainDisplay)  # pytest's output is no terminal


def test_a_bar_does_not_fall_while_a_generation_ends(finished):
    run = finished.run()
    stage = run["status"]["stages"][2]
    run["status"] |= {"phase": "Suspending", "stage": stage["name"], "step": 0}
    stage |= {"state": "Running", "step": 20, "savedStep": 20}
    assert f"20/{stage['totalSteps']}" in drawn(render_screen(run, [], [], finished.now))
