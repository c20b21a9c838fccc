"""How a roster spreads: a tree in which each agent passes it on to a few, which pass it on to the rest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

FANOUT: Final = 16
"""Agents to which one sender speaks at a time; 4,096 agents are reached in three hops."""


def branches(addresses: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Split addresses among at most FANOUT recipients: whom to send to, and to whom it sends on."""
    parts = min(FANOUT, len(addresses))
    for part in range(parts):
        first, *rest = addresses[part::parts]
        yield first, rest
