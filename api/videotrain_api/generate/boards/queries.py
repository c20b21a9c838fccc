"""Labels, ranges and functions that queries of the boards share; `$namespace`, `$run` and so on are their variables.

`cluster` is a label that a Prometheus over several clusters adds; where there is none, the variable matches everything.
"""

from __future__ import annotations

from typing import Final

from videotrain_api import metrics as m
from videotrain_api.generate import recordings
from videotrain_api.generate.panels import Annotation

CLUSTER: Final = 'cluster=~"$cluster"'
FLEET: Final = f'{CLUSTER}, namespace=~"$namespace", run=~"$run"'
OF_CLUSTER: Final = f"{{{CLUSTER}}}"
OF_FLEET: Final = f"{{{FLEET}}}"
ONE_RUN: Final = f'{CLUSTER}, namespace="$namespace", run="$run"'
OF_RUN: Final = f"{{{ONE_RUN}}}"
"""A series of one run carries both labels."""
OF_STAGE: Final = f'{{{ONE_RUN}, stage=~"$stage"}}'
OF_POD: Final = f'{{{ONE_RUN}, pod=~"$pod"}}'
STEP: Final = "[$__rate_interval]"
SHOWN: Final = "[$__range]"


def quantile(share: float, metric: m.Metric, labels: str) -> str:
    """A quantile of a histogram, all series together."""
    return f"histogram_quantile({share}, sum by (le) (rate({metric.name}_bucket{labels}{STEP})))"


def or_none(query: str, *labels: str) -> str:
    """A query, and where it has no series one of 0 with `none` for each of these labels: nothing is no lack of data."""
    nothing = "vector(0)"
    for label in labels:
        nothing = f'label_replace({nothing}, "{label}", "none", "", "")'
    return f"{query} or on() {nothing}"


def of_leader(metric: m.Metric) -> str:
    """A fact of the whole world, which the pod of rank 0 tells; the others have no such series or an older one."""
    return f"max by (stage) ({metric.name}{OF_STAGE})"


def gpu_increase(matchers: str, by: str) -> str:
    """GPU seconds within the time shown, with what moved since they were counted."""
    counter, corrections = m.GPU_SECONDS, m.GPU_SECONDS_CORRECTED
    return recordings.net(counter, corrections, by, f"{matchers}, ", "increase", "$__range")


def money_increase(metric: m.Metric, corrections: m.Metric, matchers: str, by: str) -> str:
    """Money within the time shown in the currency, with what moved since it was counted."""
    return f"{recordings.net(metric, corrections, by, f'{matchers}, ', 'increase', '$__range')} / 1e6"


def spent(metric: m.Metric, corrections: m.Metric, by: str) -> str:
    """Money of one run so far in the currency, with what moved since it was counted."""
    first = f"sum by ({by}) ({metric.name}{OF_RUN})"
    left, came = (f'sum by ({by}) ({corrections.name}{{{ONE_RUN}, direction="{which}"}})' for which in ("out", "in"))
    return f"({first} - {left} + {came}) / 1e6"


RESTARTS: Final = Annotation(
    "Restarts",
    f"sum by (run, cause) (increase({m.RESTARTS.name}{OF_RUN}{STEP})) > 0",
    "restart, {{cause}}",
    "red",
)
WORLDS: Final = Annotation(
    "Worlds", f"sum by (run) (changes({m.RUN_GENERATION.name}{OF_RUN}{STEP})) > 0", "another world", "blue"
)
EVENTS: Final = Annotation(
    "Events", f"sum by (reason) (increase({m.EVENTS.name}{OF_CLUSTER}{STEP})) > 0", "{{reason}}", "purple"
)
