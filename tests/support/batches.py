"""Batches of latents, as the loader gives them."""

from dataclasses import dataclass, field

import torch


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
