from __future__ import annotations

from videotrain_api.resource.stages import Bucket
from videotrain_trainer.tasks.encode_plan import plan_samples, plan_shards, why_nothing

ROWS = [
    Bucket(resolution="64px", frames=16, batch_size=2),
    Bucket(resolution="64px", frames=32, min_frames=8, batch_size=1),
]


def clip(uid: str, frames: int, height: int = 90, width: int = 160, caption: str = "a car") -> dict:
    return {
        "uid": uid,
        "frames": frames,
        "fps": 12.0,
        "height": height,
        "width": width,
        "crc32c": 7,
        "caption": caption,
    }


def test_every_clip_gives_its_windows_to_every_row_that_it_fits():
    samples = plan_samples([clip("aa", 40), clip("bb", 10)], ROWS, 16, 4)
    assert [(s.bucket, s.clip["uid"], s.window.start) for s in samples] == [
        ("64px/16f/16:9", "aa", 0),
        ("64px/16f/16:9", "aa", 16),
        ("64px/32f/16:9", "aa", 0),
        ("64px/8f/16:9", "aa", 32),
        ("64px/8f/16:9", "bb", 0),
    ]
    assert len({s.uid for s in samples}) == 5


def test_too_small_and_too_short_clips_give_nothing_and_the_reason_is_counted():
    clips = [clip("aa", 40, height=32, width=32), clip("bb", 7)]
    assert plan_samples(clips, ROWS, 16, 4) == []
    assert why_nothing(clips, ROWS) == (
        "1 times too short for 64px/16f, 1 times too short for 64px/8-32f, 2 times too small for 64px"
    )


def test_shards_hold_one_bucket_each_and_stay_near_their_target():
    samples = plan_samples([clip(f"{n:02d}", 16) for n in range(10)], ROWS[:1], 16, 4)
    shards = plan_shards(samples, sample_bytes=1000, shard_bytes=60_000)
    assert [s.uid for shard in shards for s in shard.samples] == [s.uid for s in samples]
    assert len(shards) > 2
    assert {shard.bucket for shard in shards} == {"64px/16f/16:9"}
    assert [shard.number for shard in shards] == list(range(len(shards)))


def test_a_shard_is_named_by_its_samples_their_captions_and_the_weights():
    def name(caption: str, weights: str) -> str:
        return plan_shards(plan_samples([clip("aa", 16, caption=caption)], ROWS[:1], 16, 4), 10, 10**6)[0].name(weights)

    assert name("a car", "w1") == name("a car", "w1")
    assert len({name("a car", "w1"), name("a bus", "w1"), name("a car", "w2")}) == 3
