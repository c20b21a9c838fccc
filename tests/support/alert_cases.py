"""For every alert: series under which it fires, and such under which it must not."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

RUN: Final = 'namespace="lab", run="demo"'
"""Labels of one run."""


@dataclass(frozen=True)
class Case:
    """Series in promtool's notation with a value a minute, and what the alert says of them."""

    alert: str
    series: dict[str, str]
    minute: int
    fires: dict[str, Any] | None = field(default=None)
    """Labels of the one alert that fires; None if none does."""


DEMO: Final = {"namespace": "lab", "run": "demo"}
RUNNING: Final = {f'videotrain_run_phase{{{RUN}, phase="Running"}}': "1x200"}
NOTHING_RUNS: Final = {f'videotrain_run_phase{{{RUN}, phase="Running"}}': "0x200"}


def _gauge(name: str, values: str, more: str = "") -> dict[str, str]:
    return {f"videotrain_{name}{{{RUN}{more}}}": values}


def _gpu_time(productive: str, lost: str) -> dict[str, str]:
    """Counters of two uses with corrections that never move."""
    found = {}
    for bucket, values in (("productive", productive), ("lost", lost)):
        found |= _gauge("gpu_seconds_total", values, f', bucket="{bucket}"')
        for direction in ("out", "in"):
            found |= _gauge("gpu_seconds_corrected_total", "0x200", f', bucket="{bucket}", direction="{direction}"')
    return found


def _restarts(values: str, cause: str) -> dict[str, str]:
    return _gauge("restarts_total", values, f', cause="{cause}"')


_OF_BUDGET: Final = 'budget="video", currency="USD"'
_BUDGET: Final = {"budget": "video", "currency": "USD"}


def _team(spent: str, expected: str = "0x200", amount: str = "500x200") -> dict[str, str]:
    """A budget as two replicas told of it, one after the other."""
    amounts = {"amount": amount, "spent": spent, "expected": expected}
    found = {f"videotrain_training_budget_{name}{{{_OF_BUDGET}}}": values for name, values in amounts.items()}
    return found | {f'videotrain_training_budget_spent{{{_OF_BUDGET}, instance="b"}}': "1x3"}


_XID: Final = 'DCGM_FI_DEV_XID_ERRORS{namespace="lab", pod="demo-w0", Hostname="node-1", gpu="3"}'
_OF_POD: Final = {f'videotrain_generation{{{RUN}, stage="train", pod="demo-w0"}}': "1x200"}
_LEADS: Final = 'videotrain_leader{instance="a"}'
_REQUESTS: Final = 'videotrain_api_requests_total{verb="get", kind="Pod", code="%s"}'

CASES: Final = (
    Case("VideoTrainHang", _restarts("0x20 1x100", "hang"), 30, DEMO),
    Case("VideoTrainHang", _restarts("0x20 1x100", "preemption"), 30),
    Case("VideoTrainHang", _restarts("1x200", "hang"), 100),
    Case("VideoTrainNoProgress", _gauge("run_step", "0+1x10 10x100", ', stage="train"') | RUNNING, 60, DEMO),
    Case("VideoTrainNoProgress", _gauge("run_step", "0+1x100", ', stage="train"') | RUNNING, 60),
    Case("VideoTrainNoProgress", _gauge("run_step", "10x100", ', stage="train"') | NOTHING_RUNS, 60),
    Case(
        "VideoTrainRestartLoop",
        _restarts("0x9 1x9 2x9 3x9 4x100", "application"),
        45,
        DEMO | {"cause": "application"},
    ),
    Case("VideoTrainRestartLoop", _restarts("0x60 1x60 2x60", "application"), 150),
    Case(
        "VideoTrainCheckpointOld",
        _gauge("run_saved_timestamp_seconds", "0x200", ', stage="train"') | RUNNING,
        130,
        DEMO | {"stage": "train"},
    ),
    Case(
        "VideoTrainCheckpointOld", _gauge("run_saved_timestamp_seconds", "0+60x200", ', stage="train"') | RUNNING, 130
    ),
    Case(
        "VideoTrainCheckpointOld", _gauge("run_saved_timestamp_seconds", "0x200", ', stage="train"') | NOTHING_RUNS, 130
    ),
    Case(
        "VideoTrainCheckpointHousekeepingFails",
        _gauge("checkpoint_housekeeping_failures_total", "0+1x100", ', stage="train", pod="demo-w0", task="retention"'),
        30,
        DEMO | {"task": "retention"},
    ),
    Case(
        "VideoTrainCheckpointHousekeepingFails",
        _gauge("checkpoint_housekeeping_failures_total", "0x9 1x100", ', stage="train", pod="demo-w0", task="latest"'),
        30,
    ),
    Case(
        "VideoTrainCheckpointHousekeepingFails",
        _gauge("checkpoint_housekeeping_failures_total", "0+1x100", ', stage="train", pod="demo-w0", task="tracking"'),
        30,
    ),
    Case(
        "VideoTrainTrackingFails",
        _gauge("checkpoint_housekeeping_failures_total", "0x9 1x100", ', stage="train", pod="demo-w0", task="records"'),
        30,
        DEMO | {"task": "records"},
    ),
    Case(
        "VideoTrainTrackingFails",  # the first that is heard of it
        _gauge("checkpoint_housekeeping_failures_total", "1x100", ', stage="train", pod="demo-w0", task="tracking"'),
        30,
        DEMO | {"task": "tracking"},
    ),
    Case(
        "VideoTrainTrackingFails",
        _gauge("checkpoint_housekeeping_failures_total", "1x100", ', stage="train", pod="demo-w0", task="append"'),
        30,
        DEMO | {"task": "append"},
    ),
    Case(
        "VideoTrainTrackingFails",  # long ago
        _gauge("checkpoint_housekeeping_failures_total", "1x200", ', stage="train", pod="demo-w0", task="tracking"'),
        130,
    ),
    Case(
        "VideoTrainTrackingFails",
        _gauge("checkpoint_housekeeping_failures_total", "0+1x100", ', stage="train", pod="demo-w0", task="retention"'),
        30,
    ),
    Case("VideoTrainRunFailed", _gauge("run_phase", "0x9 1x100", ', phase="Failed"'), 15, DEMO),
    Case("VideoTrainRunFailed", _gauge("run_phase", "0x100", ', phase="Failed"'), 15),
    Case(
        "VideoTrainHeldWithoutWork",
        _gauge("cost_rate_per_hour", "28.8x100", ', currency="USD"')
        | _gauge("run_phase", "1x100", ', phase="Pending"'),
        25,
        DEMO,
    ),
    Case(
        "VideoTrainHeldWithoutWork",
        _gauge("cost_rate_per_hour", "0x100", ', currency="USD"') | _gauge("run_phase", "1x100", ', phase="Pending"'),
        25,
    ),
    Case("VideoTrainHeldWithoutWork", _gauge("cost_rate_per_hour", "28.8x100", ', currency="USD"') | RUNNING, 25),
    Case("VideoTrainBudgetMostlySpent", _gauge("budget_ratio", "0.81x20"), 5, DEMO),
    Case("VideoTrainBudgetMostlySpent", _gauge("budget_ratio", "0.79x20"), 5),
    Case("VideoTrainBudgetMostlySpent", _gauge("budget_ratio", "0.96x20"), 5),
    Case("VideoTrainBudgetNearlySpent", _gauge("budget_ratio", "0.96x20"), 5, DEMO),
    Case("VideoTrainBudgetNearlySpent", _gauge("budget_ratio", "0.94x20"), 5),
    Case("VideoTrainBudgetExceeded", _gauge("budget_ratio", "1.01x20"), 5, DEMO),
    Case("VideoTrainBudgetExceeded", _gauge("budget_ratio", "0.99x20"), 5),
    Case("VideoTrainBudgetGoneSoon", _gauge("budget_ratio", "0.1+0.004x100") | RUNNING, 90, DEMO),
    Case("VideoTrainBudgetGoneSoon", _gauge("budget_ratio", "0.1+0.001x100") | RUNNING, 90),
    Case(
        "VideoTrainForecastOverBudget",
        _gauge("forecast_cost", "21x60", ', currency="USD"') | _gauge("run_budget", "20x60", ', currency="USD"'),
        40,
        DEMO,
    ),
    Case(
        "VideoTrainForecastOverBudget",
        _gauge("forecast_cost", "19x60", ', currency="USD"') | _gauge("run_budget", "20x60", ', currency="USD"'),
        40,
    ),
    Case("VideoTrainTeamBudgetMostlySpent", _team("405x20"), 5, _BUDGET),
    Case("VideoTrainTeamBudgetMostlySpent", _team("395x20"), 5),
    Case("VideoTrainTeamBudgetMostlySpent", _team("480x20"), 5),
    Case("VideoTrainTeamBudgetNearlySpent", _team("480x20"), 5, _BUDGET),
    Case("VideoTrainTeamBudgetNearlySpent", _team("470x20"), 5),
    Case("VideoTrainTeamBudgetNearlySpent", _team("500x20"), 5),
    Case("VideoTrainTeamBudgetExceeded", _team("500x20"), 5, _BUDGET),
    Case("VideoTrainTeamBudgetExceeded", _team("499x20"), 5),
    Case("VideoTrainTeamBudgetGoneSoon", _team("100x100", "501x100"), 70, _BUDGET),
    Case("VideoTrainTeamBudgetGoneSoon", _team("100x100", "499x100"), 70),
    Case("VideoTrainTeamBudgetGoneSoon", _team("100x100", "501x30 400x70"), 70),
    Case("VideoTrainTeamBudgetGoneSoon", _team("405x100", "501x100"), 70),
    Case(
        "VideoTrainTeamBudgetNotJudged",
        {'videotrain_training_budget_judged{budget="video"}': "1x5 0x20"},
        15,
        {"budget": "video"},
    ),
    Case("VideoTrainTeamBudgetNotJudged", {'videotrain_training_budget_judged{budget="video"}': "0x2 1x20"}, 15),
    Case(
        "VideoTrainBillsNotCopied",
        {"videotrain_bills_waiting": "0x5 3x90", "videotrain_bill_copy_failures_total": "0x5 0+1x90"},
        80,
        {},
    ),
    Case(
        "VideoTrainBillsNotCopied",
        {"videotrain_bills_waiting": "0x5 3x90", "videotrain_bill_copy_failures_total": "4x95"},
        80,
    ),
    Case("VideoTrainDataStall", _gauge("data_stall_seconds_total", "0+20x60", ', stage="t", pod="demo-w0"'), 30, DEMO),
    Case("VideoTrainDataStall", _gauge("data_stall_seconds_total", "0+5x60", ', stage="t", pod="demo-w0"'), 30),
    Case("VideoTrainGoodputLow", _gpu_time("0+30x200", "0+30x200") | _gauge("cost_rate_per_hour", "9x200"), 150, DEMO),
    Case("VideoTrainGoodputLow", _gpu_time("0+60x200", "0+3x200") | _gauge("cost_rate_per_hour", "9x200"), 150),
    Case("VideoTrainGoodputLow", _gpu_time("0+30x200", "0+30x200") | _gauge("cost_rate_per_hour", "0x200"), 150),
    Case(
        "VideoTrainMfuDrop",
        _gauge("mfu_ratio", "0.4x300 0.3x100", ', stage="t", pod="demo-w0"'),
        330,
        DEMO | {"stage": "t"},
    ),
    Case("VideoTrainMfuDrop", _gauge("mfu_ratio", "0.4x300 0.35x100", ', stage="t", pod="demo-w0"'), 330),
    Case("VideoTrainStraggler", _gauge("straggler_ratio", "0.3x60", ', stage="t", pod="demo-w0"'), 40, DEMO),
    Case("VideoTrainStraggler", _gauge("straggler_ratio", "0.1x60", ', stage="t", pod="demo-w0"'), 40),
    Case("VideoTrainNodeSuspected", _gauge("suspect_node", "1x20", ', node="node-1"'), 5, DEMO | {"node": "node-1"}),
    Case("VideoTrainNodeSuspected", {}, 5),
    Case(
        "VideoTrainGpuFault",
        {_XID: "0x9 79x100"} | _OF_POD,
        15,
        {"namespace": "lab", "pod": "demo-w0", "Hostname": "node-1", "gpu": "3"},
    ),
    Case("VideoTrainGpuFault", {_XID: "0x100"} | _OF_POD, 15),
    Case("VideoTrainGpuFault", {_XID: "79x100"}, 15),
    Case("VideoTrainRunNotReconciled", _gauge("run_reconciled", "1x9 0x20"), 15, DEMO),
    Case("VideoTrainRunNotReconciled", _gauge("run_reconciled", "1x9 0 1x20"), 15),
    Case("VideoTrainRunHasUnreadableValues", _gauge("run_unreadable_values", "2x30"), 15, DEMO),
    Case("VideoTrainRunHasUnreadableValues", _gauge("run_unreadable_values", "0x30"), 15),
    Case("VideoTrainOperatorAbsent", {}, 10, {}),
    Case("VideoTrainOperatorAbsent", {_LEADS: "0x30"}, 10),
    Case("VideoTrainNoLeader", {_LEADS: "0x30"}, 10, {}),
    Case("VideoTrainNoLeader", {_LEADS: "0x30", _LEADS.replace('"a"', '"b"'): "1x30"}, 10),
    Case("VideoTrainLeaderFlaps", {_LEADS: "1x5 0x5 1x5 0x5 1x5 0x5 1x60"}, 50, {}),
    Case("VideoTrainLeaderFlaps", {_LEADS: "1x20 0x100", _LEADS.replace('"a"', '"b"'): "0x20 1x100"}, 50),
    Case("VideoTrainApiErrors", {_REQUESTS % "200": "0+80x60", _REQUESTS % "503": "0+20x60"}, 30, {}),
    Case("VideoTrainApiErrors", {_REQUESTS % "200": "0+80x60", _REQUESTS % "409": "0+20x60"}, 30),
    Case("VideoTrainPassesWait", {"videotrain_passes_waiting": "3x30"}, 15, {}),
    Case("VideoTrainPassesWait", {"videotrain_passes_waiting": "3x9 0x30"}, 15),
    Case("VideoTrainNodesUntrusted", {"videotrain_nodes_untrusted": "1x30"}, 10, {}),
    Case("VideoTrainNodesUntrusted", {"videotrain_nodes_untrusted": "0x30"}, 10),
    Case("VideoTrainTimeUntrusted", {"videotrain_time_untrusted": "1x30"}, 15, {}),
    Case("VideoTrainTimeUntrusted", {"videotrain_time_untrusted": "1x5 0x30"}, 15),
)
