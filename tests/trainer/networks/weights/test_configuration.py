"""Weight files carry what shapes do not tell: groups of norms, rotary axes, patch and tiles."""

import json
import logging

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.autoencoders import clip

from videotrain_api.config.presets import AUTOENCODERS
from videotrain_api.resource.architecture import AutoencoderSpec, AutoencoderTiling, TransformerSpec
from videotrain_trainer import models
from videotrain_trainer.errors import ConfigError
from videotrain_trainer.models.loading import config_for
from videotrain_trainer.networks.build import build_autoencoder, load_autoencoder
from videotrain_trainer.networks.weights import Destination, convert, open_weights
from videotrain_trainer.networks.weights.configuration import CONFIGURATION, stored_configuration
from videotrain_trainer.networks.weights.files import SafetensorsFile, TensorInfo, Weights

TILES = AutoencoderTiling(pixels=64, frames=16)
TINY_VAE = AutoencoderSpec(preset="hunyuan-vae-tiny", scaling_factor=0.5)
OWN_AXES = TransformerSpec(preset="mmdit-tiny", rope_axes=[8, 4, 4])
NO_CONDITION = TransformerSpec(preset="mmdit-tiny-dcae", cond_embed=False)
FEW_GROUPS = TINY_VAE.model_copy(update={"norm_groups": 2})
SAVED = [
    TINY_VAE,
    TINY_VAE.model_copy(update={"norm_groups": 2, "tiling": TILES}),
    AutoencoderSpec(preset="dc-ae-tiny", scaling_factor=2.0, tiling=AutoencoderTiling(pixels=128)),
    OWN_AXES,
    NO_CONDITION,
]


@pytest.mark.parametrize("spec", SAVED, ids=["vae", "groups-tiles", "dc-ae", "axes", "patch"])
def test_a_saved_model_is_loaded_as_it_was(spec, tmp_path):
    module = models.build(spec)
    models.save(module, tmp_path / "model.safetensors")
    loaded = models.load(tmp_path / "model.safetensors")
    assert loaded.config == module.config
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in module.state_dict().items())


@pytest.mark.parametrize(
    ("spec", "layout"),
    [
        (OWN_AXES, "flux-dev"),
        (NO_CONDITION, "diffusers"),
        (TINY_VAE.model_copy(update={"norm_groups": 2}), "diffusers"),
    ],
    ids=str,
)
def test_a_conversion_carries_the_configuration_into_the_other_layout(spec, layout, tmp_path):
    module = models.build(spec)
    models.save(module, tmp_path / "ours.safetensors")
    found = "open-sora-v2" if isinstance(spec, TransformerSpec) else "hunyuan-vae"
    convert(tmp_path / "ours.safetensors", Destination(target=tmp_path / "theirs.safetensors"), found, layout)
    assert models.load(tmp_path / "theirs.safetensors").config == module.config


def test_bare_tensors_of_a_preset_are_that_preset(tmp_path):
    """Its groups are 4, where the greatest common divisor of widths and 32 is 8."""
    module = models.build(TINY_VAE)
    save_file(module.state_dict(), tmp_path / "bare.safetensors", {"scaling_factor": "0.5"})
    loaded = models.load(tmp_path / "bare.safetensors")
    assert loaded.config.norm_groups == 4
    video = clip(1, 3, 5, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded.encode(video), module.encode(video))


@pytest.mark.parametrize(
    "spec",
    [TransformerSpec(preset="mmdit-tiny", double_blocks=3), TINY_VAE.model_copy(update={"depths": [2, 1, 1, 1]})],
    ids=["transformer", "vae"],
)
def test_what_is_taken_for_granted_of_bare_tensors_is_said(spec, tmp_path, caplog):
    save_file(models.build(spec).state_dict(), tmp_path / "bare.safetensors", {"scaling_factor": "0.5"})
    with caplog.at_level(logging.WARNING):
        models.load(tmp_path / "bare.safetensors")
    assert "carries no configuration" in caplog.text
    assert "rope_axes" in caplog.text or "norm_groups 8" in caplog.text


def test_a_measured_scale_does_not_lose_the_published_tiles():
    with torch.device("meta"):
        state = build_autoencoder(AUTOENCODERS["dc-ae-f32t4c128"]).state_dict()
    infos = {name: TensorInfo(torch.bfloat16, tuple(tensor.shape), 0, 0) for name, tensor in state.items()}
    file = SafetensorsFile("file", None, infos, {})
    weights = Weights("file", dict.fromkeys(infos, file), {"scaling_factor": "0.7"})
    config = config_for(weights, "open-sora-dc-ae", None)
    assert (config.scaling_factor, config.tiling.pixels, config.tiling.frames) == (0.7, 256, 32)


def test_the_folder_of_a_pipeline_keeps_tiles_and_axes(tmp_path):
    vae = models.build(TINY_VAE.model_copy(update={"tiling": TILES}))
    models.export_diffusers(tmp_path, models.build(OWN_AXES), vae)
    back = models.import_diffusers(tmp_path)
    assert (back.transformer.config.rope_axes, back.autoencoder.config) == ((8, 4, 4), vae.config)
    video = clip(1, 3, 17, 64, 128)
    with torch.no_grad():
        assert torch.equal(back.autoencoder.encode(video), vae.encode(video))


def test_a_component_without_metadata_is_described_by_the_config_json_beside_it(tmp_path):
    models.export_diffusers(tmp_path, models.build(OWN_AXES), models.build(TINY_VAE))
    for part in ("transformer", "vae"):
        path = tmp_path / part / "diffusion_pytorch_model.safetensors"
        save_file(load_file(path), path)
        assert "config.json" in stored_configuration(open_weights(tmp_path / part)).what
    assert models.load(tmp_path / "transformer").config.rope_axes == (8, 4, 4)
    assert models.load(tmp_path / "vae").config.norm_groups == 4


def test_a_configuration_that_does_not_fit_the_tensors_is_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    models.save(models.build(TINY_VAE), path)
    described = json.loads(open_weights(path).metadata[CONFIGURATION]) | {"latent_channels": 8}
    save_file(load_file(path), path, {CONFIGURATION: json.dumps(described)})
    with pytest.raises(ConfigError, match=r"tensors do not fit the model of .*videotrain_config in its metadata"):
        models.load(path)
    save_file(load_file(path), path, {CONFIGURATION: "{}"})
    with pytest.raises(ConfigError, match="not the configuration of a model"):
        models.load(path)


def test_weights_of_a_model_that_computes_something_else_are_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    models.save(models.build(FEW_GROUPS), path)
    spec = AUTOENCODERS["hunyuan-vae-tiny"].model_copy(update={"scaling_factor": 0.5})
    with pytest.raises(ConfigError, match=r"norm_groups: 4 here, 2 there"):
        load_autoencoder(spec, path)
    tiled = spec.model_copy(update={"norm_groups": 2, "scaling_factor": 0.7, "tiling": TILES})
    assert load_autoencoder(tiled, path).config.tiling.pixels == 64
