from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from videotrain_api.config.aspect import shapes
from videotrain_api.resource.stages import Bucket
from videotrain_trainer.data.buckets import (
    Window,
    assign,
    fits_area,
    frame_stride,
    keeps,
    lengths,
    nearest_aspect,
    row_name,
    windows,
)

GEOMETRY = json.loads((Path(__file__).parents[3] / "fixtures" / "data.json").read_text())
GRID = 16


@pytest.mark.parametrize("case", [case for case in GEOMETRY["fps"] if case["fps"]], ids=lambda case: str(case["fps"]))
def test_frame_rates_are_thinned_out_as_published(case):
    assert frame_stride(case["fps"]) == (case["stride"], case["new_fps"])


@pytest.mark.parametrize("case", GEOMETRY["closest_ratio"], ids=lambda case: f"{case['height']}x{case['width']}")
def test_the_nearest_shape_is_that_of_the_published_tables(case):
    assert nearest_aspect(case["height"], case["width"], list(shapes(case["resolution"], GRID))) == case["ratio"]


def published_cases():
    """Videos for which the published rule draws no random number; draws cannot coincide."""
    for table in GEOMETRY["buckets"]:
        chancy = [name for name, row in table["config"].items() if any(row[f][0] < 1 for f in row if f != "1")]
        for sample in table["samples"]:
            stride = frame_stride(sample["fps"])[0] if sample["fps"] else 1
            open_to_chance = [name for name in chancy if fits_area(sample["height"], sample["width"], name)]
            if sample["num_frames"] // stride > 1 and not open_to_chance:
                yield table["config"], sample


def published_rows(config):
    return [
        Bucket(resolution=name, frames=int(frames), batch_size=batch, keep_probability=p)
        for name, row in config.items()
        for frames, (p, batch) in row.items()
    ]


def test_clips_go_to_the_published_bucket_where_no_draw_decides():
    cases = list(published_cases())
    assert len(cases) > 30
    for config, sample in cases:
        rows = published_rows(config)
        fitting = [
            row_name(row)
            for row in rows
            if fits_area(sample["height"], sample["width"], row.resolution)
            and windows(sample["num_frames"], sample["fps"], row, 4)
        ]
        row = assign("clip", fitting, rows, seed=1)
        if row is None:
            assert sample["bucket"] is None
            continue
        assert [row.resolution, row.frames] == sample["bucket"][:2]
        table = shapes(row.resolution, GRID)
        shape = table[nearest_aspect(sample["height"], sample["width"], list(table))]
        assert [row.frames, *shape] == sample["thw"]


def bucket(frames: int, shortest: int | None = None, keep: float = 1.0, resolution: str = "64px") -> Bucket:
    return Bucket(resolution=resolution, frames=frames, min_frames=shortest, batch_size=1, keep_probability=keep)


def test_a_long_clip_gives_windows_without_overlap_and_its_rest_a_shorter_one():
    assert lengths(bucket(33, 5), 4) == [33, 29, 25, 21, 17, 13, 9, 5]
    assert windows(80, 12.0, bucket(33, 5), 4) == [Window(0, 33, 1), Window(33, 33, 1), Window(66, 13, 1)]
    assert windows(80, 12.0, bucket(33), 4) == [Window(0, 33, 1), Window(33, 33, 1)]
    assert windows(32, 12.0, bucket(33), 4) == []


def test_a_row_of_one_frame_takes_the_first_frame_of_every_clip():
    assert windows(500, 30.0, bucket(1), 4) == [Window(0, 1, 2)]


@given(
    frames=st.integers(1, 400),
    fps=st.sampled_from([8.0, 23.976, 24.0, 29.97, 30.0]),
    longest=st.sampled_from([5, 17, 32, 33]),
    short=st.integers(0, 7),
)
def test_windows_lie_within_the_clip_one_after_another(frames, fps, longest, short):
    row = bucket(longest, max(1, longest - 4 * short))
    end = 0
    for window in windows(frames, fps, row, 4):
        assert window.start == end
        assert window.start + (window.frames - 1) * window.stride < frames
        assert window.frames in lengths(row, 4)
        end = window.start + window.frames * window.stride
    assert (frames - end) // frame_stride(fps)[0] < lengths(row, 4)[-1]


def test_a_lost_draw_leads_to_the_next_smaller_resolution_and_not_to_a_shorter_length():
    rows = [bucket(33, keep=1e-9, resolution="256px"), bucket(17, resolution="256px"), bucket(17, resolution="64px")]
    everything = [row_name(row) for row in rows]
    assert assign("clip", everything, rows, seed=1) == rows[2]
    assert assign("clip", everything[1:], rows, seed=1) == rows[1]
    assert assign("clip", [], rows, seed=1) is None


def test_draws_are_fixed_by_seed_and_clip_and_keep_the_wanted_share():
    row = bucket(33, keep=0.3)
    kept = [keeps(row, 7, f"clip{n}") for n in range(4000)]
    assert kept == [keeps(row, 7, f"clip{n}") for n in range(4000)]
    assert kept != [keeps(row, 8, f"clip{n}") for n in range(4000)]
    assert sum(kept) / 4000 == pytest.approx(0.3, abs=0.03)
