"""How a control plane is set up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Limits:
    """Requests per second, and in one burst, that a client of the API server allows itself."""

    per_second: int
    burst: int


@dataclass(frozen=True)
class Profile:
    """Request limits of the components."""

    controllers: Limits
    """Of each controller of the controller manager."""
    scheduler: Limits


STOCK: Final = Profile(controllers=Limits(20, 30), scheduler=Limits(50, 100))
"""What a cluster has that nobody has tuned."""
RAISED: Final = Profile(controllers=Limits(2000, 4000), scheduler=Limits(2000, 4000))
"""So high that the machine is the limit."""
PROFILES: Final = {"stock": STOCK, "raised": RAISED}


@dataclass(frozen=True)
class NodeMonitoring:
    """When a silent node counts as dead, and when its pods are evicted. The defaults are Kubernetes' own."""

    period_seconds: int = 5
    """How often the controller manager looks at the nodes' leases."""
    grace_seconds: int = 50
    """Silence after which a node is marked NotReady."""
    toleration_seconds: int = 300
    """Time that a pod without a toleration of its own may stay on a node that is NotReady or unreachable."""


@dataclass(frozen=True)
class Kwok:
    """Fake nodes: a pod bound to one runs at once, and is gone at once when it is deleted."""

    pod_range: str = "10.128.0.0/12"
    """Addresses of its pods; nothing listens on them."""
    lease_seconds: int = 40
    """Lifetime of the leases by which the fake nodes tell that they live, renewed four times in it. 0 = none: for
    measurements without heartbeats, together with a grace period that outlasts them."""
    pods_at_a_time: int = 32
    """How many pods it starts or ends at the same time. Real nodes have a kubelet each; with KWOK's own 4, a burst
    would measure KWOK."""


@dataclass(frozen=True)
class Settings:
    """Everything about a control plane that can be chosen."""

    profile: Profile = STOCK
    nodes: NodeMonitoring = NodeMonitoring()
    kwok: Kwok | None = None
    """None: no fake nodes."""
