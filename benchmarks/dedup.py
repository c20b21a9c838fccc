"""Finding look-alikes in large sets: processor time by hashes and by embeddings, beside comparing all pairs.

Hashes are random, a hundredth of them copies with some bits flipped. Embeddings lie in a cone (cosine of 0.6 between
unrelated ones, as image models give them), a hundredth of them near to another one. The peer compares all pairs of a
small set by one matrix product, which grows with the square.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from videotrain_trainer.curation import dedup
from videotrain_trainer.curation.dedup_embeddings import SCALE, near_pairs

COPIES = 100
"""One clip in so many is like another."""
PEER_ROWS = 20_000
COSINE, DISTANCE = 0.99, 4


def hashes(draw: np.random.Generator, count: int) -> np.ndarray:
    """(count, 3) words."""
    words = draw.integers(0, 2**64, (count, dedup.HASHES), np.uint64)
    again = count // COPIES
    flips = np.uint64(1) << draw.integers(0, 64, (again, dedup.HASHES), np.uint64)
    words[-again:] = words[:again] ^ flips
    return words


def embeddings(draw: np.random.Generator, count: int, width: int) -> np.ndarray:
    """(count, width) int8."""
    axis = draw.normal(size=width).astype(np.float32)
    axis *= np.sqrt(0.6) / np.linalg.norm(axis)
    found = np.empty((count, width), np.int8)
    again = count // COPIES
    for at in range(0, count, 65_536):
        rows = min(65_536, count - at)
        part = draw.standard_normal((rows, width), np.float32)
        part = axis + np.sqrt(0.4) * part / np.linalg.norm(part, axis=1, keepdims=True)
        found[at : at + rows] = np.round(SCALE * part / np.linalg.norm(part, axis=1, keepdims=True))
    found[-again:] = np.clip(found[:again] + np.round(draw.normal(0, 0.4, (again, width))), -127, 127)
    return found


def measured(what: str, count: int, act) -> dict[str, object]:
    """Processor and wall seconds, how many pairs came out, and the largest resident set so far."""
    wall, cpu = time.perf_counter(), time.process_time()
    found = {"what": what, "rows": count, "pairs": act(), "cpu_s": time.process_time() - cpu}
    found["wall_s"] = time.perf_counter() - wall
    found["largest_resident_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(found, flush=True)
    return found


def by_hashes(words: np.ndarray) -> int:
    """Ours, each pair counted once."""
    return sum(map(len, dedup.neighbours(words, DISTANCE).values())) // 2


def by_bands(vectors: np.ndarray) -> int:
    """Ours, of clips that are all of different videos."""
    return len(near_pairs(vectors, COSINE, np.arange(len(vectors))))


def all_pairs(vectors: np.ndarray) -> int:
    """The peer: every pair by matrix products."""
    exact = vectors.astype(np.float32)
    exact /= np.linalg.norm(exact, axis=1, keepdims=True)
    near = sum(int((exact[at : at + 2000] @ exact.T >= COSINE).sum()) for at in range(0, len(exact), 2000))
    return (near - len(exact)) // 2


def main() -> None:
    """Print and write a row for every size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hashes", type=int, nargs="*", default=[1_000_000, 2_000_000, 4_000_000])
    parser.add_argument("--embeddings", type=int, nargs="*", default=[250_000, 1_000_000])
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    draw = np.random.default_rng(11)
    small = embeddings(draw, PEER_ROWS, options.width)
    rows = [measured("all pairs", PEER_ROWS, lambda: all_pairs(small))]
    rows.append(measured("embeddings", PEER_ROWS, lambda: by_bands(small)))
    for count in options.hashes:
        words = hashes(draw, count)
        rows.append(measured("hashes", count, lambda w=words: by_hashes(w)))
        del words
    for count in options.embeddings:
        vectors = embeddings(draw, count, options.width)
        rows.append(measured("embeddings", count, lambda v=vectors: by_bands(v)))
        del vectors
    about = {"date": datetime.now(UTC).isoformat(), "machine": platform.machine(), "cores": os.cpu_count()}
    about |= {"load": os.getloadavg()[0], "numpy": np.__version__, "width": options.width}
    if options.out:
        options.out.write_text(json.dumps(about | {"results": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
