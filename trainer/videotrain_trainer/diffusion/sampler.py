"""Drawing latents: Euler steps over a shifted time grid with text and image guidance.

Three branches are combined: prompt and condition, negative prompt and condition, negative prompt and no condition
(arXiv 2503.09642, section 5). Branches that are equal or whose weight is zero are not computed.

Shape letters: B batch, C latent channels, T latent frames, H rows, W columns, N tokens, I packed latent channels,
L text tokens, D text width, P pooled width, E packed condition features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from videotrain_api.resource.stages import ConditionKind
from videotrain_trainer.diffusion.conditioning import Given, condition_of, pack_condition, write_given
from videotrain_trainer.diffusion.flow_matching import shift_alpha, time_shift
from videotrain_trainer.networks.mmdit.model import MMDiT
from videotrain_trainer.networks.packing import pack, position_ids, unpack

STEADY_STEPS = 10
"""From this step on every second one runs with scales of 1, which lessens oversaturation."""
Branch = tuple[bool, bool]
"""(prompt instead of negative prompt, condition instead of none)."""
PROMPT: Branch = (True, True)
NEGATIVE: Branch = (False, True)
UNCONDITIONED: Branch = (False, False)
Velocity = Callable[[int, Tensor, float], Tensor]
"""(step, x, t) to the velocity there."""
OnStep = Callable[[int, int], None]
"""Told after each step: steps done, steps of all."""


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """How strongly prompt and reference pull."""

    text: float
    """Scale of text guidance; for a distilled model the value of its guidance input."""
    image: float
    """Scale of image guidance."""
    oscillate_text: bool = True
    """Run every second step from STEADY_STEPS on with a text scale of 1."""
    oscillate_image: bool = True
    """The same for the image scale."""
    dynamic_image: bool = True
    """Let the image scale rise over the frames and fall over the steps where a picture is given."""


@dataclass(frozen=True, kw_only=True)
class TextPair:
    """Features of prompts and of their negative prompts, one row for each video."""

    context_BLD: Tensor
    pooled_BP: Tensor
    negative_context_BLD: Tensor
    negative_pooled_BP: Tensor


def time_grid(steps: int, alpha: float) -> Tensor:
    """Steps + 1 times from 1 (noise) to 0 (data), shifted, float32."""
    return time_shift(alpha, torch.linspace(1.0, 0.0, steps + 1, dtype=torch.float32))


def oscillate(scale: float, step: int) -> float:
    """The scale, or 1 on every odd step from STEADY_STEPS on."""
    return scale if step < STEADY_STEPS or step % 2 == 0 else 1.0


def text_scale(guidance: Guidance, step: int) -> float:
    """Text scale at a step."""
    return oscillate(guidance.text, step) if guidance.oscillate_text else guidance.text


def frame_scales(guidance: Guidance, step: int, steps: int, frames: int, kind: ConditionKind) -> Tensor:
    """Image scale of each latent frame at a step, (frames,).

    With a picture as reference the scale rises from 1 at the first frame to a bound at the last one, and the bound
    falls from the image scale to 1 over the steps: frames near the reference need no help.
    """
    scale = oscillate(guidance.image, step) if guidance.oscillate_image else guidance.image
    if scale <= 1.0 or not guidance.dynamic_image or not kind.startswith("i2v"):
        return torch.full((frames,), scale)
    bound = float(torch.linspace(scale, 1.0, steps + 1)[step])
    return torch.linspace(1.0, bound, frames)


def branch_weights(scale: float, image_scale_N1: Tensor) -> dict[Branch, Tensor]:
    """Weights of v = v3 + image * (v2 - v3) + text * (v1 - v2); they sum to 1 for every token.

    Args:
        scale: scale of text guidance.
        image_scale_N1: scale of image guidance for each token.
    """
    text_N1 = torch.full_like(image_scale_N1, scale)
    return {PROMPT: text_N1, NEGATIVE: image_scale_N1 - text_N1, UNCONDITIONED: 1.0 - image_scale_N1}


def combine(branches: Mapping[Branch, Tensor], weights: Mapping[Branch, Tensor]) -> Tensor:
    """The weighted sum of velocities, (B, N, I) each."""
    terms = [weights[branch] * velocity for branch, velocity in branches.items()]
    return torch.stack(terms).sum(dim=0)


def euler(x: Tensor, grid: Tensor, velocity: Velocity, on_step: OnStep | None = None) -> Tensor:
    """From noise at grid[0] to data at grid[-1]: x + (t_next - t) * v at each step."""
    steps = len(grid) - 1
    for step in range(steps):
        x = x + (grid[step + 1] - grid[step]).to(x.device) * velocity(step, x, float(grid[step]))
        if on_step is not None:
            on_step(step + 1, steps)
    return x


class Sampler:
    """Draws latents. The model stays in the data type of its weights; latents are kept in float32.

    Args:
        model: in evaluation mode, on its device.
        steps: Euler steps.
        guidance: scales.
        shift: alpha of the time shift; by the size of the latent, as in training, if None.
        one_by_one: compute the branches of guidance one after another, which needs less memory.
    """

    def __init__(
        self,
        model: MMDiT,
        steps: int,
        guidance: Guidance,
        shift: float | None = None,
        one_by_one: bool = False,
    ) -> None:
        self._model = model
        self._steps = steps
        self._guidance = guidance
        self._shift = shift
        self._one_by_one = one_by_one

    @torch.no_grad()
    def draw(
        self,
        noise_BCTHW: Tensor,
        text: TextPair,
        kind: ConditionKind,
        given: Given,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """The latents that go to the decoder, (B, C, T, H, W) float32.

        Args:
            noise_BCTHW: standard normal.
            text: prompts and negative prompts.
            kind: how the given frames are used.
            given: latents of the given frames, the same for all videos; they overwrite the drawn ones at the end.
            on_step: told after each step.

        Raises:
            ValueError: frames are given, but the model has no condition input.
        """
        if given and not self._model.config.cond_embed:
            raise ValueError(f"{kind} needs a model with a condition input")
        frames, rows, columns = noise_BCTHW.shape[2:]
        patch = self._model.config.patch_size
        tokens_per_frame = rows * columns // patch**2
        alpha = shift_alpha(tokens_per_frame, frames) if self._shift is None else self._shift
        grid = time_grid(self._steps, alpha)
        branches = _Branches(self._model, noise_BCTHW.shape, text, given, self._one_by_one)

        def velocity(step: int, x_BNI: Tensor, t: float) -> Tensor:
            if self._model.config.guidance_embed:
                return branches.distilled(x_BNI, t, self._guidance.text)
            scales_F = frame_scales(self._guidance, step, self._steps, frames, kind)
            image_scale_N1 = scales_F.repeat_interleave(tokens_per_frame)[:, None].to(x_BNI.device)
            return branches.guided(x_BNI, t, text_scale(self._guidance, step), image_scale_N1)

        tokens_BNI = euler(pack(noise_BCTHW.float(), patch), grid, velocity, on_step)
        latent_BCTHW = unpack(tokens_BNI, frames, rows, columns, patch)
        if frames > 1:
            for latent_CTHW in latent_BCTHW:
                write_given(latent_CTHW, given)
        return latent_BCTHW


class _Branches:
    """The model with the fixed inputs of some videos; computes only the branches that matter."""

    def __init__(self, model: MMDiT, shape: torch.Size, text: TextPair, given: Given, one_by_one: bool) -> None:
        self._model, self._text, self._one_by_one = model, text, one_by_one
        _, channels, frames, rows, columns = shape
        patch, device = model.config.patch_size, text.context_BLD.device
        self._ids_1N3 = position_ids(frames, rows, columns, patch, 1, device)
        self._cond_1NE: Tensor | None = None
        if model.config.cond_embed:
            mask_1THW, latent_CTHW = condition_of((channels, frames, rows, columns), given, device)
            self._cond_1NE = pack_condition(mask_1THW[None], latent_CTHW[None], patch)
        self._conditioned = bool(given) and frames > 1
        self._same_text = torch.equal(text.context_BLD, text.negative_context_BLD) and torch.equal(
            text.pooled_BP, text.negative_pooled_BP
        )

    def distilled(self, x_BNI: Tensor, t: float, guidance: float) -> Tensor:
        """One branch; the scale is an input of the model."""
        return self._run(x_BNI, t, [PROMPT], guidance)[0]

    def guided(self, x_BNI: Tensor, t: float, scale: float, image_scale_N1: Tensor) -> Tensor:
        """The combined velocity, (B, N, I), with that scale of text guidance."""
        weights = branch_weights(scale, image_scale_N1)
        if not self._conditioned:
            weights[NEGATIVE] = weights[NEGATIVE] + weights.pop(UNCONDITIONED)
        if self._same_text:
            weights[NEGATIVE] = weights[NEGATIVE] + weights.pop(PROMPT)
        wanted = [branch for branch, weight in weights.items() if weight.any()]
        if self._one_by_one:
            velocities = torch.cat([self._run(x_BNI, t, [branch], None) for branch in wanted])
        else:
            velocities = self._run(x_BNI, t, wanted, None)
        return combine(dict(zip(wanted, velocities, strict=True)), weights)

    def _run(self, x_BNI: Tensor, t: float, wanted: list[Branch], guidance: float | None) -> Tensor:
        """Velocities of the wanted branches, (branches, B, N, I)."""
        text, cond, videos, device = self._text, self._cond_1NE, len(x_BNI), x_BNI.device
        rows = len(wanted) * videos
        txt = torch.cat([text.context_BLD if prompt else text.negative_context_BLD for prompt, _ in wanted])
        conds = [] if cond is None else [cond if shown else 0 * cond for _, shown in wanted]
        velocity: Tensor = self._model(
            img_BNI=x_BNI.repeat(len(wanted), 1, 1),
            img_ids_BN3=self._ids_1N3.expand(rows, -1, -1),
            txt_BLD=txt,
            txt_ids_BL3=torch.zeros(*txt.shape[:2], 3, device=device),
            timesteps_B=torch.full((rows,), t, device=device),
            pooled_BP=torch.cat([text.pooled_BP if prompt else text.negative_pooled_BP for prompt, _ in wanted]),
            cond_BNE=torch.cat([part.expand(videos, -1, -1) for part in conds]) if conds else None,
            guidance_B=None if guidance is None else torch.full((rows,), guidance, device=device),
        )
        return torch.stack(velocity.float().chunk(len(wanted)))
