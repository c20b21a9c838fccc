"""How sources with rates follow each other in one endless stream: exact integer arithmetic, at any position at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from math import lcm
from typing import NamedTuple


class _Halves(NamedTuple):
    """Some sources in two halves, of which the left one takes `left_rate` of `rate` positions."""

    left_rate: int
    rate: int
    left: _Halves | int
    right: _Halves | int

    def before(self, position: int) -> int:
        """How many of the positions before this one the left half has: its share, rounded."""
        return (2 * position * self.left_rate + self.rate) // (2 * self.rate)


@dataclass(frozen=True)
class Interleaving:
    """Sources spread evenly over a stream.

    The sources are halved again and again, and each half takes its share of its parent's positions, rounded. So every
    position belongs to one source, each source's samples come one after the other without a gap, and of any first
    positions a source has its share but for half a sample per halving, of which n sources have log2 n, rounded up.

    Args:
        rates: of the sources; one of rate 0 never comes, at least one has more.
    """

    rates: tuple[Fraction, ...]

    @cached_property
    def _root(self) -> _Halves | int:
        scale = lcm(*(rate.denominator for rate in self.rates))
        present = [(number, int(rate * scale)) for number, rate in enumerate(self.rates) if rate > 0]
        if not present:
            raise ValueError(f"rates: {[str(rate) for rate in self.rates]}; at least one must be positive")
        return _halved(present)

    def locate(self, position: int) -> tuple[int, int]:
        """The source of a position, and how many positions before it are of that source."""
        node = self._root
        while not isinstance(node, int):
            left = node.before(position)
            if node.before(position + 1) > left:
                position, node = left, node.left
            else:
                position, node = position - left, node.right
        return node, position

    def counts(self, positions: int) -> tuple[int, ...]:
        """How many of the first so many positions each source has."""
        found = [0] * len(self.rates)
        waiting = [(self._root, positions)]
        while waiting:
            node, here = waiting.pop()
            if isinstance(node, int):
                found[node] = here
            else:
                left = node.before(here)
                waiting += [(node.left, left), (node.right, here - left)]
        return tuple(found)


def _halved(sources: Sequence[tuple[int, int]]) -> _Halves | int:
    if len(sources) == 1:
        return sources[0][0]
    left, right = sources[: len(sources) // 2], sources[len(sources) // 2 :]
    left_rate, right_rate = (sum(rate for _, rate in half) for half in (left, right))
    return _Halves(left_rate, left_rate + right_rate, _halved(left), _halved(right))
