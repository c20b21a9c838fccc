"""The sample stage's use of the drawing core: its models, its requests, and mp4 files that tell how they were made."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from videotrain_api.config.stage_config import StageConfig
from videotrain_api.resource.sampling import text_guidance
from videotrain_trainer.errors import ConfigError
from videotrain_trainer.networks.weights import autoencoder_uri, weights_uri
from videotrain_trainer.sampling.contents import Contents
from videotrain_trainer.sampling.draw import SamplingPipeline
from videotrain_trainer.sampling.loaded import Sources, load_models
from videotrain_trainer.sampling.request import Request, Settings, check_request
from videotrain_trainer.storage import ObjectStore
from videotrain_trainer.tasks.sample_plan import Drawing, task_of


class StageSampler:
    """The models of a sample stage, loaded.

    Args:
        config: of the stage.
        store: holds weights and references.
        device: bfloat16 is used on CUDA, float32 elsewhere.
        cache: local folder for weights of text encoders that are fetched.

    Raises:
        ConfigError: weights are not configured or do not fit the models.
    """

    def __init__(self, config: StageConfig, store: ObjectStore, device: torch.device, cache: Path) -> None:
        self._config = config
        sources = sources_of(config)
        self._models = load_models(sources, store, cache, device, task_of(config).offload)
        self._pipeline, self._contents = SamplingPipeline(self._models, store), Contents(store, cache)
        self._of_models = self._contents.of_models(sources)

    @property
    def conditioned(self) -> bool:
        """Whether the model was trained with given frames."""
        return self._models.conditioned

    def draw(self, drawing: Drawing) -> Tensor:
        """The frames of a video, (T, H, W, 3) uint8 on the CPU; of several candidates the best."""
        return self._pipeline.draw(request_of(self._config, drawing)).frames_THWC

    def request_hash(self, drawing: Drawing) -> str:
        """Names everything that the pixels of a video depend on, what is in weights and references included.

        Raises:
            ObjectMissing: a reference does not exist.
        """
        request = request_of(self._config, drawing)
        contents = self._of_models | self._contents.of_references(request)
        return replace(request, contents=contents).hash()


def sources_of(config: StageConfig) -> Sources:
    """Models of the stage.

    Raises:
        ConfigError: weights are not configured.
    """
    latents = _given(config.paths.autoencoder_weights, "paths.autoencoderWeights")
    return Sources(
        model=config.model,
        model_weights=weights_uri(_given(config.paths.model_weights, "paths.modelWeights")),
        autoencoder=config.autoencoder,
        autoencoder_weights=autoencoder_uri(config.autoencoder.kind, latents),
        text_encoder=config.text_encoder,
    )


def request_of(config: StageConfig, drawing: Drawing) -> Request:
    """What the core is asked for, without contents.

    Raises:
        ConfigError: the prompt's references do not fit its condition.
    """
    video, prompt = drawing.video, drawing.prompt
    request = Request(
        prompt=prompt.text,
        text=drawing.text,
        negative=prompt.negative,
        condition=prompt.condition,
        image=prompt.image,
        last_image=prompt.last_image,
        video=prompt.video,
        seed=video.seed,
        settings=_settings(config, drawing),
        models=sources_of(config).places(),
    )
    check_request(request, config.model, config.autoencoder, f"sample.prompts[{video.number - 1}]")
    return request


def _settings(config: StageConfig, drawing: Drawing) -> Settings:
    task, video = task_of(config), drawing.video
    return Settings(
        width=video.width,
        height=video.height,
        frames=video.frames,
        fps=video.fps,
        steps=task.sampling_steps,
        text_guidance=text_guidance(task.text_guidance, config.model.guidance_embed),
        image_guidance=task.image_guidance,
        oscillate_text=task.oscillate_text,
        oscillate_image=task.oscillate_image,
        dynamic_image_guidance=task.dynamic_image_guidance,
        motion_score=task.motion_score,
        prompt_style=drawing.style,
        candidates=task.candidates,
        scorer=task.scorer,
    )


def _given(source: str | None, field: str) -> str:
    if source is None:
        raise ConfigError(f"{field}: not set; a sample stage needs the weights of a trained model")
    return source
