"""Prices and the split of amounts: integer micros whose parts sum to the whole."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from videotrain_api.money import cost_micros, parse_micros, split


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
