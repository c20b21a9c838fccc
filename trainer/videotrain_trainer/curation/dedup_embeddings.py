"""Clips that look alike by their embeddings, in a time that grows little faster than their number.

Embeddings are put into bands of signs: the sides of random planes on which they lie. Two with a small angle agree in
all signs of at least one band nearly always, and others hardly ever; those that do are compared exactly. So a pair is
dropped by its cosine alone, and what the planes decide is how few pairs are looked at.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from math import ceil, log2, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from videotrain_trainer.curation.dedup import PAIRS_AT_ONCE, Indices, greedy, pairs_of_runs

BANDS = 32
LEAST_SIGNS, MOST_SIGNS = 12, 32
"""Of a band: as many as tell so many clips apart."""
ALL_PAIRS = 1000
"""Clips of which all pairs are compared."""
ROWS_AT_ONCE = 65_536
SKETCH = 512
"""Signs that are compared before the embeddings are read: 64 bytes, where those have 768 and more."""
SLACK = 6.0
"""Standard deviations by which the signs of a pair may differ more than its angle lets expect."""
SEED = 20_408
SCALE = 127
"""Of embeddings as they are stored: int8, at length one."""
Vectors = NDArray[np.int8]


def encoded(embedding: NDArray[np.floating[Any]]) -> str:
    """An embedding of length one as text: int8 in base64."""
    return base64.b64encode(np.round(embedding * SCALE).astype(np.int8).tobytes()).decode()


def decoded(text: str) -> bytes:
    """The int8 values of an embedding."""
    return base64.b64decode(text)


def look_alikes(
    clips: Sequence[Mapping[str, Any]], embeddings: Mapping[str, bytes], cosine: float
) -> dict[str, tuple[str, float]]:
    """Clips whose embedding is near to that of one with a lower uid from another video: {uid: (its uid, cosine)}.

    Clips of one video are not compared: pieces of a steady shot look alike and still show different moments.

    Args:
        clips: `uid` and `source` of each.
        embeddings: int8 values by uid; clips without one are like no other.
        cosine: that duplicates have at least.
    """
    ordered = [clip for clip in sorted(clips, key=lambda clip: str(clip["uid"])) if clip["uid"] in embeddings]
    if not ordered:
        return {}
    data = b"".join(embeddings[clip["uid"]] for clip in ordered)
    vectors = np.frombuffer(data, np.int8).reshape(len(ordered), -1)
    sources = [clip["source"] for clip in ordered]
    videos = np.unique(np.array(sources), return_inverse=True)[1]
    neighbours: dict[int, list[int]] = {}
    for one, other in near_pairs(vectors, cosine, videos).tolist():
        neighbours.setdefault(one, []).append(other)
        neighbours.setdefault(other, []).append(one)
    found = greedy(np.arange(len(ordered)), sources, neighbours)
    return {
        ordered[clip]["uid"]: (ordered[twin]["uid"], float(_cosines(vectors, np.array([clip]), np.array([twin]))[0]))
        for clip, twin in found
    }


def near_pairs(vectors: Vectors, cosine: float, videos: Indices) -> Indices:
    """Pairs of rows (P, 2) of different videos, lower first, whose cosine is at least this.

    Args:
        vectors: (N, D).
        cosine: 0.98 or more; of pairs just there one in 25 is missed, and at 0.99 one in a thousand.
        videos: (N,) number of the video of each row. A day of one steady camera would make millions of pairs.
    """
    count = len(vectors)
    if count <= ALL_PAIRS:
        one, other = (side.astype(np.int64) for side in np.triu_indices(count, 1))
        apart = videos[one] != videos[other]
        one, other = one[apart], other[apart]
        near = np.concatenate([part >= cosine for part in _in_parts(vectors, one, other)] or [np.empty(0, bool)])
        return np.stack([one[near], other[near]], axis=1)
    signs = min(MOST_SIGNS, max(LEAST_SIGNS, ceil(log2(max(2, count)))))
    bands, sketches = _signs(vectors, signs)
    found = [np.empty((0, 2), np.int64)]
    differ = _most_different(cosine)
    for band in bands.T:
        order = np.argsort(band, kind="stable").astype(np.int64)
        for one, other in pairs_of_runs(band[order].astype(np.uint64)):
            left, right = order[one], order[other]
            apart = videos[left] != videos[right]
            left, right = left[apart], right[apart]
            near = np.bitwise_count(sketches[left] ^ sketches[right]).sum(axis=1, dtype=np.int64) <= differ
            left, right = left[near], right[near]
            close = np.concatenate([part >= cosine for part in _in_parts(vectors, left, right)] or [np.empty(0, bool)])
            left, right = left[close], right[close]
            found.append(np.stack([np.minimum(left, right), np.maximum(left, right)], axis=1))
    return np.unique(np.concatenate(found), axis=0)


def _signs(vectors: Vectors, signs: int) -> tuple[NDArray[np.uint32], NDArray[np.uint64]]:
    """Bands (N, BANDS) and sketches (N, SKETCH / 64) of all rows.

    Embeddings lie in a narrow cone, where planes through the origin tell few apart: so the bands are those of the rows
    without their mean. Sketches are of the rows themselves, so that an angle says how many of their signs differ.
    """
    count, width = vectors.shape
    mean = np.zeros(width)
    for at in range(0, count, ROWS_AT_ONCE):
        mean += vectors[at : at + ROWS_AT_ONCE].sum(axis=0, dtype=np.float64)
    draw = np.random.default_rng(SEED)
    planes = draw.normal(size=(width, BANDS * signs)).astype(np.float32)
    through = draw.normal(size=(width, SKETCH)).astype(np.float32)
    shift = (mean / count).astype(np.float32) @ planes
    values = 1 << np.arange(signs, dtype=np.uint64)
    bands, sketches = np.empty((count, BANDS), np.uint32), np.empty((count, SKETCH // 64), np.uint64)
    for at in range(0, count, ROWS_AT_ONCE):
        part = vectors[at : at + ROWS_AT_ONCE].astype(np.float32)
        side = (part @ planes > shift).reshape(len(part), BANDS, signs)
        bands[at : at + len(part)] = (side @ values).astype(np.uint32)
        sketches[at : at + len(part)] = np.packbits(part @ through > 0, axis=1).view(np.uint64)
    return bands, sketches


def _most_different(cosine: float) -> int:
    """Signs of a sketch by which a pair of this cosine differs at most."""
    share = float(np.arccos(min(1.0, cosine - 1e-3))) / np.pi
    return ceil(SKETCH * share + SLACK * sqrt(SKETCH * share * (1 - share)))


def _in_parts(vectors: Vectors, left: Indices, right: Indices) -> Iterator[NDArray[np.float64]]:
    step = PAIRS_AT_ONCE // 128
    for at in range(0, len(left), step):
        yield _cosines(vectors, left[at : at + step], right[at : at + step])


def _cosines(vectors: Vectors, left: Indices, right: Indices) -> NDArray[np.float64]:
    one, other = vectors[left].astype(np.float32), vectors[right].astype(np.float32)
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return np.asarray(np.einsum("nd,nd->n", one, other) / np.maximum(1e-9, lengths), np.float64)
