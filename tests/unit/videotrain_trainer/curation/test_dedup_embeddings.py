from __future__ import annotations

import numpy as np
import pytest

from videotrain_trainer.curation import dedup_embeddings
from videotrain_trainer.curation.dedup_embeddings import SCALE, decoded, encoded, look_alikes, near_pairs

WIDTH = 128


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def in_a_cone(draw: np.random.Generator, count: int) -> np.ndarray:
    """Embeddings as image models give them: unrelated pictures have a cosine of about 0.6."""
    return unit(np.sqrt(0.6) * unit(draw.normal(size=WIDTH)) + np.sqrt(0.4) * unit(draw.normal(size=(count, WIDTH))))


def turned(draw: np.random.Generator, vectors: np.ndarray, cosine: float) -> np.ndarray:
    """Others of this cosine with each."""
    aside = draw.normal(size=vectors.shape)
    aside = unit(aside - (aside * vectors).sum(-1, keepdims=True) * vectors)
    return cosine * vectors + np.sqrt(1 - cosine**2) * aside


def stored(vectors: np.ndarray) -> np.ndarray:
    return np.stack([np.frombuffer(decoded(encoded(vector)), np.int8) for vector in vectors])


def pairs_by_brute_force(vectors: np.ndarray, cosine: float) -> set[tuple[int, int]]:
    exact = unit(vectors.astype(np.float64))
    one, other = np.nonzero(np.triu(exact @ exact.T >= cosine, 1))
    return set(zip(one.tolist(), other.tolist(), strict=True))


@pytest.mark.parametrize("seed", range(3))
def test_nearly_every_near_pair_is_found_and_no_other(seed):
    draw = np.random.default_rng(seed)
    base = in_a_cone(draw, 2000)
    vectors = stored(np.concatenate([base, turned(draw, base[:500], 0.995), turned(draw, base[500:700], 0.97)]))
    expected = pairs_by_brute_force(vectors, 0.99)
    assert len(expected) > 450
    found = {tuple(pair) for pair in near_pairs(vectors, 0.99, np.arange(len(vectors))).tolist()}
    assert found <= expected
    assert len(found) >= 0.99 * len(expected)


def test_few_pairs_are_compared(monkeypatch):
    """What grows with the square of the clips would end at a million."""
    draw = np.random.default_rng(5)
    compared = []
    whole = dedup_embeddings._cosines
    monkeypatch.setattr(
        dedup_embeddings,
        "_cosines",
        lambda vectors, left, right: compared.append(len(left)) or whole(vectors, left, right),
    )
    counts = []
    for number in (2000, 8000):
        compared.clear()
        near_pairs(stored(in_a_cone(draw, number)), 0.99, np.arange(number))
        counts.append(sum(compared))
    assert counts[1] <= 8 * max(counts[0], 1000)
    assert counts[1] < 8000**2 / 2 / 100


@pytest.mark.parametrize("count", [400, 2000])
def test_moments_of_a_steady_camera_make_no_pairs_and_are_not_compared(count, monkeypatch):
    """Half of the clips are of one shot, one is of another video that shows the same, and the rest are others."""
    draw = np.random.default_rng(6)
    base = in_a_cone(draw, count)
    still = turned(draw, np.repeat(base[:1], count, 0), 0.999)
    vectors = stored(np.concatenate([still, turned(draw, base[:1], 0.9995), base[1:]]))
    videos = np.concatenate([np.zeros(count, np.int64), np.arange(1, count + 1)])
    compared = []
    whole = dedup_embeddings._cosines
    monkeypatch.setattr(
        dedup_embeddings,
        "_cosines",
        lambda vectors, left, right: compared.extend(videos[left] == videos[right]) or whole(vectors, left, right),
    )
    found = near_pairs(vectors, 0.99, videos)
    assert found[:, 1].tolist() == [count] * len(found)
    assert len(found) >= 0.99 * count
    assert compared
    assert not any(compared)


def test_the_lowest_uid_of_look_alikes_stays_and_pieces_of_one_video_all_do():
    draw = np.random.default_rng(7)
    one, other = in_a_cone(draw, 2)
    again = turned(draw, one[None], 0.998)[0]
    embeddings = {
        uid: stored(vector[None])[0].tobytes() for uid, vector in zip("abcd", (one, again, again, other), strict=True)
    }
    clips = [
        {"uid": uid, "source": source} for uid, source in zip("dcbae", ("v4", "v1", "v2", "v1", "v5"), strict=True)
    ]
    found = look_alikes(clips, embeddings, 0.99)
    assert {uid: twin for uid, (twin, _) in found.items()} == {"b": "a"}
    assert found["b"][1] == pytest.approx(0.998, rel=1e-3)
    exact = look_alikes(clips, embeddings, 0.9999)
    assert {uid: twin for uid, (twin, _) in exact.items()} == {"c": "b"}
    assert look_alikes(clips, {}, 0.99) == {}


def test_an_embedding_is_stored_in_a_byte_a_number():
    vector = unit(np.random.default_rng(1).normal(size=WIDTH))
    back = np.frombuffer(decoded(encoded(vector)), np.int8)
    assert len(back) == WIDTH
    assert np.abs(back / SCALE - vector).max() <= 0.5 / SCALE + 1e-9
