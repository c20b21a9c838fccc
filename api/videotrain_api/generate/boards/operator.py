"""The operator itself."""

from __future__ import annotations

from typing import Final

from videotrain_api import metrics as m
from videotrain_api.generate.boards.queries import CLUSTER, EVENTS, OF_CLUSTER, STEP, or_none, quantile
from videotrain_api.generate.panels import Board, Panel
from videotrain_api.generate.recordings import API_FAILURES

OPERATOR: Final = Board(
    "videotrain-operator",
    "videotrain / operator",
    ("cluster",),
    (
        (
            "The operator itself",
            (
                Panel("Leaders", ((f"sum({m.LEADER.name}{OF_CLUSTER})", ""),), help="1 in a healthy installation."),
                Panel(
                    "Changes of the leader in an hour",
                    ((f"sum(changes({m.LEADER.name}{OF_CLUSTER}[1h])) / 2", ""),),
                    help="A roll-out is one.",
                ),
                Panel(
                    "Runs that wait for a pass",
                    ((f"max({m.PASSES_WAITING.name}{OF_CLUSTER})", ""),),
                    help="More than nothing for long: the operator has more to do than it can.",
                ),
                Panel(
                    "Share of the requests that the API server fails",
                    ((f"{API_FAILURES.name}{OF_CLUSTER}", ""),),
                    "percentunit",
                    help="No answer, 429 or 5xx.",
                ),
                Panel(
                    "A pass takes",
                    (
                        (quantile(0.5, m.RECONCILE_SECONDS, OF_CLUSTER), "p50"),
                        (quantile(0.99, m.RECONCILE_SECONDS, OF_CLUSTER), "p99"),
                    ),
                    "s",
                ),
                Panel(
                    "Passes that ended with an error, per hour",
                    (
                        (
                            or_none(
                                f"sum by (error) (rate({m.RECONCILE_ERRORS.name}{OF_CLUSTER}{STEP})) * 3600", "error"
                            ),
                            "{{error}}",
                        ),
                    ),
                    kind="stack",
                ),
                Panel(
                    "Requests to the API server per second",
                    ((f"sum by (verb, kind) (rate({m.API_REQUESTS.name}{OF_CLUSTER}{STEP}))", "{{verb}} {{kind}}"),),
                    "reqps",
                    "stack",
                ),
                Panel(
                    "Answers that were no success, per second",
                    (
                        (
                            or_none(
                                "sum by (code, verb, kind) "
                                f'(rate({m.API_REQUESTS.name}{{{CLUSTER}, code!~"2.."}}{STEP}))',
                                "code",
                            ),
                            "{{code}} {{verb}} {{kind}}",
                        ),
                    ),
                    "reqps",
                    "stack",
                ),
                Panel("Conflicts per hour", ((f"sum(rate({m.API_CONFLICTS.name}{OF_CLUSTER}{STEP})) * 3600", ""),)),
                Panel(
                    "Watches taken up again, per hour",
                    ((f"sum by (kind) (rate({m.WATCH_RESTARTS.name}{OF_CLUSTER}{STEP})) * 3600", "{{kind}}"),),
                    kind="stack",
                ),
                Panel(
                    "Time since the API server gave a sign",
                    ((f"max by (kind) ({m.WATCH_SILENT_SECONDS.name}{OF_CLUSTER})", "{{kind}}"),),
                    "s",
                    help="By watch; a replica that heard nothing for three minutes on one of them is not ready.",
                ),
                Panel(
                    "Events per hour",
                    ((f"sum by (reason) (rate({m.EVENTS.name}{OF_CLUSTER}{STEP})) * 3600", "{{reason}}"),),
                    kind="stack",
                ),
                Panel(
                    "Admission reviews per second",
                    (
                        (
                            or_none(f"sum by (outcome) (rate({m.WEBHOOK_REVIEWS.name}{OF_CLUSTER}{STEP}))", "outcome"),
                            "{{outcome}}",
                        ),
                    ),
                    "reqps",
                    "stack",
                ),
                Panel(
                    "Callers of the webhook that were turned away, per second",
                    (
                        (
                            or_none(f"sum by (reason) (rate({m.WEBHOOK_REFUSED.name}{OF_CLUSTER}{STEP}))", "reason"),
                            "{{reason}}",
                        ),
                    ),
                    "reqps",
                    "stack",
                    help="An API server comes again by itself. Many of these are a flood, or a client certificate that "
                    "does not fit.",
                ),
                Panel(
                    "Processes that judge reviews and ended, per hour",
                    ((or_none(f"sum(rate({m.WEBHOOK_JUDGES_ENDED.name}{OF_CLUSTER}{STEP})) * 3600"), ""),),
                    help="Killed because a review took too long or too much memory; the next review gets a new one.",
                ),
                Panel(
                    "Answers of agents that count as silence, per second",
                    (
                        (
                            or_none(
                                f"sum by (reason) (rate({m.AGENT_ANSWERS_REFUSED.name}{OF_CLUSTER}{STEP}))", "reason"
                            ),
                            "{{reason}}",
                        ),
                    ),
                    "reqps",
                    "stack",
                    help="Not signed with the run's key, or not readable: somebody else answers, or the master key was "
                    "replaced while pods ran.",
                ),
                Panel(
                    "Runs whose passes fail",
                    ((or_none(f"count({m.RUN_RECONCILED.name}{OF_CLUSTER} == 0)"), ""),),
                    help="After three failed passes in a row. The condition Reconciled of each says why.",
                ),
                Panel(
                    "Values that nobody can read",
                    (
                        (
                            or_none(
                                f"sum by (namespace, run) ({m.RUN_UNREADABLE.name}{OF_CLUSTER}) > 0", "namespace", "run"
                            ),
                            "{{namespace}}/{{run}}",
                        ),
                    ),
                    kind="stack",
                    help="In status, ledger, labels and annotations. They count as not written.",
                ),
                Panel(
                    "Defaults for runs that nobody can read",
                    (
                        (f"max({m.RUN_DEFAULTS_UNREADABLE.name})", "now"),
                        (f"max(increase({m.RUN_DEFAULTS_REFUSED.name}{STEP}))", "refused"),
                    ),
                    help="1 while the ConfigMap of the chart's runDefaults is unreadable: the last readable ones stay, "
                    "and a replica that starts waits. Its events and the operator's log say why.",
                ),
                Panel(
                    "Bills that wait to be copied",
                    (
                        (or_none(f"max({m.BILLS_WAITING.name}{OF_CLUSTER})"), "waiting"),
                        (or_none(f"sum(increase({m.BILL_COPY_FAILURES.name}{OF_CLUSTER}{STEP}))"), "failures"),
                    ),
                    help="To the object store that the chart's value bills names. They are kept in the cluster "
                    "meanwhile.",
                ),
                Panel(
                    "Lost nodes are not believed",
                    ((f"max({m.NODES_UNTRUSTED.name}{OF_CLUSTER})", ""),),
                    help="1 while so many nodes are lost at once that the operator does not act on it.",
                ),
                Panel(
                    "The time is not trusted",
                    ((f"max({m.TIME_UNTRUSTED.name}{OF_CLUSTER})", ""),),
                    help="1 while the API server's clock jumped or was not confirmed yet: no deadline or budget acts.",
                ),
            ),
        ),
    ),
    (EVENTS,),
)
