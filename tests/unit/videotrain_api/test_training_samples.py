"""`train.samples`: where it is refused, what it needs and refers to."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import yaml

from videotrain.commands.plan_memory import coding_rows
from videotrain_api.config.resolve import resolve
from videotrain_api.cost.clip_stage_memory import drawing_between_steps
from videotrain_api.references import references
from videotrain_api.schema import ManifestError
from videotrain_api.validation import parse_run

EXAMPLES = Path(__file__).parents[3] / "manifests" / "examples"
TINY = EXAMPLES / "tiny.yaml"
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


def fine_tuning(name, samples=None, tiling=None):
    """An example that draws on GPUs, with another size or other tiles."""
    manifest = yaml.safe_load((EXAMPLES / f"{name}.yaml").read_text())
    task = next(stage["train"] for stage in manifest["spec"]["stages"] if stage["task"] == "train")
    task["samples"] |= samples or {}
    if tiling is not None:
        manifest["spec"]["autoencoder"]["tiling"] = tiling
    return manifest


def test_a_video_that_has_no_room_beside_the_engine_is_refused_and_what_is_advised_is_accepted():
    large, whole = {"resolution": "1024px", "frames": 129}, {"pixels": None, "frames": None}
    with pytest.raises(ManifestError) as refused:
        parse_run(fine_tuning("open-sora-2-lora", large, whole))
    (problem,) = refused.value.problems
    assert (problem.path, problem.value) == ("spec.stages[2].train.samples.frames", 129)
    ways = problem.message.partition("it fits with ")[2].partition("; or ")[0].split(", or ")
    assert [way.partition(":")[0] for way in ways] == ["frames", "resolution"]
    for way in ways:
        parse_run(fine_tuning("open-sora-2-lora", large | yaml.safe_load(way.partition(" (")[0]), whole))
    parse_run(fine_tuning("open-sora-2-lora", large))  # in the tiles of the preset


def test_the_engine_stays_on_the_gpu_while_a_video_is_drawn():
    """A frozen base is its weights; what is trained has gradients and its share of the optimizer's state as well."""
    lora, finetune = (parse_run(fine_tuning(f"open-sora-2-{name}")) for name in ("lora", "finetune"))
    parameters = 11.6e9
    for run, least, most in ((lora, 2 * parameters, 2.4 * parameters), (finetune, 4 * parameters, 6 * parameters)):
        rows = [memory for _, memory in coding_rows(run) if memory.path.endswith("train.samples")]
        (row,) = rows
        assert least < row.models < most
        assert row.total == row.models + row.work + row.reserve
        spec = run.spec.stages[2].train.samples
        longer = drawing_between_steps(run, 2, spec.model_copy(update={"frames": 129}))
        assert longer.models == row.models
        assert longer.work > row.work
