"""What `tox -e demo` left in its folder: pictures that are recognisable, a world that shrank and grew, a whole bill."""

import json
from pathlib import Path

import pytest
from demo_pictures import drawn_from_clips, pair_of

from videotrain_trainer.evaluation.metrics import psnr

WORKDIR = Path("runs/demo")
FIRST_FRAMES, ANY_FIRST_FRAME = 22.0, 21.0
"""Least PSNR of the drawings' first frames beside the pictures that they were given, on average and of each, dB; 23.3
and 22.4 were measured. What a world that was resized adds in another order moves them a little."""


@pytest.fixture(scope="module")
def summary():
    return json.loads((WORKDIR / "summary.json").read_text())


@pytest.fixture(scope="module")
def stages(summary):
    return {stage["name"]: stage for stage in summary["stages"]}


def test_each_drawing_begins_with_the_given_frame(stages):
    pairs = [pair_of(WORKDIR, video) for video in drawn_from_clips(WORKDIR)]
    found = [psnr(clip[:1], drawn[:1]) for (_, clip), (_, drawn) in pairs]
    assert len(found) == 3
    assert sum(found) / 3 >= FIRST_FRAMES and min(found) >= ANY_FIRST_FRAME, found
    assert stages["score"]["evaluation"]["first_frame_psnr"] == pytest.approx(sum(found) / 3, abs=0.01)


def test_the_world_lost_a_node_and_had_it_back(summary, stages):
    assert summary["phase"] == "Succeeded"
    sizes = [generation["world_size"] for generation in stages["i2v-64px"]["generations"]]
    assert sizes[0] == sizes[-1] == 2 and 1 in sizes
    assert summary["samples"]["lost"] == 0 and summary["samples"]["problems"] == []


def test_the_bill_adds_up(summary):
    spent = dict(summary["gpu_microseconds"])
    assert spent.pop("held") == sum(spent.values()) > 0
