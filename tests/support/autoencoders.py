"""The autoencoders of the numeric fixtures, and small ones with seeded weights."""

from dataclasses import replace

import torch
from support.model_fixtures import Fixture

from videotrain_trainer.networks.autoencoders.dc_ae import DCAE, DCAEConfig
from videotrain_trainer.networks.autoencoders.hunyuan_vae import HunyuanVAE, HunyuanVAEConfig
from videotrain_trainer.networks.build import initialize
from videotrain_trainer.networks.weights import load_weights

TINY_VAE = HunyuanVAEConfig(
    latent_channels=4, widths=(8, 8, 16, 16), depths=(1, 1, 1, 1), decoder_depths=(1, 1, 1, 1), norm_groups=4
)
TINY_DC_AE = DCAEConfig(
    latent_channels=8, widths=(8, 8, 8, 32, 32, 32), depths=(1,) * 6, decoder_depths=(1,) * 6, scaling_factor=1.0
)


def dc_ae_of(found: Fixture, **changes) -> DCAE:
    """The fixture's model; `changes` go into its configuration."""
    facts = found.facts["config"]
    config = DCAEConfig(
        latent_channels=facts["latent_channels"],
        widths=tuple(facts["width_list"]),
        depths=tuple(facts["encoder_depth_list"]),
        decoder_depths=tuple(facts["decoder_depth_list"]),
    )
    return _loaded(DCAE(replace(config, **changes)), found)


def hunyuan_vae_of(found: Fixture, **changes) -> HunyuanVAE:
    """The fixture's model; `changes` go into its configuration."""
    facts = found.facts["config"]
    widths = tuple(facts["block_out_channels"])
    config = HunyuanVAEConfig(
        latent_channels=facts["latent_channels"],
        widths=widths,
        depths=(facts["layers_per_block"],) * len(widths),
        decoder_depths=(facts["layers_per_block"] + 1,) * len(widths),
        norm_groups=facts["norm_num_groups"],
        scaling_factor=facts["scale_factor"],
        shift_factor=facts["shift_factor"],
    )
    return _loaded(HunyuanVAE(replace(config, **changes)), found)


def tiny_vae(seed=1, **changes) -> HunyuanVAE:
    """A HunyuanVideo VAE that a CPU runs in milliseconds."""
    return _seeded(HunyuanVAE(replace(TINY_VAE, **changes)), seed)


def tiny_dc_ae(seed=1, **changes) -> DCAE:
    """A Video DC-AE that a CPU runs in milliseconds."""
    return _seeded(DCAE(replace(TINY_DC_AE, **changes)), seed)


def clip(*shape, seed=0):
    """Random pixels in [-1, 1]."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def _loaded(model, found):
    load_weights(model, found.weights, found.weights.name)
    return model.eval().requires_grad_(False)


def _seeded(model, seed):
    initialize(model, seed)
    return model.eval().requires_grad_(False)
