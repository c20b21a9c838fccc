"""`train.samples`: videos that a train stage draws between its steps, with the model inside its engine.

All ranks make equally many passes through the model, since an engine may gather weights in each. Prompts are spread
over the ranks; of a prompt that comes twice one drawing is stored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final, cast

import torch
from pydantic import TypeAdapter
from torch import Tensor

from videotrain_api.config import aspect
from videotrain_api.cost import flops
from videotrain_api.resource.sampling import text_guidance
from videotrain_api.resource.stages import TrainingSamples
from videotrain_api.storage import layout
from videotrain_api.storage.artifacts import SampledVideo, VideosIndex
from videotrain_trainer.checksums import read_checked, sealed_json, unsealed_json
from videotrain_trainer.data.prompts import prompt_text
from videotrain_trainer.diffusion.sampler import Sampler, TextPair
from videotrain_trainer.errors import ConfigError
from videotrain_trainer.networks.build import load_autoencoder
from videotrain_trainer.networks.mmdit.config import MMDiTConfig
from videotrain_trainer.networks.mmdit.model import MMDiT
from videotrain_trainer.networks.weights import autoencoder_uri, open_weights
from videotrain_trainer.parallel.peers import WorldPeers
from videotrain_trainer.sampling.draw import latent_shape, noise_of
from videotrain_trainer.sampling.loaded import Models, Sources
from videotrain_trainer.sampling.outputs import write_video
from videotrain_trainer.sampling.references import given_of, to_uint8
from videotrain_trainer.sampling.request import Request, Settings, check_request
from videotrain_trainer.storage import ObjectStore
from videotrain_trainer.text.byte_encoder import TextFeatures
from videotrain_trainer.text.encoders import TextEncoder, load_text_encoder
from videotrain_trainer.training.step_samples import DrawnSamples
from videotrain_trainer.training.validation_loss import spread
from videotrain_trainer.worker.stage_context import StageContext

_YES_OR_NO: Final = TypeAdapter(bool)


class StepSamples:
    """Draws the videos of a stage, always the same ones.

    The text encoder is loaded, asked and let go here, before an engine takes the device. The autoencoder waits in the
    host's memory; while it decodes, nothing of a training step is on the device but the engine's own state.

    Args:
        context: of the stage.
        store: holds weights and references.
        spec: what to draw.
        transformer: sizes of the model that is trained.
        encoder: of texts, if one is on the device already.

    Raises:
        ConfigError: weights are not configured, or a prompt does not fit the models.
    """

    def __init__(
        self,
        context: StageContext,
        store: ObjectStore,
        spec: TrainingSamples,
        transformer: MMDiTConfig,
        encoder: TextEncoder | None = None,
    ) -> None:
        self._context, self._store, self._spec, self._transformer = context, store, spec, transformer
        self._sources = _sources(context)
        self._requests = [self._request(number) for number in range(len(spec.prompts))]
        if context.world.rank == 0 and not context.restore:
            _forget(store, context.config.paths.output)
        mine = spread(len(self._requests), context.world.rank, context.world.size)
        device = context.world.device
        if encoder is None:
            encoder = load_text_encoder(context.config.text_encoder, store, context.cache, device)
        self._text = _features(encoder, [self._requests[number] for number in mine])
        self._dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        weights = open_weights(self._sources.autoencoder_weights, store=store)
        autoencoder = load_autoencoder(context.config.autoencoder, weights)
        self._autoencoder = autoencoder.to(torch.device("cpu"), self._dtype).eval().requires_grad_(False)

    @torch.no_grad()
    def draw(self, model: Callable[..., Any], peers: WorldPeers, step: int) -> DrawnSamples | None:
        """Draw all videos and store them, the index last. Collective.

        Args:
            model: called as an MMDiT.
            peers: the world.
            step: last one that its weights have seen.

        Returns:
            What is stored, also if this configuration drew it before: whoever did may have died before it told. None
            if the world was asked to stop.
        """
        world, prefix = self._context.world, layout.training_samples(self._context.config.paths.output, step)
        drawn = DrawnSamples(len(self._requests), layout.videos_index(prefix))
        done = self._is_done(drawn.uri) if world.rank == 0 else None
        if peers.from_first(_YES_OR_NO, done):
            return drawn
        models = self._models(model)
        numbers = spread(len(self._requests), world.rank, world.size)
        for turn, number in enumerate(numbers):
            frames_THWC = self._draw_one(models, self._requests[number], peers, turn, len(numbers))
            if frames_THWC is not None and number == turn * world.size + world.rank:
                self._write(prefix, number, step, frames_THWC)
            # A rank that decodes may have stopped alone. Past this, the videos of the turn are stored.
            if any(peers.any([frames_THWC is None])):
                return None
        index = VideosIndex(videos=[self._video(prefix, number, step) for number in range(len(self._requests))])
        if world.rank == 0:
            self._store.put(drawn.uri, sealed_json(index.to_wire()))
        return drawn

    def _is_done(self, uri: str) -> bool:
        """Whether this very configuration drew them: a stage that was edited since draws otherwise."""
        if not self._store.exists(uri):
            return False
        found = read_checked(self._store, uri, lambda data: VideosIndex.from_wire(unsealed_json(data)))
        return all(video.settings.get("configHash") == self._context.config.hash() for video in found.videos)

    def _draw_one(self, models: Models, request: Request, peers: WorldPeers, turn: int, turns: int) -> Tensor | None:
        """The frames of a video; None if the world was asked to stop."""
        settings, steps = request.settings, request.settings.steps
        given = given_of(request, models, self._store)
        noise_1CTHW = noise_of(request.seed, latent_shape(request, models))[None].to(models.device)

        def on_step(done: int, _: int) -> None:
            # Told after each pass, so that nobody takes a long video for a hang; and all ranks stop at the same one.
            self._context.reporter.phase("samples", turn * steps + done, turns * steps)
            if any(peers.any([self._context.drain.requested()])):
                raise _Stopped

        sampler = Sampler(models.transformer, steps, settings.guidance)
        try:
            latent_1CTHW = sampler.draw(noise_1CTHW, self._pair(request), request.condition, given, on_step)
            return self._decoded(models, latent_1CTHW, (turn + 1) * steps, turns * steps)
        except _Stopped:
            return None

    def _decoded(self, models: Models, latent_1CTHW: Tensor, done: int, total: int) -> Tensor:
        """Frames of a drawn latent; between two of its tiles the rank tells that it gets on, and may be stopped."""
        autoencoder, tiles = models.autoencoder, 0

        def pixels(z_BCTHW: Tensor) -> Tensor:
            nonlocal tiles
            if tiles:
                self._context.reporter.phase("samples", done, total)
            if self._context.drain.requested():
                raise _Stopped
            tiles += 1
            return autoencoder.pixels(z_BCTHW)

        with models.on_device(autoencoder):
            z_1CTHW = autoencoder.denormalise(latent_1CTHW.to(models.dtype))
            pixels_1CTHW = autoencoder.tiles.decode(pixels, z_1CTHW)
        return to_uint8(pixels_1CTHW[0].float()).cpu()

    def _pair(self, request: Request) -> TextPair:
        features, device = self._text[request.text, request.negative], self._context.world.device
        context_BLD, pooled_BP = features.context_BLD.to(device), features.pooled_BP.to(device)
        return TextPair(
            context_BLD=context_BLD[:1],
            pooled_BP=pooled_BP[:1],
            negative_context_BLD=context_BLD[1:],
            negative_pooled_BP=pooled_BP[1:],
        )

    def _write(self, prefix: str, number: int, step: int, frames_THWC: Tensor) -> None:
        path = self._context.scratch / f"sample-{number + 1:04d}.mp4"
        video = self._video(prefix, number, step)
        write_video(frames_THWC, path, video.fps, {"videotrain": video.to_wire(), "text": self._requests[number].text})
        self._store.put(video.uri, path)
        path.unlink()

    def _video(self, prefix: str, number: int, step: int) -> SampledVideo:
        request, settings = self._requests[number], self._requests[number].settings
        return SampledVideo(
            number=number + 1,
            uri=f"{prefix}/{number + 1:04d}.mp4",
            prompt=request.prompt,
            condition=request.condition,
            seed=request.seed,
            width=settings.width,
            height=settings.height,
            frames=settings.frames,
            fps=int(settings.fps),
            settings={
                "step": step,
                "samplingSteps": settings.steps,
                "textGuidance": settings.text_guidance,
                "imageGuidance": settings.image_guidance,
                "motionScore": settings.motion_score,
                "negative": request.negative,
                "promptStyle": settings.prompt_style,
                "configHash": self._context.config.hash(),
            },
        )

    def _models(self, model: Callable[..., Any]) -> Models:
        return Models(
            sources=self._sources,
            transformer=cast("MMDiT", _InEngine(self._transformer, model)),
            autoencoder=self._autoencoder,
            text=cast("Any", None),  # its features are here already
            device=self._context.world.device,
            dtype=self._dtype,
            offload=True,
        )

    def _request(self, number: int) -> Request:
        config, spec, prompt = self._context.config, self._spec, self._spec.prompts[number]
        task = config.stage.train
        assert task is not None, "only a train stage has them"
        height, width = aspect.shape_of(
            spec.resolution, spec.aspect_ratio, flops.grid(config.model, config.autoencoder)
        )
        settings = Settings(
            width=width,
            height=height,
            frames=spec.frames,
            fps=spec.fps,
            steps=spec.sampling_steps,
            text_guidance=text_guidance(spec.text_guidance, config.model.guidance_embed),
            image_guidance=spec.image_guidance,
            motion_score=spec.motion_score,
            prompt_style=task.prompt_style,
        )
        fps, motion = (None, None) if spec.frames == 1 else (spec.fps, spec.motion_score)
        request = Request(
            prompt=prompt.text,
            text=prompt_text(prompt.text, task.prompt_style, fps, motion),
            negative=prompt.negative,
            condition=prompt.condition,
            image=prompt.image,
            last_image=prompt.last_image,
            video=prompt.video,
            seed=prompt.seed,
            settings=settings,
            models=self._sources.places(),
        )
        check_request(request, config.model, config.autoencoder, f"train.samples.prompts[{number}]")
        return request


class _Stopped(Exception):
    """The world was asked to stop."""


class _InEngine:
    """A model inside its engine, for a sampler: it never leaves the device."""

    def __init__(self, config: MMDiTConfig, call: Callable[..., Any]) -> None:
        self.config, self._call = config, call

    def __call__(self, **inputs: Any) -> Any:
        return self._call(**inputs)

    def to(self, _device: torch.device, /) -> _InEngine:
        return self


def _sources(context: StageContext) -> Sources:
    config = context.config
    if config.paths.autoencoder_weights is None:
        raise ConfigError("paths.autoencoderWeights: not set; train.samples needs an autoencoder to decode with")
    return Sources(
        model=config.model,
        model_weights=f"the weights of stage {config.stage.name}",
        autoencoder=config.autoencoder,
        autoencoder_weights=autoencoder_uri(config.autoencoder.kind, config.paths.autoencoder_weights),
        text_encoder=config.text_encoder,
    )


def _forget(store: ObjectStore, prefix: str) -> None:
    """Withdraw what an earlier life of the stage drew: one that begins at step 1 by order trains other weights."""
    for found in store.list(layout.training_samples(prefix, 0).rpartition("/")[0]):
        if found.uri == layout.videos_index(found.uri.rpartition("/")[0]):
            store.delete(found.uri)


def _features(encoder: TextEncoder, requests: Sequence[Request]) -> dict[tuple[str, str], TextFeatures]:
    """Features of each prompt and its negative one, on the host."""
    found = {}
    for request in requests:
        features = encoder.encode([request.text, request.negative])
        found[request.text, request.negative] = replace(
            features, context_BLD=features.context_BLD.cpu(), pooled_BP=features.pooled_BP.cpu()
        )
    return found
