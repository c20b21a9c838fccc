"""What a run keeps in an object store and asks of it, and what that would cost: estimates, in no bill and in no total.

Nobody measures it: bytes and requests are counted from the manifest and the steps that were made (see `cost.storage`),
and priced by the price list of the cluster.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Final, Literal

from videotrain_api.money import parse_micros, round_half_up
from videotrain_api.resource.prices import StoragePrices
from videotrain_api.schema import ApiModel

Kept = Literal["checkpoints", "weights", "samples", "records"]
GIBIBYTE: Final = 1 << 30
MONTH_SECONDS: Final = 30 * 86_400
Kind = Literal["storage", "writes", "reads"]
KINDS: Final[tuple[Kind, ...]] = ("storage", "writes", "reads")


class StorageEstimate(ApiModel):
    """Of one stage and one kind of objects."""

    stage: str
    """As in spec.stages."""
    kept: Kept
    """What lies there. Of samples the stage that reads them has its requests, the one that made them the bytes."""
    bytes: int
    """That lie there in the end."""
    byte_seconds: int
    """Bytes times how long they lie there, until the run ends or the bill was made."""
    writes: int = 0
    """Requests that write."""
    reads: int = 0
    """Requests that read."""

    def amount(self, kind: Kind) -> Fraction:
        """GiB-months, or thousands of requests."""
        if kind == "storage":
            return Fraction(self.byte_seconds, GIBIBYTE * MONTH_SECONDS)
        return Fraction(self.writes if kind == "writes" else self.reads, 1000)

    def micros(self, kind: Kind, prices: StoragePrices) -> int:
        """What it would cost."""
        return round_half_up(self.amount(kind) * parse_micros(listed(kind, prices)))

    def total_micros(self, prices: StoragePrices) -> int:
        """All three of them."""
        return sum(self.micros(kind, prices) for kind in KINDS)


def listed(kind: Kind, prices: StoragePrices) -> str:
    """The price of a GiB-month, or of a thousand requests."""
    return {
        "storage": prices.price_per_gibibyte_month,
        "writes": prices.price_per_thousand_writes,
        "reads": prices.price_per_thousand_reads,
    }[kind]
