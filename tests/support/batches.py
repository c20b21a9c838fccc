"""Batches of latents, as the loader gives them."""

from dataclasses import dataclass, field

import torch

from videotrain_trainer.diffusion.flow_matching import flow_inputs, training_draws, validation_draws
from videotrain_trainer.text.byte_encoder import TextFeatures


@dataclass(frozen=True)
class Key:
    bucket: str
    position: int


@dataclass(frozen=True)
class Batch:
    latent_BCTHW: torch.Tensor
    cond_first_BC1HW: torch.Tensor
    cond_last_BC1HW: torch.Tensor
    context_BLD: torch.Tensor
    pooled_BP: torch.Tensor
    keys: list
    references_BCFHW: dict = field(default_factory=dict)

    def part(self, rows):
        tensors = {name: value[rows] for name, value in vars(self).items() if isinstance(value, torch.Tensor)}
        references = {kind: value[rows] for kind, value in self.references_BCFHW.items()}
        return Batch(**tensors, keys=[self.keys[row] for row in rows], references_BCFHW=references)


def training_inputs(batch, task, facts, null_text, seed):
    """Inputs of a batch with the random choices that the loader's threads would make for it."""
    draws = training_draws(batch.keys, batch.latent_BCTHW.shape[1:], task, facts, seed)
    return flow_inputs(batch, draws, facts, null_text)


def validation_inputs(batch, task, facts, time):
    """The same at one time, for validation, which drops no text."""
    context_1LD, pooled_1P = torch.zeros_like(batch.context_BLD[:1]), torch.zeros_like(batch.pooled_BP[:1])
    null_text = TextFeatures(context_BLD=context_1LD, pooled_BP=pooled_1P, lengths=[1])
    draws = validation_draws(batch.keys, batch.latent_BCTHW.shape[1:], task, facts, time)
    return flow_inputs(batch, draws, facts, null_text)
