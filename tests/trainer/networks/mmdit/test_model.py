from dataclasses import replace

import pytest
import torch
from support.model_fixtures import forward, forward_in_float64
from support.numerics import apart, assert_as_exact, rounding

from videotrain_trainer.networks.common import sinusoid
from videotrain_trainer.networks.mmdit.config import MMDiTConfig
from videotrain_trainer.networks.mmdit.model import MMDiT
from videotrain_trainer.networks.rope import rope_tables

pytestmark = pytest.mark.numeric

NAMES = ["mmdit_t2v", "mmdit_i2v", "mmdit_dc_ae", "mmdit_flux_image"]
OTHER_LAYOUTS = [
    {"fused_qkv": True, "rope_layout": "interleaved"},
    {"fused_qkv": True, "rope_layout": "half-split"},
    {"fused_qkv": False, "rope_layout": "interleaved"},
    {"fused_qkv": False, "rope_layout": "half-split"},
]


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_the_transformer_reproduces_every_published_intermediate_value(name, fixture, mmdit):
    found, model = fixture(name), mmdit(name)
    seen = {}
    model.double_blocks[0].register_forward_hook(lambda _m, args, out: seen.update(inputs=args, double=out))
    model.single_blocks[0].register_forward_hook(lambda _m, _args, out: seen.update(single=out))
    model.time_in.register_forward_hook(lambda _m, _args, out: seen.update(time=out))
    model.vector_in.register_forward_hook(lambda _m, _args, out: seen.update(vector=out))
    if model.guidance_in is not None:
        model.guidance_in.register_forward_hook(
            lambda _m, _args, out: found.check("mid.vec.guidance", out)  # in the image model alone
        )
    out = forward(model, found)
    found.check("mid.timestep_embedding", sinusoid(found["in.timesteps"]))
    found.check("mid.vec.time", seen["time"])
    found.check("mid.vec.vector", seen["vector"])
    found.check("mid.img_in", seen["inputs"][0])
    found.check("mid.txt_in", seen["inputs"][1])
    found.check("mid.vec", seen["inputs"][2])
    found.check("mid.double0_img", seen["double"][0])
    found.check("mid.double0_txt", seen["double"][1])
    found.check("mid.single0", seen["single"])
    found.check("out", out)


def test_a_fixture_is_computed_in_the_layout_that_its_configuration_names(mmdit):
    names = mmdit("mmdit_flux_image").state_dict()
    assert "double_blocks.0.img_attn.qkv.weight" in names
    assert "single_blocks.0.linear1.weight" in names
    assert mmdit("mmdit_flux_image").config.rope_layout == "interleaved"
    assert "double_blocks.0.img_attn.q_proj.weight" in mmdit("mmdit_t2v").state_dict()


@pytest.mark.parametrize("layout", OTHER_LAYOUTS, ids=lambda layout: "-".join(map(str, layout.values())))
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_every_layout_computes_the_same(name, layout, fixture, mmdit):
    found, model = fixture(name), mmdit(name)
    other = forward(mmdit(name, **layout), found)
    assert_as_exact(other, forward(model, found), forward_in_float64(model, found))
    found.check("out", other)


@pytest.mark.parametrize("name", ["mmdit_t2v", "mmdit_i2v", "mmdit_dc_ae"])
def test_rotary_tables_match_the_published_half_split_ones(name, fixture):
    found = fixture(name)
    ids = torch.cat((found["in.txt_ids"], found["in.img_ids"]), dim=1)
    cos, sin = rope_tables(ids, tuple(found.facts["config"]["axes_dim"]))
    found.check("mid.rope_cos", torch.cat((cos, cos), dim=-1)[:, 0])
    found.check("mid.rope_sin", torch.cat((sin, sin), dim=-1)[:, 0])


def test_rotary_tables_match_the_published_interleaved_ones(fixture):
    found = fixture("mmdit_flux_image")
    ids = torch.cat((found["in.txt_ids"], found["in.img_ids"]), dim=1)
    cos, sin = rope_tables(ids, tuple(found.facts["config"]["axes_dim"]), exact=True)
    expected = found["mid.rope_matrix"]
    assert torch.equal(torch.stack((cos, -sin, sin, cos), dim=-1).unflatten(-1, (2, 2)), expected)


def test_another_base_of_the_rotary_frequencies_changes_the_angles(fixture):
    ids = fixture("mmdit_t2v")["in.img_ids"]
    cos, _ = rope_tables(ids, (8, 12, 12), theta=256.0)
    angle = ids[0, :, 1] * 256.0 ** (-2 / 12)
    # The frequency is rounded, then the angle and its cosine: an angle of some size is off by so many roundings of it.
    assert apart(cos[0, 0, :, 5], angle.double().cos()) <= 3 * rounding(angle) + rounding(cos)


def test_text_is_not_rotated():
    cos, sin = rope_tables(torch.zeros(1, 3, 3), (8, 12, 12))
    assert torch.equal(cos, torch.ones_like(cos))
    assert not sin.any()


@torch.no_grad()
def test_a_new_condition_input_does_not_change_a_text_only_model(fixture, mmdit):
    found, plain = fixture("mmdit_t2v"), mmdit("mmdit_t2v")
    model = MMDiT(replace(plain.config, cond_embed=True))
    state = plain.state_dict() | {name: p for name, p in model.state_dict().items() if name.startswith("cond_in")}
    model.load_state_dict(state)
    cond = torch.randn(2, 60, model.config.cond_features)
    args = [found[f"in.{name}"] for name in ("img", "img_ids", "txt", "txt_ids", "timesteps", "y_vec")]
    assert torch.equal(model(*args, cond), plain(*args))


def test_a_condition_for_a_model_without_that_input_is_refused(fixture, mmdit):
    found, model = fixture("mmdit_t2v"), mmdit("mmdit_t2v")
    args = [found[f"in.{name}"] for name in ("img", "img_ids", "txt", "txt_ids", "timesteps", "y_vec")]
    with pytest.raises(ValueError, match="has no condition input, but cond_BNE was given"):
        model(*args, torch.zeros(2, 60, 20))


def test_guidance_is_an_input_of_the_image_model_and_moves_its_output(fixture, mmdit):
    found, model = fixture("mmdit_flux_image"), mmdit("mmdit_flux_image")
    args = {name: found[f"in.{name}"] for name in ("img", "img_ids", "txt", "txt_ids", "timesteps", "y_vec")}
    with pytest.raises(ValueError, match="has a guidance input, but guidance_B was not given"):
        model(*args.values())
    with torch.no_grad():
        weak, strong = (model(*args.values(), guidance_B=torch.full((2,), g)) for g in (1.0, 4.0))
    assert apart(weak, strong) > 1000 * rounding(strong)


def test_a_model_without_query_key_value_biases_has_none_in_its_two_stream_blocks_only(fixture):
    facts = fixture("mmdit_t2v").facts["config"]
    for fused in (True, False):
        model = MMDiT(MMDiTConfig.from_published({**facts, "qkv_bias": False, "fused_qkv": fused}))
        biased = {name for name in model.state_dict() if name.endswith(".bias")}
        assert not {name for name in biased if "attn.q" in name or "_attn.k" in name or "_attn.v" in name}
        assert ("single_blocks.0.linear1.bias" if fused else "single_blocks.0.q_proj.bias") in biased


def test_a_published_configuration_with_an_unknown_or_missing_field_is_refused(fixture):
    facts = dict(fixture("mmdit_t2v").facts["config"])
    with pytest.raises(ValueError, match=r"unknown fields \['hidden'\]"):
        MMDiTConfig.from_published({**facts, "hidden": 8})
    del facts["depth"]
    with pytest.raises(ValueError, match=r"missing fields \['depth'\]"):
        MMDiTConfig.from_published(facts)


def test_an_unknown_rotary_layout_is_refused(fixture):
    config = MMDiTConfig.from_published(fixture("mmdit_t2v").facts["config"])
    with pytest.raises(ValueError, match="rope_layout 'spiral' must be one of"):
        replace(config, rope_layout="spiral")


BF16_BOUND = 0.02
"""Root mean square of the difference, relative to that of the float32 output."""


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_bfloat16_is_within_the_stated_bound_of_float32(name, fixture, mmdit):
    found, model = fixture(name), mmdit(name)
    exact = forward(model, found)
    rounded = forward(model.bfloat16(), found).float()
    error = (rounded - exact).square().mean().sqrt() / exact.square().mean().sqrt()
    assert 0 < error <= BF16_BOUND
