"""Compiles the blocks of a train stage before its first step: minutes that count as starting, and not as a hang.

A model of one block of each kind runs in the place of the real one, which has no memory for it yet: compiled code does
not depend on weights. Most of what comes of it lies in Inductor's cache, where the other generations find it.

Shapes: B batch, N image tokens, L text tokens.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from videotrain_api.resource.stages import ParallelLayout, Recompute
from videotrain_trainer.data.sets import LatentSet
from videotrain_trainer.networks.attention import Attention, attention
from videotrain_trainer.networks.mmdit.model import MMDiT
from videotrain_trainer.parallel.activation import transformer_blocks
from videotrain_trainer.parallel.context import ContextGroups, part_lengths

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Program:
    """What is compiled apart: a policy and a degree, for one sample or several; with the largest micro-batch of it."""

    policy: Recompute
    samples: int
    image_tokens: int
    """Of a sample, on all ranks that share it."""
    degree: int
    """Ranks that share it."""


def programs(data: LatentSet, policies: Mapping[str, Recompute], patch: int) -> list[Program]:
    """The programs of a stage.

    Args:
        data: its samples, whose buckets have the shapes.
        policies: by bucket name.
        patch: rows and columns of latent pixels of an image token.
    """
    largest: dict[tuple[Recompute, bool, int], Program] = {}
    for bucket, groups, degree in zip(data.plan.buckets, data.groups, data.degrees, strict=True):
        frames, height, width = groups[0].bucket.info.latent
        tokens = frames * (height // patch) * (width // patch)
        found = Program(policies[bucket.name], bucket.batch_size, tokens, degree)
        key = (found.policy, found.samples == 1, degree)
        known = largest.get(key)
        if known is None or known.samples * known.image_tokens < found.samples * found.image_tokens:
            largest[key] = found
    return list(largest.values())


def compile_ahead(
    build: Callable[[], MMDiT],
    wanted: Sequence[Program],
    text_tokens: int,
    device: torch.device,
    dtype: torch.dtype,
    validates: bool,
    groups: ContextGroups,
) -> None:
    """Run each program forward and backward once. Collective where ranks share samples.

    Args:
        build: a model with one block of each kind, whatever its weights.
        wanted: what to compile.
        text_tokens: of a sample.
        device: of the training.
        dtype: of the weights in training.
        validates: compile the forward pass of a single sample without gradients, too.
        groups: ranks that share samples.
    """
    with torch.random.fork_rng([device] if device.type == "cuda" else []), device:
        model = build().to(dtype)
        blocks = transformer_blocks(model, ParallelLayout(), compiled=True)
        for program in wanted:
            log.info("compile %s", program)
            blocks.recompute(program.policy)
            torch.autograd.backward(_run(model, program, text_tokens, groups).square().mean())
            model.zero_grad()
        if validates:
            blocks.recompute("none")
            with torch.no_grad():
                for degree in sorted({program.degree for program in wanted}):
                    smallest = min(program.image_tokens for program in wanted if program.degree == degree)
                    _run(model, Program("none", 1, smallest, degree), text_tokens, groups)


def _run(model: MMDiT, program: Program, text: int, groups: ContextGroups) -> torch.Tensor:
    config, batch, image = model.config, program.samples, program.image_tokens
    attend: Attention = attention
    group = groups.of(program.degree)
    if group is not None:
        attend = group.attention(attention, text, image)
        image, text = (part_lengths(tokens, group.degree)[group.place] for tokens in (image, text))
    velocity_BNI: torch.Tensor = model(
        img_BNI=torch.zeros(batch, image, config.in_channels),
        img_ids_BN3=torch.zeros(batch, image, 3),
        txt_BLD=torch.zeros(batch, text, config.context_dim),
        txt_ids_BL3=torch.zeros(batch, text, 3),
        timesteps_B=torch.zeros(batch),
        pooled_BP=torch.zeros(batch, config.pooled_dim),
        cond_BNE=torch.zeros(batch, image, config.cond_features) if config.cond_embed else None,
        guidance_B=torch.ones(batch) if config.guidance_embed else None,
        attend=attend,
    )
    return velocity_BNI
