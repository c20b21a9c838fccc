"""What a stage that evaluates measures."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field

from videotrain_api.resource.locations import Location
from videotrain_api.resource.stage_names import Resolution, StageName
from videotrain_api.schema import ApiModel, patterned

EVALUATES_NOTHING: Final = "nothing to measure: set reconstruction, heldOut, videos or videosUri"
VBenchDimension = Literal[
    "subject_consistency",
    "background_consistency",
    "temporal_flickering",
    "motion_smoothness",
    "dynamic_degree",
    "aesthetic_quality",
    "imaging_quality",
    "object_class",
    "multiple_objects",
    "human_action",
    "color",
    "spatial_relationship",
    "scene",
    "appearance_style",
    "temporal_style",
    "overall_consistency",
]
"""How a video looks (the first seven) and how well it shows what was asked for."""
OF_ANY_VIDEOS: Final[tuple[VBenchDimension, ...]] = (
    "subject_consistency",
    "background_consistency",
    "motion_smoothness",
    "dynamic_degree",
    "aesthetic_quality",
    "imaging_quality",
)
"""Dimensions that VBench scores on any videos; the others need its own prompts."""


class Reconstruction(ApiModel):
    """Clips through the autoencoder and back, compared with what they were."""

    resolution: Resolution
    """Area class that the clips are scaled and cropped to."""
    frames: int = Field(ge=1, le=100_000)
    """Frames of a clip, from its first; shorter clips are left out."""
    aspect_ratio: str = Field(default="1:1", max_length=8)
    """Width:height name."""
    clips: int = Field(default=200, ge=1, le=10_000)
    """How many clips, in the order of their ids, so that stages and runs of one dataset measure the same."""
    lpips: Location | None = Field(default=None, min_length=1)
    """URI of a folder with the published weights of VGG16 and LPIPS 0.1, as of `perceptual.weights`; no LPIPS if
    unset."""


class VBench(ApiModel):
    """Scores of drawn videos by the package vbench (arXiv 2311.17982), which has to be in the image."""

    weights: Annotated[str, patterned(r"^file:///.+$", "a folder that is mounted in the pods, such as file:///vbench")]
    """Folder that vbench fills as its cache (VBENCH_CACHE_DIR), mounted by spec.podTemplate; nothing is fetched."""
    dimensions: list[VBenchDimension] = Field(default_factory=list, max_length=16)
    """What to score; if empty all that can be, and with `suite` all sixteen."""
    suite: bool = False
    """The videos are of vbench's own prompts. Ten of the dimensions, and the quality, semantic and total score, need
    that; without it any videos are scored by the other six."""


class Preference(ApiModel):
    """A page on which people say which of two videos of one prompt they prefer, without knowing whose they are."""

    videos: Location = Field(min_length=1)
    """Folder of the other model's videos. A pair has one name: 0001.mp4 is the first video of the sample stage."""
    name: str = Field(default="other", min_length=1, max_length=64)
    """Of the other model in the key and in the win rates; ours is the name of the run."""
    seed: int = Field(default=42, ge=0)
    """Of order and sides."""


class EvaluateTask(ApiModel):
    """Measures of what the stages before made; each in the status, the report and /metrics."""

    reconstruction: Reconstruction | None = None
    """PSNR, SSIM and LPIPS of the newest autoencoder."""
    videos: StageName | None = None
    """Name of an earlier sample stage, whose videos are measured without weights: flicker, motion, sharpness, and where
    they were drawn from clips their PSNR against these."""
    videos_uri: Location | None = Field(default=None, min_length=1)
    """Prefix of a finished sample stage of another run, in the place of `videos`; a fork writes it."""
    vbench: VBench | None = None
    """Scores of these videos by VBench."""
    preference: Preference | None = None
    """A page on which people compare these videos with another model's."""
    held_out: StageName | None = None
    """Name of an earlier train stage that has `validation`: the newest transformer answers its questions (the same
    clips, times and noise), so that checkpoints of several stages and runs compare."""
