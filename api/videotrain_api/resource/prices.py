"""The price list of those who run a cluster: what nodes cost, whatever runs say."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Final, Literal

from pydantic import AwareDatetime, Field, field_validator

from videotrain_api.resource.pool import Currency, LabelKey, LabelValue, Money, ObjectName
from videotrain_api.schema import ApiModel

Capacity = Literal["on-demand", "spot", "reserved"]
_CAPACITY: Final[tuple[tuple[str, str, Capacity], ...]] = (
    ("karpenter.sh/capacity-type", "spot", "spot"),
    ("karpenter.sh/capacity-type", "reserved", "reserved"),
    ("eks.amazonaws.com/capacityType", "SPOT", "spot"),
    ("eks.amazonaws.com/capacityType", "CAPACITY_BLOCK", "reserved"),
    ("cloud.google.com/gke-spot", "true", "spot"),
    ("cloud.google.com/gke-preemptible", "true", "spot"),
    ("kubernetes.azure.com/scalesetpriority", "spot", "spot"),
)
"""Labels, values and what they mean."""


class ListedPrice(ApiModel):
    """What an hour costs on the nodes that it fits."""

    node_labels: dict[LabelKey, LabelValue] = Field(default_factory=dict, max_length=16)
    """Labels that the node has; any node if empty. GPUs are told by nvidia.com/gpu.product, machines by
    node.kubernetes.io/instance-type."""
    capacity: Capacity | None = None
    """How the node is paid, by the labels of Karpenter, EKS, GKE and AKS; on-demand if none says otherwise, any if
    unset."""
    price_per_gpu_hour: Money | None = None
    """Of a GPU, on nodes from which a pod has GPUs."""
    price_per_node_hour: Money | None = None
    """Of a node from which a pod has no GPUs."""
    valid_from: AwareDatetime | None = None
    """From then on; always if unset."""
    valid_to: AwareDatetime | None = None
    """Until before then; for ever if unset."""
    runs_may_override: bool = False
    """The price in the run's pool holds on these nodes."""

    def fits(self, labels: Mapping[str, str], *, gpus: bool) -> bool:
        """Whether it is the price of a pod, with or without GPUs, on a node with these labels."""
        priced = self.price_per_gpu_hour if gpus else self.price_per_node_hour
        paid = _is_paid(self.capacity, labels) and self.node_labels.items() <= labels.items()
        return (priced is not None or self.runs_may_override) and paid


class StoragePrices(ApiModel):
    """What an object store takes. What a run keeps there and asks of it is estimated, never measured."""

    price_per_gibibyte_month: Money = "0"
    """Of 2^30 bytes that lie there for a month of 30 days."""
    price_per_thousand_writes: Money = "0"
    """Requests that write or list (PUT, POST, LIST)."""
    price_per_thousand_reads: Money = "0"
    """Requests that read (GET, HEAD)."""


class Commitment(ApiModel):
    """GPUs that are paid whether a run holds them or not: a reservation or a commitment to a cloud."""

    name: ObjectName
    """As it stands in metrics."""
    node_labels: dict[LabelKey, LabelValue] = Field(default_factory=dict, max_length=16)
    """Labels of the nodes that count towards it."""
    capacity: Capacity | None = "reserved"
    """How these nodes are paid, as in a price; any way if null."""
    gpus: int = Field(ge=1, le=1_000_000)
    """That were committed to."""
    price_per_gpu_hour: Money
    """Of each of them, used or not. What runs pay is in `prices`."""
    valid_from: AwareDatetime | None = None
    """From then on; always if unset."""
    valid_to: AwareDatetime | None = None
    """Until before then; for ever if unset."""

    def holds(self, labels: Mapping[str, str]) -> bool:
        """Whether a node with these labels counts towards it."""
        return _is_paid(self.capacity, labels) and self.node_labels.items() <= labels.items()


class PriceList(ApiModel):
    """Prices in the order in which they are tried; the first that fits and is valid holds."""

    currency: Currency = "USD"
    """Of every amount. Runs in another currency have the prices of their pools."""
    prices: list[ListedPrice] = Field(default_factory=list, max_length=1000)
    """What nodes cost."""
    commitments: list[Commitment] = Field(default_factory=list, max_length=100)
    """What is paid in any case. It changes no bill of a run; metrics tell what of it nobody uses. A node counts towards
    the first that it fits."""
    storage: StoragePrices | None = None
    """Of the object store; for estimates alone."""

    @field_validator("commitments")
    @classmethod
    def _told_apart(cls, commitments: list[Commitment]) -> list[Commitment]:
        names = [one.name for one in commitments]
        for number, one in enumerate(commitments):
            if names.index(one.name) != number:
                raise ValueError(f"commitments[{number}].name: {one.name!r} is another's; each needs its own")
            if one.valid_from and one.valid_to and one.valid_from >= one.valid_to:
                raise ValueError(f"commitments[{number}].validTo: {one.valid_to} is not later than validFrom")
        return commitments

    @field_validator("prices")
    @classmethod
    def _priced(cls, prices: list[ListedPrice]) -> list[ListedPrice]:
        for number, one in enumerate(prices):
            if not (one.price_per_gpu_hour or one.price_per_node_hour or one.runs_may_override):
                raise ValueError(f"prices[{number}]: pricePerGpuHour, pricePerNodeHour or runsMayOverride is needed")
            if one.valid_from and one.valid_to and one.valid_from >= one.valid_to:
                raise ValueError(f"prices[{number}].validTo: {one.valid_to} is not later than validFrom")
        return prices

    def of_pod(
        self, labels: Mapping[str, str], own: str, *, gpus: bool, bound_at: datetime
    ) -> list[tuple[datetime, str]]:
        """From when on an hour of a pod's GPU, or of its node, costs what; nothing if no price fits at any time.

        Args:
            labels: of its node.
            own: `PRICE CURRENCY` of the run's pool, for times that the list leaves to it.
            gpus: it has GPUs.
            bound_at: when it got its node; the first price holds from then on.
        """
        if own.partition(" ")[2] != self.currency:
            return []
        fitting = [one for one in self.prices if one.fits(labels, gpus=gpus)]
        marks = {at for one in fitting for at in (one.valid_from, one.valid_to) if at is not None and at > bound_at}
        found: list[tuple[datetime, str]] = []
        for at in [bound_at, *sorted(marks)]:
            price = self._at(fitting, at, own, gpus=gpus)
            if not found or found[-1][1] != price:
                found.append((at, price))
        return found if fitting else []

    def _at(self, fitting: list[ListedPrice], at: datetime, own: str, *, gpus: bool) -> str:
        for one in fitting:
            if (one.valid_from is None or one.valid_from <= at) and (one.valid_to is None or at < one.valid_to):
                price = one.price_per_gpu_hour if gpus else one.price_per_node_hour
                return own if price is None or one.runs_may_override else f"{price} {self.currency}"
        return own


def _is_paid(capacity: Capacity | None, labels: Mapping[str, str]) -> bool:
    return capacity is None or capacity == capacity_of(labels)


def capacity_of(labels: Mapping[str, str]) -> Capacity:
    """How a node is paid, by its labels."""
    return next((capacity for key, value, capacity in _CAPACITY if labels.get(key) == value), "on-demand")
