"""Frames of a training window beside the published choice."""

import json
from pathlib import Path

import pytest

from videotrain_trainer.data.buckets import Window

ROWS = json.loads((Path(__file__).parents[2] / "fixtures/data.json").read_text())["frame_indices"]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['num_frames']}x{row['stride']}from{row['start']}")
def test_frames_lie_in_the_published_window_and_are_evenly_spaced(row):
    window = Window(row["start"], row["num_frames"], row["stride"])
    ours = list(range(window.start, window.start + window.frames * window.stride, window.stride))
    assert len(ours) == row["num_frames"]
    assert ours[0] == row["indices"][0]
    assert ours[-1] < row["end"]
    if row["stride"] == 1:
        assert ours == row["indices"]
