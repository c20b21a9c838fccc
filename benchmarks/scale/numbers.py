"""Arithmetic of the results."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

DIGITS = 3


def percentile(values: Sequence[float], percent: float) -> float | None:
    """Nearest rank: the smallest value that at least so many percent do not exceed; None without values."""
    ordered = sorted(values)
    if not ordered:
        return None
    rank = -(-percent * len(ordered) // 100)  # ceiling
    return ordered[max(0, int(rank) - 1)]


def spread(values: Iterable[float | None]) -> dict[str, float | int | None]:
    """Number, median, p99, smallest and largest of the values that are there."""
    found = [value for value in values if value is not None]
    named = {"p50": percentile(found, 50), "p99": percentile(found, 99)}
    named |= {"min": min(found, default=None), "max": max(found, default=None)}
    return {"n": len(found)} | {name: rounded(value) for name, value in named.items()}


def rounded(value: float | None, digits: int = DIGITS) -> float | None:
    """For people to read."""
    return None if value is None else round(value, digits)


def per_run(totals: Mapping[str, float], runs: int, digits: int = 2) -> dict[str, float]:
    """Each total divided by the number of runs, largest first; what rounds to nothing is left out."""
    shares = {name: round(total / runs, digits) for name, total in totals.items()}
    return {name: share for name, share in sorted(shares.items(), key=lambda item: -item[1]) if share}
