"""How close bfloat16 stays to float32, and that recomputing activations changes nothing."""

import pytest
import torch
from support.autoencoders import clip, dc_ae_of, hunyuan_vae_of, tiny_dc_ae, tiny_vae
from support.model_fixtures import Fixture

from videotrain_trainer.parallel.activation import autoencoder_blocks

pytestmark = pytest.mark.numeric

BF16_BOUND = 0.03
"""Root mean square of the error over that of the value. bfloat16 has 8 bits, a relative step of 0.4 %; errors of some
forty layers add up like random ones."""


def relative(value, exact):
    error = (value.float() - exact).square().mean().sqrt() / exact.square().mean().sqrt()
    return float(error)


@pytest.mark.parametrize("name", ["hunyuan_vae", "dc_ae"])
def test_bfloat16_is_within_the_stated_bound_of_float32(name):
    found = Fixture(name)
    model = (hunyuan_vae_of if name == "hunyuan_vae" else dc_ae_of)(found)
    z, pixels = model.encode(found["video.in"]), model.decode(found["latent.in"])
    model = model.bfloat16()
    errors = (
        relative(model.encode(found["video.in"].bfloat16()), z),
        relative(model.decode(found["latent.in"].bfloat16()), pixels),
    )
    assert all(0 < error <= BF16_BOUND for error in errors), errors


@pytest.mark.parametrize("policy", ["selective", "full"])
@pytest.mark.parametrize(("make", "frames"), [(tiny_vae, 5), (tiny_dc_ae, 8)])
def test_recomputed_activations_give_the_same_gradients_and_keep_the_names(make, frames, policy):
    video, gradients = clip(1, 3, frames, 32, 32), []
    for recompute in ("none", policy):
        model = make().requires_grad_(True)
        names = list(model.state_dict())
        autoencoder_blocks(model).recompute(recompute)
        assert list(model.state_dict()) == names
        model(video).square().mean().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    plain, again = gradients
    assert all((plain[name] is None) == (again[name] is None) for name in plain)
    # The same kernels see the same numbers again, so nothing may differ.
    assert all(torch.equal(plain[n], again[n]) for n in plain if plain[n] is not None)


@pytest.mark.parametrize(
    ("make", "last"),
    [(tiny_vae, "decoder.up_blocks.3.resnets.0"), (tiny_dc_ae, "decoder.stages.0.op_list.1")],
)
def test_the_last_block_of_the_decoder_runs_once_as_the_adaptive_weight_needs(make, last):
    model, runs = make().requires_grad_(True), []
    autoencoder_blocks(model).recompute("full")
    first = model.get_submodule("encoder.down_blocks.0.resnets.0" if make is tiny_vae else "encoder.stages.0.op_list.0")
    for part in (first, model.get_submodule(last)):
        inner = part.conv1 if make is tiny_vae else part.main.conv1
        inner.register_forward_hook(lambda _m, _a, _o, part=part: runs.append(part))
    model(clip(1, 3, 1, 32, 32)).square().mean().backward()
    assert runs.count(first) == 2
    assert runs.count(model.get_submodule(last)) == 1


def test_recomputing_keeps_fewer_values_for_the_backward_pass():
    kept = []
    for recompute in ("none", "full"):
        model = tiny_vae(depths=(2,) * 4, decoder_depths=(3,) * 4).requires_grad_(True)
        autoencoder_blocks(model).recompute(recompute)
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: (s.append(t.numel()), t)[1], lambda t: t):
            model(clip(1, 3, 5, 32, 32))
        kept.append(sum(sizes))
    assert kept[1] < kept[0] / 2
