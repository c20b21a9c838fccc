"""`train.samples`: where it is refused, what it needs and refers to."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import yaml

from videotrain_api.config.resolve import resolve
from videotrain_api.references import references
from videotrain_api.schema import ManifestError
from videotrain_api.validation import parse_run

TINY = Path(__file__).parents[3] / "manifests" / "examples" / "tiny.yaml"
SAMPLES = {"everySteps": 5, "resolution": "32px", "frames": 8, "prompts": [{"text": "a red ball"}]}


def run_with(**changes):
    manifest = yaml.safe_load(TINY.read_text())
    train = next(stage["train"] for stage in manifest["spec"]["stages"] if stage["task"] == "train")
    train["samples"] = copy.deepcopy(SAMPLES) | changes
    return manifest


def test_a_stage_that_draws_is_told_where_its_autoencoder_is_and_another_is_not():
    with_samples, without = parse_run(run_with()), parse_run(yaml.safe_load(TINY.read_text()))
    (one,) = [config for config in resolve(with_samples) if config.stage.task == "train"]
    (other,) = [config for config in resolve(without) if config.stage.task == "train"]
    assert one.paths.autoencoder_weights == "s3://videotrain/tiny/tiny/autoencoder"
    assert other.paths.autoencoder_weights is None


def test_pictures_of_its_prompts_are_looked_at_first():
    picture = {"text": "a ball", "image": "s3://bucket/ball.png", "condition": "i2v_head"}
    found = {reference.path: reference.uri for reference in references(parse_run(run_with(prompts=[picture])))}
    assert found["spec.stages[3].train.samples.prompts[0].image"] == "s3://bucket/ball.png"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"frames": 7}, "samples.frames"),
        ({"resolution": "8px"}, "samples.resolution"),
        ({"aspectRatio": "17:5"}, "samples.aspectRatio"),
        ({"prompts": []}, "samples.prompts"),
        ({"prompts": [{"text": "x", "condition": "i2v_head"}]}, "samples.prompts[0].image"),
        ({"everySteps": 0}, "samples.everySteps"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_field(changes, told):
    with pytest.raises(ManifestError) as refused:
        parse_run(run_with(**changes))
    assert told in str(refused.value)
