"""Text to picture to video: an image model draws the first frame, then the video model continues it.

The picture is drawn in the image model's own size class and with its own autoencoder's grid, from the prompt without
suffix; a distilled model needs one branch, with the guidance value as an input.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from videotrain_api.config import aspect
from videotrain_api.cost import flops
from videotrain_trainer.errors import ConfigError
from videotrain_trainer.sampling import outputs
from videotrain_trainer.sampling.batch import Job
from videotrain_trainer.sampling.loaded import Sources
from videotrain_trainer.sampling.request import Request, Settings

SUFFIX = "-first-frame"
"""Ends the names of the pictures."""


@dataclass(frozen=True, kw_only=True)
class ImageSettings:
    """How first frames are drawn."""

    resolution: str
    aspect_ratio: str
    steps: int
    guidance: float
    """Of the distilled guidance input, or the scale of text guidance for a model without one."""


def picture_jobs(jobs: list[Job], sources: Sources, contents: Mapping[str, str], settings: ImageSettings) -> list[Job]:
    """The pictures that videos begin with, one per video.

    Args:
        jobs: the videos.
        sources: the image models.
        contents: of the image models.
        settings: how pictures are drawn.

    Raises:
        ConfigError: a video has a reference already, or the size does not fit the image model.
    """
    for job in jobs:
        if job.request.condition != "t2v":
            raise ConfigError(
                f"{job.stem.name}: condition {job.request.condition!r}: with an image model the first frame is drawn; "
                "leave references out"
            )
    size = _size(sources, settings)
    return [_picture(job, sources, contents, settings, size) for job in jobs]


def with_pictures(jobs: list[Job], pictures: list[Job]) -> list[Job]:
    """The videos, each with its picture as first frame.

    The picture's hash is part of a video's request, so that another picture makes another video.
    """
    return [
        replace(
            job,
            request=replace(
                job.request,
                condition="i2v_head",
                image=outputs.target_of(picture.stem, "png", 1).resolve().as_uri(),
                # The picture's file names the weights' places, so its request says better what is in it.
                contents={**job.request.contents, "image": f"request:{picture.request.hash()}"},
            ),
        )
        for job, picture in zip(jobs, pictures, strict=True)
    ]


def _picture(
    job: Job, sources: Sources, contents: Mapping[str, str], settings: ImageSettings, size: tuple[int, int]
) -> Job:
    drawn = Settings(
        width=size[1],
        height=size[0],
        frames=1,
        fps=job.request.settings.fps,
        steps=settings.steps,
        text_guidance=settings.guidance,
        image_guidance=1.0,
        prompt_style="plain",
    )
    request = Request(
        prompt=job.request.prompt,
        text=job.request.prompt.strip(),
        negative="" if sources.model.guidance_embed else job.request.negative,
        seed=job.request.seed,
        settings=drawn,
        models=sources.places(),
        contents=contents,
    )
    return Job(stem=job.stem.with_name(job.stem.name + SUFFIX), request=request)


def _size(sources: Sources, settings: ImageSettings) -> tuple[int, int]:
    try:
        grid = flops.grid(sources.model, sources.autoencoder)
        return aspect.shape_of(settings.resolution, settings.aspect_ratio, grid)
    except ValueError as error:
        raise ConfigError(f"--image-resolution, --aspect: {error}") from error
