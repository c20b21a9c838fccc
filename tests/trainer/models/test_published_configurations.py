"""Dictionaries and files that other projects publish are accepted as they are."""

import pytest
import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel

from videotrain_trainer import models
from videotrain_trainer.errors import ConfigError
from videotrain_trainer.networks.autoencoders.flux_vae import PictureVAEConfig

SIZES = {
    "in_channels": 64,
    "vec_in_dim": 768,
    "context_in_dim": 4096,
    "hidden_size": 3072,
    "mlp_ratio": 4.0,
    "num_heads": 24,
    "depth": 19,
    "depth_single_blocks": 38,
    "axes_dim": [16, 56, 56],
    "theta": 10_000,
    "qkv_bias": True,
}
OURS = {"guidance_embed": False, "fused_qkv": False, "use_liger_rope": True}
HUNYUAN = {
    "type": "hunyuan_vae",
    "from_pretrained": "./ckpts/hunyuan_vae.safetensors",
    "in_channels": 3,
    "out_channels": 3,
    "layers_per_block": 2,
    "latent_channels": 16,
    "use_spatial_tiling": True,
    "use_temporal_tiling": False,
}
DC_AE = {
    "type": "dc_ae",
    "from_scratch": True,
    "model_name": "dc-ae-f32t4c128",
    "from_pretrained": "./ckpts/F32T4C128_AE.safetensors",
    "use_spatial_tiling": True,
    "use_temporal_tiling": True,
    "spatial_tile_size": 256,
    "temporal_tile_size": 32,
    "tile_overlap_factor": 0.25,
}
FLUX_VAE = {
    "type": "autoencoder_2d",
    "from_pretrained": "./ckpts/flux1-dev-ae.safetensors",
    "resolution": 256,
    "in_channels": 3,
    "ch": 128,
    "out_ch": 3,
    "ch_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "z_channels": 16,
    "scale_factor": 0.3611,
    "shift_factor": 0.1159,
}


@pytest.mark.parametrize(
    ("published", "preset"),
    [
        ({"type": "flux", "from_pretrained": "x", **OURS, **SIZES, "cond_embed": True}, "mmdit-11b"),
        (
            {"type": "flux", "from_pretrained": "x", **OURS, **SIZES, "in_channels": 128, "cond_embed": True}
            | {"patch_size": 1, "grad_ckpt_settings": (8, 100), "strict_load": False},
            "mmdit-11b-dcae",
        ),
        (HUNYUAN, "hunyuan-vae"),
        (DC_AE, "dc-ae-f32t4c128"),
    ],
    ids=["256px", "high_compression", "hunyuan_vae", "dc_ae"],
)
def test_a_published_dictionary_is_the_preset(published, preset):
    assert models.config_of(published) == models.config_of(preset)
    assert sum(p.numel() for p in models.build(published, device="meta").parameters()) == sum(
        p.numel() for p in models.build(preset, device="meta").parameters()
    )


def test_classes_defaults_stand_for_what_a_dictionary_leaves_out():
    flux = models.config_of({"type": "flux", "from_pretrained": "x", "guidance_embed": True, **SIZES})
    assert (flux.patch_size, flux.cond_embed, flux.fused_qkv, flux.rope_layout) == (2, False, True, "interleaved")
    # FLUX.1's own parameters have no type, and name the output.
    own = models.config_of({**SIZES, "out_channels": 64, "guidance_embed": True})
    assert own == flux
    assert models.config_of({"type": "hunyuan_vae", "from_pretrained": "x"}).tiling is None
    both = models.config_of(HUNYUAN | {"use_temporal_tiling": True}).tiling
    assert (both.pixels, both.frames, both.overlap) == (256, 64, 0.25)
    assert models.config_of({"type": "dc_ae", "model_name": "dc-ae-f32t4c128"}).tiling is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"type": "flux", "layers": 3}, r"missing fields .*unknown fields \['layers'\]"),
        ({"type": "stdit"}, "type 'stdit' of a published configuration is unknown; allowed: flux, hunyuan_vae, dc_ae"),
        (HUNYUAN | {"act_fn": "relu"}, r"\{'act_fn': 'relu'\}: allowed are \{'act_fn': 'silu'\}"),
        (HUNYUAN | {"depth": 3}, r"unknown fields \['depth'\]"),
        (HUNYUAN | {"norm_num_groups": 7}, "must be multiples of norm_groups 7"),
        (DC_AE | {"model_name": "dc-ae-f64"}, "model_name 'dc-ae-f64'"),
        ({"type": "dc_ae"}, "model_name"),
        (FLUX_VAE | {"scale_factor": 1.0}, r"\{'scale_factor': 1.0\}: allowed are"),
        ({**SIZES, "out_channels": 16, "guidance_embed": True}, "out_channels 16 must be in_channels 64"),
        ({"_class_name": "SD3Transformer2DModel"}, "_class_name is 'SD3Transformer2DModel'"),
    ],
)
def test_what_is_not_understood_is_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        models.config_of(change)


def test_configurations_of_diffusers_classes_are_read(tmp_path):
    theirs = FluxTransformer2DModel(
        in_channels=64, num_layers=1, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=24, pooled_projection_dim=8, guidance_embeds=True, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    config = models.config_of(dict(theirs.config) | {"_class_name": "FluxTransformer2DModel"})
    assert (config.hidden_size, config.patch_size, config.single_blocks) == (32, 2, 2)
    assert models.config_of(FLUX_VAE) == PictureVAEConfig()


class TestPictures:
    """FLUX.1's autoencoder from Python."""

    @pytest.fixture
    def ours(self):
        return models.build(PictureVAEConfig(width=32, multipliers=(1, 2, 2), blocks=1), seed=3)

    @pytest.fixture
    def pipeline(self, ours, tmp_path):
        """A folder as FLUX.1-dev has it: a distilled transformer and an AutoencoderKL."""
        folder = tmp_path / "flux"
        facts = {**SIZES, "vec_in_dim": 32, "context_in_dim": 64, "hidden_size": 32, "num_heads": 2, "depth": 1}
        facts |= {"depth_single_blocks": 1, "axes_dim": [4, 6, 6], "guidance_embed": True, "fused_qkv": False}
        models.export_diffusers(folder, models.build(facts | {"use_liger_rope": True}, seed=1), ours)
        return folder

    @torch.no_grad()
    def test_diffusers_class_codes_as_ours_does(self, ours, pipeline):
        theirs = AutoencoderKL.from_pretrained(pipeline / "vae").eval()
        pixels = torch.rand(2, 3, 1, 24, 40, generator=torch.Generator().manual_seed(1)) * 2 - 1
        latents = models.encode(ours, pixels)
        mean = theirs.encode(pixels[:, :, 0]).latent_dist.mean
        scaled = (mean - theirs.config.shift_factor) * theirs.config.scaling_factor
        assert torch.allclose(scaled, latents[:, :, 0], atol=1e-4 * float(latents.std()))
        back = theirs.decode(latents[:, :, 0] / theirs.config.scaling_factor + theirs.config.shift_factor).sample
        assert torch.allclose(back, models.decode(ours, latents)[:, :, 0], atol=1e-4 * float(back.std()))

    def test_a_flux_folder_is_imported_and_draws_a_picture(self, ours, pipeline):
        found = models.import_diffusers(pipeline)
        state = found.autoencoder.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in ours.state_dict().items())
        encoder = models.load_text_encoder("mmdit-tiny")
        options = models.SampleOptions(height=16, width=24, frames=1, steps=2)
        picture = models.sample(found.transformer, found.autoencoder, encoder, "A tree.", options)
        assert picture.shape == (1, 16, 24, 3)
        clip = models.SampleOptions(height=16, width=24, frames=9, steps=2)
        with pytest.raises(ValueError, match="9 frames: this autoencoder codes pictures; allowed: 1"):
            models.sample(found.transformer, found.autoencoder, encoder, "A tree.", clip)

    def test_its_file_is_recognised_in_both_layouts_and_converted(self, ours, pipeline, tmp_path):
        destination = models.Destination(target=tmp_path / "ae.safetensors")
        models.convert(pipeline / "vae", destination, "diffusers", "flux-vae")
        for path in (tmp_path / "ae.safetensors", pipeline / "vae"):
            loaded = models.load(path)
            assert loaded.config == ours.config
            assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in ours.state_dict().items())
