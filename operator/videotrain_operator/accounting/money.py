"""Prices and the split of amounts: integer micros whose parts sum to the whole."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from videotrain_api.money import cost_micros, parse_micros


@lru_cache(maxsize=256)
def parse_price(annotation: str) -> tuple[int, str]:
    """Micros per GPU-hour and currency of a price annotation such as `2.50 USD`.

    Raises:
        ValueError: the text is no such price.
    """
    amount, _, currency = annotation.partition(" ")
    if not currency.isalpha():
        raise ValueError(f"{annotation!r} is no price; allowed: PRICE CURRENCY, such as 2.50 USD")
    return parse_micros(amount), currency


def price_buckets(gpu_microseconds: Mapping[str, int], price_micros_per_hour: int) -> dict[str, int]:
    """Micros of each bucket. They sum to the price of the whole time, rounded once."""
    total = cost_micros(sum(gpu_microseconds.values()), price_micros_per_hour)
    return split(total, gpu_microseconds)


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
