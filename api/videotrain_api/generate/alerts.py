"""The alerts of the chart, by the metric catalogue: rules of Prometheus for what nobody would notice by itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

from videotrain_api import metrics as m
from videotrain_api.generate import dcgm, recordings
from videotrain_api.vocabulary import Phase

FILE: Final = "charts/videotrain/files/rules.json"
RUNBOOKS: Final = "docs/runbook"
"""Folder with a page for each alert; the chart puts `monitoring.runbooks` in its place, and
`monitoring.runbookSuffix` in that of `.md`."""
_RUN: Final = "run {{ $labels.namespace }}/{{ $labels.run }}"


@dataclass(frozen=True, kw_only=True)
class Alert:
    """One rule: when it fires, and what to tell whom it wakes."""

    name: str
    """Also of its page in RUNBOOKS."""
    expression: str
    """PromQL."""
    minutes: int
    """How long it must hold."""
    severity: Literal["warning", "critical"]
    summary: str
    """One line; `{{ $labels.run }}` and its like are filled in by Prometheus."""
    description: str
    """What it means, for whoever reads nothing else."""


def _of_run(metric: m.Metric, labels: str = "") -> str:
    """One value for each run, also while two operators tell of it."""
    return f"max by (namespace, run) ({metric.name}{labels})"


def _while_phase(phase: Phase) -> str:
    return f'and on (namespace, run) {_of_run(m.RUN_PHASE, f"""{{phase="{phase.value}"}}""")} == 1'


_RUNNING: Final = _while_phase(Phase.RUNNING)
_WITHOUT_WORLD: Final = "|".join((Phase.PENDING, Phase.STARTING, Phase.RESTARTING, Phase.RESIZING))
_TOLD: Final = "records|tracking|append|failures"
"""Tasks of housekeeping that tell people of a run or of its end, or take in what they appended. Their failures count
once per checkpoint or look, or until they are over."""
_NOT_TOLD: Final = f'{m.HOUSEKEEPING_FAILURES.name}{{task=~"{_TOLD}"}}'

_PROGRESS: Final = (
    Alert(
        name="VideoTrainHang",
        expression=f'sum by (namespace, run) (increase({m.RESTARTS.name}{{cause="hang"}}[1h])) > 0',
        minutes=0,
        severity="warning",
        summary=f"Steps of {_RUN} stood still, and its world was started again",
        description="Some rank waited for ever. The run goes on by itself; a hang that comes again needs a person.",
    ),
    Alert(
        name="VideoTrainNoProgress",
        expression=(
            f"sum by (namespace, run) (changes({m.RUN_STEP.name}[30m])) == 0 {_RUNNING} and on (namespace, run) "
            f'max by (namespace, run) ({m.RUN_PHASE.name}{{phase="{Phase.RUNNING.value}"}} offset 30m) == 1'
        ),
        minutes=10,
        severity="critical",
        summary=f"No step of {_RUN} was finished for 40 minutes",
        description="Its pods run and cost, and no hang was found: the limits on hangs are longer than that.",
    ),
    Alert(
        name="VideoTrainRestartLoop",
        expression=f"sum by (namespace, run, cause) (increase({m.RESTARTS.name}[1h])) > 3",
        minutes=0,
        severity="critical",
        summary=f"The world of {_RUN} was started again and again, cause {{{{ $labels.cause }}}}",
        description="More than three restarts of one cause in an hour. Each throws steps away.",
    ),
    Alert(
        name="VideoTrainCheckpointOld",
        expression=f"time() - max by (namespace, run, stage) ({m.RUN_SAVED_AT.name}) > 7200 {_RUNNING}",
        minutes=5,
        severity="warning",
        summary=f"Nothing of {_RUN} was saved for two hours",
        description="A fault now would throw all of that away.",
    ),
    Alert(
        name="VideoTrainCheckpointHousekeepingFails",
        expression=(
            f'sum by (namespace, run, task) (increase({m.HOUSEKEEPING_FAILURES.name}{{task!~"{_TOLD}"}}[1h])) > 3'
        ),
        minutes=0,
        severity="warning",
        summary=f"Checkpoints of {_RUN} are complete, and {{{{ $labels.task }}}} beside them fails",
        description="Old checkpoints are not deleted, or copies in memory are not made.",
    ),
    Alert(
        name="VideoTrainTrackingFails",
        # A failure may be the first that a pod tells of its counter, and then no increase is seen.
        expression=(
            f"sum by (namespace, run, task) (increase({_NOT_TOLD}[1h])) > 0 or "
            f"sum by (namespace, run, task) ({_NOT_TOLD} unless {_NOT_TOLD} offset 1h) > 0"
        ),
        minutes=0,
        severity="warning",
        summary=f"{_RUN} goes on, and its {{{{ $labels.task }}}} fails",
        description=(
            "A tracker misses values, records or the end of a failed generation are not stored, or an appended set was "
            "refused."
        ),
    ),
    Alert(
        name="VideoTrainRunFailed",
        expression=f'{_of_run(m.RUN_PHASE, f"""{{phase="{Phase.FAILED.value}"}}""")} == 1',
        minutes=0,
        severity="warning",
        summary=f"{_RUN} failed",
        description="It has released its nodes. Its condition Failed says why.",
    ),
    Alert(
        name="VideoTrainHeldWithoutWork",
        expression=(
            f"{_of_run(m.COST_RATE_PER_HOUR)} > 0 and on (namespace, run) "
            f'sum by (namespace, run) ({m.RUN_PHASE.name}{{phase=~"{_WITHOUT_WORLD}"}}) == 1'
        ),
        minutes=20,
        severity="critical",
        summary=f"{_RUN} holds nodes for 20 minutes and does not train",
        description="It waits for more pods, for a start, or for a restart, and what it holds costs.",
    ),
)

_MONEY: Final = (
    Alert(
        name="VideoTrainBudgetMostlySpent",
        expression=f"{_of_run(m.BUDGET_RATIO)} >= 0.8 and {_of_run(m.BUDGET_RATIO)} < 0.95",
        minutes=0,
        severity="warning",
        summary=f"{_RUN} has spent {{{{ $value | humanizePercentage }}}} of its budget",
        description="The limit acts by itself when the next checkpoint would pass it.",
    ),
    Alert(
        name="VideoTrainBudgetNearlySpent",
        expression=f"{_of_run(m.BUDGET_RATIO)} >= 0.95 and {_of_run(m.BUDGET_RATIO)} < 1",
        minutes=0,
        severity="critical",
        summary=f"{_RUN} has spent {{{{ $value | humanizePercentage }}}} of its budget",
        description="What budget.action says is about to happen.",
    ),
    Alert(
        name="VideoTrainBudgetExceeded",
        expression=f"{_of_run(m.BUDGET_RATIO)} >= 1",
        minutes=0,
        severity="critical",
        summary=f"{_RUN} has spent its budget",
        description="With budget.action Notify or Shrink it goes on and costs; otherwise it has stopped.",
    ),
    Alert(
        name="VideoTrainBudgetGoneSoon",
        expression=(
            f"max by (namespace, run) (predict_linear({m.BUDGET_RATIO.name}[1h], 6 * 3600)) > 1"
            f" and {_of_run(m.BUDGET_RATIO)} < 0.8 {_RUNNING}"
        ),
        minutes=15,
        severity="warning",
        summary=f"At this pace the budget of {_RUN} is gone within six hours",
        description="The burn rate of the last hour, carried on.",
    ),
    Alert(
        name="VideoTrainForecastOverBudget",
        expression=f"{_of_run(m.FORECAST_COST)} > {_of_run(m.RUN_BUDGET)}",
        minutes=30,
        severity="warning",
        summary=f"{_RUN} is expected to cost more than its budget",
        description="It will be stopped before it is complete, unless the budget, its size or its steps change.",
    ),
)

_TEAM: Final = "team budget {{ $labels.budget }}"
_OF_TEAM: Final = "max by (budget, currency)"
_TEAM_SPENT: Final = f"({_OF_TEAM} ({m.TRAINING_BUDGET_SPENT.name}) / {_OF_TEAM} ({m.TRAINING_BUDGET_AMOUNT.name}))"

_TEAMS: Final = (
    Alert(
        name="VideoTrainTeamBudgetMostlySpent",
        expression=f"{_TEAM_SPENT} >= 0.8 and {_TEAM_SPENT} < 0.95",
        minutes=0,
        severity="warning",
        summary=f"{{{{ $value | humanizePercentage }}}} of {_TEAM} are spent in this month",
        description="Its rules act by themselves, those of low priority first.",
    ),
    Alert(
        name="VideoTrainTeamBudgetNearlySpent",
        expression=f"{_TEAM_SPENT} >= 0.95 and {_TEAM_SPENT} < 1",
        minutes=0,
        severity="critical",
        summary=f"{{{{ $value | humanizePercentage }}}} of {_TEAM} are spent in this month",
        description="What its last rules say is about to happen to every run under it.",
    ),
    Alert(
        name="VideoTrainTeamBudgetExceeded",
        expression=f"{_TEAM_SPENT} >= 1",
        minutes=0,
        severity="critical",
        summary=f"All of {_TEAM} is spent",
        description="Runs that no rule stops go on and cost; the others wait for the next month.",
    ),
    Alert(
        name="VideoTrainTeamBudgetGoneSoon",
        expression=(
            f"{_OF_TEAM} ({m.TRAINING_BUDGET_EXPECTED.name}) > {_OF_TEAM} ({m.TRAINING_BUDGET_AMOUNT.name})"
            f" and {_TEAM_SPENT} < 0.8"
        ),
        minutes=60,
        severity="warning",
        summary=f"At this pace {_TEAM} does not last for the month",
        description="What its runs hold now, carried on to the end of the month, costs more than its amount.",
    ),
    Alert(
        name="VideoTrainTeamBudgetNotJudged",
        expression=f"max by (budget) ({m.TRAINING_BUDGET_JUDGED.name}) == 0",
        minutes=5,
        severity="critical",
        summary=f"Nobody judges {_TEAM}",
        description="Its runs go on, whatever they spend. Its condition WithinBudget says why.",
    ),
    Alert(
        name="VideoTrainBillsNotCopied",
        expression=(f"max({m.BILLS_WAITING.name}) > 0 and sum(increase({m.BILL_COPY_FAILURES.name}[30m])) > 0"),
        minutes=30,
        severity="warning",
        summary="{{ $value }} bills of runs do not get into the object store",
        description="They are kept in the cluster, and copied once the store takes them. The operator's log says why.",
    ),
)

_SPEED: Final = (
    Alert(
        name="VideoTrainDataStall",
        expression=f"{recordings.DATA_WAIT.name} > 0.2",
        minutes=15,
        severity="warning",
        summary=f"{_RUN} waits for data {{{{ $value | humanizePercentage }}}} of the time",
        description="Its GPUs are held and idle meanwhile.",
    ),
    Alert(
        name="VideoTrainGoodputLow",
        expression=f"{recordings.GOODPUT.name} < 0.7 and on (namespace, run) {_of_run(m.COST_RATE_PER_HOUR)} > 0",
        minutes=30,
        severity="warning",
        summary=f"{{{{ $value | humanizePercentage }}}} of the GPU time of {_RUN} was productive in the last hour",
        description="The rest went into starts, restarts, lost steps, checkpoints and waiting.",
    ),
    Alert(
        name="VideoTrainMfuDrop",
        expression=(
            f"max by (namespace, run, stage) ({m.MFU_RATIO.name}) < "
            f"0.8 * max by (namespace, run, stage) (quantile_over_time(0.5, {m.MFU_RATIO.name}[6h]))"
        ),
        minutes=15,
        severity="warning",
        summary=f"Stage {{{{ $labels.stage }}}} of {_RUN} is slower than it was by a fifth",
        description="Its MFU is below 80 % of the median of the last six hours.",
    ),
    Alert(
        name="VideoTrainStraggler",
        expression=f"max by (namespace, run) (avg_over_time({m.STRAGGLER_RATIO.name}[15m])) > 0.2",
        minutes=15,
        severity="warning",
        summary=f"A rank of {_RUN} takes {{{{ $value | humanizePercentage }}}} longer than the others",
        description="Every other rank waits for it in every step.",
    ),
    Alert(
        name="VideoTrainNodeSuspected",
        expression=f"max by (namespace, run, node) ({m.SUSPECT_NODE.name}) == 1",
        minutes=0,
        severity="warning",
        summary="Node {{ $labels.node }} is avoided by " + _RUN,
        description="Something failed there; other runs and jobs may still land on it.",
    ),
    Alert(
        name="VideoTrainGpuFault",
        expression=(
            f"max by (namespace, pod, Hostname, gpu) ({dcgm.XID.name}) > 0 "
            f"and on (namespace, pod) max by (namespace, pod) ({m.GENERATION.name})"
        ),
        minutes=0,
        severity="critical",
        summary="GPU {{ $labels.gpu }} of {{ $labels.Hostname }} reported XID {{ $value }} under {{ $labels.pod }}",
        description="The driver found a fault of a GPU that a run holds.",
    ),
)

_OPERATOR: Final = (
    Alert(
        name="VideoTrainRunNotReconciled",
        expression=f"{_of_run(m.RUN_RECONCILED)} == 0",
        minutes=1,
        severity="critical",
        summary="Nobody looks after " + _RUN,
        description=(
            "Every pass of the operator over it fails, while its pods go on and cost. Suspension, deadline and budget "
            "are held by the pods alone. Its condition Reconciled says why."
        ),
    ),
    Alert(
        name="VideoTrainRunHasUnreadableValues",
        expression=f"{_of_run(m.RUN_UNREADABLE)} > 0",
        minutes=10,
        severity="warning",
        summary="Somebody wrote what nobody can read into " + _RUN,
        description="A label or annotation of its pods, or its ledger, was edited. It counts as not written.",
    ),
    Alert(
        name="VideoTrainOperatorAbsent",
        expression=f"absent({m.LEADER.name})",
        minutes=5,
        severity="critical",
        summary="Nothing is heard of the operator",
        description="No replica runs, or Prometheus cannot scrape any.",
    ),
    Alert(
        name="VideoTrainNoLeader",
        expression=f"sum({m.LEADER.name}) < 1",
        minutes=2,
        severity="critical",
        summary="No operator leads",
        description="No run is looked after. Look at the operator's pods, and at their reach of the API server.",
    ),
    Alert(
        name="VideoTrainLeaderFlaps",
        expression=f"sum(changes({m.LEADER.name}[1h])) >= 6",
        minutes=0,
        severity="warning",
        summary="The leading operator changed three times within an hour",
        description="Each change costs the seconds of a Lease, in which no fault is seen.",
    ),
    Alert(
        name="VideoTrainApiErrors",
        expression=f"{recordings.API_FAILURES.name} > 0.1",
        minutes=10,
        severity="warning",
        summary="{{ $value | humanizePercentage }} of the requests to the API server fail",
        description="It does not answer, is overloaded (429) or broken (5xx). Recoveries take longer.",
    ),
    Alert(
        name="VideoTrainPassesWait",
        expression=f"max({m.PASSES_WAITING.name}) > 0",
        minutes=10,
        severity="warning",
        summary="{{ $value }} runs wait for the operator",
        description="It has had more to do than it can for ten minutes.",
    ),
    Alert(
        name="VideoTrainNodesUntrusted",
        expression=f"max({m.NODES_UNTRUSTED.name}) == 1",
        minutes=5,
        severity="critical",
        summary="So many nodes are lost at once that the operator does not act on it",
        description="Either a large part of the cluster is down, or the API server lost sight of it.",
    ),
    Alert(
        name="VideoTrainTimeUntrusted",
        expression=f"max({m.TIME_UNTRUSTED.name}) == 1",
        minutes=10,
        severity="warning",
        summary="The API server's clock is not trusted",
        description="It jumped, or was not confirmed. No deadline and no budget ends a run meanwhile.",
    ),
)

ALERTS: Final = (*_PROGRESS, *_MONEY, *_TEAMS, *_SPEED, *_OPERATOR)


def rules() -> dict[str, Any]:
    """The `spec` of a PrometheusRule, which is a file of rules for Prometheus as well."""
    alerts = [
        {
            "alert": alert.name,
            "expr": alert.expression,
            "for": f"{alert.minutes}m",
            "labels": {"severity": alert.severity},
            "annotations": {
                "summary": alert.summary,
                "description": alert.description,
                "runbook_url": f"{RUNBOOKS}/{alert.name}.md",
            },
        }
        for alert in ALERTS
    ]
    return {
        "groups": [
            {"name": "videotrain-recordings", "rules": list(recordings.rules())},
            {"name": "videotrain-alerts", "rules": alerts},
        ]
    }
