"""Drawing one video: text and references to features, candidates to latents, the best one to pixels.

Shapes: C latent channels, T frames, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from videotrain_api.resource.sampling import SEEDS
from videotrain_trainer.diffusion.sampler import Sampler, TextPair
from videotrain_trainer.sampling.loaded import Models
from videotrain_trainer.sampling.references import given_of, to_uint8
from videotrain_trainer.sampling.request import Request
from videotrain_trainer.sampling.scorers import load_scorer
from videotrain_trainer.storage import ObjectStore

_NOISE_STREAM = 0x6E6F6973
"""Second word of the noise generator's key."""
OnProgress = Callable[[int, int, int], None]
"""Told after each step: candidate from 0, steps done, steps of a candidate."""


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A video and how it was chosen."""

    frames_THWC: Tensor
    """uint8 on the CPU."""
    seed: int
    """Of the candidate that was kept."""
    scores: dict[int, float]
    """Score of every candidate by seed; empty without a scorer."""


class SamplingPipeline:
    """Draws videos with loaded models.

    Args:
        models: all on one device, or offloaded.
        store: serves references.
    """

    def __init__(self, models: Models, store: ObjectStore) -> None:
        self.models, self._store = models, store

    @torch.no_grad()
    def draw(self, request: Request, on_progress: OnProgress | None = None) -> Drawn:
        """Draw all candidates of a request and keep the best.

        Raises:
            DataError: a reference cannot be used.
            ConfigError: the request cannot be drawn with these models, or the scorer is unknown.
        """
        settings = request.settings
        scorer = None if settings.scorer is None else load_scorer(settings.scorer)
        best: Drawn | None = None
        scores: dict[int, float] = {}
        for index in range(settings.candidates):
            candidate = request.candidate(index)
            frames_THWC = self._draw_one(candidate, index, on_progress)
            if scorer is not None:
                scores[candidate.seed] = float(scorer(frames_THWC.numpy(), request.prompt))
            if best is None or scores[candidate.seed] > scores[best.seed]:
                best = Drawn(frames_THWC=frames_THWC, seed=candidate.seed, scores={})
        assert best is not None, "there is at least one candidate"
        return Drawn(frames_THWC=best.frames_THWC, seed=best.seed, scores=scores)

    def _draw_one(self, request: Request, index: int, on_progress: OnProgress | None) -> Tensor:
        models, settings = self.models, request.settings
        text = self._text(request)
        given = given_of(request, models, self._store)
        noise_1CTHW = noise_of(request.seed, latent_shape(request, models))[None].to(models.device)
        sampler = Sampler(models.transformer, settings.steps, settings.guidance, settings.shift, models.offload)

        def on_step(done: int, steps: int) -> None:
            if on_progress is not None:
                on_progress(index, done, steps)

        with models.on_device(models.transformer):
            latent_1CTHW = sampler.draw(noise_1CTHW, text, request.condition, given, on_step)
        with models.on_device(models.autoencoder):
            pixels_1CTHW = models.autoencoder.decode(latent_1CTHW.to(models.dtype))
        return to_uint8(pixels_1CTHW[0].float()).cpu()

    def _text(self, request: Request) -> TextPair:
        models = self.models
        with models.on_device(models.text):
            features = models.text.encode([request.text, request.negative])
        context, pooled = features.context_BLD.to(models.device), features.pooled_BP.to(models.device)
        return TextPair(
            context_BLD=context[:1],
            pooled_BP=pooled[:1],
            negative_context_BLD=context[1:],
            negative_pooled_BP=pooled[1:],
        )


def latent_shape(request: Request, models: Models) -> tuple[int, int, int, int]:
    """(C, T, H, W) of a request's latent."""
    spec, settings = models.sources.autoencoder, request.settings
    side = spec.spatial_compression
    channels = models.autoencoder.config.latent_channels
    return channels, spec.time.latent_frames(settings.frames), settings.height // side, settings.width // side


def noise_of(seed: int, shape: tuple[int, ...]) -> Tensor:
    """Standard normal noise, float32, that depends on seed and shape alone. Seeds repeat after 2**64 of them."""
    key = np.array([seed % SEEDS, _NOISE_STREAM], dtype=np.uint64)
    generator = np.random.Generator(np.random.Philox(key=key))
    return torch.from_numpy(generator.standard_normal(shape, dtype=np.float32))
