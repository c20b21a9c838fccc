"""Money as integer micros (millionths of the currency unit), so that no float ever holds an amount."""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Final

MICROS: Final = 1_000_000
_AMOUNT: Final = re.compile(r"[0-9]+(\.[0-9]{1,6})?")
MICROSECONDS_PER_HOUR: Final = 3_600_000_000


def parse_micros(amount: str) -> int:
    """Micros of a decimal string with at most six places, such as `2.50`.

    Raises:
        ValueError: the string is no such amount.
    """
    if not _AMOUNT.fullmatch(amount):
        raise ValueError(f"{amount!r} is no amount; allowed: digits with at most six decimal places, such as 2.50")
    whole, _, places = amount.partition(".")
    return int(whole) * MICROS + int(places.ljust(6, "0"))


def format_micros(micros: int) -> str:
    """Decimal string of micros: two places, more only where they are not zero."""
    sign, (whole, places) = "-" if micros < 0 else "", divmod(abs(micros), MICROS)
    digits = f"{places:06d}".rstrip("0").ljust(2, "0")
    return f"{sign}{whole}.{digits}"


def cost_micros(gpu_microseconds: int, price_micros_per_hour: int) -> int:
    """What so much GPU time costs, rounded half up to a whole micro."""
    return round_half_up(Fraction(gpu_microseconds * price_micros_per_hour, MICROSECONDS_PER_HOUR))


def round_half_up(amount: Fraction) -> int:
    """Nearest integer; a half goes up."""
    return (2 * amount.numerator + amount.denominator) // (2 * amount.denominator)


def split(total: int, weights: Mapping[str, int]) -> dict[str, int]:
    """`total` in proportion to the weights as integers that sum to it (largest remainder; ties by name)."""
    whole = sum(weights.values())
    if whole == 0:
        return dict.fromkeys(weights, 0)
    parts = {name: divmod(total * weight, whole) for name, weight in weights.items()}
    left = total - sum(quotient for quotient, _ in parts.values())
    by_remainder = sorted(parts, key=lambda name: (-parts[name][1], name))
    extra = set(by_remainder[:left])
    return {name: quotient + (name in extra) for name, (quotient, _) in parts.items()}
