"""Duplicates over the whole set. The result does not depend on who curated what, or when."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

HASH_BITS = 64
HASH_DIGITS = HASH_BITS // 4


def first_of_content(videos: Iterable[tuple[str, str]]) -> dict[str, str]:
    """For every video that has the same bytes as one before it by name: that one's name.

    Args:
        videos: (name, content hash) pairs.
    """
    first: dict[str, str] = {}
    again: dict[str, str] = {}
    for name, content in sorted(videos):
        if first.setdefault(content, name) != name:
            again[name] = first[content]
    return again


def near_duplicates(clips: Sequence[Mapping[str, Any]], distance: int) -> dict[str, tuple[str, int]]:
    """Clips that look like one with a lower uid from another video: {uid: (that clip's uid, differing bits)}.

    All three frame hashes must differ in at most `distance` bits. Clips of one video are not compared: pieces of a
    steady shot look alike and still show different moments.
    """
    index = _Bands(distance)
    found: dict[str, tuple[str, int]] = {}
    for clip in sorted(clips, key=lambda clip: str(clip["uid"])):
        hashes = _hashes(clip["phash"])
        match = index.nearest(hashes, clip["source"])
        if match is None:
            index.add(hashes, clip["uid"], clip["source"])
        else:
            found[clip["uid"]] = match
    return found


class _Bands:
    """Finds hashes within a distance without comparing all pairs.

    Two words that differ in at most d bits agree in at least one of d + 1 bands, so only clips that share a band of
    their first frame need a look.
    """

    def __init__(self, distance: int) -> None:
        self._distance = distance
        number = min(distance + 1, HASH_BITS)
        self._edges = [HASH_BITS * band // number for band in range(number + 1)]
        self._bands: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
        self._clips: list[tuple[tuple[int, ...], str, str]] = []

    def add(self, hashes: tuple[int, ...], uid: str, source: str) -> None:
        for key in self._keys(hashes[0]):
            self._bands[key].append(len(self._clips))
        self._clips.append((hashes, uid, source))

    def nearest(self, hashes: tuple[int, ...], source: str) -> tuple[str, int] | None:
        if self._distance >= HASH_BITS:
            candidates = set(range(len(self._clips)))
        else:
            candidates = {number for key in self._keys(hashes[0]) for number in self._bands.get(key, ())}
        for number in sorted(candidates):
            other, uid, other_source = self._clips[number]
            bits = max((a ^ b).bit_count() for a, b in zip(hashes, other, strict=True))
            if bits <= self._distance and other_source != source:
                return uid, bits
        return None

    def _keys(self, word: int) -> list[tuple[int, int]]:
        pairs = pairwise(self._edges)
        return [(band, word >> low & (1 << (high - low)) - 1) for band, (low, high) in enumerate(pairs)]


def _hashes(text: str) -> tuple[int, ...]:
    return tuple(int(text[at : at + HASH_DIGITS], 16) for at in range(0, len(text), HASH_DIGITS))
