from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from videotrain_trainer.curation.dedup import first_of_content, near_duplicates


def clip(uid: str, words: tuple[int, int, int], source: str) -> dict:
    return {"uid": uid, "phash": "".join(f"{word:016x}" for word in words), "source": source}


def test_the_first_video_by_name_of_equal_bytes_stays():
    assert first_of_content([("b", "x"), ("a", "x"), ("c", "y"), ("d", "x")]) == {"b": "a", "d": "a"}


def test_the_lowest_uid_of_look_alikes_stays_whatever_the_order():
    clips = [clip("c", (3, 7, 1), "v1"), clip("a", (1, 7, 1), "v2"), clip("b", (2**40, 7, 1), "v3")]
    for seed in range(5):
        random.Random(seed).shuffle(clips)
        assert near_duplicates(clips, 2) == {"b": ("a", 2), "c": ("a", 1)}
    assert near_duplicates(clips, 0) == {}


def test_all_three_frames_must_look_alike():
    assert near_duplicates([clip("a", (1, 1, 1), "v1"), clip("b", (1, 1, 2**20 - 1), "v2")], 4) == {}


def test_pieces_of_one_video_are_no_duplicates_of_each_other():
    assert near_duplicates([clip("a", (1, 1, 1), "v1"), clip("b", (1, 1, 1), "v1")], 4) == {}


@settings(max_examples=60)
@given(
    words=st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=6),
    flips=st.lists(st.tuples(st.integers(0, 5), st.lists(st.integers(0, 63), max_size=6)), max_size=12),
    distance=st.integers(0, 64),
)
def test_banded_search_finds_what_comparing_all_pairs_finds(words, flips, distance):
    hashes = list(words)
    for number, bits in flips:
        word = words[number % len(words)]
        for bit in bits:
            word ^= 1 << bit
        hashes.append(word)
    clips = [clip(f"{n:03d}", (word, word, word), f"v{n}") for n, word in enumerate(hashes)]
    expected, kept = set(), []
    for n, word in enumerate(hashes):
        if any((word ^ other).bit_count() <= distance for other in kept):
            expected.add(f"{n:03d}")
        else:
            kept.append(word)
    assert set(near_duplicates(clips, distance)) == expected


def test_many_clips_of_equal_looks_are_told_apart_by_their_videos():
    """Of 3,000 clips that look the same, those of the first one's video stay."""
    clips = [clip(f"{n:05d}", (7, 7, 7), f"v{n % 3}") for n in range(3000)]
    found = near_duplicates(clips, 4)
    assert len(found) == 2000
    assert set(found.values()) == {("00000", 0)}
    assert all(int(uid) % 3 for uid in found)
