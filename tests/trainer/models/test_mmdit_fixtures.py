import pytest
import torch

from videotrain_trainer.model.common import rope_tables, sinusoid
from videotrain_trainer.model.mmdit import MMDiT
from videotrain_trainer.model.weights import to_flux

NAMES = ["mmdit_t2v", "mmdit_i2v", "mmdit_dc_ae", "mmdit_flux_image"]


def forward(model, found):
    given = {
        "img_BNI": "img",
        "img_ids_BN3": "img_ids",
        "txt_BLD": "txt",
        "txt_ids_BL3": "txt_ids",
        "timesteps_B": "timesteps",
        "pooled_BP": "y_vec",
        "cond_BNE": "cond",
        "guidance_B": "guidance",
    }
    return model(**{ours: found[f"in.{theirs}"] for ours, theirs in given.items() if f"in.{theirs}" in found.tensors})


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_the_transformer_reproduces_every_published_intermediate_value(name, fixture, mmdit):
    found, model = fixture(name), mmdit(name)
    seen = {}
    model.double_blocks[0].register_forward_hook(lambda _m, args, out: seen.update(inputs=args, double=out))
    model.single_blocks[0].register_forward_hook(lambda _m, _args, out: seen.update(single=out))
    model.time_in.register_forward_hook(lambda _m, _args, out: seen.update(time=out))
    model.vector_in.register_forward_hook(lambda _m, _args, out: seen.update(vector=out))
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
    cos, sin = rope_tables(ids, tuple(found.facts["config"]["axes_dim"]))
    found.check("mid.rope_matrix", torch.stack((cos, -sin, sin, cos), dim=-1).unflatten(-1, (2, 2)))


def test_a_flux_file_survives_the_way_to_our_layout_and_back(fixture, mmdit):
    from safetensors.torch import load_file

    original = load_file(fixture("mmdit_flux_image").weights)
    model = mmdit("mmdit_flux_image")
    back = to_flux(model.state_dict(), model.config)
    assert back.keys() == original.keys()
    assert all(torch.equal(back[name], original[name].float()) for name in original)


@torch.no_grad()
def test_a_new_condition_input_does_not_change_a_text_only_model(fixture, mmdit):
    from dataclasses import replace

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
