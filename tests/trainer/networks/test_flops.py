import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from videotrain_api.config.presets import AUTOENCODERS, COMPANIONS, TRANSFORMERS
from videotrain_api.cost.flops import forward_flops, mmdit_shape, train_flops
from videotrain_trainer import models
from videotrain_trainer.networks.packing import position_ids

LATENTS = {
    "mmdit-11b": (2, 32, 32),
    "mmdit-11b-dcae": (2, 8, 8),
    "flux-dev": (1, 32, 32),
}
"""Frames, rows and columns."""
TEXT = 512


def run(model, latent, text):
    config, (frames, rows, columns) = model.config, latent
    ids = position_ids(frames, rows, columns, config.patch_size, 1).to("meta")
    tokens = ids.shape[1]

    def empty(*shape):
        return torch.empty(*shape, device="meta", dtype=torch.bfloat16)

    return model(
        img_BNI=empty(1, tokens, config.in_channels),
        img_ids_BN3=ids,
        txt_BLD=empty(1, text, config.context_dim),
        txt_ids_BL3=torch.zeros(1, text, 3, device="meta"),
        timesteps_B=torch.empty(1, device="meta"),
        pooled_BP=empty(1, config.pooled_dim),
        cond_BNE=empty(1, tokens, config.cond_features) if config.cond_embed else None,
        guidance_B=torch.empty(1, device="meta") if config.guidance_embed else None,
    )


def built(preset):
    """The full-size model without memory, and its work by formula."""
    autoencoder, text_encoder = COMPANIONS[preset]
    model = models.build(preset, device="meta", dtype=torch.bfloat16)
    shape = mmdit_shape(TRANSFORMERS[preset], AUTOENCODERS[autoencoder], text_encoder)
    frames, rows, columns = LATENTS[preset]
    return model, shape, frames * rows * columns // model.config.patch_size**2


@pytest.mark.parametrize("preset", LATENTS)
@torch.no_grad()
def test_the_formula_counts_what_torch_counts_at_full_size(preset):
    model, shape, tokens = built(preset)
    with FlopCounterMode(display=False) as counter:
        run(model, LATENTS[preset], TEXT)
    assert counter.get_total_flops() == forward_flops(shape, tokens, TEXT)


def test_training_is_three_forward_passes_within_one_percent():
    """What torch counts differs by the inputs, which need no gradient, and by scores that attention computes anew."""
    model, shape, tokens = built("mmdit-11b-dcae")
    with FlopCounterMode(display=False) as counter:
        run(model, LATENTS["mmdit-11b-dcae"], TEXT).sum().backward()
    assert train_flops(shape, tokens, TEXT) == pytest.approx(counter.get_total_flops(), rel=0.01)
