import copy
from dataclasses import dataclass, field

import pytest
import torch
import torch.nn.functional as F
from support.batches import training_inputs
from support.numerics import apart, rounding

from videotrain_api.config.presets import AUTOENCODERS, TRANSFORMERS
from videotrain_api.resource.architecture import TextEncoderSpec
from videotrain_api.resource.stages import Bucket, ConditioningMix, LearningRatePiece, Optimizer, TrainTask
from videotrain_trainer.diffusion.flow_matching import flow_loss, model_facts
from videotrain_trainer.networks.build import (
    build_autoencoder,
    build_transformer,
    initialize,
)
from videotrain_trainer.text.encoders import build_text_encoder

pytestmark = pytest.mark.numeric

TEXT = TextEncoderSpec(context_dim=32, pooled_dim=16, max_tokens=32)
MODEL, AUTOENCODER = TRANSFORMERS["mmdit-tiny-dcae"], AUTOENCODERS["dc-ae-tiny"]


@dataclass
class Key:
    bucket: str
    position: int


@dataclass
class Batch:
    latent_BCTHW: torch.Tensor
    cond_first_BC1HW: torch.Tensor
    cond_last_BC1HW: torch.Tensor
    context_BLD: torch.Tensor
    pooled_BP: torch.Tensor
    keys: list
    references_BCFHW: dict = field(default_factory=dict)


def test_a_tiny_transformer_learns_one_batch():
    encoder = build_text_encoder(TEXT)
    features, null = encoder.encode(["A rabbit.", "A street."]), encoder.encode([""])
    model = build_transformer(MODEL, AUTOENCODER, TEXT)
    initialize(model, 1)
    torch.manual_seed(0)
    latents = torch.randn(2, 64, 2, 2, 2)
    task = TrainTask(
        steps=1,
        buckets=[Bucket(resolution="64px", frames=8, batch_size=2)],
        optimizer=Optimizer(learning_rate=[LearningRatePiece(value=1e-3)]),
        conditioning=ConditioningMix(t2v=1, i2v_head=1),
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.99))
    losses = []
    for step in range(60):
        keys = [Key("64px/8f/1:1", 2 * step), Key("64px/8f/1:1", 2 * step + 1)]
        first, last = latents[:, :, :1], latents[:, :, -1:]
        batch = Batch(latents, first, last, features.context_BLD, features.pooled_BP, keys)
        inputs = training_inputs(batch, task, model_facts(MODEL, AUTOENCODER), null, seed=1)
        loss = flow_loss(model(**inputs.arguments()), inputs)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])
    assert model.cond_in.weight.any()


def test_a_tiny_autoencoder_learns_one_clip():
    model = build_autoencoder(AUTOENCODER)
    initialize(model, 1)
    rows = torch.linspace(-1, 1, 32)
    down, across = rows[:, None].expand(32, 32), [rows.roll(4 * t).expand(32, 32) for t in range(8)]
    clip = torch.stack([torch.stack((down * right, right, -down)) for right in across], dim=1)[None]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        loss = (model(clip) - clip).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


def test_a_bfloat16_model_takes_float32_inputs_and_stays_near_the_float32_one():
    model = build_transformer(MODEL, AUTOENCODER, TEXT)
    initialize(model, 1)
    args = (torch.randn(1, 8, 64), torch.zeros(1, 8, 3), torch.randn(1, 4, 32), torch.zeros(1, 4, 3))
    args += (torch.tensor([0.5]), torch.randn(1, 16), torch.randn(1, 8, 65))
    with torch.no_grad():
        exact = model(*args)
        rounded = model.to(torch.bfloat16)(*args)
    assert rounded.dtype == torch.bfloat16
    # bfloat16 keeps 8 bits: through four blocks some three of its roundings of the largest value add up, 8 are allowed.
    assert apart(rounded, exact) <= 8 * rounding(exact, torch.bfloat16)


def test_bfloat16_gradients_on_the_cpu_are_those_of_float32_rounded():
    exact = build_autoencoder(AUTOENCODER)
    initialize(exact, 3)
    rounded = copy.deepcopy(exact).bfloat16()
    x_BCTHW = torch.rand(2, 3, 8, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for model, dtype in ((exact, torch.float32), (rounded, torch.bfloat16)):
        F.l1_loss(model(x_BCTHW.to(dtype)).float(), x_BCTHW).backward()
    pairs = zip(exact.parameters(), rounded.parameters(), strict=True)
    errors = [float((a.grad - b.grad.float()).norm() / (a.grad.norm() + 1e-6)) for a, b in pairs]
    assert sorted(errors)[len(errors) // 2] < 0.1
    assert all(torch.isfinite(parameter.grad).all() for parameter in rounded.parameters())
