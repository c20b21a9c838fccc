from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import yaml
from hypothesis import given
from hypothesis import strategies as st
from support.plain_groups import plain_groups

from videotrain_api.config.resolve import latent_reader, resolve
from videotrain_api.config.stage_config import LatentReader
from videotrain_api.resource.stages import (
    Bucket,
    LearningRatePiece,
    Optimizer,
    ParallelLayout,
    ScoreBounds,
    TrainTask,
)
from videotrain_api.resource.trainrun import VideoTrainingRun
from videotrain_trainer.data.buckets import row_name
from videotrain_trainer.tasks.encode_plan import ClipUnits, EncodePlan, why_nothing

RECIPE = Path(__file__).parents[4] / "manifests" / "examples" / "open-sora-2-from-videos.yaml"
ROWS = [
    Bucket(resolution="64px", frames=16, batch_size=2),
    Bucket(resolution="64px", frames=32, min_frames=8, batch_size=1),
]


def reader(*rows: Bucket, **fields) -> LatentReader:
    return LatentReader(**{"stage": "train", "seed": 3, "buckets": list(rows), "prompt_style": "plain"} | fields)


def clip(uid: str, frames: int, height: int = 90, width: int = 160, fps: float = 12.0, **scores: float | None) -> dict:
    known = {"motion": 3.0, "blur": 100.0, "duration": frames / fps, "aspect": height / width}
    size = {"frames": frames, "fps": fps, "height": height, "width": width}
    return {"uid": uid, "crc32c": 7, "caption": "a car", **size, **known, **scores}


def test_a_clip_gives_the_windows_of_the_rows_that_stages_take_it_in():
    both = EncodePlan([reader(*ROWS)], 16, 4)
    assert [(s.bucket, s.window.start) for s in both.samples(clip("aa", 40))] == [
        ("64px/32f/16:9", 0),
        ("64px/8f/16:9", 32),
    ]
    assert [(s.bucket, s.window.start) for s in both.samples(clip("bb", 10))] == [("64px/8f/16:9", 0)]
    apart = EncodePlan([reader(ROWS[0]), reader(ROWS[1], stage="later", prompt_style="fps")], 16, 4)
    found = apart.samples(clip("aa", 40))
    assert len({s.uid for s in found}) == 4
    assert {(s.row, s.styles) for s in found} == {("64px/16f", ("plain",)), ("64px/8-32f", ("fps",))}
    assert {s.clip_rows for s in found} == {("64px/16f", "64px/8-32f")}


def test_why_there_is_nothing_is_counted():
    clips = [clip("aa", 40, height=32, width=32), clip("bb", 7)]
    plan = EncodePlan([reader(*ROWS)], 16, 4)
    assert [sample for one in clips for sample in plan.samples(one)] == []
    assert why_nothing(iter(clips), plan) == (
        "1 times too short for 64px/16f, 1 times too short for 64px/8-32f, 2 times too small for 64px"
    )
    bounds = [ScoreBounds(score="motion", min=5)]
    chosen = EncodePlan([reader(*ROWS, select=bounds)], 16, 4)
    assert why_nothing(iter([clip("aa", 40)]), chosen) == "1 times outside train.select of every stage"


def test_units_are_ranges_of_clips_named_by_what_they_are_made_from():
    units = ClipUnits(clips=10, each=4, made_from="0123456789abcdef" * 4)
    assert [unit.weight for unit in units] == [4, 4, 2]
    assert [list(range(*unit.facts["clips"])) for unit in units] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    other = replace(units, made_from="f" * 64)
    assert not {unit.name for unit in units} & {unit.name for unit in other}
    assert len(ClipUnits(clips=0, each=4, made_from="f" * 64)) == 0


SIZES = [(90, 160), (160, 90), (64, 64), (300, 300), (720, 1280)]
clips = st.lists(
    st.builds(
        lambda uid, frames, fps, size, motion: clip(f"{uid:08x}", frames, *size, fps=fps, motion=motion),
        st.integers(0, 2**32 - 1),
        st.integers(1, 200),
        st.sampled_from([12.0, 24.0, 29.97, 60.0]),
        st.sampled_from(SIZES),
        st.one_of(st.none(), st.floats(0, 40)),
    ),
    max_size=12,
    unique_by=lambda found: found["uid"],
)
rows = st.builds(
    lambda resolution, span, keep, batch: Bucket(
        resolution=resolution, frames=span[1], min_frames=span[0], keep_probability=keep, batch_size=batch
    ),
    st.sampled_from(["64px", "128px", "256px"]),
    st.sampled_from([(None, 1), (5, 33), (37, 65), (8, 129), (None, 17)]),
    st.sampled_from([0.2, 0.5, 1.0]),
    st.integers(1, 3),
)
tables = st.lists(rows, min_size=1, max_size=5, unique_by=row_name)
bounds = st.lists(
    st.builds(
        lambda low, high: ScoreBounds(score="motion", min=low, max=high), st.none() | st.floats(0, 30), st.none()
    ),
    max_size=1,
)
OPTIMIZER = Optimizer(learning_rate=[LearningRatePiece(value=1e-3)])


def task_of(table: list[Bucket], select: list[ScoreBounds]) -> TrainTask:
    layout = ParallelLayout(micro_batches_per_step=1)
    return TrainTask(steps=1, buckets=table, select=select, optimizer=OPTIMIZER, parallel=layout)


@given(clips, st.lists(st.tuples(tables, bounds, st.integers(0, 5)), min_size=1, max_size=3))
def test_what_is_encoded_is_what_the_stages_take(found, stages):
    """An oracle encodes every window of every clip and lets each stage take of these what it takes, by plain loops."""
    tasks = [(task_of(table, select), seed) for table, select, seed in stages]
    readers = [latent_reader(f"s{number}", task, seed) for number, (task, seed) in enumerate(tasks)]
    plan = EncodePlan(readers, 16, 4)
    everything = [
        plan._sample(one, name, window, (), tuple(sorted(plan.fitting(one))))
        for one in found
        for name, windows in plan.fitting(one).items()
        for window in windows
    ]
    table = [
        {"uid": s.uid, "clip": s.clip["uid"], "row": s.row, "bucket": s.bucket, "text_tokens": 3, **scores_of(s.clip)}
        for s in everything
    ]
    wanted: set[str] = set()
    for task, seed in tasks:
        groups, _, _ = plain_groups(table, task, seed, 512)
        wanted |= {uid for _, uids in groups.values() for uid in uids}
    assert {sample.uid for one in found for sample in plan.samples(one)} == wanted


def scores_of(one: dict) -> dict:
    return {name: one[name] for name in ("motion", "blur", "duration", "aspect")}


def test_of_a_long_large_clip_the_published_recipe_encodes_a_few_of_its_many_windows():
    """Clips of 8 s and 1080p; pictures and texts of a clip are alike, so that they are counted once each."""
    run = VideoTrainingRun.model_validate(yaml.safe_load(RECIPE.read_text()))
    config = next(config for config in resolve(run) if config.stage.task == "encode")
    code = config.autoencoder
    plan = EncodePlan(
        config.latent_readers, code.spatial_compression * (config.model.patch_size or 1), code.temporal_compression
    )
    found = [clip(f"{number:08x}", 192, 1080, 1920, 24.0) for number in range(400)]
    samples = [plan.samples(one) for one in found]
    windows = sum(len(cuts) for cuts in plan.fitting(found[0]).values())
    taken = sum(map(len, samples)) / len(found)
    assert windows >= 25
    assert taken <= 6
    # All that a tar adds to a sample: a header and padding for each, and its end.
    stored = [sample_bytes(sample, config) for one in samples for sample in one]
    assert sum(stored) + 1536 * len(stored) + 10240 <= 1.1 * sum(stored)


def sample_bytes(sample, config) -> int:
    """Latents of all frames, of the first and of the last, and the features of its texts, in bfloat16."""
    code, text = config.autoencoder, config.text_encoder
    height, width = (side // code.spatial_compression for side in sample.shape)
    frames = 1 + (sample.window.frames - 1) // code.temporal_compression
    values = code.latent_channels * height * width * (frames + 2)
    return 2 * (values + len(sample.styles) * (20 * text.context_dim + text.pooled_dim))
