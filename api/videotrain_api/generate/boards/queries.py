"""Labels, ranges and functions that queries of the boards share; `$namespace` and `$run` are the boards' variables."""

from __future__ import annotations

from typing import Final

from videotrain_api import metrics as m

OF_FLEET: Final = '{namespace=~"$namespace"}'
PRODUCTIVE: Final = '{namespace=~"$namespace", bucket="productive"}'
OF_RUN: Final = '{namespace="$namespace", run="$run"}'
"""A series of one run carries both labels."""
STEP: Final = "[$__rate_interval]"
SHOWN: Final = "[$__range]"


def quantile(share: float, metric: m.Metric, labels: str) -> str:
    """A quantile of a histogram, all series together."""
    return f"histogram_quantile({share}, sum by (le) (rate({metric.name}_bucket{labels}{STEP})))"


def of_leader(metric: m.Metric) -> str:
    """A fact of the whole world, which the pod of rank 0 tells; the others have no such series or an older one."""
    return f"max by (stage) ({metric.name}{OF_RUN})"
