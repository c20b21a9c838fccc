"""Flow matching: what one training sample is asked, and the loss of the answer.

Time 0 is data and 1 is noise; the target is the velocity from data to noise. Follows the released weights of Open-Sora
2.0; where report and code differ, docs/decisions/0100-timestep-shift.md says what was chosen.

All randomness of a sample comes from a counter-based generator keyed by (seed, bucket, position), so a batch may be cut
in any way, over any number of ranks, without a change of a single number.

Shape letters: B batch, C latent channels, T latent frames, H rows, W columns, N image tokens, L text tokens, D text
width, P pooled width, I packed latent channels, E packed condition features.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from videotrain_api.architecture import AutoencoderSpec, TransformerSpec
from videotrain_api.stages import ConditionKind, TrainTask
from videotrain_trainer.conditioning import choose, condition_of, given_frames, pack_condition
from videotrain_trainer.data.order import sample_seed
from videotrain_trainer.errors import ConfigError
from videotrain_trainer.model.common import pack, position_ids
from videotrain_trainer.model.text import TextFeatures

SIGMA_MIN = 1e-5
"""Share of data that is left in the noise at time 1."""
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
        """Scaled latents."""

    @property
    def cond_first_BC1HW(self) -> Tensor:
        """First frames, encoded as pictures."""

    @property
    def cond_last_BC1HW(self) -> Tensor:
        """Last frames, encoded as pictures."""

    @property
    def context_BLD(self) -> Tensor:
        """Text token features."""

    @property
    def pooled_BP(self) -> Tensor:
        """Pooled text features."""

    @property
    def keys(self) -> Sequence[SampleKey]:
        """One per sample."""


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


@dataclass(frozen=True)
class _Draws:
    """The random numbers of one sample, always drawn in this order and always all of them."""

    time: float
    """Standard normal."""
    kind: float
    """Uniform, as are the next two."""
    context: float
    pooled: float
    noise_CTHW: Tensor


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


def training_inputs(
    batch: FlowBatch, task: TrainTask, facts: ModelFacts, null_text: TextFeatures, seed: int
) -> FlowInputs:
    """Noisy tokens, conditions and targets of a micro-batch, on the device of its latents.

    Args:
        batch: encoded clips.
        task: gives the conditioning mix and the text dropout.
        facts: of model and autoencoder.
        null_text: features of the empty caption.
        seed: of the stage.

    Raises:
        ConfigError: the task asks for what model or autoencoder cannot do.
    """
    check_task(task, facts)
    latent_BCTHW = batch.latent_BCTHW.float()
    device, shape = latent_BCTHW.device, latent_BCTHW.shape[1:]
    draws = [_draw(seed, key, shape) for key in batch.keys]
    frames, rows, columns = shape[1:]
    alpha = shift_alpha(rows * columns / facts.patch**2, frames)
    t_B = time_shift(alpha, torch.tensor([draw.time for draw in draws], device=device).sigmoid())
    x0_BNI = pack(latent_BCTHW, facts.patch)
    x1_BNI = pack(torch.stack([draw.noise_CTHW for draw in draws]).to(device), facts.patch)
    kinds = [choose(task.conditioning, frames, draw.kind) for draw in draws]
    txt_BLD, pooled_BP = _drop_text(batch, null_text, draws, task.text_dropout)
    return FlowInputs(
        x_t_BNI=interpolate(x0_BNI, x1_BNI, t_B),
        img_ids_BN3=position_ids(frames, rows, columns, facts.patch, len(draws)).to(device),
        txt_BLD=txt_BLD,
        txt_ids_BL3=torch.zeros(*txt_BLD.shape[:2], 3, device=device),
        timesteps_B=t_B,
        pooled_BP=pooled_BP,
        cond_BNE=_conditions(batch, kinds, facts.patch) if facts.cond_embed else None,
        target_BNI=velocity(x0_BNI, x1_BNI),
        kinds=kinds,
    )


def check_task(task: TrainTask, facts: ModelFacts) -> None:
    """Refuse what model or autoencoder cannot do.

    Raises:
        ConfigError: names the field.
    """
    asked = {kind for kind, weight in task.conditioning.model_dump().items() if weight > 0}
    if asked - {"t2v"} and not facts.cond_embed:
        raise ConfigError(
            f"train.conditioning: {sorted(asked - {'t2v'})} need the model's condition input; set spec.model.condEmbed "
            "to true or leave only t2v"
        )
    if facts.causal and asked & {"v2v_head", "v2v_tail"}:
        raise ConfigError(
            "train.conditioning: v2v_head and v2v_tail are copied from the encoded clip, which only an autoencoder "
            "that is not causal allows; set their weights to 0"
        )
    if facts.guidance_embed:
        raise ConfigError(
            "spec.model.guidanceEmbed: a model with a distilled guidance input can only be sampled from; set it to "
            "false, and the input of initial weights is dropped"
        )


def flow_loss(prediction_BNI: Tensor, inputs: FlowInputs) -> Tensor:
    """Mean squared error in float32 over everything, given frames included."""
    return F.mse_loss(prediction_BNI.float(), inputs.target_BNI)


def _draw(seed: int, key: SampleKey, shape: Sequence[int]) -> _Draws:
    generator = sample_generator(seed, key.bucket, key.position)
    time = float(generator.standard_normal())
    kind, context, pooled = generator.random(3)
    noise = generator.standard_normal(tuple(shape), dtype=np.float32)
    return _Draws(time, float(kind), float(context), float(pooled), torch.from_numpy(noise))


def _conditions(batch: FlowBatch, kinds: Sequence[ConditionKind], patch: int) -> Tensor:
    channels, frames, rows, columns = batch.latent_BCTHW.shape[1:]
    masks, latents = [], []
    for index, kind in enumerate(kinds):
        clip, first, last = batch.latent_BCTHW[index], batch.cond_first_BC1HW[index], batch.cond_last_BC1HW[index]
        mask_1THW, latent_CTHW = condition_of((channels, frames, rows, columns), given_frames(kind, clip, first, last))
        masks.append(mask_1THW.to(clip.device))
        latents.append(latent_CTHW.to(clip.device))
    return pack_condition(torch.stack(masks), torch.stack(latents), patch)


def _drop_text(
    batch: FlowBatch, null_text: TextFeatures, draws: Sequence[_Draws], probability: float
) -> tuple[Tensor, Tensor]:
    """Context and pooled feature are dropped independently of each other."""
    context_BLD, pooled_BP = batch.context_BLD.float(), batch.pooled_BP.float()
    null_1LD = null_context(null_text, context_BLD.shape[1]).to(context_BLD)
    no_context = torch.tensor([draw.context < probability for draw in draws], device=context_BLD.device)
    no_pooled = torch.tensor([draw.pooled < probability for draw in draws], device=context_BLD.device)
    return (
        torch.where(no_context[:, None, None], null_1LD, context_BLD),
        torch.where(no_pooled[:, None], null_text.pooled_BP.to(pooled_BP), pooled_BP),
    )


def null_context(null_text: TextFeatures, tokens: int) -> Tensor:
    """(1, tokens, D): context of the empty caption, whose rows beyond its length are zero, at another padding."""
    context_1LD = null_text.context_BLD[:, :tokens]
    return F.pad(context_1LD, (0, 0, 0, tokens - context_1LD.shape[1]))
