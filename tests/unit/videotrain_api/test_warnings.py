"""What a run may ask for and hardly means: told with field and value, and never refused."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import yaml

from videotrain_api.rules.warn import warnings
from videotrain_api.validation import parse_run

ROOT = Path(__file__).parents[3]
GOOD = yaml.safe_load((Path(__file__).parent / "good.yaml").read_text())
SAVED = {"everySteps": 5}
SMALL, LONG = ({"resolution": side, "frames": frames, "batchSize": 2} for side, frames in (("64px", 8), ("32px", 32)))


def told(checkpoint=SAVED, rows=(SMALL,), weights=None, samples=None, **drawn):
    manifest = copy.deepcopy(GOOD)
    spec = manifest["spec"]
    spec["checkpoint"] = checkpoint
    _, _, _, train, sample = spec["stages"]
    train["train"]["buckets"] = list(rows)
    sample["sample"] |= drawn
    if samples:
        train["train"]["samples"] = {"prompts": [{"text": "a ball"}], **samples}
    if weights:
        spec["model"]["weights"] = weights
    return [(each.path, each.value, each.message) for each in warnings(parse_run(manifest))]


@pytest.mark.parametrize("every", [100, 200])
def test_stages_that_save_nothing_before_they_end_are_named(every):
    ((path, value, message),) = told(checkpoint={"everySteps": every})
    assert (path, value) == ("spec.checkpoint.everySteps", every)
    assert "'autoencoder' (10), 'train' (100)" in message and "everySeconds" in message


@pytest.mark.parametrize(
    ("checkpoint", "named"),
    [
        ({"everySteps": 99}, ["'autoencoder' (10)"]),
        ({"everySteps": 9}, []),
        ({"everySteps": 1000, "everySeconds": 60}, []),
    ],
)
def test_those_that_save_in_time_are_not(checkpoint, named):
    messages = [message for _, _, message in told(checkpoint=checkpoint)]
    assert len(messages) == len(named)
    assert all(name in message and "'train'" not in message for name, message in zip(named, messages, strict=True))


@pytest.mark.parametrize(
    ("drawn", "field", "largest"),
    [
        ({"resolution": "128px"}, "resolution", "64px with 8 frames"),
        ({"frames": 16}, "frames", "64px with 8 frames"),
        ({"resolution": "128px", "frames": 64}, "resolution", "64px with 8 frames"),
    ],
)
def test_videos_larger_or_longer_than_all_that_is_trained_are_told_with_the_largest_row(drawn, field, largest):
    ((path, value, message),) = told(**drawn)
    assert (path, value) == (f"spec.stages[4].sample.{field}", drawn[field])
    assert "stage 'sample' draws" in message and f"before is {largest}" in message


def test_large_ones_and_long_ones_do_not_make_ones_that_are_both():
    assert told(rows=(SMALL, LONG)) == []
    assert told(rows=(SMALL, LONG), resolution="32px", frames=32) == []
    ((path, _, message),) = told(rows=(SMALL, LONG), frames=16)
    assert path == "spec.stages[4].sample.frames" and "'sample' draws 64px with 16 frames" in message


def test_what_weights_from_elsewhere_were_trained_on_nobody_knows():
    assert told(weights="file:///weights/model.safetensors", resolution="128px") == []


def test_videos_between_steps_are_compared_with_what_their_stage_trains():
    assert told(samples={"resolution": "64px", "frames": 8}) == []
    ((path, value, _),) = told(samples={"resolution": "64px", "frames": 16})
    assert (path, value) == ("spec.stages[3].train.samples.frames", 16)


@pytest.mark.parametrize("path", sorted((ROOT / "manifests/examples").glob("*.yaml")), ids=lambda path: path.stem)
def test_examples_ask_for_nothing_of_the_kind(path):
    assert warnings(parse_run(yaml.safe_load(path.read_text()))) == []
