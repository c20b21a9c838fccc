"""Parameters, tokens, FLOPs and shapes reproduce the published numbers."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from videotrain_api.config import aspect
from videotrain_api.config.presets import AUTOENCODERS, TRANSFORMERS, complete_autoencoder, complete_transformer
from videotrain_api.cost import flops
from videotrain_api.cost.autoencoder_flops import (
    autoencoder_parameters,
    autoencoder_train_flops,
    decoder_cost,
    encoder_cost,
)
from videotrain_api.resource.architecture import AutoencoderSpec, TextEncoderSpec, TransformerSpec
from videotrain_api.resource.stages import Bucket
from videotrain_api.schema import ManifestError

FIXTURES = Path(__file__).parents[3] / "fixtures"
MODELS = json.loads((FIXTURES / "manifest.json").read_text())["models"]
TABLES = json.loads((FIXTURES / "data.json").read_text())["aspect_tables"]
TEXT = TextEncoderSpec(kind="t5-clip", weights="s3://weights/text")


def shape(model: str, autoencoder: str, **changes: object) -> flops.MmditShape:
    return flops.mmdit_shape(TRANSFORMERS[model].model_copy(update=changes), AUTOENCODERS[autoencoder], TEXT)


@pytest.mark.parametrize(
    ("published", "model", "autoencoder"),
    [
        ("open_sora_v2", "mmdit-11b", "hunyuan-vae"),
        ("open_sora_v2_dc_ae", "mmdit-11b-dcae", "dc-ae-f32t4c128"),
        ("flux_dev", "flux-dev", "hunyuan-vae"),
    ],
)
def test_transformer_presets_have_the_published_sizes_and_parameters(published, model, autoencoder):
    config, spec = MODELS[published]["config"], TRANSFORMERS[model]
    assert flops.parameters(shape(model, autoencoder)) == MODELS[published]["parameters"]
    assert (spec.hidden_size, spec.num_heads, spec.mlp_ratio) == (3072, 24, config["mlp_ratio"])
    assert (spec.double_blocks, spec.single_blocks) == (config["depth"], config["depth_single_blocks"])
    assert (spec.rope_axes, spec.patch_size) == (config["axes_dim"], config["patch_size"])
    assert (spec.cond_embed, spec.guidance_embed) == (config["cond_embed"], config["guidance_embed"])


def test_the_text_only_model_has_the_published_parameters():
    assert flops.parameters(shape("mmdit-11b", "hunyuan-vae", cond_embed=False)) == 11_891_178_560


@pytest.mark.parametrize(("published", "preset"), [("hunyuan_vae", "hunyuan-vae"), ("video_dc_ae", "dc-ae-f32t4c128")])
def test_autoencoder_presets_have_the_published_parameters(published, preset):
    assert autoencoder_parameters(AUTOENCODERS[preset]) == MODELS[published]["parameters"]


def test_parameters_of_the_fixture_files_agree_with_their_tensor_lists():
    blocks = {"double_blocks": 19, "single_blocks": 38}
    for name in ("open_sora_v2", "open_sora_v2_dc_ae"):
        tensors = MODELS[name]["tensors"].items()
        total = sum(prod(sizes) * (blocks[key.split(".")[0]] if "*" in key else 1) for key, sizes in tensors)
        assert total == MODELS[name]["parameters"]


def test_blocks_cost_24_hidden_squared_per_token_and_four_hidden_per_pair():
    small, large = shape("mmdit-11b", "hunyuan-vae", cond_embed=False), 3072
    double = shape("mmdit-11b", "hunyuan-vae", cond_embed=False, double_blocks=20)
    added = flops.forward_flops(double, 2304, 512) - flops.forward_flops(small, 2304, 512)
    assert added == 24 * large**2 * 2816 + 4 * 2816**2 * large + 2 * 12 * large**2
    assert flops.attention_flops(small, 2816) == 57 * 4 * 2816**2 * 3072


@pytest.mark.parametrize(("tokens", "teraflops"), [(8448, 172), (76032, 5090)])
def test_forward_flops_match_the_fact_sheet(tokens, teraflops):
    model = shape("mmdit-11b", "hunyuan-vae", cond_embed=False)
    assert flops.forward_flops(model, tokens, 512) == pytest.approx(teraflops * 1e12, rel=0.003)
    assert flops.train_flops(model, tokens, 512) == 3 * flops.forward_flops(model, tokens, 512)


@pytest.mark.parametrize(
    ("model", "autoencoder", "resolution", "frames", "tokens"),
    [
        ("mmdit-11b", "hunyuan-vae", "256px", 1, 256),
        ("mmdit-11b", "hunyuan-vae", "256px", 33, 2304),
        ("mmdit-11b", "hunyuan-vae", "256px", 129, 8448),
        ("mmdit-11b", "hunyuan-vae", "768px", 129, 76032),
        ("mmdit-11b", "hunyuan-vae", "1024px", 1, 4096),
        ("mmdit-11b-dcae", "dc-ae-f32t4c128", "768px", 128, 18432),
        ("mmdit-11b-dcae", "dc-ae-f32t4c128", "768px", 1, 576),
    ],
)
def test_buckets_have_the_published_tokens(model, autoencoder, resolution, frames, tokens):
    bucket = Bucket(resolution=resolution, frames=frames, batch_size=1)
    assert flops.bucket_tokens(TRANSFORMERS[model], AUTOENCODERS[autoencoder], bucket) == tokens


def test_one_convolution_of_the_autoencoder_is_counted_by_hand():
    spec = AUTOENCODERS["dc-ae-tiny"]
    one, two = encoder_cost(spec, 1, 64, 64), encoder_cost(spec, 1, 128, 64)
    assert two.flops == 2 * one.flops and two.parameters == one.parameters
    decoder = decoder_cost(spec, 1, 64, 64)
    assert autoencoder_train_flops(spec, 1, 64, 64) == 3 * (one.flops + decoder.flops)
    first = AutoencoderSpec(kind="dc-ae", latent_channels=1, widths=[4], depths=[0], decoder_depths=[0])
    with pytest.raises(ValueError, match="complete"):
        encoder_cost(first.model_copy(update={"widths": None}), 1, 32, 32)
    assert encoder_cost(first, 1, 32, 32).flops == 2 * 27 * (3 * 4 + 4 * 1) * 32 * 32


@pytest.mark.parametrize("table", [t for t in TABLES if "_" not in t["name"]], ids=lambda t: f"{t['name']}-{t['grid']}")
def test_aspect_tables_equal_the_published_ones(table):
    training = {name: list(size) for name, size in aspect.shapes(table["name"], table["grid"]).items()}
    assert training == table["training"] and list(training) == list(table["training"])


@given(st.sampled_from(aspect.RESOLUTION_NAMES), st.sampled_from([8, 16, 32]), st.sampled_from(aspect.ASPECT_NAMES))
def test_every_shape_lies_on_the_grid_and_mirrors(resolution, grid, name):
    height, width = aspect.shape_of(resolution, name, grid)
    assert height % grid == width % grid == 0 and height >= grid and width >= grid
    assert aspect.shapes(resolution, grid, [name]) == {name: (height, width)}
    assert aspect.shapes(resolution, grid)["1:1"] == (aspect.side_of(resolution),) * 2


def test_a_named_list_of_ratios_keeps_its_order_and_drops_equal_shapes():
    assert aspect.shapes("64px", 32, ["1:1", "2:1", "16:9"]) == {"1:1": (64, 64)}
    assert list(aspect.shapes("96px", 32, ["16:9", "1:1"])) == ["16:9", "1:1"]


@pytest.mark.parametrize(("call", "message"), [(("100px", 32), "unknown resolution"), (("96px", 64), "no multiple")])
def test_unknown_classes_and_grids_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        aspect.shapes(*call)


def test_an_unknown_ratio_is_refused():
    with pytest.raises(ValueError, match="16:10"):
        aspect.shapes("64px", 32, ["16:10"])


def test_written_fields_win_over_the_preset():
    spec = complete_transformer(
        TransformerSpec(preset="mmdit-tiny", double_blocks=0, cond_embed=False, weights="s3://w")
    )
    assert (spec.double_blocks, spec.single_blocks, spec.cond_embed, spec.weights) == (0, 2, False, "s3://w")


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_every_transformer_preset_is_complete(name):
    spec = complete_transformer(TransformerSpec(preset=name))
    assert sum(spec.rope_axes or []) * (spec.num_heads or 0) == spec.hidden_size


@pytest.mark.parametrize("name", AUTOENCODERS)
def test_every_autoencoder_preset_is_complete(name):
    spec = complete_autoencoder(AutoencoderSpec(preset=name))
    step = spec.temporal_compression
    if spec.kind != "diffusers":
        assert spec.spatial_compression == (8 if spec.causal else 32) and step == 4
    longest = 8 * step + spec.causal
    assert spec.time.latent_frames(1) == 1 and spec.time.latent_frames(longest) == 8 + spec.causal


def test_an_incomplete_architecture_lists_all_missing_fields():
    with pytest.raises(ManifestError) as caught:
        complete_transformer(TransformerSpec(hidden_size=64))
    assert {p.path for p in caught.value.problems} >= {"spec.model.numHeads", "spec.model.ropeAxes"}
