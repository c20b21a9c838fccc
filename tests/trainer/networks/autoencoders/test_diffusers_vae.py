"""Video autoencoders of diffusers, from tiny random folders that its own `save_pretrained` writes."""

import builtins
import json

import diffusers
import pytest
import torch
from support.autoencoders import clip
from support.diffusers_autoencoders import TINY, WAN
from support.latent_run import LatentRun, storage  # noqa: F401 - a fixture
from support.numerics import assert_near

from videotrain_api.config.presets import AUTOENCODERS, TRANSFORMERS
from videotrain_api.resource.architecture import AutoencoderCompression, AutoencoderSpec, AutoencoderTiling
from videotrain_trainer import models
from videotrain_trainer.errors import ConfigError
from videotrain_trainer.networks.build import build_autoencoder, load_autoencoder

WRAPPED = 8
"""The same encoder ran; only the normalisation is written in another order, a handful of operations."""
DECODED = 256
"""The decoder's input differs by those roundings, and a random decoder of some thirty layers enlarges them: 20 here."""


def spec_of(name):
    channels, time, space = TINY[name][2]
    compression = AutoencoderCompression(time=time, space=space)
    return AutoencoderSpec(kind="diffusers", latent_channels=channels, compression=compression, causality="causal")


@pytest.fixture(params=TINY)
def saved(request, tmp_path):
    """Name, specification, diffusers' own model and its folder."""
    torch.manual_seed(3)
    class_name, fields, _ = TINY[request.param]
    model = getattr(diffusers, class_name)(**fields).eval().requires_grad_(False)
    model.save_pretrained(tmp_path / "vae")
    return request.param, spec_of(request.param), model, tmp_path / "vae"


def normalised(model, z):
    """As diffusers' pipelines do it."""
    config, channels = model.config, z.shape[1]

    def statistic(name, default):
        kept = getattr(model, name, None)
        values = config.get(name) or (kept.tolist() if isinstance(kept, torch.Tensor) else [default] * channels)
        return torch.tensor(values).view(1, channels, -1, 1, 1)[:, :, : z.shape[2]]

    return (z - statistic("latents_mean", 0.0)) / statistic("latents_std", 1.0) * config.get("scaling_factor", 1.0)


@torch.no_grad()
def test_latents_and_pixels_are_those_of_diffusers(saved):
    _, spec, model, folder = saved
    ours = load_autoencoder(spec, folder).eval()
    video = clip(1, 3, spec.time.frames(3), 64, 64)
    expected = normalised(model, model.encode(video).latent_dist.mode())
    latent = ours.encode(video)
    assert_near(latent, expected, roundings=WRAPPED)
    pixels = ours.decode(latent)
    assert pixels.shape == video.shape
    assert_near(pixels, model.decode(model.encode(video).latent_dist.mode()).sample, roundings=DECODED)


@pytest.mark.usefixtures("alone")
def test_a_run_encodes_trains_and_draws(saved, tmp_path, storage):  # noqa: F811 - the fixture
    _, spec, _, weights = saved
    model = TRANSFORMERS["mmdit-tiny"].model_copy(update={"patch_size": 1})
    run = LatentRun(tmp_path / "all", model, spec, weights)
    frames, side = 2 + spec.causal, 64 // spec.spatial_compression
    rows = run.encode(storage)
    assert {(row["latent_frames"], row["latent_height"], row["latent_width"]) for row in rows} == {(frames, side, side)}
    loss, shape = run.train()
    assert 0 < loss < 1000
    assert shape == (spec.latent_channels, frames, side, side)
    assert run.draw() == [(run.frames, 64, 64)] * 2


@pytest.fixture
def wan(tmp_path):
    diffusers.AutoencoderKLWan(**WAN).save_pretrained(tmp_path / "vae")
    return tmp_path / "vae"


def test_what_folder_and_specification_disagree_on_is_refused(wan):
    spec = spec_of("wan")
    for changes, message in (
        ({"latent_channels": 8}, "4 latent channels, spec.autoencoder.latentChannels 8"),
        ({"compression": AutoencoderCompression(time=8, space=8)}, "compression: 8, but AutoencoderKLWan has .* 4"),
        ({"compression": AutoencoderCompression(time=4, space=16)}, "compression: 16, but AutoencoderKLWan has .* 8"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_autoencoder(spec.model_copy(update=changes), wan)
    with pytest.raises(ValueError, match="decodes 2 latent frames to 5 frames, not to 8"):
        load_autoencoder(spec.model_copy(update={"causality": "none"}), wan).decode(torch.zeros(1, 4, 2, 2, 2))
    with pytest.raises(ValueError, match=r"frames must be 1, 5, 9, \.\.\."):
        load_autoencoder(spec, wan).encode(clip(1, 3, 4, 16, 16))


def test_the_statistics_of_the_specification_win_over_those_of_the_folder(wan):
    spec = spec_of("wan").model_copy(update={"latent_mean": [1.0] * 4, "latent_std": [2.0] * 4, "scaling_factor": 3.0})
    module = load_autoencoder(spec, wan)
    z = torch.randn(1, 4, 2, 3, 3)
    assert_near(module.normalise(z), (z - 1) / 2 * 3, roundings=4)
    assert_near(module.denormalise(module.normalise(z)), z, roundings=8)


@torch.no_grad()
def test_tiles_of_the_specification_are_used(wan):
    tiling = AutoencoderTiling(pixels=32)
    module = load_autoencoder(spec_of("wan").model_copy(update={"tiling": tiling}), wan).eval()
    seen = []
    module.vae.encoder.register_forward_pre_hook(lambda _m, args: seen.append(tuple(args[0].shape[-2:])))
    assert module.encode(clip(1, 3, 1, 48, 32)).shape[-2:] == (6, 4)
    assert set(seen) == {(32, 32), (32, 8), (24, 32), (24, 8)}


def test_a_folder_that_cannot_be_an_autoencoder_says_why(wan, tmp_path, monkeypatch):
    spec = spec_of("wan")
    with pytest.raises(ConfigError, match="only the folder of its weights tells its sizes"):
        build_autoencoder(spec)
    with pytest.raises(ConfigError, match="name the model: one of the presets wan-vae"):
        models.load(wan)
    config = json.loads((wan / "config.json").read_text())
    (wan / "config.json").write_text(json.dumps(config | {"_class_name": "AutoencoderOfTomorrow"}))
    with pytest.raises(ConfigError, match="'AutoencoderOfTomorrow' is no autoencoder of diffusers"):
        load_autoencoder(spec, wan)
    real = builtins.__import__

    def without(name, *rest, **named):
        if name == "diffusers":
            raise ModuleNotFoundError(name="diffusers")
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"pip install 'videotrain-trainer\[diffusers\]'"):
        load_autoencoder(spec, wan)
    monkeypatch.undo()
    (wan / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"there is no config\.json beside the weights"):
        load_autoencoder(spec, wan)


def test_models_load_takes_the_folder_with_a_specification(wan):
    module = models.load(wan, model=spec_of("wan"))
    assert models.encode(module, clip(1, 3, 5, 16, 16)).shape == (1, 4, 2, 2, 2)
    assert not module.training


WAN_22 = {"base_dim": 160, "decoder_base_dim": 256, "z_dim": 48, "is_residual": True, "in_channels": 12}
WAN_22 |= {"out_channels": 12, "patch_size": 2, "scale_factor_spatial": 16}
PUBLISHED = {
    "wan-vae": ("AutoencoderKLWan", {}),
    "wan22-vae": ("AutoencoderKLWan", WAN_22),
    "hunyuan-video-15-vae": ("AutoencoderKLHunyuanVideo15", {}),
    "ltx-vae": ("AutoencoderKLLTXVideo", {}),
    "cosmos-vae": ("AutoencoderKLCosmos", {}),
    "cogvideox-vae": ("AutoencoderKLCogVideoX", {}),
    "mochi-vae": ("AutoencoderKLMochi", {}),
}


@pytest.mark.parametrize("name", [name for name, spec in AUTOENCODERS.items() if spec.kind == "diffusers"])
def test_presets_have_the_compression_of_their_class(name):
    class_name, fields = PUBLISHED[name]
    with torch.device("meta"):
        model = getattr(diffusers, class_name)(**fields)
    spec = AUTOENCODERS[name]
    z = torch.empty(1, spec.latent_channels, 3, 2, 2, device="meta")
    with torch.no_grad():
        pixels = model.eval().decode(z).sample
    assert pixels.shape[2:] == (spec.time.frames(3), 2 * spec.spatial_compression, 2 * spec.spatial_compression)
