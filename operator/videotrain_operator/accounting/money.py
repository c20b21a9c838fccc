"""Prices and the split of amounts: integer micros whose parts sum to the whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


@lru_cache(maxsize=1024)
def price_schedule(text: str) -> tuple[tuple[int, str], ...]:
    """From when on which price holds, microseconds since 1970, ascending; the first from the beginning of time.

    Args:
        text: a price, or several, each later one after the time from which it holds: `2.50 USD;1764547200000000=3 USD`.

    Raises:
        ValueError: the text is none of these.
    """
    first, *later = text.split(";")
    found = [(0, first)]
    for part in later:
        at, _, price = part.partition("=")
        found.append((int(at), price))
    for _, price in found:
        parse_price(price)
    if [at for at, _ in found] != sorted({at for at, _ in found}):
        raise ValueError(f"{text!r}: its times do not ascend")
    return tuple(found)


def price_at(text: str, at: int) -> str:
    """The price of a schedule that holds at a time."""
    return next(price for since, price in reversed(price_schedule(text)) if since <= at)


def with_later_prices(text: str, newer: str, at: int) -> str:
    """A schedule that is what it was up to a time, and another from there on."""
    kept = [(since, price) for since, price in price_schedule(text) if since < at]
    for since, price in [(at, price_at(newer, at)), *(later for later in price_schedule(newer) if later[0] > at)]:
        if price != kept[-1][1]:
            kept.append((since, price))
    return schedule_text(kept)


def schedule_text(prices: Sequence[tuple[int, str]]) -> str:
    """As `price_schedule` reads it; the time of the first is left out."""
    return ";".join([prices[0][1], *(f"{since}={price}" for since, price in prices[1:])])


def price_buckets(gpu_microseconds: Mapping[str, int], price_micros_per_hour: int) -> dict[str, int]:
    """Micros of each bucket. They sum to the price of the whole time, rounded once."""
    total = cost_micros(sum(gpu_microseconds.values()), price_micros_per_hour)
    return split(total, gpu_microseconds)
