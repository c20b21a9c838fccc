"""Losses of a reconstruction: absolute error and perceptual distance, and in the adversarial phase the discriminator.

The graph is cut at the reconstruction: every loss is differentiated with respect to its pixels, once. The norms that
the adaptive weight needs follow from these gradients, and the autoencoder's backward pass starts from their weighted
sum.

Shape letters: B batch, C colour, T frames, H height, W width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from videotrain_api.resource.stages import AdversarialPhase, PerceptualLoss
from videotrain_trainer.networks.common import seeded_generator
from videotrain_trainer.networks.losses.discriminator import (
    Discriminator,
    DiscriminatorConfig,
    discriminator_loss,
    generator_loss,
)
from videotrain_trainer.networks.losses.perceptual import PerceptualDistance, frames_of
from videotrain_trainer.reconstruction.adaptive_weight import AdversarialLoss, adaptive_weight, last_layer_norm
from videotrain_trainer.reconstruction.joint_engine import AdversarialEngine, seeded_on

LAST_LAYER = "decoder.project_out.op_list.2"
"""The convolution of a DC-AE that makes the pixels."""


class ReconstructionLoss:
    """Mean absolute error plus weighted perceptual distance, averaged over frames.

    Args:
        spec: perceptual loss; none if None.
        distance: with its weights, on the device; None if there is no perceptual loss.
    """

    def __init__(self, spec: PerceptualLoss | None, distance: PerceptualDistance | None) -> None:
        self._weight = spec.weight if spec else 0.0
        self._distance = distance

    def __call__(self, out_BCTHW: Tensor, video_BCTHW: Tensor) -> Tensor:
        """L1 plus weighted perceptual distance, a scalar float32; both videos are (B, C, T, H, W)."""
        loss = F.l1_loss(out_BCTHW.float(), video_BCTHW.float())
        if self._distance is None:
            return loss
        perceptual = self._distance(frames_of(video_BCTHW), frames_of(out_BCTHW)).mean()
        total: Tensor = loss + self._weight * perceptual
        return total


class AdversarialLosses:
    """The losses of the adversarial phase.

    Args:
        autoencoder: the module, before an engine takes it.
        reconstruction: the other losses.
        phase: weight and kind.
        seed: of the stage.
    """

    def __init__(
        self, autoencoder: nn.Module, reconstruction: ReconstructionLoss, phase: AdversarialPhase, seed: int
    ) -> None:
        self._reconstruction, self._phase, self._seed = reconstruction, phase, seed
        self._last_input: Tensor | None = None
        self._last = autoencoder.get_submodule(LAST_LAYER)
        self._last_shape = self._last.get_parameter("conv.weight").shape
        self._last.register_forward_pre_hook(self._remember)

    def __call__(self, engine: AdversarialEngine, out_BCTHW: Tensor, video_BCTHW: Tensor, name: str) -> AdversarialLoss:
        """Losses of a micro-batch.

        Args:
            engine: of both models.
            out_BCTHW: the reconstruction, with its graph.
            video_BCTHW: float32.
            name: of the micro-batch, so that its dropout is the same in every world.
        """
        pixels_BCTHW = out_BCTHW.detach().float().requires_grad_()
        reconstruction = self._reconstruction(pixels_BCTHW, video_BCTHW)
        gradient_BCTHW = _gradient(reconstruction, pixels_BCTHW)
        # Outside of its engine, which would take this pass for one that its own backward follows.
        (fake,) = engine.critic.module(pixels_BCTHW.to(engine.dtype), generator=self._noise("fool", name, out_BCTHW))
        pull_BCTHW = _gradient(generator_loss(self._phase.loss, fake), pixels_BCTHW)
        weight = self._phase.weight * self._adaptive(gradient_BCTHW, pull_BCTHW, out_BCTHW)
        return AdversarialLoss(
            reconstruction=reconstruction.detach(),
            autoencoder=(out_BCTHW.float() * (gradient_BCTHW + weight * pull_BCTHW)).sum(),
            discriminator=self._adversarial(engine.critic, pixels_BCTHW.detach(), video_BCTHW, name),
        )

    def _adversarial(self, critic: Any, out_BCTHW: Tensor, video_BCTHW: Tensor, name: str) -> Tensor:
        clips = [clip_BCTHW.to(critic.dtype) for clip_BCTHW in (video_BCTHW, out_BCTHW)]
        real, fake = critic(*clips, generator=self._noise("judge", name, out_BCTHW))
        return discriminator_loss(self._phase.loss, real, fake)

    def _adaptive(self, gradient_BCTHW: Tensor, pull_BCTHW: Tensor, out_BCTHW: Tensor) -> Tensor:
        if self._last_input is None or self._last_input.shape[2:] != out_BCTHW.shape[2:]:
            raise RuntimeError(f"{LAST_LAYER} did not run once over all pixels of the clip; switch off tiling")
        norms = [last_layer_norm(self._last_input, self._last_shape, part) for part in (gradient_BCTHW, pull_BCTHW)]
        self._last_input = None
        return adaptive_weight(norms[0], norms[1], out_BCTHW[0, :, 0].numel())

    def _noise(self, purpose: str, name: str, like: Tensor) -> torch.Generator:
        return seeded_on(like.device, seeded_generator(self._seed, f"{purpose}/{name}").initial_seed())

    def _remember(self, _module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._last_input = inputs[0].detach()


def build_discriminator(phase: AdversarialPhase) -> Discriminator:
    """The discriminator that a stage asks for; call its `initialize`."""
    return Discriminator(DiscriminatorConfig(filters=phase.filters, layers=phase.layers, dropout=phase.dropout))


def _gradient(loss: Tensor, pixels_BCTHW: Tensor) -> Tensor:
    (gradient_BCTHW,) = torch.autograd.grad(loss, pixels_BCTHW)
    return gradient_BCTHW
