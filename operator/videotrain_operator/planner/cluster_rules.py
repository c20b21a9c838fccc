"""What those who installed the operator decided for every run."""

from __future__ import annotations

from dataclasses import dataclass, field

from videotrain_api.render.defaults import NO_DEFAULTS
from videotrain_api.render.network import NetworkRules
from videotrain_api.resource.prices import PriceList
from videotrain_api.resource.run_defaults import RunDefaults
from videotrain_api.rules.pod_security import DEFAULT_POD_POLICY, PodPolicy


@dataclass(frozen=True, kw_only=True)
class ClusterRules:
    """Settings of the operator that the planner needs."""

    pods: PodPolicy = DEFAULT_POD_POLICY
    """What the pods of a run may be when it is accepted, and when it begins anew after it held none."""
    network: NetworkRules | None = None
    """What the network policies of runs say; runs get none if None."""
    prices: PriceList = field(default_factory=PriceList)
    """What nodes cost, whatever runs say."""
    defaults: RunDefaults = NO_DEFAULTS
    """What runs get that say nothing else, and what they may not override."""
