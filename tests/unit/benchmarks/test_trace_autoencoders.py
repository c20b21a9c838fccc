"""The arithmetic of autoencoders' memory tells what whole models need, in training and in coding."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import trace_autoencoders
from autoencoder_memory import LiveBytes
from trace_memory import free_gradients

from videotrain_api.config.presets import AUTOENCODERS
from videotrain_api.cost.autoencoder_flops import largest_unit
from videotrain_api.cost.autoencoder_memory import ClipBatch, clip_memory, critic_parameters
from videotrain_api.cost.coding_memory import decode_memory, encode_memory
from videotrain_api.cost.model_state import ModelState
from videotrain_api.resource.architecture import AutoencoderSpec, AutoencoderTiling
from videotrain_api.resource.stages import AdversarialPhase, PerceptualLoss
from videotrain_trainer.networks.build import build_autoencoder
from videotrain_trainer.networks.losses.perceptual import PerceptualDistance
from videotrain_trainer.parallel.activation import autoencoder_blocks
from videotrain_trainer.parallel.blocks import blocks_of
from videotrain_trainer.reconstruction.losses import AdversarialLosses, ReconstructionLoss, build_discriminator

NOTHING = ModelState(0, 0, 0, 0, 0)


def spec_of(preset: str, **changes) -> AutoencoderSpec:
    return AUTOENCODERS[preset].model_copy(update=changes)


def trained_peak(spec: AutoencoderSpec, batch: ClipBatch) -> int:
    """Bytes beside weights, counted over a whole step of the whole model."""
    with torch.device("meta"), LiveBytes() as live:
        model = build_autoencoder(spec).to(torch.bfloat16)
        autoencoder_blocks(model).recompute(batch.recompute)
        loss = ReconstructionLoss(None, None)
        if batch.perceptual:
            loss = ReconstructionLoss(PerceptualLoss(weights="file:///none"), PerceptualDistance())
        free_gradients(model)
        held = live.now
        live.peak = held
        clips, _following = (torch.empty(batch.samples, 3, *batch.size) for _ in range(2))
        loss(model(clips.to(torch.bfloat16), batch.lone_head), clips).backward()
    return live.peak - held


class PretendedEngine:
    """What the losses of an adversarial phase ask of both engines; their own room is counted elsewhere."""

    def __init__(self, critic) -> None:
        self.critic, self.dtype = self, torch.bfloat16
        self.module = critic

    def __call__(self, *clips, generator):
        return self.module(*clips, generator=generator)


def adversarial_peak(spec: AutoencoderSpec, batch: ClipBatch, phase: AdversarialPhase, monkeypatch) -> int:
    """The same of a step in which a discriminator is trained, too."""
    # There are no random numbers on the meta device, and so no generator.
    monkeypatch.setattr(AdversarialLosses, "_noise", lambda *_: None)
    with torch.device("meta"), LiveBytes() as live:
        model = build_autoencoder(spec).to(torch.bfloat16)
        critic = build_discriminator(phase).to(torch.bfloat16)
        losses = AdversarialLosses(model, ReconstructionLoss(None, None), phase, seed=0)
        free_gradients(model)
        free_gradients(critic)
        held = live.now
        live.peak = held
        clips, _following = (torch.empty(batch.samples, 3, *batch.size) for _ in range(2))
        found = losses(PretendedEngine(critic), model(clips.to(torch.bfloat16)), clips, "name")
        found.autoencoder.backward()
        found.discriminator.backward()
    return live.peak - held


def batch_of(samples: int, size: tuple[int, int, int], policy: str = "none", *, perceptual: bool = False) -> ClipBatch:
    return ClipBatch(samples=samples, size=size, recompute=policy, perceptual=perceptual, adversarial=None)


PUBLISHED, HUNYUAN = spec_of("dc-ae-f32t4c128"), spec_of("hunyuan-vae")
NARROW = spec_of("dc-ae-f32t4c256", widths=[96, 192, 384, 384, 768, 768], depths=[1, 3, 1, 2, 1, 2])
SHALLOW = spec_of("dc-ae-tiny", widths=[96, 384, 384, 768], depths=[0, 1, 2, 0], decoder_depths=[0, 1, 0, 1])


@pytest.mark.parametrize(
    ("spec", "batch"),
    [
        (PUBLISHED, batch_of(1, (32, 256, 256))),
        (PUBLISHED, batch_of(2, (32, 256, 256), "full", perceptual=True)),
        (PUBLISHED, batch_of(1, (48, 320, 192), "selective", perceptual=True)),
        (PUBLISHED, batch_of(1, (1, 768, 768), "selective")),
        (NARROW, batch_of(3, (8, 96, 160))),
        (NARROW, batch_of(2, (16, 160, 96), "full")),
        (SHALLOW, batch_of(2, (8, 96, 64))),
        (SHALLOW, batch_of(2, (8, 96, 64), "full")),
        (SHALLOW, replace(batch_of(2, (8, 96, 64)), lone_head=True)),
    ],
)
def test_the_formula_tells_the_peak_of_training_whole_autoencoders(spec, batch):
    counted = trained_peak(spec, batch)
    told = clip_memory(spec, NOTHING, batch)
    beside = told.activations + told.temporaries
    assert counted <= beside <= 1.08 * counted


@pytest.mark.parametrize("phase", [AdversarialPhase(), AdversarialPhase(filters=256, layers=3)])
def test_the_formula_tells_the_peak_of_a_step_with_a_discriminator(phase, monkeypatch):
    batch = replace(batch_of(1, (16, 192, 128)), adversarial=phase)
    counted = adversarial_peak(NARROW, batch, phase, monkeypatch)
    told = clip_memory(NARROW, NOTHING, batch)
    assert counted <= told.activations + told.temporaries <= 1.08 * counted
    discriminator = build_discriminator(phase)
    assert critic_parameters(phase) == sum(parameter.numel() for parameter in discriminator.parameters())


def test_the_largest_part_that_is_gathered_as_one_is_counted():
    for spec in (PUBLISHED, NARROW, SHALLOW):
        with torch.device("meta"):
            model = build_autoencoder(spec)
        blocks = [sum(p.numel() for p in block.parameters()) for block in blocks_of(model)]
        rest = sum(parameter.numel() for parameter in model.parameters()) - sum(blocks)
        assert largest_unit(spec) == max(*blocks, rest)


def test_the_table_is_what_the_networks_do():
    assert trace_autoencoders.stale(trace_autoencoders.traces()) == []


def coded_peak(spec: AutoencoderSpec, size: tuple[int, int, int], *, decoding: bool) -> int:
    with torch.device("meta"), torch.inference_mode():
        model = build_autoencoder(spec).to(torch.bfloat16).eval().requires_grad_(False)
        side = spec.spatial_compression
        latents = (spec.latent_channels, spec.time.latent_frames(size[0]), size[1] // side, size[2] // side)
        given = torch.empty(1, *(latents if decoding else (3, *size)), dtype=torch.bfloat16)
        with LiveBytes() as live:
            live.hold(given)
            (model.decode if decoding else model.encode)(given)
    return live.peak


@pytest.mark.parametrize(
    ("spec", "size"),
    [
        (PUBLISHED, (40, 256, 384)),
        (PUBLISHED.model_copy(update={"tiling": None}), (32, 512, 320)),
        (NARROW, (16, 96, 64)),
        (SHALLOW, (16, 96, 64)),
        (HUNYUAN, (65, 256, 384)),
        (HUNYUAN.model_copy(update={"tiling": None}), (65, 512, 512)),
        (HUNYUAN.model_copy(update={"tiling": AutoencoderTiling(pixels=128, frames=64)}), (97, 128, 256)),
    ],
)
@pytest.mark.parametrize("decoding", [False, True], ids=["encode", "decode"])
def test_the_formula_tells_the_peak_of_coding_with_whole_autoencoders(spec, size, decoding):
    counted = coded_peak(spec, size, decoding=decoding)
    told = (decode_memory if decoding else encode_memory)(spec, size)
    assert counted <= told <= 1.05 * counted
