"""What those who installed the operator decided for every run."""

from __future__ import annotations

from dataclasses import dataclass

from videotrain_api.render.network import NetworkRules


@dataclass(frozen=True, kw_only=True)
class ClusterRules:
    """Settings of the operator that the planner needs."""

    network: NetworkRules | None = None
    """What the network policies of runs say; runs get none if None."""
