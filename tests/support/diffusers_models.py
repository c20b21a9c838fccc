"""Tiny models of sizes that a seed draws, and diffusers' own classes that compute the same from an exported folder."""

import random

import torch
from diffusers import AutoencoderKLHunyuanVideo, FluxTransformer2DModel

from videotrain_trainer import models
from videotrain_trainer.networks.autoencoders.hunyuan_vae import HunyuanVAEConfig
from videotrain_trainer.networks.mmdit.config import MMDiTConfig
from videotrain_trainer.networks.packing import position_ids


def random_transformer(seed, **changes):
    """An MMDiT with every parameter random, so that nothing is hidden by a zero."""
    draw = random.Random(seed)
    head, heads, patch, channels = (
        draw.choice([16, 32, 48]),
        draw.randint(1, 3),
        draw.choice([1, 2]),
        draw.choice([4, 6]),
    )
    side = head // 8 * draw.choice([2, 3])
    sizes = {
        "in_channels": channels * patch**2,
        "context_dim": draw.randint(5, 24),
        "pooled_dim": draw.randint(5, 24),
        "hidden_size": head * heads,
        "num_heads": heads,
        "double_blocks": draw.randint(1, 3),
        "single_blocks": draw.randint(1, 3),
        "mlp_ratio": 4.0,
        "rope_axes": (head - 2 * side, side, side),
        "patch_size": patch,
        "cond_embed": draw.random() < 0.5,
        "guidance_embed": draw.random() < 0.5,
    }
    return shaken(models.build(MMDiTConfig(**(sizes | changes)), seed=seed), seed)


def random_autoencoder(seed):
    """A HunyuanVideo VAE."""
    draw = random.Random(seed)
    groups, depth = draw.choice([2, 4]), draw.choice([1, 2])
    widths = tuple(groups * factor for factor in (draw.randint(1, 2), draw.randint(1, 2), 3, 4))
    config = HunyuanVAEConfig(
        latent_channels=draw.choice([4, 6]),
        widths=widths,
        depths=(depth,) * 4,
        decoder_depths=(depth + 1,) * 4,
        norm_groups=groups,
        scaling_factor=draw.uniform(0.2, 2.0),
    )
    return shaken(models.build(config, seed=seed), seed)


@torch.no_grad()
def shaken(model, seed):
    """The model with noise on every parameter."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


def random_inputs(config, seed):
    """Arguments of an MMDiT, two videos of three latent frames."""
    generator = torch.Generator().manual_seed(seed)
    draw = random.Random(seed)
    frames, rows, columns = 3, 2 * draw.randint(1, 2), 2 * draw.randint(1, 3)
    ids = position_ids(frames, rows, columns, config.patch_size, 2)
    text = draw.randint(3, 9)

    def noise(*shape):
        return torch.randn(*shape, generator=generator)

    return {
        "img_BNI": noise(2, ids.shape[1], config.in_channels),
        "img_ids_BN3": ids,
        "txt_BLD": noise(2, text, config.context_dim),
        "txt_ids_BL3": torch.zeros(2, text, 3),
        "timesteps_B": torch.tensor([0.25, 0.9]),
        "pooled_BP": noise(2, config.pooled_dim),
        "cond_BNE": noise(2, ids.shape[1], config.cond_features) if config.cond_embed else None,
        "guidance_B": torch.tensor([3.5, 7.0]) if config.guidance_embed else None,
    }


def diffusers_transformer(folder):
    """diffusers' own class from an exported pipeline folder."""
    return FluxTransformer2DModel.from_pretrained(folder / "transformer", torch_dtype=torch.float32).eval()


def diffusers_autoencoder(folder):
    """The same for the autoencoder."""
    return AutoencoderKLHunyuanVideo.from_pretrained(folder / "vae", torch_dtype=torch.float32).eval()


@torch.no_grad()
def run_diffusers(theirs, inputs):
    """Their velocity for our arguments."""
    hidden = inputs["img_BNI"]
    if inputs["cond_BNE"] is not None:
        hidden = torch.cat((hidden, inputs["cond_BNE"]), dim=-1)
    return theirs(
        hidden_states=hidden,
        encoder_hidden_states=inputs["txt_BLD"],
        pooled_projections=inputs["pooled_BP"],
        timestep=inputs["timesteps_B"],
        img_ids=inputs["img_ids_BN3"][0],
        txt_ids=inputs["txt_ids_BL3"][0],
        guidance=inputs["guidance_B"],
    ).sample


def relative(found, expected):
    """Largest difference in standard deviations of what is expected."""
    return ((found - expected).abs().max() / expected.std()).item()
