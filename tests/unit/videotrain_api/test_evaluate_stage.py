"""Stages that evaluate: what they need, and what each of them is refused for."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from videotrain_api.config.fork import forked, needed_stages
from videotrain_api.config.resolve import resolve
from videotrain_api.cost.forecast import forecast
from videotrain_api.references import references
from videotrain_api.resource.trainrun import VideoTrainingRun
from videotrain_api.schema import ManifestError
from videotrain_api.validation import parse_run

SIZE = {"resolution": "64px", "frames": 8}


def with_stage(manifest: dict[str, Any], task: dict[str, Any], at: int = 5) -> dict[str, Any]:
    """The manifest with an evaluate stage, the last one by default."""
    manifest["spec"]["stages"].insert(at, {"name": "measure", "task": "evaluate", "evaluate": task})
    return manifest


def paths_of(run: VideoTrainingRun) -> Any:
    return next(config.paths for config in resolve(run) if config.stage.name == "measure")


def test_it_reads_the_newest_autoencoder_the_clips_and_the_videos_that_it_names(manifest):
    paths = paths_of(parse_run(with_stage(manifest, {"reconstruction": SIZE, "videos": "sample"})))
    prefix = "s3://videotrain/good/good"
    assert paths.autoencoder_weights == f"{prefix}/autoencoder"
    assert (paths.clips, paths.videos) == (f"{prefix}/curate", f"{prefix}/sample")
    assert paths.latents is None and paths.model_weights is None


def test_videos_alone_need_neither_clips_nor_an_autoencoder(manifest):
    spec = manifest["spec"]
    spec["dataset"] = {}
    spec["autoencoder"]["weights"] = spec["model"]["weights"] = "s3://models/one"
    spec["stages"] = [spec["stages"][4]]
    spec["stages"][0]["sample"] = SIZE | {"prompts": [{"text": "A cat."}]}
    paths = paths_of(parse_run(with_stage(manifest, {"videos": "sample"}, at=1)))
    assert paths.clips is None and paths.autoencoder_weights is None


def validated(manifest):
    """The manifest with a train stage that holds clips out."""
    manifest["spec"]["stages"][3]["train"]["validation"] = {"share": 0.2}
    return manifest


def test_held_out_samples_are_those_of_the_stage_that_it_names_and_the_weights_are_the_newest(manifest):
    spec = validated(manifest)["spec"]
    spec["stages"].insert(4, copy.deepcopy(spec["stages"][3]) | {"name": "later"})
    configs = resolve(parse_run(with_stage(manifest, {"heldOut": "train"}, at=5)))
    measure = next(config for config in configs if config.stage.name == "measure")
    train = next(config for config in configs if config.stage.name == "train")
    assert measure.held_out.stage == train.stage
    assert measure.held_out.seed == train.seed
    assert measure.paths.latents == train.paths.latents
    assert measure.paths.model_weights.endswith("/later")
    assert measure.paths.clips is None and measure.paths.autoencoder_weights is None


def test_an_adapter_is_measured_while_it_is_trained(manifest):
    train = validated(manifest)["spec"]["stages"][3]["train"]
    manifest["spec"]["model"]["weights"] = "s3://models/one"
    train["lora"] = {"rank": 4}
    with pytest.raises(ManifestError, match="trains an adapter"):
        parse_run(with_stage(manifest, {"heldOut": "train"}))


def test_a_fork_measures_the_videos_of_the_run_that_it_comes_from(manifest):
    run = parse_run(with_stage(manifest, {"videos": "sample", "vbench": {"weights": "file:///vbench"}}))
    new = parse_run(forked(run, manifest, "measure", "new"))
    # The videos may have been drawn from clips, with which they are compared.
    assert [stage.name for stage in needed_stages(run, "measure")] == ["curate", "sample"]
    assert new.spec.dataset.clips == paths_of(run).clips == "s3://videotrain/good/good/curate"
    assert [stage.name for stage in new.spec.stages] == ["measure"]
    assert paths_of(new).videos == paths_of(run).videos == "s3://videotrain/good/good/sample"
    (found,) = [each for each in references(new) if each.role == "folder"]
    assert (found.path, found.uri) == ("spec.stages[0].evaluate.videosUri", paths_of(new).videos)


def test_what_it_reads_of_others_is_looked_at_before_the_run_begins(manifest):
    run = parse_run(with_stage(manifest, {"videos": "sample", "preference": {"videos": "s3://other/videos"}}))
    (found,) = [each for each in references(run) if each.role == "folder"]
    assert (found.path, found.uri) == ("spec.stages[5].evaluate.preference.videos", "s3://other/videos")


@pytest.mark.parametrize(
    ("task", "at", "path", "words"),
    [
        ({}, 5, "evaluate", "nothing to measure"),
        ({"heldOut": "train"}, 5, "evaluate.heldOut", "none, no stage with task 'train' and train.validation"),
        ({"reconstruction": SIZE, "vbench": {"weights": "file:///v"}}, 5, "evaluate.vbench", "set videos or videosUri"),
        ({"reconstruction": SIZE, "preference": {"videos": "s3://a/b"}}, 5, "evaluate.preference", "set videos or"),
        ({"videos": "sample", "videosUri": "s3://a/b"}, 5, "evaluate.videosUri", "not both"),
        ({"videos": "sample", "vbench": {"weights": "s3://v"}}, 5, "evaluate.vbench.weights", "file:///vbench"),
        (
            {"videos": "sample", "vbench": {"weights": "file:///v", "dimensions": ["scene"]}},
            5,
            "evaluate.vbench.dimensions[0]",
            "vbench's own prompts",
        ),
        ({"videos": "train"}, 5, "evaluate.videos", "allowed: sample"),
        ({"videos": "sample"}, 4, "evaluate.videos", "none, no stage with task 'sample' comes before"),
        ({"reconstruction": SIZE}, 0, "task", "needs clips"),
        ({"reconstruction": SIZE}, 1, "task", "needs an autoencoder"),
        ({"reconstruction": SIZE | {"frames": 7}}, 5, "evaluate.reconstruction.frames", "4 and 8"),
        ({"reconstruction": SIZE | {"resolution": "65px"}}, 5, "evaluate.reconstruction.resolution", "unknown"),
        ({"reconstruction": SIZE | {"aspectRatio": "16:10"}}, 5, "evaluate.reconstruction.aspectRatio", "allowed: "),
        ({"reconstruction": SIZE | {"clips": 0}}, 5, "evaluate.reconstruction.clips", "1"),
    ],
)
def test_what_cannot_be_measured_is_refused(manifest, task, at, path, words):
    with pytest.raises(ManifestError) as refused:
        parse_run(with_stage(manifest, task, at))
    told = [problem.message for problem in refused.value.problems if problem.path == f"spec.stages[{at}].{path}"]
    assert any(words in message for message in told), str(refused.value)


def test_clips_that_a_gpu_cannot_hold_are_refused_with_their_memory(manifest):
    manifest["spec"]["autoencoder"] = {"preset": "hunyuan-vae", "weights": "s3://models/vae", "tiling": None}
    manifest["spec"]["model"] = {"preset": "mmdit-tiny"}
    manifest["spec"]["pool"]["gpuMemoryGigabytes"] = 16
    manifest["spec"]["stages"] = manifest["spec"]["stages"][:1]
    large = {"resolution": "1024px", "frames": 129}
    with pytest.raises(ManifestError) as refused:
        parse_run(with_stage(manifest, {"reconstruction": large}, at=1))
    (problem,) = [found for found in refused.value.problems if found.path.endswith("reconstruction.frames")]
    assert "GB of a GPU, which has 16.0 GB" in problem.message
    assert "spec.pool.gpuMemoryGigabytes if the GPUs have more" in problem.message


def test_hours_of_video_price_curation_and_not_what_is_measured_of_it(manifest):
    planned = forecast(parse_run(with_stage(manifest, {"videos": "sample"})), hours_of_video=10.0)
    costs = {stage.name: stage.cost for stage in planned.stages}
    assert costs["curate"] is not None
    assert costs["measure"] is None


def test_its_weights_of_lpips_are_looked_at_before_the_run_begins(manifest):
    run = parse_run(with_stage(manifest, {"reconstruction": SIZE | {"lpips": "s3://models/lpips"}}))
    (found,) = [each for each in references(run) if each.role == "perceptual"]
    assert (found.path, found.stages) == ("spec.stages[5].evaluate.reconstruction.lpips", (5,))
