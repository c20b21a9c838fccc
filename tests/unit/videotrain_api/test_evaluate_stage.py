"""Stages that evaluate: what they need, and what each of them is refused for."""

from __future__ import annotations

from typing import Any

import pytest

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


@pytest.mark.parametrize(
    ("task", "at", "path", "words"),
    [
        ({}, 5, "evaluate", "nothing to measure"),
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
