"""What the flags of the `sample` command mean: specifications of the models, and requests."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from videotrain_api.config import aspect
from videotrain_api.config.presets import COMPANIONS, complete_autoencoder, complete_transformer
from videotrain_api.cost import flops
from videotrain_api.resource.architecture import AutoencoderSpec, AutoencoderTiling, TextEncoderSpec, TransformerSpec
from videotrain_api.resource.sampling import text_guidance
from videotrain_api.resource.stages import ConditionKind
from videotrain_api.resource.trainrun import Storage
from videotrain_api.schema import ApiModel, ManifestError
from videotrain_trainer.commands.prompts_file import PromptRow, condition_for, read_prompts
from videotrain_trainer.data.prompts import prompt_text
from videotrain_trainer.errors import ConfigError
from videotrain_trainer.sampling.batch import Job
from videotrain_trainer.sampling.contents import Contents
from videotrain_trainer.sampling.image_first import ImageSettings
from videotrain_trainer.sampling.loaded import FLUX_PICTURE_SPEC, Sources
from videotrain_trainer.sampling.request import Request, Settings, check_frames, check_request

Spec = TypeVar("Spec", bound=ApiModel)
FLUX_VAE = "flux-vae"
"""Names FLUX.1's picture autoencoder, which no training uses and no run's specification knows."""


def storage_of(options: argparse.Namespace) -> Storage:
    """Object store for s3:// references and weights: the configuration's, else the environment's."""
    written = _config(options).get("storage")
    return Storage(uri="s3://unset") if written is None else _parsed(Storage, written, "storage")


def sources_of(options: argparse.Namespace) -> Sources:
    """The video models.

    Raises:
        ConfigError: a preset is unknown, a field missing, or no weights are named.
    """
    config = _config(options)
    model = _parsed(TransformerSpec, config.get("model", {}), "model")
    autoencoder = _parsed(AutoencoderSpec, config.get("autoencoder", {}), "autoencoder")
    if options.model:
        model = TransformerSpec(preset=options.model, weights=model.weights)
    preset = options.autoencoder or (None if "autoencoder" in config else _companions(model.preset)[0])
    if preset:
        autoencoder = AutoencoderSpec(preset=preset, weights=autoencoder.weights)
    return _sources(
        _transformer(model, "--model"),
        options.model_weights or model.weights,
        _tiled(_autoencoder(autoencoder, "--autoencoder"), options),
        options.autoencoder_weights or autoencoder.weights,
        _text_encoder(options, config, model.preset),
        "--model-weights, --autoencoder-weights",
    )


def image_sources_of(options: argparse.Namespace, video: Sources) -> Sources | None:
    """The models that draw first frames; None if none are asked for.

    Raises:
        ConfigError: they are incomplete.
    """
    named = (options.image_model_weights, options.image_autoencoder_weights)
    if options.image_model is None:
        if any(named):
            raise ConfigError("--image-model: not set, but other flags of the image model are; name its preset")
        return None
    pictures = options.image_autoencoder == FLUX_VAE
    spec = AutoencoderSpec(preset=options.image_autoencoder)
    found = _sources(
        _transformer(TransformerSpec(preset=options.image_model), "--image-model"),
        options.image_model_weights,
        FLUX_PICTURE_SPEC if pictures else _autoencoder(spec, "--image-autoencoder"),
        options.image_autoencoder_weights,
        video.text_encoder,
        "--image-model-weights, --image-autoencoder-weights",
    )
    return replace(found, pictures=pictures)


def image_settings_of(options: argparse.Namespace) -> ImageSettings:
    """How first frames are drawn."""
    return ImageSettings(
        resolution=options.image_resolution,
        aspect_ratio=options.aspect,
        steps=options.image_steps,
        guidance=options.image_model_guidance,
    )


def jobs_of(options: argparse.Namespace, sources: Sources, contents: Contents) -> list[Job]:
    """One job per video, with what is in its weights and references.

    Raises:
        ConfigError: prompts, references or sizes cannot be drawn with these models.
        ObjectMissing: a reference does not exist.
    """
    settings = _settings(options, sources)
    rows = [PromptRow(where="--prompt", text=text) for text in options.prompt if text.strip()]
    rows += read_prompts(options.prompts) if options.prompts else []
    if not rows:
        raise ConfigError("--prompt, --prompts: there is no prompt; give one or a file with some")
    width = max(4, len(str(len(rows))))
    jobs = []
    for number, row in enumerate(rows, start=1):
        for index in range(options.n):
            name = row.name or f"{number:0{width}d}"
            request = _request(options, row, settings, sources, index)
            stem = options.output / (name if options.n == 1 else f"{name}-{index + 1}")
            jobs.append(Job(stem=stem, request=request))
    models = contents.of_models(sources)
    return [
        replace(job, request=replace(job.request, contents=models | contents.of_references(job.request)))
        for job in jobs
    ]


def _request(options: argparse.Namespace, row: PromptRow, settings: Settings, sources: Sources, index: int) -> Request:
    # A row's own references stand for themselves; the flags' are for rows that have none.
    own = any((row.image, row.last_image, row.video, row.condition))
    flags = PromptRow(
        where=row.where, text=row.text, image=options.image, last_image=options.last_image, video=options.video
    )
    used = row if own else flags
    condition: ConditionKind = (None if own else options.condition) or condition_for(used)
    fps, motion = (None, None) if settings.frames == 1 else (settings.fps, settings.motion_score)
    seed = options.seed if row.seed is None else row.seed
    request = Request(
        prompt=row.text,
        text=prompt_text(row.text, settings.prompt_style, fps, motion),
        negative=options.negative if row.negative is None else row.negative,
        condition=condition,
        image=_uri(used.image),
        last_image=_uri(used.last_image),
        video=_uri(used.video),
        seed=seed + index * options.best_of,
        settings=settings,
        models=sources.places(),
    )
    check_request(request, sources.model, sources.autoencoder, row.where)
    return request


def _settings(options: argparse.Namespace, sources: Sources) -> Settings:
    if (options.best_of > 1) != (options.scorer is not None):
        raise ConfigError(f"--best-of {options.best_of}, --scorer {options.scorer}: several candidates need a scorer")
    spec = sources.autoencoder
    frames = options.num_frames or spec.time.nearest(129)[0]
    check_frames(frames, spec, "--num-frames")
    try:
        grid = flops.grid(sources.model, spec)
        height, width = aspect.shape_of(options.resolution, options.aspect, grid)
    except ValueError as error:
        raise ConfigError(f"--resolution, --aspect: {error}") from error
    return Settings(
        width=width,
        height=height,
        frames=frames,
        fps=options.fps,
        steps=options.steps,
        text_guidance=text_guidance(options.guidance, sources.model.guidance_embed),
        image_guidance=options.image_guidance,
        oscillate_text=not options.no_oscillation,
        oscillate_image=not options.no_oscillation,
        dynamic_image_guidance=not options.no_dynamic_guidance,
        shift=options.shift,
        motion_score=options.motion,
        prompt_style=options.prompt_style,
        candidates=options.best_of,
        scorer=options.scorer,
    )


def _sources(
    model: TransformerSpec,
    model_weights: str | None,
    autoencoder: AutoencoderSpec,
    autoencoder_weights: str | None,
    text: TextEncoderSpec,
    flags: str,
) -> Sources:
    if model_weights is None or autoencoder_weights is None:
        raise ConfigError(f"{flags}: not set; weights of the transformer and of the autoencoder are needed")
    return Sources(
        model=model,
        model_weights=model_weights,
        autoencoder=autoencoder,
        autoencoder_weights=autoencoder_weights,
        text_encoder=text,
    )


def _transformer(spec: TransformerSpec, flag: str) -> TransformerSpec:
    try:
        return complete_transformer(spec, flag)
    except ManifestError as error:
        raise ConfigError(str(error)) from error


def _autoencoder(spec: AutoencoderSpec, flag: str) -> AutoencoderSpec:
    try:
        return complete_autoencoder(spec, flag)
    except ManifestError as error:
        raise ConfigError(str(error)) from error


def _text_encoder(options: argparse.Namespace, config: dict[str, Any], model: str | None) -> TextEncoderSpec:
    spec = _companions(model)[1]
    if "textEncoder" in config:
        spec = _parsed(TextEncoderSpec, config["textEncoder"], "textEncoder")
    if options.text_encoder:
        spec = spec.model_copy(update={"kind": "t5-clip", "weights": options.text_encoder})
    if spec.kind == "t5-clip" and spec.weights is None:
        raise ConfigError("--text-encoder: not set; this model was trained on T5 and CLIP: name a folder with both")
    return spec


def _companions(model: str | None) -> tuple[str | None, TextEncoderSpec]:
    """Autoencoder preset and text encoder that a transformer was made for."""
    return COMPANIONS.get(model or "", (None, TextEncoderSpec()))


def _tiled(spec: AutoencoderSpec, options: argparse.Namespace) -> AutoencoderSpec:
    if options.tile_pixels is None and options.tile_frames is None:
        return spec
    tiling = spec.tiling or AutoencoderTiling()
    pixels, frames = options.tile_pixels or tiling.pixels, options.tile_frames or tiling.frames
    return spec.model_copy(update={"tiling": tiling.model_copy(update={"pixels": pixels, "frames": frames})})


def _config(options: argparse.Namespace) -> dict[str, Any]:
    if options.config is None:
        return {}
    try:
        found = json.loads(options.config.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"--config {options.config}: not a readable JSON file: {error}") from error
    if not isinstance(found, dict):
        raise ConfigError(f"--config {options.config}: must be an object with model, autoencoder and textEncoder")
    spec = found.get("spec", found)
    return spec if isinstance(spec, dict) else {}


def _parsed(kind: type[Spec], data: Any, where: str) -> Spec:
    try:
        return kind.from_wire(data)
    except ManifestError as error:
        raise ConfigError(f"--config: {where}: {error}") from error


def _uri(source: str | None) -> str | None:
    if source is None or "://" in source:
        return source
    return Path(source).resolve().as_uri()
