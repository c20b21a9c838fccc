"""What happens to the nodes of a cluster, and when: drawn at a rate, or read from a trace."""

from __future__ import annotations

import csv
from bisect import bisect
from collections.abc import Iterator
from itertools import accumulate
from typing import Final, Literal, NamedTuple, Protocol

Kind = Literal["node", "process", "hang", "preempt"]
"""node: it is lost, and back once repaired. process: a GPU or its driver fails a worker; the node stays. hang: workers
stand still. preempt: it is reclaimed, with notice, and back later."""
KINDS: Final[tuple[Kind, ...]] = ("node", "process", "hang", "preempt")
DAY: Final = 86_400.0

LLAMA3_DAYS: Final = 54
LLAMA3_GPUS: Final = 16_384
LLAMA3: Final[dict[str, tuple[int, Kind]]] = {
    "faulty GPU": (148, "node"),
    "GPU HBM3 memory": (72, "node"),
    "software bug": (54, "process"),
    "network switch or cable": (35, "node"),
    "unplanned host maintenance": (32, "node"),
    "GPU SRAM memory": (19, "node"),
    "GPU system processor": (17, "node"),
    "NIC": (7, "node"),
    "NCCL watchdog timeout": (7, "hang"),
    "silent data corruption": (6, "node"),
    "GPU thermal interface or sensor": (6, "node"),
    "SSD": (3, "node"),
    "power supply": (3, "node"),
    "server chassis": (2, "node"),
    "IO expansion board": (2, "node"),
    "dependency": (2, "process"),
    "CPU": (2, "node"),
    "system memory": (2, "node"),
}
"""Unexpected interruptions by cause: 419 in 54 days on 16,384 H100 (Llama 3, arXiv 2407.21783, table 5)."""


class Draws(Protocol):
    """What draws failures: a `random.Random`."""

    def expovariate(self, lambd: float) -> float:
        """A time between two events that come so often."""

    def random(self) -> float:
        """Anything from 0 to 1."""

    def randrange(self, start: int) -> int:
        """A whole number below `start`."""


class Failure(NamedTuple):
    """One thing that happens."""

    at: float
    """Seconds since the simulation began."""
    node: int
    kind: Kind
    seconds: float
    """How long the node is away."""


class Rate(NamedTuple):
    """Failures that come independently of each other."""

    per_1000_gpu_days: float
    repair_seconds: float = 3600.0
    """Until a lost node is back."""
    shares: tuple[tuple[Kind, int], ...] = (("node", 1),)
    """How often each kind comes, in relation to the others."""

    def draw(self, random: Draws, *, nodes: int, gpus: int, days: float) -> Iterator[Failure]:
        """Failures of a cluster in the order of their times.

        Args:
            random: draws them; the same one gives the same failures.
            nodes: of the cluster.
            gpus: of a node.
            days: how long.
        """
        mean = self.per_1000_gpu_days / 1000 * nodes * max(1, gpus) / DAY
        kinds, weights = zip(*self.shares, strict=True)
        ladder, at = list(accumulate(weights)), 0.0
        while mean > 0:
            at += random.expovariate(mean)
            if at >= days * DAY:
                return
            kind = kinds[bisect(ladder, random.random() * ladder[-1])]
            yield Failure(at, random.randrange(nodes), kind, self.repair_seconds)


def llama3_rate(repair_seconds: float = 3600.0) -> Rate:
    """The interruptions of the training of Llama 3."""
    found: dict[Kind, int] = {}
    for count, kind in LLAMA3.values():
        found[kind] = found.get(kind, 0) + count
    total = sum(found.values())
    return Rate(total / (LLAMA3_GPUS / 1000 * LLAMA3_DAYS), repair_seconds, tuple(found.items()))


class TraceError(ValueError):
    """A trace cannot be read; the message names line, value and what is allowed."""


def read_trace(name: str, text: str) -> list[Failure]:
    """A trace: CSV with the columns hours, node, kind and, if nodes come back later than in an hour, hours_away.

    Args:
        name: of its file, for messages.
        text: of the file.

    Raises:
        TraceError: it is no such file.
    """
    found = []
    for line, row in enumerate(csv.DictReader(text.splitlines()), start=2):
        try:
            kind = next(kind for kind in KINDS if kind == row["kind"])
            away = float(row.get("hours_away") or 1.0)
            found.append(Failure(float(row["hours"]) * 3600, int(row["node"]), kind, away * 3600))
        except (KeyError, TypeError, ValueError, StopIteration):
            wanted = f"columns hours, node (from 0), kind ({', '.join(KINDS)}), hours_away (may be missing)"
            raise TraceError(f"{name}: line {line}: {dict(row)}: allowed: {wanted}") from None
        if found[-1].at < 0 or found[-1].node < 0 or found[-1].seconds < 0:
            raise TraceError(f"{name}: line {line}: {dict(row)}: allowed: numbers of 0 or more")
    return sorted(found)
