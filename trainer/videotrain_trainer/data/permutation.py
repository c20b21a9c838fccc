"""Keyed permutations of any range, one place at a time."""

from __future__ import annotations

import hashlib
from functools import lru_cache

ROUNDS = 4
"""Feistel rounds; even, so that halves of different width end where they began."""
MIN_BITS = 6
"""Small buckets are permuted within 64 places, where four rounds still mix well."""
MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15


def mix(value: int) -> int:
    """A 64-bit hash of an integer (the finaliser of SplitMix64)."""
    value &= MASK
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & MASK
    return value ^ (value >> 31)


def permute(place: int, size: int, keys: tuple[int, ...]) -> int:
    """Place `place` of a keyed permutation of range(size).

    A Feistel network permutes the next power of two; places outside the range are permuted again until they fall into
    it (cycle walking), which keeps the map one-to-one and needs no memory.
    """
    bits = max((size - 1).bit_length(), MIN_BITS)
    low_bits, high_bits = bits // 2, bits - bits // 2
    while True:
        left, right = place >> low_bits, place & ((1 << low_bits) - 1)
        left_bits, right_bits = high_bits, low_bits
        for key in keys:
            mixed = ((right + 1) * GOLDEN ^ key) * 0xD6E8FEB86659FD93 & MASK
            left, right = right, left ^ (mixed >> (64 - left_bits))
            left_bits, right_bits = right_bits, left_bits
        place = left << low_bits | right
        if place < size:
            return place


@lru_cache(maxsize=8192)
def round_keys(seed: int, bucket: str, purpose: str) -> tuple[int, ...]:
    """Keys of a permutation, or of another draw, that has a name within a bucket."""
    digest = hashlib.blake2b(f"{seed}\0{bucket}\0{purpose}".encode(), digest_size=8 * ROUNDS).digest()
    return tuple(int.from_bytes(digest[8 * i : 8 * i + 8], "big") for i in range(ROUNDS))
