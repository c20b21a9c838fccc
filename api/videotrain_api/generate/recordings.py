"""Recording rules of the chart: what boards and alerts ask for again and again, computed once.

Counters of time and money show what was counted first. What moved since, such as steps that a fault lost, is in
counters of corrections beside them, so a net rate has three terms. A name is `labels:series:operation`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from videotrain_api import metrics as m

WINDOW: Final = "5m"


@dataclass(frozen=True, kw_only=True)
class Recording:
    """One rule: a series, and what it is computed from."""

    name: str
    labels: tuple[str, ...]
    """That the series has."""
    expression: str
    """PromQL."""
    help: str
    """One sentence with the unit."""


def net(metric: m.Metric, corrections: m.Metric, by: str, matchers: str, function: str, window: str) -> str:
    """`rate` or `increase` of a counter with what left and came since.

    Args:
        metric: the counter.
        corrections: its corrections.
        by: labels to keep, such as `namespace, run`.
        matchers: such as `namespace="x", `, with a comma at its end, or empty.
        function: `rate` or `increase`.
        window: such as `5m`, or a variable of Grafana.
    """

    def part(name: str, direction: str) -> str:
        return f"sum by ({by}) ({function}({name}{{{matchers}{direction}}}[{window}]))"

    out, came = (part(corrections.name, f'direction="{which}"') for which in ("out", "in"))
    return f"({part(metric.name, '')} - {out} + {came})"


def _net(name: str, metric: m.Metric, corrections: m.Metric, labels: tuple[str, ...], text: str) -> Recording:
    expression = net(metric, corrections, ", ".join(labels), "", "rate", WINDOW)
    return Recording(name=name, labels=labels, expression=expression, help=text)


_RUN: Final = ("namespace", "run")
GPUS: Final = _net(
    "namespace_run_bucket:videotrain_gpu_seconds:rate5m",
    m.GPU_SECONDS,
    m.GPU_SECONDS_CORRECTED,
    (*_RUN, "bucket"),
    "GPUs that were held by what they were used for, mean of five minutes.",
)
MONEY: Final = _net(
    "namespace_run_bucket:videotrain_cost_micros:rate5m",
    m.COST_MICROS,
    m.COST_CORRECTED_MICROS,
    (*_RUN, "bucket", "currency"),
    "Millionths of the currency per second by what they bought.",
)
WASTE: Final = _net(
    "namespace_run_cause:videotrain_waste_micros:rate5m",
    m.WASTE_MICROS,
    m.WASTE_CORRECTED_MICROS,
    (*_RUN, "cause", "currency"),
    "Millionths of the currency per second that bought no progress, by cause.",
)
TEAM: Final = Recording(
    name="namespace_run:videotrain_run_team:info",
    labels=(*_RUN, "team"),
    expression=f"max by (namespace, run, team) ({m.RUN_INFO.name})",
    help="Always 1; the team of each run, one series also while two operators tell of it.",
)
GOODPUT: Final = Recording(
    name="namespace_run:videotrain_goodput:ratio1h",
    labels=_RUN,
    expression=(
        net(m.GPU_SECONDS, m.GPU_SECONDS_CORRECTED, "namespace, run", 'bucket="productive", ', "increase", "1h")
        + " / "
        + net(m.GPU_SECONDS, m.GPU_SECONDS_CORRECTED, "namespace, run", "", "increase", "1h")
    ),
    help="Productive share of the GPU time that was held in the last hour.",
)
DATA_WAIT: Final = Recording(
    name="namespace_run:videotrain_data_stall_seconds:rate5m",
    labels=_RUN,
    expression=f"max by (namespace, run) (rate({m.DATA_STALL_SECONDS.name}[{WINDOW}]))",
    help="Share of the time in which steps waited for input, of the pod that waited most.",
)
STEP_P99: Final = Recording(
    name="namespace_run:videotrain_step_seconds:p99_5m",
    labels=_RUN,
    expression=(
        f"histogram_quantile(0.99, sum by (namespace, run, le) (rate({m.STEP_SECONDS.name}_bucket[{WINDOW}])))"
    ),
    help="99th percentile of the time of a step in seconds.",
)
API_FAILURES: Final = Recording(
    name="videotrain_api_requests:failed_ratio5m",
    labels=(),
    expression=(
        f'(sum(rate({m.API_REQUESTS.name}{{code=~"0|429|5.."}}[{WINDOW}])) or vector(0))'
        f" / sum(rate({m.API_REQUESTS.name}[{WINDOW}]))"
    ),
    help="Share of the requests to the API server that it did not answer, or answered with 429 or 5xx.",
)
RECORDINGS: Final = (GPUS, MONEY, WASTE, TEAM, GOODPUT, DATA_WAIT, STEP_P99, API_FAILURES)
BY_NAME: Final = {recording.name: recording for recording in RECORDINGS}


def rules() -> Iterator[dict[str, str]]:
    """Rules of Prometheus."""
    for recording in RECORDINGS:
        yield {"record": recording.name, "expr": recording.expression}
