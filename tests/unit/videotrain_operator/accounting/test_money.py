"""Money: integer micros whose parts sum to the whole."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from videotrain_operator.accounting.money import parse_price, price_buckets, split

WEIGHTS = st.dictionaries(st.sampled_from("abcdefghi"), st.integers(0, 10**15), max_size=9)


@given(st.integers(0, 10**15), WEIGHTS)
def test_parts_sum_to_the_whole_and_are_off_by_less_than_one(total: int, weights: dict[str, int]) -> None:
    parts = split(total, weights)
    whole = sum(weights.values())
    assert sum(parts.values()) == (total if whole else 0)
    for name, weight in weights.items():
        if whole:
            assert abs(parts[name] - Fraction(total * weight, whole)) < 1


@given(WEIGHTS, st.integers(0, 10**9))
def test_bucket_prices_sum_to_the_price_of_the_whole_time(weights: dict[str, int], price: int) -> None:
    parts = price_buckets(weights, price)
    exact = Fraction(sum(weights.values()) * price, 3_600_000_000)
    assert abs(sum(parts.values()) - exact) <= Fraction(1, 2)


def test_an_hour_of_one_gpu_costs_its_price() -> None:
    assert price_buckets({"productive": 3_600_000_000}, 2_500_000) == {"productive": 2_500_000}


def test_a_price_annotation_is_read() -> None:
    assert parse_price("2.50 USD") == (2_500_000, "USD")


@pytest.mark.parametrize("text", ["2.50", "USD", "", "2,50 USD", "1e3 USD", "2.50 U5D"])
def test_a_wrong_price_annotation_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no"):
        parse_price(text)
