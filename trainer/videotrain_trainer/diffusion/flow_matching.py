"""Flow matching: what one training sample is asked, and the loss of the answer.

Time 0 is data and 1 is noise; the target is the velocity from data to noise. Follows the released weights of Open-Sora
2.0; where report and code differ, docs/decisions/0100-timestep-shift.md says what was chosen.

All randomness of a sample comes from a counter-based generator keyed by (seed, bucket, position), so a batch may be cut
in any way, over any number of ranks, without a change of a single number.

Shape letters: B batch, C latent channels, T latent frames, F given frames, H rows, W columns, N image tokens, L text
tokens, D text width, P pooled width, I packed latent channels, E packed condition features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from videotrain_api.resource.architecture import AutoencoderSpec, TransformerSpec
from videotrain_api.resource.stages import ConditionKind, TrainTask
from videotrain_trainer.data.sample_order import sample_seed
from videotrain_trainer.diffusion.conditioning import References, choose, condition_of, given_frames, pack_condition
from videotrain_trainer.errors import ConfigError
from videotrain_trainer.networks.packing import pack, position_ids
from videotrain_trainer.text.byte_encoder import TextFeatures

SIGMA_MIN = 1e-5
"""Share of data that is left in the noise at time 1."""
VALIDATION_SEED = 0x76616C69
"""Seed of the noise that held-out samples get, the same in all stages and runs, so that their losses compare."""
_FLOW_STREAM = 0x666C6F77
"""Second word of the generator's key: other users of a sample's seed draw from other streams."""


class SampleKey(Protocol):
    """What keys a sample's random numbers."""

    @property
    def bucket(self) -> str:
        """Name of its bucket."""

    @property
    def position(self) -> int:
        """Place in the bucket's endless stream."""


class FlowBatch(Protocol):
    """What this module reads of a batch of encoded clips; all samples have one shape."""

    @property
    def latent_BCTHW(self) -> Tensor:
        """Latents, scaled as the model reads them."""

    @property
    def cond_first_BC1HW(self) -> Tensor:
        """First frames, encoded as pictures."""

    @property
    def cond_last_BC1HW(self) -> Tensor:
        """Last frames, encoded as pictures."""

    @property
    def references_BCFHW(self) -> Mapping[str, Tensor]:
        """Separately encoded frames of the v2v kinds, by kind; empty unless the autoencoder is causal."""

    @property
    def context_BLD(self) -> Tensor:
        """Features of the text, a row per token."""

    @property
    def pooled_BP(self) -> Tensor:
        """Features of the text as a whole."""

    @property
    def keys(self) -> Sequence[SampleKey]:
        """What each sample's random numbers are keyed by, one per sample."""


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What the inputs depend on besides the batch."""

    patch: int
    cond_embed: bool
    guidance_embed: bool
    causal: bool
    """Whether the autoencoder is causal."""


def model_facts(model: TransformerSpec, autoencoder: AutoencoderSpec) -> ModelFacts:
    """Facts of resolved specifications.

    Raises:
        ConfigError: the model's patch size is unset.
    """
    if model.patch_size is None:
        raise ConfigError("spec.model.patchSize: not set in the stage configuration; it must be resolved first")
    return ModelFacts(
        patch=model.patch_size,
        cond_embed=bool(model.cond_embed),
        guidance_embed=bool(model.guidance_embed),
        causal=autoencoder.causal,
    )


@dataclass(frozen=True, kw_only=True)
class FlowInputs:
    """One micro-batch as the model takes it, float32, and the target."""

    x_t_BNI: Tensor
    img_ids_BN3: Tensor
    txt_BLD: Tensor
    txt_ids_BL3: Tensor
    timesteps_B: Tensor
    pooled_BP: Tensor
    cond_BNE: Tensor | None
    """None for a model without a condition input."""
    target_BNI: Tensor
    kinds: list[ConditionKind]
    """How each sample is conditioned."""
    given_BT: Tensor
    """Which latent frames are given, boolean."""

    def arguments(self) -> dict[str, Tensor]:
        """Keyword arguments of `MMDiT.forward`."""
        found = {
            "img_BNI": self.x_t_BNI,
            "img_ids_BN3": self.img_ids_BN3,
            "txt_BLD": self.txt_BLD,
            "txt_ids_BL3": self.txt_ids_BL3,
            "timesteps_B": self.timesteps_B,
            "pooled_BP": self.pooled_BP,
        }
        return found if self.cond_BNE is None else found | {"cond_BNE": self.cond_BNE}

    def part(self, of: Callable[[Tensor], Tensor]) -> FlowInputs:
        """The inputs and targets of some of the tokens.

        Args:
            of: takes them from a tensor whose second dimension is tokens, of text or of the image.
        """
        return replace(
            self,
            x_t_BNI=of(self.x_t_BNI),
            img_ids_BN3=of(self.img_ids_BN3),
            txt_BLD=of(self.txt_BLD),
            txt_ids_BL3=of(self.txt_ids_BL3),
            cond_BNE=None if self.cond_BNE is None else of(self.cond_BNE),
            target_BNI=of(self.target_BNI),
        )


@dataclass(frozen=True, kw_only=True)
class FlowDraws:
    """The random choices of a micro-batch. Made on the host, where threads of the loader have time for it."""

    u_B: Tensor
    """Times in (0, 1), before the shift."""
    noise_BCTHW: Tensor
    no_context_B: Tensor
    """Which samples lose their text, boolean."""
    no_pooled_B: Tensor
    """Which lose their pooled feature."""
    kinds: tuple[ConditionKind, ...]
    """How each sample is conditioned."""


def sample_generator(seed: int, bucket: str, position: int) -> np.random.Generator:
    """The random numbers of one sample: the same in every process, world and attempt.

    Args:
        seed: of the stage.
        bucket: name of the sample's bucket.
        position: place in the bucket's endless stream.
    """
    key = np.array([sample_seed(seed, bucket, position), _FLOW_STREAM], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


def shift_alpha(tokens_per_frame: float, latent_frames: int) -> float:
    """How far time is shifted towards noise: 1 at 256 tokens per latent frame, 3 at 4096, times sqrt(latent frames)."""
    return (1.0 + 2.0 * (tokens_per_frame - 256) / (4096 - 256)) * math.sqrt(latent_frames)


def time_shift(alpha: float, t: Tensor) -> Tensor:
    """Alpha * t / (1 + (alpha - 1) * t); keeps 0 and 1."""
    return alpha * t / (1.0 + (alpha - 1.0) * t)


def interpolate(x0: Tensor, x1: Tensor, t_B: Tensor) -> Tensor:
    """The point at time t on the way from data x0 to noise x1; first dimension B."""
    t = t_B.view(-1, *[1] * (x0.dim() - 1))
    return (1.0 - t) * x0 + (1.0 - (1.0 - SIGMA_MIN) * (1.0 - t)) * x1


def velocity(x0: Tensor, x1: Tensor) -> Tensor:
    """What the model should answer: noise minus data."""
    return (1.0 - SIGMA_MIN) * x1 - x0


def training_draws(
    keys: Sequence[SampleKey], shape_CTHW: Sequence[int], task: TrainTask, facts: ModelFacts, seed: int
) -> FlowDraws:
    """Draw all random numbers of a micro-batch.

    Args:
        keys: of its samples.
        shape_CTHW: of each sample's latent.
        task: gives the conditioning mix and the text dropout.
        facts: of model and autoencoder.
        seed: of the stage.
    """
    times, choices, noise_BCTHW = _draw(seed, keys, shape_CTHW)
    return FlowDraws(
        u_B=torch.tensor(times).sigmoid(),
        noise_BCTHW=noise_BCTHW,
        no_context_B=torch.tensor([context < task.text_dropout for _, context, _ in choices]),
        no_pooled_B=torch.tensor([pooled < task.text_dropout for _, _, pooled in choices]),
        kinds=tuple(choose(task.conditioning, shape_CTHW[1], kind, facts.causal) for kind, _, _ in choices),
    )


def validation_draws(
    keys: Sequence[SampleKey], shape_CTHW: Sequence[int], task: TrainTask, facts: ModelFacts, time: float
) -> FlowDraws:
    """The same at one time for all samples: their noise and kind are always the same, and no text is dropped.

    Args:
        keys: of held-out samples; they name them, so that another batching changes nothing.
        shape_CTHW: of each sample's latent.
        task: gives the conditioning mix.
        facts: of model and autoencoder.
        time: in (0, 1), before the shift.
    """
    _, choices, noise_BCTHW = _draw(VALIDATION_SEED, keys, shape_CTHW)
    return FlowDraws(
        u_B=torch.full((len(keys),), time),
        noise_BCTHW=noise_BCTHW,
        no_context_B=torch.zeros(len(keys), dtype=torch.bool),
        no_pooled_B=torch.zeros(len(keys), dtype=torch.bool),
        kinds=tuple(choose(task.conditioning, shape_CTHW[1], kind, facts.causal) for kind, _, _ in choices),
    )


def flow_inputs(batch: FlowBatch, draws: FlowDraws, facts: ModelFacts, null_text: TextFeatures) -> FlowInputs:
    """Noisy tokens, conditions and targets of a micro-batch. Nothing is copied between host and device.

    Args:
        batch: encoded clips.
        draws: of the batch; their tensors, and those of `null_text`, are on the device of the batch.
        facts: of model and autoencoder.
        null_text: features of the empty caption.

    Raises:
        DataError: the encoded set lacks the frames that a sample is to be given.
    """
    latent_BCTHW = batch.latent_BCTHW.float()
    device, (frames, rows, columns) = latent_BCTHW.device, latent_BCTHW.shape[2:]
    t_B = time_shift(shift_alpha(rows * columns / facts.patch**2, frames), draws.u_B)
    x0_BNI = pack(latent_BCTHW, facts.patch)
    x1_BNI = pack(draws.noise_BCTHW, facts.patch)
    mask_B1THW, given_BCTHW = _conditions(batch, draws.kinds, facts.causal)
    txt_BLD, pooled_BP = _drop_text(batch, null_text, draws)
    return FlowInputs(
        x_t_BNI=interpolate(x0_BNI, x1_BNI, t_B),
        img_ids_BN3=position_ids(frames, rows, columns, facts.patch, len(draws.kinds), device),
        txt_BLD=txt_BLD,
        txt_ids_BL3=torch.zeros(*txt_BLD.shape[:2], 3, device=device),
        timesteps_B=t_B,
        pooled_BP=pooled_BP,
        cond_BNE=pack_condition(mask_B1THW, given_BCTHW, facts.patch) if facts.cond_embed else None,
        target_BNI=velocity(x0_BNI, x1_BNI),
        kinds=list(draws.kinds),
        given_BT=mask_B1THW[:, 0, :, 0, 0] > 0,
    )


def check_task(task: TrainTask, facts: ModelFacts) -> None:
    """Refuse what model or autoencoder cannot do.

    Raises:
        ConfigError: names the field.
    """
    asked = set(task.conditioning.kinds) - {"t2v"}
    if asked and not facts.cond_embed:
        raise ConfigError(
            f"train.conditioning: {sorted(asked)} need the model's condition input; set spec.model.condEmbed "
            "to true or leave only t2v"
        )
    if facts.guidance_embed:
        raise ConfigError(
            "spec.model.guidanceEmbed: a model with a distilled guidance input can only be sampled from; set it to "
            "false, and the input of initial weights is dropped"
        )


def flow_loss(prediction_BNI: Tensor, inputs: FlowInputs, skip_given: bool = False) -> Tensor:
    """Mean squared error in float32 over everything, or without the given frames at the ends.

    Args:
        prediction_BNI: velocity.
        inputs: what it answers.
        skip_given: see `counted_frames`; items count equally, however many of their frames count.
    """
    if skip_given:
        return sample_losses(prediction_BNI, inputs.target_BNI, counted_frames(inputs.given_BT)).mean()
    return F.mse_loss(prediction_BNI.float(), inputs.target_BNI)


def token_weights(inputs: FlowInputs, skip_given: bool = False) -> Tensor:
    """(B, N) float32: how much each token's mean squared error adds to what `flow_loss` gives."""
    batch, tokens, _ = inputs.x_t_BNI.shape
    counted_BT = counted_frames(inputs.given_BT) if skip_given else torch.ones_like(inputs.given_BT)
    per_frame = tokens // counted_BT.shape[1]
    weights_BT = counted_BT.double() / (batch * per_frame * counted_BT.sum(dim=1, keepdim=True).clamp(min=1))
    return weights_BT.float().repeat_interleave(per_frame, dim=1)


def weighted_loss(prediction_BNI: Tensor, target_BNI: Tensor, weights_BN: Tensor) -> Tensor:
    """Sum of the tokens' weighted mean squared errors in float32; over all tokens it is what `flow_loss` gives."""
    error_BN = (prediction_BNI.float() - target_BNI).square().mean(dim=2)
    return (error_BN * weights_BN).sum()


def counted_frames(given_BT: Tensor) -> Tensor:
    """Frames that the loss counts, (B, T) boolean: all but a given first or last one, if no inner frame is given."""
    counted_BT = torch.ones_like(given_BT, dtype=torch.bool)
    if given_BT.shape[1] > 1:
        pictures_B = ~given_BT[:, 1:-1].any(dim=1)
        counted_BT[:, 0] = ~(given_BT[:, 0] & pictures_B)
        counted_BT[:, -1] = ~(given_BT[:, -1] & pictures_B)
    return counted_BT


def sample_losses(prediction_BNI: Tensor, target_BNI: Tensor, counted_BT: Tensor) -> Tensor:
    """Mean squared error of each sample over its counted frames, (B,) float32."""
    batch, frames = counted_BT.shape
    error_BT = (prediction_BNI.float() - target_BNI).square().reshape(batch, frames, -1).mean(dim=2)
    # Two frames that are both given leave nothing to count; such a sample teaches nothing.
    losses_B: Tensor = (error_BT * counted_BT).sum(dim=1) / counted_BT.sum(dim=1).clamp(min=1)
    return losses_B


def _draw(
    seed: int, keys: Sequence[SampleKey], shape_CTHW: Sequence[int]
) -> tuple[list[float], list[tuple[float, float, float]], Tensor]:
    """Per sample a standard normal number for its time, and uniform ones for kind, context and pooled feature; noise.

    Every sample draws all of them, in this order, whatever is needed.
    """
    times, choices, noise_BCTHW = [], [], torch.empty(len(keys), *shape_CTHW)
    for number, key in enumerate(keys):
        generator = sample_generator(seed, key.bucket, key.position)
        times.append(float(generator.standard_normal()))
        kind, context, pooled = generator.random(3)
        choices.append((float(kind), float(context), float(pooled)))
        # numpy fills without the interpreter's lock, so that other threads go on.
        generator.standard_normal(dtype=np.float32, out=noise_BCTHW[number].numpy())
    return times, choices, noise_BCTHW


def _conditions(batch: FlowBatch, kinds: Sequence[ConditionKind], causal: bool) -> tuple[Tensor, Tensor]:
    """Masks (B, 1, T, H, W) and masked latents (B, C, T, H, W)."""
    device, (channels, frames, rows, columns) = batch.latent_BCTHW.device, batch.latent_BCTHW.shape[1:]
    masks, latents = [], []
    for index, kind in enumerate(kinds):
        given = given_frames(kind, _references(batch, index), causal)
        mask_1THW, latent_CTHW = condition_of((channels, frames, rows, columns), given, device)
        masks.append(mask_1THW)
        latents.append(latent_CTHW)
    return torch.stack(masks), torch.stack(latents)


def _references(batch: FlowBatch, index: int) -> References:
    return References(
        clip_CTHW=batch.latent_BCTHW[index],
        first_C1HW=batch.cond_first_BC1HW[index],
        last_C1HW=batch.cond_last_BC1HW[index],
        videos={kind: frames_BCFHW[index] for kind, frames_BCFHW in batch.references_BCFHW.items()},
    )


def _drop_text(batch: FlowBatch, null_text: TextFeatures, draws: FlowDraws) -> tuple[Tensor, Tensor]:
    """Context and pooled feature are dropped independently of each other."""
    context_BLD, pooled_BP = batch.context_BLD.float(), batch.pooled_BP.float()
    null_1LD = null_context(null_text, context_BLD.shape[1])
    return (
        torch.where(draws.no_context_B[:, None, None], null_1LD, context_BLD),
        torch.where(draws.no_pooled_B[:, None], null_text.pooled_BP, pooled_BP),
    )


def null_context(null_text: TextFeatures, tokens: int) -> Tensor:
    """(1, tokens, D): context of the empty caption, whose rows beyond its length are zero, at another padding."""
    context_1LD = null_text.context_BLD[:, :tokens]
    return F.pad(context_1LD, (0, 0, 0, tokens - context_1LD.shape[1]))
