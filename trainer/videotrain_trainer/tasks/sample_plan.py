"""What a sample stage draws: one entry per video, decided before anything is drawn and the same on every rank."""

from __future__ import annotations

from dataclasses import dataclass

from videotrain_api.config import aspect
from videotrain_api.config.stage_config import StageConfig
from videotrain_api.cost import flops
from videotrain_api.resource.sampling import text_guidance
from videotrain_api.resource.stages import ConditionKind, Prompt, PromptStyle, SampleTask
from videotrain_api.storage import layout
from videotrain_api.storage.artifacts import SampledVideo
from videotrain_trainer.data.manifest import CLIP_SCHEMA, kept_clips, read_table
from videotrain_trainer.data.prompts import caption_text, prompt_text
from videotrain_trainer.data.sets import read_set_info
from videotrain_trainer.errors import ConfigError, DataError
from videotrain_trainer.sampling.request import check_frames
from videotrain_trainer.storage import ObjectStore


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """One video to draw."""

    video: SampledVideo
    """The entry of the index."""
    text: str
    """The text that is encoded: the prompt with its suffix."""
    prompt: Prompt
    """What was asked for, with its references."""
    style: PromptStyle
    """Of the suffix."""


def task_of(config: StageConfig) -> SampleTask:
    """The stage's task.

    Raises:
        ConfigError: it has none, or asks for what the autoencoder or this version cannot do.
    """
    task = config.stage.sample
    if task is None:
        raise ConfigError(f"stage {config.stage.name!r}: the member `sample` is not set")
    check_frames(task.frames, config.autoencoder, "sample.frames")
    return task


def frame_size(config: StageConfig) -> tuple[int, int]:
    """(height, width) in pixels: the shape in which clips of that class and ratio are trained.

    Raises:
        ConfigError: the class does not fit the autoencoder's grid.
    """
    task = task_of(config)
    try:
        return aspect.shape_of(task.resolution, task.aspect_ratio, flops.grid(config.model, config.autoencoder))
    except ValueError as error:
        raise ConfigError(f"sample.resolution, sample.aspectRatio: {error}") from error


def plan_drawings(config: StageConfig, store: ObjectStore, conditioned: bool) -> list[Drawing]:
    """All videos of the stage, prompts first.

    Args:
        config: of the stage.
        store: holds the clip manifest.
        conditioned: the model was trained with given frames, so drawings from training clips get their first frame.

    Raises:
        DataError: videos from the data set are asked for, but it has no clips.
    """
    task = task_of(config)
    style = _style(config, store)
    drawings = [_drawing(config, style, number, prompt) for number, prompt in enumerate(task.prompts, start=1)]
    clips = _clips(config, store) if task.from_dataset else []
    for index in range(task.from_dataset):
        prompt, uri = _clip_prompt(config, clips[index % len(clips)], config.seed + index, conditioned)
        drawings.append(_drawing(config, style, len(drawings) + 1, prompt, uri))
    return drawings


def video_uri(config: StageConfig, number: int) -> str:
    """Where a video lies."""
    return f"{config.paths.output}/videos/{number:04d}.mp4"


def _style(config: StageConfig, store: ObjectStore) -> PromptStyle:
    """That of the training that came last; both suffixes if nobody knows."""
    if config.paths.latents is None:
        return "fps-motion"
    info = read_set_info(store, config.paths.latents)
    return info.readers[-1].prompt_style if info.readers else info.prompts[-1]


def _drawing(
    config: StageConfig, style: PromptStyle, number: int, prompt: Prompt, clip_uri: str | None = None
) -> Drawing:
    task = task_of(config)
    height, width = frame_size(config)
    video = SampledVideo(
        number=number,
        uri=video_uri(config, number),
        prompt=prompt.text,
        condition=prompt.condition,
        seed=prompt.seed,
        width=width,
        height=height,
        frames=task.frames,
        fps=task.fps,
        reference_clip=clip_uri,
        settings={
            "samplingSteps": task.sampling_steps,
            "textGuidance": text_guidance(task.text_guidance, config.model.guidance_embed),
            "imageGuidance": task.image_guidance,
            "motionScore": task.motion_score,
            "oscillateText": task.oscillate_text,
            "oscillateImage": task.oscillate_image,
            "dynamicImageGuidance": task.dynamic_image_guidance,
            "candidates": task.candidates,
            "scorer": task.scorer,
            "negative": prompt.negative,
            "promptStyle": style,
            "modelWeights": config.paths.model_weights,
            "autoencoderWeights": config.paths.autoencoder_weights,
            "configHash": config.hash(),
        },
    )
    fps, motion = (None, None) if task.frames == 1 else (task.fps, task.motion_score)
    # A clip's caption reads as it did in training; a prompt may name its own rate.
    text_of = prompt_text if clip_uri is None else caption_text
    return Drawing(video=video, text=text_of(prompt.text, style, fps, motion), prompt=prompt, style=style)


def _clip_prompt(config: StageConfig, clip: dict[str, str], seed: int, conditioned: bool) -> tuple[Prompt, str]:
    uri = layout.clip_file(str(config.paths.clips), clip["uri"])
    condition: ConditionKind = "i2v_head" if conditioned and task_of(config).frames > 1 else "t2v"
    # A clip may have no caption; the prompt model refuses an empty text, the text encoder knows it as the null caption.
    prompt = Prompt.model_construct(
        text=clip["caption"], image=None if condition == "t2v" else uri, condition=condition, seed=seed
    )
    return prompt, uri


def _clips(config: StageConfig, store: ObjectStore) -> list[dict[str, str]]:
    if config.paths.clips is None:
        raise ConfigError(
            "sample.fromDataset: there are no curated clips; set spec.dataset.clips, put a stage with task 'curate' "
            "before it, or list sample.prompts"
        )
    table = kept_clips(read_table(store, layout.clip_manifest(config.paths.clips), CLIP_SCHEMA))
    rows: list[dict[str, str]] = table.select(["uid", "uri", "caption"]).to_pylist()
    if not rows:
        raise DataError(f"{config.paths.clips}: no clip was kept, so sample.fromDataset has nothing to draw from")
    return sorted(rows, key=lambda row: row["uid"])
