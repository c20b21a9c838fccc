"""The alerts of the chart, by the metric catalogue: rules of Prometheus for what nobody would notice by itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

from videotrain_api import metrics as m

FILE: Final = "charts/videotrain/files/alerts.json"


@dataclass(frozen=True, kw_only=True)
class Alert:
    """One rule: when it fires, and what to tell whom it wakes."""

    name: str
    expression: str
    """PromQL."""
    minutes: int
    """How long it must hold."""
    severity: Literal["warning", "critical"]
    summary: str
    """One line; `{{ $labels.run }}` and its like are filled in by Prometheus."""
    description: str
    """What it means and where to look."""


ALERTS: Final = (
    Alert(
        name="VideoTrainRunNotReconciled",
        expression=f"max by (namespace, run) ({m.RUN_RECONCILED.name}) == 0",
        minutes=1,
        severity="critical",
        summary="Nobody looks after run {{ $labels.namespace }}/{{ $labels.run }}",
        description=(
            "Every pass of the operator over it fails, while its pods go on and cost. Suspension, deadline and budget "
            "are held by the pods alone. Its condition Reconciled says why."
        ),
    ),
    Alert(
        name="VideoTrainRunHasUnreadableValues",
        expression=f"max by (namespace, run) ({m.RUN_UNREADABLE.name}) > 0",
        minutes=10,
        severity="warning",
        summary="Somebody wrote what nobody can read into run {{ $labels.namespace }}/{{ $labels.run }}",
        description="A label or annotation of its pods, or its ledger, was edited. It counts as not written.",
    ),
    Alert(
        name="VideoTrainNoLeader",
        expression=f"sum({m.LEADER.name}) < 1",
        minutes=2,
        severity="critical",
        summary="No operator leads",
        description="No run is looked after. Look at the operator's pods, and at their reach of the API server.",
    ),
)


def rules() -> dict[str, Any]:
    """The `spec` of a PrometheusRule, which is a file of rules for Prometheus as well."""
    return {
        "groups": [
            {
                "name": "videotrain",
                "rules": [
                    {
                        "alert": alert.name,
                        "expr": alert.expression,
                        "for": f"{alert.minutes}m",
                        "labels": {"severity": alert.severity},
                        "annotations": {"summary": alert.summary, "description": alert.description},
                    }
                    for alert in ALERTS
                ],
            }
        ]
    }
