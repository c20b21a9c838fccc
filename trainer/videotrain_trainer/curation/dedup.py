"""Duplicates over the whole set. The result does not depend on who curated what, or when."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise, product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from videotrain_trainer.worker.linux import container_cpus

HASH_BITS = 64
HASH_DIGITS = HASH_BITS // 4
HASHES = 3
"""Of every clip."""
PAIRS_AT_ONCE = 1 << 21
"""Pairs that are compared at once; 17 MB of hashes."""
Words = NDArray[np.uint64]
Indices = NDArray[np.int64]


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
    ordered = sorted(clips, key=lambda clip: str(clip["uid"]))
    if not ordered:
        return {}
    digits = "".join(clip["phash"] for clip in ordered)
    hashes = np.frombuffer(bytes.fromhex(digits), ">u8").reshape(-1, HASHES).astype(np.uint64)
    words, group_of = np.unique(hashes, axis=0, return_inverse=True)
    groups = group_of.reshape(-1).astype(np.int64)
    found = greedy(groups, [clip["source"] for clip in ordered], neighbours(words, distance))
    return {
        ordered[clip]["uid"]: (ordered[twin]["uid"], int(np.bitwise_count(hashes[clip] ^ hashes[twin]).max()))
        for clip, twin in found
    }


def greedy(
    groups: Indices, sources: Sequence[str], neighbours: Mapping[int, Sequence[int]]
) -> Iterator[tuple[int, int]]:
    """(clip, the first that it looks like), in order.

    Of clips with equal hashes those that are kept are of one video, for each drops those of others: so the first kept
    one of a group stands for all of them.

    Args:
        groups: number of equal hashes, for every clip.
        sources: video of every clip.
        neighbours: groups that look like a group, itself not among them.
    """
    sizes = np.bincount(groups)
    lonely = np.array([size == 1 and group not in neighbours for group, size in enumerate(sizes)])
    first_kept: dict[int, int] = {}
    for clip in np.flatnonzero(~lonely[groups]).tolist():
        group = int(groups[clip])
        kept = (first_kept.get(other) for other in (group, *neighbours.get(group, ())))
        twin = min((other for other in kept if other is not None and sources[other] != sources[clip]), default=None)
        if twin is None:
            first_kept.setdefault(group, clip)
        else:
            yield clip, twin


def neighbours(words: Words, distance: int) -> dict[int, list[int]]:
    """Rows of `words` (N, HASHES) that differ from a row in at most `distance` bits of each word.

    Two words that differ in at most d bits agree in at least one of d + 1 bands. So rows are sorted once by every
    choice of bands, and only those that share one are compared. The sorts are independent, and each core does some.
    """
    with ThreadPoolExecutor(container_cpus()) as pool:
        parts = list(pool.map(lambda bands: _alike(words, bands, distance), _choices(len(words), distance)))
    pairs = np.unique(np.concatenate(parts), axis=0)
    found: dict[int, list[int]] = {}
    for one, other in pairs.tolist():
        found.setdefault(one, []).append(other)
        found.setdefault(other, []).append(one)
    return found


Band = tuple[int, int]
"""First bit and width."""


def _choices(rows: int, distance: int) -> list[tuple[Band, ...]]:
    """Every choice of one band of each of the first words.

    Bands of more words make fewer rows agree by chance, and more choices: the cheapest number of words is taken.
    """
    number = min(distance + 1, HASH_BITS)
    edges = [HASH_BITS * band // number for band in range(number + 1)]
    bands = [(low, high - low) for low, high in pairwise(edges)]
    if distance >= HASH_BITS:
        return [((0, 0),)]

    def cost(used: int) -> float:
        return float(number**used * (rows + rows**2 / 2.0 ** (used * HASH_BITS / number)))

    return list(product(bands, repeat=min(range(1, HASHES + 1), key=cost)))


def _alike(words: Words, bands: Sequence[Band], distance: int) -> Indices:
    """Pairs of rows (P, 2), lower first, that agree in the bands and differ in at most `distance` bits of each word."""
    key = np.zeros(len(words), np.uint64)
    for word, (low, width) in enumerate(bands):
        part = words[:, word] >> np.uint64(low) & np.uint64((1 << width) - 1)
        key = part if word == 0 else key << np.uint64(width) | part
    order = np.argsort(key, kind="stable").astype(np.int64)
    ordered = key[order]
    found = [np.empty((0, 2), np.int64)]
    for one, other in pairs_of_runs(ordered):
        left, right = order[one], order[other]
        near = np.ones(len(left), bool)
        for word in range(HASHES):
            left, right = left[near], right[near]
            near = np.bitwise_count(words[left, word] ^ words[right, word]) <= distance
        left, right = left[near], right[near]
        found.append(np.stack([np.minimum(left, right), np.maximum(left, right)], axis=1))
    return np.concatenate(found)


def pairs_of_runs(ordered: Words) -> Iterator[tuple[Indices, Indices]]:
    """Positions of all pairs of equal numbers in a sorted array, some at a time.

    First those that are one apart, then two, and so on while runs are long enough.
    """
    starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))
    length = np.diff(np.append(starts, len(ordered)))
    starts, length = starts[length > 1], length[length > 1]
    ends = np.repeat(starts + length, length)
    members = np.arange(len(ends)) + np.repeat(starts - np.cumsum(length) + length, length)
    apart = 1
    while True:
        inside = members + apart < ends
        members, ends = members[inside], ends[inside]
        if not len(members):
            return
        for at in range(0, len(members), PAIRS_AT_ONCE):
            one = members[at : at + PAIRS_AT_ONCE]
            yield one, one + apart
        apart += 1
